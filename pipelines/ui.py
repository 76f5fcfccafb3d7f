"""MLflow's pages of a store, on loopback; or MLflow filled from what the store has on record.

By itself it shows the pages until Ctrl-C, at port 5000, the next free one, or $PORT. `sync` brings MLflow, the store's own or that
at MLFLOW_TRACKING_URI, to all runs of the store: another server, an empty one, or one that was away. It may be done again any time.

examples:
  python pipelines/ui.py
  python pipelines/ui.py --store s3://bucket/ddpm
  python pipelines/ui.py sync --store s3://bucket/ddpm
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here
    from pipelines.cli.opening import begin

    begin()

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from ddpm_core.errors import InputError
from pipelines.cli.command import Outcome, run_command
from pipelines.cli.parsing import parse_alone
from pipelines.progress import counted
from pipelines.recipes.config import default_store
from pipelines.tracking import sync
from pipelines.tracking.ui import serve


@dataclass(frozen=True, kw_only=True)
class UIArgs:
    """Whose pages."""

    what: Annotated[Literal["show", "sync"], tyro.conf.Positional] = "show"
    """The pages, or MLflow filled from the store."""
    store: str = field(default_factory=default_store)
    """A folder or s3://bucket/prefix."""


def run(args: UIArgs) -> Outcome:
    """Show them until interrupted, or fill MLflow and say with how many runs of which experiment.

    Raises:
        InputError: in one line, if the store has none, or its pages cannot be shown.
    """
    if args.what == "show":
        return Outcome(made={}, exit_code=serve(args.store))
    filled = sync(args.store)
    if not filled:
        raise InputError(
            f"nothing is on record in {args.store}; expected the --store of the runs that MLflow is to show"
        )
    notes = {name: counted(runs, "run") for name, runs in filled.items()}
    return Outcome(made={}, metrics={"runs": filled}, notes=notes)


if __name__ == "__main__":
    run_command(
        UIArgs,
        __doc__,
        plan=lambda args: [f"{args.what}: {args.store}"],
        run=run,
        read=parse_alone,
        store="leaves",
    )
