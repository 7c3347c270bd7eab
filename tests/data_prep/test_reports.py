import csv
import json
from pathlib import Path

import pytest
from making import series, table

from radfm.data_prep import load
from radfm.data_prep.reports import ReportReader
from radfm.data_prep.reports.labels import without_identifiers
from radfm.data_prep.reports.language import other_language
from radfm.data_prep.reports.report_table import read_reports
from tests.waiting import wait_until

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "reports"
NAMES = ["Pleural effusion", "Pneumothorax", "Pneumonia", "Pulmonary embolism", "Breast cancer", "Rib fracture"]
NAMES += ["Splenomegaly", "Liver cyst", "Renal cyst"]


@pytest.fixture(scope="module")
def reader() -> ReportReader:
    return ReportReader(NAMES)


@pytest.fixture
def vocabulary(tmp_path) -> Path:
    file = tmp_path / "disorders.txt"
    file.write_text("\n".join(NAMES))
    return file


def statuses(reader: ReportReader, report: str) -> dict[str, str]:
    return {finding.disorder: finding.status for finding in reader.read(report)}


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.parametrize(
    ("sentence", "status"),
    [
        ("Small left pleural effusion.", "present"),
        ("Unchanged; no change in the left pleural effusion.", "present"),
        ("No pneumothorax or pleural effusion.", "absent"),
        ("Pleural effusion: none.", "absent"),
        ("A small pleural effusion cannot be excluded.", "uncertain"),
        ("? left pleural effusion", "uncertain"),
        ("History of pleural effusion.", "historical"),
        ("Her mother had a pleural effusion.", "family"),
        ("NO PLEURAL EFFUSION.", "absent"),
    ],
)
def test_a_sentence_gives_a_disorder_its_status(reader, sentence, status):
    assert statuses(reader, sentence)["Pleural effusion"] == status


def test_a_disorder_is_found_by_abbreviation_other_order_and_with_words_between(reader):
    assert statuses(reader, "No PE.") == {"Pulmonary embolism": "absent"}
    assert statuses(reader, "Healed fractures of the left sixth and seventh ribs.") == {"Rib fracture": "present"}
    assert statuses(reader, "The spleen is not enlarged.") == {"Splenomegaly": "absent"}
    assert statuses(reader, "Echogenic liver. Simple cyst of the left kidney.") == {"Renal cyst": "present"}


def test_indication_title_and_technique_label_nothing_and_a_history_is_historical(reader):
    report = (
        "CT PULMONARY EMBOLISM PROTOCOL\nINDICATION: Rule out pulmonary embolism, pneumonia.\nHISTORY: Breast cancer.\n"
        "TECHNIQUE: As for pneumothorax.\nFINDINGS: Small left pleural effusion."
    )
    assert statuses(reader, report) == {"Breast cancer": "historical", "Pleural effusion": "present"}
    assert reader.history(report) == "Rule out pulmonary embolism, pneumonia. Breast cancer."


def test_the_impression_decides_and_a_contradiction_lowers_the_confidence(reader):
    (finding,) = reader.read("FINDINGS: Possible pneumonia.\nIMPRESSION: 1. No pneumonia.\n2. Otherwise unremarkable.")
    assert (finding.status, finding.section, finding.sentence) == ("absent", "impression", "No pneumonia.")
    assert finding.contradicted
    assert finding.confidence < 0.6


@pytest.mark.parametrize("file", ["sentences.csv", "reports.csv"])
def test_present_and_absent_are_found_on_the_half_without_tuning(file):
    reader = ReportReader((BENCHMARK / "disorders.txt").read_text().splitlines())
    rows = [row for row in rows_of(BENCHMARK / file) if row["half"] == "unseen"]
    gold = {(row["id"], *one.split("=")) for row in rows for one in row["labels"].split("; ") if one}
    found = {(row["id"], f.disorder, f.status) for row in rows for f in reader.read(row["text"])}
    for status in ("present", "absent"):
        truths, answers = ({one for one in labels if one[2] == status} for labels in (gold, found))
        assert 2 * len(truths & answers) / (len(truths) + len(answers)) >= 0.9


def test_a_file_of_rules_adds_phrases_and_a_wrong_row_is_named(tmp_path):
    rules = [
        {"rule": "mention", "value": "Pleural effusion", "phrase": "costophrenic blunting", "unless": "ankle"},
        {"rule": "absent", "value": "before", "phrase": "gone is the", "unless": ""},
    ]
    reader = ReportReader(NAMES, table(tmp_path / "rules.csv", rules))
    assert statuses(reader, "Left costophrenic blunting.") == {"Pleural effusion": "present"}
    assert statuses(reader, "Gone is the pneumothorax.") == {"Pneumothorax": "absent"}
    wrong = table(tmp_path / "wrong.csv", [{"rule": "absent", "value": "left of", "phrase": "x"}])
    with pytest.raises(ValueError, match=r"wrong\.csv, line 2: the value of absent is one of before, after, pseudo"):
        ReportReader(NAMES, wrong)


