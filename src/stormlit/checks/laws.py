"""The laws of each kind of part, for every part, ours or a stranger's: ``stormlit.check_part``.

A law is a function whose docstring says what holds; where it does not, it raises ``PartError`` with one sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stormlit.checks.action_laws import POLICY_LAWS, SPACES, action_vectors
from stormlit.checks.latent_laws import LATENT_LAWS, divergence_of
from stormlit.checks.objective_laws import OBJECTIVE_LAWS
from stormlit.checks.sampler_laws import SAMPLER_LAWS
from stormlit.checks.trials import ask, try_part
from stormlit.errors import PartError, StormlitError

LATENT, ACTIONS, HIDDEN, OUT, EMBED, VECTOR = 16, 3, 32, 5, 24, 6
LENGTH = 7
Pass = tuple[str, Callable[..., Any], tuple[Any, ...]]


def surroundings(kind: str, obs_shape: tuple[int, int, int] = (3, 64, 64)) -> tuple[Any, ...]:
    """What the constructor of a part is given here."""
    return {
        "encoder": (obs_shape,),
        "decoder": (LATENT, obs_shape),
        "vector_encoder": (VECTOR,),
        "vector_decoder": (LATENT, VECTOR),
        "latent": (EMBED, HIDDEN),
        "sequence_model": (LATENT, ACTIONS, HIDDEN),
        "head": (HIDDEN, OUT, HIDDEN),
        "agent_state": (LATENT, HIDDEN),
        "objective": (LATENT, EMBED, HIDDEN, ACTIONS),
        "policy": (SPACES[0],),
        "sampler": (),
    }[kind]


class Case:
    """A part under test.  who: the part in sentences.  make: builds it.  given: what its constructor is given."""

    def __init__(self, who: str, kind: str, make: Callable[[], nn.Module], given: tuple[Any, ...]) -> None:
        self.who, self.kind, self.given, self._make = who, kind, given, make

    def part(self) -> Any:
        """The part in evaluation mode, moved off its first weights: a layer that begins at zero hides what it does."""
        part = ask(f"{self.who}: building it", self._make)
        with torch.no_grad():
            for parameter in part.eval().parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return part

    def passes(self, part: Any) -> list[Pass]:
        """Every way through the part, as a name, a function and what it is given."""
        features = {"posterior": torch.randn(4, 3, EMBED), "prior": torch.randn(4, 3, HIDDEN)}
        if self.kind == "latent":
            ways = [(f": {side}", getattr(part, side), (given,)) for side, given in features.items()]
            ways.append((": sample", lambda embed: part.sample(part.posterior(embed)), (features["posterior"],)))
            return [*ways, (": divergence", divergence_of(part), tuple(features.values()))]
        given: dict[str, Callable[[], tuple[Any, ...]]] = {
            "encoder": lambda: (torch.rand(4, *self.given[0]),),
            "decoder": lambda: (torch.randn(4, LATENT),),
            "vector_encoder": lambda: (torch.randn(4, VECTOR),),
            "vector_decoder": lambda: (torch.randn(4, LATENT),),
            "sequence_model": lambda: tokens(part),
            "head": lambda: (torch.randn(4, 3, HIDDEN),),
            "agent_state": lambda: (torch.randn(4, 3, LATENT), torch.randn(4, 3, HIDDEN)),
        }
        return [("", part, given[self.kind]())]

    def fail(self, what: str) -> PartError:
        return PartError(self.who + what)


def tokens(part: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, actions and is_first: episodes start at step 3 in the first row, at 2 and 5 in the second."""
    length = min(part.max_length or LENGTH, LENGTH)
    is_first = torch.zeros(2, LENGTH, dtype=torch.bool)
    is_first[0, 3] = is_first[1, 2] = is_first[1, 5] = True
    return torch.randn(2, length, LATENT), torch.randint(ACTIONS, (2, length)), is_first[:, :length]


def visible(is_first: Tensor, query: int, key: int) -> bool:
    """Whether step ``query`` may see step ``key``: not later, and no episode start in between.  is_first: (T,) bool."""
    return key <= query and not is_first[key + 1 : query + 1].any()


def promised_shapes(case: Case) -> None:
    """it has the methods, attributes and shapes of its kind"""
    try_part(case.who, case.kind, case.part(), *case.given)


def rows_apart(case: Case) -> None:
    """in evaluation mode a row's answer depends on that row alone, not on chance, and changes nothing it is given"""
    part = case.part()
    for way, function, given in case.passes(part):
        before = [x.clone() for x in given]
        with torch.no_grad():
            whole = ask(f"{case.who}{way}", function, *given)
            if not all(torch.equal(x, y) for x, y in zip(given, before, strict=True)):
                raise case.fail(f"{way} changes what it is given in place")
            again, alone = function(*given), function(*(x[:1] for x in given))
        if way == ": sample":
            continue
        if not torch.equal(whole, again):
            raise case.fail(f"{way} gives another answer to the same input in evaluation mode")
        if not torch.allclose(whole[:1], alone, atol=1e-4, rtol=1e-4):
            raise case.fail(f"{way} lets one row of a batch depend on the others in evaluation mode")
        if not whole.float().std(dim=0).any():
            raise case.fail(f"{way} gives the same answer whatever it is given")


