"""--help on one screen: what a command does, examples, and the flags that most people use."""

import ast
import inspect
import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

from pipelines.cli import invocation
from pipelines.recipes.recipes import RECIPES

_WIDEST = 110
_NARROWEST = 60
_FLAGS = 30
"""The column in which a flag's meaning begins."""
_OF_ALL = {
    "--dry-run": "Print what would be done and how long it takes; with --json every setting",
    "--json": "End with one line of JSON",
    "--help-all": "All flags, and all that is to be said of them",
}


def short_help(program: str, about: str, args: Any, often: Sequence[str], word: str = "") -> str:
    """A screen of help.

    Args:
        program: how the command is typed.
        about: the command's docstring.
        args: its flags, with the recipe's values.
        often: of these the ones to show, dotted, as train.steps.
        word: what is typed before the flags, RUN|MODEL; a RECIPE unless said.
    """
    width = max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size().columns))
    shown = {f"--{_dashed(name)} {_value(args, name)}".rstrip(): _meaning(args, name) for name in often}
    parts = [f"usage: {program} {word or '[RECIPE]'} [flags]", invocation.as_typed(about.strip())]
    if word:
        parts.append("flags that most people use:")
    else:
        recipes = f"RECIPE: {', '.join(RECIPES)}, or a file NAME.toml (`ddpm new` writes one); digits unless named"
        parts.append(textwrap.fill(recipes, width, subsequent_indent="  "))
        parts.append(f"flags that most people use, with what they are for {args.recipe}:")
    lines = [_line(flag, meaning, width) for flag, meaning in (shown | _OF_ALL).items()]
    return "\n\n".join(parts) + "\n" + "\n".join(lines)


def _owner(args: Any, name: str) -> tuple[Any, str]:
    """The dataclass that has the field, and the field's own name."""
    *outer, last = name.split(".")
    for part in outer:
        args = getattr(args, part)
    return args, last


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _value(args: Any, name: str) -> str:
    owner, last = _owner(args, name)
    value = getattr(owner, last)
    if value in (None, (), ""):
        (kind,) = (str(f.type) for f in fields(owner) if f.name == last)
        return "N" if "int" in kind or "float" in kind else last.upper()
    if isinstance(value, bool):
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _meaning(args: Any, name: str) -> str:
    owner, last = _owner(args, name)
    said = " ".join(_said_of_fields(type(owner))[last].split())
    return re.split(r"(?:; |\. (?=[A-Z]))(?![^(]*\))", said.removesuffix("."))[0]  # not within brackets


def _line(flag: str, meaning: str, width: int) -> str:
    first = f"  {flag}".ljust(_FLAGS) if len(flag) <= _FLAGS - 4 else f"  {flag}\n{'':{_FLAGS}}"
    return first + f"\n{'':{_FLAGS}}".join(textwrap.wrap(meaning, width - _FLAGS))


def _said_of_fields(kind: type) -> dict[str, str]:
    """What stands below each field of a dataclass, its parents' first."""
    said: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if each is not object:
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
            body = node.body if isinstance(node, ast.ClassDef) else []
            for field_, doc in pairwise(body):
                if (
                    isinstance(field_, ast.AnnAssign)
                    and isinstance(doc, ast.Expr)
                    and isinstance(doc.value, ast.Constant)
                ):
                    said[ast.unparse(field_.target)] = str(doc.value.value)
    return {f.name: said.get(f.name, "") for f in fields(kind)}
