"""The commands and their arguments, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple


class Verb(NamedTuple):
    """What a verb calls, ``module:function``, and the arguments it takes besides those of that function's signature.

    The function is given the parsed arguments that it names, the text it returns is printed. ``files`` and
    ``overrides`` are made from the words (``overrides`` alone takes no files), ``root`` is where runs are looked for.
    """

    target: str
    help: str
    arguments: tuple[tuple[tuple[str, ...], dict[str, Any]], ...]


def _argument(*names: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, options


def _words(metavar: str, help: str, nargs: str = "*") -> tuple[tuple[str, ...], dict[str, Any]]:
    return _argument("words", nargs=nargs, default=[], metavar=metavar, help=help)


def _output(help: str, metavar: str | None = None) -> tuple[tuple[str, ...], dict[str, Any]]:
    return _argument("-o", "--output", type=Path, required=True, metavar=metavar, help=help)


RUN = _argument("reference", metavar="RUN", help="a run's name, its MLflow run id, or the path of a run or checkpoint")
LAYERS = _words("CONFIG|KEY=VALUE", "configurations to layer, then overrides")
WORDS = _words("KEY=VALUE", "changes to the configuration")
DEMONSTRATION = "a .npz, or an official pickle"
OUTPUT = _output("the file to write", "OUT.npz")

VERBS = {
    "train": Verb(
        "stormlit.runs.train:train_or_resume",
        "Train from scratch, or with resume=auto go on with the run of that name.",
        (LAYERS,),
    ),
    "resume": Verb(
        "stormlit.runs.train:resume_run",
        "Go on with a run from its newest checkpoint, in the same MLflow run.",
        (RUN, WORDS),
    ),
    "eval": Verb(
        "stormlit.cli.commands:evaluate_run", "Play whole episodes with a run and print every return.", (RUN, WORDS)
    ),
    "dream": Verb(
        "stormlit.cli.commands:dream_run",
        "Write a video of real, reconstructed and imagined frames.",
        (
            RUN,
            WORDS,
            _argument("-o", "--output", type=Path, help="video file (.mp4 or .gif); default: in the run's media"),
            _argument("--dreams", type=int, default=4, help="how many dreams to show (default 4)"),
        ),
    ),
    "sync": Verb(
        "stormlit.runs.sync:sync_run",
        "Send the metrics and files that a run's tracking server has missed.",
        (RUN, WORDS),
    ),
    "ablate": Verb(
        "stormlit.cli.ablate_command:ablate",
        "Run a grid: variants of a configuration, on environments and seeds. The same command goes on with it.",
        (
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
    ),
    "bench": Verb(
        "stormlit.cli.bench_command:bench",
        "Time every phase of training, and count what it launches.",
        (
            LAYERS,
            _argument("--rounds", type=int, default=5, help="how often each phase is measured (default 5)"),
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
    ),
    "diagnose": Verb(
        "stormlit.cli.diagnose_command:diagnose_run",
        "Measure a run's world model: open-loop error, rewards, ends, latents, values, returns in its dream.",
        (
            RUN,
            WORDS,
            _argument("--steps", type=int, default=2048, help="environment steps to play for it (default 2048)"),
        ),
    ),
    "runs": Verb(
        "stormlit.cli.run_commands:list_runs",
        "List runs: state, game, seed, steps, return, size.",
        (_words("FOLDER|GROUP|run.dir=DIR", "folders of runs, or groups; default: all in run.dir"),),
    ),
    "compare": Verb(
        "stormlit.cli.run_commands:compare_runs",
        "Print how two or more runs differ, in their configurations and in what came out.",
        (_words("RUN|FOLDER|GROUP", "runs, folders of runs or groups; also run.dir=DIR", nargs="+"),),
    ),
    "report": Verb(
        "stormlit.cli.run_commands:report_runs",
        "Write a page on what runs show, and what they do not: statistics, curves, dreams, cost.",
        (
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
    ),
    "scores": Verb(
        "stormlit.cli.scores_command:published_scores",
        "Print published scores on Atari 100k: aggregates with intervals.",
        (_argument("methods", nargs="*", default=[], metavar="METHOD", help="only these, and every game of theirs"),),
    ),
    "import-official": Verb(
        "stormlit.runs.official:import_official",
        "Turn a checkpoint of the public implementation into an ordinary run.",
        (
            _argument("world_model_file", type=Path, metavar="WORLD_MODEL.pth", help="the world model's state dict"),
            _argument("agent_file", type=Path, metavar="AGENT.pth", help="the agent's state dict"),
            WORDS,
            _output("folder of the run to write"),
        ),
    ),
    "components": Verb(
        "stormlit.cli.commands:components",
        "List every registered part with its options and defaults, or check one.",
        (
            _argument("kind", nargs="?", metavar="KIND", help="only parts of this kind"),
            _argument("name", nargs="?", metavar="NAME", help="only this part, which may be yours: MODULE:CLASS"),
            _argument("--check", action="store_true", help="whether it keeps the laws of its kind"),
        ),
    ),
    "config": Verb(
        "stormlit.cli.commands:show_config",
        "Print the resolved configuration as YAML.",
        (
            LAYERS,
            _argument("--keys", action="store_true", help="as a table of keys, meanings, values and ranges"),
        ),
    ),
    "script": Verb(
        "stormlit.cli.lightning_command:fabric_script", "Print the path of the file to give to `fabric run`.", ()
    ),
}
DEMOS = {
    "info": Verb(
        "stormlit.cli.demonstration_commands:describe_all",
        "Show what is in demonstrations: frames, episodes, returns, actions.",
        (_argument("demonstrations", type=Path, nargs="+", metavar="FILE", help=DEMONSTRATION),),
    ),
    "convert": Verb(
        "stormlit.cli.demonstration_commands:convert",
        "Write a demonstration in stormlit's own format, with env.game=NAME as that game's.",
        (_argument("file", type=Path, metavar="FILE", help=DEMONSTRATION), WORDS, OUTPUT),
    ),
    "record": Verb(
        "stormlit.cli.demonstration_commands:record_run",
        "Record a trained run, or random play, as a demonstration.",
        (
            _argument("reference", metavar="RUN|random", help="a run, or random: random actions in env.game=NAME"),
            WORDS,
            OUTPUT,
            _argument("--steps", type=int, default=2048, help="environment steps to record (default 2048)"),
        ),
    ),
}
