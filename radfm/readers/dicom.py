"""DICOM studies: files in any order and number -> the scans of one patient.

Decisions:
- Headers first, all of them; then grouping (`dicom_series`), then the pictures, one scan at a time.
- A case is one patient's. Files with the same PatientID or the same study are of one patient, files with neither join
  the others. Of several patients, the one with the most images is read.
- A file is a copy of another if SOPInstanceUID, instance number, frames and position agree; the first by name is read.
- A DICOMDIR given alone is read through its records; in a folder, it only tells which files are missing.
- Key images (a KO object) mark the key slice of the scans they point to.
- `modality` given by the caller stands for headers that name none: OT, SC, and damaged ones.
"""

import hmac
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from pathlib import Path, PurePosixPath

from pydicom import config

from radfm.cases import Scan
from radfm.progress import Progress
from radfm.readers.dicom_files import all_numbers, has, items, number, text, texts
from radfm.readers.dicom_headers import (
    Instance,
    body_part_of,
    check_image,
    date_of,
    frames_of,
    modality_of,
    read_header,
    view_of,
)
from radfm.readers.dicom_pixels import decodable, read_pixels
from radfm.readers.dicom_series import Stack, stacks_of
from radfm.readers.dicom_terms import KEY_OBJECTS
from radfm.readers.errors import quiet_libraries, reason_for
from radfm.readers.natural_order import natural
from radfm.readers.orientation import lay_out
from radfm.readers.pixels import tidy

_KIND = "a DICOM image"


@dataclass
class Study:
    """What was read: scans, (file, reason) of the rest, the patient's pseudonym, and how many files hold the scans."""

    scans: list[Scan] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    patient_id: str | None = None
    images: int = 0


def read_dicom(
    files: list[tuple[str, Path]], modality: str | None, patient_key: bytes | None, progress: Progress
) -> Study:
    """Arguments as for `read_case`; files: (the name shown, the path)."""
    validation = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.IGNORE  # a value that breaks a rule is still a value
    try:
        with quiet_libraries():
            return _read(files, modality, patient_key, progress)
    finally:
        config.settings.reading_validation_mode = validation


def _read(files, modality, patient_key, progress) -> Study:
    study = Study()
    headers = _headers(files, study)
    key_images = {reference for header in headers for reference in _key_images(header)}
    images = _one_patient(_once(_images(headers, study), study), study)
    study.images = len(images)
    if patient_key is not None:
        study.patient_id = _pseudonym(images, patient_key)
    stacks = sorted(stacks_of([frame for image in images for frame in frames_of(image)]), key=_order)
    open_dataset = lru_cache(maxsize=1)(decodable)  # one multi-frame file may hold several stacks
    failed: dict[Instance, BaseException] = {}
    decoded: set[Instance] = set()
    dates = []
    for stack in stacks:

        def done(instance: Instance) -> None:
            decoded.add(instance)
            progress(len(decoded), study.images)

        pixels, stack.frames = read_pixels(stack.frames, open_dataset, failed, done)
        if pixels is None:
            continue
        try:
            scan = _scan(stack, pixels, modality, key_images)
        except Exception as error:
            failed.update((frame.instance, error) for frame in stack.frames)
            continue
        study.scans.append(scan)
        study.skipped += [(scan.source, reason) for _, reason in stack.left_out]
        dates.append(date_of(stack.frames[0].instance.header))
    newest = max((day for day in dates if day), default=None)
    for scan, day in zip(study.scans, dates, strict=True):
        scan.days = float((newest - day).days) if day else None
    study.skipped += [(instance.name, reason_for(error, _KIND)) for instance, error in failed.items()]
    return study


def _headers(files: list[tuple[str, Path]], study: Study) -> list[Instance]:
    """The headers of all files, and of those that a DICOMDIR names; directories themselves are left out."""
    headers, directories = [], []
    for name, path in files:
        try:
            header = read_header(name, path)
        except Exception as error:
            study.skipped.append((name, reason_for(error, _KIND)))
            continue
        (directories if has(header.header, "DirectoryRecordSequence") else headers).append(header)
    known = {path.resolve() for _, path in files} if directories else set()
    for directory in directories:
        named, missing = _named_files(directory)
        if not named and not missing:
            study.skipped.append((directory.name, "is a DICOMDIR that names no files: give the folder it lies in"))
        study.skipped += [(file, "is named in the DICOMDIR but is not there: copy the whole disc") for file in missing]
        for name, path in named:
            if path.resolve() in known:
                continue
            known.add(path.resolve())
            try:
                headers.append(read_header(name, path))
            except Exception as error:
                study.skipped.append((name, reason_for(error, _KIND)))
    return headers


def _named_files(directory: Instance) -> tuple[list[tuple[str, Path]], list[str]]:
    """(name, path) of the files that a DICOMDIR names and that are there, and the names of those that are not."""
    found, missing = {}, []
    for record in items(directory.header, "DirectoryRecordSequence"):
        parts = texts(record, "ReferencedFileID")
        if not parts or any(part in ("", ".", "..") or "/" in part or "\\" in part for part in parts):
            continue  # a record without a file, or one that would lead out of the folder
        name = str(PurePosixPath(directory.name).parent / PurePosixPath(*parts))
        path = _on_disc(directory.path.parent, parts)
        if path is None:
            missing.append(name)
        else:
            found[name] = path
    return list(found.items()), missing


