"""Text, rulers and window frames that are drawn into a picture.

Decisions:
- A mark is narrower than `_WIDEST` pixels and differs from what is around it. It may be bright or dark.
- Text is a row of at least `_LETTERS` marks of one height on one line, closer to each other than their height. Markers
  of a side (R, L) are shorter, and are no text here.
- A ruler is a row of at least `_TICKS` short, straight marks in equal steps.
- A window frame is a bar at a side of the picture, such as a title bar, that has one colour, something on it, and a
  straight, sharp edge; or four thin lines of one colour. A border of one colour alone is a letterbox, and does no harm.
- The thresholds favour silence: docs/reading.md has the rates of false alarms, and of what is missed.
"""

from collections.abc import Iterator

import numpy as np

_LONGEST_SIDE = 768  # pixels; larger pictures are reduced
_WIDEST, _CONTRAST = 13, 60  # pixels, grey levels of 255
_LETTERS, _SMALLEST, _LARGEST = 6, 5, 40  # letters in a row; their least and largest height in pixels
_JOINED, _PIECES = 4, 4  # letters that one mark holds at most; marks in a row of letters at least
_TEXTURE, _LETTERS_IN_TEXTURE = 0.005, 9  # marks per pixel, above which a row of letters must be longer
_MOST_LETTERS = 2000  # marks like letters, above which the picture is nothing but texture
_TICKS, _THICKEST_TICK = 9, 4  # ticks in a row; pixels of a tick
_LEAST_STEP, _SPAN = 4, 0.12  # pixels from one tick to the next; share of the picture that they take
_SAME, _DIFFERENT = 6, 24  # grey levels
_MARGIN = 0.2  # share of the picture at each side in which bars and lines of a frame lie
_LEAST_BAR, _LINE = 0.025, 0.02  # shares of the picture: height of a bar at least, of a line at most


