"""One cycle of training can be walked by a reader: how many functions and files of the package it passes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MOST_FUNCTIONS, MOST_FILES, MOST_CHANGES_OF_FILE = 140, 32, 260

# One step of one environment, one update of the world model and one of the agent, between two calls of an environment.
WALK = """
import os, sys
import gymnasium, numpy
import stormlit
from stormlit.cli import main

ROOT = os.path.dirname(stormlit.__file__) + os.sep
functions, files, changes, steps = set(), [], 0, 0

def walked(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(ROOT) and not code.co_name.endswith("comp>"):
        functions.add((code.co_filename, code.co_qualname))
        files.append(code.co_filename)

class Walk(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), numpy.uint8)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.seen(), {}

    def seen(self):
        return self.np_random.integers(0, 256, (16, 16, 3), dtype=numpy.uint8)

    def step(self, action):
        global steps
        steps += 1
        if steps == 150:
            sys.setprofile(walked)
        if steps == 151:
            sys.setprofile(None)
            changes = sum(one != other for one, other in zip(["", *files], files))
            print("walked", len(functions), len(set(files)), changes, flush=True)
            os._exit(0)
        return self.seen(), 0.0, steps % 50 == 0, False, {}

gymnasium.register("Walk-v0", lambda: Walk())
main(["train", "tiny", "env.id=Walk-v0", "env.num_envs=1", "tracking=csv", f"run.dir={sys.argv[1]}",
      "loop.warmup_steps=60", "loop.world_model_updates_per_env_step=1", "loop.agent_updates_per_env_step=1",
      "imagination.horizon=8", "loop.media_every_env_steps=0"])
"""


def test_a_cycle_of_training_can_be_walked(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WALK, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=550
    )
    found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("walked")]
    assert found, done.stderr[-2000:]
    functions, files, changes = map(int, found[0])
    assert 0 < functions <= MOST_FUNCTIONS and 0 < files <= MOST_FILES and 0 < changes <= MOST_CHANGES_OF_FILE
