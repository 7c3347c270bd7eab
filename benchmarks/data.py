"""The cost of preparing and reading a data set, and comparisons with libraries that could replace parts of it.

    python benchmarks/data.py                 # all parts, two minutes on two cores
    python benchmarks/data.py write --slices 4000
    python benchmarks/data.py resize splits   # with pip install --no-deps --target FOLDER iterative-stratification

Times are CPU time of one process, and the fastest of several alternating runs is printed.

- "write" makes shards from pictures of 1,024 x 1,024 and CT slices of 512 x 512, in slices per second. The baseline is
  the decoder alone (Pillow, pydicom) over the same files. Listing is timed separately, and the report is not made.
- "case" reads 2,000 CT slices of 512 x 512 with `read_case`, series by series. The baseline is pydicom's decoding of
  the same files (`dcmread` and `pixel_array`).
- "read" sums the pixels of all slices. The baseline is a numpy.memmap of the same bytes. Both are read from the page
  cache.
- "memory" is the peak memory of preparing DICOM archives of 100 and of --most small slices.
- "resize" compares the resizing of a CT series with `F.interpolate(antialias=True)`.
- "splits" compares the splits with the library iterative-stratification, if it can be imported.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from radfm import read_case
from radfm.cases import Scan
from radfm.data_prep import load
from radfm.data_prep.plan import SPLITS
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.pseudonyms import Pseudonyms
from radfm.data_prep.shard import make_shard
from radfm.data_prep.sources.dicom import Dicom
from radfm.data_prep.sources.manifest import Manifest
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.data_prep.splits import assign_splits
from radfm.data_prep.stored_scan import stored_scan

SIDE, SMALL, PER_SERIES = 512, 128, 40
CASE_SLICES = 2000
_PICTURES = 40  # number of different pictures
OPEN = Pseudonyms(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="write, case, read, memory, resize, splits (default: all)")
    parser.add_argument("--slices", type=int, default=800, help="number of slices to write (default: 800)")
    parser.add_argument("--runs", type=int, default=5, help="number of timed runs (default: 5)")
    parser.add_argument("--most", type=int, default=10_000, help="slices of the large archive (default: 10,000)")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        print(peak(Path(arguments.peak[0]), Path(arguments.peak[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        parts = {"write": write, "case": case, "read": read, "memory": memory, "resize": resize, "splits": splits}
        for part in arguments.parts or parts:
            parts[part](Path(folder) / part, arguments)
            print()


def write(folder: Path, arguments) -> None:
    """Writing shards from PNG and DICOM files, compared with decoding the same files."""
    print(f"write, {arguments.slices} slices, slices/s of one process, best of {arguments.runs}")
    pictures, table = make_pictures(folder / "png", arguments.slices)
    sources = {"PNG": (Manifest(table, OPEN), lambda: [np.asarray(Image.open(file)).shape for file in pictures])}
    for kind, syntax in (("DICOM", None), ("DICOM, JPEG 2000", JPEG2000Lossless)):
        files = make_dicom(folder / kind, arguments.slices, syntax)
        sources[kind] = (
            Dicom(folder / kind, OPEN),
            lambda files=files: [
                np.stack([dcmread(file).pixel_array for file in series]).shape for series in series_of(files)
            ],
        )
    for kind, (source, decode) in sources.items():
        started = time.process_time()
        plans = source.listing().plans
        listed = arguments.slices / (time.process_time() - started)
        settings = asdict(Settings())

        def shard(source=source, plans=plans, settings=settings):
            make_shard(folder / "out", 0, plans, source, settings)

        seconds = interleaved({"decoder": decode, "radfm": shard}, arguments.runs)
        rates = {name: arguments.slices / taken for name, taken in seconds.items()}
        print(f"  {kind:16} decoder {rates['decoder']:7.0f}  radfm {rates['radfm']:7.0f}", end="")
        print(f"  ratio {rates['radfm'] / rates['decoder']:.2f} (target 0.5), listing {listed:.0f} files/s")


def case(folder: Path, arguments) -> None:
    """Reading CT series into scans, compared with decoding the same files."""
    series = series_of(make_dicom(folder, CASE_SLICES))

    def by_pydicom():
        for files in series:
            np.stack([dcmread(file).pixel_array for file in files])

    def by_radfm():
        for files in series:
            (scan,) = read_case(files[0].parent).scans
            assert len(scan.pixels) == len(files)

    seconds = interleaved({"pydicom": by_pydicom, "radfm": by_radfm}, arguments.runs)
    rates = {name: CASE_SLICES / taken for name, taken in seconds.items()}
    print(f"case, {CASE_SLICES} CT slices of {SIDE} x {SIDE}, slices/s of one process, best of {arguments.runs}")
    print(f"  pydicom {rates['pydicom']:.0f}  radfm {rates['radfm']:.0f}", end="")
    print(f"  radfm takes {seconds['radfm'] / seconds['pydicom']:.2f} times as long (target 1.3)")


def read(folder: Path, arguments) -> None:
    """Reading all pixels of a prepared data set, compared with a memory-mapped file."""
    prepare(Phantoms(150, size=128), folder / "set", Settings(size=128), processes=2)
    cases = load(folder / "set")
    count = sum(cases.slices(i) for i in range(len(cases)))
    raw = folder / "raw"
    with open(raw, "wb") as file:
        sizes = []
        for row in range(sum(len(case["scan_rows"]) for case in cases.rows)):
            pixels = cases.scan(row).pixels
            file.write(pixels.tobytes())
            sizes.append((pixels.shape, pixels.dtype))

    def raw_sum():
        mapped, start = np.memmap(raw, np.uint8, "r"), 0
        for shape, dtype in sizes:
            end = start + int(np.prod(shape)) * dtype.itemsize
            touch(mapped[start:end].view(dtype).reshape(shape))
            start = end

    def radfm_sum():
        fresh = load(folder / "set")
        for row in range(len(sizes)):
            touch(fresh.scan(row).pixels)

    seconds = interleaved({"memmap": raw_sum, "radfm": radfm_sum}, arguments.runs)
    rates = {name: count / taken for name, taken in seconds.items()}
    print(f"read, {count} slices of 128 x 128, slices/s of one process, best of {arguments.runs}")
    print(f"  memmap {rates['memmap']:.0f}  radfm {rates['radfm']:.0f}", end="")
    print(f"  ratio {rates['radfm'] / rates['memmap']:.2f} (target 0.8)")


def memory(folder: Path, arguments) -> None:
    """Peak memory of preparing a small and a large DICOM archive."""
    print(f"memory, peak while one process prepares a DICOM archive of {SMALL} x {SMALL} slices")
    for slices in (100, arguments.most):
        make_dicom(folder / str(slices), slices, side=SMALL)
        command = [sys.executable, __file__, "--peak", str(folder / str(slices)), str(folder / f"out{slices}")]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"  {slices:7,} slices: {float(process.stdout) / 1024:.0f} MiB")
        shutil.rmtree(folder)


def resize(folder: Path, arguments) -> None:
    """Resizing CT slices of 512 x 512 to 256 x 256 in float16, by `stored_scan` and by torch."""
    pixels = np.stack([anatomy(i) for i in range(_PICTURES)]).astype(np.int16) * 8 - 1024  # (slices, 512, 512)
    scan = Scan(pixels, "CT", spacing_mm=(2.0, 0.7, 0.7))

    def by_torch() -> np.ndarray:
        resized = np.empty((len(pixels), SIDE // 2, SIDE // 2), np.float16)
        for slot, one in zip(resized, pixels, strict=True):
            values = torch.from_numpy(one.astype(np.float32))[None, None]
            small = F.interpolate(values, (SIDE // 2, SIDE // 2), mode="bilinear", antialias=True)
            torch.from_numpy(slot).copy_(small[0, 0])
        return resized

    seconds = interleaved({"radfm": lambda: stored_scan(scan, SIDE // 2), "torch": by_torch}, arguments.runs)
    ours, theirs = stored_scan(scan, SIDE // 2).pixels, by_torch()
    print(f"resize, {len(pixels)} CT slices of {SIDE} x {SIDE} to {SIDE // 2} x {SIDE // 2}, best of {arguments.runs}")
    for name, taken in seconds.items():
        print(f"  {name:24} {len(pixels) / taken:7.0f} slices/s")
    difference = np.abs(ours.astype(np.float32) - theirs.astype(np.float32))
    ratio, share = seconds["torch"] / seconds["radfm"], (ours != theirs).mean()
    print(f"  ratio {ratio:.2f}; {share:.2%} of the pixels differ, by at most {difference.max():.2f} HU")


def splits(folder: Path, arguments) -> None:
    """Splits of patients with a long tail of disorders, by `assign_splits` and by iterative-stratification."""
    rng = np.random.default_rng(0)
    patients, disorders = 5_000, 200
    shares = 0.3 / np.arange(1, disorders + 1)
    labels = rng.random((patients, disorders)) < shares  # (patients, disorders)
    disorders_of = {f"P{i:05d}": np.flatnonzero(row).tolist() for i, row in enumerate(labels)}
    fractions = (0.7, 0.1, 0.2)

    def by_radfm() -> np.ndarray:
        split_of = assign_splits(disorders_of, {}, fractions, 0)
        return np.array([SPLITS.index(split_of[patient]) for patient in disorders_of])

    methods = {"radfm": by_radfm}
    try:
        from iterstrat.ml_stratifiers import IterativeStratification
    except ImportError:
        print("  iterative-stratification is not installed: only radfm is measured")
    else:
        methods["iterative-stratification"] = lambda: IterativeStratification(
            labels, np.array(fractions), np.random.RandomState(0)
        )
    print(f"splits, {patients:,} patients, {disorders} disorders, 7 : 1 : 2")
    for name, method in methods.items():
        started = time.process_time()
        split = method()
        taken = time.process_time() - started
        counts = np.stack([labels[split == i].sum(0) for i in range(3)])  # (splits, disorders)
        deviation = np.abs(counts - np.outer(fractions, labels.sum(0)))
        tail, untrained = labels.sum(0) < 30, int(((counts[0] == 0) & labels.any(0)).sum())
        print(
            f"  {name:24} {taken:6.2f} s; mean deviation from the exact number of cases {deviation.mean():.2f}, ",
            end="",
        )
        print(f"in the tail {deviation[:, tail].mean():.2f}; {untrained} disorders without a training case")


def peak(archive: Path, out: Path) -> float:
    """Peak anonymous memory in KiB while the archive is prepared. Pages of mapped files are not counted."""
    highest, done = 0, threading.Event()

    def watch():
        nonlocal highest
        while not done.wait(0.02):
            status = Path("/proc/self/status").read_text()
            highest = max(highest, int(re.search(r"RssAnon:\s+(\d+)", status).group(1)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        prepare(Dicom(archive, OPEN), out, Settings(cases_per_shard=10))
    finally:
        done.set()
        thread.join()
    return highest


def interleaved(functions: dict, runs: int) -> dict[str, float]:
    """CPU seconds of the fastest run of each function. The runs alternate, after one warm-up run."""
    seconds = {name: [] for name in functions}
    for run in range(runs + 1):
        for name, function in functions.items():
            started = time.process_time()
            function()
            if run:
                seconds[name].append(time.process_time() - started)
    return {name: min(runs) for name, runs in seconds.items()}


def series_of(files: list[Path]) -> list[list[Path]]:
    return [files[start : start + PER_SERIES] for start in range(0, len(files), PER_SERIES)]


def touch(pixels: np.ndarray) -> None:
    """Reads every pixel by summing each slice."""
    for picture in pixels:
        np.add.reduce(picture, axis=None, dtype=np.float32 if picture.dtype == np.float16 else np.uint64)


def make_pictures(folder: Path, count: int) -> tuple[list[Path], Path]:
    folder.mkdir(parents=True)
    files = []
    for i in range(count):
        files.append(folder / f"{i}.png")
        Image.fromarray(anatomy(i, 2 * SIDE).astype(np.uint8)).save(files[-1])
    rows = [{"case": f.stem, "path": f.name, "modality": "X-ray", "disorders": "Pneumonia"} for f in files]
    (folder / "cases.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return files, folder / "cases.jsonl"


def make_dicom(folder: Path, count: int, syntax: str | None = None, side: int = SIDE) -> list[Path]:
    files = []
    for i in range(count):
        study, number = divmod(i, PER_SERIES)
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = CTImageStorage
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = generate_uid()
        header.StudyInstanceUID, header.SeriesInstanceUID = f"1.2.3.{study}", f"1.2.3.{study}.1"
        header.PatientID, header.Modality, header.InstanceNumber = f"P{study}", "CT", number + 1
        header.ImagePositionPatient, header.ImageOrientationPatient = [0, 0, 2.0 * number], [1, 0, 0, 0, 1, 0]
        header.PixelSpacing, header.RescaleSlope, header.RescaleIntercept = [0.7, 0.7], 1, -1024
        header.Rows = header.Columns = side
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
        header.PixelData = (anatomy(i % _PICTURES, side) * patient(study, side) * 8).astype(np.uint16).tobytes()
        files.append(folder / f"{study}" / f"{number}.dcm")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        if syntax:
            header.compress(syntax)
        header.save_as(files[-1], enforce_file_format=True)
    return files


@lru_cache(maxsize=1)
def patient(study: int, side: int) -> np.ndarray:
    """(side, side) factors that darken the pictures of a study, so that no two studies share a picture."""
    return np.kron(np.random.default_rng(study).uniform(0.3, 1, (8, 8)), np.ones((side // 8, side // 8)))


@lru_cache(maxsize=_PICTURES)
def anatomy(seed: int, side: int = SIDE) -> np.ndarray:
    """(side, side) float, 0 to 255: a smooth body with noise on black, which compresses like real pictures."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = np.hypot(x / 0.8, y / 0.6) < 1
    waves = sum(np.sin(rng.uniform(1, 9) * x + rng.uniform(1, 9) * y + rng.uniform(0, 6)) for _ in range(4))
    return np.clip(body * (120 + 25 * waves + rng.normal(0, 4, (side, side))), 0, 255)


if __name__ == "__main__":
    main()
