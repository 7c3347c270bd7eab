"""Modality and plane from the names of files and from pixel values, for scans whose header and source state neither.

Decisions:
- Only whole words count ("chest_CT_12.png", not "direct.png"). Where a name holds words of two modalities, the guess is
  None, except that a dental X-ray is dental: a narrower modality goes before its broader one.
- The words of a modality are those of radfm/modalities.csv.
- A guess is marked as one in the data set (`modality_from`, `plane_from`), so that it can be left out again.
"""

import re

import numpy as np

from radfm.modalities import MODALITIES

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
_MODALITY_OF_WORD = {word: name for name, modality in MODALITIES.items() for word in modality.file_name_words}
_PLANE_OF_WORD = {word: plane for plane, words in _PLANE_WORDS.items() for word in words.split()}


def guess_modality(name: str, pixels: np.ndarray | None = None) -> str | None:
    """By the words of a file's name; else CT where the values (slices, H, W) can only be Hounsfield units."""
    named = {_MODALITY_OF_WORD[word] for word in _words(name) if word in _MODALITY_OF_WORD}
    narrowest = named - {MODALITIES[modality].broader for modality in named}
    if len(narrowest) == 1:
        return narrowest.pop()
    if not named and pixels is not None and pixels.dtype.kind in "if" and pixels.ndim == 3:
        low, high = float(pixels.min()), float(pixels.max())
        if -4096 <= low <= -900 and 200 <= high <= 32767:
            return "CT"
    return None


def guess_plane(name: str, modality: str | None) -> str | None:
    """By the words of a file's name: a view for modalities that have `named_views`, a plane for the others."""
    named_views = modality in MODALITIES and MODALITIES[modality].named_views
    named = {_PLANE_OF_WORD[word] for word in _words(name) if word in _PLANE_OF_WORD}
    named = {plane for plane in named if (plane in ("axial", "coronal", "sagittal")) != named_views}
    return named.pop() if len(named) == 1 else None


def _words(name: str) -> list[str]:
    """ "chest_X-Ray/IM-0012 AP.png" -> chest, xray, im, ap, png: digits and signs separate words, x-ray is one."""
    joined = re.sub(r"x[\s_-]?ray", "xray", name.casefold())
    return re.findall(r"t[12][wc]?(?![a-z0-9])|[a-z]+", joined)
