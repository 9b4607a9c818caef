"""The configuration's schema. The defaults are the paper's; ``configs/`` holds what departs from them.

Plain settings are typed fields. Swappable parts are nodes ``{name: ..., **options}`` whose options are declared by the
part's constructor (see ``registry``); ``parts.PART_KEYS`` lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from stormlit.envs import EnvSettings
from stormlit.nn.optimizers import OptimizerSettings


def _part(name: str) -> Callable[[], dict[str, Any]]:
    return lambda: {"name": name}


@dataclass
class RunSettings:
    """Where a run's files go: ``dir/name/``; the MLflow database is ``dir/mlflow.db``."""

    dir: str = "runs"
    # None: made from the configuration file, the environment and the seed.
    name: str | None = None
    # A run or checkpoint whose weights a new run begins with; None: random ones.
    init_from: str | None = None


@dataclass
class ReplaySettings:
    # Environment steps kept; the oldest are overwritten.
    capacity: int = 100_000
    # auto: on the GPU when training there and the buffer takes less than half of its free memory.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Whether sampled windows tell where an episode begins inside them, which cuts memory and KL there.
    episode_starts: Literal["marked", "ignored"] = "marked"
    # Whether windows follow the order of age, or the order of storage, which crosses the ring's seam once it is full.
    order: Literal["age", "storage"] = "age"


@dataclass
class DemonstrationSettings:
    """Recorded play mixed into what is learned from (the paper's section 5.3)."""

    # A file of `stormlit demos`, or a list of them; None: there are none.
    path: Any = None
    # Windows of demonstrations added to each world-model batch.
    batch_size: int = 4
    # Contexts of demonstrations added to each imagination.
    imagination_batch_size: int = 256
    # Whether actions of the official pickles are moved to the frames they were taken at, or stay as published.
    timing: Literal["aligned", "as_published"] = "aligned"
    # Whether env.life_loss_terminates holds for demonstrations too, or a life lost in them is never termination.
    life_losses: Literal["as_env", "ignored"] = "as_env"


@dataclass
class WorldModelLossScales:
    reconstruction: float = 1.0
    reward: float = 1.0
    continuation: float = 1.0
    dyn: float = 0.5
    rep: float = 0.1


@dataclass
class WorldModelSettings:
    # Width of the sequence model and of the heads.
    hidden_dim: int = 512
    encoder: Any = field(default_factory=_part("cnn"))
    decoder: Any = field(default_factory=_part("cnn"))
    latent: Any = field(default_factory=_part("categorical"))
    sequence_model: Any = field(default_factory=_part("transformer"))
    reward_head: Any = field(default_factory=_part("mlp"))
    continuation_head: Any = field(default_factory=_part("mlp"))
    loss_scales: WorldModelLossScales = field(default_factory=WorldModelLossScales)
    # Nats of KL a step that are not punished.
    free_bits: float = 1.0
    # Whether they are granted to each step or to the mean over the batch.
    free_bits_clip: Literal["step", "mean"] = "step"
    # Symlog two-hot bins of the reward.
    reward_bins: int = 255
    reward_low: float = -20.0
    reward_high: float = 20.0
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)


@dataclass
class AgentLossScales:
    policy: float = 1.0
    entropy: float = 3e-4
    value: float = 1.0
    slow_value: float = 1.0


@dataclass
class ReturnNormalizerSettings:
    decay: float = 0.99
    low: float = 5.0
    high: float = 95.0
    minimum: float = 1.0
    # The moving average starts at the first percentiles, or at zero.
    start: Literal["first", "zero"] = "first"
    # linear: between the two nearest returns; kth: the floor(p N)-th smallest return itself.
    percentile: Literal["linear", "kth"] = "linear"


@dataclass
class AgentSettings:
    # Width of actor and critic.
    hidden_dim: int = 512
    agent_state: Any = field(default_factory=_part("both"))
    actor: Any = field(default_factory=_part("mlp"))
    critic: Any = field(default_factory=_part("mlp"))
    gamma: float = 0.985
    lambda_: float = 0.95
    # Value in the (1 - lambda) term of the lambda-return: of the next state (the paper) or of the current one.
    lambda_bootstrap: Literal["next", "current"] = "next"
    loss_scales: AgentLossScales = field(default_factory=AgentLossScales)
    slow_critic_decay: float = 0.98
    # What the slow critic's term pulls the critic towards.
    slow_critic_target: Literal["value", "lambda_return"] = "value"
    return_normalizer: ReturnNormalizerSettings = field(default_factory=ReturnNormalizerSettings)
    # Symlog two-hot bins of the value.
    value_bins: int = 255
    value_low: float = -20.0
    value_high: float = 20.0
    optimizer: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(learning_rate=3e-5, eps=1e-5, clip_norm=100.0)
    )


