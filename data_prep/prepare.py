"""A source -> a data set: list the cases, make the shards in several processes, finish.

Decisions:
- The list of cases is cut into shards of so many cases. A shard is whole or absent, so a run that was killed at any
  moment goes on by making the shards that are absent, and the outcome is the same to the byte.
- Several machines share the folder: each makes the shards of its part, and whoever finds all of them there finishes.
- A folder takes one data set: another source or another setting is refused, never mixed in.
"""

import hashlib
import json
import os
import shutil
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from radfm.data_prep.finish import finish
from radfm.data_prep.plan import CasePlan, Listing, Source
from radfm.data_prep.shard import WORK, make_shard, record_file
from radfm.data_prep.tables import FORMAT, RECORD, write_text
from radfm.progress import Progress, no_progress


@dataclass(frozen=True)
class Settings:
    """What decides the outcome, beside the source.

    Attributes:
        size: pixels of the longer side of a stored slice.
        precision, max_slices: see `stored_scan`.
        fractions: of the patients without an official split, for train, validation and test.
        seed: of the split.
    """

    size: int = 256
    precision: str = "auto"
    max_slices: int | None = None
    cases_per_shard: int = 100
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    seed: int = 0

    def __post_init__(self):
        if self.size < 16 or self.cases_per_shard < 1 or (self.max_slices or 1) < 1:
            raise ValueError("size is at least 16, cases per shard and slices at least 1")
        if len(self.fractions) != 3 or min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions for train, validation and test sum to 1, not {self.fractions}")


def prepare(
    source: Source,
    out: str | Path,
    settings: Settings | None = None,
    *,
    processes: int = 1,
    part: tuple[int, int] = (0, 1),
    progress: Progress = no_progress,
) -> dict | None:
    """Makes the data set, or goes on with it.

    Args:
        out: its folder; new, empty, or that of a run that was killed.
        part: (i, n): of the shards only those whose number leaves i when divided by n. For n machines.
        progress: called with the number of shards there are, and of all.
    Returns:
        The content of dataset.json; None where shards of other parts are still missing.
    Raises:
        ValueError: nothing to prepare; a folder that holds something else.
    """
    out, settings = Path(out), settings or Settings()
    if not 0 <= part[0] < part[1]:
        raise ValueError(f"part {part[0]}/{part[1]} is none: the parts of {part[1]} are 0 to {part[1] - 1}")
    listing = source.listing()
    _check(listing)
    fingerprint = _fingerprint(source, settings, listing)
    if (out / RECORD).exists():
        return _finished(out, fingerprint)
    shards = _lay_out(out, listing, settings, fingerprint)
    missing = [i for i in range(shards) if i % part[1] == part[0] and not record_file(out, i).exists()]
    done = len(missing)
    for made in _make(out, missing, source, settings, processes):
        done = made
        progress(shards - len(missing) + done, shards)
    if (out / RECORD).exists():  # a run of the same shards was faster
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
        raise ValueError(f"there is no case to prepare, of {listing.listed} {listing.unit}s{why}")
    seen: set[str] = set()
    for plan in listing.plans:
        if plan.case_id in seen:
            raise AssertionError(f"case {plan.case_id} was planned twice")
        seen.add(plan.case_id)


def _fingerprint(source: Source, settings: Settings, listing: Listing) -> str:
    digest = hashlib.sha256()
    about = [FORMAT, source.name, source.settings, asdict(settings), [asdict(one) for one in listing.rejected]]
    digest.update(json.dumps(about, sort_keys=True).encode())
    for plan in listing.plans:
        content = asdict(plan)
        for item in content["items"]:
            del item["paths"]  # the same files elsewhere are the same files
        digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()


def _lay_out(out: Path, listing: Listing, settings: Settings, fingerprint: str) -> int:
    """Writes the plans of every shard, unless they are there; returns how many shards there are."""
    mark = out / WORK / "fingerprint"
    shards = -(-len(listing.plans) // settings.cases_per_shard)
    if mark.exists():
        if mark.read_text() != fingerprint:
            raise ValueError(f"{out} holds a run of other settings or files: choose another folder, or delete it")
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


def _make(out: Path, shards: list[int], source: Source, settings: Settings, processes: int):
    """Makes shards; yields how many are done."""
    if processes <= 1 or len(shards) <= 1:
        for done, shard in enumerate(shards, 1):
            _make_one(out, shard, source, asdict(settings))
            yield done
        return
    try:
        with ProcessPoolExecutor(
            min(processes, len(shards)), get_context("spawn"), initializer=_die_with, initargs=(os.getpid(),)
        ) as pool:
            made = [pool.submit(_make_one, out, shard, source, asdict(settings)) for shard in shards]
            try:
                for done, future in enumerate(as_completed(made), 1):
                    future.result()
                    yield done
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    except BrokenProcessPool:
        raise ValueError(
            "a process was killed, most likely because memory ran out: run the same command with fewer processes; "
            "what is done is kept"
        ) from None


def _make_one(out: Path, shard: int, source: Source, settings: dict) -> None:
    if (out / RECORD).exists():  # a run of the same shards was faster, and is done
        return
    lines = _plan_file(out, shard).read_text(encoding="utf-8").split("\n")
    make_shard(out, shard, [CasePlan.from_json(line) for line in lines], source, settings)


def _die_with(parent: int) -> None:
    """A process whose parent was killed ends too, rather than wait forever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
