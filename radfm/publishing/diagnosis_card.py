"""The card of a diagnosis model: what it learned from, how well it tells head, body and tail, and where it does not.

Decisions:
- Each band of each evaluation is a result of the model-index, with its interval.
- What it was never shown is said by the numbers of its training data, and by nothing else.
- Subgroups by folder name are left out: a folder may have the name of a patient.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from radfm.heads_radfm import HEADS
from radfm.presentation import (
    enumeration,
    markdown_cell,
    percent_interval,
    plural,
    with_interval,
)
from radfm.publishing.card import Facts, counted, make_card
from radfm.publishing.confidence_section import calibration_cases, calibration_tables, confidence_sentences
from radfm.recipes_radfm import DIAGNOSIS_RECIPE, FINETUNE_RECIPE, synthetic_only

_ATTRIBUTES = ("modality", "body part", "age", "sex", "scans")
_GROUPS = {  # of `radfm.data_prep.data_summary`
    "scans by modality": "modalities",
    "scans by part of the body": "body_parts",
    "patients by age, years": "ages",
    "patients by sex": "sexes",
}
_HEADS = {"text": "text: cosine with the embedding of a disorder's name", "mlp": "a fixed list of disorders"}
_STARTS = {"model": "checkpoint", "tower_weights": "weights of the slice encoder", "text_encoder": "text encoder"}
_LEAST_CASES, _WORST = 10, 8  # cases of a disorder among the worst, and how many of these are listed
_RADDIAG = (
    "The architecture follows RadDiag: Zheng et al., Large-scale long-tailed disease diagnosis on radiology images, "
    "Nature Communications 15:10147, 2024."
)


def diagnosis_card(facts: Facts) -> ModelCard:
    """Of a `RadFMForDiagnosis`. Raises: ValueError: the head of the card is not as the Hub wants it."""
    config, learned, recipe = facts.config, facts.learned or {}, facts.recipe
    run = {section: {} for section in ("data", "model", "sampling", "training")}
    run |= recipe.get("key", recipe).get("config", {})
    started_from = recipe.get("started_from") or {}
    synthetic = synthetic_only(recipe | {"data": learned})
    coded = sum(map(bool, config["icd10cm"]))
    modalities = [name for name in config["modalities"] if name != "other" and not name[-1].isdigit()]
    head = ModelCardData(
        language="en",
        license=facts.licence,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["radfm", "radiology", "medical", "icd-10-cm", "zero-shot", "custom_code", *["synthetic"] * synthetic],
        metrics=sorted({hub for one in facts.evaluations for hub, _ in _hub_metrics(one).values()}) or None,
        model_name=facts.name if facts.evaluations else None,
        eval_results=[result for one in facts.evaluations for result in _results(one, learned)] or None,
    )
    table = {
        "parameters": f"{facts.weights['parameters']:,}",
        "slice encoder": f"{config['vision_config']['tower']} (family {config['vision_config']['family']}), "
        f"{config['vision_config']['image_size']} pixels",
        "scan and case encoder": _layers(config),
        "head": _HEADS[config["head"]],
        "disorders": f"{len(config['disorders']):,}, of them {coded:,} with ICD-10-CM codes",
    }
    return make_card(
        "diagnosis.md",
        facts,
        head,
        table,
        reads=", ".join(modalities),
        disorders=len(config["disorders"]),
        open_vocabulary=HEADS[config["head"]].reads_text,
        trained=config["trained"],
        synthetic=synthetic,
        data=learned or None,
        counted="cases" in learned,
        groups={what: counted(learned[key]) for what, key in _GROUPS.items() if key in learned},
        validation_cases=_validated(recipe),
        starts=list(_starts(started_from, run, config)),
        method=[f"{line}." for line in _method(recipe, run, config)],
        evaluations=list(_evaluations(facts.evaluations)),
        never_shown=list(_never_shown(facts, modalities, synthetic, run)),
        anatomy=_anatomy(facts.evaluations),
        calibrated=config.get("calibration") is not None,
        calibration_cases=calibration_cases(facts),
        calibrations=list(calibration_tables(facts)),
        confidence=list(confidence_sentences(facts)),
        citations=[_RADDIAG, *filter(None, [learned.get("citation")])],
    )


def _evaluations(evaluations: Sequence[dict]) -> Iterator[dict[str, Any]]:
    """What the template shows of each evaluation; subgroups that were shown before are not repeated."""
    shown = []
    for one in evaluations:
        again = one["subgroups"] in shown
        shown.append(one["subgroups"])
        yield _evaluation(one) | ({"subgroups": [], "gaps": [], "unknown": []} if again else {})


def _evaluation(one: dict) -> dict[str, Any]:
    """What the template shows of an evaluation."""
    bands, groups = one["bands"], one["subgroups"]
    words = {"all": "all"} | {band: f"{band}: {bands[band]['training_cases']}" for band in ("head", "body", "tail")}
    metrics = {key: metric["name"] for key, metric in _metrics(one).items() if metric["in_card"]}
    shown = {key: name for key, name in metrics.items() if one["macro"].get(key, {}).get("all")}
    known = [row for row in one["disorders"] if row["cases"] >= _LEAST_CASES and row["auc"]]
    worst = sorted(known, key=lambda row: row["auc"]["value"])[:_WORST]
    return {
        "title": f"{one['about'].get('dataset') or 'A data set'}, split {one['split']}"
        + (f", within {one['within']}" if one["within"] else ""),
        "cases": one["cases"],
        "patients": one["patients"],
        "bootstraps": one["bootstraps"],
        "origin": _origin(one),
        "shown": " ".join(_shown(one)),
        "metrics": shown,
        "bands": [
            {
                "name": said,
                **bands[band],
                "figures": [
                    with_interval(one["macro"][name].get(band)).replace(" (", "<br>").rstrip(")") for name in shown
                ],
            }
            for band, said in words.items()
            if bands[band]["disorders"]
        ],
        "notes": list(_ranks(one)),
        "least_cases": _LEAST_CASES,
        "weakest": [f"{markdown_cell(row['disorder'])} {with_interval(row['auc'])}" for row in worst],
        "rows": len(one["disorders"]),
        "subgroups": [
            {"attribute": what, "group": group, **row, "auc": with_interval(row["auc"])}
            for what in _ATTRIBUTES
            for group, row in groups.get(what, {}).get("groups", {}).items()
        ],
        "gaps": [_gap(what, gap) for what in _ATTRIBUTES if (gap := groups.get(what, {}).get("gap"))],
        "unknown": [what for what in _ATTRIBUTES if not groups.get(what, {}).get("groups")],
    }


def _shown(one: dict) -> Iterator[str]:
    yield "Of each case one scan was shown." if one["about"].get("scans") == "one" else "Whole cases were shown."
    if one["within"]:
        yield f"A disorder is told from cases of the same {one['within']} only."
    if one["level"] != "disorder":
        yield f"What is told is no single disorder, but its ICD-10-CM {one['level']}."
    if one["only"]:
        yield f"Its author chose {plural(len(one['only']), 'disorder')} to be measured."


def _origin(one: dict) -> str:
    split, trained_on = one["split"], one["about"].get("trained_on")
    if trained_on != one["data"]:
        which = "another data set than it learned from" if trained_on else "a data set"
        return f"split {split} of {which} (fingerprint `{one['data']}`); whether patients are in both is not known."
    warning = {
        "train": "**It learned from these very cases, so these figures mean little.**",
        "validation": "**Its best step was chosen on these cases, so these figures are too good.**",
    }
    return f"split {split} of the data set that it learned from. " + warning.get(
        split, "Their patients are in no other split."
    )


def _gap(what: str, gap: dict) -> str:
    shared = ""
    if gap.get("shared_auc"):
        disorders = plural(gap["shared_disorders"], "disorder")
        shared = f"; over the {disorders} of both, {with_interval(gap['shared_auc'], signed=True)}"
    best, worst = markdown_cell(gap["best"]), markdown_cell(gap["worst"])
    return f"Gap by {what}, {best} less {worst}: {with_interval(gap['auc'], signed=True)}{shared}."


def _ranks(one: dict) -> Iterator[str]:
    kinds = {"ranking": "with one diagnosis", "ranking_unseen": "whose one diagnosis no training case has"}
    for key, what in kinds.items():
        ranks = one[key]
        if ranks["cases"]:
            top1, top10 = percent_interval(ranks["top1"]), percent_interval(ranks["top10"])
            yield (
                f"Of {plural(ranks['cases'], 'case')} {what}, it is named first in {top1} and among the first ten in "
                f"{top10}; median rank {ranks['median_rank']['value']:.0f} of {one['bands']['all']['disorders']:,}."
            )
    if left_out := one["about"].get("left_out"):
        yield f"{plural(left_out, 'case')} could not be read, and were left out."


def _results(one: dict, learned: Mapping) -> list[EvalResult]:
    """For the model-index: each band."""
    about = one["about"]
    own = about.get("trained_on") == one["data"] and bool(learned.get("title"))
    within = f", within {one['within']}" if one["within"] else ""
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Diagnosis of cases",
            dataset_type=learned["source"] if own else "other",
            dataset_name=learned["title"] if own else about.get("dataset") or "unknown",
            dataset_split=one["split"],
            dataset_args={"fingerprint": one["data"]},
            metric_type=hub,
            metric_name=f"{said}, {'all disorders' if band == 'all' else band}{within}",
            metric_value=round(found["value"], 4),
            metric_args={"low": round(found["low"], 4), "high": round(found["high"], 4), "interval": 0.95},
        )
        for metric, (hub, said) in _hub_metrics(one).items()
        for band, found in one["macro"].get(metric, {}).items()
        if found is not None
    ]


def _hub_metrics(one: dict) -> dict[str, tuple[str, str]]:
    """Key of a metric -> its name on the Hub, and in the model-index; of those that the Hub knows."""
    return {
        key: (metric["hub_name"], f"Macro {metric['name']}")
        for key, metric in _metrics(one).items()
        if metric["hub_name"]
    }


def _metrics(one: dict) -> dict[str, dict]:
    """Key -> name and other properties of a metric; evaluations that do not describe their metrics have keys alone."""
    return one.get("metrics") or {key: {"name": key, "hub_name": None, "in_card": True} for key in one["macro"]}


def _never_shown(facts: Facts, modalities: Sequence[str], synthetic: bool, run: dict) -> Iterator[str]:
    learned, config = facts.learned or {}, facts.config
    if synthetic:
        yield "**A patient.** All its cases were drawn by a program."
    if seen := learned.get("modalities"):
        missing = [name for name in modalities if name not in seen]
        yield f"Modalities: {', '.join(missing)}." if missing else "Modalities: of those it knows, it has seen all."
    else:
        yield "Modalities: not recorded."
    parts = [part for part in learned.get("body_parts", ()) if part != "not stated"]
    yield f"Any part of the body but {enumeration(parts)}." if parts else "Parts of the body: not recorded."
    for what, key, groups in (
        ("Ages", "ages", ("0 to 17", "18 to 39", "40 to 64", "65 and more")),
        ("Sexes", "sexes", ("F", "M")),
    ):
        stated = {group for group in learned.get(key, ()) if group != "not stated"}
        missing = [group for group in groups if group not in stated]
        if not stated:
            yield f"{what}: not stated of any patient." if key in learned else f"{what}: not recorded."
        elif missing:
            yield f"{what}: no patient known to be {' or '.join(missing)}."
    if withheld := run["data"].get("withheld"):
        yield f"Disorders withheld on purpose: {', '.join(map(markdown_cell, withheld))}."
    if HEADS[config["head"]].reads_text:
        yield f"Any disorder but the {len(config['disorders']):,} of its list: others are scored by name alone."
    if not config["use_history"]:
        yield "A clinical history: it looks at pictures alone."


def _starts(found: dict, run: dict, config: dict) -> Iterator[str]:
    """What a model started from, in words; each with what its own recipe said."""
    named = {"model": run["model"].get("checkpoint"), **{key: run["model"].get(key) for key in tuple(_STARTS)[1:]}}
    starts = {key: {"name": name} for key, name in named.items() if name} | found
    for key, one in starts.items():
        line = f"{_STARTS.get(key, key)} `{markdown_cell(one['name'])}`"
        if "icd10cm" in one:
            names = [f"ICD-10-CM ({one['icd10cm']})", *(known["name"] for known in one.get("ontologies", ()))]
            taught = enumeration([markdown_cell(name) for name in names])
            yield f"{line}, which is {markdown_cell(one.get('base', 'all-MiniLM-L6-v2'))} taught {taught}"
        elif data := one.get("data"):
            licence = markdown_cell(data.get("licence") or "licence unknown")
            yield f"{line}, which learned from {markdown_cell(data.get('title') or data['source'])} ({licence})"
        else:
            yield f"{line}; what that learned from is not recorded here"
    if run["model"] and "model" not in starts:
        if "text_encoder" not in starts and HEADS[config["head"]].reads_text:
            yield "text encoder all-MiniLM-L6-v2 (Apache-2.0), as published"
        if "tower_weights" not in starts:
            yield "slice encoder: random weights"


def _method(recipe: dict, run: dict, config: dict) -> Iterator[str]:
    if not recipe:
        return
    if "method" in recipe:
        share = recipe.get("interpolation", {}).get("share")
        mixed = "" if share is None else f"; share of the new weights in the mixture {share:g}"
        yield f"Fine-tuned by method {recipe['method']}{mixed}"
    if "steps" in recipe:
        frozen = "; the slice encoder's tower did not learn" if run["model"].get("frozen") == "tower" else ""
        yield f"{recipe['steps']:,} steps, of which step {recipe['step']:,} validated best{frozen}"
    details = {
        "head": config["head"],
        "level": "case" if config["case_config"]["num_hidden_layers"] else "scan",
        "loss": run.get("objectives", {}).get("loss", {}).get("name", HEADS[config["head"]].default_loss),
        "slices of a step": run["sampling"].get("slices_per_step"),
        "learning rate": run["training"].get("learning_rate"),
        "seed": run.get("seed"),
    }
    yield "; ".join(f"{what} {markdown_cell(value)}" for what, value in details.items() if value is not None)
    if versions := recipe.get("versions"):
        yield ", ".join(f"{name} {version}" for name, version in versions.items())
    yield f"The whole recipe is in `{FINETUNE_RECIPE if 'key' in recipe else DIAGNOSIS_RECIPE}`"


def _anatomy(evaluations: Sequence[dict]) -> str:
    """A sentence that sets the AUC within a part of the body beside that over all; "" where none was measured."""
    of = {one["within"]: one for one in reversed(evaluations)}
    if None not in of:
        return ""
    overall = with_interval(of[None]["macro"]["auc"]["all"])
    if "body part" in of:
        within = with_interval(of["body part"]["macro"]["auc"]["all"])
        return f"Over all cases it is {overall}, and from cases of the same part of the body {within}."
    parts = of[None]["subgroups"].get("body part", {}).get("groups", {})
    found = sorted((row["auc"]["value"], part) for part, row in parts.items() if row["auc"])
    if not found:
        return "How it does within a part of the body was not measured."
    (low, worst), (high, best) = found[0], found[-1]
    ends = f"{low:.3f} ({markdown_cell(worst)}) to {high:.3f} ({markdown_cell(best)})"
    return f"Over all cases it is {overall}, and within parts of the body {ends}."


def _validated(recipe: dict) -> str:
    cases = recipe.get("cases", {}).get("validation")
    return f"Its best step was chosen on {plural(cases, 'other case')} of the data set." if cases else ""


def _layers(config: dict) -> str:
    counts = [config[part]["num_hidden_layers"] for part in ("scan_config", "case_config")]
    over = zip(counts, ("the slices of a scan", "the scans of a case"), strict=True)
    said = [f"{plural(n, 'layer')} over {what}" if n else f"mean over {what}" for n, what in over]
    return f"{'; '.join(said)}; {config['hidden_size']} wide"
