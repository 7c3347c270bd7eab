"""Finds files that hold the same picture twice, by content.

Decisions:
- Two files are copies if their pixels are the same bytes, and either their SOPInstanceUID or all that tells pictures
  apart: place, grid, date, times, echo, b-value, view. Then other identifiers do not matter: an archive may give a
  picture that is sent twice new ones.
- Files with one SOPInstanceUID and different pixels are different pictures: anonymisers give one identifier to many.
- Pictures of a single value, such as empty slices, are copies only with the same SOPInstanceUID and place.
- Pixels are read only of files whose headers agree, first a few bytes, and all of them only where these agree. Where
  two files are encoded or compressed in different ways, the decoded pixels are compared.
"""

from collections import defaultdict

import numpy as np

from radfm.readers.dicom_files import all_numbers, text, transfer_syntax
from radfm.readers.dicom_frames import Frame
from radfm.readers.dicom_headers import Instance, date_of
from radfm.readers.dicom_pixels import decodable, read_pixels
from radfm.readers.limits import Clamped
from radfm.readers.natural_order import natural

_SAMPLES, _SAMPLE_BYTES, _BLOCK = 16, 64, 2**20


def without_copies(frames_of: dict[Instance, list[Frame]]) -> tuple[list[Instance], list[tuple[str, str]]]:
    """The files without copies, in the order given, and (name, reason) of each copy. The first by name is kept.

    Args:
        frames_of: file -> its frames.
    """
    alike: dict[tuple, list[Instance]] = defaultdict(list)
    copies: dict[Instance, Instance] = {}
    for instance in sorted(frames_of, key=lambda instance: natural(instance.name)):
        picture = _picture(instance, frames_of[instance])
        uid = text(instance.header, "SOPInstanceUID")
        keys = [("picture", *picture)] + ([("uid", uid, *picture[:3])] if uid else [])
        others = dict.fromkeys(other for key in keys for other in alike[key])
        first = next((other for other in others if _same_pixels(other, instance, frames_of)), None)
        if first is not None and (_varies(instance) or text(first.header, "SOPInstanceUID") == uid != ""):
            copies[instance] = first
            continue
        for key in keys:
            alike[key].append(instance)
    reasons = [(copy.name, f"is a copy of {first.name}: read once") for copy, first in copies.items()]
    return [instance for instance in frames_of if instance not in copies], reasons


def _picture(instance: Instance, frames: list[Frame]) -> tuple:
    """What the headers of two copies share: grid and number of frames, place, and all that tells pictures apart."""
    header, frame = instance.header, frames[0]
    keywords = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "Modality")
    grid = tuple(text(header, keyword) for keyword in keywords), frame.pixel_mm
    place = tuple(all_numbers(header, "ImagePositionPatient"))
    direction = None if frame.orientation is None else tuple(frame.orientation.tolist())
    apart = date_of(header), text(header, "ViewPosition"), frame.contrast, frame.moment, frame.clock
    return grid, place, direction, apart


def _same_pixels(first: Instance, second: Instance, frames_of: dict[Instance, list[Frame]]) -> bool:
    if transfer_syntax(first.header) != transfer_syntax(second.header):
        decoded = [read_pixels(frames_of[one], decodable, {}, lambda _: None, [])[0] for one in (first, second)]
        return decoded[0] is not None and decoded[1] is not None and np.array_equal(decoded[0], decoded[1])
    if first.pixels_at is None or second.pixels_at is None:  # a deflated file, whose pixels have no place in it
        return first.path.read_bytes() == second.path.read_bytes()
    with Clamped(first.path) as a, Clamped(second.path) as b:
        length = a.end - first.pixels_at
        if length != b.end - second.pixels_at:
            return False
        for i in range(_SAMPLES):
            at = (length - _SAMPLE_BYTES) * i // _SAMPLES
            a.seek(first.pixels_at + max(at, 0))
            b.seek(second.pixels_at + max(at, 0))
            if a.read(_SAMPLE_BYTES) != b.read(_SAMPLE_BYTES):
                return False
        a.seek(first.pixels_at)
        b.seek(second.pixels_at)
        while block := a.read(_BLOCK):
            if block != b.read(_BLOCK):
                return False
    return True


def _varies(instance: Instance) -> bool:
    """Whether the bytes of the pixels differ from each other by more than a value's own two or four bytes."""
    if instance.pixels_at is None:
        return True
    with Clamped(instance.path) as file:
        file.seek(instance.pixels_at + 12)  # tag, VR and length
        pixels = file.read(instance.path.stat().st_size)
    return pixels[4:] != pixels[:-4]
