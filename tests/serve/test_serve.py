"""`radfm serve`: the server over HTTP, and the page in Chromium."""

import asyncio
import base64
import contextlib
import gzip
import http.client
import io
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from radfm import RadFMConfig, RadFMForDiagnosis, RadFMImageProcessor, RadFMProcessor, examples, read_case
from radfm.data_prep.pictures import data_uri
from radfm.eval.saliency import explain
from radfm.eval.scan_views import views
from radfm.eval.volume_facts import volume_facts
from radfm.recipes_radfm import SYNTHETIC_ONLY
from radfm.serve import Limits
from radfm.serve.intake import unpack, write_files
from radfm.serve.limits import Refused
from radfm.serve.reading import read_study
from tests.radfm.untrained import STUDY
from tests.waiting import TIMEOUT, free_port, wait_until

server = pytest.importorskip("radfm.serve.server", reason="needs FastAPI: pip install 'radfm[serve]'")

NAMES = ["Meningioma", "Pneumothorax", "Gallstones", "Cirrhosis", "Rib fracture"]
CODES = [["D32.9"], ["J93.9"], ["K80.20"], ["K74.60"], []]
SECRET = "Mustermann"  # a patient name, as file names may contain one


def packed(files: dict[str, bytes], **header) -> bytes:
    listed = [[name, len(content)] for name, content in files.items()]
    return json.dumps({"files": listed} | header).encode() + b"\n" + b"".join(files.values())


def zipped(members: dict[str, bytes], change=None) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            if change:
                change(entry)
            archive.writestr(entry, content)
    return file.getvalue()


def picture(side: int = 96) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side), np.uint8)).save(file, "PNG")
    return file.getvalue()


def ct(slices: int = 40, brighter: int = 500) -> bytes:
    """A NIfTI volume whose slices get brighter. The lower half of each is brighter by so many Hounsfield units."""
    voxels = np.zeros((64, 48, slices), np.int16)
    voxels += np.linspace(-900, 200, slices).astype(np.int16)
    voxels[:, :24] += brighter
    return nibabel.Nifti1Image(voxels, np.diag([-1.5, -1.5, 3, 1])).to_bytes()


# --- receiving a study -----------------------------------------------------------------------------------------------


async def sent(body: bytes, folder: Path, limits: Limits) -> dict:
    async def blocks():
        for start in range(0, len(body), 97):
            yield body[start : start + 97]

    return await write_files(blocks(), folder, limits)


def test_files_arrive_as_they_were_sent(tmp_path):
    files = {"1.dcm": b"abc" * 50, "2.nii.gz": b"", "3": b"\n{}\n"}
    header = asyncio.run(sent(packed(files, modality="CT"), tmp_path, Limits()))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files
    assert (header["modality"], header["history"]) == ("CT", None)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"nonsense\n", "not a study"),
        (b"x" * 3_000_000, "not a study"),
        (packed({}), "contains no file"),
        (packed({"../1.dcm": b"a"}), "file names must be numbers"),
        (packed({"/etc/passwd": b"a"}), "file names must be numbers"),
        (packed({f"{SECRET}.dcm": b"a"}), "file names must be numbers"),
        (packed({"1.dcm": b"abc"})[:-1], "ended before"),
        (packed({"1.dcm": b"abc"}) + b"d", "more than the files of the study"),
        (packed({f"{i}.dcm": b"a" for i in range(6)}), "the study has 6 files, and this page accepts up to 5"),
        (packed({"1.dcm": bytes(2_100_000)}), "the study has 2 MB, and this page accepts up to 2 MB"),
        (b'{"files": [["1.dcm", -5]]}\n', "not a study"),
        (b'{"files": [["1.dcm", 1]], "history": 5}\na', "not a study"),
        (b'{"files": [["1.mhd", 1]], "names": {"1.mhd": {"a.raw": "../2"}}}\na', "not a study"),
        (b'{"files": [["1.mhd", 1]], "names": {"2.mhd": {"a.raw": "1.mhd"}}}\na', "not a study"),
        (b'{"files": [["1.mhd", 1]], "names": [5]}\na', "not a study"),
        (b'{"files": [["1.mhd", 1]], "names": {"1.mhd": {"a.raw": ["1.mhd"]}}}\na', "not a study"),
    ],
)
def test_a_request_that_is_not_a_study_is_refused_in_one_line(body, why, tmp_path):
    with pytest.raises(Refused, match=why) as refused:
        asyncio.run(sent(body, tmp_path, Limits(megabytes=2, files=5)))
    assert "\n" not in str(refused.value)


def link(entry):
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16


DAMAGED = bytearray(zipped({"a.dcm": bytes(range(256)) * 40}))
DAMAGED[60:80] = bytes(20)
ENCRYPTED = bytearray(zipped({"a.dcm": b"abc"}))
for at in (ENCRYPTED.index(b"PK\x03\x04") + 6, ENCRYPTED.index(b"PK\x01\x02") + 8):
    ENCRYPTED[at] |= 1


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (zipped({"a/../../b.dcm": b"a"}), "points outside of it"),
        (zipped({"/etc/b.dcm": b"a"}), "points outside of it"),
        (zipped({"..\\b.dcm": b"a"}), "points outside of it"),
        (zipped({"b.dcm": b"/etc/passwd"}, link), "contains a link"),
        (zipped({"b.zip": b"a"}), "another archive"),
        (zipped({"b.dcm": zipped({"c.dcm": b"a"})}), "another archive"),
        (zipped({"b.dcm": bytes(2_100_000)}), "unpacked zip file is larger, and this page accepts up to 2 MB"),
        (zipped({f"{i}.dcm": b"a" for i in range(6)}), "contains 6 files, and this page accepts up to 5"),
        (bytes(ENCRYPTED), "encrypted"),
        (bytes(DAMAGED), "damaged"),
        (zipped({"a.dcm": b"abc"})[:40], "damaged"),
    ],
)
def test_a_bad_zip_is_refused_and_nothing_leaves_its_folder(content, why, tmp_path):
    (folder := tmp_path / "in").mkdir()
    (folder / "1.zip").write_bytes(content)
    with pytest.raises(Refused, match=why):
        unpack(folder, Limits(megabytes=2, files=5))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert not (folder / "1.zip").exists()


