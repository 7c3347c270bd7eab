"""The data set of training, evaluation and fine-tuning: samples in, packed batches out.

    >>> cases = load("datasets/mine", "train", labelled=True)
    >>> data = CaseDataset(cases, processor, Sampling(slices_per_scan=8))
    >>> steps = StepSampler(data.slice_counts, data.labels, slices=128)
    >>> for batch in step_loader(data, steps): model(**batch)

Decisions:
- An item is a whole batch, requested by a list of samples. It is packed in advance, while the model computes the batch
  before it; everything random in it follows from the samples.
- What can be read of a shard without its pixels is read before the first step. A case whose shard is damaged is left
  out and reported, in all processes and in every resumed run alike.
- Without a `Sampling` a case is shown as it is stored, as an evaluation needs it: a model without a case encoder then
  averages its scans.
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from radfm.cases import Case, Scan
from radfm.data_prep.batches.augmentation import Augmentation, generator, some_slices
from radfm.data_prep.batches.sampling import Sample
from radfm.data_prep.batches.slice_features import SliceFeatures
from radfm.data_prep.stored_cases import StoredCases
from radfm.processing_radfm import RadFMProcessor

_NO_PIXELS = (
    "latents have no pixels to change: leave affine, elastic, noise, contrast and mirror out of augmentation; a tower "
    "of latents adds noise and masks by itself"
)


@dataclass(frozen=True)
class Sampling:
    """How a sample differs from the stored case.

    Attributes:
        augmentation: random changes; None: none.
        sample_scans: 1: one scan of the case, under the labels of the case; None: all scans.
        slices_per_scan: of a scan with more slices so many, the key slice among them; None: as the processor.
        seed: of everything that is random.
    """

    augmentation: Augmentation | None = None
    sample_scans: int | None = None
    slices_per_scan: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.sample_scans not in (None, 1):
            raise ValueError(f"sample_scans is 1 or None, not {self.sample_scans}")


class CaseDataset(Dataset):
    """`data.__getitems__(samples)` is a packed batch, with `labels` (cases, disorders) and `case_rows` (cases,) int64.

    Args:
        cases: a prepared data set, with labelled cases only.
        processor: its image processor's `max_slices` limits the slices of a scan.
        sampling: how a sample differs from the stored case; None: not at all.
        rows: of `cases`, to leave out all others; None: all.
        history_embeds: (cases of the data set, d), computed in advance; None: histories are tokenized, if at all.
        features: of every slice by a frozen tower; they are `pixel_values`, (slices, f), in a batch.
        masks: whether a batch tells where disorders are: `masks` (masks, H, W) bool in the square that the model
            sees, `mask_rows` (masks, 2) int64, the slice in the batch and the disorder of each, and `unlocated` (cases,
            disorders) bool, the disorders of a case that are in none of its masks.
        teacher_logits: (cases of the data set, disorders), computed in advance by another model; they are
            `teacher_logits` (cases, disorders) of a batch.

    Attributes:
        skipped: [(case_id, reason), ...] of what cannot be read.

    Raises:
        ValueError: a case has no label, which does not make it a normal one; the model reads other latents, or pixels;
            or the augmentation changes the pixels of latents.
    """

    def __init__(
        self,
        cases: StoredCases,
        processor: RadFMProcessor,
        sampling: Sampling | None = None,
        rows: Sequence[int] | None = None,
        history_embeds: Tensor | None = None,
        features: SliceFeatures | None = None,
        masks: bool = False,
        teacher_logits: Tensor | None = None,
    ):
        rows = range(len(cases)) if rows is None else rows
        if unlabelled := sum(not cases.rows[row]["labelled"] for row in rows):
            raise ValueError(f"{unlabelled:,} of {len(rows):,} cases have no label: load them with labelled=True")
        refuse_other_latents(cases, processor.image_processor.latents)
        self.cases, self.processor, self.sampling = cases, processor, sampling
        if cases.record.get("latents") and self._augmentation is not None and self._augmentation.changes_pixels:
            raise ValueError(_NO_PIXELS)
        self.history_embeds, self.features, self.masks = history_embeds, features, masks
        self.teacher_logits = teacher_logits
        self.rows, self._slice_counts, self.skipped = _readable(cases, rows)
        self._normal_scans: dict[str, list[int]] = {}
        if self._augmentation is not None and self._augmentation.add_normal:
            self._normal_scans = self._scans_of_normal_cases()

    def __len__(self) -> int:
        return len(self.rows)

    def as_stored(self) -> "CaseDataset":
        """The same cases without sampling."""
        return CaseDataset(self.cases, self.processor, None, self.rows, self.history_embeds, self.features, self.masks)

    @property
    def slice_counts(self) -> list[int]:
        """(cases,) the slices of a sample of each case; the mean of its scans where one of them is sampled."""
        counts = [[self._prepared_slices(n) for n in scans] for scans in self._slice_counts]
        one_scan = self.sampling is not None and self.sampling.sample_scans == 1
        return [round(np.mean(scans)) if one_scan else sum(scans) for scans in counts]

    def slices_of(self, sample: Sample) -> int:
        """The slices of this sample, without the scans that its augmentation drops."""
        scans = self._sampled_case(sample, self._generator(sample)).scans
        return sum(self._prepared_slices(len(scan.pixels)) for scan in scans)

    @property
    def labels(self) -> list[list[int]]:
        """(cases,) the disorders of each, as rows of the vocabulary."""
        return [self.cases.rows[row]["labels"] for row in self.rows]

    @property
    def label_matrix(self) -> np.ndarray:
        """(cases, disorders) float32 of 0 and 1."""
        matrix = [self.cases.labels(row) for row in self.rows]
        return np.stack(matrix) if matrix else np.zeros((0, len(self.cases.vocabulary)), np.float32)

    @property
    def label_counts(self) -> np.ndarray:
        """(disorders,) cases of each."""
        return np.bincount([d for rows in self.labels for d in rows], minlength=len(self.cases.vocabulary))

    def case_id(self, case: int) -> str:
        return self.cases.rows[self.rows[case]]["case_id"]

    def groups(self, case: int) -> list[str]:
        """The collection of a case or, where none is stated, the parts of the body that its scans show."""
        row = self.cases.rows[self.rows[case]]
        if row["collection"]:
            return [row["collection"]]
        return sorted({part for scan in row["scan_rows"] if (part := self.cases.scan_header(scan)["body_part"])})

    def __getitems__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        generators = [self._generator(sample) for sample in samples]
        cases = [self._sampled_case(sample, rng) for sample, rng in zip(samples, generators, strict=True)]
        if self.sampling is not None:
            for case, rng in zip(cases, generators, strict=True):
                assert rng is not None
                case.scans = [self._some_slices(scan, rng) for scan in case.scans]
        batch = dict(self.processor(cases=cases, pixels=self.features is None))
        if self.features is not None:
            batch["pixel_values"] = self._chosen_features(cases)
        masks = [self._fitted_masks(scan) for case in cases for scan in case.scans]
        if self._augmentation is not None and self._augmentation.changes_pixels:
            scans = zip(batch["pixel_values"].split(batch["slices_per_scan"].tolist()), masks, strict=True)
            for case, rng in zip(cases, generators, strict=True):
                assert rng is not None
                for values, masks_of_scan in (next(scans) for _ in case.scans):
                    self._augmentation.slices(values, rng, masks_of_scan)
        if self.history_embeds is not None:
            del batch["history_input_ids"], batch["history_attention_mask"]
            with_history = [self.rows[s.case] for s, case in zip(samples, cases, strict=True) if case.history]
            batch["history_embeds"] = self.history_embeds[with_history]
        rows = [self.rows[sample.case] for sample in samples]
        if self.teacher_logits is not None:
            batch["teacher_logits"] = self.teacher_logits[rows]
        batch["labels"] = torch.from_numpy(np.stack([self.cases.labels(row) for row in rows]))
        if self.masks:
            located = torch.from_numpy(np.stack([self.cases.located(row) for row in rows]))
            batch |= self._packed_masks(cases, masks)
            batch["unlocated"] = (batch["labels"] > 0) & ~located
        batch["case_rows"] = torch.tensor([sample.case for sample in samples])
        return batch

    @property
    def _augmentation(self) -> Augmentation | None:
        return None if self.sampling is None else self.sampling.augmentation

    def _some_slices(self, scan: Scan, rng: np.random.Generator) -> Scan:
        """The slices of this sample; a volume has all of them."""
        is_volume = self.processor.image_processor.reads_volume(scan)
        return scan if self.sampling is None or is_volume else some_slices(scan, self.sampling.slices_per_scan, rng)

    def _prepared_slices(self, slices: int) -> int:
        """About how many slices a stored scan of so many has in a batch, which decides what a step costs."""
        volume = self.processor.image_processor.volume
        if volume is None or self.features is not None or slices < volume.get("least_slices", 1):
            return min(slices, self._max_slices)
        return volume["size"][0] or slices

    @property
    def _max_slices(self) -> int:
        limits = (self.sampling and self.sampling.slices_per_scan, self.processor.image_processor.max_slices)
        return min((limit for limit in limits if limit), default=sys.maxsize)

    def _generator(self, sample: Sample) -> np.random.Generator | None:
        return None if self.sampling is None else generator(self.sampling.seed, sample)

    def _sampled_case(self, sample: Sample, rng: np.random.Generator | None) -> Case:
        """The case with the scans of this sample, before its slices are chosen."""
        row = self.rows[sample.case]
        try:
            case = self.cases[row]
        except (ValueError, OSError) as error:
            raise ValueError(f"case {self.case_id(sample.case)} can no longer be read: {error}") from error
        scan_rows = self.cases.rows[row]["scan_rows"]
        if self.masks:
            case.scans = [replace(s, masks=self.cases.masks(i)) for s, i in zip(case.scans, scan_rows, strict=True)]
        case.scans = [self._with_features(scan, i) for scan, i in zip(case.scans, scan_rows, strict=True)]
        if self.sampling is None or rng is None:
            return case
        if self._augmentation is not None:
            case = self._augmentation.case(case, rng, self._normal_scan if self._normal_scans else None)
        if self.sampling.sample_scans == 1:
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
        """The scan with features (slices, f) instead of its pixels, if there are features."""
        return scan if self.features is None else replace(scan, pixels=self.features.of(row))

    def _chosen_features(self, cases: list[Case]) -> Tensor:
        """(slices, f) float32, of the slices that the processor takes."""
        choose = self.processor.image_processor.choose_slices
        chosen = [scan.pixels[choose(len(scan.pixels))] for case in cases for scan in case.scans]
        return torch.from_numpy(np.concatenate(chosen).astype(np.float32))

    def _fitted_masks(self, scan: Scan) -> Tensor | None:
        """Where the scan's disorders are in the slices that the processor takes: (disorders, slices, size, size)."""
        if not self.masks:
            return None
        images = self.processor.image_processor
        chosen = images.choose_slices(len(scan.pixels))
        if not scan.masks:
            return torch.zeros(0, len(chosen), images.size, images.size)
        masks = np.stack([mask[chosen] for mask in scan.masks.values()])
        return images.fit(torch.from_numpy(masks.astype(np.float32)), scan.spacing_mm)

    def _packed_masks(self, cases: list[Case], masks: list[Tensor]) -> dict[str, Tensor]:
        row_of = {name: row for row, name in enumerate(self.cases.vocabulary.names)}
        packed, rows, first = [], [], 0
        for scan, masks_of_scan in zip((scan for case in cases for scan in case.scans), masks, strict=True):
            masks_of_scan = masks_of_scan >= 0.5
            for disorder, mask in zip(scan.masks or (), masks_of_scan, strict=True):
                for slice_index in mask.any((1, 2)).nonzero().flatten().tolist():
                    packed.append(mask[slice_index])
                    rows.append((first + slice_index, row_of[disorder]))
            first += masks_of_scan.shape[1]
        size = self.processor.image_processor.size
        return {
            "masks": torch.stack(packed) if packed else torch.zeros(0, size, size, dtype=torch.bool),
            "mask_rows": torch.tensor(rows, dtype=torch.int64).view(-1, 2),
        }

    def _scans_of_normal_cases(self) -> dict[str, list[int]]:
        scans: dict[str, list[int]] = {}
        for case in map(self.cases.rows.__getitem__, self.rows):
            for scan in () if case["labels"] or case["normal"] is False else case["scan_rows"]:
                if part := self.cases.scan_header(scan)["body_part"]:
                    scans.setdefault(part, []).append(scan)
        return scans


