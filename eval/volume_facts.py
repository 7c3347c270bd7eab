"""What a model read of a scan as a volume, in words.

Decisions:
- Axes are named by the patient, since "depth" is another one for each model and each scan.
- Lengths are in mm: a voxel of the model is none of the scan.
"""

import numpy as np

from radfm.presentation import enumeration
from radfm.volume_processing_radfm import VolumeGrid, VolumeSettings, axis_name


def volume_facts(grid: VolumeGrid, settings: VolumeSettings) -> list[str]:
    """Full sentences: size and voxels of the volume, and what was resampled, cropped and padded.

    Args:
        settings: of the model that read it.
    """
    names = [axis_name(direction) for direction in settings.axes]
    voxels = [len(positions) for positions in grid.positions_of_windows[0]]
    lengths = [count * mm for count, mm in zip(voxels, settings.spacing_mm, strict=True)]
    size = " × ".join(f"{length:.0f} mm ({name})" for length, name in zip(lengths, names, strict=True))
    overlap = "overlapping " if len(np.unique(grid.positions[0])) < len(grid.positions[0]) else ""
    several = f"{grid.windows} {overlap}windows" if grid.windows > 1 else "a volume"
    facts = [f"Read as {several} of {size}: {_times(voxels)} voxels of {_times(settings.spacing_mm)} mm."]
    own = [grid.spacing_mm[source] for source in grid.source_axes]
    same = np.allclose(own, settings.spacing_mm, rtol=1e-3)
    facts.append("Not resampled." if same else f"Resampled from {_times(own)} mm.")
    return facts + _cropped_and_padded(grid, settings, names)


def _cropped_and_padded(grid: VolumeGrid, settings: VolumeSettings, names: list[str]) -> list[str]:
    cropped, padded = [], []
    for source, positions, mm, name in zip(grid.source_axes, grid.positions, settings.spacing_mm, names, strict=True):
        whole = grid.shape[source] * grid.spacing_mm[source]
        ends = [end for extent in grid.extents for end in extent[source]]
        lost = whole - (max(ends) - min(ends)) * grid.spacing_mm[source]
        if lost > mm:
            cropped.append(f"{lost:.0f} of {whole:.0f} mm ({name})")
        if missing := int(np.isnan(positions).sum()):
            padded.append(f"{missing * mm:.0f} mm ({name})")
    facts = [f"Cropped: {enumeration(cropped)}."] if cropped else []
    return facts + ([f"Padded: {enumeration(padded)}."] if padded else [])


def _times(numbers) -> str:
    """ "3 × 1.5 × 1.5" """
    return " × ".join(f"{number:.2f}".rstrip("0").rstrip(".") for number in numbers)
