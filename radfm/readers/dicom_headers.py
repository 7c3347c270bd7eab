"""What a DICOM file says about its frames: headers only, and of them only the elements that are needed.

Decisions:
- A header is parsed once: it also holds what decoding needs, and where in the file the pixels begin.
- Objects that are not images of the patient (reports, plans, doses, ...), localisers and dose screens are set aside.
- An enhanced multi-frame file tells place and spacing frame by frame; any other file once for all its frames.
- Text from a header becomes part of a case only if it is one of the terms listed here.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from radfm.modalities import Modality, dicom_modality
from radfm.readers.dicom_files import (
    all_numbers,
    first,
    items,
    number,
    numbers,
    open_clamped,
    text,
    texts,
    transfer_syntax,
)
from radfm.readers.dicom_terms import BODY_WORDS, KEY_OBJECTS, SET_ASIDE, SET_ASIDE_MODALITIES, VIEW_CODES, VIEWS
from radfm.readers.errors import CUT_SHORT, NO_PICTURE, Unreadable
from radfm.readers.limits import check_size, n_bytes

_NEEDED = """
SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID PatientID Modality
StudyDate SeriesDate AcquisitionDate AcquisitionDateTime AcquisitionTime SeriesDescription BodyPartExamined
ViewPosition ViewCodeSequence SeriesNumber InstanceNumber AcquisitionNumber
ImagePositionPatient ImageOrientationPatient PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing SliceThickness
SpacingBetweenSlices SequenceOfUltrasoundRegions EchoTime EchoNumbers InversionTime TriggerTime DiffusionBValue
DiffusionGradientOrientation TemporalPositionIdentifier ConvolutionKernel SamplesPerPixel PhotometricInterpretation
Rows Columns NumberOfFrames BitsAllocated BitsStored PixelRepresentation RescaleSlope RescaleIntercept
TotalPixelMatrixColumns SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence DetectorInformationSequence
DirectoryRecordSequence CurrentRequestedProcedureEvidenceSequence
PlanarConfiguration HighBit ExtendedOffsetTable ExtendedOffsetTableLengths ModalityLUTSequence
VOILUTSequence WindowCenter WindowWidth VOILUTFunction PaletteColorLookupTableUID
RedPaletteColorLookupTableDescriptor RedPaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData
GreenPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
BluePaletteColorLookupTableDescriptor BluePaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData
AlphaPaletteColorLookupTableDescriptor AlphaPaletteColorLookupTableData
"""
# As numbers: pydicom looks each element of a file up among them, and its own tags compare slowly.
_NEEDED_TAGS = [tag_for_keyword(keyword) for keyword in _NEEDED.split()]
_PIXEL_TAGS = frozenset(map(tag_for_keyword, ("FloatPixelData", "DoubleFloatPixelData", "PixelData")))

_MOST_HEADERS_BYTES = 2**15
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_CENTIMETRES = 3  # DICOM PS3.3 C.8.5.5.1.15
TRAITS_OF_TIME = 4  # how many of a frame's traits, the last ones, are times


@dataclass(eq=False)
class Instance:
    """One file: its header's needed elements, and at which byte its pixels begin (None: not to be said)."""

    name: str
    path: Path
    header: Dataset
    pixels_at: int | None = None
    frames: int = 1


@dataclass(eq=False)
class Frame:
    """One picture of one file, with its place in the patient where known (mm, in L, P, S)."""

    instance: Instance
    index: int
    position: np.ndarray | None = None
    orientation: np.ndarray | None = None  # (6,) directions along the rows and down the columns
    pixel_mm: tuple[float, float] | None = None  # between rows, between columns
    slice_mm: float | None = None
    slope: float = 1.0
    intercept: float = 0.0
    traits: tuple = ()  # what may tell apart frames at one position, see dicom_series


def read_header(name: str, path: Path) -> Instance:
    """Raises: Unreadable for what is not DICOM."""
    with open_clamped(path) as file:
        pixels_at = None
        with suppress(Exception):  # from memory first, for parsing asks for a few bytes at a time; most headers fit
            header, pixels_at = _until_pixels(BytesIO(file.read(_MOST_HEADERS_BYTES)))
        if pixels_at is None:
            file.seek(0)
            header, pixels_at = _until_pixels(file)
    if not header and not header.file_meta:
        raise Unreadable("is damaged, or is not a DICOM image: open it in a viewer and export it again")
    return Instance(name, path, header, pixels_at)


