"""The laws of each kind of part, for every part, ours or a stranger's: ``stormlit.check_part``.

A law is a function whose docstring says what holds; where it does not, it raises ``PartError`` with one sentence.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stormlit.checks.trials import ask, expect_losses, some_reading, try_part
from stormlit.data import Reading
from stormlit.errors import PartError, StormlitError
from stormlit.spaces import ActionSpace

LATENT, ACTIONS, HIDDEN, OUT, EMBED, VECTOR = 16, 3, 32, 5, 24, 6
LENGTH = 7
WINDOWS = 50  # that a sampler weighs
SPACES = (
    ActionSpace.of(3),
    ActionSpace.choices("multi_discrete", (3, 2)),
    ActionSpace.choices("multi_binary", (2, 2)),
    ActionSpace.box(2),
)
DRAWS = 4096  # of a policy
REACH, STEP = 8.0, 0.05  # of the grid over which a density is integrated
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

    def require(self, kept: Any, otherwise: str) -> None:
        """Raise ``PartError`` with the part's name and what is wrong unless the law is kept."""
        if not kept:
            raise self.fail(otherwise)

    @contextlib.contextmanager
    def unchanged(self, given: Sequence[Tensor], way: str = "") -> Iterator[None]:
        """Raise ``PartError`` if the block changes a tensor of ``given`` in place."""
        before = [x.clone() for x in given]
        yield
        same = all(torch.equal(x, y) for x, y in zip(given, before, strict=True))
        self.require(same, f"{way} changes what it is given in place")

    def require_moving_parameters(self, part: Any) -> None:
        """Raise ``PartError`` unless a gradient has reached every parameter."""
        for name, parameter in part.named_parameters():
            moves = not parameter.requires_grad or (parameter.grad is not None and parameter.grad.any())
            self.require(moves, f": no gradient reaches its parameter '{name}'")

    def require_finite_gradients(self, part: Any) -> None:
        finite = all(p.grad is None or p.grad.isfinite().all() for p in part.parameters())
        self.require(finite, " gets gradients that are not finite under bfloat16 autocast")


def spaces_for(policy: type) -> list[ActionSpace]:
    """Those of ``SPACES`` that a policy says it is for; the first of all if it says nothing, to be told about."""
    return [space for space in SPACES if space.kind in getattr(policy, "fits", ())] or [SPACES[0]]


