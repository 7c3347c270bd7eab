"""Checks of what must not be published with a checkpoint: pickles, states of a trainer, local paths, patient data.

Decisions:
- There are two checks: of the checkpoint's folder, for files that do not belong beside a model; and of every file of
  the folder to be published, wherever it comes from.
- A pickle is recognised by its first bytes as well as by its suffix, because loading one can run any code.
- An ordinary name cannot be recognised as a person's. Refused are fields that DICOM or radfm reserve for patients,
  names in DICOM's notation, UIDs, pseudonyms and record numbers. The message names the field, and not its value.
- Vocabulary files of a tokenizer are not searched, because they contain every short word.
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
_IDENTIFIERS = {
    "a person's name in DICOM's notation": r"[^\W\d_][\w'-]+\^[^\W\d_]\w",
    "a DICOM UID": r"(?<![\d.])(?:2\.25\.\d{10,}|[012](?:\.\d+){5,}(?<=[\d.]{18}))(?![\d.])",
    "a pseudonym": r"(?<![\w-])(?:[cdf]-)?(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{16}(?![\w-])",
    "a record number": r"(?i)\b(?:MRN|medical record|patient(?:'s)?[ _-]?(?:id|number|no)|accession)\b[^\w\n]*"
    r"(?:number|no|id)?[^\w\n]*[a-z]{0,3}\d{4,}|\bpatient[ :#]+\d{5,}",
    "a date of birth": r"(?i)\b(?:born|dob|birth[ _-]?(?:date|day)|date of birth)\b[^\d\n]{0,10}"
    r"(?:\d{1,4}[-./]\d{1,2}[-./]\d{1,4}|\d{8}\b)",
    "a social security number": r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])",
    "an e-mail address": r"[\w.+-]+@[\w-]+\.[a-z]{2,}",
}
_FIELDS = re.compile(
    r"(?i)(patients?_?(id|ids|name|names|birth.*|address|mother.*|telephone.*|key)|other_?patient.*|case_?ids?|mrn|ssn|dob"
    r"|patient|(patient_?)?birth_?(date|day|time|year)|date_of_birth|accession_?number"
    r"|(issuer_of_)?patient_?id|referring_?physician.*|institution_?name|salt"
    r"|pseudonyms?(_key)?|(study|series|sop)_?instance_?uid)"
)
_VOCABULARY_FILES = ("vocab.json", "vocab.txt", "merges.txt")  # of tokenizers


def refuse_unsafe(folder: Path) -> list[str]:
    """Checks the folder of a checkpoint before it is read.

    Returns:
        Its subfolders, such as the checkpoints of a training run.
    Raises:
        ValueError: the folder has a pickle, or the state of a trainer.
    """
    states = sorted(file.name for file in folder.iterdir() if file.is_file() and _STATES.match(file.name))
    if states:
        raise ValueError(
            f"{folder / states[0]} is the state of a trainer, which no model needs: publish the folder above, where "
            "training saves its result, or delete it"
        )
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        refuse_pickle(file)
    return sorted(f"{path.name}/" for path in folder.iterdir() if path.is_dir())


def refuse_pickle(file: Path) -> None:
    """Raises: ValueError: the file is a pickle, by its suffix or its first bytes."""
    if file.suffix.lower() in _PICKLES or _is_pickle(file):
        weights = file.stem.startswith(("pytorch_model", "model", "adapter_model"))
        remedy = (
            "save the weights as safetensors (model.save_pretrained does), and delete it" if weights else "delete it"
        )
        raise ValueError(f"{file} is a pickle, which can run any code when it is loaded: {remedy}")


def refuse_identifying(folder: Path, names: dict[str, str] | None = None) -> None:
    """Checks every file of a folder that is to be published.

    Args:
        names: name of a file -> how messages call it, where that differs.
    Raises:
        ValueError: a file contains a local path or identifies a patient, or does not belong to a checkpoint.
    """
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        refuse_pickle(file)
        name = file.relative_to(folder).as_posix()
        for key, text, is_field in _texts(file):
            location = f"{(names or {}).get(name, name)}{f', {key}' if key else ''}"
            if is_field and _FIELDS.fullmatch(text):
                raise ValueError(f"{location} is a field that identifies a patient: remove it and publish again")
            if path := _PATH.search(text):
                raise ValueError(
                    f"{location} contains a local path, {path.group().strip()!r}: remove it and publish again"
                )
            for kind, pattern in _IDENTIFIERS.items():
                if "e-mail" in kind and file.suffix == ".md":  # the contact of the authors
                    continue
                if re.search(pattern, text):
                    raise ValueError(
                        f"{location} contains {kind}: remove what could identify a patient and publish again"
                    )


def read_json(file: Path) -> Any:
    """Raises: ValueError: the file is not JSON; FileNotFoundError."""
    refuse_pickle(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): save the checkpoint again") from error


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def safetensors_metadata(file: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file.

    Raises:
        ValueError: it is not a safetensors file, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    refuse_pickle(file)
    try:
        with safe_open(file, "pt") as content:
            return content.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a safetensors file, or is damaged: save the checkpoint again") from error


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as content:
        start = content.read(9)
    is_safetensors = start[5:] == b"\0\0\0{"  # the length of its header can begin like a pickle
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and not is_safetensors:
        return True
    if start[:2] == b"PK" and zipfile.is_zipfile(file):  # torch.save
        with zipfile.ZipFile(file) as content:
            return any(name.endswith(".pkl") for name in content.namelist())
    return False


def _texts(file: Path) -> Iterator[tuple[str, str, bool]]:
    """All texts of a file: the key or line, the text, and whether it is the name of a field.

    Raises:
        ValueError: files of this kind do not belong to a checkpoint.
    """
    if file.name in _VOCABULARY_FILES or file.suffix == ".model":
        return
    if file.suffix == ".json":
        content = read_json(file)
        if file.name == "tokenizer.json":
            content = {key: value for key, value in content.items() if key != "model"}
        yield from _strings(content)
    elif file.suffix == ".safetensors":
        for key, value in safetensors_metadata(file).items():
            try:
                yield from _strings(json.loads(value), key)
            except ValueError:
                yield key, value, False
    elif file.suffix in (".md", ".txt", ".jinja"):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            yield f"line {number}", line, False
    elif file.suffix != ".py":  # the code of radfm
        raise ValueError(f"{file} does not belong to a checkpoint")


def _strings(value: Any, path: str = "") -> Iterator[tuple[str, str, bool]]:
    """As `_texts`, of all strings of a JSON value and of the names of its fields that are not empty."""
    if isinstance(value, dict):
        for key, inner in value.items():
            inner_path = f"{path}.{key}".lstrip(".")
            yield inner_path, key, inner not in (None, "", [], {})
            yield from _strings(inner, inner_path)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _strings(inner, f"{path}[{number}]")
    elif isinstance(value, str):
        yield path, value, False
