"""Phantoms: what they promise of codes, counts, pictures, masks and repeatability."""

import hashlib
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from radfm.configuration_radfm import PLANES
from radfm.data_prep.phantoms import disorders, make_case
from radfm.data_prep.phantoms.draw import MOST_SCANS, draw_disorders
from radfm.data_prep.phantoms.fields import solid_noise
from radfm.data_prep.phantoms.phantom import ANATOMIES, Generators, PhantomPlan, make_phantom
from radfm.data_prep.phantoms.protocols import protocols
from radfm.data_prep.phantoms.tissues import PROPERTIES, tissue
from radfm.data_prep.sources.phantoms import Phantoms
from radfm.knowledge import icd10cm
from radfm.modalities import MODALITIES
from radfm.presentation import band_of

BY_NAME = {d.name: d for d in disorders()}


def phantom_of(name: str, scans: list[str], seed: int = 0):
    """A phantom with this disorder alone ("" for none), and these acquisitions."""
    chosen = [BY_NAME[name]] if name else []
    return make_phantom(PhantomPlan("test", chosen, [protocols()[scan] for scan in scans]), Generators([77, seed], 7))


def fingerprint(phantom) -> str:
    digest = hashlib.sha256()
    for scan, masks in zip(phantom.case.scans, phantom.masks, strict=True):
        digest.update(scan.pixels.tobytes())
        digest.update(repr((scan.modality, scan.plane, scan.spacing_mm, scan.days, scan.key_slice)).encode())
        for name, mask in masks.items():
            digest.update(name.encode() + mask.tobytes())
    digest.update(repr((phantom.case.disorders, phantom.icd10cm, phantom.history, phantom.patient_id)).encode())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def phantoms():
    """Twenty cases as a user gets them."""
    return [make_case(seed=5, index=i, cases=2000) for i in range(0, 2000, 100)]


def plans(seed: int, cases: int):
    for index in range(cases):
        rng = np.random.default_rng(np.random.SeedSequence([seed, index]).spawn(8)[0])
        yield draw_disorders(rng, seed, index, cases)


# ---------------------------------------------------------------------------------------------------------- the table


def test_there_are_sixty_disorders_or_more_and_each_has_a_code_of_its_own():
    assert len(disorders()) >= 60
    assert len({d.name for d in disorders()}) == len({d.icd10cm for d in disorders()}) == len(disorders())
    assert {d.anatomy for d in disorders()} == set(ANATOMIES)


@pytest.mark.parametrize("d", disorders(), ids=lambda d: d.icd10cm)
def test_a_code_exists_is_billable_and_has_a_description_like_the_name(d):
    entry = icd10cm.get(d.icd10cm)
    assert entry.billable
    texts = [entry.description, *entry.inclusion_terms]
    texts += [text for above in entry.ancestors[:2] for text in (above.description, *above.inclusion_terms)]
    described = {stem(word) for word in re.findall(r"[a-z]+", " ".join(texts).lower())}
    named = {stem(word) for word in re.findall(r"[a-z]+", d.name.lower()) if len(word) > 3}
    assert len(named & described) >= 0.5 * len(named), (d.name, entry.description)


def stem(word: str) -> str:
    spelling = {"oedema": "edema", "stones": "calculus", "gallstones": "calculus", "discitis": "discitis"}
    return spelling.get(word, word)[:6]


def test_some_disorders_are_siblings_in_icd10cm_that_differ_in_their_site():
    parents = Counter(icd10cm.get(d.icd10cm).category for d in disorders())
    assert {"C34", "C50", "I61", "C71", "S32", "M51", "N20"} <= {code for code, n in parents.items() if n >= 2}


def test_every_name_a_disorder_points_to_is_there():
    for d in disorders():
        assert d.shows
        for name in d.shows:
            assert protocols()[name].anatomy == d.anatomy
        for part in d.parts:
            assert tissue(part.tissue).shape == (len(PROPERTIES),)
            assert part.outer > part.inner
        assert d.parts or d.organ


def test_no_history_names_its_diagnosis():
    for d in disorders():
        for text in d.histories:
            for word in re.findall(r"[a-z]{6,}", d.name.lower()):
                if word not in ("kidney", "breast", "bladder", "membrane", "ascending", "without"):
                    assert word not in text.lower(), (d.name, text)


def test_protocols_use_the_words_of_the_rest_of_radfm():
    for protocol in protocols().values():
        assert protocol.modality in MODALITIES
        assert protocol.plane in PLANES


# ---------------------------------------------------------------------------------------------------------- the counts


def test_counts_of_two_thousand_cases_have_a_head_a_body_and_a_tail():
    counts = Counter(d.name for _, chosen in plans(3, 2000) for d in chosen)
    groups = Counter(d.band for d in disorders())
    assert groups["head"] >= 5
    assert groups["body"] >= 15
    assert groups["tail"] >= 40
    for d in disorders():
        assert abs(counts[d.name] - d.expected) < 5 * d.expected**0.5 + 0.1 * d.expected, (d.name, counts[d.name])
    seen = Counter(map(band_of, counts.values()))
    assert seen["head"] >= 5
    assert seen["body"] >= 15
    assert seen["tail"] >= 40
    assert min(counts[d.name] for d in disorders()) >= 1


