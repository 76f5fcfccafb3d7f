"""Libraries that only some of this one needs: imported when they are first used, asked for in one line where they are missing."""

from importlib import import_module
from pathlib import Path
from typing import Any

from ddpm_core.errors import InputError

_CHECKOUT = Path(__file__).parents[1] / "pyproject.toml"
"""Which an installed wheel has not."""


class _Late:
    def __init__(self, module: str, package: str, purpose: str, extra: str) -> None:
        self._module, self._package, self._purpose = module, package, purpose
        self._extra = extra

    def __getattr__(self, name: str) -> Any:
        try:
            module = import_module(self._module)
        except ModuleNotFoundError as error:
            if error.name and error.name.startswith(__package__):
                raise
            raise InputError(
                f"{self._purpose} needs {self._package}; expected it installed: pip install {self._installed()}"
            ) from None
        return getattr(module, name)

    def _installed(self) -> str:
        if not self._extra:
            return self._package
        if not _CHECKOUT.exists():
            return f"'ddpm-pipeline[{self._extra}]'"
        here = "." if _CHECKOUT.parent == Path.cwd() else _CHECKOUT.parent
        return f"-e '{here}[{self._extra}]'"


def late(module: str, package: str, purpose: str, *, extra: str = "") -> Any:
    """A module that is imported when something of it is first asked for.

    Args:
        package: what to install for it.
        purpose: what needs it, for the message.
        extra: of this project, if one names the package: then that is what to install.
    """
    return _Late(module, package, purpose, extra)
