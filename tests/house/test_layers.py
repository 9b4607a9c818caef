"""The shape of the source: imports go down only, the method knows no configuration, files and functions stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import stormlit

ROOT = Path(stormlit.__file__).parent
LONGEST_FUNCTION = 60

# The rooms, from the ground floor up: each imports from itself and from those before it.
ROOMS = (
    "errors",  # what a user can cause
    "spaces",  # what can be seen and done
    "data",  # what flows, and its symbols
    "files",  # files that are there whole or not at all
    "registry",  # parts by name, and their options
    "ops",  # the equations
    "checks",  # what a part must have, its trial, and the laws it keeps
    "nn",  # the parts
    "envs",  # environments
    "storm",  # the method: world model, agent, imagination, loop
    "analysis",  # what looks at a trained model
    "demonstrations",  # recorded play
    "tracking",  # where the numbers go
    "config",  # from words and files to one configuration
    "runs",  # one run on disk
    "sweeps",  # grids of runs
    "reports",  # results of many runs
    "cli",  # the command line
)
# The method is given plain values: it neither imports these nor reads an attribute of this name.
NOT_IN_THE_METHOD = {"config", "runs", "tracking", "cli", "sweeps", "reports"}

MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}
# The package's own front page and door only pass names on, when they are asked for.
INNER = [module for module in MODULES if module not in ("__init__", "__main__")]


def _room(module: str) -> str:
    return module.split(".")[0]


def _imports(tree: ast.AST) -> Iterator[str]:
    """The modules of the package that a module imports anywhere in it, without the leading ``stormlit.``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("stormlit.") for alias in node.names if _room(alias.name) == "stormlit")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            if node.module == "stormlit":
                yield from (alias.name for alias in node.names if alias.name in ROOMS)
            elif node.module is not None and _room(node.module) == "stormlit":
                yield node.module.removeprefix("stormlit.")


def _configuration_in(tree: ast.AST) -> list[str]:
    """Where a module touches the configuration: by an import, an attribute, a variable or a parameter."""
    used = [imported for imported in _imports(tree) if _room(imported) in NOT_IN_THE_METHOD]
    for node in ast.walk(tree):
        name = {ast.Attribute: "attr", ast.Name: "id", ast.arg: "arg"}.get(type(node))
        if name is not None and getattr(node, name) in ("config", "cfg"):
            used.append(f"line {node.lineno}: {getattr(node, name)}")  # type: ignore[attr-defined]
    return used


def test_every_room_exists_and_there_is_no_other() -> None:
    assert {_room(module) for module in INNER} == set(ROOMS)


@pytest.mark.parametrize("module", INNER)
def test_imports_go_down_only(module: str) -> None:
    floor = ROOMS.index(_room(module))
    for imported in _imports(ast.parse(MODULES[module].read_text())):
        assert ROOMS.index(_room(imported)) <= floor, f"{module} imports {imported}, which is above it"


@pytest.mark.parametrize("module", [module for module in INNER if _room(module) in ("ops", "storm")])
def test_the_method_is_given_plain_values_instead_of_the_configuration(module: str) -> None:
    assert _configuration_in(ast.parse(MODULES[module].read_text())) == []


def test_a_use_of_the_configuration_would_be_found() -> None:
    for text in (
        "from stormlit.config.schema import Config",
        "def fit(training): return training.config.loop.env_steps",
        "def fit(config): return 1",
        "from stormlit import runs",
    ):
        assert _configuration_in(ast.parse(text)), text


def test_world_model_and_agent_never_import_each_other() -> None:
    for module, other in (("storm.world_model", "storm.agent"), ("storm.agent", "storm.world_model")):
        assert other not in set(_imports(ast.parse(MODULES[module].read_text())))


def test_modules_do_not_import_in_circles() -> None:
    imports = {module: set(_imports(ast.parse(path.read_text()))) & set(MODULES) for module, path in MODULES.items()}
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"{' -> '.join([*path, module])}"
        if module not in finished:
            for imported in imports[module]:
                visit(imported, (*path, module))
            finished.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_short_and_modules_say_what_they_are(module: str) -> None:
    text = MODULES[module].read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{module}.{node.name} has {length} lines"


@pytest.mark.parametrize("module", [module for module in MODULES if _room(module) == "ops"])
def test_operations_are_functions_only(module: str) -> None:
    assert not [node for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, ast.ClassDef)]
