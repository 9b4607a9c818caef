"""The paper's sequence model against the same mathematics in plain operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from small import ACTIONS, HIDDEN, LATENT, LENGTH, random_tokens, small_part
from stormlit.checks.laws import visible
from stormlit.errors import ConfigError
from stormlit.registry import build


def _transformer() -> nn.Module:
    torch.manual_seed(0)
    node = small_part("sequence_model", "transformer", num_layers=2)
    return build("sequence_model", node, LATENT, ACTIONS, HIDDEN).eval()


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
    model, (latent, action, is_first) = _transformer(), random_tokens()
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