VOLUME = np.arange(4 * 5 * 6, dtype=np.int16)
MHD = "ObjectType = Image\nNDims = 3\nDimSize = 4 5 6\nElementType = MET_SHORT\nElementDataFile = "
NHDR = "NRRD0004\ntype: int16\ndimension: 3\nsizes: 4 5 6\nencoding: raw\nendian: little\ndata file: "


def of_several_files() -> dict[str, bytes]:
    """Volumes whose header and pixels are several files: beside one another, below, above, in a list, and Analyze."""
    others = [VOLUME + shift for shift in range(1, 5)]  # no two are copies
    files = {f"a/list/{i}.raw": others[0][20 * i : 20 * i + 20].tobytes() for i in range(6)}
    files |= {"a/v.mhd": f"{MHD}{SECRET} 1.raw\n".encode(), f"a/{SECRET} 1.raw": VOLUME.tobytes()}
    files |= {"a/w.nhdr": f"{NHDR}./below/w.raw\n\n".encode(), "a/below/w.raw": others[1].tobytes()}
    files |= {"a/headers/x.MHD": f"{MHD}../x.raw\n".encode(), "a/x.raw": others[2].tobytes()}
    listed = "\n".join(f"list\\{i}.raw" for i in range(6))
    files |= {"a/y.mhd": f"{MHD}LIST\n{listed}\n".encode()}
    image = nibabel.AnalyzeImage(others[3].reshape(4, 5, 6), np.eye(4))
    streams = {"header": io.BytesIO(), "image": io.BytesIO()}
    image.to_file_map({key: nibabel.FileHolder(fileobj=stream) for key, stream in streams.items()} | {"mat": None})
    return files | {"a/z.hdr": streams["header"].getvalue(), "a/z.img": streams["image"].getvalue()}


def test_volumes_of_several_files_are_read_from_a_zip(tmp_path):
    *_, case = read(tmp_path, {"1.zip": zipped(of_several_files())}, Limits())
    assert case.skipped == []
    assert [scan.pixels.shape for scan in case.scans] == [(6, 5, 4)] * 5


def test_volumes_of_several_files_are_read_where_the_page_sends_their_names(tmp_path):
    files = {"1.mhd": f"{MHD}{SECRET} 1.raw\n".encode(), "2.raw": VOLUME.tobytes(), "3.nhdr": f"{NHDR}LIST\n".encode()}
    files["3.nhdr"] += b"".join(b"below/%d.raw\r\n" % i for i in range(6))
    files |= {f"{i + 4}.raw": (VOLUME[20 * i : 20 * i + 20] + 1).tobytes() for i in range(6)}
    names = {"1.mhd": {f"{SECRET} 1.raw": "2.raw"}, "3.nhdr": {f"below/{i}.raw": f"{i + 4}.raw" for i in range(6)}}
    *_, case = read(tmp_path, files, Limits(), names)
    assert case.skipped == []
    for shift, scan in enumerate(case.scans):
        np.testing.assert_array_equal(np.sort(scan.pixels, axis=None), VOLUME + shift)
    assert len(case.scans) == 2


def test_members_of_a_zip_get_numbers_and_files_of_one_image_share_a_number(tmp_path):
    members = {f"{SECRET}/a.img": b"2", f"{SECRET}/a.hdr": b"1", f"{SECRET}/b.nii.gz": b"3", "__MACOSX/a.img": b"4"}
    (tmp_path / "4.zip").write_bytes(zipped(members))
    (tmp_path / "3.dcm").write_bytes(b"5")
    unpack(tmp_path, Limits())
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        **{"3.dcm": b"5", "5.hdr": b"1", "5.img": b"2", "6.nii.gz": b"3"}
    }


def read(folder: Path, files: dict[str, bytes], limits: Limits, names: dict | None = None):
    (folder / "in").mkdir(parents=True)
    for name, content in files.items():
        (folder / "in" / name).write_bytes(content)
    header = {"modality": "CT", "history": None, "names": names or {}}
    return list(read_study(folder, header, limits, time.monotonic() + limits.seconds))


def test_a_study_read_in_its_own_process_equals_that_of_read_case(tmp_path):
    study = zipped({file.name: file.read_bytes() for file in STUDY.rglob("*") if file.is_file()})
    *progress_events, case = read(tmp_path, {"1.zip": study, "2.png": picture(), "3.txt": b"hello"}, Limits())
    expected = read_case(STUDY, modality="CT").scans
    assert progress_events[-1][0] == progress_events[-1][1] > 1
    assert [scan.plane for scan in case.scans[:-1]] == [scan.plane for scan in expected]
    for scan, same in zip(case.scans, expected, strict=False):
        np.testing.assert_array_equal(scan.pixels, same.pixels)
        assert (scan.modality, scan.spacing_mm, scan.days) == (same.modality, same.spacing_mm, same.days)
        np.testing.assert_array_equal(scan.affine, same.affine)
    assert (case.scans[-1].modality, case.scans[-1].pixels.shape) == ("CT", (1, 96, 96))
    assert [file for file, _ in case.skipped] == ["3.txt"]


@pytest.mark.parametrize(
    ("files", "limits", "why"),
    [
        ({"1.txt": b"hello"}, Limits(), "no image could be read: 1.txt is not an image format"),
        ({"1.nii": ct()}, Limits(slices=39), "has 40 slices, and this page accepts up to 39"),
        ({"1.png": picture(600)}, Limits(slices=1), "has 0.4 million pixels, and this page accepts up to 0.3"),
        ({"1.nii": ct()}, Limits(seconds=0), "took longer than 0 s"),
    ],
)
def test_a_study_that_cannot_be_read_is_refused_in_one_line(files, limits, why, tmp_path):
    with pytest.raises(Refused, match=why) as refused:
        read(tmp_path, files, limits)
    assert "\n" not in str(refused.value)


