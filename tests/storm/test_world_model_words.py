"""The words that give the world model its shape: tokens, decoder input, reward loss, balance, objectives, norms."""

from __future__ import annotations

import math

import pytest
import torch

from small import (
    ACTIONS,
    HIDDEN,
    LATENT,
    random_batch,
    small_part,
    small_world_model,
)
from stormlit.analysis.dream import dream, dream_errors
from stormlit.checks.laws import broken_laws, surroundings
from stormlit.config.compose import compose, to_yaml
from stormlit.data import Losses
from stormlit.errors import ConfigError, PartError
from stormlit.nn.heads import READINGS
from stormlit.nn.objectives import info_nce
from stormlit.nn.sequence.tokens import build_separate
from stormlit.ops.twohot import hl_gauss_loss, symlog_bins
from stormlit.registry import build, names
from stormlit.spaces import ActionSpace
from stormlit.storm.loss_balance import Harmony
from stormlit.storm.world_model import hidden_before

STARTS = ((0, 0), (0, 3), (1, 5))


# Tokens


@pytest.mark.parametrize("name", names("sequence_model"))
def test_two_tokens_a_step_keep_the_laws_of_sequence_models(name: str) -> None:
    given = surroundings("sequence_model")
    node = small_part("sequence_model", name)

    def make() -> torch.nn.Module:
        return build_separate(node, given[0], ActionSpace.of(given[1]), given[2], key="it")

    assert broken_laws(name, "sequence_model", make, given) == []


def test_a_step_is_the_latents_token_and_then_the_actions() -> None:
    model = build_separate("gru", LATENT, ActionSpace.of(ACTIONS), HIDDEN, key="it").eval()
    latent, action = torch.randn(1, 2, LATENT), torch.tensor([[2, 0]])
    inside = model.model(
        torch.stack([latent[:, 0], torch.zeros(1, LATENT), latent[:, 1], torch.zeros(1, LATENT)], dim=1),
        torch.tensor([[ACTIONS, 2, ACTIONS, 0]]),
        torch.tensor([[True, False, False, False]]),
    )
    hidden = model(latent, action, torch.tensor([[True, False]]))
    assert torch.equal(hidden, inside[:, [1, 3]])


def test_the_longest_window_is_counted_in_steps_and_holds_in_training_and_imagination() -> None:
    world_model = small_world_model("transformer", tokens="separate")
    assert world_model.sequence_model.max_length == 64
    assert world_model.sequence_model.model.positions.weight.shape[0] == 128
    latent, action = torch.randn(1, 64, world_model.latent_dim), torch.zeros(1, 64, dtype=torch.long)
    is_first = torch.zeros(1, 64, dtype=torch.bool)
    _, memory = world_model.sequence_model.prefill(latent[:, :-1], action[:, :-1], is_first[:, :-1], 64)
    last = world_model.sequence_model.step(latent[:, -1], action[:, -1], memory)
    torch.testing.assert_close(last, world_model.sequence_model(latent, action, is_first)[:, -1], atol=1e-5, rtol=0)
    sentence = r"loop.batch_length=16 is longer than world_model.sequence_model.max_length=8"
    with pytest.raises(ConfigError, match=sentence):
        compose(["tiny"], ["world_model.tokens=separate", "world_model.sequence_model.max_length=8"])


# The decoder's input


def test_the_hidden_state_before_a_frame_is_that_of_the_step_before() -> None:
    hidden = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    is_first = torch.tensor([[False, False, True, False]])
    assert hidden_before(hidden, is_first).tolist() == [[[0.0], [1.0], [0.0], [3.0]]]


@pytest.mark.parametrize("word", ["latent", "hidden", "both"])
def test_the_decoder_reads_what_the_word_says(word: str) -> None:
    world_model = small_world_model(decoder_input=word)
    latent, before = torch.randn(2, 3, world_model.latent_dim), torch.randn(2, 3, HIDDEN)
    with torch.no_grad():
        image = world_model.decode(latent, before).image
        moved = [
            not torch.allclose(world_model.decode(other, past).image, image)
            for other, past in ((torch.randn_like(latent), before), (latent, torch.randn_like(before)))
        ]
    assert moved == [word != "hidden", word != "latent"]


