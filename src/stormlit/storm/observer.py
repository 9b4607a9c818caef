"""The parts that read and draw what is seen: of an image, of vectors, or of both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stormlit.data import PartNode
from stormlit.nn.building import build_part
from stormlit.nn.encoders.norm import training_memory_format
from stormlit.nn.frozen import Forward
from stormlit.ops.reconstruction import reconstruction_error
from stormlit.spaces import ObservationSpace, Seen


def build_encoders(space: ObservationSpace, image: PartNode, vector: PartNode) -> tuple[Any, Any, int]:
    """The encoders of the image and of the vectors, None for what is not there, and E, how wide both are together."""
    encoder = vector_encoder = None
    if space.image:
        encoder = build_part("encoder", image, space.image_first, key="world_model.encoder")
    if space.vectors:
        vector_encoder = build_part("vector_encoder", vector, space.width, key="world_model.vector_encoder")
    return encoder, vector_encoder, sum(part.embed_dim for part in (encoder, vector_encoder) if part is not None)


def build_decoders(space: ObservationSpace, width: int, image: PartNode, vector: PartNode) -> tuple[Any, Any]:
    """The decoders of the image and of the vectors, None for what is not there.  width: of what they read."""
    decoder = vector_decoder = None
    if space.image:
        decoder = build_part("decoder", image, width, space.image_first, key="world_model.decoder")
    if space.vectors:
        vector_decoder = build_part("vector_decoder", vector, width, space.width, key="world_model.vector_decoder")
    return decoder, vector_decoder


def features(seen: Seen, encoder: Forward | None, vector_encoder: Forward | None) -> Tensor:
    """What the encoders make of M observations, side by side, (M, E)."""
    found = []
    if encoder is not None and seen.image is not None:
        found.append(encoder(seen.image))
    if vector_encoder is not None and seen.vector is not None:
        found.append(vector_encoder(seen.vector))
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)


def embed(seen: Seen, encoder: Forward | None, vector_encoder: Forward | None) -> Tensor:
    """``features`` (..., E) of observations with any leading axes, with gradients."""
    image, vector, leading = seen.image, seen.vector, seen.leading
    if image is not None:
        image = image.flatten(0, -4)
        image = image.contiguous(memory_format=training_memory_format(image.device))
    if vector is not None:
        vector = vector.flatten(0, -2)
    return features(Seen(image, vector), encoder, vector_encoder).unflatten(0, leading)


def reconstruction_errors(decoded: Seen, seen: Seen, focus: float) -> dict[str, Tensor]:
    """The squared errors, summed over everything, by the names of their loss terms.  focus: of the image's."""
    errors = {}
    if decoded.image is not None and seen.image is not None:
        errors["reconstruction"] = reconstruction_error(decoded.image.float(), seen.image, focus)
    if decoded.vector is not None and seen.vector is not None:
        errors["vector_reconstruction"] = reconstruction_error(decoded.vector.float(), seen.vector)
    return errors
