"""Real studies with free licences that come with radfm, each with what it shows.

    >>> from radfm import examples
    >>> examples.names()
    ['cardiomegaly', 'pneumonia', 'covid', 'knees', 'pituitary', 'lung', 'gallbladder', 'sarcoma']
    >>> case = examples.load("knees")
    >>> case.disorders
    ['Unilateral primary osteoarthritis of knee']
    >>> print(examples.about("gallbladder").licence)
    MIT

Decisions:
- A study is a folder of DICOM files, so that `read_case`, `radfm diagnose` and the page read it as any other study.
- The pictures are reduced copies, JPEG, and those of CT have no Hounsfield units. `radfm.examples.make` has put them
  into DICOM. Dates are invented; the days between them are true.
- All are from the validation part of openly licensed collections, never from the part that models are trained on.
- Who shows or passes on a study gives its `credit`, as its licence asks.
"""

import json
import shutil
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from radfm.cases import Case

__all__ = ["Example", "about", "folder", "load", "names", "write"]

HOME = Path(str(files("radfm.examples")))
README = "README.md"


@dataclass(frozen=True)
class Example:
    """What is known of an example study.

    Attributes:
        title: What it shows, one line.
        disorders: Name -> ICD-10-CM code, by its collection.
        scans: Of each file "file", "modality", "plane", "body_part", "day" and "picture", the file in the collection.
        collection, licence, attribution, url: Where it is from, what may be done with it, and whom to credit.
        age: In years; None where not stated.
        sex: "F" or "M"; None where not stated.
    """

    name: str
    title: str
    disorders: dict[str, str]
    scans: list[dict[str, Any]]
    collection: str
    licence: str
    attribution: str
    url: str
    age: int | None = None
    sex: str | None = None

    @property
    def credit(self) -> str:
        """Whom to credit, the licence and where it is found, in one line."""
        return f"{self.attribution}. {self.licence}, {self.url}"

    @property
    def modalities(self) -> list[str]:
        return list(dict.fromkeys(scan["modality"] for scan in self.scans))


def names() -> list[str]:
    """The names of the studies."""
    return list(_examples())


def about(name: str) -> Example:
    """What is known of a study. Raises: ValueError: there is no study of this name."""
    try:
        return _examples()[name]
    except KeyError:
        raise ValueError(f"no example study {name!r}: there are {', '.join(_examples())}") from None


def folder(name: str) -> Path:
    """The folder with the files of a study. Raises: ValueError: there is no study of this name."""
    return HOME / about(name).name


def load(name: str) -> Case:
    """A study as a case, with its true disorders. Raises: ValueError: there is no study of this name."""
    from radfm.readers.read_case import read_case

    return read_case(folder(name), disorders=about(name).disorders, case_id=name)


def write(target: Path) -> None:
    """Copies all studies into a folder, one folder each, with a README of what they show and whom to credit.

    Raises:
        FileExistsError: The folder holds a file or folder of one of these names.
    """
    taken = [name for name in (*names(), README) if (target / name).exists()]
    if taken:
        raise FileExistsError(f"{target} already holds {', '.join(taken)}: give another folder")
    target.mkdir(parents=True, exist_ok=True)
    for name in names():
        shutil.copytree(folder(name), target / name)
    (target / README).write_text(_readme(), encoding="utf-8")


@cache
def _examples() -> dict[str, Example]:
    table = json.loads((HOME / "examples.json").read_text(encoding="utf-8"))
    return {name: Example(name, **facts) for name, facts in table.items()}


def _readme() -> str:
    lines = [
        "# Example studies of radfm",
        "",
        "Research use only, not a medical device. Pictures put into DICOM by radfm.",
    ]
    for example in map(about, names()):
        disorders = "; ".join(f"{disorder} ({code})" for disorder, code in example.disorders.items())
        lines += ["", f"## {example.name}", "", f"{example.title}.", "", f"- shows: {disorders}"]
        lines += [f"- from: {example.collection}", f"- credit: {example.credit}"]
    return "\n".join(lines) + "\n"
