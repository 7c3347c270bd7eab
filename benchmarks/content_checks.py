"""How often `Scan.warnings` are false alarms, and how often they find a fault that was made.

    python benchmarks/content_checks.py ../shared/cases ../shared/open          # 150 pictures of each source
    python benchmarks/content_checks.py ../shared/cases ../shared/open --all --sheets alarms/

The folders have a table cases.csv with the columns source, path and modality. Their scans, the test files of pydicom
and nibabel, and the phantoms of radfm are read by `radfm.read_case`. For each check, the number of scans that it is for
and its alarms are printed, and the alarms of each source. Whether an alarm is false, only a person can say: `--sheets`
writes the pictures of the alarms of each check. The warnings of the readers, which go by the header, are listed.

Then faults are made, and those that are found are counted: radiographs are inverted, CT becomes one of several kinds of
values that are no Hounsfield units, and text, a ruler or the window of a viewer is drawn into pictures that have none,
as they are and as JPEG. Text and rulers are white, or black where the picture is bright.
"""

import argparse
import csv
import io
import random
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from radfm import read_case
from radfm.cases import Scan
from radfm.data_prep.pictures import grey_slice
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.modalities import modality_name
from radfm.readers.content_checks import CHECKS, content_warnings
from radfm.readers.drawn_marks import drawn_marks

MARKS = ("a window frame", "a ruler", "text")
EVERY = 10  # of so many pictures, one gets the faults that are drawn
SIDE, COLUMNS, MOST = 200, 10, 100  # of a sheet: pixels, pictures in a row, pictures
LINES = ("DOE, JANE 1970-01-01", "CHEST PA PORTABLE", "Hospital General", "Follow-up 2021", "Series 4 Image 27")
Faults = dict[str, Counter]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders with a table cases.csv")
    parser.add_argument("--sample", type=int, default=150, help="scans of each source (default: 150)")
    parser.add_argument("--all", action="store_true", help="all scans of each source")
    parser.add_argument("--phantoms", type=int, default=200, help="synthetic patients (default: 200)")
    parser.add_argument("--sheets", type=Path, help="folder for the pictures of the alarms")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of the libraries, about the damaged among their test files
    checked: dict[str, Counter] = defaultdict(Counter)  # check -> source -> scans
    alarms: dict[str, list[tuple[str, Scan]]] = defaultdict(list)
    faults: Faults = defaultdict(Counter)
    rng = np.random.default_rng(0)
    seconds: Counter = Counter()
    of_readers: Counter = Counter()  # (source, sentence) -> scans
    scans = scans_of(arguments.folders, None if arguments.all else arguments.sample, arguments.phantoms)
    for number, (source, scan) in enumerate(tqdm(scans, file=sys.stderr, unit="scan", mininterval=10)):
        found = dict(run_checks(scan, source, checked, seconds))
        for name in found:
            alarms[name].append((source, scan))
        of_readers.update((source, sentence) for sentence in scan.warnings if sentence not in found.values())
        count_made_faults(scan, found, faults, rng, draws=number % EVERY == 0)
    print_tables(checked, alarms, faults, seconds)
    print("ms of CPU time: ", end="")
    print(", ".join(f"{name} {milliseconds(scan):.1f}" for name, scan in large_scans().items()))
    print("\nwarnings of the readers, by header and geometry")
    for (source, sentence), count in of_readers.most_common():
        print(f"{count:6,} {source}: {sentence}")
    if arguments.sheets:
        write_sheets(alarms, arguments.sheets)


