"""A prepared data set as training steps: draws in, packed batches out.

Decisions:
- A batch is asked for by its draws and packed ahead, while the one before it is learned from; what varies in it follows
  from the draws alone.
- All that can be read of a shard without its pixels is read before the first step. A case whose shard is damaged is
  left out and named, for all processes alike and in every resumed run.
- At scan level each draw shows one scan of its case, under the case's labels. A measure always shows the whole case: a
  model without a fusion module then averages its scans.
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from radfm.cases import Case, Scan
from radfm.data_prep.batches.augmentation import Augmentation, generator, some_slices
from radfm.data_prep.batches.sampling import Draw
from radfm.data_prep.batches.slice_features import SliceFeatures
from radfm.data_prep.stored_cases import StoredCases
from radfm.processing_radfm import RadFMProcessor


class CaseDataset(Dataset):
    """`data.__getitems__(draws)` is a packed batch, with `labels` (cases, disorders) and `case_rows` (cases,) int64.

    Args:
        cases: a data set, of labelled cases only.
        processor: its image processor's `max_slices` bounds the slices of a scan that is not drawn from.
        augmentation: of draws with an epoch; None: none.
        one_scan: whether a draw with an epoch shows one scan of its case.
        history_embeds: (cases of the data set, d), embedded before; None: histories are tokenized, if at all.
        seed: of all that varies.
        only: rows of `cases`, to leave out all others; None: all.
        slices_per_scan: bounds those of a draw with an epoch, the key slice among them; None: as for all others.
        places: whether to say where disorders are to be seen: `masks` (masks, H, W) bool in the square that the model
            sees, `mask_rows` (masks, 2) int64, the slice of the batch and the disorder of each, and `unlocated` (cases,
            disorders) bool, those of a case of which no mask says where.

    Attributes:
        features: of every slice; set, they are in a batch as `slice_features`, in place of `pixel_values`.
        skipped: [(case_id, reason), ...] of what cannot be read.
    """

    def __init__(
        self,
        cases: StoredCases,
        processor: RadFMProcessor,
        augmentation: Augmentation | None = None,
        one_scan: bool = False,
        history_embeds: Tensor | None = None,
        seed: int = 0,
        only: Sequence[int] | None = None,
        slices_per_scan: int | None = None,
        places: bool = False,
    ):
        self.cases, self.processor, self.augmentation = cases, processor, augmentation
        self.one_scan, self.history_embeds, self.seed = one_scan, history_embeds, seed
        self.slices_per_scan, self.places = slices_per_scan, places
        self.features: SliceFeatures | None = None
        self.rows, self._slice_counts, self.skipped = _readable(cases, range(len(cases)) if only is None else only)
        self._normal_scans: dict[str, list[int]] | None = None
        if augmentation is not None and augmentation.add_normal:
            self._normal_scans = self._scans_of_normal_cases()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def slice_counts(self) -> list[int]:
        """(cases,) the slices that a draw of each costs; at scan level their mean."""
        counts = [[min(n, self._most_slices) for n in scans] for scans in self._slice_counts]
        return [round(np.mean(scans)) if self.one_scan else sum(scans) for scans in counts]

    def slices_of(self, draw: Draw) -> int:
        """What this very draw costs, without the scans that its augmentation drops."""
        scans = self._case(draw, generator(self.seed, draw)).scans
        return sum(min(len(scan.pixels), self._most_slices) for scan in scans)

    @property
    def _most_slices(self) -> int:
        bounds = (self.slices_per_scan, self.processor.image_processor.max_slices)
        return min(filter(None, bounds), default=sys.maxsize)

    @property
    def labels(self) -> list[list[int]]:
        """(cases,) the disorders of each, as rows of the vocabulary."""
        return [self.cases.rows[row]["labels"] for row in self.rows]

    @property
    def label_counts(self) -> np.ndarray:
        """(disorders,) cases of each."""
        return np.bincount([d for rows in self.labels for d in rows], minlength=len(self.cases.vocabulary))

    def case_id(self, case: int) -> str:
        return self.cases.rows[self.rows[case]]["case_id"]

    def body_parts(self, case: int) -> list[str]:
        """The parts of the body that a case shows, as far as its scans say."""
        scans = self.cases.rows[self.rows[case]]["scan_rows"]
        return sorted({part for scan in scans if (part := self.cases.scan_header(scan)["body_part"])})

    def __getitems__(self, draws: Sequence[Draw]) -> dict[str, Tensor]:
        generators = [generator(self.seed, draw) if draw.epoch >= 0 else None for draw in draws]
        cases = [self._case(draw, rng) for draw, rng in zip(draws, generators, strict=True)]
        for case, rng in zip(cases, generators, strict=True):
            if rng is not None:
                case.scans = [some_slices(scan, self.slices_per_scan, rng) for scan in case.scans]
        batch = dict(self.processor(cases=cases, pixels=self.features is None))
        if self.features is not None:
            batch["slice_features"] = self._chosen_features(cases)
        masks = [self._fitted_masks(scan) for case in cases for scan in case.scans]
        if self.augmentation is not None and self.augmentation.changes_pixels:
            scans = zip(batch["pixel_values"].split(batch["slices_per_scan"].tolist()), masks, strict=True)
            for case, rng in zip(cases, generators, strict=True):
                for values, of_scan in (next(scans) for _ in case.scans):
                    if rng is not None:
                        self.augmentation.slices(values, rng, of_scan)
        if self.places:
            batch |= self._packed_masks(cases, masks)
            located = torch.from_numpy(np.stack([self.cases.located(self.rows[draw.case]) for draw in draws]))
        if self.history_embeds is not None:
            del batch["history_input_ids"], batch["history_attention_mask"]
            told = [self.rows[draw.case] for draw, case in zip(draws, cases, strict=True) if case.history]
            batch["history_embeds"] = self.history_embeds[told]
        rows = [draw.case for draw in draws]
        batch["labels"] = torch.from_numpy(np.stack([self.cases.labels(self.rows[row]) for row in rows]))
        if self.places:
            batch["unlocated"] = (batch["labels"] > 0) & ~located
        batch["case_rows"] = torch.tensor(rows)
        return batch

    def _case(self, draw: Draw, rng: np.random.Generator | None) -> Case:
        row = self.rows[draw.case]
        try:
            case = self.cases[row]
        except (ValueError, OSError) as error:
            raise ValueError(f"case {self.case_id(draw.case)} can no longer be read: {error}") from error
        scan_rows = self.cases.rows[row]["scan_rows"]
        if self.places:
            case.scans = [replace(s, masks=self.cases.masks(i)) for s, i in zip(case.scans, scan_rows, strict=True)]
        case.scans = [self._with_features(scan, i) for scan, i in zip(case.scans, scan_rows, strict=True)]
        if rng is not None and self.augmentation is not None:
            case = self.augmentation.case(case, rng, self._normal_scan if self._normal_scans else None)
        if rng is not None and self.one_scan:
            case.scans = [case.scans[rng.integers(len(case.scans))]]
        return case

    def _normal_scan(self, rng: np.random.Generator, parts: set[str]) -> Scan | None:
        """A scan of a normal case that shows none of these parts of the body."""
        others = sorted(set(self._normal_scans) - parts)
        if not others:
            return None
        row = rng.choice(self._normal_scans[rng.choice(others)])
        return self._with_features(self.cases.scan(row), row)

    def _with_features(self, scan: Scan, row: int) -> Scan:
        """The scan with features (slices, f) in the place of its pixels, where there are features."""
        return scan if self.features is None else replace(scan, pixels=self.features.of(row))

    def _chosen_features(self, cases: list[Case]) -> Tensor:
        """(slices, f) float32, of the slices that the processor takes."""
        choose = self.processor.image_processor.choose_slices
        taken = [scan.pixels[choose(len(scan.pixels))] for case in cases for scan in case.scans]
        return torch.from_numpy(np.concatenate(taken).astype(np.float32))

    def _fitted_masks(self, scan: Scan) -> Tensor | None:
        """Where the scan's disorders are in the slices that the processor takes: (disorders, slices, size, size)."""
        if not self.places:
            return None
        images = self.processor.image_processor
        taken = images.choose_slices(len(scan.pixels))
        shape = (0, len(taken), *scan.pixels.shape[1:3])
        masks = np.stack([mask[taken] for mask in scan.masks.values()]) if scan.masks else np.zeros(shape)
        return images.fit(torch.from_numpy(masks.astype(np.float32)), scan.spacing_mm)

    def _packed_masks(self, cases: list[Case], masks: list[Tensor]) -> dict[str, Tensor]:
        row_of = {name: row for row, name in enumerate(self.cases.vocabulary.names)}
        packed, rows, first = [], [], 0
        for scan, of_scan in zip((scan for case in cases for scan in case.scans), masks, strict=True):
            of_scan = of_scan >= 0.5
            for disorder, of_disorder in zip(scan.masks or (), of_scan, strict=True):
                for shown in of_disorder.any((1, 2)).nonzero().flatten().tolist():
                    packed.append(of_disorder[shown])
                    rows.append((first + shown, row_of[disorder]))
            first += of_scan.shape[1]
        size = self.processor.image_processor.size
        return {
            "masks": torch.stack(packed) if packed else torch.zeros(0, size, size, dtype=torch.bool),
            "mask_rows": torch.tensor(rows, dtype=torch.int64).view(-1, 2),
        }

    def _scans_of_normal_cases(self) -> dict[str, list[int]]:
        scans: dict[str, list[int]] = {}
        for case in map(self.cases.rows.__getitem__, self.rows):
            for scan in () if case["labels"] else case["scan_rows"]:
                if part := self.cases.scan_header(scan)["body_part"]:
                    scans.setdefault(part, []).append(scan)
        return scans


