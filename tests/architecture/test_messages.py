"""Every message that docs/troubleshooting.md explains is one that the code can say, as it stands there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/troubleshooting.md"
_OURS = "message"
"""What heads the first column where the messages are this project's; other heads are of other programs' messages."""
_VARIES = "\0"
"""Stands in a literal for what is filled in."""
_FILLED = re.compile(r"\b(?:NAME|PATH|URI|WORD|WHY|N)\b")
"""Stands for it on a page; `...` is for anything, at the end of one literal and the beginning of another."""
_SPAN = re.compile(r"(`+)(.+?)\1")
_FEWEST = 60


@cache
def literals() -> str:
    """All that the code says: its strings one after the other, each joined as the parser joins it."""
    found: list[str] = []
    for room in ("ddpm_core", "pipelines"):
        for path in (ROOT / room).rglob("*.py"):
            tree = ast.parse(path.read_text())
            told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
            found += [_text(node) for node in ast.walk(tree) if id(node) not in told]
    return "\n".join(filter(None, found))


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[sd]|\{\w*\}", _VARIES, node.value)  # of logging, and of str.format
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else _VARIES for part in node.values)
    return ""


def quoted(page: str) -> list[str]:
    """The first column of the tables of messages."""
    found: list[str] = []
    ours = False
    for line, after in zip(page.splitlines(), [*page.splitlines()[1:], ""], strict=True):
        first = line.removeprefix("| ").partition(" | ")[0] if line.startswith("| ") else ""
        if after.startswith("|--"):
            ours = first == _OURS
        elif first and ours:
            found += [said for _, said in _SPAN.findall(first)]
    return found


def unsaid(message: str) -> list[str]:
    """The parts of a message that stand in no literal of the code; a part of two letters says nothing."""
    parts = [part.strip(" ") for part in message.strip().split("...")]
    return [part for part in parts if len(_FILLED.sub("", part)) > 2 and not _is_said(part)]


def _is_said(part: str) -> bool:
    return re.search(_VARIES.join(map(re.escape, _FILLED.split(part))), literals()) is not None


@pytest.mark.parametrize("message", quoted(PAGE.read_text()))
def test_a_quoted_message_is_what_the_code_says(message: str) -> None:
    assert len(_FILLED.sub("", message.replace("...", "")).split()) > 1, "too little to be known by"
    assert not unsaid(message)


def test_the_page_has_them_and_marks_those_of_others() -> None:
    page = PAGE.read_text()
    assert len(quoted(page)) >= _FEWEST
    assert "CUDA error" in page
    assert not [each for each in quoted(page) if "CUDA error" in each]


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ("unknown recipe NAME; expected one of", []),
        ("the store PATH cannot be written: WHY; WHY", []),
        ("unknown recipes NAME; expected one of", ["unknown recipes NAME; expected one of"]),
        ("unknown recipe digit; expected one of", ["unknown recipe digit; expected one of"]),
        ("unknown recipe ...; expected none of", ["; expected none of"]),
    ],
)
def test_one_that_is_not_is_noticed(message: str, wrong: list[str]) -> None:
    assert unsaid(message) == wrong
