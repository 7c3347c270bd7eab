"""Compares what radfm, dcm2niix and SimpleITK make of the same files, and gives each difference a reason.

The reasons are in `benchmarks/difference_reasons.py`, each with a check. What no check explains is "unexplained".
"""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import pydicom.data

from benchmarks.difference_reasons import Headers, Pair, is_dicom, reason_of, surplus_reason
from benchmarks.other_readers import READERS, Reading, by_radfm, copied, same_places, same_values


@dataclass
class Compared:
    """One set of files, read by radfm and by another reader.

    Attributes:
        volumes, agree: of radfm; those with the same values at the same places.
        reasons: one for each volume of either reader that the other has not.
    """

    name: str
    reader: str
    volumes: int = 0
    agree: int = 0
    reasons: list[str] = field(default_factory=list)


def compare(folders: list[Path]) -> None:
    """Print a table of the sets of files, and one of the reasons, in Markdown."""
    rows, reasons, examples = defaultdict(Counter), defaultdict(Counter), {}
    for source, name, files in series_of(folders):
        for one in compared(name, files):
            row = rows[source, one.reader]
            row.update(sets=1, volumes=one.volumes, agree=one.agree, differ=one.volumes - one.agree)
            for reason in one.reasons:
                reasons[reason][one.reader] += 1
                examples.setdefault(reason, name)
    print("| files | compared with | series | volumes of radfm | the same | other |\n|---|---|---|---|---|---|")
    for (source, reader), row in rows.items():
        print(f"| {source} | {reader} | {row['sets']} | {row['volumes']} | {row['agree']} | {row['differ']} |")
    print(f"\n| the other reader | {' | '.join(READERS)} | for example |\n|---|{'---|' * len(READERS)}---|")
    for reason, numbers in sorted(reasons.items(), key=lambda pair: -sum(pair[1].values())):
        print(f"| {reason} | {' | '.join(str(numbers[reader] or '') for reader in READERS)} | {examples[reason]} |")


def series_of(folders: list[Path]) -> Iterator[tuple[str, str, list[Path]]]:
    """(source, name, files) of each series: those of one folder belong together, and the test files of libraries, which
    are parts of many series, are read one by one."""
    for top in folders:
        by_folder = defaultdict(list)
        for file in sorted(top.rglob("*")):
            if is_dicom(file) or file.name.endswith((".nii", ".nii.gz")):
                by_folder[file if ".nii" in file.name else file.parent].append(file)
        for where, files in by_folder.items():
            yield top.name, str(where.relative_to(top)), files
    tests = Path(pydicom.data.__file__).parent / "test_files"
    for folder in sorted({file.parent for file in (tests / "dicomdirtests").rglob("*") if is_dicom(file)}):
        files = [file for file in sorted(folder.iterdir()) if is_dicom(file) and file.name != "DICOMDIR"]
        if files:
            yield "pydicom, folders", str(folder.relative_to(tests)), files
    for file in sorted(tests.iterdir()):
        if is_dicom(file) and not file.name.startswith("DICOMDIR"):
            yield "pydicom, files", file.name, [file]
    package = Path(nibabel.__file__).parent
    for file in sorted([*package.glob("nicom/tests/data/*.dcm*"), *package.glob("tests/data/*.nii*")]):
        yield "nibabel", file.name, [file]


def compared(name: str, files: list[Path]) -> list[Compared]:
    """What each other reader makes of the files of a series, beside radfm."""
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = copied(files, Path(temporary) / "files")
        ours, headers = by_radfm(folder), Headers(folder)
        for reader, read in READERS.items():
            if reader == "dcm2niix" and not headers.datasets:
                continue  # it reads DICOM only
            theirs = read(folder)
            results.append(_compared(name, reader, ours, theirs, headers))
    return results


def _compared(name: str, reader: str, ours: Reading, theirs: Reading, headers: Headers) -> Compared:
    result = Compared(name, reader, len(ours.volumes))
    left, others = list(theirs.volumes), []
    for volume in ours.volumes:
        match = next((other for other in left if same_values(volume, other) and same_places(volume, other)), None)
        if match is None:
            others.append(volume)
        else:
            result.agree += 1
            left = [other for other in left if other is not match]
    result.reasons = [reason_of(Pair(volume, left, ours, theirs, headers, reader)) for volume in others]
    if not others:
        result.reasons += [surplus_reason(other, ours) for other in left]
    return result
