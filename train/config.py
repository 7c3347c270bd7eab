"""One YAML file per experiment, with changes from the command line, as a typed configuration.

Decisions:
- OmegaConf reads the file and the changes (`sampling.by_disorder=0.2`), and pydantic checks them against dataclasses,
  so each key is documented, with its type and default, where it is declared.
- A key that does not exist, a key given twice and a value of the wrong type are errors of one line, which names the
  key, its value and what is allowed. A key without an effect would go unnoticed for days.
- The arguments of transformers' `TrainingArguments` stand under `training`, by their own names and types.
- The files of `train/configs/` are part of the package and are found by name: text.yaml, or train/configs/text.yaml as
  in a clone. A file of the user with that name takes precedence.
- A data set is often all that is changed, so `data=PATH` is short for `data.path=PATH`.
"""

import difflib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, field, fields, is_dataclass
from enum import Enum
from functools import cache, partial
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, TypeVar, cast, dataclass_transform, get_args, get_type_hints

import pydantic
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter

_CONFIGS = Path(__file__).parent / "configs"
_ABBREVIATED = {"data": "path"}  # section -> the key that a plain value of the section stands for
_SHOULD = "Input should"
_MOST_KEYS = 20

Config = TypeVar("Config")

Share = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


@dataclass_transform(field_specifiers=(field,))
def section(kind: type[Config]) -> type[Config]:
    """Makes a class a typed dataclass that refuses unknown keys and does not convert values."""
    return pydantic.dataclasses.dataclass(config=ConfigDict(extra="forbid", strict=True))(kind)


def read_config(kind: type[Config], path: str | Path, changes: Sequence[str] = ()) -> Config:
    """Reads a YAML file, and changes such as "seed=1" or "training.max_steps=10", whose values are YAML too.

    Args:
        kind: the dataclass of the configuration, made by `section`.
        path: a file, or the name of one that is part of radfm, such as text.yaml.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a YAML mapping, a key is unknown or given twice, or a value is not allowed.
    """
    if not (path := own_or_packaged(path)).exists():
        names = ", ".join(sorted(file.name for file in _CONFIGS.glob("*.yaml")))
        raise FileNotFoundError(f"{path}: no such file; radfm comes with {names}")
    try:
        content = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, DictConfig):
        raise ValueError(f"{path} is not a YAML mapping of keys to values")
    return configured(kind, content, changes, str(path))


def configured(
    kind: type[Config], content: dict[str, Any] | DictConfig, changes: Sequence[str] = (), source: str = ""
) -> Config:
    """The configuration with these keys and changes; all other keys have the default of `kind`.

    Args:
        content: nested keys and values.
        changes: such as "training.max_steps=10".
        source: what an error message names, such as the file of `content`.

    Raises:
        ValueError: A key is unknown, or a value is not allowed.
    """
    given = OmegaConf.create(content) if isinstance(content, dict) else content
    for name, key in _ABBREVIATED.items():
        if isinstance(value := given.get(name), str):
            given[name] = {key: value}
    try:
        known = [field.name for field in fields(cast(Any, kind))]
        merged = OmegaConf.merge({key: _default(kind, key) for key in known}, given)
        for change in changes:
            name, value = _change(change)
            OmegaConf.update(merged, name, value, merge=False, force_add=True)
        values = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{source}: {' '.join(str(error).split())}".removeprefix(": ")) from error
    return typed(kind, values, source)


def typed(kind: type[Config], values: dict[str, Any], source: str = "") -> Config:
    """An instance of a dataclass or pydantic model. Raises: ValueError: of one line, for the first wrong value."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except pydantic.ValidationError as error:
        raise ValueError(f"{source}: {_first_problem(kind, error)}".removeprefix(": ")) from error


def one_of(choices: Collection[str]) -> AfterValidator:
    """For `Annotated[str, one_of(REGISTRY)]`: the value is a name in a registry."""

    def check(value: str) -> str:
        if value not in choices:
            raise ValueError(f"Input should be {', '.join(map(repr, choices))}")
        return value

    return AfterValidator(check)


def keywords_of(registry: dict[str, Callable]) -> AfterValidator:
    """For a dictionary with the `name` of an entry of a registry, and keyword arguments of that entry; or empty."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        arguments = dict(value)
        name = arguments.pop("name", None)
        if value and name not in registry:
            raise ValueError(f"{_SHOULD} have as name {', '.join(map(repr, registry))}")
        try:
            if name is not None:
                registry[name](**arguments)
        except TypeError as error:
            raise ValueError(f"{_SHOULD} hold arguments of {name}: {error}") from error
        return value

    return AfterValidator(check)


