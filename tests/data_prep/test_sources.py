"""What each source lists and reads, from real files in its own layout, broken ones among them."""

import gzip
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Nifti, Value
from making import dicom, picture, series, smooth, table
from pydicom import dcmread
from pydicom.fileset import FileSet

from radfm.data_prep.plan import Listing, Source
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.pseudonyms import Pseudonyms
from radfm.data_prep.sources.dicom import Dicom
from radfm.data_prep.sources.hub import HubDataset
from radfm.data_prep.sources.manifest import Manifest, template
from radfm.data_prep.sources.medpix import MedPix
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.data_prep.sources.rp3d import RP3D

OPEN = Pseudonyms(None)
HIDDEN = Pseudonyms(b"a key of the test, long enough")


def listed(source: Source) -> Listing:
    listing = source.listing()
    assert listing.listed == listing.planned + len(listing.rejected)
    return listing


def read(source: Source) -> list:
    results = list(source.read(source.listing().plans))
    assert all(len(one.case.scans) == len(one.origins) for one in results)
    return results


# manifest


def test_a_manifests_rows_become_cases(tmp_path):
    picture(tmp_path / "a" / "1.png", 1)
    picture(tmp_path / "2.png", 2)
    series(tmp_path / "ct", seed=3)
    rows = [
        {"case": "7", "patient": "P1", "path": "a/1.png", "modality": "CR", "disorders": "Pneumonia; Rib fracture"},
        {"case": "7", "patient": "P1", "path": "ct", "date": "2024-03-09", "age": "93", "sex": "female"},
        {"case": "8", "patient": "P2", "path": "2.png", "modality": "ultrasound", "disorders": "", "split": "val"},
    ]
    rows[0] |= {"date": "2024-03-01", "plane": "PA", "icd10cm": "J18.9; S22.39", "history": "fell", "key_slice": "0"}
    source = Manifest(table(tmp_path / "cases.csv", rows), OPEN)
    first, second = listed(source).plans
    assert (first.case_id, first.patient_id, first.disorders) == ("7", "P1", ["Pneumonia", "Rib fracture"])
    assert (first.icd10cm, first.history, first.age, first.sex) == ([["J18.9"], ["S22.39"]], "fell", 90, "F")
    assert (second.disorders, second.split, second.labelled) == ([], "validation", True)
    seven, eight = read(source)
    assert [(s.modality, s.plane, s.days, s.key_slice, len(s.pixels)) for s in seven.case.scans] == [
        ("X-ray", "PA", 8.0, 0, 1),
        ("CT", "axial", 0.0, None, 3),
    ]
    assert [note.modality_from for note in seven.origins] == ["source", "header"]
    assert eight.case.scans[0].modality == "ultrasound"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"case": ""}, "has no case"),
        ({"path": ""}, "has no path"),
        ({"path": "gone.png"}, "names a file that is not there"),
        ({"path": "empty"}, "folder without files"),
        ({"modality": "photon"}, "unknown modality 'photon'"),
        ({"split": "maybe"}, "has the split 'maybe'"),
        ({"date": "09.03.2024"}, "write it as 2024-05-31"),
        ({"days": "soon"}, "'soon' for days: write a number"),
        ({"key_slice": "-1"}, "out of range"),
        ({"age": "1e99"}, "out of range"),
        ({"disorders": "A; B", "icd10cm": "J18.9; S22.39; I10"}, "3 codes for 2 disorders"),
        ({"patient": "P2"}, "another patient than line 2"),
    ],
)
def test_a_row_with_a_mistake_is_rejected_with_its_line(tmp_path, row, reason):
    picture(tmp_path / "1.png")
    (tmp_path / "empty").mkdir()
    good = {"case": "7", "patient": "P1", "path": "1.png", "modality": "CT", "disorders": "Pneumonia"}
    blank = {"split": "", "date": "", "days": "", "key_slice": "", "age": "", "icd10cm": ""}
    listing = listed(Manifest(table(tmp_path / "cases.csv", [good | blank, good | blank | row]), OPEN))
    assert len(listing.plans) == 1
    (rejected,) = listing.rejected
    assert rejected.name == "line 3"
    assert reason in rejected.reason


