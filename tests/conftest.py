import os
import random
import shutil
import subprocess
import sys
import zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests use no network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread each: workers share the cores, and sums of floats do not depend on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# One ninja for all: another version would compile DeepSpeed's extension anew, in each test that starts it.
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.forked_python import serving

SHARED = Path(__file__).parents[1].parent / "shared"  # real cases, if they exist beside the checkout


def seed(name: str) -> None:
    """Seeds the global random numbers with the name of the test or fixture, so that they do not depend on the order."""
    number = zlib.crc32(name.encode())
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002  libraries may use it
    if torch := sys.modules.get("torch"):
        torch.manual_seed(number)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    seed(fixturedef.argname)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    seed(item.nodeid)


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, which is not here")
    return SHARED


@pytest.fixture
def tiny_config() -> dict:
    """The config of a model with a few hundred thousand weights that has all parts of a large one."""
    return {
        "vision_config": {"family": "resnet", "tower": "test_resnet", "image_size": 64, "slices_per_chunk": 4},
        "scan_config": {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "num_positions": 8},
        "case_config": {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        "text_config": {
            "model_type": "bert",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
        "hidden_size": 48,
        "projection_dim": 32,
    }


@pytest.fixture
def radfm(monkeypatch, capsys):
    """A function that runs `radfm ...` and returns its exit status, standard output and standard error."""

    from radfm.cli import main

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["radfm", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


def folder_of_session(tmp_path_factory, name: str) -> Path:
    """A folder that all pytest-xdist workers share. It is not created here."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name


@pytest.fixture(scope="session")
def python(tmp_path_factory) -> Iterator[str]:
    """The path of a program that replaces `python` and starts without delay: see `tests/forked_python.py`."""
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    with serving(folder_of_session(tmp_path_factory, "forked"), environment) as program:
        yield str(program)


BUILD = """
import sys
from pathlib import Path

from filelock import FileLock

folder = Path(sys.argv[1])
with FileLock(f"{folder}.lock"):
    if not (folder / "built").exists():
        from deepspeed.accelerator import get_accelerator

        get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)
        (folder / "built").touch()
"""


def start_build(folder: Path) -> subprocess.Popen:
    """Compiles the C++ extension that DeepSpeed needs on a CPU, unless that is done or being done."""
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(folder), "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen([sys.executable, "-c", BUILD, str(folder)], env=environment, stdout=subprocess.DEVNULL)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """The first worker starts to compile at once, so that no test has to wait for the whole minute that it takes."""
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw0" and any("deepspeed_extensions" in i.fixturenames for i in items):
        start_build(folder_of_session(config._tmp_path_factory, "torch_extensions"))


@pytest.fixture(scope="session")
def deepspeed_extensions(tmp_path_factory) -> Iterator[Path]:
    """The C++ extension that DeepSpeed needs on a CPU, compiled once, instead of in each process of each test.

    torch leaves a file named "lock" behind if a process is killed while it compiles or loads an extension, and all
    later processes wait for that lock. So each session has a folder of its own.
    """
    folder = folder_of_session(tmp_path_factory, "torch_extensions")
    assert start_build(folder).wait() == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
        patch.setenv("DS_ACCELERATOR", "cpu")
        yield folder


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory) -> Path:
    """A SentenceTransformer of two layers with the tokenizer of all-MiniLM-L6-v2."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    from radfm import starting_points

    folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(starting_points.minilm_folder())
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    SentenceTransformer(modules=[Transformer(str(folder / "bert")), Pooling(32)], device="cpu").save(str(folder / "e"))
    return folder / "e"


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium. `browser.downloads` is the folder of its downloads."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs a browser and its driver: apt-get install chromium chromium-driver")
    options, downloads = webdriver.ChromeOptions(), tmp_path_factory.mktemp("down")
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,800"):
        options.add_argument(f"--{argument}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.downloads = downloads
    yield browser
    browser.quit()
