"""Names that tell nothing: keyed pseudonyms for patients, cases and files.

Decisions:
- HMAC-SHA256, the first 16 hex digits, as `read_case` makes them: the same person has the same pseudonym in every data
  set made with the same key, and nobody without the key can undo or guess it.
- A file in a folder also has the pseudonym of the first folder of its path, so that the parts that a set was put
  together from can be told apart (`radfm evaluate --within folder`).
- Without a key, one is drawn for this data set and forgotten when it is done: nobody can link it to anything.
- Who must be able to go back asks for a table of links, which is written outside the data set.
"""

import csv
import hmac
import secrets
from pathlib import Path

_LEAST_KEY = 16  # bytes
_MARKS = {"case": "c-", "file": "f-", "folder": "d-"}


def read_key(path: Path) -> bytes:
    """Raises: ValueError for a key that can be guessed, FileNotFoundError."""
    key = Path(path).read_bytes().strip()
    if len(key) < _LEAST_KEY:
        made = "python -c 'import secrets; print(secrets.token_hex(32))'"
        raise ValueError(
            f"{path} holds {len(key)} characters, and a key has at least {_LEAST_KEY}: make one with {made}"
        )
    return key


def draw_key() -> bytes:
    return secrets.token_hex(32).encode()


class Pseudonyms:
    """Pseudonyms of one data set; `links` has what they stand for. Without a key, names stay as they are."""

    def __init__(self, key: bytes | None):
        self.key = key
        self.links: dict[tuple[str, str], str] = {}  # (kind, pseudonym) -> name

    @property
    def hides(self) -> bool:
        return self.key is not None

    def of(self, kind: str, name: str) -> str:
        """kind: "patient", "case", "accession", "folder" or "file", whose name is a path with slashes."""
        if self.key is None:
            return name
        # A patient is hashed as `read_case` does it; other kinds apart from it, for a number may serve as both.
        said = name if kind == "patient" else f"{kind}:{name}"
        pseudonym = _MARKS.get(kind, "") + hmac.new(self.key, said.encode(), "sha256").hexdigest()[:16]
        first, *inside = name.split("/") if kind == "file" else (name,)
        if inside and first:
            pseudonym = f"{self.of('folder', first)}/{pseudonym}"
        self.links[kind, pseudonym] = name
        return pseudonym

    def write_links(self, path: Path) -> None:
        """A CSV of kind, pseudonym, name: it undoes the pseudonyms, so it belongs under lock and key."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["kind", "pseudonym", "name"])
            table.writerows(sorted((kind, pseudonym, name) for (kind, pseudonym), name in self.links.items()))
        path.chmod(0o600)
