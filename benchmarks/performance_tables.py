"""Each table of docs/performance.md as columns and rows of cells; what was not run is a dash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from official_timing import SAMPLE_16X64
from protocol_results import Result, ResultError

from stormlit.cli.bench.measure import WHOLE
from stormlit.cli.bench.phases import ACTING, AGENT, IMAGINATION, PHASES, WORLD_MODEL

Table = tuple[list[str], list[list[str]]]
NOTHING = "-"
FRAMES = 100_000
PAPER = "16x64, 1024x(8+16)"
OFFICIAL = "python benchmarks/against_official.py --official PATH_TO_A_CLONE --time"
ON_GPU = "python benchmarks/gpu_protocol.py"


@dataclass(frozen=True)
class Target:
    """A row of the targets: a ratio of ``against_official.py --time``.  device: a part of its name."""

    where: str
    target: str
    moonshot: str
    device: str
    size: str
    precision: str
    phase: str
    command: str


TARGETS = (
    Target(
        "CPU, 2 cores, 4x64 and 128x(8+16), width 512, fp32, whole step",
        *("2.1", "2.5", "cpu", "4x64", "fp32", WHOLE, f"{OFFICIAL} --size 4x64 --precision fp32"),
    ),
    Target(
        "the same in bf16 where the CPU has it",
        *("3.5", "4", "cpu", "4x64", "fp32-bf16", WHOLE, f"{OFFICIAL} --size 4x64 --precision fp32-bf16"),
    ),
    Target(
        "imagination alone, fp32",
        *("2.6", "3.5", "cpu", "4x64", "fp32", IMAGINATION, f"{OFFICIAL} --size 4x64 --precision fp32"),
    ),
    Target(
        "replay sample 16x64 from 100k frames",
        *("30", "34", "cpu", "4x64", "fp32", SAMPLE_16X64, f"{OFFICIAL} --size 4x64 --precision fp32"),
    ),
    Target(
        "one H100, paper's sizes, steps/s",
        *("8", "15: 100k steps under 12 minutes", "H100", "16x64", "bf16", WHOLE),
        f"{ON_GPU} --official PATH_TO_A_CLONE --only bench official",
    ),
)


def targets(results: Sequence[Result]) -> Table:
    """What is to be reached, and the medians (quartiles) of the ratios that were."""
    rows = []
    for row in TARGETS:
        measured = _ratio_of(results, row)
        if row.device == "H100" and (fastest := _fastest(results, row.device)) is not None:
            measured = f"{measured}, {_short(fastest)} steps/s"
        rows.append([row.where, "1", row.target, row.moonshot, measured, f"`{row.command}`"])
    return ["where", "official = 1", "target", "moonshot", "measured", "command"], rows


def _ratio_of(results: Sequence[Result], row: Target) -> str:
    found = [
        one["numbers"]["phases"][row.phase]["ratio"]
        for one in _of(results, "official")
        if row.device in one["made_with"]["device"]
        and (one["settings"]["size"], one["settings"]["precision"]) == (row.size, row.precision)
        and one["settings"]["frames"] == FRAMES
        and not one["settings"]["overrides"]
    ]
    if len(found) > 1:
        raise ResultError(
            f"{len(found)} results of the official code at {row.size} in {row.precision} on devices like "
            f"'{row.device}': expected one; delete the others"
        )
    return _ratio(found[0]) if found else NOTHING


def _fastest(results: Sequence[Result], device: str) -> float | None:
    """Environment steps a second at the paper's sizes, in whichever setting of ``bench``."""
    rates = [
        setting["whole_step"]["env_steps_per_second"]
        for one in _of(results, "bench")
        if device in one["made_with"]["device"]
        for setting in one["numbers"]["settings"]
        if setting["sizes"] == PAPER
    ]
    return max(rates, default=None)


def official(results: Sequence[Result]) -> Table:
    """Official / stormlit, and our milliseconds."""
    phases = (WHOLE, WORLD_MODEL, IMAGINATION, AGENT, ACTING, SAMPLE_16X64)
    columns = ["device", "size", "precision", *phases, "made with"]
    rows = [
        [
            *(one["made_with"]["device"], _size(one["settings"]), one["settings"]["precision"]),
            *(_beside(one["numbers"]["phases"][phase]) for phase in phases),
            _made_with(one),
        ]
        for one in _of(results, "official")
    ]
    expected = [["cpu", "4x64", "fp32"], ["cpu", "4x64", "bf16"], ["cuda", "16x64", "fp32"], ["cuda", "16x64", "bf16"]]
    return columns, _with_missing(rows, expected)


def _size(settings: dict[str, Any]) -> str:
    """And what departs from the usual."""
    frames = [] if settings["frames"] == FRAMES else [f"{settings['frames']:,} frames"]
    return ", ".join([settings["size"], *frames, *settings["overrides"]])


def bench(results: Sequence[Result]) -> Table:
    """What ``stormlit bench`` measured; operations and host syncs are those of one environment step."""
    phases = (WORLD_MODEL, IMAGINATION, AGENT, ACTING)
    columns = ["device", "setting", "sizes", "steps/s", *(f"{phase}, ms" for phase in phases)]
    columns += ["operations a step", "host syncs a step", "peak memory", "made with"]
    rows = []
    for one in _of(results, "bench"):
        settings = one["numbers"]["settings"]
        for setting in settings:
            # A process has one peak: where it measured several settings, it is of none.
            peak = _mebibytes(one["numbers"]["peak_memory"]["bytes"]) if len(settings) == 1 else NOTHING
            measured = setting["phases"]
            counts = [
                sum(measured[phase][counted] * measured[phase]["times_per_env_step"] for phase in PHASES)
                for counted in ("operations", "host_syncs")
            ]
            rows.append(
                [
                    *(one["made_with"]["device"], one["what"] or f"`{setting['name']}`", setting["sizes"]),
                    _short(setting["whole_step"]["env_steps_per_second"]),
                    *(_milliseconds(measured[phase]["seconds"]["median"]) for phase in phases),
                    *(f"{count:,.0f}" for count in counts),
                    *(peak, _made_with(one)),
                ]
            )
    expected = [["cuda", f"{mode}-{precision}"] for mode in ("eager", "compiled") for precision in ("fp32", "bf16")]
    return columns, _with_missing(rows, expected, len(columns))


