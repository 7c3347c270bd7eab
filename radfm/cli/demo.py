"""The command `radfm demo`: what radfm does with real studies, new names and a hospital's own data, in minutes.

Decisions:
- Nothing is trained from the beginning. The default checkpoint diagnoses the example studies, scores names that it
  never saw, and is fine-tuned to a small synthetic hospital, since no hospital's cases can come with radfm.
- Every step calls the function of its command on a small scale. Only the sizes are specific to the demo.
- The same command resumes the demo where it was stopped, as the steps do.
"""

import time
from contextlib import contextmanager
from pathlib import Path

import datasets
from transformers import Pipeline, pipeline

from radfm import examples
from radfm.checkpoints import DEFAULT, find
from radfm.cli.console import DISCLAIMER, quiet_transformers, show, step, table
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.data_prep.stored_cases import load
from radfm.data_prep.tables import RECORD
from radfm.eval.case_report import write_case
from radfm.eval.comparison_tables import show_comparison
from radfm.eval.diagnosis import compare
from radfm.eval.predict import Evaluation, score
from radfm.train.finetune import finetune
from radfm.train.finetune_config import finetune_config

PATIENTS, ANATOMY, SEED = 1600, "knee", 20  # of the 1,600, some two hundred have scans of a knee
MAX_SLICES = 8  # of a scan, evenly spaced
_LEAST = (10, 4)  # training cases of head and body: a set of this size has no disorder with a hundred
NEW_NAMES = ("Hoffa's fat pad impingement", "Rickets", "Hemarthrosis of the knee", "Chikungunya arthritis")


def run(out: Path) -> None:
    """Runs all steps in the folder `out`, and prints their results."""
    datasets.disable_progress_bars()
    quiet_transformers()
    began = time.monotonic()
    data, model = out / "hospital", out / "model"
    with step(f"Loading {DEFAULT}"):
        pipe = pipeline("zero-shot-diagnosis", model=find(DEFAULT))
    for alert in pipe.model_alerts:
        show(f"[bold red]{alert}[/]", highlight=False)
    show(f"[dim]{DEFAULT}: {pipe.training_data.summary}[/]", highlight=False)
    with _part(f"1. {len(examples.names())} real studies that the model was not trained on", "radfm examples STUDIES"):
        _diagnose_examples(pipe)
    with _part("2. Names of diseases that you type", 'radfm diagnose STUDIES/knees --labels "..."'):
        _score_names(pipe)
    with _part("3. A small synthetic hospital: patients with knee pain", "radfm prepare phantoms --anatomy knee"):
        _prepare(data)
    with _part("4. The model is fine-tuned to it", f"radfm finetune {data} --model {DEFAULT} --output {model}"):
        _finetune(data, model)
    with _part("5. Before and after, on patients of the hospital that it has not seen", f"radfm evaluate {data} ..."):
        _evaluate(data, model)
    with _part("6. One of these patients, with saliency maps", "radfm diagnose ... --report"):
        _report(data, model, out / "report.html")
    minutes = (time.monotonic() - began) / 60
    show(f"\nDone in {minutes:.1f} minutes. The model in {model} is an ordinary checkpoint:", highlight=False)
    show(f'   [bold]pipeline("zero-shot-diagnosis", model="{model}")[/]', highlight=False)
    show("With your own data:", highlight=False)
    show("   [bold]radfm prepare manifest --template > cases.csv[/]       one row per file, then", highlight=False)
    show("   [bold]radfm prepare manifest cases.csv datasets/mine[/]      and", highlight=False)
    show("   [bold]radfm finetune datasets/mine --model " + DEFAULT + " --output runs/mine[/]", highlight=False)
    show("See docs/data.md, docs/finetuning.md and, to train from the beginning, docs/training.md.", highlight=False)
    show(f"[dim]{DISCLAIMER}[/]")


def _diagnose_examples(pipe: Pipeline) -> None:
    truths = [name for study in examples.names() for name in examples.about(study).disorders]
    names = list(dict.fromkeys([*pipe.model.config.disorders, *truths]))
    new = sum(name not in pipe.model.config.vocabulary for name in names)
    rows = table("study", "shows", ">rank", "first answer", ">score")
    for study in examples.names():
        case = examples.load(study)
        diagnoses = pipe(case, candidate_labels=names, return_attentions=True)["diagnoses"]
        rank = min(i for i, diagnosis in enumerate(diagnoses, 1) if diagnosis["label"] in case.disorders)
        first = diagnoses[0]
        cells = (study, ", ".join(case.disorders), str(rank), first["label"], f"{first['score']:.2f}")
        rows.add_row(*cells, style="bold" if rank == 1 else None)
    show(rows)
    for line in (
        f"Rank: of the true disorder among {len(names):,} names, of which {new:,} are not in the model's vocabulary.",
        "Eight studies measure nothing. Whom to credit for the pictures: radfm examples.",
    ):
        show(f"   {line}", highlight=False)


def _score_names(pipe: Pipeline) -> None:
    vocabulary = pipe.model.config.vocabulary
    rows = table("name", "ICD-10-CM", ">score", "in the vocabulary")
    labels = [*NEW_NAMES, *examples.about("knees").disorders]
    for diagnosis in pipe(examples.load("knees"), candidate_labels=labels):
        known = "yes" if diagnosis["label"] in vocabulary else "no: by its name alone"
        rows.add_row(diagnosis["label"], ", ".join(diagnosis["icd10cm"]) or "-", f"{diagnosis['score']:.3f}", known)
    show(rows)
    show("   Scores of new names rank diseases; how well is in docs/results.md.", highlight=False)


def _prepare(data: Path) -> None:
    if not (data / RECORD).exists():
        with step("Generating") as progress:
            source = Phantoms(PATIENTS, SEED, anatomy=ANATOMY)
            prepare(source, data, Settings(cases_per_shard=25), processes=2, progress=progress)
    show(
        f"   {len(load(data, 'train'))} patients to learn from, {len(load(data, 'test'))} to measure on.",
        highlight=False,
    )
    show(f"   A report with pictures: {data / 'report.html'}", highlight=False)


def _finetune(data: Path, output: Path) -> None:
    given = {"output": str(output), "method": "linear", "data": {"path": str(data)}}
    given["model"] = {"checkpoint": DEFAULT, "max_slices": MAX_SLICES}
    with step("Fine-tuning"):
        recipe = finetune(finetune_config(given))
    share = recipe["interpolation"]["share"]
    show(
        f"   {recipe['disorders']['data']} disorders; share of the new weights {share:g}, by validation.",
        highlight=False,
    )


def _evaluate(data: Path, model: Path) -> None:
    with step("Scoring") as progress:
        evaluation = Evaluation(data, bf16=True, progress=progress)
        tables = {"before": [score(find(DEFAULT), evaluation)], "after": [score(model, evaluation)]}
    with step("Measuring"):
        result = compare(tables, least=_LEAST, bootstraps=200)
    show_comparison(result)


def _report(data: Path, model: Path, report: Path) -> None:
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
