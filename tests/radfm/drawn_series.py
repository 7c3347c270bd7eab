"""Draws DICOM series as scanners and archives make them, each with its meaning: volumes, places, what tells them apart.

A series has `volumes` times `places` slices. A trait tells the volumes apart, for example EchoTime or AcquisitionTime,
or two traits together. On top of that come the habits of vendors (numbers that count something else, tags that are
missing, places that are rounded), and what happens on the way (lost slices, slices sent twice, new names). Every slice
holds its volume, its place and its corners in its pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.radfm.dicom_bytes import write_dicom

ROWS, COLUMNS = 4, 5
PLANES = {"axial": [1, 0, 0, 0, 1, 0], "coronal": [1, 0, 0, 0, 0, -1], "sagittal": [0, 1, 0, 0, 0, -1]}
_IMAGES = "1.2.840.10008.5.1.4.1.1."
_SOP_CLASSES = {"CT": _IMAGES + "2", "MR": _IMAGES + "4", "PT": _IMAGES + "128"}


@dataclass
class Slice:
    """One slice as it was acquired. position: (3,), mm, as the header states it, in L, P, S."""

    volume: int
    place: int
    position: np.ndarray
    elements: dict[str, Any] = field(default_factory=dict)

    def pixels(self, intercept: int = 0) -> np.ndarray:
        """(ROWS, COLUMNS) uint16: 16 x (volume x 16 + place + 1) + a number below 13, in three corners 15, 14, 13."""
        low = (np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) * 7 + self.place) % 13
        low[0, 0], low[0, -1], low[-1, 0] = 15, 14, 13
        return (16 * (16 * self.volume + self.place + 1) + low - intercept).astype(np.uint16)


@dataclass
class Series:
    """What was written, and what it means.

    Attributes:
        slices: the slices that were not lost, in no order.
        orientation, pixel_mm, step_mm: of the grid; pixel_mm is None where the header does not state it.
        apart_mm: how much further each volume lies than the one before.
        regular: whether the steps between places are equal, to the precision of the header.
        certain: whether the header says which slices belong to one volume. Where it does not, the reader has to say
            that it is unsure.
        files: how many were written; copies: how many of them show a slice again; frames: slices in one file.
        traits, habits: what was drawn, for messages.
    """

    slices: list[Slice]
    orientation: np.ndarray
    pixel_mm: tuple[float, float] | None
    step_mm: float
    apart_mm: float = 0.0
    regular: bool = True
    certain: bool = True
    volumes: int = 1
    places: int = 1
    copies: int = 0
    files: int = 0
    intercept: int = 0
    traits: tuple[str, ...] = ()
    habits: tuple[str, ...] = ()
    write: Callable[[Path], None] = field(default=lambda folder: None, repr=False)

    def describe(self) -> str:
        told = " x ".join(self.traits) or "nothing"
        lost = self.volumes * self.places - len(self.slices)
        return (
            f"{self.volumes} volumes of {self.places} places, told apart by {told}; {', '.join(self.habits) or 'plain'}"
            f"; {lost} lost, {self.copies} sent twice"
        )


@dataclass(frozen=True)
class Trait:
    """What tells volumes apart.

    Attributes:
        values: (volume, place, order in which the places of a volume are acquired) -> elements.
        most: volumes that it can tell apart.
        survives_losses: whether the header still says which volume a slice belongs to when others are lost.
        modalities: that have it.
    """

    values: Callable[[int, int, np.ndarray], dict[str, Any]]
    most: int = 6
    survives_losses: bool = True
    modalities: tuple[str, ...] = ("MR",)


def clock(seconds: float, digits: int = 3) -> str:
    """A DICOM time, so many seconds after ten o'clock."""
    whole = int(seconds + 1e-9)
    part = f"{seconds - whole:.{digits}f}"[1:] if digits else ""
    return f"{10 + whole // 3600:02d}{whole // 60 % 60:02d}{whole % 60:02d}{part}"


_TR = 2.0  # seconds for one volume
_KINDS = ("M", "P", "R", "I")
_DIRECTIONS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0], [0, 0.6, 0.8], [0.8, 0, 0.6]])


def _running(digits: int) -> Callable[[int, int, np.ndarray], dict[str, Any]]:
    def values(volume, place, order):
        seconds = _TR * volume + _TR * order[place] / len(order)
        return {"AcquisitionTime": clock(seconds if digits else np.floor(seconds + 1e-6), digits)}

    return values


def _jittered(volume, place, order):
    return {"TriggerTime": 40.0 * volume + (place * 7 + volume * 5) % 9}


