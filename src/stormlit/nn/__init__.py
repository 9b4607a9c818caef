"""Swappable parts. Importing this package registers all of them."""

from stormlit.nn import (
    cnn,
    gru,
    heads,
    latents,
    mamba2,
    objectives,
    patches,
    policies,
    quantised,
    resnet,
    rotary,
    samplers,
    transformer,
    vectors,
)

__all__ = [
    "cnn",
    "gru",
    "heads",
    "latents",
    "mamba2",
    "objectives",
    "patches",
    "policies",
    "quantised",
    "resnet",
    "rotary",
    "samplers",
    "transformer",
    "vectors",
]
