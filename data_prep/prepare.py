"""Prepares a data set from a source: lists the cases, writes shards in several processes, and finishes.

Decisions:
- The cases are divided into shards. A shard is complete or absent, so that a run that was killed continues with the
  absent shards, and the result has the same bytes.
- Several machines can share the folder. Each writes the shards of its part, and the last one finishes the data set.
- A folder holds one data set. Another source or other settings are refused.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from radfm.data_prep.finish import finish
from radfm.data_prep.plan import CasePlan, Listing, Source
from radfm.data_prep.processes import run_in_processes
from radfm.data_prep.shard import WORK, make_shard, record_file
from radfm.data_prep.tables import FORMAT, RECORD, write_text
from radfm.presentation import shown
from radfm.progress import Progress, no_progress

_LATER_FACTS = ("normal", "collection", "licence", "attribution", "url", "publish", "site", "scanner", "year")


@dataclass(frozen=True)
class Settings:
    """What determines the result, besides the source.

    Attributes:
        size: pixels of the longer side of a stored slice.
        precision, max_slices: see `stored_scan`.
        cases_per_shard: number of cases in a shard.
        fractions: shares of the patients for train, validation and test, where there is no official split.
        seed: seed of the split.
    """

    size: int = 256
    precision: str = "auto"
    max_slices: int | None = None
    cases_per_shard: int = 100
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    seed: int = 0

    def __post_init__(self):
        if self.size < 16 or self.cases_per_shard < 1 or (self.max_slices or 1) < 1:
            raise ValueError("size must be at least 16, cases per shard and slices at least 1")
        if len(self.fractions) != 3 or min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions for train, validation and test must sum to 1, not {self.fractions}")


def prepare(
    source: Source,
    out: str | Path,
    settings: Settings | None = None,
    *,
    processes: int = 1,
    part: tuple[int, int] = (0, 1),
    progress: Progress = no_progress,
) -> dict | None:
    """Prepares a data set, or continues a run that was killed.

    Args:
        source: where the cases come from.
        out: folder of the data set: new, empty, or that of a run that was killed.
        settings: None: the defaults.
        processes: number of processes that write shards.
        part: (i, n): write only the shards whose number has the remainder i when divided by n, for n machines.
        progress: called with the number of finished shards, and of all.
    Returns:
        The content of dataset.json; None where shards of other parts are still missing.
    Raises:
        ValueError: there is nothing to prepare, or the folder holds something else.
    """
    out, settings = Path(out), settings or Settings()
    if shown(str(out)) != str(out):
        raise ValueError(
            f"{shown(str(out))}: the name of the folder is not UTF-8, or has control characters: rename it"
        )
    if not 0 <= part[0] < part[1]:
        raise ValueError(f"part {part[0]}/{part[1]} does not exist: the parts of {part[1]} are 0 to {part[1] - 1}")
    listing = source.listing()
    _check(listing)
    fingerprint = _fingerprint(source, settings, listing)
    if (out / RECORD).exists():
        return _finished(out, fingerprint)
    shards = _write_plans(out, listing, settings, fingerprint)
    missing = [i for i in range(shards) if i % part[1] == part[0] and not record_file(out, i).exists()]
    make = partial(_make_one, out, source=source, settings=asdict(settings))
    for done in run_in_processes(make, missing, processes):
        progress(shards - len(missing) + done, shards)
    if (out / RECORD).exists():  # another run of the same shards has finished
        return _finished(out, fingerprint)
    if not all(record_file(out, i).exists() for i in range(shards)):
        return None
    return finish(out, shards, source, asdict(settings), listing, fingerprint)


def _finished(out: Path, fingerprint: str) -> dict:
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    if record.get("fingerprint") != fingerprint:
        raise ValueError(f"{out} holds another data set: choose another folder, or delete this one")
    shutil.rmtree(out / WORK, ignore_errors=True)
    return record


def _check(listing: Listing) -> None:
    if listing.listed != listing.planned + len(listing.rejected):
        raise AssertionError(
            f"{listing.listed} {listing.unit}s listed, {listing.planned} planned, {len(listing.rejected)} rejected"
        )
    if not listing.plans:
        why = f": {listing.rejected[0].name} {listing.rejected[0].reason}" if listing.rejected else ""
        raise ValueError(f"there is no case to prepare among {listing.listed} {listing.unit}s{why}")
    case_ids: set[str] = set()
    for plan in listing.plans:
        if plan.case_id in case_ids:
            raise AssertionError(f"case {plan.case_id} was planned twice")
        case_ids.add(plan.case_id)


def _fingerprint(source: Source, settings: Settings, listing: Listing) -> str:
    digest = hashlib.sha256()
    run = [FORMAT, source.name, source.settings, asdict(settings), [asdict(one) for one in listing.rejected]]
    digest.update(json.dumps(run, sort_keys=True).encode())
    for plan in listing.plans:
        content = asdict(plan)
        content["about"] = content.pop("source_data")  # the key under which published fingerprints were computed
        _remove_unstated(content, _LATER_FACTS)
        for item in content["items"]:
            del item["paths"]  # the same files in another folder are the same data
            _remove_unstated(item, ("regions",))
        digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()


def _remove_unstated(content: dict, later: Sequence[str]) -> None:
    """Removes facts that plans did not have when fingerprints were published, where they are not stated."""
    for name in later:
        if content[name] is None:
            del content[name]


def _write_plans(out: Path, listing: Listing, settings: Settings, fingerprint: str) -> int:
    """Writes the plans of all shards if they are missing, and returns the number of shards."""
    mark = out / WORK / "fingerprint"
    shards = -(-len(listing.plans) // settings.cases_per_shard)
    if mark.exists():
        if mark.read_text() != fingerprint:
            raise ValueError(f"{out} holds a run with other settings or files: choose another folder, or delete it")
        return shards
    if out.exists() and any(file for file in out.iterdir() if file.name != WORK):
        raise ValueError(f"{out} is not empty: choose a new folder")
    for shard in range(shards):
        plans = listing.plans[shard * settings.cases_per_shard : (shard + 1) * settings.cases_per_shard]
        write_text(_plan_file(out, shard), "\n".join(plan.to_json() for plan in plans))
    write_text(mark, fingerprint)
    return shards


def _plan_file(out: Path, shard: int) -> Path:
    return out / WORK / f"plan-{shard:05d}.jsonl"


def _make_one(out: Path, shard: int, source: Source, settings: dict) -> None:
    if (out / RECORD).exists():  # another run of the same shards has finished
        return
    lines = _plan_file(out, shard).read_text(encoding="utf-8").split("\n")
    make_shard(out, shard, [CasePlan.from_json(line) for line in lines], source, settings)
