"""The SQLite database that MLflow keeps in the folder of all runs: its name, and its artifacts when it is moved."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from stormlit.errors import ConfigError

# The tag of stormlit's experiments, or MLflow's page takes them for some with language models, and shows them so.
MODEL_TRAINING = ("mlflow.experimentKind", "custom_model_development")


def sqlite_uri(file: Path) -> str:
    """The URI by which SQLAlchemy, and so MLflow, finds the SQLite file whatever its folder is called.

    Raises ``ConfigError`` for a question mark that the installed SQLAlchemy cannot be given.
    """
    path = file.as_posix()
    if not {"%", "?"} & set(path):
        return f"sqlite:///{path}"
    with contextlib.suppress(ImportError):
        from sqlalchemy.engine import make_url

        # Which of the two depends on the version: only newer ones decode the name of a database.
        for written in (path.replace("%", "%25").replace("?", "%3F"), path):
            if make_url(f"sqlite:///{written}").database == path:
                return f"sqlite:///{written}"
        raise ConfigError(f"run.dir={file.parent}: MLflow takes no '?' there with this SQLAlchemy; use tracking=csv")
    return f"sqlite:///{path}"


def keep_artifacts_beside(database: Path) -> None:
    """Make experiments whose artifacts were beside the database, before both were moved, keep them there again.

    MLflow writes down absolute paths, and would make the old folder anew. Experiments that were not made by stormlit,
    or with a place of their own, are left as they are.
    """
    here = (database.parent / "artifacts").as_uri()
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiment_tags'").fetchone():
            return  # a process died before it had made the tables
        moved = connection.execute(
            "SELECT experiment_id, artifact_location FROM experiments JOIN experiment_tags USING (experiment_id) "
            "WHERE key = ? AND value = ? AND artifact_location LIKE 'file:%/artifacts' AND artifact_location <> ?",
            (*MODEL_TRAINING, here),
        ).fetchall()
        for experiment, there in moved:
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (here, experiment)
            )
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (here, len(there) + 1, experiment, len(there) + 1, f"{there}/"),
            )
