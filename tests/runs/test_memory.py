"""Memory that is freed is kept for what comes next."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stormlit.runs.device import keep_freed_memory

FAULTS = """
import resource, sys, torch
from stormlit.runs.device import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(15):
    torch.ones(12_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(12_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="needs glibc")
def test_a_tensor_in_place_of_another_maps_no_new_pages() -> None:
    """Page faults of 20 tensors of 48 MB, each freed at once: 20 x 11,719 pages, or next to none."""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("default", "keep")
    }
    assert faults["keep"] < faults["default"] / 4, faults