def trains(case: Case) -> None:
    """gradients reach every parameter, and what it is given"""
    part = case.part().train()
    reached = False
    for way, function, given in case.passes(part):
        given = tuple(x.clone().requires_grad_(x.is_floating_point()) for x in given)
        output = ask(f"{case.who}{way}", function, *given)
        if output.requires_grad:
            (output.float() * torch.randn(output.shape)).sum().backward()
        arrived = any(x.grad is not None and x.grad.any() for x in given)
        if not arrived and case.kind == "latent":
            raise case.fail(f"{way} passes no gradient to what it is given")
        reached |= arrived
    if not reached:
        raise case.fail(" passes no gradient to what it is given")
    if hasattr(part, "auxiliary"):  # as the codes of a codebook, which no sample moves
        for term in part.auxiliary(part.posterior(torch.randn(4, 3, EMBED))).terms.values():
            term.backward(retain_graph=True)
    for name, parameter in part.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any()):
            raise case.fail(f": no gradient reaches its parameter '{name}'")


def mixed_precision(case: Case) -> None:
    """under bfloat16 autocast it gives about the same, and finite gradients"""
    part = case.part()
    for way, function, given in case.passes(part):
        # Hidden states come in the dtype that the sequence model computes in.
        rounded = [x.bfloat16() if x.shape[-1] == HIDDEN and x.is_floating_point() else x for x in given]
        with torch.no_grad():
            plain = function(*given).float()
        with torch.autocast("cpu", torch.bfloat16):
            mixed = ask(f"{case.who}{way} under bfloat16 autocast", function, *rounded)
        error = (mixed.detach().float() - plain).abs()
        # Rounding may choose another code here and there, where a posterior is sure of one.
        chosen = way in (": posterior", ": divergence") and not part.entropy(part.posterior(given[0])).any()
        allowed = 0.25 if chosen else 0.0
        if way != ": sample" and not (error <= 0.1 + 0.1 * plain.abs()).float().mean() >= 1.0 - allowed:
            off = float(error.max())
            raise case.fail(f"{way} is off by {off:.2g} under bfloat16 autocast")
        if case.kind == "latent" and mixed.dtype != torch.float32:
            raise case.fail(f"{way} gives {mixed.dtype} under bfloat16 autocast where float32 is expected")
        if mixed.requires_grad:
            mixed.float().square().sum().backward()
    if not all(p.grad is None or p.grad.isfinite().all() for p in part.parameters()):
        raise case.fail(" gets gradients that are not finite under bfloat16 autocast")


def any_memory_order(case: Case) -> None:
    """the memory order of images does not matter"""
    part = case.part()
    given = case.passes(part)[0][2][0]
    with torch.no_grad():
        plain = part(given)
        part.to(memory_format=torch.channels_last)
        other = given.to(memory_format=torch.channels_last) if given.ndim == 4 else given
        seen = ask(f"{case.who} in channels-last form", part, other)
        if not torch.allclose(seen, plain, atol=1e-4, rtol=1e-4):
            raise case.fail(" gives something else in channels-last form")


def causal(case: Case) -> None:
    """hidden[:, t] depends on tokens 0 to t of its own episode alone, and on token t"""
    part = case.part()
    latent, action, is_first = tokens(part)
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "": lambda latent, action: part(latent, action, is_first),
        ": prefill": lambda latent, action: part.prefill(latent, action, is_first, action.shape[1])[0],
    }
    with torch.no_grad():
        for way, function in ways.items():
            hidden = function(latent, action)
            for key in reversed(range(action.shape[1])):
                other_latent, other_action = latent.clone(), action.clone()
                other_latent[:, key] = torch.randn(2, LATENT)
                other_action[:, key] = (action[:, key] + 1) % ACTIONS
                for what, given in (("latent", (other_latent, action)), ("action", (latent, other_action))):
                    moved = (function(*given) - hidden).abs().amax(-1) > 1e-5
                    for row, query in moved.nonzero().tolist():
                        if not visible(is_first[row], query, key):
                            why = "comes later" if key > query else "belongs to an earlier episode (is_first)"
                            raise case.fail(
                                f"{way}: hidden[:, {query}] depends on the {what} of step {key}, which {why}"
                            )
                    if not moved[:, key].all():
                        raise case.fail(f"{way}: hidden[:, {key}] does not depend on the {what} of step {key}")


def remembers(case: Case) -> None:
    """a prefill, or an empty memory, followed by steps gives the hidden states of the full pass"""
    part = case.part()
    for mixed, tolerance in ((False, 1e-4), (True, 0.1)):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            for known in range(min(part.max_length or LENGTH, LENGTH)):
                _remembers(case, part, known, tolerance)


