"""Grids: how they are read, what is wrong with one before anything starts, and what they remember."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from stormlit.cli import main
from stormlit.config.compose import REMOVED, compose, to_yaml
from stormlit.errors import ConfigError
from stormlit.files import read_json, write_json
from stormlit.runs.progress import ProgressBar
from stormlit.sweeps import launchers
from stormlit.sweeps.cells import Cell, cells_of, last_lines, one_of_each
from stormlit.sweeps.grid import Grid, grid_names, read_grid
from stormlit.sweeps.grid_file import FILE, Record
from stormlit.sweeps.launchers import ProcessLauncher, gpu_groups
from stormlit.sweeps.scheduler import last_bar

DEVIATIONS = (Path(__file__).parents[2] / "docs" / "deviations.md").read_text()
VARY = ("--vary", "world_model.sequence_model=transformer,gru", "--seeds", "2")


def grid_of(text: str, folder: Path, *overrides: str) -> Grid:
    file = folder / "mine.yaml"
    file.write_text(text)
    return read_grid([str(file)], [f"run.dir={folder}", *overrides], [], None, None)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The sentence with which ``stormlit ablate`` refuses words."""
    assert main(["ablate", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("stormlit: error: ") and told.count("\n") == 1, told
    return told


def test_a_file_holds_base_variants_environments_and_seeds(tmp_path: Path) -> None:
    grid = grid_of(
        "base: [tiny, agent.gamma=0.9]\n"
        "variants: {base: , short: imagination.horizon=4 agent.lambda_=0.5, '010': [agent.agent_state=latent]}\n"
        "environments: [stormlit/Catch-v0, Pong]\nseeds: [4, 7]\n",
        tmp_path,
        "loop.env_steps=1000",
    )
    cells = cells_of(grid)
    assert [cell.name for cell in cells][:4] == ["base-Catch-s4", "base-Catch-s7", "short-Catch-s4", "short-Catch-s7"]
    assert len(cells) == 3 * 2 * 2 and {cell.folder.parent for cell in cells} == {tmp_path / "mine"}
    short = next(cell for cell in cells if cell.name == "short-Pong-s7")
    assert (short.config.env.game, short.config.seed, short.config.loop.env_steps) == ("Pong", 7, 1000)
    assert short.changes == {"imagination.horizon": (8, 4), "agent.lambda_": (0.95, 0.5)}
    # The words of a cell make its configuration, in whatever folder they are given.
    files = [word for word in short.words if "=" not in word]
    again = compose(files, short.words[len(files) :])
    assert again.run.name == short.name and again.resume == "auto" and again.tracking["group"] == "mine"
    assert again.tracking["tags"] == {"variant": "short", "environment": "Pong"}
    assert again.agent == short.config.agent and again.env == short.config.env
    numbered = next(cell for cell in cells if cell.variant == "010")
    assert compose(["tiny"], numbered.words[1:]).tracking["tags"]["variant"] == "010"


def test_varied_keys_make_every_combination(tmp_path: Path) -> None:
    vary = ["world_model.sequence_model=transformer,gru", "world_model.sequence_model.num_layers=1,2"]
    grid = read_grid(["tiny"], [], vary, "3", None)
    assert grid.name == "tiny-sequence_model-num_layers" and grid.seeds == (0, 1, 2)
    assert list(grid.variants) == [
        "transformer-num_layers_1",
        "transformer-num_layers_2",
        "gru-num_layers_1",
        "gru-num_layers_2",
    ]
    assert grid.variants["gru-num_layers_2"] == (
        "world_model.sequence_model=gru",
        "world_model.sequence_model.num_layers=2",
    )
    lists = read_grid([], [], ["evaluation.baselines=[],[random,constant]"], "5,9", "two")
    assert (lists.name, lists.seeds) == ("two", (5, 9))
    assert lists.variants["baselines_-random-constant"] == ("evaluation.baselines=[random,constant]",)


@pytest.mark.parametrize("name", grid_names())
def test_every_bundled_grid_is_resolved(name: str) -> None:
    words = ["demonstrations.path=play.npz"] if name == "demonstration" else []
    cells = cells_of(read_grid([name], words, [], None, None))
    assert len(cells) == len({cell.name for cell in cells}) >= 6


def test_the_deviations_are_those_of_the_table() -> None:
    rows = re.findall(r"^\| (\d+) \| `([\w.]+)` \| `.*?` \| `(.*?)` \|", DEVIATIONS, re.MULTILINE)
    grid = read_grid(["deviations"], [], [], None, None)
    named = [(int(name[1:3]), word) for name, words in grid.variants.items() for word in words]
    assert sorted(named) == sorted((int(number), f"{key}={official}") for number, key, official in rows)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("variants: {}", "the grid is empty"),
        ("base: tiny", "the grid is empty"),
        ("variants: {a: agent.gama=0.9}", "variant 'a': there is no key 'agent.gama' (did you mean 'gamma'?)"),
        ("variants: {a: agent.gamma=2}", "variant 'a': agent.gamma=2"),
        ("variants: {a: gru}", "variant 'a': 'gru' is not of the form KEY=VALUE"),
        ("variants: {a: agent.gamma=0.9, b: agent.gamma=0.90}", "the variants 'a' and 'b' are one configuration"),
        ("variants: {a: , a: agent.gamma=0.9}", "duplicate key a"),
        ("variants: {a/b: }", "'a/b' cannot name a folder"),
        ("variants: {a: }\nseeds: 0", "seeds=0: expected at least one seed"),
        ("variants: {a: }\nseeds: [1, 1]", "expected at least one seed, each once"),
        ("variants: {a: }\nseeds: many", "seeds=many"),
        ("variants: {a: }\nseed: 3", "a grid has no 'seed' (did you mean 'seeds'?)"),
        ("variants: {a: seed=3}", "seed=3: give --seeds"),
        ("variants: {a: }\nenvironments: [Pog]", "Pog"),
        ("variants: {a: }\nenvironments: [Pong, env.game=Pong]", "two cells are called 'a-Pong-s0'"),
        ("variants: {a: 'tracking.tags.variant=b'}", "tracking.tags.variant=b: a grid gives"),
        ("variants: [a]", "variants must map"),
        ("variants: {a: {b: c}}", "variant 'a': expected words"),
        ("[a]", "must hold a mapping"),
    ],
)
def test_a_bad_grid_is_refused_in_a_sentence(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert told in refusal(capsys, str(tmp_path / "mine.yaml"), f"run.dir={tmp_path / 'runs'}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dept"], "there is no grid 'dept' (did you mean 'depth'?)"),
        (["quickstart"], "'quickstart' is a configuration, and --vary KEY=a,b makes a grid of it"),
        ([], "there is no grid: give one of"),
        (["tiny", "--vary", "agent.gamma"], "--vary agent.gamma: expected KEY=VALUE"),
        (["tiny", "--vary", "agent.gamma=0.9,0.9"], "two variants are called 'gamma_0.9'"),
        (["tiny", "--vary", "agent.gamma=0.9,x"], "variant 'gamma_x': agent.gamma"),
        (["tiny", "--seeds", "0"], "--seeds=0"),
        (["tiny", "resume=never"], "resume=never: a grid goes on"),
        (["tiny", "run.name=x"], "--name names the grid"),
        (["tiny", "--name", "a/b"], "'a/b' cannot name a folder"),
        (["tiny", "launcher=proceses"], "launcher=proceses does not exist (did you mean 'processes'?)"),
        (["tiny", "jobs=0"], "jobs=0 is out of range"),
        (["tiny", "jobs=two"], "jobs"),
        (["tiny", "retries=-1"], "retries=-1 is out of range"),
        (["tiny", *VARY, "tracking=none", "job=2"], "there is no key 'job'"),
    ],
)
def test_bad_words_are_refused_in_a_sentence(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in refusal(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_a_variant_that_cannot_be_built_is_named_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refusal(
        capsys, "tiny", "--vary", "world_model.sequence_model.num_heads=2,3", f"run.dir={tmp_path}", "tracking=csv"
    )
    assert "variant 'num_heads_3' on Catch: " in told and not list(tmp_path.iterdir())


def test_a_dry_run_shows_cells_changes_and_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "tiny", *VARY, "--dry-run", f"run.dir={tmp_path}", "jobs=2"]) == 0
    told = capsys.readouterr().out
    assert "2 variants x 1 environment x 2 seeds" in told
    assert re.search(r"^  transformer +the base$", told, re.MULTILINE)
    assert "world_model.sequence_model.name=gru (base transformer)" in told
    assert told.count("to run\n") == 4
    assert re.search(r"4 cells to run: about [\d.e-]+ hours of updates .* with 2 at once", told)
    assert not list(tmp_path.iterdir())


