"""Metrics against scikit-learn, and intervals against what is known of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm
from sklearn.metrics import average_precision_score, f1_score, matthews_corrcoef, roc_auc_score, roc_curve

from radfm.eval.bands import bands, macro
from radfm.eval.bootstrap import interval, measure_with_resamples, patient_weights
from radfm.eval.metrics import METRICS, macro_auc, measure
from radfm.eval.ranking import ranking, truth_ranks


def by_scikit_learn(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    if labels.all() or not labels.any():
        return dict.fromkeys(METRICS, np.nan)
    thresholds = np.unique(scores)[::-1]
    f1 = [f1_score(labels, scores >= threshold) for threshold in thresholds]
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    return {
        "auc": roc_auc_score(labels, scores),
        "ap": average_precision_score(labels, scores),
        "f1": max(f1),
        "mcc": matthews_corrcoef(labels, scores >= thresholds[int(np.argmax(np.round(f1, 12)))]),
    } | {f"recall@fpr={rate}": tpr[fpr <= rate].max() for rate in (0.01, 0.05, 0.1)}


@st.composite
def tables(draw):
    """Scores with many ties, labels with a positive one at least, and how often two draws count each case."""
    cases, disorders = draw(st.integers(2, 30)), draw(st.integers(1, 3))
    scores = draw(arrays(np.float32, (cases, disorders), elements=st.integers(-4, 4).map(lambda n: n / 3)))
    labels = draw(arrays(np.int64, (cases, disorders), elements=st.integers(0, 1)))
    labels[0, 0] = 1
    return scores, labels, draw(arrays(np.float32, (cases, 2), elements=st.integers(0, 3)))


@given(tables())
@settings(deadline=None, max_examples=40)
def test_metrics_equal_those_of_scikit_learn_with_ties_and_in_every_resample(table):
    scores, labels, weights = table
    once, resampled = measure(scores, labels), measure(scores, labels, weights)
    for disorder in range(scores.shape[1]):
        expected = by_scikit_learn(scores[:, disorder], labels[:, disorder])
        for name in METRICS:
            np.testing.assert_allclose(once[name][disorder], expected[name], atol=1e-9, err_msg=name)
        for draw in range(weights.shape[1]):
            cases = np.repeat(np.arange(len(scores)), weights[:, draw].astype(int))
            expected = by_scikit_learn(scores[cases, disorder], labels[cases, disorder])
            for name in METRICS:
                np.testing.assert_allclose(resampled[name][disorder, draw], expected[name], atol=1e-6, err_msg=name)


def test_many_resamples_of_many_positives_are_measured_in_blocks_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 2)), rng.random((200, 2)) < 0.5
    weights = patient_weights(range(200), 30)
    whole = measure(scores, labels, weights)
    monkeypatch.setattr("radfm.eval.metrics._CELLS", 1000)
    blocks = measure(scores, labels, weights)
    assert all(np.array_equal(whole[name], blocks[name]) for name in METRICS)


def test_scores_of_shuffled_labels_are_worth_half():
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(400, 30)), rng.random((400, 30)) < 0.1
    values, draws = measure_with_resamples([scores], labels, patient_weights(range(400), 300), ["auc"])["auc"]
    counts = np.zeros(30)
    low, high = interval(macro(draws, counts)["all"], macro(values, counts)["all"])
    assert low < 0.5 < high
    assert high - low < 0.1


def test_an_interval_contains_the_true_value_at_about_its_nominal_rate():
    rng = np.random.default_rng(2)
    labels = np.zeros((120, 400), bool)
    labels[:40] = True
    scores = rng.normal(size=labels.shape) + labels  # 400 times the same experiment
    truth = norm.cdf(1 / np.sqrt(2))
    values, draws = measure_with_resamples([scores], labels, patient_weights(range(120), 300), ["auc"])["auc"]
    low, high = interval(draws, values, (0, 1))
    assert 0.9 < ((low < truth) & (truth < high)).mean() < 0.98


def test_an_interval_contains_the_measured_value_of_the_macro_average():
    rng = np.random.default_rng(3)
    labels = rng.random((300, 100)) < 0.01
    scores = rng.normal(size=labels.shape) + labels
    again = measure_with_resamples([scores], labels, patient_weights(range(300), 200))
    for name, (values, draws) in again.items():
        value = macro(values, np.zeros(100))["all"]
        low, high = interval(macro(draws, np.zeros(100))["all"], value)
        assert low <= value <= high, name


def test_cases_of_one_patient_come_together():
    patients = ["b", "a", "b", "c", "a", "b"]
    weights = patient_weights(patients, 50, seed=4)
    assert np.array_equal(weights[0], weights[2])
    assert np.array_equal(weights[0], weights[5])
    assert np.array_equal(weights[1], weights[4])
    assert (weights[[0, 1, 3]].sum(0) == 3).all()
    assert len(np.unique(weights, axis=1).T) > 5
    assert np.array_equal(weights, patient_weights(patients, 50, seed=4))


def test_patients_with_many_cases_make_intervals_wider():
    rng = np.random.default_rng(5)
    labels, scores = np.repeat(rng.random((60, 1)) < 0.5, 5, 0), np.repeat(rng.normal(size=(60, 1)), 5, 0)
    widths = []
    for patients in (range(300), np.repeat(np.arange(60), 5)):
        low, high = interval(measure(scores, labels, patient_weights(patients, 300), ["auc"])["auc"])
        widths.append((high - low)[0])
    assert widths[1] > 1.5 * widths[0]


def test_several_seeds_are_averaged_and_make_intervals_wider():
    rng = np.random.default_rng(6)
    labels = rng.random((400, 1)) < 0.5
    seeds = [rng.normal(size=labels.shape) + shift * labels for shift in (0.2, 1.0, 2.5)]
    weights = patient_weights(range(400), 400)
    values, draws = measure_with_resamples(seeds, labels, weights, ["auc"])["auc"]
    alone = [measure_with_resamples([scores], labels, weights, ["auc"])["auc"] for scores in seeds]
    np.testing.assert_allclose(values, np.mean([value for value, _ in alone], axis=0))
    assert draws.std() > 2 * max(mine.std() for _, mine in alone)


def test_macro_averages_leave_out_what_cannot_be_measured():
    values = np.array([1.0, 0.5, np.nan, 0.0])
    averages = macro(values, np.array([100, 99, 30, 29]))
    assert averages == {"all": 0.5, "head": 1.0, "body": 0.5, "tail": 0.0}
    assert np.isnan(macro(values, np.array([5, 5, 200, 5]))["head"])
    assert bands([100, 99, 30, 29])["body"].tolist() == [False, True, True, False]
    assert bands([100, 99, 30, 29], (30, 29))["body"].tolist() == [False, False, False, True]


def test_macro_auc_names_the_bands_that_it_could_measure():
    labels = np.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0], [1, 1, 1, 0]])
    scores = np.array([[3.0, 1, 0, 0], [1, 2, 0, 0], [2, 3, 0, 0], [4, 0, 0, 0]])
    averages = macro_auc(scores, labels, np.array([100, 5, 40, 40]))
    assert averages == {"auc": 0.625, "disorders": 2, "auc_head": 1.0, "auc_tail": 0.25}


def test_the_rank_of_the_only_diagnosis_counts_ties_against_it():
    scores = np.array([[3.0, 2, 1], [1, 1, 0], [0, 1, 2], [0, 1, 2], [5, 5, 5]])
    labels = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]])
    ranks = truth_ranks(scores, labels)
    np.testing.assert_array_equal(ranks, [1, 2, 3, np.nan, np.nan])
    figures = ranking(ranks)
    assert (figures["top1"], figures["top5"], figures["median_rank"]) == (pytest.approx(1 / 3), 1, 2)
    resampled = ranking(ranks, np.array([[2, 0], [0, 0], [1, 0], [7, 1], [0, 1]], np.float32))
    assert resampled["top1"][0] == pytest.approx(2 / 3)
    assert resampled["median_rank"][0] == 1
    assert np.isnan([resampled["top1"][1], resampled["median_rank"][1]]).all()


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([[0.1, np.nan]], [[1, 0]], "the score of case 0 for disorder 1 is nan"),
        ([[0.1, 0.2]], [[1, 2]], "labels are 0 or 1; case 0, disorder 1 has 2"),
        ([[0.1, 0.2]], [[1, 0], [0, 1]], "not \\(1, 2\\) and \\(2, 2\\)"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "0 cases"),
        ([[0.1, 0.2]], [[0, 0]], "none of the 1 cases has any of the 2 disorders"),
    ],
)
def test_scores_that_cannot_be_measured_are_an_error_of_one_line(scores, labels, message):
    with pytest.raises(ValueError, match=message) as raised:
        measure(np.array(scores), np.array(labels))
    assert "\n" not in str(raised.value)


def test_unknown_metrics_and_weights_of_other_cases_are_refused():
    scores, labels = np.array([[0.1], [0.2]]), np.array([[1], [0]])
    with pytest.raises(ValueError, match="no metric 'accuracy'"):
        measure(scores, labels, metrics=["accuracy"])
    with pytest.raises(ValueError, match="weights are"):
        measure(scores, labels, np.ones((3, 5)))
    with pytest.raises(ValueError, match="there must be at least one of each"):
        patient_weights([], 10)
