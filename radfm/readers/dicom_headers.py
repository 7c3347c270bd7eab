"""Reads DICOM headers: which files hold images of the patient, and what they state of the whole image.

Decisions:
- A header is parsed once, and only the elements that are needed: those of the case, and those that decoding takes.
- Objects that are not images of the patient (reports, plans, doses, ...), localisers and dose screens are set aside.
- Text of a header becomes part of a case only if it is a term of `dicom_terms`.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from io import BufferedIOBase, BytesIO
from pathlib import Path

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from radfm.modalities import Modality, dicom_modality
from radfm.readers.dicom_files import (
    first,
    number,
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
StudyDate SeriesDate AcquisitionDate AcquisitionDateTime AcquisitionTime ContentTime SeriesDescription BodyPartExamined
ViewPosition ViewCodeSequence PresentationIntentType FrameOfReferenceUID SeriesNumber InstanceNumber AcquisitionNumber
ImagePositionPatient ImageOrientationPatient PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing SliceThickness
SpacingBetweenSlices SequenceOfUltrasoundRegions EchoTime EchoNumbers InversionTime TriggerTime DiffusionBValue
DiffusionGradientOrientation TemporalPositionIdentifier ConvolutionKernel KVP SequenceName FrameReferenceTime
DimensionIndexSequence EnergyWindowVector DetectorVector PhaseVector RotationVector RRIntervalVector TimeSlotVector
SliceVector TimeSliceVector PixelAspectRatio EstimatedRadiographicMagnificationFactor NominalPercentageOfCardiacPhase
SamplesPerPixel PhotometricInterpretation Rows Columns NumberOfFrames BitsAllocated BitsStored PixelRepresentation
RescaleSlope RescaleIntercept
TotalPixelMatrixColumns SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence DetectorInformationSequence
DirectoryRecordSequence CurrentRequestedProcedureEvidenceSequence
PlanarConfiguration HighBit ExtendedOffsetTable ExtendedOffsetTableLengths ModalityLUTSequence
VOILUTSequence WindowCenter WindowWidth VOILUTFunction PixelIntensityRelationship PresentationLUTShape
PixelPaddingValue PixelPaddingRangeLimit FloatPixelPaddingValue FloatPixelPaddingRangeLimit
DoubleFloatPixelPaddingValue DoubleFloatPixelPaddingRangeLimit
RedPaletteColorLookupTableDescriptor RedPaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData
GreenPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
BluePaletteColorLookupTableDescriptor BluePaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData
"""
# As integers, because pydicom looks up each element of a file among them, and its tag objects compare slowly.
_NEEDED_TAGS = [tag_for_keyword(keyword) for keyword in _NEEDED.split()]
_PIXEL_TAGS = frozenset(map(tag_for_keyword, ("FloatPixelData", "DoubleFloatPixelData", "PixelData")))

_MOST_HEADERS_BYTES = 2**15
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(eq=False)
class Instance:
    """One file (a SOP instance).

    Attributes:
        name: as displayed in `Case.skipped` and `Scan.source`.
        header: the needed elements only.
        pixels_at: the byte at which the element of the pixels begins; None where that is unknown.
        frames: how many the file holds; set by `check_image`.
    """

    name: str
    path: Path
    header: Dataset
    pixels_at: int | None = None
    frames: int = 1


def read_header(name: str, path: Path) -> Instance:
    """Read a header up to the pixels. Raises: Unreadable for a file that is not DICOM."""
    with open_clamped(path) as file:
        pixels_at = None
        with suppress(Exception):  # parsing from memory is faster, and most headers fit
            header, pixels_at = _until_pixels(BytesIO(file.read(_MOST_HEADERS_BYTES)))
        if pixels_at is None:
            file.seek(0)
            header, pixels_at = _until_pixels(file)
    if not header and not header.file_meta:
        raise Unreadable("is damaged, or is not a DICOM image: open it in a viewer and export it again")
    return Instance(name, path, header, pixels_at)


def _until_pixels(file: BufferedIOBase) -> tuple[Dataset, int | None]:
    """The needed elements of the header, and the byte at which the pixels begin; None where that is unknown."""
    reached = False

    def at_pixels(tag: BaseTag, *_) -> bool:
        nonlocal reached
        reached = tag in _PIXEL_TAGS
        return reached

    header = read_partial(file, at_pixels, force=True, specific_tags=_NEEDED_TAGS)
    inflated = (
        header.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    )  # the byte is in the inflated data
    return header, file.tell() if reached and not inflated else None


