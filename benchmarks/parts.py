"""docs/parts.md, made from the parts themselves: what each computes, its parameters and its share of a training step.

    OMP_NUM_THREADS=1 python benchmarks/parts.py

Sizes are the paper's (the configuration ``storm``, an Atari game with all 18 actions), with the one part in another's
place; arithmetic is what PyTorch counts of matrix products, convolutions and attention.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stormlit import registry
from stormlit.config.components import PART_KEYS, PART_LISTS
from stormlit.config.compose import compose
from stormlit.config.schema import Config
from stormlit.runs.assembly import build_modules
from stormlit.runs.estimate import rehearsal
from stormlit.spaces import ObservationSpace
from stormlit.storm.agent import ActorCritic
from stormlit.storm.world_model import WorldModel

PAGE = Path(__file__).resolve().parents[1] / "docs" / "parts.md"
WHEN = "When to use:"
FRAMES, ACTIONS = (64, 64, 3), 18
NUMBERS = ObservationSpace(None, (("numbers", 17),))  # for parts of vectors
INTRODUCTION = """\
# The parts

Each part is a word: `stormlit train storm world_model.sequence_model=gru`. [extending.md](extending.md) says how to
write one; `stormlit components KIND NAME` lists a part's options. This page is made by `python benchmarks/parts.py`.

Parameters are counted at the paper's sizes (`storm`, all 18 Atari actions), with the one part in the place of the
paper's and its options as they come; those of vectors with 17 numbers in place of the image. *Share* is the part's
share of the arithmetic of a training step (an update of the world model, an imagination and an update of the agent),
*step* the whole step's arithmetic over the paper's: operations of matrix products, convolutions and attention, as
PyTorch counts them. That is not time: a recurrence of 64 small steps takes longer than its arithmetic says.
`stormlit bench storm --compare` measures time.
"""


def page() -> str:
    """The whole page, in Markdown."""
    paper = measured("", "")[2]
    sections = [INTRODUCTION]
    for kind in registry.kinds():
        keys = [key for key, each in (PART_KEYS | PART_LISTS).items() if each == kind]
        sections.append(f"## {kind.replace('_', ' ')}\n\nChosen by {', '.join(f'`{key}`' for key in keys)}.\n")
        counted = any(key.startswith(("world_model.", "agent.")) for key in keys)
        rows = [["name", "what it computes", "when to use it", *(["parameters", "share", "step"] if counted else [])]]
        rows.append(["---"] * len(rows[0]))
        for name in registry.names(kind):
            row = [f"`{name}`", *described(registry.part_class(kind, name))]
            rows.append(row + (numbers(keys[0], name, paper) if counted else []))
        sections.append("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
    return "\n".join(sections)


def described(cls: type) -> tuple[str, str]:
    """What a part computes and when to use it, from its docstring."""
    text = inspect.getdoc(cls) or ""
    return text.partition("\n")[0].replace("``", "`"), " ".join(text.partition(WHEN)[2].split()).replace("``", "`")


def numbers(key: str, name: str, paper: int) -> list[str]:
    """A part's parameters, its share of a step, and that step over the paper's, in words; "-" where it does not fit."""
    fits = name not in ("bounded_normal", "categoricals")
    parameters, own, whole = measured(key, name) if fits else (0, 0, 0)
    if not fits or (not parameters and not own):
        return ["-", "-", f"{whole / paper:.2f}" if fits else "-"]
    return [f"{parameters:,}", f"{own / whole:.1%}", f"{whole / paper:.2f}"]


def measured(key: str, name: str) -> tuple[int, int, int]:
    """The parameters of the part that ``key`` chooses, and the operations of that part and of a step."""
    config = compose(["storm"], [f"{key}=[{name}]" if key in PART_LISTS else f"{key}={name}"] if key else [])
    world_model, agent = build_modules(config, NUMBERS if "vector" in key else FRAMES, ACTIONS)
    holder, _, attribute = key.partition(".")
    part = getattr(agent if holder == "agent" else world_model, attribute) if key else None
    parameters = sum(p.numel() for p in part.parameters()) if isinstance(part, nn.Module) else 0
    roots = (world_model, agent)
    return parameters, *operations(config, *roots, f"{type(roots[holder == 'agent']).__name__}.{attribute}")


def operations(config: Config, world_model: WorldModel, agent: ActorCritic, name: str) -> tuple[int, int]:
    """The operations of the module of that name, and of everything, in a step that does one of each update."""
    own = whole = 0
    for function, rows in rehearsal(config, world_model, agent):
        with FlopCounterMode(display=False) as counter:
            for root in (world_model, agent):
                counter.mod_tracker._get_mod_name(root)  # makes its modules' names known: no root is called as a module
            function()
        whole += rows * counter.get_total_flops()
        counts = {module: sum(by_operation.values()) for module, by_operation in counter.get_flop_counts().items()}
        inside = {module for module in counts if module == name or module.startswith(f"{name}.")}
        outermost = {m for m in inside if not any(m.startswith(f"{other}.") for other in inside)}
        own += rows * sum(counts[module] for module in outermost)
    return own, whole


if __name__ == "__main__":
    PAGE.write_text(page())
