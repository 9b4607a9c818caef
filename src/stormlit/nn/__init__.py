"""Swappable parts. Importing this package registers all of them."""

from stormlit.nn import cnn, gru, heads, latents, objectives, patches, policies, quantised, resnet, transformer

__all__ = ["cnn", "gru", "heads", "latents", "objectives", "patches", "policies", "quantised", "resnet", "transformer"]