def test_a_set_of_one_anatomy_has_the_cases_of_the_whole_set_that_are_of_it():
    knees = Phantoms(60, seed=3, size=32, anatomy="knee")
    indices = [plan.source_data["index"] for plan in knees.listing().plans]
    assert indices == [index for index in range(60) if make_case(3, index, 60, 32).anatomy == "knee"]
    assert 0 < len(indices) < 60
    assert knees.settings["anatomy"] == "knee"
    with pytest.raises(ValueError, match=r"unknown anatomy 'elbow': use one of .*knee"):
        Phantoms(60, anatomy="elbow")


def test_there_are_normals_and_comorbidities_of_one_anatomy_and_sex():
    cases = list(plans(3, 2000))
    assert 0.08 < np.mean([not chosen for _, chosen in cases]) < 0.12
    assert np.mean([len(chosen) > 1 for _, chosen in cases]) > 0.2
    for anatomy, chosen in cases:
        assert {d.anatomy for d in chosen} <= {anatomy}
        assert len({d.name for d in chosen}) == len(chosen)
        assert not chosen or set.intersection(*(set(d.sexes) for d in chosen))


def test_a_case_outside_the_set_is_refused():
    with pytest.raises(ValueError, match="case 10 is not one of 10"):
        make_case(0, 10, 10)


# ---------------------------------------------------------------------------------------------------------- the cases


