"""A synthetic patient: one anatomy, its disorders, and the scans of it, with the truth kept.

    >>> from radfm.data_prep.phantoms import make_case
    >>> phantom = make_case(seed=0, index=7, cases=2000)
    >>> phantom.case.disorders, [scan.modality for scan in phantom.case.scans]

Decisions:
- A case depends on its arguments alone: generators come from SeedSequence([seed, index]), one for what the case is, one
  for the anatomy, one per scan.
- All scans of a case see the same volume, so a lesion is at the same place in each.
- A mask holds what a scan shows: voxels of the lesion where the noise-free signal differs from that of the same body
  without it. So a disorder that a modality cannot see has no mask there. Where a disorder changes an organ's shape, the
  mask is that organ, in scans of the modalities and planes that `shows` names.
"""

from copy import copy
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np

from radfm.cases import Case, Scan
from radfm.data_prep.phantoms import abdomen, brain, breast, chest, knee, pelvis, spine
from radfm.data_prep.phantoms.ct import CT
from radfm.data_prep.phantoms.disorders import Disorder
from radfm.data_prep.phantoms.draw import draw_disorders, draw_protocols
from radfm.data_prep.phantoms.emission import Emission
from radfm.data_prep.phantoms.history import write_history
from radfm.data_prep.phantoms.lesions import grow
from radfm.data_prep.phantoms.mri import MRI
from radfm.data_prep.phantoms.person import draw_person
from radfm.data_prep.phantoms.projection import Projection
from radfm.data_prep.phantoms.protocols import Protocol, protocols
from radfm.data_prep.phantoms.ultrasound import Ultrasound
from radfm.data_prep.phantoms.volume import Volume

ANATOMIES: dict[str, ModuleType] = {
    m.__name__.rpartition(".")[2]: m for m in (chest, abdomen, brain, pelvis, knee, spine, breast)
}
RENDERERS = {"ct": CT, "mri": MRI, "projection": Projection, "ultrasound": Ultrasound, "emission": Emission}
MIRRORED = ("knee", "breast")  # painted as left ones; half of the patients have the right one examined
LEAST_VOXELS = 3  # a smaller mask is no finding


@dataclass
class Phantom:
    """A case with its truth.

    Attributes:
        case: scans, history, disorders, ids.
        patient_id: "S<seed>P<index>": every case is a patient of its own.
        icd10cm: one code per disorder, in the order of `case.disorders`.
        history: short clinical text, which names no diagnosis.
        masks: per scan, disorder -> (slices, H, W) bool, for the disorders that the scan shows.
        anatomy, protocols: what was examined, and by which rows of protocols.csv.
    """

    case: Case
    patient_id: str
    icd10cm: list[str]
    history: str
    masks: list[dict[str, np.ndarray]]
    anatomy: str
    protocols: list[str] = field(default_factory=list)


def make_case(seed: int, index: int, cases: int, size: int = 96) -> Phantom:
    """Case `index` of a set of so many.

    Args:
        size: height and width of every picture, pixels; more is slower with its cube.
    Raises:
        ValueError: the index is not in the set, or the size is below 32.
    """
    if size < 32:
        raise ValueError(f"size {size} is too small for an anatomy: give at least 32")
    plan, body, *views = (np.random.default_rng(s) for s in np.random.SeedSequence([seed, index]).spawn(8))
    anatomy, found = draw_disorders(plan, seed, index, cases)
    chosen = draw_protocols(plan, anatomy, found)
    return draw_phantom(anatomy, found, chosen, plan, body, views, size, f"S{seed}P{index:06d}")