def scans_of(folders: list[Path], sample: int | None, phantoms: int) -> Iterator[tuple[str, Scan]]:
    """(source, scan) of the tables of the folders, of the test files of pydicom and nibabel, and of phantoms."""
    for folder in folders:
        rows_of = defaultdict(list)
        with open(folder / "cases.csv", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                rows_of[row["source"]].append(row)
        for source, rows in rows_of.items():
            chosen = rows if sample is None else random.Random(0).sample(rows, min(sample, len(rows)))
            for row in chosen:
                modality = modality_name(row["modality"]) if row["modality"] else None  # the header states it
                for scan in read_case(folder / row["path"], modality=modality).scans:
                    yield source, scan
                    if scan.modality == "CT" and len(scan.pixels) > 1:
                        yield from ((f"slices of {source}", replace(scan, pixels=one[None])) for one in scan.pixels)
    libraries = {"pydicom": (pydicom, "data/test_files", None), "nibabel": (nibabel, "tests/data", "MRI")}
    for name, (library, folder, modality) in libraries.items():
        for path in sorted((Path(library.__file__).parent / folder).rglob("*")):
            if path.is_file() and path.name != "DICOMDIR":
                yield from ((f"test files of {name}", scan) for scan in read_case(path, modality=modality).scans)
    source = Phantoms(phantoms, size=128)
    for read in source.read(source.listing().plans):
        yield from (("phantoms", scan) for scan in read.case.scans)


def run_checks(scan: Scan, source: str, checked: dict[str, Counter], seconds: Counter) -> Iterator[tuple[str, str]]:
    """(check, sentence) of the checks that find something. The kinds of drawn marks are counted one by one."""
    for check in CHECKS:
        if scan.modality not in check.modalities:
            continue
        started = time.process_time()
        sentence = check.warn(scan.pixels, scan)
        seconds[check.name] += time.process_time() - started
        seconds[check.name, "scans"] += 1
        kinds = MARKS if check.name == "drawn marks" else (check.name,)
        for kind in kinds:
            checked[kind][source] += 1
            if sentence is not None and (kind == check.name or kind in sentence):
                yield kind, sentence


def count_made_faults(scan: Scan, found: dict, faults: Faults, rng: np.random.Generator, draws: bool) -> None:
    """Makes the faults that suit a scan, and counts those that are made and those that are found."""
    warn = {check.name: check.warn for check in CHECKS}

    def count(fault: str, is_found: bool) -> None:
        faults[fault].update(made=1, found=is_found)

    if scan.modality in ("X-ray", "mammography") and min(scan.pixels.shape[1:3]) >= 64 and "inverted" not in found:
        inverted = replace(scan, pixels=scan.pixels.max() - scan.pixels)
        count(f"inverted, {scan.modality}", warn["inverted"](inverted.pixels, inverted) is not None)
    is_hounsfield = scan.modality == "CT" and scan.pixels.dtype != np.uint8 and scan.pixels.min() < -900
    if is_hounsfield and scan.pixels[0].size > 64 * 64:
        for fault, make in WRONG_VALUES.items():
            pixels = make(scan.pixels)
            count(f"CT: {fault}", warn["units"](pixels, scan) is not None)
    picture = scan.pixels[0]
    if (
        draws
        and picture.dtype == np.uint8
        and picture.ndim == 2
        and min(picture.shape) >= 128
        and len(scan.pixels) == 1
    ):
        for kind, draw in DRAW.items():
            if kind in found:
                continue
            drawn = draw(picture, rng)
            count(kind, kind in drawn_marks(drawn))
            count(f"{kind}, JPEG", kind in drawn_marks(as_jpeg(drawn)))


def _grey(pixels: np.ndarray, low: float, high: float, top: float) -> np.ndarray:
    return (np.clip((pixels - low) / (high - low), 0, 1) * top).astype(np.float32)


WRONG_VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "soft tissue window, 8 bits": lambda p: _grey(p, -160, 240, 255).astype(np.uint8),
    "lung window, 8 bits in 16": lambda p: _grey(p, -1350, 150, 255).astype(np.int16),
    "whole range, 12 bits": lambda p: _grey(p, -1000, 1000, 4095).astype(np.uint16),
    "scaled to [0, 1]": lambda p: _grey(p, -1000, 1000, 1),
    "mean 0, deviation 1": lambda p: ((p - p.mean()) / p.std()).astype(np.float32),
    "stored values, without intercept": lambda p: np.clip(p.astype(np.int32) + 1024, 0, None).astype(np.uint16),
    "16-bit PNG, 32,768 added": lambda p: (p.astype(np.int32) + 32768).astype(np.uint16),
    "cut to -160 ... 240": lambda p: np.clip(p, -160, 240),
    "cut to -1000 ... 400": lambda p: np.clip(p, -1000, 400),
    "intercept applied twice": lambda p: (p.astype(np.int32) - 1024).astype(np.int16),
    "in colour": lambda p: np.repeat(_grey(p, -160, 240, 255).astype(np.uint8)[..., None], 3, axis=-1),
}


