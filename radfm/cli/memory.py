"""Memory that tensors free is kept by the process and used again.

Decisions:
- glibc returns every large block to the system when it is freed and requests the next one page by page, and the kernel
  clears each page. On a CPU, torch allocates and frees gigabytes in every step, and a third of the time or more is
  spent in the kernel.
- The commands of radfm own their process, so they keep freed memory. Importing the library changes nothing; programs
  and notebooks call `keep_freed_memory()` if they want the same.
- Settings from outside take precedence: glibc's variables (MALLOC_..., GLIBC_TUNABLES), another allocator (LD_PRELOAD).
"""

import ctypes
import os
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> bool:
    """Lets this process keep and reuse the memory that it frees. Returns whether it does.

    A training step on a CPU then takes half to two thirds of the time, and the process more memory, since blocks of
    different sizes do not fit each other's gaps. Works with glibc, that is, on nearly every Linux; elsewhere nothing
    happens. `benchmarks/train.py` measures both.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "LD_PRELOAD" in os.environ
    if chosen or "malloc" in os.environ.get("GLIBC_TUNABLES", "") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
