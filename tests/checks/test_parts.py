"""Every registered part keeps the laws of its kind, whatever it is: a new part is tested by being registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from small import ACTIONS, HIDDEN, LATENT, random_tokens, small_part
from stormlit.checks.laws import LAWS, broken_laws, spaces_for, surroundings
from stormlit.errors import ConfigError
from stormlit.registry import build, kinds, names, part_class, schema

EVERY_PART = [(kind, name) for kind in kinds() for name in names(kind)]
EVERY_MODULE = [(kind, name) for kind, name in EVERY_PART if kind in LAWS]
IMAGE_PARTS = [(kind, name) for kind, name in EVERY_PART if kind in ("encoder", "decoder")]


def every(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", names(kind))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# All parts


# The laws


@pytest.mark.parametrize(("kind", "name"), EVERY_MODULE)
def test_every_part_keeps_the_laws_of_its_kind(kind: str, name: str) -> None:
    """Image parts at three sizes, policies for their actions."""
    sizes = (16, 32, 64) if kind in ("encoder", "decoder") else (16,)
    settings = [surroundings(kind, (3, size, size)) for size in sizes]
    if kind == "policy":
        settings = [(space,) for space in spaces_for(part_class(kind, name))]
    for given in settings:
        assert broken_laws(name, kind, lambda: build(kind, small_part(kind, name), *given), given) == []  # noqa: B023


@pytest.mark.parametrize("shape", [(3, 20, 20), (1, 17, 33)])
@pytest.mark.parametrize(("kind", "name"), IMAGE_PARTS)
def test_any_size_is_taken_or_refused_in_one_sentence(kind: str, name: str, shape: tuple[int, int, int]) -> None:
    """No convolutional part minds an odd side; patches must fill the image."""
    given, (_, rows, columns) = surroundings(kind, shape), shape
    if name == "patches" and (rows % 8 or columns % 8):
        with pytest.raises(ConfigError, match=str(rows)) as raised:
            build(kind, small_part(kind, name), *given)
        assert "\n" not in str(raised.value) and ". " not in str(raised.value)
    else:
        assert broken_laws(name, kind, lambda: build(kind, small_part(kind, name), *given), given) == []


@pytest.mark.parametrize(("kind", "name"), [part for part in IMAGE_PARTS if "final_width" in schema(*part)])
def test_an_image_too_small_to_be_halved_is_refused(kind: str, name: str) -> None:
    with pytest.raises(ConfigError, match=r"env.size=9x30 .* final_width=5: choose a size of at least 10 pixels"):
        build(kind, {"name": name, "final_width": 5}, *surroundings(kind, (3, 9, 30)))


@pytest.mark.parametrize("name", ["cnn", "resnet"])
def test_every_pixel_of_an_odd_image_is_seen(name: str) -> None:
    image = torch.rand(2, 3, 21, 21, requires_grad=True)
    build("encoder", small_part("encoder", name), (3, 21, 21))(image).square().sum().backward()
    assert image.grad is not None and image.grad.ne(0).all()


@pytest.mark.parametrize("mixed", [False, True])
def test_samples_of_a_categorical_latent_are_one_hot_groups(mixed: bool) -> None:
    latent = build("latent", small_part("latent", "categorical"), *surroundings("latent"))
    embed, hidden = (torch.randn(2, 3, width) for width in surroundings("latent"))
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        seen = [latent.sample(latent.posterior(embed)), latent.sample(latent.prior(hidden))]
        classes = latent.prior(hidden).shape[-1]
    for drawn in seen:
        one_hot = drawn.detach().unflatten(-1, (-1, classes))
        assert drawn.dtype == torch.float32
        assert one_hot.max(-1).values.eq(1).all() and one_hot.sum(-1).eq(1).all()


# Sequence models


def _sequence_model(name: str, **options: Any) -> Any:
    return build("sequence_model", small_part("sequence_model", name, **options), LATENT, ACTIONS, HIDDEN).eval()


@every("sequence_model")
def test_dropout_is_active_in_training_only(name: str) -> None:
    has_dropout = "dropout" in schema("sequence_model", name)
    model, tokens = _sequence_model(name, **({"dropout": 0.5} if has_dropout else {})), random_tokens()
    assert torch.equal(model(*tokens), model(*tokens))
    model.train()
    assert torch.equal(model(*tokens), model(*tokens)) != has_dropout


# Heads and agent states


@pytest.mark.parametrize("name", [name for name in names("head") if "zero_output" in schema("head", name)])
def test_zero_output_starts_at_zero_and_still_learns(name: str) -> None:
    head = build("head", {"name": name, "zero_output": True}, HIDDEN, 5, 32)
    output = head(torch.randn(4, HIDDEN))
    assert not output.any()
    (output * torch.randn(output.shape)).sum().backward()
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    assert head(torch.randn(4, HIDDEN)).any()


def test_the_three_agent_states_see_what_they_are_named_after() -> None:
    latent, hidden = torch.randn(2, LATENT), torch.randn(2, HIDDEN)
    expected = {"latent": latent, "hidden": hidden, "both": torch.cat([latent, hidden], dim=-1)}
    for name, seen in expected.items():
        assert torch.equal(build("agent_state", name, LATENT, HIDDEN)(latent, hidden), seen)


# Options out of range

NUMERIC_OPTIONS = [
    (kind, name, option)
    for kind, name in EVERY_PART
    for option, default in schema(kind, name).items()
    if isinstance(default, (int, float)) and not isinstance(default, bool)
]


@pytest.mark.parametrize(("kind", "name", "option"), NUMERIC_OPTIONS)
def test_a_number_that_makes_no_sense_is_one_sentence(kind: str, name: str, option: str) -> None:
    given = surroundings(kind) if kind in LAWS else (Path("run"), Path("runs"))
    with pytest.raises(ConfigError, match=rf"{option}=-1(\.0)? is out of range") as error:
        build(kind, {"name": name, option: -1}, *given)
    assert "\n" not in str(error.value)
