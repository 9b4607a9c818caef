"""What is wrong with a stranger's part is said in one sentence that names it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import broken_parts
import stormlit
from broken_parts import SoundEncoder, SoundHead, SoundLatent, SoundSequence, SoundState
from small import small_agent, small_part, small_world_model
from stormlit.checks.laws import surroundings
from stormlit.checks.trials import try_part
from stormlit.config.compose import compose
from stormlit.data import Losses, Reading
from stormlit.errors import ConfigError
from stormlit.registry import build
from stormlit.runs.assembly import build_modules
from stormlit.spaces import ActionSpace, ObservationSpace
from training import newest, train

WRONG = [
    ("encoder", "WrongWidth", r" gives \(1, 2048\) where its embed_dim says 2049"),
    ("encoder", "NoWidth", r" has no 'embed_dim', which every encoder has"),
    ("encoder", "NoModule", r" NoModule does not derive from torch.nn.Module, as every encoder must"),
    ("encoder", "Doubles", r" gives torch.float64 where torch.float32 is expected"),
    ("encoder", "NoStar", r": 'width' of NoStar is no option: options stand after a '\*'"),
    ("encoder", "ScalesInPlace", r" changes what it is given in place"),
    ("encoder", "CentresTheBatch", r" lets one row of a batch depend on the others in evaluation mode"),
    ("encoder", "Noisy", r" gives another answer to the same input in evaluation mode"),
    ("encoder", "Constant", r" gives the same answer whatever it is given"),
    ("encoder", "UnusedLayer", r": no gradient reaches its parameter 'spare.weight'"),
    ("encoder", "Detached", r" passes no gradient to what it is given"),
    ("encoder", "OneDtype", r" under bfloat16 autocast fails on \(4, 3, 64, 64\): RuntimeError"),
    ("encoder", "ViewsImages", r" in channels-last form fails on \(4, 3, 64, 64\): RuntimeError: view size"),
    ("encoder", "NoAnnotation", r": option 'w' of NoAnnotation needs a type"),
    ("decoder", "SmallFrames", r" gives \(1, 3, 4, 4\) where the frames are \(1, 3, 64, 64\)"),
    ("latent", "Gaussian", r" has no 'divergence', which every latent has"),
    ("latent", "BorrowedDivergence", r": divergence gives -[\d.]+ nats where at least 0 is expected"),
    ("latent", "NotZero", r": divergence gives 1 nats where 0 is expected between equal distributions"),
    ("latent", "OneNumber", r": divergence gives \(\) where nats over the leading axes \(8, 2\) are expected"),
    ("latent", "FixedPrior", r": divergence passes no gradient to the prior"),
    ("latent", "Unequal", r": prior gives \(8, 2, 4, 5\) where the posterior gives \(8, 2, 4, 4\)"),
    ("latent", "InfiniteEntropy", r": entropy of the posterior is not finite"),
    ("latent", "MixesSteps", r": entropy mixes the leading axes"),
    ("latent", "UnnamedTerm", r": auxiliary names the terms \['more'\] and the scales \[\]"),
    ("latent", "NoGradient", r": sample passes no gradient to what it is given"),
    ("latent", "ShortLatent", r": sample gives \(8, 2, 15\) where its latent_dim says 16"),
    ("latent", "HalfPrecision", r": prior gives torch.bfloat16 under bfloat16 autocast where float32 is expected"),
    ("sequence_model", "SeesTheNext", r": hidden\[:, \d\] depends on the latent of step \d, which comes later"),
    ("sequence_model", "ForgetsTheCut", r"depends on the latent of step \d, which belongs to an earlier episode"),
    ("sequence_model", "IgnoresActions", r": hidden\[:, 6\] does not depend on the action of step 6"),
    ("sequence_model", "ForgetsWhenStepping", r": step 0 after an empty memory is off by [\d.]+ from the full pass"),
    ("sequence_model", "NeverCuts", r": step 2 after a prefill over 1 steps is off by [\d.]+ from the full pass"),
    ("sequence_model", "Short", r": step 4 goes on without a word, beyond max_length=4"),
    ("sequence_model", "DropsTheNewest", r": a step beyond the memory's capacity forgets without a word"),
    ("sequence_model", "NoMemory", r": prefill must return the hidden states and a memory"),
    ("sequence_model", "NoTensors", r": could not try that if it says carries, .* AttributeError: .*'tensors'"),
    (
        "sequence_model",
        "KeepsSomethingAside",
        r": step 1 differs on a memory into which another's tensors\(\) were cop",
    ),
    ("sampler", "NeverTheNew", r" gives a weight of 0 to a window that was never drawn, for some windows"),
    ("sampler", "ByInfinity", r" gives weights that are not finite, negative or all 0 for some windows"),
    ("sampler", "ByPlace", r" gives a window another weight in another order of the windows"),
    ("sampler", "OneWeight", r" gives \(\) where one weight a window is expected: \(4,\)"),
    ("sampler", "Absolves", r" changes what it is given in place"),
    ("sampler", "Whimsical", r" gives another answer to the same windows"),
    ("head", "FlatHead", r" gives \(2, 5\) where \(1, 2, 5\) is expected for \(1, 2, 32\)"),
    ("head", "WrongInput", r" fails on \(2, 32\): RuntimeError: mat1 and mat2 shapes"),
    ("head", "Tuple", r" gives a tuple where a tensor \(2, 5\) is expected"),
    ("agent_state", "WrongState", r" gives \(2, 48\) where its state_dim says 16"),
]


@pytest.mark.parametrize(("kind", "cls", "sentence"), WRONG)
def test_a_broken_part_is_told_what_is_wrong_by_name(kind: str, cls: str, sentence: str) -> None:
    sentences = stormlit.check_part(kind, getattr(broken_parts, cls))
    start = f"{kind.replace('_', ' ')} 'broken_parts:{cls}'"
    assert any(re.match(f"{start}.*{sentence}", told) for told in sentences), sentences
    assert not any("\n" in sentence for sentence in sentences)


SOUND: list[tuple[str, type]] = [
    ("encoder", SoundEncoder),
    ("latent", SoundLatent),
    ("sequence_model", SoundSequence),
    ("head", SoundHead),
    ("agent_state", SoundState),
]


@pytest.mark.parametrize(("kind", "cls"), SOUND)
def test_a_sound_part_of_a_stranger_keeps_all_laws(kind: str, cls: type) -> None:
    assert stormlit.check_part(kind, cls) == []


@pytest.mark.parametrize(
    ("argument", "cls", "sentence"),
    [
        ("encoder", "WrongWidth", r" gives \(1, 128\) where its embed_dim says 129$"),
        ("decoder", "SmallFrames", r" gives \(1, 3, 4, 4\) where the frames are \(1, 3, 16, 16\)$"),
        ("continuation_head", "WrongInput", r" fails on \(2, 16\): RuntimeError: .* \(broken_parts.py:\d+\)$"),
    ],
)
def test_building_names_the_key_of_a_part_that_does_not_fit(argument: str, cls: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^world_model.{argument}=broken_parts:{cls}{sentence}"):
        small_world_model(**{argument: {"name": f"broken_parts:{cls}"}})
    with pytest.raises(ConfigError, match=r"^agent.agent_state=broken_parts:WrongState gives \(2, 32\) where"):
        small_agent(agent_state={"name": "broken_parts:WrongState"})


@pytest.mark.parametrize(("kind", "name"), [("encoder", "cnn"), ("decoder", "resnet"), ("latent", "categorical")])
def test_trying_a_part_leaves_random_numbers_statistics_and_modes_alone(kind: str, name: str) -> None:
    part = build(kind, small_part(kind, name), *surroundings(kind)).train()
    next(part.children()).eval()
    before = {key: value.clone() for key, value in part.state_dict().items()}
    modes, numbers = [module.training for module in part.modules()], torch.get_rng_state()
    try_part("it", kind, part, *surroundings(kind))
    assert torch.equal(torch.get_rng_state(), numbers)
    assert [module.training for module in part.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in part.state_dict().items())
    assert all(parameter.grad is None for parameter in part.parameters())


def test_a_window_longer_than_a_part_can_read_is_refused() -> None:
    config = compose(["tiny"], ["world_model.sequence_model=broken_parts:Short"])
    with pytest.raises(ConfigError, match=r"is longer than world_model.sequence_model.max_length=4"):
        build_modules(config, (16, 16, 3), 3)


def test_a_tracker_that_fails_ends_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "run", "tracking=broken_parts:BrokenTracker")
    assert newest(run).name == "step-000000048"
    told = capsys.readouterr().err
    assert "the metrics of step 48 were not recorded: RuntimeError: no space for numbers (broken_parts.py" in told


# ---- A run tries parts of somebody else's, on what it sees and does itself


SEEN = ObservationSpace.of((16, 16, 3))


class Inverse(nn.Module):
    """Foretells the action from the hidden state, and tells what it was given."""

    given: tuple[torch.Size, torch.Size] | None = None

    def __init__(self, latent_dim: int, embed_dim: int, hidden_dim: int, num_actions: int) -> None:
        super().__init__()
        self.layer = nn.Linear(hidden_dim, num_actions)

    def forward(self, reading: Reading) -> Losses:
        Inverse.given = reading.batch.obs.shape[2:], reading.batch.action.shape[2:]
        error: Tensor = (self.layer(reading.hidden) - reading.batch.action).square().mean()
        return Losses({"inverse": error}, {"inverse": 1.0}, {})


def test_an_objective_is_tried_on_the_runs_own_observations_and_actions() -> None:
    small_world_model(observations=SEEN, actions=ActionSpace.box(2), objectives=[{"name": f"{__name__}:Inverse"}])
    assert Inverse.given == ((3, 16, 16), (2,))


def test_bundled_parts_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stormlit.checks.trials", None)  # whoever imports it gets an ImportError
    small_world_model(objectives=[{"name": "contrastive"}])
    with pytest.raises(ImportError):
        small_world_model(objectives=[{"name": f"{__name__}:Inverse"}])