def test_two_disorders_of_a_row_may_have_one_code(tmp_path):
    picture(tmp_path / "1.png")
    row = {"case": "7", "path": "1.png", "modality": "X-ray"}
    row |= {"disorders": "Pulmonary infiltrate; Lung mass; Pneumonia", "icd10cm": "R91.8; R91.8; J18.9"}
    (plan,) = listed(Manifest(table(tmp_path / "cases.csv", [row]), OPEN)).plans
    assert plan.disorders == ["Pulmonary infiltrate", "Lung mass", "Pneumonia"]
    assert plan.icd10cm == [["R91.8"], ["R91.8"], ["J18.9"]]


def test_manifests_as_spreadsheets_and_programs_write_them(tmp_path):
    picture(tmp_path / "1.png")
    row = {"Case_ID": "7", "Path": "1.png", "Modality": "CT", "Labels": "Pneumonia; Asthma"}
    german = table(tmp_path / "german.csv", [row], ";")
    german.write_text(
        "\ufeff" + german.read_text().replace("Pneumonia; Asthma", '"Pneumonia; Asthma"').replace('""', '"')
    )
    lines = tmp_path / "cases.jsonl"
    lines.write_text(json.dumps(row | {"Labels": ["Pneumonia", "Asthma"]}) + '\n\n{"case": \n[1]\n')
    assert listed(Manifest(german, OPEN)).plans[0].disorders == ["Pneumonia", "Asthma"]
    listing = listed(Manifest(lines, OPEN))
    assert listing.plans[0].disorders == ["Pneumonia", "Asthma"]
    assert [(r.name, "no JSON object" in r.reason) for r in listing.rejected] == [("line 3", True), ("line 4", True)]


