"""The documentation says what the code does: keys, defaults, commands, errors, names, links and examples."""

from __future__ import annotations

import doctest
import importlib
import inspect
import operator
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from test_layers import ROOMS

import stormlit
from stormlit import registry
from stormlit.cli.verbs import _parser, _split, main
from stormlit.config.compose import compose, to_tree
from stormlit.envs.catch import RANDOM_RETURN
from stormlit.sweeps import launchers
from stormlit.sweeps.cells import cells_of
from stormlit.sweeps.grid import read_grid

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = REPOSITORY / "src" / "stormlit"
DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
PAGES = [*DOCS, *(REPOSITORY / name for name in ("README.md",) if (REPOSITORY / name).is_file())]
ARCHITECTURE, CONFIGURATION, EXTENDING = (
    (REPOSITORY / "docs" / f"{name}.md").read_text() for name in ("architecture", "configuration", "extending")
)
SHELL_LANGUAGES = ("console", "bash", "sh", "shell")


class Block(NamedTuple):
    """A fenced code block."""

    language: str
    text: str


class Command(NamedTuple):
    """A ``stormlit`` command of a shell block: the words after ``stormlit``, and the lines shown below it."""

    words: list[str]
    output: list[str]


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def commands(text: str) -> list[Command]:
    """In a ``console`` block commands follow a ``$``, and other lines are output; elsewhere every line is a command."""
    found: list[Command] = []
    for language, block in blocks(text):
        if language not in SHELL_LANGUAGES:
            continue
        command: Command | None = None
        for line in block.replace("\\\n", " ").splitlines():
            if language == "console" and not line.startswith("$ "):
                if command is not None:
                    command.output.append(line)
                continue
            words = stormlit_words(line.removeprefix("$ "))
            command = None if words is None else Command(words, [])
            if command is not None:
                found.append(command)
    return found


def stormlit_words(line: str) -> list[str] | None:
    """What stormlit is given by a shell line, None where it is not called."""
    words = shlex.split(line, comments=True)
    for position, word in enumerate(words):
        if Path(word).name in ("stormlit", "$(stormlit script)"):
            given = words[position + 1 :]
            ends = [index for index, word in enumerate(given) if word in ("|", ">", "&&", ";", "&")]
            return given[: min(ends, default=len(given))]
    return None


def between(text: str, start: str, end: str) -> str:
    """What stands between two lines."""
    return text.partition(f"\n{start}\n")[2].partition(f"\n{end}\n")[0]


KEY_TABLE = between(CONFIGURATION, "<!-- stormlit config --keys -->", "<!-- end -->")
COUNTERPARTS = CONFIGURATION.partition("## Keys with a counterpart")[2].partition("\n## ")[0]
COMMANDS = [
    pytest.param(command, id=f"{page.stem}: {shlex.join(command.words)[:60]}")
    for page in PAGES
    for command in commands(page.read_text())
]
# Only short commands are run: those that list something, and those shown to be refused.
RUN = [
    pytest.param(command, id=shlex.join(command.words)[:60])
    for page in DOCS
    for command in commands(page.read_text())
    if command.output
]


@pytest.fixture
def example_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with the configuration files and the parts that the documentation shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(
        "\n".join(text for language, text in blocks(EXTENDING) if language == "python" and text.startswith("# mine.py"))
    )
    for page in PAGES:
        for language, text in blocks(page.read_text()):
            named = re.match(r"# (\S+\.yaml)\n", text)
            if language == "yaml" and named:
                (tmp_path / named[1]).write_text(text)


def test_the_documented_keys_are_what_config_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--keys"]) == 0
    assert capsys.readouterr().out.splitlines() == KEY_TABLE.splitlines()


def test_every_key_is_documented_with_a_meaning_and_its_default() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.+) \| `(.+)` \| (.+) \|$", KEY_TABLE, re.MULTILINE)
    assert len(rows) == len(KEY_TABLE.splitlines()) - 2
    keys = [key.removesuffix(".name") for key, _ in registry.leaves(to_tree(compose()))]
    assert [key for key, *_ in rows] == [key if key != "run" else "run.name" for key in keys]
    assert to_tree(compose([], [f"{key}={default}" for key, _, default, _ in rows])) == to_tree(compose())
    named = [
        key for cell in re.findall(r"^\| (`.+?) \|", COUNTERPARTS, re.MULTILINE) for key in re.findall("`(.+?)`", cell)
    ]
    assert len(named) > 80 and set(named) <= {row[0] for row in rows}, set(named) - {row[0] for row in rows}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("example_files")
