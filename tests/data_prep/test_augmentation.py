"""Random changes of cases and slices, and that they are reproducible."""

import numpy as np
import pytest
import torch

from radfm import Case, Scan
from radfm.data_prep.batches.augmentation import Augmentation, generator, some_slices
from radfm.data_prep.batches.sampling import Sample

STRONG = Augmentation(affine=1, elastic=1, noise=1, contrast=1)


@pytest.fixture
def case() -> Case:
    pixels = np.zeros((4, 8, 8), np.uint8)
    kinds = [("CT", "chest"), ("CT", "chest"), ("MRI", "chest"), ("X-ray", "chest")]
    return Case([Scan(pixels, modality, body_part=part) for modality, part in kinds], "Cough.", ["Pneumonia"])


def random_slices(slices: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    smooth = torch.rand(slices, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(smooth, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)


@pytest.mark.parametrize("slices", [1, 5])
@pytest.mark.parametrize("change", ["affine", "elastic", "noise", "contrast", "mirror"])
def test_each_change_alters_a_scan_and_keeps_its_values_finite(change, slices):
    before, values = random_slices(slices), random_slices(slices)
    Augmentation(**{change: 1.0}).slices(values, np.random.default_rng(0))
    assert values.isfinite().all()
    assert not torch.allclose(values, before, atol=1e-3)
    assert torch.equal(values[:, 0], values[:, 2])


@pytest.mark.parametrize("slices", [1, 5])
def test_slices_without_a_change_stay_identical(slices):
    before, values = random_slices(slices), random_slices(slices)
    Augmentation(affine=1e-9, elastic=1e-9, noise=1e-9, contrast=1e-9, mirror=1e-9).slices(
        values, np.random.default_rng(0)
    )
    assert torch.equal(values, before)


def test_changes_do_not_depend_on_the_memory_layout_of_the_batch():
    views, own = random_slices(3), random_slices(3).contiguous()
    assert views.stride(1) == 0 != own.stride(1)
    STRONG.slices(views, np.random.default_rng(7))
    STRONG.slices(own, np.random.default_rng(7))
    assert torch.equal(views, own)


def test_the_windows_of_a_ct_move_together():
    values = random_slices(3, channels=3).contiguous()
    Augmentation(affine=1.0).slices(values, np.random.default_rng(0))
    again = random_slices(3, channels=3)[:, 1:2].expand(-1, 3, -1, -1).contiguous()
    Augmentation(affine=1.0).slices(again, np.random.default_rng(0))
    assert torch.equal(values[:, 1], again[:, 1])


@pytest.mark.parametrize("slices", [1, 5])
@pytest.mark.parametrize("change", ["affine", "elastic", "mirror"])
def test_masks_are_moved_with_their_slices(change, slices):
    values = random_slices(slices).contiguous()
    alone, masks = values.clone(), torch.stack([values[:, 0], torch.zeros_like(values[:, 0])])
    both = Augmentation(**{change: 1.0, "noise": 1.0, "contrast": 1.0})
    both.slices(values, np.random.default_rng(3), masks)
    Augmentation(**{change: 1.0}).slices(alone, np.random.default_rng(3))
    torch.testing.assert_close(masks[0], alone[:, 0], atol=1e-5, rtol=0)
    assert not torch.allclose(values, alone, atol=1e-2)  # the others change intensities alone
    assert not masks[1].any()


def test_masks_of_slices_that_are_not_chosen_are_left_out():
    pixels = np.arange(20, dtype=np.uint8).reshape(20, 1, 1).repeat(8, 1).repeat(8, 2)
    scan = Scan(pixels, key_slice=7, masks={"Pneumonia": pixels == 7})
    chosen = some_slices(scan, 4, np.random.default_rng(0))
    assert np.array_equal(chosen.masks["Pneumonia"], chosen.pixels == 7)
    assert chosen.masks["Pneumonia"].any()


def test_a_mirrored_scan_has_left_and_right_exchanged():
    values = random_slices(3).contiguous()
    before = values.clone()
    Augmentation(mirror=1.0).slices(values, np.random.default_rng(0))
    assert torch.equal(values, before.flip(-1))


def test_slices_are_not_mixed_with_their_neighbours():
    values = random_slices(5).contiguous()
    values[2] = 10.0
    Augmentation(affine=1.0).slices(values, np.random.default_rng(3))
    assert (values[2] > 9.9).all()
    assert (values[[0, 1, 3, 4]] < 2).all()


def test_a_case_is_the_same_for_the_same_sample_and_differs_between_samples(case):
    settings = Augmentation(drop_scans=0.5, drop_modality=0.5)

    def kept(sample):
        return [id(scan) for scan in settings.case(case, generator(0, sample)).scans]

    assert kept(Sample(3, 1, 0)) == kept(Sample(3, 1, 0))
    assert len({tuple(kept(Sample(3, epoch))) for epoch in range(20)}) > 5
    assert kept(Sample(3, 1, 0)) != kept(Sample(3, 1, 1)) or kept(Sample(3, 2, 0)) != kept(Sample(3, 2, 1))


def test_a_case_keeps_at_least_one_scan_and_all_its_disorders(case):
    settings = Augmentation(drop_scans=1.0, drop_modality=1.0)
    for repeat in range(20):
        left = settings.case(case, generator(0, Sample(0, 0, repeat)))
        assert len(left.scans) == 1
        assert left.disorders == ["Pneumonia"]


def test_a_dropped_modality_is_dropped_with_all_its_scans(case):
    settings = Augmentation(drop_modality=1.0)
    modalities = {
        tuple(sorted(scan.modality for scan in settings.case(case, generator(0, Sample(0, 0, repeat))).scans))
        for repeat in range(30)
    }
    assert modalities == {("MRI", "X-ray"), ("CT", "CT", "X-ray"), ("CT", "CT", "MRI")}


def test_a_normal_scan_of_another_part_of_the_body_is_added(case):
    knee = Scan(np.zeros((2, 8, 8), np.uint8), "MRI", body_part="knee", days=3.0)
    requested = []

    def normal_scan(rng, parts):
        requested.append(parts)
        return knee

    augmented = Augmentation(add_normal=1.0).case(case, generator(0, Sample(0, 0)), normal_scan)
    assert requested == [{"chest"}]
    assert len(augmented.scans) == 5
    assert [scan.days for scan in augmented.scans if scan.body_part == "knee"] == [None]


def test_the_history_is_dropped_with_its_probability(case):
    kept = [
        Augmentation(drop_history=0.3).case(case, generator(0, Sample(0, 0, repeat))).history is not None
        for repeat in range(300)
    ]
    assert 0.6 < np.mean(kept) < 0.8


@pytest.mark.parametrize("most", [1, 7, 8])
@pytest.mark.parametrize("key", [None, 0, 17, 39])
def test_chosen_slices_are_evenly_spaced_and_include_the_key_slice(most, key):
    scan = Scan(np.arange(40)[:, None, None] * np.ones((1, 4, 4)), "MRI", spacing_mm=(2.0, 1.0, 1.0), key_slice=key)
    firsts = set()
    for seed in range(20):
        some = some_slices(scan, most, np.random.default_rng(seed))
        chosen = some.pixels[:, 0, 0]
        assert len(chosen) == most
        assert set(np.diff(chosen)) <= {40 // most, -(-40 // most)}
        assert some.key_slice is None if key is None else chosen[some.key_slice] == key
        firsts.add(chosen[0])
    assert len(firsts) > 2 or key is not None
    assert some.spacing_mm == (80 / most, 1.0, 1.0)
    assert some_slices(scan, None, np.random.default_rng(0)) is scan


def test_a_probability_above_one_is_refused():
    with pytest.raises(ValueError, match="noise is a probability"):
        Augmentation(noise=2)
