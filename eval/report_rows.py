"""All disorders of an evaluation for the script of its page, small enough for thousands of them.

Decisions:
- Metrics are whole thousandths; curves and quantiles are a byte each, a four hundredth of what an axis shows.
- What a script cannot do without stands here and nothing else: the rest is in the tables beside the page.
"""

import base64
import json
from collections.abc import Mapping, Sequence

import numpy as np

from radfm.eval.curves import FEW, RATES, Curves
from radfm.eval.distributions import GROUPS, QUANTILES
from radfm.eval.metrics import METRICS

METRIC_NAMES = dict(
    zip(METRICS, ("AUC", "AP", "F1", "MCC", "recall, FPR 1%", "recall, FPR 5%", "recall, FPR 10%"), strict=True)
)


def page_rows(result: dict, curves: Mapping[str, Curves], spread: Mapping[str, Sequence[dict]]) -> str:
    """JSON to stand within a script, which nothing in it can end.

    Args:
        result: of `radfm.eval.diagnosis.compare`.
        curves, spread: model -> its curves, and the `Distribution.summary` of its disorders.
    """
    text = json.dumps(_rows(result, curves, spread), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _rows(result: dict, curves: Mapping[str, Curves], spread: Mapping[str, Sequence[dict]]) -> dict:
    models, rows = result["models"], next(iter(result["models"].values()))["disorders"]
    of_models = [
        [_thousandths(row[metric]) for metric in METRICS]
        for number in range(len(rows))
        for row in [model["disorders"][number] for model in models.values()]
    ]
    each = len(models)
    return {
        "models": list(models),
        "metrics": list(METRIC_NAMES.values()),
        "least": result["least"],
        "rates": RATES[FEW].tolist(),
        "rows": [
            [row["disorder"], "; ".join(row["icd10cm"]), row["training_cases"], row["cases"],
             of_models[each * number : each * (number + 1)]]
            for number, row in enumerate(rows)
        ],
        "differences": {
            name: [_difference(row) for row in found["disorders"]] for name, found in result["differences"].items()
        },
        "curves": [_bytes(curve.disorders) for curve in curves.values()],
        "groups": list(GROUPS.values()),
        "spread": [_quantiles(found, [row["disorder"] for row in rows]) for found in spread.values()],
    }  # fmt: skip


def _thousandths(figure: dict | None) -> list[int] | None:
    return None if figure is None else [round(1000 * figure[end]) for end in ("value", "low", "high")]


def _difference(row: dict) -> list | None:
    found = _thousandths(row["auc"])
    return None if found is None else [*found, None if row.get("p_bh") is None else float(f"{row['p_bh']:.2g}")]


def _bytes(shares: np.ndarray) -> str:
    """Of [0, 1], base64 of a byte each; 255 is nan."""
    with np.errstate(invalid="ignore"):
        whole = np.where(np.isnan(shares), 255, np.round(254 * shares))
    return base64.b64encode(whole.astype(np.uint8).tobytes()).decode("ascii")


def _quantiles(found: Sequence[dict], names: Sequence[str]) -> dict | None:
    """Of each disorder the scores that are 0 and 1, the cases of each group, and the groups' quantiles as bytes."""
    if not found:
        return None
    by_name = {one["disorder"]: one for one in found}
    shares, ends, counts = np.full((len(names), len(GROUPS), len(QUANTILES)), np.nan), [], []
    for place, name in enumerate(names):
        groups = [by_name.get(name, {}).get(group) for group in GROUPS]
        counts.append([group["cases"] if group else 0 for group in groups])
        known = [group[at] for group in groups if group for at in QUANTILES]
        low, high = (min(known), max(known)) if known else (0.0, 0.0)
        ends.append([float(f"{low:.4g}"), float(f"{high:.4g}")])
        for row, group in enumerate(groups):
            if group:
                shares[place, row] = [(group[at] - low) / max(high - low, 1e-9) for at in QUANTILES]
    return {"ends": ends, "counts": counts, "bytes": _bytes(shares)}
