"""Without an extra of radfm, a command that needs it ends with one line that names the extra."""

import json
import re
import subprocess
import sys

import pytest

# What the extras bring, and nothing else that radfm needs does.
OF_EXTRAS = (
    *("accelerate", "datasets", "deepspeed", "dicomanonymizer", "fastapi", "imagehash", "matplotlib", "monai", "peft"),
    *("pyarrow", "tensorboard", "uvicorn"),
)
ASKING = {
    "demo": "train",
    "prepare phantoms out": "data",
    "diagnose scan.npy --model radfm-phantom-mini --report case.html": "data",
    "embed scan.npy --out table.parquet": "data",
    "train text text.yaml": "train",
    "train diagnosis diagnosis.yaml": "train",
    "finetune data --model radfm-phantom-mini --output out": "train",
    "calibrate data --model model": "train",
    "evaluate data --model radfm-phantom-mini": "train",
    "evaluate saliency data --model radfm-phantom-mini": "train",
    "evaluate uncertainty data --model a --model b": "train",
    "evaluate ood data --model model": "train",
    "evaluate zero-shot data --model model": "train",
    "serve --model radfm-phantom-mini": "serve",
}
PROGRAM = """
import io, json, sys, traceback
from contextlib import redirect_stderr, redirect_stdout

missing, commands = json.loads(sys.argv[1])

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *arguments):
        return None if name.partition(".")[0] in missing else self.finder.find_spec(name, *arguments)

sys.meta_path[:] = map(Without, sys.meta_path)
from radfm.cli import main
printed = {}
for command in commands:
    sys.argv = ["radfm", *command.split()]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as errors:
        try:
            main()
        except SystemExit:
            pass
        except BaseException:
            traceback.print_exc()
    printed[command] = errors.getvalue()
print(json.dumps(printed))
"""


def answers(folder, missing, commands) -> dict[str, str]:
    """Command -> what it says on standard error where these modules are not installed."""
    request = json.dumps([missing, commands])
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, request], cwd=folder, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> dict[str, str]:
    return answers(tmp_path_factory.mktemp("bare"), OF_EXTRAS, list(ASKING))


@pytest.mark.parametrize("command", ASKING)
def test_a_command_without_its_extra_ends_in_one_line_that_names_it(printed, command):
    assert re.fullmatch(rf"radfm: \w+ is missing: pip install 'radfm\[{ASKING[command]}\]'\n", printed[command])


@pytest.mark.parametrize(
    ("missing", "command"),
    [("monai", "demo"), ("peft", "finetune data --model radfm-phantom-mini --output out")],
)
def test_a_missing_extra_is_reported_before_the_command_starts(tmp_path, missing, command):
    assert answers(tmp_path, [missing], [command])[command] == (
        f"radfm: {missing} is missing: pip install 'radfm[train]'\n"
    )
    assert not list(tmp_path.iterdir())
