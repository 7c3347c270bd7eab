"""What training does to cases and slices, and that it does it again."""

import numpy as np
import pytest
import torch

from radfm import Case, Scan
from radfm.data_prep.batches.augmentation import Augmentation, generator, some_slices
from radfm.data_prep.batches.sampling import Draw

STRONG = Augmentation(affine=1, elastic=1, noise=1, contrast=1)


@pytest.fixture
def case() -> Case:
    pixels = np.zeros((4, 8, 8), np.uint8)
    kinds = [("CT", "chest"), ("CT", "chest"), ("MRI", "chest"), ("X-ray", "chest")]
    return Case([Scan(pixels, modality, body_part=part) for modality, part in kinds], "Cough.", ["Pneumonia"])


def picture(slices: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    smooth = torch.rand(slices, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(smooth, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)


@pytest.mark.parametrize("slices", [1, 5])
@pytest.mark.parametrize("change", ["affine", "elastic", "noise", "contrast", "mirror"])
def test_each_change_alters_every_scan_it_is_asked_for_and_keeps_it_finite(change, slices):
    before, values = picture(slices), picture(slices)
    Augmentation(**{change: 1.0}).slices(values, np.random.default_rng(0))
    assert values.isfinite().all()
    assert not torch.allclose(values, before, atol=1e-3)
    assert torch.equal(values[:, 0], values[:, 2])


@pytest.mark.parametrize("slices", [1, 5])
def test_where_no_change_is_drawn_nothing_changes(slices):
    before, values = picture(slices), picture(slices)
    Augmentation(affine=1e-9, elastic=1e-9, noise=1e-9, contrast=1e-9, mirror=1e-9).slices(
        values, np.random.default_rng(0)
    )
    assert torch.equal(values, before)


def test_what_a_scan_is_given_does_not_depend_on_how_its_batch_is_stored():
    views, own = picture(3), picture(3).contiguous()
    assert views.stride(1) == 0 != own.stride(1)
    STRONG.slices(views, np.random.default_rng(7))
    STRONG.slices(own, np.random.default_rng(7))
    assert torch.equal(views, own)


def test_the_windows_of_a_ct_move_together():
    values = picture(3, channels=3).contiguous()
    Augmentation(affine=1.0).slices(values, np.random.default_rng(0))
    again = picture(3, channels=3)[:, 1:2].expand(-1, 3, -1, -1).contiguous()
    Augmentation(affine=1.0).slices(again, np.random.default_rng(0))
    assert torch.equal(values[:, 1], again[:, 1])


@pytest.mark.parametrize("slices", [1, 5])
@pytest.mark.parametrize("change", ["affine", "elastic", "mirror"])
def test_masks_move_along_with_what_they_mark(change, slices):
    values = picture(slices).contiguous()
    alone, masks = values.clone(), torch.stack([values[:, 0], torch.zeros_like(values[:, 0])])
    both = Augmentation(**{change: 1.0, "noise": 1.0, "contrast": 1.0})
    both.slices(values, np.random.default_rng(3), masks)
    Augmentation(**{change: 1.0}).slices(alone, np.random.default_rng(3))
    torch.testing.assert_close(masks[0], alone[:, 0], atol=1e-5, rtol=0)
    assert not torch.allclose(values, alone, atol=1e-2)  # the others change the picture alone
    assert not masks[1].any()


def test_masks_of_slices_that_are_not_drawn_are_left_out():
    pixels = np.arange(20, dtype=np.uint8).reshape(20, 1, 1).repeat(8, 1).repeat(8, 2)
    scan = Scan(pixels, key_slice=7, masks={"Pneumonia": pixels == 7})
    drawn = some_slices(scan, 4, np.random.default_rng(0))
    assert np.array_equal(drawn.masks["Pneumonia"], drawn.pixels == 7)
    assert drawn.masks["Pneumonia"].any()


def test_a_mirrored_scan_has_left_and_right_exchanged():
    values = picture(3).contiguous()
    before = values.clone()
    Augmentation(mirror=1.0).slices(values, np.random.default_rng(0))
    assert torch.equal(values, before.flip(-1))


def test_slices_are_not_mixed_with_their_neighbours():
    values = picture(5).contiguous()
    values[2] = 10.0
    Augmentation(affine=1.0).slices(values, np.random.default_rng(3))
    assert (values[2] > 9.9).all()
    assert (values[[0, 1, 3, 4]] < 2).all()


def test_a_case_is_the_same_for_the_same_draw_and_another_for_the_next(case):
    settings = Augmentation(drop_scans=0.5, drop_modality=0.5)

    def kept(draw):
        return [id(scan) for scan in settings.case(case, generator(0, draw)).scans]

    assert kept(Draw(3, 1, 0)) == kept(Draw(3, 1, 0))
    assert len({tuple(kept(Draw(3, epoch))) for epoch in range(20)}) > 5
    assert kept(Draw(3, 1, 0)) != kept(Draw(3, 1, 1)) or kept(Draw(3, 2, 0)) != kept(Draw(3, 2, 1))


def test_a_case_keeps_at_least_one_scan_and_all_its_disorders(case):
    settings = Augmentation(drop_scans=1.0, drop_modality=1.0)
    for time in range(20):
        left = settings.case(case, generator(0, Draw(0, 0, time)))
        assert len(left.scans) == 1
        assert left.disorders == ["Pneumonia"]


def test_a_dropped_modality_leaves_with_all_its_scans(case):
    settings = Augmentation(drop_modality=1.0)
    seen = {
        tuple(sorted(scan.modality for scan in settings.case(case, generator(0, Draw(0, 0, time))).scans))
        for time in range(30)
    }
    assert seen == {("MRI", "X-ray"), ("CT", "CT", "X-ray"), ("CT", "CT", "MRI")}


def test_a_normal_scan_of_another_part_of_the_body_joins(case):
    knee = Scan(np.zeros((2, 8, 8), np.uint8), "MRI", body_part="knee", days=3.0)
    asked = []

    def normal_scan(rng, parts):
        asked.append(parts)
        return knee

    more = Augmentation(add_normal=1.0).case(case, generator(0, Draw(0, 0)), normal_scan)
    assert asked == [{"chest"}]
    assert len(more.scans) == 5
    assert [scan.days for scan in more.scans if scan.body_part == "knee"] == [None]


def test_the_history_is_told_as_often_as_asked(case):
    told = [
        Augmentation(drop_history=0.3).case(case, generator(0, Draw(0, 0, time))).history is not None
        for time in range(300)
    ]
    assert 0.6 < np.mean(told) < 0.8


@pytest.mark.parametrize("most", [1, 7, 8])
@pytest.mark.parametrize("key", [None, 0, 17, 39])
def test_chosen_slices_are_spread_and_the_key_slice_is_one_of_them(most, key):
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
