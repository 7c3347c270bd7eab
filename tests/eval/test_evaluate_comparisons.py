"""Comparisons: DeLong against its definition, adjustments by hand, subgroups and paired differences."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from radfm.eval.bootstrap import measure_with_resamples, patient_weights
from radfm.eval.comparisons import adjusted, delong, macro_differences, subgroups


def by_definition(first, second, labels) -> tuple[float, float]:
    """DeLong's difference and p value by comparing every pair, with covariances as in the paper."""
    placements = []
    for scores in (first, second):
        pairs = np.sign(scores[labels][:, None] - scores[~labels][None]) / 2 + 0.5
        placements.append((pairs.mean(1), pairs.mean(0)))
    s10 = np.cov(placements[0][0], placements[1][0])
    s01 = np.cov(placements[0][1], placements[1][1])
    s = s10 / labels.sum() + s01 / (~labels).sum()
    difference = placements[1][0].mean() - placements[0][0].mean()
    return difference, 2 * norm.sf(abs(difference) / np.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1]))


@pytest.fixture
def two_models():
    rng = np.random.default_rng(0)
    labels = rng.random((150, 6)) < 0.3
    shared = rng.normal(size=labels.shape) + labels
    first, second = (np.round(shared + rng.normal(size=labels.shape) * noise, 1) for noise in (1.0, 0.5))
    return first, second, labels


def test_delong_equals_its_definition(two_models):
    first, second, labels = two_models
    differences, p = delong(first, second, labels, range(len(labels)))
    for d in range(labels.shape[1]):
        expected = by_definition(first[:, d], second[:, d], labels[:, d])
        assert (differences[d], p[d]) == pytest.approx(expected, abs=1e-9)
        areas = [roc_auc_score(labels[:, d], scores[:, d]) for scores in two_models[:2]]
        assert differences[d] == pytest.approx(areas[1] - areas[0])


def test_copies_of_patients_do_not_lower_the_p_value_of_delong(two_models):
    first, second, labels = two_models
    alone = delong(first, second, labels, range(len(labels)))[1]
    again = [np.repeat(values, 4, 0) for values in two_models]
    fooled = delong(*again, range(len(again[0])))[1]
    clustered = delong(*again, np.repeat(np.arange(len(labels)), 4))[1]
    np.testing.assert_allclose(clustered, alone, rtol=1e-6)
    assert (fooled < clustered).all()


def test_delong_is_close_to_the_bootstrap_of_patients():
    rng = np.random.default_rng(1)
    patients = rng.integers(80, size=240)
    ill, seen = rng.normal(size=80), rng.normal(size=80)
    labels = (ill[patients] + rng.normal(size=240) > 0.5)[:, None]
    first = (ill[patients] + 0.8 * rng.normal(size=240))[:, None]
    second = (seen[patients] + 0.5 * ill[patients] + 0.5 * rng.normal(size=240))[:, None]
    differences, p = delong(first, second, labels, patients)
    weights = patient_weights(patients, 2000)
    draws = [measure_with_resamples([scores], labels, weights, ["auc"])["auc"][1] for scores in (first, second)]
    deviation = abs(differences[0]) / norm.isf(p[0] / 2)
    assert deviation == pytest.approx((draws[1] - draws[0]).std(), rel=0.1)


def test_delong_reports_where_it_cannot_be_computed(two_models):
    first, second, labels = two_models
    labels = labels.copy()
    labels[:, 0] = False
    labels[:, 1] = False
    labels[7, 1] = True
    second = second.copy()
    second[:, 2] = first[:, 2]
    differences, p = delong(first, second, labels, range(len(labels)))
    assert np.isnan([differences[0], p[0], p[1]]).all()
    assert not np.isnan(differences[1])
    assert (differences[2], p[2]) == (0, 1)
    with pytest.raises(ValueError, match="give one for each case"):
        delong(first, second, labels, [1, 2])


def test_many_tests_are_adjusted_and_missing_ones_do_not_count():
    p = np.array([0.01, np.nan, 0.04, 0.03])
    np.testing.assert_allclose(adjusted(p, "holm"), [0.03, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(adjusted(p, "bh"), [0.03, np.nan, 0.04, 0.04])
    assert np.isnan(adjusted(np.array([np.nan]), "bh")).all()
    with pytest.raises(ValueError, match="no adjustment"):
        adjusted(p, "none")


def test_the_interval_of_a_paired_difference_is_narrower_than_two_intervals(two_models):
    first, second, labels = two_models
    weights = patient_weights(range(len(labels)), 400)
    again = [measure_with_resamples([scores], labels, weights, ["auc"])["auc"] for scores in (first, second)]
    counts = np.array([200, 200, 50, 50, 5, 5])
    differences = macro_differences(*again, counts)
    assert differences["all"]["low"] <= differences["all"]["value"] <= differences["all"]["high"]
    assert differences["all"]["value"] == pytest.approx((again[1][0] - again[0][0]).mean())
    widths = [np.quantile(draws.mean(0), 0.975) - np.quantile(draws.mean(0), 0.025) for _, draws in again]
    assert differences["all"]["high"] - differences["all"]["low"] < min(widths)
    same = macro_differences(again[0], again[0], counts)
    assert set(same["tail"].values()) == {0.0}


def test_subgroups_show_for_which_cases_a_model_is_worse():
    rng = np.random.default_rng(2)
    labels = rng.random((400, 4)) < 0.3
    group = np.where(np.arange(400) < 200, "CT", "MRI")
    scores = rng.normal(size=labels.shape) + labels * np.where(group == "CT", 2.0, 0.0)[:, None]
    groups = [[name] for name in group]
    groups[0] = ["CT", "MRI"]
    groups[1] = []
    groups[2] = ["PET"]
    result = subgroups([scores], labels, groups, patient_weights(range(400), 200))
    assert {name: g["cases"] for name, g in result["groups"].items()} == {"CT": 198, "MRI": 201, "PET": 1}
    assert result["groups"]["PET"]["auc"] is None
    gap = result["gap"]
    assert (gap["best"], gap["worst"], gap["shared_disorders"]) == ("CT", "MRI", 4)
    assert gap["auc"]["low"] > 0.3
    assert gap["auc"] == gap["shared_auc"]
    assert subgroups([scores], labels, [["CT"]] * 400, patient_weights(range(400), 20))["gap"] is None
