"""A case: all scans of one patient's question, read from whatever files hold them.

Decisions:
- What a file is, its first bytes say; its name decides only where the bytes cannot (NIfTI, NRRD, MetaImage, NPZ).
- One bad file never costs the others: it is listed in `Case.skipped`, with the reason and what to do.
- Hidden files, and those that Windows and macOS leave behind, are passed over. Every other file is read or listed.
- Nothing that names the patient leaves the reader: no name, number, birth date, nor free text of a header. Names of
  files and folders are shown as they are.
- DICOM alone tells dates: `days` is None elsewhere. Other order: DICOM series by date and number, then files by name.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from radfm.cases import Case
from radfm.modalities import modality_name
from radfm.progress import Progress, no_progress
from radfm.readers.errors import Unreadable, reason_for
from radfm.readers.formats import KINDS, format_of, pixel_files, read_scans
from radfm.readers.natural_order import natural


def read_case(
    path: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    modality: str | None = None,
    history: str | None = None,
    disorders: Iterable[str] = (),
    case_id: str | None = None,
    patient_key: str | bytes | None = None,
    progress: Progress = no_progress,
) -> Case:
    """Read all scans of one patient.

    Args:
        path: a folder (with all below it), a file, a DICOMDIR, or a list of them.
        modality: what the scans are where no header says: pictures, NIfTI, arrays, screen captures.
        history, disorders, case_id: kept as given.
        patient_key: a secret. With it, `patient_id` is a pseudonym, the first 16 hex digits of HMAC-SHA256 of the DICOM
            PatientID: the same patient has the same one in every case read with the key. Without it, None.
        progress: called with the number of image files done, and of all that are to be read, as reading goes on.
    Returns:
        The case. What was not read is in `skipped`; where nothing could be read, it has no scans.
    Raises:
        FileNotFoundError: where a path is not there.
        ValueError: for an empty list or folder, and a modality that is none.
        TypeError: for arguments of another type.
    """
    if modality is not None:
        modality = modality_name(_checked("modality", modality, str))
    if isinstance(disorders, str):
        raise TypeError(f"disorders is a list of names, got the text {disorders!r}: put it in a list")
    if patient_key is not None:
        patient_key = _checked("patient_key", patient_key, (str, bytes))
        if not patient_key:
            raise ValueError("patient_key is empty, so anybody could undo the pseudonym: give a secret")
        patient_key = patient_key.encode() if isinstance(patient_key, str) else patient_key
    case = Case(
        history=_checked("history", history, (str, type(None))),
        disorders=[_checked("a disorder", name, str) for name in disorders],
        case_id=case_id,
    )
    files = _files(path, case.skipped)
    _read_files(files, case, modality, patient_key, progress)
    return case


def _checked(what: str, value, types):
    if not isinstance(value, types):
        raise TypeError(f"{what} cannot be of type {type(value).__name__}")
    return value


def _files(path, skipped: list[tuple[str, str]]) -> list[tuple[str, Path]]:
    """(the name shown, the path) of every file, in natural order. What cannot be a file of the case goes to skipped."""
    if isinstance(path, (str, os.PathLike)):
        given = [Path(path)]
    elif isinstance(path, Iterable) and not isinstance(path, (bytes, dict)):
        given = [Path(_checked("a path", one, (str, os.PathLike))) for one in path]
    else:
        raise TypeError(f"path is a path or a list of paths, got {type(path).__name__}")
    if not given:
        raise ValueError("got an empty list of paths: give at least one file or folder")
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(top)) for top in given])
    files, seen = [], {}
    for top in given:
        if not os.path.lexists(top):
            raise FileNotFoundError(f"no such file or folder: {top}")
        if os.path.isdir(top):
            prefix = "" if len(given) == 1 else f"{os.path.relpath(top, shared)}/"
            found = [(prefix + file.relative_to(top).as_posix(), file) for file in _walk(top, top, prefix, skipped)]
        else:
            found = [(os.path.relpath(top, shared), top)]
        for name, file in sorted(found, key=lambda pair: natural(pair[0])):
            first = seen.setdefault(_identity(file), name)
            if first is name:
                files.append((name, file))
            else:
                skipped.append((name, f"is the same file as {first}: read once"))
    if not files and not skipped:
        raise ValueError(f"{', '.join(map(str, given))} holds no files: give the folder the images are in")
    return files


def _identity(file: Path) -> tuple[int, int] | str:
    """The same for two names of one file."""
    try:
        status = os.stat(file)
    except OSError:  # a link to nothing, or a folder that may not be entered: told when it is opened
        return os.path.abspath(file)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(file)


def _walk(folder: Path, top: Path, prefix: str, skipped: list, above: tuple = ()) -> Iterator[Path]:
    """All files below a folder. Links are followed, but never into a folder that is being walked already."""
    name = prefix + folder.relative_to(top).as_posix()
    try:
        status = folder.stat()
        entries = sorted(folder.iterdir())
    except OSError:
        skipped.append((name, "is a folder that may not be opened: ask for permission to read it"))
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        skipped.append((name, "is a link back to a folder above it: nothing is lost"))
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FILES:
            continue
        if os.path.isdir(entry):  # False, where Path.is_dir may raise
            yield from _walk(entry, top, prefix, skipped, (*above, here))
        else:
            yield entry


_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "autorun.inf", "lost+found"}


def _read_files(files, case: Case, modality: str | None, patient_key: bytes | None, progress) -> None:
    formats: dict[str, list[tuple[str, Path]]] = {}
    read_along = {os.path.realpath(partner) for _, path in files for partner in pixel_files(path)}
    for name, path in files:
        if read_along and os.path.realpath(path) in read_along:
            continue
        try:
            formats.setdefault(format_of(path), []).append((name, path))
        except (OSError, Unreadable) as error:
            case.skipped.append((name, reason_for(error, "an image")))
    dicom = formats.pop("DICOM", [])
    others = sorted((natural(name), name, path, format) for format in formats for name, path in formats[format])
    pictures = 0
    if dicom:
        from radfm.readers.dicom import read_dicom

        study = read_dicom(dicom, modality, patient_key, lambda done, of: progress(done, of + len(others)))
        case.scans, case.patient_id, pictures = study.scans, study.patient_id, study.images
        case.skipped += study.skipped
    for done, (_, name, path, format) in enumerate(others, pictures + 1):
        _read_alone(name, path, format, case, modality)
        progress(done, pictures + len(others))


def _read_alone(name: str, path: Path, format: str, case: Case, modality: str | None) -> None:
    """Files that hold whole scans: all but DICOM."""
    try:
        scans, left_out = read_scans(path, format)
    except Exception as error:  # decoders raise anything on damaged files; the reason is told
        case.skipped.append((name, reason_for(error, KINDS[format])))
        return
    for scan in scans:
        scan.source = name + scan.source
        scan.modality = scan.modality or modality
    case.scans += scans
    case.skipped += [(name + part, reason) for part, reason in left_out]