def test_a_small_file_that_unpacks_to_more_memory_than_a_reader_may_take_is_refused(tmp_path):
    header = nibabel.Nifti1Image(np.broadcast_to(np.int16(0), (512, 512, 2000)), np.eye(4)).header
    bomb = gzip.compress(header.binaryblock + bytes(4) + bytes(2 * 512 * 512 * 2000), compresslevel=1)
    with pytest.raises(Refused, match=r"1\.nii\.gz needs more memory than this machine has free"):
        read(tmp_path, {"1.nii.gz": bomb}, Limits(megabytes=1))


def test_a_reader_that_dies_is_reported_as_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("radfm.serve.reading.sys.executable", shutil.which("false"))
    with pytest.raises(Refused, match="a file of this study crashed its reader"):
        read(tmp_path, {"1.nii": ct()}, Limits())


# --- the server -----------------------------------------------------------------------------------------------------


def write_small_model(folder: Path, vision: dict, images: RadFMImageProcessor) -> None:
    torch.manual_seed(0)
    parts = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = RadFMConfig(
        vision_config={"tower": "test_resnet", "image_size": images.size} | vision,
        scan_config=parts | {"num_positions": 64},
        case_config=parts,
        text_config={"model_type": "bert", "hidden_size": 32} | parts,
        hidden_size=48,
        projection_dim=32,
        trained=True,
    )
    model = RadFMForDiagnosis(config)
    model.set_disorders(NAMES, F.normalize(torch.randn(5, 32), dim=-1), CODES)
    model.head.logit_bias.data.zero_()
    model.config.calibration = {"slopes": [1.0] * 5, "shifts": [0.0] * 5, "exclusive": []}
    model.config.thresholds = [0.5, None, 0.5, 0.5, 0.5]
    model.save_pretrained(folder)
    RadFMProcessor(images).save_pretrained(folder)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_small_model(folder, {"family": "resnet"}, RadFMImageProcessor(size=64))
    studies = server.open_studies(str(folder), Limits(megabytes=4, seconds=1200, files=50), device="cpu")
    yield studies
    studies.close()


@pytest.fixture(scope="module")
def url(studies) -> str:
    running = server.launch(studies, "127.0.0.1", free_port())
    yield running.url
    running.close()


@pytest.fixture(scope="module")
def studies_of_volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    volume = {"size": [16, 32, 32], "spacing_mm": [3.0, 2.0, 2.0], "axes": "SRA", "overlap": 0.25}
    images = RadFMImageProcessor(size=32, volume=volume)
    write_small_model(folder, {"family": "resnet3d", "slice_depth": 0}, images)
    studies = server.open_studies(str(folder), Limits(megabytes=4, seconds=1200, files=50), device="cpu")
    yield studies
    studies.close()


@pytest.fixture(scope="module")
def url_of_volumes(studies_of_volumes) -> str:
    running = server.launch(studies_of_volumes, "127.0.0.1", free_port())
    yield running.url
    running.close()


@pytest.fixture
def nothing_left(studies, tmp_path_factory, monkeypatch):
    """Fails if a test leaves a file in the folder of the server, or a temporary file elsewhere."""
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    yield
    wait_until(lambda: not files_in(temporary))
    wait_until(lambda: not files_in(studies.root))  # of a refused request once its connection is closed


