"""Small real files for the tests of data_prep."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pydicom.uid import generate_uid as uid


def smooth(seed: int, side: int = 64) -> np.ndarray:
    """(side, side) uint8: a picture that no other seed gives, and that is no noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6), np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def picture(path: Path, seed: int = 0, side: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(smooth(seed, side)).save(path)
    return path


def table(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def dicom(path: Path, seed: int = 0, **elements) -> Path:
    """A CT slice of 64 x 64 in Hounsfield units, with any further elements by keyword."""
    elements = {"SOPInstanceUID": uid(), "SOPClassUID": CTImageStorage, "Modality": "CT"} | elements
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = elements["SOPClassUID"]
    dataset.file_meta.MediaStorageSOPInstanceUID = elements["SOPInstanceUID"]
    pixels = smooth(seed).astype(np.int16) * 8 - 1024
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.PixelData = pixels.tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, slices: int = 3, seed: int = 0, **elements) -> Path:
    """A CT series of its own study, unless `elements` say which."""
    same = {"StudyInstanceUID": uid(), "SeriesInstanceUID": uid(), "PixelSpacing": [1, 1]} | elements
    for i in range(slices):
        place = {"ImagePositionPatient": [0, 0, 5.0 * i], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        dicom(folder / f"{i}.dcm", seed + i, InstanceNumber=i + 1, **place, **same)
    return folder
