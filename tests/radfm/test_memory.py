"""What `keep_freed_memory` does to a process, measured in a process of its own by the pages that it gets."""

import json
import os
import platform
import subprocess
import sys

import pytest

CHURN = """
import json, resource
import numpy as np
from radfm.cli.memory import keep_freed_memory

kept = keep_freed_memory()
for round in range(12):
    if round == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.full(size << 20, 7, np.uint8) for size in (40, 70, 100)]
    del blocks
print(json.dumps([kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def churn(**variables: str) -> tuple[bool, int]:
    ours = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    # Huge pages, where the system gives any, would hide how many pages are requested.
    environment |= {"NUMPY_MADVISE_HUGEPAGE": "0"} | variables
    run = subprocess.run([sys.executable, "-c", CHURN], env=environment, capture_output=True, text=True, check=True)
    kept, pages = json.loads(run.stdout)
    return kept, pages


def test_freed_memory_is_used_again():
    kept, pages = churn()
    assert kept
    assert pages < 1_000  # of 4 KiB; ten rounds of 210 MiB are 537,600


def test_settings_from_outside_are_kept():
    kept, pages = churn(MALLOC_MMAP_MAX_="65536")  # as glibc has it
    assert not kept
    assert pages > 100_000
    assert not churn(GLIBC_TUNABLES="glibc.malloc.mmap_max=65536")[0]
