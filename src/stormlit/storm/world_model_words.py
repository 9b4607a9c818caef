"""The words that give the world model its shape: one option each of its constructor."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from stormlit.data import PartNode
from stormlit.nn.heads import Scoring
from stormlit.registry import Option

VectorEncoder = Annotated[PartNode, Option("what turns vectors into features", part="vector_encoder")]
VectorDecoder = Annotated[PartNode, Option("what turns a latent into vectors", part="vector_decoder")]

DecoderInput = Annotated[
    Literal["latent", "hidden", "both"],
    Option("what the decoder reads: the frame's latent (the paper), the memory before the frame, or both"),
]
Tokens = Annotated[
    Literal["merged", "separate"],
    Option("whether a step is one token (the paper), or its latent and its action are one each"),
]
Objectives = Annotated[list[Any], Option("parts that add terms to the loss", part="objective")]
LossBalance = Annotated[
    Literal["fixed", "harmony"],
    Option("loss_scales alone, or also learned weights of reconstruction, reward and KL (HarmonyDream)"),
]
ReconstructionFocus = Annotated[
    float, Option("share of the reconstruction's weight that goes to pixels far from the batch's mean frame", 0, 1)
]
FreeBitsClip = Annotated[
    Literal["step", "mean"], Option("whether they are granted to each step or to the mean over the batch")
]
RewardLoss = Annotated[
    Scoring,
    Option("two symlog bins or a normal over them, two bins of the numbers themselves, or squared error in symlog"),
]
