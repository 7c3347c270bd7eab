"""Cases of a data set -> packed batches for the model.

    >>> data = PackedCases(load("datasets/mine", "train"), processor)
    >>> loader = DataLoader(data, batch_size=None, sampler=SliceBudget(data.cases, 128, seed=0), num_workers=2)
    >>> for batch in loader: model(**batch)

Decisions:
- An item is a whole batch, asked for by a list of cases: packing is the collation, and it runs in the loader's workers.
- A batch has a budget of slices, not of cases: slices are what costs, and a case may have one or a thousand.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from radfm.data_prep.stored_cases import StoredCases


class PackedCases(Dataset):
    """`data[[3, 5]]` is the packed batch of cases 3 and 5, with `labels` (cases, disorders) float.

    Args:
        cases: a data set, of labelled cases only: a case that nobody labelled is no normal one.
        processor: a `RadFMProcessor`.
    """

    def __init__(self, cases: StoredCases, processor):
        if unlabelled := sum(not row["labelled"] for row in cases.rows):
            raise ValueError(f"{unlabelled:,} of {len(cases):,} cases have no label: load them with labelled=True")
        self.cases, self.processor = cases, processor

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int | Sequence[int]) -> dict[str, torch.Tensor]:
        rows = [index] if isinstance(index, int) else list(index)
        batch = dict(self.processor(cases=[self.cases[row] for row in rows], return_tensors="pt"))
        batch["labels"] = torch.from_numpy(np.stack([self.cases.labels(row) for row in rows]))
        return batch


class SliceBudget(Sampler):
    """Batches of cases, shuffled, of at most so many slices each; a case with more is a batch of its own.

    Args:
        seed: with `set_epoch`, decides the order.
        rank, world_size: of several processes, each takes every world_size-th batch; all get equally many.
    """

    def __init__(self, cases: StoredCases, slices: int, seed: int = 0, rank: int = 0, world_size: int = 1):
        if slices < 1:
            raise ValueError(f"a batch has at least 1 slice, not {slices}")
        self._counts = [cases.slices(i) for i in range(len(cases))]
        self._slices, self._seed, self._epoch = slices, seed, 0
        self._rank, self._world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._batches()
        even = len(batches) // self._world_size * self._world_size or len(batches)
        return iter(batches[:even][self._rank :: self._world_size])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _batches(self) -> list[list[int]]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(len(self._counts)).tolist()
        batches, size = [], 0
        for case in order:
            if not batches or size + self._counts[case] > self._slices:
                batches.append([])
                size = 0
            batches[-1].append(case)
            size += self._counts[case]
        return batches
