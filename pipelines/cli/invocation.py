"""How this project's commands are typed: `ddpm train ...`, or `python pipelines/train.py ...`."""

import re
import shlex
import shutil
import sys
from pathlib import Path

_FOLDER = Path(__file__).parents[1]
_typed_by_name: list[str] = []
"""The words before a command's name; none where files are typed."""


def by_name(door: str) -> None:
    """From now on commands are printed by their names: so was this one typed.

    Args:
        door: sys.argv[0]: the console script, or this package's __main__.
    """
    script = Path(door)
    if script.suffix == ".py":
        _typed_by_name[:] = [*_python(), "-m", script.parent.name]
    else:
        found = shutil.which(script.name)
        on_path = found is not None and Path(found).samefile(script)
        _typed_by_name[:] = [script.name if on_path else _from_here(script)]


def program(script: str) -> str:
    """How a command of this folder is typed, for its usage line.

    Args:
        script: its file, as train.py.
    """
    return " ".join([*_typed_by_name, Path(script).stem] if _typed_by_name else ["python", f"pipelines/{script}"])


def as_typed(text: str) -> str:
    """A text whose examples are typed as this command was."""
    return re.sub(
        r"^( *)python pipelines/(\w+)\.py", lambda found: found[1] + program(f"{found[2]}.py"), text, flags=re.M
    )


def typed(script: str, *args: str, store: str) -> str:
    """A command that runs as printed, in the shell that ran this one.

    Args:
        script: a file of this folder, as sample.py.
        args: what follows it.
        store: named in the command unless it is the default one.
    """
    words = [*_opening(script), *args, *([] if _is_default(store) else ["--store", store])]
    return shlex.join(words)


def ui(store: str) -> str:
    """The command that shows MLflow's pages of a store."""
    return "make ui" if _is_default(store) and not _typed_by_name else typed("ui.py", store=store)


def _is_default(store: str) -> bool:
    from pipelines.recipes.config import default_store  # not before: with it comes torch, and `ddpm --help` needs none

    return store == default_store()


def _opening(script: str) -> list[str]:
    if _typed_by_name:
        return [*_typed_by_name, Path(script).stem]
    return [*_python(), _from_here(_FOLDER / script)]


def _python() -> list[str]:
    python = shutil.which("python")
    ours = python is not None and Path(python).parent.samefile(Path(sys.executable).parent)
    return ["python" if ours else _from_here(Path(sys.executable))]


def _from_here(path: Path) -> str:
    """As a person would type it: short where it lies below the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
