"""What a data set costs: slices written and read per second and core, against the bare decoder and raw memory.

    python benchmarks/data.py                 # two minutes on two cores
    python benchmarks/data.py write --slices 4000

One process does all work; its own seconds are counted, not those it waits for others, and the best of the runs.
"write" makes shards out of pictures of 1,024 x 1,024, as radiographs are published, and CT slices of 512 x 512, and is
compared with the decoder alone (Pillow, pydicom) over the same files, a series stacked to one array; listing the files
is timed apart, and the report, made once at the end, is left out. "read" adds up the pixels of every slice, and is
compared with the same over a plain numpy.memmap of as many bytes; files are in the system's cache for both. "memory" is
the peak of preparing a DICOM archive of 100 slices, and one of --most; small ones, that 100,000 find room on a disk.
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
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from radfm.data_prep import load
from radfm.data_prep.prepare import Settings, prepare
from radfm.data_prep.pseudonyms import Pseudonyms
from radfm.data_prep.shard import make_shard
from radfm.data_prep.sources.dicom import Dicom
from radfm.data_prep.sources.manifest import Manifest
from radfm.data_prep.sources.phantoms import Phantoms

SIDE, SMALL, PER_SERIES = 512, 128, 40
_PICTURES = 40  # different ones
OPEN = Pseudonyms(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="write, read, memory, or nothing for all")
    parser.add_argument("--slices", type=int, default=800)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--most", type=int, default=10_000)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        print(peak(Path(arguments.peak[0]), Path(arguments.peak[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts or ["write", "read", "memory"]:
            {"write": write, "read": read, "memory": memory}[part](Path(folder) / part, arguments)
            print()


def write(folder: Path, arguments) -> None:
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


def read(folder: Path, arguments) -> None:
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
    print(f"memory, peak of a process that prepares a DICOM archive of {SMALL} x {SMALL}")
    for slices in (100, arguments.most):
        make_dicom(folder / str(slices), slices, side=SMALL)
        command = [sys.executable, __file__, "--peak", str(folder / str(slices)), str(folder / f"out{slices}")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"  {slices:7,} slices: {float(done.stdout) / 1024:.0f} MiB")
        shutil.rmtree(folder)


def peak(archive: Path, out: Path) -> float:
    """KiB of memory that the process itself took; pages of mapped files are the system's cache, which it takes back."""
    most, done = 0, threading.Event()

    def watch():
        nonlocal most
        while not done.wait(0.02):
            status = Path("/proc/self/status").read_text()
            most = max(most, int(re.search(r"RssAnon:\s+(\d+)", status).group(1)))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        prepare(Dicom(archive, OPEN), out, Settings(cases_per_shard=10))
    finally:
        done.set()
        watching.join()
    return most


def interleaved(ways: dict, runs: int) -> dict[str, float]:
    """The fewest seconds of each way, after a run of each that does not count."""
    taken = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            if run:
                taken[name].append(time.process_time() - started)
    return {name: min(found) for name, found in taken.items()}


def series_of(files: list[Path]) -> list[list[Path]]:
    return [files[start : start + PER_SERIES] for start in range(0, len(files), PER_SERIES)]


def touch(pixels: np.ndarray) -> None:
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
    """(side, side) by which the pictures of a study are darker than those of others, so that none is a copy."""
    return np.kron(np.random.default_rng(study).uniform(0.3, 1, (8, 8)), np.ones((side // 8, side // 8)))


@lru_cache(maxsize=_PICTURES)
def anatomy(seed: int, side: int = SIDE) -> np.ndarray:
    """(side, side) float, 0 to 255: a smooth body on black with some noise, which compresses as pictures do."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = np.hypot(x / 0.8, y / 0.6) < 1
    waves = sum(np.sin(rng.uniform(1, 9) * x + rng.uniform(1, 9) * y + rng.uniform(0, 6)) for _ in range(4))
    return np.clip(body * (120 + 25 * waves + rng.normal(0, 4, (side, side))), 0, 255)


if __name__ == "__main__":
    main()
