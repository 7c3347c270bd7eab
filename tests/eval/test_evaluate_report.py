"""The page of an evaluation: complete in itself, true to the figures, traceable, and silent about the machine."""

import csv
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from radfm.data_prep import load
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.data_prep.stored_cases import patient_of
from radfm.eval.curves import FEW, RATES, roc_curves
from radfm.eval.diagnosis import compare
from radfm.eval.errors import confused, false_alarms
from radfm.eval.metrics import METRICS
from radfm.eval.report import write_report
from radfm.eval.report_rows import page_rows
from radfm.eval.results_folder import reproducible_command
from radfm.eval.scores import Scores

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "data"
    prepare(Phantoms(40, size=48), folder, Settings(size=48, cases_per_shard=20, fractions=(0.5, 0.0, 0.5)))
    return folder


def scored(data: Path, seed: int = 0, skill: float = 2.0, **changes) -> Scores:
    """The test split of a data set, with random scores that correlate weakly with its labels."""
    cases, everything = load(data, "test", labelled=True), load(data)
    scans = [[cases.scan_header(scan) for scan in row["scan_rows"]] for row in cases.rows]
    given = {
        "names": cases.vocabulary.names,
        "icd10cm": [disorder.icd10cm for disorder in cases.vocabulary],
        "case_ids": [row["case_id"] for row in cases.rows],
        "patients": [patient_of(row) for row in cases.rows],
        "disorders": [[cases.vocabulary[label].name for label in row["labels"]] for row in cases.rows],
        "training": [row["labels"] for row in everything.rows if row["split"] == "train" and row["labels"]],
        "attributes": {"body part": [sorted({scan["body_part"] for scan in scans_of_case}) for scans_of_case in scans]},
        "about": {"model": "m", "checkpoint": "abc123", "data": cases.record["fingerprint"], "split": "test"},
    }
    labels = np.stack([cases.labels(i) for i in range(len(cases))])
    noise = np.random.default_rng(seed).normal(size=labels.shape)
    return Scores(**given | {"scores": (noise + skill * labels - 2).astype(np.float32)} | changes)