def arguments_of(kind: type, excluded: Collection[str] = ()) -> AfterValidator:
    """For a dictionary of some keyword arguments of a dataclass, checked by its annotations.

    Args:
        kind: transformers' `TrainingArguments` or a class derived from it.
        excluded: arguments that may not be given, since radfm has a key of its own for them.
    """
    return AfterValidator(partial(_checked_arguments, kind, frozenset(excluded)))


def own_or_packaged(path: str | Path) -> Path:
    """The file itself if there is one, else the file of that name in `train/configs/`."""
    path = Path(path)
    by_name = path.parent in (Path(), Path("train/configs"))
    packaged = packaged_config(path.name)
    return packaged if by_name and packaged.is_file() and not path.exists() else path


def packaged_config(name: str) -> Path:
    """The config of this name that is part of radfm."""
    return _CONFIGS / name


def without_folders(value: Any) -> Any:
    """A configuration in which each path is its last part: a recipe does not tell the folders of a machine."""
    if is_dataclass(value) and not isinstance(value, type):
        return without_folders(asdict(value))
    if isinstance(value, dict):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and "/" in value else value


def _default(kind: type, key: str) -> Any:
    value = getattr(kind(), key)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _change(change: str) -> tuple[str, Any]:
    """ "training.max_steps=10" -> ("training.max_steps", 10)."""
    name, equals, _ = change.partition("=")
    if not equals or not name:
        raise ValueError(f"{change!r} is not a change of a config: write key=value")
    try:
        value = OmegaConf.from_dotlist([f"value={change[len(name) + 1 :]}"]).value
    except yaml.YAMLError as error:
        raise ValueError(f"{change!r} is not a value in YAML: {' '.join(str(error).split())}") from error
    if isinstance(value, str) and name in _ABBREVIATED:
        name = f"{name}.{_ABBREVIATED[name]}"
    return name, value


def _first_problem(kind: type, error: pydantic.ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{'.'.join(path)}: no such key; {_alternatives(kind, path)}"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return f"{'.'.join(path)}={_shown(first['input'])}: {message}" if message.startswith(_SHOULD) else message
    members = [problem for problem in problems if problem["input"] == first["input"]]  # one of each type of a union
    if len(members) > 1:
        path = [part for part in path if all(part in map(str, problem["loc"]) for problem in members)]
    allowed = dict.fromkeys(problem["msg"].removeprefix(_SHOULD).removeprefix(" be ") for problem in members)
    return f"{'.'.join(path)}={_shown(first['input'])}: {_SHOULD} be {' or '.join(allowed)}"


def _alternatives(kind: type, path: list[str]) -> str:
    """The keys beside an unknown one or, where these are many, those with a similar name."""
    *parents, name = path
    for parent in parents:
        kind = get_type_hints(kind)[parent]
    is_model = issubclass(kind, pydantic.BaseModel)
    known = sorted(cast(Any, kind).model_fields if is_model else (f.name for f in fields(kind)))
    if len(known) <= _MOST_KEYS:
        return f"there are {', '.join(known)}"
    similar = difflib.get_close_matches(name, known)
    return f"similar keys are {', '.join(similar)}" if similar else f"see the documentation of {kind.__name__}"


def _checked_arguments(kind: type, excluded: frozenset[str], values: dict[str, Any]) -> dict[str, Any]:
    try:
        checked = typed(_arguments_model(kind, excluded), values)
    except ValueError as error:
        raise ValueError(f"training.{error}") from error
    words = {name: value for name, value in checked.model_dump(mode="json").items() if isinstance(value, str)}
    return {name: words.get(name, value) for name, value in values.items()}


@cache
def _arguments_model(kind: type, excluded: frozenset[str]) -> type[pydantic.BaseModel]:
    hints = get_type_hints(kind)
    arguments = {f.name: (_choices(hints[f.name]), None) for f in fields(kind) if f.init and f.name not in excluded}
    settings = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
    return pydantic.create_model(kind.__name__, __config__=settings, **arguments)  # type: ignore[call-overload]


def _choices(hint: Any) -> Any:
    """The type of an argument; where it is an enumeration or any text, the enumeration alone."""
    enumerations = [member for member in get_args(hint) if isinstance(member, type) and issubclass(member, Enum)]
    if len(enumerations) != 1 or isinstance(hint, GenericAlias):
        return hint
    off = {choice.value for choice in enumerations[0]} & {"no"}  # YAML 1.1, which OmegaConf reads, has no for false
    return Annotated[enumerations[0], BeforeValidator(lambda value: "no" if off and value is False else value)]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
