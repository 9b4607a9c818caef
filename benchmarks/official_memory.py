"""The C library's allocator as either side runs with it: glibc's defaults for the released code, ours keeps memory."""

from __future__ import annotations

import ctypes
import sys

from stormlit.runs.memory import M_MMAP_MAX, M_TRIM_THRESHOLD, keep_freed_memory

M_MMAP_THRESHOLD = -3  # of glibc's mallopt, see malloc.h
MIB = 2**20


def for_released_code() -> None:
    """glibc's defaults as they are once large tensors have been freed: 32 MiB and more is mapped anew each time."""
    if sys.platform.startswith("linux"):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((M_MMAP_MAX, 65536), (M_MMAP_THRESHOLD, 32 * MIB), (M_TRIM_THRESHOLD, 64 * MIB)):
            mallopt(parameter, value)


def for_stormlit() -> None:
    """As ``make_fabric`` sets it on a CPU."""
    keep_freed_memory()
