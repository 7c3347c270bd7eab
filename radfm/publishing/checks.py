"""What must not leave the house with a checkpoint: pickles, a training's state, paths, and what tells of a patient.

Decisions:
- A folder is looked at twice: before, for what should not lie beside a model at all; and the one to be published, file
  by file, whatever put it there.
- A pickle is known by its first bytes, too, whatever it is called: loading one can run any code.
- Names of people cannot be known from other names. What can be is refused: fields that DICOM or radfm call a patient's,
  names as DICOM writes them, UIDs, pseudonyms, record numbers. The message says where, and does not repeat it.
- The word lists of a tokenizer are not searched: every short word is in them.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill")
_STATES = re.compile(r"(optimizer|scheduler|rng_state|scaler|trainer_state|zero_to_fp32|mp_rank_|.*_optim_states)")

_PATH = re.compile(
    r"""(?<![\w.:/>~-])/(?:[\w.@+-]+/)+[\w.@+-]+   # /home/me/data
      | (?<![\w.:/])/(?:home|root|tmp|mnt|Users|var|media|scratch|workspace)/[\w.@+-]+
      | (?<![\w.:/>~<-])/(?:data\d*|datasets?|pacs|dicom|archive|storage|export|share[ds]?|projects?|scratch|work
          |workspace|home|root|mnt|nas|nfs|opt|srv|tmp)\b(?![\w/])
      | (?<!\w)[A-Za-z]:[\\/](?![\\/])[\w.@+-]+    # C:\data
      | (?<!\\)\\\\[\w.-]+\\[\w$.-]+                # \\server\share
      | (?<![\w~])~(?:[a-z][\w.-]*)?/[\w.@+-]+
      | \bfile://\S+""",
    re.VERBOSE,
)
_TELLING = {
    "a person's name as DICOM writes it": r"[^\W\d_][\w'-]+\^[^\W\d_]\w",
    "a UID of DICOM": r"(?<![\d.])(?:2\.25\.\d{10,}|[012](?:\.\d+){5,}(?<=[\d.]{18}))(?![\d.])",
    "a pseudonym": r"(?<![\w-])(?:[cdf]-)?(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{16}(?![\w-])",
    "a number of a record": r"(?i)\b(?:MRN|medical record|patient(?:'s)?[ _-]?(?:id|number|no)|accession)\b[^\w\n]*"
    r"(?:number|no|id)?[^\w\n]*[a-z]{0,3}\d{4,}|\bpatient[ :#]+\d{5,}",
    "a date of birth": r"(?i)\b(?:born|dob|birth[ _-]?(?:date|day)|date of birth)\b[^\d\n]{0,10}"
    r"(?:\d{1,4}[-./]\d{1,2}[-./]\d{1,4}|\d{8}\b)",
    "a social security number": r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])",
    "an address of e-mail": r"[\w.+-]+@[\w-]+\.[a-z]{2,}",
}
_FIELDS = re.compile(
    r"(?i)(patients?_?(id|ids|name|names|birth.*|address|mother.*|telephone.*|key)|other_?patient.*|case_?ids?|mrn|ssn|dob"
    r"|patient|(patient_?)?birth_?(date|day|time|year)|date_of_birth|accession_?number"
    r"|(issuer_of_)?patient_?id|referring_?physician.*|institution_?name|salt"
    r"|pseudonyms?(_key)?|(study|series|sop)_?instance_?uid)"
)
_WORD_LISTS = ("vocab.json", "vocab.txt", "merges.txt")  # of tokenizers


def refuse_unsafe(folder: Path) -> list[str]:
    """Checks the folder of a checkpoint before anything is taken from it.

    Returns:
        The folders in it that hold no part of a model, such as those of a training's checkpoints.
    Raises:
        ValueError: It is a training's own checkpoint, or a pickle or the state of a training lies beside the model.
    """
    states = sorted(file.name for file in folder.iterdir() if file.is_file() and _STATES.match(file.name))
    if states:
        raise ValueError(
            f"{folder / states[0]} is the state of a training, which no model needs: publish the folder above, where "
            "training saves its result, or delete it"
        )
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        refuse_pickle(file)
    return sorted(f"{path.name}/" for path in folder.iterdir() if path.is_dir())


