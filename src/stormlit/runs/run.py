"""A training that is on disk."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stormlit.analysis.evaluate import Evaluation
from stormlit.config.schema import Config
from stormlit.runs.directory import RunDirectory
from stormlit.runs.progress import ProgressBar
from stormlit.runs.replay_segments import ReplaySegments
from stormlit.runs.signals import StopSignals
from stormlit.storm.training import Every, EveryMinutes, Training
from stormlit.tracking import Tracker


@dataclass(slots=True)
class Schedules:
    """When to do what, in environment steps."""

    log: Every
    media: Every
    evaluation: Every
    checkpoint: Every


@dataclass(slots=True)
class Run:
    """One process of a run.

    training: what learns.  segments: its replay rows on disk.  clock: for checkpoints by wall-clock time.
    bar, signals: shown and obeyed while training.  run_id: the tracker's.
    saved_at: environment steps of the newest checkpoint.  latest_evaluation: of this process.
    latest_metrics: the world model's, as they were last logged.  tags: what the run was made with.
    started: when the run began, in UTC.  earlier_seconds: wall-clock time of the processes before this one.
    """

    config: Config
    directory: RunDirectory
    training: Training
    tracker: Tracker
    schedules: Schedules
    segments: ReplaySegments
    clock: EveryMinutes
    bar: ProgressBar = field(default_factory=lambda: ProgressBar(0, enabled=False))
    signals: StopSignals = field(default_factory=StopSignals)
    run_id: str = ""
    saved_at: int | None = None
    latest_evaluation: Evaluation | None = None
    latest_metrics: dict[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    started: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    earlier_seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, config: Config, directory: RunDirectory, training: Training, tracker: Tracker) -> Run:
        """A run that has left no trace yet."""
        loop = config.loop
        return cls(
            config=config,
            directory=directory,
            training=training,
            tracker=tracker,
            schedules=Schedules(
                log=Every(loop.log_every_env_steps),
                media=Every(loop.media_every_env_steps),
                evaluation=Every(config.evaluation.every_env_steps),
                checkpoint=Every(config.checkpoint.every),
            ),
            segments=ReplaySegments(directory.replay / str(training.fabric.global_rank)),
            clock=EveryMinutes(config.checkpoint.every_minutes),
        )

    @property
    def env_steps(self) -> int:
        return self.training.progress.env_steps

    @property
    def wall_seconds(self) -> float:
        """Wall-clock time of all processes of the run, one after the other."""
        return self.earlier_seconds + time.monotonic() - self.began

    def state_dict(self) -> dict[str, Any]:
        """The training's, with the schedules of the run added."""
        state = self.training.state_dict()
        for name in Schedules.__slots__:
            state["schedules"][name] = getattr(self.schedules, name).state_dict()
        state["latest_metrics"] = dict(self.latest_metrics)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.training.load_state_dict(state)
        for name in Schedules.__slots__:
            getattr(self.schedules, name).load_state_dict(state["schedules"][name])
        self.latest_metrics = dict(state["latest_metrics"])
