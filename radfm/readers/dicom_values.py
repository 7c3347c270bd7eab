"""From the stored values of a DICOM frame to the values of a slice: the display pipeline of PS3.3, C.7.6.3 and C.11.

Decisions:
- Modality LUT or rescale slope and intercept are applied, frame by frame: Hounsfield units for CT, activity for PET. A
  slope of 0 is ignored. Not so in X-ray angiography and fluoroscopy: there the modality LUT leads back to the intensity
  of the rays (C.8.7.1.1.2), and the window is for stored values.
- For projections (the column of modalities.csv) the frame's first VOI LUT or window is applied, from its functional
  groups or the header: stored values differ by detector and processing, and the window gives the image that the vendor
  intends to be read. A window that leaves no contrast is ignored. It is never applied to CT, whose units would be lost,
  nor to other modalities.
- MONOCHROME1 is inverted, so that more is brighter; not where values are a quantity, as in CT and nuclear medicine.
- Padding becomes the darkest value of the rest of its scan, whatever the photometric interpretation and the window, so
  that it never widens the range. In CT it becomes air, -1000, where the rest has nothing darker than that.
- The 16-bit values of a CT are signed, whatever PixelRepresentation says, where all of them lie between -8192 and 8191
  as signed values, and not all negative ones are -1, which may be metal at the end of the unsigned range.
- Bits above BitsStored, such as overlays, are ignored. Where HighBit says that values lie higher in their words, they
  are shifted, but not if their low bits are in use and their high bits are not.
- YBR becomes RGB, palettes are applied to PALETTE COLOR only, and colours of more than 8 bits are reduced to 8. ICC
  profiles are ignored.
"""

from contextlib import suppress

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import convert_color_space

from radfm.modalities import Modality
from radfm.readers.dicom_files import first, has, number, text, transfer_syntax
from radfm.readers.dicom_frames import Frame
from radfm.readers.dicom_headers import modality_of
from radfm.readers.lookup_tables import apply_palette, lookup_table
from radfm.readers.pixels import compact, rescaled

_HOUNSFIELD = "Hounsfield units"
_AIR = -1000
_FAR_FROM_0 = 2**13  # for values of a CT
_XRAY = "1.2.840.10008.5.1.4.1.1.12."  # SOP classes of angiography and fluoroscopy
_PADDING = ("PixelPaddingValue", "FloatPixelPaddingValue", "DoubleFloatPixelPaddingValue")
_PADDING_LIMIT = ("PixelPaddingRangeLimit", "FloatPixelPaddingRangeLimit", "DoubleFloatPixelPaddingRangeLimit")
_Ends = tuple[float, float]  # the smallest and the largest value that the pixels can have


def stored_values(cells: np.ndarray, dataset: Dataset, warnings: list[str]) -> np.ndarray:
    """The values in the cells of pixels that were not compressed, or by RLE, without the other bits (PS3.5, 8.1.1)."""
    allocated = 8 * cells.dtype.itemsize
    bits, high_bit = number(dataset, "BitsStored"), number(dataset, "HighBit")
    if cells.dtype.kind == "f" or bits is None or bits not in range(1, allocated):
        return cells
    bits, above = int(bits), allocated - int(bits)
    if high_bit is not None and high_bit in range(bits, allocated):
        low_bits = cells & ((1 << int(high_bit) + 1 - bits) - 1)
        low, high = _stored_range(cells.dtype, dataset)
        if low_bits.any() and low <= cells.min() and cells.max() <= high:
            warnings.append("its HighBit does not fit its values, and was ignored")
        else:
            above = allocated - 1 - int(high_bit)
    return (cells << above) >> allocated - bits


def colour_values(values: np.ndarray, space: str, dataset: Dataset) -> np.ndarray:
    """(H, W, 3) decoded values -> (H, W, 3) uint8 RGB. space: RGB or one of the YBR."""
    bits = int(number(dataset, "BitsStored") or 8) if values.dtype.itemsize > 1 else 8
    colours = np.clip(values >> max(bits - 8, 0), 0, 255).astype(np.uint8)
    return convert_color_space(colours, "YBR_FULL", "RGB") if space.startswith("YBR_FULL") else colours


