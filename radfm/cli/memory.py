"""Memory that tensors leave is used again.

Decisions:
- glibc gives every large block back to the system when it is freed, and gets the next one page by page, each page
  wiped. Torch frees and takes gigabytes in every step on a CPU, and so a third of its time or more is the system's.
- A command's process is radfm's own, so its commands keep what they have had. A library is a guest: importing radfm
  changes nothing, and whoever wants this in Python or in a notebook calls `keep_freed_memory()`.
- What was set from outside stands: glibc's variables (MALLOC_..., GLIBC_TUNABLES), or another allocator (LD_PRELOAD).
"""

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees, and use it again; whether it does now.

    A step on a CPU takes half to two thirds of the time, and a training that much more memory: blocks of many sizes do
    not fit each other's gaps. For glibc, that is, nearly every Linux; elsewhere nothing happens. `benchmarks/train.py`
    measures both.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "LD_PRELOAD" in os.environ
    if chosen or "malloc" in os.environ.get("GLIBC_TUNABLES", "") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