def refuse_pickle(file: Path) -> None:
    """Raises: ValueError: the file is one, by its name or its first bytes."""
    if file.suffix.lower() in _PICKLES or _is_pickle(file):
        weights = file.stem.startswith(("pytorch_model", "model", "adapter_model"))
        remedy = (
            "save the weights as safetensors (model.save_pretrained does), and delete it" if weights else "delete it"
        )
        raise ValueError(f"{file} is a pickle, which can run any code on the machine that loads it: {remedy}")


def refuse_what_tells(folder: Path, names: dict[str, str] | None = None) -> None:
    """Checks every file of a folder that is to be published.

    Args:
        names: file -> where its words come from, for the message; else its name.
    Raises:
        ValueError: A file holds an absolute path or tells of a patient, or is no part of a checkpoint.
    """
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        refuse_pickle(file)
        name = file.relative_to(folder).as_posix()
        for place, text, is_field in _texts(file):
            where = f"{(names or {}).get(name, name)}{f', {place}' if place else ''}"
            if is_field and _FIELDS.fullmatch(text):
                raise ValueError(f"{where} is a field that tells of a patient: take it out, and publish again")
            if path := _PATH.search(text):
                raise ValueError(
                    f"{where} holds a path of a machine, {path.group().strip()!r}: take it out, and publish again"
                )
            for what, pattern in _TELLING.items():
                if "e-mail" in what and file.suffix == ".md":  # how to reach the authors
                    continue
                if re.search(pattern, text):
                    raise ValueError(f"{where} holds {what}: take out what could tell of a patient, and publish again")


def read_json(file: Path) -> Any:
    """Raises: ValueError: it is no JSON; FileNotFoundError."""
    refuse_pickle(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}): save the checkpoint again") from error


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def metadata(file: Path) -> dict[str, str]:
    """What the header of a file of safetensors says. Raises: ValueError: it is none, or damaged."""
    from safetensors import SafetensorError, safe_open

    refuse_pickle(file)
    try:
        with safe_open(file, "pt") as content:
            return content.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no file of safetensors, or is damaged: save the checkpoint again") from error


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as content:
        start = content.read(9)
    is_safetensors = start[5:] == b"\0\0\0{"  # whose length of the header may begin like a pickle
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and not is_safetensors:
        return True
    if start[:2] == b"PK" and zipfile.is_zipfile(file):  # torch.save
        with zipfile.ZipFile(file) as content:
            return any(name.endswith(".pkl") for name in content.namelist())
    return False


def _texts(file: Path) -> Iterator[tuple[str, str, bool]]:
    """(where, text, whether it is the name of a field) of all that a file says.

    Raises:
        ValueError: It is of no kind that a checkpoint has.
    """
    if file.name in _WORD_LISTS or file.suffix == ".model":
        return
    if file.suffix == ".json":
        content = read_json(file)
        if file.name == "tokenizer.json":
            content = {key: value for key, value in content.items() if key != "model"}
        yield from _strings(content)
    elif file.suffix == ".safetensors":
        for key, value in metadata(file).items():
            try:
                yield from _strings(json.loads(value), key)
            except ValueError:
                yield key, value, False
    elif file.suffix in (".md", ".txt", ".jinja"):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            yield f"line {number}", line, False
    elif file.suffix != ".py":  # which is radfm's own
        raise ValueError(f"{file} is no part of a checkpoint")


def _strings(value: Any, place: str = "") -> Iterator[tuple[str, str, bool]]:
    """Of all strings within, and of the names of fields that hold something."""
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{place}.{key}".lstrip(".")
            yield here, key, inner not in (None, "", [], {})
            yield from _strings(inner, here)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _strings(inner, f"{place}[{number}]")
    elif isinstance(value, str):
        yield place, value, False