def call(address: str, body: bytes | None = None, token: str = "", **headers: str):
    """Sends a request and returns its status and content."""
    headers = {"X-Study": token, "Content-Type": "application/json"} | headers
    request = urllib.request.Request(address, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def send(url: str, body: bytes) -> str:
    """Sends a study that is accepted, and returns its token."""
    status, content = call(url + "study", body)
    assert status == 200, content
    return json.loads(content)["study"]


def progress(url: str, token: str) -> Iterator[dict]:
    """Yields the events of a study. Leaving the loop closes the connection."""
    request = urllib.request.Request(url + "progress", headers={"X-Study": token})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as events:
        for line in events:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


def ask(url: str, body: bytes) -> tuple[str, dict]:
    """Sends a study, waits for its last event, and returns its token and this event."""
    status, content = call(url + "study", body)
    if status != 200:
        return "", {"stage": "refused", "reason": json.loads(content)["reason"]}
    token = json.loads(content)["study"]
    *_, last = progress(url, token)
    return token, last


def test_a_study_is_answered_as_the_pipeline_does_and_nothing_is_left(studies, url, nothing_left, tmp_path):
    images = sorted(file for file in STUDY.rglob("*") if file.is_file())
    study = zipped({f"{SECRET}/{file.relative_to(STUDY)}": file.read_bytes() for file in images})
    (tmp_path / "1.nii").write_bytes(ct())
    body = packed({"1.zip": study, "2.nii": ct(), "3.txt": b"hello"}, modality="CT")
    token, last = ask(url, body)
    assert last["stage"] == "answered", last
    _, content = call(url + "answer", token=token)
    shown = json.loads(content)
    case = read_case([STUDY, tmp_path / "1.nii"], modality="CT")
    expected = studies.pipe(case)
    assert [one["label"] for one in shown["diagnoses"]] == [one["label"] for one in expected]
    assert [one["score"] for one in shown["diagnoses"]] == pytest.approx([one["score"] for one in expected], rel=1e-4)
    assert [scan["slices"] for scan in shown["scans"]] == [len(scan.pixels) for scan in case.scans]
    assert [file for file, _ in shown["skipped"]] == ["3.txt"]
    volume = len(shown["scans"]) - 1
    assert [window["name"] for window in shown["scans"][volume]["windows"]] == ["Soft tissue", "Lung", "Bone"]
    _, jpeg = call(f"{url}sheet/{volume}/0/2", token=token)
    assert Image.open(io.BytesIO(jpeg)).size == (4 * 64, 2 * 48)  # slices 32 to 39
    assert call(f"{url}sheet/{volume}/0/3", token=token)[0] == 404
    _, maps = call(url + "maps/0", token=token)
    assert len(maps) == sum(np.prod(scan["map"]) for scan in shown["scans"])
    _, report = call(url + "report", token=token)
    assert b"Case report" in report
    assert SECRET.encode() not in content + report
    call(url + "forget", token.encode())
    assert call(url + "answer", token=token)[0] == 410


def test_the_maps_of_a_volume_lie_over_its_slices(studies_of_volumes, url_of_volumes, tmp_path):
    (file := tmp_path / "1.nii").write_bytes(ct())
    token, _ = ask(url_of_volumes, packed({"1.nii": file.read_bytes()}, modality="CT"))
    shown = json.loads(call(url_of_volumes + "answer", token=token)[1])
    (scan,), case = shown["scans"], read_case(file, modality="CT")
    pipe = studies_of_volumes.pipe
    assert shown["diagnoses"][0]["label"] == pipe(case)[0]["label"]
    explanation = explain(pipe.model, pipe.processor, case, shown["explained"])[0]
    assert scan["volume"] == volume_facts(explanation.grid(0), explanation.volume_settings)
    assert scan["volume"][0].startswith("Read as 3 overlapping windows of 48 mm (head to foot) × 64 mm (side to side)")
    assert scan["attention"] == []
    maps = np.frombuffer(call(url_of_volumes + "maps/0", token=token)[1], np.uint8).reshape(scan["map"])
    whole = explanation.scan_map(0)
    assert (maps.shape, whole.shape) == ((40, 48, 48), (40, 48, 64))
    assert scan["taken"] == list(range(40))
    smaller = F.interpolate(torch.from_numpy(whole)[:, None], (48, 48), mode="bilinear")[:, 0]
    assert (np.abs(maps / 255 - smaller.numpy()) < 0.02).mean() > 0.99  # all but the edge of what was read
    assert scan["peaks"][0] == scan["key"] == explanation.peak(0)[0]
    of_disorder = scan["planes"][0]
    acquired, *across = views(explanation, 0, explanation.peak(0))
    assert [plane["plane"] for plane in of_disorder] == [view.plane.name for view in across]
    assert [(plane["slice"] - 1, plane["of"]) for plane in of_disorder] == [(view.index, view.count) for view in across]
    assert [plane["plain"] for plane in of_disorder] == [data_uri(view.plain) for view in across]
    assert acquired.plane.name == case.scans[0].plane
    read = np.array(scan["read"])
    assert read.shape == (3, 3, 2)  # windows, axes, from and to
    assert (read[:, 0].min(), read.max()) == (explanation.grid(0).extents[0][0][0] / whole.shape[0], 1)


def test_an_example_study_is_diagnosed_as_one_that_was_sent(url, studies, nothing_left):
    status, content = call(url + "example", b"sarcoma")
    assert status == 200
    token = json.loads(content)["study"]
    *_, last = progress(url, token)
    assert last["stage"] == "answered", last
    shown = json.loads(call(url + "answer", token=token)[1])
    case = examples.load("sarcoma")
    assert [one["score"] for one in shown["diagnoses"]] == pytest.approx([one["score"] for one in studies.pipe(case)])
    assert [scan["modality"] for scan in shown["scans"]] == [scan.modality for scan in case.scans]
    assert examples.about("sarcoma").attribution.encode() in call(url + "report", token=token)[1]


def test_an_example_study_that_is_none_is_refused(url, nothing_left):
    status, content = call(url + "example", b"elbow")
    assert (status, json.loads(content)["reason"]) == (422, "there is no such example study")


def test_typed_names_are_scored_without_encoding_the_study_again(studies, url, tmp_path):
    token, _ = ask(url, packed({"1.png": picture()}, modality="X-ray"))
    encoded = []
    hook = studies.pipe.model.radfm.slice_encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    status, content = call(url + "names", b'{"names": ["Segond  fracture", "gallstones"]}', token)
    hook.remove()
    assert (status, encoded) == (200, [])
    answers = {one["label"]: one for one in json.loads(content)["diagnoses"]}
    (tmp_path / "1.png").write_bytes(picture())
    case = read_case(tmp_path / "1.png", modality="X-ray")
    expected = {one["label"]: one["score"] for one in studies.pipe(case, candidate_labels=list(answers))}
    assert {name: one["score"] for name, one in answers.items()} == pytest.approx(expected, rel=1e-4)
    assert (answers["Segond fracture"]["calibrated"], answers["gallstones"]["calibrated"]) == (False, True)
    assert b"Segond fracture" in call(url + "report", token=token)[1]
    assert len(json.loads(call(url + "names", b'{"remove": "Segond fracture"}', token)[1])["diagnoses"]) == 1
    for names, why in ([""], "a name has"), (["x" * 301], "a name has"), ([str(i) for i in range(51)], "up to 50"):
        status, content = call(url + "names", json.dumps({"names": names}).encode(), token)
        assert (status, why in json.loads(content)["reason"]) == (422, True)


def test_bad_uploads_do_not_affect_other_studies(url, nothing_left, capfd):
    good, bad = packed({"1.nii": ct()}, modality="CT"), zipped({"a.zip": b"a"})
    broken = ct()[:9_000]
    bodies = [good, packed({"1.zip": bad}), packed({"1.nii": broken}), packed({"1.png": bytes(5_000_000)}), good]
    answers = [None] * len(bodies)

    def visit(i):
        answers[i] = ask(url, bodies[i])

    visitors = [threading.Thread(target=visit, args=(i,)) for i in range(len(bodies))]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert [last["stage"] for _, last in answers] == ["answered", *["refused"] * 3, "answered"]
    assert "another archive" in answers[1][1]["reason"]
    assert "1.nii" in answers[2][1]["reason"]
    assert "the study has 5 MB, and this page accepts up to 4 MB" in answers[3][1]["reason"]
    first, last = (json.loads(call(url + "answer", token=answers[i][0])[1]) for i in (0, -1))
    assert first["diagnoses"] == last["diagnoses"]
    for token, _ in answers:
        call(url + "forget", token.encode())
    assert capfd.readouterr() == ("", "")


def test_only_the_addresses_of_the_page_exist_and_studies_need_their_token(url, nothing_left):
    token, _ = ask(url, packed({"1.png": picture()}))
    for address in ("answer", "sheet/0/0/0", "maps/0", "report", "names", "progress"):
        body = b"{}" if address == "names" else None
        assert call(url + address, body, token)[0] == 200
        status, content = call(url + address, body, token[:-1] + "!")
        assert (status, "deleted" in json.loads(content)["reason"]) == (410, True)
    for address in ("config", "docs", "openapi.json", "redoc", "page.py", "sheet/0/0/9", "maps/9", "sheet/-1/0/0"):
        status, content = call(url + address, token=token)
        assert (status, list(json.loads(content))) == (404, ["reason"])
    call(url + "forget", token.encode())


def test_errors_come_as_json_with_their_status_when_the_body_has_arrived(studies, url, nothing_left, monkeypatch):
    token, _ = ask(url, packed({"1.png": picture()}))
    large = bytes(100_000)
    for address, body, status, reason in (
        ("study", packed({"1.png": bytes(5_000_000)}), 413, "the study has 5 MB"),
        ("study", b"nonsense\n" + large, 422, "not a study"),
        ("forget", large, 413, "at most 64,000 bytes"),
        ("names", b'{"names": [' + large, 413, "at most 64,000 bytes"),
        ("names", b"nonsense", 422, "not JSON"),
        ("names", b'{"names": [5]}', 422, "list of text"),
        ("answer", b"", 405, "Method Not Allowed"),
    ):
        got, content = call(url + address, body, token)
        assert (got, reason in json.loads(content)["reason"]) == (status, True), (address, content)
    monkeypatch.setattr(studies, "limits", replace(studies.limits, waiting=0))
    got, content = call(url + "study", packed({"1.png": bytes(3_000_000)}))
    assert (got, "too many studies" in json.loads(content)["reason"]) == (503, True)
    call(url + "forget", token.encode())


def test_a_page_of_another_site_may_not_send_anything(url, nothing_left):
    for site in ("cross-site", "same-site"):
        assert call(url + "study", packed({"1.png": picture()}), **{"Sec-Fetch-Site": site})[0] == 403


def exchange(url: str, request: bytes) -> tuple[int, dict]:
    """Sends bytes as they are, all of them, and returns the status and the JSON of the response."""
    address = urllib.parse.urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=TIMEOUT) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.headers.get_content_type() == "application/json"
        assert response.headers["Cache-Control"] == "no-store"
        return response.status, json.loads(response.read())


