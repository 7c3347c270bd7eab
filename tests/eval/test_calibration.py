"""How sure a table of scores is: calibration, prediction sets, ensembles, distributions."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from radfm.eval import calibration
from radfm.eval.calibration import before_and_after, calibration_error, measure_calibration
from radfm.eval.conformal import SetRule, cross_fitted, fit, measure_sets
from radfm.eval.distributions import distributions
from radfm.eval.scores import Scores
from radfm.eval.uncertainty import ensemble, measure_uncertainty


def random_scores(cases=600, columns=12, seed=0, sharpness=1.0, patients=None, **changes) -> Scores:
    """Labels that come true as often as the probabilities say, if the sharpness is 1."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-2, 1.5, (cases, columns))
    labels = rng.random(odds.shape) < expit(odds)
    names = [f"disorder {d}" for d in range(columns)]
    given = {
        "scores": np.float32(odds * sharpness),
        "names": names,
        "icd10cm": [[]] * columns,
        "case_ids": [f"c{i}" for i in range(cases)],
        "patients": patients or [f"p{i}" for i in range(cases)],
        "disorders": [[names[d] for d in np.flatnonzero(row)] for row in labels],
        "training": [[d] for d in range(columns) for _ in range(10 * d + 1)],
        "about": {"model": "random", "data": "0", "split": "test"},
    }
    return Scores(**given | changes)


# Calibration


def test_the_error_of_perfect_probabilities_vanishes_with_more_cases():
    errors = []
    for cases in (30, 300, 30_000):
        table = random_scores(cases, seed=1)
        errors.append(calibration_error(expit(table.scores), table.labels))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.002


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_the_error_is_that_of_its_definition(seed, bins):
    rng = np.random.default_rng(seed)
    p, y = rng.random(57), rng.random(57) < 0.3
    parts = np.array_split(np.argsort(p), bins)
    by_hand = sum(len(part) / 57 * abs(p[part].mean() - y[part].mean()) for part in parts)
    assert calibration_error(p, y, bins) == pytest.approx(by_hand)
    assert 0 <= calibration_error(p, y, bins) <= 1


def test_a_curve_lies_on_the_diagonal_where_probabilities_are_true_and_off_it_where_they_are_not():
    def strays(table):
        return [
            not (one["share"]["low"] <= one["probability"] <= one["share"]["high"])
            for one in measure_calibration(table, 200)["reliability"]
        ]

    assert sum(strays(random_scores(3000))) <= 2
    assert sum(strays(random_scores(3000, sharpness=2))) >= 6


def test_calibration_is_measured_over_all_pairs_and_over_first_ranks():
    table = random_scores(400, 5)
    figures = measure_calibration(table, 50)
    assert (figures["cases"], figures["pairs"]) == (400, 2000)
    assert sum(one["pairs"] for one in figures["reliability"]) == 2000
    assert sum(one["pairs"] for one in figures["reliability_first"]) == 400
    p = expit(table.scores.astype(float))
    assert figures["ece"]["value"] == pytest.approx(calibration_error(p, table.labels))
    assert figures["brier"]["value"] == pytest.approx(((p - table.labels) ** 2).mean())
    assert figures["brier"]["low"] < figures["brier"]["value"] < figures["brier"]["high"]
    assert [one["expected"] for one in figures["disorders"]] == pytest.approx(p.sum(0).tolist())


def test_cross_fitted_calibration_corrects_overconfident_scores():
    figures = before_and_after(random_scores(1500, sharpness=3), 50)
    assert figures["how"] == "cross-fitted"
    assert figures["after"]["ece"]["value"] < figures["before"]["ece"]["value"] / 3
    assert figures["after"]["log_loss"]["high"] < figures["before"]["log_loss"]["low"]


def test_what_a_checkpoint_saved_is_compared_with_its_plain_logits():
    table = random_scores(300)
    figures = before_and_after(replace(table, logits=table.scores * 3), 20)
    assert figures["how"] == "saved"
    assert figures["after"] == measure_calibration(table, 20)
    assert figures["before"] == measure_calibration(replace(table, scores=table.scores * 3), 20)


def test_tables_keep_their_logits(tmp_path):
    table = random_scores(20, 3)
    table = replace(table, logits=table.scores * 2, icd10cm=[["J93.0"], ["J93.9"], ["M10.9"]])
    loaded = Scores.load(table.save(tmp_path / "t.parquet"))
    np.testing.assert_array_equal(loaded.logits, table.logits)
    assert loaded.at_level("category").logits[:, 0].tolist() == table.logits[:, :2].max(1).tolist()
    assert Scores.load(random_scores(5, 2).save(tmp_path / "u.parquet")).logits is None
    with pytest.raises(ValueError, match="logits are"):
        replace(table, logits=table.logits[:, 1:])


