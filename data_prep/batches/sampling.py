"""Which cases a training step sees: steps that cost alike, and a tail that is seen often enough.

Decisions:
- A step has a budget of slices, not of cases, over all processes together: slices are what costs, and a config means
  the same on one process and on eight.
- An epoch draws every case once, and on top, where asked, cases by disorder: a disorder uniformly, then one of its
  cases. So the tail comes more often and no case less.
- Draws go in pools of some steps; within a pool the largest case comes first and each goes into the step that has least
  yet, so that all have as many slices, the last of an epoch, too. Every step is split over the processes by slices, the
  largest case first.
- All follows from seed and epoch alone, and a draw carries what its augmentation is seeded with, so that a resumed run
  sees the very pictures that it would have seen. Every epoch and every process has the same number of steps.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

POOL = 16  # steps
LEAST = 2  # cases in a step: a case is told from another


class Draw(NamedTuple):
    """A case as it is drawn; `time` counts how often it was drawn in this epoch before. `epoch` -1: as it is stored."""

    case: int
    epoch: int = -1
    time: int = 0


class StepSampler(Sampler[list[Draw]]):
    """Steps of at most so many slices; a case with more goes with one other. To be a DataLoader's `batch_sampler`.

    Args:
        slice_counts: (cases,) slices of each case.
        labels: (cases,) lists of disorders; needed where `by_disorder` is not 0.
        slices: the budget of a step, of all processes together.
        by_disorder: share of an epoch's draws that go by disorder, 0 to below 1.
        seed: with `set_epoch`, decides everything.
        rank, world_size: of several processes, each gets its part of every step.
        slices_of: how many slices a draw has, where that varies, so that the parts are even; None: as its case.
    """

    def __init__(
        self,
        slice_counts: Sequence[int],
        labels: Sequence[Sequence[int]],
        slices: int,
        by_disorder: float = 0.0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        slices_of: Callable[[Draw], int] | None = None,
    ):
        if slices < 1:
            raise ValueError(f"a step has at least 1 slice, not {slices}")
        if not 0 <= by_disorder < 1:
            raise ValueError(f"by_disorder is a share of the draws, from 0 to below 1, not {by_disorder}")
        if len(slice_counts) < max(LEAST, world_size):
            raise ValueError(f"{len(slice_counts)} cases are too few to train on, with {world_size} processes")
        self._counts, self._budget, self._seed = np.asarray(slice_counts), slices, seed
        self._rank, self._world_size, self._slices_of = rank, world_size, slices_of
        self._least = max(LEAST, world_size)
        cases_of: dict[int, list[int]] = {}
        for case, rows in enumerate(labels):
            for disorder in rows:
                cases_of.setdefault(disorder, []).append(case)
        self._cases_of = [cases_of[disorder] for disorder in sorted(cases_of)]
        share = by_disorder if self._cases_of else 0.0
        self._extra = round(len(slice_counts) * share / (1 - share))
        self._epoch = 0
        self._steps = len(self._packed(np.random.default_rng([seed, 0])))

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[Draw]]:
        times: dict[int, int] = {}
        for step in self._all_steps():
            draws = []
            for case in step:
                draws.append(Draw(case, self._epoch, times.get(case, 0)))
                times[case] = times.get(case, 0) + 1
            counts = self._counts[step]
            if self._slices_of is not None and self._world_size > 1:
                counts = [self._slices_of(draw) for draw in draws]
            yield split_by_slices(draws, counts, self._world_size)[self._rank]

    def _all_steps(self) -> list[list[int]]:
        rng = np.random.default_rng([self._seed, self._epoch])
        steps = self._packed(rng)
        while len(steps) < self._steps:  # this epoch packed better than the first: more draws
            steps += self._packed(rng)
        return steps[: self._steps]

    def _packed(self, rng: np.random.Generator) -> list[list[int]]:
        """An epoch's draws as steps."""
        disorders = rng.integers(len(self._cases_of), size=self._extra) if self._extra else []
        by_disorder = [int(rng.choice(self._cases_of[disorder])) for disorder in disorders]
        draws = rng.permutation([*range(len(self._counts)), *by_disorder])
        slices = np.cumsum(self._counts[draws].clip(max=self._budget))
        pools = -(-slices[-1] // (POOL * self._budget))
        ends = np.searchsorted(slices, slices[-1] * np.arange(1, pools) / pools)
        steps = [step for pool in np.split(draws, ends) if len(pool) for step in self._evenly(pool.tolist())]
        lone = [step for step in steps if len(step) < self._least]
        steps = [step for step in steps if len(step) >= self._least]
        for step in lone:
            if steps:
                min(steps, key=self._size).extend(step)
            else:
                steps.append(step)
        return [steps[i] for i in rng.permutation(len(steps))]

    def _evenly(self, cases: list[int]) -> list[list[int]]:
        """As few steps as hold the cases, and all alike: each case, the largest first, goes where there is least."""
        cases = sorted(cases, key=lambda case: -self._counts[case])
        most = max(len(cases) // self._least, 1)
        fewest = -(-int(self._counts[cases].clip(max=self._budget).sum()) // self._budget)
        for count in range(min(fewest, most), most + 1):
            steps: list[list[int]] = [[] for _ in range(count)]
            sizes = [0] * count
            for case in cases:
                emptiest = min(range(count), key=lambda i: (len(steps[i]) >= self._least, sizes[i]))
                steps[emptiest].append(case)
                sizes[emptiest] += int(self._counts[case])
            if all(size <= self._budget or len(step) <= self._least for step, size in zip(steps, sizes, strict=True)):
                break
        return steps

    def _size(self, step: list[int]) -> int:
        return int(self._counts[step].sum())


def steps_in_order(slice_counts: Sequence[int], slices: int, rank: int = 0, world_size: int = 1) -> list[list[Draw]]:
    """Every case once, in order, as it is stored, for a measure: equally many steps for each process.

    A process without a case in a step takes its first again, whose answer is known then already.
    """
    steps: list[list[Draw]] = []
    size = 0
    for case, count in enumerate(slice_counts):
        if not steps or size + count > slices:
            steps.append([])
            size = 0
        steps[-1].append(Draw(case))
        size += count
    counts = np.asarray(slice_counts)
    parts = [split_by_slices(step, counts[[draw.case for draw in step]], world_size) for step in steps]
    return [part[rank] or part[0][:1] for part in parts]


def split_by_slices(draws: Sequence[Draw], slice_counts: Sequence[int], parts: int) -> list[list[Draw]]:
    """So many parts with slices as even as can be, the largest case first; none is empty if there are enough."""
    split: list[list[Draw]] = [[] for _ in range(parts)]
    sizes = [0] * parts
    for i in sorted(range(len(draws)), key=lambda i: -slice_counts[i]):
        smallest = min(range(parts), key=lambda part: (bool(split[part]), sizes[part]))
        split[smallest].append(draws[i])
        sizes[smallest] += int(slice_counts[i])
    return split
