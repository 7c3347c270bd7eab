"""Which cases are in a training step: steps of equal cost, in which rare disorders occur often enough.

Decisions:
- The size of a step is a number of slices, not of cases, over all processes together: the cost is proportional to the
  slices, and a configuration means the same on one process and on eight.
- An epoch contains every case once and, if configured, further cases chosen by disorder: first a disorder, uniformly,
  then one of its cases. Rare disorders become more frequent, and no case becomes less frequent.
- Samples are distributed in pools of some steps. Within a pool each case, the largest first, is assigned to the step
  that has the fewest slices, so that all steps have about as many, including the last one of an epoch. Each step is
  split over the processes in the same way.
- Everything follows from seed and epoch, and a sample carries the seed of its augmentation, so that a resumed run gets
  identical images. Every epoch and every process has the same number of steps.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

POOL = 16  # steps
MIN_CASES = 2  # of a step: a loss compares cases


class Sample(NamedTuple):
    """One occurrence of a case in a step.

    Attributes:
        case: row of the data set.
        epoch: with `case` and `repeat` the seed of what is random in the sample.
        repeat: how often the case occurred in this epoch before.
    """

    case: int
    epoch: int = 0
    repeat: int = 0


class StepSampler(Sampler[list[Sample]]):
    """Steps of at most a number of slices; a larger case is put together with one other. A `batch_sampler`.

    Args:
        slice_counts: (cases,) slices of each case.
        labels: (cases,) lists of disorders; needed where `by_disorder` is not 0.
        slices: the maximum of a step, over all processes together.
        by_disorder: share of an epoch's samples that are chosen by disorder, 0 to below 1.
        seed: determines the samples, together with `set_epoch`.
        rank, world_size: of several processes, each gets its part of every step.
        slices_of: the slices of a sample, where augmentation changes them, so that the parts are equal; None: those of
            its case.

    Raises:
        ValueError: an argument is out of its range, or there are fewer cases than a step needs.
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
        slices_of: Callable[[Sample], int] | None = None,
    ):
        if slices < 1:
            raise ValueError(f"a step has at least 1 slice, not {slices}")
        if not 0 <= by_disorder < 1:
            raise ValueError(f"by_disorder is a share of the samples, from 0 to below 1, not {by_disorder}")
        if len(slice_counts) < max(MIN_CASES, world_size):
            raise ValueError(f"{len(slice_counts)} cases are too few to train on, with {world_size} processes")
        self._counts, self._budget, self._seed = np.asarray(slice_counts), slices, seed
        self._rank, self._world_size, self._slices_of = rank, world_size, slices_of
        self._min_cases = max(MIN_CASES, world_size)
        cases_of: dict[int, list[int]] = {}
        for case, rows in enumerate(labels):
            for disorder in rows:
                cases_of.setdefault(disorder, []).append(case)
        self._cases_of = [cases_of[disorder] for disorder in sorted(cases_of)]
        share = by_disorder if self._cases_of else 0.0
        self._additional = round(len(slice_counts) * share / (1 - share))
        self._epoch = 0
        self._steps = len(self._epoch_steps(np.random.default_rng([seed, 0])))

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[Sample]]:
        repeats: dict[int, int] = {}
        for step in self._all_steps():
            samples = []
            for case in step:
                samples.append(Sample(case, self._epoch, repeats.get(case, 0)))
                repeats[case] = repeats.get(case, 0) + 1
            counts = self._counts[step].tolist()
            if self._slices_of is not None and self._world_size > 1:
                counts = [self._slices_of(sample) for sample in samples]
            yield split_by_slices(samples, counts, self._world_size)[self._rank]

    def _all_steps(self) -> list[list[int]]:
        rng = np.random.default_rng([self._seed, self._epoch])
        steps = self._epoch_steps(rng)
        while len(steps) < self._steps:  # this epoch fits into fewer steps than the first: further samples follow
            steps += self._epoch_steps(rng)
        return steps[: self._steps]

    def _epoch_steps(self, rng: np.random.Generator) -> list[list[int]]:
        """The cases of an epoch, as steps."""
        disorders = rng.integers(len(self._cases_of), size=self._additional) if self._additional else []
        by_disorder = [int(rng.choice(self._cases_of[disorder])) for disorder in disorders]
        cases = rng.permutation([*range(len(self._counts)), *by_disorder])
        slices = np.cumsum(self._counts[cases].clip(max=self._budget))
        pools = -(-slices[-1] // (POOL * self._budget))
        ends = np.searchsorted(slices, slices[-1] * np.arange(1, pools) / pools)
        steps = [step for pool in np.split(cases, ends) if len(pool) for step in self._balanced(pool.tolist())]
        too_small = [step for step in steps if len(step) < self._min_cases]
        steps = [step for step in steps if len(step) >= self._min_cases]
        for step in too_small:
            if steps:
                min(steps, key=self._size).extend(step)
            else:
                steps.append(step)
        return [steps[i] for i in rng.permutation(len(steps))]

    def _balanced(self, cases: list[int]) -> list[list[int]]:
        """The smallest number of steps that holds the cases, each case, the largest first, in the smallest step."""
        cases = sorted(cases, key=lambda case: -self._counts[case])
        most = max(len(cases) // self._min_cases, 1)
        fewest = -(-int(self._counts[cases].clip(max=self._budget).sum()) // self._budget)
        steps: list[list[int]] = []
        for count in range(min(fewest, most), most + 1):
            steps = [[] for _ in range(count)]
            sizes = [0] * count
            for case in cases:
                smallest = min(range(count), key=lambda i: (len(steps[i]) >= self._min_cases, sizes[i]))
                steps[smallest].append(case)
                sizes[smallest] += int(self._counts[case])
            fits = [size <= self._budget or len(s) <= self._min_cases for s, size in zip(steps, sizes, strict=True)]
            if all(fits):
                break
        return steps

    def _size(self, step: list[int]) -> int:
        return int(self._counts[step].sum())


def steps_in_order(slice_counts: Sequence[int], slices: int, rank: int = 0, world_size: int = 1) -> list[list[Sample]]:
    """Every case once, in order, for an evaluation: the same number of steps for each process.

    A process without a case in a step repeats the first case of the step, whose result is the same.
    """
    steps: list[list[Sample]] = []
    size = 0
    for case, count in enumerate(slice_counts):
        if not steps or size + count > slices:
            steps.append([])
            size = 0
        steps[-1].append(Sample(case))
        size += count
    counts = np.asarray(slice_counts)
    parts = [split_by_slices(step, counts[[sample.case for sample in step]].tolist(), world_size) for step in steps]
    return [part[rank] or part[0][:1] for part in parts]


def split_by_slices(samples: Sequence[Sample], slice_counts: Sequence[int], parts: int) -> list[list[Sample]]:
    """Parts of about equal numbers of slices, assigned from the largest case on; none is empty if there are enough."""
    split: list[list[Sample]] = [[] for _ in range(parts)]
    sizes = [0] * parts
    for i in sorted(range(len(samples)), key=lambda i: -slice_counts[i]):
        smallest = min(range(parts), key=lambda part: (bool(split[part]), sizes[part]))
        split[smallest].append(samples[i])
        sizes[smallest] += int(slice_counts[i])
    return split
