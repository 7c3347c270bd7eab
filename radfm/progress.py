"""How functions that take long report how far they are: one type and one default for all of them."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # called with the number of steps done, and of all steps


def no_progress(done: int, total: int) -> None:
    """Report nothing; the default of every parameter `progress`."""


def part_of(progress: Progress, part: int, parts: int) -> Progress:
    """The progress of one of several equally long parts, counted from 0, as a share of the whole."""
    return lambda done, total: progress(part * total + done, parts * total)
