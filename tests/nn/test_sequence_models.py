"""Sequence models by hand and in plain operations; the laws of all are in test_parts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from small import ACTIONS, HIDDEN, LATENT, LENGTH, random_tokens, small_part
from stormlit.checks.laws import visible
from stormlit.errors import ConfigError
from stormlit.nn.sequence.rotary import RotaryTransformerSequence, rotate
from stormlit.ops.state_space import scan, step
from stormlit.registry import build


def _model(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return build("sequence_model", small_part("sequence_model", name, **options), LATENT, ACTIONS, HIDDEN).eval()


def _tokens(length: int, *starts: int) -> tuple[Tensor, Tensor, Tensor]:
    is_first = torch.zeros(2, length, dtype=torch.bool)
    is_first[1, list(starts)] = True
    return torch.randn(2, length, LATENT), torch.randint(ACTIONS, (2, length)), is_first


# The paper's transformer


def _attention(block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Head by head: softmax(Q K^T / sqrt(d)) V over one row (T, D), -inf where ``mask`` (T, T) is False."""
    attention = block.attention
    width = HIDDEN // attention.num_heads
    outputs = []
    for head in range(attention.num_heads):
        columns = slice(head * width, (head + 1) * width)
        weights = attention.query_key_value.weight.chunk(3)
        query, key, value = (x @ weight[columns].T for weight in weights)
        scores = (query @ key.T / width**0.5).masked_fill(~mask, float("-inf"))
        outputs.append(scores.softmax(-1) @ value)
    return torch.cat(outputs, dim=-1) @ attention.output.weight.T


def _norm(x: Tensor, norm: nn.Module, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight + norm.bias


def test_the_transformer_is_the_paper_s() -> None:
    """Equation 2 and the post-norm blocks in plain operations, row by row, on the module's own random weights."""
    model, (latent, action, is_first) = _model("transformer", num_layers=2), random_tokens()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape))
        hidden = model(latent, action, is_first)
        inner_norm, _, second, outer_norm = model.mixer.layers
        first = torch.cat([model.mixer.latent.weight, model.mixer.action.weight], dim=1)
        for row in range(2):
            token = torch.cat([latent[row], torch.eye(ACTIONS)[action[row]]], dim=-1)
            e = _norm(_norm(token @ first.T, inner_norm, 1e-5).relu() @ second.weight.T, outer_norm, 1e-5)
            x = _norm(e + model.positions.weight[:LENGTH], model.norm, 1e-6)
            mask = torch.tensor([[visible(is_first[row], q, k) for k in range(LENGTH)] for q in range(LENGTH)])
            for block in model.blocks:
                widen, _, narrow, _ = block.feedforward
                x = _norm(x + _attention(block, x, mask), block.attention_norm, 1e-6)
                inner = (x @ widen.weight.T + widen.bias).relu()
                x = _norm(x + inner @ narrow.weight.T + narrow.bias, block.feedforward_norm, 1e-6)
            torch.testing.assert_close(hidden[row], x, atol=1e-5, rtol=1e-4)


def test_a_width_that_heads_cannot_share_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"hidden_dim=10 is not a multiple of .*num_heads=4"):
        build("sequence_model", {"name": "transformer", "num_heads": 4}, LATENT, ACTIONS, 10)


# Rotary positions


def test_pairs_of_numbers_turn_with_the_position_by_hand() -> None:
    # Width 4: numbers 0 and 2 turn by p, numbers 1 and 3 by p / 100. (1, 0) becomes (cos p, sin p).
    x = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    turned = rotate(x, torch.tensor([3, 2]))
    expected = [
        [math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)],
        [-math.sin(2), -math.sin(0.02), math.cos(2), math.cos(0.02)],
    ]
    torch.testing.assert_close(turned, torch.tensor(expected))


def test_the_rotary_transformer_in_plain_operations() -> None:
    """Row by row and head by head: x + attention(norm(x)), then x + network(norm(x)), and a last norm."""
    model, (latent, action, is_first) = _model("rotary_transformer"), _tokens(5, 2)
    width = HIDDEN // model.num_heads
    with torch.no_grad():
        hidden = model(latent, action, is_first)
        for row, begin in ((0, 0), (1, 2)):
            x = model.mixer(latent[row, begin:], action[row, begin:])
            for block in model.blocks:
                query, key, value = (block.query_key_value(block.attention_norm(x))).chunk(3, dim=-1)
                heads = []
                for head in range(model.num_heads):
                    part = slice(head * width, (head + 1) * width)
                    at = torch.arange(len(x))
                    scores = rotate(query[:, part], at) @ rotate(key[:, part], at).T / width**0.5
                    causal = torch.ones_like(scores).tril().bool()
                    heads.append(scores.masked_fill(~causal, float("-inf")).softmax(-1) @ value[:, part])
                x = x + torch.cat(heads, dim=-1) @ block.output.weight.T
                x = x + block.feedforward(x)
            torch.testing.assert_close(hidden[row, begin:], model.norm(x), atol=1e-5, rtol=1e-4)


