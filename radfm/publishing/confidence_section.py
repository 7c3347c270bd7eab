"""The section of a diagnosis card about calibration, thresholds, prediction sets and OOD detection."""

from collections.abc import Iterator
from typing import Any

from radfm.presentation import enumeration, plural, with_interval
from radfm.publishing.card import Facts

_CALIBRATION = {
    "ece": "calibration error (ECE)",
    "ece_first": "ECE of top-ranked disorders",
    "brier": "Brier score",
    "log_loss": "log loss",
}


def calibration_cases(facts: Facts) -> str:
    """The cases that the calibration was fitted to."""
    record = facts.confidence
    if not record:
        cases = facts.recipe.get("cases", {}).get("validation")
        return f"{plural(cases, 'validation case')} of the training data set" if cases else "cases not recorded"
    own_data = record["data"] == (facts.training_data or {}).get("fingerprint")
    data = "the training data set" if own_data else f"another data set (fingerprint `{record['data']}`)"
    disorders = record["disorders"]
    return (
        f"{plural(record['cases'], 'validation case')} of {data}, for {disorders['calibrated']:,} of "
        f"{disorders['vocabulary']:,} disorders"
    )


def calibration_tables(facts: Facts) -> Iterator[dict[str, Any]]:
    """Figures before and after calibration, a table for each set of cases."""
    measured = []
    if record := facts.confidence:
        measured.append(("validation, cross-validated by patient", record["before"], record["after"]))
    for evaluation in facts.evaluations:
        calibration = evaluation["calibration"] or {}
        if calibration.get("how") == "saved" and not evaluation["within"]:
            title = f"split {evaluation['split']}, {plural(evaluation['cases'], 'case')}"
            measured.append((title, calibration["before"], calibration["after"]))
    for title, before, after in measured:
        rows = [
            {"name": name, "before": with_interval(before[key], 4), "after": with_interval(after[key], 4)}
            for key, name in _CALIBRATION.items()
        ]
        yield {"title": title, "rows": rows}


def confidence_sentences(facts: Facts) -> Iterator[str]:
    """Sentences on thresholds, prediction sets and OOD detection."""
    config, record = facts.config, facts.confidence
    chosen = sum(value is not None for value in config.get("thresholds") or ())
    if chosen:
        own = record.get("thresholds_of_their_own", facts.recipe.get("thresholds_of_their_own"))
        shared = "" if own is None else f", {own:,} their own and the others a common one"
        yield f"Thresholds: {chosen:,} of {len(config['disorders']):,} disorders have one{shared}."
    else:
        yield "Thresholds: none."
    if sets := config.get("prediction_sets"):
        guarantee = {
            "all": f"all disorders of a case in {sets['coverage']:.0%} of cases",
            "share": f"{sets['coverage']:.0%} of a case's disorders on average",
        }[sets["guarantee"]]
        yield (
            f"Prediction sets: they contain {guarantee}, fitted to {plural(sets['patients'], 'patient')}. The "
            "guarantee holds only for patients from the same distribution."
        )
    if reference := record.get("reference"):
        scans, cases = plural(reference["training_scans"], "scan"), plural(reference["training_cases"], "training case")
        yield (
            f"Out-of-distribution cases are detected by their distance from {scans} of {cases}, and by modalities "
            f"other than {enumeration(reference['modalities'])}."
        )
    else:
        yield "Out-of-distribution cases are not detected."
