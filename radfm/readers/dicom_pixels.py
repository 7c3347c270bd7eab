"""Decodes the pixels of a DICOM stack into one array.

Decisions:
- Modality LUT or rescale slope and intercept are applied, frame by frame: Hounsfield units for CT, activity for PET.
- For projections (the column of modalities.csv) the header's first VOI LUT or window is applied: stored values differ
  by detector and processing, and the window gives the image that the vendor intends to be read. A window that leaves
  no contrast is ignored. It is never applied to CT, whose units would be lost, nor to other modalities.
- MONOCHROME1 is inverted, so that more is brighter; not where values are a quantity, as in CT and nuclear medicine.
- YBR becomes RGB, palettes are applied, and colours of more than 8 bits are reduced to 8.
- Uncompressed grey images of 16 bits, as most of CT and MRI, are viewed in the file's bytes directly. pydicom's decoder
  gives the same values, but checks dozens of elements of each file first. It decodes everything else.
- Files are decoded one after the other: two and four threads were no faster on raw and JPEG 2000 series.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import data_element_generator
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, get_decoder, iter_pixels
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from radfm.readers.codestreams import check_codestreams, decoder_for
from radfm.readers.dicom_files import Clamped, has, number, open_clamped, text, transfer_syntax
from radfm.readers.dicom_frames import Frame
from radfm.readers.dicom_headers import Instance, modality_of
from radfm.readers.errors import NO_PICTURE, Unreadable
from radfm.readers.pixels import compact, rescaled

_PIXELS = 0x7FE00010


def read_pixels(
    frames: list[Frame],
    open_dataset: Callable[[Instance], Dataset],
    failed: dict[Instance, BaseException],
    done: Callable[[Instance], None],
) -> tuple[np.ndarray | None, list[Frame]]:
    """Decode the frames of a stack.

    Args:
        frames: in the order of the slices.
        open_dataset: `decodable`, perhaps cached.
        failed: receives the files that cannot be decoded, with the exception; their frames are left out.
        done: called with each file when it was decoded or failed.
    Returns:
        (slices, H, W) or (slices, H, W, 3) pixels, None where no frame was decoded; and the frames of these slices.
    """
    slots: dict[Instance, list[int]] = defaultdict(list)
    for slot in sorted(range(len(frames)), key=lambda slot: frames[slot].index):
        slots[frames[slot].instance].append(slot)
    pixels = None
    for instance, own in slots.items():
        try:
            images = _decoded(open_dataset(instance), instance, [frames[slot] for slot in own])
            for slot, image in zip(own, images, strict=True):
                pixels = _with_room(pixels, len(frames), image)
                pixels[slot] = image
        except Exception as error:  # decoders raise any exception on damaged files; the caller lists the reason
            failed[instance] = error
        done(instance)
    kept = [slot for slot, frame in enumerate(frames) if frame.instance not in failed]
    if len(kept) == len(frames):
        return pixels, frames
    return (None if pixels is None or not kept else pixels[kept]), [frames[slot] for slot in kept]


def _with_room(pixels: np.ndarray | None, slices: int, image: np.ndarray) -> np.ndarray:
    """The array of all slices, in a type that also holds this image exactly."""
    if pixels is None:
        return np.empty((slices, *image.shape), image.dtype)
    if pixels.shape[1:] != image.shape:
        raise Unreadable("has another matrix size than the rest of its series: read it alone")
    if pixels.dtype == image.dtype:
        return pixels
    holds_both = np.promote_types(pixels.dtype, image.dtype)
    return pixels.astype(np.float32 if holds_both.itemsize > 2 else holds_both, copy=False)


def decodable(instance: Instance) -> Dataset:
    """The data set of a file with its pixels, checked so that decoding allocates no more than the header states.

    Raises: Unreadable for a file without pixels, and for a compressed frame that is damaged or of another size.
    """
    if instance.pixels_at is None:
        with open_clamped(instance.path) as file:
            dataset = pydicom.dcmread(file, force=True)
    else:
        with Clamped(instance.path) as file:
            dataset = _with_pixels(instance.header, file, instance.pixels_at)
    if not any(has(dataset, keyword) for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise Unreadable(NO_PICTURE)
    syntax = transfer_syntax(dataset) or _uncompressed_syntax(dataset)
    if syntax.is_encapsulated:
        check_codestreams(dataset, syntax, instance.frames)
    return dataset


def _with_pixels(header: Dataset, file: BinaryIO, pixels_at: int) -> Dataset:
    dataset = Dataset(dict(header.items()))
    dataset.file_meta = header.file_meta
    dataset.set_original_encoding(*header.original_encoding, header.original_character_set)
    file.seek(pixels_at)
    for element in data_element_generator(file, *header.original_encoding):
        if element.tag <= _PIXELS:
            dataset[element.tag] = element
        if element.tag >= _PIXELS:
            break
    return dataset


def _decoded(dataset: Dataset, instance: Instance, frames: list[Frame]) -> Iterator[np.ndarray]:
    """The image of each frame; the frames are of one file and in its order."""
    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = decoder_for(syntax, dataset)
    if instance.frames == 1:
        values = _uncompressed_values(dataset, syntax)
        if values is None:
            values, _ = get_decoder(syntax).as_array(dataset, decoding_plugin=plugin, view_only=True)
        yield from (_values(values[frame.tile], dataset, frame) for frame in frames)
        return
    indices = None if len(frames) == instance.frames else [frame.index for frame in frames]
    for frame, values in zip(frames, iter_pixels(dataset, indices=indices, decoding_plugin=plugin), strict=True):
        yield _values(values, dataset, frame)


def _uncompressed_values(dataset: Dataset, syntax: UID) -> np.ndarray | None:
    """(rows, columns) stored values of an uncompressed grey image of 16 bits; None for any other or damaged one."""
    layout = [number(dataset, keyword) for keyword in ("SamplesPerPixel", "BitsAllocated")]
    rows, columns = int(number(dataset, "Rows") or 0), int(number(dataset, "Columns") or 0)
    grey = text(dataset, "PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
    stored_bits, signed = number(dataset, "BitsStored"), number(dataset, "PixelRepresentation")
    if syntax not in (ImplicitVRLittleEndian, ExplicitVRLittleEndian) or not grey or layout != [1, 16]:
        return None
    if stored_bits is None or stored_bits not in range(1, 17) or signed not in (0, 1) or not has(dataset, "PixelData"):
        return None
    data = dataset.get_item(_PIXELS).value or b""
    if len(data) != 2 * rows * columns:
        return None
    values = np.frombuffer(data, "<i2" if signed else "<u2").reshape(rows, columns)
    unused = 16 - int(stored_bits)  # these bits may have any value (PS3.5, 8.1.1)
    return values if not unused else (values << unused) >> unused


def _uncompressed_syntax(dataset: Dataset) -> UID:
    """The transfer syntax of a file without meta header, by the encoding that pydicom recognised."""
    implicit, little = dataset.original_encoding
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if dataset["PixelData"].is_undefined_length:
        raise Unreadable("does not state how its pixels are compressed: export it again")
    dataset.file_meta.TransferSyntaxUID = syntax
    return syntax


def _values(values: np.ndarray, dataset: Dataset, frame: Frame) -> np.ndarray:
    """Stored values of a frame -> the values of its slice in a scan."""
    photometric = text(dataset, "PhotometricInterpretation")
    if photometric == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
        return (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values
    if values.ndim == 3:
        bits = int(number(dataset, "BitsStored") or 8)
        return np.clip(values >> max(bits - 8, 0), 0, 255).astype(np.uint8)
    modality = modality_of(dataset)
    ends: tuple[float, float] | None
    if has(dataset, "ModalityLUTSequence"):
        values = compact(apply_modality_lut(values, dataset))
        ends = int(values.min()), int(values.max())
    else:
        values = rescaled(values, frame.slope, frame.intercept)
        ends = None
    if modality and modality.projection:
        values = _windowed(values, dataset)
    if photometric == "MONOCHROME1" and not (modality and modality.quantity):
        low, high = ends or (end * frame.slope + frame.intercept for end in _stored_range(dataset))
        values = rescaled(values, -1, low + high)
    return values


def _windowed(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    try:
        windowed = apply_voi_lut(values, dataset)
    except Exception:  # a damaged window is ignored
        return values
    if windowed is values or windowed.min() == windowed.max():
        return values
    if np.ptp(windowed) >= 255:
        return compact(np.rint(windowed).astype(np.int32))
    return windowed.astype(np.float32)


def _stored_range(dataset: Dataset) -> tuple[int, int]:
    """The smallest and the largest value that the stored bits can represent."""
    bits = int(number(dataset, "BitsStored") or number(dataset, "BitsAllocated") or 16)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if number(dataset, "PixelRepresentation") else (0, 2**bits - 1)