class Page(HTMLParser):
    """Its links and other sources, its text, and what stands in its scripts."""

    def __init__(self, html: str):
        super().__init__()
        self.sources, self.text, self.scripts, self.rows, self._in = [], "", [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self._in = tag
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag == "script":
            self.scripts.append("")
        if tag == "tr":
            self.rows.append("")

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.text += data
            if self.rows:
                self.rows[-1] += f"{data} "


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tables(phantoms) -> dict[str, list[Scores]]:
    return {"KE": [scored(phantoms)], "base": [scored(phantoms, seed, skill=1) for seed in (1, 2)]}


@pytest.fixture(scope="module")
def result(tables) -> dict:
    return compare(tables, bootstraps=60)


@pytest.fixture(scope="module")
def folder(phantoms, tables, result, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report")
    write_report(out, phantoms, tables, result)
    return out


def test_the_command_leaves_a_page_that_needs_nothing_but_the_files_beside_it(radfm, phantoms, tables, tmp_path):
    tables["KE"][0].save(tmp_path / "ke.parquet")
    tables["base"][0].save(tmp_path / "base.parquet")
    out = tmp_path / "out"
    models = [word for name in ("ke", "base") for word in ("--model", f"{name}={tmp_path / name}.parquet")]
    status, shown, error = radfm("evaluate", phantoms, *models, "--bootstraps", 30, "--out", out)
    assert status == 0, error
    assert str(out / "report.html") in shown.replace("\n", "")
    page, html = page_of(out), (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)|@import|url\((?!#)", html)
    for source in page.sources:
        assert source.startswith(("#", "data:image/jpeg")) or (out / source).is_file(), source
    assert {f"figures/{name}.svg" for name in ("macro_auc", "roc_overall", "roc_tail", "reliability")} <= set(
        page.sources
    )
    assert "radfm evaluate '…/data' --model 'ke=…/ke.parquet'" in page.text
    assert str(tmp_path) not in html
    assert str(phantoms.parent) not in html
    for name in ("ke", "base"):
        assert hashlib.sha256((out / "scores" / f"{name}.parquet").read_bytes()).hexdigest() in page.text
    assert load(phantoms).record["fingerprint"] in page.text
    assert "abc123" in page.text
    assert "Research use only" in page.text


def test_figures_on_the_page_and_in_its_tables_are_those_that_were_measured(folder, result):
    page = page_of(folder)
    for name, model in result["models"].items():
        rows = [row.split() for row in page.rows if row.strip().startswith(name)]
        for band in ("all", "tail"):
            figures = [model["macro"][metric][band] for metric in METRICS]
            words = [text for one in figures for text in (f"{one['value']:.3f}", f"{one['low']:.3f}–{one['high']:.3f}")]
            assert [word.replace("−", "-").replace("to", "") for word in words] in [row[1:] for row in rows]
    with open(folder / "tables" / "summary.csv", newline="", encoding="utf-8") as file:
        values = {(r["model"], r["less"], r["band"], r["metric"]): r["value"] for r in csv.DictReader(file)}
    for metric in METRICS:
        assert float(values["KE", "", "tail", metric]) == result["models"]["KE"]["macro"][metric]["tail"]["value"]
        assert (
            float(values["base", "KE", "all", metric]) == result["differences"]["base"]["macro"][metric]["all"]["value"]
        )


def test_every_disorder_is_in_the_page_with_all_metrics_of_all_models(folder, result):
    rows = json.loads(page_of(folder).scripts[0])
    assert rows["models"] == ["KE", "base"]
    for number, (name, model) in enumerate(result["models"].items()):
        for row, expected in zip(rows["rows"], model["disorders"], strict=True):
            assert row[:4] == [
                expected["disorder"],
                "; ".join(expected["icd10cm"]),
                expected["training_cases"],
                expected["cases"],
            ]
            for figure, metric in zip(row[4][number], METRICS, strict=True):
                assert (figure is None) == (expected[metric] is None), (name, metric)
                if figure:
                    np.testing.assert_allclose(figure, [1000 * v for v in expected[metric].values()], atol=0.5 + 1e-9)


def test_the_table_of_disorders_can_be_sorted_searched_and_opened(browser, folder, result):
    from selenium.webdriver.common.keys import Keys

    browser.get((folder / "report.html").as_uri())
    element = lambda name: browser.find_element("id", name)  # noqa: E731
    shown = lambda: [row.text for row in browser.find_elements("css selector", "#table tbody th button")]  # noqa: E731
    column = lambda name: next(  # noqa: E731
        button for button in browser.find_elements("css selector", "#table thead button") if button.text == name
    )
    everyone = shown()
    cases = {one["disorder"]: one["cases"] for one in result["models"]["KE"]["disorders"]}
    names = list(cases)
    assert sorted(everyone) == sorted(names)

    column("disorder").click()
    assert shown() == sorted(names, key=str.casefold)
    column("cases").click()
    assert [cases[name] for name in shown()] == sorted(cases.values(), reverse=True)
    column("cases").click()
    assert [cases[name] for name in shown()] == sorted(cases.values())
    assert column("cases").find_element("xpath", "..").get_attribute("aria-sort") == "ascending"

    word = names[0].split()[0]
    element("find").send_keys(word.upper())
    assert set(shown()) == {name for name in names if word.casefold() in name.casefold()}
    assert element("count").text == f"{len(shown())} of {len(names)}"
    element("find").send_keys(" nowhere")
    assert shown() == []
    element("find").send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.BACKSPACE)
    assert sorted(shown()) == sorted(names)

    first = browser.find_element("css selector", "#table tbody th button")
    first.click()
    assert first.get_attribute("aria-expanded") == "true"
    assert "ROC curve" in browser.find_element("css selector", "#table tr.detail").text
    first.click()
    assert not browser.find_elements("css selector", "#table tr.detail")
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_curves_are_those_of_scikit_learn_and_go_through_the_recalls_of_the_table(tables, result):
    curves = roc_curves(tables, draws=60)
    table, disorders = tables["KE"][0], curves["KE"].disorders
    for disorder in np.flatnonzero(table.labels.any(0))[:12]:
        fpr, tpr, _ = roc_curve(table.labels[:, disorder], table.scores[:, disorder], drop_intermediate=False)
        expected = [tpr[fpr <= rate].max() for rate in RATES[FEW]]
        np.testing.assert_allclose(disorders[disorder, :, 0], expected, atol=1e-6)
    assert np.isnan(disorders[~table.labels.any(0)]).all()
    for name, model_curves in curves.items():
        for rate in (0.01, 0.05, 0.1):  # the same draws, so the same intervals
            macro = result["models"][name]["macro"][f"recall@fpr={rate}"]
            for band, curve in model_curves.macro.items():
                np.testing.assert_allclose(curve[rate == RATES][0], list(macro[band].values()), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"level": "category"}, "by ICD-10-CM category"),
        ({"within": "body part"}, "of the same body part"),
        ({"only": 9}, "9 "),
        ({"least": (9, 4)}, "Head: at least 9 training cases; body: 4 to 8; tail: fewer than 4."),
    ],
)
def test_what_was_measured_is_what_is_reported(phantoms, tables, tmp_path, options, text):
    table = tables["KE"][0]
    if "only" in options:
        options = {"only": [table.names[i] for i in np.argsort(-table.labels.sum(0))[: options["only"]]]}
    measured = compare({"KE": [table]}, bootstraps=20, **options)
    write_report(tmp_path, phantoms, {"KE": [table]}, measured)
    page = page_of(tmp_path)
    assert text in page.text
    rows = json.loads(page.scripts[0])["rows"]
    assert [row[0] for row in rows] == [row["disorder"] for row in measured["models"]["KE"]["disorders"]]