@pytest.mark.parametrize("word", ["hidden", "both"])
def test_a_windows_first_frame_is_not_reconstructed_from_a_past_that_is_not_known(word: str) -> None:
    world_model, batch = small_world_model(decoder_input=word), random_batch(starts=((0, 2),))
    torch.manual_seed(1)
    term = world_model.losses(batch).terms["reconstruction"]
    torch.manual_seed(1)
    latent = world_model.latent.sample(world_model.posterior(batch.obs))
    before = hidden_before(world_model.sequence_model(latent, batch.action, batch.is_first), batch.is_first)
    squared = (world_model.decode(latent, before).image - batch.obs / 255).square().sum((2, 3, 4))
    torch.testing.assert_close(term, squared[:, 1:].mean())
    window = random_batch(rows=1)
    seen = dream(world_model, window, 3)
    seen.frames.real[0] += 100  # what the first frame would have been does not count
    errors = dream_errors(seen)
    seen.frames.real[0] += 100
    assert dream_errors(seen)["error_reconstructed"] == errors["error_reconstructed"]


# The reward


def test_the_hl_gauss_loss_by_hand() -> None:
    # Bins -1, 0, 1 and a target of 0: the bins' edges are 2/3 and 2 standard deviations of 0.75 away. A normal has
    # 0.4950 within 2/3 and 0.9545 within 2: the middle bin has 0.4950 / 0.9545 = 0.5186, the others 0.2407 each.
    bins, logits = symlog_bins(3, -1.0, 1.0), torch.tensor([0.0, 1.0, 3.0])
    log_probs = logits.log_softmax(-1)
    expected = -(0.2407 * log_probs[0] + 0.5186 * log_probs[1] + 0.2407 * log_probs[2])
    assert float(hl_gauss_loss(logits, torch.zeros(()), bins)) == pytest.approx(float(expected), abs=1e-3)


def test_the_hl_gauss_loss_is_least_where_the_distribution_is_the_target_and_finite_outside_the_bins() -> None:
    bins = symlog_bins(21, -5.0, 5.0)
    targets = torch.tensor([0.3, -1e9, 1e9, 147.0])
    logits = torch.zeros(4, 21, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        hl_gauss_loss(logits, targets, bins).sum().backward()
        optimizer.step()
    reading = READINGS["hl_gauss"](21, -5.0, 5.0)
    seen = reading.decode(logits.detach())
    assert seen.isfinite().all()
    assert float(seen[0]) == pytest.approx(0.3, abs=0.02) and float(seen[3]) == pytest.approx(147.0, rel=0.2)


def test_the_squared_error_in_symlog_by_hand() -> None:
    # symlog(e - 1) = 1; half of (3 - 1)^2 = 2. symexp(3) = e^3 - 1.
    reading = READINGS["squared"](255, -20.0, 20.0)
    assert float(reading.loss(torch.tensor([3.0]), torch.tensor(math.e - 1))) == pytest.approx(2.0)
    assert float(reading.decode(torch.tensor([3.0]))) == pytest.approx(math.exp(3) - 1, rel=1e-5)


# Harmony


def test_harmony_weighs_by_learned_scales_by_hand() -> None:
    # With s = (ln 2, 0, ln 4): 6 / 2 + 5 / 1 + (0.5 * 2 + 0.1 * 10) / 4 = 8.5; continuation stays 3.
    # ln(1 + 2) + ln(1 + 1) + ln(1 + 4) = ln 30.
    harmony = Harmony()
    with torch.no_grad():
        harmony.log_scale.copy_(torch.tensor([2.0, 1.0, 4.0]).log())
    values = {"reconstruction": 6.0, "reward": 5.0, "continuation": 3.0, "dyn": 2.0, "rep": 10.0}
    scales = {"reconstruction": 1.0, "reward": 1.0, "continuation": 1.0, "dyn": 0.5, "rep": 0.1}
    losses = harmony(Losses({name: torch.tensor(value) for name, value in values.items()}, scales))
    assert float(losses.total.detach()) == pytest.approx(8.5 + 3.0 + math.log(30), rel=1e-5)
    assert {name: float(weight) for name, weight in losses.metrics.items()} == pytest.approx(
        {"harmony/reconstruction": 0.5, "harmony/reward": 1.0, "harmony/kl": 0.25}
    )
    losses.total.backward()
    # The derivative with respect to s: -L / exp(s) + exp(s) / (1 + exp(s)).
    assert harmony.log_scale.grad is not None
    assert harmony.log_scale.grad.tolist() == pytest.approx([-3 + 2 / 3, -5 + 1 / 2, -0.5 + 4 / 5], rel=1e-5)


# Objectives


def test_the_contrastive_loss_by_hand() -> None:
    # Width 4: dot products are halved. Query 1 sees its own key at 2 and the other at 0: ln(1 + e^-2) = 0.1269.
    # Query 2 sees both at 0: ln 2.
    query = torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0]])
    key = torch.tensor([[2.0, 0, 0, 0], [0, 0, 1.0, 0]])
    error, found = info_nce(query, key)
    torch.testing.assert_close(error, torch.tensor([math.log(1 + math.exp(-2)), math.log(2)]))
    assert found[0] == 1.0