def parity(results: Sequence[Result]) -> Table:
    """Differences from float32 on the CPU, relative to the largest number, and absolute."""
    kinds = ("fp32", "tf32", "bf16", "bf16 on the CPU")
    columns = ["device", "quantity", *kinds, "made with"]
    rows = [
        [
            *(one["made_with"]["device"], quantity),
            *(_difference(one["numbers"].get(kind, {}).get(quantity)) for kind in kinds),
            _made_with(one),
        ]
        for one in _of(results, "parity")
        for quantity in one["numbers"]["fp32"]
    ]
    return columns, _with_missing(rows, [["cuda"]], len(columns))


def processes(results: Sequence[Result]) -> Table:
    """The same seconds side by side."""
    columns = ["device", "processes", "steps/s of each", "in all", "times one", "memory of each", "device memory taken"]
    columns.append("made with")
    found = sorted(_of(results, "processes"), key=lambda one: (one["made_with"]["device"], int(one["what"])))
    alone = {
        one["made_with"]["device"]: one["numbers"]["total_env_steps_per_second"] for one in found if one["what"] == "1"
    }
    rows = []
    for one in found:
        device, numbers = one["made_with"]["device"], one["numbers"]
        total, taken = numbers["total_env_steps_per_second"], numbers["device_bytes"]
        rows.append(
            [
                *(device, one["what"], ", ".join(_short(rate) for rate in numbers["env_steps_per_second"])),
                *(_short(total), f"{total / alone[device]:.2f}" if device in alone else NOTHING),
                ", ".join(_mebibytes(each["peak_bytes"]) for each in numbers["processes"]),
                *(_mebibytes(taken) if taken else NOTHING, _made_with(one)),
            ]
        )
    return columns, _with_missing(rows, [["cuda", str(count)] for count in (1, 2, 3, 4)], len(columns))


def train(results: Sequence[Result]) -> Table:
    """Whole runs, and those that are not at their end yet."""
    columns = ["device", "run", "environment steps", "minutes", "pieces", "latest return", "evaluation"]
    columns += ["human-normalised", "made with"]
    rows = []
    for one in _of(results, "train"):
        numbers, evaluation, score = one["numbers"], NOTHING, NOTHING
        if played := numbers["evaluation"]:
            evaluation = f"{played['mean']:.2f} ± {played['standard_error']:.2f} ({played['episodes']} episodes)"
            score = NOTHING if played["human_normalized"] is None else f"{played['human_normalized']:.3f}"
        steps = f"{numbers['env_steps']:,}"
        if numbers["env_steps"] < numbers["budget"]:
            steps += f" of {numbers['budget']:,}"
        latest = NOTHING if numbers["latest_return"] is None else f"{numbers['latest_return']:.2f}"
        devices = dict.fromkeys(piece["device"] for piece in numbers["pieces"])
        made = dict.fromkeys(_commit(piece) for piece in numbers["pieces"])
        minutes, pieces = f"{numbers['seconds'] / 60:.1f}", str(len(numbers["pieces"]))
        rows.append(
            [
                *("; ".join(devices), one["what"], steps, minutes, pieces),
                *(latest, evaluation, score, f"{', '.join(made)}, torch {one['made_with']['version.torch']}"),
            ]
        )
    return columns, _with_missing(rows, [["cuda", "storm-pong-s0"]], len(columns))


TABLES: dict[str, Callable[[Sequence[Result]], Table]] = {
    "targets": targets,
    "official": official,
    "bench": bench,
    "parity": parity,
    "processes": processes,
    "train": train,
}


def _of(results: Sequence[Result], step: str) -> list[Result]:
    return [one for one in results if one["step"] == step]


def _with_missing(rows: list[list[str]], expected: list[list[str]], width: int = 10) -> list[list[str]]:
    """The rows, and behind them one for each that is expected (its kind of device and first cells) and not there."""
    for kind, *cells in expected:
        if not any(row[0].startswith(kind) and row[1 : 1 + len(cells)] == cells for row in rows):
            name = {"cpu": "a CPU", "cuda": "a GPU"}[kind]
            rows.append([name, *cells, *[NOTHING] * (width - 1 - len(cells))])
    return rows


def _made_with(one: Result) -> str:
    made_with = one["made_with"]
    return f"{_commit(made_with)}, torch {made_with['version.torch']}, {made_with['threads']} threads"


def _commit(made_with: dict[str, str]) -> str:
    return made_with["git_commit"][:7] + ("*" if made_with["git_dirty"] == "true" else "")


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} - {ratio['high']:.2f})"


def _beside(numbers: dict[str, dict[str, float]]) -> str:
    return f"{numbers['ratio']['median']:.2f} ({_milliseconds(numbers['stormlit_seconds']['median'])} ms)"


def _difference(found: dict[str, float] | None) -> str:
    return NOTHING if found is None else f"{found['relative']:.1e} ({found['absolute']:.1e})"


def _milliseconds(seconds: float) -> str:
    return _short(seconds * 1e3)


def _short(number: float) -> str:
    """Three digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _mebibytes(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB"
