"""The best evaluated weights are kept beside the newest, through whatever a run goes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import stormlit
from stormlit.analysis.evaluate import Evaluation
from stormlit.cli import main
from stormlit.data import Episode
from training import train

WORDS = ("checkpoint.keep_best=true", "evaluation.every_env_steps=8", "tracking=none")


@pytest.fixture
def means(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Mean return of the evaluation at each step, to be filled in."""
    given: dict[int, float] = {}
    steps: list[int] = []

    def evaluation(*_: object, **__: object) -> Evaluation:
        return Evaluation("agent", "Catch", [Episode(0, 0, given[steps[-1]], 7, False, 0.0)])

    def evaluate_agent(run: object) -> None:
        steps.append(run.env_steps)  # type: ignore[attr-defined]
        original(run)  # type: ignore[arg-type]

    from stormlit.runs import after_step, train

    original = after_step.evaluate_agent
    monkeypatch.setattr(after_step, "run_evaluation", evaluation)
    monkeypatch.setattr(after_step, "evaluate_agent", evaluate_agent)
    monkeypatch.setattr(train, "evaluate_agent", evaluate_agent)
    return given


def kept(run: Path) -> list[str]:
    return sorted(folder.name for folder in (run / "checkpoints").iterdir())


def test_the_best_is_kept_and_loaded_by_name(
    means: dict[int, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    means |= {8: 1.0, 16: 3.0, 24: 2.0, 32: 3.0, 40: 5.0, 48: float("nan")}
    run = train(tmp_path, "mine", *WORDS, "checkpoint.every=8")
    assert kept(run) == ["best-000000040", "step-000000040", "step-000000048"]
    told = capsys.readouterr().out
    assert "best-000000040  (mean return 5; the highest of several evaluations is optimistic" in told
    best, same = (stormlit.load(name, run_dir=str(tmp_path)) for name in ("mine:best", f"{run}:best"))
    assert best.checkpoint.name == same.checkpoint.name == "best-000000040"
    at_40 = stormlit.load(str(run / "checkpoints" / "step-000000040"))
    for module in ("world_model", "agent"):
        expected = getattr(at_40, module).state_dict()
        for name, tensor in getattr(best, module).state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    assert main(["resume", "mine:best", f"run.dir={tmp_path}", "loop.env_steps=56"]) == 2
    assert "best-000000040 holds weights only" in capsys.readouterr().err
    assert main(["eval", "mine:best", "seed=7", f"run.dir={tmp_path}"]) == 0
    assert "best-000000040" in capsys.readouterr().out
    (run / "checkpoints" / "best-000000040" / "weights.pt").write_bytes(b"")
    assert main(["eval", "mine:best", f"run.dir={tmp_path}"]) == 2
    assert "weights.pt is truncated" in capsys.readouterr().err


def test_what_is_found_after_a_checkpoint_is_forgotten_by_who_goes_on_from_it(
    means: dict[int, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    means |= {8: 1.0, 16: 3.0, 24: 2.0, 32: 4.0, 33: 0.0}
    run = train(tmp_path, "mine", *WORDS, "loop.env_steps=33")
    assert kept(run) == ["best-000000016", "best-000000032", "step-000000024", "step-000000033"]
    means |= dict.fromkeys((32, 40, 48), 3.0)
    assert main(["resume", str(run / "checkpoints" / "step-000000024"), "loop.env_steps=48"]) == 0
    assert kept(run) == ["best-000000016", "step-000000024", "step-000000048"]
    other = train(tmp_path, "plain", "loop.env_steps=32", "evaluation.every_env_steps=8", "tracking=none")
    assert kept(other) == ["step-000000024", "step-000000032"]
    assert main(["eval", "plain:best", f"run.dir={tmp_path}"]) == 2
    assert "plain:best: that run has kept no best weights" in capsys.readouterr().err
