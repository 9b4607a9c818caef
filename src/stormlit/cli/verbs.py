"""The command line. Verbs are functions; options are ``KEY=VALUE`` words, so that ``fabric run`` does not eat them."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stormlit import __version__
from stormlit.cli.streams import unbreakable_streams
from stormlit.errors import ConfigError, StormlitError
from stormlit.runs.signals import Stopped

RUN_HELP = "a run's name, its MLflow run id, or the path of a run or checkpoint"
BAD_INPUT, NOT_WRITTEN, INTERRUPTED = 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    0: done; 2: bad input; 3: training failed, or its last checkpoint could not be written; 130: interrupted at once;
    128 + N: training was stopped by signal N and has saved.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if os.getcwd() not in sys.path:  # modules of the user's parts and environments, also with the console script
        sys.path.append(os.getcwd())
    # `fabric run script -- train ...` hands the separator through.
    parsed = _parser().parse_args(words[1:] if words[:1] == ["--"] else words)
    with unbreakable_streams() as output:
        code = _run(parsed)
        output.flush()
        if output.error is not None and not isinstance(output.error, BrokenPipeError):
            # A reader such as `head` may have seen enough; anything else is worth a word.
            print(f"stormlit: the output could not be written ({_reason(output.error)})", file=sys.stderr)
            if code == 0 and parsed.verb not in ("train", "resume"):  # what those are asked for is on the disk
                code = NOT_WRITTEN
    return code


def _run(parsed: argparse.Namespace) -> int:
    command: Callable[[argparse.Namespace], None] = parsed.command
    try:
        command(parsed)
    except StormlitError as error:
        # Each of several processes finds the same input wrong.
        if error.exit_code != BAD_INPUT or os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"stormlit: error: {error}", file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        print(f"stormlit: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("stormlit: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def train(arguments: argparse.Namespace) -> None:
    """Train from scratch, or with resume=auto go on with the run of that name."""
    from stormlit.config.compose import compose
    from stormlit.runs.resume import train_or_resume

    files, overrides = _split(arguments.words)
    train_or_resume(compose(files, overrides), files)


def resume(arguments: argparse.Namespace) -> None:
    """Go on with a run from its newest checkpoint, in the same MLflow run."""
    from stormlit.runs.resume import resume_run

    overrides = _overrides(arguments.words)
    resume_run(arguments.run, _run_root(overrides), overrides)


def evaluate(arguments: argparse.Namespace) -> None:
    """Play whole episodes with a trained run and print every return."""
    from stormlit.cli.commands import evaluate_run

    overrides = _overrides(arguments.words)
    print(evaluate_run(arguments.run, _run_root(overrides), overrides))


def dream(arguments: argparse.Namespace) -> None:
    """Write a video of real, reconstructed and imagined frames."""
    from stormlit.cli.commands import dream_run

    overrides = _overrides(arguments.words)
    output = Path(arguments.output) if arguments.output else None
    print(dream_run(arguments.run, _run_root(overrides), overrides, output, arguments.dreams))


def bench(arguments: argparse.Namespace) -> None:
    """Time every phase of training, and count what it launches."""
    from stormlit.cli.bench.command import bench as measure

    output = Path(arguments.json) if arguments.json else None
    print(measure(*_split(arguments.words), arguments.compare, arguments.rounds, output))


def sync(arguments: argparse.Namespace) -> None:
    """Send the metrics and files that a run's tracking server has missed."""
    from stormlit.runs.sync import sync_run

    overrides = _overrides(arguments.words)
    print(sync_run(arguments.run, _run_root(overrides), overrides))


def import_official(arguments: argparse.Namespace) -> None:
    """Turn a checkpoint of the public implementation into an ordinary run."""
    from stormlit.runs.import_official import import_official as convert

    overrides = _overrides(arguments.words)
    print(convert(Path(arguments.world_model), Path(arguments.agent), overrides, Path(arguments.output)))


def demos_info(arguments: argparse.Namespace) -> None:
    """Show what is in demonstrations: frames, episodes, returns, actions."""
    from stormlit.cli.demonstration_commands import describe

    for file in arguments.files:
        print(describe(Path(file)))


def demos_convert(arguments: argparse.Namespace) -> None:
    """Write a demonstration in stormlit's own format, with env.game=NAME as that game's."""
    from stormlit.cli.demonstration_commands import convert

    print(convert(Path(arguments.file), Path(arguments.output), _overrides(arguments.words)))


def demos_record(arguments: argparse.Namespace) -> None:
    """Record a trained run, or random play, as a demonstration."""
    from stormlit.cli.demonstration_commands import record_run

    overrides = _overrides(arguments.words)
    print(record_run(arguments.run, _run_root(overrides), overrides, Path(arguments.output), arguments.steps))


