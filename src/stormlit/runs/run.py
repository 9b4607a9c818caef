"""A training that is on disk."""

from __future__ import annotations

import datetime
import time
from typing import Any

from stormlit.analysis.evaluate import Evaluation
from stormlit.config.schema import Config
from stormlit.runs.checkpoint import ReplaySegments
from stormlit.runs.directory import RunDirectory
from stormlit.runs.progress import ProgressBar
from stormlit.runs.signals import StopSignals
from stormlit.storm.training import Every, EveryMinutes, Training
from stormlit.tracking import Tracker


class Run:
    """One process of a run.

    schedules: when to log, draw, evaluate and save, in environment steps.  clock: for checkpoints by wall-clock time.
    segments: the replay rows on disk.  bar, signals: shown and obeyed while training.  run_id: the tracker's.
    saved_at: environment steps of the newest checkpoint.  latest_evaluation: of this process.
    latest_metrics: the world model's, as they were last logged.  tags: what the run was made with.
    started: when the run began, in UTC.  began: on this process's clock, as if it had done all of the run.
    """

    def __init__(self, config: Config, directory: RunDirectory, training: Training, tracker: Tracker) -> None:
        self.config = config
        self.directory = directory
        self.training = training
        self.tracker = tracker
        self.schedules = {
            "log": Every(config.loop.log_every_env_steps),
            "media": Every(config.loop.media_every_env_steps),
            "evaluation": Every(config.evaluation.every_env_steps),
            "checkpoint": Every(config.checkpoint.every),
        }
        self.clock = EveryMinutes(config.checkpoint.every_minutes)
        self.segments = ReplaySegments(directory.replay / str(training.fabric.global_rank))
        self.bar = ProgressBar(0, enabled=False)
        self.signals = StopSignals()
        self.run_id = ""
        self.saved_at: int | None = None
        self.latest_evaluation: Evaluation | None = None
        self.latest_metrics: dict[str, float] = {}
        self.tags: dict[str, str] = {}
        self.started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.began = time.monotonic()

    @property
    def env_steps(self) -> int:
        return self.training.progress.env_steps

    @property
    def wall_seconds(self) -> float:
        """Wall-clock time of all processes of the run, one after the other."""
        return time.monotonic() - self.began

    def state_dict(self) -> dict[str, Any]:
        """The training's, with the schedules of the run added."""
        state = self.training.state_dict()
        state["schedules"] |= {name: schedule.state_dict() for name, schedule in self.schedules.items()}
        state["latest_metrics"] = dict(self.latest_metrics)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.training.load_state_dict(state)
        for name, schedule in self.schedules.items():
            schedule.load_state_dict(state["schedules"][name])
        self.latest_metrics = dict(state["latest_metrics"])
