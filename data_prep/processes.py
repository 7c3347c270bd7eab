"""Runs a task for many items in several processes.

Decisions:
- Processes are spawned, so that the task and its items have to be picklable.
- Each process has a number from 0 in the variable LOCAL_RANK, as torchrun sets it, so that a task can choose its GPU.
- A process ends when its parent was killed. A process that was killed ends all of them with an error.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")


def run_in_processes(task: Callable[[Item], object], items: Sequence[Item], processes: int) -> Iterator[int]:
    """Calls `task` with each item, and yields the number of items that are done.

    Args:
        processes: 1: in this process.
    Raises:
        ValueError: a process was killed; or whatever the task raises.
    """
    if processes <= 1 or len(items) <= 1:
        for done, item in enumerate(items, 1):
            task(item)
            yield done
        return
    context, processes = get_context("spawn"), min(processes, len(items))
    numbers = context.SimpleQueue()
    for number in range(processes):
        numbers.put(number)
    try:
        with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(os.getpid(), numbers)) as pool:
            futures = [pool.submit(task, item) for item in items]
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    yield done
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    except BrokenProcessPool:
        raise ValueError(
            "a process was killed, most likely because memory ran out: run the same command with fewer processes; "
            "what is finished is kept"
        ) from None


def _start(parent: int, numbers) -> None:
    """Numbers this process, and ends it when its parent was killed, so that it does not wait forever."""
    os.environ["LOCAL_RANK"] = str(numbers.get())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
