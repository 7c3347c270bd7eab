import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import load_dataset
from lxml import html

from radfm.cases import Case, Scan
from radfm.data_prep import load
from radfm.data_prep.plan import SPLITS, CasePlan, Listing, ReadCase, Rejected, ScanOrigin
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms

HOSTILE = "Bruch & \"Riss\" <script>alert('1')</script> | $x$"
JAPANESE = "肺炎 — Pneumonie à l'œil"


def random_scan(seed: int, slices: int = 1, modality: str | None = "X-ray", **about) -> Scan:
    """A smooth picture that no other seed gives."""
    values = np.random.default_rng(seed).normal(size=(slices, 8, 8)).repeat(10, 1).repeat(10, 2)
    ramp = np.linspace(0, 1, 80)
    pixels = values + ramp[:, None] * 2 + ramp
    if modality == "CT":
        return Scan((pixels * 200).astype(np.int16), modality, source=f"f{seed}", **about)
    pixels = 255 * (pixels - pixels.min()) / np.ptp(pixels)
    return Scan(pixels.astype(np.uint8), modality, source=f"f{seed}", **about)


@dataclass
class Made:
    """A source of cases that the test makes."""

    cases: list[tuple[CasePlan, list[Scan]]]
    rejected: list[Rejected] = field(default_factory=list)
    notes: dict[str, ScanOrigin] = field(default_factory=dict)  # by a scan's source
    notice: dict[str, str] = field(default_factory=dict)
    name: str = "made"
    settings: dict = field(default_factory=dict)

    def listing(self) -> Listing:
        plans = [plan for plan, _ in self.cases]
        return Listing(plans, self.rejected, "row", len(plans) + len(self.rejected), len(plans))

    def read(self, plans: Sequence[CasePlan]) -> Iterator[ReadCase]:
        scans_of = {plan.case_id: scans for plan, scans in self.cases}
        for plan in plans:
            scans = [Scan(**vars(scan)) for scan in scans_of[plan.case_id]]
            notes = [self.notes.get(scan.source, ScanOrigin("header", "unknown")) for scan in scans]
            yield ReadCase(Case(scans), files=len(scans), unread=0, origins=notes)


def everything_wrong() -> Made:
    """Duplicates within and across splits, text in pixels, unlabelled cases, odd names and codes, things left out."""
    cases = []
    for i in range(40):
        plan = CasePlan(f"c{i}", f"p{i}", split=SPLITS[min(i % 5, 2)], age=20.0 + i, sex="FM"[i % 2])
        plan.disorders = [["Pneumothorax"], [HOSTILE, "Pneumothorax"], [JAPANESE], ["Rib fracture"], []][i % 5]
        plan.icd10cm = [["J93.9"] if name == "Pneumothorax" else ["Q99.XYZ"] if name == HOSTILE else []
                        for name in plan.disorders]  # fmt: skip
        scans = [random_scan(i, body_part="chest", plane="PA")]
        if i % 2:
            scans.append(random_scan(100 + i, 3 + i % 7, "CT", body_part="a<b>&c", key_slice=2))
        cases.append((plan, scans))
    cases[7] = (
        CasePlan("c7", "p7", labelled=False, history="<i>fell</i>"),
        [random_scan(7), random_scan(207, modality=None)],
    )
    cases[11][1].append(random_scan(0))  # the picture of case 0, in another split
    cases[15][1].append(random_scan(10))  # of case 10, in the same split
    cases[20] = (
        CasePlan("c20", "p0", disorders=["Pneumothorax"], icd10cm=[["J93.9"]], split="test"),
        cases[20][1],
    )  # case 0 of the same patient trains
    cases[21][1].append(Scan(np.zeros((1, 64, 64), np.uint8), "X-ray", source="f-dark"))
    cases[22] = (cases[22][0], [Scan(np.zeros((1, 64, 64), np.uint8), "X-ray", source="f-empty")])
    rejected = [Rejected("row", f"line {i}", f"names a file that is not there (x{i}/<b>.png): correct the path")
                for i in range(9)]  # fmt: skip
    notes = {f"f{i}": ScanOrigin("guess", "guess", "screen capture") for i in (3, 7, 12)}
    return Made(
        cases, rejected, notes, {"title": "Made <b>& named", "licence": "CC BY-NC-SA 4.0", "citation": "A & B, <2024>"}
    )