class StepLoader(DataLoader):
    """A loader of steps, whose sampler is told the epoch. Without workers a thread reads the next step meanwhile."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        steps = super().__iter__()
        if self.num_workers:
            yield from steps
            return
        with ThreadPoolExecutor(1) as reader:
            threads = torch.get_num_threads()
            reader.submit(_compute_alone).result()
            torch.set_num_threads(threads)  # with what other threads begin
            ahead = reader.submit(next, steps, None)
            while (step := ahead.result()) is not None:
                ahead = reader.submit(next, steps, None)
                yield step

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def _compute_alone() -> None:
    """Tensors of one picture are small: more threads would only wait for each other, on cores that have to learn."""
    torch.get_num_threads()  # a thread that never asked would begin with the number of all
    torch.set_num_threads(1)


def step_loader(data: CaseDataset, steps, workers: int = 0) -> StepLoader:
    """
    Args:
        steps: a `StepSampler`, or a list of steps.
        workers: processes that read and pack ahead.
    """
    return StepLoader(data, batch_sampler=steps, collate_fn=_as_it_is, num_workers=workers)


def _as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch


def _readable(cases: StoredCases, wanted: Sequence[int]) -> tuple[list[int], list[list[int]], list[tuple[str, str]]]:
    """Rows of the wanted cases that can be read, the slices of their scans, and (case_id, reason) of all others."""
    rows, counts, skipped = [], [], []
    for row in wanted:
        case = cases.rows[row]
        try:
            counts.append([cases.scan_header(scan)["shape"][0] for scan in case["scan_rows"]])
            rows.append(row)
        except (ValueError, OSError, EOFError) as error:
            skipped.append((case["case_id"], " ".join(str(error).split())))
    return rows, counts, skipped
