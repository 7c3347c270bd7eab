"""Opens files that may be packed with gzip, whatever their name says.

Decisions:
- The first two bytes show whether a file is packed.
- Bytes behind the end of the packed data are ignored, as gzip(1) does. Python's `gzip` raises an error for them.
- The checksum at the end of the packed data is checked by zlib, where the reader gets that far.
"""

import io
import zlib
from pathlib import Path

GZIP = b"\x1f\x8b"
_BLOCK = 2**18
_WITH_GZIP_HEADER = 16 + zlib.MAX_WBITS


def open_unpacked(path: Path) -> io.BufferedIOBase:
    """Open a file for reading what is in it: a file that is not packed as it is, so that it can be memory-mapped."""
    file = open(path, "rb")  # noqa: SIM115 - it is returned
    if file.peek(2)[:2] != GZIP:
        return file
    return io.BufferedReader(_Gunzipped(file), _BLOCK)


class _Gunzipped(io.RawIOBase):
    """What a gzip file holds. Reading starts anew where it goes back to an earlier position."""

    def __init__(self, file: io.BufferedReader):
        self._file = file
        self._restart()

    def _restart(self) -> None:
        self._file.seek(0)
        self._inflater, self._packed, self._position = zlib.decompressobj(_WITH_GZIP_HEADER), b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer) -> int:
        """Raises: EOFError for a file that is cut short, zlib.error for a damaged one."""
        wanted = len(buffer)
        while wanted:
            if self._inflater.eof:
                following = self._inflater.unused_data or self._file.read(_BLOCK)
                following += self._file.read(2) if len(following) == 1 else b""
                if following[:2] != GZIP:
                    return 0
                self._inflater, self._packed = zlib.decompressobj(_WITH_GZIP_HEADER), following
            block = self._packed or self._file.read(_BLOCK)
            if not block:
                raise EOFError("the gzip file ends before its data do")
            content = self._inflater.decompress(block, wanted)
            self._packed = self._inflater.unconsumed_tail
            if content:
                buffer[: len(content)] = content
                self._position += len(content)
                return len(content)
        return 0

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            position += self._position
        elif whence == io.SEEK_END:
            raise io.UnsupportedOperation("the unpacked size of a gzip file is unknown")
        if position < self._position:
            self._restart()
        while self._position < position and self.read(min(_BLOCK, position - self._position)):
            pass
        return self._position

    def close(self) -> None:
        self._file.close()
        super().close()
