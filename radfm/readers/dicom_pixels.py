"""The pictures of a DICOM stack, as one array.

Decisions:
- Modality LUT or rescale slope and intercept are applied, frame by frame: Hounsfield units for CT, activity for PET.
- For projections (the column of modalities.csv) the header's first VOI LUT or window is applied: stored values differ
  by detector and processing, and the window is the picture the vendor means to be read. One that leaves no contrast is
  ignored. It is never applied to CT, whose units would be lost, nor to the other modalities.
- MONOCHROME1 is inverted, so that more is brighter; not where values are a quantity, as in CT and nuclear medicine.
- YBR becomes RGB, a palette is looked up, deeper colours are reduced to 8 bits.
- Uncompressed grey pictures of 16 bits, as most of CT and MRI, are taken straight from the file's bytes: pydicom's
  decoder gives the same values, but first asks dozens of things of each file. It decodes everything else.
- One file after the other: two and four threads were tried on raw and JPEG 2000 series, and gained nothing.
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
from radfm.readers.dicom_headers import Frame, Instance, modality_of
from radfm.readers.errors import NO_PICTURE, Unreadable
from radfm.readers.pixels import compact, rescaled

_PIXELS = 0x7FE00010


def read_pixels(
    frames: list[Frame],
    open_dataset: Callable[[Instance], Dataset],
    failed: dict[Instance, BaseException],
    done: Callable[[Instance], None],
) -> tuple[np.ndarray | None, list[Frame]]:
    """The pictures of a stack, (slices, H, W) or (slices, H, W, 3), and the frames they are of.

    Args:
        frames: in the order of the slices.
        open_dataset: `decodable`, or what remembers its answers.
        failed: takes the files that cannot be decoded, and why; their frames are left out.
        done: called after each file, with it.
    """
    slots: dict[Instance, list[int]] = defaultdict(list)
    for slot in sorted(range(len(frames)), key=lambda slot: frames[slot].index):
        slots[frames[slot].instance].append(slot)
    pixels = None
    for instance, own in slots.items():
        try:
            pictures = _pictures(open_dataset(instance), instance, [frames[slot] for slot in own])
            for slot, picture in zip(own, pictures, strict=True):
                pixels = _with_room(pixels, len(frames), picture)
                pixels[slot] = picture
        except Exception as error:  # decoders raise anything on damaged files; the reason is told
            failed[instance] = error
        done(instance)
    kept = [slot for slot, frame in enumerate(frames) if frame.instance not in failed]
    if len(kept) == len(frames):
        return pixels, frames
    return (pixels[kept] if kept else None), [frames[slot] for slot in kept]


def _with_room(pixels: np.ndarray | None, slices: int, picture: np.ndarray) -> np.ndarray:
    """An array for all slices whose type also holds this picture exactly."""
    if pixels is None:
        return np.empty((slices, *picture.shape), picture.dtype)
    if pixels.shape[1:] != picture.shape:
        raise Unreadable("has another matrix size than the rest of its series: read it alone")
    if pixels.dtype == picture.dtype:
        return pixels
    holds_both = np.promote_types(pixels.dtype, picture.dtype)
    return pixels.astype(np.float32 if holds_both.itemsize > 2 else holds_both, copy=False)


def decodable(instance: Instance) -> Dataset:
    """The header with the pixels, checked so that decoding them cannot need more than the header says."""
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


def _pictures(dataset: Dataset, instance: Instance, frames: list[Frame]) -> Iterator[np.ndarray]:
    """One picture for each frame; the frames are those of one file, in its order."""
    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = decoder_for(syntax, dataset)
    if instance.frames == 1:
        values = _plain_values(dataset, syntax)
        if values is None:
            values, _ = get_decoder(syntax).as_array(dataset, decoding_plugin=plugin, view_only=True)
        yield _values(values, dataset, frames[0])
        return
    indices = None if len(frames) == instance.frames else [frame.index for frame in frames]
    for frame, values in zip(frames, iter_pixels(dataset, indices=indices, decoding_plugin=plugin), strict=True):
        yield _values(values, dataset, frame)


def _plain_values(dataset: Dataset, syntax: UID) -> np.ndarray | None:
    """(rows, columns) stored values of an uncompressed grey picture of 16 bits; None for any other, and any damaged."""
    layout = [number(dataset, keyword) for keyword in ("SamplesPerPixel", "BitsAllocated", "Rows", "Columns")]
    grey = text(dataset, "PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
    stored_bits, signed = number(dataset, "BitsStored"), number(dataset, "PixelRepresentation")
    if syntax not in (ImplicitVRLittleEndian, ExplicitVRLittleEndian) or not grey or layout[:2] != [1, 16]:
        return None
    if stored_bits not in range(1, 17) or signed not in (0, 1) or not has(dataset, "PixelData"):
        return None
    rows, columns = map(int, layout[2:])
    data = dataset.get_item(_PIXELS).value or b""
    if len(data) != 2 * rows * columns:
        return None
    values = np.frombuffer(data, "<i2" if signed else "<u2").reshape(rows, columns)
    unused = 16 - int(stored_bits)  # may hold anything (PS3.5, 8.1.1)
    return values if not unused else (values << unused) >> unused


def _uncompressed_syntax(dataset: Dataset) -> UID:
    """Of a file without meta header: as it was found to be encoded."""
    implicit, little = dataset.original_encoding
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if dataset["PixelData"].is_undefined_length:
        raise Unreadable("does not say how its pixels are compressed: export it again")
    dataset.file_meta.TransferSyntaxUID = syntax
    return syntax


def _values(values: np.ndarray, dataset: Dataset, frame: Frame) -> np.ndarray:
    """Stored values -> what a scan keeps."""
    photometric = text(dataset, "PhotometricInterpretation")
    if photometric == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
        return (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values
    if values.ndim == 3:
        bits = int(number(dataset, "BitsStored") or 8)
        return np.clip(values >> max(bits - 8, 0), 0, 255).astype(np.uint8)
    modality = modality_of(dataset)
    if has(dataset, "ModalityLUTSequence"):
        values = compact(apply_modality_lut(values, dataset))
        ends = int(values.min()), int(values.max())
    else:
        values = rescaled(values, frame.slope, frame.intercept)
        ends = None
    if modality and modality.projection:
        values = _windowed(values, dataset)
    if photometric == "MONOCHROME1" and not (modality and modality.quantity):
        ends = ends or [end * frame.slope + frame.intercept for end in _stored_range(dataset)]
        values = rescaled(values, -1, sum(ends))
    return values


def _windowed(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    try:
        seen = apply_voi_lut(values, dataset)
    except Exception:  # a damaged window says nothing: the picture is shown without
        return values
    if seen is values or seen.min() == seen.max():
        return values
    return compact(np.rint(seen).astype(np.int32)) if np.ptp(seen) >= 255 else seen.astype(np.float32)


def _stored_range(dataset: Dataset) -> tuple[int, int]:
    """The smallest and largest value that the pixels' bits can be."""
    bits = int(number(dataset, "BitsStored") or number(dataset, "BitsAllocated") or 16)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if number(dataset, "PixelRepresentation") else (0, 2**bits - 1)
