"""Modality and plane from names of files and from values, for scans whose header and source are silent.

Decisions:
- Only whole words count ("chest_CT_12.png", not "direct.png"), and where two modalities are named, none is believed.
- A guess is marked as one in the data set (`modality_from`, `plane_from`), so it can be left out again.
"""

import re

import numpy as np

_MODALITY_WORDS = {
    "CT": "ct cta hrct",
    "MRI": "mr mri flair t1 t1w t1c t2 t2w dwi adc mra",
    "X-ray": "xray xr cxr radiograph dx cr rx",
    "ultrasound": "us ultrasound sonography echo",
    "mammography": "mammo mammogram mammography mg",
    "nuclear medicine": "pet spect scintigraphy nm",
    "fluoroscopy": "fluoroscopy rf",
    "angiography": "angiography dsa xa",
}
_PLANE_WORDS = {
    "axial": "axial ax tra transverse",
    "coronal": "coronal cor",
    "sagittal": "sagittal sag",
    "PA": "pa",
    "AP": "ap frontal",
    "lateral": "lateral lat",
    "MLO": "mlo",
    "CC": "cc",
}
_MODALITIES = {word: name for name, words in _MODALITY_WORDS.items() for word in words.split()}
_PLANES = {word: name for name, words in _PLANE_WORDS.items() for word in words.split()}
_RADIOGRAPHIC = ("X-ray", "mammography")


def guess_modality(name: str, pixels: np.ndarray | None = None) -> str | None:
    """By the words of a file's name; else CT where the values (slices, H, W) can only be Hounsfield units."""
    found = {_MODALITIES[word] for word in _words(name) if word in _MODALITIES}
    if len(found) == 1:
        return found.pop()
    if not found and pixels is not None and pixels.dtype.kind in "if" and pixels.ndim == 3:
        low, high = float(pixels.min()), float(pixels.max())
        if -4096 <= low <= -900 and 200 <= high <= 32767:
            return "CT"
    return None


def guess_plane(name: str, modality: str | None) -> str | None:
    """By the words of a file's name; views of radiographs only for radiographs, planes only for the others."""
    found = {_PLANES[word] for word in _words(name) if word in _PLANES}
    of_radiographs = modality in _RADIOGRAPHIC
    found = {plane for plane in found if (plane in ("axial", "coronal", "sagittal")) != of_radiographs}
    return found.pop() if len(found) == 1 else None


def _words(name: str) -> list[str]:
    """ "chest_X-Ray/IM-0012 AP.png" -> chest, xray, im, ap, png: digits and signs part words, x-ray is one."""
    joined = re.sub(r"x[\s_-]?ray", "xray", name.casefold())
    return re.findall(r"t[12][wc]?(?![a-z0-9])|[a-z]+", joined)
