"""What a DICOM header says of how an image came about: ImageType, frame types, and the kind of object.

Decisions:
- Terms are looked up word by word, since vendors join them ("CSA MPR", "ADC_UNSPECIFIED", "PROJECTION IMAGE"). A term
  that is not in the table is never shown, because it is free text on some machines.
- Localisers that the header names are set aside (`dicom_headers.check_image`), and never get here. Those of many MRI
  scanners are not named, and are known by their few slices in all three planes.
- DERIVED and SECONDARY alone are no warning: some scanners say so of every series.
- Every digital radiograph is derived from raw values, and every angiogram may be subtracted, so that these words mean
  nothing there. Trace-weighted diffusion images are read as they are, and are no warning either.
"""

import re
from collections import defaultdict
from collections.abc import Iterable

from pydicom.dataset import Dataset

from radfm.readers.dicom_files import first, items, text, texts
from radfm.readers.dicom_series import Stack

_KINDS = {  # what the image is -> words of ImageType and FrameType
    "a reformatted series (MPR)": "MPR REFORMATTED REFORMAT RESAMPLED CSAPARALLEL CURVED CPR",
    "a projection through slices (MIP)": "MIP MINIP MAXIP PROJECTION MAXIMUM MINIMUM",
    "a rendered picture, not slices": "VRT VOLREN VOLUMERENDERED RENDERED SSD",
    "a subtraction of two images": "SUBTRACTION SUBTRACT SUBTRACTED SUB",
    "a map of diffusion (ADC)": "ADC EADC",
    "a map of anisotropy": "FA",
    "a map of perfusion": "CBF RCBF RELCBF CBV RCBV RELCBV MTT TTP TMAX PBP",
    "a map of relaxation times": "T1MAP T2MAP R2MAP",
    "a phase image": "PHASEMAP VELOCITY",
    "a capture of a screen": "SCREEN SCREENSAVE SCREENSHOT",
}
_KIND_OF = {word: kind for kind, words in _KINDS.items() for word in words.split()}
_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
_SLICES_OF_LOCALISER = 7  # in one plane, at most
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_RADIOGRAPHS = ("CR", "DX", "MG", "IO", "PX", "RG", "RF", "XA", "DR")


def image_type_warnings(header: Dataset, frame: int) -> list[str]:
    """What is uncertain about the image in a frame of a file, one sentence each."""
    if text(header, "PresentationIntentType").upper() == "FOR PROCESSING":
        return ["the header calls the values raw (FOR PROCESSING): give the images for presentation instead"]
    if text(header, "Modality").upper() in _RADIOGRAPHS:
        return []
    image_type = [value.upper() for value in texts(header, "ImageType")]
    found = list(dict.fromkeys(_kinds([*image_type[2:], *_frame_type(header, frame)])))
    if not found and text(header, "SOPClassUID").startswith(_SECONDARY_CAPTURE):
        found = ["a capture of a screen (secondary capture)"]
    return [f"the header calls it {kind}: give the original series as well, or instead" for kind in found]


def warn_of_localisers(stacks: Iterable[Stack]) -> None:
    """Add a warning to the stacks of a series of CT or MRI that has a few slices in each of the three planes."""
    series = defaultdict(list)
    for stack in stacks:
        header = stack.frames[0].instance.header
        uid = text(header, "SeriesInstanceUID")
        if uid and text(header, "Modality").upper() in ("CT", "MR"):
            series[uid].append(stack)
    for members in series.values():
        in_planes = {stack.plane for stack in members} >= {"axial", "coronal", "sagittal"}
        if in_planes and all(len(stack.frames) <= _SLICES_OF_LOCALISER for stack in members):
            for stack in members:
                stack.warnings.append("its series has few slices in each of three planes, as a localiser: leave it out")


def _frame_type(header: Dataset, frame: int) -> list[str]:
    """FrameType of an enhanced multi-frame file, without its first two values; empty for any other."""
    per_frame = items(header, "PerFrameFunctionalGroupsSequence")
    own = per_frame[frame] if frame < len(per_frame) else None
    for group in (own, first(header, "SharedFunctionalGroupsSequence")):
        for sequence in _FRAME_TYPES:
            item = first(group, sequence) if group is not None else None
            if item is not None:
                return [value.upper() for value in texts(item, "FrameType")[2:]]
    return []


def _kinds(values: Iterable[str]) -> Iterable[str]:
    for value in values:
        words = re.findall(r"[A-Z0-9*]+", value)
        for word in (*words, "".join(words)):
            if word in _KIND_OF:
                yield _KIND_OF[word]
