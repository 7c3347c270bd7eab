"""The steps of an epoch: filled alike, split alike, and the same again when they are asked for again."""

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
    return sum(COUNTS[draw.case] for draw in step)


def test_steps_keep_to_their_budget_and_fill_it():
    steps = list(StepSampler(COUNTS, LABELS, slices=300))
    assert max(map(slices, steps)) <= 300
    assert np.mean([slices(step) for step in steps]) > 0.93 * 300


def test_steps_cost_alike_and_none_is_a_rest():
    few = np.random.default_rng(1).integers(3, 12, size=200).tolist()  # 11.4 steps' worth
    sizes = [sum(few[draw.case] for draw in step) for step in StepSampler(few, [[]] * 200, slices=128)]
    assert len(sizes) == 12
    assert max(sizes) - min(sizes) < 5


def test_cases_beyond_the_budget_cost_the_others_no_room_and_do_not_meet():
    counts = [150, 140, *[4] * 100]
    sizes = sorted(sum(counts[draw.case] for draw in step) for step in StepSampler(counts, [[]] * 102, slices=100))
    assert sizes[-2:] == [144, 154]
    assert 90 < sizes[0] <= sizes[-3] <= 100


def test_an_epoch_draws_every_case_once():
    drawn = [draw.case for step in StepSampler(COUNTS, LABELS, slices=300) for draw in step]
    assert sorted(drawn) == list(range(300))


def test_a_case_beyond_the_budget_goes_with_one_other():
    steps = list(StepSampler([500, 10, 10, 10], [[]] * 4, slices=100))
    assert sorted(draw.case for step in steps for draw in step) == [0, 1, 2, 3]
    assert {len(step) for step in steps if any(draw.case == 0 for draw in step)} == {2}


def test_draws_by_disorder_bring_the_tail_and_no_case_less():
    sampler = StepSampler(COUNTS, LABELS, slices=300, by_disorder=0.5)
    drawn = Counter(draw.case for step in sampler for draw in step)
    assert len(drawn) == 300
    assert sum(drawn.values()) == 600
    rare = [drawn[case] for case in range(0, 300, 30)]
    common = [drawn[case] for case in range(300) if case % 3]
    assert np.mean(rare) > 4 * np.mean(common)
    assert {draw.time for step in sampler for draw in step if draw.case == 0} == set(range(drawn[0]))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_each_step_evenly_and_take_equally_many(world_size):
    whole = list(StepSampler(COUNTS, LABELS, 600, 0.3, seed=1))
    parts = [list(StepSampler(COUNTS, LABELS, 600, 0.3, 1, rank, world_size)) for rank in range(world_size)]
    if world_size == 2:
        for step, *shares in zip(whole, *parts, strict=True):
            assert sorted(step) == sorted(draw for share in shares for draw in share)
    sizes = np.array([[slices(share) for share in part] for part in parts])
    assert (sizes > 0).all()
    assert np.median(sizes.max(0) / sizes.mean(0)) < 1.15


def test_a_step_is_split_by_what_its_draws_cost():
    """A draw may have lost scans: here every second case has a third of its slices."""

    def drawn(draw) -> int:
        return COUNTS[draw.case] if draw.case % 2 else COUNTS[draw.case] // 3 + 1

    def imbalance(slices_of) -> float:
        parts = [list(StepSampler(COUNTS, LABELS, 600, 0.3, 1, rank, 2, slices_of)) for rank in range(2)]
        sizes = np.array([[sum(map(drawn, share)) for share in part] for part in parts])
        return (sizes.max(0) / sizes.mean(0) - 1).mean()

    assert imbalance(drawn) < imbalance(None) / 2


def test_steps_follow_from_seed_and_epoch_and_each_epoch_has_as_many():
    sampler = StepSampler(COUNTS, LABELS, 300, 0.3, seed=1)
    first = list(sampler)
    for epoch in range(1, 5):
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler) == len(first)
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(StepSampler(COUNTS, LABELS, 300, 0.3, seed=2)) != first


def test_measuring_sees_every_case_and_keeps_processes_in_step():
    for world_size in (1, 2, 4):
        parts = [steps_in_order(COUNTS[:21], 130, rank, world_size) for rank in range(world_size)]
        assert {draw.case for part in parts for step in part for draw in step} == set(range(21))
        assert len({len(part) for part in parts}) == 1
        assert all(step for part in parts for step in part)


def test_impossible_wishes_are_refused():
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
