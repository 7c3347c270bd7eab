"""Synthetic cases: samples of a generator, decoded, that a classifier and the training data may refuse.

radfm prepare synthetic OUT --model runs/diffusion --disorders "Pneumothorax,Rib fracture" --real datasets/mine-latents

Decisions:
- A case is one scan, of one slice or one volume. It has no patient: its identifiers begin with "synthetic", and so do
  the name of its collection and the source of its scan. They have a hash of all settings, so that data sets can be
  joined.
- A sample depends on the generator, the seed, its disorder and its number, and on no other sample. So a run that was
  killed continues with the same samples.
- Modality, plane and body part are those in which the generator saw the disorder, as often. For a disorder that it
  never saw they are those of the known disorder whose name is the nearest.
- A refused sample is replaced by another one of the same modality, plane and body part, a few times. Samples are
  refused by their latents, before anything is decoded.
"""

import hashlib
import json
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from radfm.cases import Case, Scan
from radfm.data_prep.plan import CasePlan, Listing, ReadCase, ScanOrigin
from radfm.data_prep.training_distances import TrainingDistances
from radfm.latents.generator import NO_FINDING, Generator, Prompt
from radfm.latents.rejection import LatentClassifier
from radfm.presentation import plural

NAME = "synthetic"
TRIES = 10  # samples for a case, at most

_AT_ONCE = 64  # cases
_NOT_SEEN = "the classifier"  # beginning of its reasons
_TOO_CLOSE = "it is closer to a training case than other patients are"  # no distance: it would tell about the case


