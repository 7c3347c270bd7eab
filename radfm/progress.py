"""How functions that take long report how far they are: one type and one default for all of them."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # called with the number of steps done, and of all steps


def no_progress(done: int, total: int) -> None:
    """Report nothing; the default of every parameter `progress`."""
