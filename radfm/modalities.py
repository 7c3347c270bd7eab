"""The kinds of images that radfm knows, and the names under which they come."""

import re

MODALITIES = (
    "other",
    "CT",
    "MRI",
    "X-ray",
    "ultrasound",
    "fluoroscopy",
    "mammography",
    "angiography",
    "nuclear medicine",
    "barium study",
)

_SYNONYMS = {
    "CT": "ct, cbct, hrct, cta, computed tomography, cat scan",
    "MRI": "mr, mri, mra, mrcp, fmri, magnetic resonance, magnetic resonance imaging",
    "X-ray": "xray, xr, cr, dx, rg, px, io, dr, cxr, radiograph, radiography, plain film, dxr",
    "ultrasound": "us, ultrasonography, sonography, echo, echocardiography, ivus, bdus, cd, dd, ec, doppler",
    "fluoroscopy": "rf, fl, df, cf, vf, fluoro",
    "mammography": "mg, mammo, mammogram, dbt, tomosynthesis",
    "angiography": "xa, dsa, ds, angio, angiogram, angiocardiography, dsa (angiography)",
    "nuclear medicine": "nm, pt, st, pet, spect, nuclear, pet/ct, scintigraphy, bone scan",
    "barium study": "barium, barium swallow, barium meal, barium enema",
    "other": "op, opt, opm, opv, ophthalmic photography, oct, ivoct, xc, es, sm, gm, dm, dms, ecg, bi, tg, hd, fa, cs, "
    "lp, ar, ker, len, lensometry, oss, srf, va, bmd, photograph, photo, endoscopy, microscopy, histology, rtimage, "
    "annotated image",
}


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", "", text.casefold())


_MODALITY_OF = {
    _plain(name): modality for modality, names in _SYNONYMS.items() for name in (modality, *names.split(", "))
}


def modality_name(text: str) -> str:
    """ "MR", "PET", "x ray", "DSA", a DICOM code, ... -> one of `MODALITIES`. Raises: ValueError for what is none."""
    try:
        return _MODALITY_OF[_plain(text)]
    except KeyError:
        raise ValueError(f"unknown modality {text!r}: use one of {', '.join(MODALITIES)}") from None


def dicom_modality(code: str) -> str | None:
    """A DICOM Modality code -> one of `MODALITIES`; None for OT (other), SC (screen capture) and what is no code."""
    return _MODALITY_OF.get(_plain(code))