class Synthetic:
    """See `radfm.data_prep.plan.Source`.

    Args:
        model: folder of a generator.
        disorders: names, "no finding" for cases without any.
        per_disorder: number of cases of each.
        seed: of the samples.
        steps, guidance: see `Generator.sample`.
        classifier: folder of a latent classifier that refuses samples; None: none are refused for what they show.
        threshold: least probability that it gives to what was asked for.
        rank: lowest rank among the disorders of its body part that it may have.
        real: the latent data set that the generator was trained on, to refuse copies; None: samples are not compared.
        closest: see `TrainingDistances`.
    Raises:
        FileNotFoundError, ValueError: something of this does not exist, or does not fit together.
    """

    name = NAME

    def __init__(
        self,
        model: str | Path,
        disorders: Sequence[str],
        per_disorder: int,
        seed: int = 0,
        *,
        steps: int = 18,
        guidance: float = 2.0,
        classifier: str | Path | None = None,
        threshold: float = 0.1,
        rank: int = 1,
        real: str | Path | None = None,
        closest: float = 0.05,
    ):
        if per_disorder < 1 or not disorders or not all(name.strip() for name in disorders):
            raise ValueError("give at least one disorder, and at least one case of each")
        if not 0 <= threshold <= 1 or not 0 <= closest <= 1:
            raise ValueError(f"threshold and closest are shares from 0 to 1, not {threshold} and {closest}")
        if steps < 2:
            raise ValueError(f"steps has to be at least 2, not {steps}")
        self._model, self._classifier, self._real = model, classifier, real
        self.per_disorder, self.seed, self.steps, self.guidance = per_disorder, seed, steps, guidance
        self.threshold, self.rank, self.closest = threshold, rank, closest
        self.disorders = list(dict.fromkeys(self._spelled(name.strip()) for name in disorders))
        self.unknown = self._unknown()
        self.settings: dict[str, Any] = {
            "generator": self.generator.fingerprint,
            "disorders": self.disorders,
            "per_disorder": per_disorder,
            "seed": seed,
            "steps": steps,
            "guidance": guidance,
            "classifier": self.classifier and self.classifier.fingerprint,
            "threshold": None if classifier is None else threshold,
            "rank": None if classifier is None else rank,
            "real": self.distances and self.distances.fingerprint,
            "closest": None if real is None else closest,
        }
        self._check_data()
        facts = self.generator.facts
        data = facts.get("data") or {}
        trained_on = data.get("title") or data.get("source")
        self.notice = {
            "title": f"SYNTHETIC cases{f', by a generator trained on {trained_on}' if trained_on else ''}",
            "layout": "No case is a patient: every picture is a sample of a generator. See docs/synthesis.md.",
        } | {key: facts[fact] for key, fact in (("licence", "licence"), ("citation", "attribution")) if facts.get(fact)}

    def __getstate__(self) -> dict[str, Any]:
        """Other processes load the models themselves, and compute in one thread each."""
        loaded = ("generator", "classifier", "distances")
        return {name: value for name, value in self.__dict__.items() if name not in loaded}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        torch.set_num_threads(1)  # processes work side by side

    @cached_property
    def generator(self) -> Generator:
        return Generator.from_pretrained(self._model, _device())

    @cached_property
    def classifier(self) -> LatentClassifier | None:
        if self._classifier is None:
            return None
        names = list(dict.fromkeys([*self.generator.known, *self.disorders]))
        names = [name for name in names if name != NO_FINDING]
        classifier = LatentClassifier(self._classifier, names, self.generator.autoencoder.fingerprint, _device())
        for name in self.disorders:
            if name != NO_FINDING and name not in classifier.names:
                raise ValueError(f"{self._classifier} cannot see {name!r}: it is not on its list of disorders")
        return classifier

    @cached_property
    def distances(self) -> TrainingDistances | None:
        return None if self._real is None else TrainingDistances(self._real, self.closest)

    def listing(self) -> Listing:
        facts = self.generator.facts
        plans: list[CasePlan] = []
        settings = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:6]
        for disorder in self.disorders:
            contexts = self._contexts(disorder)
            shares = np.array([count for *_, count in contexts], float)
            for number in range(self.per_disorder):
                rng = np.random.default_rng([self.seed, zlib.crc32(disorder.encode()), number])
                modality, plane, body_part, _ = contexts[rng.choice(len(contexts), p=shares / shares.sum())]
                case_id = f"{NAME}-{self.generator.fingerprint}-{settings}-{len(plans):06d}"
                plans.append(
                    CasePlan(
                        case_id,
                        case_id,
                        disorders=[] if disorder == NO_FINDING else [disorder],
                        split="train",
                        collection=NAME,
                        source_data={
                            "disorder": disorder,
                            "number": number,
                            "modality": modality,
                            "plane": plane,
                            "body_part": body_part,
                        },
                        licence=facts.get("licence"),
                        attribution=facts.get("attribution"),
                        publish=facts.get("publish"),
                    )
                )
        return Listing(plans, [], "case", len(plans), len(plans))

    def read(self, plans: Sequence[CasePlan]) -> Iterator[ReadCase]:
        for start in range(0, len(plans), _AT_ONCE):
            yield from self._read_some(plans[start : start + _AT_ONCE])

    def entries(self, listing: Listing, rejected: Sequence[dict]) -> dict[str, Any]:
        """The entry of dataset.json that marks the data set: by what it was made, and how many samples were accepted.

        Args:
            rejected: lines of rejected.csv.
        """
        asked = {plan.case_id: plan.source_data["disorder"] for plan in listing.plans}
        refused: dict[str, Counter] = {disorder: Counter() for disorder in self.disorders}
        for line in rejected:
            counts = refused[asked[line["case_id"]]]
            if line["what"] == "case":
                counts["cases"] += 1
            elif line["what"] == "sample":
                counts["not_seen" if line["reason"].startswith(_NOT_SEEN) else "too_close"] += 1
        accepted = {}
        for disorder, counts in refused.items():
            cases = self.per_disorder - counts["cases"]
            samples = cases + counts["not_seen"] + counts["too_close"]
            accepted[disorder] = {
                "asked": self.per_disorder,
                "samples": samples,
                "accepted": cases,
                "share": round(cases / samples, 4) if samples else 0.0,
                "not_seen": counts["not_seen"],
                "too_close": counts["too_close"],
            }
        facts = {key: self.settings[key] for key in ("generator", "classifier", "threshold", "rank", "real", "closest")}
        facts |= {
            "trained_on": self.generator.trained_on,
            "left_out_of_held_out": self.distances and self.distances.left_out,
            "disorders": accepted,
            "never_seen_by_the_generator": self.unknown,
        }
        return {NAME: facts}

    def _read_some(self, plans: Sequence[CasePlan]) -> Iterator[ReadCase]:
        prompts = [_prompt(plan) for plan in plans]
        latents: dict[int, Tensor] = {}
        skipped: dict[int, list[tuple[str, str]]] = {index: [] for index in range(len(plans))}
        for attempt in range(TRIES if self._classifier is not None or self._real is not None else 1):
            pending = [index for index in range(len(plans)) if index not in latents]
            if not pending:
                break
            some = [prompts[index] for index in pending]
            seeds = [self._seed(plans[index], attempt) for index in pending]
            samples = self.generator.sample(some, seeds, self.steps, self.guidance)
            for index, sample, reason in zip(pending, samples, self._refusals(samples, some), strict=True):
                if reason is None:
                    latents[index] = sample
                else:
                    skipped[index].append((f"sample {attempt + 1} of {plans[index].case_id}", reason))
        accepted = sorted(latents)
        pictures = self.generator.autoencoder.decode(torch.stack([latents[i] for i in accepted])) if accepted else []
        decoded = dict(zip(accepted, pictures, strict=True))
        for index, (plan, prompt) in enumerate(zip(plans, prompts, strict=True)):
            scans = [self._scan(decoded[index], prompt)] if index in decoded else []
            case = Case(scans, None, plan.disorders, plan.case_id, plan.patient_id, skipped[index])
            origins = [ScanOrigin("source", "source") for _ in scans]
            yield ReadCase(case, files=0, unread=0, origins=origins, unit="sample")

    def _scan(self, picture: Tensor, prompt: Prompt) -> Scan:
        autoencoder = self.generator.autoencoder
        pixels, volume = autoencoder.scan_pixels(picture[None], prompt.modality), autoencoder.settings.volume
        spacing_mm = None if volume is None else tuple(volume["spacing_mm"])
        return Scan(pixels, prompt.modality, prompt.plane, spacing_mm, body_part=prompt.body_part, source=NAME)

    def _refusals(self, latents: Tensor, prompts: Sequence[Prompt]) -> list[str | None]:
        """Why samples are refused; None where they are not."""
        reasons: list[str | None] = [None] * len(prompts)
        if self.classifier is not None:
            rivals = [self._rivals(prompt) for prompt in prompts]
            reasons = self.classifier.refusals(latents, prompts, rivals, self.threshold, self.rank)
        if self.distances is not None:
            for index, distance in enumerate(self.distances(latents).tolist()):
                limit = self.distances.limit(prompts[index].modality)
                if reasons[index] is None and distance < limit:
                    reasons[index] = _TOO_CLOSE
        return reasons

    def _rivals(self, prompt: Prompt) -> set[str]:
        """The disorders that the generator saw in a body part."""
        contexts = self.generator.contexts.items()
        return {name for name, seen in contexts if name and any(one[2] == prompt.body_part for one in seen)}

    def _contexts(self, disorder: str) -> list[tuple[str | None, str | None, str | None, int]]:
        contexts = self.generator.contexts
        name = "" if disorder == NO_FINDING else disorder
        nearest = self.unknown.get(disorder) or ""
        return contexts.get(name) or contexts.get(nearest) or [(None, None, None, 1)]

    def _spelled(self, name: str) -> str:
        """The name as the generator's training data spells it."""
        known = {one.casefold(): one for one in (*self.generator.known, NO_FINDING)}
        return known.get(name.casefold(), name)

    def _unknown(self) -> dict[str, str | None]:
        """Disorders that the generator never saw -> the nearest that it knows."""
        unknown = {}
        for name in self.disorders:
            if name != NO_FINDING and name not in self.generator.known:
                unknown[name] = self.generator.nearest_known(name)
                nearest = f"; the nearest that it knows is {unknown[name]!r}" if unknown[name] else ""
                warnings.warn(f"the generator never saw {name!r}{nearest}", stacklevel=3)
        return unknown

    def _seed(self, plan: CasePlan, attempt: int) -> int:
        """Of a sample: it does not depend on what else is asked for."""
        given = plan.source_data
        entropy = [self.seed, zlib.crc32(given["disorder"].encode()), given["number"], attempt]
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)

    def _check_data(self) -> None:
        if self.distances is None:
            return
        if self.generator.trained_on["fingerprint"] not in (None, self.distances.fingerprint):
            raise ValueError(f"{self._real} is not the data set that the generator was trained on: give that one")
        if count := self.distances.left_out:
            warnings.warn(
                f"{plural(count, 'held-out slice')} of {self._real} {'is' if count == 1 else 'are'} copies of training "
                "slices or of their patients, and say nothing about what is too close",
                stacklevel=3,
            )


def disorder_names(text: str, model: str | Path) -> list[str]:
    """Names with commas between them, or semicolons where there are any; "all": all that a generator knows.

    A name that the generator knows may have commas itself.
    """
    known = Generator.from_pretrained(model).known
    if text.strip().casefold() == "all":
        return list(known)
    if ";" in text:
        return [name.strip() for name in text.split(";") if name.strip()]
    spelled = {name.casefold() for name in known}
    parts, names = [part.strip() for part in text.split(",") if part.strip()], []
    while parts:
        joined = [", ".join(parts[:count]) for count in range(len(parts), 0, -1)]  # the longest first
        name = next((one for one in joined if one.casefold() in spelled), parts[0])
        parts = parts[name.count(",") + 1 :]
        names.append(name)
    return names


def _prompt(plan: CasePlan) -> Prompt:
    given = plan.source_data
    return Prompt(tuple(plan.disorders), given["modality"], given["plane"], given["body_part"])


def _device() -> str:
    """A GPU for each process, if there are any."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