def begin(cell: Cell) -> None:
    """Leave what a run leaves first in a cell's folder."""
    cell.folder.mkdir(parents=True)
    cell.directory.config_file.write_text(to_yaml(cell.config))


def test_a_grid_that_has_begun_stays_what_it_was_and_may_grow(tmp_path: Path) -> None:
    begun = "base: tiny\nvariants: {base: , short: imagination.horizon=4}\nseeds: 2\n"
    grid = grid_of(begun, tmp_path)
    begun_grid = Record(grid, cells_of(grid), tmp_path)
    begun_grid.content["attempts"]["base-Catch-s0"] = 2
    begun_grid.write()
    assert begun_grid.content["base"] == "base" and begun_grid.content["variants"]["short"]["changes"] == {
        "imagination.horizon": (8, 4)
    }
    more = grid_of(
        begun.replace("seeds: 2", "seeds: 3").replace("horizon=4", "horizon=4, x: agent.gamma=0.9"), tmp_path
    )
    assert Record(more, cells_of(more), tmp_path).content["attempts"] == {"base-Catch-s0": 2}
    longer = begun.replace("horizon=4", "horizon=5")
    Record(grid_of(longer, tmp_path), cells_of(grid_of(longer, tmp_path)), tmp_path)  # no cell has begun
    for cell in cells_of(grid)[:3]:
        begin(cell)
    slower = begun.replace("base: tiny", "base: tiny env.irreproducible=restart checkpoint.every=100")
    Record(grid_of(slower, tmp_path), cells_of(grid_of(slower, tmp_path)), tmp_path)
    for changed, told in (
        (longer, "cell 'short-Catch-s0' began with imagination.horizon=4 and has 5 now"),
        (begun.replace("seeds: 2", "seeds: 1"), "cell 'base-Catch-s1' is not in it any more"),
        (
            begun.replace("base: tiny", "base: tiny agent.gamma=0.5"),
            "cell 'base-Catch-s0' began with agent.gamma=0.985",
        ),
    ):
        other = grid_of(changed, tmp_path)
        with pytest.raises(ConfigError, match=re.escape(told)):
            Record(other, cells_of(other), tmp_path)


