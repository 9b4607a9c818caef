"""The configuration's schema. The defaults are the paper's; ``configs/`` holds what departs from them.

Most sections are the options of the classes that take them (see ``registry``); what no constructor takes is declared
here in the same way. Swappable parts are nodes ``{name: ..., **options}``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from stormlit.envs import EnvSettings
from stormlit.registry import Option, Role, options_below, settings
from stormlit.storm.acting import Player
from stormlit.storm.agent import ActorCritic
from stormlit.storm.imagination import Imagination
from stormlit.storm.replay import ReplayBuffer
from stormlit.storm.world_model import WorldModel

MANY = 10**12


@dataclass
class RunSettings:
    """Where a run's files go: ``dir/name/``; the MLflow database is ``dir/mlflow.db``."""

    dir: Annotated[str, Option("folder of all runs", path=True, role="place")] = "runs"
    name: Annotated[
        str | None,
        Option("name of its folder; null: from the configuration file, the environment and the seed", role="place"),
    ] = None
    init_from: Annotated[
        str | None,
        Option("a run or checkpoint whose weights a new run begins with; null: random ones", path=True, role="start"),
    ] = None


@dataclass
class ReplayPlacement:
    """What the processes of a run decide about their buffers; the rest are options of ``ReplayBuffer``."""

    capacity: Annotated[int, Option("environment steps kept; the oldest are overwritten", 1, 10**9)] = 100_000
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Option(
            "auto: on the GPU when training there and the buffer takes less than half of its free memory", role="speed"
        ),
    ] = "auto"


@dataclass
class DemonstrationSettings:
    """Recorded play mixed into what is learned from (the paper's section 5.3)."""

    path: Annotated[Any, Option("a file of `stormlit demos`, or a list of them; null: none", path=True)] = None
    batch_size: Annotated[int, Option("demonstrated windows added to each world-model batch", 0, 10**6)] = 4
    imagination_batch_size: Annotated[int, Option("demonstrated contexts added to each imagination", 0, 10**7)] = 256
    timing: Annotated[
        Literal["aligned", "as_published"],
        Option("move actions of the official pickles to the frames they were taken at, or leave them as published"),
    ] = "aligned"
    life_losses: Annotated[
        Literal["as_env", "ignored"],
        Option("whether env.life_loss_terminates holds here too, or a life lost in them is never termination"),
    ] = "as_env"


@dataclass
class LoopSettings:
    env_steps: Annotated[
        int,
        Option(
            "budget in environment steps (after frame skip), over all environments and processes",
            1,
            MANY,
            role="budget",
        ),
    ] = 100_000
    warmup_steps: Annotated[int, Option("steps of the budget that are played at random, at the start", 0, MANY)] = 1024
    batch_size: Annotated[int, Option("windows in one world-model update", 1, 10**6)] = 16
    batch_length: Annotated[int, Option("their length in steps", 2, 10**6)] = 64
    world_model_updates_per_env_step: Annotated[
        float, Option("world-model updates for each step after the random start; fractions are carried over", 0, 1000)
    ] = 1.0
    agent_updates_per_env_step: Annotated[float, Option("agent updates for each such step", 0, 1000)] = 1.0
    overlap: Annotated[
        bool,
        Option(
            "make updates, which then lack the newest step, while environments take it: on a GPU, or with "
            "env.isolation=process"
        ),
    ] = False
    training_return: Annotated[
        Literal["complete", "without_last_reward"],
        Option("returns reported while training: complete, or with the last reward counted to the next episode"),
    ] = "complete"
    log_every_env_steps: Annotated[int, Option("environment steps between metrics", 1, MANY, role="operation")] = 500
    media_every_env_steps: Annotated[
        int,
        Option(
            "environment steps between reconstruction grids and dream videos; 0: only at the end",
            0,
            MANY,
            role="operation",
        ),
    ] = 10_000
    max_nonfinite_updates: Annotated[
        int, Option("skipped updates in a row that are still survived", 0, 10**9, role="operation")
    ] = 20


