"""The result of a finished run, as data."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from stormlit.cli import main
from stormlit.config.compose import compose
from stormlit.errors import CheckpointError
from stormlit.runs.directory import RunDirectory, exclusive
from stormlit.runs.result import config_hash, differences, protocol, read
from training import logged, measured, train

LABELS = ("tracking.group=first tries", "tracking.tags.variant=base", "tracking.tags.lab.shelf=3", "tracking.notes=hm")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ("evaluation.baselines=[random, constant]", "evaluation.every_env_steps=20", "seed=3")
    return train(tmp_path_factory.mktemp("runs"), "finished", *words, *LABELS)


def test_a_finished_run_leaves_its_result(finished: Path) -> None:
    result = read(finished)
    assert result is not None and (result.seed, result.env_steps, result.env_steps_wanted) == (3, 48, 48)
    assert result.run == {
        "name": "finished",
        "group": "first tries",
        "variant": "base",
        "tags": {"variant": "base", "lab.shelf": "3"},
    }
    assert (result.task["env_id"], result.task["game"], result.task["name"]) == ("stormlit/Catch-v0", None, "Catch")
    assert compose([], [f"env.id={result.config['env']['id']}"]).env.game is None
    assert result.provenance["precision"] == "32-true" and result.provenance["processes"] == 1
    assert result.provenance["started"] <= result.provenance["finished"]
    assert result.cost["wall_seconds"] > 0 and result.cost["peak_memory_bytes"] > 2**20
    assert result.cost["env_steps_per_second"] == pytest.approx(48 / result.cost["wall_seconds"])


def test_the_returns_are_those_of_the_trackers_and_of_the_evaluations(finished: Path) -> None:
    result, metrics = read(finished), logged(finished)
    assert result is not None
    assert [step for step, _ in result.returns] == [7, 14, 21, 28, 35, 42]
    assert [step for step, _ in result.curve] == [20, 40, 48]
    for step, returns in result.curve:
        assert sum(returns) / len(returns) == pytest.approx(metrics[step, "eval/return"])  # type: ignore[arg-type]
    assert result.evaluation["agent"] == result.curve[-1][1]
    assert list(result.evaluation) == ["agent", "random", "constant/LEFT", "constant/NOOP", "constant/RIGHT"]
    assert result.world_model["loss/dyn"] == metrics[48, "world_model/loss/dyn"]


def test_differences_are_those_from_the_default_configuration(finished: Path) -> None:
    result = read(finished)
    assert result is not None
    assert result.differences["env.id"] == (None, "stormlit/Catch-v0")
    assert result.differences["loop.env_steps"] == (100_000, 48)
    assert not [key for key in result.differences if key.startswith(("run.", "tracking.", "seed"))]


def test_another_part_is_told_with_its_options_and_not_with_those_it_replaced() -> None:
    other = compose([], ["world_model.sequence_model=gru", "env.kwargs.level=3"])
    found = differences(compose(), other)
    assert found["world_model.sequence_model.name"] == ("transformer", "gru")
    assert found["env.kwargs.level"] == (None, 3)
    assert "world_model.sequence_model.num_heads" not in found
    assert differences(other, compose())["env.kwargs.level"] == (3, None)


def test_runs_that_differ_only_in_seed_and_place_have_one_hash() -> None:
    first = config_hash(compose(["tiny"], ["seed=1", "run.name=a", "tracking=csv", "resume=auto"]))
    assert first == config_hash(compose(["tiny"])) != config_hash(compose(["tiny"], ["agent.gamma=0.9"]))


def test_the_protocol_is_what_makes_scores_comparable() -> None:
    base = protocol(compose())
    for word in ("env.size=32", "env.num_envs=4", "agent.gamma=0.9", "env.episode_seeds=same", "seed=4"):
        assert protocol(compose([], [word])) == base, word
    for word in ("env.game=Pong", "env.atari.sticky_actions=0.25", "loop.env_steps=5", "evaluation.episodes=5"):
        assert protocol(compose([], [word])) != base, word


def test_a_resumed_run_has_the_result_of_an_unbroken_one(finished: Path, tmp_path: Path) -> None:
    words = ("evaluation.baselines=[random, constant]", "evaluation.every_env_steps=20", "seed=3", *LABELS)
    run = train(tmp_path, "finished", *words, "loop.env_steps=33")
    halfway = read(run)
    assert halfway is not None and [step for step, _ in halfway.curve] == [20, 33]
    # It goes on from the checkpoint before: what was evaluated after that is of another future.
    checkpoint = run / "checkpoints" / "step-000000024"
    assert main(["resume", str(checkpoint), f"run.dir={tmp_path}", "loop.env_steps=48"]) == 0
    unbroken, resumed = read(finished), read(run)
    assert unbroken is not None and resumed is not None
    assert measured(resumed) == measured(unbroken)
    assert resumed.provenance["started"] == halfway.provenance["started"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 2}, "format 2"),
        ({"curve": None}, "curve is missing"),
        ({"seed": "a", "returns": 3}, "seed and returns is missing"),
    ],
)
def test_a_damaged_or_newer_result_is_told(finished: Path, change: dict[str, Any], told: str, tmp_path: Path) -> None:
    content = json.loads((finished / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(CheckpointError, match=told):
        read(tmp_path)
    assert read(tmp_path / "nothing") is None


def test_labels_reach_the_tracker(finished: Path) -> None:
    tags = json.loads((finished / "tags.json").read_text())
    assert tags.items() >= {"group": "first tries", "variant": "base", "lab.shelf": "3", "notes": "hm"}.items()
    assert tags["seed"] == "3"


def test_runs_are_listed_and_compared(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = finished.parent
    halfway = root / "grid" / "halfway"  # as a grid's cell that was stopped
    shutil.copytree(finished, halfway)
    for name in ("result.json", "finished.json", "evaluation", "checkpoints/step-000000048"):
        (shutil.rmtree if (halfway / name).is_dir() else Path.unlink)(halfway / name)
    config = halfway / "config.yaml"
    config.write_text(config.read_text().replace("gamma: 0.985", "gamma: 0.9"))
    with exclusive(RunDirectory(halfway)):
        assert main(["runs", f"run.dir={root}"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["run", "state", "game", "seed", "steps", "return", "size"]
    listed = {row[0]: row[1:] for row in rows[1:]}
    assert listed["finished"][:4] == ["finished", "stormlit/Catch-v0", "3", "48"]
    assert listed["grid/halfway"][:5] == ["running", "stormlit/Catch-v0", "3", "24/48", "-"]
    assert main(["runs", "grid", f"run.dir={root}"]) == 0
    assert "stopped" in capsys.readouterr().out
    assert main(["compare", "finished", "grid/halfway", f"run.dir={root}"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split() for line in told if line.startswith("agent.")] == [["agent.gamma", "0.985", "0.9"]]
    assert re.search(r"^return +-?[\d.]+ \+- [\d.]+ \(2 episodes\) +-$", "\n".join(told), re.MULTILINE)
    for words, sentence in (
        (["compare", "finished"], "one run alone cannot be compared"),
        (["compare", "finished", "agent.gamma=1"], "'agent.gamma=1': no setting is changed here"),
        (["compare", "finished", "finshed"], "(did you mean 'finished'?)"),
    ):
        assert main([*words, f"run.dir={root}"]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["runs", f"run.dir={tmp_path}"]) == 0 and "no runs in" in capsys.readouterr().out
