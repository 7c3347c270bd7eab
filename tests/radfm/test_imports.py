"""What importing costs, and which way imports point."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from untrained import STUDY

ROOT = Path(__file__).parents[2]
HEAVY = [
    "torch",
    "transformers",
    "deepspeed",
    "monai",
    "sentence_transformers",
    "datasets",
    "timm",
    "open_clip",
    "scipy",
]


def modules_after(code: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())


@pytest.mark.parametrize("code", ["import radfm", "import radfm.cli", "from radfm import read_case, Case, Scan"])
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    assert modules_after(code).isdisjoint(HEAVY)


def test_reading_a_study_needs_no_torch():
    code = f"import radfm; assert radfm.read_case({str(STUDY)!r}).scans"
    assert modules_after(code).isdisjoint(HEAVY)


def test_the_model_needs_nothing_that_only_training_needs():
    modules = modules_after("from radfm import RadFMForDiagnosis, RadFMProcessor")
    assert "torch" in modules
    assert modules.isdisjoint(["deepspeed", "monai", "sentence_transformers", "datasets", "open_clip"])


@pytest.mark.parametrize(
    "first", ["import radfm", "import transformers.pipelines, transformers.models.auto.modeling_auto"]
)
def test_transformers_knows_radfm_whichever_is_imported_first(first):
    modules_after(
        f"{first}\nimport radfm\nfrom transformers import AutoConfig, AutoModel, AutoProcessor, pipelines\n"
        "from transformers import AutoImageProcessor\n"
        "assert type(AutoModel.from_config(radfm.RadFMConfig(vision_config={'tower': 'test_resnet'}))).__name__ "
        "== 'RadFMForDiagnosis'\n"
        "assert AutoConfig.for_model('radfm').model_type == 'radfm'\n"
        "assert 'zero-shot-diagnosis' in pipelines.PIPELINE_REGISTRY.get_supported_tasks()"
    )


@pytest.mark.parametrize("file", sorted(ROOT.glob("radfm/*_radfm.py")), ids=lambda file: file.name)
def test_what_a_checkpoint_carries_needs_no_radfm(file):
    """At most a try: `import radfm` there is for what only a machine with radfm can do."""
    for node in ast.walk(ast.parse(file.read_text())):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom) and child.level == 0 and not isinstance(node, ast.Try):
                assert child.module.split(".")[0] != "radfm", f"{file.name}:{child.lineno}"


def test_radfm_imports_none_of_the_other_rooms():
    for file in ROOT.glob("radfm/**/*.py"):
        if file.name in ("cli.py", "demo.py"):  # the command line loads them when asked
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            module = getattr(node, "module", None) or ""
            assert not module.startswith(("radfm.data_prep", "radfm.train", "radfm.eval", "radfm.serve")), file


def test_public_names_are_there():
    import radfm

    for name in radfm.__all__:
        assert getattr(radfm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = radfm.nonsense
