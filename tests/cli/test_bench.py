"""``stormlit bench``: what it prints and writes, and that it measures what the training loop does."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from stormlit.cli import main
from stormlit.cli.bench.measure import WHOLE, Measured, Spread, measure
from stormlit.cli.bench.phases import ACTING, AGENT, IMAGINATION, PHASES, STEPPING, WORLD_MODEL, Phases, prepared
from stormlit.config.compose import compose
from training import SMALL, refusal

SMALL_CPU = (*SMALL, "accelerator=cpu", "precision=32-true")


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stormlit.cli.bench.measure.MOST_RUNS_A_ROUND", 1)


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(seconds: list[list[float]], whole_env_steps: int = 1) -> Measured:
    """A result in which every phase took the same seconds, a list for each round."""
    return Measured(
        name="made up",
        config=compose(),
        precision="32-true",
        compiled=False,
        device=torch.device("cpu"),
        times_per_env_step={phase: 2.0 if phase == AGENT else 1.0 for phase in PHASES},
        whole_env_steps=whole_env_steps,
        threads=1,
        seconds=dict.fromkeys((*PHASES, WHOLE), seconds),
    )


def test_one_configuration_is_tabled_and_written(in_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *SMALL_CPU, "--rounds", "2"]) == 0
    captured = capsys.readouterr()
    assert "round 2 of 2" in captured.err
    table = {line.split("  ")[0]: line for line in captured.out.splitlines()}
    assert {*PHASES, WHOLE} <= table.keys()
    assert "written to bench-tiny.json" in captured.out
    assert [path.name for path in in_tmp_path.iterdir()] == ["bench-tiny.json"]

    written: dict[str, Any] = json.loads((in_tmp_path / "bench-tiny.json").read_text())
    assert written["rounds"] == 2
    assert written["command"] == shlex.join(["stormlit", "bench", *SMALL_CPU, "--rounds", "2"])
    assert written["ratios"] == {}
    assert written["made_with"]["version.torch"] == torch.__version__
    assert written["made_with"]["threads"] == torch.get_num_threads()
    assert {"device", "git_commit", "cpu_cores"} <= written["made_with"].keys()
    assert (written["not_compiled"], written["cuda_graphs_skipped"]) == ([], 0)
    assert written["settings"][0]["compiled"] is False
    assert written["peak_memory"]["bytes"] > 2**26
    [setting] = written["settings"]
    assert setting["name"] == "as configured"
    assert setting["config"]["world_model"]["hidden_dim"] == 16
    assert list(setting["phases"]) == list(PHASES)
    assert sum(phase["share"] for phase in setting["phases"].values()) == pytest.approx(1)
    for phase in setting["phases"].values():
        assert 0 < phase["seconds"]["low"] <= phase["seconds"]["median"] <= phase["seconds"]["high"] < 60
        assert phase["operations"] == sum(phase["operations_by_name"].values()) > 0
        assert phase["runs"] == 2
    whole = setting["whole_step"]
    assert whole["env_steps_per_second"] == pytest.approx(1 / whole["seconds"]["median"])
    # A step of each of the phases is not longer than all of them.
    assert whole["seconds"]["high"] > setting["phases"][WORLD_MODEL]["seconds"]["low"]


def test_settings_are_compared_side_by_side(in_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more, rows = "imagination.horizon=12", "imagination.batch_size=16 loop.batch_size=2"
    command = ["bench", *SMALL_CPU, "--rounds", "2", "--json", "out.json", "--compare", more, "", rows]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert f"{more} / as configured" in output
    assert f"{more} / {rows}" in output

    written = json.loads((in_tmp_path / "out.json").read_text())
    long, short, changed = written["settings"]
    assert [setting["name"] for setting in written["settings"]] == [more, "as configured", rows]
    assert changed["config"]["loop"]["batch_size"] == 2
    # Twelve imagined steps are about four times three.
    assert long["phases"][IMAGINATION]["operations"] > 2 * short["phases"][IMAGINATION]["operations"]
    assert long["phases"][WORLD_MODEL]["operations"] == short["phases"][WORLD_MODEL]["operations"]
    ratios = written["ratios"][f"{more} / as configured"]
    assert ratios[IMAGINATION]["median"] > 1
    assert set(ratios) == {*PHASES, WHOLE}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rounds", "0"], ["--rounds=0", "at least 1"]),
        (["--json", "nowhere/x.json"], ["--json=nowhere/x.json", "nowhere does not exist"]),
        (["--compare", "precision=32-true"], ["--compare 'precision=32-true'", "two or more"]),
        (["--compare", "seed=1", "seed=1"], ["--compare", "differ"]),
        (["--compare", "seed=1", "seed='1"], ["--compare", "seed='1", "cannot be read"]),
        (["--compare", "seed=1", "batch_sise=2"], ["batch_sise"]),
        (["--compare", "seed=1", "precision"], ["'precision' is a key, not a configuration: write precision=VALUE"]),
        (["imagination.horizon=-1"], ["imagination.horizon"]),
    ],
)
def test_wrong_words_are_refused(
    in_tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: list[str]
) -> None:
    sentence = refusal(capsys, "bench", *SMALL_CPU, *words)
    assert all(word in sentence for word in told), sentence
    assert not list(in_tmp_path.iterdir())


def test_bench_is_refused_under_fabric_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LT_CLI_USED", "1")
    assert "fabric run" in refusal(capsys, "bench", *SMALL_CPU)


def test_numbers_that_cannot_be_written_are_shown_all_the_same(
    in_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_tmp_path / "taken").mkdir()
    assert main(["bench", *SMALL_CPU, "--rounds", "1", "--json", "taken"]) == 0
    output = capsys.readouterr().out
    assert WHOLE in output
    assert "not written to taken" in output


def test_a_whole_step_is_what_the_loop_does() -> None:
    config = compose(
        SMALL[:1],
        [
            *SMALL_CPU[1:],
            "env.num_envs=2",
            "loop.world_model_updates_per_env_step=0.75",
            "loop.agent_updates_per_env_step=0.1",
        ],
    )
    with prepared(config) as phases:
        assert phases.whole_env_steps == 20  # 15 and 2 updates; after 10 steps it would be 7.5 and 1
        training, rows = phases.training, phases.training.replay.total_rows
        before = training.progress.world_model_updates, training.progress.agent_updates
        phases.run_whole()
        done = training.progress.world_model_updates - before[0], training.progress.agent_updates - before[1]
        assert training.replay.total_rows - rows == phases.whole_env_steps // 2
        assert done == (0.75 * phases.whole_env_steps, 0.1 * phases.whole_env_steps)
        assert [phases.times_per_env_step(phase) for phase in (STEPPING, WORLD_MODEL, AGENT)] == [0.5, 0.75, 0.1]


@pytest.mark.parametrize("overlap", ["false", "true"])
def test_a_whole_step_has_the_loop_s_order(overlap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with prepared(compose(SMALL[:1], [*SMALL_CPU[1:], f"loop.overlap={overlap}"])) as phases:
        run: list[str] = []
        monkeypatch.setattr(phases, "run", run.append)
        phases.run_whole()
    assert run.index(ACTING) == 0 and len(run) == len(PHASES)
    assert run.index(STEPPING) == (len(PHASES) - 1 if overlap == "true" else 1)


def test_the_buffer_holds_the_random_start_and_whole_windows() -> None:
    with prepared(compose(SMALL[:1], [*SMALL_CPU[1:], "loop.warmup_steps=2", "player.context_length=1"])) as phases:
        assert phases.training.replay.rows == 8 + 1  # windows of 8 steps, and one that was acted
        assert phases.training.progress.world_model_updates == 0


def test_settings_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, str]] = []  # which of them, and the phase
    run = Phases.run

    def noted(self: Phases, phase: str) -> None:
        seen.append((id(self), phase))
        run(self, phase)

    monkeypatch.setattr(Phases, "run", noted)
    config = compose(SMALL[:1], SMALL_CPU[1:])
    measure([("A", config), ("B", config)], rounds=3)
    first, second = dict.fromkeys(place for place, _ in seen)
    imagined = [place for place, phase in seen if phase == IMAGINATION]
    # Once for the warm-up, once counted, once in the whole step that warms up, for each; then in turns,
    # alone and within the whole step.
    assert imagined[:6] == [first] * 3 + [second] * 3
    assert imagined[6:] == [first, second] * 6


def test_spread_is_the_median_and_the_quartiles() -> None:
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0)


def test_shares_are_weighted_and_ratios_are_taken_round_by_round() -> None:
    slow, fast = measured([[4.0, 6.0], [50.0, 90.0, 50.0]]), measured([[1.0, 1.0], [10.0]], whole_env_steps=5)
    assert slow.spread(IMAGINATION).median == 50.0
    assert slow.share(AGENT) == pytest.approx(2 / 8)
    assert slow.share(IMAGINATION) == pytest.approx(1 / 8)
    assert slow.steps_per_second == pytest.approx(1 / 50)
    assert slow.ratio(fast, IMAGINATION) == Spread(5.0, 5.0, 5.0)
    # Five environment steps took the fast one as long.
    assert slow.ratio(fast, WHOLE).median == pytest.approx(25.0)
