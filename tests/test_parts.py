"""Laws that every registered part obeys, whatever it is: a new part is tested by being registered."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from small import ACTIONS, HIDDEN, IMAGE, LATENT, LENGTH, gradientless, random_tokens, small_part, visible
from stormlit.errors import ConfigError
from stormlit.registry import build, fill, kinds, names, part_class, schema

EVERY_PART = [(kind, name) for kind in kinds() for name in names(kind)]
EMBED = 24
IMAGE_PARTS = pytest.mark.parametrize(
    ("kind", "name"), [part for part in EVERY_PART if part[0] in ("encoder", "decoder")]
)


def bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def every(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", names(kind))


def _backward(output: Tensor) -> None:
    """A gradient that is different for every element, which no normalisation cancels."""
    (output * torch.randn(output.shape)).sum().backward()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# All parts


@pytest.mark.parametrize(("kind", "name"), EVERY_PART)
def test_the_default_options_are_valid_and_complete(kind: str, name: str) -> None:
    defaults = schema(kind, name)
    assert fill(kind, name) == {"name": name, **defaults}
    assert fill(kind, fill(kind, name)) == fill(kind, name)


@pytest.mark.parametrize(("kind", "name"), EVERY_PART)
def test_every_part_says_what_it_is(kind: str, name: str) -> None:
    assert (vars(part_class(kind, name)).get("__doc__") or "").strip()


# Encoders and decoders


def _image_part(kind: str, name: str, size: int) -> tuple[nn.Module, Tensor]:
    """An encoder or decoder for images of ``size`` pixels, and four rows of what it takes."""
    shape = (3, size, size)
    surroundings = (shape,) if kind == "encoder" else (LATENT, shape)
    given = torch.rand(4, *shape) if kind == "encoder" else torch.randn(4, LATENT)
    return build(kind, small_part(kind, name), *surroundings), given


@IMAGE_PARTS
@pytest.mark.parametrize("size", [16, 32, 64])
def test_image_parts_have_the_promised_shape_and_train_every_parameter(kind: str, name: str, size: int) -> None:
    module, given = _image_part(kind, name, size)
    output = module(given)
    assert output.shape == ((4, module.embed_dim) if kind == "encoder" else (4, 3, size, size))
    assert output.std(dim=0).any(), "every row gives the same"
    _backward(output)
    assert gradientless(module) == []


@IMAGE_PARTS
def test_image_parts_do_not_care_about_memory_format(kind: str, name: str) -> None:
    module, given = _image_part(kind, name, 32)
    expected = module.eval()(given)
    if kind == "encoder":
        given = given.to(memory_format=torch.channels_last)
    torch.testing.assert_close(module.to(memory_format=torch.channels_last)(given), expected)


@IMAGE_PARTS
def test_image_parts_in_mixed_precision(kind: str, name: str) -> None:
    module, given = _image_part(kind, name, 16)
    expected = module.eval()(given).detach()
    with bf16():
        mixed = module(given)
        trained = module.train()(given)
    torch.testing.assert_close(mixed.float(), expected, atol=0.05, rtol=0.1)
    _backward(trained.float())
    assert trained.isfinite().all() and all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@IMAGE_PARTS
@pytest.mark.parametrize("shape", [(3, 17, 17), (3, 16, 32)])
def test_a_size_that_does_not_fit_is_one_sentence(kind: str, name: str, shape: tuple[int, int, int]) -> None:
    surroundings = (shape,) if kind == "encoder" else (LATENT, shape)
    with pytest.raises(ConfigError, match=str(shape[1])) as raised:
        build(kind, small_part(kind, name), *surroundings)
    assert "\n" not in str(raised.value) and ". " not in str(raised.value)


# Latents


@every("latent")
def test_latent_distributions_and_samples(name: str) -> None:
    latent = build("latent", small_part("latent", name), EMBED, HIDDEN)
    given = {"posterior": torch.randn(2, 3, EMBED), "prior": torch.randn(2, 3, HIDDEN)}
    for mixed in (False, True):
        for side, features in given.items():
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                distribution = getattr(latent, side)(features)
                drawn = latent.sample(distribution)
            assert distribution.dtype == drawn.dtype == torch.float32
            groups, classes = distribution.shape[2:]
            assert distribution.shape == (2, 3, groups, classes) and groups * classes == latent.latent_dim
            torch.testing.assert_close(distribution.exp().sum(-1), torch.ones(2, 3, groups))
            assert drawn.shape == (2, 3, latent.latent_dim)
            one_hot = drawn.unflatten(-1, (groups, classes)).detach()
            torch.testing.assert_close(one_hot.max(-1).values, torch.ones(2, 3, groups))
            torch.testing.assert_close(one_hot.sum(-1), torch.ones(2, 3, groups))


@every("latent")
def test_gradients_flow_through_the_sample_of_a_latent(name: str) -> None:
    latent = build("latent", small_part("latent", name), EMBED, HIDDEN)
    embed, hidden = torch.randn(5, EMBED, requires_grad=True), torch.randn(5, HIDDEN, requires_grad=True)
    _backward(latent.sample(latent.posterior(embed)))
    _backward(latent.sample(latent.prior(hidden)))
    assert embed.grad is not None and hidden.grad is not None
    assert embed.grad.any(-1).all() and hidden.grad.any(-1).all()
    assert gradientless(latent) == []


# Sequence models


def _sequence_model(name: str, **options: Any) -> Any:
    return build("sequence_model", small_part("sequence_model", name, **options), LATENT, ACTIONS, HIDDEN).eval()


@every("sequence_model")
def test_hidden_depends_on_the_tokens_of_its_episode_up_to_now_and_on_no_other(name: str) -> None:
    """By the gradient with respect to latents, which is zero exactly where nothing can be seen."""
    model, (latent, action, is_first) = _sequence_model(name), random_tokens()
    latent.requires_grad_()
    for prefill in (False, True):
        hidden = model.prefill(latent, action, is_first, LENGTH)[0] if prefill else model(latent, action, is_first)
        assert hidden.shape == (2, LENGTH, HIDDEN)
        for query in range(LENGTH):
            probe = (hidden[:, query] * torch.randn(2, HIDDEN)).sum()
            (gradient,) = torch.autograd.grad(probe, latent, retain_graph=True)
            seen = gradient.any(-1)
            for row in range(2):
                assert seen[row].tolist() == [visible(is_first[row], query, key) for key in range(LENGTH)]


@every("sequence_model")
def test_changing_a_token_changes_the_hidden_states_that_see_it_and_no_other(name: str) -> None:
    model, (latent, action, is_first) = _sequence_model(name), random_tokens()
    hidden = model(latent, action, is_first)
    for key in range(LENGTH):
        another_latent = torch.randn(2, LATENT), action[:, key]
        another_action = latent[:, key], (action[:, key] + 1) % ACTIONS
        for token in (another_latent, another_action):
            other_latent, other_action = latent.clone(), action.clone()
            other_latent[:, key], other_action[:, key] = token
            moved = (model(other_latent, other_action, is_first) - hidden).abs().amax(-1) > 1e-6
            for row in range(2):
                assert moved[row].tolist() == [visible(is_first[row], query, key) for query in range(LENGTH)]


@every("sequence_model")
@pytest.mark.parametrize("prefilled", range(1, LENGTH))
def test_stepping_with_the_cache_equals_the_full_pass(name: str, prefilled: int) -> None:
    """After a prefill of any length; episodes that start while stepping cut the memory of their row."""
    model, (latent, action, is_first) = _sequence_model(name), random_tokens()
    expected = model(latent, action, is_first).detach()
    with torch.no_grad():
        hidden, memory = model.prefill(
            latent[:, :prefilled], action[:, :prefilled], is_first[:, :prefilled], capacity=LENGTH
        )
        torch.testing.assert_close(hidden, expected[:, :prefilled], atol=1e-5, rtol=0)
        for t in range(prefilled, LENGTH):
            memory.cut(is_first[:, t])
            stepped = model.step(latent[:, t], action[:, t], memory)
            torch.testing.assert_close(stepped, expected[:, t], atol=1e-5, rtol=0)


@every("sequence_model")
def test_cutting_the_memory_leaves_earlier_hidden_states_alone(name: str) -> None:
    model, (latent, action, is_first) = _sequence_model(name), random_tokens()
    with torch.no_grad():
        hidden, memory = model.prefill(latent[:, :3], action[:, :3], is_first[:, :3], capacity=LENGTH)
        stepped = model.step(latent[:, 3], action[:, 3], memory)
        before = hidden.clone(), stepped.clone()
        memory.cut(torch.tensor([True, True]))
        model.step(latent[:, 4], action[:, 4], memory)
    torch.testing.assert_close((hidden, stepped), before, atol=0, rtol=0)


@every("sequence_model")
def test_sequence_model_trains_every_parameter(name: str) -> None:
    model, tokens = _sequence_model(name), random_tokens()
    _backward(model.train()(*tokens))
    assert gradientless(model) == []


@every("sequence_model")
def test_sequence_model_in_mixed_precision(name: str) -> None:
    model, (latent, action, is_first) = _sequence_model(name), random_tokens()
    expected = model(latent, action, is_first).detach()
    with bf16():
        full = model(latent, action, is_first)
        with torch.no_grad():
            hidden, memory = model.prefill(latent[:, :4], action[:, :4], is_first[:, :4], capacity=LENGTH)
            memory.cut(is_first[:, 4])
            stepped = model.step(latent[:, 4], action[:, 4], memory)
        _backward(model.train()(latent, action, is_first).float())
    torch.testing.assert_close(full.float(), expected, atol=0.1, rtol=0.1)
    torch.testing.assert_close(hidden.float(), expected[:, :4], atol=0.1, rtol=0.1)
    torch.testing.assert_close(stepped.float(), expected[:, 4], atol=0.1, rtol=0.1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every("sequence_model")
def test_dropout_is_active_in_training_only(name: str) -> None:
    has_dropout = "dropout" in schema("sequence_model", name)
    model, tokens = _sequence_model(name, **({"dropout": 0.5} if has_dropout else {})), random_tokens()
    assert torch.equal(model(*tokens), model(*tokens))
    model.train()
    assert torch.equal(model(*tokens), model(*tokens)) != has_dropout


# Heads and agent states


@every("head")
def test_head_shapes_gradients_and_mixed_precision(name: str) -> None:
    head = build("head", name, HIDDEN, 5, 32)
    for leading in ((), (2,), (2, 3)):
        assert head(torch.randn(*leading, HIDDEN)).shape == (*leading, 5)
    x = torch.randn(2, 3, HIDDEN, requires_grad=True)
    with bf16():
        mixed = head(x)
    torch.testing.assert_close(mixed.float(), head(x), atol=0.05, rtol=0.1)
    _backward(mixed.float())
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.any(-1).all()
    assert gradientless(head) == []


@pytest.mark.parametrize("name", [name for name in names("head") if "zero_output" in schema("head", name)])
def test_zero_output_starts_at_zero_and_still_learns(name: str) -> None:
    head = build("head", {"name": name, "zero_output": True}, HIDDEN, 5, 32)
    output = head(torch.randn(4, HIDDEN))
    assert not output.any()
    _backward(output)
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    assert head(torch.randn(4, HIDDEN)).any()


@every("agent_state")
def test_agent_state_keeps_leading_axes_and_its_promised_width(name: str) -> None:
    state = build("agent_state", name, LATENT, HIDDEN)
    assert inspect.signature(type(state)).parameters.keys() >= {"latent_dim", "hidden_dim"}
    for leading in ((2,), (2, 3)):
        latent = torch.randn(*leading, LATENT, requires_grad=True)
        hidden = torch.randn(*leading, HIDDEN, requires_grad=True)
        seen = state(latent, hidden)
        assert seen.shape == (*leading, state.state_dim)
        _backward(seen)
        assert latent.grad is not None or hidden.grad is not None
        with bf16():
            assert state(latent, hidden.bfloat16()).isfinite().all()


def test_the_three_agent_states_see_what_they_are_named_after() -> None:
    latent, hidden = torch.randn(2, LATENT), torch.randn(2, HIDDEN)
    expected = {"latent": latent, "hidden": hidden, "both": torch.cat([latent, hidden], dim=-1)}
    for name, seen in expected.items():
        assert torch.equal(build("agent_state", name, LATENT, HIDDEN)(latent, hidden), seen)


# Options out of range

SURROUNDINGS: dict[str, tuple[Any, ...]] = {
    "encoder": (IMAGE,),
    "decoder": (LATENT, IMAGE),
    "latent": (EMBED, HIDDEN),
    "sequence_model": (LATENT, ACTIONS, HIDDEN),
    "head": (HIDDEN, 5, HIDDEN),
    "agent_state": (LATENT, HIDDEN),
    "tracker": (Path("run"), Path("runs")),
}
NUMERIC_OPTIONS = [
    (kind, name, option)
    for kind, name in EVERY_PART
    for option, default in schema(kind, name).items()
    if isinstance(default, (int, float)) and not isinstance(default, bool)
]


@pytest.mark.parametrize(("kind", "name", "option"), NUMERIC_OPTIONS)
def test_a_number_that_makes_no_sense_is_one_sentence(kind: str, name: str, option: str) -> None:
    with pytest.raises(ConfigError, match=rf"{option}=-1(\.0)? is out of range") as error:
        build(kind, {"name": name, option: -1}, *SURROUNDINGS[kind])
    assert "\n" not in str(error.value)
