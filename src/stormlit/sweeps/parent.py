"""The grid's own run in MLflow, of which its cells are children."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from stormlit.config.schema import Config
from stormlit.registry import build
from stormlit.runs.after_step import warn_on_os_error
from stormlit.sweeps.grid_file import FILE, Record
from stormlit.tracking import RunStatus, Tracker

REPORT = "report"  # the folder of the page in the grid's
# What MLflow itself calls the tag.
PARENT = "tracking.tags.mlflow.parentRunId"


@contextlib.contextmanager
def parent_run(config: Config, record: Record) -> Iterator[list[str]]:
    """A run for the grid, open while its cells run; gives the words that make them its children, none without MLflow.

    It ends as the block does: finished, killed by a signal, or failed.
    """
    if config.tracking["name"] != "mlflow":
        yield []
        return
    folder, content = record.folder, record.content
    tracker: Tracker = build("tracker", config.tracking, folder, folder, key="tracking")
    params = {key: content[key] for key in ("words", "environments", "seeds")}
    params["variants"] = {name: " ".join(variant["words"]) for name, variant in content["variants"].items()}
    record.content["parent"] = tracker.start(
        name=content["name"], params=params, tags={**tracker.labels, "grid": content["name"]}, run_id=content["parent"]
    )
    record.write()
    status: RunStatus = "FAILED"
    try:
        yield [f"{PARENT}={json.dumps(record.content['parent'])}"]
        status = "FINISHED"
    except BaseException as error:
        if not isinstance(error, Exception):  # a signal has ended it
            status = "KILLED"
        raise
    finally:
        with warn_on_os_error("the last words of the grid's run"):
            for kept in (folder / FILE, folder / REPORT):
                if kept.exists():
                    tracker.artifact(kept)
            tracker.finish(status)
