"""Reports on runs: their numbers by hand, what they say cannot be concluded, what they refuse, and the page itself."""

from __future__ import annotations

import csv
import dataclasses
import re
import shutil
import statistics
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fake_runs import fake_result, write_run
from stormlit.cli import main
from stormlit.errors import ConfigError
from stormlit.files import write_json
from stormlit.reports.caveats import what_cannot_be_concluded
from stormlit.reports.find_runs import gather
from stormlit.reports.table import Comparison, compare
from stormlit.reports.write import write_report

GRU = "world_model.sequence_model={name: gru}"
# Returns of each seed's last evaluation.
BASE = {0: [0.0, 1.0, -1.0], 1: [1.0, 1.0, -1.0], 2: [1.0, 1.0, 1.0]}
OTHER = {0: [1.0, 1.0, -1.0], 1: [1.0, 1.0, 1.0], 2: [1.0, 1.0, 1.0]}


def write_grid(root: Path, **variants: dict[int, list[float | None]]) -> Path:
    for variant, seeds in variants.items():
        for seed, returns in seeds.items():
            words = (f"seed={seed}", *([GRU] if variant == "gru" else []))
            write_run(root, fake_result(f"{variant}-s{seed}", returns, *words, variant=variant, group="demo"))
    return root


def compared(root: Path, **options: Any) -> Comparison:
    return compare(gather([str(root)], root), **options)