def refuse_other_latents(cases: StoredCases, expected: dict[str, Any] | None) -> None:
    """
    Args:
        expected: `latents` of the image processor of the model; None: it reads pixels.
    Raises:
        ValueError: the data set holds latents of another autoencoder, or pixels for a model of latents, or latents for
            a model of pixels.
    """
    stored = cases.record.get("latents")
    made_by, read = (latents and latents["autoencoder"] for latents in (stored, expected))
    if made_by == read:
        return
    if read is None:
        raise ValueError(f"{cases.folder} holds latents of autoencoder {made_by}, and the model reads pixels")
    holds = f"latents of autoencoder {made_by}" if made_by else "pixels"
    raise ValueError(
        f"{cases.folder} holds {holds}, the model reads latents of autoencoder {read}: run radfm prepare latents with "
        "that autoencoder"
    )


class StepLoader(DataLoader):
    """Passes the epoch to the sampler of the steps. Without workers a thread reads the next step in advance."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        steps = super().__iter__()
        if self.num_workers:
            yield from steps
            return
        with ThreadPoolExecutor(1) as reader:
            threads = torch.get_num_threads()
            reader.submit(_compute_on_one_thread).result()
            torch.set_num_threads(threads)  # the default of threads that start later
            ahead = reader.submit(next, steps, None)
            while (step := ahead.result()) is not None:
                ahead = reader.submit(next, steps, None)
                yield step

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def step_loader(data: CaseDataset, steps, workers: int = 0) -> StepLoader:
    """
    Args:
        steps: a `StepSampler`, or a list of steps.
        workers: processes that read and pack ahead.
    """
    return StepLoader(data, batch_sampler=steps, collate_fn=_unchanged, num_workers=workers)


def _unchanged(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch


def _compute_on_one_thread() -> None:
    """The tensors of one image are small: further threads would only compete for the cores of the training."""
    torch.get_num_threads()  # without this call the thread would start with the default number
    torch.set_num_threads(1)


def _readable(cases: StoredCases, rows: Sequence[int]) -> tuple[list[int], list[list[int]], list[tuple[str, str]]]:
    """The rows that can be read, the slices of the scans of each, and (case_id, reason) of all others."""
    readable, counts, skipped = [], [], []
    for row in rows:
        case = cases.rows[row]
        try:
            counts.append([cases.scan_header(scan)["shape"][0] for scan in case["scan_rows"]])
            readable.append(row)
        except (ValueError, OSError, EOFError) as error:
            skipped.append((case["case_id"], " ".join(str(error).split())))
    return readable, counts, skipped
