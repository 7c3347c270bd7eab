"""What to label next: strategies of active learning over the embeddings and the scores of a model.

    >>> order = choose(candidates, "rare", budget=50)  # rows of patients, the first to label first

| strategy | takes | from |
|---|---|---|
| random | any patient | |
| typical | the most typical patient of each cluster without a label: TypiClust | Hacohen et al., ICML 2022 |
| diverse | the patient who is farthest from all that are labelled: CoreSet | Sener and Savarese, ICLR 2018 |
| cover | the patient who covers most that are not covered: ProbCover | Yehuda et al., NeurIPS 2022 |
| uncertain | the patients about whom the model is least certain | Settles, 2009 |
| badge | patients whose labels would change the model most, and differently: BADGE | Ash et al., ICLR 2020 |
| rare | the most probable patient of the disorder that has the fewest labels, one disorder after the other | |

Decisions:
- Patients are chosen, with all of their cases: a patient is read once, and no patient is partly labelled. The budget
  counts cases, because they are what is labelled. A patient with more cases than are left of it is passed over.
- The strategies are those of scikit-activeml, except `rare`, which needs the names of disorders. They choose one class
  for each sample; a case may have several disorders. So they get probabilities of "one of the disorders, or none".
- Distances are between embeddings of unit length. BADGE gets their first principal components, because a gradient has
  as many numbers as disorders times components.
- Of a larger pool, a random part of `MOST_CANDIDATES` patients is considered: ProbCover compares all pairs.
"""

import csv
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from skactiveml.base import SingleAnnotatorPoolQueryStrategy, SkactivemlClassifier
from skactiveml.pool import Badge, CoreSet, ProbCover, RandomSampling, TypiClust, UncertaintySampling
from sklearn.decomposition import PCA

MOST_CANDIDATES = 5000
_COMPONENTS, _CLASSES = 32, 32  # of BADGE
_RADII = np.geomspace(0.02, 1.5, 16)  # of ProbCover's balls, between embeddings of unit length


@dataclass(frozen=True)
class Candidates:
    """Patients, labelled and not.

    Attributes:
        embeddings: (patients, d) float32, of unit length.
        log_odds: (patients, disorders), the scores of a model.
        labelled: (patients,) bool.
        costs: (patients,) int, how many cases of a patient would be labelled.
        positives: (disorders,) int, how many labelled patients have a disorder.
        wanted: (disorders,) bool, those that `rare` asks for.
    """

    embeddings: np.ndarray
    log_odds: np.ndarray
    labelled: np.ndarray
    costs: np.ndarray
    positives: np.ndarray
    wanted: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Candidates":
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in ("embeddings", "log_odds", "labelled", "costs")},
        )


@dataclass(frozen=True)
class Strategy:
    """
    Attributes:
        meaning: what it takes, in words.
        order: candidates, number of patients, seed -> rows of patients without a label, the first to label first.
        reads_scores: whether it uses the scores of the model.
    """

    meaning: str
    order: Callable[[Candidates, int, int], Sequence[int]]
    reads_scores: bool = False


