"""A study on its way in: what the browser sends becomes files of a folder, under numbers for names.

The body of the request is one line of JSON, {"files": [[name, bytes], ...], "modality": ..., "history": ...}, and
behind it the files, one after another. So a study is one request, whose size can be refused before it is read.

Decisions:
- A name holds no more than a number and an ending ("12.nii.gz"). The page makes it so, since patients' names are found
  in names of files, and anything else is refused.
- Members of a zip get such names, too, so that no name in it can lead out of the folder. One that tries is refused all
  the same: it is not a study. Files that belong together (.hdr and .img) keep a common number.
- Bytes are counted as they come, whatever a header said of them.
"""

import json
import lzma
import os
import re
import stat
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path, PurePosixPath

from radfm.readers.natural_order import natural
from radfm.serve.limits import Limits, Refused

_NAME = re.compile(r"\d{1,6}(\.[a-z0-9]{1,8}){0,2}")
_ENDING = re.compile(r"(\.(nii|hdr|img)\.gz|\.[a-z0-9]{1,8})$")
_LONGEST_HEADER = 2**20
_BLOCK = 2**20
_ZIP = b"PK\x03\x04"
_ARCHIVES = (_ZIP, b"PK\x05\x06", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ")
_ARCHIVE_ENDINGS = (".zip", ".7z", ".rar", ".tar", ".tgz", ".bz2", ".xz")
_MANY = "this page takes up to {files:,} files: drop one series, or fewer"
_LARGE = "this page takes up to {megabytes:,} MB: drop one series, or fewer"


async def write_files(stream: AsyncIterator[bytes], folder: Path, limits: Limits) -> dict:
    """Writes the files of a request's body into a folder; returns what its first line says.

    Raises:
        Refused: it is more than the limits allow, or no such body.
    """
    body, line, held = aiter(stream), bytearray(), b""
    while not held:
        block = await anext(body, None)
        if block is None or len(line) > _LONGEST_HEADER:
            raise Refused("what was sent is no study")
        before, held, after = block.partition(b"\n")
        line += before
    header, held = _header(bytes(line), limits), after
    for name, size in header["files"]:
        with open(folder / name, "xb") as file:
            while size:
                if not held and (held := await anext(body, None)) is None:
                    raise Refused("the study ended before all its files had come: send it again")
                file.write(held[:size])
                size, held = max(0, size - len(held)), held[size:]
    if held or await anext(body, None):
        raise Refused("more was sent than the study's files: send it again")
    return header


def _header(line: bytes, limits: Limits) -> dict:
    try:
        header = json.loads(line)
        files = [(str(name), int(size)) for name, size in header["files"]]
        words = [header.get("modality"), header.get("history")]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Refused("what was sent is no study") from None
    names = {name for name, _ in files}
    if not all(_NAME.fullmatch(name) for name in names) or len(names) < len(files):
        raise Refused("what was sent is no study: files are named by numbers")
    if not all(word is None or (isinstance(word, str) and len(word) <= 20_000) for word in words):
        raise Refused("what was sent is no study")
    if not files:
        raise Refused("no file was sent: drop the images of a study")
    if len(files) > limits.files:
        raise Refused(f"{len(files):,} files were sent, and {_MANY.format(files=limits.files)}")
    total = sum(size for _, size in files)
    if min(size for _, size in files) < 0 or total > limits.megabytes * 10**6:
        raise Refused(f"{total / 1e6:,.0f} MB were sent, and {_LARGE.format(megabytes=limits.megabytes)}")
    return {"files": files, "modality": words[0] or None, "history": words[1] or None}


def unpack(folder: Path, limits: Limits) -> None:
    """Replaces every zip file of a folder by what is in it.

    Raises:
        Refused: one is broken or encrypted, holds an archive, a link or a name that leads elsewhere, or all together
            they are more than the limits allow.
    """
    files = sorted(folder.iterdir(), key=lambda file: natural(file.name))
    zips = [file for file in files if _is_zip(file)]
    total = sum(file.stat().st_size for file in files if file not in zips)
    count, number = len(files) - len(zips), max(int(file.name.split(".")[0]) for file in files)
    for file in zips:
        number += 1
        try:
            with zipfile.ZipFile(file) as archive:
                members = sorted(_members(archive), key=lambda member: natural(member.filename))
                count += len(members)
                if count > limits.files:
                    raise Refused(f"the zip file holds {count:,} files, and {_MANY.format(files=limits.files)}")
                numbers: dict[str, int] = {}
                for member in members:
                    name = member.filename.lower()
                    ending = (_ENDING.search(name) or [""])[0]
                    stem = numbers.setdefault(name.removesuffix(ending), number + len(numbers))
                    total = _unpack_one(archive, member, folder / f"{stem}{ending}", total, limits)
                number += len(numbers)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, EOFError, OSError) as error:
            raise Refused("the zip file is damaged: copy it again from where it came from") from error
        finally:
            file.unlink()


def _is_zip(file: Path) -> bool:
    with open(file, "rb") as content:
        start = content.read(4)
    return file.suffix != ".npz" and (start == _ZIP or file.suffix == ".zip")


def _members(archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    for member in archive.infolist():
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", member.filename):
            raise Refused("the zip file holds a name that leads out of it: it is no study")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise Refused("the zip file holds a link: zip the images themselves")
        if member.flag_bits & 1:
            raise Refused("the zip file is encrypted: unpack it and drop what is in it")
        if member.filename.lower().endswith(_ARCHIVE_ENDINGS):
            raise Refused("the zip file holds another archive: unpack it and drop what is in it")
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
        if not member.is_dir() and not hidden:
            yield member


def _unpack_one(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, total: int, limits: Limits) -> int:
    """Returns how many bytes there are now, of all files together."""
    while os.path.lexists(target):  # "a/1.dcm" and "A/1.DCM"
        target = target.with_name(f"0{target.name}")
    with archive.open(member) as source, open(target, "xb") as file:
        start = True
        while block := source.read(_BLOCK):
            if start and block.startswith(_ARCHIVES) and target.suffix != ".npz":
                raise Refused("the zip file holds another archive: unpack it and drop what is in it")
            start, total = False, total + len(block)
            if total > limits.megabytes * 10**6:
                raise Refused(f"the zip file unpacks to more than that: {_LARGE.format(megabytes=limits.megabytes)}")
            file.write(block)
    return total
