"""The shape of the source: imports go down the layers only, files and functions stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import stormlit

ROOT = Path(stormlit.__file__).parent
LONGEST_FILE, LONGEST_FUNCTION = 300, 60

# From the bottom up: a module imports from the layers below its own, and from its own package.
# Names are modules, or packages with all that is in them.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"types", "errors"}),
    frozenset({"registry"}),
    frozenset({"ops"}),
    frozenset({"nn"}),
    frozenset({"optimizers", "normalize", "agent_state", "compilation", "memory"}),
    frozenset({"world_model", "agent"}),
    frozenset(
        {"envs", "replay", "schedule", "tracking", "media", "progress", "run_directory", "signals", "yaml_limits"}
    ),
    frozenset({"imagine", "player", "dream"}),
    frozenset({"parts", "config", "collect", "evaluate", "learner", "checkpoint", "dream_media"}),
    frozenset({"official", "demonstrations", "replay_segments", "checkpoint_writer"}),
    frozenset({"config_checks"}),
    frozenset({"compose"}),
    frozenset({"assemble"}),
    frozenset({"training", "play"}),
    frozenset({"housekeeping", "snapshot"}),
    frozenset({"loop"}),
    frozenset({"bench"}),
    frozenset({"run", "api"}),
    frozenset({"commands", "demonstration_commands", "import_official", "lightning_command", "resume", "sync"}),
    frozenset({"cli"}),
    frozenset({"__main__", "scripts"}),
)
# These stand on the foundation alone, so that each can be used, and read, without the rest.
FOUNDATION = frozenset({"types", "errors", "registry"})
STANDALONE = frozenset(
    {"envs", "replay", "schedule", "tracking", "media", "progress", "run_directory", "signals", "yaml_limits"}
)
# Only what sets a run up may know the configuration; everything else is given plain values.
CONFIGURED = frozenset(
    {
        "config",
        "config_checks",
        "compose",
        "assemble",
        "training",
        "play",
        "housekeeping",
        "snapshot",
        "run",
        "resume",
        "api",
        "bench",
        "import_official",
        "demonstration_commands",
        "sync",
        "cli",
    }
)

MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}
# The package's own front page only passes names on, when they are asked for.
INNER = [module for module in MODULES if module != "__init__"]


def _top(module: str) -> str:
    return module.split(".")[0]


def _layer(module: str) -> int:
    found = [height for height, layer in enumerate(LAYERS) if _top(module) in layer]
    assert len(found) == 1, f"{module} belongs in one of the layers of this test, it is in {len(found)}"
    return found[0]


def _imports(module: str) -> Iterator[str]:
    """The modules of the package that a module imports anywhere in it, without the leading ``stormlit.``."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("stormlit.") for alias in node.names if _top(alias.name) == "stormlit")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            if node.module == "stormlit":
                inner = {_top(name) for name in MODULES}
                yield from (alias.name for alias in node.names if alias.name in inner)
            elif node.module is not None and _top(node.module) == "stormlit":
                yield node.module.removeprefix("stormlit.")


@pytest.mark.parametrize("module", INNER)
def test_imports_go_down_only(module: str) -> None:
    for imported in _imports(module):
        if _top(imported) != _top(module):
            assert _layer(imported) < _layer(module), f"{module} imports {imported}, which is not below it"


@pytest.mark.parametrize("module", [module for module in INNER if _top(module) in STANDALONE])
def test_what_stands_alone_imports_the_foundation_and_itself_only(module: str) -> None:
    assert {_top(imported) for imported in _imports(module)} <= FOUNDATION | {_top(module)}


@pytest.mark.parametrize("module", [module for module in INNER if _top(module) not in CONFIGURED])
def test_modules_are_given_plain_values_instead_of_the_configuration(module: str) -> None:
    assert not {"config", "compose", "config_checks"} & {_top(imported) for imported in _imports(module)}


def test_world_model_and_agent_never_import_each_other() -> None:
    assert "agent" not in {_top(imported) for imported in _imports("world_model")}
    assert "world_model" not in {_top(imported) for imported in _imports("agent")}


def test_every_layer_exists() -> None:
    assert {name for layer in LAYERS for name in layer} == {_top(module) for module in INNER}


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_short_and_modules_say_what_they_are(module: str) -> None:
    text = MODULES[module].read_text()
    assert text.count("\n") <= LONGEST_FILE
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{module}.{node.name} has {length} lines"


@pytest.mark.parametrize("module", [module for module in MODULES if _top(module) == "ops"])
def test_operations_are_functions_only(module: str) -> None:
    assert not [node for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, ast.ClassDef)]
