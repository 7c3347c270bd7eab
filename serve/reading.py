"""Reading a study in a process of its own, which writes the pixels into files that the server maps into memory.

    python -m radfm.serve.reading FOLDER < LIMITS

Decisions:
- The memory of the process is limited, it leaves no core dump, and it is killed at the deadline. If it dies, the study
  is refused and the server continues.
- It prints its progress, one line per file. The output of libraries is discarded, because it may quote file headers.
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
from radfm.readers.nrrd import rename_pixel_files
from radfm.readers.read_case import read_case
from radfm.serve.intake import unpack
from radfm.serve.limits import Limits, Refused

_SLICE, _LARGE_SLICE = 512 * 512, 2048 * 2048  # pixels
_AT_ONCE = 16  # slices that the model's processor prepares at a time, in full size
_FIELDS = ("modality", "plane", "spacing_mm", "affine", "days", "body_part", "source", "warnings")


def read_study(folder: Path, header: dict, limits: Limits, deadline: float) -> Iterator[tuple[int, int] | Case]:
    """Reads the files in `folder / "in"`: yields (files done, files) as progress, and at the end the case.

    The pixels of its scans are memory maps of files in `folder`.

    Raises:
        Refused: No image can be read, the study exceeds the limits, or the process that reads it died.
    """
    kept = {key: header.get(key) for key in ("modality", "history", "names")}
    task = json.dumps({"limits": asdict(limits)} | kept)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "radfm.serve.reading", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # the process has ended already
                process.stdin.write(task.encode())
                process.stdin.close()
            yield from _progress(process.stdout, deadline, limits)
        finally:
            process.kill()  # it has ended, or has to
    file = folder / "case.json"
    if not file.exists():
        raise Refused("a file of this study crashed its reader: leave out damaged files, or convert them to NIfTI")
    content = json.loads(file.read_text())
    if "refused" in content:
        raise Refused(content["refused"])
    case = Case(history=content["history"], skipped=[tuple(pair) for pair in content["skipped"]])
    for number, scan in enumerate(content["scans"]):
        scan["spacing_mm"] = scan["spacing_mm"] and tuple(scan["spacing_mm"])
        scan["affine"] = scan["affine"] and np.array(scan["affine"])
        case.scans.append(Scan(np.load(folder / f"{number}.npy", mmap_mode="c"), **scan))
    yield case


def _progress(stdout, deadline: float, limits: Limits) -> Iterator[tuple[int, int]]:
    with selectors.DefaultSelector() as ready:
        ready.register(stdout, selectors.EVENT_READ)
        rest = b""
        while True:
            if not ready.select(max(0, deadline - time.monotonic())):
                raise Refused(f"reading took longer than {limits.seconds} s: drop one series, or fewer")
            block = os.read(stdout.fileno(), 2**16)
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            if lines:
                done, total = lines[-1].split()
                yield int(done), int(total)


def main(folder: Path) -> None:
    task = json.load(sys.stdin)
    limits = Limits(**task["limits"])
    _limit_resources(limits)
    content: dict = {}
    try:
        for file, names in (task["names"] or {}).items():
            rename_pixel_files(folder / "in" / file, names)
        unpack(folder / "in", limits)
        case = read_case(
            folder / "in",
            modality=task["modality"],
            history=task["history"],
            progress=lambda done, total: print(done, total, flush=True),
        )
        _check(case, limits)
        for number, scan in enumerate(case.scans):
            np.save(folder / f"{number}.npy", scan.pixels)
        scans = [{name: getattr(scan, name) for name in _FIELDS} for scan in case.scans]
        content = {"scans": scans, "history": case.history, "skipped": case.skipped}
    except MemoryError:
        limit = f"{limits.reader_megabytes:,} MB of memory"
        content = {"refused": f"reading takes more than {limit}: drop one series, or fewer"}
    except ValueError as error:  # Refused, and the errors of `read_case`
        content = {"refused": " ".join(str(error).replace(str(folder / "in"), "the study").split())}
    (folder / "case.json").write_text(json.dumps(content, default=_as_json))


def _as_json(value: np.ndarray | np.generic) -> list | float:
    return value.tolist()


def _check(case: Case, limits: Limits) -> None:
    if not case.scans:
        reasons = "; ".join(f"{file} {reason}" for file, reason in case.skipped[:2])
        more = f"; and {len(case.skipped) - 2:,} more" if len(case.skipped) > 2 else ""
        raise Refused(f"no image could be read: {reasons}{more}")
    slices = sum(len(scan.pixels) for scan in case.scans)
    if slices > limits.slices:
        raise Refused(
            f"the study has {slices:,} slices, and this page accepts up to {limits.slices:,}: drop one series, or fewer"
        )
    pixels = sum(math.prod(scan.pixels.shape[:3]) for scan in case.scans)
    if pixels > limits.slices * _SLICE:
        size, limit = (f"{count / 1e6:,.1f}" for count in (pixels, limits.slices * _SLICE))
        raise Refused(f"the study has {size} million pixels, and this page accepts up to {limit}: drop one series")
    for scan in case.scans:
        count, height, width = scan.pixels.shape[:3]
        if min(count, _AT_ONCE) * height * width > _AT_ONCE * _LARGE_SLICE:
            raise Refused(
                f"a scan has {count:,} slices of {height:,} × {width:,} pixels: reduce them to 2,048 × 2,048 pixels"
            )


def _limit_resources(limits: Limits) -> None:
    try:
        import resource
    except ImportError:  # Windows: only the time is limited
        return
    memory = limits.reader_megabytes * 10**6
    chosen = {resource.RLIMIT_DATA: memory, resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: limits.seconds}
    for kind, limit in chosen.items():
        hard = resource.getrlimit(kind)[1]
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (soft, hard))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