def sentences(root: Path) -> str:
    return "\n".join(what_cannot_be_concluded(compared(root)))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report on two variants with three seeds each, and a dream."""
    root = write_grid(tmp_path_factory.mktemp("runs"), base=BASE, gru=OTHER)
    media = root / "gru-s0" / "media"
    media.mkdir()
    _, picture = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))
    (media / "dream-000005000.png").write_bytes(picture.tobytes())
    output = root / "report"
    assert main(["report", "demo", f"run.dir={root}", "-o", str(output)]) == 0
    return output


def test_numbers_of_an_environment_by_hand(written: Path) -> None:
    rows = list(csv.DictReader((written / "scores.csv").open()))
    base, gru = [0.0, 1 / 3, 1.0], [1 / 3, 1.0, 1.0]
    assert [float(row["return"]) for row in rows] == pytest.approx([*base, *gru])
    # Random play scores -0.5, which is 0; the base's mean 4/9 is 1.
    span = 4 / 9 + 0.5
    assert [float(row["scaled"]) for row in rows] == pytest.approx([(score + 0.5) / span for score in [*base, *gru]])
    text = (written / "report.md").read_text()
    errors = [statistics.stdev(scores) / 3**0.5 for scores in (base, gru)]
    assert f"| Catch | base | 3 | 0.4444 | {errors[0]:.2g} | 0: 0, 1: 0.3333, 2: 1 |" in text
    assert f"| Catch | gru | 3 | 0.7778 | {errors[1]:.2g} | 0: 0.3333, 1: 1, 2: 1 |" in text
    # Differences by seed 1/3, 2/3 and 0. Of the 8 patterns of signs, those that flip neither or both of the first two
    # have a mean as far from 0 as theirs, whatever the sign of the third: 4.
    error = statistics.stdev([1 / 3, 2 / 3, 0.0]) / 3**0.5
    assert f"| Catch | gru | 3 | +0.3333 | {error:.2g} | 2 of 3 | 0.5 |" in text
    # Of 9 pairs of runs gru wins 2 + 3 * ... : 1/3 beats 0 and ties with 1/3; 1 beats two and ties with 1, twice.
    assert f"| gru | {(1.5 + 2.5 + 2.5) / 9:.3f} [" in text
    aggregated = {(r["variant"], r["statistic"]): r for r in csv.DictReader((written / "aggregates.csv").open())}
    assert float(aggregated["gru", "mean"]["value"]) == pytest.approx((7 / 9 + 0.5) / span)
    assert float(aggregated["base", "mean"]["value"]) == pytest.approx(1.0)


class Page(HTMLParser):
    """Every tag with its attributes; a tag that is closed in the wrong place is an error."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_from_elsewhere_and_is_well_formed(written: Path) -> None:
    text = (written / "report.html").read_text()
    page = Page(text)
    assert set(re.findall(r"https?://[^\"' )]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    used = re.findall(r'(?:url\(#|href="#)([^)"]+)', text)
    assert used and set(used) <= set(ids)
    for tag, attributes in page.tags:
        for name in ("src", "href", "poster"):
            value = attributes.get(name) or attributes.get(f"xlink:{name}") or "#"
            assert value.startswith(("data:", "#")), (tag, value)
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]
    assert not re.search(r"#0[0-9]0[0-9]0[0-9]\b|#0000a", text), "a stand-in was left in place of a colour"
    assert text.count("<img alt=") == 1


def test_the_same_runs_make_the_same_page(written: Path) -> None:
    again = write_report(["demo"], written.parent, written.parent / "again")
    assert again[0].read_bytes() == (written / "report.html").read_bytes()


def test_runs_are_found_by_name_folder_group_and_experiment(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "runs", base=BASE, gru=OTHER)
    copied = root / "artifacts" / "id-gru-s1" / "artifacts"  # where MLflow keeps a copy of each result
    copied.mkdir(parents=True)
    shutil.copy(root / "gru-s1" / "result.json", copied)
    assert [run.name for run in gather(["gru-s1"], root)] == ["gru-s1"]
    assert [run.name for run in gather(["id-gru-s1"], root)] == ["gru-s1"]
    assert len(gather([str(root)], tmp_path)) == len(gather(["demo"], root)) == len(gather(["stormlit"], root)) == 6
    assert [run.name for run in gather(["gru-s1", "demo"], root)][:2] == ["gru-s1", "base-s0"]
    with pytest.raises(ConfigError, match=r"no run, folder of runs, group or experiment 'demmo' .*did you mean 'demo'"):
        gather(["demmo"], root)


def test_a_grid_has_an_order_a_base_and_cells_that_never_began(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "demo", gru=OTHER, wide=BASE)
    names = ["wide-s0", "wide-s1", "wide-s2", "gru-s0", "gru-s1", "gru-s2", "gru-s3"]
    content = {"format": 1, "base": "wide", "cells": [{"name": name} for name in names]}
    write_json(root / "grid.json", content)
    write_run(root, fake_result("stray", [0.0], "seed=9", variant="gru"))
    assert [run.name for run in gather(["demo"], tmp_path)] == names
    [_, text, *_] = write_report(["demo"], tmp_path, tmp_path / "out")
    assert "The base is 'wide'. 1 run not finished." in text.read_text() and "gru-s3 (step 0)" in text.read_text()
    content["base"] = "away"  # none of its cells is finished
    write_json(root / "grid.json", content)
    assert "The base is 'wide'." in write_report(["demo"], tmp_path, tmp_path / "out")[1].read_text()


def test_runs_outside_a_grid_are_named_by_what_they_change(tmp_path: Path) -> None:
    for name, words in {"a": [], "b": [GRU], "c": ["world_model.tokens=separate"]}.items():
        write_run(tmp_path, fake_result(name, [1.0, 0.0], *words))
    assert compared(tmp_path).variants == ["base", "sequence_model=gru", "tokens=separate"]
    assert compared(tmp_path, base="tokens=separate").base == "tokens=separate"


def test_one_seed(tmp_path: Path) -> None:
    root = write_grid(tmp_path, base={0: [1.0, 0.0]}, gru=OTHER)
    assert "There is one seed of base in Catch." in sentences(root)
    assert "Seeds are missing: base in Catch (seed 1 and 2)" in sentences(root)
    [output, *_] = write_report([str(root)], root, root / "report")
    assert "| base | 1.000 | 1.000 |" in output.with_suffix(".md").read_text()  # without an interval


def test_overlapping_intervals(tmp_path: Path) -> None:
    root = write_grid(tmp_path, base=BASE, gru=OTHER)
    told = sentences(root)
    assert "these runs do not show that it differs from 'base'" in told and "gru 1.353 [" in told
    assert "No environment has more than 3 pairs of runs" in told and "probability 0.25" in told
    assert "With 3 seeds, intervals are too narrow" in told and "in another than Catch" in told
    assert "the mean of 3 episodes" in told


def test_intervals_apart(tmp_path: Path) -> None:
    low: dict[int, list[float | None]] = {seed: [-0.3, -0.2 + 0.01 * seed] for seed in range(6)}
    high: dict[int, list[float | None]] = {seed: [0.9, 0.8 + 0.01 * seed] for seed in range(6)}
    told = sentences(write_grid(tmp_path, base=low, gru=high))
    assert "do not show" not in told and "too narrow" not in told and "No environment has more" not in told


def test_unfinished_runs_and_budgets_and_code(tmp_path: Path) -> None:
    root = write_grid(tmp_path, base=BASE)
    write_json(root / "gru-s0" / "run.json", {"name": "gru-s0", "run_id": "1"})
    write_json(root / "gru-s0" / "checkpoints" / "step-000002500" / "manifest.json", {})
    assert "This report is partial: 1 run is not finished and in no figure: gru-s0 (step 2,500)." in sentences(root)
    assert "There is one variant" in sentences(root)
    result = fake_result("long-s0", [1.0], "loop.env_steps=20000", variant="long")
    write_run(root, dataclasses.replace(result, provenance={**result.provenance, "commit": "fedcba", "dirty": True}))
    told = sentences(root)
    assert "Budgets differ in Catch, in environment steps: base 16,000; long 20,000." in told
    assert "Runs differ in code (commit): 0123456789ab and fedcba." in told and "uncommitted code" in told


def test_returns_that_are_no_numbers_are_left_out_and_named(tmp_path: Path) -> None:
    root = write_grid(tmp_path, base=BASE, gru={0: [1.0, None], 1: [1.0, 1.0]})
    assert "1 run is left out because the last evaluation has returns that are no numbers: gru-s0." in sentences(root)
    assert compared(root).scores("gru", "Catch").tolist() == [1.0]
    only = write_grid(tmp_path / "only", base={0: [None]})
    with pytest.raises(ConfigError, match="every run that is finished has returns that are no numbers"):
        compared(only)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["evaluation.episodes=7"], r"evaluation.episodes is 100 in one and 7 in the other, .* of one protocol"),
        (["env.max_episode_steps=7"], "were not measured alike: env.max_episode_steps is null in one and 7 in the"),
    ],
)
def test_mixed_protocols_are_refused(tmp_path: Path, words: Sequence[str], sentence: str) -> None:
    root = write_grid(tmp_path, base=BASE)
    write_run(root, fake_result("odd", [1.0], *words, variant="odd"))
    with pytest.raises(ConfigError, match=f"the runs base-s0 and odd of Catch .*{sentence}"):
        compared(root)


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_grid(tmp_path / "runs", base=BASE)
    for words, sentence in (
        ([f"run.dir={root}", "--base", "bsae"], "--base=bsae: there is no variant of that name (did you mean 'base'?)"),
        ([f"run.dir={root}", "--reference", "x"], "--reference=x: expected one variant or ENVIRONMENT=SCORE"),
        ([f"run.dir={root}", "--reference", "Ctch=1"], "no run is of Ctch (did you mean 'Catch'?)"),
        ([f"run.dir={root}", "--reference", "Catch=much"], "expected a score, such as Catch=1.0"),
        ([f"run.dir={root}", "seed=1"], "'seed=1': a report changes no setting"),
    ):
        assert main(["report", "demo", "-o", str(tmp_path / "out"), *words]) == 2
        assert sentence in capsys.readouterr().err
    write_run(root, fake_result("again", [1.0], variant="base"))
    with pytest.raises(ConfigError, match="are the same: variant 'base', Catch, seed 0"):
        compared(root)
    write_json(tmp_path / "open" / "a" / "run.json", {"name": "a", "run_id": "1"})
    with pytest.raises(ConfigError, match="none of 1 runs is finished"):
        compared(tmp_path / "open")


