"""The frames of a DICOM file: where each lies in the patient, and what tells it apart from others at the same place.

Decisions:
- An enhanced multi-frame file states position and spacing for each frame (functional groups). A nuclear tomogram states
  the position of its first frame, and SpacingBetweenSlices with a sign: below zero, it goes against the normal. Any
  other file has one position, that of its first frame.
- A Siemens MOSAIC picture is the slices of one volume, as tiles. Its ImagePositionPatient is that of the whole sheet
  laid over the centre of the first slice; the CSA header states the number of slices and their direction.
- Pixel spacing is PixelSpacing (calibrated for the patient), else ImagerPixelSpacing (at the detector, divided by the
  magnification where it is stated), else NominalScannedPixelSpacing, else that of an ultrasound's largest 2D region.
- Numbers that tell frames apart are rounded, so that 2.30 and 2.3000001 ms are one echo time.
"""

import re
from dataclasses import dataclass, replace
from math import isqrt
from types import EllipsisType

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from radfm.readers.dicom_files import all_numbers, first, items, number, numbers, text, texts
from radfm.readers.dicom_headers import Instance
from radfm.readers.errors import Unreadable
from radfm.readers.limits import Clamped

_CENTIMETRES, _TISSUE = 3, 1  # PhysicalUnitsXDirection, RegionSpatialFormat: DICOM PS3.3 C.8.5.5.1
_SPATIAL = {"StackID", "InStackPositionNumber", "ImagePositionPatient", "ImageOrientationPatient"}
_SLICE_VECTOR = "SliceVector"
_NUCLEAR_VIEWS = ("EnergyWindowVector", "DetectorVector")
CLOCK_TIME = 3  # the index of the acquisition time in `Frame.clock`
_NUCLEAR_TIMES = ("PhaseVector", "RRIntervalVector", "TimeSlotVector", "TimeSliceVector", "RotationVector")


@dataclass(eq=False)
class Frame:
    """One frame of one file, with its position in the patient where known.

    Attributes:
        index: of the frame in the file.
        tile: the part of the frame's picture that it is: rows and columns; all of it, or one slice of a MOSAIC.
        position: (3,) of the first pixel, mm in L, P, S.
        orientation: (6,) direction along the rows, then down the columns, in L, P, S.
        pixel_mm: distance between rows, between columns.
        slice_mm: distance to the next slice, or the thickness, as the header states it.
        slope, intercept: of the modality transformation, as the header states them.
        voi: the functional group that holds the VOI LUT or window of the frame; None where the header does.
        contrast: values that make another picture of the same place: echo, b-value, frame type, kernel, ...
        moment: values that state which of several times, phases or gates the frame belongs to.
        clock: numbers that follow the acquisition: AcquisitionNumber, and times in seconds; None where absent.
    """

    instance: Instance
    index: int
    tile: tuple[slice, slice] | EllipsisType = ...
    position: np.ndarray | None = None
    orientation: np.ndarray | None = None
    pixel_mm: tuple[float, float] | None = None
    slice_mm: float | None = None
    slope: float = 1.0
    intercept: float = 0.0
    voi: Dataset | None = None
    contrast: tuple = ()
    moment: tuple = ()
    clock: tuple[float | None, ...] = ()


def frames_of(instance: Instance) -> list[Frame]:
    """The frames of a file that `check_image` has accepted. Raises: Unreadable for a MOSAIC of unknown tiles."""
    header = instance.header
    shared = first(header, "SharedFunctionalGroupsSequence")
    per_frame = items(header, "PerFrameFunctionalGroupsSequence")
    if shared is None and not per_frame:
        return _classic_frames(instance)
    dimensions = _dimensions(header)
    frames = []
    for index in range(instance.frames):
        own = per_frame[index] if index < len(per_frame) else None
        frames.append(_frame(instance, index, [group for group in (own, shared) if group is not None], dimensions))
    return frames


