"""Batches of texts that cost alike.

Decisions:
- Rows come in families of neighbours, which go together: what is easily mistaken stands side by side, and in one batch
  each is a hard negative of the other.
- A batch is as wide as its longest text, so texts of like length go together: families are shuffled, put into pools of
  some batches, sorted by length within a pool, cut into batches, and these shuffled.
- No text comes twice in a batch, nor with another that it is paired with in any other row (two synonyms of one term,
  each beside another of its names): a ranking loss would take the second for a wrong answer. What collides goes to a
  later batch, of the next pool where this one has none left. At the end of an epoch a few rows may be left over; whole
  batches come again in their place, so that every epoch has as many steps as it says.
- The order follows from seed and epoch alone, so that a resumed run sees the batches that it would have seen.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from sentence_transformers.base.sampler import DefaultBatchSampler

POOL = 8  # batches
KIN = 32  # rows


class LengthBatchSampler(DefaultBatchSampler):
    """A batch sampler for `SentenceTransformerTrainingArguments(batch_sampler=LengthBatchSampler)`."""

    def __init__(self, dataset, batch_size: int, drop_last: bool, **kwargs):
        super().__init__(dataset, batch_size=batch_size, drop_last=drop_last, **kwargs)
        self._size = len(dataset)
        columns = [name for name in dataset.column_names if isinstance(dataset[0][name], str)]
        texts = [[text.casefold() for text in dataset[:][name]] for name in columns]
        self._texts = list(zip(*texts, strict=True))
        self._lengths = np.array([max(map(len, row)) for row in self._texts])
        self._same = {text: set() for row in self._texts for text in row}  # text -> itself, and all it is paired with
        for row in self._texts:
            for text in row:
                self._same[text].update(row)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed or 0, self.epoch])
        families = np.split(np.arange(self._size), np.arange(KIN, self._size, KIN) - rng.integers(KIN))
        order = np.concatenate([families[i] for i in rng.permutation(len(families))])
        whole, rest = [], []
        for start in range(0, self._size, POOL * self.batch_size):
            pool = np.array([*rest, *order[start : start + POOL * self.batch_size]])
            batches = self._cut(pool[np.argsort(self._lengths[pool], kind="stable")].tolist())
            whole += [batch for batch in batches if len(batch) == self.batch_size]
            rest = [row for batch in batches if len(batch) < self.batch_size for row in batch]
        if rest and not self.drop_last:
            whole += self._cut(rest)
        shuffled = [whole[i] for i in rng.permutation(len(whole))]
        yield from itertools.islice(itertools.cycle(shuffled), len(self) if shuffled else 0)

    def __len__(self) -> int:
        return self._size // self.batch_size if self.drop_last else -(-self._size // self.batch_size)

    def _cut(self, pool: list[int]) -> list[list[int]]:
        batches = []
        while pool:
            batch, seen, later = [], set(), []
            for row in pool:
                texts = self._texts[row]
                if len(batch) < self.batch_size and seen.isdisjoint(texts):
                    batch.append(row)
                    seen.update(*(self._same[text] for text in texts))
                else:
                    later.append(row)
            batches.append(batch)
            pool = later
        return batches
