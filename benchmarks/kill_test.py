"""Kill training processes at random moments and compare with runs that were never killed.

    python benchmarks/kill_test.py [POINTS]      # 50 by default; several minutes

Each run is killed with SIGKILL again and again at moments drawn from a fixed seed, started again with the same command
(``resume=auto``), and compared bit for bit at its end: weights, optimisers, random states, environments, replay rows,
actions and metrics. Prints a table in Markdown.
"""

from __future__ import annotations

import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_kill import BUDGET, VARIANTS, attempt
from test_resume import assert_same_run
from test_training_run import train

KILLS_PER_RUN = 7


def measure(words: tuple[str, ...], points: int, folder: Path, chance: random.Random) -> tuple[int, int, int]:
    """Kill ``points`` times; returns kills, finished runs and how many of these differ from the unbroken one."""
    begun = time.monotonic()
    unbroken = train(folder / "a", "run", *BUDGET, *words, "resume=auto")
    seconds = time.monotonic() - begun
    kills = runs = different = 0
    while kills < points:
        root = folder / "b"
        root.mkdir()
        for _ in range(min(KILLS_PER_RUN, points - kills)):
            kills += attempt(root, words, chance.uniform(0, seconds)) == -signal.SIGKILL
        runs += 1
        try:
            if attempt(root, words, None) != 0:
                raise AssertionError("the last attempt failed")
            assert_same_run(unbroken, root / "run")
        except AssertionError as difference:
            different += 1
            print(difference, file=sys.stderr)
        shutil.rmtree(root)
    return kills, runs, different


def main() -> None:
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    chance = random.Random(0)
    print("| run | killed | runs | different |\n|---|---|---|---|")
    for index, (name, words) in enumerate(VARIANTS.items()):
        share = points // len(VARIANTS) + (index < points % len(VARIANTS))
        with tempfile.TemporaryDirectory() as folder:
            shown = measure(words, share, Path(folder), chance)
        print(f"| {name} | {' | '.join(str(number) for number in shown)} |", flush=True)


if __name__ == "__main__":
    main()
