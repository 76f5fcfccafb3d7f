"""The commands: every stage as a command, orchestrated by Ray and tracked in MLflow."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

_NEEDED = ("torch", "ray", "mlflow", "pyarrow", "tyro", "cattrs", "platformdirs")

_missing = [name for name in _NEEDED if name not in sys.modules and find_spec(name) is None]
if sys.version_info < (3, 11) or _missing:
    _version = ".".join(map(str, sys.version_info[:2]))
    _lacks = f"has no {', '.join(_missing)}" if _missing else f"is Python {_version}; expected 3.11 or newer"
    if (Path(__file__).parents[1] / "Makefile").exists():
        _remedy = (
            "`make install` sets up .venv, `. .venv/bin/activate` makes it this shell's python; a job has the python of the shell "
            "that ran `ray start`, unless it names one: -- /path/to/.venv/bin/python pipelines/..."
        )
    else:  # installed, and without what the commands need
        _remedy = f"{sys.executable} -m pip install 'ddpm-pipeline[pipelines]' brings all that the commands need"
    print(f"error: {sys.executable} {_lacks}: {_remedy}", file=sys.stderr)
    sys.exit(2)

# A notebook names its own to its shell, which matplotlib refuses where that cannot be imported; no command opens a window.
os.environ["MPLBACKEND"] = "agg"
