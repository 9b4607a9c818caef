"""Checkpoints in the layout of the public implementation, written out here by name and shape."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stormlit.cli import main
from stormlit.runs.api import load

GAME = "env.game=Pong"  # six actions
ACTIONS, WIDTH, LAYERS, LATENT = 6, 16, 3, 1024
SHORT = ["evaluation.episodes=1", "env.max_episode_steps=8"]
HEADS = "world_model.sequence_model.num_heads=4"


def _norm(name: str, width: int, batch: bool = False) -> dict[str, Tensor]:
    tensors = {f"{name}.weight": torch.rand(width) + 0.5, f"{name}.bias": torch.randn(width)}
    if batch:
        tensors |= {f"{name}.running_mean": torch.randn(width), f"{name}.running_var": torch.rand(width) + 0.5}
        tensors[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return tensors


def _linear(name: str, fan_out: int, fan_in: int, bias: bool = True) -> dict[str, Tensor]:
    tensors = {f"{name}.weight": torch.randn(fan_out, fan_in) / fan_in**0.5}
    return {**tensors, f"{name}.bias": torch.randn(fan_out)} if bias else tensors


def official_world_model() -> dict[str, Tensor]:
    channels, state = [3, 32, 64, 128, 256], {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(channels)):
        state[f"encoder.backbone.{3 * layer}.weight"] = torch.randn(fan_out, fan_in, 4, 4) / (16 * fan_in) ** 0.5
        state |= _norm(f"encoder.backbone.{3 * layer + 1}", fan_out, batch=True)
    stem = "storm_transformer.stem"
    state |= _linear(f"{stem}.0", WIDTH, LATENT + ACTIONS, bias=False) | _norm(f"{stem}.1", WIDTH)
    state |= _linear(f"{stem}.3", WIDTH, WIDTH, bias=False) | _norm(f"{stem}.4", WIDTH)
    state["storm_transformer.position_encoding.pos_emb.weight"] = torch.randn(64, WIDTH)
    for layer in range(LAYERS):
        block = f"storm_transformer.layer_stack.{layer}"
        for projection in ("w_qs", "w_ks", "w_vs", "fc"):
            state |= _linear(f"{block}.slf_attn.{projection}", WIDTH, WIDTH, bias=False)
        state |= _norm(f"{block}.slf_attn.layer_norm", WIDTH)
        state |= _linear(f"{block}.pos_ffn.w_1", 2 * WIDTH, WIDTH) | _linear(f"{block}.pos_ffn.w_2", WIDTH, 2 * WIDTH)
        state |= _norm(f"{block}.pos_ffn.layer_norm", WIDTH)
    state |= _norm("storm_transformer.layer_norm", WIDTH)
    state |= _linear("dist_head.post_head", LATENT, 4096) | _linear("dist_head.prior_head", LATENT, WIDTH)
    state |= _linear("image_decoder.backbone.0", 4096, LATENT, bias=False)
    state |= _norm("image_decoder.backbone.2", 256, batch=True)
    for number, fan_in, fan_out in ((4, 256, 128), (7, 128, 64), (10, 64, 32), (13, 32, 3)):
        state[f"image_decoder.backbone.{number}.weight"] = torch.randn(fan_in, fan_out, 4, 4) / (4 * fan_in) ** 0.5
        if fan_out > 3:
            state |= _norm(f"image_decoder.backbone.{number + 1}", fan_out, batch=True)
    state["image_decoder.backbone.13.bias"] = torch.randn(3)
    for head, output, width in (("reward_decoder", "head", 255), ("termination_decoder", "head.0", 1)):
        for number in (0, 3):
            state |= _linear(f"{head}.backbone.{number}", WIDTH, WIDTH, bias=False)
            state |= _norm(f"{head}.backbone.{number + 1}", WIDTH)
        state |= _linear(f"{head}.{output}", width, WIDTH)
    return state


def official_agent() -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for network, outputs in (("actor", ACTIONS), ("critic", 255), ("slow_critic", 255)):
        state |= _linear(f"{network}.0", WIDTH, LATENT + WIDTH, bias=False) | _norm(f"{network}.1", WIDTH)
        state |= _linear(f"{network}.3", WIDTH, WIDTH, bias=False) | _norm(f"{network}.4", WIDTH)
        state |= _linear(f"{network}.6", outputs, WIDTH)
    return state


def _files(folder: Path, world_model: object, agent: object) -> list[str]:
    torch.save(world_model, folder / "world_model_100.pth")
    torch.save(agent, folder / "agent_100.pth")
    return ["import-official", str(folder / "world_model_100.pth"), str(folder / "agent_100.pth")]


@pytest.mark.slow
def test_an_imported_checkpoint_evaluates_and_trains_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    theirs, agent, run = official_world_model(), official_agent(), tmp_path / "imported"
    assert main([*_files(tmp_path, theirs, agent), GAME, HEADS, "-o", str(run)]) == 0
    assert "width 16, 3 layers, 6 actions" in capsys.readouterr().out

    model = load(str(run)).world_model
    stem = torch.cat([model.sequence_model.mixer.latent.weight, model.sequence_model.mixer.action.weight], dim=1)
    assert torch.equal(stem, theirs["storm_transformer.stem.0.weight"])
    assert torch.equal(model.continuation_head.output.bias, -theirs["termination_decoder.head.0.bias"])
    assert model.sequence_model.num_heads == 4 and len(model.sequence_model.blocks) == LAYERS

    assert main(["eval", str(run), *SHORT]) == 0
    small = ["loop.env_steps=8", "loop.batch_size=2", "loop.batch_length=8", "imagination.batch_size=4", *SHORT]
    same = [f"world_model.hidden_dim={WIDTH}", f"world_model.sequence_model.num_layers={LAYERS}", HEADS]
    same += [f"agent.hidden_dim={WIDTH}", f"run.init_from={run}", f"run.dir={tmp_path}", "run.name=tuned"]
    assert main(["train", "official", GAME, *same, *small, "tracking=none", "loop.warmup_steps=7"]) == 0
    tuned = load("tuned", run_dir=str(tmp_path)).world_model
    moved = (tuned.decoder.project.weight - theirs["image_decoder.backbone.0.weight"]).abs().max()
    assert 0 < moved < 0.01  # one step of Adam from where the released weights were


def _refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("stormlit: error: ") and error.count("\n") == 1
    return error


def test_what_does_not_fit_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["-o", str(tmp_path / "imported")]
    missing = official_world_model()
    del missing["dist_head.post_head.bias"]
    words = _files(tmp_path, missing, official_agent())
    assert "latent.posterior_head.bias" in _refused([*words, GAME, HEADS, *out], capsys)

    misshapen = {**official_world_model(), "reward_decoder.head.weight": torch.zeros(255, WIDTH + 1)}
    words = _files(tmp_path, misshapen, official_agent())
    assert "reward_head.output.weight" in _refused([*words, GAME, HEADS, *out], capsys)

    words = _files(tmp_path, {**official_world_model(), "something.else": torch.zeros(1)}, official_agent())
    assert "something.else" in _refused([*words, GAME, HEADS, *out], capsys)

    words = _files(tmp_path, official_world_model(), official_agent())
    assert "6 actions, but Breakout has 4" in _refused([*words, "env.game=Breakout", HEADS, *out], capsys)
    assert not (tmp_path / "imported").exists()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('executed', 'w')",)


def test_a_pickle_is_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = _files(tmp_path, {"encoder": Evil()}, official_agent())
    assert "world_model_100.pth" in _refused([*words, GAME, "-o", "imported"], capsys)
    (tmp_path / "world_model_100.pth").write_bytes(pickle.dumps(Evil()))
    assert "world_model_100.pth" in _refused([*words, GAME, "-o", "imported"], capsys)
    assert not (tmp_path / "executed").exists()