def divergence_of(part: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The divergence as a function of embeddings (..., E) and hidden states (..., D)."""
    return lambda embed, hidden: part.divergence(part.posterior(embed), part.prior(hidden))


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
        with torch.no_grad():
            with case.unchanged(given, way):
                whole = ask(f"{case.who}{way}", function, *given)
            again, alone = function(*given), function(*(x[:1] for x in given))
        if way == ": sample":
            continue
        case.require(torch.equal(whole, again), f"{way} gives another answer to the same input in evaluation mode")
        if not torch.allclose(whole[:1], alone, atol=1e-4, rtol=1e-4):
            raise case.fail(f"{way} lets one row of a batch depend on the others in evaluation mode")
        case.require(whole.float().std(dim=0).any(), f"{way} gives the same answer whatever it is given")


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
        case.require(arrived or case.kind != "latent", f"{way} passes no gradient to what it is given")
        reached |= arrived
    case.require(reached, " passes no gradient to what it is given")
    if hasattr(part, "auxiliary"):  # as the codes of a codebook, which no sample moves
        for term in part.auxiliary(part.posterior(torch.randn(4, 3, EMBED))).terms.values():
            term.backward(retain_graph=True)
    case.require_moving_parameters(part)


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
    case.require_finite_gradients(part)


def any_memory_order(case: Case) -> None:
    """the memory order of images does not matter"""
    part = case.part()
    given = case.passes(part)[0][2][0]
    with torch.no_grad():
        plain = part(given)
        part.to(memory_format=torch.channels_last)
        other = given.to(memory_format=torch.channels_last) if given.ndim == 4 else given
        seen = ask(f"{case.who} in channels-last form", part, other)
        case.require(torch.allclose(seen, plain, atol=1e-4, rtol=1e-4), " gives something else in channels-last form")


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
    case.require(torch.equal(hidden, kept), ": stepping, or cutting the memory, changes the hidden states given before")


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


def action_vectors(case: Case) -> None:
    """if it takes actions as vectors too, a one-hot is the same to it as its number"""
    part = case.part()
    latent, action, is_first = case.passes(part)[0][2]
    one_hot = F.one_hot(action, case.given[1]).float()
    with torch.no_grad():
        hidden = part(latent, action, is_first)
        try:
            seen = part(latent, one_hot, is_first)
        except Exception:  # it is for discrete actions alone, and refused for others when it is built
            return
        stepped = ask(f"{case.who}: step", part.step, latent[:, 0], one_hot[:, 0], part.empty(2, 1))
        same = (seen.shape == hidden.shape) and torch.allclose(seen, hidden, atol=1e-4)
        if not same or not torch.allclose(stepped, hidden[:, 0], atol=1e-4):
            raise case.fail(" answers differently to an action's number and to its one-hot vector")


def moves_both_sides(case: Case) -> None:
    """a sample's gradient reaches the frame's embedding, and the divergence's the hidden state that the prior reads"""
    part = case.part().train()
    embed, hidden = (torch.randn(4, 3, width).requires_grad_() for width in case.given)
    sample = part.sample(part.posterior(embed))
    if sample.requires_grad:
        (sample * torch.randn(sample.shape)).sum().backward()
    if embed.grad is None or not embed.grad.any():
        raise case.fail(": sample passes no gradient to the embedding")
    nats = part.divergence(part.posterior(embed.detach()).detach(), part.prior(hidden))
    if nats.requires_grad:
        nats.sum().backward()
    if hidden.grad is None or not hidden.grad.any():
        raise case.fail(": divergence passes no gradient to the prior")


def nats_make_sense(case: Case) -> None:
    """divergences are at least 0, and 0 between equal distributions; entropies are finite; far from 0 too"""
    part = case.part()
    for scale in (0.1, 1.0, 10.0):
        with torch.no_grad():
            posterior, prior = (
                getattr(part, side)(scale * torch.randn(64, width))
                for side, width in zip(("posterior", "prior"), case.given, strict=True)
            )
            lowest = min(float(part.divergence(*pair).min()) for pair in ((posterior, prior), (prior, posterior)))
            between_equals = max(float(part.divergence(x, x).abs().max()) for x in (posterior, prior))
            entropies = torch.stack([part.entropy(posterior), part.entropy(prior)])
        case.require(lowest >= -1e-3, f": divergence gives {lowest:.3g} nats where at least 0 is expected")
        if not between_equals <= 1e-3:
            raise case.fail(f": divergence gives {between_equals:.3g} nats between equal distributions")
        case.require(entropies.isfinite().all(), ": entropy is not finite")


def leading_axes_are_free(case: Case) -> None:
    """a distribution may be indexed along its leading axes, of which there may be any number"""
    part = case.part()
    with torch.no_grad():
        embed, hidden = (torch.randn(3, 4, width) for width in case.given)
        posterior, prior = part.posterior(embed), part.prior(hidden)
        for where in ((slice(None), slice(1, None)), (0,)):
            alone = ask(f"{case.who}: posterior", part.posterior, embed[where])
            if alone.shape != posterior[where].shape or not torch.allclose(alone, posterior[where], atol=1e-4):
                raise case.fail(": posterior mixes its leading axes")
            for name, seen, expected in (
                ("entropy", part.entropy(posterior[where]), part.entropy(posterior)[where]),
                (
                    "divergence",
                    part.divergence(posterior[where], prior[where]),
                    part.divergence(posterior, prior)[where],
                ),
            ):
                if seen.shape != expected.shape or not torch.allclose(seen, expected, atol=1e-4, rtol=1e-4):
                    raise case.fail(f": {name} mixes the leading axes")


def sample_repeats(case: Case) -> None:
    """from the same random state comes the same sample"""
    part, samples = case.part(), []
    with torch.no_grad():
        distribution = part.posterior(torch.randn(4, 3, case.given[0]))
        for _ in range(2):
            torch.manual_seed(1)
            samples.append(part.sample(distribution))
    case.require(torch.equal(*samples), ": sample gives something else from the same random state")


def auxiliary_is_named(case: Case) -> None:
    """what it adds to the loss, if anything, are finite float32 scalars with a name and a scale each"""
    part = case.part()
    if hasattr(part, "auxiliary"):
        posterior = part.posterior(torch.randn(4, 3, case.given[0]))
        expect_losses(f"{case.who}: auxiliary", ask(f"{case.who}: auxiliary", part.auxiliary, posterior))


def adds_a_term(case: Case) -> None:
    """it returns at least one term, whose gradient reaches every parameter of its own and something that it sees"""
    part, reading = case.part().train(), some_reading(*case.given)
    seen = [x.requires_grad_() for x in _tensors(reading)]
    losses = ask(case.who, part, reading)
    case.require(losses.terms, " returns no term")
    total = torch.stack(list(losses.terms.values())).sum()
    if total.requires_grad:
        total.backward()
    case.require(any(x.grad is not None and x.grad.any() for x in seen), " passes no gradient to what it sees")
    case.require_moving_parameters(part)


def leaves_the_reading_alone(case: Case) -> None:
    """it changes nothing that it sees"""
    part, reading = case.part(), some_reading(*case.given)
    with torch.no_grad(), case.unchanged([*_tensors(reading), *reading.batch.tensors()]):
        ask(case.who, part, reading)


def rounds_safely(case: Case) -> None:
    """under bfloat16 autocast its terms are float32 and about the same, with finite gradients"""
    part, reading = case.part(), some_reading(*case.given)
    with torch.no_grad():
        plain = part(reading).terms
    reading.hidden = reading.hidden.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        losses = ask(f"{case.who} under bfloat16 autocast", part, reading)
    expect_losses(f"{case.who} under bfloat16 autocast", losses)
    for name, term in losses.terms.items():
        if abs(float(term.detach()) - float(plain[name])) > 0.1 * (1.0 + abs(float(plain[name]))):
            raise case.fail(f" gives another '{name}' under bfloat16 autocast")
    torch.stack(list(losses.terms.values())).sum().backward()
    case.require_finite_gradients(part)


def _tensors(reading: Reading) -> list[Tensor]:
    return [getattr(reading, field.name) for field in fields(reading) if field.name != "batch"]


def windows() -> tuple[Tensor, Tensor]:
    """Uses and losses of windows, the first 10 of which were never drawn."""
    uses, loss = torch.randint(1, 200, (WINDOWS,)).float(), 3.0 * torch.rand(WINDOWS)
    uses[:10], loss[:10] = 0.0, float("inf")
    return uses, loss


def probabilities(case: Case, part: Any, uses: Tensor, loss: Tensor) -> Tensor:
    weights: Tensor = ask(case.who, part, uses, loss)
    return weights / weights.sum()


def fair_weights(case: Case) -> None:
    """weights are finite and at least 0, those of windows never drawn above 0, whatever uses and losses there are"""
    part, (uses, loss) = case.part(), windows()
    for what, given in (
        ("some windows", (uses, loss)),
        ("one window that was never drawn", (uses[:1], loss[:1])),
        ("windows drawn a million times", (uses + 1e6, loss)),
        ("losses of a million", (uses, loss + 1e6)),
        ("losses of 0", (uses, torch.where(loss.isinf(), loss, 0.0))),
    ):
        weights = ask(f"{case.who} for {what}", part, *given)
        if not (weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0):
            raise case.fail(f" gives weights that are not finite, negative or all 0 for {what}")
        if not (weights[given[0] == 0] > 0).all():
            raise case.fail(f" gives a weight of 0 to a window that was never drawn, for {what}")


def window_by_window(case: Case) -> None:
    """the order of the windows does not matter, it gives the same answer twice, and changes nothing it is given"""
    part, given, order = case.part(), windows(), torch.randperm(WINDOWS)
    with case.unchanged(given):
        first = probabilities(case, part, *given)
    case.require(torch.equal(first, probabilities(case, part, *given)), " gives another answer to the same windows")
    if not torch.allclose(first[order], probabilities(case, part, *(x[order] for x in given)), atol=1e-6):
        raise case.fail(" gives a window another weight in another order of the windows")


def _output(part: Any, rows: int = 3, scale: float = 0.7) -> Tensor:
    return scale * torch.randn(rows, part.out_dim)


def probabilities_sum_to_one(case: Case) -> None:
    """the probabilities of all actions sum to 1, and a density integrates to 1"""
    part, space = case.part(), case.given[0]
    if space.kind == "box":
        line = torch.arange(-REACH, REACH, STEP) + STEP / 2
        actions, cell = torch.cartesian_prod(*[line] * space.dims), STEP**space.dims
    else:
        every = torch.tensor(list(itertools.product(*(range(count) for count in space.classes))))
        actions, cell = (every.squeeze(-1) if space.is_discrete else every), 1.0
    with torch.no_grad():
        for output in _output(part):
            distribution = part(output.expand(len(actions), -1))
            total = float(part.log_prob(distribution, actions).double().exp().sum()) * cell
            if abs(total - 1.0) > 0.01:
                raise case.fail(f": the probabilities of all {space} actions sum to {total:.3g}, not to 1 (log_prob)")


def entropy_is_of_samples(case: Case) -> None:
    """the entropy is the mean of -log_prob over what is drawn, and draws differ"""
    part, space = case.part(), case.given[0]
    with torch.no_grad():
        for output in _output(part):
            distribution = part(output.expand(DRAWS, -1))
            drawn = part.sample(distribution)
            if torch.equal(drawn, drawn[:1].expand_as(drawn)):
                raise case.fail(f": sample draws the same {space} action every time")
            surprise = -part.log_prob(distribution, drawn)
            told, error = float(part.entropy(distribution[0])), float(surprise.std()) / DRAWS**0.5
            if abs(told - float(surprise.mean())) > 5 * error + 1e-3:
                raise case.fail(
                    f": entropy gives {told:.3g} nats for {space} actions, and the mean of -log_prob over "
                    f"{DRAWS} drawn ones is {float(surprise.mean()):.3g}"
                )


def mode_is_likeliest(case: Case) -> None:
    """no drawn action is likelier than the mode, and a Box's mode is in [-1, 1]"""
    part, space = case.part(), case.given[0]
    with torch.no_grad():
        distribution = part(_output(part, 64, 2.0)).expand(64, 64, -1)
        mode = part.mode(distribution)
        drawn = part.log_prob(distribution, part.sample(distribution))
        if (drawn > part.log_prob(distribution, mode) + 1e-4).any():
            raise case.fail(f": a drawn {space} action is likelier than the mode")
        case.require(space.first_outside(mode.flatten(0, 1).numpy()) is None, f": the mode is outside {space}")


def policy_trains(case: Case) -> None:
    """log_prob and entropy pass gradients to the actor's output, each row to its own alone, and nothing is changed"""
    part = case.part()
    output = _output(part, 4)
    kept = output.clone()
    with torch.no_grad():
        action = part.sample(part(output))
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "log_prob": lambda given: part.log_prob(part(given), action),
        "entropy": lambda given: part.entropy(part(given)),
    }
    for name, function in ways.items():
        given = output.clone().requires_grad_()
        value = ask(f"{case.who}: {name}", function, given)
        value[0].backward()
        if given.grad is None or not given.grad[0].any():
            raise case.fail(f": {name} passes no gradient to the actor's output")
        case.require(not given.grad[1:].any(), f": {name} lets one row of a batch depend on the others")
        case.require(given.grad.isfinite().all(), f": {name} passes a gradient that is not finite")
    case.require(torch.equal(output, kept), " changes the actor's output in place")


