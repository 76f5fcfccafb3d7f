"""What a command does before anything else, while the libraries are still to be imported: seconds."""

import atexit
import gc
import os
import sys
from pathlib import Path

_TAKE_AWAY = "\r\x1b[K"


def begin() -> None:
    """Say that the command starts, and have it start and end a second sooner each."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        # Set to nothing, as a file of variables leaves it, MLflow's boto3 would take it for an address.
        if not os.environ.get(name):
            os.environ.pop(name, None)
    # Libraries make half a million objects that stay. Python would look through them again and again as they come, and once more
    # in the end.
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)
    if sys.stderr.isatty():
        print(f"{Path(sys.argv[0]).stem}: starting", end="", file=sys.stderr, flush=True)


def take_away() -> None:
    """Its place is for the next line."""
    if sys.stderr.isatty():
        print(_TAKE_AWAY, end="", file=sys.stderr, flush=True)