def _until_pixels(file: BinaryIO) -> tuple[Dataset, int | None]:
    """The header's needed elements, and where the pixels begin; None where they were not met."""
    met = False

    def at_pixels(tag: BaseTag, *_) -> bool:
        nonlocal met
        met = tag in _PIXEL_TAGS
        return met

    header = read_partial(file, at_pixels, force=True, specific_tags=_NEEDED_TAGS)
    inflated = header.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian  # the place is in there
    return header, file.tell() if met and not inflated else None


def check_image(instance: Instance) -> None:
    """Raises: Unreadable where there is no picture to read, or one that cannot be so large."""
    header = instance.header
    reason = _set_aside(header)
    if reason:
        raise Unreadable(f"is {reason}, not an image of the patient: set aside")
    rows, columns = number(header, "Rows"), number(header, "Columns")
    if not rows or not columns:
        raise Unreadable(NO_PICTURE)
    frames = number(header, "NumberOfFrames")
    instance.frames = 1 if frames is None else int(frames)
    if instance.frames < 1:
        raise Unreadable("has no frames, says its header: export it again")
    samples, bits = int(number(header, "SamplesPerPixel") or 1), int(number(header, "BitsAllocated") or 16)
    syntax = transfer_syntax(header)
    compressed = syntax is not None and (syntax.is_compressed or syntax.is_deflated)
    stored = instance.path.stat().st_size
    n = n_bytes((instance.frames, int(rows), int(columns), samples), 1)
    halved = text(header, "PhotometricInterpretation") == "YBR_FULL_422"  # colours for every second pixel
    n = n * bits // 8 * (2 if halved and not compressed else 3) // 3
    check_size(n, stored, compressed=compressed)
    if compressed and not syntax.is_deflated and 8 * instance.frames > stored + 64:
        raise Unreadable(f"holds fewer frames than its header says, so it {CUT_SHORT}")


def _set_aside(header: Dataset) -> str | None:
    kinds = tuple(kind.upper() for kind in texts(header, "ImageType"))
    title = text(header, "SeriesDescription").lower()
    reason = _no_image(text(header, "SOPClassUID"), text(header, "Modality").upper(), kinds, title)
    if reason is None and (number(header, "TotalPixelMatrixColumns") or 0) > (number(header, "Columns") or 0):
        return "one level of a tiled whole-slide picture (export the region you mean as PNG or TIFF)"
    return reason


@lru_cache(maxsize=64)  # the files of a series say the same
def _no_image(sop_class: str, modality: str, image_type: tuple[str, ...], title: str) -> str | None:
    if sop_class == KEY_OBJECTS:
        return "a list of key images"
    for uid, what in SET_ASIDE.items():
        if sop_class == uid or (uid.endswith(".") and sop_class.startswith(uid)):
            return what
    if modality in SET_ASIDE_MODALITIES:
        return SET_ASIDE_MODALITIES[modality]
    if "LOCALIZER" in image_type:
        return "a localiser (scout)"
    titled_dose = re.search(r"dose (report|info|record)|(patient|exam) protocol", title)
    if "DOSE_INFO" in image_type or (sop_class.startswith(_SECONDARY_CAPTURE) and titled_dose):
        return "a screen of dose figures"
    return None


def frames_of(instance: Instance) -> list[Frame]:
    header = instance.header
    shared = first(header, "SharedFunctionalGroupsSequence")
    per_frame = items(header, "PerFrameFunctionalGroupsSequence")
    if shared is None and not per_frame:
        return _classic_frames(instance)
    frames = []
    for index in range(instance.frames):
        own = per_frame[index] if index < len(per_frame) else None
        frames.append(_frame(instance, index, [group for group in (own, shared) if group is not None]))
    return frames


def _classic_frames(instance: Instance) -> list[Frame]:
    frame = _frame(instance, 0, [])
    if instance.frames == 1:
        return [frame]
    # The header's position is that of the first frame only.
    return [replace(frame, index=i, position=None) for i in range(instance.frames)]


