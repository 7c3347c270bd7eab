"""What importing costs, and which way imports point."""

import ast
import graphlib
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


ROOMS = ("radfm", "data_prep", "eval", "train", "serve")  # each imports those before it


def module_files() -> dict[str, Path]:
    """Module name -> file, of all rooms."""
    modules = {}
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            modules[".".join(parts if room == "radfm" else ("radfm", *parts))] = file
    return modules


def imports_of(module: str, file: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of radfm that a module imports, wherever in it; not what only type checkers read."""
    imported = set()
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    nodes = [ast.parse(file.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) + 1 - node.level]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                imported.add(f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base)
    return (imported & set(modules)) - {module, "radfm"}


def room_of(module: str) -> int:
    second = module.split(".")[1] if "." in module else ""
    return ROOMS.index(second) if second in ROOMS else 0


def test_rooms_import_only_the_rooms_before_them():
    """The command line stands above all: it loads a command's module when the command runs."""
    modules = module_files()
    wrong = [
        f"{module} imports {other}"
        for module, file in modules.items()
        if not module.startswith("radfm.cli")
        for other in imports_of(module, file, modules)
        if room_of(other) > room_of(module)
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    modules = module_files()
    graph = {module: imports_of(module, file, modules) for module, file in modules.items()}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_public_names_are_there():
    import radfm

    for name in radfm.__all__:
        assert getattr(radfm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = radfm.nonsense


@pytest.mark.parametrize("first", ["radfm.encoder_radfm", "radfm.pipeline_radfm", "radfm.eval.uncertainty"])
def test_any_module_can_be_imported_first(first):
    modules_after(
        f"import {first}\nimport radfm\nfrom transformers import AutoModel\n"
        "AutoModel.from_config(radfm.RadFMConfig(vision_config={'tower': 'test_resnet'}))"
    )