def test_rows_that_are_no_report_are_listed_and_an_addendum_is_joined(tmp_path):
    rows = [
        {"accession": "A1", "report": "Small pleural effusion."},
        {"accession": "A1", "report": "Small pleural effusion."},
        {"accession": "A1", "report": "Addendum: there is also a pneumothorax."},
        {"accession": "", "report": "No pneumothorax."},
        {"accession": "A2", "report": ""},
        {"accession": "A3", "report": "x" * 100_000},
        {"accession": "A4", "report": "Kein Nachweis eines Pleuraergusses oder eines Pneumothorax."},
    ]
    reports, rejected = read_reports(table(tmp_path / "reports.csv", rows))
    assert [report.number for report in reports] == ["A1"]
    assert "pneumothorax" in reports[0].text
    reasons = {one.name: one.reason for one in rejected}
    expected = {3: "repeats", 5: "no number", 6: "no text", 7: "100,000 characters", 8: "not in English (German)"}
    assert all(expected[line] in reasons[f"line {line}"] for line in expected)
    assert len(reasons) == len(expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"accession,report\nA1,Kein Nachweis eines Ergusses, die Lunge ist frei\n", "cells"),
        (b"accession,report\nA1,Es ist kein Erguss und auch keine Stauung da.\n", "German"),
        ("accession,report\nA1,Épanchement pleural\n".encode("latin-1"), "is not UTF-8"),
        (b"number,report\nA1,No pneumothorax.\n", "no column 'study' or"),
        (b"accession,words\nA1,No pneumothorax.\n", "no column 'report' or 'text'"),
        (b"accession,report\n", "holds no report"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_the_reason(tmp_path, content, message):
    file = tmp_path / "reports.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_reports(file)


def test_columns_named_after_sections_are_the_report(tmp_path, reader):
    row = {"study": "1.2.3", "indication": "Pneumonia?", "findings": "Pleural effusion.", "impression": ""}
    (report,), _ = read_reports(table(tmp_path / "reports.csv", [row]))
    assert statuses(reader, report.text) == {"Pleural effusion": "present"}


def test_english_is_told_from_other_languages():
    assert other_language("No acute cardiopulmonary abnormality.") is None
    assert other_language("Normal.") is None
    assert other_language("Pas d'épanchement pleural, mais il y a une opacité dans le lobe inférieur.") == "French"
    assert other_language("Плевральный выпот справа.") == "another alphabet"


def test_identifiers_that_can_be_recognised_are_removed():
    text = "Discussed with Dr. Jane Miller on 03/14/2024 at 14:30, MRN 12345678. Nodule of 12 mm."
    cleaned = without_identifiers(text)
    assert not any(part in cleaned for part in ("Miller", "2024", "14:30", "12345678"))
    assert "Nodule of 12 mm." in cleaned


def test_the_labels_of_reports_go_into_a_data_set(radfm, tmp_path, vocabulary):
    texts = {
        "ACC0001": "HISTORY: Breast cancer.\nIMPRESSION: Left rib fracture. No pneumothorax.",
        "ACC0002": "IMPRESSION: Possible pneumonia.",
        "ACC0003": "IMPRESSION: No acute cardiopulmonary abnormality, no pneumonia.",
        "ACC0009": "IMPRESSION: Pneumothorax.",
    }
    rows = [{"accession": number, "report": text} for number, text in texts.items()]
    for i, number in enumerate(("ACC0001", "ACC0002", "ACC0003")):
        series(tmp_path / "archive" / number, seed=9 * i, AccessionNumber=number, PatientID=f"P{number}")
    reports, out = table(tmp_path / "reports.csv", rows), tmp_path / "labels.csv"
    status, printed, _ = radfm("prepare", "reports", reports, out, "--vocabulary", vocabulary, "--json")
    assert status == 0
    assert json.loads(printed)["findings"] == {
        "present": 2, "absent": 2, "uncertain": 1, "historical": 1, "family": 0
    }  # fmt: skip
    evidence = {(row["report"], row["disorder"]): row for row in rows_of(tmp_path / "labels_evidence.csv")}
    assert evidence["ACC0001", "Rib fracture"]["sentence"] == "Left rib fracture."
    assert evidence["ACC0002", "Pneumonia"]["check"] == "uncertain"

    options = ("--labels", out, "--processes", 1)
    status, printed, error = radfm("prepare", "dicom", tmp_path / "archive", tmp_path / "data", *options)
    assert status == 0, error
    assert "Rejected" in printed  # ACC0009 has no study
    cases = {tuple(case.disorders): case for case in load(tmp_path / "data")}
    assert set(cases) == {("Rib fracture",), ()}
    content = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert content["disorders"] == 1
    page = (tmp_path / "data" / "report.html").read_text()
    assert "1 with disorders, 1 normal, 1 without a named disorder and not known to be normal" in page
    assert not any(number in page for number in texts)


def test_the_page_takes_corrections_and_the_command_takes_them_back(radfm, browser, tmp_path, vocabulary):
    rows = [{"accession": f"A{i}", "report": "IMPRESSION: Possible pneumonia. No rib fracture."} for i in range(2)]
    arguments = (table(tmp_path / "reports.csv", rows), tmp_path / "labels.csv", "--vocabulary", vocabulary)
    assert radfm("prepare", "reports", *arguments)[0] == 0
    browser.get((tmp_path / "labels.html").as_uri())
    assert browser.find_element("id", "n-doubtful").text == "2"
    browser.find_element("css selector", "tr[data-report=A1] select").send_keys("present")
    browser.find_element("id", "download").click()
    corrected = browser.downloads / "labels_corrected.csv"
    wait_until(corrected.exists)
    assert rows_of(corrected) == [{"report": "A1", "disorder": "Pneumonia", "status": "present", "was": "uncertain"}]
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]

    assert radfm("prepare", "reports", *arguments, "--corrected", corrected)[0] == 0
    assert [row["disorders"] for row in rows_of(tmp_path / "labels.csv")] == ["", "Pneumonia"]
    corrected.write_text("report,disorder,status\nA7,Pneumonia,present\n")
    status, _, error = radfm("prepare", "reports", *arguments, "--corrected", corrected)
    assert (status, "line 2: no report has the number A7" in error) == (1, True)


