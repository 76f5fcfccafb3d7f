"""--help: a screen, with flags that are there; and commands by their names."""

import contextlib
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import command as cli
from pipelines.cli import invocation
from pipelines.cli.parsing import parse

ROOT = Path(__file__).parents[2]
COMMANDS = ["shard", "train", "sample", "evaluate", "workflow", "sweep"]
NAMED = {"show": "RUN|MODEL|SAMPLES|REPORT|DATASET|SWEEP|FILE", "export": "RUN|MODEL"}
"""Commands about one thing that is there, and what that may be."""


def read(name: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The flags of a command, as it reads them."""
    taken: list[Any] = []

    def run_command(args_type: type[Any], about: str, *, often: Any = (), read: Any = None, **_: Any) -> None:
        of_recipe = {"often": often} if read is None else {}
        taken.append((read or parse)(args_type, list(argv), f"ddpm {name}", about, **of_recipe))

    monkeypatch.setattr(cli, "run_command", run_command)
    runpy.run_path(str(ROOT / f"pipelines/{name}.py"), run_name="__main__")
    return taken[0]


@pytest.mark.parametrize("name", [*COMMANDS, *NAMED])
def test_help_is_a_screen_and_each_of_its_flags_is_one(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        read(name, ["mnist", "--help"], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert len(lines) <= 42
    assert lines[0] == f"usage: ddpm {name} {NAMED.get(name, '[RECIPE]')} [flags]"
    flags = [line.split()[0] for line in lines if line.startswith("  --") and "FIELD" not in line]
    assert flags[-3:] == ["--dry-run", "--json", "--help-all"]
    with pytest.raises(SystemExit):
        read(name, ["mnist", "--help-all"], monkeypatch)
    known = set(capsys.readouterr().out.replace(",", " ").split())
    assert set(flags[:-3]) <= known
    assert ("what they are for mnist" in "".join(lines)) == (name in COMMANDS)
    assert any(line.startswith(f"  python pipelines/{name}.py") for line in lines)
    said = "\n".join(lines[lines.index(next(line for line in lines if line.startswith("  --"))) :])
    assert said.count("(") == said.count(")")  # no meaning ends within brackets


@pytest.mark.parametrize("name", [*COMMANDS, *NAMED])
def test_every_flag_of_help_says_what_it_is(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        read(name, ["--help"], monkeypatch)
    flags = capsys.readouterr().out.split("flags that most people use")[1]
    said = re.findall(r"^  (--\S+)(?: .*?)??(?:  +|\n {30})(\w.*)$", flags, flags=re.M)
    assert [flag for flag, _ in said] == re.findall(r"^  (--\S+)", flags, flags=re.M)


def test_examples_are_typed_as_the_command_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invocation, "_typed_by_name", ["ddpm"])
    for script, argv, example in (
        ("store", ["--help"], "ddpm store list"),
        ("doctor", ["--help"], "ddpm doctor --store"),
    ):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *argv])
        with contextlib.suppress(SystemExit):
            runpy.run_path(str(ROOT / f"pipelines/{script}.py"), run_name="__main__")
        out = capsys.readouterr().out
        assert (example in out, "python pipelines" in out) == (True, False)


def test_a_command_by_its_name_is_that_of_its_file(tmp_path: Path) -> None:
    def ended(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    unknown = ended("trian")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert unknown.stderr.endswith("did you mean train?\n")
    overview = ended()
    assert (overview.returncode, len(overview.stdout.splitlines())) == (0, 20)
    planned = ended("train", "digits", "--train.steps", "3", "--store", str(tmp_path), "--dry-run", "--json")
    assert '"steps": 3' in planned.stdout
    wrong = ended("train", "digits", "--train.step", "3")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_next_is_typed_as_this_command_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(invocation, "_typed_by_name", [])
    assert invocation.program("train.py") == "python pipelines/train.py"
    assert "pipelines/sample.py digits --store /s" in invocation.typed("sample.py", "digits", store="/s")
    script = tmp_path / "ddpm"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o700)
    monkeypatch.chdir(tmp_path.parent)
    invocation.by_name(str(script))
    assert invocation.program("train.py") == f"{tmp_path.name}/ddpm train"
    monkeypatch.setenv("PATH", str(tmp_path))
    invocation.by_name(str(script))
    assert invocation.typed("sample.py", "digits", store="/a b") == "ddpm sample digits --store '/a b'"
    assert invocation.ui("/s") == "ddpm ui --store /s"
    assert invocation.as_typed("  python pipelines/train.py\n  ray job submit -- python pipelines/train.py") == (
        "  ddpm train\n  ray job submit -- python pipelines/train.py"
    )