def post(address: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST /{address} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(address: str, body: bytes, ended: bool = True) -> bytes:
    head = f"POST /{address} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    blocks = [body[start : start + 60_000] for start in range(0, len(body), 60_000)]
    return head + b"".join(b"%x\r\n%s\r\n" % (len(b), b) for b in blocks) + (b"0\r\n\r\n" if ended else b"")


LARGE = packed({"1.dcm": bytes(30_000_000)})
LYING = b'{"files": [["1.dcm", 100]]}\n' + bytes(30_000_000)
MULTIPART = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nabc\r\n--x--\r\n'


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (post("study", LARGE), 413, "the study has 30 MB"),
        (chunked("study", LARGE), 413, "the study has 30 MB"),
        (post("study", LYING), 422, "contains more than the files"),
        (chunked("study", LYING), 422, "contains more than the files"),
        (chunked("study", LYING, ended=False), 422, "contains more than the files"),
        (post("study", b"x" * 30_000_000), 422, "is not a study"),
        (post("study", b"nonsense\n"), 422, "is not a study"),
        (post("study", b""), 422, "is not a study"),
        (post("study", MULTIPART, "Content-Type: multipart/form-data"), 422, "is not a study"),
        (post("study", b"[" * 900_000 + b"\n"), 422, "is not a study"),
        (post("study", b'{"files": [["1.dcm", 1e999]]}\n'), 422, "is not a study"),
        (post("names", b"x" * 30_000_000), 413, "at most 64,000 bytes"),
        (chunked("names", b"x" * 30_000_000), 413, "at most 64,000 bytes"),
        (post("names", b"[" * 50_000), 422, "not JSON"),
        (post("nothing", bytes(30_000_000)), 404, "Not Found"),
        (post("study", LARGE, "Sec-Fetch-Site: cross-site"), 403, "other sites"),
        (b"NONSENSE\r\n\r\n", 400, "not valid HTTP"),
        (b"POST /study HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", 400, "not valid HTTP"),
        (b"POST /study HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "not valid HTTP"),
        (b"GET / HTTP/1.1\r\nX-Long: " + b"a" * 200_000 + b"\r\n\r\n", 400, "not valid HTTP"),
        (chunked("study", LYING[:200_000], ended=False) + b"zz\r\n", 422, "contains more than the files"),
    ],
)
def test_a_refused_request_receives_its_reason_though_its_body_still_arrives(
    url, request_, status, reason, nothing_left, caplog
):
    got, content = exchange(url, request_)
    assert (got, reason in content["reason"]) == (status, True), (got, content)
    assert [record.getMessage() for record in caplog.records if record.exc_info or record.levelname == "ERROR"] == []


@pytest.mark.parametrize("address", ["study", "names", "forget"])
@pytest.mark.parametrize("form", ["length", "chunked"])
def test_a_body_that_does_not_arrive_in_time_is_refused(studies, address, form, monkeypatch, nothing_left, caplog):
    monkeypatch.setattr(studies, "limits", replace(studies.limits, seconds=0.2))
    impatient = server.launch(studies, "127.0.0.1", free_port())
    start = b'{"files": [["1.dcm", 100]]}\nabc'
    request = post(address, start + bytes(97))[:-97] if form == "length" else chunked(address, start, ended=False)
    status, content = exchange(impatient.url, request)
    assert (status, "sending took longer than 0.2 s" in content["reason"]) == (408, True)
    impatient.close()
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


def test_a_header_that_does_not_arrive_in_time_is_refused(url, monkeypatch, nothing_left):
    monkeypatch.setattr("radfm.serve.connections._HEADER_SECONDS", 0.2)
    for start in (b"G", b"POST /study HTTP/1.1\r\nHost: a\r\nContent-Le"):
        status, content = exchange(url, start)
        assert (status, content["reason"]) == (408, "the header of the request took longer than 0.2 s")
    assert call(url + "answer")[0] == 410


