"""Write a trained model in the form of other programs: of a run its newest checkpoint, always the averaged weights.

examples:
  python -m ddpm_core.interop export STORE/runs/NAME /path/to/folder      # for diffusers' DDPMPipeline
  python -m ddpm_core.interop onnx STORE/runs/NAME /path/to/model.onnx    # the denoiser, for any runtime
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights, read_weights
from ddpm_core.artifacts.checkpoint_store import find_checkpoint
from ddpm_core.errors import InputError, UserError
from ddpm_core.interop.diffusers import imported_weights, is_diffusers, write_diffusers
from ddpm_core.interop.onnx import write_onnx


class _Command(NamedTuple):
    """From a model to files elsewhere."""

    about: str
    target: str
    """What to write, as the usage names it."""
    write: Callable[[str, Weights], None]


_COMMANDS = {
    "export": _Command(
        "Write a folder from which diffusers' DDPMPipeline loads the model. The command of old: its name may be left out.",
        "FOLDER_URI",
        write_diffusers,
    ),
    "onnx": _Command(
        "Write the denoiser as an ONNX file: x_t, t and labels in, the network's output out.", "FILE_URI", write_onnx
    ),
}


class _Parser(argparse.ArgumentParser):
    """Says a user's mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help shows the usage)")


def main(argv: Sequence[str] | None = None) -> None:
    """Read a model, and write it as the command says.

    Exits:
        2 for a user's mistake, said in one line.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in (*_COMMANDS, "-h", "--help"):
        words.insert(0, "export")
    try:
        args = _parser().parse_args(words)
        target = storage.absolute(args.target)
        weights = _find_weights(args.model)
        _COMMANDS[args.command].write(target, weights)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    print(f"exported  {weights.uri}\nto        {target}")


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m ddpm_core.interop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        one = commands.add_parser(name, help=command.about, description=command.about)
        one.add_argument(
            "model",
            metavar="CHECKPOINT_OR_RUN_URI",
            help="a checkpoint, a run (its newest checkpoint), or a diffusers folder",
        )
        one.add_argument("target", metavar=command.target, help="where to: a path that is new, or s3://bucket/key")
    return parser


def _find_weights(model: str) -> Weights:
    uri = storage.absolute(model)
    checkpoint = find_checkpoint(uri)
    if checkpoint is not None:
        return read_weights(checkpoint)
    if is_diffusers(uri):
        return imported_weights(uri)
    raise InputError(f"no checkpoint at {model}; expected the URI of a checkpoint or a run, or a diffusers folder")


if __name__ == "__main__":
    main()