def test_a_full_ring_forgets_the_oldest_token_and_no_other() -> None:
    """One layer sees the last 4 tokens only: stepping on with room for 4 gives what a pass over those 4 gives."""
    model, (latent, action, is_first) = _model("rotary_transformer", num_layers=1), _tokens(11)
    with torch.no_grad():
        memory = model.empty(2, 4)
        filled = model.prefill(latent[:, :6], action[:, :6], is_first[:, :6], 4)[1]  # more steps than there is room
        for t in range(11):
            seen = [model.step(latent[:, t], action[:, t], memory)]
            if t >= 6:
                seen.append(model.step(latent[:, t], action[:, t], filled))
            window = slice(max(t - 3, 0), t + 1)
            expected = model(latent[:, window], action[:, window], is_first[:, window])[:, -1]
            for hidden in seen:
                torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-4)


def test_heads_of_odd_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hidden_dim=20 is not a multiple of twice .*num_heads=4"):
        RotaryTransformerSequence(LATENT, ACTIONS, 20, num_heads=4)


# Mamba-2


def test_the_recurrence_by_hand() -> None:
    # One head of width 1 with two numbers of state; the state halves at each step.
    #   x 1, written to (1, 0): state (1, 0);      read by (1, 1): 1
    #   x 2, written to (0, 1): state (1/2, 2);    read by (1, 1): 2.5
    #   x 4, written to (1, 1): state (4.25, 5);   read by (0, 1): 5
    # and if an episode begins with the last step, its state is (4, 4), and 4 is read.
    x = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    decay = torch.full((1, 3, 1), math.log(0.5))
    write = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    read = torch.tensor([[[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]])
    for starts, last, kept in ((False, 5.0, [4.25, 5.0]), (True, 4.0, [4.0, 4.0])):
        is_first = torch.tensor([[False, False, starts]])
        for chunk in (1, 2, 3, 64):
            y, state = scan(x, decay, write, read, is_first, torch.zeros(1, 1, 1, 2), chunk)
            torch.testing.assert_close(y.flatten(), torch.tensor([1.0, 2.5, last]))
            torch.testing.assert_close(state.flatten(), torch.tensor(kept))


@pytest.mark.parametrize("chunk", [1, 4, 5, 64])
def test_many_steps_at_once_are_the_recurrence(chunk: int) -> None:
    rows, length, heads, width, numbers = 2, 13, 3, 4, 5
    x, decay = torch.randn(rows, length, heads, width), -3 * torch.rand(rows, length, heads)
    write, read = torch.randn(2, rows, length, numbers).unbind()
    is_first = torch.zeros(rows, length, dtype=torch.bool)
    is_first[0, 5] = is_first[1, 0] = is_first[1, 7] = is_first[1, 8] = True
    before = state = torch.randn(rows, heads, width, numbers)
    expected = []
    for t in range(length):
        state = state.masked_fill(is_first[:, t].view(-1, 1, 1, 1), 0.0)
        y, state = step(x[:, t], decay[:, t], write[:, t], read[:, t], state)
        expected.append(y)
    seen, after = scan(x, decay, write, read, is_first, before, chunk)
    torch.testing.assert_close(seen, torch.stack(expected, dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after, state, atol=1e-5, rtol=1e-4)


def test_steps_that_forget_nearly_everything_have_finite_gradients() -> None:
    x, decay = torch.randn(1, 9, 1, 2, requires_grad=True), torch.full((1, 9, 1), -1e3, requires_grad=True)
    write, read = torch.randn(2, 1, 9, 2).unbind()
    y, _ = scan(x, decay, write, read, torch.zeros(1, 9, dtype=torch.bool), torch.zeros(1, 1, 2, 2), 4)
    y.sum().backward()
    assert x.grad is not None and decay.grad is not None
    assert y.isfinite().all() and x.grad.isfinite().all() and decay.grad.isfinite().all()


def test_a_width_that_heads_of_mamba2_cannot_share_is_one_sentence() -> None:
    with pytest.raises(
        ConfigError, match=r"hidden_dim=10 times .*inner_multiple=2 is not a multiple of .*num_heads=16"
    ):
        build("sequence_model", "mamba2", LATENT, ACTIONS, 10)


# Both


@pytest.mark.parametrize("name", ["rotary_transformer", "mamba2"])
def test_a_window_of_any_length_is_read_and_stepped_through(name: str) -> None:
    model, (latent, action, is_first) = _model(name), _tokens(150, 20, 90)
    with torch.no_grad():
        full, memory = model(latent, action, is_first), model.empty(2, 150)
        for t in range(150):
            memory.cut(is_first[:, t])
            hidden = model.step(latent[:, t], action[:, t], memory)
            torch.testing.assert_close(hidden, full[:, t], atol=1e-4, rtol=1e-4)
