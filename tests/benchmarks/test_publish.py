"""Published results: what is appended, what is refused, and the table that is made of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import publish
import pytest

from fake_runs import fake_result, write_run
from stormlit.runs.directory import RunDirectory
from stormlit.runs.result import Result

REPOSITORY = Path(__file__).resolve().parents[2]
CLEAN = {"commit": "0123456789abcdef", "dirty": False}


def finished(root: Path, result: Result) -> str:
    RunDirectory(write_run(root, result)).write_finished(result.env_steps)
    return result.run["name"]


def send(root: Path, name: str) -> int:
    return publish.main([name, "--run-dir", str(root / "runs"), "-o", str(root / "results")])


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_run_stands_in_the_file_of_its_benchmark_and_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, readme = tmp_path / "runs", tmp_path / "README.md"
    readme.write_text(f"before\n{publish.START}\nold\n{publish.END}\nafter\n")
    results = [
        fake_result("first", [0.0, 1.0], "seed=0", random=[-1.0, 0.0]),
        fake_result("second", [1.0, 1.0], "seed=1", random=[-1.0, -1.0]),
        fake_result("gru", [0.5, 0.5], "world_model.sequence_model=gru", evaluation={"agent": [0.5, 0.5]}),
        # Human play has 14.6 in Pong and 29.6 in Freeway, random play -20.7 and 0.
        fake_result("pong", [14.6], "env.game=Pong", config="storm", random=[-20.7]),
        fake_result("freeway", [14.8], "env.game=Freeway", config="storm", random=[0.0]),
    ]
    for result in results:
        assert send(tmp_path, finished(runs, result)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"appended to {tmp_path / 'results' / 'atari100k.csv'}"
    catch = rows(tmp_path / "results" / "catch.csv")
    assert [(row["configuration"], row["seed"], row["mean_return"]) for row in catch] == [
        ("tiny", "0", "0.5"),
        ("tiny", "1", "1"),
        ("sequence_model=gru", "0", "0.5"),
    ]
    assert catch[0]["standard_error"] == "0.5" and catch[0]["returns"] == "0 1" and catch[2]["random_mean"] == ""
    assert tuple(catch[0]) == publish.COLUMNS and catch[0]["commit"] == results[0].provenance["commit"]
    lines = readme.read_text().splitlines()
    assert lines[:2] == ["before", publish.START] and lines[-2:] == [publish.END, "after"]
    assert lines[4:-2] == [
        "| atari100k | storm | 2 | 2 | - | - | mean 0.750, median 0.750 |",
        "| catch | tiny | Catch | 2 | 0.75 +- 0.25 | -0.75 +- 0.25 | - |",
        "| catch | sequence_model=gru | Catch | 1 | 0.5 | - | - |",
    ]


@pytest.mark.parametrize(
    ("words", "changes", "told"),
    [
        (["loop.env_steps=15000"], {}, "another budget than the benchmarks atari100k, quickstart, upndown, catch; the "
         "nearest, catch, has env_steps = 16000, and this run 15000"),
        (["evaluation.greedy=false"], {}, "another protocol than the benchmarks"),
        (["env.kwargs.columns=5"], {}, "has env.kwargs.columns = null, and this run 5"),
        (["run.init_from=other"], {}, "began with the weights of another run"),
        ([], {"provenance": {**CLEAN, "dirty": True}}, "differs from its commit 012345678: commit the changes"),
        ([], {"provenance": {**CLEAN, "commit": None, "dirty": None}}, "was not trained from a git checkout"),
        ([], {"evaluation": {"agent": [1.0, None]}}, "has returns that are no numbers"),

        ([], {"env_steps": 15_999}, "is not finished: `stormlit resume"),
    ],
)  # fmt: skip
def test_what_may_not_stand_there_is_refused(
    words: list[str], changes: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(tmp_path, finished(tmp_path / "runs", fake_result("mine", [1.0], *words, **changes))) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and not (tmp_path / "results").exists()


def test_a_result_stands_there_once_and_a_run_has_to_be_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs", fake_result("resumed", [1.0]))  # with more steps to take than its result has
    assert send(tmp_path, "resumed") == 2 and "resumed is not finished" in capsys.readouterr().err
    for name in ("mine", "again"):
        finished(tmp_path / "runs", fake_result(name, [1.0]))
    assert send(tmp_path, "mine") == 0
    file = tmp_path / "results" / "catch.csv"
    before = file.read_bytes()
    assert send(tmp_path, "again") == 2 and file.read_bytes() == before
    assert f"again is a duplicate: {file} has tiny on Catch with seed 0 already" in capsys.readouterr().err
    for damaged in (b"a,b\n1,2\n", before[:-30], b"\xff\xfe"):
        file.write_bytes(damaged)
        assert send(tmp_path, "again") == 2 and file.read_bytes() == damaged
        assert f"{file} " in capsys.readouterr().err


def test_the_readme_has_the_table_of_the_published_results() -> None:
    text = (REPOSITORY / "README.md").read_text()
    held = text.partition(publish.START)[2].partition(publish.END)[0]
    assert held.strip() == publish.table(REPOSITORY / "results")
    for name in publish.BENCHMARKS:
        publish.published(REPOSITORY / "results" / f"{name}.csv")
