"""Counts over a data set, for its report, its card and its summary, so that all three agree.

Decisions:
- The band of a disorder (`presentation.band_of`) follows from its cases in the training split.
- A case without disorders is normal, unless the source states nothing about disorders (unlabelled), or names only those
  that it looked for and does not call the case normal (unnamed).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from radfm.data_prep.plan import SPLITS
from radfm.knowledge import icd10cm
from radfm.knowledge.disorders import Disorder, Vocabulary
from radfm.presentation import band_of

UNKNOWN = "not stated"


@dataclass
class SplitCounts:
    patients: int = 0
    cases: int = 0
    scans: int = 0
    slices: int = 0
    disorders: int = 0
    official: int = 0  # cases with an official split


@dataclass
class ModalityCounts:
    cases: int = 0
    scans: int = 0
    slices: int = 0
    key_slices: int = 0
    split_scans: Counter = field(default_factory=Counter)


@dataclass(frozen=True)
class DisorderCounts:
    """A disorder and its number of cases.

    Attributes:
        codes: certain ICD-10-CM codes, each with its description.
        orpha: ORPHA codes; [] unless it is a rare disease.
        split_cases: split -> cases.
        band: head, body or tail, by the cases of the training split.
    """

    name: str
    codes: list[tuple[str, str]]
    orpha: list[str]
    split_cases: dict[str, int]
    band: str

    @property
    def cases(self) -> int:
        return sum(self.split_cases.values())


@dataclass
class Counts:
    """All counts. Counters have no particular order.

    Attributes:
        modalities, body_parts: most frequent first, `UNKNOWN` last.
        disorders: in the order of the vocabulary, most frequent first.
        sex, ages: of the patients; ages only where known.
        unnamed: number of labelled cases without a disorder that are not known to be normal.
        several_modalities: number of cases with scans of more than one modality.
        with_rare: number of cases with a rare disease.
    """

    cases: int = 0
    patients: int = 0
    scans: int = 0
    slices: int = 0
    normal: int = 0
    unlabelled: int = 0
    unnamed: int = 0
    with_history: int = 0
    several_modalities: int = 0
    with_rare: int = 0
    key_slices: int = 0
    text_in_pixels: int = 0
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    modalities: dict[str, ModalityCounts] = field(default_factory=dict)
    body_parts: dict[str, int] = field(default_factory=dict)
    disorders: list[DisorderCounts] = field(default_factory=list)
    scans_per_case: Counter = field(default_factory=Counter)
    slices_per_scan: Counter = field(default_factory=Counter)
    modality_from: Counter = field(default_factory=Counter)
    plane_from: Counter = field(default_factory=Counter)
    sex: Counter = field(default_factory=Counter)
    ages: list[float] = field(default_factory=list)

    @property
    def labelled(self) -> int:
        return self.cases - self.unlabelled

    @property
    def rare(self) -> list[DisorderCounts]:
        """The rare diseases: disorders that have an ORPHA code and a case."""
        return [disorder for disorder in self.disorders if disorder.orpha and disorder.cases]

    def band(self, name: str) -> list[DisorderCounts]:
        return [disorder for disorder in self.disorders if disorder.band == name]


def count(rows: Sequence[dict], scans: Mapping[int, dict] | Sequence[dict], vocabulary: Vocabulary) -> Counts:
    """Counts cases and scans.

    Args:
        rows: rows of the table of cases.
        scans: summaries of the scans, by their row in the table of scans; see `ShardRecord.scans`.
        vocabulary: disorders that the labels refer to.
    """
    counts = Counts(cases=len(rows), scans=len(scans), splits={split: SplitCounts() for split in SPLITS})
    split_cases: dict[str, Counter] = {split: Counter() for split in SPLITS}
    patients: dict[str, dict] = {}
    modalities: dict[str, ModalityCounts] = {}
    body_parts: Counter = Counter()
    rare = {row for row, disorder in enumerate(vocabulary) if disorder.orpha}
    for row in rows:
        split = counts.splits[row["split"]]
        if row["patient_id"] not in patients:
            split.patients += 1
        person = patients.setdefault(row["patient_id"], {"age": None, "sex": None})
        person["age"] = row["age"] if person["age"] is None else person["age"]
        person["sex"] = row["sex"] if person["sex"] is None else person["sex"]
        split.cases += 1
        split.official += row["split_from"] == "source"
        split_cases[row["split"]].update(set(row["labels"]))
        counts.unlabelled += not row["labelled"]
        if row["labelled"] and not row["labels"]:
            counts.normal += row["normal"] is not False
            counts.unnamed += row["normal"] is False
        counts.with_history += bool(row["history"])
        counts.with_rare += not rare.isdisjoint(row["labels"])
        counts.scans_per_case[len(row["scan_rows"])] += 1
        modalities_of_case = set()
        for scan in (scans[i] for i in row["scan_rows"]):
            name = scan["modality"] or UNKNOWN
            modality = modalities.setdefault(name, ModalityCounts())
            modality.cases += name not in modalities_of_case
            modalities_of_case.add(name)
            modality.scans += 1
            modality.slices += scan["slices"]
            modality.key_slices += scan["key_slice"]
            modality.split_scans[row["split"]] += 1
            split.scans += 1
            split.slices += scan["slices"]
            body_parts[scan["body_part"] or UNKNOWN] += 1
            counts.slices_per_scan[scan["slices"]] += 1
            counts.modality_from[scan["modality_from"]] += 1
            counts.plane_from[scan["plane_from"]] += 1
            counts.text_in_pixels += scan["text_in_pixels"] is not None
        counts.several_modalities += len(modalities_of_case) > 1
    for name, split in counts.splits.items():
        split.disorders = len(split_cases[name])
    counts.patients = len(patients)
    counts.slices = sum(split.slices for split in counts.splits.values())
    counts.key_slices = sum(modality.key_slices for modality in modalities.values())
    counts.modalities = dict(sorted(modalities.items(), key=lambda m: (m[0] == UNKNOWN, -m[1].scans, m[0])))
    counts.body_parts = dict(sorted(body_parts.items(), key=lambda part: (part[0] == UNKNOWN, -part[1], part[0])))
    counts.disorders = [_disorder(disorder, row, split_cases) for row, disorder in enumerate(vocabulary)]
    counts.sex = Counter(person["sex"] or UNKNOWN for person in patients.values())
    counts.ages = [person["age"] for person in patients.values() if person["age"] is not None]
    return counts


def code_description(code: str) -> str:
    """The description of an ICD-10-CM code."""
    return icd10cm.get(code).description


def _disorder(disorder: Disorder, row: int, split_cases: dict[str, Counter]) -> DisorderCounts:
    cases = {split: split_cases[split][row] for split in SPLITS}
    codes = [(code, code_description(code)) for code in disorder.icd10cm]
    return DisorderCounts(disorder.name, codes, disorder.orpha, cases, band_of(cases["train"]))