@dataclass
class ImaginationSettings:
    # Rollouts in one agent update, and their length in steps.
    batch_size: int = 1024
    horizon: int = 16
    # Real steps read before each rollout.
    context_length: int = 8
    # prior: start one step after the context, at a predicted latent (the paper). posterior: at its last real frame.
    start: Literal["prior", "posterior"] = "prior"
    # weighted: discount and weigh by the predicted probability of going on; hard: end where it is below one half.
    ends: Literal["weighted", "hard"] = "weighted"


@dataclass
class PlayerSettings:
    # Past steps the sequence model reads when acting in a real environment.
    context_length: int = 16
    # The latent that the policy sees: of the current frame, or predicted from the past alone.
    latent: Literal["posterior", "prior"] = "posterior"
    # Whether an episode's end clears the context.
    clear_context: bool = True
    # Past steps as the latents once drawn for them, or as frames, encoded and drawn anew at every step.
    context: Literal["latents", "frames"] = "latents"


@dataclass
class LoopSettings:
    # Budget and random start, in environment steps (after frame skip), over all environments and processes.
    env_steps: int = 100_000
    warmup_steps: int = 1024
    # One world-model update: windows and their length in steps.
    batch_size: int = 16
    batch_length: int = 64
    # Updates for every environment step after the random start; fractions are carried over.
    world_model_updates_per_env_step: float = 1.0
    agent_updates_per_env_step: float = 1.0
    # Step the environments while a GPU is busy with the updates that the steps before owe, which then do not know the
    # newest step yet.
    overlap: bool = False
    # Returns reported while training: complete, or with the last reward counted to the next episode.
    training_return: Literal["complete", "without_last_reward"] = "complete"
    log_every_env_steps: int = 500
    # Reconstruction grid and dream video; 0 only at the end.
    media_every_env_steps: int = 10_000
    # Updates in a row with a non-finite loss before training stops.
    max_nonfinite_updates: int = 20


@dataclass
class EvaluationSettings:
    episodes: int = 20
    # Environments stepped together; episodes are dealt out beforehand, so short ones are not favoured.
    num_envs: int = 5
    # dealt: each environment plays a fixed share of the episodes; first_to_end: those that end first are counted.
    selection: Literal["dealt", "first_to_end"] = "dealt"
    # Environment steps after which an episode is truncated, on top of the environment's own limits; None: never.
    max_steps_per_episode: int | None = 108_000
    # Most likely action instead of a sampled one.
    greedy: bool = False
    # Also during training; 0 only at the end.
    every_env_steps: int = 0
    # Played and printed beside the agent, in its last evaluation: random, constant (each action held all along).
    baselines: list[str] = field(default_factory=list)


@dataclass
class CheckpointSettings:
    # Environment steps between checkpoints; one is always written at the end.
    every: int = 2500
    # Minutes after which one is written besides; 0: never.
    every_minutes: float = 0.0
    # How many to keep.
    keep: int = 2


@dataclass
class Config:
    """Everything a run depends on."""

    seed: int = 0
    # auto: bf16-mixed on a GPU that has it, 16-mixed on one that does not, 32-true on the CPU.
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    # Compile updates, imagination and acting, as CUDA graphs on a GPU. auto: on a GPU, with one process.
    compile: Literal["auto", True, False] = "auto"  # YAML reads on and off as true and false
    # Whether only algorithms that give the same bits every time are used on a GPU.
    deterministic: bool = False
    # auto: `train` goes on with the run of this name if there is one, and has nothing to do if that is finished.
    resume: Literal["never", "auto"] = "never"
    run: RunSettings = field(default_factory=RunSettings)
    env: EnvSettings = field(default_factory=EnvSettings)
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    demonstrations: DemonstrationSettings = field(default_factory=DemonstrationSettings)
    world_model: WorldModelSettings = field(default_factory=WorldModelSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    imagination: ImaginationSettings = field(default_factory=ImaginationSettings)
    player: PlayerSettings = field(default_factory=PlayerSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    tracking: Any = field(default_factory=_part("mlflow"))
