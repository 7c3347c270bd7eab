"""Synthetic patients: one anatomy, its disorders, and scans of it, with masks of what each scan shows.

    >>> from radfm.data_prep.phantoms import make_case
    >>> phantom = make_case(seed=0, index=7, cases=2000)
    >>> phantom.case.disorders, [scan.modality for scan in phantom.case.scans]

Decisions:
- A case depends on its arguments alone. Its random generators come from SeedSequence([seed, index]): one for the plan
  of the case, one for the anatomy, and one for each scan.
- All scans of a case show the same volume, so that a lesion has the same position in each.
- A mask holds what a scan shows: voxels of the lesion where the noise-free signal differs from that of the same anatomy
  without the lesion. A disorder that a modality cannot show has no mask there. Where a disorder changes the shape of an
  organ, the mask is the organ, in scans of the modalities and planes that `shows` names.
- A disorder that is smaller, larger or absent on another date (`follow_up`) uses the same random numbers, so that its
  position and the rest of the anatomy stay.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from types import ModuleType

import numpy as np

from radfm.cases import Case, Scan
from radfm.data_prep.phantoms import abdomen, brain, breast, chest, knee, pelvis, spine
from radfm.data_prep.phantoms.ct import CT
from radfm.data_prep.phantoms.disorders import Disorder
from radfm.data_prep.phantoms.draw import MOST_SCANS, draw_disorders, draw_protocols
from radfm.data_prep.phantoms.emission import Emission
from radfm.data_prep.phantoms.history import write_history
from radfm.data_prep.phantoms.lesions import grow
from radfm.data_prep.phantoms.mri import MRI
from radfm.data_prep.phantoms.person import Person, draw_person
from radfm.data_prep.phantoms.projection import Projection
from radfm.data_prep.phantoms.protocols import Protocol, protocols
from radfm.data_prep.phantoms.ultrasound import Ultrasound
from radfm.data_prep.phantoms.views import View
from radfm.data_prep.phantoms.volume import Volume

ANATOMIES: dict[str, ModuleType] = {
    m.__name__.rpartition(".")[2]: m for m in (chest, abdomen, brain, pelvis, knee, spine, breast)
}
RENDERERS: dict[str, Callable[..., View]] = {
    "ct": CT,
    "mri": MRI,
    "projection": Projection,
    "ultrasound": Ultrasound,
    "emission": Emission,
}
MIRRORED = ("knee", "breast")  # painted as left ones; in half of the patients, the right one is examined
MIN_VOXELS = 3  # smaller masks are left out


@dataclass(frozen=True)
class SizeOnDate:
    """The volume of a disorder on a date, 0 where it is absent.

    Attributes:
        days: days before the newest scan of the case.
    """

    disorder: str
    days: float
    volume_ml: float


@dataclass
class Phantom:
    """A synthetic case with its masks.

    Attributes:
        case: scans, history, disorders and identifiers.
        patient_id: "S<seed>P<index>"; every case is a patient of its own.
        icd10cm: one code for each disorder, in the order of `case.disorders`.
        history: short clinical text that names no diagnosis.
        masks: for each scan, disorder -> (slices, H, W) bool, for the disorders that the scan shows.
        anatomy: examined body part, a key of `ANATOMIES`.
        protocols: names of the protocols of the scans, see protocols.csv.
        sizes: of each disorder, on each date; an organ that a disorder changes counts as a whole.
    """

    case: Case
    patient_id: str
    icd10cm: list[str]
    history: str
    masks: list[dict[str, np.ndarray]]
    anatomy: str
    protocols: list[str] = field(default_factory=list)
    sizes: list[SizeOnDate] = field(default_factory=list)


@dataclass(frozen=True)
class PhantomPlan:
    """What a phantom has and how it is examined.

    Attributes:
        patient_id: identifier of the patient.
        disorders: the main disorder first; empty for a normal case.
        protocols: acquisitions, all of the same anatomy.
        size: height and width of every picture in pixels.
    """

    patient_id: str
    disorders: list[Disorder]
    protocols: list[Protocol]
    size: int = 96

    @property
    def anatomy(self) -> str:
        return self.protocols[0].anatomy


class Generators:
    """The random generators of a case: of its plan, of its anatomy, and one for each scan.

    Args:
        entropy: what determines the case, such as (seed, index).
        scans: number of generators for scans.
    """

    def __init__(self, entropy: Sequence[int], scans: int = MOST_SCANS):
        generators = [np.random.default_rng(seed) for seed in np.random.SeedSequence(entropy).spawn(2 + scans)]
        self.plan, self.anatomy, *self.scans = generators


def make_case(seed: int, index: int, cases: int, size: int = 96) -> Phantom:
    """A case of a set of synthetic patients.

    Args:
        seed: seed of the set.
        index: position of the case in the set.
        cases: number of cases in the set; the frequencies of disorders hold for the whole set.
        size: height and width of every picture in pixels; the time grows with its cube.
    Raises:
        ValueError: the index is not in the set, or the size is below 32.
    """
    if size < 32:
        raise ValueError(f"size {size} is too small for an anatomy: use 32 or more")
    generators = Generators([seed, index])
    anatomy, disorders = draw_disorders(generators.plan, seed, index, cases)
    acquisitions = draw_protocols(generators.plan, anatomy, disorders)
    return make_phantom(PhantomPlan(f"S{seed}P{index:06d}", disorders, acquisitions, size), generators)


def anatomy_of(seed: int, index: int, cases: int) -> str:
    """The anatomy of a case of `make_case`, without making it. Raises: ValueError: the index is not in the set."""
    return draw_disorders(Generators([seed, index]).plan, seed, index, cases)[0]


def make_phantom(plan: PhantomPlan, generators: Generators, sizes: Mapping[str, float] | None = None) -> Phantom:
    """The phantom of a plan.

    Args:
        sizes: disorder -> its size as a share of the size that is drawn, 0 where it is absent; None: all are whole.
    """
    rng, anatomy, sizes = generators.plan, plan.anatomy, sizes or {}
    disorders = [disorder.scaled(sizes.get(disorder.name, 1.0)) for disorder in plan.disorders]
    side = ("right", "left")[rng.integers(2)]
    person = _person(replace(plan, disorders=disorders), generators, side)
    volume = Volume(plan.size, ANATOMIES[anatomy].FIELD_OF_VIEW_MM, generators.anatomy)
    ANATOMIES[anatomy].build(volume, person)
    healthy = volume.labels.copy()
    in_order = sorted(disorders, key=lambda disorder: disorder.shape != "organ")
    lesions, absent = {}, {}
    for disorder in in_order:
        before = volume.labels.copy()
        lesions[disorder.name] = grow(volume, disorder, generators.anatomy, side)
        if sizes.get(disorder.name, 1.0) == 0:
            volume.labels, absent[disorder.name] = before, np.zeros_like(lesions[disorder.name])
    if anatomy in MIRRORED and side == "right":
        volume.mirrored, flipped = True, np.s_[:, :, ::-1]
        volume.labels, healthy = volume.labels[flipped], healthy[flipped]
        lesions = {name: voxels[flipped] for name, voxels in lesions.items()}
    targets, lesions = lesions, lesions | absent  # a probe points to where a lesion was or will be, too
    scans, masks = [], []
    for protocol, scan_rng in zip(plan.protocols, generators.scans, strict=False):
        scan, masks_of_scan = _scan(volume, healthy, protocol, scan_rng, disorders, lesions, targets)
        scans.append(scan)
        masks.append(masks_of_scan)
    for scan, day in zip(scans, _days(rng, len(scans)), strict=True):
        scan.days, scan.body_part = day, anatomy
    history = write_history(rng, person, anatomy, disorders)
    case = Case(
        scans=scans,
        history=history,
        disorders=[disorder.name for disorder in disorders],
        case_id=plan.patient_id + "C1",
        patient_id=plan.patient_id,
    )
    codes = [disorder.icd10cm for disorder in disorders]
    names = [protocol.name for protocol in plan.protocols]
    voxel_ml = volume.spacing_mm**3 / 1000
    volumes = [SizeOnDate(name, 0.0, float(voxels.sum() * voxel_ml)) for name, voxels in lesions.items()]
    return Phantom(case, plan.patient_id, codes, history, masks, anatomy, names, volumes)


def _person(plan: PhantomPlan, generators: Generators, side: str) -> Person:
    """A person whose age and sex fit all disorders, with the changes that they make to the anatomy."""
    changes: dict[str, float] = {}
    for disorder in plan.disorders:
        for name, (low, high) in disorder.changes.items():
            name = name.replace("{side}", side)
            changes[name] = changes.get(name, 1.0) * generators.plan.uniform(low, high)
    ages = (max([20.0, *(d.ages[0] for d in plan.disorders)]), min([90.0, *(d.ages[1] for d in plan.disorders)]))
    return draw_person(generators.anatomy, ages, _sexes(plan.anatomy, plan.disorders), changes)


def _sexes(anatomy: str, disorders: list[Disorder]) -> str:
    sexes = "f" if anatomy == "breast" else "fm"
    for disorder in disorders:
        sexes = "".join(sex for sex in disorder.sexes if sex in sexes) or sexes
    return sexes


def _scan(volume, healthy, protocol, rng, disorders, lesions, targets) -> tuple[Scan, dict[str, np.ndarray]]:
    view = RENDERERS[protocol.renderer](volume, protocol, rng, _aim(protocol, disorders, targets))
    properties = volume.properties
    signal = view.signal(volume.labels, properties)
    masks = {}
    for disorder in disorders:
        in_view = view.project(lesions[disorder.name])
        if not in_view.any() or not (disorder.parts or _shows_change(disorder, protocol)):
            continue
        if disorder.parts:
            without = copy(view).signal(np.where(lesions[disorder.name], healthy, volume.labels), properties)
            in_view = in_view & (np.abs(signal - without) > view.visible)
        mask = view.picture_mask(in_view)
        if mask.sum() >= MIN_VOXELS:
            masks[disorder.name] = mask
    pixels = view.picture(signal, rng)
    key = next((int(masks[d.name].sum((1, 2)).argmax()) for d in disorders if d.name in masks), None)
    scan = Scan(
        pixels=pixels,
        modality=protocol.modality,
        plane=view.plane,
        spacing_mm=view.spacing_mm,
        key_slice=key,
        source=protocol.name,
    )
    return scan, masks


def _shows_change(disorder: Disorder, protocol: Protocol) -> bool:
    """Whether a protocol shows a changed shape of an organ: it has the modality and plane of one in `shows`."""
    shows = [protocols()[name] for name in disorder.shows]
    return any((protocol.modality, protocol.plane) == (shown.modality, shown.plane) for shown in shows)


def _aim(protocol: Protocol, disorders: list[Disorder], targets: dict[str, np.ndarray]) -> np.ndarray | None:
    """The (z, y, x) voxel that an ultrasound probe points at: the lesion that the protocol is made for, or None."""
    for disorder in disorders:
        if protocol.name in disorder.shows and targets[disorder.name].any():
            voxels = np.argwhere(targets[disorder.name])
            return voxels[np.argmin(((voxels - voxels.mean(0)) ** 2).sum(1))]
    return None


def _days(rng: np.random.Generator, scans: int) -> list[float]:
    days = np.where(rng.random(scans) < 0.6, 0, rng.integers(1, 60, scans))
    return [float(day) for day in days - days.min()]