def choose(candidates: Candidates, strategy: str, budget: int, seed: int = 0) -> list[int]:
    """The rows of the patients to label, the first first; all together they cost at most `budget` cases.

    Raises:
        ValueError: there is no such strategy, the budget is larger than the pool, or no patient fits into it.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"there is no strategy {strategy!r}: there are {', '.join(STRATEGIES)}")
    free = np.flatnonzero(~candidates.labelled)
    available = int(candidates.costs[free].sum())
    if not 1 <= budget <= available:
        raise ValueError(f"the budget is {budget:,} and {available:,} cases can be chosen: give at most so many")
    some = free
    if len(free) > MOST_CANDIDATES:
        some = np.sort(np.random.default_rng(seed).choice(free, max(MOST_CANDIDATES, budget), replace=False))
    rows = np.concatenate([np.flatnonzero(candidates.labelled), some])
    order: Sequence[int] = ()
    if len(some) > 1:  # else there is nothing to choose, and a cluster needs two patients
        order = STRATEGIES[strategy].order(candidates[rows], min(budget, len(some)), seed)
    chosen, left = [], budget
    for row in dict.fromkeys([*rows[list(order)].tolist(), *some.tolist()]):  # as there may be less than the budget
        if candidates.costs[row] <= left:
            chosen.append(row)
            left -= int(candidates.costs[row])
    if not chosen:
        least = int(candidates.costs[some].min())
        raise ValueError(f"the budget is {budget:,} and each patient has at least {least:,} cases: give more")
    return chosen


def candidates_of(
    patients: Sequence[str],
    embeddings: np.ndarray,
    log_odds: np.ndarray,
    labelled: np.ndarray,
    labels: np.ndarray,
    duplicates: Sequence[Collection[str]] = (),
    wanted: np.ndarray | None = None,
) -> tuple[Candidates, list[str]]:
    """The patients of cases, and their names: of each the mean embedding, and the highest score of its cases.

    Of patients whose pictures are copies of each other one is kept, a labelled one if there is any. A patient with a
    labelled case counts as labelled.

    Args:
        patients: (cases,) whose case it is.
        embeddings: (cases, d), log_odds: (cases, disorders).
        labelled: (cases,) bool.
        labels: (cases, disorders) bool; only those of labelled cases are read.
        duplicates: groups of patients.
        wanted: (disorders,) bool, those that `rare` asks for; None: all.
    """
    names, first, of_case = np.unique(patients, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as in the data set
    cases_of = [np.flatnonzero(of_case == one) for one in order]
    known = {patients[case] for case, is_labelled in enumerate(labelled) if is_labelled}
    left_out: set[str] = set()
    for group in duplicates:
        present = [str(names[one]) for one in order if names[one] in group]
        kept = [name for name in present if name in known] or present[:1]
        left_out |= set(present) - set(kept)
    kept_cases = [cases for one, cases in zip(order, cases_of, strict=True) if names[one] not in left_out]
    means = np.stack([embeddings[cases].mean(0) for cases in kept_cases])
    of_patients = np.stack([labels[cases][labelled[cases]].any(0) for cases in kept_cases])
    candidates = Candidates(
        embeddings=means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12),
        log_odds=np.stack([log_odds[cases].max(0) for cases in kept_cases]),
        labelled=np.array([bool(labelled[cases].any()) for cases in kept_cases]),
        costs=np.array([len(cases) for cases in kept_cases]),
        positives=of_patients.sum(0),
        wanted=np.ones(labels.shape[1], bool) if wanted is None else wanted,
    )
    return candidates, [patients[int(cases[0])] for cases in kept_cases]


def duplicate_patients(folder: Path) -> list[set[str]]:
    """Groups of patients of a data set with copies of one picture, as `radfm prepare` found them."""
    groups: dict[str, set[str]] = {}
    with open(folder / "duplicates.csv", newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            groups.setdefault(line["group"], set()).add(line["patient_id"])
    return list(groups.values())


def probabilities(log_odds: np.ndarray) -> np.ndarray:
    """(patients, disorders) -> (patients, disorders + 1): of one of the disorders, and last of none."""
    odds = np.concatenate([log_odds, np.zeros((len(log_odds), 1))], 1).astype(np.float64)
    odds = np.exp(odds - odds.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


class _Scored(SkactivemlClassifier):
    """A classifier that has already scored: its samples are row numbers, (samples, 1)."""

    def __init__(self, scores=None, features=None, missing_label=np.nan):
        super().__init__(classes=None, missing_label=missing_label)
        self.scores, self.features = scores, features

    def fit(self, X, y, sample_weight=None):
        return self

    def predict_proba(self, X, with_features=False):
        rows = np.asarray(X)[:, 0].astype(int)
        return (self.scores[rows], self.features[rows]) if with_features else self.scores[rows]


def _by_embeddings(make: Callable[[Candidates, int], SingleAnnotatorPoolQueryStrategy]):
    """The order of a strategy of scikit-activeml that reads embeddings."""

    def order(candidates: Candidates, count: int, seed: int) -> Sequence[int]:
        return make(candidates, seed).query(X=candidates.embeddings, y=_labels(candidates), batch_size=count)

    return order


def _cover(candidates: Candidates, count: int, seed: int) -> Sequence[int]:
    """The radius is the largest whose balls hold one cluster each, of as many clusters as there are disorders."""
    clusters = max(2, min(candidates.log_odds.shape[1], len(candidates.labelled) // 2))
    strategy = ProbCover(n_classes=clusters, deltas=_RADII, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The maximum purity", UserWarning)  # then it takes the smallest
        return strategy.query(X=candidates.embeddings, y=_labels(candidates), batch_size=count)


def _uncertain(candidates: Candidates, count: int, seed: int) -> Sequence[int]:
    strategy = UncertaintySampling("entropy", random_state=seed)
    return _by_scores(strategy, _Scored(probabilities(candidates.log_odds)), candidates, count)


def _badge(candidates: Candidates, count: int, seed: int) -> Sequence[int]:
    scores = probabilities(candidates.log_odds)
    if scores.shape[1] > _CLASSES:
        common = np.sort(np.argsort(-scores.sum(0))[:_CLASSES])
        scores = np.column_stack([scores[:, common], 1 - scores[:, common].sum(1)])
    components = min(_COMPONENTS, *candidates.embeddings.shape)
    features = PCA(components, random_state=seed).fit_transform(candidates.embeddings)
    strategy = Badge(clf_embedding_flag_name="with_features", random_state=seed)
    return _by_scores(strategy, _Scored(scores, features), candidates, count)


def _by_scores(strategy, classifier: _Scored, candidates: Candidates, count: int) -> Sequence[int]:
    samples = np.arange(len(candidates.labelled), dtype=float)[:, None]
    return strategy.query(X=samples, y=_labels(candidates), clf=classifier, fit_clf=False, batch_size=count)


def _rare_first(candidates: Candidates, count: int, seed: int) -> Sequence[int]:
    """Ties between disorders are broken at random."""
    random = np.random.default_rng(seed)
    asked = np.where(candidates.wanted, candidates.positives + random.random(len(candidates.positives)), np.inf)
    scores = np.where(candidates.labelled[:, None], -np.inf, candidates.log_odds)
    order: list[int] = []
    for _ in range(count):
        disorder = int(asked.argmin())
        patient = int(scores[:, disorder].argmax())
        order.append(patient)
        scores[patient] = -np.inf
        asked[disorder] += 1
    return order


def _labels(candidates: Candidates) -> np.ndarray:
    """Which patients have labels, as scikit-activeml takes it: these strategies do not read the labels."""
    return np.where(candidates.labelled, 0.0, np.nan)


STRATEGIES = {
    "random": Strategy("any patient", _by_embeddings(lambda _, seed: RandomSampling(random_state=seed))),
    "typical": Strategy(
        "the most typical patient of each cluster without a label (TypiClust)",
        _by_embeddings(lambda _, seed: TypiClust(random_state=seed)),
    ),
    "diverse": Strategy(
        "the patient who is farthest from all labelled ones (CoreSet)",
        _by_embeddings(lambda _, seed: CoreSet(random_state=seed)),
    ),
    "cover": Strategy("the patient who covers most that are not covered (ProbCover)", _cover),
    "uncertain": Strategy("the patients about whom the model is least certain", _uncertain, reads_scores=True),
    "badge": Strategy(
        "patients whose labels would change the model most, and differently (BADGE)", _badge, reads_scores=True
    ),
    "rare": Strategy(
        "the most probable patient of the disorder that has the fewest labels", _rare_first, reads_scores=True
    ),
}
