"""What a model has learned from, in one sentence, and why its answer about a study may mean nothing.

Decisions:
- Both follow from the recipe beside the weights: the data of the training, and of all checkpoints that it started
  from. A data set that occurs several times in this chain counts once.
- Every alert is one sentence. A study that is like the training data has none.
- A scan's body part is new only if it lies in no region of the training scans: the words for one region ("thorax",
  "chest", "lung") count as one, and a scan of the whole body is never new.
- Nothing of radfm is imported, so that a checkpoint can carry this file.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .recipes_radfm import is_synthetic, load_recipe, synthetic_only

UNTRAINED = "This model is untrained. Its scores, weights and maps mean nothing."
_UNSTATED = ("not stated", "other")
_MOST_MODALITIES = 5  # named in the sentence
# Words for one region of the body. Those of more than three letters are also found within a word: "cspine", "headneck".
_REGIONS = (
    "head brain skull cranium cerebral cerebell neuro pituitary sella scalp",
    "face facial orbit eye sinus nose jaw mandible maxilla mouth tooth ear",
    "neck larynx pharynx thyroid parotid submandibular",
    "chest thorax thoracic lung pulmonary rib ribs sternum mediastin heart cardiac coronary bronch",
    "breast mamma",
    "abdomen abdominal liver hepatic gallbladder bile kidney renal spleen pancreas adrenal stomach bowel colon",
    "pelvis pelvic bladder prostate uterus ovary rectum",
    "spine spinal vertebra cervical lumbar sacrum coccyx",
    "hip",
    "knee patella",
    "ankle foot calcaneus toe",
    "shoulder clavicle scapula",
    "elbow",
    "hand wrist finger thumb",
    "limb extremit leg arm thigh calf forearm femur tibia fibula humerus radius ulna",
)
_WHOLE = frozenset(("body", "wholebody", "whole", "entire", "trunk", "skeleton"))
_MODIFIERS = frozenset(("and", "with", "of", "the", "left", "right", "bilateral", "upper", "lower", "joint"))


@dataclass(frozen=True)
class TrainingData:
    """
    Attributes:
        patients: Real patients of all data sets.
        synthetic_patients: Those that a program rendered, or a generator made.
        synthetic_cases: Cases that were added to the patients' and are of nobody, such as those of a generator.
        collections: Public or other collections that real patients are from; 0 where not recorded.
        modalities, body_parts: Of the training scans, most frequent first.
        synthetic_only: Whether the model, and every checkpoint that it started from, saw synthetic patients only.
    """

    patients: int = 0
    synthetic_patients: int = 0
    synthetic_cases: int = 0
    collections: int = 0
    modalities: list[str] = field(default_factory=list)
    body_parts: list[str] = field(default_factory=list)
    synthetic_only: bool = False

    @classmethod
    def of_model(cls, model: str) -> "TrainingData":
        """By the folder or Hub name of a checkpoint, "" for none. Raises: ValueError: as `load_recipe`."""
        return cls.of_recipe(load_recipe(model) if model else {})

    @classmethod
    def of_recipe(cls, recipe: Mapping[str, Any]) -> "TrainingData":
        largest: dict[str, Mapping[str, Any]] = {}  # fingerprint -> summary: trainings leave out different cases
        added: dict[str, int] = {}  # fingerprint of a synthetic data set -> cases
        for number, data in enumerate(data_sets(recipe)):
            for one in data.get("added_synthetic") or ():
                added[one["fingerprint"]] = max(one["cases"], added.get(one["fingerprint"], 0))
            key = data.get("fingerprint") or str(number)
            largest[key] = max(data, largest.get(key, {}), key=lambda one: one.get("patients", 0))
        real = [data for data in largest.values() if not is_synthetic(data)]
        synthetic = [data for data in largest.values() if is_synthetic(data)]
        return cls(
            patients=sum(data.get("patients", 0) for data in real),
            synthetic_patients=sum(data.get("patients", 0) for data in synthetic),
            synthetic_cases=sum(added.values()),
            collections=sum(data.get("collections") or len(data.get("attributions") or ()) for data in real),
            modalities=_names(largest.values(), "modalities"),
            body_parts=_names(largest.values(), "body_parts"),
            synthetic_only=synthetic_only(recipe),
        )

    @property
    def summary(self) -> str:
        """One sentence, such as "Trained on 4,901 patients of 31 collections: X-ray, CT, MRI, ultrasound." """
        of = f" of {self.collections:,} collections" if self.collections > 1 else ""
        patients = [f"{self.patients:,} patients{of}"] * (self.patients > 0)
        patients += [f"{self.synthetic_patients:,} synthetic patients"] * (self.synthetic_patients > 0)
        patients += [f"{self.synthetic_cases:,} synthetic cases"] * (self.synthetic_cases > 0)
        if not patients:
            return "What this model was trained on is not recorded."
        more = len(self.modalities) - _MOST_MODALITIES
        named = ", ".join(self.modalities[:_MOST_MODALITIES]) + (f" and {more} more" if more > 0 else "")
        listed = " and ".join([", ".join(patients[:-1])] * (len(patients) > 1) + patients[-1:])
        return f"Trained on {listed}{': ' * bool(named)}{named}."

    def alerts(self, scans: Sequence[Mapping[str, Any]], judgement: Mapping[str, Any] | None) -> list[str]:
        """Why an answer about these scans in particular may mean nothing, one sentence each.

        Args:
            scans: "modality" and "body_part" of each, None where unknown.
            judgement: Of `TrainingReference.judge`; None where the checkpoint has no reference.
        """
        alerts = []
        if judgement is not None and judgement["is_ood"]:
            alerts.append(f"This case is out of distribution ({ood_reason(judgement)}): its scores are unreliable.")
        told = judgement["new_modalities"] if judgement is not None else ()
        for modality in dict.fromkeys(scan["modality"] for scan in scans):
            if modality and self.modalities and modality not in (*self.modalities, *_UNSTATED, *told):
                alerts.append(f"No training scan was of this modality: {modality}.")
        for part in dict.fromkeys(scan["body_part"] for scan in scans):
            if part and _is_new(part, self.body_parts):
                alerts.append(f"No training scan was of this body part: {part}.")
        return alerts

    def refuse_new(self, modalities: Iterable[str | None], is_made_for: Callable[[str], bool]) -> None:
        """Refuses a case of a modality that the model does not know, as far as can be said without a reference.

        Args:
            is_made_for: Whether the model has a row for a modality. It counts where the recipe lists none.
        Raises:
            ValueError: The model never saw a modality, or was not made for it.
        """
        for modality in dict.fromkeys(modalities):
            if not modality or modality in _UNSTATED:
                continue
            if self.modalities and modality not in self.modalities:
                raise ValueError(f"the case is out of distribution (no training scan was of {modality}): it is refused")
            if not self.modalities and not is_made_for(modality):
                raise ValueError(f"the model was not made for {modality}, and the case is refused")


def ood_reason(judgement: Mapping[str, Any]) -> str:
    """The reason why `TrainingReference.judge` found a case out of distribution, in words."""
    if new := judgement["new_modalities"]:
        return f"no training scan was of {', '.join(new)}"
    return f"at most {judgement['p_value']:.1%} of the validation cases are as far from the training scans"


def data_sets(recipe: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The data summaries of a recipe and of all checkpoints that it started from."""
    if data := recipe.get("data"):
        yield data
    for start in (recipe.get("started_from") or {}).values():
        yield from data_sets(start)


def _names(data_sets: Iterable[Mapping[str, Any]], key: str) -> list[str]:
    scans: Counter = Counter()
    for data in data_sets:
        scans.update(data.get(key) or {})
    return [name for name, _ in scans.most_common() if name not in _UNSTATED]


def _is_new(part: str, known_parts: Sequence[str]) -> bool:
    """Whether a body part lies in no region of the known ones. False for one without a word that says where it is."""
    regions, known = _regions(part), set().union(*map(_regions, known_parts))
    return bool(regions and known) and regions.isdisjoint(known) and (regions | known).isdisjoint(_WHOLE)


def _regions(part: str) -> set[str]:
    """The regions of a body part; a word that is in none counts as one of its own."""
    found: set[str] = set()
    for word in set(re.findall(r"[a-z]+", part.lower())) - _MODIFIERS:
        of_word = {
            region
            for region in _REGIONS
            for known in region.split()
            if known == word or (len(known) > 3 and known in word)
        }
        found |= of_word or {word}
    return found


__all__ = ["UNTRAINED", "TrainingData", "ood_reason"]
