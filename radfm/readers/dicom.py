"""Reads DICOM files, in any order and number, into the scans of one patient.

Decisions:
- All headers are read first, then frames are grouped (`dicom_series`), then pixels are decoded, one scan at a time.
- A case is of one patient. Files with the same PatientID or the same study belong to one patient; files with neither
  join the others. Of several patients, the one with the most images is read.
- Of files that hold the same picture, the first by name is read (`dicom_copies`).
- A Key Object Selection (KO) marks the key slice of the scans that it refers to.
- The caller's `modality` is used where the header states none: OT, SC, and damaged headers.
"""

import hmac
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from pydicom import config

from radfm.cases import Scan
from radfm.progress import Progress
from radfm.readers.dicom_copies import without_copies
from radfm.readers.dicom_files import items, number, text
from radfm.readers.dicom_frames import Frame, aspect_of, frames_of
from radfm.readers.dicom_headers import Instance, body_part_of, check_image, date_of, modality_of, read_header, view_of
from radfm.readers.dicom_pixels import decodable, read_pixels
from radfm.readers.dicom_series import Stack, stacks_of, without_frames
from radfm.readers.dicom_terms import KEY_OBJECTS
from radfm.readers.dicomdir import is_directory, named_files
from radfm.readers.errors import quiet_libraries, reason_for
from radfm.readers.image_types import image_type_warnings, warn_of_localisers
from radfm.readers.natural_order import natural
from radfm.readers.orientation import lay_out
from radfm.readers.pixels import square, tidy

_KIND = "a DICOM image"


@dataclass
class Study:
    """The result of reading.

    Attributes:
        scans: in the order of date, series number and name.
        skipped: (file, reason) of all files that are in no scan.
        patient_id: the patient's pseudonym; None without a key or PatientID.
        images: number of files that hold the scans.
    """

    scans: list[Scan] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    patient_id: str | None = None
    images: int = 0


def read_dicom(
    files: list[tuple[str, Path]], modality: str | None, patient_key: bytes | None, progress: Progress
) -> Study:
    """Read the scans of one patient.

    Args:
        files: (displayed name, path) of each file.
        modality, patient_key, progress: as for `read_case`; progress is called once per image file.
    """
    validation = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.IGNORE  # use values that break a rule of the standard
    try:
        with quiet_libraries():
            return _read(files, modality, patient_key, progress)
    finally:
        config.settings.reading_validation_mode = validation


def _read(files, modality, patient_key, progress) -> Study:
    study = Study()
    headers = _headers(files, study)
    key_images = {reference for header in headers for reference in _key_images(header)}
    frames = _frames(_one_patient(_images(headers, study), study), study)
    images, copies = without_copies(frames)
    study.skipped += copies
    study.images = len(images)
    if patient_key is not None:
        study.patient_id = _pseudonym(images, patient_key)
    stacks, unknown = stacks_of([frame for image in images for frame in frames[image]])
    study.skipped += dict.fromkeys((frame.instance.name, reason) for frame, reason in unknown)
    warn_of_localisers(stacks)
    _read_stacks(sorted(stacks, key=_order), study, modality, key_images, progress)
    return study


def _read_stacks(
    stacks: list[Stack], study: Study, modality: str | None, key_images: set[str], progress: Progress
) -> None:
    """Decode the stacks, one after the other, into `study.scans`; files that fail go to `study.skipped`."""
    open_dataset = lru_cache(maxsize=1)(decodable)  # one multi-frame file may hold several stacks
    failed: dict[Instance, BaseException] = {}
    decoded: set[Instance] = set()
    dates = []

    def count(instance: Instance) -> None:
        decoded.add(instance)
        progress(len(decoded), study.images)

    for stack in stacks:
        pixels, frames = read_pixels(stack.frames, open_dataset, failed, count, stack.warnings)
        if pixels is None:
            continue
        if len(frames) < len(stack.frames):
            stack = without_frames(stack, frames)
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
        scan.days = float((newest - day).days) if newest and day else None
    study.skipped += [(instance.name, reason_for(error, _KIND)) for instance, error in failed.items()]


def _headers(files: list[tuple[str, Path]], study: Study) -> list[Instance]:
    """The headers of all files and of those that a DICOMDIR names, without the DICOMDIRs themselves."""
    headers, directories = [], []
    for name, path in files:
        try:
            header = read_header(name, path)
        except Exception as error:
            study.skipped.append((name, reason_for(error, _KIND)))
            continue
        (directories if is_directory(header) else headers).append(header)
    if directories:
        named, skipped = named_files(directories, headers, [path for _, path in files])
        headers += named
        study.skipped += skipped
    return headers


def _images(headers: list[Instance], study: Study) -> list[Instance]:
    """The files that hold an image of the patient; the others are added to `study.skipped`."""
    images = []
    for instance in headers:
        try:
            check_image(instance)
            images.append(instance)
        except Exception as error:
            study.skipped.append((instance.name, reason_for(error, _KIND)))
    return images


