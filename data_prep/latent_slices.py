"""The latents that a generator learns from: one slice of each scan of a latent data set, with what it shows.

Decisions:
- Of a scan the key slice is taken, else the middle one. The slices of a scan of 3D latents are windows: the middle one
  is taken, and it shows the disorders of the case.
- A slice shows the disorders that the masks of the source data set show on it. Where a case has no mask of a disorder,
  or no masks are given, it shows those of its case.
- A case whose disorders the source does not name completely has unknown disorders, unless it has some.
- Latents are read when they are needed, as views of memory-mapped files; a small set is read at once.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from radfm.data_prep.stored_cases import StoredCases
from radfm.latents.conditions import Prompt

_IN_MEMORY = 1 << 30  # bytes of a set that is read at once


class LatentSlices(Sequence[Prompt]):
    """The prompts that describe the slices; `latents` reads the slices themselves.

    Args:
        cases: of a latent data set.
        masks: the cases of the data set that the latents were made of, all splits, for its masks; None: not used.
    Raises:
        ValueError: the cases are no latents, or `masks` is another data set than that of the latents.
    """

    def __init__(self, cases: StoredCases, masks: StoredCases | None = None):
        if not cases.record.get("latents"):
            raise ValueError(f"{cases.folder} holds no latents: make them with radfm prepare latents")
        if masks is not None and masks.record["fingerprint"] != cases.record.get("derived_from"):
            raise ValueError(f"the latents of {cases.folder} were not made of {masks.folder}: give their own data set")
        self.cases, self._prompts, self._places = cases, [], []
        is_volume = len(self.shape) == 4
        located = _Located(masks) if masks is not None and not is_volume else None
        for case in cases.rows:
            names = [cases.vocabulary[label].name for label in case["labels"]]
            is_known = bool(names) or (case["labelled"] and case["normal"] is not False)
            for row in case["scan_rows"]:
                header = cases.scan_header(row)
                key, count = header["key_slice"], header["shape"][0]
                index = key if key is not None and key < count and not is_volume else count // 2
                shown = located.shown(case, row, index, count, names) if located is not None else names
                self._prompts.append(
                    Prompt(tuple(shown) if is_known else None, header["modality"], header["plane"], header["body_part"])
                )
                self._places.append((row, index))
        shape = self.shape
        self._all = self._read(range(len(self))) if len(self) * 2 * int(np.prod(shape)) <= _IN_MEMORY else None

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index):
        return self._prompts[index]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a latent, (channels, h, w)."""
        facts = self.cases.record["latents"]
        return (facts["channels"], *facts["size"])

    def latents(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """(n, channels, h, w) float32."""
        values = self._read(rows) if self._all is None else self._all[np.asarray(rows, int)]
        return torch.from_numpy(values.astype(np.float32))

    @property
    def known(self) -> dict[str, int]:
        """Disorder -> number of slices that show it, most frequent first."""
        return dict(Counter(name for prompt in self for name in prompt.disorders or ()).most_common())

    @property
    def contexts(self) -> dict[str, list[tuple[str | None, str | None, str | None, int]]]:
        """Disorder -> (modality, plane, body part, number of slices), most frequent first; "" where there is none."""
        counts: dict[str, Counter] = {}
        for prompt in self:
            for name in () if prompt.disorders is None else prompt.disorders or ("",):
                counts.setdefault(name, Counter())[prompt.modality, prompt.plane, prompt.body_part] += 1
        return {
            name: [(*context, count) for context, count in counts[name].most_common()]
            for name in ("", *self.known)
            if name in counts
        }

    def weights(self, by_disorder: float) -> np.ndarray:
        """(n,) probabilities: a share is chosen by disorder, first a disorder and then one of its slices."""
        known = self.known
        if not known:
            return np.full(len(self), 1 / len(self))
        of_disorders = [sum(1 / known[name] for name in prompt.disorders or ()) / len(known) for prompt in self]
        return (1 - by_disorder) / len(self) + by_disorder * np.array(of_disorders)

    def _read(self, rows: Sequence[int] | np.ndarray | range) -> np.ndarray:
        places = [self._places[row] for row in rows]
        return np.stack([self.cases.scan(row).pixels[index] for row, index in places]) if places else np.empty(0)


class _Located:
    """What the masks of a data set show."""

    def __init__(self, masks: StoredCases):
        self._masks = masks
        self._index = {row["case_id"]: index for index, row in enumerate(masks.rows)}

    def shown(self, case: dict, row: int, index: int, count: int, names: Sequence[str]) -> list[str]:
        """The disorders of a case that a slice shows, or of which the case has no mask.

        Args:
            row: of the scan, the same in both data sets.
            index, count: of the slice, and of all slices of the scan.
        """
        located = self._masks.located(self._index[case["case_id"]])
        masked = {disorder.name for disorder, has_mask in zip(self._masks.vocabulary, located, strict=True) if has_mask}
        masks = self._masks.masks(row)
        on_slice = {name for name, mask in masks.items() if len(mask) == count and mask[index].any()}
        return [name for name in names if name in on_slice or name not in masked]