# Prediction sets


@pytest.mark.parametrize("guarantee", ["share", "all"])
@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_exchangeable_cases_are_covered_as_promised(guarantee, coverage):
    covered = []
    for seed in range(60):
        table = random_scores(400, seed=seed)
        p, y = expit(table.scores), table.labels
        rule = fit(p[:200], y[:200], table.patients[:200], coverage, guarantee)
        figures = measure_sets(replace_rows(table, slice(200, None)), rule, 2)
        covered.append(figures["coverage"]["value"])
    # A mean of 60 has a standard error below half a point. The upper end is 1 / (patients + 1) away, and ties are none.
    assert coverage - 0.012 < np.mean(covered) < coverage + 0.02


@given(st.integers(0, 2**32 - 1), st.sampled_from(["share", "all"]), st.floats(0.5, 0.97))
@settings(max_examples=40, deadline=None)
def test_the_rule_is_the_highest_threshold_that_keeps_the_inequality(seed, guarantee, coverage):
    rng = np.random.default_rng(seed)
    p, y = rng.random((60, 4)).round(2), rng.random((60, 4)) < 0.4
    rule = fit(p, y, range(60), coverage, guarantee)
    ill = y.any(1)

    def bound(threshold):
        missed = (y & (p < threshold))[ill]
        loss = missed.any(1) if guarantee == "all" else missed.sum(1) / y[ill].sum(1)
        return (loss.sum() + 1) / (ill.sum() + 1)

    assert rule.patients == ill.sum()
    assert bound(rule.threshold) <= 1 - coverage + 1e-9
    higher = p[y][p[y] > rule.threshold]
    assert not len(higher) or bound(higher.min()) > 1 - coverage


def test_cases_of_one_patient_count_as_one():
    rng = np.random.default_rng(0)
    p, y = rng.random((40, 3)), np.eye(3, dtype=bool)[rng.integers(3, size=40)]
    once = fit(p, y, range(40))
    thrice = fit(np.repeat(p, 3, 0), np.repeat(y, 3, 0), np.repeat(np.arange(40), 3))
    assert once == thrice


def test_sets_are_measured_by_share_by_case_and_by_band():
    table = random_scores(200, 12)
    everything = measure_sets(table, SetRule(0.0, 0.9, "all", 10), 20)
    assert everything["coverage"]["value"] == everything["share"]["value"] == 1
    assert (everything["size"]["value"], everything["sizes"][12]) == (12, 200)
    nothing = measure_sets(table, SetRule([2.0] * 12, 0.9, "share", 10), 20)
    assert (nothing["coverage"]["value"], nothing["empty"]) == (0, 1)
    assert sum(band["pairs"] for band in nothing["bands"].values()) == table.labels.sum()
    halves = cross_fitted(table, halvings=30)
    assert abs(halves["covered"] - 0.9) < 0.03
    assert SetRule(**nothing["rule"]) == SetRule([2.0] * 12, 0.9, "share", 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coverage": 1.0}, "coverage is a share between 0 and 1"),
        ({"guarantee": "most"}, "no guarantee 'most': there are share, all"),
        ({"labels": np.zeros((20, 2))}, "none of the 20 cases has any"),
        ({"labels": np.full((20, 2), 2)}, "labels are 0 or 1"),
        ({"probabilities": np.full((20, 2), np.nan)}, "is nan"),
        ({"patients": ["one"] * 20}, "1 patients with a disorder are too few for sets of 90% coverage: 9 are"),
        ({"probabilities": np.zeros((0, 2)), "labels": np.zeros((0, 2))}, "nothing to measure: 0 cases"),
    ],
)
def test_what_promises_nothing_is_refused(changes, message):
    given = {"probabilities": np.full((20, 2), 0.5), "labels": np.eye(2)[[0, 1] * 10], "patients": range(20)}
    with pytest.raises(ValueError, match=message):
        fit(**given | changes)


# Ensembles


def noisy(table: Scores, seed: int, scale: float = 1.5) -> Scores:
    rng = np.random.default_rng(seed)
    return replace(table, scores=np.float32(table.scores + rng.normal(0, scale, table.scores.shape)))


