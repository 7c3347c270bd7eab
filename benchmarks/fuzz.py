"""Damaged files of every format: whether reading one ever ends the process, hangs, or allocates far more than it holds.

    python -m benchmarks.fuzz                          # 10,000 files, some minutes on two cores
    python -m benchmarks.fuzz --files 5000 --seed 7 --format "DICOM JPEG"
    python -m benchmarks.fuzz --seed 7 --only 123      # one of them again; --keep FOLDER writes it there

File number i of a seed is always the same: a good file of `benchmarks/fuzz_seeds.py` in which bits were flipped, and
bytes overwritten, swapped, doubled or cut, once or twice. Worker processes read the files; one that dies or does not
answer is replaced, and its file is reported. A fault is

- a process that dies, an exception out of `read_case`, or no answer within a minute,
- a file that is neither read nor listed, or a reason that is not one line with a remedy,
- peak memory of more than `MOST_MIB` above that of the idle worker. All files are small, and `limits.py` allows 64 MiB
  of pixels for a small compressed file; copies in wider types come on top. No worker can reserve more than 2 GiB.
"""

import argparse
import json
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.fuzz_seeds import Files, seed_files

MOST_MIB = 400
_SECONDS = 60
_INTERESTING = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)


@dataclass
class Result:
    """What became of one file: `fault` is "" where reading it was right."""

    number: int
    format: str
    fault: str = ""
    scans: int = 0
    peak_mib: float = 0.0
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="how many are read (default: 10,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: 0)")
    parser.add_argument("--format", default="", help="the beginning of the names of the formats to read (default: all)")
    parser.add_argument("--only", type=int, help="the number of the only file to read")
    parser.add_argument("--keep", type=Path, help="a folder in which files with faults are kept")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.seed)
        return
    started = time.perf_counter()
    numbers = numbers_of(arguments.format, arguments.files) if arguments.only is None else [arguments.only]
    results = fuzz(numbers, arguments.seed)
    minutes = (time.perf_counter() - started) / 60
    groups = defaultdict(list)
    for result in results:
        groups[result.format.split()[0]].append(result)
    print(f"{'files':12}{'number':>8}{'read':>8}{'listed':>8}{'faults':>8}{'peak MiB':>10}{'longest s':>11}")
    for name, group in [*sorted(groups.items()), ("all", results)]:
        read, wrong = sum(result.scans > 0 for result in group), sum(bool(result.fault) for result in group)
        peak, longest = max(result.peak_mib for result in group), max(result.seconds for result in group)
        print(f"{name:12}{len(group):8,}{read:8,}{len(group) - read:8,}{wrong:8,}{peak:10.0f}{longest:11.2f}")
    print(f"seed {arguments.seed}, {minutes:.1f} minutes")
    report([result for result in results if result.fault], arguments)


def report(wrong: list[Result], arguments) -> None:
    for (format, fault), number in Counter((result.format, result.fault) for result in wrong).most_common():
        first = next(result.number for result in wrong if (result.format, result.fault) == (format, fault))
        print(f"{number} x {format}: {fault}; the first is --seed {arguments.seed} --only {first}")
    if arguments.keep:
        seeds = seed_files()
        for result in wrong:
            write(damaged(seeds, result.number, arguments.seed)[1], arguments.keep / f"{result.number}")