def test_a_documented_command_is_understood(command: Command) -> None:
    parsed = _parser().parse_args(command.words)
    refused = any(line.startswith("stormlit: error:") for line in command.output)
    if hasattr(parsed, "words") and not refused:
        files, overrides = _split(parsed.words)
        if parsed.verb in ("report", "runs", "compare"):
            files = []  # runs
        if parsed.verb == "ablate":
            words, where = launchers.split(overrides)
            launchers.build(where, on_gpu=False, threads=1)
            cells_of(read_grid(files, words, parsed.vary, parsed.seeds, parsed.name))
            return
        assert not files or parsed.verb in ("train", "config", "bench")
        for group in getattr(parsed, "groups", None) or [""]:
            compose(files, [*overrides, *shlex.split(group)])


@pytest.mark.parametrize("command", RUN)
@pytest.mark.usefixtures("example_files")
def test_a_documented_output_is_the_output(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    refused = command.output[0].startswith("stormlit: error:")
    assert refused or command.words[0] in ("components", "config")
    code = main(command.words)
    shown = capsys.readouterr()
    assert (shown.err if refused else shown.out).splitlines() == command.output
    assert code == (2 if refused else 0)
    assert not Path("runs").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), f"{page.name} links to {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
                slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor in slugs, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_are_python(page: Path) -> None:
    for language, text in blocks(page.read_text()):
        if language in ("python", "py"):
            compile(text, page.name, "exec")


def test_the_functions_of_the_equations_exist() -> None:
    named = re.findall(r"`([a-z_/]+)\.py:([\w.]+)`", ARCHITECTURE)
    assert len(named) > 20
    for path, name in named:
        assert operator.attrgetter(name)(importlib.import_module(f"stormlit.{path.replace('/', '.')}")), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """Those of the package, of the tests and of the benchmarks; a name without a folder is somebody else's."""
    for name in re.findall(r"(?<![\w/])((?:[\w.]+/)+\w+\.(?:py|yaml|ipynb|j2|css))\b", page.read_text()):
        theirs = page.name == "configuration.md" and name.startswith(("sub_models/", "config_files/"))
        assert theirs or any((root / name).is_file() for root in (SOURCE, REPOSITORY, page.parent)), (
            f"{page.name} names {name}"
        )


def test_the_picture_of_the_house_has_every_room_in_its_place() -> None:
    picture = ARCHITECTURE.partition("## The house")[2].partition("A room imports")[0]
    shown = [
        name for line in picture.splitlines() for name in re.findall(r"\b(?:" + "|".join(ROOMS) + r")\b", line[20:])
    ]
    floors = [name for name in shown if name not in ("errors", "spaces", "data", "files", "registry")]
    assert floors == [name for name in reversed(ROOMS) if name in floors] and set(shown) == set(ROOMS)


def test_what_random_play_makes_is_said_the_same_everywhere() -> None:
    notebook = (REPOSITORY / "notebooks" / "quickstart.ipynb").read_text()
    assert f"random play {RANDOM_RETURN} on average" in (REPOSITORY / "README.md").read_text()
    assert f"Random play gives {RANDOM_RETURN} on average" in notebook


@pytest.mark.parametrize("kind", registry.kinds())
def test_the_page_of_parts_says_of_each_what_it_computes_and_when_to_use_it(kind: str) -> None:
    page = (REPOSITORY / "docs" / "parts.md").read_text()
    section = page.partition(f"## {kind.replace('_', ' ')}\n")[2].partition("\n## ")[0]
    rows = [re.split(r" +\| +", line.strip("| ")) for line in section.splitlines() if line.startswith("| `")]
    assert [row[0] for row in rows] == [f"`{name}`" for name in registry.names(kind)]
    for row in rows:
        computes, _, when = (inspect.getdoc(registry.part_class(kind, row[0].strip("`"))) or "").partition(
            "When to use: "
        )
        assert row[1] == computes.partition("\n")[0].replace("``", "`"), "run benchmarks/parts.py"
        assert row[2] == " ".join(when.split()).replace("``", "`") and row[2], "run benchmarks/parts.py"


# ---- The examples in docstrings come out as they say


SOURCE_DOCSTRINGS = Path(stormlit.__file__).parent
EXAMPLES = sorted(
    ".".join(("stormlit", *file.relative_to(SOURCE_DOCSTRINGS).with_suffix("").parts)).removesuffix(".__init__")
    for file in SOURCE_DOCSTRINGS.rglob("*.py")
    if ">>> " in file.read_text()
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_come_out_as_they_say(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted > 0 and outcome.failed == 0