def test_an_ensemble_is_the_mean_of_probabilities_and_disagreement_the_mutual_information_with_the_member():
    a, b = random_scores(50, 3), noisy(random_scores(50, 3), 1)
    both = ensemble([a, b])
    mean = (expit(a.scores.astype(float)) + expit(b.scores.astype(float))) / 2
    np.testing.assert_allclose(both.scores.scores, logit(mean), rtol=1e-5)
    assert (both.disagreement >= 0).all()
    assert (both.disagreement <= both.entropy + 1e-12).all()
    assert both.disagreement.max() <= np.log(2)
    np.testing.assert_allclose(ensemble([a, a]).disagreement, 0, atol=1e-12)
    extreme = [replace(a, scores=np.full_like(a.scores, value)) for value in (-200, 200)]
    np.testing.assert_allclose(ensemble(extreme).disagreement, np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(ensemble([a]).scores.scores, a.scores)
    pooled = ensemble([a, b], log_odds=True)
    np.testing.assert_allclose(pooled.scores.scores, (a.scores + b.scores) / 2, rtol=1e-6)
    np.testing.assert_array_equal(pooled.disagreement, both.disagreement)


def test_an_ensemble_of_noisy_members_is_better_and_its_uncertainty_finds_what_is_wrong():
    truth = random_scores(1500, 6, seed=3)
    members = [noisy(truth, seed) for seed in range(5)]
    figures = measure_uncertainty(members, 100)
    assert figures["mean"]["auc"] > figures["single"]["auc"]
    assert figures["mean"]["log_loss"] < figures["single"]["log_loss"]
    first = figures["uncertainties"]["first"]
    assert first["error_auc"]["low"] > 0.5
    assert first["curve"][-1] == [1.0, pytest.approx(figures["wrong"]["value"])]
    assert first["aurc"] < figures["wrong"]["value"]
    mean, labels = ensemble(members).scores, truth.labels
    ill, first_rank = labels.any(1), mean.scores.argmax(1)
    wrong = ~labels[np.arange(len(labels)), first_rank]
    assert first["error_auc"]["value"] == pytest.approx(roc_auc_score(wrong[ill], -mean.scores.max(1)[ill]), abs=1e-6)
    assert "disagreement" not in measure_uncertainty(members[:1], 5)["uncertainties"]


def test_tables_that_do_not_form_an_ensemble_are_refused():
    with pytest.raises(ValueError, match="at least one table"):
        ensemble([])
    with pytest.raises(ValueError, match="other cases"):
        ensemble([random_scores(20), random_scores(20, seed=1)])
    with pytest.raises(ValueError, match="another vocabulary"):
        ensemble([random_scores(20, 2), replace(random_scores(20, 2), names=["disorder 1", "disorder 0"])])


# Distributions


def test_scores_are_separated_into_positive_same_anatomy_and_other_anatomy():
    table = random_scores(
        6,
        2,
        disorders=[["disorder 0"], [], [], ["disorder 1"], ["disorder 0", "disorder 1"], []],
        attributes={"body part": [["chest"], ["chest"], ["knee"], ["knee"], ["chest", "brain"], []]},
    )
    first, second = sorted(distributions(table), key=lambda one: one.disorder)
    column = table.scores[:, 0].astype(float)
    assert first.positive.tolist() == sorted(column[[0, 4]])
    assert first.same.tolist() == [column[1]]  # of the chest
    assert first.other.tolist() == sorted(column[[2, 3]])  # the body part of the last case is unknown
    assert len(second.other) == 0
    summary = first.summary()
    assert summary["other"]["cases"] == 2
    assert summary["auc_other"] == roc_auc_score([1, 1, 0, 0], column[[0, 4, 2, 3]])
    assert second.summary()["auc_other"] is None
    assert [one.disorder for one in distributions(table, least=3)] == []
    with pytest.raises(ValueError, match="no attribute 'planet'"):
        distributions(table, "planet")


def replace_rows(table: Scores, rows: slice) -> Scores:
    parts = {name: getattr(table, name)[rows] for name in ("scores", "case_ids", "patients", "disorders")}
    return replace(table, **parts)


def test_a_case_has_one_disorder_at_most_or_several():
    assert calibration.label_kind_of(np.array([[1, 1], [0, 1]])) == "multi_label"
    assert calibration.label_kind_of(np.array([[1, 0], [0, 1]])) == "exactly_one"
    assert calibration.label_kind_of(np.array([[1, 0], [0, 0]])) == "at_most_one"
