"""Waiting for other processes, threads and pages.

A time-out in a test is there for what hangs, not for what is slow: a machine that does other work takes many times as
long as an idle one. Each is therefore at least ten times what the slowest test takes on an idle machine.
"""

import socket
import time
from collections.abc import Callable
from typing import TypeVar

TIMEOUT = 1800  # seconds, of a subprocess and of a request

T = TypeVar("T")


def wait_until(condition: Callable[[], T], seconds: float = 600) -> T:
    """Calls `condition` until its value is true, and returns that value.

    Raises:
        AssertionError: if it is not true after that time.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not true after {seconds:.0f} s"
        time.sleep(0.05)
    return value


def free_port() -> int:
    """A TCP port of 127.0.0.1 that no process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
