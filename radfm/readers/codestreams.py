"""Compressed DICOM frames: checks before they are decoded, and the colour space of what they hold.

Decisions:
- A decoder allocates the size that the codestream states, not the size in the DICOM header, and gdcm terminates the
  process on some damaged segments. So a codestream is decoded only if it is well-formed up to the segment that states
  its size, and if this size is that of the header. gdcm also terminates where libjpeg would warn of the segments of
  applications, so these are checked before it decodes.
- Where several decoders could be used, only one that raises an error on damaged data is: Pillow for 8-bit JPEG,
  OpenJPEG for JPEG 2000, pydicom for RLE (pylibjpeg-rle panics). gdcm decodes JPEG lossless, 12-bit JPEG and JPEG-LS.
- Whether a JPEG holds RGB or YCbCr is decided by the first of these that it has: components named R, G, B; subsampled
  components, which only YCbCr has; an Adobe marker; a JFIF marker. Where it has none of them, the header decides, and
  it is YCbCr where the header does not say either.
- Codestreams in colour are read as such where the header says grey, and the other way round.
- A JPEG 2000 decoder undoes the colour transform of the codestream, so the result is RGB. The header decides only where
  there was no such transform, and YBR_RCT and YBR_ICT are wrong there.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from radfm.readers.dicom_files import has, number
from radfm.readers.errors import CUT_SHORT, Unreadable
from radfm.readers.limits import check_size, n_bytes

_JPEG_8_BIT = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
_JPEG_LOSSLESS = (uid.JPEGLossless, uid.JPEGLosslessSV1)
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
_SIZ, _COD = b"\xff\x4f\xff\x51", b"\xff\x52"
_APP0, _APP14, _SOS = 0xE0, 0xEE, 0xDA
_NOT_FRAMES = (0xC4, 0xC8, 0xCC)  # of the markers C0 to CF, those that do not begin a frame
_JPEG_LS_FRAME = 0xF7


@dataclass
class _Header:
    """What a codestream states.

    Attributes:
        ycbcr: whether its three components are YCbCr; None where that cannot be seen.
        odd: whether a segment of an application (JFIF, Adobe) has a value that libjpeg does not know.
    """

    size: tuple[int, int, int]  # rows, columns, samples
    bits: int
    ycbcr: bool | None = None
    odd: bool = False


def check_codestreams(dataset: Dataset, syntax: uid.UID, frames: int) -> None:
    """Compare the size that each compressed frame states with the header's.

    Where the codestreams have colours and the header says grey, or the other way round, the data set is changed.
    Raises: Unreadable where a frame is damaged, or its rows, columns, samples or bits do not fit the header.
    """
    if syntax not in (*_JPEG_8_BIT, *_JPEG_LOSSLESS, *_JPEG_LS, *_JPEG_2000):
        return
    samples = None
    for codestream in codestreams(dataset, frames):
        try:
            header = _header(codestream, syntax)
        except (struct.error, ValueError, IndexError):
            raise Unreadable(f"holds a compressed picture that {CUT_SHORT}") from None
        samples = samples or header.size[2]
        expected = (dataset.Rows, dataset.Columns, samples)
        if header.odd and not decoder_for(syntax, dataset):
            raise Unreadable(f"holds a compressed picture that {CUT_SHORT}")
        if header.size != expected or samples not in (1, 3) or header.bits > dataset.BitsAllocated:
            raise Unreadable(f"holds a compressed picture of another size than its header says: it {CUT_SHORT}")
    if samples is not None and samples != number(dataset, "SamplesPerPixel"):
        pixel_bytes = n_bytes((frames, dataset.Rows, dataset.Columns, samples), dataset.BitsAllocated // 8)
        check_size(pixel_bytes, len(dataset.PixelData), compressed=True)
        # New elements, because the data set shares its elements with the header of the instance.
        dataset.add_new("SamplesPerPixel", "US", samples)
        dataset.add_new("PhotometricInterpretation", "CS", "MONOCHROME2" if samples == 1 else "")


def codestreams(dataset: Dataset, frames: int) -> Iterator[bytes]:
    """The codestream of each frame of a compressed file."""
    tables = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
    offsets = tuple(dataset[table].value for table in tables) if all(has(dataset, table) for table in tables) else None
    return generate_frames(dataset.PixelData, number_of_frames=frames, extended_offsets=offsets)


def decoder_for(syntax: uid.UID, dataset: Dataset) -> str:
    """The name of the decoding plugin that pydicom is to use; "" where any will do."""
    if syntax == uid.JPEGBaseline8Bit or (syntax == uid.JPEGExtended12Bit and dataset.BitsStored <= 8):
        return "pillow"
    if syntax == uid.RLELossless:
        return "pydicom"
    return "pylibjpeg" if syntax in _JPEG_2000 else ""


def colour_space(codestream: bytes, syntax: uid.UID, photometric: str, warnings: list[str]) -> str:
    """The colour space of a frame with three samples: "RGB", or a YBR.

    Args:
        photometric: PhotometricInterpretation of the DICOM header.
        warnings: receives a line where the codestream contradicts the header.
    """
    if syntax not in (*_JPEG_8_BIT, *_JPEG_LOSSLESS, *_JPEG_2000):
        return photometric
    said, ycbcr = photometric.startswith("YBR"), _header(codestream, syntax).ycbcr
    stated = said or photometric == "RGB"
    if syntax in _JPEG_2000:
        transform_said = photometric in ("YBR_RCT", "YBR_ICT")
        held = said and not transform_said and not ycbcr
        contradicted = said and transform_said != ycbcr
    else:
        held = ycbcr if ycbcr is not None else said or not stated
        contradicted = stated and held != said
    if contradicted:
        names = ("RGB", "YCbCr")
        warnings.append(f"its header says {names[said]}, but its compressed pictures hold {names[held]}: read as such")
    return (photometric if said else "YBR_FULL") if held else "RGB"


def decode_jpeg(codestream: bytes, *, ycbcr: bool) -> np.ndarray:
    """Decode a JPEG of 8 bits with three components. ycbcr: whether they are YCbCr. Returns: (H, W, 3) RGB, uint8.

    libjpeg decides about the colour space by the markers of the codestream, so these are replaced by one that states
    it. Raises: whatever Pillow raises on a damaged codestream.
    """
    stated = b"\xff\xd8\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([ycbcr])
    end = 2
    for marker, start, end in _segments(codestream):
        if marker not in (_APP0, _APP14):
            stated += codestream[start:end]
    with Image.open(io.BytesIO(stated + codestream[end:]), formats=("JPEG",)) as image:
        return np.asarray(image.convert("RGB"))


def _header(codestream: bytes, syntax: uid.UID) -> _Header:
    return _jpeg_2000_header(codestream) if syntax in _JPEG_2000 else _jpeg_header(codestream)


def _jpeg_header(codestream: bytes) -> _Header:
    """From the segments of a JPEG or JPEG-LS codestream before its first scan."""
    found, application = None, {}
    for marker, start, end in _segments(codestream):
        if marker in (_APP0, _APP14):
            application[marker] = codestream[start + 4 : end]
        elif marker == _JPEG_LS_FRAME or (0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES):
            found = found or start
    if found is None:
        raise ValueError("a JPEG has no frame")
    bits, rows, columns, samples = struct.unpack_from(">BHHB", codestream, found + 4)
    components = codestream[found + 10 : found + 10 + 3 * samples]
    ycbcr = _holds_ycbcr(components[::3], components[1::3], application)
    return _Header((rows, columns, samples), bits, ycbcr, _odd(application))


def _odd(application: dict[int, bytes]) -> bool:
    """Whether libjpeg would warn: of another version of JFIF than 1, or a transform that Adobe does not have."""
    jfif, adobe = application.get(_APP0, b""), application.get(_APP14, b"")
    other_version = jfif.startswith(b"JFIF\0") and len(jfif) >= 14 and jfif[5] != 1
    return other_version or (adobe.startswith(b"Adobe") and len(adobe) >= 12 and adobe[11] > 2)


def _segments(codestream: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, begin, end) of each segment of a JPEG between its start and its first scan.

    Raises: ValueError or struct.error where the codestream is no JPEG or ends before.
    """
    if codestream[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG")
    at = 2
    while True:
        mark, marker, length = struct.unpack_from(">BBH", codestream, at)
        if mark != 0xFF:
            raise ValueError("a JPEG has no marker where one should be")
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == _SOS:
            return
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9 or length < 2:
            raise ValueError("a JPEG has a segment without length")
        yield marker, at, at + 2 + length
        at += 2 + length


def _holds_ycbcr(names: bytes, sampling: bytes, application: dict[int, bytes]) -> bool | None:
    """Whether the components of a JPEG are YCbCr, by their names, sampling factors and the application's markers."""
    if names in (b"RGB", b"rgb"):
        return False
    if len(set(sampling)) > 1:
        return True
    adobe = application.get(_APP14, b"")
    if adobe.startswith(b"Adobe") and len(adobe) >= 12:
        return adobe[11] != 0
    return True if application.get(_APP0, b"").startswith(b"JFIF\0") else None


def _jpeg_2000_header(codestream: bytes) -> _Header:
    """From the SIZ and COD segments of a JPEG 2000 codestream, perhaps in a JP2 file."""
    at = codestream.index(_SIZ) + 4
    length, _, x, y, x0, y0, *_, samples, bits = struct.unpack_from(">HH8IHB", codestream, at)
    transform = codestream[codestream.index(_COD, at + length) + 8]
    return _Header((y - y0, x - x0, samples), (bits & 0x7F) + 1, bool(transform))
