"""Commands that train nothing do not wait for what only a training needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("lightning", "torchmetrics", "scipy", "mlflow", "matplotlib", "torch._dynamo", "pandas")
PROGRAM = """
import sys
from stormlit.cli import main
code = main(sys.argv[1:])
print("imported:", *(name for name in {heavy!r} if name in sys.modules))
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["runs"], 0),
        (["scores"], 0),
        (["components"], 0),
        (["config", "tiny"], 0),
        (["train", "tiny", "lop.env_steps=3"], 2),
    ],
)
def test_nothing_heavy_is_imported(words: list[str], code: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(heavy=HEAVY), *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"