def palette_values(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """(H, W) stored values -> (H, W, 3) uint8 RGB. Raises: Unreadable for a damaged palette."""
    return apply_palette(values, dataset, signed=values.dtype.kind == "i", little_endian=_is_little_endian(dataset))


def grey_values(
    stored: np.ndarray, dataset: Dataset, frame: Frame, warnings: list[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W) stored values -> (H, W) values of a slice; and (H, W) bool, which of them are padding, None for none.

    Padding has the value of another pixel; `fill_padding` gives it its own.
    """
    modality = modality_of(dataset)
    if _are_signed_after_all(stored, modality):
        warnings.append("its header says that its values are unsigned, but they are signed: read as such")
        stored = stored.view(stored.dtype.str.replace("u", "i"))
    padding = _padding(stored, dataset)
    if padding is not None:
        stored = _without_padding(stored, padding)
    values, ends = _modality_values(stored, dataset, frame, warnings)
    if modality and modality.projection:
        values, ends = _windowed(values, ends, dataset, frame)
    if modality and modality.quantity:
        return values, padding
    inverted = text(dataset, "PhotometricInterpretation") == "MONOCHROME1"
    if inverted:
        values = rescaled(values, -1, sum(ends))
    if text(dataset, "PresentationLUTShape") == ("IDENTITY" if inverted else "INVERSE"):
        warnings.append("its PresentationLUTShape contradicts its PhotometricInterpretation: it may be inverted")
    return values, padding


def fill_padding(pixels: np.ndarray, padding: dict[int, np.ndarray], modality: Modality | None) -> None:
    """Set the padding of a scan to its darkest value, or to air in CT.

    Args:
        pixels: (slices, H, W), changed in place.
        padding: slice -> (H * W / 8) uint8, bits of the pixels that are padding.
    """
    height, width = pixels.shape[1:]

    def mask(i: int) -> np.ndarray:  # one at a time, as all of them take half the memory of the scan
        return np.unpackbits(padding[i], count=height * width).reshape(height, width).view(bool)

    darkest = [pixels[i].min() for i in range(len(pixels)) if i not in padding or not mask(i).all()]
    if not darkest:
        return
    fill = min(darkest)
    if modality and modality.quantity == _HOUNSFIELD and fill < 0:
        fill = min(fill, _AIR)
    for i in padding:
        np.copyto(pixels[i], fill, where=mask(i))


def _padding(stored: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """(H, W) bool, which pixels are padding; None where none is (PS3.3, C.7.5.1.1.2)."""
    value = next((number(dataset, keyword) for keyword in _PADDING if has(dataset, keyword)), None)
    if value is None:
        return None
    limit = next((number(dataset, keyword) for keyword in _PADDING_LIMIT if has(dataset, keyword)), None)
    low, high = sorted(_with_sign(end, stored.dtype, dataset) for end in (value, value if limit is None else limit))
    padding = stored == low if low == high else (stored >= low) & (stored <= high)
    return padding if padding.any() else None


def _are_signed_after_all(stored: np.ndarray, modality: Modality | None) -> bool:
    """Whether values that the header calls unsigned are signed values of a CT."""
    if stored.dtype.kind != "u" or stored.dtype.itemsize != 2 or not modality or modality.quantity != _HOUNSFIELD:
        return False
    if stored.max() < 2**16 - _FAR_FROM_0:
        return False
    negative = stored[stored >= _FAR_FROM_0]
    return bool(negative.min() >= 2**16 - _FAR_FROM_0 and (negative < 2**16 - 1).any())


def _without_padding(stored: np.ndarray, padding: np.ndarray) -> np.ndarray:
    """The values with one of the others in place of padding, and 0 where there are no others."""
    if padding.all():
        return np.zeros_like(stored)
    stored = stored.copy()
    np.copyto(stored, stored.max(), where=padding)  # so that the smallest value is none of the padding
    np.copyto(stored, stored.min(), where=padding)
    return stored


def _with_sign(value: float, dtype: np.dtype, dataset: Dataset) -> float:
    """A padding value with the sign of the stored values, whichever of the VRs US and SS it was written with."""
    if dtype.kind == "f":
        return value
    low, high = _stored_range(dtype, dataset)
    return next((v for v in (value, value - 2**16, value + 2**16) if low <= v <= high), value)


def _modality_values(
    values: np.ndarray, dataset: Dataset, frame: Frame, warnings: list[str]
) -> tuple[np.ndarray, _Ends]:
    """The output of the modality transformation, and the smallest and largest value that it can have."""
    ends: _Ends = (values.min(), values.max()) if values.dtype.kind == "f" else _stored_range(values.dtype, dataset)
    if _leads_to_intensity(dataset):
        return compact(values), ends
    item = first(dataset, "ModalityLUTSequence")
    if item is not None:
        try:
            table = lookup_table(item, signed=ends[0] < 0, little_endian=_is_little_endian(dataset))
            return compact(table(values)), table.ends
        except Exception:  # values of damaged elements raise any exception
            warnings.append("its modality lookup table is damaged, and was not applied")
    if frame.slope == 0:
        warnings.append("its rescale slope is 0, and was not applied")
        return compact(values), ends
    low, high = sorted(end * frame.slope + frame.intercept for end in ends)
    return rescaled(values, frame.slope, frame.intercept), (low, high)


def _leads_to_intensity(dataset: Dataset) -> bool:
    """Whether the modality transformation gives the intensity of X-rays, and is not for display."""
    relationship = text(dataset, "PixelIntensityRelationship")
    if text(dataset, "SOPClassUID").startswith(_XRAY):
        return relationship != "LIN"
    return text(dataset, "Modality") in ("XA", "RF") and relationship in ("LOG", "DISP")


def _windowed(values: np.ndarray, ends: _Ends, dataset: Dataset, frame: Frame) -> tuple[np.ndarray, _Ends]:
    """The output of the first VOI LUT or window, and the smallest and largest value that it can have."""
    for group in (frame.voi, dataset):
        item = first(group, "VOILUTSequence") if group is not None else None
        if item is not None:
            with suppress(Exception):  # a damaged table is ignored, and raises any exception
                table = lookup_table(item, signed=ends[0] < 0, little_endian=_is_little_endian(dataset))
                return _with_contrast(compact(table(values)), table.ends, values, ends)
        share = _shares(values, group) if group is not None else None
        if share is not None:
            low, high = ends
            windowed = share * (high - low) + low
            if high - low >= 255:
                windowed = np.rint(windowed).astype(np.int32)
            return _with_contrast(compact(windowed), ends, values, ends)
    return values, ends


def _with_contrast(
    windowed: np.ndarray, windowed_ends: _Ends, values: np.ndarray, ends: _Ends
) -> tuple[np.ndarray, _Ends]:
    lost = windowed.min() == windowed.max() and values.min() != values.max()
    return (values, ends) if lost else (windowed, windowed_ends)


def _shares(values: np.ndarray, group: Dataset) -> np.ndarray | None:
    """The output of a window, from 0 to 1 (PS3.3, C.11.2.1.2 and C.11.2.1.3); None where there is none."""
    center, width = number(group, "WindowCenter"), number(group, "WindowWidth")
    if center is None or width is None or width <= 0:
        return None
    function = text(group, "VOILUTFunction").upper()
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values.astype(np.float64) - center) / width))
    if function != "LINEAR_EXACT" and width >= 1:  # a LINEAR window is not defined below
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(np.float64)
    return np.clip((values.astype(np.float64) - center) / width + 0.5, 0, 1)


def _stored_range(dtype: np.dtype, dataset: Dataset) -> tuple[int, int]:
    """The smallest and the largest value that the stored bits can represent."""
    bits = int(number(dataset, "BitsStored") or 8 * dtype.itemsize)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dtype.kind == "i" else (0, 2**bits - 1)


def _is_little_endian(dataset: Dataset) -> bool:
    syntax = transfer_syntax(dataset)
    return syntax is None or syntax.is_little_endian