@dataclass
class EvaluationSettings:
    episodes: Annotated[int, Option("episodes played", 1, 10**6)] = 20
    num_envs: Annotated[int, Option("environments stepped together; episodes are dealt out beforehand", 1, 10**4)] = 5
    selection: Annotated[
        Literal["dealt", "first_to_end"],
        Option("each environment plays a fixed share of the episodes, or those that end first are counted"),
    ] = "dealt"
    max_steps_per_episode: Annotated[
        int | None,
        Option("environment steps after which an evaluation's episode is truncated; null: no limit", 1, 2**31 - 1),
    ] = 108_000
    greedy: Annotated[bool, Option("take the most likely action instead of a sampled one")] = False
    every_env_steps: Annotated[
        int, Option("environment steps between evaluations while training; 0: only at the end", 0, MANY)
    ] = 0
    baselines: Annotated[
        list[str],
        Option("policies played beside the agent: random, constant (each action held all along)"),
    ] = field(default_factory=list)


@dataclass
class CheckpointSettings:
    every: Annotated[
        int, Option("environment steps between checkpoints; one is always written at the end", 1, MANY)
    ] = 2500
    every_minutes: Annotated[float, Option("minutes after which one is written besides; 0: never", 0, 10**9)] = 0.0
    keep: Annotated[int, Option("how many to keep", 1, 10**6)] = 2
    keep_best: Annotated[
        bool, Option("also keep the weights that were evaluated best; choosing by that is optimistic")
    ] = False


@dataclass
class Config:
    """Everything a run depends on."""

    seed: Annotated[int, Option("of everything that is drawn", 0, 2**31 - 1, role="seed")] = 0
    precision: Annotated[
        Literal["auto", "32-true", "bf16-mixed", "16-mixed"],
        Option("auto: bf16-mixed on a GPU that has it, 16-mixed on one that does not, 32-true on the CPU"),
    ] = "auto"
    accelerator: Annotated[
        Literal["auto", "cpu", "cuda"],
        Option(
            "auto: cuda where there is a CUDA device, else cpu, as on a Mac; under fabric run its own option decides",
            role="speed",
        ),
    ] = "auto"
    compile: Annotated[
        Literal["auto", True, False],  # YAML reads on and off as true and false
        Option(
            "compile updates, imagination and acting, as CUDA graphs on a GPU; auto: on a GPU, with one process",
            role="speed",
        ),
    ] = "auto"
    threads: Annotated[
        int | Literal["auto"],
        Option(
            "on the CPU, of each process; auto: one for small work, all cores for large, kept with the run",
            1,
            1024,
            role="threads",
        ),
    ] = "auto"
    deterministic: Annotated[bool, Option("use only algorithms that give the same bits every time on a GPU")] = False
    resume: Annotated[
        Literal["never", "auto"],
        Option("auto: train goes on with the run of this name if there is one, unless it is finished", role="place"),
    ] = "never"
    run: RunSettings = field(default_factory=RunSettings)
    env: EnvSettings = field(default_factory=EnvSettings)
    replay: Any = field(default_factory=settings(ReplayBuffer, ReplayPlacement))
    demonstrations: DemonstrationSettings = field(default_factory=DemonstrationSettings)
    world_model: Any = field(default_factory=settings(WorldModel))
    agent: Any = field(default_factory=settings(ActorCritic))
    imagination: Any = field(default_factory=settings(Imagination))
    player: Any = field(default_factory=settings(Player))
    loop: LoopSettings = field(default_factory=LoopSettings)
    evaluation: Annotated[EvaluationSettings, Option(role="evaluation")] = field(default_factory=EvaluationSettings)
    checkpoint: Annotated[CheckpointSettings, Option(role="saving")] = field(default_factory=CheckpointSettings)
    tracking: Annotated[Any, Option("where metrics, parameters and files go", part="tracker", role="place")] = field(
        default_factory=lambda: {"name": "mlflow"}
    )


KEYS: dict[str, Option] = dict(options_below(Config))
"""Every key but the options of parts."""


def keys_of(*roles: Role) -> tuple[str, ...]:
    """The keys whose change means one of these; that of a part stands for the part's options too."""
    return tuple(key for key, option in KEYS.items() if option.role in roles)
