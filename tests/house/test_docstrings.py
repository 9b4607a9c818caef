"""The examples in docstrings come out as they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import stormlit

SOURCE = Path(stormlit.__file__).parent
EXAMPLES = sorted(
    ".".join(("stormlit", *file.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    for file in SOURCE.rglob("*.py")
    if ">>> " in file.read_text()
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_come_out_as_they_say(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted > 0 and outcome.failed == 0
