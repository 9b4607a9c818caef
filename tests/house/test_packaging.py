"""What is installed: requirements, version, console scripts, and the files in the wheel."""

from __future__ import annotations

import configparser
import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement

import stormlit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_every_requirement_has_a_lower_bound(setup_cfg: configparser.ConfigParser) -> None:
    listed = [setup_cfg["options"]["install_requires"], *setup_cfg["options.extras_require"].values()]
    requirements = [Requirement(line) for lines in listed for line in lines.split("\n") if line]
    assert len(requirements) > 10
    without = [r.name for r in requirements if not any(bound.operator in (">=", "==") for bound in r.specifier)]
    assert without == []


def test_environments_of_bundled_configurations_come_with_the_package(setup_cfg: configparser.ConfigParser) -> None:
    ids = [OmegaConf.load(file).get("env", {}).get("id") or "" for file in (ROOT / "configs").glob("*.yaml")]
    packages = {id.partition("/")[0].lower() for id in ids if "/" in id} - {"stormlit"}
    required = {Requirement(line).name for line in setup_cfg["options"]["install_requires"].split("\n") if line}
    assert packages == {"minatar"} and packages <= required


def test_version_is_the_one_in_setup_cfg(setup_cfg: configparser.ConfigParser) -> None:
    assert stormlit.__version__ == setup_cfg["metadata"]["version"]


def test_console_scripts_name_functions(setup_cfg: configparser.ConfigParser) -> None:
    lines = setup_cfg["options.entry_points"]["console_scripts"].strip().split("\n")
    targets = dict(line.split(" = ") for line in lines)
    assert targets.keys() == {"stormlit", "lightning"}
    for target in targets.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_a_wheel_built_from_the_source_archive_has_the_data_files_and_writes_a_report(tmp_path: Path) -> None:
    # A copy: build output left in the repository would hide a file that is missing from the archive.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))

    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr

    (wheel,) = tmp_path.glob("stormlit-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    configs = {f"stormlit/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert {"stormlit/configs/storm.yaml", "stormlit/configs/quickstart.yaml"} <= configs
    assert "stormlit/cli/scripts/fabric_entry.py" in modules
    data = {"stormlit/py.typed", "stormlit/envs/atari_scores.csv", "stormlit/reports/page.html.j2"}
    data |= {f"stormlit/reports/{name}" for name in ("atari100k_scores.csv", "page.css", "page.md.j2")}
    expected = modules | configs | data
    assert expected - packed == set()
    assert not any(name.startswith(("tests/", "configs/")) for name in packed)

    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    shutil.copytree(ROOT / "tests" / "reports" / "run_of_0.1.0", tmp_path / "runs" / "tiny")
    command = [sys.executable, "-m", "stormlit", "report", "tiny", "-o", "report"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Catch" in (tmp_path / "report" / "report.html").read_text()
