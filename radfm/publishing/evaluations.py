"""The evaluations of a checkpoint that are published with it: read from files, and checked to be of these weights.

Decisions:
- An evaluation is taken only if it names the fingerprint of these weights. Cases that were left out are published as a
  number, without their names and reasons.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radfm.publishing.checks import read_json

EVALUATION = "evaluation.json"
_OF_EVALUATION = ("data", "split", "level", "only", "within", "least", "cases", "patients", "bootstraps", "bands")
_OF_MODEL = ("macro", "ranking", "ranking_unseen", "subgroups", "disorders")


def read_evaluation(path: Path, sha256: str, is_text: bool) -> dict[str, Any]:
    """What an evaluation says of these weights.

    Raises:
        ValueError: It is of other weights, or no evaluation.
        FileNotFoundError: There is none.
    """
    file = path / "metrics.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such evaluation; radfm evaluate DATA --model DIR --out {path} makes one")
    found = read_json(file)
    try:
        if is_text:
            return _of_text(found, sha256)
        calibration = file.with_name("calibration.json")
        return _of_model(found, read_json(calibration) if calibration.is_file() else {}, sha256)
    except (KeyError, TypeError, AttributeError) as error:
        kind = "radfm evaluate text --json" if is_text else "radfm evaluate DATA --out"
        raise ValueError(f"{file} is no evaluation that this radfm reads: make one with {kind}") from error
    except _OtherWeights as error:
        raise ValueError(f"{file} {error}") from error


def published_evaluations(folder: Path, sha256: str) -> list[dict[str, Any]]:
    """What lies beside weights that were published before. Raises: ValueError: it is of other weights."""
    if not (file := folder / EVALUATION).is_file():
        return []
    found = read_json(file)
    for one in found:
        if one.get("weights") != sha256:
            made_with = str(one.get("weights"))[:12]
            raise ValueError(
                f"{file} was made with other weights ({made_with}, not {sha256[:12]}): evaluate this checkpoint, or "
                "delete the file"
            )
    return found


class _OtherWeights(Exception):
    pass


def _of_model(found: dict, calibration: dict, sha256: str) -> dict[str, Any]:
    made_with = []
    for name, model in found["models"].items():
        if len(model["tables"]) == 1 and model["tables"][0].get("checkpoint") == sha256:
            about = count_left_out(model["tables"][0])
            subgroups = {what: groups for what, groups in model["subgroups"].items() if what != "folder"}
            return {
                **{key: found[key] for key in _OF_EVALUATION},
                "metrics": found.get("metrics"),  # none in evaluations by radfm 0.1
                "about": {key: value for key, value in about.items() if key not in ("model", "checkpoint")},
                **{key: model[key] for key in _OF_MODEL},
                "subgroups": subgroups,
                "calibration": calibration.get(name),
            }
        made_with += [str(table.get("checkpoint"))[:12] for table in model["tables"]]
    raise _OtherWeights(
        f"was made with other weights ({', '.join(made_with) or 'none'}, not {sha256[:12]}): evaluate this checkpoint, "
        "or leave --evaluation out"
    )


def _of_text(found: dict, sha256: str) -> dict[str, Any]:
    own = next((name for name, mine in found["checkpoints"].items() if mine == sha256), None)
    if own is None:
        made_with = ", ".join(mine[:12] for mine in found["checkpoints"].values()) or "none"
        raise _OtherWeights(
            f"was made with other weights ({made_with}, not {sha256[:12]}): evaluate this checkpoint, or leave "
            "--evaluation out"
        )
    kept = {key: found[key] for key in ("terms", "linked", "candidates", "ontology")}
    for key in ("figures", "intervals"):
        spaces = found.get(key, {})  # own's name may be a path
        kept[key] = {name: spaces[name] for name in ("TF-IDF", "all-MiniLM-L6-v2") if name in spaces}
        kept[key]["this"] = spaces.get(own, {})
    return kept


def refuse_other_calibration(config: dict, evaluations: Sequence[dict], paths: Sequence[Path]) -> None:
    """Raises: ValueError: scores were measured before these weights were calibrated, or calibrated otherwise."""
    rows = {name.casefold(): row for row, name in enumerate(config["disorders"])}
    for one, path in zip(evaluations, paths, strict=True):
        names = [row["disorder"].casefold() for row in one["disorders"]]
        if one["level"] != "disorder" or any(name not in rows for name in names):
            continue
        known = config["thresholds"] or [None] * len(rows)
        expected = [known[rows[name]] for name in names]
        found = one["about"].get("thresholds") or [None] * len(names)
        if len(found) == len(expected) and found != expected:
            raise ValueError(f"{path} was made before these weights were calibrated as they are: evaluate them again")


def count_left_out(value: Any) -> Any:
    """The same with the number of cases that were left out, in place of their names and reasons."""
    if isinstance(value, dict):
        return {
            key: len(inner) if key == "left_out" and isinstance(inner, dict) else count_left_out(inner)
            for key, inner in value.items()
        }
    return [count_left_out(inner) for inner in value] if isinstance(value, list) else value
