"""DICOMDIR, the table of contents of a disc, and the DIRFILEs that some archives write into each of its folders.

Decisions:
- Of a directory that is given alone, the files that it names are read. In a folder it only shows which are missing.
- Names are relative to the folder of the directory, or to a folder above it that is read too: DIRFILEs name files from
  the top of the disc. Case is ignored, as a copied disc may have small letters.
- A file is missing only where no file that was read has its identifier or its name, because a copied disc may have
  other names.
- No name leads out of the folder that is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from radfm.presentation import shown
from radfm.readers.dicom_files import has, items, text, texts
from radfm.readers.dicom_headers import Instance, read_header
from radfm.readers.errors import reason_for

_MISSING = "is named in the DICOMDIR, and no file with its name or identifier is there: copy the whole disc"


@dataclass(frozen=True)
class _Record:
    """A file that a directory names: the parts of its path, and its SOPInstanceUID, "" where the record has none."""

    parts: tuple[str, ...]
    uid: str


def is_directory(instance: Instance) -> bool:
    """Whether a DICOM file is a DICOMDIR or DIRFILE."""
    return has(instance.header, "DirectoryRecordSequence")


def named_files(
    directories: list[Instance], images: list[Instance], paths: list[Path]
) -> tuple[list[Instance], list[tuple[str, str]]]:
    """The files that directories name and that are not among the files that were read.

    Args:
        directories, images: the DICOM files that were read.
        paths: of all files that were read.
    Returns: their headers, and (name, reason) of the files that are missing or damaged.
    """
    found: list[Instance] = []
    missing: dict[_Record, str] = {}
    skipped: list[tuple[str, str]] = []
    uids = {text(image.header, "SOPInstanceUID") for image in images} - {""}
    known = {path.resolve() for path in paths}
    queue = list(directories)
    while queue:
        directory = queue.pop(0)
        records = list(_records(directory))
        if not records:
            skipped.append((directory.name, "is a DICOMDIR that names no files: give the folder it lies in"))
        for record in records:
            if record.uid in uids:
                continue
            name, path = _find(record, directory)
            if path is None:
                missing.setdefault(record, name)
            elif path.resolve() not in known:
                known.add(path.resolve())
                try:
                    header = read_header(name, path)
                except Exception as error:
                    skipped.append((name, reason_for(error, "a DICOM image")))
                else:
                    (queue if is_directory(header) else found).append(header)
                    uids |= {text(header.header, "SOPInstanceUID")} - {""}
    skipped += [(name, _MISSING) for record, name in missing.items() if record.uid not in uids]
    return found, skipped


def _records(directory: Instance) -> Iterator[_Record]:
    """The files that a directory names, without paths that lead out of a folder."""
    for record in items(directory.header, "DirectoryRecordSequence"):
        parts = texts(record, "ReferencedFileID")
        if parts and not any(part in ("", ".", "..") or set(part) & set("/\\\0") for part in parts):
            yield _Record(tuple(parts), text(record, "ReferencedSOPInstanceUIDInFile"))


def _find(record: _Record, directory: Instance) -> tuple[str, Path | None]:
    """The displayed name and the path of a file: below the directory's folder, or a folder above that is read too."""
    folder, name = directory.path.parent, PurePosixPath(directory.name).parent
    below = shown(str(name / PurePosixPath(*record.parts)))
    for _ in range(len(name.parts) + 1):  # the displayed name begins in the folder that is read
        path = _ignoring_case(folder, record.parts)
        if path is not None:
            return shown(str(name / PurePosixPath(*record.parts))), path
        folder, name = folder.parent, name.parent
    return below, None


def _ignoring_case(folder: Path, parts: tuple[str, ...]) -> Path | None:
    """The file at a path below a folder."""
    for part in parts:
        path = folder / part
        if not path.exists():
            entries = folder.iterdir() if folder.is_dir() else ()
            match = next((entry for entry in entries if entry.name.lower() == part.lower()), None)
            if match is None:
                return None
            path = match
        folder = path
    return folder if folder.is_file() else None
