"""Decodes the pixels of a DICOM stack into one array. `dicom_values` says which values they get.

Decisions:
- Image elements that are missing or impossible are assumed: grey, unsigned, with all bits in use.
- Uncompressed grey images of 16 bits, as most of CT and MRI, are viewed in the file's bytes directly. pydicom's decoder
  gives the same values, but checks dozens of elements of each file first. It decodes everything else but JPEGs in
  colour, which `codestreams` decodes.
- Files are decoded one after the other: two and four threads were no faster on raw and JPEG 2000 series.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import data_element_generator
from pydicom.pixels import get_decoder
from pydicom.pixels.common import PhotometricInterpretation
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    RLELossless,
)

from radfm.readers.codestreams import check_codestreams, codestreams, colour_space, decode_jpeg, decoder_for
from radfm.readers.dicom_files import has, number, open_clamped, text, transfer_syntax
from radfm.readers.dicom_frames import Frame
from radfm.readers.dicom_headers import Instance, modality_of
from radfm.readers.dicom_values import colour_values, fill_padding, grey_values, palette_values, stored_values
from radfm.readers.errors import NO_PICTURE, Unreadable
from radfm.readers.limits import Clamped, n_bytes

_PIXELS = 0x7FE00010
_PHOTOMETRIC = {*PhotometricInterpretation, "PALETTE COLOR"}


def read_pixels(
    frames: list[Frame],
    open_dataset: Callable[[Instance], Dataset],
    failed: dict[Instance, BaseException],
    done: Callable[[Instance], None],
    warnings: list[str],
) -> tuple[np.ndarray | None, list[Frame]]:
    """Decode the frames of a stack.

    Args:
        frames: in the order of the slices.
        open_dataset: `decodable`, perhaps cached.
        failed: receives the files that cannot be decoded, with the exception; their frames are left out.
        done: called with each file when it was decoded or failed.
        warnings: receives what is uncertain about the values.
    Returns:
        (slices, H, W) or (slices, H, W, 3) pixels, None where no frame was decoded; and the frames of these slices.
    """
    slots: dict[Instance, list[int]] = defaultdict(list)
    for slot in sorted(range(len(frames)), key=lambda slot: frames[slot].index):
        slots[frames[slot].instance].append(slot)
    pixels = None
    padding: dict[Frame, np.ndarray] = {}
    noted: list[str] = []
    for instance, own in slots.items():
        try:
            images = _decoded(open_dataset(instance), instance, [frames[slot] for slot in own], noted)
            for slot, (image, padded) in zip(own, images, strict=True):
                pixels = _with_room(pixels, len(frames), image)
                pixels[slot] = image
                if padded is not None:
                    padding[frames[slot]] = np.packbits(padded)
        except Exception as error:  # decoders raise any exception on damaged files; the caller lists the reason
            failed[instance] = error
        done(instance)
    warnings += [warning for warning in dict.fromkeys(noted) if warning not in warnings]
    kept = [slot for slot, frame in enumerate(frames) if frame.instance not in failed]
    if pixels is None or not kept:
        return None, [frames[slot] for slot in kept]
    if len(kept) < len(frames):
        pixels, frames = pixels[kept], [frames[slot] for slot in kept]
    if padding:
        modality = modality_of(frames[0].instance.header)
        fill_padding(pixels, {slot: padding[f] for slot, f in enumerate(frames) if f in padding}, modality)
    return pixels, frames


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
        if syntax == JPEGExtended12Bit and not decoder_for(syntax, dataset):
            # pydicom does not let gdcm decode this syntax, but gdcm goes by the codestream, whatever the syntax.
            dataset.file_meta = FileMetaDataset(dict(dataset.file_meta.items()))
            dataset.file_meta.TransferSyntaxUID = JPEGLossless
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


def _decoded(
    dataset: Dataset, instance: Instance, frames: list[Frame], warnings: list[str]
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The image of each frame and its padding; the frames are of one file and in its order."""
    samples = number(dataset, "SamplesPerPixel") or 1
    if samples not in (1, 3):
        raise Unreadable(f"has {samples:.0f} values for each pixel, where grey has 1 and colour 3: export it as RGB")
    if number(instance.header, "SamplesPerPixel") not in (samples, None):
        actual = "in colour, but its header says grey" if samples == 3 else "grey, but its header says colour"
        warnings.append(f"its compressed pictures are {actual}: read as they are")
    indices = None if len(frames) == instance.frames else [frame.index for frame in frames]
    if samples == 3:
        for image in _colours(dataset, instance, indices, warnings):
            yield image, None
        return
    palette = text(dataset, "PhotometricInterpretation") == "PALETTE COLOR"
    pictures: Iterable[np.ndarray] = _stored(dataset, instance, indices, warnings)
    if instance.frames == 1:
        pictures = repeat(next(iter(pictures)), len(frames))  # the frames of a MOSAIC are tiles of one picture
    for frame, picture in zip(frames, pictures, strict=True):
        stored = picture[frame.tile]
        yield (palette_values(stored, dataset), None) if palette else grey_values(stored, dataset, frame, warnings)