def test_text_that_cannot_be_written_as_utf8_is_replaced(studies, url, nothing_left):
    body = json.dumps({"files": [["1.png", len(picture())]], "history": "cough \ud800"}).encode() + b"\n" + picture()
    token, last = ask(url, body)
    assert last["stage"] == "answered", last
    status, content = call(url + "names", json.dumps({"names": ["Glioma \ud800"]}).encode(), token)
    assert (status, json.loads(content)["diagnoses"][0]["label"]) == (200, "Glioma �")
    assert call(url + "report", token=token)[0] == 200
    call(url + "forget", token.encode())


@contextlib.contextmanager
def paused_model(studies):
    """Yields two events: the model sets the first when it receives a study, and then waits for the second."""
    started, go = threading.Event(), threading.Event()

    def pause(*_) -> None:
        started.set()
        go.wait(TIMEOUT)

    hook = studies.pipe.model.radfm.slice_encoder.tower.register_forward_pre_hook(pause)
    try:
        yield started, go
    finally:
        go.set()
        hook.remove()


@pytest.fixture
def occupied(studies, url):
    """An event. Until the test sets it, a study keeps the model busy and all other studies wait."""
    last = []
    visitor = threading.Thread(target=lambda: last.append(ask(url, packed({"1.png": picture()}))[1]["stage"]))
    with paused_model(studies) as (started, go):
        visitor.start()
        started.wait(TIMEOUT)
        yield go
    visitor.join()
    assert last == ["answered"]


def test_studies_wait_for_their_turn_and_receive_their_position_in_the_queue(url, occupied, nothing_left):
    first, second = (progress(url, send(url, packed({"1.png": picture()}))) for _ in range(2))
    assert next(first) == {"stage": "waiting", "done": 0, "total": 1, "reason": ""}
    assert next(second) == {"stage": "waiting", "done": 0, "total": 2, "reason": ""}
    occupied.set()
    assert [list(events)[-1]["stage"] for events in (first, second)] == ["answered", "answered"]


def test_abandoned_studies_do_not_block_the_queue(studies, url, occupied, monkeypatch, nothing_left):
    body = packed({"1.png": picture()})
    attended = progress(url, send(url, body))
    assert next(attended)["stage"] == "waiting"
    limits = replace(studies.limits, waiting=3)
    monkeypatch.setattr(studies, "limits", limits)
    abandoned = send(url, body)
    for _ in progress(url, abandoned):
        break  # its visitor connects and disconnects
    status, content = call(url + "study", body)
    assert (status, "too many studies" in json.loads(content)["reason"]) == (503, True)
    monkeypatch.setattr(studies, "limits", replace(limits, unattended_seconds=0))
    wait_until(lambda: studies.tidy() or call(url + "progress", token=abandoned)[0] == 410)
    call(url + "forget", send(url, body).encode())  # there is room again
    occupied.set()
    assert list(attended)[-1]["stage"] == "answered"


def test_a_study_that_its_visitor_deletes_while_it_is_answered_leaves_nothing(studies, url, nothing_left):
    token = send(url, packed({"1.png": picture()}))
    with paused_model(studies) as (started, go):
        events = progress(url, token)
        next(events)
        started.wait(TIMEOUT)
        call(url + "forget", token.encode())
        go.set()
        list(events)
    wait_until(lambda: call(url + "progress", token=token)[0] == 410)
    assert call(url + "answer", token=token)[0] == 410


def test_answers_are_deleted_when_they_are_idle_or_exceed_the_limit(studies, url):
    first, second = (ask(url, packed({"1.png": picture()}))[0] for _ in range(2))
    limits = studies.limits
    try:
        studies.limits = Limits(kept_megabytes=0)
        studies.tidy()
        assert [call(url + "answer", token=token)[0] for token in (first, second)] == [410, 200]
        studies.limits = Limits(idle_seconds=0)
        studies.tidy()
        assert call(url + "answer", token=second)[0] == 410
    finally:
        studies.limits = limits


def test_a_model_that_takes_too_long_is_stopped(studies, url, monkeypatch, nothing_left):
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + studies.limits.seconds + 1)
    clock = lambda *_: monkeypatch.setattr("radfm.serve.studies.time", later)  # noqa: E731
    hook = studies.pipe.model.radfm.slice_encoder.tower.register_forward_pre_hook(clock)
    _, last = ask(url, packed({"1.png": picture()}))
    hook.remove()
    assert last["reason"] == f"the study took longer than {studies.limits.seconds} s: drop one series, or fewer"


def test_the_command_reports_an_error_in_one_line(radfm, tmp_path):
    status, out, err = radfm("serve", "--model", tmp_path / "nowhere")
    assert (status, out) == (1, "")
    assert "no such folder" in err
    assert err.strip().count("\n") == 0


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The server started by the command of the Space's Dockerfile: its address, process id and temporary folder."""
    home, temporary, port = tmp_path_factory.mktemp("space"), tmp_path_factory.mktemp("temporary"), free_port()
    dockerfile = (Path(__file__).parents[2] / "space" / "Dockerfile").read_text()
    command = re.search(r"^CMD (.*)$", dockerfile, re.MULTILINE).group(1).replace("7860", str(port))
    assert str(port) in command
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "HOME": str(home), "TMPDIR": str(temporary)}
    running = subprocess.Popen(["/bin/sh", "-c", command], cwd=home, env=environment)
    address = f"http://127.0.0.1:{port}/"

    def answers() -> bool:
        assert running.poll() is None
        with contextlib.suppress(urllib.error.URLError):
            return call(address)[0] == 200

    wait_until(answers)
    yield SimpleNamespace(url=address, pid=running.pid, temporary=temporary)
    running.terminate()
    assert running.wait() == 0
    assert not list(temporary.iterdir())


