"""docs/performance.md is what benchmarks/performance_page.py makes from the files in benchmarks/results/."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stormlit.cli.bench.counting import OperationCounter
from stormlit.cli.bench.phases import PHASES
from stormlit.cli.bench.report import as_json
from stormlit.errors import StormlitError
from stormlit.files import write_json
from test_bench import measured

REPOSITORY = Path(__file__).resolve().parents[1]
MADE = {"git_commit": "c" * 40, "git_dirty": "true", "device": "cpu (x86_64)", "version.torch": "2.9", "threads": 2}
H100 = {**MADE, "git_dirty": "false", "device": "cuda (NVIDIA H100 80GB)"}


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))


def rows(name: str, results: list[dict[str, Any]]) -> list[dict[str, str]]:
    columns, found = module("performance_tables").TABLES[name](results)
    assert all(len(row) == len(columns) for row in found)
    return [dict(zip(columns, row, strict=True)) for row in found]


def beside(
    size: str, precision: str, made: dict[str, Any], ratio: float = 2.0, frames: int = 100_000
) -> dict[str, Any]:
    """As ``against_official.py --time --json`` writes it: official is so many times slower everywhere."""
    timing = module("official_timing")
    parser = argparse.ArgumentParser()
    timing.add_arguments(parser)
    given = parser.parse_args(["--time", "--size", size, "--precision", precision, "--frames", str(frames)])
    arguments = argparse.Namespace(**vars(given), device="cpu", layers=2, heads=8)
    seconds = {row: [[[0.1 * ratio]], [[0.1]]] for row in timing.ROWS}
    return timing._result(seconds, arguments, made)


def made_up(step: str, what: str | None, numbers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    named = {"quick": False, "made_with": H100, "command": "python x.py", "settings": {}, **changes}
    return module("protocol_results").result(step, what, numbers=numbers, **named)


def test_the_page_is_what_the_results_make() -> None:
    page, results = module("performance_page"), module("protocol_results")
    assert page.render(page.PAGE.read_text(), results.read_all(results.FOLDER)) == page.PAGE.read_text()
    assert page.main(["--check"]) == 0
    marked = [found[1] for found in page.MARKED.findall(page.PAGE.read_text())]
    assert sorted(marked) == sorted(module("performance_tables").TABLES)


def test_hand_written_text_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, file = module("performance_page"), tmp_path / "page.md"
    file.write_text("before\n<!-- table: parity -->\nold\n<!-- end of table -->\nafter\n")
    (tmp_path / "results").mkdir()
    words = ["--results", str(tmp_path / "results"), "--page", str(file)]
    assert page.main([*words, "--check"]) == 1
    assert "old" in file.read_text()
    assert page.main(words) == 0
    assert page.main([*words, "--check"]) == 0
    before, *table, after = file.read_text().splitlines()
    assert (before, after) == ("before", "after")
    assert table[1].startswith("| device | quantity |")
    assert table[3].startswith("| a GPU | - |")
    file.write_text("<!-- table: nothing -->\n<!-- end of table -->\n")
    assert page.main(words) == 2
    assert "'nothing'" in capsys.readouterr().err


def test_targets_are_measured_by_the_results_they_name() -> None:
    assert [row["measured"] for row in rows("targets", [])] == ["-"] * 5
    found = [
        beside("4x64", "fp32", MADE, 2.2),
        beside("4x64", "bf16", MADE, 3.3, frames=500),  # not what the target is about
        beside("16x64", "bf16", H100, 9.0),
        beside("16x64", "bf16", {**MADE, "device": "cuda (other)"}, 7.0),
    ]
    measured_cells = [row["measured"] for row in rows("targets", found)]
    assert measured_cells == [
        "2.20 (2.20 - 2.20)",
        "-",
        "2.20 (2.20 - 2.20)",
        "2.20 (2.20 - 2.20)",
        "9.00 (9.00 - 9.00)",
    ]
    with pytest.raises(StormlitError, match=r"2 results .* delete the others"):
        rows("targets", [*found, beside("4x64", "fp32", MADE)])


def test_times_beside_the_released_code_are_tabled() -> None:
    first, *others = rows("official", [beside("4x64", "fp32", MADE), beside("4x64", "bf16", MADE, frames=500)])
    assert (first["device"], first["size"], first["whole step"]) == ("cpu (x86_64)", "4x64", "2.00 (100 ms)")
    assert first["made with"] == "ccccccc*, torch 2.9, 2 threads"
    assert [(row["device"], row["size"], row["precision"]) for row in others] == [
        ("cpu (x86_64)", "4x64, 500 frames", "bf16"),
        ("a CPU", "4x64", "bf16"),
        ("a GPU", "16x64", "fp32"),
        ("a GPU", "16x64", "bf16"),
    ]


def test_what_bench_writes_is_tabled(tmp_path: Path) -> None:
    results = module("protocol_results")
    settings = [measured([[0.1], [0.1]]), measured([[0.2], [0.2]])]
    for setting in settings:
        setting.counts.update({phase: OperationCounter() for phase in PHASES})
        setting.counts[PHASES[0]].operations["mm"] = 1500
    write_json(tmp_path / "cpu.json", as_json(settings, 2, "stormlit bench storm --rounds 2"))
    found = results.read_all(tmp_path)
    assert found[0]["command"] == "stormlit bench storm --rounds 2"
    assert "operations_by_name" not in str(found)
    one, two, *missing = rows("bench", found)
    assert (one["setting"], one["sizes"], one["steps/s"]) == ("`made up`", "16x64, 1024x(8+16)", "10")
    assert (one["operations a step"], one["peak memory"], two["imagination, ms"]) == ("1,500", "-", "200")
    assert [row["setting"] for row in missing] == ["eager-fp32", "eager-bf16", "compiled-fp32", "compiled-bf16"]

    alone = made_up("bench", "compiled-bf16", results.bench_numbers(as_json(settings[:1], 2, "")))
    shown, *missing = rows("bench", [alone])
    assert (shown["setting"], shown["made with"]) == ("compiled-bf16", "ccccccc, torch 2.9, 2 threads")
    assert shown["peak memory"].endswith(" MiB")
    assert len(missing) == 3
    assert rows("targets", [alone])[-1]["measured"] == "-, 10 steps/s"


def test_parity_processes_and_runs_are_tabled() -> None:
    exact = {"values": {"absolute": 0.5, "relative": 2e-6}}
    [values] = rows("parity", [made_up("parity", None, {"fp32": exact, "bf16": exact})])
    assert (values["quantity"], values["fp32"], values["tf32"]) == ("values", "2.0e-06 (5.0e-01)", "-")

    def several(count: int, each: float) -> dict[str, Any]:
        numbers = {
            "processes": [{"peak_bytes": 2**30}] * count,
            "env_steps_per_second": [each] * count,
            "total_env_steps_per_second": each * count,
            "device_bytes": 2**31,
        }
        return made_up("processes", str(count), numbers)

    one, two, three, _four = rows("processes", [several(2, 30.0), several(1, 40.0)])
    assert (one["in all"], one["times one"], two["in all"], two["times one"]) == ("40", "1.00", "60", "1.50")
    assert (two["memory of each"], two["device memory taken"]) == ("1,024 MiB, 1,024 MiB", "2,048 MiB")
    assert (three["processes"], three["in all"]) == ("3", "-")

    piece = {"device": H100["device"], "git_commit": "d" * 40, "git_dirty": "false", "seconds": 300.0}
    numbers = {"env_steps": 5000, "budget": 100_000, "seconds": 600.0, "latest_return": -20.5, "pieces": [piece] * 2}
    [run] = rows("train", [made_up("train", "storm-pong-s0", {**numbers, "evaluation": None})])
    assert (run["environment steps"], run["minutes"], run["pieces"]) == ("5,000 of 100,000", "10.0", "2")
    assert (run["latest return"], run["evaluation"]) == ("-20.50", "-")
    played = {"game": "Pong", "mean": 11.0, "standard_error": 1.5, "episodes": 20, "human_normalized": 0.9}
    ended = {**numbers, "env_steps": 100_000, "evaluation": played}
    [run] = rows("train", [made_up("train", "storm-pong-s0", ended)])
    assert (run["environment steps"], run["evaluation"]) == ("100,000", "11.00 ± 1.50 (20 episodes)")
    assert (run["human-normalised"], run["made with"]) == ("0.900", "ddddddd, torch 2.9")
