"""The command line.

Verbs are a table, ``verb_table``; options are ``KEY=VALUE`` words, so that ``fabric run`` does not eat them.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stormlit import __version__
from stormlit.cli.output import tell, unbreakable_streams
from stormlit.cli.verb_table import DEMOS, VERBS, Verb
from stormlit.errors import ConfigError, StormlitError
from stormlit.files import look_in_working_directory
from stormlit.runs.signals import Stopped

NOT_WRITTEN, INTERRUPTED = 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    0: done; 2: bad input; 3: training failed, or its last checkpoint could not be written; 130: interrupted at once;
    128 + N: training was stopped by signal N and has saved.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    look_in_working_directory()  # for the user's parts and environments
    # `fabric run script -- train ...` hands the separator through.
    parsed = _parser().parse_args(words[1:] if words[:1] == ["--"] else words)
    with unbreakable_streams() as output:
        code = _run(parsed)
        output.flush()
        if output.error is not None and not isinstance(output.error, BrokenPipeError):
            # A reader such as `head` may have seen enough; anything else is worth a word.
            reason = getattr(output.error, "strerror", None) or output.error
            print(f"stormlit: the output could not be written ({reason})", file=sys.stderr)
            if code == 0 and parsed.verb not in ("train", "resume"):  # what those are asked for is on the disk
                code = NOT_WRITTEN
    return code


def _run(parsed: argparse.Namespace) -> int:
    try:
        text = _call(parsed)
        if text is not None:
            print(text)
    except StormlitError as error:
        tell(error)
        return error.exit_code
    except Stopped as stopped:
        print(f"stormlit: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("stormlit: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _call(parsed: argparse.Namespace) -> str | None:
    """Call a verb's function with the arguments that its signature names."""
    module, _, name = parsed.target.partition(":")
    function = getattr(importlib.import_module(module), name)  # PyTorch takes seconds, which --help does not wait for
    wanted = inspect.signature(function).parameters
    given = vars(parsed)
    if "files" in wanted:
        given["files"], given["overrides"] = _split(parsed.words)
    elif "overrides" in wanted:
        given["overrides"] = _overrides(parsed.words)
    if "root" in wanted:
        given["root"] = _run_root(given["overrides"])
    result: str | None = function(**{name: given[name] for name in wanted})
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stormlit",
        description="Stochastic Transformer world models. Settings are given as KEY=VALUE words; "
        "`stormlit config` lists all keys, `stormlit components` all parts.",
    )
    parser.add_argument("--version", action="version", version=f"stormlit {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND", parser_class=_VerbParser)
    _add(verbs, VERBS)
    demos = verbs.add_parser("demos", help="Inspect, convert and record demonstrations.")
    demos._intermixed = True  # its words belong to the parsers below it
    _add(demos.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=_VerbParser), DEMOS)
    return parser


def _add(parsers: Any, verbs: dict[str, Verb]) -> None:
    for name, verb in verbs.items():
        added = parsers.add_parser(name, help=verb.help, description=verb.help)
        added.set_defaults(target=verb.target)
        for names, options in verb.arguments:
            added.add_argument(*names, **options)


class _VerbParser(argparse.ArgumentParser):
    """Takes words before, between and after options."""

    _intermixed = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._intermixed:
            return super().parse_known_args(args, namespace)
        self._intermixed = True  # the method below calls this one
        try:
            parsed, left = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixed = False
        for word in left:
            self._refuse_key(word, [*args, "VALUE"][[*args].index(word) + 1])
        return parsed, left

    def _refuse_key(self, word: str, following: str) -> None:
        """End with a hint if an unknown option such as ``--seed`` is a key."""
        from stormlit.config.compose import as_override, is_key

        name, separator, value = word.partition("=")
        key = name.lstrip("-").replace("-", "_")
        if word.startswith("--") and is_key(key):
            self.error(f"{word} is no option but a key: write {as_override(key, value if separator else following)}")


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Configurations, and ``KEY=VALUE`` overrides; in any order."""
    from stormlit.config.compose import is_override

    return [word for word in words if not is_override(word)], [word for word in words if is_override(word)]


def _overrides(words: Sequence[str]) -> list[str]:
    from stormlit.config.compose import as_override, is_key

    for word, following in itertools.zip_longest(words, words[1:], fillvalue="VALUE"):
        if "=" not in word:
            hint = f": write {as_override(word, following)}" if is_key(word) else ""
            raise ConfigError(f"'{word}' is not of the form KEY=VALUE{hint}")
    return list(words)


def _run_root(overrides: Sequence[str]) -> Path:
    """Where runs are looked for: ``run.dir`` of the overrides, else the default."""
    from stormlit.config.schema import KEYS
    from stormlit.config.text import value_of_word

    given = [word.partition("=")[2] for word in overrides if word.startswith("run.dir=")]
    option = KEYS["run.dir"]
    return Path(value_of_word(option, given[-1] if given else option.default, "run.dir"))