def test_the_vocabulary_of_a_checkpoint_is_used(radfm, tmp_path):
    reports = table(tmp_path / "reports.csv", [{"study": "1.2", "report": "Tear of the ACL. No BPH."}])
    assert radfm("prepare", "reports", reports, tmp_path / "l.csv", "--vocabulary", "radfm-phantom-mini")[0] == 0
    found = {(row["disorder"], row["status"]) for row in rows_of(tmp_path / "l_evidence.csv")}
    assert ("Sprain of anterior cruciate ligament of knee", "present") in found
    assert ("Benign prostatic hyperplasia", "absent") in found


def test_a_long_report_is_read_as_a_short_one(reader):
    report = "FINDINGS: " + "Small left pleural effusion. No pneumothorax. " * 1000
    assert statuses(reader, report) == {"Pleural effusion": "present", "Pneumothorax": "absent"}


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("IMPRESSION: 1. No acute cardiopulmonary abnormality.", True),
        ("IMPRESSION: Normal chest radiograph.", True),
        ("IMPRESSION: Abnormal chest radiograph. 8 cm renal mass.", False),
        ("Abnormal examination.", False),
        ("This is not a normal study.", False),
        ("No acute cardiopulmonary abnormality. 8 cm renal mass suspicious for malignancy.", False),
    ],
)
def test_a_report_is_normal_only_if_every_sentence_says_so(text, normal):
    reader = ReportReader(["Pneumothorax"])
    assert reader.is_normal(text, reader.read(text)) == normal


@pytest.mark.parametrize(
    "identifier",
    ["January 5, 2024", "Jan 5 2024", "DR. JOHN SMITH", "dr. smith", "MR SMITH", "555-123-4567", "MRN 12345"],
)
def test_identifiers_are_removed_however_they_are_written(identifier):
    assert without_identifiers(f"Compared to {identifier}: MS lesions, MR angiography.") == (
        "Compared to …: MS lesions, MR angiography."
    )


def test_a_row_without_a_number_or_a_text_is_left_out_alone(tmp_path):
    file = tmp_path / "reports.csv"
    twice = 'A1,"FINDINGS: a.\n\nIMPRESSION: b."\n'
    file.write_text(f"accession,report\n{twice},No effusion.\nA2\n{twice}")
    reports, rejected = read_reports(file)
    assert [report.number for report in reports] == ["A1"]
    assert [reason.split(":")[0] for reason in (one.reason for one in rejected)] == [
        "has no number of a study or report",
        "has no text",
        "repeats a report that came before",
    ]


def test_a_table_without_a_header_is_refused_without_its_text(tmp_path):
    file = tmp_path / "reports.csv"
    file.write_text('A1,"Mrs Smith has a small effusion on the left."\nA2,"Mrs Jones has none."\n')
    with pytest.raises(ValueError, match="has no header") as raised:
        read_reports(file)
    assert "smith" not in str(raised.value).lower()
