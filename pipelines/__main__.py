"""`ddpm COMMAND ...`: each command of this folder by its name, from anywhere."""

import ast
import runpy
import sys
from importlib.metadata import version
from pathlib import Path

from ddpm_core.errors import nearest
from pipelines.cli import invocation
from pipelines.cli.written import written

_FOLDER = Path(__file__).parent
_STAGES = "new", "workflow", "shard", "train", "sample", "evaluate", "sweep"
_OTHERS = "show", "ui", "export", "schedule", "registry", "store", "doctor"
_COMMANDS = {name: _FOLDER / f"{name}.py" for name in (*_STAGES, *_OTHERS)}


def main() -> None:
    """Run what the first word names, as if its file had been typed."""
    with written():
        _run(*(sys.argv[1:] or ["--help"]))


def _run(name: str, *words: str) -> None:
    if name in ("-h", "--help"):
        print(_overview())
    elif name == "--version":
        print(f"ddpm-pipeline {version('ddpm-pipeline')}")
    elif name in _COMMANDS:
        invocation.by_name(sys.argv[0])
        sys.argv = [str(_COMMANDS[name]), *words]
        runpy.run_path(str(_COMMANDS[name]), run_name="__main__")
    else:
        known = f"expected {', '.join(_COMMANDS)}{nearest(name, _COMMANDS)}"
        print(f"error: ddpm has no command {name!r}; {known}", file=sys.stderr)
        sys.exit(2)


def _overview() -> str:
    about = {
        name: (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0] for name, file in _COMMANDS.items()
    }
    lines = [f"  {name:9} {said}" for name, said in about.items()]
    first = "usage: ddpm COMMAND ...\n\nImages in; a trained, registered and judged diffusion model, and its samples, out.\n"
    more = "`ddpm COMMAND --help` says more; `ddpm workflow` does it all on handwritten digits, `ddpm new` begins with your images."
    return "\n".join([first, *lines, f"\n{more}"])


if __name__ == "__main__":
    main()
