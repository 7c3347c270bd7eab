"""The image processor of a model of transformers as settings of [`RadFMImageProcessor`].

Decisions:
- Bytes are rescaled by the factor that the image processor has. It goes into mean and standard deviation, since radfm's
  slices are in [0, 1] before these. Pixels of more bits have no such factor, and are scaled as elsewhere in radfm.
- CT, which has units, keeps radfm's windows.
- What radfm's image processor cannot do is an error, and never left out.
"""

from typing import Any

import numpy as np
from transformers import AutoImageProcessor, BaseImageProcessor

_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # as PIL numbers them
_UNSUPPORTED = ("do_pad", "do_thumbnail", "do_align_long_axis", "do_flip_channel_order", "do_image_splitting")
_CURIA = "CuriaImageProcessor"  # code that comes with the model: these are its settings
_LOWEST, _HIGHEST = -1000, 31768  # Hounsfield units, where it clips air


def image_settings(name_or_folder: str) -> dict[str, Any]:
    """Attribute of [`RadFMImageProcessor`] -> its value, such that it prepares pictures as that image processor.

    Args:
        name_or_folder: of the model, on the Hugging Face Hub or on disk.
    Raises:
        ValueError: there is no image processor, it is code that comes with the model, or it does something that radfm's
            cannot.
    """
    try:
        saved, _ = BaseImageProcessor.get_image_processor_dict(name_or_folder)
        if saved.get("image_processor_type") == _CURIA:
            return _curia(saved)
        processor = AutoImageProcessor.from_pretrained(name_or_folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{name_or_folder} has no image processor that can be read: take preprocessor_config.json from where the "
            f"model was published ({reason})"
        ) from error
    try:
        return _geometry(processor) | _intensities(processor)
    except ValueError as error:
        raise ValueError(f"{name_or_folder}: its {type(processor).__name__} {error}") from None


def _geometry(processor) -> dict[str, Any]:
    unsupported = [flag for flag in _UNSUPPORTED if getattr(processor, flag, False)]
    if unsupported:
        raise ValueError(f"has {unsupported[0]}, which radfm's image processor cannot do")
    resample = _RESAMPLE.get(int(processor.resample if processor.resample is not None else 2))
    if resample is None:
        raise ValueError(f"resamples with filter {int(processor.resample)} of PIL; radfm has {_RESAMPLE}")
    edge, crop = _edge(processor.size), None
    if getattr(processor, "do_center_crop", False):
        crop = _edge(processor.crop_size)
    stretched = bool(processor.size.get("height"))
    crop_share = getattr(processor, "crop_pct", None)
    if crop_share is not None and not stretched:  # ConvNeXt crops small pictures and stretches large ones
        crop, edge, stretched = edge, int(edge / crop_share) if edge < 384 else edge, edge >= 384
    if crop is None and not stretched:
        raise ValueError("resizes the shorter side and crops nothing: radfm's slices are square")
    size = crop or edge
    return {
        "size": size,
        "keep_aspect_ratio": not stretched,
        "shortest_edge": None if stretched and edge == size else edge,
        "resample": resample,
    }


def _edge(size) -> int:
    """The side of a square of pixels, or the length of the shorter side."""
    height, width = size.get("height"), size.get("width")
    if height != width or not (height or size.get("shortest_edge")):
        raise ValueError(f"takes pictures of {dict(size)}: radfm's slices are square")
    return height or size.get("shortest_edge")


def _intensities(processor) -> dict[str, Any]:
    """Of bytes x the image processor makes (factor * x + offset - mean) / std."""
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    offset = -1.0 if getattr(processor, "rescale_offset", False) else 0.0
    normalizes = processor.do_normalize
    mean, std = (np.array(x if normalizes else d) for x, d in ((processor.image_mean, 0.0), (processor.image_std, 1.0)))
    return {
        "image_mean": _one_or_each((mean - offset) / factor),
        "image_std": _one_or_each(std / factor),
        "rescale_bytes": True,
    }


def _one_or_each(values: np.ndarray) -> float | list[float]:
    """One number where all channels have the same: grey slices are then stored once."""
    rounded = [float(f"{value:.9g}") for value in np.atleast_1d(values)]
    return rounded[0] if len(set(rounded)) == 1 else rounded


def _curia(saved: dict[str, Any]) -> dict[str, Any]:
    """Slices without windows, stretched, each with a mean of 0 and a standard deviation of 1."""
    windows = [((_LOWEST + _HIGHEST) / 2, _HIGHEST - _LOWEST)] if saved.get("clip_below_air") else None
    return {
        "size": saved.get("crop_size", 512),
        "keep_aspect_ratio": False,
        "resample": "bicubic",
        "intensity_percentiles": [0, 100],
        "ct_windows": windows,
        "standardize_slices": True,
    }
