"""Opening a study in a process of its own: what it reads lands in files of arrays, which the server maps into memory.

    python -m radfm.serve.reading FOLDER < LIMITS

Decisions:
- The process may take so much memory and no more, leaves no core dump, and is ended when its time is over. If it dies,
  the study is refused and the server goes on.
- It prints how far it is, a line for each file. What libraries print goes nowhere: it may hold what headers hold.
"""

import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from radfm.cases import Case, Scan
from radfm.readers.read_case import read_case
from radfm.serve.intake import unpack
from radfm.serve.limits import Limits, Refused

_SLICE, _LARGE_SLICE = 512 * 512, 2048 * 2048  # pixels
_TOGETHER = 16  # slices that the model's processor prepares at a time, in full size
_FIELDS = ("modality", "plane", "spacing_mm", "days", "body_part", "source")


def read_study(folder: Path, header: dict, limits: Limits, deadline: float) -> Iterator[tuple[int, int] | Case]:
    """Opens the files in `folder / "in"`: yields (files done, files) as it goes on, and at the end the case.

    The pixels of its scans are memory maps of files below `folder`.

    Raises:
        Refused: nothing in it can be read, it is more than the limits allow, or it broke the process that read it.
    """
    task = json.dumps({"limits": asdict(limits), "modality": header["modality"], "history": header["history"]})
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "radfm.serve.reading", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        try:
            with suppress(BrokenPipeError):  # it has ended before
                process.stdin.write(task.encode())
                process.stdin.close()
            yield from _progress(process.stdout, deadline, limits)
        finally:
            process.kill()  # it has ended, or it must
    answer = folder / "case.json"
    if not answer.exists():
        raise Refused("a file of this study broke its reader: leave out what is damaged, or convert it to NIfTI")
    said = json.loads(answer.read_text())
    if "refused" in said:
        raise Refused(said["refused"])
    case = Case(history=said["history"], skipped=[tuple(pair) for pair in said["skipped"]])
    for number, scan in enumerate(said["scans"]):
        scan["spacing_mm"] = scan["spacing_mm"] and tuple(scan["spacing_mm"])
        case.scans.append(Scan(np.load(folder / f"{number}.npy", mmap_mode="r"), **scan))
    yield case


def _progress(stdout, deadline: float, limits: Limits) -> Iterator[tuple[int, int]]:
    with selectors.DefaultSelector() as ready:
        ready.register(stdout, selectors.EVENT_READ)
        held = b""
        while True:
            if not ready.select(max(0, deadline - time.monotonic())):
                raise Refused(f"reading took longer than {limits.seconds} s: drop one series, or fewer")
            block = os.read(stdout.fileno(), 2**16)
            if not block:
                return
            *lines, held = (held + block).split(b"\n")
            if lines:
                done, of = lines[-1].split()
                yield int(done), int(of)


def main(folder: Path) -> None:
    task = json.load(sys.stdin)
    limits = Limits(**task["limits"])
    _confine(limits)
    said: dict = {}
    try:
        unpack(folder / "in", limits)
        case = read_case(
            folder / "in",
            modality=task["modality"],
            history=task["history"],
            progress=lambda done, of: print(done, of, flush=True),
        )
        _check(case, limits)
        for number, scan in enumerate(case.scans):
            np.save(folder / f"{number}.npy", scan.pixels)
        scans = [{name: getattr(scan, name) for name in _FIELDS} for scan in case.scans]
        said = {"scans": scans, "history": case.history, "skipped": case.skipped}
    except MemoryError:
        most = f"{limits.reader_megabytes:,} MB of memory"
        said = {"refused": f"reading takes more than {most}: drop one series, or fewer"}
    except ValueError as error:  # Refused, and what `read_case` raises
        said = {"refused": " ".join(str(error).replace(str(folder / "in"), "the study").split())}
    (folder / "case.json").write_text(json.dumps(said, default=float))


def _check(case: Case, limits: Limits) -> None:
    if not case.scans:
        reasons = "; ".join(f"{file} {reason}" for file, reason in case.skipped[:2])
        more = f"; and {len(case.skipped) - 2:,} more" if len(case.skipped) > 2 else ""
        raise Refused(f"no image could be read: {reasons}{more}")
    slices = sum(len(scan.pixels) for scan in case.scans)
    if slices > limits.slices:
        raise Refused(
            f"the study has {slices:,} slices, and this page takes up to {limits.slices:,}: drop one series, or fewer"
        )
    pixels = sum(math.prod(scan.pixels.shape[:3]) for scan in case.scans)
    if pixels > limits.slices * _SLICE:
        have, most = (f"{n / 1e6:,.1f}" for n in (pixels, limits.slices * _SLICE))
        raise Refused(f"the study has {have} million pixels, and this page takes up to {most}: drop one series")
    for scan in case.scans:
        count, height, width = scan.pixels.shape[:3]
        if min(count, _TOGETHER) * height * width > _TOGETHER * _LARGE_SLICE:
            raise Refused(
                f"a scan has {count:,} slices of {height:,} × {width:,} pixels: reduce them to 2,048 × 2,048 pixels"
            )


def _confine(limits: Limits) -> None:
    try:
        import resource
    except ImportError:  # Windows: time is limited all the same
        return
    most = limits.reader_megabytes * 10**6
    for what, limit in ((resource.RLIMIT_DATA, most), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, limits.seconds)):
        hard = resource.getrlimit(what)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (limit, hard))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
