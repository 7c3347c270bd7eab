"""Whether series are read right: series drawn at random, and the same series read by other readers.

    python -m benchmarks.reading                       # both parts
    python -m benchmarks.reading properties --examples 10000 --seed 1
    python -m benchmarks.reading readers ../shared/cases ../shared/open ../shared/inputs/OUT

- "properties" draws series with `tests/radfm/drawn_series.py` and `drawn_frames.py`, reads them and counts those that
  break a rule of `tests/radfm/series_faults.py`: a volume mixes, a slice is lost without a line, a place is wrong.
- "readers" compares scans with the volumes of dcm2niix (apt-get install dcm2niix) and of SimpleITK with GDCM, for all
  series below the folders, and for the test files within pydicom and nibabel. Each difference has its reason.
"""

import argparse
import re
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.reader_differences import compare
from radfm import read_case
from tests.radfm.drawn_frames import enhanced, nuclear
from tests.radfm.drawn_series import series
from tests.radfm.series_faults import faults

_KINDS = {"one slice for each file": (series, 0.7), "enhanced": (enhanced, 0.2), "nuclear medicine": (nuclear, 0.1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["properties", "readers"], help="default: both")
    parser.add_argument("folders", nargs="*", type=Path, help="of series, for readers")
    parser.add_argument("--examples", type=int, default=2000, help="series that are drawn (default: 2,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn series (default: 0)")
    parser.add_argument("--show", type=int, default=3, help="examples of each fault (default: 3)")
    arguments = parser.parse_args()
    if arguments.part in ("properties", None):
        properties(arguments)
    if arguments.part in ("readers", None):
        compare(arguments.folders)


def properties(arguments) -> None:
    print(f"{'series':26}{'read':>8}{'slices':>8}{'wrong':>8}")
    wrong = []
    for kind, (strategy, share) in _KINDS.items():
        read, slices, found = read_drawn(strategy(), round(arguments.examples * share), arguments.seed)
        print(f"{kind:26}{read:8,}{slices:8,}{len(found):8,}")
        wrong += found
    by_fault: dict[str, list] = {}
    for made, lines in wrong:
        for fault in dict.fromkeys(re.sub(r"\d+", "n", line.split(":")[0]) for line in lines):
            by_fault.setdefault(fault, []).append((made, lines))
    for fault, examples in sorted(by_fault.items(), key=lambda pair: -len(pair[1])):
        traits = Counter(" x ".join(made.traits) or "one volume" for made, _ in examples)
        print(f"\n{len(examples)} {fault}: {', '.join(f'{name} {n}' for name, n in traits.most_common())}")
        for made, lines in sorted(examples, key=lambda pair: len(pair[0].slices))[: arguments.show]:
            print(f"  {made.describe()}")
            print("".join(f"    {line}\n" for line in lines[:4]), end="")


def read_drawn(strategy, examples: int, number: int) -> tuple[int, int, list]:
    """Draw series and read each; (series, slices, [(series, faults) of each that is read wrongly])."""
    wrong, read = [], [0, 0]

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(made):
        with tempfile.TemporaryDirectory() as folder:
            made.write(Path(folder))
            found = faults(made, read_case(folder))
        read[0] += 1
        read[1] += len(made.slices)
        if found:
            wrong.append((made, found))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    return *read, wrong


if __name__ == "__main__":
    main()
