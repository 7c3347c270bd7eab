"""De-identifies DICOM headers by the Basic Application Level Confidentiality Profile of DICOM PS3.15.

    >>> header = dcmread(file)
    >>> deidentify(header, Pseudonyms(key))

Decisions:
- The table of the library dicom-anonymizer (PS3.15 table E.1-1) determines the action for each element, at every depth
  of sequences. Private elements are removed.
- Where the profile requires dummy values, they are keyed, so that a patient and a study stay identifiable as one:
  PatientID, AccessionNumber and all UIDs except those of the standard are replaced by pseudonyms.
- Of the options of the profile, "Retain Patient Characteristics" applies to age (90 for all above 89) and sex.
- Dates are removed. The days between scans are computed before.
- The profile keeps some free text (BodyPartExamined, ViewPosition). `radfm.readers` accepts such a text only if it is a
  known term.
"""

import hmac
import re
from functools import cache

from dicomanonymizer.simpledicomanonymizer import (
    anonymize_dataset,
    delete_or_empty_or_replace_UID,
    initialize_actions,
    replace_UID,
)
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from radfm.data_prep.pseudonyms import Pseudonyms

PROFILE = "dicomfields_2026c"  # edition of the table
METHOD = "radfm: PS3.15 Basic Profile, Retain Patient Characteristics"  # at most 64 characters, for VR LO
_STANDARD_UIDS = "1.2.840.10008."
_RETAINED = {"PatientAge": r"\d{3}[DWMY]", "PatientSex": "[FMO]"}  # only in the format of the standard
_PSEUDONYMS = {"PatientID": "patient", "AccessionNumber": "accession"}


def deidentify(dataset: Dataset, pseudonyms: Pseudonyms) -> None:
    """De-identifies a header, or a whole file as `pydicom.dcmread` returns it, in place."""
    _apply(dataset, pseudonyms)
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD
    if getattr(dataset, "file_meta", None) and "SOPInstanceUID" in dataset:
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def altered_by_profile(keyword: str) -> bool:
    """Whether the profile removes or replaces the element."""
    tag = Tag(keyword)
    return (tag.group, tag.element) in _rules()


def keyed_uid(uid: str, pseudonyms: Pseudonyms) -> str:
    """A keyed pseudonym of a UID; UIDs of the standard are kept."""
    if pseudonyms.key is None or not uid or uid.startswith(_STANDARD_UIDS):
        return uid
    digest = hmac.new(pseudonyms.key, f"uid:{uid}".encode(), "sha256").digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"  # PS3.5 B.2: a UUID as a number


def _apply(dataset: Dataset, pseudonyms: Pseudonyms) -> None:
    present = {(element.tag.group, element.tag.element) for element in dataset}
    rules = {tag: rule for tag, rule in _rules().items() if len(tag) > 2 or tag in present}

    def uid_of(dataset: Dataset, tag: tuple[int, int]) -> None:
        element = dataset.get(tag)
        if element is None:
            return
        if element.VR != "UI":
            delete_or_empty_or_replace_UID(dataset, tag)
        elif element.VM > 1:
            element.value = [keyed_uid(str(uid), pseudonyms) for uid in element.value]
        elif element.value:
            element.value = keyed_uid(str(element.value), pseudonyms)

    for tag, rule in rules.items():
        if rule in (replace_UID, delete_or_empty_or_replace_UID):
            rules[tag] = uid_of
    for keyword, kind in _PSEUDONYMS.items():
        tag = Tag(keyword)
        rules[tag.group, tag.element] = _pseudonym_of(kind, pseudonyms)
    for keyword, form in _RETAINED.items():
        tag = Tag(keyword)
        rules[tag.group, tag.element] = _kept_if(form)
    anonymize_dataset(dataset, rules, delete_private_tags=True, base_rules_gen=dict)
    age = str(dataset.get("PatientAge") or "")
    if age.endswith("Y") and int(age[:-1]) > 89:
        dataset.PatientAge = "090Y"
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                _apply(item, pseudonyms)


def _kept_if(form: str):
    def rule(dataset: Dataset, tag: tuple[int, int]) -> None:
        element = dataset.get(tag)
        if element is not None and not re.fullmatch(form, str(element.value or "").strip()):
            element.value = ""

    return rule


def _pseudonym_of(kind: str, pseudonyms: Pseudonyms):
    def rule(dataset: Dataset, tag: tuple[int, int]) -> None:
        element = dataset.get(tag)
        if element is not None and str(element.value or ""):
            element.value = pseudonyms.of(kind, str(element.value))

    return rule


@cache
def _rules() -> dict:
    return initialize_actions(PROFILE)
