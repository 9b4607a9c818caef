"""The ``lightning`` command: ``lightning run`` as Lightning had it until 2.5, forwarded to ``fabric run``.

Lightning 2.6 installs no command called ``lightning``, but lightning-sdk does: every other subcommand is handed to it.
Nothing heavy is imported before it is known to be needed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

FABRIC_ENTRY = Path(__file__).parent / "scripts" / "fabric_entry.py"

HELP = """\
usage: lightning run [model] [OPTIONS] SCRIPT [ARGS...]
       lightning run [model] [OPTIONS] stormlit VERB [ARGS...]

Forwards to `fabric run`: OPTIONS are those that `fabric run --help` lists, everything after SCRIPT goes to the script,
and the word stormlit stands for stormlit's own command. Any other subcommand is handed to lightning-sdk, if installed.
"""


def fabric_script() -> str:
    """The path of the file to give to ``fabric run``."""
    return str(FABRIC_ENTRY)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (those of the process by default) and return its exit code.

    ``lightning run`` does not return: the launcher ends the process itself.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if given[0] == "run":
        _fabric_run(given[1:])
    return _lightning_sdk(given[0])


def fabric_arguments(given: Sequence[str], value_options: Collection[str]) -> list[str]:
    """Translate the words after ``lightning run`` into those after ``fabric run``.

    value_options: the options of ``fabric run``, each of which takes a value.

    >>> fabric_arguments(["model", "--devices", "2", "train.py", "--precision", "high"], {"--devices", "--precision"})
    ['--devices', '2', 'train.py', '--', '--precision', 'high']
    """
    words = list(given[1:] if given[:1] == ["model"] else given)
    position = _script_position(words, value_options)
    options, script, script_arguments = words[:position], words[position : position + 1], words[position + 1 :]
    if script == ["stormlit"]:
        script = [str(FABRIC_ENTRY)]
    # `fabric run` takes its own options from behind the script too, unless a `--` comes first.
    if script_arguments and script_arguments[0] != "--" and "--" not in options:
        script_arguments.insert(0, "--")
    return [*options, *script, *script_arguments]


def _script_position(words: Sequence[str], value_options: Collection[str]) -> int:
    """Index of the first word that is neither an option nor its value; ``len(words)`` or more if there is none."""
    index = 0
    while index < len(words):
        word = words[index]
        if word == "--":
            return index + 1
        if word.partition("=")[0] not in value_options:
            return index
        index += 1 if "=" in word else 2
    return index


def _fabric_run(given: Sequence[str]) -> NoReturn:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from stormlit.storm.fabric_internals import fabric_command  # imports torch

    fabric = fabric_command()
    options = [parameter for parameter in fabric.commands["run"].params if parameter.param_type_name == "option"]
    value_options = {name for option in options for name in option.opts}
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what is wrong is said below
    try:
        fabric.main(["run", *fabric_arguments(given, value_options)], prog_name="lightning")
    except ChildFailedError as error:
        first = error.get_first_failure()[1]
        if isinstance(first.message, str) and first.error_file_data.get("message"):  # what stormlit has left there
            print(first.message, file=sys.stderr)
        sys.exit(first.exitcode)


def _lightning_sdk(subcommand: str) -> int:
    """Call the ``lightning`` command of lightning-sdk, which reads ``sys.argv``; return its exit code."""
    for command in metadata.entry_points(group="console_scripts", name="lightning"):
        if command.dist is not None and command.dist.name.replace("_", "-").lower() == "lightning-sdk":
            result = command.load()()
            return result if isinstance(result, int) else 0
    print(
        f"lightning {subcommand}: only `lightning run` works without lightning-sdk; see `pip install lightning-sdk`.",
        file=sys.stderr,
    )
    return 2
