"""Draws how_it_works.svg beside this file: python docs/figures/how_it_works.py

The images show one phantom (seed 0, case 139 of 2,000). The scores of the ranking are an illustration only.
"""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from radfm.data_prep.phantoms import make_case

SIZE = (1280, 622)
NAMES = (
    ("Cancer of upper lobe of lung", "C34.1", 0.93),
    ("Lobar pneumonia", "J18.1", 0.21),
    ("Sarcoidosis of lung", "D86.0", 0.12),
    ("Pneumothorax", "J93.9", 0.03),
)
STYLE = """
  .paper{fill:#fff} .ink{fill:#1f2430} .soft{fill:#5b6472} .line{stroke:#8a93a3;fill:none;stroke-width:1.6}
  .image{fill:#fdeee3;stroke:#c8641e} .text{fill:#e3f1f3;stroke:#1d7c8c} .join{fill:#efe9f8;stroke:#6b4fb3}
  .chip{fill:#fff;stroke:#b3261e;stroke-dasharray:5 4} 
  .signal{stroke:#b3261e;fill:none;stroke-width:1.6;stroke-dasharray:5 4}
  .supervised{fill:#b3261e} .tile{stroke:#fff;stroke-width:1.5} .bar{fill:#6b4fb3} .rail{fill:#e9ebef}
  .icell{fill:#c8641e} .tcell{fill:#1d7c8c}
  @media (prefers-color-scheme: dark){
  .paper{fill:#12161d} .ink{fill:#e8ebf0} .soft{fill:#a3adbb} .line{stroke:#6f7a8a}
  .image{fill:#3a2413;stroke:#f0954f} .text{fill:#0f2f35;stroke:#4fb9c9} .join{fill:#2a2142;stroke:#a98cf0}
  .chip{fill:#12161d;stroke:#ff8a80} .signal{stroke:#ff8a80} .supervised{fill:#ff8a80} .tile{stroke:#12161d}
  .bar{fill:#a98cf0} .rail{fill:#262c36} .icell{fill:#f0954f} .tcell{fill:#4fb9c9}}
  text{font-family:system-ui,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;font-size:14px}
  .title{font-size:15px;font-weight:600} .small{font-size:12px} .middle{text-anchor:middle} .end{text-anchor:end}
"""


def main() -> None:
    case = make_case(seed=0, index=139, cases=2000, size=128).case
    ct, radiograph, pet = case.scans
    parts = [f'<rect class="paper" width="{SIZE[0]}" height="{SIZE[1]}" rx="10"/>', *images(radiograph, ct, pet)]
    parts += texts()
    parts += ranking()
    (Path(__file__).parent / "how_it_works.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE[0]} {SIZE[1]}" role="img" '
        'aria-label="Slices, scans and the case are encoded; cosine similarity with text embeddings ranks names.">'
        f"<style>{STYLE}</style>\n{_MARKERS}\n" + "\n".join(parts) + "\n</svg>\n"
    )


