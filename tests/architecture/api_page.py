"""docs/api.md from the docstrings of what `ddpm_core.__all__` names.

.venv/bin/python tests/architecture/api_page.py > docs/api.md
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from typing import Any

import ddpm_core

HEAD = """# The library

What `import ddpm_core` offers; everything else may change. Made from the docstrings by `tests/architecture/api_page.py`.
Images are uint8 `[n, height, width, channels]`, as PIL and matplotlib take them; a seed gives the same image in every batch, on
every machine of a kind. torch, numpy, safetensors, pillow and cattrs are enough; s3:// asks for boto3, a plot for matplotlib.
"""
SECTIONS = {"Args:", "Returns:", "Raises:"}


def page() -> str:
    """The page."""
    return "\n".join(
        [HEAD, *(_entry(name, getattr(ddpm_core, name)) for name in sorted(ddpm_core.__all__, key=_place))]
    )


def _place(name: str) -> tuple[str, bool]:
    return name.lower(), name[0].isupper()


def _entry(name: str, thing: Any) -> str:
    if inspect.isfunction(thing):
        return f"## `{name}{_signature(thing)}`\n\n{_text(thing)}\n"
    parts = [f"## `{name}`\n\n{_text(thing)}\n"]
    fields = [field for field in dataclasses.fields(thing) if not _inherited(thing, field.name)]
    about = _about_fields(thing)
    parts += [f"- `{field.name}: {_short(field.type)}`{about.get(field.name, '')}" for field in fields]
    parts += [""] if fields else []
    for each, method in vars(thing).items():
        if each.startswith("_"):
            continue
        if isinstance(method, property):
            parts.append(f"### `.{each}`\n\n{_text(method)}\n")
        elif isinstance(method, classmethod) or inspect.isfunction(method):
            bound = getattr(thing, each)
            parts.append(f"### `.{each}{_signature(bound)}`\n\n{_text(bound)}\n")
    return "\n".join(parts)


def _inherited(thing: type, name: str) -> bool:
    return any(name in getattr(base, "__dataclass_fields__", {}) for base in thing.__mro__[1:])


def _about_fields(thing: type) -> dict[str, str]:
    """The docstring below each field."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    assert isinstance(node, ast.ClassDef)
    about = {}
    for before, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            about[ast.unparse(before.target)] = f": {_plain(str(after.value.value))}"
    return about


def _signature(thing: Any) -> str:
    signature = inspect.signature(inspect.unwrap(thing))
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    return _short(str(signature.replace(parameters=parameters)))


def _short(annotation: Any) -> str:
    """A type as a person writes it."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    text = re.sub(r"numpy\.ndarray\[[^\]]*\], numpy\.dtype\[(?:numpy\.)?(\w+)\]\]", r"NDArray[\1]", text)
    text = re.sub(r"ndarray\[tuple\[Any, \.\.\.\], dtype\[(\w+)\]\]", r"NDArray[\1]", text)
    text = re.sub(r"(->|:) '([\w.]+)'", r"\1 \2", text)  # of a name that comes later
    return re.sub(r"\b(?:\w+\.)+(?=[A-Za-z])", "", text)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _text(thing: Any) -> str:
    """A docstring: its paragraphs, and its sections as lists."""
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.getdoc(thing) or ""):
        head, _, body = block.partition("\n")
        if head not in SECTIONS:
            lines.append(_plain(block))
        elif head == "Returns:":
            lines.append(f"**Returns** {_plain(body)}")
        else:
            items = re.split(r"\n(?=\S)", textwrap.dedent(body))
            listed = [re.sub(r"^(\w+): ", r"`\1`: ", _plain(item)) for item in items]
            lines.append("\n".join([f"**{head[:-1]}**", "", *(f"- {item}" for item in listed)]))
    return "\n\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