def _frames(images: list[Instance], study: Study) -> dict[Instance, list[Frame]]:
    """The frames of each file; files that cannot be taken apart are added to `study.skipped`."""
    frames = {}
    for image in images:
        try:
            frames[image] = frames_of(image)
        except Exception as error:
            study.skipped.append((image.name, reason_for(error, _KIND)))
    return frames


def _one_patient(images: list[Instance], study: Study) -> list[Instance]:
    """The images of the patient with the most images; those of other patients are added to `study.skipped`."""
    group_of: dict[tuple[str, str], set] = {}  # patient or study -> all identifiers that belong to the same patient
    for image in images:
        identifiers = set(_identifiers(image))
        patient = set().union(identifiers, *(group_of.get(identifier, ()) for identifier in identifiers))
        group_of.update((identifier, patient) for identifier in patient)
    images_of: dict[int, list[Instance]] = {}
    for image in images:
        patient = next((group_of[identifier] for identifier in _identifiers(image)), set())
        if any(keyword == "PatientID" for keyword, _ in patient):
            images_of.setdefault(id(patient), []).append(image)
    if len(images_of) < 2:
        return images
    kept = max(images_of.values(), key=len)
    others = {image for group in images_of.values() if group is not kept for image in group}
    reason = (
        f"belongs to another patient than the other {len(images) - len(others)} files: read it as a case of its own"
    )
    study.skipped += [(image.name, reason) for image in images if image in others]
    return [image for image in images if image not in others]


def _identifiers(image: Instance) -> list[tuple[str, str]]:
    """(keyword, value) of the patient and the study of an image, where the header states them."""
    identifiers = ((keyword, text(image.header, keyword)) for keyword in ("PatientID", "StudyInstanceUID"))
    return [(keyword, value) for keyword, value in identifiers if value]


def _pseudonym(images: list[Instance], key: bytes) -> str | None:
    patient_ids = Counter(sorted(filter(None, (text(image.header, "PatientID") for image in images))))
    if not patient_ids:
        return None
    return hmac.new(key, patient_ids.most_common(1)[0][0].encode(), "sha256").hexdigest()[:16]


def _key_images(instance: Instance) -> list[str]:
    """The SOPInstanceUIDs that a Key Object Selection refers to; none for any other object."""
    if text(instance.header, "SOPClassUID") != KEY_OBJECTS:
        return []
    return [
        text(image, "ReferencedSOPInstanceUID")
        for study in items(instance.header, "CurrentRequestedProcedureEvidenceSequence")
        for series in items(study, "ReferencedSeriesSequence")
        for image in items(series, "ReferencedSOPSequence")
    ]


def _order(stack: Stack) -> tuple:
    """The sorting key of the scans of a case: date, series number, name."""
    header = stack.frames[0].instance.header
    return date_of(header) or date.min, number(header, "SeriesNumber") or 0, natural(stack.frames[0].instance.name)


def _scan(stack: Stack, pixels: np.ndarray, modality: str | None, key_images: set[str]) -> Scan:
    instances = list(dict.fromkeys(frame.instance for frame in stack.frames))
    header = instances[0].header
    header_modality = modality_of(header)
    plane, spacing_mm, affine = view_of(header), stack.spacing_mm, None
    if spacing_mm is None:
        pixels = square(pixels, aspect_of(header))
    if stack.axes is not None:
        laid_out = lay_out(pixels, stack.axes, 0, stack.origin)
        pixels, plane, affine = laid_out.pixels, laid_out.plane, laid_out.affine
        spacing_mm = spacing_mm and (spacing_mm[0], *laid_out.spacing_mm[1:])
    uids = [text(frame.instance.header, "SOPInstanceUID") for frame in stack.frames]
    keys = [i for i, uid in enumerate(uids) if uid in key_images]
    one_frame_per_file = len(instances) == len(stack.frames)  # a KO object names files, not frames
    return Scan(
        tidy(pixels),
        modality=header_modality.name if header_modality else modality,
        plane=plane,
        spacing_mm=spacing_mm,
        body_part=body_part_of(header),
        key_slice=keys[len(keys) // 2] if keys and one_frame_per_file else None,
        source=_source([instance.name for instance in instances]),
        affine=affine,
        warnings=stack.warnings + image_type_warnings(header, stack.frames[0].index),
    )


def _source(names: list[str]) -> str:
    """The name of the one file, or of the folder that holds all of them."""
    if len(names) == 1:
        return names[0]
    folders = [PurePosixPath(name).parent.parts for name in names]
    shared = [parts[0] for parts in zip(*folders, strict=False) if len(set(parts)) == 1]
    return "/".join(shared) or "."
