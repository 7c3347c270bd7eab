"""Checks of compressed DICOM frames before they are decoded.

Decisions:
- A decoder allocates the size that the codestream states, not the size in the DICOM header, and gdcm terminates the
  process on some damaged segments. So a codestream is decoded only if it is well-formed up to the segment that states
  its size, and if this size is that of the header.
- Where several decoders could be used, only one that raises an error on damaged data is: Pillow for 8-bit JPEG,
  OpenJPEG for JPEG 2000, pydicom for RLE (pylibjpeg-rle panics). gdcm decodes JPEG lossless, 12-bit JPEG and JPEG-LS.
"""

import struct

from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from radfm.readers.errors import CUT_SHORT, Unreadable

_JPEG = (
    *(uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1),
    *(uid.JPEGLSLossless, uid.JPEGLSNearLossless),
)
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
_SIZ = b"\xff\x4f\xff\x51"


def check_codestreams(dataset: Dataset, syntax: uid.UID, frames: int) -> None:
    """Compare the size that each compressed frame states with the header's.

    Raises: Unreadable where a frame is damaged, or its rows, columns, samples or bits do not fit the header.
    """
    read_size = _jpeg_size if syntax in _JPEG else _jpeg_2000_size if syntax in _JPEG_2000 else None
    if read_size is None:
        return
    expected = (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    for codestream in generate_frames(dataset.PixelData, number_of_frames=frames):
        try:
            rows, columns, samples, bits = read_size(codestream)
        except (struct.error, ValueError, IndexError):
            raise Unreadable(f"holds a compressed picture that {CUT_SHORT}") from None
        if (rows, columns, samples) != expected or bits > dataset.BitsAllocated:
            raise Unreadable(f"holds a compressed picture of another size than its header says: it {CUT_SHORT}")


def decoder_for(syntax: uid.UID, dataset: Dataset) -> str:
    """The name of the decoding plugin that pydicom is to use; "" where any will do."""
    if syntax == uid.JPEGBaseline8Bit or (syntax == uid.JPEGExtended12Bit and dataset.BitsStored <= 8):
        return "pillow"
    if syntax == uid.RLELossless:
        return "pydicom"
    return "pylibjpeg" if syntax in _JPEG_2000 else ""


def _jpeg_size(codestream: bytes) -> tuple[int, int, int, int]:
    """(rows, columns, samples, bits) of a JPEG or JPEG-LS codestream, from its start-of-frame segment."""
    if codestream[:2] != b"\xff\xd8":
        raise ValueError
    at = 2
    while True:
        mark, marker, length = struct.unpack_from(">BBH", codestream, at)
        if mark != 0xFF:
            raise ValueError
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, rows, columns, samples = struct.unpack_from(">BHHB", codestream, at + 4)
            return rows, columns, samples, bits
        elif length < 2:
            raise ValueError
        else:
            at += 2 + length


def _jpeg_2000_size(codestream: bytes) -> tuple[int, int, int, int]:
    """(rows, columns, samples, bits) of a JPEG 2000 codestream, perhaps in a JP2 file, from its SIZ segment."""
    at = codestream.index(_SIZ) + 8
    x, y, x0, y0, *_, samples, bits = struct.unpack_from(">8IHB", codestream, at)
    return y - y0, x - x0, samples, (bits & 0x7F) + 1
