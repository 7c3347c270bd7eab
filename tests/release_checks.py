"""The runs of the tests before a release, one after another, with the time of each: `make release-checks`.

They show that no test rests on this processor's rounding, on a machine that is idle, or on the order of the tests.
"""

import os
import subprocess
import sys
from contextlib import ExitStack
from time import monotonic

PYTEST = [sys.executable, "-m", "pytest", "-n", "3", "--dist", "worksteal"]
OLDER_PROCESSOR = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
BUSY = [sys.executable, "-c", "while True: pass"]

# name -> environment, arguments of pytest, processes that keep a core busy meanwhile
RUNS: dict[str, tuple[dict[str, str], list[str], int]] = {
    "as it is": ({}, [], 0),
    "as on a processor with AVX2": (OLDER_PROCESSOR, [], 0),
    "with one thread, beside two busy processes": ({"OMP_NUM_THREADS": "1"}, [], 2),
    "in random order, seed 1": ({}, ["-p", "randomly", "--randomly-seed=1"], 0),
    "in random order, seed 2": ({}, ["-p", "randomly", "--randomly-seed=2"], 0),
}


def main(arguments: list[str]) -> int:
    """Runs all, with further arguments of pytest; the exit status is 1 if one fails."""
    lines, failed = [], False
    for name, (environment, options, busy) in RUNS.items():
        print(f"\n{name}", flush=True)
        began = monotonic()
        with ExitStack() as stack:
            for _ in range(busy):
                process = stack.enter_context(subprocess.Popen(BUSY))
                stack.callback(process.kill)
            status = subprocess.run([*PYTEST, *options, *arguments], env=os.environ | environment).returncode
        failed |= status != 0
        minutes, seconds = divmod(round(monotonic() - began), 60)
        lines.append(f"{'failed' if status else 'passed'} in {minutes}:{seconds:02} min: {name}")
    print("\n" + "\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
