"""`python -m pipelines.tracking`, which `make ui` calls."""

import logging
import sys
from typing import Annotated, Literal

import tyro

from ddpm_core.errors import UserError
from pipelines.recipes.config import default_store
from pipelines.tracking import sync
from pipelines.tracking.ui import serve


def main(what: Annotated[Literal["show", "sync"], tyro.conf.Positional] = "show", store: str | None = None) -> int:
    """Show MLflow's pages on loopback, at port 5000, the next free one, or $PORT; or bring MLflow to what the store has on record.

    Args:
        what: `sync` fills MLflow, at MLFLOW_TRACKING_URI or in the store, with all runs of the store: another server, an empty
            one, or one that was away. It may be done again at any time.
        store: a folder or s3://bucket/prefix; by default the one that every command uses.
    """
    store = store or default_store()
    logging.basicConfig(format="%(message)s")
    try:
        if what == "show":
            return serve(store)
        for experiment, runs in sync(store).items():
            print(f"{experiment}: {runs:,} runs")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m pipelines.tracking"))