def _colours(
    dataset: Dataset, instance: Instance, indices: list[int] | None, warnings: list[str]
) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 RGB of the frames of a file in colour."""
    syntax = dataset.file_meta.TransferSyntaxUID
    space = text(dataset, "PhotometricInterpretation").upper()
    wanted = range(instance.frames) if indices is None else indices
    if decoder_for(syntax, dataset) == "pillow":
        for index, codestream in enumerate(codestreams(dataset, instance.frames)):
            if index in wanted:
                held = colour_space(codestream, syntax, space, warnings)
                yield decode_jpeg(codestream, ycbcr=held.startswith("YBR"))
        return
    if syntax.is_encapsulated:
        space = colour_space(next(codestreams(dataset, instance.frames)), syntax, space, warnings)
    for values in _stored(dataset, instance, indices, warnings):
        yield colour_values(values, space, dataset)


def _stored(
    dataset: Dataset, instance: Instance, indices: list[int] | None, warnings: list[str]
) -> Iterator[np.ndarray]:
    """(H, W) or (H, W, 3) stored values of the frames of a file."""
    syntax = dataset.file_meta.TransferSyntaxUID
    cells = _uncompressed_cells(dataset, syntax) if instance.frames == 1 else None
    if cells is not None:
        yield stored_values(cells, dataset, warnings)
        return
    options = {"as_rgb": False, "allow_excess_frames": False, **_assumed(dataset, instance)}
    other_bits = not syntax.is_encapsulated or syntax == RLELossless  # which pydicom would remove, but not by HighBit
    if other_bits:
        options["correct_unused_bits"] = False
    decoder, plugin = get_decoder(syntax), decoder_for(syntax, dataset)
    arrays: Iterable[tuple[np.ndarray, dict]]
    if instance.frames == 1:
        arrays = [decoder.as_array(dataset, decoding_plugin=plugin, view_only=True, **options)]
    else:
        arrays = decoder.iter_array(dataset, indices=indices, decoding_plugin=plugin, **options)
    for values, _ in arrays:
        yield stored_values(values, dataset, warnings) if other_bits else values


def _assumed(dataset: Dataset, instance: Instance) -> dict[str, str | int]:
    """pydicom's options for the elements that a file lacks, or that have impossible values."""
    options: dict[str, str | int] = {}
    samples = int(number(dataset, "SamplesPerPixel") or 1)
    allocated, bits = number(dataset, "BitsAllocated"), number(dataset, "BitsStored")
    if not has(dataset, "SamplesPerPixel"):
        options["samples_per_pixel"] = samples
    compressed_colour = samples > 1 and dataset.file_meta.TransferSyntaxUID.is_encapsulated
    if allocated and (compressed_colour or not (bits and 1 <= bits <= allocated)):
        options["bits_stored"] = int(allocated)  # of colours, as gdcm terminates the process if fewer are stored
    if number(dataset, "PixelRepresentation") not in (0, 1):
        options["pixel_representation"] = 0
    if samples > 1 and number(dataset, "PlanarConfiguration") not in (0, 1):
        options["planar_configuration"] = 0
    photometric = text(dataset, "PhotometricInterpretation")
    if photometric not in _PHOTOMETRIC:
        options["photometric_interpretation"] = "RGB" if samples > 1 else "MONOCHROME2"
    elif photometric == "YBR_FULL_422" and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        shape = instance.frames, number(dataset, "Rows") or 0, number(dataset, "Columns") or 0, samples
        if len(dataset.PixelData) * 8 >= n_bytes(shape, int(allocated or 8)):
            options["photometric_interpretation"] = "YBR_FULL"  # each pixel has its own colour, unlike the header says
    return options


def _uncompressed_cells(dataset: Dataset, syntax: UID) -> np.ndarray | None:
    """(rows, columns) pixel cells of an uncompressed grey image of 16 bits; None for any other or damaged one."""
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
    return np.frombuffer(data, "<i2" if signed else "<u2").reshape(rows, columns)


def _uncompressed_syntax(dataset: Dataset) -> UID:
    """The transfer syntax of a file without meta header, by the encoding that pydicom recognised."""
    implicit, little = dataset.original_encoding
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if has(dataset, "PixelData") and dataset["PixelData"].is_undefined_length:
        raise Unreadable("does not state how its pixels are compressed: export it again")
    dataset.file_meta.TransferSyntaxUID = syntax
    return syntax