def draw_phantom(
    anatomy: str,
    found: list[Disorder],
    chosen: list[Protocol],
    plan: np.random.Generator,
    body: np.random.Generator,
    views: list[np.random.Generator],
    size: int,
    patient_id: str,
) -> Phantom:
    """The phantom of a plan: disorders (the main one first) and acquisitions, one generator of `views` for each."""
    side = ("right", "left")[plan.integers(2)]
    changes: dict[str, float] = {}
    for d in found:
        for name, (low, high) in d.changes.items():
            name = name.replace("{side}", side)
            changes[name] = changes.get(name, 1.0) * plan.uniform(low, high)
    ages = (max([20.0, *(d.ages[0] for d in found)]), min([90.0, *(d.ages[1] for d in found)]))
    sexes = _sexes(anatomy, found)
    who = draw_person(body, ages, sexes, changes)
    build = ANATOMIES[anatomy]
    volume = Volume(size, build.FIELD_OF_VIEW_MM, body)
    build.build(volume, who)
    healthy = volume.labels.copy()
    lesions = {d.name: grow(volume, d, body, side) for d in sorted(found, key=lambda d: d.shape != "organ")}
    if anatomy in MIRRORED and side == "right":
        volume.mirrored, flipped = True, np.s_[:, :, ::-1]
        volume.labels, healthy = volume.labels[flipped], healthy[flipped]
        lesions = {name: where[flipped] for name, where in lesions.items()}
    scans, masks = [], []
    for protocol, rng in zip(chosen, views, strict=False):
        scan, mask = _scan(volume, healthy, protocol, rng, found, lesions)
        scans.append(scan)
        masks.append(mask)
    days = _days(plan, len(scans))
    for scan, day in zip(scans, days, strict=True):
        scan.days, scan.body_part = day, anatomy
    history = write_history(plan, who, anatomy, found)
    names = [d.name for d in found]
    case = Case(scans=scans, history=history, disorders=names, case_id=patient_id + "C1", patient_id=patient_id)
    codes = [d.icd10cm for d in found]
    return Phantom(case, patient_id, codes, history, masks, anatomy, [p.name for p in chosen])


def _sexes(anatomy: str, found: list[Disorder]) -> str:
    both = "f" if anatomy == "breast" else "fm"
    for d in found:
        both = "".join(s for s in d.sexes if s in both) or both
    return both


def _scan(volume, healthy, protocol, rng, found, lesions) -> tuple[Scan, dict[str, np.ndarray]]:
    view = RENDERERS[protocol.renderer](volume, protocol, rng, _aim(protocol, found, lesions))
    properties = volume.properties
    seen = view.seen(volume.labels, properties)
    masks = {}
    for d in found:
        where = view.covered(lesions[d.name])
        if not where.any() or not (d.parts or _shows_change(d, protocol)):
            continue
        if d.parts:
            without = copy(view).seen(np.where(lesions[d.name], healthy, volume.labels), properties)
            where = where & (np.abs(seen - without) > view.visible)
        mask = view.framed(where)
        if mask.sum() >= LEAST_VOXELS:
            masks[d.name] = mask
    pixels = view.picture(seen, rng)
    key = next((int(masks[d.name].sum((1, 2)).argmax()) for d in found if d.name in masks), None)
    scan = Scan(
        pixels=pixels,
        modality=protocol.modality,
        plane=view.plane,
        spacing_mm=view.spacing_mm,
        key_slice=key,
        source=protocol.name,
    )
    return scan, masks


def _shows_change(d: Disorder, protocol: Protocol) -> bool:
    """Whether a change of an organ's shape can be seen: as in the protocols that the table names, or one like them."""
    return any((protocol.modality, protocol.plane) == (p.modality, p.plane) for p in map(protocols().get, d.shows))


def _aim(protocol: Protocol, found, lesions) -> np.ndarray | None:
    """Where an ultrasound probe points: at a lesion that ultrasound is made for; (z, y, x) voxel, or None."""
    for d in found:
        if protocol.name in d.shows and lesions[d.name].any():
            voxels = np.argwhere(lesions[d.name])
            return voxels[np.argmin(((voxels - voxels.mean(0)) ** 2).sum(1))]
    return None


def _days(rng: np.random.Generator, scans: int) -> list[float]:
    days = np.where(rng.random(scans) < 0.6, 0, rng.integers(1, 60, scans))
    return [float(day) for day in days - days.min()]
