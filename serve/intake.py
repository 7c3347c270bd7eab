"""Receiving a study: the files that the browser sends are written into a folder, with numbers as names.

The body of the request is one line of JSON, {"files": [[name, bytes], ...], "modality": ..., "history": ..., "names":
{header: {name in it: name}}}, followed by the files, one after another. A study is therefore one request, whose size is
checked before it is read.

Decisions:
- A file name is a number and an extension ("12.nii.gz"). The page assigns it, because file names may contain the names
  of patients; other names are refused.
- Members of a zip file get such names too, so that no name can point outside of the folder. A zip file with such a
  name is refused all the same, because it is not a study. Files that belong together (.hdr and .img) share a number.
- A header that names the file of its pixels (.mhd, .nhdr) is rewritten to name it by its number. For this the page
  sends the names that stand in such headers, and no others.
- Bytes are counted as they arrive, whatever a header says.
"""

import json
import lzma
import os
import posixpath
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path, PurePosixPath

from radfm import examples
from radfm.readers.natural_order import natural
from radfm.readers.nrrd import pixel_file_names, rename_pixel_files
from radfm.serve.limits import TOO_LARGE, Limits, Refused

_NAME = re.compile(r"\d{1,6}(\.[a-z0-9]{1,8}){0,2}")
_EXTENSION = re.compile(r"(\.(nii|hdr|img)\.gz|\.[a-z0-9]{1,8})$")
_HEADERS = (".mhd", ".nhdr")  # of volumes whose pixels are in another file
_LONGEST_HEADER = 2**20  # bytes
_LONGEST_TEXT = 20_000  # characters
_BLOCK = 2**20  # bytes
_ZIP = b"PK\x03\x04"
_ARCHIVES = (_ZIP, b"PK\x05\x06", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ")
_ARCHIVE_EXTENSIONS = (".zip", ".7z", ".rar", ".tar", ".tgz", ".bz2", ".xz")
_NO_STUDY = "the request is not a study"
_NESTED = "the zip file contains another archive: unpack it and drop its files"


async def write_files(stream: AsyncIterator[bytes], folder: Path, limits: Limits) -> dict:
    """Writes the files of a request's body into a folder; returns the header, the first line of the body.

    Raises:
        Refused: The body is larger than the limits allow, or is not a study.
    """
    body, line, block = aiter(stream), bytearray(), b""
    while b"\n" not in block:
        line += block
        if len(line) > _LONGEST_HEADER or (following := await anext(body, None)) is None:
            raise Refused(_NO_STUDY)
        block = following
    end, _, rest = block.partition(b"\n")
    header = _parse_header(bytes(line + end), limits)
    for name, size in header["files"]:
        with open(folder / name, "xb") as file:
            while size:
                if not rest:
                    if (following := await anext(body, None)) is None:
                        raise Refused("the study ended before all its files had arrived: send it again")
                    rest = following
                file.write(rest[:size])
                size, rest = max(0, size - len(rest)), rest[size:]
    if rest or await anext(body, b""):
        raise Refused("the request contains more than the files of the study: send it again")
    return header


def write_example(name: str, folder: Path) -> dict:
    """Writes the files of an example study into a folder as if a browser had sent them; returns their header.

    Raises:
        Refused: There is no example study of this name.
    """
    if name not in examples.names():
        raise Refused("there is no such example study")
    files = sorted(examples.folder(name).iterdir(), key=lambda file: natural(file.name))
    numbered = {f"{number}{file.suffix}": file for number, file in enumerate(files, 1)}
    for number, file in numbered.items():
        shutil.copyfile(file, folder / number)
    sizes = [(number, file.stat().st_size) for number, file in numbered.items()]
    return {"files": sizes, "modality": None, "history": None, "names": {}, "example": name}


def _parse_header(line: bytes, limits: Limits) -> dict:
    try:
        header = json.loads(line)
        files = [(str(name), int(size)) for name, size in header["files"]]
        texts = [header.get("modality"), header.get("history")]
        pixels = {str(file): dict(of_file) for file, of_file in (header.get("names") or {}).items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise Refused(_NO_STUDY) from None
    names = {name for name, _ in files}
    if not all(_NAME.fullmatch(name) for name in names) or len(names) < len(files):
        raise Refused(f"{_NO_STUDY}: file names must be numbers")
    if not _are_pixel_names(pixels, names):
        raise Refused(_NO_STUDY)
    if not all(text is None or (isinstance(text, str) and len(text) <= _LONGEST_TEXT) for text in texts):
        raise Refused(_NO_STUDY)
    if not files:
        raise Refused("the study contains no file: drop its images")
    if len(files) > limits.files:
        raise _too_many_files(f"the study has {len(files):,} files", limits)
    total = sum(size for _, size in files)
    if min(size for _, size in files) < 0:
        raise Refused(_NO_STUDY)
    if total > limits.megabytes * 10**6:
        raise _too_large(f"the study has {total / 1e6:,.0f} MB", limits)
    modality, history = (text and text.encode("utf-8", "replace").decode() for text in texts)  # no lone surrogates
    return {"files": files, "modality": modality or None, "history": history or None, "names": pixels}


def _are_pixel_names(pixels: dict[str, dict], names: set[str]) -> bool:
    """Whether these are names in headers -> names of files, of headers that are among the files."""
    numbers = [number for of_file in pixels.values() for number in of_file.values()]
    return names >= pixels.keys() and all(isinstance(number, str) and number in names for number in numbers)


def unpack(folder: Path, limits: Limits) -> None:
    """Replaces every zip file of a folder by its members.

    Raises:
        Refused: A zip file is damaged or encrypted, or contains an archive, a link or a name that points outside of the
            folder; or all files together exceed the limits.
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
                    raise _too_many_files(f"the zip file contains {count:,} files", limits)
                numbers: dict[str, int] = {}  # stem -> the number of its files
                written: dict[str, Path] = {}  # name in the archive -> file
                for member in members:
                    name = member.filename.lower()
                    extension = (_EXTENSION.search(name) or [""])[0]
                    stem = numbers.setdefault(name.removesuffix(extension), number + len(numbers))
                    total, written[name] = _extract(archive, member, folder / f"{stem}{extension}", total, limits)
                _point_to_pixels(written)
                number += len(numbers)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, EOFError, OSError) as error:
            raise Refused("the zip file is damaged: copy it again from its source") from error
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
            raise Refused("the zip file contains a name that points outside of it: it is not a study")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise Refused("the zip file contains a link: zip the images themselves")
        if member.flag_bits & 1:
            raise Refused("the zip file is encrypted: unpack it and drop its files")
        if member.filename.lower().endswith(_ARCHIVE_EXTENSIONS):
            raise Refused(_NESTED)
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
        if not member.is_dir() and not hidden:
            yield member


def _point_to_pixels(written: dict[str, Path]) -> None:
    """Lets headers name the files of their pixels by their numbers. written: name in the archive -> file."""
    for member, file in written.items():
        if file.suffix not in _HEADERS:
            continue
        places = {}
        for name in pixel_file_names(file):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(member), name.replace("\\", "/").lower()))
            if path in written:
                places[name] = written[path].name
        rename_pixel_files(file, places)


def _extract(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, total: int, limits: Limits
) -> tuple[int, Path]:
    """Returns the bytes of all files so far, given those before this member, and the file."""
    while os.path.lexists(target):  # "a/1.dcm" and "A/1.DCM"
        target = target.with_name(f"0{target.name}")
    with archive.open(member) as source, open(target, "xb") as file:
        start = True
        while block := source.read(_BLOCK):
            if start and block.startswith(_ARCHIVES) and target.suffix != ".npz":
                raise Refused(_NESTED)
            start, total = False, total + len(block)
            if total > limits.megabytes * 10**6:
                raise _too_large("the unpacked zip file is larger", limits)
            file.write(block)
    return total, target


def _too_many_files(problem: str, limits: Limits) -> Refused:
    return Refused(f"{problem}, and this page accepts up to {limits.files:,}: drop one series, or fewer", TOO_LARGE)


def _too_large(problem: str, limits: Limits) -> Refused:
    return Refused(
        f"{problem}, and this page accepts up to {limits.megabytes:,} MB: drop one series, or fewer", TOO_LARGE
    )
