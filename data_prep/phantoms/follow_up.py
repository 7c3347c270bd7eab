"""Follow-up: synthetic patients on several dates, whose lesions grow, shrink, stay, appear or resolve.

    >>> from radfm.data_prep.phantoms.follow_up import make_follow_up
    >>> phantom = make_follow_up(seed=0, index=7, cases=300)
    >>> [scan.days for scan in phantom.case.scans], phantom.sizes[0]  # SizeOnDate(disorder, days, volume_ml)

Decisions:
- A patient is one case with two to four dates. Each date has the same acquisitions of the same body. Only the size of
  lesions differs, and what differs between any two scans: noise, the position of slices, the aim of a probe.
- Each disorder has a course of its own. Sizes are spread around the same middle in all courses, so that the size on one
  date alone does not tell whether a lesion grows or shrinks.
- A disorder whose shape has no size stays, appears or resolves. A disorder that changes an organ has a course only if
  it is the only one of its patient: it would move the lesions of the others.
- The truth is the volume of each disorder on each date, counted in the anatomy, whether or not a scan shows it.
- Random numbers are others than those of `make_case`: no patient of the two sets is the same.
"""

from copy import deepcopy
from itertools import accumulate, pairwise

import numpy as np

from radfm.cases import Case
from radfm.data_prep.phantoms.disorders import Disorder
from radfm.data_prep.phantoms.draw import draw_disorders, draw_protocols
from radfm.data_prep.phantoms.phantom import Generators, Phantom, PhantomPlan, SizeOnDate, make_phantom

GREW, SHRANK, STAYED, APPEARED, RESOLVED = "grew", "shrank", "stayed", "appeared", "resolved"
CHANGES = (GREW, SHRANK, STAYED, APPEARED, RESOLVED)
LEAST_RATIO = 1.25  # of two volumes that differ

_DATES = (2, 5)  # the second number is not included
_DAYS_BETWEEN = (30, 180)
_MIDDLE = (0.65, 0.9)  # size in the middle of a course, as a share of a size drawn from the table of disorders
_DIAMETERS = (1.8, 2.8)  # the largest diameter of a course by the smallest
_SIZELESS = ("organ", "region", "level")
_APART = 1  # sets these random numbers apart from those of `make_case`


def change_of(before_ml: float, after_ml: float) -> str:
    """The change between two volumes, one of `CHANGES`; a lesion that is on neither date stayed away."""
    if not before_ml or not after_ml:
        return STAYED if before_ml == after_ml else (RESOLVED if before_ml else APPEARED)
    if after_ml / before_ml >= LEAST_RATIO:
        return GREW
    return SHRANK if before_ml / after_ml >= LEAST_RATIO else STAYED


def make_follow_up(seed: int, index: int, cases: int, size: int = 96) -> Phantom:
    """A patient of a set with follow-up, the oldest date first.

    Args:
        seed, index, cases, size: as of `radfm.data_prep.phantoms.make_case`.
    Raises:
        ValueError: the index is not in the set, or the size is below 32.
    """
    if size < 32:
        raise ValueError(f"size {size} is too small for an anatomy: use 32 or more")
    generators = Generators([seed, index, _APART])
    rng = generators.plan
    anatomy, disorders = draw_disorders(rng, seed, index, cases)
    protocols = draw_protocols(rng, anatomy, disorders)
    shown = [p for p in protocols if any(p.name in d.shows for d in disorders)] or protocols[:1]
    gaps = rng.integers(*_DAYS_BETWEEN, int(rng.integers(*_DATES)) - 1)
    days = [float(day) for day in accumulate(reversed(gaps), initial=0)][::-1]
    may_change = len(disorders) == 1
    courses = {d.name: draw_sizes(rng, d, len(days), may_change or not d.changes) for d in disorders}
    plan = PhantomPlan(f"S{seed}F{index:06d}", disorders, shown, size)
    whole: Phantom | None = None
    for date, day in enumerate(days):
        same = deepcopy(generators)
        same.scans = Generators([seed, index, _APART, date]).scans
        sizes = {name: course[date] for name, course in courses.items()}
        whole = _joined(whole, make_phantom(plan, same, sizes), day)
    assert whole is not None
    return whole


def anatomy_of_follow_up(seed: int, index: int, cases: int) -> str:
    """The anatomy of a case of `make_follow_up`, without making it."""
    return draw_disorders(Generators([seed, index, _APART]).plan, seed, index, cases)[0]


def draw_sizes(rng: np.random.Generator, disorder: Disorder, dates: int, may_change: bool = True) -> list[float]:
    """The size on each date, as a share of a size drawn from the table of disorders; 0 where there is no lesion.

    Args:
        may_change: False for a disorder that stays.
    """
    has_size = disorder.shape.partition(":")[0] not in _SIZELESS
    options = CHANGES if has_size else (STAYED, APPEARED, RESOLVED)
    change = options[rng.integers(len(options))] if may_change else STAYED
    middle, diameters = rng.uniform(*_MIDDLE), rng.uniform(*_DIAMETERS)
    first = int(rng.integers(1, dates))  # date of the change, where a lesion appears or resolves
    if change in (GREW, SHRANK):
        course = [float(middle * diameters ** (date / (dates - 1) - 0.5)) for date in range(dates)]
        return course if change == GREW else course[::-1]
    away = {APPEARED: range(first), RESOLVED: range(first, dates)}.get(change, ())
    return [0.0 if date in away else float(middle) for date in range(dates)]


def changes_of(sizes: list[SizeOnDate]) -> dict[str, list[str]]:
    """Disorder -> the change between each two successive dates."""
    volumes: dict[str, list[float]] = {}
    for one in sorted(sizes, key=lambda one: -one.days):
        volumes.setdefault(one.disorder, []).append(one.volume_ml)
    return {name: [change_of(*pair) for pair in pairwise(of_dates)] for name, of_dates in volumes.items()}


def _joined(earlier: Phantom | None, phantom: Phantom, day: float) -> Phantom:
    """The phantom with the scans of an earlier one before its own, which are of this day."""
    for scan in phantom.case.scans:
        scan.days = day
    phantom.sizes = [SizeOnDate(one.disorder, day, one.volume_ml) for one in phantom.sizes]
    if earlier is None:
        return phantom
    case: Case = phantom.case
    case.scans = earlier.case.scans + case.scans
    phantom.masks = earlier.masks + phantom.masks
    phantom.sizes = earlier.sizes + phantom.sizes
    phantom.protocols = earlier.protocols + phantom.protocols
    return phantom
