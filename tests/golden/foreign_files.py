"""Single files of packages that as a whole want what is not installed, such as torchvision."""

import importlib.util
import sys
import types
from unittest.mock import MagicMock


def foreign(package: str, module: str, *, without: str | None = None) -> types.ModuleType:
    """A module of an installed package whose own __init__ is not run.

    Args:
        without: a module of the package of which only names are taken, and none is used; it is not run either.
    """
    found = importlib.util.find_spec(package)
    assert found is not None
    bare = types.ModuleType(package)
    bare.__path__ = list(found.submodule_search_locations or ())
    sys.modules[package] = bare
    if without:
        sys.modules[f"{package}.{without}"] = MagicMock()
    try:
        return importlib.import_module(f"{package}.{module}")
    finally:
        for name in [each for each in sys.modules if each.partition(".")[0] == package]:
            del sys.modules[name]
