"""Reads the files of one patient, of any supported format, into a `Case`.

Decisions:
- The format of a file is recognised by its content, whatever its name says.
- A damaged file does not prevent reading the others. It is listed in `Case.skipped`, with the reason and a remedy.
- Hidden files, and those that Windows and macOS create, are ignored. Every other file is read or listed.
- Nothing that identifies the patient leaves the reader: no name, number, birth date or free text of a header. The names
  of files and folders are shown; bytes in them that are no UTF-8, and control characters, as replacement characters.
- A picture that is there twice is read once, so that a copied file changes no answer.
- What a scan holds is checked (`content_checks`); what a model would read as nonsense is said in `Scan.warnings`.
- Only DICOM has dates, so `days` is None for all other formats. DICOM series come first, by date and number; the other
  files follow by name.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from radfm.cases import Case, copy_among
from radfm.modalities import modality_name
from radfm.presentation import shown
from radfm.progress import Progress, no_progress
from radfm.readers.content_checks import content_warnings
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
    keep_copies: bool = False,
    progress: Progress = no_progress,
) -> Case:
    """Read all scans of one patient.

    Args:
        path: a folder (with all below it), a file, a DICOMDIR, or a list of them.
        modality: of the scans whose header states none: pictures, NIfTI, arrays, screen captures. Any name or synonym
            of modalities.csv.
        history, disorders, case_id: stored in the case unchanged.
        patient_key: a secret, with which `patient_id` becomes a pseudonym: the first 16 hexadecimal digits of the
            HMAC-SHA256 of the DICOM PatientID. A patient has the same pseudonym in every case that is read with the
            same key. Without a key, `patient_id` is None.
        keep_copies: whether a picture, volume or array that is there twice is two scans, as slices of a volume may be.
            Copies of DICOM files are never read twice.
        progress: called after each image file with the number of files done and of all image files.
    Returns:
        The case. Files that were not read are in `skipped`; where none could be read, the case has no scans.
    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: an empty list or folder, an unknown modality, an empty key.
        TypeError: an argument of another type.
    """
    if modality is not None:
        modality = modality_name(_checked("modality", modality, str))
    if isinstance(disorders, str):
        raise TypeError(f"disorders is a list of names, got the text {disorders!r}: put it in a list")
    if patient_key is not None:
        patient_key = _checked("patient_key", patient_key, (str, bytes))
        if not patient_key:
            raise ValueError("patient_key is empty, so the pseudonym could be reversed by anyone: give a secret")
        patient_key = patient_key.encode() if isinstance(patient_key, str) else patient_key
    case = Case(
        history=_checked("history", history, (str, type(None))),
        disorders=[_checked("a disorder", name, str) for name in disorders],
        case_id=case_id,
    )
    paths = _paths(path)
    files = _files(paths, case.skipped)
    within = [top for top in paths if os.path.isdir(top)]
    _read_files(files, within, case, modality, patient_key, keep_copies, progress)
    for scan in case.scans:
        scan.warnings += content_warnings(scan)
    return case


def _checked(what: str, value, types):
    if not isinstance(value, types):
        raise TypeError(f"{what} cannot be of type {type(value).__name__}")
    return value


def _paths(path) -> list[Path]:
    if isinstance(path, (str, os.PathLike)):
        paths = [Path(path)]
    elif isinstance(path, Iterable) and not isinstance(path, (bytes, dict)):
        paths = [Path(_checked("a path", one, (str, os.PathLike))) for one in path]
    else:
        raise TypeError(f"path is a path or a list of paths, got {type(path).__name__}")
    if not paths:
        raise ValueError("got an empty list of paths: give at least one file or folder")
    return paths


def _files(paths: list[Path], skipped: list[tuple[str, str]]) -> list[tuple[str, Path]]:
    """(displayed name, path) of every file, in natural order. Unreadable folders and repeated files go to `skipped`."""
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(top)) for top in paths])
    files, first_name = [], {}
    for top in paths:
        if not os.path.lexists(top):
            raise FileNotFoundError(f"no such file or folder: {shown(str(top))}")
        if os.path.isdir(top):
            prefix = "" if len(paths) == 1 else f"{os.path.relpath(top, shared)}/"
            named = [(prefix + file.relative_to(top).as_posix(), file) for file in _walk(top, top, prefix, skipped)]
        else:
            named = [(os.path.relpath(top, shared), top)]
        for name, file in sorted(named, key=lambda pair: natural(pair[0])):
            name = shown(name)
            first = first_name.setdefault(_identity(file), name)
            if first is name:
                files.append((name, file))
            else:
                skipped.append((name, f"is the same file as {first}: read once"))
    if not files and not skipped:
        raise ValueError(f"{shown(', '.join(map(str, paths)))} holds no files: give the folder the images are in")
    return files


def _identity(file: Path) -> tuple[int, int] | str:
    """A value that is equal for two names of one file, such as links."""
    try:
        status = os.stat(file)
    except OSError:  # a broken link, or a folder without permission: the error is listed when the file is opened
        return os.path.abspath(file)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(file)


def _walk(folder: Path, top: Path, prefix: str, skipped: list, above: tuple = ()) -> Iterator[Path]:
    """All files below a folder. Links are followed, except into a folder that contains the link.

    Args:
        prefix: of the displayed names.
        above: identities of the folders that contain this one.
    """
    name = shown(prefix + folder.relative_to(top).as_posix())
    try:
        status = folder.stat()
        entries = sorted(folder.iterdir())
    except OSError:
        skipped.append((name, "is a folder that may not be opened: ask for permission to read it"))
        return
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        skipped.append((name, "is a link back to a folder above it: nothing is lost"))
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_FILES:
            continue
        if os.path.isdir(entry):  # Path.is_dir may raise
            yield from _walk(entry, top, prefix, skipped, (*above, identity))
        else:
            yield entry


_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "autorun.inf", "lost+found"}


def _read_files(
    files: list[tuple[str, Path]],
    within: list[Path],
    case: Case,
    modality: str | None,
    patient_key: bytes | None,
    keep_copies: bool,
    progress: Progress,
) -> None:
    """Read all files into the case: DICOM files together, all others one by one."""
    formats: dict[str, list[tuple[str, Path]]] = {}
    pixels_of_others = {os.path.realpath(partner) for _, path in files for partner in pixel_files(path)}
    for name, path in files:
        if pixels_of_others and os.path.realpath(path) in pixels_of_others:
            continue
        try:
            formats.setdefault(format_of(path), []).append((name, path))
        except FileNotFoundError:
            link = os.path.islink(path)
            case.skipped.append((name, _GONE_LINK if link else "was there and is gone: copy it again"))
        except (OSError, Unreadable) as error:
            case.skipped.append((name, reason_for(error, "an image")))
    dicom = formats.pop("DICOM", [])
    others = sorted((natural(name), name, path, format) for format in formats for name, path in formats[format])
    images = 0
    if dicom:
        from radfm.readers.dicom import read_dicom

        study = read_dicom(dicom, modality, patient_key, lambda done, of: progress(done, of + len(others)))
        case.scans, case.patient_id, images = study.scans, study.patient_id, study.images
        case.skipped += study.skipped
    for done, (_, name, path, format) in enumerate(others, images + 1):
        _read_file(name, path, format, within, case, modality, keep_copies)
        progress(done, images + len(others))


_GONE_LINK = "is a link to a file that is not there: copy the file itself"


def _read_file(
    name: str, path: Path, format: str, within: list[Path], case: Case, modality: str | None, keep_copies: bool
) -> None:
    """Read a file that holds whole scans, of any format but DICOM."""
    try:
        scans, left_out = read_scans(path, format, within)
    except Exception as error:  # decoders raise any exception on damaged files; the reason is listed
        case.skipped.append((name, reason_for(error, KINDS[format])))
        return
    for scan in scans:
        scan.source = name + shown(scan.source)
        scan.modality = scan.modality or modality
        if keep_copies or (first := copy_among(scan, case.scans)) is None:
            case.scans.append(scan)
        else:
            left_out.append((scan.source.removeprefix(name), f"is a copy of {first.source}: read once"))
    case.skipped += [(name + shown(part), reason) for part, reason in left_out]
