"""The parts that read and draw what is seen: of an image, of vectors, or of both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stormlit.data import PartNode
from stormlit.nn.autocast import training_memory_format
from stormlit.nn.building import build_part
from stormlit.ops.losses import reconstruction_error
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


def embed(seen: Seen, encoder: Any, vector_encoder: Any) -> Tensor:
    """What the encoders make of observations with any leading axes, side by side.  Returns (..., E)."""
    found = []
    if seen.image is not None:
        leading, image = seen.image.shape[:-3], seen.image.flatten(0, -4)
        if encoder.training:  # while BatchNorm takes statistics
            image = image.contiguous(memory_format=training_memory_format(image.device))
        found.append(encoder(image))
    if seen.vector is not None:
        leading = seen.vector.shape[:-1]
        found.append(vector_encoder(seen.vector.flatten(0, -2)))
    return (found[0] if len(found) == 1 else torch.cat(found, dim=-1)).unflatten(0, leading)


def decode(latent: Tensor, decoder: Any, vector_decoder: Any) -> Seen:
    """What the decoders make of what they read, (..., F): images (..., C, Y, X) about [0, 1], not clipped, and vectors
    (..., V) in symlog; None where there is no such decoder.
    """
    flat, leading = latent.flatten(0, -2), latent.shape[:-1]
    return Seen(*[None if part is None else part(flat).unflatten(0, leading) for part in (decoder, vector_decoder)])


def reconstruction_losses(decoded: Seen, seen: Seen, focus: float) -> dict[str, Tensor]:
    """Squared errors, summed over the frame and averaged over B and T, by the names of their loss terms (equation 4).

    decoded, seen: (B, T, ...).  focus: of the image's, see ``ops.losses.focus_weights``.
    """
    losses = {}
    if decoded.image is not None and seen.image is not None:
        steps = seen.image.shape[:2].numel()
        losses["reconstruction"] = reconstruction_error(decoded.image.float(), seen.image, focus) / steps
    if decoded.vector is not None and seen.vector is not None:
        steps = seen.vector.shape[:2].numel()
        losses["vector_reconstruction"] = reconstruction_error(decoded.vector.float(), seen.vector) / steps
    return losses
