"""The command `radfm demo`: all steps from synthetic patients to disorders that were never trained on, in minutes.

Decisions:
- Every step calls the function of its command on a small scale: `radfm prepare phantoms`, `radfm train text`, `radfm
  train diagnosis`, `radfm evaluate`, `radfm diagnose`. Only the sizes are specific to the demo.
- The same command resumes the demo where it was stopped, as the steps do.
- Five disorders are left out of training, with every case that has one of them, and are scored by name alone.
"""

import time
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import datasets
from transformers import pipeline

from radfm.cli.console import DISCLAIMER, quiet_transformers, show, step, table
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.data_prep.stored_cases import load
from radfm.data_prep.tables import RECORD
from radfm.eval.case_report import write_case
from radfm.eval.diagnosis import compare
from radfm.eval.predict import Evaluation, score
from radfm.presentation import interval_cell
from radfm.train import diagnosis, text
from radfm.train.config import packaged_config
from radfm.train.diagnosis_config import read_diagnosis_config

CASES = 500
WITHHELD = (
    *("Pleural effusion", "Simple cyst of kidney", "Multiple sclerosis", "Pneumothorax"),
    "Intracerebral hemorrhage in hemisphere, subcortical",
)
_TEXT = ("training.max_steps=25", "training.per_device_train_batch_size=128", "training.warmup_steps=3")
_LEAST = (15, 5)  # training cases of head and body: a set of this size has no disorder with a hundred
_TOWER_STEPS, _HEAD_STEPS = 150, 100


def run(out: Path) -> None:
    """Runs all steps in the folder `out`, and prints their results."""
    datasets.disable_progress_bars()
    quiet_transformers()
    began = time.monotonic()
    data, encoder, tower = out / "phantoms", out / "text", out / "tower"
    plain, model = out / "without_ke", out / "model"
    with _part(f"1. {CASES} synthetic patients, several scans each", "radfm prepare phantoms"):
        _prepare(data)
    with _part("2. A text encoder is trained on the hierarchy and the names of ICD-10-CM", "radfm train text"):
        _train_text(encoder)
    with _part("3. A slice encoder is trained on slices, with masks for their patches", "radfm train diagnosis"):
        _train(data, tower, "diagnosis_tower", _TOWER_STEPS, f"model.text_encoder={encoder}")
    with _part(
        "4. A model of whole cases that reads it, with a fixed list of disorders (no KE)", "radfm train diagnosis"
    ):
        _train(data, plain, "diagnosis_fm", _HEAD_STEPS, f"model.tower_weights={tower}")
    with _part("5. Another one, with the embeddings of the disorders' names (KE)", "radfm train diagnosis"):
        _train(
            data, model, "diagnosis_ke", _HEAD_STEPS, f"model.tower_weights={tower}", f"model.text_encoder={encoder}"
        )
    with _part("6. Both on new patients, and five disorders by their names alone", "radfm evaluate"):
        _evaluate(data, plain, model)
    with _part("7. One case, with saliency maps", "radfm diagnose ... --report"):
        _diagnose(data, model, out / "report.html")
    minutes = (time.monotonic() - began) / 60
    show(f"\nDone in {minutes:.1f} minutes. The model in {model} is an ordinary checkpoint:", highlight=False)
    show(f'   [bold]pipeline("zero-shot-diagnosis", model="{model}")[/]', highlight=False)
    show("It was trained on few synthetic patients only. With your own data:", highlight=False)
    show("   [bold]radfm prepare manifest --template > cases.csv[/]       one row per file, then", highlight=False)
    show("   [bold]radfm prepare manifest cases.csv datasets/mine[/]      and", highlight=False)
    show(f"   [bold]radfm finetune datasets/mine --model {model} --output runs/mine[/]", highlight=False)
    show("See docs/data.md, docs/training.md and docs/finetuning.md.", highlight=False)
    show(f"[dim]{DISCLAIMER}[/]")


