"""``stormlit bench``: what it prints and writes, that it measures what the training loop does, and what it counts."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Measurement
from torch.utils.benchmark.utils.common import TaskSpec

from stormlit.cli import main
from stormlit.cli.bench_command import measure, ratio, spread
from stormlit.cli.phases import (
    AGENT,
    IMAGINATION,
    PHASES,
    STEPPING,
    WHOLE,
    WORLD_MODEL,
    OperationCounter,
    Phases,
    prepared,
)
from stormlit.config.compose import compose
from training import SMALL, refusal

SMALL_CPU = (*SMALL, "accelerator=cpu", "precision=32-true")


@pytest.fixture(autouse=True)
def one_run_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the untimed one."""
    monkeypatch.setattr("stormlit.cli.bench_command.SECONDS_A_ROUND", 0.0)


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_one_configuration_is_tabled_and_written(in_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *SMALL_CPU, "--rounds", "2"]) == 0
    captured = capsys.readouterr()
    assert "round 2 of 2" in captured.err
    table = {line.split("  ")[0]: line for line in captured.out.splitlines()}
    assert {*PHASES, WHOLE} <= table.keys()
    assert "written to bench-tiny.json" in captured.out
    assert [path.name for path in in_tmp_path.iterdir()] == ["bench-tiny.json"]

    written: dict[str, Any] = json.loads((in_tmp_path / "bench-tiny.json").read_text())
    assert written["command"] == shlex.join(["stormlit", "bench", *SMALL_CPU, "--rounds", "2"])
    assert written["ratios"] == {}
    assert {"device", "git_commit", "version.torch", "threads", "cpu_cores"} <= written["made_with"].keys()
    assert (written["not_compiled"], written["cuda_graphs_skipped"]) == ([], 0)
    assert written["peak_memory"]["bytes"] > 2**26
    [setting] = written["settings"]
    assert (setting["name"], setting["compiled"]) == ("as configured", False)
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


@pytest.mark.parametrize("overlap", ["false", "true"])
def test_a_whole_step_is_what_the_loop_does(overlap: str) -> None:
    words = ["env.num_envs=2", "loop.world_model_updates_per_env_step=0.75", "loop.agent_updates_per_env_step=0.1"]
    with prepared(compose(SMALL[:1], [*SMALL_CPU[1:], *words, f"loop.overlap={overlap}"])) as phases:
        assert phases.whole_env_steps == 20  # 15 and 2 updates; after 10 steps it would be 7.5 and 1
        training, rows = phases.training, phases.training.replay.total_rows
        for times in (1, 2):
            phases.run(WHOLE)
            assert training.replay.total_rows - rows == times * 10
            assert (training.progress.world_model_updates, training.progress.agent_updates) == (times * 15, times * 2)
        assert [phases.times_per_env_step(phase) for phase in (STEPPING, WORLD_MODEL, AGENT)] == [0.5, 0.75, 0.1]


def test_the_buffer_holds_the_random_start_and_whole_windows() -> None:
    with prepared(compose(SMALL[:1], [*SMALL_CPU[1:], "loop.warmup_steps=2", "player.context_length=1"])) as phases:
        assert phases.training.replay.rows == 8 + 1  # windows of 8 steps, and one that was acted
        assert phases.training.progress.world_model_updates == 0


def test_settings_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Phases] = []
    imagine = Phases._imagine

    def noted(self: Phases) -> None:
        seen.append(self)
        imagine(self)

    monkeypatch.setattr(Phases, "_imagine", noted)
    config = compose(SMALL[:1], SMALL_CPU[1:])
    measure({"A": config, "B": config}, 3, "")
    first, second = dict.fromkeys(seen)
    # Each when it is made; once to warm up and once counted, each; then in turns, untimed and timed.
    assert seen == [first, second, first, first, second, second, *[first, first, second, second] * 3]


