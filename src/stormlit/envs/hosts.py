"""One environment of a vector, told to reset or to step and waited for later: in this process, or in one of its own.

That process may crash, hang or be killed without harm to this one. It does what it is told through a socket, until the
socket is closed, and imports no PyTorch, so that it starts soon and takes little memory.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np

from stormlit.envs.actions import action_space_of
from stormlit.envs.atari import AtariProtocol
from stormlit.envs.make import make_env
from stormlit.envs.settings import EnvSettings
from stormlit.errors import EnvironmentContractError, EnvironmentSetupError, describe
from stormlit.spaces import ActionSpace, ObservationSpace

PR_SET_PDEATHSIG = 1  # linux/prctl.h
START_SECONDS = 300.0  # to import and make an environment: generous, for a cold disk under load
CLOSE_SECONDS = 5.0  # to close it in good order

# Signals for the run as a whole, as a job scheduler sends them, are the parent's to answer: it still wants to finish
# its step. They are ignored before the imports, which take most of a second.
_PROGRAM = """
import signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
from stormlit.envs.hosts import serve
serve({descriptor}, die_with_parent={die_with_parent})
"""

Command = Literal["reset", "step"]


class EnvFacts(NamedTuple):
    """What an environment is like.

    action_meanings: its own words, one for each discrete action, else the numbers; of other
    actions none.
    has_time_limit: whether something ends every episode, however it is played.
    """

    observation_space: ObservationSpace
    action_space: ActionSpace
    action_meanings: list[str]
    has_time_limit: bool


class StepResult(NamedTuple):
    """What followed a reset or a step.  obs: as stored.  reward: raw.  After a reset only obs has a meaning."""

    obs: np.ndarray
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    life_lost: bool = False


class Crash(Exception):
    """An environment that cannot be used any more, and why, as the end of a sentence about it."""


class LocalEnv:
    """An environment in this process: a crash is an exception, and a hang is for ever.

    Raises ``EnvironmentSetupError`` as ``make_env`` does. After an error it can only be discarded.
    """

    def __init__(self, settings: EnvSettings) -> None:
        self._env = make_env(settings)
        self._called: tuple[Command, Any] | None = None

    def facts(self) -> EnvFacts:
        """To be called once, before the first reset."""
        env = self._env
        actions = action_space_of(env.action_space)
        assert actions is not None
        meanings = _action_meanings(env, actions.num_actions) if actions.is_discrete else []
        return EnvFacts(env.get_wrapper_attr("stored_observations"), actions, meanings, _has_time_limit(env))

    def call_async(self, command: Command, value: int | np.ndarray) -> None:
        """Begin to reset with a seed, or to step with an action of the action space; never fails."""
        self._called = (command, value)

    def call_wait(self) -> StepResult:
        """Wait for what was called last.  Raises ``Crash``, or ``EnvironmentContractError`` as ``CheckedEnv`` does."""
        assert self._called is not None
        command, value = self._called
        try:
            if command == "reset":
                return StepResult(self._env.reset(seed=value)[0])
            obs, reward, terminated, truncated, info = self._env.step(value)
            return StepResult(obs, float(reward), terminated, truncated, bool(info["life_lost"]))
        except EnvironmentContractError:
            raise
        except (Exception, SystemExit) as error:  # whatever it is: the environment's code is not ours
            raise Crash(f"its {command} raised {describe(error)}") from error

    def close(self) -> None:
        """End it; never fails."""
        with suppress(Exception):  # it may be broken already, and nothing more is wanted of it
            self._env.close()

    discard = close


def _action_meanings(env: gymnasium.Env[Any, Any], num_actions: int) -> list[str]:
    try:
        meanings = env.get_wrapper_attr("get_action_meanings")()
    except Exception:  # most environments have none, and of the others the code is not ours
        meanings = None
    if isinstance(meanings, list | tuple) and len(meanings) == num_actions:
        return [str(meaning) for meaning in meanings]
    return [str(action) for action in range(num_actions)]


def _has_time_limit(env: gymnasium.Env[Any, Any]) -> bool:
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, gymnasium.wrappers.TimeLimit | AtariProtocol):
            return True
        env = env.env
    return False


class IsolatedEnv:
    """An environment in a process of its own; used like ``LocalEnv``.

    A fresh interpreter runs ``serve``: unlike ``multiprocessing`` this neither runs the user's main module again
    nor waits, when this process ends, for an environment that hangs.
    """

    def __init__(self, settings: EnvSettings) -> None:
        self._limit = settings.step_timeout_seconds or None
        ours, theirs = socket.socketpair()
        # The kernel watches the starting thread, not the process: a thread that may end first does not qualify.
        die_with_parent = threading.current_thread() is threading.main_thread()
        program = _PROGRAM.format(descriptor=theirs.fileno(), die_with_parent=die_with_parent)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # out of reach of the terminal's Ctrl-C
                # What can be imported here can be imported there: env.id may name a module. What computes with threads
                # there shares the cores with the other environments.
                env={
                    "OMP_NUM_THREADS": "1",
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                },
            )
        self._connection = Connection(ours.detach())
        self._called_at = time.monotonic()
        self._send(settings)

    def facts(self) -> EnvFacts:
        facts: EnvFacts = self._receive(START_SECONDS, "to start")
        return facts

    def call_async(self, command: Command, value: int | np.ndarray) -> None:
        self._called_at = time.monotonic()
        self._send((command, value))

    def call_wait(self) -> StepResult:
        result: StepResult = self._receive(self._limit, "of env.step_timeout_seconds")
        return result

    def close(self) -> None:
        self._send(None)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_SECONDS)
        self.discard()

    def discard(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _send(self, message: Any) -> None:
        with suppress(OSError):  # a process that is gone shows when its answer is read
            self._connection.send(message)

    def _receive(self, limit: float | None, what: str) -> Any:
        """The next message.  limit: seconds since the call, or None.  Raises ``Crash`` or what was raised there."""
        left = None if limit is None else max(0.0, self._called_at + limit - time.monotonic())
        try:
            if not self._connection.poll(left):
                raise Crash(f"it did not answer within the {limit:g} seconds {what}")
            message = self._connection.recv()
        except (EOFError, OSError):
            raise Crash(self._how_it_ended()) from None
        if isinstance(message, Exception):
            raise message
        return message

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            return "its process closed the connection"
        if code >= 0:
            return f"its process exited ({code})"
        names = {number.value: number.name for number in signal.Signals}  # most real-time signals have none
        return f"its process was killed by {names.get(-code, f'signal {-code}')}"


def serve(descriptor: int, *, die_with_parent: bool) -> None:
    """Serve one environment: what ``_PROGRAM`` runs.

    descriptor: of a socket; settings come in and ``EnvFacts`` go out, then each (command, value) is followed by a
    ``StepResult``. In place of either, what was raised.  None, or the end of the parent, ends it.
    die_with_parent: be killed when the thread that started this process ends, however busy this process is.
    """
    if die_with_parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.set_inheritable(descriptor, False)  # what the environment starts must not keep the socket open
    connection = Connection(descriptor)
    try:
        _serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        return


def _serve(connection: Connection) -> None:
    try:
        env = LocalEnv(connection.recv())
        connection.send(env.facts())
    except EnvironmentSetupError as error:
        connection.send(error)
        return
    while (call := connection.recv()) is not None:
        env.call_async(*call)
        try:
            connection.send(env.call_wait())
        except (Crash, EnvironmentContractError) as error:
            connection.send(error)
    env.close()
