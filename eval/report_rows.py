"""All disorders of an evaluation as JSON for the script of its page, small enough for thousands of them.

Decisions:
- Metrics are whole thousandths. Curves and quantiles are one byte each, which is finer than a pixel of the page.
- Only what the script needs is here: the rest is in the tables beside the page.
"""

import base64
import json
from collections.abc import Mapping, Sequence

import numpy as np

from radfm.eval.curves import FEW, RATES, Curves
from radfm.eval.distributions import GROUPS, QUANTILES
from radfm.eval.figures import MODEL_COLOURS
from radfm.eval.metrics import METRICS
from radfm.knowledge import orphanet


def page_rows(result: dict, curves: Mapping[str, Curves], scores: Mapping[str, Sequence[dict]]) -> str:
    """JSON that can stand in a script element, because nothing in it can end the element.

    Args:
        result: of `radfm.eval.diagnosis.compare`.
        curves, scores: model -> its curves, and the `Distribution.summary` of its disorders.
    """
    text = json.dumps(_rows(result, curves, scores), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _rows(result: dict, curves: Mapping[str, Curves], scores: Mapping[str, Sequence[dict]]) -> dict:
    models, rows = result["models"], next(iter(result["models"].values()))["disorders"]
    of_models = [
        [_thousandths(row[metric]) for metric in METRICS]
        for number in range(len(rows))
        for row in [model["disorders"][number] for model in models.values()]
    ]
    count = len(models)
    return {
        "models": list(models),
        "metrics": [metric.name for metric in METRICS.values()],
        "colours": len(MODEL_COLOURS),
        "least": result["least"],
        "rates": RATES[FEW].tolist(),
        "rows": [
            [row["disorder"], "; ".join([*row["icd10cm"], *orphanet.codes(row["disorder"])]),
             row["training_cases"], row["cases"],
             of_models[count * number : count * (number + 1)]]
            for number, row in enumerate(rows)
        ],
        "differences": {
            name: [_difference(row) for row in difference["disorders"]]
            for name, difference in result["differences"].items()
        },
        "curves": [_bytes(curve.disorders) for curve in curves.values()],
        "groups": list(GROUPS.values()),
        "scores": [_quantiles(of_model, [row["disorder"] for row in rows]) for of_model in scores.values()],
    }  # fmt: skip


def _thousandths(figure: dict | None) -> list[int] | None:
    return None if figure is None else [round(1000 * figure[end]) for end in ("value", "low", "high")]


def _difference(row: dict) -> list | None:
    auc = _thousandths(row["auc"])
    return None if auc is None else [*auc, None if row.get("p_bh") is None else float(f"{row['p_bh']:.2g}")]


def _bytes(shares: np.ndarray) -> str:
    """Shares in [0, 1] as base64 of a byte each, in steps of 1/254; 255 is nan."""
    with np.errstate(invalid="ignore"):
        whole = np.where(np.isnan(shares), 255, np.round(254 * shares))
    return base64.b64encode(whole.astype(np.uint8).tobytes()).decode("ascii")


def _quantiles(summaries: Sequence[dict], names: Sequence[str]) -> dict | None:
    """The quantiles of each group of scores as bytes, between two scores that are the ends; and the cases of groups."""
    if not summaries:
        return None
    by_name = {one["disorder"]: one for one in summaries}
    shares, ends, counts = np.full((len(names), len(GROUPS), len(QUANTILES)), np.nan), [], []
    for position, name in enumerate(names):
        groups = [by_name.get(name, {}).get(group) for group in GROUPS]
        counts.append([group["cases"] if group else 0 for group in groups])
        known = [group[at] for group in groups if group for at in QUANTILES]
        low, high = (min(known), max(known)) if known else (0.0, 0.0)
        ends.append([float(f"{low:.4g}"), float(f"{high:.4g}")])
        for row, group in enumerate(groups):
            if group:
                shares[position, row] = [(group[at] - low) / max(high - low, 1e-9) for at in QUANTILES]
    return {"ends": ends, "counts": counts, "bytes": _bytes(shares)}
