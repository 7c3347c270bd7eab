"""Why a volume of radfm is not among those of another reader: each reason has a check.

A check looks at the headers, the values, or what the readers say. The first reason whose check holds is that of a
difference.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pydicom
from pydicom import config
from pydicom.pixels import convert_color_space

from benchmarks.other_readers import WITHIN_MM, Reading, Volume, close, same_values, turns

UNEXPLAINED = "unexplained"


def is_dicom(file: Path) -> bool:
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        return opened.read(132)[128:] == b"DICM"


class Headers:
    """The headers of the DICOM files of a folder, without pixels."""

    def __init__(self, folder: Path):
        before = config.settings.reading_validation_mode
        config.settings.reading_validation_mode = config.IGNORE
        try:
            files = [file for file in sorted(folder.iterdir()) if is_dicom(file)]
            self.datasets = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
        finally:
            config.settings.reading_validation_mode = before

    @cached_property
    def syntax(self) -> str:
        """The name of the first file's transfer syntax."""
        meta = self.datasets[0].file_meta if self.datasets else {}
        return meta["TransferSyntaxUID"].value.name if "TransferSyntaxUID" in meta else ""

    def have(self, keyword: str, *values: str) -> bool:
        """Whether a header has the element, with one of these values if any are given."""
        found = [str(element.value) for element in self._elements(keyword)]
        return bool(found) and (not values or any(value in text for text in found for value in values))

    def _elements(self, keyword: str) -> Iterator[pydicom.DataElement]:
        """The elements of this keyword, at the top of the files or within functional groups."""
        for dataset in self.datasets:
            if keyword in dataset:
                yield dataset[keyword]
            elif "SharedFunctionalGroupsSequence" in dataset:
                yield from (element for element in dataset.iterall() if element.keyword == keyword)

    @cached_property
    def positions(self) -> np.ndarray:
        """(n, 3) ImagePositionPatient of the files that have it."""
        keyword = "ImagePositionPatient"
        found = [dataset[keyword].value for dataset in self.datasets if len(dataset.get(keyword) or ()) == 3]
        return np.array(found, float).reshape(-1, 3)

    @property
    def repeated_places(self) -> bool:
        return len(np.unique(self.positions.round(1), axis=0)) < len(self.positions)

    @property
    def uneven(self) -> bool:
        """Whether the steps between the places differ by more than 0.05 mm."""
        first, places = self.datasets[0], np.unique(self.positions, axis=0)
        if "ImageOrientationPatient" not in first or len(places) < 3:
            return False
        x, y = np.reshape(first.ImageOrientationPatient, (2, 3)).astype(float)
        return bool(np.ptp(np.diff(np.sort(places @ np.cross(x, y)))) > WITHIN_MM)


