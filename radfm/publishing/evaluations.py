"""Reads the evaluations that are published with a checkpoint, and checks that they are of its weights.

Decisions:
- An evaluation is accepted only if it names the fingerprint of these weights.
- Of the cases that were left out, the number is published, without their names and reasons.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radfm.configuration_radfm import VocabularyIndex
from radfm.publishing.checks import read_json

EVALUATION, TRANSFER = "evaluation.json", "transfer.json"
_OF_SHARING = ("samples", "training", "held_out", "held_out_split", "quantile", "autoencoder", "spaces", "membership")
_OF_EVALUATION = ("data", "split", "level", "only", "within", "least", "cases", "patients", "bootstraps", "bands")
_OF_MODEL = ("macro", "ranking", "ranking_unseen", "subgroups", "disorders")


def read_evaluation(path: Path, sha256: str, is_text: bool) -> dict[str, Any]:
    """The part of an evaluation that is published with these weights.

    Args:
        path: folder of `radfm evaluate --out`, or a JSON file.
        sha256: fingerprint of the weights.
        is_text: whether they are those of a text encoder.
    Raises:
        ValueError: the evaluation is of other weights, or the file is not an evaluation.
        FileNotFoundError: there is no such file.
    """
    file = path / "metrics.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such evaluation; radfm evaluate DATA --model DIR --out {path} makes one")
    evaluation = read_json(file)
    try:
        if is_text:
            return _of_text_encoder(evaluation, sha256)
        calibration = file.with_name("calibration.json")
        return _of_model(evaluation, read_json(calibration) if calibration.is_file() else {}, sha256)
    except (KeyError, TypeError, AttributeError) as error:
        kind = "radfm evaluate text --json" if is_text else "radfm evaluate DATA --out"
        raise ValueError(
            f"{file} is not an evaluation that this version of radfm reads: make one with {kind}"
        ) from error
    except _OtherWeights as error:
        raise ValueError(f"{file} {error}") from error


def read_sharing(path: Path, generator: str) -> dict[str, Any]:
    """What `radfm evaluate sharing` measured with samples of a generator.

    Args:
        path: folder of `radfm evaluate sharing --out`, or its sharing.json.
        generator: fingerprint of the generator.
    Raises:
        ValueError: it was measured with samples of another generator, or the file is not of this command.
        FileNotFoundError: there is no such file.
    """
    file = path / "sharing.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such evaluation; radfm evaluate sharing --out {path} makes one")
    evaluation = read_json(file)
    if not isinstance(evaluation, dict) or any(key not in evaluation for key in _OF_SHARING):
        raise ValueError(f"{file} is not what this version of radfm evaluate sharing writes: run it again")
    if evaluation.get("generator") != generator:
        raise ValueError(
            f"{file} was made with samples of generator {evaluation.get('generator')}, not {generator}: run radfm "
            "evaluate sharing with samples of this one"
        )
    return {key: evaluation[key] for key in _OF_SHARING} | {"weights": generator}


def published_evaluations(folder: Path, sha256: str) -> list[dict[str, Any]]:
    """The evaluations beside weights that were published before; [] without any.

    Raises:
        ValueError: an evaluation is of other weights.
    """
    if not (file := folder / EVALUATION).is_file():
        return []
    evaluations = read_json(file)
    for evaluation in evaluations:
        _require_weights(file, evaluation, sha256)
    return evaluations


def published_transfer(folder: Path, sha256: str) -> dict[str, Any]:
    """What `radfm evaluate transfer` wrote beside the weights that it trained on all parts; {} without it.

    Raises:
        ValueError: it is of other weights.
    """
    if not (file := folder / TRANSFER).is_file():
        return {}
    transfer = read_json(file)
    _require_weights(file, transfer, sha256)
    return transfer


def _require_weights(file: Path, record: dict[str, Any], sha256: str) -> None:
    if record.get("weights") != sha256:
        made_with = str(record.get("weights"))[:12]
        raise ValueError(
            f"{file} was made with other weights ({made_with}, not {sha256[:12]}): evaluate this checkpoint, or "
            "delete the file"
        )


class _OtherWeights(Exception):
    pass


def _of_model(evaluation: dict, calibration: dict, sha256: str) -> dict[str, Any]:
    made_with = []
    for name, model in evaluation["models"].items():
        if len(model["tables"]) == 1 and model["tables"][0].get("checkpoint") == sha256:
            about = count_left_out(model["tables"][0])
            subgroups = {name: groups for name, groups in model["subgroups"].items() if name != "folder"}
            return {
                **{key: evaluation[key] for key in _OF_EVALUATION},
                "where": evaluation.get("where", []),
                "metrics": evaluation.get("metrics"),  # none in evaluations by radfm 0.1
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


def _of_text_encoder(evaluation: dict, sha256: str) -> dict[str, Any]:
    checkpoints = evaluation["checkpoints"]
    this = next((name for name, fingerprint in checkpoints.items() if fingerprint == sha256), None)
    if this is None:
        made_with = ", ".join(fingerprint[:12] for fingerprint in checkpoints.values()) or "none"
        raise _OtherWeights(
            f"was made with other weights ({made_with}, not {sha256[:12]}): evaluate this checkpoint, or leave "
            "--evaluation out"
        )
    published = {key: evaluation[key] for key in ("terms", "linked", "candidates", "ontology")}
    published["metrics"] = evaluation.get("metrics")  # none in evaluations by radfm 0.1
    for key in ("figures", "intervals"):
        encoders = evaluation.get(key, {})
        published[key] = {name: encoders[name] for name in ("TF-IDF", "all-MiniLM-L6-v2") if name in encoders}
        published[key]["this"] = encoders.get(this, {})  # under this key, because the name may be a path
    return published


def refuse_other_calibration(config: dict, evaluations: Sequence[dict], paths: Sequence[Path]) -> None:
    """Refuses evaluations whose thresholds differ from those of the checkpoint.

    Raises:
        ValueError: scores were measured before these weights were calibrated, or with another calibration.
    """
    vocabulary = VocabularyIndex(config["disorders"])
    for evaluation, path in zip(evaluations, paths, strict=True):
        names = [row["disorder"] for row in evaluation["disorders"]]
        if evaluation["level"] != "disorder" or any(name not in vocabulary for name in names):
            continue
        thresholds = config["thresholds"] or [None] * len(vocabulary)
        expected = [thresholds[vocabulary.row(name)] for name in names]
        evaluated = evaluation["about"].get("thresholds") or [None] * len(names)
        if len(evaluated) == len(expected) and evaluated != expected:
            raise ValueError(f"{path} was made before these weights were calibrated as they are: evaluate them again")


def count_left_out(value: Any) -> Any:
    """A copy of a JSON value in which `left_out` is the number of cases, without their names and reasons."""
    if isinstance(value, dict):
        return {
            key: len(inner) if key == "left_out" and isinstance(inner, dict) else count_left_out(inner)
            for key, inner in value.items()
        }
    return [count_left_out(inner) for inner in value] if isinstance(value, list) else value
