"""Keyed pseudonyms for patients, cases and files.

Decisions:
- A pseudonym is the first 16 hex digits of HMAC-SHA256, as in `read_case`. A patient has the same pseudonym in all data
  sets made with the same key, and without the key a pseudonym can be neither reversed nor guessed.
- The pseudonym of a file in a folder begins with that of the first folder of its path, so that the parts of a combined
  data set can be distinguished (`radfm evaluate --within folder`).
- Without a key, one is generated for the data set and deleted when it is finished, so that no link remains.
- Names that are no UTF-8 have pseudonyms like all others. Where names are kept, those are written with replacement
  characters and, so that they stay different, with the first digits of their hash.
- A table of links, which reverses the pseudonyms, is written on request, outside the data set.
"""

import csv
import hmac
import os
import secrets
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from radfm.presentation import shown

_LEAST_KEY = 16  # bytes
_MARKS = {"case": "c-", "file": "f-", "folder": "d-", "site": "s-", "scanner": "m-"}


def read_key(path: Path) -> bytes:
    """Reads a key.

    Raises:
        ValueError: the key is short enough to be guessed.
        FileNotFoundError: there is no such file.
    """
    key = Path(path).read_bytes().strip()
    if len(key) < _LEAST_KEY:
        made = "python -c 'import secrets; print(secrets.token_hex(32))'"
        raise ValueError(
            f"{path} holds {len(key)} characters, but a key needs at least {_LEAST_KEY}: create one with {made}"
        )
    return key


def generate_key() -> bytes:
    """A random key."""
    return secrets.token_hex(32).encode()


def kept_key(file: Path) -> bytes:
    """The key in a file of a run's work folder, generated if it is not there, so that a killed run can continue."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f"key.{os.getpid()}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as target:
            target.write(generate_key())
        with suppress(FileExistsError):  # the first of several machines wins
            os.link(draft, file)
        draft.unlink()
    return file.read_bytes()


class Pseudonyms:
    """Pseudonyms of one data set. `links` maps (kind, pseudonym) to the name. Without a key, names are kept."""

    def __init__(self, key: bytes | None):
        self.key = key
        self.links: dict[tuple[str, str], str] = {}  # (kind, pseudonym) -> name

    @property
    def hides(self) -> bool:
        return self.key is not None

    def of(self, kind: str, name: str) -> str:
        """The pseudonym of a name.

        Args:
            kind: "patient", "case", "accession", "site", "scanner", "folder" or "file" (a path with slashes).
        """
        if self.key is None:
            digest = sha256(_encoded(name)).hexdigest()[:6]
            return name if shown(name) == name else f"{shown(name)} ({digest})"
        # Patients are hashed as in `read_case`. Other kinds are hashed differently, because numbers may coincide.
        message = name if kind == "patient" else f"{kind}:{name}"
        pseudonym = _MARKS.get(kind, "") + hmac.new(self.key, _encoded(message), "sha256").hexdigest()[:16]
        first, *inside = name.split("/") if kind == "file" else (name,)
        if inside and first:
            pseudonym = f"{self.of('folder', first)}/{pseudonym}"
        self.links[kind, pseudonym] = name
        return pseudonym

    def write_links(self, path: Path) -> None:
        """Writes a CSV of kind, pseudonym and name, readable by its owner only, because it reverses the pseudonyms."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["kind", "pseudonym", "name"])
            table.writerows(sorted((kind, pseudonym, shown(name)) for (kind, pseudonym), name in self.links.items()))
        path.chmod(0o600)


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")  # names of files that are no UTF-8 hold surrogates
