"""Batches of texts of similar length.

Decisions:
- Neighbouring rows stay together in groups: similar terms are neighbours in the data, and in one batch they are hard
  negatives of each other.
- A batch is as wide as its longest text, so it has texts of similar length: groups are shuffled, collected in pools of
  some batches, sorted by length within a pool and cut into batches, which are shuffled.
- A text is in a batch once, and not together with a text that it is paired with in another row (two synonyms of one
  term, each paired with another of its names): a ranking loss would treat the second as a negative. Such a row is moved
  to a later batch, of the next pool if necessary. At the end of an epoch a few rows may remain; complete batches are
  repeated instead, so that every epoch has the same number of steps.
- The order depends on seed and epoch alone, so that a resumed run has the same batches.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from sentence_transformers.base.sampler import DefaultBatchSampler

POOL = 8  # batches
GROUP = 32  # rows


class LengthBatchSampler(DefaultBatchSampler):
    """A batch sampler for `SentenceTransformerTrainingArguments(batch_sampler=LengthBatchSampler)`."""

    def __init__(self, dataset, batch_size: int, drop_last: bool, **kwargs):
        super().__init__(dataset, batch_size=batch_size, drop_last=drop_last, **kwargs)
        self._size = len(dataset)
        columns = [name for name in dataset.column_names if isinstance(dataset[0][name], str)]
        texts = [[text.casefold() for text in dataset[:][name]] for name in columns]
        self._texts = list(zip(*texts, strict=True))
        self._lengths = np.array([max(map(len, row)) for row in self._texts])
        self._same = {
            text: set() for row in self._texts for text in row
        }  # text -> itself and all texts that it is paired with
        for row in self._texts:
            for text in row:
                self._same[text].update(row)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed or 0, self.epoch])
        groups = np.split(np.arange(self._size), np.arange(GROUP, self._size, GROUP) - rng.integers(GROUP))
        order = np.concatenate([groups[i] for i in rng.permutation(len(groups))])
        complete, rest = [], []
        for start in range(0, self._size, POOL * self.batch_size):
            pool = np.array([*rest, *order[start : start + POOL * self.batch_size]])
            batches = self._cut(pool[np.argsort(self._lengths[pool], kind="stable")].tolist())
            complete += [batch for batch in batches if len(batch) == self.batch_size]
            rest = [row for batch in batches if len(batch) < self.batch_size for row in batch]
        if rest and not self.drop_last:
            complete += self._cut(rest)
        shuffled = [complete[i] for i in rng.permutation(len(complete))]
        yield from itertools.islice(itertools.cycle(shuffled), len(self) if shuffled else 0)

    def __len__(self) -> int:
        return self._size // self.batch_size if self.drop_last else -(-self._size // self.batch_size)

    def _cut(self, pool: list[int]) -> list[list[int]]:
        batches = []
        while pool:
            batch, excluded, later = [], set(), []
            for row in pool:
                texts = self._texts[row]
                if len(batch) < self.batch_size and excluded.isdisjoint(texts):
                    batch.append(row)
                    excluded.update(*(self._same[text] for text in texts))
                else:
                    later.append(row)
            batches.append(batch)
            pool = later
        return batches
