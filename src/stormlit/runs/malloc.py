"""How the process holds on to its memory."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt, see malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for what is allocated next, instead of giving it back to the system.

    Training on a CPU allocates and frees the same large tensors at every update. By default each is mapped anew every
    time, and all its pages are cleared and mapped one by one. The process then stays as large as it ever was. Returns
    False, and does nothing, where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