@dataclass
class Pair:
    """A volume of radfm without its like, and what the other reader has left."""

    volume: Volume
    left: list[Volume]
    ours: Reading
    theirs: Reading
    headers: Headers
    reader: str

    def says(self, pattern: str) -> bool:
        """Whether the other reader says something like this."""
        return any(re.search(pattern, remark) for remark in self.theirs.remarks)

    @cached_property
    def alike(self) -> list[Volume]:
        """Volumes with the same values."""
        return [other for other in self.left if same_values(self.volume, other)]

    @cached_property
    def pictures(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(values of radfm, values of the other) of the other's volumes with the same shape, but for colour."""
        own = self.volume.values
        return [(own, b) for other in self.left for b in turns(self.volume, other) if b.shape[:3] == own.shape[:3]]

    @cached_property
    def larger(self) -> list[Volume]:
        """Volumes with more voxels that have a slice of this one."""
        own = set(_slices(self.volume))
        more = [other for other in self.left if other.values.size > self.volume.values.size]
        return [other for other in more if own.intersection(_slices(other))]


def _slices(volume: Volume) -> list[bytes]:
    """The contents of the slices."""
    slices = np.moveaxis(np.round(volume.values.astype(np.float64), 3), volume.slices, 0)
    return [slice.tobytes() for slice in slices]


# Checks


def _at_header(volume: Volume, headers: Headers) -> bool:
    """Whether the first pixel of every file is at a corner of the volume's slices, to 0.05 mm."""
    if volume.affine is None or not len(headers.positions):
        return False
    voxels = (np.linalg.inv(volume.affine) @ np.c_[headers.positions, np.ones(len(headers.positions))].T)[:3].T
    off_mm = np.abs(voxels - voxels.round()) * np.linalg.norm(volume.affine[:3, :3], axis=0)
    inside = (voxels.round() >= 0) & (voxels.round() <= np.array(volume.values.shape[:3]) - 1)
    return bool(inside.all() and off_mm.max() <= WITHIN_MM)


def _decodes_not(pair: Pair) -> bool:
    return not pair.theirs.volumes and pair.says("[Tt]ransfer [Ss]yntax|fragments|decode")


def _reordered(pair: Pair) -> bool:
    """Whether another volume has the same slices in another order."""
    own = _slices(pair.volume)
    return any(sorted(own) == sorted(_slices(other)) for other in pair.left)


def _more(pair: Pair) -> bool:
    return any(other.values.size > pair.volume.values.size for other in pair.left)


def _turned(pair: Pair) -> bool:
    return any(close(pair.volume.values, other.values[:, :, ::-1]) for other in pair.left)


def _sheets(pair: Pair) -> bool:
    return any(max(other.values.shape) > max(pair.volume.values.shape) for other in pair.left)


def _orientations(pair: Pair) -> bool:
    stacked = any(min(other.values.shape[:3]) > 1 for other in pair.left)
    return stacked and len({str(one.get("ImageOrientationPatient")) for one in pair.headers.datasets}) > 1


def _but_least(pair: Pair) -> bool:
    """Whether the values differ only where radfm has its least value."""
    return any(
        a.shape == b.shape and close(*(np.where(a == a.min(), 0, one) for one in (a, b))) for a, b in pair.pictures
    )


def _displayed(pair: Pair) -> bool:
    """Whether radfm's values rise or fall with the others, but for padding, and the header says how to show them."""
    shown = ("WindowCenter", "VOILUTSequence", "ModalityLUTSequence", "PixelPaddingValue")
    said = pair.headers.have("PhotometricInterpretation", "MONOCHROME1") or any(map(pair.headers.have, shown))
    return said and any(_monotone(a[a != a.min()], b[a != a.min()]) for a, b in pair.pictures if a.shape == b.shape)


def _monotone(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the values of a rise, or fall, with those of b, but for rounding."""
    order = np.argsort(b, kind="stable")
    steps = np.diff(a[order].astype(float))
    rounding = np.abs(steps[np.diff(b[order].astype(float)) == 0])
    return bool((rounding <= 1).all() and ((steps >= -1).all() or (steps <= 1).all()))


def _ycbcr(pair: Pair) -> bool:
    """Whether the others are radfm's colours in YCbCr, to some levels."""
    colours = ((a, b) for a, b in pair.pictures if a.shape == b.shape and a.ndim == 4)
    converted = ((convert_color_space(a.astype(np.uint8), "RGB", "YBR_FULL"), b) for a, b in colours)
    return any(np.abs(a.astype(float) - b).max() <= _LEVELS for a, b in converted)


def _rounded(pair: Pair) -> bool:
    same = ((a, b) for a, b in pair.pictures if a.shape == b.shape)
    return any(np.abs(a.astype(float) - b).max() <= _LEVELS for a, b in same)


def _of(syntax: str) -> Callable[[Pair], bool]:
    return lambda pair: syntax in pair.headers.syntax and pair.volume.values.ndim == 4


_LEVELS = 4  # of 256, by which decoders of colour may differ

REASONS: list[tuple[str, Callable[[Pair], bool]]] = [
    ("does not decode this transfer syntax", _decodes_not),
    (
        "does not read colour of more than 8 bits",
        lambda p: not p.theirs.volumes and p.says("bit-depth 16 with 3 samples"),
    ),
    (
        "takes subsampled colours without compression for a file cut short",
        lambda p: not p.theirs.volumes and p.headers.have("PhotometricInterpretation", "YBR_FULL_422"),
    ),
    (
        "goes by the name of the file, which says something else than its bytes",
        lambda p: not p.theirs.volumes and p.says("Unable to determine ImageIO|not recognized"),
    ),
    ("finds no image in the file", lambda p: not p.theirs.volumes and p.says("No valid DICOM images")),
    ("refuses a series that has lost slices", lambda p: not p.theirs.volumes and p.headers.repeated_places),
    (
        "has the same values, but even steps, where the steps are uneven and radfm gives no affine",
        lambda p: bool(p.alike) and p.volume.affine is None and p.headers.uneven,
    ),
    (
        "has the same values, but not at ImagePositionPatient, where radfm's are",
        lambda p: bool(p.alike) and _at_header(p.volume, p.headers) and not _at_header(p.alike[0], p.headers),
    ),
    (
        "has the slices from last to first: it ignores that SpacingBetweenSlices of NM is below zero",
        lambda p: p.headers.have("Modality", "NM") and p.headers.have("SpacingBetweenSlices", "-") and _turned(p),
    ),
    ("leaves a MOSAIC as one sheet", lambda p: p.headers.have("ImageType", "MOSAIC") and _sheets(p)),
    (
        "drops files with the same numbers as copies, although their pixels differ",
        lambda p: p.says("DUPLICATES REMOVED"),
    ),
    (
        "keeps slices that were sent twice",
        lambda p: any("is a copy" in remark for remark in p.ours.remarks) and _more(p),
    ),
    ("stacks slices of several orientations", _orientations),
    (
        "puts the slices of several volumes into one",
        lambda p: bool(p.larger) and (p.headers.repeated_places or p.headers.uneven),
    ),
    ("stacks pictures that have no place", lambda p: p.volume.placeless and bool(p.larger)),
    (
        "makes a volume of each SeriesInstanceUID, where each slice has its own",
        lambda p: p.headers.have("Manufacturer", "CANON") and len(p.left) > 1,
    ),
    (
        "has the same slices in the order of the files, and radfm in that of ImagePositionPatient",
        lambda p: _reordered(p) and _at_header(p.volume, p.headers),
    ),
    (
        "ignores PixelAspectRatio, by which radfm makes the pixels square",
        lambda p: p.headers.have("PixelAspectRatio") and not p.pictures,
    ),
    (
        "does not apply the palette",
        lambda p: p.headers.have("PhotometricInterpretation", "PALETTE") and p.volume.values.ndim == 4,
    ),
    (
        "keeps colours of more than 8 bits, which radfm reduces to 8",
        lambda p: p.headers.have("BitsAllocated", "16", "32") and p.volume.values.ndim == 4,
    ),
    (
        "keeps the value of padding (PixelPaddingValue, NaN), which radfm makes the least value of the picture",
        lambda p: _but_least(p) and (p.headers.have("PixelPaddingValue") or not p.headers.datasets),
    ),
    ("has stored values, to which radfm applies window, tables, padding and MONOCHROME1 of the header", _displayed),
    ("leaves colours as YCbCr", _ycbcr),
    ("converts colours from YCbCr with other rounding: at most 4 of 256 levels", _rounded),
    ("ignores what the JPEG says of its own colours", _of("JPEG")),
    ("reads the colours of the second frame of an RLE file wrongly", _of("RLE")),
    ("swaps the bytes of colours in big endian", _of("Big Endian")),
    (
        "does not extend the sign of a JPEG 2000 whose codestream contradicts PixelRepresentation",
        lambda p: p.headers.have("PixelRepresentation", "1") and "2000" in p.headers.syntax,
    ),
]


def reason_of(pair: Pair) -> str:
    reason = next((reason for reason, holds in REASONS if holds(pair)), None)
    if reason is not None:
        return reason
    own, left = (
        pair.volume.values,
        [(other.values.shape, other.values.min(), other.values.max()) for other in pair.left],
    )
    return f"{UNEXPLAINED}: {own.shape} {own.min()}..{own.max()}, {left[:3]}, {pair.theirs.remarks[:2]}"


_LISTED = {  # what radfm says of a file that the other reader reads -> the reason
    "localiser": "radfm sets localisers aside",
    "segmentation": "radfm sets segmentations aside",
    "radiotherapy dose": "radfm sets radiotherapy doses aside",
    "volumes were left out": "radfm reads 16 of a series of more volumes",
    "is a copy": "radfm reads copies once",
    "MOSAIC": "radfm refuses a MOSAIC whose size contradicts its tiles",
}


def surplus_reason(other: Volume, ours: Reading) -> str:
    """Why the other reader has a volume and radfm has none."""
    for what, reason in _LISTED.items():
        if any(what in remark for remark in ours.remarks):
            return reason
    return f"{UNEXPLAINED}: {other.values.shape}, radfm says {ours.remarks[:2]}"