def begun_one(tmp_path: Path) -> tuple[Grid, Cell, Path]:
    """A grid of one cell that has begun, and its file."""
    grid = grid_of("base: tiny\nvariants: {base: }\nseeds: 1\n", tmp_path)
    (cell,) = cells_of(grid)
    Record(grid, [cell], tmp_path).write()
    begin(cell)
    return grid, cell, tmp_path / FILE


def test_a_grid_begun_before_a_key_was_there_goes_on(tmp_path: Path) -> None:
    grid, cell, file = begun_one(tmp_path)
    content = read_json(file)
    was = content["asked"]["base"]["Catch"]
    del was["env"]["irreproducible"]
    write_json(file, content)
    Record(grid, [cell], tmp_path)
    del was["world_model"]["free_bits"]  # 0.1 in tiny
    write_json(file, content)
    with pytest.raises(ConfigError, match=r"free_bits=1\.0 and has 0\.1 now"):
        Record(grid, [cell], tmp_path)
    was["world_model"]["gone"] = 1
    write_json(file, content)
    with pytest.raises(ConfigError, match=r"'base-Catch-s0' began with a configuration that is none now .*\.gone'"):
        Record(grid, [cell], tmp_path)


def test_a_grid_of_0_1_0_goes_on(tmp_path: Path) -> None:
    """Its file holds what each cell asks for, with an option that nothing reads any more."""
    assert "world_model.sequence_model.cache" in REMOVED
    grid, cell, file = begun_one(tmp_path)
    content = read_json(file)
    asked = content["asked"]["base"]["Catch"]
    asked["world_model"]["sequence_model"]["cache"] = "layer_inputs"
    write_json(file, content)
    Record(grid, [cell], tmp_path).write()
    assert read_json(file)["asked"]["base"]["Catch"] == {
        **asked,
        "world_model": {**asked["world_model"], "sequence_model": cell.config.world_model.sequence_model},
    }


