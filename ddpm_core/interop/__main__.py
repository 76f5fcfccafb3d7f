"""Export the averaged weights of a checkpoint to a folder from which diffusers' DDPMPipeline loads them.

example:
  python -m ddpm_core.interop STORE/runs/NAME /path/to/folder
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights, read_weights
from ddpm_core.artifacts.checkpoint_store import find_checkpoint
from ddpm_core.errors import InputError, UserError
from ddpm_core.interop.diffusers import write_diffusers


class _Parser(argparse.ArgumentParser):
    """Says a user's mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help shows the usage)")


def main(argv: Sequence[str] | None = None) -> None:
    """Export.

    Exits:
        2 for a user's mistake, said in one line.
    """
    parser = _Parser(
        prog="python -m ddpm_core.interop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="CHECKPOINT_OR_RUN_URI", help="a checkpoint, or a run: its newest checkpoint")
    parser.add_argument("folder", metavar="FOLDER_URI", help="where to: a new folder, or s3://bucket/prefix")
    try:
        args = parser.parse_args(argv)
        folder = storage.absolute(args.folder)
        weights = _find_weights(args.model)
        write_diffusers(folder, weights)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    print(f"exported  {weights.uri}\nto        {folder}")


def _find_weights(model: str) -> Weights:
    checkpoint = find_checkpoint(storage.absolute(model))
    if checkpoint is None:
        raise InputError(f"no checkpoint at {model}; expected the URI of a checkpoint or a run")
    return read_weights(checkpoint)


if __name__ == "__main__":
    main()
