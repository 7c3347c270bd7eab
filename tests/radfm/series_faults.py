"""What is wrong with the case that was read of a drawn series."""

import numpy as np

from radfm.cases import Case, Scan
from tests.radfm.drawn_series import COLUMNS, ROWS, Series, Slice

WITHIN_MM = 0.05
_OBLIQUE_BELOW = 0.8


def faults(made: Series, case: Case) -> list[str]:
    """One line for each rule that is broken; none where the case is right, or says that it is unsure where it may."""
    slices = {(one.volume, one.place): one for one in made.slices}
    found, scans = [], []
    for scan in case.scans:
        own = [slices.get(key) for key in _shown(scan)]
        if None in own:
            return [f"a scan has slices that were never written: {_shown(scan)}"]
        scans.append((scan, own))
    unsure = not made.certain and (case.skipped or any(scan.warnings for scan in case.scans))
    for scan, own in scans:
        found += [] if unsure else _mixed(own)
        found += _out_of_order(own, made) + _misplaced(scan, own, made)
    found += _lost(made, case, [one for _, own in scans for one in own])
    return found if unsure else found + _torn(made, scans)


def _shown(scan: Scan) -> list[tuple[int, int]]:
    """(volume, place) of each slice, by its pixels; (-1, -1) where the pixels of a slice are of several."""
    codes = (scan.pixels.astype(int) // 16).reshape(len(scan.pixels), -1)  # (slices, H x W)
    return [divmod(row[0] - 1, 16) if (row == row[0]).all() else (-1, -1) for row in codes]


def _mixed(own: list[Slice]) -> list[str]:
    volumes = [one.volume for one in own]
    return [f"mixed: a scan holds slices of the volumes {volumes}"] if len(set(volumes)) > 1 else []


def _out_of_order(own: list[Slice], made: Series) -> list[str]:
    """Slices go to the left, back or head, whichever is nearest; of an oblique line the nearest is not certain."""
    normal = np.cross(made.orientation[:3], made.orientation[3:])
    across = np.argmax(np.abs(normal))
    steps = np.diff([one.position @ normal * np.sign(normal[across]) for one in own])
    line = own[-1].position - own[0].position
    lines = (normal, line / (np.linalg.norm(line) or 1))
    oblique = any(np.abs(direction).max() < _OBLIQUE_BELOW for direction in lines)
    right = (steps > 0).all() or (oblique and (steps < 0).all())
    return [] if right else [f"order: the places follow each other as {[one.place for one in own]}"]


def _misplaced(scan: Scan, own: list[Slice], made: Series) -> list[str]:
    """The affine, compared with the header at three corners of each slice."""
    if scan.affine is None:
        return []
    if made.pixel_mm is None:
        return ["an affine although PixelSpacing is missing"]
    x, y = made.orientation[:3], made.orientation[3:]
    row_mm, column_mm = made.pixel_mm
    worst = 0.0
    for i, (picture, one) in enumerate(zip(scan.pixels.astype(int) % 16, own, strict=True)):
        from_header = {
            15: one.position,
            14: one.position + x * column_mm * (COLUMNS - 1),
            13: one.position + y * row_mm * (ROWS - 1),
        }
        for corner, position in from_header.items():
            row, column = np.argwhere(picture == corner)[0]
            worst = max(worst, np.abs((scan.affine @ [i, row, column, 1])[:3] - position).max())
    return [f"affine: {worst:.3f} mm off"] if worst > WITHIN_MM else []


def _lost(made: Series, case: Case, own: list[Slice]) -> list[str]:
    if len({id(one) for one in own}) < len(own):
        return ["a slice is in two scans, or twice in one"]
    listed = {name for name, _ in case.skipped if name.endswith(".dcm")}
    if made.files == 1 and len(made.slices) > 1:  # frames of one file
        return [] if listed or len(own) == len(made.slices) else [f"{len(made.slices) - len(own)} frames lost"]
    if len(own) + len(listed) != made.files:
        return [f"{made.files} files, {len(own)} slices read and {len(listed)} files listed: {case.skipped[:3]}"]
    if made.certain and len(listed) > made.copies:
        return [f"{len(listed) - made.copies} good files are listed: {case.skipped[-1][1]}"]
    return []


def _torn(made: Series, scans: list[tuple[Scan, list[Slice]]]) -> list[str]:
    """Volumes that lie in more scans than they have gaps, and what is not known of whole ones."""
    found = []
    for volume in range(made.volumes) if made.certain else ():
        places = sorted((one for one in made.slices if one.volume == volume), key=lambda one: one.place)
        holding = [(scan, own) for scan, own in scans if any(one.volume == volume for one in own)]
        steps = np.linalg.norm(np.diff([one.position for one in places], axis=0), axis=-1) if len(places) > 1 else []
        gaps = int((np.abs(steps - np.median(steps)) > 0.25 * np.median(steps)).sum()) if len(places) > 1 else 0
        if len(holding) > 1 + gaps:
            parts = [[one.place for one in own] for _, own in holding]
            found.append(f"torn: volume {volume} lies in {len(holding)} scans, {parts}")
        elif made.regular and made.pixel_mm and len(places) == made.places and holding[0][0].affine is None:
            found.append(f"no affine for the whole volume {volume}")
        elif made.regular and made.pixel_mm and not gaps and len(places) > 1:
            found += _wrong_spacing(holding[0][0], steps, made)
        lost = set(range(places[0].place, places[-1].place)).difference(one.place for one in places)
        elsewhere = lost.intersection(one.place for one in made.slices) and made.apart_mm < 0.1
        if lost and (gaps or elsewhere) and len(holding) == 1 and not holding[0][0].warnings:
            found.append(f"slices of volume {volume} are lost, and nothing says so")
    return found


def _wrong_spacing(scan: Scan, steps: np.ndarray, made: Series) -> list[str]:
    expected = [float(np.median(steps)), *sorted(made.pixel_mm)]
    spacing = scan.spacing_mm and [scan.spacing_mm[0], *sorted(scan.spacing_mm[1:])]
    right = spacing is not None and np.allclose(spacing, expected, atol=0.05)
    return [] if right else [f"spacing: {scan.spacing_mm} instead of {expected}"]
