"""Changed copies of an image are detected, and similar images of different patients are not."""

import io
from itertools import combinations

import numpy as np
import pytest
from making import smooth
from PIL import Image, ImageEnhance

from radfm.cases import Scan
from radfm.data_prep.duplicates import duplicate_groups, is_copy
from radfm.data_prep.image_fingerprint import grey_slice, image_fingerprint, representative_slice
from radfm.data_prep.sources.phantoms import Phantoms

# Chests and knees of these patients had one perceptual hash and thumbnail.
LOOK_ALIKES = (14, 33, 41, 46, 57, 83, 99, 123, 23, 115, 143, 146, 168)


@pytest.fixture(scope="module")
def alike() -> tuple[list[np.ndarray], list[int]]:
    """Shown slices (H, W) uint8 of phantoms that look alike, and whose they are."""
    source = Phantoms(3000, size=96)
    plans = source.listing().plans
    results = source.read([plans[i] for i in LOOK_ALIKES])
    pairs = [(scan, i) for i, one in enumerate(results) for scan in one.case.scans]
    return [grey_slice(scan, representative_slice(scan)) for scan, _ in pairs], [i for _, i in pairs]


def looks(pictures: list[np.ndarray]) -> list[list[str] | None]:
    fingerprints = (image_fingerprint(Scan(picture[None], "X-ray")) for picture in pictures)
    return [fingerprint and [fingerprint.hash, fingerprint.thumbnail] for fingerprint in fingerprints]


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


COPIES = {
    "recompressed": lambda image: recompressed(image, 50),
    "smaller": lambda image: image.resize((image.width * 6 // 10, image.height * 6 // 10)),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "paler": lambda image: image.point(lambda value: 30 + value * 0.8),
    "smaller and recompressed": lambda image: recompressed(image.resize((150, 150)), 60),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_changed_copy_is_detected_among_others(change):
    pictures = [np.uint8(20 + smooth(seed, 200) * 0.7) for seed in range(8)]
    pictures.append(np.asarray(change(Image.fromarray(pictures[5]))))
    assert duplicate_groups(looks(pictures), pictures.__getitem__) == [[5, 8]]


def test_a_cut_copy_is_the_same_picture_and_a_neighbour_is_not():
    one, other = smooth(0, 200), smooth(1, 200)
    assert is_copy(one, one[2:-2, 2:-2])
    assert not is_copy(one, other)


def test_similar_images_of_different_patients_are_not_duplicates_but_copies_of_them_are(alike):
    pictures, owners = alike
    groups = duplicate_groups(looks(pictures), pictures.__getitem__)
    assert [group for group in groups if len({owners[i] for i in group}) > 1] == []
    hashes = [int(look[0], 16) if look else None for look in looks(pictures)]
    near = sum(
        owners[i] != owners[j] and (hashes[i] ^ hashes[j]).bit_count() <= 4
        for i, j in combinations([i for i, known in enumerate(hashes) if known is not None], 2)
    )
    assert near >= 5  # their hashes do not tell them apart
    paler = [np.uint8(10 + picture * 0.8) for picture in pictures]
    assert all(is_copy(*pair) for pair in zip(pictures, paler, strict=True))