def drawn_marks(picture: np.ndarray) -> list[str]:
    """What is drawn into a picture, (H, W) or (H, W, 3): some of "a window frame", "a ruler" and "text"."""
    step = -(-max(picture.shape[:2]) // _LONGEST_SIDE)
    if min(picture.shape[:2]) // step < 64:
        return []
    grey = _reduced(picture, step)
    marks = [_marks(values) for values in (grey, 255 - grey)]
    found = {
        "a window frame": _has_frame(grey),
        "a ruler": any(_has_ruler(one) or _has_ruler(one.T) for one in marks),
        "text": any(map(_has_text, marks)),
    }
    return [name for name, is_there in found.items() if is_there]


def _reduced(picture: np.ndarray, step: int) -> np.ndarray:
    """(H, W) uint8, one pixel for each cell of `step` pixels on a side, of which four are averaged."""
    is_bytes = picture.dtype == np.uint8
    if step > 1:
        height, width = (side // step * step for side in picture.shape[:2])
        starts = (0, step // 2)
        parts = [picture[i:height:step, j:width:step].astype(np.float32) for i in starts for j in starts]
        picture = np.mean(parts, axis=0)
    if picture.ndim == 3:
        picture = picture.max(axis=-1)
    if is_bytes:
        return picture.astype(np.uint8)
    low, high = np.percentile(picture[::4, ::4], (0.5, 99.5))
    return (np.clip((picture - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)


def _marks(grey: np.ndarray) -> np.ndarray:
    """(H, W) bool: bright pixels of marks; the white top-hat with a square, by the rows and columns of its sliding
    windows, since those of scipy take six times as long."""
    lowest = _sliding(_sliding(grey, np.minimum, 0), np.minimum, 1)[::-1, ::-1]
    opened = _sliding(_sliding(lowest, np.maximum, 0), np.maximum, 1)[::-1, ::-1]
    return grey - np.minimum(grey, opened) > _CONTRAST


def _sliding(values: np.ndarray, extreme: np.ufunc, axis: int) -> np.ndarray:
    """The extreme of each window of `_WIDEST` pixels, in as many steps as its width has bits."""
    values = np.swapaxes(values, axis, 0)
    before = _WIDEST // 2
    values = np.pad(values, ((before, _WIDEST - 1 - before), (0, 0)), mode="edge")
    width = 1
    while width < _WIDEST:
        step = min(width, _WIDEST - width)
        values = extreme(values[:-step], values[step:])
        width += step
    return np.swapaxes(values, axis, 0)


def _boxes(marks: np.ndarray) -> np.ndarray:
    """(n, 5): top, bottom, left, right and number of pixels of each connected mark."""
    from scipy import ndimage  # takes longer to import than a volume to read

    labels, count = ndimage.label(marks, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    places = zip(ndimage.find_objects(labels), areas, strict=True)
    rows = [(y.start, y.stop, x.start, x.stop, area) for (y, x), area in places]
    return np.array(rows, int).reshape(-1, 5)


def _has_text(marks: np.ndarray) -> bool:
    boxes = _boxes(marks)
    top, bottom, left, right, area = boxes.T
    height, width = bottom - top, right - left
    like_letters = (height >= _SMALLEST) & (height <= _LARGEST) & (width <= _JOINED * height)
    letters = boxes[
        like_letters & (area >= 0.15 * height * width) & ((area <= 0.75 * height * width) | (width < height))
    ]
    if len(letters) > _MOST_LETTERS:
        return False
    letters = letters[np.argsort(letters[:, 2])]
    top, bottom, left, right, _ = letters.T
    height = bottom - top
    count = np.clip(np.rint((right - left) / (0.8 * height)), 1, _JOINED).astype(int)  # small letters run together
    letters_from, marks_from = count.copy(), np.ones(len(letters), int)  # in the row that begins with each mark
    for i in range(len(letters) - 1, -1, -1):
        gap = left[i + 1 :] - right[i]
        following = (gap >= -1) & (gap <= np.maximum(height[i], height[i + 1 :]))
        following &= np.abs(bottom[i + 1 :] - bottom[i]) <= max(1, 0.12 * height[i])
        following &= np.abs(height[i + 1 :] - height[i]) <= max(1, 0.3 * height[i])
        if following.any():
            after = i + 1 + int(following.argmax())
            letters_from[i] += letters_from[after]
            marks_from[i] += marks_from[after]
    needed = _LETTERS if len(boxes) < _TEXTURE * marks.size else _LETTERS_IN_TEXTURE
    return bool(((letters_from >= needed) & (marks_from >= _PIECES)).any())


def _has_ruler(marks: np.ndarray) -> bool:
    """Whether (H, W) marks hold horizontal ticks below each other in equal steps."""
    ticks = marks.copy()
    ticks[1:] &= ~marks[:-1]  # the first row of each mark
    ticks[:-_THICKEST_TICK] &= ~marks[_THICKEST_TICK:]
    straight = ticks[:, :-2] & ticks[:, 1:-1] & ticks[:, 2:]
    column, row = np.nonzero(straight[:, straight.sum(0) >= _TICKS].T)
    if not len(row):
        return False
    windows = np.lib.stride_tricks.sliding_window_view(np.diff(row), _TICKS - 1)
    least = windows.min(1)
    equal = (least >= _LEAST_STEP) & (windows.max(1) - least <= 1)
    one_ruler = column[_TICKS - 1 :] == column[: 1 - _TICKS]
    return bool((equal & one_ruler & (windows.sum(1) >= _SPAN * len(marks))).any())


def _has_frame(grey: np.ndarray) -> bool:
    sides = [grey, grey[::-1], grey.T, grey.T[::-1]]
    lines = []
    for side in sides:
        runs = list(_runs(side))
        if any(_is_bar(side, *run) for run in runs):
            return True
        lines.append([value for first, end, value in runs if _is_line(side, first, end)])
    return any(
        all(any(abs(value - other) <= 2 * _SAME for other in values) for values in lines[1:]) for value in lines[0]
    )


def _runs(side: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(first row, end, value) of the runs of rows near the top that are mostly of one value, and not black."""
    step = max(1, side.shape[1] // 256)
    rows = side[: round(_MARGIN * len(side)), ::step]
    middle = np.median(rows, axis=1).astype(int)
    plain = (np.abs(rows - middle[:, None]) <= _SAME).mean(1) >= 0.6
    plain &= middle - int(side[::step, ::step].min()) > _DIFFERENT
    changes = np.flatnonzero(np.abs(np.diff(np.where(plain, middle, -255))) > _SAME) + 1
    for first, end in zip(np.r_[0, changes], np.r_[changes, len(rows)], strict=True):
        if plain[first] and end < len(side):
            yield int(first), int(end), int(middle[first])


def _is_bar(side: np.ndarray, first: int, end: int, value: int) -> bool:
    if end - first < max(8, _LEAST_BAR * len(side)):
        return False
    bar = side[first:end].astype(np.int16)
    content = (np.abs(bar[:-4] - value) > 2 * _DIFFERENT).mean()  # its edge may be slanted
    ends_plain = (np.abs(bar[-4:-1] - value) > 2 * _DIFFERENT).mean() < 0.02
    return bool(ends_plain and 0.002 < content < 0.4 and _differ(side[min(end + 1, len(side) - 1)], side[end - 3]))


def _is_line(side: np.ndarray, first: int, end: int) -> bool:
    if end - first > max(4, _LINE * len(side)):
        return False
    value = np.median(side[first])
    plain = (np.abs(side[first:end] - value) <= _SAME).mean() > 0.9
    before = first == 0 or _differ(side[first - 1], side[first])
    return bool(plain and before and _differ(side[end], side[end - 1]))


def _differ(row: np.ndarray, other: np.ndarray) -> bool:
    return bool((np.abs(row.astype(np.int16) - other) > _DIFFERENT // 2).mean() > 0.6)