def components(arguments: argparse.Namespace) -> None:
    """List every registered part with its options and defaults, or check one."""
    from stormlit.cli.commands import check_component, list_components

    print((check_component if arguments.check else list_components)(arguments.kind, arguments.name))


def config(arguments: argparse.Namespace) -> None:
    """Print the resolved configuration as YAML."""
    from stormlit.config.compose import compose, to_yaml

    resolved = compose(*_split(arguments.words))
    if arguments.keys:
        from stormlit.cli.commands import list_keys

        print(list_keys(resolved))
    else:
        print(to_yaml(resolved), end="")


def script(arguments: argparse.Namespace) -> None:
    """Print the path of the file to give to ``fabric run``."""
    from stormlit.cli.lightning_command import FABRIC_ENTRY

    print(FABRIC_ENTRY)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stormlit",
        description="Stochastic Transformer world models. Settings are given as KEY=VALUE words; "
        "`stormlit config` lists all keys, `stormlit components` all parts.",
    )
    parser.add_argument("--version", action="version", version=f"stormlit {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND", parser_class=_VerbParser)

    def verb(name: str, command: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=command.__doc__, description=command.__doc__)
        added.set_defaults(command=command)
        return added

    words = {"nargs": "*", "default": []}
    configuration = {**words, "metavar": "CONFIG|KEY=VALUE", "help": "configurations to layer, then overrides"}
    overrides = {**words, "metavar": "KEY=VALUE", "help": "changes to the run's configuration"}
    verb("train", train).add_argument("words", **configuration)  # type: ignore[arg-type]
    for name, command in (("resume", resume), ("eval", evaluate), ("dream", dream), ("sync", sync)):
        with_run = verb(name, command)
        with_run.add_argument("run", metavar="RUN", help=RUN_HELP)
        with_run.add_argument("words", **overrides)  # type: ignore[arg-type]
        if name == "dream":
            with_run.add_argument(
                "-o", "--output", help="video file (.mp4 or .gif); default: in the run's media folder"
            )
            with_run.add_argument("--dreams", type=int, default=4, help="how many dreams to show (default 4)")
    benched = verb("bench", bench)
    benched.add_argument("words", **configuration)  # type: ignore[arg-type]
    benched.add_argument("--rounds", type=int, default=5, help="how often each phase is measured (default 5)")
    benched.add_argument("--json", metavar="FILE", help="where to write the numbers; default: bench-CONFIG.json")
    compared = "two or more groups of further words, each in quotes, measured side by side"
    benched.add_argument("--compare", nargs="+", default=[], metavar="WORDS", help=compared)
    imported = verb("import-official", import_official)
    imported.add_argument("world_model", metavar="WORLD_MODEL.pth", help="the released world model's state dict")
    imported.add_argument("agent", metavar="AGENT.pth", help="the released agent's state dict")
    imported.add_argument("words", **overrides)  # type: ignore[arg-type]
    imported.add_argument("-o", "--output", required=True, help="folder of the run to write")
    _add_demos(verbs)
    listed = verb("components", components)
    listed.add_argument("kind", nargs="?", metavar="KIND", help="only parts of this kind")
    listed.add_argument(
        "name", nargs="?", metavar="NAME", help="only this part, which may be one of yours: MODULE:CLASS"
    )
    listed.add_argument("--check", action="store_true", help="whether it keeps the laws of its kind")
    shown = verb("config", config)
    shown.add_argument("words", **configuration)  # type: ignore[arg-type]
    shown.add_argument("--keys", action="store_true", help="as a table of keys, meanings, values and ranges")
    verb("script", script)
    return parser


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


def _add_demos(verbs: Any) -> None:
    demos = verbs.add_parser("demos", help="Inspect, convert and record demonstrations.")
    demos._intermixed = True  # its words belong to the parsers below it
    actions = demos.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=_VerbParser)

    def action(name: str, command: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = actions.add_parser(name, help=command.__doc__, description=command.__doc__)
        added.set_defaults(command=command)
        return added

    action("info", demos_info).add_argument("files", nargs="+", metavar="FILE", help="a .npz, or an official pickle")
    convert, record = action("convert", demos_convert), action("record", demos_record)
    convert.add_argument("file", metavar="FILE", help="a .npz, or an official pickle")
    record.add_argument("run", metavar="RUN|random", help=f"{RUN_HELP}; random: random actions in env.game=NAME")
    record.add_argument("--steps", type=int, default=2048, help="environment steps to record (default 2048)")
    for added in (convert, record):
        added.add_argument(
            "words", nargs="*", default=[], metavar="KEY=VALUE", help="the environment, and other settings"
        )
        added.add_argument("-o", "--output", required=True, metavar="OUT.npz", help="the file to write")


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
