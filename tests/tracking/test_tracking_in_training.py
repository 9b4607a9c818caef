"""What a training run records in MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stormlit.cli import main
from stormlit.config.compose import compose, to_tree
from training import SMALL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that share one database: a finished one, and one that failed."""
    root = tmp_path_factory.mktemp("runs")
    words = [*SMALL, f"run.dir={root}", "tracking=mlflow", "evaluation.baselines=[random]", "seed=3"]
    assert main(["train", *words, "run.name=good"]) == 0
    bad = ["world_model.loss_scales.reconstruction=1e38", "loop.max_nonfinite_updates=3"]
    assert main(["train", *words, "run.name=bad", *bad]) == 3
    return root


@pytest.fixture(scope="module")
def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


def run_id(root: Path, name: str) -> str:
    return str(json.loads((root / name / "run.json").read_text())["run_id"])


def artifacts(client: Any, run: str, folder: str | None = None) -> set[str]:
    found: set[str] = set()
    for entry in client.list_artifacts(run, folder):
        found |= artifacts(client, run, entry.path) if entry.is_dir else {entry.path}
    return found


def test_parameters_are_the_whole_configuration(root: Path, client: Any) -> None:
    params = client.get_run(run_id(root, "good")).data.params
    assert params["world_model.encoder.name"] == "cnn"
    assert params["world_model.encoder.stem_channels"] == "4"
    assert params["agent.gamma"] == "0.985"
    assert params["evaluation.baselines"] == "['random']"

    def leaves(node: Any) -> int:
        return sum(map(leaves, node.values())) if isinstance(node, dict) and node else 1

    assert len(params) == leaves(to_tree(compose([str(root / "good" / "config.yaml")])))


def test_tags_say_what_it_was_made_with(root: Path, client: Any) -> None:
    run = client.get_run(run_id(root, "good"))
    tags = run.data.tags
    assert run.info.run_name == "good"
    assert tags["game"] == "Catch" and tags["seed"] == "3"
    assert tags["git_commit"] and tags["device"].startswith("cpu")


def test_metrics_have_environment_steps_as_their_step(root: Path, client: Any) -> None:
    run = run_id(root, "good")
    assert [point.step for point in client.get_metric_history(run, "world_model/loss/dyn")] == [32, 40, 48]
    assert [point.step for point in client.get_metric_history(run, "episode/return")] == [8, 16, 24, 32, 40, 48]
    latest = client.get_run(run).data.metrics
    assert {"eval/return", "eval/baseline/random", "agent/entropy", "dream/psnr_imagined"} <= set(latest)
    assert latest["progress/world_model_updates"] == 24


def test_artifacts_hold_configuration_media_evaluation_and_checkpoint(root: Path, client: Any) -> None:
    found = artifacts(client, run_id(root, "good"))
    assert {
        "config.yaml",
        "media/dream-000000048.mp4",
        "media/reconstruction-000000048.png",
        "evaluation/step-000000048.json",
        "checkpoints/step-000000048/manifest.json",
        "checkpoints/step-000000048/weights.pt",
    } <= found


def test_runs_end_as_they_did(root: Path, client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = (client.get_run(run_id(root, name)) for name in ("good", "bad"))
    assert (good.info.status, bad.info.status) == ("FINISHED", "FAILED")
    assert good.info.experiment_id == bad.info.experiment_id
    assert client.get_experiment(good.info.experiment_id).name == "stormlit"


def test_resuming_by_the_mlflow_id_continues_the_same_run(root: Path, client: Any) -> None:
    run = run_id(root, "good")
    before = len(client.search_runs([client.get_run(run).info.experiment_id]))
    params = client.get_run(run).data.params
    assert main(["resume", run, f"run.dir={root}", "loop.env_steps=64"]) == 0
    assert run_id(root, "good") == run
    assert len(client.search_runs([client.get_run(run).info.experiment_id])) == before
    resumed = client.get_run(run)
    assert resumed.info.status == "FINISHED"
    assert resumed.data.params == params
    assert [point.step for point in client.get_metric_history(run, "agent/entropy")] == [32, 40, 48, 56, 64]
    assert "checkpoints/step-000000064/weights.pt" in artifacts(client, run)