def test_ratios_are_taken_round_by_round() -> None:
    def rounds(*seconds: list[float]) -> list[Measurement]:
        return [Measurement(1, times, TaskSpec("", "")) for times in seconds]

    slow, fast = rounds([4.0, 6.0], [50.0, 90.0, 50.0]), rounds([1.0, 1.0], [10.0])
    assert ratio(slow, fast) == {"median": 5.0, "low": 5.0, "high": 5.0}
    assert ratio(slow, fast, 5.0)["median"] == 25.0  # of an environment step, where the other took five at once
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}


def counted(code: Callable[[], object]) -> OperationCounter:
    with OperationCounter() as counter:
        code()
    return counter


def matrix(rows: int = 4, columns: int = 4) -> Tensor:
    return torch.arange(rows * columns, dtype=torch.float32).reshape(rows, columns)


def test_forward_and_backward_of_a_linear_layer_are_counted() -> None:
    weight = matrix().requires_grad_()
    counter = counted(lambda: torch.relu(matrix() @ weight).sum().backward())
    # arange and its reshape came from matrix(); ones_like is the gradient that backward begins with; the first factor
    # wants no gradient, so there is one product more.
    expected = {"arange": 1, "mm": 2, "relu": 1, "sum": 1, "ones_like": 1, "threshold_backward": 1}
    assert counter.operations == expected
    assert not counter.syncs


@pytest.mark.parametrize(
    ("code", "operations"),
    [
        (lambda x: x.t().view(4, 2, 2).detach()[1:, None, ::2].unbind(0), {}),
        (lambda x: x.chunk(2, dim=-1), {}),
        (lambda x: x.expand(3, 4, 4).permute(2, 0, 1).contiguous().is_same_size(x), {"clone": 1}),
        (lambda x: x.squeeze().unflatten(0, (2, 2)).unsqueeze(-1).float(), {}),
        (lambda x: x.t().reshape(16), {"clone": 1}),
        (lambda x: torch._foreach_mul_([x, x.clone()], 2.0), {"clone": 1, "_foreach_mul_": 1}),
    ],
)
def test_views_count_nothing_and_fused_operations_once(
    code: Callable[[Tensor], object], operations: dict[str, int]
) -> None:
    x = matrix()
    assert counted(lambda: code(x)).operations == operations


def test_the_step_of_a_fused_optimizer_is_two_operations() -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters(), fused=True)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # The steps of both parameters are counted up, then both are moved.
    assert counted(optimizer.step).operations == {"_foreach_add_": 1, "_fused_adam_": 1}


@pytest.mark.parametrize(
    ("code", "syncs"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x.masked_select(x > 2), 1),
        (lambda x: x[x[0] > 1], 1),
        (lambda x: x.index_put_((x > 1,), torch.zeros(())), 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: x.unique(), 1),
        (lambda x: torch.multinomial(x, 1), 1),
        (lambda x: x.repeat_interleave(torch.tensor([1, 2, 0, 1]), dim=0), 1),
        (lambda x: x.repeat_interleave(torch.tensor([1, 2, 0, 1]), dim=0, output_size=4), 0),
        (lambda x: x[torch.tensor([0, 2])].gather(0, torch.zeros(1, 4, dtype=torch.long)), 0),
        (lambda x: torch.where(x > 1, x, -x).masked_fill(x > 1, 0.0).double(), 0),
        (lambda x: x.to("meta", non_blocking=True), 0),
        (lambda x: x.to("meta"), 1),
        (lambda x: torch.empty(4, 4, device="meta").copy_(x), 1),
        (lambda x: torch.empty(4, 4, device="meta").copy_(x, non_blocking=True), 0),
        (lambda x: torch.empty(4, 4, device="meta").copy_(torch.empty(4, 4, device="meta")), 0),
    ],
)
def test_what_makes_the_host_wait_is_counted(code: Callable[[Tensor], object], syncs: int) -> None:
    x = matrix()
    counter = counted(lambda: code(x))
    assert counter.syncs.total() == syncs, counter.syncs
