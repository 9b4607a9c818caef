"""Environments in processes of their own: the same streams bit for bit, the same state, and no process left over."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_vector_env import _assert_equal_steps

from stormlit.config.compose import compose
from stormlit.envs import AtariSettings, EnvSettings, VectorEnv
from stormlit.errors import ConfigError, EnvironmentSetupError

CATCH: dict[str, Any] = {"game": None, "id": "stormlit/Catch-v0", "size": 16}


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(pids: list[int], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not all(map(gone, pids)):
        assert time.monotonic() < deadline, f"of {pids} some are still there"
        time.sleep(0.02)


def pids(envs: VectorEnv) -> list[int]:
    return [slot.env._process.pid for slot in envs._slots]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "settings",
    [
        {**CATCH, "num_envs": 3, "reward_transform": "sign", "episode_seeds": "same"},
        *(
            {**CATCH, "id": f"{env}-v0"}
            for env in ("action_envs:Multi", "action_envs:Started", "action_envs:BoxDouble", "observation_envs:Both")
        ),
        pytest.param(
            {
                "game": "Breakout",
                "size": 32,
                "num_envs": 2,
                "max_episode_steps": 40,
                "atari": AtariSettings(sticky_actions=0.25, noop_max=10),
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda settings: settings.get("id", "a game"),
)
def test_streams_are_identical_and_state_may_change_places(settings: dict[str, Any]) -> None:
    here = VectorEnv(EnvSettings(**settings), seed=4)
    there = VectorEnv(EnvSettings(**settings, isolation="process"), seed=4)
    assert (here.observation_space, here.action_space) == (there.observation_space, there.action_space)
    assert here.action_meanings == there.action_meanings
    np.testing.assert_array_equal(here.reset(), there.reset())
    generator = np.random.default_rng(0)
    actions = [here.action_space.random(generator, here.num_envs) for _ in range(100)]
    ended = 0
    for action in actions[:47]:
        step = here.step(action)
        _assert_equal_steps(step, there.step(action))
        ended += len(step.episodes)
    assert ended
    assert here.state_dict() == there.state_dict()
    # Each goes on where the other one stood.
    of_here, of_there = (pickle.loads(pickle.dumps(envs.state_dict())) for envs in (here, there))
    here.load_state_dict(of_there)
    there.load_state_dict(of_here)
    np.testing.assert_array_equal(here.current_obs, there.current_obs)
    for action in actions[47:]:
        _assert_equal_steps(here.step(action), there.step(action))
    there.close()


def test_a_process_that_ends_before_its_first_answer_is_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ends_at_once.py").write_text("import os\nos._exit(9)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentSetupError, match=r"^env\.id=ends_at_once:X-v0 cannot be made: .* exited \(9\)$"):
        VectorEnv(EnvSettings(game=None, id="ends_at_once:X-v0", isolation="process"), seed=0)


def test_a_signal_without_a_name_is_a_crash_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    envs = VectorEnv(EnvSettings(**CATCH, isolation="process"), seed=0)
    envs.reset()
    os.kill(pids(envs)[0], signal.SIGRTMIN + 3)
    assert envs.step(np.array([1])).episodes[0].crashed
    assert f"killed by signal {signal.SIGRTMIN + 3}" in caplog.text
    envs.close()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("env.isolation=thread", "env.isolation"),
        ("env.step_timeout_seconds=5", "env.step_timeout_seconds=5 needs env.isolation=process"),
    ],
)
def test_settings_are_checked(word: str, told: str) -> None:
    with pytest.raises((ConfigError, EnvironmentSetupError), match=told):
        VectorEnv(compose(["tiny"], [word]).env, seed=0)
    with pytest.raises(EnvironmentSetupError, match=r"env\.isolation=thread does not exist"):
        VectorEnv(EnvSettings(isolation="thread"), seed=0)  # type: ignore[arg-type]


def test_closing_ends_the_processes() -> None:
    envs = VectorEnv(EnvSettings(**CATCH, num_envs=2, isolation="process"), seed=0)
    started = pids(envs)
    assert not any(map(gone, started))
    envs.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)  # waited for, too


def test_signals_for_the_run_are_not_for_its_environments() -> None:
    envs = VectorEnv(EnvSettings(**CATCH, isolation="process"), seed=0)
    envs.reset()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(pids(envs)[0], number)
    step = envs.step(np.array([1]))
    assert not step.is_first[0] and envs.restarts == 0
    envs.close()


def test_environments_do_not_wait_for_one_another() -> None:
    """Four that take half a second each take less than two seconds together."""
    envs = VectorEnv(EnvSettings(game=None, id="faulty_envs:Slow-v0", size=8, num_envs=4, isolation="process"), seed=0)
    envs.reset()
    began = time.monotonic()
    envs.step(np.zeros(4, np.int64))
    assert time.monotonic() - began < 1.9
    envs.close()


def test_an_environments_process_does_without_torch() -> None:
    code = "import sys, stormlit.envs.hosts; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


PARENT = """
import sys, time
import numpy as np
from stormlit.envs import EnvSettings, VectorEnv
envs = VectorEnv(EnvSettings(game=None, id=sys.argv[1], size=8, num_envs=2, isolation="process"), seed=0)
envs.reset()
print(*(slot.env._process.pid for slot in envs._slots), flush=True)
if sys.argv[2] == "ends":
    sys.exit()
while True:
    envs.step(np.zeros(2, np.int64))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "how"),
    [
        ("faulty_envs:Hang-v0", "killed"),
        ("faulty_envs:Hang-v0", "ends"),
        ("stormlit/Catch-v0", "interrupted"),
    ],
)
def test_no_process_outlives_the_run(env: str, how: str) -> None:
    """Not when it is killed, not even while an environment hangs, and a run that ends does not wait for them."""
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PARENT, env, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=path) as parent:
        assert parent.stdout is not None
        started = list(map(int, parent.stdout.readline().split()))
        assert len(started) == 2
        time.sleep(0.5)  # long enough to get stuck
        if how != "ends":
            assert not any(map(gone, started))
            parent.send_signal(signal.SIGKILL if how == "killed" else signal.SIGINT)
        try:
            parent.wait(20)
        finally:
            parent.kill()
    wait_until_gone(started)