def test_the_same_scores_give_the_same_bytes(phantoms, tables, result, folder, tmp_path):
    write_report(tmp_path, phantoms, tables, result)
    for file in sorted(folder.rglob("*.*")):
        assert (tmp_path / file.relative_to(folder)).read_bytes() == file.read_bytes(), file.name


def test_a_name_with_markup_is_escaped_in_the_page(phantoms, tmp_path):
    table = scored(phantoms)
    common = int(table.labels.sum(0).argmax())
    names = [HOSTILE if i == common else name for i, name in enumerate(table.names)]
    disorders = [[HOSTILE if name == table.names[common] else name for name in of_case] for of_case in table.disorders]
    table = scored(phantoms, names=names, disorders=disorders)
    write_report(tmp_path, phantoms, {HOSTILE: [table]}, compare({HOSTILE: [table]}, bootstraps=10))
    page = page_of(tmp_path)
    assert len(page.scripts) == 2
    assert "x" not in page.sources
    content = json.loads(page.scripts[0])
    assert content["models"] == [HOSTILE]
    assert HOSTILE in [row[0] for row in content["rows"]]


def toy(scores: list, disorders: list[list[str]], patients: str) -> Scores:
    names = ["Gout", "Rickets", "Scurvy"]
    ids = [f"c{i}" for i in range(len(scores))]
    return Scores(np.array(scores, np.float32), names, [[], [], []], ids, list(patients), disorders, [[0]])


def test_the_worst_errors_are_those_furthest_above_the_right_one_one_of_each_patient():
    table = toy(
        [[5, 1, 0], [3, 4, 9], [9, 1, 0], [8, 1, 0], [1, 7, 2], [0, 2, 6]],
        [["Rickets"], ["Gout", "Rickets"], ["Gout"], ["Rickets"], [], []],
        "pqrpst",
    )
    errors = confused(table)
    assert [(one.case_id, one.named) for one in errors] == [("c3", "Gout"), ("c1", "Scurvy")]
    assert errors[1].disorders == [("Rickets", 4.0, 2), ("Gout", 3.0, 3)]
    assert [(one.case_id, one.named, one.score, one.disorders) for one in false_alarms(table, 1)] == [
        ("c4", "Rickets", 7, [])
    ]


def test_errors_are_shown_as_the_data_set_has_them(folder, tables):
    text = page_of(folder).text
    for one in confused(tables["KE"][0], 8):
        assert f"case {one.case_id}" in text
    assert (folder / "report.html").read_text(encoding="utf-8").count("data:image/jpeg") == len(
        confused(tables["KE"][0], 8) + false_alarms(tables["KE"][0], 4)
    )


def test_scores_of_cases_that_the_data_set_lacks_are_refused(phantoms, tables, tmp_path):
    table = scored(phantoms, case_ids=[f"other-{i}" for i in range(len(tables["KE"][0].case_ids))])
    with pytest.raises(ValueError, match=r"has no case other-.*of other data"):
        write_report(tmp_path, phantoms, {"KE": [table]}, compare({"KE": [table]}, bootstraps=10))


def test_a_reproducible_command_has_no_local_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["evaluate", f"{tmp_path}/data", "--model", "KE=/home/doe/runs/ke", "--only", "a, b", "--out=/home/doe/out"]
    command = reproducible_command(given)
    assert command == "radfm evaluate data --model 'KE=…/ke' --only 'a, b' '--out=…/out'"


def test_a_rare_disease_has_its_orpha_code_beside_icd_10_cm():
    names = ["Biliary atresia", "Pneumothorax"]
    rows = [
        {"disorder": name, "icd10cm": ["X"], "training_cases": 0, "cases": 0} | dict.fromkeys(METRICS) for name in names
    ]
    content = page_rows({"models": {"m": {"disorders": rows}}, "least": 1, "differences": {}}, {}, {})
    assert [row[1] for row in json.loads(content)["rows"]] == ["X; ORPHA:30391", "X"]
