"""The section of a diagnosis card about calibration, thresholds, prediction sets and OOD detection."""

from collections.abc import Iterator
from typing import Any

from radfm.presentation import enumeration, plural, with_interval
from radfm.publishing.card import Facts

_CALIBRATION = {
    "ece": "calibration error (ECE)",
    "ece_first": "ECE of first ranks",
    "brier": "Brier score",
    "log_loss": "log loss",
}


def calibration_cases(facts: Facts) -> str:
    """On what the scores were calibrated."""
    record = facts.confidence
    if not record:
        cases = facts.recipe.get("cases", {}).get("validation")
        return (
            f"{plural(cases, 'validation case')} of the data set that it learned from"
            if cases
            else "cases not recorded"
        )
    own = record["data"] == (facts.learned or {}).get("fingerprint")
    of = "the data set that it learned from" if own else f"another data set (fingerprint `{record['data']}`)"
    disorders = record["disorders"]
    return (
        f"{plural(record['cases'], 'validation case')} of {of}, for {disorders['calibrated']:,} of "
        f"{disorders['vocabulary']:,} disorders"
    )


def calibration_tables(facts: Facts) -> Iterator[dict[str, Any]]:
    """Tables of before and after, each with where it was measured."""
    found = []
    if record := facts.confidence:
        found.append(("validation, each patient by the fit to the others", record["before"], record["after"]))
    for one in facts.evaluations:
        both = one["calibration"] or {}
        if both.get("how") == "saved" and not one["within"]:
            found.append((f"split {one['split']}, {plural(one['cases'], 'case')}", both["before"], both["after"]))
    for where, before, after in found:
        rows = [
            {"what": what, "before": with_interval(before[name], 4), "after": with_interval(after[name], 4)}
            for name, what in _CALIBRATION.items()
        ]
        yield {"where": where, "rows": rows}


def confidence_sentences(facts: Facts) -> Iterator[str]:
    """Thresholds, prediction sets, and whether it knows what is strange to it."""
    config, record = facts.config, facts.confidence
    chosen = sum(value is not None for value in config.get("thresholds") or ())
    if chosen:
        own = record.get("thresholds_of_their_own", facts.recipe.get("thresholds_of_their_own"))
        shared = "" if own is None else f", {own:,} of their own, the others in common"
        yield f"Thresholds: {chosen:,} of {len(config['disorders']):,} disorders have one{shared}."
    else:
        yield "Thresholds: none."
    if sets := config.get("prediction_sets"):
        promise = {
            "all": f"all disorders of a case in {sets['coverage']:.0%} of cases",
            "share": f"{sets['coverage']:.0%} of a case's disorders on average",
        }[sets["guarantee"]]
        yield (
            f"Prediction sets: they contain {promise}, fitted to {plural(sets['patients'], 'patient')}. The guarantee "
            "holds for patients like those only."
        )
    if reference := record.get("reference"):
        scans, cases = plural(reference["training_scans"], "scan"), plural(reference["training_cases"], "training case")
        yield (
            f"Out-of-distribution cases are detected by their distance from {scans} of {cases}, and by modalities "
            f"other than {enumeration(reference['modalities'])}."
        )
    else:
        yield "It does not detect out-of-distribution cases."
