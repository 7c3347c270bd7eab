"""Reads a folder of images with radfm, with dcm2niix and with SimpleITK, in a form in which they can be compared.

dcm2niix is run as it is installed, with its defaults. Overlays (`_ROI`) and what it writes resampled (`_Eq`: gaps
filled, `_Tilt`: sheared) are left out. SimpleITK reads each series that GDCM finds (`ImageSeriesReader`), and any other
image file by itself.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from radfm import read_case

WITHIN_MM = 0.05
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # to and from nibabel's R, A, S
_RESAMPLED = re.compile(r"_(Eq|Tilt|ROI)(_?\d+)?[a-z]*\.nii$")
# The axes (slices, rows, columns) of a scan without affine, in L, P, S: as `radfm.readers.orientation` lays them out.
_LAID_OUT = {"sagittal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)), "coronal": ((0, 1, 0), (0, 0, -1), (1, 0, 0))}
_PLANES = ("axial", "coronal", "sagittal", "oblique")
_AXIAL = ((0, 0, 1), (0, 1, 0), (1, 0, 0))


@dataclass
class Volume:
    """A volume in the orientation nearest to L, P, S.

    Attributes:
        values: (x, y, z) or (x, y, z, 3).
        affine: (4, 4) from voxel to L, P, S in mm; None where the reader gives none.
        slices: the axis across its slices.
        placeless: whether the file does not say where the slices are; their rows may then run either way.
    """

    values: np.ndarray
    affine: np.ndarray | None
    slices: int
    placeless: bool = False

    @property
    def corners(self) -> np.ndarray:
        """(8, 4) the corner voxels."""
        last = np.array(self.values.shape[:3]) - 1
        return np.array([(*(last * corner), 1) for corner in np.ndindex(2, 2, 2)])


@dataclass
class Reading:
    """What a reader made of a folder: its volumes, or why there are none."""

    volumes: list[Volume] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def oriented(values: np.ndarray, affine: np.ndarray | None, slices: int, guess=_AXIAL) -> Volume:
    """A volume of any order of axes.

    Args:
        affine: of the first three axes.
        slices: the axis across the slices.
        guess: directions of the axes where the affine is None.
    """
    if affine is not None and abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        affine = None  # dcm2niix writes such a matrix where the header has no orientation
    directions = np.eye(4)
    directions[:3, :3] = np.transpose(guess)
    turn = nibabel.io_orientation(directions if affine is None else affine)
    turned = nibabel.apply_orientation(values, turn)
    if affine is not None:
        affine = affine @ nibabel.orientations.inv_ornt_aff(turn, values.shape[:3])
    return Volume(turned, affine, int(turn[slices, 0]))


def by_radfm(folder: Path) -> Reading:
    case = read_case(folder)
    volumes = []
    for scan in case.scans:
        volume = oriented(scan.pixels, scan.affine, 0, _LAID_OUT.get(scan.plane, _AXIAL))
        volume.placeless = scan.affine is None and scan.plane not in _PLANES
        volumes.append(volume)
    return Reading(volumes, [reason for _, reason in case.skipped] + [w for scan in case.scans for w in scan.warnings])


def by_dcm2niix(folder: Path) -> Reading:
    """Raises: FileNotFoundError where dcm2niix is not installed."""
    reading = Reading()
    with tempfile.TemporaryDirectory() as out:
        command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "volume", "-o", out, str(folder)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=600)
        remarks = (done.stdout + done.stderr).decode(errors="replace").splitlines()
        reading.remarks = [
            re.sub(r"/\S+", "FILE", line)
            for line in remarks
            if re.search("Warning|Error|Skip|Unsupp|DUPLIC|No valid", line)
        ]
        for file in sorted(Path(out).glob("*.nii")):
            if not _RESAMPLED.search(file.name):
                reading.volumes += nifti_volumes(file)
    if not reading.volumes and done.returncode:
        reading.remarks.append(f"ended with {done.returncode}")
    return reading


def nifti_volumes(file: Path) -> list[Volume]:
    image = nibabel.load(file)
    values = np.asanyarray(image.dataobj)
    values = values.reshape(values.shape + (1,) * (4 - values.ndim))  # (x, y, z, t)
    if values.dtype.names:
        values = np.stack([values[name] for name in "RGB"], axis=-1)
    return [oriented(one, _LPS @ image.affine, 2) for one in np.moveaxis(values, 3, 0)]


def by_simpleitk(folder: Path) -> Reading:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reading = Reading()
    folders = sorted({file.parent for file in folder.rglob("*") if file.is_file()})
    for one in folders:
        for series in _tried(lambda one=one: sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(one)), reading) or ():
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(one), series))
            image = _tried(reader.Execute, reading)
            reading.volumes += [] if image is None else simpleitk_volumes(image)
        for file in sorted(one.iterdir()):
            if file.name.lower().endswith((".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr")):
                image = _tried(lambda file=file: sitk.ReadImage(str(file)), reading)
                reading.volumes += [] if image is None else simpleitk_volumes(image)
    return reading


def _tried(function: Callable, reading: Reading):
    """What the function returns; None where SimpleITK raises, and the last line of its message is noted."""
    try:
        return function()
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reading.remarks.append(re.sub(r"/\S+", "FILE", lines[-1].strip()) if lines else "error")
        return None


def simpleitk_volumes(image: sitk.Image) -> list[Volume]:
    values = sitk.GetArrayFromImage(image)  # ([t,] [z,] y, x[, channels])
    channels = image.GetNumberOfComponentsPerPixel()
    size = image.GetDimension()
    affine = np.eye(4)
    n = min(size, 3)
    direction = np.reshape(image.GetDirection(), (size, size))[:n, :n]
    affine[:n, :n], affine[:n, 3] = direction * image.GetSpacing()[:n], image.GetOrigin()[:n]
    if size == 2:
        values = values[None]
    series = values if size == 4 else values[None]
    if channels > 1 and not (channels == 3 and values.dtype == np.uint8):
        series = np.moveaxis(series[0] if size < 4 else series, -1, 0)
    spatial = [np.swapaxes(one, 0, 2) for one in series]  # (x, y, z[, channels])
    return [oriented(one, affine, 2) for one in spatial]


# The same values, the same places


def same_values(a: Volume, b: Volume) -> bool:
    return any(close(a.values, turned) for turned in turns(a, b))


def turns(a: Volume, b: Volume) -> Iterator[np.ndarray]:
    """The values of b; where a is one picture without a place, turned in every way."""
    if not (a.placeless and 1 in a.values.shape[:3] and 1 in b.values.shape[:3]):
        yield b.values
        return
    picture, plane = flat(a.values), flat(b.values)
    for flips in product([1, -1], repeat=2):
        for turned in (plane, np.swapaxes(plane, 0, 1)):
            if turned.shape[:2] == picture.shape[:2]:
                turned = turned[:: flips[0], :: flips[1]]
                yield turned.reshape(a.values.shape[:3] + turned.shape[2:])


def flat(values: np.ndarray) -> np.ndarray:
    """The picture of a volume with one slice."""
    return np.squeeze(values, axis=values.shape.index(1))


def close(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.astype(np.float64), b.astype(np.float64)
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-4 * np.ptp(a) + 1e-6))


def same_places(a: Volume, b: Volume) -> bool:
    """Whether all corners are within 0.05 mm. A picture without a place is at any."""
    return a.placeless or (a.affine is not None and b.affine is not None and distance_mm(a, b) <= WITHIN_MM)


def distance_mm(a: Volume, b: Volume) -> float:
    """The largest distance between the same corners of two volumes of one shape."""
    return float(np.linalg.norm(a.corners @ a.affine.T - b.corners @ b.affine.T, axis=1).max())


READERS = {"dcm2niix": by_dcm2niix, "SimpleITK": by_simpleitk}


def copied(files: list[Path], folder: Path) -> Path:
    """A folder with copies of these files, unpacked where they are gzipped DICOM."""
    import gzip

    folder.mkdir(parents=True)
    for number, file in enumerate(files):
        name = f"{number:04d}-{file.name}"
        if file.name.endswith(".dcm.gz"):
            (folder / name.removesuffix(".gz")).write_bytes(gzip.decompress(file.read_bytes()))
        else:
            shutil.copyfile(file, folder / name)
    return folder