def numbers_of(format: str, files: int) -> list[int]:
    """The first so many numbers of files whose format begins like this."""
    formats = sorted(seed_files())
    chosen = [i for i, name in enumerate(formats) if name.startswith(format)]
    if not chosen:
        raise SystemExit(f"no format begins with {format!r}: {', '.join(formats)}")
    return [len(formats) * (i // len(chosen)) + chosen[i % len(chosen)] for i in range(files)]


def fuzz(numbers, seed: int) -> list[Result]:
    """Read the files of these numbers in a worker process, which is replaced where it dies."""
    results, left, seeds = [], list(numbers), sorted(seed_files())
    while left:
        command = [sys.executable, "-m", "benchmarks.fuzz", "--worker", "--seed", str(seed)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, **pipes) as worker:
            while left:
                number = left.pop(0)
                answer = ask(worker, number)
                if answer is None:
                    worker.kill()
                    code = worker.wait()
                    fault = f"no answer in {_SECONDS} s" if code == -9 else f"the process ended with {code}"
                    results.append(Result(number, seeds[number % len(seeds)], fault))
                    break
                results.append(Result(**answer))
            worker.stdin.close()
    return results


def ask(worker: subprocess.Popen, number: int) -> dict | None:
    """The worker's answer for one file; None where it dies or does not answer."""
    try:
        worker.stdin.write(f"{number}\n".encode())
        worker.stdin.flush()
    except BrokenPipeError:
        return None
    ready, _, _ = select.select([worker.stdout], [], [], _SECONDS)
    line = worker.stdout.readline() if ready else b""
    return json.loads(line) if line else None


def work(seed: int) -> None:
    """The worker: reads numbers of files from standard input and answers with a line for each."""
    seeds = seed_files()
    with tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(sorted(seeds)):  # loads every library
            read(write(seeds[name], Path(folder) / f"seed{i}"))
        resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30 + _memory("VmSize"),) * 2)
        for line in sys.stdin:
            number = int(line)
            name, files = damaged(seeds, number, seed)
            path = write(files, Path(folder) / f"{number}")
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
            before, started = _memory("VmRSS"), time.perf_counter()
            scans, fault = read(path)
            seconds, peak = time.perf_counter() - started, (_memory("VmHWM") - before) / 2**20
            if not fault and peak > MOST_MIB:
                fault = f"more than {MOST_MIB} MiB"
            print(json.dumps(Result(number, name, fault, scans, peak, seconds).__dict__), flush=True)


def read(path: Path) -> tuple[int, str]:
    """Number of scans and what is wrong with the answer."""
    from radfm import read_case

    try:
        case = read_case(path)
    except BaseException as error:
        return 0, f"raised {type(error).__name__}"
    if not case.scans and not case.skipped:
        return 0, "neither read nor listed"
    for _, reason in case.skipped:
        if "\n" in reason or ": " not in reason:
            return 0, f"a reason without a remedy: {reason}"
        if "memory" in reason:
            return 0, "more than 2 GiB"
    for scan in case.scans:
        if scan.pixels.size == 0 or not np.isfinite(scan.pixels).all():
            return 0, "a scan without pixels, or with NaN"
    return len(case.scans), ""


def _memory(what: str) -> int:
    """Bytes, from /proc: VmRSS now, VmHWM the peak."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(what)).split()[1])


def write(files: Files, folder: Path) -> Path:
    """Write a file and those beside it; returns the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    return folder / next(iter(files))


def damaged(seeds: dict[str, Files], number: int, seed: int) -> tuple[str, Files]:
    """Format and contents of a file: the formats take turns."""
    random = np.random.default_rng([seed, number])
    name = sorted(seeds)[number % len(seeds)]
    files = dict(seeds[name])
    target = sorted(files)[random.integers(len(files))]
    contents = bytearray(files[target])
    for _ in range(random.integers(1, 3)):
        damage(contents, random)
    files[target] = bytes(contents)
    return name, files


def damage(contents: bytearray, random: np.random.Generator) -> None:
    """Damage the contents at one place, in half of the cases within the first 512 bytes, where headers are."""
    size = len(contents)
    if size < 8:
        return
    start = int(random.integers(min(size, 512) if random.integers(2) else size))
    length = int(min(random.choice([1, 1, 2, 4, 16, 64, 256]), size - start))
    kind = random.choice(["bits"] * 4 + ["bytes"] * 3 + ["swap"] * 2 + ["random", "cut off", "cut out", "double"])
    if kind == "bits":
        for at in {start, *random.integers(size, size=random.integers(4))}:
            contents[at] ^= 1 << int(random.integers(8))
    elif kind == "bytes":
        contents[start : start + length] = bytes([random.choice(_INTERESTING)]) * length
    elif kind == "swap":
        other = int(random.integers(size - length + 1))
        a, b = bytes(contents[start : start + length]), bytes(contents[other : other + length])
        contents[other : other + length], contents[start : start + length] = a, b
    elif kind == "random":
        contents[start : start + length] = random.bytes(length)
    elif kind == "double":
        contents[start:start] = contents[start : start + length]
    else:
        del contents[start : size if kind == "cut off" else start + length]


if __name__ == "__main__":
    main()