def policy_in_mixed_precision(case: Case) -> None:
    """what it makes of a bfloat16 output is float32, and the same as of that output in float32"""
    part = case.part()
    output = _output(part).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = ask(f"{case.who} under bfloat16 autocast", part, output)
        mode = part.mode(mixed)
        values = {"log_prob": part.log_prob(mixed, mode), "entropy": part.entropy(mixed)}
    with torch.no_grad():
        plain = part(output.float())
        expected = {"log_prob": part.log_prob(plain, mode), "entropy": part.entropy(plain)}
    for name, value in values.items():
        if value.dtype != torch.float32:
            raise case.fail(f": {name} is {value.dtype} under bfloat16 autocast where float32 is expected")
        case.require(torch.allclose(value, expected[name], atol=1e-3), f": {name} is rounded under bfloat16 autocast")


_SHARED = (promised_shapes, rows_apart, trains, mixed_precision)
LAWS: dict[str, tuple[Callable[[Case], None], ...]] = {
    **dict.fromkeys(("encoder", "decoder"), (*_SHARED, any_memory_order)),
    **dict.fromkeys(("vector_encoder", "vector_decoder"), _SHARED),
    "latent": (*_SHARED, moves_both_sides, nats_make_sense, leading_axes_are_free, sample_repeats, auxiliary_is_named),
    "sequence_model": (*_SHARED, causal, remembers, full, carried, action_vectors),
    **dict.fromkeys(("head", "agent_state"), _SHARED),
    "objective": (promised_shapes, adds_a_term, leaves_the_reading_alone, rounds_safely),
    "policy": (
        promised_shapes,
        probabilities_sum_to_one,
        entropy_is_of_samples,
        mode_is_likeliest,
        policy_trains,
        policy_in_mixed_precision,
    ),
    "sampler": (promised_shapes, fair_weights, window_by_window),
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