def _remembers(case: Case, part: Any, known: int, tolerance: float) -> None:
    """The law for a prefill over ``known`` steps, or for an empty memory."""
    latent, action, is_first = tokens(part)
    full, length = part(latent, action, is_first), action.shape[1]
    memory = ask(f"{case.who}: empty", part.empty, 2, length)
    hidden = full[:, :0]
    if known:
        start = (latent[:, :known], action[:, :known], is_first[:, :known])
        hidden, memory = ask(f"{case.who}: prefill", part.prefill, *start, length)
    kept = hidden.clone()
    for t in range(known - 1, length):
        where, seen, expected = f": prefill over {known} steps", hidden, full[:, :known]
        if t >= known:
            expected = full[:, t : t + 1]
            where = f": step {t} after {f'a prefill over {known} steps' if known else 'an empty memory'}"
            ask(f"{case.who}: the memory's cut", memory.cut, is_first[:, t])
            seen = ask(f"{case.who}: step", part.step, latent[:, t], action[:, t], memory).unsqueeze(1)
        if not torch.allclose(seen.float(), expected.float(), atol=tolerance):
            off = float((seen.float() - expected.float()).abs().max())
            raise case.fail(
                f"{where} is off by {off:.2g} from the full pass (rows with is_first are cut from the memory first)"
            )
    if not torch.equal(hidden, kept):
        raise case.fail(": stepping, or cutting the memory, changes the hidden states given before")


def full(case: Case) -> None:
    """unless it says carries, a step beyond its memory's capacity raises, or is that of the full pass; one beyond its
    max_length raises
    """
    part = case.part()
    if getattr(part, "carries", False):
        return
    latent, action, _ = tokens(part)
    length = action.shape[1]

    def last_of(steps: int, capacity: int) -> Tensor | None:
        """The last of so many steps, None if it raises."""
        memory, hidden = part.empty(2, capacity), None
        for t in range(steps):
            try:
                hidden = part.step(latent[:, t % length], action[:, t % length], memory)
            except Exception:
                if t < steps - 1:
                    raise
                return None
        return hidden

    with torch.no_grad():
        if part.max_length is not None and last_of(part.max_length + 1, part.max_length + 1) is not None:
            raise case.fail(f": step {part.max_length} goes on without a word, beyond max_length={part.max_length}")
        if part.max_length is None or part.max_length > 1:
            start = torch.zeros(2, 2, dtype=torch.bool)
            exact, seen = part(latent[:, :2], action[:, :2], start)[:, 1], last_of(2, capacity=1)
            if seen is not None and not torch.allclose(seen.float(), exact.float(), atol=1e-4):
                raise case.fail(": a step beyond the memory's capacity forgets without a word")


def carried(case: Case) -> None:
    """if it says carries, it steps on beyond its memory's capacity, and the memory's tensors() are all that it holds"""
    part = case.part()
    if not getattr(part, "carries", False):
        return
    latent, action, is_first = tokens(part)
    memory = part.empty(2, 2)
    like = [(x.shape, x.dtype) for x in ask(f"{case.who}: the memory's tensors", memory.tensors)]
    with torch.no_grad():
        for t in range(action.shape[1]):
            copied = part.empty(2, 2)
            for mine, other in zip(copied.tensors(), memory.tensors(), strict=True):
                mine.copy_(other)
            seen = []
            for each in (memory, copied):
                each.cut(is_first[:, t])
                seen.append(
                    ask(f"{case.who}: step {t} with room for 2 tokens", part.step, latent[:, t], action[:, t], each)
                )
            if not torch.equal(*seen):
                raise case.fail(f": step {t} differs on a memory into which another's tensors() were copied")
            if [(x.shape, x.dtype) for x in memory.tensors()] != like:
                raise case.fail(f": step {t} changes the shapes or dtypes of its memory's tensors()")


_SHARED = (promised_shapes, rows_apart, trains, mixed_precision)
LAWS: dict[str, tuple[Callable[[Case], None], ...]] = {
    **dict.fromkeys(("encoder", "decoder"), (*_SHARED, any_memory_order)),
    **dict.fromkeys(("vector_encoder", "vector_decoder"), _SHARED),
    "latent": (*_SHARED, *LATENT_LAWS),
    "sequence_model": (*_SHARED, causal, remembers, full, carried, action_vectors),
    **dict.fromkeys(("head", "agent_state"), _SHARED),
    "objective": (promised_shapes, *OBJECTIVE_LAWS),
    "policy": (promised_shapes, *POLICY_LAWS),
    "sampler": (promised_shapes, *SAMPLER_LAWS),
}


def broken_laws(who: str, kind: str, make: Callable[[], nn.Module], given: tuple[Any, ...]) -> list[str]:
    """One sentence for every law of its kind that a part does not keep; only the first if its shapes are wrong."""
    sentences: list[str] = []
    case = Case(who, kind, make, given)
    for law in LAWS[kind]:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                law(case)
        except StormlitError as error:
            sentences.append(str(error))
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            sentences.append(f"{who}: could not try that {law.__doc__}: {type(error).__name__}: {reason}")
        if sentences and law is promised_shapes:
            break
    return sentences