def _prepare(data: Path) -> None:
    if not (data / RECORD).exists():
        with step("Generating") as progress:
            prepare(Phantoms(CASES), data, Settings(size=96, cases_per_shard=50), processes=2, progress=progress)
    show(f"   A report with pictures: {data / 'report.html'}", highlight=False)


def _train_text(output: Path) -> None:
    if not (output / text.RECIPE).exists():
        with redirect_stdout(StringIO()):  # the losses would be mixed with the progress bar
            text.train(
                text.read_text_config(packaged_config("text.yaml"), [f"output={output}", "data.held_out=null", *_TEXT])
            )


def _train(data: Path, output: Path, name: str, steps: int, *changes: str) -> None:
    if not (output / diagnosis.RECIPE).exists():
        brief = [f"training.{key}" for key in (f"max_steps={steps}", f"save_steps={steps}", "eval_strategy=no")]
        common = [f"data={data}", f"output={output}", f"data.withheld={list(WITHHELD)}", "training.report_to=[]"]
        with redirect_stdout(StringIO()):
            config = read_diagnosis_config(packaged_config(f"{name}.yaml"), [*common, *brief, *changes])
            diagnosis.train(config)


def _evaluate(data: Path, plain: Path, model: Path) -> None:
    known = [name for name in load(data).vocabulary.names if name not in WITHHELD]
    with step("Scoring") as progress:
        rows = {
            "no KE": ([score(plain, Evaluation(data, names=known, bf16=True, progress=progress))], None),
            "KE": ([score(model, Evaluation(data, names=known, bf16=True, progress=progress))], None),
            "KE, unseen": ([score(model, Evaluation(data, bf16=True, progress=progress))], WITHHELD),
        }
    shown = table("", ">overall", ">head", ">body", ">tail", ">same part")
    with step("Measuring"):
        for name, (tables, only) in rows.items():
            results = [
                compare({name: tables}, only=only, within=within, least=_LEAST, bootstraps=200)["models"][name]
                for within in (None, "body part")
            ]
            anywhere, same_part = (result["macro"]["auc"] for result in results)
            figures = [anywhere[band] for band in ("all", "head", "body", "tail")] + [same_part["all"]]
            shown.add_row(name, *map(_cell, figures))
    show(shown)
    for line in (
        "Macro AUC, with its 95% confidence interval over patients; chance is 0.5.",
        f"Head: disorders of {_LEAST[0]} training cases or more; tail: of fewer than {_LEAST[1]}.",
        "Unseen: the five disorders that were left out of training.",
        "Same part: with negatives of the same part of the body. The first figure is",
        "mostly the part of the body; the second needs more training than a demo.",
    ):
        show(f"   {line}", highlight=False)


def _cell(figure: dict | None) -> str:
    """A figure whose interval has no leading zeros, so that the table fits into 80 columns."""
    return interval_cell(figure, ".2f").replace("\n0", "\n").replace(" 0", " ")


def _diagnose(data: Path, model: Path, report: Path) -> None:
    cases = load(data, "test")
    case = next(c for c in map(cases.__getitem__, range(len(cases))) if len(c.scans) > 1 and c.disorders)
    pipe = pipeline("zero-shot-diagnosis", model=str(model))  # saved before, loaded here
    answer = pipe(case, top_k=5, return_attentions=True)
    show(f"   {len(case.scans)} scans, with: [bold]{', '.join(case.disorders)}[/]", highlight=False)
    rows = table("disorder", "ICD-10-CM", ">score")
    for entry in answer["diagnoses"]:
        style = "bold" if entry["label"] in case.disorders else None
        rows.add_row(entry["label"], ", ".join(entry["icd10cm"]), f"{entry['score']:.3f}", style=style)
    show(rows)
    with step("Writing the report"):
        write_case(pipe, case, answer, str(model), report)
    show(f"   Its scans, key slices and saliency maps: {report}", highlight=False)


@contextmanager
def _part(title: str, command: str):
    show(f"\n[bold]{title}[/]\n   [dim]{command}[/]", highlight=False)
    began = time.monotonic()
    yield
    show(f"   [dim]{time.monotonic() - began:.0f} s[/]", highlight=False)
