"""What compressed DICOM pictures say of themselves, before any decoder sees them.

Decisions:
- A decoder reserves what the codestream asks for, not what the header says; and gdcm ends the whole process at some
  damaged segments. So a codestream must be well-formed up to its size, and agree with the header, to be decoded at all.
- Where there is a choice of decoders, the one that answers damage with an error comes alone: Pillow for 8-bit JPEG,
  OpenJPEG for JPEG 2000, pydicom for RLE (pylibjpeg-rle panics). gdcm is left with JPEG lossless, 12-bit JPEG, JPEG-LS.
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
    """Raises: Unreadable where a frame is damaged, or is not what the header says."""
    read = _jpeg if syntax in _JPEG else _jpeg_2000 if syntax in _JPEG_2000 else None
    if read is None:
        return
    expected = (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel)
    for codestream in generate_frames(dataset.PixelData, number_of_frames=frames):
        try:
            rows, columns, samples, bits = read(codestream)
        except (struct.error, ValueError, IndexError):
            raise Unreadable(f"holds a compressed picture that {CUT_SHORT}") from None
        if (rows, columns, samples) != expected or bits > dataset.BitsAllocated:
            raise Unreadable(f"holds a compressed picture of another size than its header says: it {CUT_SHORT}")


def decoder_for(syntax: uid.UID, dataset: Dataset) -> str:
    """The name of pydicom's decoding plugin to use; "" for any."""
    if syntax == uid.JPEGBaseline8Bit or (syntax == uid.JPEGExtended12Bit and dataset.BitsStored <= 8):
        return "pillow"
    if syntax == uid.RLELossless:
        return "pydicom"
    return "pylibjpeg" if syntax in _JPEG_2000 else ""


def _jpeg(codestream: bytes) -> tuple[int, int, int, int]:
    """(rows, columns, samples, bits) of a JPEG or JPEG-LS codestream, from its start of frame."""
    if codestream[:2] != b"\xff\xd8":
        raise ValueError
    at = 2
    while True:
        mark, marker, length = struct.unpack_from(">BBH", codestream, at)
        if mark != 0xFF:
            raise ValueError
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, rows, columns, samples = struct.unpack_from(">BHHB", codestream, at + 4)
            return rows, columns, samples, bits
        elif length < 2:
            raise ValueError
        else:
            at += 2 + length


def _jpeg_2000(codestream: bytes) -> tuple[int, int, int, int]:
    """(rows, columns, samples, bits) of a JPEG 2000 codestream, perhaps in a JP2 file, from its SIZ segment."""
    at = codestream.index(_SIZ) + 8
    x, y, x0, y0, *_, samples, bits = struct.unpack_from(">8IHB", codestream, at)
    return y - y0, x - x0, samples, (bits & 0x7F) + 1
