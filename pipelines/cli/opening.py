"""What a command says on a terminal before anything else, while the libraries are still to be imported: seconds."""

import sys
from pathlib import Path

_TAKE_AWAY = "\r\x1b[K"


def first_word() -> None:
    """Say that the command starts."""
    if sys.stderr.isatty():
        print(f"{Path(sys.argv[0]).stem}: starting", end="", file=sys.stderr, flush=True)


def take_away() -> None:
    """Its place is for the next line."""
    if sys.stderr.isatty():
        print(_TAKE_AWAY, end="", file=sys.stderr, flush=True)