def check_image(instance: Instance) -> None:
    """Check that a file holds an image of the patient of a plausible size, and set `instance.frames`.

    Raises: Unreadable for other objects, for a file without pixels, and where the file is too short for the size that
    its header states.
    """
    header = instance.header
    other_object = _other_object(header)
    if other_object:
        raise Unreadable(f"is {other_object}, not an image of the patient: set aside")
    rows, columns = number(header, "Rows"), number(header, "Columns")
    if not rows or not columns:
        raise Unreadable(NO_PICTURE)
    frames = number(header, "NumberOfFrames")
    instance.frames = 1 if frames is None else int(frames)
    if instance.frames < 1:
        raise Unreadable("has no frames by its header: export it again")
    samples, bits = int(number(header, "SamplesPerPixel") or 1), int(number(header, "BitsAllocated") or 16)
    syntax = transfer_syntax(header)
    deflated = syntax is not None and syntax.is_deflated
    compressed = deflated or (syntax is not None and syntax.is_compressed)
    stored = instance.path.stat().st_size
    n = n_bytes((instance.frames, int(rows), int(columns), samples), 1)
    halved = text(header, "PhotometricInterpretation") == "YBR_FULL_422"  # one colour for two pixels
    n = n * bits // 8 * (2 if halved and not compressed else 3) // 3
    check_size(n, stored, compressed=compressed)
    if compressed and not deflated and 8 * instance.frames > stored + 64:
        raise Unreadable(f"holds fewer frames than its header says, so it {CUT_SHORT}")


def _other_object(header: Dataset) -> str | None:
    """What the file is, where it is not an image of the patient that can be read."""
    image_type = tuple(value.upper() for value in texts(header, "ImageType"))
    title = text(header, "SeriesDescription").lower()
    described = _described_object(text(header, "SOPClassUID"), text(header, "Modality").upper(), image_type, title)
    if described is None and (number(header, "TotalPixelMatrixColumns") or 0) > (number(header, "Columns") or 0):
        return "one level of a tiled whole-slide picture (export the region you mean as PNG or TIFF)"
    return described


@lru_cache(maxsize=64)  # the files of a series have the same values
def _described_object(sop_class: str, modality: str, image_type: tuple[str, ...], title: str) -> str | None:
    if sop_class == KEY_OBJECTS:
        return "a list of key images"
    for uid, description in SET_ASIDE.items():
        if sop_class == uid or (uid.endswith(".") and sop_class.startswith(uid)):
            return description
    if modality in SET_ASIDE_MODALITIES:
        return SET_ASIDE_MODALITIES[modality]
    if "LOCALIZER" in image_type:
        return "a localiser (scout)"
    titled_dose = re.search(r"dose (report|info|record)|(patient|exam) protocol", title)
    if "DOSE_INFO" in image_type or (sop_class.startswith(_SECONDARY_CAPTURE) and titled_dose):
        return "a screen of dose figures"
    return None


def modality_of(header: Dataset) -> Modality | None:
    """The modality by the header's Modality; None for OT, SC and unknown codes."""
    return dicom_modality(text(header, "Modality"))


def view_of(header: Dataset) -> str | None:
    """The view of a radiograph by ViewPosition or ViewCodeSequence, as `Scan.plane` names it; None where unknown."""
    code = first(header, "ViewCodeSequence")
    return VIEWS.get(text(header, "ViewPosition").upper()) or VIEW_CODES.get(text(code, "CodeValue") if code else "")


def body_part_of(header: Dataset) -> str | None:
    """BodyPartExamined in lower case, where all its words are anatomical terms. It is free text on many machines."""
    part = " ".join(text(header, "BodyPartExamined").lower().split())
    words = re.findall(r"[a-z]+", part)
    known = bool(words) and re.fullmatch(r"[a-z _/,&-]{1,40}", part) and BODY_WORDS.issuperset(words)
    return part if known else None


def date_of(header: Dataset) -> date | None:
    """The date of the acquisition, else of the series, else of the study; None where none is valid."""
    for keyword in ("AcquisitionDate", "AcquisitionDateTime", "SeriesDate", "StudyDate"):
        digits = text(header, keyword).replace(".", "").replace("-", "")[:8]
        try:
            return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8]))
        except ValueError:
            continue
    return None