def _classic_frames(instance: Instance) -> list[Frame]:
    frame = _frame(instance, 0, [])
    header = instance.header
    if "MOSAIC" in (kind.upper() for kind in texts(header, "ImageType")):
        return _mosaic_frames(frame)
    if instance.frames == 1:
        return [frame]
    if text(header, "Modality") in ("NM", "PT"):
        return _nuclear_frames(frame)
    # The header's position is that of the first frame only.
    return [replace(frame, index=i, position=None) for i in range(instance.frames)]


def _frame(instance: Instance, index: int, groups: list[Dataset], dimensions: tuple[int, ...] = ()) -> Frame:
    """groups: functional groups that describe the frame, its own before the shared one; none for a classic file."""
    header = instance.header

    def of(sequence: str) -> Dataset:
        if not groups:
            return header
        candidates = (first(group, sequence) for group in groups)
        return next((item for item in candidates if item is not None), header)

    detector = first(header, "DetectorInformationSequence")
    position = numbers(of("PlanePositionSequence"), "ImagePositionPatient", 3)
    orientation = numbers(of("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    if detector is not None:
        position = numbers(detector, "ImagePositionPatient", 3) if position is None else position
        orientation = numbers(detector, "ImageOrientationPatient", 6) if orientation is None else orientation
    if orientation is not None and not _orthonormal(orientation):
        orientation = None
    measures, transform = of("PixelMeasuresSequence"), of("PixelValueTransformationSequence")
    distances = (number(measures, name) for name in ("SpacingBetweenSlices", "SliceThickness"))
    slope, voi = number(transform, "RescaleSlope"), of("FrameVOILUTSequence")
    return Frame(
        instance,
        index,
        position=position,
        orientation=orientation,
        pixel_mm=_pixel_mm(measures) or _ultrasound_mm(header),
        slice_mm=next((abs(mm) for mm in distances if mm), None),
        slope=1.0 if slope is None else slope,
        intercept=number(transform, "RescaleIntercept") or 0.0,
        voi=None if voi is header else voi,
        contrast=_contrast(header, of),
        moment=_moment(header, of, dimensions),
        clock=_clock(header, of),
    )


def _contrast(header: Dataset, of) -> tuple:
    echo, diffusion = of("MREchoSequence"), of("MRDiffusionSequence")
    gradient = first(diffusion, "DiffusionGradientDirectionSequence") or diffusion
    kind = of("MRImageFrameTypeSequence")
    if kind is header:
        kind = of("CTImageFrameTypeSequence")
    kernel = text(of("CTReconstructionSequence"), "ConvolutionKernel")
    return (
        _rounded(number(echo, "EffectiveEchoTime") or number(echo, "EchoTime")),
        text(header, "EchoNumbers"),
        _rounded(number(diffusion, "DiffusionBValue")),
        tuple(round(g, 3) for g in all_numbers(gradient, "DiffusionGradientOrientation")),
        tuple(texts(kind, "FrameType") or texts(header, "ImageType")),
        text(kind, "ComplexImageComponent"),
        kernel,
        _rounded(number(header, "InversionTime")),
        _rounded(number(header, "KVP")),
        text(header, "SequenceName"),
        text(of("FrameContentSequence"), "StackID"),
    )


def _moment(header: Dataset, of, dimensions: tuple[int, ...]) -> tuple:
    content, cardiac = of("FrameContentSequence"), of("CardiacSynchronizationSequence")
    indices = all_numbers(content, "DimensionIndexValues")
    return (
        number(content, "TemporalPositionIndex") or number(header, "TemporalPositionIdentifier"),
        _rounded(number(cardiac, "NominalPercentageOfCardiacPhase")),
        *(indices[i] if i < len(indices) else None for i in dimensions),
    )


def _clock(header: Dataset, of) -> tuple[float | None, ...]:
    content = of("FrameContentSequence")
    number_of = number(content, "FrameAcquisitionNumber") or number(header, "AcquisitionNumber")
    time = text(content, "FrameAcquisitionDateTime") or text(header, "AcquisitionDateTime")
    return (
        number_of,
        _rounded(number(header, "FrameReferenceTime")),
        _rounded(number(header, "TriggerTime")),
        _seconds(time[8:]) if time else _seconds(text(header, "AcquisitionTime")),
        _seconds(text(header, "ContentTime")),
    )


def _dimensions(header: Dataset) -> tuple[int, ...]:
    """Which of a frame's DimensionIndexValues are not spatial: times, echoes, phases, b-values, ..."""
    pointers = [number(item, "DimensionIndexPointer") for item in items(header, "DimensionIndexSequence")]
    names = ["" if tag is None else pydicom.datadict.keyword_for_tag(int(tag)) for tag in pointers]
    return tuple(i for i, name in enumerate(names) if name and name not in _SPATIAL)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _seconds(time: str) -> float | None:
    """A time of DICOM (HHMMSS.FFFFFF, old files with colons) in seconds of the day; None where damaged."""
    match = re.match(r"(\d\d):?(\d\d)?:?(\d\d(?:\.\d{1,6})?)?", time)
    return None if match is None else 3600 * int(match[1]) + 60 * int(match[2] or 0) + float(match[3] or 0)


def _nuclear_frames(frame: Frame) -> list[Frame]:
    """The frames of a nuclear medicine file, by its vectors (DICOM PS3.3 C.8.4.8)."""
    instance = frame.instance
    header = instance.header
    vectors = {name: all_numbers(header, name) for name in (*_NUCLEAR_VIEWS, *_NUCLEAR_TIMES, _SLICE_VECTOR)}
    vectors = {name: values for name, values in vectors.items() if len(values) == instance.frames}
    steps = all_numbers(header, "SpacingBetweenSlices") or all_numbers(header, "SliceThickness")
    positions: list[np.ndarray | None] = [None] * instance.frames
    places = vectors.get(_SLICE_VECTOR)
    if places is None and "RECON TOMO" in texts(header, "ImageType"):  # the vector may be left out
        places = [float(i + 1) for i in range(instance.frames)]
    if places and steps and frame.position is not None and frame.orientation is not None:
        step = np.cross(frame.orientation[:3], frame.orientation[3:]) * steps[0]
        positions = [frame.position + step * (place - 1) for place in places]
    frames = []
    for i, position in enumerate(positions):
        views = tuple(vectors[name][i] for name in _NUCLEAR_VIEWS if name in vectors)
        times = tuple(vectors[name][i] for name in _NUCLEAR_TIMES if name in vectors) if position is not None else ()
        frames.append(replace(frame, index=i, position=position, contrast=(*frame.contrast, *views), moment=times))
    return frames


def _mosaic_frames(sheet: Frame) -> list[Frame]:
    """The slices that a Siemens MOSAIC picture shows as tiles, from left to right and top to bottom, in a square."""
    header = sheet.instance.header
    slices, normal = _mosaic_layout(sheet.instance)
    rows, columns = int(number(header, "Rows") or 0), int(number(header, "Columns") or 0)
    if not slices or sheet.instance.frames > 1:
        raise Unreadable(_UNKNOWN_TILES)
    side = isqrt(slices - 1) + 1
    if rows % side or columns % side:
        raise Unreadable(
            f"is a MOSAIC whose size does not fit the {slices} slices that its header states: export it again"
        )
    height, width = rows // side, columns // side
    positions: list[np.ndarray | None] = [None] * slices
    if sheet.position is not None and sheet.orientation is not None and sheet.pixel_mm is not None and sheet.slice_mm:
        along, down = sheet.orientation[:3], sheet.orientation[3:]
        row_mm, column_mm = sheet.pixel_mm
        corner = sheet.position + along * column_mm * (columns - width) / 2 + down * row_mm * (rows - height) / 2
        across = np.cross(along, down)
        step = (across if normal is None or normal @ across >= 0 else -across) * sheet.slice_mm
        positions = [corner + i * step for i in range(slices)]
    frames = []
    for i, position in enumerate(positions):
        top, left = i // side * height, i % side * width
        frames.append(replace(sheet, tile=(slice(top, top + height), slice(left, left + width)), position=position))
    return frames


_UNKNOWN_TILES = (
    "is a MOSAIC, one sheet of many slices, and the header elements that tell how many were removed from it: export "
    "the series as single slices or as NIfTI"
)


def _mosaic_layout(instance: Instance) -> tuple[int, np.ndarray | None]:
    """(slices, their direction) of a MOSAIC, from its private elements; 0 and None where they are absent."""
    with Clamped(instance.path) as file:
        dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    csa = _csa(_private(dataset, 0x0029, "SIEMENS CSA HEADER", 0x10))
    count = _private(dataset, 0x0019, "SIEMENS MR HEADER", 0x0A)
    try:
        slices = int(csa.get("NumberOfImagesInMosaic", [count or 0])[0])
        normal = [float(part) for part in csa.get("SliceNormalVector", [])]
    except (TypeError, ValueError):
        return 0, None
    return max(slices, 0), np.array(normal) if len(normal) == 3 else None


def _private(dataset: Dataset, group: int, creator: str, element: int):
    try:
        return dataset.private_block(group, creator)[element].value
    except Exception:  # absent, or damaged
        return None


def _csa(header: bytes | None) -> dict[str, list[str]]:
    """The values of a Siemens CSA header of the second kind (SV10), without empty ones; none where it is damaged."""
    if not isinstance(header, bytes) or header[:4] != b"SV10":
        return {}
    tags, at = {}, 16
    try:
        for _ in range(int.from_bytes(header[8:12], "little")):
            name = header[at : at + 64].split(b"\0")[0].decode("latin-1")
            n_items = int.from_bytes(header[at + 76 : at + 80], "little")
            at += 84
            values = []
            for _ in range(n_items):
                length = int.from_bytes(header[at + 4 : at + 8], "little")
                at += 16
                if at + length > len(header):
                    return tags
                values.append(header[at : at + length].split(b"\0")[0].decode("latin-1").strip())
                at += -(-length // 4) * 4
            if any(values):
                tags[name] = [value for value in values if value]
            if at > len(header):
                return tags
    except ValueError:
        return {}
    return tags


def _orthonormal(orientation: np.ndarray) -> bool:
    rows, columns = orientation[:3], orientation[3:]
    return bool(max(abs(rows @ rows - 1), abs(columns @ columns - 1), abs(rows @ columns)) <= 0.1)


def _pixel_mm(measures: Dataset) -> tuple[float, float] | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        mm = [abs(distance) for distance in all_numbers(measures, keyword)]
        if len(mm) == 2 and min(mm) > 0:
            magnification = number(measures, "EstimatedRadiographicMagnificationFactor")
            if keyword == "ImagerPixelSpacing" and magnification and 1 < magnification < 5:
                return mm[0] / magnification, mm[1] / magnification
            return mm[0], mm[1]
    return None


def _ultrasound_mm(header: Dataset) -> tuple[float, float] | None:
    """Pixel spacing in mm of the largest 2D region of an ultrasound image."""
    regions = [
        region
        for region in items(header, "SequenceOfUltrasoundRegions")
        if all(number(region, f"PhysicalUnits{axis}Direction") == _CENTIMETRES for axis in "XY")
    ]
    if not regions:
        return None
    region = max(regions, key=lambda region: (number(region, "RegionSpatialFormat") == _TISSUE, _area(region)))
    row_cm, column_cm = number(region, "PhysicalDeltaY"), number(region, "PhysicalDeltaX")
    return (abs(row_cm) * 10, abs(column_cm) * 10) if row_cm and column_cm else None


def _area(region: Dataset) -> float:
    """Pixels of an ultrasound region; 0 where its corners are not stated."""
    x0, x1, y0, y1 = (number(region, f"RegionLocation{end}") or 0.0 for end in ("MinX0", "MaxX1", "MinY0", "MaxY1"))
    return (x1 - x0) * (y1 - y0)


def aspect_of(header: Dataset) -> float:
    """Height of a pixel over its width by PixelAspectRatio, for images without pixel spacing; 1 where not stated."""
    ratio = all_numbers(header, "PixelAspectRatio")
    return ratio[0] / ratio[1] if len(ratio) == 2 and min(ratio) > 0 else 1.0
