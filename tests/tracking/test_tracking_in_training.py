"""What a training run records in MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stormlit.cli import main
from stormlit.config.compose import compose, to_tree
from stormlit.registry import leaves
from training import SMALL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a finished run."""
    root = tmp_path_factory.mktemp("runs")
    words = [*SMALL, f"run.dir={root}", "tracking=mlflow", "evaluation.baselines=[random]", "seed=3"]
    assert main(["train", *words, "run.name=good"]) == 0
    return root


@pytest.fixture(scope="module")
def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


@pytest.fixture(scope="module")
def run(root: Path) -> str:
    return str(json.loads((root / "good" / "run.json").read_text())["run_id"])


def artifacts(client: Any, run: str, folder: str | None = None) -> set[str]:
    found: set[str] = set()
    for entry in client.list_artifacts(run, folder):
        found |= artifacts(client, run, entry.path) if entry.is_dir else {entry.path}
    return found


def test_parameters_are_the_whole_configuration(root: Path, client: Any, run: str) -> None:
    params = client.get_run(run).data.params
    assert params["world_model.encoder.name"] == "cnn"
    assert params["agent.gamma"] == "0.985"
    assert params["evaluation.baselines"] == "['random']"
    assert len(params) == len(dict(leaves(to_tree(compose([str(root / "good" / "config.yaml")])))))


def test_metrics_and_tags_say_what_came_out_and_of_what(client: Any, run: str) -> None:
    assert [point.step for point in client.get_metric_history(run, "world_model/loss/dyn")] == [32, 40, 48]
    assert [point.step for point in client.get_metric_history(run, "episode/return")] == [8, 16, 24, 32, 40, 48]
    found = client.get_run(run)
    latest, tags = found.data.metrics, found.data.tags
    assert {"eval/return", "eval/baseline/random", "agent/entropy", "dream/psnr_imagined"} <= set(latest)
    assert latest["progress/world_model_updates"] == 24
    assert (found.info.run_name, found.info.status) == ("good", "FINISHED")
    assert tags["game"] == "Catch" and tags["seed"] == "3"
    assert tags["git_commit"] and tags["device"].startswith("cpu")


def test_artifacts_hold_configuration_media_evaluation_and_checkpoint(client: Any, run: str) -> None:
    assert {
        "config.yaml",
        "media/dream-000000048.mp4",
        "media/reconstruction-000000048.png",
        "evaluation/step-000000048.json",
        "checkpoints/step-000000048/manifest.json",
        "checkpoints/step-000000048/weights.pt",
    } <= artifacts(client, run)


def test_resuming_by_the_mlflow_id_continues_the_same_run(root: Path, client: Any, run: str) -> None:
    before = client.get_run(run)
    assert main(["resume", run, f"run.dir={root}", "loop.env_steps=64"]) == 0
    resumed = client.get_run(run)
    assert len(client.search_runs([resumed.info.experiment_id])) == 1
    assert resumed.info.status == "FINISHED" and resumed.data.params == before.data.params
    assert [point.step for point in client.get_metric_history(run, "agent/entropy")] == [32, 40, 48, 56, 64]
    assert "checkpoints/step-000000064/weights.pt" in artifacts(client, run)