def test_a_cell_that_went_on_for_longer_by_itself_is_still_of_its_grid(tmp_path: Path) -> None:
    """``stormlit resume GRID/CELL loop.env_steps=20000`` writes the cell's configuration anew."""
    grid, cell, _ = begun_one(tmp_path)
    longer = dataclasses.replace(cell.config.loop, env_steps=20000, batch_size=4)
    cell.directory.config_file.write_text(to_yaml(dataclasses.replace(cell.config, loop=longer)))
    Record(grid, [cell], tmp_path)


def test_one_of_each_holds_every_variant_and_environment(tmp_path: Path) -> None:
    grid = grid_of(
        "base: tiny\nvariants: {a: , b: agent.gamma=0.9, c: agent.gamma=0.8}\nenvironments: [Pong, Boxing]\nseeds: 2\n",
        tmp_path,
    )
    chosen: list[Cell] = one_of_each(cells_of(grid))
    assert [(cell.variant, cell.environment) for cell in chosen] == [
        ("a", "Pong"),
        ("b", "Pong"),
        ("c", "Pong"),
        ("a", "Boxing"),
    ]


def test_the_bar_in_a_log_says_how_far_a_cell_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(5000, 1000) as bar:
        bar.advance(200)
        bar.show(-0.5, "train")
    log = tmp_path / "cell.log"
    log.write_text(f"a headline\n{capfd.readouterr().err}")
    seen = last_bar(last_lines(log))
    assert seen and (seen[1], seen[3]) == ("1200", "-0.5") and re.fullmatch(r"[\d:]+", seen[2])
    assert last_bar(last_lines(tmp_path / "none")) is None


def test_slots_are_what_cores_and_gpus_have_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stormlit.sweeps.launchers.cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert ProcessLauncher(False, 1).slots == 8 and ProcessLauncher(False, 3).slots == 2
    assert ProcessLauncher(False, 1, jobs=20).slots == 20
    assert ProcessLauncher(True, 1).slots == 3 and ProcessLauncher(True, 1, gpus_per_cell=0.25).slots == 12
    assert ProcessLauncher(True, 1, gpus_per_cell=0.25, jobs=5).slots == 5
    assert gpu_groups(["2", "5", "7"], 2) == ["2,5"]
    with pytest.raises(ConfigError, match="gpus_per_cell=4: there are only 3 GPUs"):
        ProcessLauncher(True, 1, gpus_per_cell=4)


def test_words_about_where_cells_run_are_no_configuration() -> None:
    configuration, given = launchers.split(["jobs=2", "agent.gamma=0.9", "launcher=processes", "jobs=3"])
    assert configuration == ["agent.gamma=0.9"] and given == {"jobs": "3", "launcher": "processes"}
    launcher = launchers.build(given, on_gpu=False, threads=1)
    assert isinstance(launcher, ProcessLauncher) and (launcher.slots, launcher.retries) == (3, 2)