def test_scales(tmp_path: Path) -> None:
    root = write_grid(tmp_path, base=BASE, gru=OTHER)
    given = compared(root, references=["Catch=1.0"])
    assert given.scales["Catch"] == (scale := given.scales["Catch"]) and (scale.zero, scale.one) == (-0.5, 1.0)
    assert compared(root, references=["gru"]).scales["Catch"].one == pytest.approx(7 / 9)
    bad = write_grid(tmp_path / "bad", base={0: [-1.0], 1: [-1.0]})
    assert compared(bad).scales == {} and "no more than random play's -0.5" in compared(bad).scale
    [page, *_] = write_report([str(bad)], bad, tmp_path / "out")
    assert "There are no aggregates" in page.read_text()


def test_atari_stands_beside_the_literature(tmp_path: Path) -> None:
    for seed in range(2):
        for game, score in (("Pong", 14.6), ("Freeway", 29.6)):
            result = fake_result(f"{game}-{seed}", [score], f"env.game={game}", f"seed={seed}", config="storm")
            write_run(tmp_path, result)
    comparison = compared(tmp_path)
    assert (
        comparison.is_atari
        and [score.tolist() for score in comparison.normalised("base")] == [pytest.approx([1.0, 1.0])] * 2
    )
    [page, text, *_] = write_report([str(tmp_path)], tmp_path, tmp_path / "report")
    # STORM: Freeway 0, Pong 11.28: (0 + 31.98 / 35.3) / 2.
    assert f"| STORM | {(31.98 / 35.3) / 2:.3f} [" in text.read_text()
    assert "122.2%" in page.read_text() and "126.7%" in page.read_text()


@pytest.mark.slow
def test_more_variants_than_colours_get_a_figure_each(tmp_path: Path) -> None:
    variants = {f"v{index}": {0: [0.1 * index], 1: [0.2]} for index in range(9)}
    root = write_grid(tmp_path, **variants)  # type: ignore[arg-type]
    captions = re.findall(
        r"<figcaption>(Catch, .*?)</figcaption>", write_report(["demo"], root, root / "out")[0].read_text()
    )
    assert captions == [f"Catch, evaluations on the way: v{index}" for index in range(1, 9)]


def test_a_run_as_0_1_0_left_it(tmp_path: Path) -> None:
    """It was evaluated once, so that its curve is that of the training."""
    shutil.copytree(Path(__file__).parent / "run_of_0.1.0", tmp_path / "tiny")
    [page, text, scores, _] = write_report(["tiny"], tmp_path, tmp_path / "report")
    assert "Catch, episodes of the training" in page.read_text()
    assert "| Catch | base | 1 | 0 | - | 0: 0 |" in text.read_text() and "uncommitted code" in text.read_text()
    [row] = csv.DictReader(scores.open())
    assert (row["return"], row["episodes"], row["env_steps"]) == ("0.0", "2", "400")
