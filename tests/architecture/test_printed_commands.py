"""Every command that a page prints is one: its recipe and its flags exist, and its values are some."""

import argparse
import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli import command as cli
from pipelines.cli.parsing import parse as parse_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_COMMAND = re.compile(r"^    .*?python (pipelines/\w+\.py.*)$", flags=re.M)
_DDPM = re.compile(r"^    ddpm (\w+)(.*)$", flags=re.M)
_SHELL = re.compile(r"^!.*?\bddpm (\w+)(.*?)(?: \| .*)?$", flags=re.M)
_MEASURES = re.compile(r"python (tests/[\w/]+\.py.*?)(?:`|  |$)", flags=re.M)


def printed(what: re.Pattern[str] = _COMMAND) -> list[tuple[str, str]]:
    return [(page.name, command) for page in PAGES for command in what.findall(page.read_text())]


def deployed() -> list[tuple[str, str]]:
    """What pods and containers are told to run."""
    found = []
    for path in [*sorted((ROOT / "infra/kubernetes").rglob("*.yaml")), ROOT / "infra/compose.yaml"]:
        for line in re.findall(r"^#.*?(pipelines/\w+\.py.*)$", path.read_text(), flags=re.M):
            found.append((path.name, line))
        todo = list(yaml.safe_load_all(path.read_text()))
        while todo:
            each = todo.pop()
            todo += each.values() if isinstance(each, dict) else each if isinstance(each, list) else []
            command = each.get("entrypoint", each.get("command")) if isinstance(each, dict) else None
            command = shlex.join(command) if isinstance(command, list) else command or ""
            found += [(path.name, one) for one in re.findall(r"python .*?(pipelines/\w+\.py.*)$", command)]
    return found


def shell_lines() -> list[tuple[str, str]]:
    """What the pages type as `ddpm`, and the notebooks have the shell do, as the scripts that it calls."""
    lines = [(page.name, *words) for page in PAGES for words in _DDPM.findall(page.read_text())]
    found = [(page, f"pipelines/{name}.py{flags}") for page, name, flags in lines]
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        found += [(path.name, f"pipelines/{name}.py{flags}") for name, flags in _SHELL.findall("\n".join(code))]
    return found


def parse(command: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The flags of a command, as its script reads them; nothing is checked, and nothing started."""
    script, *argv = shlex.split(command.partition(" > ")[0], comments=True)
    opened: list[Any] = []

    def run_command(args_type: type[Any], about: str, *, read: Any = None, argv: Any = None, **_: Any) -> None:
        left = [each for each in (sys.argv[1:] if argv is None else argv) if each not in {"--dry-run", "--json"}]
        opened.append((read or parse_recipe)(args_type, left, script, about))

    monkeypatch.setattr(cli, "run_command", run_command)
    monkeypatch.setattr(sys, "argv", [script, *argv])
    runpy.run_path(str(ROOT / script), run_name="__main__")
    return opened[0]


@pytest.mark.parametrize(("page", "command"), [*printed(), *deployed()])
def test_a_printed_command_is_one(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(command, monkeypatch).store


@pytest.mark.parametrize(("page", "command"), shell_lines())
def test_a_shell_line_is_one(page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # what `ddpm new` has written by then
    (tmp_path / "flowers.toml").write_text('project = "flowers"\n[data]\nsource = "photos"\n')
    monkeypatch.chdir(tmp_path)
    assert parse(command, monkeypatch).store


@pytest.mark.parametrize(("page", "command"), printed(_MEASURES))
def test_a_printed_measurement_is_one(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Read(BaseException):
        """Of the flags: nothing after it runs."""

    read = argparse.ArgumentParser.parse_known_args

    def read_and_end(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        _, left = read(parser, *args, **kwargs)
        raise Read(left)

    script, *argv = shlex.split(command)
    if script.endswith("mutation.py"):
        pytest.importorskip("libcst", reason="in the extra that its page names first")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", read_and_end)
    monkeypatch.setattr(sys, "argv", [script, *argv])
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    with pytest.raises(Read) as flags:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert flags.value.args == ([],)


def test_one_that_is_none_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(printed()) > 15
    assert {page for page, _ in shell_lines()} > {"README.md", "projects.md", "own_photos.ipynb"}
    assert [page for page, _ in deployed()] == ["schedule.yaml", "rayjob.yaml", "compose.yaml"]
    for wrong in ("pipelines/train.py digits --train.step 3", "pipelines/train.py digit", "pipelines/trian.py digits"):
        with pytest.raises((ValueError, OSError)):
            parse(wrong, monkeypatch)
