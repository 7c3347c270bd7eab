"""Draws series whose frames lie in one file: enhanced multi-frame objects, and NM with its vectors."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.radfm.dicom_bytes import write_dicom
from tests.radfm.drawn_series import Series, clock, grids, pixel_elements

_ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
_NM = "1.2.840.10008.5.1.4.1.1.20"
_DIMENSIONS = {  # trait -> (pointer, functional group that holds it)
    "echo": ("EffectiveEchoTime", "MREchoSequence"),
    "b-value": ("DiffusionBValue", "MRDiffusionSequence"),
    "gradient": ("DiffusionGradientOrientation", "MRDiffusionSequence"),
    "temporal index": ("TemporalPositionIndex", "FrameContentSequence"),
    "frame type": ("FrameType", "MRImageFrameTypeSequence"),
    "trigger delay": ("NominalCardiacTriggerDelayTime", "CardiacSynchronizationSequence"),
    "inversion time": ("InversionTimes", "MRModifierSequence"),
    "dimension index": ("ContrastBolusAgentNumber", "ContrastBolusUsageSequence"),
}
_DIRECTIONS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.6, 0.8, 0.0]]


def _value(trait: str, volume: int, content: dict[str, Any]) -> dict[str, Any]:
    """Adds what tells a volume apart to the frame's content, or returns functional groups that do."""
    if trait == "temporal index":
        content["TemporalPositionIndex"] = volume + 1
        return {}
    groups = {
        "echo": {"MREchoSequence": [{"EffectiveEchoTime": 4.6 + 2.3 * volume}]},
        "b-value": {"MRDiffusionSequence": [{"DiffusionBValue": 500.0 * volume}]},
        "frame type": {"MRImageFrameTypeSequence": [{"FrameType": ["ORIGINAL", "PRIMARY", "MPRI"[volume], "NONE"]}]},
        "trigger delay": {"CardiacSynchronizationSequence": [{"NominalCardiacTriggerDelayTime": 40.0 * volume}]},
        "inversion time": {"MRModifierSequence": [{"InversionTimes": [100.0 * (volume + 1)]}]},
    }
    gradient = {"DiffusionGradientOrientation": _DIRECTIONS[volume]}
    groups["gradient"] = {
        "MRDiffusionSequence": [{"DiffusionBValue": 1000.0, "DiffusionGradientDirectionSequence": [gradient]}]
    }
    return groups.get(trait, {})


@st.composite
def enhanced(draw) -> Series:
    """A series in one enhanced MR file, with its dimensions."""
    trait = draw(st.sampled_from([None, *sorted(_DIMENSIONS)]))
    volumes = 1 if trait is None else draw(st.integers(2, 4))
    made = draw(grids(volumes, draw(st.integers(2, 8)), offset=False))
    if made.pixel_mm is None:
        made.pixel_mm = 0.9, 0.6
    made.traits, made.habits = (trait,) * bool(trait), (*made.habits, "enhanced")
    seed = np.random.default_rng(draw(st.integers(0, 2**16)))
    how = draw(st.sampled_from(["by volume", "by place", "shuffled"]))
    if how == "by place":
        made.slices.sort(key=lambda one: one.place)
    elif how == "shuffled":
        seed.shuffle(made.slices)
    made.habits += (f"frames {how}",)
    clocks = draw(st.sampled_from(["none", "running", "one"]))
    frames = []
    for i, one in enumerate(made.slices):
        position = [f"{value:.6f}" for value in one.position]
        indices = [1, one.place + 1] + ([one.volume + 1] if trait else [])
        content = {"DimensionIndexValues": indices, "StackID": "1", "InStackPositionNumber": one.place + 1}
        if clocks != "none":
            content["FrameAcquisitionDateTime"] = "20200131" + clock(0.1 * i if clocks == "running" else 0)
        groups = _value(trait, one.volume, content)
        frames.append(
            {"FrameContentSequence": [content], "PlanePositionSequence": [{"ImagePositionPatient": position}], **groups}
        )
    pointers = [("StackID", "FrameContentSequence"), ("InStackPositionNumber", "FrameContentSequence")]
    pointers += [_DIMENSIONS[trait]] if trait else []
    measures = {"PixelSpacing": list(map(str, made.pixel_mm)), "SliceThickness": made.step_mm}
    orientation = [f"{value:.6f}" for value in made.orientation]
    elements = {
        **_one_file(made, _ENHANCED_MR, "MR"),
        "PixelSpacing": None,
        "DimensionIndexSequence": [
            {"DimensionIndexPointer": [pointer], "FunctionalGroupPointer": [group]} for pointer, group in pointers
        ],
        "SharedFunctionalGroupsSequence": [
            {
                "PixelMeasuresSequence": [measures],
                "PlaneOrientationSequence": [{"ImageOrientationPatient": orientation}],
            }
        ],
        "PerFrameFunctionalGroupsSequence": frames,
    }
    return _in_one_file(made, elements)


@st.composite
def nuclear(draw) -> Series:
    """A reconstructed tomogram in one NM file: slices, perhaps of several time slots or energy windows."""
    trait = draw(st.sampled_from([None, "TimeSlotVector", "RRIntervalVector", "EnergyWindowVector"]))
    volumes = 1 if trait is None else draw(st.integers(2, 4))
    made = draw(grids(volumes, draw(st.integers(2, 8)), offset=False))
    made.pixel_mm, made.traits, made.regular = (4.0, 4.0), (trait,) * bool(trait), True
    spacing = draw(st.sampled_from([-4.0, 4.0]))
    made.step_mm = abs(spacing)
    first = made.slices[0].position
    orientation = made.orientation
    along = np.cross(orientation[:3], orientation[3:]) * spacing
    for one in made.slices:
        one.position = first + along * one.place
    if draw(st.booleans()):
        made.slices.sort(key=lambda one: one.place)
    made.habits = ("NM", f"SpacingBetweenSlices {spacing:g}")
    kind = "RECON GATED TOMO" if trait in ("TimeSlotVector", "RRIntervalVector") else "RECON TOMO"
    names = ["SliceVector", *([trait] if trait else [])]
    detector = {
        "ImagePositionPatient": [f"{value:.6f}" for value in first],
        "ImageOrientationPatient": [f"{value:.6f}" for value in orientation],
    }
    elements = {
        **_one_file(made, _NM, "NM"),
        "ImageType": ["ORIGINAL", "PRIMARY", kind, "EMISSION"],
        "FrameIncrementPointer": names,
        "SliceVector": [one.place + 1 for one in made.slices],
        "NumberOfSlices": made.places,
        "SpacingBetweenSlices": spacing,
        "SliceThickness": 4,
        "DetectorInformationSequence": [detector],
    }
    if trait:
        elements[trait] = [one.volume + 1 for one in made.slices]
    return _in_one_file(made, elements)


def _one_file(made: Series, sop_class: str, modality: str) -> dict[str, Any]:
    return {
        **pixel_elements(made),
        "SOPClassUID": sop_class,
        "SOPInstanceUID": "1.2.3.7.1",
        "SeriesInstanceUID": "1.2.3.1",
        "StudyInstanceUID": "1.2.3",
        "PatientID": "P1",
        "Modality": modality,
        "NumberOfFrames": len(made.slices),
    }


def _in_one_file(made: Series, elements: dict[str, Any]) -> Series:
    made.files = 1

    def write(folder: Path) -> None:
        pixels = b"".join(one.pixels().tobytes() for one in made.slices)
        write_dicom(folder / "frames.dcm", {**elements, "PixelData": pixels})

    made.write = write
    return made