def with_text(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A line of text at the top or bottom."""
    height = int(rng.integers(9, max(10, min(24, len(picture) // 12))))
    font, line = ImageFont.load_default(height), str(rng.choice(LINES))
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    x = int(rng.integers(2, max(3, image.width - pen.textlength(line, font) - 2)))
    y = int(rng.choice([3, image.height - height - 6]))
    ink = _ink(picture[y : y + height, x : x + int(pen.textlength(line, font))])
    pen.text((x, y), line, fill=ink, font=font)
    return np.asarray(image)


def with_ruler(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A ruler of 10 to 20 steps at the right or at the bottom, every fifth tick longer; some have a line along them."""
    turned = rng.random() < 0.5
    drawn = np.array(picture.T if turned else picture)
    step = int(rng.integers(5, len(drawn) // 14 + 2))
    steps = min(int(rng.integers(10, 21)), (len(drawn) - 4) // step)
    top, end = int(rng.integers(1, len(drawn) - step * steps - 1)), drawn.shape[1] - int(rng.integers(14, 24))
    ink = _ink(drawn[top : top + step * steps, end - 8 : end])
    for tick in range(steps + 1):
        row, thickness = top + tick * step, 2 if len(drawn) > 350 else 1
        drawn[row : row + thickness, end - (8 if tick % 5 == 0 else 4) : end] = ink
    if rng.random() < 0.5:
        drawn[top : top + step * steps + 1, end] = ink
    return drawn.T if turned else drawn


def in_window(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture in a window with a title."""
    bar, border = int(rng.integers(14, 28)), int(rng.integers(0, 5))
    colour = int(rng.choice([240, 200, 120, 70]))
    height, width = picture.shape
    image = Image.new("L", (width + 2 * border, height + bar + border), colour)
    image.paste(Image.fromarray(picture), (border, bar))
    pen, ink, title = ImageDraw.Draw(image), 20 if colour > 128 else 240, str(rng.choice(["Viewer", "Image 3 of 20"]))
    pen.text((6, 2), title, fill=ink, font=ImageFont.load_default(max(9, bar - 8)))
    pen.line((image.width - 12, 5, image.width - 5, bar - 6), fill=ink, width=2)
    pen.line((image.width - 5, 5, image.width - 12, bar - 6), fill=ink, width=2)
    return np.asarray(image)


def _ink(ground: np.ndarray) -> int:
    return 255 if np.percentile(ground, 80) < 150 else 0


DRAW = {"text": with_text, "a ruler": with_ruler, "a window frame": in_window}


def as_jpeg(picture: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file))


def print_tables(checked: dict[str, Counter], alarms: dict, faults: Faults, seconds: Counter) -> None:
    print(f"{'check':20} {'scans':>7} {'alarms':>7}  share   alarms of each source")
    for name, sources in checked.items():
        total, of_source = sources.total(), Counter(source for source, _ in alarms[name])
        listed = ", ".join(f"{source} {count} of {sources[source]}" for source, count in of_source.most_common())
        print(f"{name:20} {total:7,} {len(alarms[name]):7,} {len(alarms[name]) / total:6.2%}   {listed}")
    print(f"\n{'fault that was made':40} {'made':>6} {'found':>6}  share")
    for fault, counts in sorted(faults.items()):
        print(f"{fault:40} {counts['made']:6,} {counts['found']:6,} {counts['found'] / counts['made']:6.1%}")
    print("\nms of CPU time for a scan: ", end="")
    print(", ".join(f"{c.name} {1000 * seconds[c.name] / max(1, seconds[c.name, 'scans']):.1f}" for c in CHECKS))


def milliseconds(scan: Scan) -> float:
    """CPU time of all checks of a scan, the fastest of five runs."""
    taken = []
    for _ in range(5):
        started = time.process_time()
        content_warnings(scan)
        taken.append(1000 * (time.process_time() - started))
    return min(taken)


def large_scans() -> dict[str, Scan]:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 4000, (20, 16)).astype(np.float32)).resize((2048, 2500))
    noise = rng.integers(0, 40, (2500, 2048))
    return {
        "a radiograph of 2,500 x 2,048": Scan((np.asarray(smooth) + noise).astype(np.uint16)[None], "X-ray"),
        "a CT of 400 slices": Scan(
            rng.normal(0, 400, (400, 512, 512)).astype(np.int16), "CT", "axial", (1.0, 1.0, 1.0)
        ),
    }


def write_sheets(alarms: dict[str, list[tuple[str, Scan]]], folder: Path) -> None:
    """For each check a picture with the scans of its alarms, evenly chosen of many."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in alarms.items():
        if not found:
            continue
        chosen = found[:: -(-len(found) // MOST)]
        rows = -(-len(chosen) // COLUMNS)
        sheet = Image.new("L", (COLUMNS * SIDE, rows * (SIDE + 12)))
        for number, (source, scan) in enumerate(chosen):
            picture = Image.fromarray(grey_slice(scan, len(scan.pixels) // 2))
            scale = (SIDE - 2) / max(picture.size)
            place = (number % COLUMNS * SIDE, number // COLUMNS * (SIDE + 12))
            sheet.paste(picture.resize(max(1, round(side * scale)) for side in picture.size), place)
            ImageDraw.Draw(sheet).text((place[0], place[1] + SIDE - 1), source, fill=200)
        sheet.save(folder / f"{name.replace(' ', '_')}.png")


if __name__ == "__main__":
    main()
