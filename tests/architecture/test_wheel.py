"""What `pip install` of a wheel gets: all of the two packages and nothing else, and commands that run from there."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

from pipelines.scheduling.jobs import _EXCLUDES

ROOT = Path(__file__).parents[2]
PACKAGES = ("ddpm_core", "pipelines")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, as building leaves traces."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(out)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def test_it_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    ours = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
    assert held == ours


def test_what_it_says_of_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        said = Parser().parsestr(file.read(metadata).decode())
        assert any(name.endswith("licenses/LICENSE") for name in file.namelist())
    assert wheel.name.endswith("-py3-none-any.whl")
    assert said["Requires-Python"] == ">=3.11"
    assert said["License-Expression"] == "Apache-2.0"
    assert {"pipelines", "dinov2", "onnx"} <= set(said.get_all("Provides-Extra", []))
    needed = [line for line in said.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {line.split("=")[0].split(">")[0] for line in needed} == {
        "torch",
        "numpy",
        "safetensors",
        "pillow",
        "cattrs",
    }


def test_its_commands_run_where_no_checkout_is(installed: Path, tmp_path: Path) -> None:
    code = "import sys, pipelines; print(pipelines.__file__); from pipelines.__main__ import main; sys.exit(main())"
    env = {**os.environ, "PYTHONPATH": str(installed), "HOME": str(tmp_path)}
    words = [sys.executable, "-c", code, "sample", "--dry-run", "--json"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))
    assert '"sampler": {"name": "dpm_solver"' in done.stdout


@pytest.mark.parametrize("place", ["checkout", "installed"])
def test_a_scheduled_job_takes_the_project_along_and_nothing_else(place: str, installed: Path) -> None:
    """By what Ray itself makes of it; installed, the project lies among gigabytes of others."""
    root = ROOT if place == "checkout" else installed
    (installed / "another").mkdir(exist_ok=True)
    (installed / "another/large.bin").touch()
    taken: list[Path] = []
    _dir_travel(root, [_get_excludes(root, _EXCLUDES)], taken.append, include_gitignore=True)
    files = {path.relative_to(root) for path in taken if path.is_file()}
    assert {path.parts[0] for path in files} == set(PACKAGES)
    assert {Path("pipelines/sample.py"), Path("ddpm_core/evaluation/templates/report.css")} <= files