def test_the_contrastive_loss_asks_nothing_of_an_episodes_last_step() -> None:
    world_model = small_world_model(objectives=["contrastive"])
    batch = random_batch()
    assert float(world_model.losses(batch).terms["contrastive"].detach()) > 0.0
    batch.is_first[:, 1:] = True
    assert float(world_model.losses(batch).terms["contrastive"].detach()) == 0.0


def test_an_objective_is_added_with_its_scale_and_its_metrics() -> None:
    batch = random_batch(starts=STARTS)
    world_model = small_world_model(objectives=[{"name": "contrastive", "scale": 2.0, "width": 8}])
    torch.manual_seed(1)
    losses = world_model.losses(batch)
    plain = small_world_model()
    plain.load_state_dict(world_model.state_dict(), strict=False)
    torch.manual_seed(1)
    without = plain.losses(batch)
    assert losses.terms.keys() - without.terms.keys() == {"contrastive"}
    added = float((losses.total - without.total).detach())
    assert added == pytest.approx(2.0 * float(losses.terms["contrastive"].detach()), rel=1e-3)
    assert 0.0 <= losses.metrics["contrastive_accuracy"] <= 1.0


def test_two_objectives_of_one_name_are_refused_by_a_sentence() -> None:
    world_model = small_world_model(objectives=["contrastive", "contrastive"])
    with pytest.raises(PartError, match="two loss terms or metrics of the world model are called 'contrastive'"):
        world_model.losses(random_batch())


def test_objectives_are_chosen_by_a_list_and_keep_their_options() -> None:
    words = ["world_model.objectives=[{name: contrastive, scale: 0.5}]"]
    config = compose(["tiny"], words)
    assert config.world_model.objectives == [{"name": "contrastive", "width": 256, "scale": 0.5}]
    assert compose(["tiny"], ["world_model.objectives=contrastive"]) == compose(
        ["tiny"], ["world_model.objectives=[contrastive]"]
    )
    assert "scale: 0.5" in to_yaml(config)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("[contrastiv]", r"^world_model.objectives\[0\]=contrastiv: no objective is called .* 'contrastive'\?\)"),
        ("[{name: contrastive, scales: 1}]", r"^world_model.objectives\[0\].scales is not an option .* 'scale'\?\)"),
        ("null", r"^world_model.objectives=None is no list: expected \[\] or \[NAME,...\] of contrastive"),
    ],
)
def test_a_list_of_objectives_that_makes_no_sense_is_one_sentence(value: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as raised:
        compose(["tiny"], [f"world_model.objectives={value}"])
    assert "\n" not in str(raised.value)


# Norms


def test_a_layer_norm_of_a_feature_map_is_over_the_channels_of_each_place() -> None:
    encoder = build("encoder", {**small_part("encoder", "cnn"), "norm": "layer"}, (3, 16, 16))
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        seen = encoder.layers[1](x)
    torch.testing.assert_close(seen.mean(dim=1), torch.zeros(2, 5, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.var(dim=1, unbiased=False), torch.ones(2, 5, 5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_parts_with_layer_norm_keep_the_laws(kind: str) -> None:
    given = surroundings(kind, (3, 16, 16))
    node = {**small_part(kind, "cnn"), "norm": "layer"}
    assert broken_laws("cnn", kind, lambda: build(kind, node, *given), given) == []


# Pairs