def test_the_page_works_as_a_space(space, browser, tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    _, last = ask(space.url, packed({"1.png": picture()}, modality="X-ray"))
    assert last["stage"] == "answered", last
    browser.get(space.url)
    assert browser.find_element("id", "alerts").text == ""  # the default model has seen patients
    assert drop(browser, space.url, tmp_path / "a.png") == "study"
    assert browser.find_elements("css selector", "#diagnoses .label")
    assert SYNTHETIC_ONLY not in browser.find_element("id", "warnings").text


VISITORS = 20
STATED, ONE_STUDY = 8_400, 500  # MB, the limits that docs/serve.md states


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_twenty_visitors_at_once_each_get_their_own_answer_within_the_stated_memory(space):
    bodies = [packed({"1.nii": ct(3 + i, 20 * i)}, modality="CT") for i in range(VISITORS)]
    at_rest = megabytes(space.pid, "VmRSS")
    Path(f"/proc/{space.pid}/clear_refs").write_text("5")  # resets the peak
    answers = [None] * VISITORS

    def visit(i):
        answers[i] = ask(space.url, bodies[i])

    visitors = [threading.Thread(target=visit, args=(i,)) for i in range(VISITORS)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert [last["stage"] for _, last in answers] == ["answered"] * VISITORS
    tokens = [token for token, _ in answers]
    assert len(set(tokens)) == VISITORS
    shown = [json.loads(call(space.url + "answer", token=token)[1]) for token in tokens]
    assert [answer["scans"][0]["slices"] for answer in shown] == [3 + i for i in range(VISITORS)]
    for i in (0, VISITORS // 2, VISITORS - 1):  # a study sent alone gets the same answer
        token, _ = ask(space.url, bodies[i])
        alone = json.loads(call(space.url + "answer", token=token)[1])
        assert alone["diagnoses"] == shown[i]["diagnoses"]
        sheets = {call(space.url + "sheet/0/0/0", token=one)[1] for one in (token, tokens[i])}
        assert len(sheets) == 1
        call(space.url + "forget", token.encode())
    wait_until(lambda: not files_in(space.temporary))
    peak = megabytes(space.pid, "VmHWM")
    assert peak < STATED
    assert peak - at_rest < ONE_STUDY  # not twenty times as much
    for token in tokens:
        call(space.url + "forget", token.encode())


def files_in(folder: Path) -> list[str]:
    """Names of the files below a folder, from which others may be removed meanwhile."""
    return [name for _, _, names in os.walk(folder) for name in names]


def megabytes(pid: int, field: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:"))


# --- the page -------------------------------------------------------------------------------------------------------


def drop(browser, url: str, *files: Path) -> str:
    """Opens the page, sends a study, and returns the final state of the page: "study" or "empty"."""
    browser.get(url)
    browser.find_element("id", "modality").send_keys("CT")
    browser.find_element("id", "files").send_keys("\n".join(map(str, files)))

    def ended():
        state = browser.find_element("tag name", "body").get_attribute("data-state")
        refused = browser.find_element("id", "error").is_displayed()
        return state if state == "study" or (state == "empty" and refused) else None

    return wait_until(ended)


def test_every_example_study_opens_with_one_click_and_says_whom_to_credit(browser, url):
    browser.get(url)
    listed = browser.find_elements("css selector", "#examples li")
    assert [item.text.split("\n") for item in listed] == [
        [examples.about(name).title, examples.about(name).credit] for name in examples.names()
    ]
    knees = examples.about("knees")
    browser.find_element("xpath", f"//button[.='{knees.title}']").click()
    wait_until(lambda: browser.find_element("tag name", "body").get_attribute("data-state") == "study")
    shown = browser.find_element("id", "example").text
    assert "Unilateral primary osteoarthritis of knee (M17.11)" in shown
    assert knees.credit in shown
    assert len(browser.find_elements("css selector", "#scans button")) == 2
    assert browser.find_element("id", "training").get_attribute("textContent").startswith("What this model was trained")
    browser.find_element("id", "new").click()
    assert browser.find_element("id", "examples").is_displayed()


def test_the_page_shows_a_study_its_diagnoses_maps_and_report(browser, studies, url, tmp_path):
    (file := tmp_path / f"{SECRET}.nii").write_bytes(ct())
    assert drop(browser, url, file) == "study"
    element = lambda name: browser.find_element("id", name)  # noqa: E731
    shown = lambda: element("slice").get_attribute("data-shown")  # noqa: E731

    case = read_case(file, modality="CT")
    expected = studies.pipe(case)
    rows = [row.text for row in browser.find_elements("css selector", "#diagnoses .label")]
    assert rows == [one["label"] for one in expected]
    listed = element("diagnoses").get_attribute("textContent")
    assert "Diseases of the respiratory system" in listed
    assert "Air in the pleural space" in listed
    assert "Includes: " in listed
    assert "not a medical device" in browser.find_element("css selector", "header .only").text

    wait_until(shown)
    element("viewport").send_keys("\ue010")  # End
    wait_until(lambda: shown() == "0/39")
    element("viewport").send_keys("\ue012")  # Left
    wait_until(lambda: shown() == "0/38")
    scroll = "arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: -60, cancelable: true}))"
    browser.execute_script(scroll, element("viewport"))
    wait_until(lambda: shown() == "0/36")
    assert "slice 37 of 40" in element("slice-label").text

    with_map = pixels(browser)
    element("map").click()
    wait_until(lambda: (np.ptp(pixels(browser).astype(int), axis=2) == 0).all())  # grey
    plain = pixels(browser)
    height, width = plain.shape[:2]
    upper, lower = (int(plain[row, width // 2, 0]) for row in (height // 4, 3 * height // 4))
    assert abs(upper - lower) > 50
    from radfm.eval.saliency import explain, overlay

    explanation = explain(studies.pipe.model, studies.pipe.processor, case, [rows[0]])[0]
    heat = Image.fromarray(explanation.scan_map(0, [36])[0]).resize((width, height), Image.Resampling.BILINEAR)
    heat, with_map, plain = np.asarray(heat), with_map.astype(int), plain.astype(np.uint8)
    expected = overlay(plain, heat).astype(int)
    assert np.abs(expected - with_map).mean() < 2
    bright = heat > heat.max() / 2  # where the map changes the image most
    assert np.abs(plain - with_map)[bright].mean() > np.abs(plain - expected)[bright].mean() / 2 > 0

    browser.find_element("css selector", "#diagnoses .badges button").click()  # show on the images
    wait_until(lambda: shown() == f"0/{explanation.peak(0)[0]}")

    element("name").send_keys("Segond fracture; cirrhosis\n")
    typed = wait_until(lambda: browser.find_elements("css selector", "#typed .label"))
    assert {name.text for name in typed} == {"Segond fracture", "cirrhosis"}
    element("report").click()
    written = lambda: [file for file in browser.downloads.glob("*.html") if file.stat().st_size]  # noqa: E731
    report = wait_until(written)[0].read_text()
    assert "Segond fracture" in report
    assert SECRET not in report + browser.page_source


def test_the_page_shows_a_volume_in_three_planes(browser, url_of_volumes, tmp_path):
    (tmp_path / "a.nii").write_bytes(ct())
    assert drop(browser, url_of_volumes, tmp_path / "a.nii") == "study"
    element = lambda name: browser.find_element("id", name)  # noqa: E731
    shown = lambda: element("slice").get_attribute("data-shown")  # noqa: E731
    wait_until(shown)
    planes = browser.find_elements("css selector", "#across figcaption")
    assert [plane.text.split(",")[0] for plane in planes] == ["Coronal", "Sagittal"]
    assert "Read as 3 overlapping windows of 48 mm (head to foot)" in element("note").text
    assert not element("curve").is_displayed()
    assert not element("key").is_displayed()
    picture = lambda: browser.find_element("css selector", "#across image").get_attribute("href")  # noqa: E731
    with_map = picture()
    element("map").click()
    assert picture() != with_map
    line = lambda: float(browser.find_element("css selector", "#across line").get_attribute("y1"))  # noqa: E731
    height = float(browser.find_element("css selector", "#across image").get_attribute("height"))
    element("viewport").send_keys("\ue010")  # End, the slice at the top
    wait_until(lambda: shown() == "0/39")
    wait_until(lambda: line() == pytest.approx(height / 80))
    figure = browser.find_element("css selector", "#across figure")
    figure.click()  # in the middle
    wait_until(lambda: shown() in ("0/19", "0/20"))
    assert line() == pytest.approx(height / 2, abs=height / 40)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_page_takes_a_zip_of_a_dicom_study_and_a_nifti_together(browser, url, tmp_path):
    images = {f"{SECRET}/{file.relative_to(STUDY)}": file.read_bytes() for file in STUDY.rglob("*") if file.is_file()}
    (tmp_path / f"{SECRET}.zip").write_bytes(zipped(images))
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(ct()))
    assert drop(browser, url, tmp_path / f"{SECRET}.zip", tmp_path / "b.nii.gz") == "study"
    expected = read_case([STUDY, tmp_path / "b.nii.gz"], modality="CT").scans
    tabs = browser.find_elements("css selector", "#scans button")
    assert len(tabs) == len(expected) > 2
    for i, (tab, scan) in enumerate(zip(tabs, expected, strict=True)):
        tab.click()
        wait_until(
            lambda i=i: (browser.find_element("id", "slice").get_attribute("data-shown") or "").startswith(f"{i}/")
        )
        label = browser.find_element("id", "slice-label").text
        assert label.startswith("one slice") if len(scan.pixels) == 1 else f"of {len(scan.pixels)}" in label
    assert SECRET not in browser.page_source


def test_the_page_takes_a_folder_of_volumes_of_several_files(browser, url, tmp_path):
    for name, content in of_several_files().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    browser.get(url)
    browser.find_element("id", "folder").send_keys(str(tmp_path / "a"))
    wait_until(lambda: browser.find_element("tag name", "body").get_attribute("data-state") == "study")
    assert len(browser.find_elements("css selector", "#scans button")) == 5
    assert SECRET not in browser.page_source


def test_an_out_of_distribution_study_has_no_marks_of_a_threshold(browser, studies, url, monkeypatch, tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    marks = "#diagnoses .above, #typed .above, .bar b"
    assert drop(browser, url, tmp_path / "a.png") == "study"
    assert browser.find_elements("css selector", marks)
    judged = {"is_ood": True, "p_value": 0.002, "new_modalities": [], "scans": [0.002]}
    monkeypatch.setitem(vars(studies.pipe), "reference", SimpleNamespace(judge=lambda *_: judged))
    assert drop(browser, url, tmp_path / "a.png") == "study"
    assert "out of distribution" in browser.find_element("id", "warnings").text
    browser.find_element("id", "name").send_keys("cirrhosis\n")
    wait_until(lambda: browser.find_elements("css selector", "#typed .label"))
    assert not browser.find_elements("css selector", marks)
    assert "are calibrated" not in browser.find_element("id", "score-help").get_attribute("textContent")


def test_the_page_says_what_is_uncertain_about_the_scans(browser, url, tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    assert drop(browser, url, tmp_path / "a.png") == "study"
    assert "The scan: CT values are 8-bit grey levels" in browser.find_element("id", "warnings").text


def pixels(browser) -> np.ndarray:
    """The displayed slice (H, W, 3), without the black border."""
    uri = browser.execute_script("return document.getElementById('slice').toDataURL()")
    canvas = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    rows, columns = (np.flatnonzero((canvas[..., 3] > 0).any(axis)) for axis in (1, 0))
    return canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, :3]


def test_the_page_shows_the_reason_of_a_refusal(browser, url, tmp_path):
    (tmp_path / f"{SECRET}.zip").write_bytes(zipped({"a.zip": b"a"}))
    assert drop(browser, url, tmp_path / f"{SECRET}.zip") == "empty"
    reason = browser.find_element("id", "error").text
    assert reason == "The zip file contains another archive: unpack it and drop its files."
    (tmp_path / "large.nii").write_bytes(bytes(4_100_000))
    assert drop(browser, url, tmp_path / "large.nii") == "empty"
    assert "up to 4 MB" in browser.find_element("id", "error").text


def test_the_page_fits_a_phone_and_requests_nothing_from_other_sites(browser, url, tmp_path):
    browser.get_log("performance")
    (tmp_path / "a.png").write_bytes(picture())
    screen = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    assert drop(browser, url, tmp_path / "a.png") == "study"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert browser.find_element("css selector", "header .only").is_displayed()
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requested = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert len(requested) > 5
    assert not [address for address in requested if not address.startswith((url, "blob:", "data:"))]
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