def test_a_list_in_a_column_of_one_value_rejects_its_row(tmp_path, archive):
    picture(tmp_path / "1.png")
    lines = tmp_path / "cases.jsonl"
    row = {"case": "7", "path": "1.png", "modality": "CT", "disorders": ["Pneumonia"]}
    lines.write_text(
        "".join(json.dumps(row | {key: [value]}) + "\n" for key, value in (("split", "train"), ("path", "1.png")))
    )
    listing = Manifest(lines, OPEN).listing()
    assert not listing.plans
    assert [r.name for r in listing.rejected] == ["line 1", "line 2"]
    labels = tmp_path / "labels.jsonl"
    rows = [
        {"study": "1.2.3.1", "split": ["train"]},
        {"study": ["1.2.3.2"]},
        {"study": "1.2.3.3", "disorders": ["Gout"]},
    ]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for names in (OPEN, HIDDEN):
        listing = Dicom(archive, names, labels).listing()
        assert [r.name for r in listing.rejected if r.what == "row"] == ["line 1", "line 2"]
        assert [plan.disorders for plan in listing.plans if plan.labelled] == [["Gout"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"case,path\n\xff\xfe", "is not UTF-8"),
        (b"case,path\n1,\0", "NUL"),
        (b"case,case\n1,2", "two columns called 'case'"),
        (b"name,file\n1,2", "no column 'case'"),
    ],
)
def test_a_file_that_is_not_a_table_is_refused(tmp_path, content, message):
    (tmp_path / "cases.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Manifest(tmp_path / "cases.csv", OPEN).listing()


def test_the_template_is_a_manifest(tmp_path):
    (tmp_path / "cases.csv").write_text(template())
    picture(tmp_path / "17" / "chest.png")
    (plan,) = listed(Manifest(tmp_path / "cases.csv", OPEN)).plans
    assert plan.disorders == ["Pneumothorax", "Rib fracture"]


def test_names_of_a_hospital_give_way_to_pseudonyms(tmp_path):
    files = ["DOE_JOHN/1.png", "DOE_JOHN/old/2.png", "other/1.png", "1.png"]
    for file in files:
        picture(tmp_path / file)
    same = {"case": "ACC-99", "patient": "Doe, John", "modality": "CT", "disorders": "Asthma"}
    (plan,) = listed(Manifest(table(tmp_path / "cases.csv", [same | {"path": file} for file in files]), HIDDEN)).plans
    shown = plan.to_json().replace(str(tmp_path), "")
    assert "ACC-99" not in shown
    assert "Doe" not in shown
    one, two, other, alone = (item.names[0].rpartition("/") for item in plan.items)
    assert one[0] == two[0] != other[0]  # the first folder, which distinguishes the parts of a set
    assert len({one[2], two[2], other[2], alone[2]}) == 4
    assert (other[0][:2], alone[0], alone[2][:2]) == ("d-", "", "f-")
    assert HIDDEN.links["patient", plan.patient_id] == "Doe, John"


# dicom


@pytest.fixture
def archive(tmp_path) -> Path:
    """Two studies of one patient, a year apart, one of another, and files that are none."""
    top = tmp_path / "archive"
    one = {"PatientID": "P1", "PatientAge": "061Y", "PatientSex": "M"}
    series(top / "a", StudyInstanceUID="1.2.3.1", AccessionNumber="A1", StudyDate="20230301", **one)
    series(top / "b", seed=9, StudyInstanceUID="1.2.3.2", AccessionNumber="A2", StudyDate="20240301", **one)
    series(top / "c", seed=20, StudyInstanceUID="1.2.3.3", AccessionNumber="A3", PatientID="P2")
    (top / "notes.txt").write_text("call Dr. Smith")
    (top / "c" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    return top


def test_studies_meet_their_labels_by_accession_or_study(archive, tmp_path):
    labels = [
        {"study": "1.2.3.1", "accession": "", "disorders": "Lung nodule", "icd10cm": "R91.1"},
        {"study": "", "accession": "A2", "disorders": "Lung cancer", "icd10cm": ""},
        {"study": "", "accession": "A9", "disorders": "Asthma", "icd10cm": ""},
        {"study": "", "accession": "", "disorders": "Gout", "icd10cm": ""},
    ]
    for names in (OPEN, HIDDEN):
        source = Dicom(archive, names, table(tmp_path / "labels.csv", labels))
        listing = listed(source)
        plans = {tuple(plan.disorders): plan for plan in listing.plans}
        assert set(plans) == {("Lung nodule",), ("Lung cancer",), ()}
        assert plans["Lung nodule",].icd10cm == [["R91.1"]]
        assert (plans["Lung nodule",].age, plans["Lung nodule",].sex) == (61, "M")
        assert plans["Lung nodule",].patient_id == plans["Lung cancer",].patient_id != plans[()].patient_id
        assert [plan.labelled for plan in plans.values()].count(False) == 1
        reasons = {rejected.name: rejected.reason for rejected in listing.rejected if rejected.what == "row"}
        assert "labels a study that is not among the files" in reasons["line 4"]
        assert "has no study" in reasons["line 5"]
    shown = " ".join(plan.to_json() for plan in listing.plans).replace(str(archive), "")
    assert not any(name in shown for name in ("1.2.3", "P1", "A1"))


def test_site_and_year_are_those_of_the_labels_and_the_scanner_is_a_pseudonym_of_the_header(tmp_path):
    for study, model in (("1.2.3.1", "Aera"), ("1.2.3.2", "Aera"), ("1.2.3.3", "Ingenia")):
        series(tmp_path / "a" / study, StudyInstanceUID=study, Manufacturer="Maker", ManufacturerModelName=model)
    labels = [
        {"study": "1.2.3.1", "disorders": "Gout", "site": "North", "year": "2019"},
        {"study": "1.2.3.2", "disorders": "Asthma", "site": "North", "year": "2021"},
        {"study": "1.2.3.3", "disorders": "Glioma", "site": "", "year": "last year"},
    ]
    listing = Dicom(tmp_path / "a", HIDDEN, table(tmp_path / "labels.csv", labels)).listing()
    first, second, third = (
        next(plan for plan in listing.plans if plan.disorders == names) for names in (["Gout"], ["Asthma"], [])
    )
    assert (first.year, second.year, third.year) == (2019, 2021, None)
    assert first.site == second.site != third.site is None
    assert first.scanner == second.scanner != third.scanner
    assert not any(text in first.to_json() for text in ("Maker", "Aera", "North"))
    assert "write it as 2024" in next(one.reason for one in listing.rejected if one.what == "row")


def test_files_that_are_not_dicom_are_listed_and_the_others_are_read(archive):
    listing = listed(Dicom(archive, OPEN))
    assert [r.name for r in listing.rejected] == ["notes.txt", "c/broken.dcm"]
    whole = archive / "b" / "1.dcm"
    whole.write_bytes(whole.read_bytes()[:-500])
    results = read(Dicom(archive, OPEN))
    assert sorted(len(one.case.scans) for one in results) == [1, 1, 1]
    assert [(one.files, one.unread) for one in results] == [(3, 0), (3, 1), (3, 0)]
    assert [name for one in results for name, _ in one.case.skipped] == ["b/1.dcm"]


def test_a_patients_studies_can_be_one_case_in_time(archive):
    cases = {one.case.patient_id: one.case for one in read(Dicom(archive, OPEN, case="patient"))}
    assert sorted(scan.days for scan in cases["P1"].scans) == [0.0, 366.0]
    assert len(cases["P2"].scans) == 1


def test_a_dicomdir_is_read_through_its_records(archive, tmp_path):
    fileset = FileSet()
    for file in sorted((archive / "a").glob("*.dcm")):
        dataset = dcmread(file)
        dataset.PatientName, dataset.StudyID, dataset.SeriesNumber, dataset.StudyTime = "X", "1", 1, "120000"
        fileset.add(dataset)
    fileset.write(tmp_path / "disc")
    (plan,) = listed(Dicom(tmp_path / "disc" / "DICOMDIR", OPEN)).plans
    assert len(plan.items[0].paths) == 3
    with pytest.raises(ValueError, match="is not a DICOMDIR"):
        Dicom(archive / "a" / "0.dcm", OPEN).listing()


# rp3d


def rp3d(folder: Path) -> Path:
    """Two files of cases in RP3D-DiagDS's format: a volume with its key slice, a picture, a missing and a bad array."""
    (folder / "arrays").mkdir(parents=True)
    volume = np.stack([smooth(i) for i in range(5)], axis=-1).astype(np.float32)
    np.save(folder / "arrays" / "1.npy", volume)
    np.save(folder / "arrays" / "1key.npy", np.array([3]))
    np.save(folder / "arrays" / "2.npy", np.repeat(smooth(9)[..., None], 3, -1).astype(np.float32))
    np.save(folder / "arrays" / "bad.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)

    def sample(paths: list[str], modality: str, plane: str, **more) -> dict:
        keys = ["disk/arrays/1key.npy" if path.endswith("1.npy") else None for path in paths]
        about = {"articles": ["Meningioma"], "icd10s": ["D32"], "pre": "Headache.", "anatomy": "Head"}
        about |= {"pat": "Patient Data  Age: 45 years  Gender: Female", "plane_projection": [plane] * len(paths)}
        return about | {"image_modality": [modality], "image_data_path": paths, "image_key_path": keys} | more

    train = {
        "https://x/cases/one?lang=us": {
            "Modalities": ["MRI", "X-ray"],
            "Samples": [
                sample(["disk/arrays/1.npy"], "MRI", "Axial"),
                sample(["disk/arrays/2.npy", "disk/arrays/gone.npy", "disk/arrays/bad.npy"], "X-ray", "Lateral"),
            ],
        },
        "https://x/cases/broken": {"Modalities": ["CT"]},
    }
    test = {"https://x/cases/two": {"Modalities": ["CT"], "Samples": [sample(["arrays/1.npy"], "CT", "Coronal")]}}
    test["https://x/cases/two"]["Samples"][0] |= {"articles": ["Unheard of", "Stroke"], "icd10s": ["I63", "ZZZ"]}
    (folder / "RP3D_train.json").write_text(json.dumps(train))
    (folder / "RP3D_test.json").write_text(json.dumps(test))
    (folder / "disorder_label_dict.json").write_text(json.dumps({"Meningioma": 0, "Stroke": 1}))
    return folder


def test_rp3d_is_read_in_its_own_format(tmp_path):
    source = RP3D(rp3d(tmp_path / "rp"), labels=tmp_path / "rp" / "disorder_label_dict.json")
    listing = listed(source)
    two, one = listing.plans
    assert (one.case_id, one.split, one.disorders, one.age, one.sex) == ("one", "train", ["Meningioma"], 45, "F")
    assert (two.split, two.disorders) == ("test", ["Stroke"])
    assert [(r.name, "no case of RP3D" in r.reason) for r in listing.rejected] == [("broken", True)]
    _, result = read(source)
    mri, xray = result.case.scans
    assert (mri.modality, mri.plane, mri.pixels.shape, mri.key_slice) == ("MRI", "axial", (5, 64, 64), 3)
    assert (xray.modality, xray.plane, xray.pixels.shape) == ("X-ray", "lateral", (1, 64, 64))
    assert np.array_equal(mri.pixels[2], smooth(2))
    assert [reason.split(":")[0] for _, reason in result.case.skipped] == [
        "is not there",
        "is damaged, or no array of numbers",
    ]
    assert (result.files, result.unread) == (4, 2)


def test_rp3d_by_icd10cm_category(tmp_path):
    two, one = listed(RP3D(rp3d(tmp_path / "rp"), "icd10cm")).plans
    assert (one.disorders, one.icd10cm) == (["Benign neoplasm of meninges"], [["D32"]])
    assert (two.disorders, two.icd10cm) == (["Cerebral infarction", "ZZZ"], [["I63"], ["ZZZ"]])
    with pytest.raises(ValueError, match="granularity"):
        RP3D(tmp_path / "rp", "body")


def test_the_published_demonstration_is_read(shared):
    source = RP3D(shared / "rp3d_demo", labels=shared / "rp3d_demo" / "disorder_label_dict.json")
    plans = {plan.case_id: plan for plan in listed(source).plans}
    assert plans["segond-fracture-5"].disorders == ["Anterior cruciate ligament tear", "Segond fracture"]
    results = {one.case.case_id: one for one in read(source)}
    assert [scan.modality for scan in results["segond-fracture-5"].case.scans] == ["X-ray", "MRI", "MRI"]
    assert results["hip-dislocation-inferior-1"].unread == 2


# medpix


def medpix(folder: Path) -> Path:
    """One case in each of MedPix-2-0's splits, the second without its picture."""
    picture(folder / "images" / "M1_a.jpg", 1)
    picture(folder / "images" / "M1_b.jpg", 2)
    for split, number in (("train", 1), ("dev", 2)):
        (folder / split).mkdir()
        case = {"U_id": f"M{number}", "TAC": [f"M{number}_a"], "MRI": [f"M{number}_b"] if number == 1 else []}
        case |= {"Case": {"Case Diagnosis": "Pulmonary  Hamartoma", "History": "Neck pain."}, "Topic": {"Title": "T"}}
        nothing = {"U_id": "M9", "TAC": [], "MRI": [], "Case": {"Case Diagnosis": "Gout"}}
        (folder / split / "Case_topic.json").write_text(json.dumps([case, nothing, {"U_id": "M8"}]))
        about = {"Type": "CT", "U_id": "M1", "image": "M1_a", "Location Category": "Thorax"}
        about["Description"] = {"Age": "58", "Sex": "male", "Plane": "Axial", "Caption": "names the diagnosis"}
        (folder / split / "Descriptions.json").write_text(json.dumps([about]))
    return folder


def test_medpix_is_read_in_its_own_format(tmp_path):
    source = MedPix(medpix(tmp_path))
    listing = listed(source)
    dev, train = listing.plans
    assert (train.case_id, train.split, train.disorders) == ("M1", "train", ["Pulmonary Hamartoma"])
    assert (train.history, train.age, train.sex, dev.split) == ("Neck pain.", 58, "M", "validation")
    assert len(listing.rejected) == 4
    second, first = read(source)
    assert [(s.modality, s.plane, s.body_part) for s in first.case.scans] == [
        ("CT", "axial", "thorax"),
        ("MRI", None, None),
    ]
    assert (second.unread, second.case.skipped[0][0]) == (1, "M2_a")


@pytest.mark.parametrize(("made", "source", "rejected"), [(rp3d, RP3D, 1), (medpix, MedPix, 4)])
def test_cases_that_are_refused_unread_are_listed_and_the_rest_becomes_a_data_set(made, source, rejected, tmp_path):
    record = prepare(source(made(tmp_path / "in")), tmp_path / "out", Settings(size=32))
    assert record["counts"]["listed"] | {"unit": "case"} == record["counts"]["listed"]
    assert record["counts"]["listed"]["rejected"] == rejected
    lines = (tmp_path / "out" / "rejected.csv").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("case,") for line in lines) == rejected + record["counts"]["cases"]["rejected"]
    assert record["counts"]["cases"]["out"] >= 1


def test_the_real_medpix_is_read(shared):
    listing = listed(MedPix(shared / "cases" / "medpix"))
    assert len(listing.plans) > 500
    results = list(MedPix(shared / "cases" / "medpix").read(listing.plans[:3]))
    assert all(one.case.scans for one in results)


# Hugging Face data sets


def test_a_data_set_of_images_is_streamed_and_only_the_damaged_image_is_rejected(tmp_path):
    good = [picture(tmp_path / f"{i}.png", i).read_bytes() for i in range(4)]
    good[2] = good[2][:60]
    rows = {
        "image": [{"bytes": content, "path": None} for content in good],
        "label": [0, 1, 1, 0],
        "study": ["a", "a", "b", "c"],
    }
    features = Features(
        {"image": Image(), "label": ClassLabel(names=["NORMAL", "lung_cancer"]), "study": Value("string")}
    )
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    source = HubDataset(str(tmp_path / "saved"), case_column="study", modality="X-ray")
    assert [(p.case_id, p.disorders) for p in listed(source).plans] == [
        ("a", ["lung cancer"]),
        ("b", ["lung cancer"]),
        ("c", []),
    ]
    a, b, c = read(source)
    assert [len(one.case.scans) for one in (a, b, c)] == [2, 0, 1]
    assert np.array_equal(c.case.scans[0].pixels[0], smooth(3))
    assert (b.unread, b.case.skipped[0][0]) == (1, "train row 2")
    third = list(source.read(source.listing().plans[2:]))
    assert np.array_equal(third[0].case.scans[0].pixels, c.case.scans[0].pixels)


def test_a_folder_of_images_with_splits_is_a_data_set(tmp_path):
    for i, (split, kind) in enumerate([("train", "covid"), ("train", "normal"), ("test", "covid")]):
        picture(tmp_path / "set" / split / kind / f"{i}.png", i)
    plans = listed(HubDataset(str(tmp_path / "set"), modality="X-ray")).plans
    assert sorted((plan.split, *plan.disorders) for plan in plans) == [
        ("test", "covid"),
        ("train",),
        ("train", "covid"),
    ]


def test_a_column_of_nifti_files_is_read(tmp_path):
    volume = np.stack([smooth(i, 16) for i in range(4)], -1).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "v.nii.gz")
    rows = {"scan": [str(tmp_path / "v.nii.gz")], "finding": ["Glioma"]}
    data = Dataset.from_dict(rows, features=Features({"scan": Nifti(), "finding": Value("string")}))
    data.save_to_disk(tmp_path / "saved")
    (result,) = read(HubDataset(str(tmp_path / "saved"), label_column="finding", modality="MRI"))
    assert result.case.scans[0].pixels.size == volume.size
    with pytest.raises(ValueError, match="no column 'image'"):
        HubDataset(str(tmp_path / "saved"), image_column="image").listing()
    with pytest.raises(ValueError, match="cannot be loaded"):
        HubDataset(str(tmp_path / "nowhere")).listing()


# phantoms


def test_phantoms_come_with_their_truth():
    source = Phantoms(3, seed=1, size=48)
    first, *_ = read(source)
    assert source.listing().plans[0].patient_id == "S1P000000"
    assert len(first.masks) == len(first.case.scans)
    with pytest.raises(ValueError, match="must be at least 1"):
        Phantoms(0)


def test_plans_do_not_depend_on_the_order_in_which_a_disk_lists_files(archive, tmp_path):
    copied = tmp_path / "copied"
    for file in sorted(archive.rglob("*"), reverse=True):
        if file.is_file():
            (copied / file.relative_to(archive)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copied / file.relative_to(archive))
    names = [[plan.items[0].names for plan in listed(Dicom(top, OPEN)).plans] for top in (archive, copied)]
    assert names[0] == names[1]


def test_a_gzipped_dicom_file_is_rejected_with_what_to_do(tmp_path):
    file = dicom(tmp_path / "study" / "1.dcm", StudyInstanceUID="1.2.3")
    (tmp_path / "study" / "2.dcm.gz").write_bytes(gzip.compress(file.read_bytes()))
    listing = listed(Dicom(tmp_path / "study", OPEN))
    assert [(one.name, one.reason) for one in listing.rejected] == [
        ("2.dcm.gz", "is a DICOM image, packed with gzip: unpack it (gunzip) and read what comes out")
    ]
