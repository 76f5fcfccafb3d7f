"""`python -m pipelines.tracking`, which `make ui` calls."""

import sys

import tyro

from pipelines.recipes.config import default_store
from pipelines.tracking.ui import serve


def main(store: str | None = None) -> int:
    """Show MLflow's pages on loopback, at port 5000, the next free one, or $PORT.

    Args:
        store: the store to show, a folder or s3://bucket/prefix; by default the one that every command uses.
    """
    try:
        return serve(store or default_store())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m pipelines.tracking"))