def _on_disc(folder: Path, parts: list[str]) -> Path | None:
    """A DICOMDIR names files in capitals; a copied disc may have them in small letters."""
    for part in parts:
        path = folder / part
        if not path.exists():
            alike = (
                [entry for entry in folder.iterdir() if entry.name.lower() == part.lower()] if folder.is_dir() else []
            )
            if not alike:
                return None
            path = alike[0]
        folder = path
    return folder if folder.is_file() else None


def _images(headers: list[Instance], study: Study) -> list[Instance]:
    images = []
    for instance in headers:
        try:
            check_image(instance)
            images.append(instance)
        except Exception as error:
            study.skipped.append((instance.name, reason_for(error, _KIND)))
    return images


def _once(images: list[Instance], study: Study) -> list[Instance]:
    """Each picture once."""
    seen: dict[tuple, Instance] = {}
    for image in sorted(images, key=lambda image: natural(image.name)):
        words = (text(image.header, keyword) for keyword in ("SOPInstanceUID", "SeriesInstanceUID"))
        places = ("InstanceNumber", "ImagePositionPatient", "NumberOfFrames")
        identity = *words, *(tuple(all_numbers(image.header, key)) or text(image.header, key) for key in places)
        first = seen.setdefault(identity if identity[0] else (image.name,), image)
        if first is not image:
            study.skipped.append((image.name, f"is a copy of {first.name}: read once"))
    return list(seen.values())


def _one_patient(images: list[Instance], study: Study) -> list[Instance]:
    """The images of the patient with the most of them."""
    group_of: dict[tuple[str, str], set] = {}  # patient or study -> all patients and studies known to be of one person
    for image in images:
        marks = {(kind, text(image.header, kind)) for kind in ("PatientID", "StudyInstanceUID")}
        marks = {mark for mark in marks if mark[1]}
        person = set().union(marks, *(group_of.get(mark, ()) for mark in marks))
        group_of.update((mark, person) for mark in person)
    people: dict[int, list[Instance]] = {}
    for image in images:
        mark = next((m for k in ("PatientID", "StudyInstanceUID") if (m := (k, text(image.header, k)))[1]), None)
        person = group_of.get(mark, set())
        if any(kind == "PatientID" for kind, _ in person):
            people.setdefault(id(person), []).append(image)
    if len(people) < 2:
        return images
    kept = max(people.values(), key=len)
    others = {image for person in people.values() if person is not kept for image in person}
    reason = (
        f"belongs to another patient than the other {len(images) - len(others)} files: read it as a case of its own"
    )
    study.skipped += [(image.name, reason) for image in images if image in others]
    return [image for image in images if image not in others]


def _pseudonym(images: list[Instance], key: bytes) -> str | None:
    numbers = Counter(sorted(filter(None, (text(image.header, "PatientID") for image in images))))
    return hmac.new(key, numbers.most_common(1)[0][0].encode(), "sha256").hexdigest()[:16] if numbers else None


def _key_images(instance: Instance) -> list[str]:
    """SOPInstanceUIDs that a Key Object Selection points to."""
    if text(instance.header, "SOPClassUID") != KEY_OBJECTS:
        return []
    return [
        text(image, "ReferencedSOPInstanceUID")
        for study in items(instance.header, "CurrentRequestedProcedureEvidenceSequence")
        for series in items(study, "ReferencedSeriesSequence")
        for image in items(series, "ReferencedSOPSequence")
    ]


def _order(stack: Stack) -> tuple:
    header = stack.frames[0].instance.header
    return date_of(header) or date.min, number(header, "SeriesNumber") or 0, natural(stack.frames[0].instance.name)


def _scan(stack: Stack, pixels, modality: str | None, key_images: set[str]) -> Scan:
    instances = list(dict.fromkeys(frame.instance for frame in stack.frames))
    header = instances[0].header
    own_modality = modality_of(header)
    plane, spacing_mm, affine = view_of(header), stack.spacing_mm, None
    if stack.axes is not None:
        laid_out = lay_out(pixels, stack.axes, 0, stack.origin)
        pixels, plane, affine = laid_out.pixels, laid_out.plane, laid_out.affine
        spacing_mm = spacing_mm and (spacing_mm[0], *laid_out.spacing_mm[1:])
    keys = [i for i, frame in enumerate(stack.frames) if text(frame.instance.header, "SOPInstanceUID") in key_images]
    return Scan(
        tidy(pixels),
        modality=own_modality.name if own_modality else modality,
        plane=plane,
        spacing_mm=spacing_mm,
        body_part=body_part_of(header),
        key_slice=keys[len(keys) // 2] if keys and len(instances) == len(stack.frames) else None,
        source=_source([instance.name for instance in instances]),
        affine=affine,
    )


def _source(names: list[str]) -> str:
    """The file, or the folder that holds all of them."""
    if len(names) == 1:
        return names[0]
    folders = [PurePosixPath(name).parent.parts for name in names]
    shared = [parts[0] for parts in zip(*folders, strict=False) if len(set(parts)) == 1]
    return "/".join(shared) or "."