@pytest.fixture(scope="module")
def wrong(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wrong") / "set"
    prepare(everything_wrong(), out, Settings(cases_per_shard=7, size=64))
    return out


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantoms") / "set"
    prepare(Phantoms(10), out, Settings(cases_per_shard=4))
    return out


def page_of(out: Path):
    return html.fromstring((out / "report.html").read_text(encoding="utf-8"))


def number(text: str) -> int:
    return int(text.replace(",", ""))


def rows_of(page, attribute: str) -> dict[str, list[int]]:
    return {
        row.get(f"data-{attribute}"): [number(cell.text) for cell in row.findall("td") if "%" not in cell.text]
        for row in page.xpath(f"//tr[@data-{attribute}]")
    }


@pytest.mark.parametrize("name", ["wrong", "phantoms"])
def test_the_report_loads_nothing(name, request):
    out = request.getfixturevalue(name)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[\w+/=]+", "", text))
    page = page_of(out)
    for attribute in ("src", "href"):
        for one in page.xpath(f"//@{attribute}") + page.xpath(f"//@*[name()='xlink:{attribute}']"):
            assert one.startswith(("data:image/jpeg;base64,", "#"))
    assert len(page.xpath("//script")) == 1
    ids = page.xpath("//*[not(ancestor-or-self::svg)]/@id")
    assert len(ids) == len(set(ids))
    for link in page.xpath("//a/@href"):
        assert link[1:] in ids


@pytest.mark.parametrize("name", ["wrong", "phantoms"])
def test_numbers_of_the_report_are_those_of_the_data_set(name, request):
    out = request.getfixturevalue(name)
    page, cases = page_of(out), load(out)
    scans = [(row, cases.scan_header(i)) for row in cases.rows for i in row["scan_rows"]]
    totals = {
        one: page.get_element_by_id(f"n-{one}").text for one in ("cases", "patients", "scans", "slices", "disorders")
    }
    assert {one: number(text) for one, text in totals.items()} == {
        "cases": len(cases),
        "patients": len({row["patient_id"] for row in cases.rows}),
        "scans": len(scans),
        "slices": sum(about["shape"][0] for _, about in scans),
        "disorders": len(cases.vocabulary),
    }
    assert number(page.get_element_by_id("n-rejected").text) == len((out / "rejected.csv").read_text().splitlines()) - 1
    for modality, values in rows_of(page, "modality").items():
        selected = [(row, about) for row, about in scans if (about["modality"] or "not stated") == modality]
        assert values == [
            len({row["case_id"] for row, _ in selected}),
            len(selected),
            sum(about["shape"][0] for _, about in selected),
            sum(about["key_slice"] is not None for _, about in selected),
            *(sum(row["split"] == split for row, _ in selected) for split in SPLITS),
        ]
    for split, values in rows_of(page, "split").items():
        selected = [row for row in cases.rows if row["split"] == split]
        official = sum(row["split_from"] == "source" for row in selected)
        assert values == [
            len({row["patient_id"] for row in selected}),
            len(selected),
            sum(row["split"] == split for row, _ in scans),
            sum(about["shape"][0] for row, about in scans if row["split"] == split),
            len({label for row in selected for label in row["labels"]}),
            official,
            len(selected) - official,
        ]
    for origin, (modality, plane) in rows_of(page, "origin").items():
        assert modality == sum(about["modality_from"] == origin for _, about in scans)
        assert plane == sum(about["plane_from"] == origin for _, about in scans)
    for kind, values in rows_of(page, "kind").items():
        assert values == [cases.record["counts"][kind][way] for way in ("in", "out", "rejected")]
    per_split = {split: Counter(name for row in cases.rows if row["split"] == split for name in row["disorders"])
                 for split in SPLITS}  # fmt: skip
    table = page.xpath("//table[@id='table']/tbody/tr")
    assert [row[0].text for row in table] == cases.vocabulary.names
    for row, disorder in zip(table, cases.vocabulary, strict=True):
        counts = [per_split[split][disorder.name] for split in SPLITS]
        assert [number(cell.text) for cell in row[2:6]] == [sum(counts), *counts]
        assert [code.text for code in row[1].iter("code")] == disorder.icd10cm


def test_what_a_person_should_check_is_at_the_top(wrong):
    text = " ".join(page_of(wrong).xpath("//section[@class='look']")[0].text_content().split())
    record = load(wrong).record
    assert "3 scans may carry text in their pixels" in text
    assert "1 group of copies of one picture lies across splits" in text
    assert record["patients_in_several_official_splits"] == 1
    assert "had 1 patient in several splits" in text
    assert record["codes_not_in_icd10cm"] == ["Q99.XYZ"]
    assert "1 given code is not in ICD-10-CM" in text
    assert "1 case is unlabelled" in text


def test_rejections_are_grouped_by_reason_and_each_is_counted(wrong):
    table = page_of(wrong).xpath("//table[caption[contains(., 'rejected.csv')]]/tbody/tr")
    counts = {(row[1].text, row[2].text): number(row[0].text) for row in table}
    assert counts["row", "names a file that is not there (…): correct the path"] == 9
    assert sum(counts.values()) == len((wrong / "rejected.csv").read_text().splitlines()) - 1
    assert sum(n for (what, _), n in counts.items() if what == "scan") == 2


def test_duplicates_are_shown_side_by_side_those_across_splits_first(wrong):
    groups = page_of(wrong).xpath("//div[@class='pair']")
    assert ["across" in group.text_content() for group in groups] == [True, False]
    for group in groups:
        assert len(group.xpath(".//img")) == 2
    assert "p0" in groups[0].text_content()
    assert "p11" in groups[0].text_content()


def test_names_are_escaped_and_kept_whole(wrong):
    text, page = (wrong / "report.html").read_text(encoding="utf-8"), page_of(wrong)
    assert "<script>alert" not in text
    assert "<i>fell" not in text
    assert not page.xpath("//main//b[contains(., 'named')]")
    assert HOSTILE in page.xpath("//table[@id='table']//th/text()")
    assert JAPANESE in page.xpath("//table[@id='table']//th/text()")
    assert page.xpath("//h1/text()") == ["Made <b>& named"]
    assert "a<b>&c" in page.xpath("//figure//text()")


def test_image_descriptions_contain_no_patient_name(wrong):
    names = {name for row in load(wrong).rows for name in (row["case_id"], row["patient_id"])}
    for alt in page_of(wrong).xpath("//img/@alt"):
        assert alt
        assert not names & set(re.findall(r"\w+", alt))


def test_examples_show_every_modality_with_its_key_slice(phantoms):
    page, cases = page_of(phantoms), load(phantoms)
    abouts = [cases.scan_header(i) for row in cases.rows for i in row["scan_rows"]]
    assert set(page.xpath("//h3[@class='modality']/text()")) == {about["modality"] for about in abouts}
    captions = re.findall(r"key slice (\d+) of (\d+).*?case (\w+)", " ".join(page.xpath("//figcaption//text()")), re.S)
    keys = {
        (about["key_slice"] + 1, about["shape"][0], about["case_id"])
        for about in abouts
        if about["key_slice"] is not None
    }
    assert captions
    assert {(int(key), int(slices), case) for key, slices, case in captions} <= keys
    assert len(page.xpath("//figure[@class='key']")) == len(captions)


def test_examples_are_scans_without_text_in_their_pixels_where_there_are(wrong):
    shown = re.findall(r"X-ray[^;]*; one slice; case (c\d+)", " ".join(page_of(wrong).text_content().split()))
    assert len(shown) == 4
    assert not {"c3", "c7", "c12"} & set(shown)


def test_finishing_twice_gives_the_same_bytes(tmp_path, wrong):
    prepare(everything_wrong(), tmp_path / "again", Settings(cases_per_shard=7, size=64))
    files = sorted(path.relative_to(wrong) for path in wrong.rglob("*") if path.is_file())
    assert Path("README.md") in files
    assert files == sorted(
        path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()
    )
    for file in files:
        assert (wrong / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


@pytest.mark.parametrize(
    "plan",
    [
        CasePlan("c", "p"),
        CasePlan("c", "p", labelled=False),
        CasePlan("c", "p", disorders=["Pneumothorax"], split="test"),
    ],
    ids=["normal", "unlabelled", "only a test case"],
)
def test_one_case_makes_a_report_and_a_card(tmp_path, plan):
    prepare(Made([(plan, [random_scan(1, modality=None)])]), tmp_path / "set", Settings(size=64))
    page = page_of(tmp_path / "set")
    text = " ".join(page.text_content().split())
    assert page.get_element_by_id("n-cases").text == "1"
    assert "Nothing was left out." in text
    assert "No two patients have copies of one picture." in text
    assert "None" not in text
    words = " ".join(page.xpath("//p//text() | //li//text() | //caption//text()"))
    assert not re.search(r"\b1 (cases|scans|slices|patients|disorders|groups|lines)\b", words)
    assert ("No case has a disorder" in text) == (not plan.disorders)
    card = (tmp_path / "set/README.md").read_text(encoding="utf-8")
    assert "None" not in card


def test_ct_is_shown_in_a_window_that_the_caption_names(wrong):
    captions = [" ".join(one.text_content().split()) for one in page_of(wrong).xpath("//figcaption")]
    assert any("CT" in caption and "−160 to 240 HU" in caption for caption in captions)
    assert not any("X-ray" in caption and "HU" in caption for caption in captions)


def test_one_disorder_in_two_spellings_is_one_and_a_wrong_code_does_not_keep_it_from_its_own(tmp_path):
    names = ["Pneumothorax", "pneumothorax ", "Pneumothorax"]
    plans = [CasePlan(f"c{i}", f"p{i}", disorders=[name], icd10cm=[["Q99.XYZ"]]) for i, name in enumerate(names)]
    prepare(Made([(plan, [random_scan(i)]) for i, plan in enumerate(plans)]), tmp_path / "set")
    cases = load(tmp_path / "set")
    assert [row["disorders"] for row in cases.rows] == [["Pneumothorax"]] * 3
    assert cases.vocabulary[0].icd10cm == ["J93.9"]
    assert page_of(tmp_path / "set").get_element_by_id("n-disorders").text == "1"


def test_rare_diseases_are_counted_and_have_their_orpha_code(tmp_path):
    names = [["Biliary atresia"], ["Biliary atresia", "Hodgkin lymphoma"], ["Pneumothorax"], []]
    plans = [
        CasePlan(f"c{i}", f"p{i}", disorders=of_case, icd10cm=[[]] * len(of_case)) for i, of_case in enumerate(names)
    ]
    prepare(Made([(plan, [random_scan(i)]) for i, plan in enumerate(plans)]), tmp_path / "set")
    page = page_of(tmp_path / "set")
    sentence = "2 are rare diseases with an ORPHA code of Orphanet, in 2 cases."
    assert page.get_element_by_id("rare").text_content() == sentence
    codes = {row[0].text: row[1].text_content() for row in page.get_element_by_id("table").xpath("tbody/tr")}
    assert "ORPHA:30391 rare disease" in codes["Biliary atresia"]
    assert "ORPHA" not in codes["Pneumothorax"]
    _, card = card_of(tmp_path / "set")
    assert sentence in card
    assert "| Biliary atresia | Q44.2, ORPHA:30391 | 2 |" in card


def card_of(out: Path) -> tuple[dict, str]:
    _, head, text = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_the_card_describes_the_data_set(wrong):
    head, text = card_of(wrong)
    assert head["pretty_name"] == "Made <b>& named"
    assert head["license"] == "cc-by-nc-sa-4.0"
    assert head["size_categories"] == ["n<1K"]
    assert "Research use only, not a medical device" in text
    assert r"A \& B, \<2024\>" in text
    cases = load(wrong)
    for split in SPLITS:
        rows = [row for row in cases.rows if row["split"] == split]
        line = next(line for line in text.splitlines() if line.startswith(f"| {split} "))
        assert [number(cell) for cell in line.split("|")[2:4]] == [len({r["patient_id"] for r in rows}), len(rows)]
    assert "\\|" in text  # a name with a bar does not break the table
    for plot in re.findall(r"\]\((plots/[\w.]+)\)", text):
        assert (wrong / plot).read_bytes().startswith(b"\x89PNG")
    for column in load(wrong).scan_header(0):
        assert f"`{column}`" in text


def test_a_source_without_metadata_has_a_card(phantoms, tmp_path):
    assert card_of(phantoms)[0]["license"] == "apache-2.0"
    prepare(Made([(CasePlan("c", "p"), [random_scan(1)])]), tmp_path / "set")
    head, text = card_of(tmp_path / "set")
    assert head["license"] == "unknown"
    assert "The licence of the source is unknown" in text


def test_the_code_in_the_card_runs(phantoms, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", card_of(phantoms)[1], re.S)
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        exec(block.replace("path/to/this/folder", str(phantoms)), names)
    assert np.array_equal(names["pixels"], load(phantoms).scan(0).pixels)
    assert names["case"].disorders == load(phantoms, "train")[0].disorders


@pytest.mark.parametrize("table", ["cases", "scans", "truth"])
def test_datasets_reads_the_tables_that_the_card_names(phantoms, table, tmp_path):
    dataset = load_dataset(str(phantoms), table, cache_dir=str(tmp_path))
    assert list(dataset) == [table]
    if table == "cases":
        assert dataset[table]["case_id"] == [row["case_id"] for row in load(phantoms).rows]


def test_the_report_s_record_is_the_one_in_the_folder(wrong):
    fingerprint = json.loads((wrong / "dataset.json").read_text())["fingerprint"]
    assert fingerprint in page_of(wrong).text_content()
    assert fingerprint in card_of(wrong)[1]
