"""One YAML file per experiment, and what every stage of training asks of transformers' Trainer.

Decisions:
- A file fills a dataclass, so that each key is documented where it is declared; what it does not say has a default.
- Every argument of the Trainer stands under `training`, by its own name. radfm has no second name for any of them.
- What is misspelled or stands twice is refused: a key that does nothing would go unnoticed for days.
- The files of `train/configs/` come with radfm, and are found by name: text.yaml, or train/configs/text.yaml as in a
  clone. A file of the user's own goes first.
- Values are those of YAML 1.2: 1e-3 is a number, and no is a word, as in eval_strategy=no. PyYAML alone would read a
  text and a boolean.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from radfm.cli.console import one_line
from radfm.cli.memory import keep_freed_memory

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would look for another, and warn that there is none


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise yaml.YAMLError(f"{name} stands twice, in line {seen[name]} and in line {line}")
            seen[name] = line
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)

_CONFIGS = Path(__file__).parent / "configs"

Config = TypeVar("Config")
Arguments = TypeVar("Arguments", bound=TrainingArguments)


def read_config(kind: type[Config], path: str | Path, changes: Sequence[str] = ()) -> Config:
    """A YAML file, with changes such as "held_out=0" or "training.max_steps=10", whose values are YAML too.

    Args:
        kind: the dataclass that it fills.
        path: the file, or the name of one that comes with radfm, such as text.yaml.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no YAML mapping, or holds a key twice or one that there is not.
    """
    if not (path := _own_or_radfms(path)).exists():
        names = ", ".join(sorted(file.name for file in _CONFIGS.glob("*.yaml")))
        raise FileNotFoundError(f"{path}: no such file; radfm comes with {names}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no keys and values, but {type(content).__name__}")
    return filled(kind, changed(content, changes), str(path))


def _own_or_radfms(path: str | Path) -> Path:
    """The file itself; where there is none, the one of radfm's with that name."""
    path = Path(path)
    by_name = path.parent in (Path(), Path("train/configs"))
    shipped = of_radfm(path.name)
    return shipped if by_name and shipped.is_file() and not path.exists() else path


def of_radfm(name: str) -> Path:
    """The config of this name that comes with radfm."""
    return _CONFIGS / name


def changed(content: dict, changes: Sequence[str]) -> dict:
    """The content with changes such as "training.max_steps=10" in it. Raises: ValueError for one that is none."""
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"{change!r} is no change of a config: write key=value")
        *groups, key = name.split(".")
        place = content
        for group in groups:
            if place.get(group) is None:
                place[group] = {}
            place = place[group]
            if not isinstance(place, dict):
                raise ValueError(f"{change!r}: {group} is a value, not a group of keys")
        place[key] = yaml.load(value, _Loader)
    return content


def filled(kind: type[Config], content: dict, where: str) -> Config:
    """The dataclass with these keys. Raises: ValueError for a key that it does not have."""
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(content) - known):
        raise ValueError(f"{where}: no such key: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return kind(**content)


def trainer_arguments(kind: type[Arguments], given: dict[str, Any], **defaults: Any) -> Arguments:
    """The Trainer's arguments: `given`, else `defaults`, else what suits the machine.

    Raises:
        ValueError: There is no such argument.
    """
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"training: transformers' TrainingArguments have no {', '.join(unknown)}")
    if isinstance(deepspeed := given.get("deepspeed"), str):
        given = given | {"deepspeed": str(_own_or_radfms(deepspeed))}
    several, on_cpu = int(os.environ.get("WORLD_SIZE", 1)) > 1, not torch.cuda.is_available()
    machine = {
        "use_cpu": on_cpu,
        "ddp_backend": "gloo" if several and on_cpu else None,
        "report_to": ["tensorboard"],
        "optim": "adamw_torch_fused",  # the same in a fifth of the time, on CPUs, too
    }
    return kind(**machine | defaults | given)


def state_at_the_end(checkpoint: str | Path, arguments: TrainingArguments) -> TrainerState | None:
    """The Trainer's state in a checkpoint with which its training ends; None: there is more to learn.

    Of such a checkpoint the Trainer is not to go on: it asks after each step whether that was the last, not before,
    and forgets that it had stopped early.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    stopped = state.stateful_callbacks.get("TrainerControl", {}).get("args", {}).get("should_training_stop", False)
    if arguments.max_steps > 0:
        learned = state.global_step >= arguments.max_steps
    else:
        learned = (state.epoch or 0) >= arguments.num_train_epochs
    return state if learned or (stopped and state.global_step < state.max_steps) else None


def without_folders(value: Any) -> Any:
    """The config with the last part of every path in it: where things lay is nobody's business."""
    if isinstance(value, dict):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and "/" in value else value


def run_module(work: Callable[[list[str]], Any], usage: str) -> None:
    """For `python -m`, and so for torchrun and DeepSpeed's launcher: what is wrong ends in one line, as in `radfm`.

    Args:
        work: gets the arguments of the command line.
        usage: what they are.
    """
    given = [each for each in sys.argv[1:] if not each.startswith("--local_rank=")]  # which DeepSpeed's launcher adds
    try:
        if not given:
            raise ValueError(f"nothing was given; usage: {usage}")
        keep_freed_memory()
        work(given)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # NCCL complains of one that is open at exit
    except (ValueError, OSError) as error:
        sys.exit(f"radfm: {one_line(error)}")