def test_a_case_is_the_same_in_another_process_and_in_any_order():
    code = (
        "import sys; sys.path.insert(0, 'tests/data_prep')\n"
        "from test_phantoms import fingerprint, make_case\n"
        "print(*[fingerprint(make_case(seed=9, index=i, cases=50)) for i in (31, 4)])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert other == [fingerprint(make_case(seed=9, index=i, cases=50)) for i in (4, 31)][::-1]


def test_seed_and_index_make_another_patient():
    assert len({fingerprint(make_case(seed, i, 50, size=32)) for seed in (0, 1) for i in (0, 1, 2)}) == 6


def test_scans_are_as_the_rest_of_radfm_expects_them(phantoms):
    for phantom in phantoms:
        case = phantom.case
        assert 1 <= len(case.scans) <= MOST_SCANS
        assert len(phantom.masks) == len(phantom.protocols) == len(case.scans)
        assert [BY_NAME[name].icd10cm for name in case.disorders] == phantom.icd10cm
        assert min(scan.days for scan in case.scans) == 0
        assert phantom.history == case.history
        for scan in case.scans:
            assert scan.pixels.shape[1:] == (96, 96)
            assert len(scan.spacing_mm) == 3
            assert scan.body_part == phantom.anatomy
            assert scan.pixels.std() > 0
            if scan.modality == "CT":
                assert scan.pixels.dtype == np.int16
                assert scan.pixels.min() < -900  # air
                assert (scan.pixels > 150).any()  # bone


def test_the_key_slice_shows_most_of_the_main_disorder(phantoms):
    checked = 0
    for phantom in phantoms:
        for scan, masks in zip(phantom.case.scans, phantom.masks, strict=True):
            for mask in masks.values():
                assert mask.shape == scan.pixels.shape
                assert mask.dtype == bool
            if not masks:
                assert scan.key_slice is None
            main = next((name for name in phantom.case.disorders if name in masks), None)
            if main:
                area = masks[main].sum((1, 2))
                assert area[scan.key_slice] == area.max() > 0
                checked += 1
    assert checked >= 20


def test_normal_cases_have_no_masks(phantoms):
    for phantom in phantoms:
        if not phantom.case.disorders:
            assert not any(phantom.masks)


def test_nearly_every_disorder_is_shown_by_a_scan_of_its_case(phantoms):
    shown = [any(name in m for m in p.masks) for p in phantoms for name in p.case.disorders]
    assert np.mean(shown) > 0.9


def test_every_modality_that_has_a_renderer_appears():
    modalities = {p.modality for p in protocols().values()}
    assert {"CT", "MRI", "X-ray", "ultrasound", "mammography", "nuclear medicine"} <= modalities
    assert {p.anatomy for p in protocols().values()} == set(ANATOMIES)


# ---------------------------------------------------------------------------------------------------------- the physics


def inside_and_around(phantom, name: str, scan: int) -> tuple[float, float]:
    """Mean pixel in the mask, and in a ring a little way around it, on the key slice."""
    k = phantom.case.scans[scan].key_slice
    pixels, mask = phantom.case.scans[scan].pixels[k].astype(float), phantom.masks[scan][name][k]
    ring = binary_dilation(mask, iterations=4) & ~binary_dilation(mask, iterations=2)
    core = binary_erosion(mask) if binary_erosion(mask).any() else mask
    return pixels[core].mean(), np.median(pixels[ring])


@pytest.mark.parametrize(
    ("name", "protocol", "brighter"),
    [
        ("Intracerebral hemorrhage in hemisphere, subcortical", "brain CT", True),
        ("Cerebral infarction", "brain MRI diffusion", True),
        ("Simple cyst of kidney", "abdomen MRI T2", True),
        ("Cyst of liver", "abdomen CT", False),
        ("Cyst of liver", "abdomen ultrasound", False),
        ("Cyst of liver", "abdomen MRI T2", True),
        ("Hemangioma of liver", "abdomen MRI T2", True),
        ("Secondary malignant neoplasm of liver", "abdomen PET", True),
        ("Intramural leiomyoma of uterus", "pelvis MRI T2", False),
        ("Contusion of knee", "knee MRI STIR", True),
        ("Lobar pneumonia", "chest radiograph PA", True),
        ("Rib fracture", "chest bone scan", True),
        ("Solitary cyst of breast", "breast ultrasound", False),
        ("Malignant neoplasm of upper-outer quadrant of breast", "breast MRI T1 with gadolinium", True),
        ("Secondary malignant neoplasm of bone", "spine MRI T1", False),
    ],
)
def test_a_lesion_is_brighter_or_darker_than_its_surroundings_as_in_life(name, protocol, brighter):
    signs = []
    for seed in range(4):
        phantom = phantom_of(name, [protocol], seed)
        if name in phantom.masks[0]:
            inside, around = inside_and_around(phantom, name, 0)
            signs.append(inside > around)
    assert len(signs) >= 3
    assert np.mean([sign == brighter for sign in signs]) > 0.7


@pytest.mark.parametrize(
    ("name", "showing", "blind"),
    [
        ("Cerebral infarction", "brain MRI diffusion", "brain CT"),
        ("Multiple sclerosis", "brain MRI FLAIR", "brain CT"),
        ("Parkinson's disease without dyskinesia", "dopamine transporter scan", "brain MRI T2"),
        ("Intraductal carcinoma in situ of breast", "mammogram CC", "breast MRI T2"),
        ("Contusion of knee", "knee MRI STIR", "knee radiograph AP"),
        ("Sacroiliitis", "pelvis MRI STIR", "pelvis CT"),
        ("Acute transverse myelitis in demyelinating disease", "spine MRI T2", "spine CT"),
    ],
)
def test_what_one_modality_cannot_see_has_no_mask_there_and_changes_no_pixel_signal(name, showing, blind):
    phantom = phantom_of(name, [showing, blind])
    assert name in phantom.masks[0]
    assert name not in phantom.masks[1]
    assert phantom.case.scans[1].key_slice is None


def test_a_changed_organ_is_marked_only_where_the_change_is_visible():
    name = "Benign prostatic hyperplasia"
    phantom = phantom_of(name, ["pelvis MRI T2", "pelvis radiograph AP", "pelvis bone scan"])
    assert [name in masks for masks in phantom.masks] == [True, False, False]


def test_scans_of_a_case_show_a_lesion_at_the_same_position():
    name = "Malignant neoplasm of kidney, except renal pelvis"
    phantom = phantom_of(name, ["abdomen CT with contrast", "abdomen MRI T2", "abdomen MRI T1 with gadolinium"], 1)
    centres = []
    for scan, masks in zip(phantom.case.scans, phantom.masks, strict=True):
        centres.append(np.argwhere(masks[name][scan.key_slice]).mean(0))
    assert np.abs(np.array(centres) - centres[0]).max() < 6


def test_lesions_have_the_hounsfield_units_of_textbooks():
    bleed = "Intracerebral hemorrhage in hemisphere, subcortical"
    assert 50 < inside_and_around(phantom_of(bleed, ["brain CT"], 2), bleed, 0)[0] < 85
    pneumonia = "Lobar pneumonia"
    assert -250 < inside_and_around(phantom_of(pneumonia, ["chest CT"], 2), pneumonia, 0)[0] < 60
    assert inside_and_around(phantom_of("Emphysema", ["chest CT"], 2), "Emphysema", 0)[0] < -870
    cyst = "Cyst of liver"
    assert -15 < inside_and_around(phantom_of(cyst, ["abdomen CT"], 2), cyst, 0)[0] < 30


def test_right_knees_and_breasts_are_mirror_images_of_left_ones():
    sides = set()
    for seed in range(6):
        pixels = phantom_of("", ["knee radiograph AP"], seed).case.scans[0].pixels[0].astype(float)
        low = pixels[80:]  # the fibula is on the outer side of the tibia
        sides.add(low[:, 60:75].mean() > low[:, 21:36].mean())
    assert sides == {True, False}


def test_noise_has_the_given_standard_deviation():
    noise = solid_noise(np.random.default_rng(0), (40, 50, 60), 2.0)
    assert noise.shape == (40, 50, 60)
    assert 0.7 < noise.std() < 1.3
