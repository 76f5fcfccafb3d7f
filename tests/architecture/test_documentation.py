"""Every file and every name that the documentation mentions is in the tree."""

import ast
import re
from functools import cache
from pathlib import Path

import api_page
import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "docs/pictures/architecture.svg"]
_FILE = re.compile(r"(?<![\w/.-])(?:[\w-]+/)*\w+\.py\b")
_SPAN = re.compile(r"`([^`]+)`")
# `path/file.py: name, name` and `path/file.py`: `name`
_NAMED = re.compile(r"`((?:[\w-]+/)*\w+\.py)(?:: |`: `)([\w.]+(?:, [\w.]+)*)`")
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


@cache
def files() -> tuple[str, ...]:
    """Python files of the project, as posix paths below its root."""
    tops = ("ddpm_core", "pipelines", "infra", "tests")
    return tuple(path.relative_to(ROOT).as_posix() for top in tops for path in (ROOT / top).rglob("*.py"))


def found(file: str) -> list[str]:
    """The files that a mention may mean: one path below the root, or the end of one, as `order.py` in a list."""
    return [path for path in files() if path == file] or [path for path in files() if path.endswith(f"/{file}")]


@cache
def names(file: str) -> frozenset[str]:
    """What a file defines at its top, and `Class.member` of its classes."""
    return frozenset(_defined(ast.parse((ROOT / file).read_text()).body))


def _defined(body: list[ast.stmt], prefix: str = "") -> set[str]:
    defined: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(prefix + node.name)
        if isinstance(node, ast.ClassDef):
            defined |= _defined(node.body, f"{prefix}{node.name}.")
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {prefix + n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return defined


def missing(text: str) -> list[str]:
    """The mentions of a page that are not in the tree."""
    text = _SPAN.sub(lambda span: " ".join(span.group().split()), text)  # a span may run over the end of a line
    absent = [file for file in _FILE.findall(text) if not found(file)]
    for file, listed in _NAMED.findall(text):
        absent += [
            f"{file}: {name}"
            for name in listed.split(", ")
            if not _NAME.fullmatch(name) or not any(name in names(path) for path in found(file))
        ]
    return absent


def test_the_page_of_the_library_is_what_its_docstrings_say() -> None:
    assert (ROOT / "docs/api.md").read_text() == api_page.page()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_and_name_that_a_page_mentions_exists(page: Path) -> None:
    assert not missing(page.read_text())


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        ("`ddpm_core/data/order.py: StreamOrder.locate`, `order.py`, `ddpm_core/data/order.py`: `_SHARDS`", []),
        ("`ddpm_core/data/order.py: StreamOrder.lost`", ["ddpm_core/data/order.py: StreamOrder.lost"]),
        ("`ddpm_core/data/order.py:\nlocate`", ["ddpm_core/data/order.py: locate"]),
        ("`ddpm_core/data/order.py`: `nowhere`", ["ddpm_core/data/order.py: nowhere"]),
        ("python pipelines/trian.py", ["pipelines/trian.py"]),
        ("[here](ddpm_core/order.py)", ["ddpm_core/order.py"]),
    ],
)
def test_a_wrong_mention_is_found(text: str, absent: list[str]) -> None:
    assert missing(text) == absent
