"""The command line: the table of its verbs, and the parsers that are made from it.

Options are ``KEY=VALUE`` words, so that ``fabric run`` does not eat them.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stormlit import __version__
from stormlit.cli.output import tell, unbreakable_streams
from stormlit.errors import ConfigError, StormlitError
from stormlit.files import look_in_working_directory
from stormlit.runs.signals import Stopped

NOT_WRITTEN, INTERRUPTED = 3, 130

Argument = tuple[tuple[str, ...], dict[str, Any]]


class Verb:
    """What a verb calls, ``module:function`` of this package, and the arguments that it takes.

    The function gets the parsed arguments that it names, the text it returns is printed. ``files`` and ``overrides``
    are made from the words (``overrides`` alone takes no files), ``root`` is where runs are looked for.
    """

    def __init__(self, target: str, help: str, *arguments: Argument) -> None:
        self.target, self.help, self.arguments = target, help, arguments


def _argument(*names: str, **options: Any) -> Argument:
    return names, options


def _words(metavar: str, help: str, nargs: str = "*") -> Argument:
    return _argument("words", nargs=nargs, default=[], metavar=metavar, help=help)


def _output(help: str, metavar: str | None = None) -> Argument:
    return _argument("-o", "--output", type=Path, required=True, metavar=metavar, help=help)


def _number(name: str, help: str, default: int) -> Argument:
    return _argument(name, type=int, default=default, help=f"{help} (default {default})")


RUN = _argument("reference", metavar="RUN", help="a run's name, its MLflow run id, or the path of a run or checkpoint")
LAYERS = _words("CONFIG|KEY=VALUE", "configurations to layer, then overrides")
WORDS = _words("KEY=VALUE", "changes to the configuration")
DEMONSTRATION = "a .npz, or an official pickle"
OUTPUT = _output("the file to write", "OUT.npz")

VERBS = {
    "train": Verb(
        "runs.train:train_or_resume",
        "Train from scratch, or with resume=auto go on with the run of that name.",
        LAYERS,
    ),
    "resume": Verb(
        "runs.train:resume_run", "Go on with a run from its newest checkpoint, in the same MLflow run.", RUN, WORDS
    ),
    "eval": Verb("cli.commands:evaluate_run", "Play whole episodes with a run and print every return.", RUN, WORDS),
    "dream": Verb(
        "cli.commands:dream_run",
        "Write a video of real, reconstructed and imagined frames.",
        RUN,
        WORDS,
        _argument("-o", "--output", type=Path, help="video file (.mp4 or .gif); default: in the run's media"),
        _number("--dreams", "how many dreams to show", 4),
    ),
    "sync": Verb(
        "runs.sync:sync_run", "Send the metrics and files that a run's tracking server has missed.", RUN, WORDS
    ),
    "ablate": Verb(
        "cli.ablate_command:ablate",
        "Run a grid: variants of a configuration, on environments and seeds. The same command goes on with it.",
        _words(
            "GRID|CONFIG|KEY=VALUE",
            "a bundled grid or a grid file, then configurations and changes for all of it (launcher=, jobs=, "
            "gpus_per_cell=, retries= say where it runs); with --vary configurations only",
        ),
        _argument(
            "--vary",
            action="append",
            default=[],
            metavar="KEY=A,B",
            help="a grid without a file: this key with each of these values; given again, all combinations",
        ),
        _argument("--seeds", metavar="N|A,B", help="how many seeds, or which; default: the grid's, else one"),
        _argument("--name", help="folder of the grid in run.dir; default: made from what it is"),
        _argument("--dry-run", action="store_true", help="only show the cells, and how long they would take"),
    ),
    "bench": Verb(
        "cli.bench_command:bench",
        "Time every phase of training, and count what it launches.",
        LAYERS,
        _number("--rounds", "how often each phase is measured", 5),
        _argument(
            "--json",
            dest="output",
            type=Path,
            metavar="FILE",
            help="where to write the numbers; default: bench-CONFIG.json",
        ),
        _argument(
            "--compare",
            dest="groups",
            nargs="+",
            default=[],
            metavar="WORDS",
            help="two or more groups of further words, each in quotes, measured side by side",
        ),
    ),
    "diagnose": Verb(
        "cli.diagnose_command:diagnose_run",
        "Measure a run's world model: open-loop error, rewards, ends, latents, values, returns in its dream.",
        RUN,
        WORDS,
        _number("--steps", "environment steps to play for it", 2048),
    ),
    "runs": Verb(
        "cli.result_commands:list_runs",
        "List runs: state, game, seed, steps, return, size.",
        _words("FOLDER|GROUP|run.dir=DIR", "folders of runs, or groups; default: all in run.dir"),
    ),
    "compare": Verb(
        "cli.result_commands:compare_runs",
        "Print how two or more runs differ, in their configurations and in what came out.",
        _words("RUN|FOLDER|GROUP", "runs, folders of runs or groups; also run.dir=DIR", nargs="+"),
    ),
    "report": Verb(
        "cli.result_commands:report_runs",
        "Write a page on what runs show, and what they do not: statistics, curves, dreams, cost.",
        _words(
            "RUN|FOLDER|GROUP|EXPERIMENT",
            "runs, folders of runs, groups (such as a grid's name) or MLflow experiments; also run.dir=DIR",
            nargs="+",
        ),
        _output("the folder to write", "DIR"),
        _argument("--base", metavar="VARIANT", help="the variant to compare with (default: base, or the first)"),
        _argument(
            "--reference",
            dest="scale",
            action="append",
            default=[],
            metavar="VARIANT|ENV=SCORE",
            help="what counts as 1 where there is no human score (default: the base); may be given again",
        ),
    ),
    "scores": Verb(
        "cli.result_commands:published_scores",
        "Print published scores on Atari 100k: aggregates with intervals.",
        _argument("methods", nargs="*", default=[], metavar="METHOD", help="only these, and every game of theirs"),
    ),
    "import-official": Verb(
        "runs.official:import_official",
        "Turn a checkpoint of the public implementation into an ordinary run.",
        _argument("world_model_file", type=Path, metavar="WORLD_MODEL.pth", help="the world model's state dict"),
        _argument("agent_file", type=Path, metavar="AGENT.pth", help="the agent's state dict"),
        WORDS,
        _output("folder of the run to write"),
    ),
    "components": Verb(
        "cli.commands:components",
        "List every registered part with its options and defaults, or check one.",
        _argument("kind", nargs="?", metavar="KIND", help="only parts of this kind"),
        _argument("name", nargs="?", metavar="NAME", help="only this part, which may be yours: MODULE:CLASS"),
        _argument("--check", action="store_true", help="whether it keeps the laws of its kind"),
    ),
    "config": Verb(
        "cli.commands:show_config",
        "Print the resolved configuration as YAML.",
        LAYERS,
        _argument("--keys", action="store_true", help="as a table of keys, meanings, values and ranges"),
    ),
    "script": Verb("cli.lightning_command:fabric_script", "Print the path of the file to give to `fabric run`."),
}
DEMOS = {
    "info": Verb(
        "cli.demonstration_commands:describe_all",
        "Show what is in demonstrations: frames, episodes, returns, actions.",
        _argument("demonstrations", type=Path, nargs="+", metavar="FILE", help=DEMONSTRATION),
    ),
    "convert": Verb(
        "cli.demonstration_commands:convert",
        "Write a demonstration in stormlit's own format, with env.game=NAME as that game's.",
        _argument("file", type=Path, metavar="FILE", help=DEMONSTRATION),
        WORDS,
        OUTPUT,
    ),
    "record": Verb(
        "cli.demonstration_commands:record_run",
        "Record a trained run, or random play, as a demonstration.",
        _argument("reference", metavar="RUN|random", help="a run, or random: random actions in env.game=NAME"),
        WORDS,
        OUTPUT,
        _number("--steps", "environment steps to record", 2048),
    ),
}


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
    """Call the verb's function with the arguments that its signature names, and print what it returns."""
    try:
        module, _, name = parsed.target.partition(":")
        # PyTorch takes seconds, which --help does not wait for.
        function = getattr(importlib.import_module(f"stormlit.{module}"), name)
        wanted = inspect.signature(function).parameters
        given = vars(parsed)
        if "files" in wanted:
            given["files"], given["overrides"] = _split(parsed.words)
        elif "overrides" in wanted:
            given["overrides"] = _overrides(parsed.words)
        if "root" in wanted:
            given["root"] = _run_root(given["overrides"])
        text: str | None = function(**{name: given[name] for name in wanted})
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


def _add(parsers: Any, verbs: Mapping[str, Verb]) -> None:
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