def images(radiograph, ct, pet) -> list[str]:
    """The upper row of the figure: from files to the embedding of the case."""
    rows = (105, 197, 289)  # the middle of each scan
    parts = [
        word(24, 40, "A case: all its scans", "title"),
        word(24, 58, "DICOM, NIfTI, pictures, arrays", "soft small"),
    ]
    for scan, y, description, stack in (
        (radiograph, rows[0], ("X-ray, PA", "1 slice"), 1),
        (ct, rows[1], ("CT, axial", f"{len(ct.pixels)} slices"), 4),
        (pet, rows[2], ("PET, coronal", f"{len(pet.pixels)} slices,", "8 days earlier"), 4),
    ):
        for back in reversed(range(stack)):
            at = min(scan.key_slice + 3 * back, len(scan.pixels) - 1)
            frame = f'x="{24 + 6 * back}" y="{y - 38 - 4 * back + 6}" width="72" height="72"'
            parts.append(f'<image {frame} href="{picture(scan, at)}"/><rect class="tile" fill="none" {frame}/>')
        for i, line in enumerate(description):
            parts.append(word(122, y - 4 + 16 * i, line, "soft small" if i else "small ink"))
    parts += box(
        222,
        66,
        108,
        262,
        "image",
        ("Slice", "encoder"),
        ("any timm or", "open_clip", "network, one", "slice at a time"),
    )
    parts += box(
        470,
        66,
        108,
        262,
        "image",
        ("Scan", "encoder"),
        ("a transformer", "over the slices", "of each scan,", "any number"),
    )
    parts += box(744, 66, 108, 262, "image", ("Case", "encoder"), ("a transformer", "over the scans,", "without order"))
    weights = ((1,), (0.15, 0.25, 0.3, 0.9, 0.4, 0.2, 0.15), (0.2, 0.3, 0.8, 0.3, 0.2))
    for y, attention, scan in zip(rows, weights, ("X-ray", "CT", "PET"), strict=True):
        parts.append(arrow(203, y, 218, y))
        left = 398 - 6 * len(attention)
        for i, share in enumerate(attention):
            frame = f'x="{left + 12 * i}" y="{y - 13}" width="9" height="26" rx="2"'
            parts.append(f'<rect class="icell" {frame} opacity="{share}"/>')
        parts += [arrow(334, y, left - 5, y), arrow(left + 12 * len(attention) + 3, y, 466, y)]
        parts += [arrow(582, y, 606, y), *vector(610, y - 27, "icell", 6), arrow(626, y, 740, y)]
        parts.append(f'<rect class="paper" x="640" y="{y - 20}" width="84" height="36"/>')
        parts.append(word(682, y - 5, scan, "small ink middle"))
        parts.append(word(682, y + 10, "+ plane, days", "small soft middle"))
    parts.append(word(398, 351, "one vector per slice, shaded by attention,", "small soft middle"))
    parts.append(word(398, 366, "which gives the key slice", "small soft middle"))
    parts += [
        arrow(856, 197, 882, 197),
        *vector(886, 161, "icell", 8),
        word(915, 254, "case", "small soft end"),
        word(915, 269, "vector", "small soft end"),
    ]
    parts += supervision(332, 134, 132, ("annotated key slice",), "M398 162 V180")
    return parts


def texts() -> list[str]:
    """The lower row of the figure: from names to their embeddings."""
    parts = [
        word(24, 424, "Disorder names, with ICD-10-CM codes", "title"),
        word(24, 442, "any names, also outside the training data", "soft small"),
    ]
    for i, (name, code, _) in enumerate(NAMES):
        parts += [word(24, 470 + 24 * i, name, "ink"), word(300, 470 + 24 * i, code, "soft small end")]
    parts += [arrow(312, 502, 466, 502)]
    parts += box(470, 420, 108, 136, "text", ("Text", "encoder"), ("frozen in", "stage 2"))
    for i in range(len(NAMES)):
        y = 466 + 24 * i
        parts += [arrow(582, y, 606, y), *vector(610, y - 6, "tcell", 8, across=True)]
    parts.append(word(690, 424, "one embedding each,", "small soft middle"))
    parts.append(word(690, 439, "kept in the checkpoint", "small soft middle"))
    lines = ("Stage 1: ICD-10-CM and disease ontologies:", "names, synonyms, definitions, hierarchy")
    parts += supervision(120, 566, 310, lines, "M434 588 H524 V560")
    return parts


