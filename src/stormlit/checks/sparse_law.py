"""The law of sparse latents, for every part that says ``accepts_sparse``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stormlit.data import OneHots
from stormlit.nn.building import ask
from stormlit.nn.sparse import accepts_sparse, draw

LENGTH, GROUPS = 7, 4


def sparse_form(case: Any) -> None:
    """if it says accepts_sparse, it answers to one-hots as to the same latents in dense form"""
    part = case.part()
    if not accepts_sparse(part):
        return
    latent_dim = case.given[0] // 2 if case.kind == "head" else case.given[0]  # a head's state may be half latent
    classes = latent_dim // GROUPS
    one_hots = OneHots(torch.randint(classes, (2, LENGTH, GROUPS)) + torch.arange(GROUPS) * classes)
    forms: dict[bool, Any] = {True: one_hots, False: dense(one_hots, latent_dim)}
    rest = torch.randn(2, LENGTH, case.given[0] - latent_dim if case.kind == "head" else case.given[1])
    states = {True: OneHots(one_hots.positions, rest), False: torch.cat([dense(one_hots, latent_dim), rest], dim=-1)}
    _, action, is_first = case.passes(part)[0][2] if case.kind == "sequence_model" else (None, rest[0], rest[0])
    end = action.shape[1]

    def drawn(side: Any, width: int, sparse: bool) -> Any:
        torch.manual_seed(1)
        return draw(part, side, torch.ones(2, 3, width), sparse=sparse)

    ways: dict[str, list[tuple[str, Callable[[bool], Any]]]] = {
        "latent": [
            (": draw_posterior", lambda sparse: drawn("posterior", case.given[0], sparse)),
            (": draw_prior", lambda sparse: drawn("prior", case.given[1], sparse)),
        ],
        "agent_state": [("", lambda sparse: part(forms[sparse], rest))],
        "head": [("", lambda sparse: part(states[sparse]))],
        "sequence_model": [
            ("", lambda sparse: part(forms[sparse][:, :end], action, is_first)),
            (": step", lambda sparse: part.step(forms[sparse][:, 0], action[:, 0], part.empty(2, 1))),
        ],
    }
    for way, function in ways[case.kind]:
        with torch.no_grad():
            plain, sparse = (ask(f"{case.who}{way}, which says accepts_sparse,", function, x) for x in (False, True))
        if case.kind == "latent" and not isinstance(sparse, OneHots):
            raise case.fail(f" says accepts_sparse, but has no{way[1:]} that gives OneHots")
        sparse = dense(sparse, getattr(part, "latent_dim", latent_dim))
        if plain.shape != sparse.shape or not torch.allclose(plain, sparse, atol=1e-4, rtol=1e-4):
            raise case.fail(f"{way} says accepts_sparse and answers differently to one-hots and to the dense form")


def dense(x: Tensor | OneHots, latent_dim: int) -> Tensor:
    """A latent, or a state made of one, as (..., Z) or (..., Z + D) float32."""
    if not isinstance(x, OneHots):
        return x
    ones = F.one_hot(x.positions, latent_dim).sum(dim=-2).float()
    return ones if x.rest is None else torch.cat([ones, x.rest], dim=-1)
