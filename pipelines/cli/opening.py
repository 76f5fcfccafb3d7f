"""What a command says before anything else, while the libraries are still to be imported."""

import sys
from pathlib import Path

_QUIET = {"--help", "-h", "--json", "--dry-run"}


def first_word() -> None:
    """Say that the command begins, unless all that is asked for is its answer."""
    if not _QUIET & set(sys.argv):
        print(f"{Path(sys.argv[0]).stem}: starting", file=sys.stderr, flush=True)
