"""Acting: the player's hidden states against full passes over its own history, episode by episode."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from small import HIDDEN, LATENT, small_agent, small_world_model
from stormlit.config.compose import compose
from stormlit.errors import CheckpointError, ConfigError
from stormlit.registry import names, part_class
from stormlit.storm.acting import Player
from training import differences

CONTEXT = 3


class Spied(Player):
    """A player that notes the latents it encoded and the hidden states its policy saw, one entry a step."""

    def __init__(self, sequence_model: str = "transformer", num_envs: int = 2, **options: Any) -> None:
        world_model = small_world_model(sequence_model, tokens=options.pop("tokens", "merged"))
        agent = small_agent(world_model)
        self.latents: list[Tensor] = []
        self.hiddens: list[Tensor] = []
        encode, act = world_model.sample_posterior, agent.act

        def noted_encode(obs: Tensor) -> Tensor:
            self.latents.append(encode(obs))
            return self.latents[-1]

        def noted_act(latent: Tensor, hidden: Tensor, *, greedy: bool = False) -> Tensor:
            assert torch.equal(latent, self.latents[-1])
            self.hiddens.append(hidden.clone())
            return act(latent, hidden, greedy=greedy)

        world_model.sample_posterior, agent.act = noted_encode, noted_act
        super().__init__(world_model, agent, num_envs, **{"context_length": CONTEXT, **options})


def _frames(steps: int, num_envs: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(steps, num_envs, 16, 16, 3), dtype=np.uint8)


def _starts(steps: int, *where: tuple[int, int]) -> np.ndarray:
    """Every environment begins at step 0; ``where`` are further (step, environment) pairs."""
    starts = np.zeros((steps, 2), dtype=bool)
    starts[0] = True
    for step, row in where:
        starts[step, row] = True
    return starts


def _assert_full_passes(player: Spied, starts: np.ndarray, actions: list[np.ndarray], window: int) -> None:
    """The policy saw what a pass over the last ``window`` steps of each episode gives; zeros at its first frame."""
    for row in range(2):
        began = 0
        for t in range(len(starts)):
            began = t if starts[t, row] else began
            first = max(began, t - window)
            expected = torch.zeros(player.world_model.hidden_dim)
            if t > first:
                latent = torch.stack([player.latents[s][row] for s in range(first, t)]).unsqueeze(0)
                action = torch.tensor([[int(actions[s][row]) for s in range(first, t)]])
                none_first = torch.zeros(action.shape, dtype=torch.bool)
                with torch.no_grad():
                    expected = player.world_model.sequence_model(latent, action, none_first)[0, -1]
            torch.testing.assert_close(player.hiddens[t][row], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sequence_model", ["transformer", "gru"])
def test_the_policy_sees_what_full_passes_over_the_context_give(sequence_model: str) -> None:
    """Whatever the other environment does, whose episodes end at other steps."""
    player, frames, starts = Spied(sequence_model), _frames(12), _starts(12, (4, 0), (5, 0), (9, 1))
    actions = [player.act(frame, start) for frame, start in zip(frames, starts, strict=True)]
    _assert_full_passes(player, starts, actions, CONTEXT)


# A memory that is carried along

CARRYING = [name for name in names("sequence_model") if getattr(part_class("sequence_model", name), "carries", False)]


def carrying(name: str, **options: Any) -> Spied:
    """A player with room for whole episodes where the model needs room; fewer steps than that are read as a window."""
    room = 40 if name == "rotary_transformer" else CONTEXT
    return Spied(name, memory="carried", context_length=room, **options)


@pytest.mark.parametrize("tokens", ["merged", "separate"])
@pytest.mark.parametrize("name", CARRYING)
def test_a_carried_memory_gives_what_a_full_pass_over_all_of_the_episode_gives(name: str, tokens: str) -> None:
    player, frames, starts = carrying(name, tokens=tokens), _frames(36), _starts(36, (4, 0), (5, 0), (9, 1), (33, 1))
    actions = [player.act(frame, start) for frame, start in zip(frames, starts, strict=True)]
    _assert_full_passes(player, starts, actions, len(starts))


@pytest.mark.parametrize("name", CARRYING)
def test_a_cue_is_remembered_for_30_steps_by_a_carried_memory_and_not_by_a_window(name: str) -> None:
    """Environment 0 shows a cue at its first frame, environment 1 another; all that follows is the same for both."""
    apart, starts, latents = {}, _starts(31), torch.randn(31, 1, LATENT).repeat(1, 2, 1)
    latents[0, 1] = -latents[0, 0]
    for memory, player in (("carried", carrying(name)), ("window", Spied(name))):
        if name == "gru":  # gates that let nearly everything pass, as trained ones may
            for cell in player.world_model.sequence_model.cells:
                cell.bias_ih.data.view(3, -1)[1] += 4.0
        hidden = torch.zeros(2, HIDDEN)
        for t in range(31):
            player.world_model.sample_posterior = lambda obs, t=t: latents[t]
            player.agent.act = lambda latent, seen, greedy, hidden=hidden: 0 * hidden.copy_(seen)[:, 0].long()
            player.act(_frames(1)[0], starts[t])
        apart[memory] = float((hidden[0] - hidden[1]).abs().max())
    assert apart["carried"] > 1e-4 and apart["window"] < 1e-6


@pytest.mark.parametrize("latent", ["posterior", "prior"])
@pytest.mark.parametrize(
    ("name", "options"), [*((name, {"memory": "carried"}) for name in CARRYING), ("transformer", {"context": "frames"})]
)
def test_what_is_remembered_is_saved_and_restored_exactly(name: str, options: dict[str, Any], latent: str) -> None:
    """In mixed precision too, where a memory is kept in full."""
    frames, starts = _frames(10), _starts(10, (3, 1), (7, 0))
    players = []
    for _ in range(2):
        world_model = small_world_model(name)
        players.append(Player(world_model, small_agent(world_model), 2, context_length=8, latent=latent, **options))
    with torch.autocast("cpu", torch.bfloat16):
        for t in range(5):
            players[0].act(frames[t], starts[t])
        saved = copy.deepcopy(players[0].state_dict())
        assert saved["length"] == [5, 2]
        players[1].load_state_dict(saved)
        seen = []
        for player in players:
            torch.manual_seed(1)
            actions = [player.act(frames[t], starts[t]).tolist() for t in range(5, 10)]
            seen.append((actions, player.state_dict()))
    assert list(differences(*seen)) == []
    [word] = options
    with pytest.raises(CheckpointError, match=rf"player\.{word}"):
        Spied(name).load_state_dict(saved)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "=transformer does not: choose from gru, mamba2, rotary_transformer, or player.memory=window"),
        (
            ("world_model.sequence_model=gru", "player.context=frames"),
            "player.context=frames draws .* and player.memory=carried has no window",
        ),
    ],
)
def test_a_memory_that_cannot_be_carried_is_refused_in_one_sentence(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as raised:
        compose(["tiny"], ["player.memory=carried", *words])
    assert "\n" not in str(raised.value)


# A context of frames


def test_a_context_of_frames_is_encoded_and_read_at_every_step() -> None:
    """The last CONTEXT frames of the running episode, and the hidden state after the latents drawn for them."""
    world_model = small_world_model()
    agent, encoded, hiddens = small_agent(world_model), [], []
    encode, act = world_model.sample_posterior, agent.act

    def noted_encode(obs: Tensor) -> Tensor:
        encoded.append((obs.clone(), encode(obs)))
        return encoded[-1][1]

    def noted_act(latent: Tensor, hidden: Tensor, *, greedy: bool = False) -> Tensor:
        hiddens.append(hidden)
        return act(latent, hidden, greedy=greedy)

    world_model.sample_posterior, agent.act = noted_encode, noted_act  # type: ignore[method-assign]
    player = Player(world_model, agent, num_envs=2, context_length=CONTEXT, context="frames")
    frames, starts, began = _frames(9), _starts(9, (4, 1)), [0, 0]
    actions: list[np.ndarray] = []
    for t in range(9):
        actions.append(player.act(frames[t], starts[t]))
        past, latent = encoded[-1]
        for row in range(2):
            began[row] = t if starts[t, row] else began[row]
            first = max(began[row], t - CONTEXT)
            if t == first:
                assert not hiddens[t][row].any()
                continue
            assert np.array_equal(past[row, : t - first].permute(0, 2, 3, 1).numpy(), frames[first:t, row])
            action = torch.tensor([[int(actions[s][row]) for s in range(first, t)]])
            none_first = torch.zeros(action.shape, dtype=torch.bool)
            with torch.no_grad():
                expected = world_model.sequence_model(latent[row : row + 1, : t - first], action, none_first)[0, -1]
            torch.testing.assert_close(hiddens[t][row], expected, atol=1e-5, rtol=0)