ANY = ("MR", "CT", "PT")
TRAITS: dict[str, Trait] = {
    "echo": Trait(lambda v, p, o: {"EchoTime": 4.6 + 2.3 * v, "EchoNumbers": v + 1}),
    "echo time": Trait(lambda v, p, o: {"EchoTime": 4.6 + 2.3 * v}),
    "b-value": Trait(lambda v, p, o: {"DiffusionBValue": 500.0 * v}),
    "gradient": Trait(lambda v, p, o: {"DiffusionBValue": 1e3, "DiffusionGradientOrientation": list(_DIRECTIONS[v])}),
    "temporal position": Trait(lambda v, p, o: {"TemporalPositionIdentifier": v + 1}, modalities=ANY),
    "acquisition": Trait(lambda v, p, o: {"AcquisitionNumber": v + 1}, modalities=ANY),
    "time": Trait(lambda v, p, o: {"AcquisitionTime": clock(30 * v)}, modalities=ANY),
    "running time": Trait(_running(3), survives_losses=False, modalities=ANY),
    "ticking time": Trait(_running(0), survives_losses=False, modalities=ANY),
    "trigger time": Trait(lambda v, p, o: {"TriggerTime": 40.0 * v}),
    "jittered trigger time": Trait(_jittered, survives_losses=False),
    "image type": Trait(lambda v, p, o: {"ImageType": ["ORIGINAL", "PRIMARY", _KINDS[v], "NONE"]}, most=4),
    "kernel": Trait(lambda v, p, o: {"ConvolutionKernel": ("B30f", "B70f", "B45f")[v]}, most=3, modalities=("CT",)),
    "inversion time": Trait(lambda v, p, o: {"InversionTime": 100.0 * (v + 1)}),
    "voltage": Trait(lambda v, p, o: {"KVP": 80 + 20 * v}, most=3, modalities=("CT",)),
    "sequence name": Trait(lambda v, p, o: {"SequenceName": f"*ep_b{500 * v}t"}),
    "cardiac phase": Trait(lambda v, p, o: {"NominalPercentageOfCardiacPhase": 10.0 * v}, modalities=("CT",)),
    "frame reference time": Trait(lambda v, p, o: {"FrameReferenceTime": 500.0 + 1e3 * v}, modalities=("PT",)),
    "content time": Trait(lambda v, p, o: {"ContentTime": clock(30 * v)}, modalities=ANY),
    "acquisition date and time": Trait(
        lambda v, p, o: {"AcquisitionDateTime": "20200131" + clock(30 * v)}, modalities=ANY
    ),
    "instance numbers": Trait(lambda v, p, o: {}, survives_losses=False, modalities=ANY),
}
_OF_TIME = ("time", "running time", "ticking time", "frame reference time", "content time", "acquisition date and time")
_PAIRS = [  # the outer trait, which changes after all values of the inner one
    *[("echo", "image type"), ("b-value", "image type"), ("temporal position", "echo"), ("acquisition", "image type")],
    *[("inversion time", "image type"), ("trigger time", "image type"), ("temporal position", "b-value")],
    *[("acquisition", "kernel"), ("time", "kernel"), ("time", "echo"), ("running time", "echo")],
    *[("trigger time", "echo"), ("inversion time", "echo")],
]


@st.composite
def grids(draw, volumes: int, places: int, offset: bool) -> Series:
    """A series without files: its slices at their places."""
    seed = np.random.default_rng(draw(st.integers(0, 2**16)))
    orientation = np.reshape(PLANES[draw(st.sampled_from(sorted(PLANES)))], (2, 3)).astype(float)
    if draw(st.integers(0, 3)) == 0:  # oblique
        orientation = orientation @ rotation(*seed.uniform(-0.6, 0.6, 3)).T
    step_mm = draw(st.sampled_from([5.0, 3.3, 1.25, 0.7]))
    along = np.cross(*orientation) * step_mm * draw(st.sampled_from([1, -1]))
    habits = []
    if draw(st.integers(0, 5)) == 0:
        habits.append("tilted gantry")
        rows = orientation[0]
        orientation = np.stack([rows, rotation_about(rows, draw(st.integers(5, 25))) @ orientation[1]])
    steps, regular = np.ones(places - 1), True
    spacing = draw(st.sampled_from(["even"] * 6 + ["gap", "uneven"])) if places > 3 else "even"
    if spacing == "gap":
        steps[draw(st.integers(0, places - 2))] = draw(st.sampled_from([2, 3.5]))
    elif spacing == "uneven":
        steps = 1 + seed.uniform(0, 0.9, places - 1)
    if spacing != "even":
        regular = False
        habits.append(spacing)
    distances = np.concatenate([[0], np.cumsum(steps)])  # in steps
    start = np.round(seed.uniform(-200, 200, 3), 2)
    # Slices that lie further apart could as well be passes of one acquisition between each other's slices.
    apart_mm = min(draw(st.sampled_from([0, 0, 0.02, 0.4])), step_mm / (3 * volumes)) if offset else 0
    jitter_mm = draw(st.sampled_from([0, 0, 0.005, 0.02]))
    digits = draw(st.sampled_from([6, 6, 3, 2, 1]))
    if apart_mm or jitter_mm:
        habits.append(f"volumes {apart_mm:.2g} mm apart, places {jitter_mm} mm off")
    slices = []
    for volume in range(volumes):
        for place in range(places):
            position = start + along * distances[place] + volume * apart_mm * along / step_mm
            position = np.round(position + seed.uniform(-1, 1, 3) * jitter_mm / np.sqrt(3), digits)
            slices.append(Slice(volume, place, position))
    if digits == 1:
        habits.append("places to 0.1 mm")
    pixel_mm = draw(st.sampled_from([(0.5, 0.5), (0.9, 0.6), (0.9, 0.6), None]))
    exact = regular and digits > 1
    size = {"volumes": volumes, "places": places, "habits": tuple(habits)}
    return Series(slices, orientation.ravel().round(6), pixel_mm, step_mm, apart_mm, exact, **size)


