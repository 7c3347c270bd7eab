"""The steps of an epoch: of equal cost, split evenly over processes, and reproducible."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from radfm.data_prep.batches.case_dataset import StepLoader
from radfm.data_prep.batches.sampling import StepSampler, steps_in_order

COUNTS = np.random.default_rng(0).integers(1, 120, size=300).tolist()
LABELS = [[0] if case % 3 else [1] if case % 30 else [2] for case in range(300)]


def slices(step) -> int:
    return sum(COUNTS[sample.case] for sample in step)


def test_steps_keep_to_their_budget_and_fill_it():
    steps = list(StepSampler(COUNTS, LABELS, slices=300))
    assert max(map(slices, steps)) <= 300
    assert np.mean([slices(step) for step in steps]) > 0.93 * 300


def test_steps_have_equal_costs_and_there_is_no_small_last_one():
    few = np.random.default_rng(1).integers(3, 12, size=200).tolist()  # 11.4 steps' worth
    sizes = [sum(few[sample.case] for sample in step) for step in StepSampler(few, [[]] * 200, slices=128)]
    assert len(sizes) == 12
    assert max(sizes) - min(sizes) < 5


def test_cases_larger_than_a_step_are_put_into_different_steps():
    counts = [150, 140, *[4] * 100]
    sizes = sorted(sum(counts[sample.case] for sample in step) for step in StepSampler(counts, [[]] * 102, slices=100))
    assert sizes[-2:] == [144, 154]
    assert 90 < sizes[0] <= sizes[-3] <= 100


def test_an_epoch_contains_every_case_once():
    cases = [sample.case for step in StepSampler(COUNTS, LABELS, slices=300) for sample in step]
    assert sorted(cases) == list(range(300))


def test_a_case_larger_than_a_step_is_put_together_with_one_other():
    steps = list(StepSampler([500, 10, 10, 10], [[]] * 4, slices=100))
    assert sorted(sample.case for step in steps for sample in step) == [0, 1, 2, 3]
    assert {len(step) for step in steps if any(sample.case == 0 for sample in step)} == {2}


def test_sampling_by_disorder_adds_rare_disorders_and_removes_no_case():
    sampler = StepSampler(COUNTS, LABELS, slices=300, by_disorder=0.5)
    counts = Counter(sample.case for step in sampler for sample in step)
    assert len(counts) == 300
    assert sum(counts.values()) == 600
    rare = [counts[case] for case in range(0, 300, 30)]
    common = [counts[case] for case in range(300) if case % 3]
    assert np.mean(rare) > 4 * np.mean(common)
    assert {sample.repeat for step in sampler for sample in step if sample.case == 0} == set(range(counts[0]))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_each_step_evenly_and_take_equally_many(world_size):
    whole = list(StepSampler(COUNTS, LABELS, 600, 0.3, seed=1))
    parts = [list(StepSampler(COUNTS, LABELS, 600, 0.3, 1, rank, world_size)) for rank in range(world_size)]
    if world_size == 2:
        for step, *shares in zip(whole, *parts, strict=True):
            assert sorted(step) == sorted(sample for share in shares for sample in share)
    sizes = np.array([[slices(share) for share in part] for part in parts])
    assert (sizes > 0).all()
    assert np.median(sizes.max(0) / sizes.mean(0)) < 1.15


def test_a_step_is_split_by_the_slices_of_its_samples():
    """Augmentation may drop scans: here every second case has a third of its slices."""

    def slices_of(sample) -> int:
        return COUNTS[sample.case] if sample.case % 2 else COUNTS[sample.case] // 3 + 1

    def imbalance(known) -> float:
        parts = [list(StepSampler(COUNTS, LABELS, 600, 0.3, 1, rank, 2, known)) for rank in range(2)]
        sizes = np.array([[sum(map(slices_of, share)) for share in part] for part in parts])
        return (sizes.max(0) / sizes.mean(0) - 1).mean()

    assert imbalance(slices_of) < imbalance(None) / 2


def test_steps_follow_from_seed_and_epoch_and_each_epoch_has_as_many():
    sampler = StepSampler(COUNTS, LABELS, 300, 0.3, seed=1)
    first = list(sampler)
    for epoch in range(1, 5):
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler) == len(first)
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(StepSampler(COUNTS, LABELS, 300, 0.3, seed=2)) != first


def test_an_evaluation_has_every_case_and_equally_many_steps_for_each_process():
    for world_size in (1, 2, 4):
        parts = [steps_in_order(COUNTS[:21], 130, rank, world_size) for rank in range(world_size)]
        assert {sample.case for part in parts for step in part for sample in step} == set(range(21))
        assert len({len(part) for part in parts}) == 1
        assert all(step for part in parts for step in part)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="at least 1 slice"):
        StepSampler(COUNTS, LABELS, 0)
    with pytest.raises(ValueError, match="from 0 to below 1"):
        StepSampler(COUNTS, LABELS, 10, by_disorder=1)
    with pytest.raises(ValueError, match="too few"):
        StepSampler([3], [[]], 10)


def test_the_next_step_is_read_on_one_thread_and_others_keep_theirs():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert [step.tolist() for step in StepLoader(Threads(), batch_size=2)] == [[1, 1], [1, 1]]
        with ThreadPoolExecutor(1) as another:
            assert (torch.get_num_threads(), another.submit(torch.get_num_threads).result()) == (3, 3)
    finally:
        torch.set_num_threads(before)


class Threads(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return torch.get_num_threads()
