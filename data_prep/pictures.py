"""Small pictures of stored scans, for the report.

Decisions:
- They come from the data set itself, so a look at the report is a look at what a model will get.
- CT is shown in the window that a reader of that body part would choose; all else between its darkest and brightest.
- Where the source knows what is to be seen, its outline is drawn.
- JPEG, as data URIs: the report is one file. The same scan gives the same bytes.
"""

import base64
import re
from bisect import bisect_right
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from PIL import Image
from scipy.ndimage import binary_dilation

from radfm.cases import Scan
from radfm.data_prep.image_fingerprint import representative_slice
from radfm.data_prep.stored_cases import mask_of, scan_of
from radfm.data_prep.tables import read_batches, shard_file

SIDE, LARGE = 192, 288  # pixels of a picture
_STRIP_SIDE = 64
_STRIP = 5  # slices of a strip
_MARK = (196, 98, 16)
_QUALITY = 85

_WINDOWS = {  # words of a body part: Hounsfield units
    "head brain skull neuro": (-10.0, 90.0),
    "chest lung thorax": (-1000.0, 400.0),
    "knee spine shoulder hip wrist ankle elbow hand foot extremity bone leg arm": (-400.0, 1300.0),
    "": (-160.0, 240.0),
}


@dataclass(frozen=True)
class Picture:
    """One scan as the report shows it.

    Attributes:
        uri: of the shown slice, a data URI.
        strip: of slices evenly spaced with the shown one marked; None for a scan of one slice.
        caption: modality, plane and body part, as far as known.
        place: which slice is shown.
        key: whether it is the key slice of several.
        window: (low, high) Hounsfield units, where one was chosen.
        outlined: names of the disorders that are outlined.
    """

    uri: str
    strip: str | None
    caption: str
    place: str
    key: bool
    window: tuple[float, float] | None
    outlined: list[str]


class Pictures:
    """Pictures of the scans of a data set, which need not be finished, by their row in the table of scans."""

    def __init__(self, folder: Path):
        self._folder = folder
        files = sorted((folder / "scans").glob("data-*.arrow"))
        self._ends = list(accumulate(len(read_batches(file)) for file in files))
        self._open: tuple[int, list] = (-1, [])

    def scan(self, row: int) -> Scan:
        return scan_of(self._batch(row))

    def picture(self, row: int, side: int = SIDE, *, plain: bool = False) -> Picture:
        """Of the key slice, or else of the middle one; a plain one has neither strip nor outlines."""
        scan = self.scan(row)
        shown = representative_slice(scan)
        window = ct_window(scan)
        masks = {} if plain else self._masks(row, shown)
        image = _fit(_slice(scan, shown, window), side, enlarge=bool(masks))
        for mask in masks.values():
            image = _outlined(image, mask)
        count = len(scan.pixels)
        key = scan.key_slice is not None
        place = f"key slice {shown + 1} of {count}" if key else f"slice {shown + 1} of {count}, the middle one"
        return Picture(
            data_uri(image),
            data_uri(_strip(scan, shown, window)) if count > 1 and not plain else None,
            ", ".join(word for word in (scan.modality or "modality unknown", scan.plane, scan.body_part) if word),
            place if count > 1 else "one slice",
            key and count > 1,
            window,
            list(masks),
        )

    def _batch(self, row: int):
        shard = bisect_right(self._ends, row)
        if self._open[0] != shard:
            self._open = (shard, read_batches(shard_file(self._folder, "scans", shard)))
        return self._open[1][row - (self._ends[shard - 1] if shard else 0)]

    def _masks(self, row: int, shown: int) -> dict[str, np.ndarray]:
        """Disorder -> (H, W) bool of the shown slice, for those that it shows."""
        file = shard_file(self._folder, "truth", bisect_right(self._ends, row))
        if not file.exists():
            return {}
        batch = self._batch(row)
        case, number = batch["case_id"][0], batch["number"][0]
        masks = {}
        for truth in read_batches(file):
            wanted = truth.filter(pc.and_(pc.equal(truth["case_id"], case), pc.equal(truth["number"], number)))
            for one in wanted.to_pylist():
                mask = mask_of(one)[shown]
                if mask.any():
                    masks[one["disorder"]] = mask
        return masks


def ct_window(scan: Scan) -> tuple[float, float] | None:
    """(low, high) Hounsfield units, as the body part asks for; None where the scan has none."""
    if scan.modality != "CT" or scan.pixels.dtype == np.uint8 or float(scan.pixels.max()) <= 1:
        return None  # no Hounsfield units
    words = re.findall("[a-z]+", scan.body_part or "")
    return next(window for names, window in _WINDOWS.items() if not names or set(words) & set(names.split()))


def _slice(scan: Scan, index: int, window: tuple[float, float] | None) -> Image.Image:
    pixels = scan.pixels[index]
    if pixels.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(pixels))
    values = pixels.astype(np.float32)
    low, high = window or (float(values.min()), float(values.max()))
    return Image.fromarray(np.uint8(255 * np.clip((values - low) / max(high - low, 1e-6), 0, 1)))


def _fit(image: Image.Image, side: int, enlarge: bool = False) -> Image.Image:
    """In a square of so many pixels; smaller pictures stay so unless asked."""
    scale = side / max(image.size)
    if scale > 1 and not enlarge:
        return image
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def _outlined(image: Image.Image, mask: np.ndarray) -> Image.Image:
    large = np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))
    edge = binary_dilation(large, iterations=2) & ~binary_dilation(large)
    pixels = np.array(image.convert("RGB"))
    pixels[edge] = _MARK
    return Image.fromarray(pixels)


def _strip(scan: Scan, shown: int, window: tuple[float, float] | None) -> Image.Image:
    """Slices side by side in their order, with a bar under the shown one."""
    count = len(scan.pixels)
    index = sorted({round((i + 0.5) * count / _STRIP - 0.5) for i in range(_STRIP)})
    if shown not in index:
        index[min(range(len(index)), key=lambda i: (abs(index[i] - shown), i))] = shown
    strip = Image.new("RGB", (_STRIP * (_STRIP_SIDE + 2) - 2, _STRIP_SIDE + 5), "white")
    for place, i in enumerate(index):
        image, left = _fit(_slice(scan, i, window), _STRIP_SIDE), place * (_STRIP_SIDE + 2)
        strip.paste("black", (left, 0, left + _STRIP_SIDE, _STRIP_SIDE))
        strip.paste(image, (left + (_STRIP_SIDE - image.width) // 2, (_STRIP_SIDE - image.height) // 2))
        if i == shown:
            strip.paste(_MARK, (left, _STRIP_SIDE + 1, left + _STRIP_SIDE, _STRIP_SIDE + 5))
    return strip


def data_uri(image: Image.Image) -> str:
    """As JPEG."""
    file = BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