def rotation(a: float, b: float, c: float) -> np.ndarray:
    """(3, 3) rotation by three angles in radians."""
    axes = np.eye(3)
    return np.linalg.multi_dot([rotation_about(axes[i], np.rad2deg(angle)) for i, angle in enumerate((a, b, c))])


def rotation_about(axis: np.ndarray, degrees: float) -> np.ndarray:
    """(3, 3) rotation about a unit vector (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@st.composite
def traits_and_volumes(draw) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names of the traits and how many values each has; no trait for one volume."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return (), ()
    if kind < 5:
        name = draw(st.sampled_from(sorted(TRAITS)))
        return (name,), (draw(st.integers(2, min(6, TRAITS[name].most))),)
    names = draw(st.sampled_from(_PAIRS))
    return names, tuple(draw(st.integers(2, min(3, TRAITS[name].most))) for name in names)


@st.composite
def series(draw) -> Series:
    """A series of one slice for each file."""
    names, sizes = draw(traits_and_volumes())
    volumes = int(np.prod(sizes, dtype=int))
    places = draw(st.integers(3, 10)) if volumes > 1 else draw(st.integers(1, 10))
    modality = draw(st.sampled_from([m for m in ANY if all(m in TRAITS[name].modalities for name in names)]))
    offset = bool(names) and names[0] in ("acquisition", "time", "echo", "temporal position", "kernel")
    made = draw(grids(volumes, places, offset))
    made.traits, made.intercept = names, -1024 if modality == "CT" else 0
    seed = np.random.default_rng(draw(st.integers(0, 2**16)))
    order = draw(st.sampled_from(["ascending", "descending", "interleaved"]))
    rank = ranks(order, places)
    for one in made.slices:
        remainder = one.volume
        for name, size in zip(reversed(names), reversed(sizes), strict=True):
            remainder, value = divmod(remainder, size)
            one.elements |= TRAITS[name].values(value, one.place, rank)
    shared = draw(_habits(made, modality, rank, order))
    _lose(draw, made, seed, order)
    _finish(made, modality, shared, seed, draw(st.sampled_from([0, 0, 0, 1, 3])))
    return made


def ranks(order: str, places: int) -> np.ndarray:
    """(places,) when each place of a volume is acquired: 0 first."""
    forward = np.arange(places)
    if order == "interleaved":
        return np.argsort(np.concatenate([forward[::2], forward[1::2]]))
    return forward if order == "ascending" else forward[::-1]


@st.composite
def _habits(draw, made: Series, modality: str, rank: np.ndarray, order: str) -> dict[str, Any]:
    """Adds what vendors write besides, which tells nothing about the volumes; returns what all files share."""
    names, places, volumes = made.traits, made.places, made.volumes
    habits, shared = list(made.habits), {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]}
    if "temporal position" not in names and draw(st.integers(0, 3)) == 0:
        habits.append("TemporalPositionIdentifier is always 1")
        shared["TemporalPositionIdentifier"] = 1
    if "acquisition" not in names:
        choices = ["none", "1", "slice", "place"] + (["halves"] if volumes == 1 and places > 3 else [])
        numbering = draw(st.sampled_from(choices if names != ("instance numbers",) else choices[:2]))
        habits += [f"AcquisitionNumber: {numbering}"] if numbering != "none" else []
        for one in made.slices:
            number = {"1": 1, "slice": one.volume * places + one.place + 1, "place": one.place + 1}.get(numbering)
            if numbering == "halves":
                number = 1 + (2 * one.place >= places)
                one.elements["AcquisitionTime"] = clock(40 * number)
            one.elements["AcquisitionNumber"] = number
    ordered = {*_OF_TIME, "acquisition", "temporal position", "instance numbers"}  # these agree with the time
    if not ordered & set(names) and "AcquisitionNumber: halves" not in habits:
        times = draw(st.sampled_from(["none", "one", "by volume", "by place"]))
        habits += [f"AcquisitionTime: {times}, {order}"] if times != "none" else []
        for one in made.slices:
            turn = {"by volume": one.volume + rank[one.place] / places, "by place": one.place + one.volume / volumes}
            if times != "none":
                one.elements["AcquisitionTime"] = clock(_TR * turn.get(times, 0))
    if not any("trigger" in name for name in names) and modality == "MR" and draw(st.integers(0, 4)) == 0:
        habits.append("TriggerTime of each place")
        for one in made.slices:
            one.elements["TriggerTime"] = 100.0 + 13 * rank[one.place]
    for keyword, value in {
        "SliceThickness": made.step_mm,
        "SpacingBetweenSlices": made.step_mm,
        "FrameOfReferenceUID": "1.2.3.4.5",
        "SeriesNumber": 3,
        "StudyDate": "20200131",
    }.items():
        shared[keyword] = value if draw(st.booleans()) else None
    if made.pixel_mm is None:
        habits.append("no PixelSpacing")
    habits.append(draw(_numbered(made)))
    if draw(st.integers(0, 9)) == 0:
        habits.append("a SeriesInstanceUID for each slice")
        shared |= {"SeriesInstanceUID": None, "SeriesNumber": 3, "FrameOfReferenceUID": "1.2.3.4.5"}
        shared["Manufacturer"] = "CANON_MEC"
    else:
        shared["SeriesInstanceUID"] = "1.2.3.1"
    made.habits = tuple(habits)
    return shared


@st.composite
def _numbered(draw, made: Series) -> str:
    """Sets InstanceNumber; returns how."""
    told = ["by volume", "by place"]
    how = draw(st.sampled_from(told if "instance numbers" in made.traits else [*told, "shuffled", "again", "missing"]))
    slices = list(made.slices)
    if how == "by place":
        slices.sort(key=lambda one: one.place)
    elif how == "shuffled":
        np.random.default_rng(draw(st.integers(0, 2**16))).shuffle(slices)
    for number, one in enumerate(slices, 1):
        one.elements["InstanceNumber"] = {"again": one.place + 1, "missing": None}.get(how, number)
    return f"InstanceNumber {how}"


def _lose(draw, made: Series, seed: np.random.Generator, order: str) -> None:
    """Take away up to a fifth of the slices, at most a third of each volume."""
    if made.places < 3 or draw(st.integers(0, 2)):
        return
    most = max(len(made.slices) // 5, 1)
    for one in seed.permutation(np.array(made.slices, object))[: draw(st.integers(1, most))]:
        left = [other for other in made.slices if other.volume == one.volume]
        if len(left) > 2 * made.places / 3:
            made.slices.remove(one)
    lost = len(made.slices) < made.volumes * made.places
    survives = all(TRAITS[name].survives_losses for name in made.traits)
    in_order = made.traits == ("running time",) and order != "interleaved"
    made.certain = not lost or survives or in_order


def _finish(made: Series, modality: str, shared: dict, seed: np.random.Generator, copies: int) -> None:
    """Shuffle the files, repeat some, and set how they are written."""
    files = [made.slices[i] for i in seed.permutation(len(made.slices))]
    repeated = files[: min(copies, len(files))]
    made.copies, made.files = len(repeated), len(files) + len(repeated)
    shared = {
        **shared,
        **pixel_elements(made),
        "SOPClassUID": _SOP_CLASSES[modality],
        "Modality": modality,
        "StudyInstanceUID": "1.2.3",
        "PatientID": "P1",
        "ImageOrientationPatient": [f"{value:.6f}" for value in made.orientation],
        "RescaleIntercept": made.intercept if modality != "MR" else None,
        "RescaleSlope": 1 if modality != "MR" else None,
    }
    names = seed.permutation(made.files)

    def write(folder: Path) -> None:
        numbers = count(1)
        for name, one in zip(names, [*files, *repeated], strict=True):
            number = next(numbers)
            own = {
                "SOPInstanceUID": f"1.2.3.7.{number}",
                "ImagePositionPatient": [f"{value:.6f}".rstrip("0").rstrip(".") for value in one.position],
                "PixelData": one.pixels(made.intercept).tobytes(),
                **one.elements,
            }
            if shared["SeriesInstanceUID"] is None:
                own["SeriesInstanceUID"] = f"1.2.3.1.{number}"
            write_dicom(folder / f"{name:03d}.dcm", {**shared, **own})

    made.write = write


def pixel_elements(made: Series) -> dict[str, Any]:
    """The elements that describe the pixels of every file."""
    return {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": ROWS,
        "Columns": COLUMNS,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "PixelSpacing": list(map(str, made.pixel_mm)) if made.pixel_mm else None,
    }
