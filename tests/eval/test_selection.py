"""What to label next: which patients the strategies choose, the table and the page, and the labels that come back."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from radfm.checkpoints import DEFAULT
from radfm.data_prep import load
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.eval.selection import STRATEGIES, Candidates, candidates_of, choose, probabilities
from radfm.eval.selection_pool import select
from tests.waiting import wait_until

CASES, UNLABELLED = 40, 30
HOSTILE = '<b onclick="x">Fracture, "old"</b>'


class HalfLabelled(Phantoms):
    """Phantoms of which only the last have labels."""

    def read(self, plans):
        for plan, read in zip(plans, super().read(plans), strict=True):
            plan.labelled = plan.source_data["index"] >= UNLABELLED
            if not plan.labelled:
                plan.disorders, plan.icd10cm = [], []
            yield read


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("selection") / "data"
    prepare(HalfLabelled(CASES, size=48), folder, Settings(size=48, max_slices=2, fractions=(1.0, 0.0, 0.0)))
    return folder


@pytest.fixture
def candidates() -> Candidates:
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(60, 16)).astype(np.float32)
    return Candidates(
        embeddings=embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True),
        log_odds=random.normal(size=(60, 7)) - 2,
        labelled=np.arange(60) % 4 == 0,
        costs=1 + np.arange(60) % 3,
        positives=np.array([4, 3, 0, 0, 5, 6, 2]),
        wanted=np.ones(7, bool),
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_chooses_whole_patients_without_a_label_within_the_budget(candidates, strategy):
    chosen = choose(candidates, strategy, 20, seed=3)
    assert len(set(chosen)) == len(chosen)
    assert not candidates.labelled[chosen].any()
    assert 18 <= candidates.costs[chosen].sum() <= 20  # the dearest patient has three cases
    assert choose(candidates, strategy, 20, seed=3) == chosen


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_budget_as_large_as_the_pool_takes_all_of_it(candidates, strategy):
    free = np.flatnonzero(~candidates.labelled)
    assert sorted(choose(candidates, strategy, int(candidates.costs[free].sum()))) == free.tolist()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_pool_of_one_patient_gives_that_patient(candidates, strategy):
    assert choose(candidates[np.array([1])], strategy, 2) == [0]


def test_a_budget_that_is_larger_than_the_pool_is_refused(candidates):
    with pytest.raises(ValueError, match="the budget is 1,000 and 90 cases can be chosen"):
        choose(candidates, "random", 1000)


def test_a_budget_that_is_too_small_for_any_patient_is_refused(candidates):
    with pytest.raises(ValueError, match="the budget is 1 and each patient has at least 4 cases"):
        choose(replace(candidates, costs=np.full(60, 4)), "cover", 1)


def test_rare_takes_the_most_probable_patient_of_the_disorders_with_the_fewest_labels(candidates):
    candidates = replace(candidates, costs=np.ones(60, int))
    free = np.where(candidates.labelled[:, None], -np.inf, candidates.log_odds)
    first, second = choose(candidates, "rare", 2)
    assert {first, second} == {int(free[:, 2].argmax()), int(free[:, 3].argmax())}
    wanted = np.arange(7) == 5
    assert choose(replace(candidates, wanted=wanted), "rare", 1) == [int(free[:, 5].argmax())]


def test_uncertain_takes_the_highest_entropy_and_diverse_the_farthest(candidates):
    candidates = replace(candidates, costs=np.ones(60, int))
    shares = probabilities(candidates.log_odds)
    np.testing.assert_allclose(shares.sum(1), 1)
    entropy = np.where(candidates.labelled, -np.inf, -(shares * np.log(shares)).sum(1))
    assert choose(candidates, "uncertain", 1) == [int(entropy.argmax())]
    known = candidates.embeddings[candidates.labelled]
    distances = np.linalg.norm(candidates.embeddings[:, None] - known, axis=2).min(1)
    assert choose(candidates, "diverse", 1) == [int(distances.argmax())]


def test_of_copies_one_patient_is_kept_and_a_patient_of_several_cases_is_one_candidate():
    patients = ["a", "b", "a", "c", "d", "e"]
    embeddings = np.eye(6, dtype=np.float32)
    labels = np.array([[0], [0], [0], [0], [0], [1]], bool)
    labelled = np.array([0, 0, 0, 0, 0, 1], bool)
    one, names = candidates_of(
        patients, embeddings, np.arange(6.0)[:, None], labelled, labels, [{"b", "c"}, {"d", "e"}]
    )
    assert names == ["a", "b", "e"]
    assert one.costs.tolist() == [2, 1, 1]
    assert one.labelled.tolist() == [False, False, True]
    assert one.positives.tolist() == [1]
    assert one.log_odds[:, 0].tolist() == [2, 1, 5]
    np.testing.assert_allclose(one.embeddings[0], (np.eye(6)[0] + np.eye(6)[2]) / np.sqrt(2), atol=1e-6)


def test_the_page_is_filled_in_offline_and_its_table_becomes_labels(radfm, browser, data, tmp_path):
    out = tmp_path / "next.csv"
    status, printed, error = radfm("select", data, "--budget", 4, "--out", out, "--strategy", "rare")
    assert status == 0, error
    assert "4 cases of 4 patients" in " ".join(printed.split())
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    known = {row["case_id"]: row for row in load(data).rows}
    assert len(rows) == 4
    assert not any(known[row["case_id"]]["labelled"] for row in rows)
    assert all(row["suggestions"].count("; ") == 2 and not row["disorders"] for row in rows)

    browser.get(out.with_suffix(".html").as_uri())
    cases = browser.find_elements("css selector", "article")
    assert [case.get_attribute("data-case") for case in cases] == [row["case_id"] for row in rows]
    for picture in browser.find_elements("css selector", "article img"):
        assert browser.execute_script("return arguments[0].naturalWidth", picture) > 0
    field = cases[0].find_element("name", "add")
    field.send_keys("Pneumothorax\n")
    field.send_keys(f"{HOSTILE}\n")
    cases[0].find_element("name", "comment").send_keys("left, apical")
    cases[1].find_element("name", "normal").click()
    cases[2].find_element("name", "unsure").click()
    assert not cases[3].find_element("css selector", "details button").is_displayed()
    cases[3].find_element("tag name", "summary").click()
    suggestion = cases[3].find_element("css selector", "details button")
    suggested = suggestion.get_attribute("data-name")
    suggestion.click()
    assert browser.find_element("id", "count").text == "4 of 4 filled in"
    browser.refresh()  # what was filled in is still there
    assert browser.find_element("id", "count").text == "4 of 4 filled in"
    assert not browser.find_elements("css selector", "[onclick]")
    browser.find_element("id", "save").click()
    saved = Path(browser.downloads) / "labels.csv"
    wait_until(saved.exists)
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    filled = list(csv.DictReader(saved.open(encoding="utf-8")))
    assert [row["disorders"] for row in filled] == [f"Pneumothorax; {HOSTILE}", "", "unknown", suggested]
    assert [row["normal"] for row in filled] == ["", "1", "", ""]
    assert filled[0]["comment"] == "left, apical"

    status, _, error = radfm("prepare", "labelled", data, tmp_path / "labelled", "--labels", saved)
    assert status == 0, error
    before, after = load(data), load(tmp_path / "labelled")
    labels = {row["case_id"]: row for row in after.rows}
    of_page = [labels[row["case_id"]] for row in rows]
    assert [row["labelled"] for row in of_page] == [True, True, False, True]
    assert [row["disorders"] for row in of_page] == [["Pneumothorax", HOSTILE], [], [], [suggested]]
    assert of_page[1]["normal"]
    assert "J93.9" in of_page[0]["icd10cm"]
    for old, new in zip(before.rows, after.rows, strict=True):
        assert (old["case_id"], old["split"]) == (new["case_id"], new["split"])
        if old["labelled"]:
            assert (old["disorders"], old["icd10cm"]) == (new["disorders"], new["icd10cm"])
    for position in range(0, CASES, 7):
        for one, other in zip(before[position].scans, after[position].scans, strict=True):
            np.testing.assert_array_equal(one.pixels, other.pixels)
    saved.unlink()

    again = select(tmp_path / "labelled", DEFAULT, 5, labelled=[saved_with(tmp_path, rows[2]["case_id"])])
    ids = {again.cases.rows[row]["case_id"] for row in again.rows}
    assert not ids & {row["case_id"] for row in rows}
    assert again.facts["strategy"] == "badge"
    assert again.facts["known"] == CASES - UNLABELLED + 4


def saved_with(folder: Path, case_id: str) -> Path:
    table = folder / "by_hand.csv"
    table.write_text(f"case_id,disorders,normal\n{case_id},,0\n")
    return table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", 99], "the budget is 99 and 30 cases can be chosen"),
        (["--strategy", "best"], "there is no strategy 'best'"),
        (["--split", "test"], "have labels: there is none to choose"),
        (["--labelled", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_bad_input_of_select_is_one_line(radfm, data, tmp_path, arguments, message):
    status, _, error = radfm("select", data, "--out", tmp_path / "next.csv", *arguments)
    assert status != 0
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "next.csv").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("case_id,disorders\nnobody,Gout\n", "line 2 labels a case that is not in the data set"),
        ("case_id,disorders,normal\nS0P000000,Gout,1\n", "line 2 has disorders and 1 for normal"),
        ("case_id,disorders,normal\nS0P000000,,maybe\n", "line 2 has 'maybe' for normal"),
        ("case_id,disorders,icd10cm\nS0P000000,Gout,M10.9; M10\n", "line 2 has 2 codes for 1 disorders"),
        ("name,disorders\nS0P000000,Gout\n", "has no column 'case_id'"),
        ("case_id,disorders\nS0P000000,\n", "no row labels a case"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_with_a_reason(radfm, data, tmp_path, table, message):
    file = tmp_path / "labels.csv"
    file.write_text(table)
    status, _, error = radfm("prepare", "labelled", data, tmp_path / "out", "--labels", file)
    assert status != 0
    assert message in " ".join(error.split())


def test_one_bad_row_is_listed_and_the_others_count(radfm, data, tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("case_id,disorders\nS0P000000,Gout\nnobody,Gout\nS0P000000,Pneumonia\n")
    assert radfm("prepare", "labelled", data, tmp_path / "out", "--labels", file)[0] == 0
    rejected = list(csv.DictReader((tmp_path / "out" / "rejected.csv").open(encoding="utf-8")))
    assert sorted(row["name"] for row in rejected) == ["line 3", "line 4"]
    assert load(tmp_path / "out").rows[0]["disorders"] == ["Gout"]