def ranking() -> list[str]:
    """The right part of the figure: the cosine of both embeddings, and the ranked disorders."""
    parts = ['<path class="line" marker-end="url(#tip)" d="M726 502 H923 V352"/>']
    parts += ['<path class="line" marker-end="url(#tip)" d="M904 197 H923 V292"/>']
    parts += [
        '<circle class="join" cx="923" cy="322" r="26" stroke-width="1.6"/>',
        word(923, 327, "cos", "ink title middle"),
    ]
    parts += [arrow(953, 322, 981, 322), word(985, 252, "Ranking", "title")]
    parts.append(word(985, 270, "scale · cosine + bias, sigmoid", "soft small"))
    for i, (name, code, score) in enumerate(NAMES):
        y = 292 + 40 * i
        parts += [word(985, y + 8, name, "ink"), word(1258, y + 8, code, "soft small end")]
        parts.append(f'<rect class="rail" x="985" y="{y + 14}" width="273" height="7" rx="3.5"/>')
        parts.append(f'<rect class="bar" x="985" y="{y + 14}" width="{273 * score:.0f}" height="7" rx="3.5"/>')
    lines = ("Stage 2: disorders of each case,", "binary labels (sigmoid loss)")
    parts += supervision(1000, 490, 244, lines, "M1122 490 V460")
    parts += supervision(1000, 160, 244, ("Validation cases: calibration",), "M1122 188 V232")
    parts += [
        '<path class="signal" marker-end="url(#supervised)" d="M1150 592 H1184"/>',
        word(1192, 596, "supervision", "supervised small"),
    ]
    return parts


def picture(scan, slice_: int) -> str:
    """A slice as a data URL with a PNG."""
    pixels = scan.pixels[slice_].astype(float)
    low, high = (-1000, 400) if scan.modality == "CT" else np.percentile(scan.pixels, (1, 99.5))
    grey = Image.fromarray((np.clip((pixels - low) / (high - low), 0, 1) * 255).astype(np.uint8))
    file = io.BytesIO()
    grey.quantize(32).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def word(x: float, y: float, text: str, classes: str) -> str:
    colour = "" if {"soft", "ink", "supervised"} & set(classes.split()) else " ink"
    return f'<text class="{classes}{colour}" x="{x}" y="{y}">{text}</text>'


def arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<path class="line" marker-end="url(#tip)" d="M{x0} {y0} L{x1} {y1}"/>'


def box(x: int, y: int, width: int, height: int, kind: str, title: tuple, lines: tuple) -> list[str]:
    middle = x + width / 2
    top = y + height / 2 - (19 * len(title) + 8 + 15 * len(lines)) / 2 + 14
    parts = [f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="10" stroke-width="1.6"/>']
    parts += [word(middle, top + 19 * i, line, "title middle") for i, line in enumerate(title)]
    top += 19 * len(title) + 6
    return parts + [word(middle, top + 15 * i, line, "small soft middle") for i, line in enumerate(lines)]


def vector(x: float, y: float, kind: str, cells: int, across: bool = False) -> list[str]:
    shades = (0.9, 0.45, 0.7, 0.25, 0.8, 0.55, 0.35, 0.65)
    steps = [(x + 14 * i, y) if across else (x, y + 9 * i) for i in range(cells)]
    size = 'width="12" height="12"' if across else 'width="14" height="8"'
    shaded = zip(steps, shades, strict=False)
    return [f'<rect class="{kind}" x="{a}" y="{b}" {size} opacity="{shade}"/>' for (a, b), shade in shaded]


def supervision(x: int, y: int, width: int, lines: tuple, path: str) -> list[str]:
    height = 12 + 16 * len(lines)
    chip = f'<rect class="chip" x="{x}" y="{y}" width="{width}" height="{height}" rx="8" stroke-width="1.4"/>'
    labels = [word(x + width / 2, y + 18 + 16 * i, line, "supervised small middle") for i, line in enumerate(lines)]
    return [f'<path class="signal" marker-end="url(#supervised)" d="{path}"/>', chip, *labels]


_MARKERS = "".join(
    f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0 L8 4 L0 8 z" class="{kind}"/></marker>'
    for name, kind in (("tip", "soft"), ("supervised", "supervised"))
)
_MARKERS = f"<defs>{_MARKERS}</defs>"

if __name__ == "__main__":
    main()
