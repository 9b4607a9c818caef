"""The process of one isolated environment: it does what it is told through a socket, until the socket is closed.

Started by ``isolated.IsolatedEnv``. Imports no PyTorch, so that it starts soon and takes little memory.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from multiprocessing.connection import Connection

from stormlit.envs.local import Crash, LocalEnv
from stormlit.errors import EnvironmentContractError, EnvironmentSetupError

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(descriptor: int, *, die_with_parent: bool) -> None:
    """Serve one environment.

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
