"""Packed batches of sampled and stored cases."""

from pathlib import Path

import numpy as np
import pytest
import torch

from radfm import RadFMProcessor
from radfm.data_prep import load
from radfm.data_prep.batches.augmentation import Augmentation
from radfm.data_prep.batches.case_dataset import CaseDataset, Sampling
from radfm.data_prep.batches.sampling import Sample
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.data_prep.stored_cases import StoredCases


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> StoredCases:
    folder: Path = tmp_path_factory.mktemp("phantoms") / "data"
    prepare(Phantoms(40, size=48), folder, Settings(size=48, fractions=(0.7, 0.3, 0.0)))
    return load(folder, "train", labelled=True)


@pytest.fixture(scope="module")
def processor() -> RadFMProcessor:
    processor = RadFMProcessor()
    processor.image_processor.size = 48
    return processor


def test_a_sample_is_the_same_in_every_batch(cases, processor):
    strong = Augmentation(affine=1, elastic=0.5, noise=1, contrast=1, drop_scans=0.3, add_normal=0.5)
    data = CaseDataset(cases, processor, Sampling(strong, seed=5))
    alone, together = data.__getitems__([Sample(3, 1)]), data.__getitems__([Sample(0, 1), Sample(3, 1)])
    slices = len(alone["pixel_values"])
    assert torch.equal(together["pixel_values"][-slices:], alone["pixel_values"])
    assert torch.equal(together["labels"][1:], alone["labels"])
    other = data.__getitems__([Sample(3, 2)])["pixel_values"]
    assert other.shape != alone["pixel_values"].shape or not torch.equal(other, alone["pixel_values"])


def test_without_sampling_a_case_is_shown_as_it_is_stored(cases, processor):
    sampled = CaseDataset(cases, processor, Sampling(Augmentation(noise=1), sample_scans=1, slices_per_scan=1))
    for data in (CaseDataset(cases, processor), sampled.as_stored()):
        batch = data.__getitems__([Sample(3)])
        assert torch.equal(batch["pixel_values"], processor(cases=cases[3])["pixel_values"])
        assert data.slice_counts[3] == len(batch["pixel_values"])


@pytest.mark.parametrize("sample_scans", [None, 1])
def test_the_slices_of_a_sample_are_known_before_it_is_read(sample_scans, cases, processor):
    data = CaseDataset(cases, processor, Sampling(Augmentation(drop_scans=0.5), sample_scans, slices_per_scan=3))
    samples = [Sample(row, epoch) for row in range(10) for epoch in range(2)]
    counts = [data.slices_of(sample) for sample in samples]
    assert counts == [len(data.__getitems__([sample])["pixel_values"]) for sample in samples]
    assert max(counts) <= 3 or sample_scans is None


def test_more_than_one_sampled_scan_is_refused():
    with pytest.raises(ValueError, match="sample_scans is 1 or None, not 2"):
        Sampling(sample_scans=2)


def test_masks_mark_the_disorders_of_the_slices_in_the_batch(cases, processor):
    data = CaseDataset(cases, processor, Sampling(sample_scans=1, slices_per_scan=2), masks=True)
    batch = data.__getitems__([Sample(row, 1) for row in range(len(cases))])
    assert len(batch["masks"]) == len(batch["mask_rows"]) > 0
    case_of_slice = torch.arange(len(cases)).repeat_interleave(batch["slices_per_scan"])
    slices, disorders = batch["mask_rows"].T
    assert (batch["labels"][case_of_slice[slices], disorders] == 1).all()
    assert batch["masks"].any((1, 2)).all()
    stored = data.as_stored().__getitems__([Sample(row) for row in range(len(cases))])
    scans = [scan for row in cases.rows for scan in row["scan_rows"]]
    expected = [
        mask[z] for scan in scans for mask in cases.masks(scan).values() for z in np.flatnonzero(mask.any((1, 2)))
    ]
    assert np.array_equal(stored["masks"], np.stack(expected))


def test_cases_without_a_label_are_refused(cases, processor):
    unlabelled = CaseDataset(cases, processor).cases
    unlabelled.rows[0] = unlabelled.rows[0] | {"labelled": False}
    try:
        with pytest.raises(ValueError, match="1 of 28 cases have no label: load them with labelled=True"):
            CaseDataset(unlabelled, processor)
    finally:
        unlabelled.rows[0] = unlabelled.rows[0] | {"labelled": True}