def _frame(instance: Instance, index: int, groups: list[Dataset]) -> Frame:
    header = instance.header

    def of(sequence: str) -> Dataset:
        if not groups:
            return header
        found = (first(group, sequence) for group in groups)
        return next((item for item in found if item is not None), header)

    detector = first(header, "DetectorInformationSequence")
    orientation = numbers(of("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    if orientation is None and detector is not None:
        orientation = numbers(detector, "ImageOrientationPatient", 6)
    if orientation is not None and not _orthonormal(orientation):
        orientation = None
    measures, transform = of("PixelMeasuresSequence"), of("PixelValueTransformationSequence")
    keywords = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
    spacings = (all_numbers(measures, keyword) for keyword in keywords)
    pixel_mm = next((tuple(mm) for mm in spacings if len(mm) == 2 and min(mm) > 0), None)
    distances = (number(measures, name) for name in ("SpacingBetweenSlices", "SliceThickness"))
    return Frame(
        instance,
        index,
        numbers(of("PlanePositionSequence"), "ImagePositionPatient", 3),
        orientation,
        pixel_mm or _ultrasound_mm(header),
        next((abs(mm) for mm in distances if mm), None),
        number(transform, "RescaleSlope") or 1.0,
        number(transform, "RescaleIntercept") or 0.0,
        _traits(header, of),
    )


def _traits(header: Dataset, of) -> tuple:
    """What may tell apart two frames at one position; in the order in which it is asked."""
    content, echo, diffusion = of("FrameContentSequence"), of("MREchoSequence"), of("MRDiffusionSequence")
    kind = of("MRImageFrameTypeSequence")
    if kind is header:
        kind = of("CTImageFrameTypeSequence")
    return (
        number(echo, "EffectiveEchoTime") or number(echo, "EchoTime"),
        text(header, "EchoNumbers"),
        number(diffusion, "DiffusionBValue"),
        tuple(texts(kind, "FrameType") or texts(header, "ImageType")),
        text(header, "ConvolutionKernel"),
        number(header, "InversionTime"),
        text(header, "DiffusionGradientOrientation"),
        number(content, "TemporalPositionIndex") or number(header, "TemporalPositionIdentifier"),
        number(header, "AcquisitionNumber"),
        number(header, "TriggerTime"),
        text(header, "AcquisitionTime"),
    )


def _orthonormal(orientation: np.ndarray) -> bool:
    rows, columns = orientation[:3], orientation[3:]
    return bool(max(abs(rows @ rows - 1), abs(columns @ columns - 1), abs(rows @ columns)) <= 0.1)


def _ultrasound_mm(header: Dataset) -> tuple[float, float] | None:
    region = first(header, "SequenceOfUltrasoundRegions")
    units = ("PhysicalUnitsXDirection", "PhysicalUnitsYDirection")
    if region is None or any(number(region, unit) != _CENTIMETRES for unit in units):
        return None
    deltas = [number(region, name) for name in ("PhysicalDeltaY", "PhysicalDeltaX")]
    return tuple(abs(delta) * 10 for delta in deltas) if all(deltas) else None


def modality_of(header: Dataset) -> Modality | None:
    return dicom_modality(text(header, "Modality"))


def view_of(header: Dataset) -> str | None:
    """A radiograph's view, of those that `Scan.plane` knows."""
    code = first(header, "ViewCodeSequence")
    return VIEWS.get(text(header, "ViewPosition").upper()) or VIEW_CODES.get(text(code, "CodeValue") if code else "")


def body_part_of(header: Dataset) -> str | None:
    """BodyPartExamined in lower case, if each of its words is one of anatomy: it is free text on many machines."""
    part = " ".join(text(header, "BodyPartExamined").lower().split())
    words = re.findall(r"[a-z]+", part)
    known = bool(words) and re.fullmatch(r"[a-z _/,&-]{1,40}", part) and BODY_WORDS.issuperset(words)
    return part if known else None


def date_of(header: Dataset) -> date | None:
    for keyword in ("AcquisitionDate", "AcquisitionDateTime", "SeriesDate", "StudyDate"):
        digits = text(header, keyword).replace(".", "").replace("-", "")[:8]
        try:
            return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8]))
        except ValueError:
            continue
    return None
