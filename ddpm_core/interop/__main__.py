"""Trained models from and for other programs: averaged weights, of a run those of its newest checkpoint.

examples:
  python -m ddpm_core.interop export STORE/runs/NAME /path/to/folder      # for diffusers' DDPMPipeline
  python -m ddpm_core.interop onnx STORE/runs/NAME /path/to/model.onnx    # the denoiser, for any runtime
  python -m ddpm_core.interop import cifar10_uncond_50M_500K.pt /path/to/folder      # improved-diffusion's, for --model
  python -m ddpm_core.interop import model.npz /path/to/folder --config cifar10      # the paper's own code's
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights, read_weights
from ddpm_core.artifacts.checkpoint_store import find_checkpoint
from ddpm_core.errors import InputError, UserError
from ddpm_core.interop.diffusers import Imported, imported_weights, is_diffusers, write_diffusers
from ddpm_core.interop.improved import read_improved
from ddpm_core.interop.improved_flags import read_flags
from ddpm_core.interop.model_folder import WEIGHTS, read_model, write_model
from ddpm_core.interop.onnx import write_onnx
from ddpm_core.interop.original import PUBLISHED, read_original
from ddpm_core.model.config import ModelConfig, read_model_config

_WRITERS = {"export": write_diffusers, "onnx": write_onnx}


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
    if not words or words[0] not in (*_WRITERS, "import", "-h", "--help"):
        words.insert(0, "export")
    try:
        args = _parser().parse_args(words)
        target = storage.absolute(args.target)
        if args.command == "import":
            found = _read_foreign(storage.absolute(args.model), args.flags, args.config)
            write_model(target, found.config, found.tensors)
            print(f"imported  {args.model}\nto        {target}")
        else:
            weights = _find_weights(args.model)
            _WRITERS[args.command](target, weights)
            print(f"exported  {weights.uri}\nto        {target}")
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m ddpm_core.interop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, about, source, target in (
        (
            "export",
            "Write a folder from which diffusers' DDPMPipeline loads the model. The command of old: its name may be left out.",
            "MODEL_URI",
            "FOLDER_URI",
        ),
        (
            "onnx",
            "Write the denoiser as an ONNX file: x_t, t and labels in, the network's output out.",
            "MODEL_URI",
            "FILE_URI",
        ),
        (
            "import",
            "Write published weights as a folder that --model and ddpm_core.load take. (diffusers' folders they take as they are.)",
            "FILE_URI",
            "FOLDER_URI",
        ),
    ):
        one = commands.add_parser(name, help=about, description=about)
        foreign = name == "import"
        what = "improved-diffusion's .pt, or the variables of the paper's own code as .npz or .safetensors"
        ours = "a checkpoint, a run (its newest checkpoint), an imported model's folder, or one of diffusers"
        one.add_argument("model", metavar=source, help=what if foreign else ours)
        one.add_argument("target", metavar=target, help="where to: a path that is new, or s3://bucket/key")
        if foreign:
            one.add_argument(
                "--flags",
                help="of improved-diffusion: the flags of its training in quotes, as its README prints them; "
                "published files are known by their names",
            )
            one.add_argument(
                "--config",
                metavar="NAME",
                help=f"of the paper's own code: which model, {', '.join(PUBLISHED)}, or the config.json of a model's folder",
            )
    return parser


def _find_weights(model: str) -> Weights:
    uri = storage.absolute(model)
    if checkpoint := find_checkpoint(uri):
        return read_weights(checkpoint)
    if storage.exists(storage.join(uri, WEIGHTS)):
        return read_model(uri)
    if is_diffusers(uri):
        return imported_weights(uri)
    raise InputError(f"no checkpoint at {model}; expected the URI of a checkpoint or a run, or a diffusers folder")


def _read_foreign(uri: str, flags: str | None, config: str | None) -> Imported:
    """By the file's name: the paper's own code has variables, improved-diffusion a state dict."""
    if config is None and not uri.endswith(".npz"):
        return read_improved(uri, None if flags is None else read_flags(flags))
    if config is None or flags is not None:
        raise InputError(
            f"{uri} holds variables of the paper's own code, which do not say what the model is; expected --config with one "
            f"of {', '.join(PUBLISHED)}, or a config.json, and no --flags"
        )
    return read_original(uri, PUBLISHED[config] if config in PUBLISHED else _read_config(config))


def _read_config(config: str) -> ModelConfig:
    expected = f"expected one of {', '.join(PUBLISHED)}, or the config.json of a model's folder"
    try:
        plain = json.loads(storage.read_bytes(storage.absolute(config)))
    except FileNotFoundError:
        raise InputError(f"no {config}; {expected}") from None
    except ValueError as error:
        raise InputError(f"{config} is not JSON ({error}); {expected}") from None
    if not isinstance(plain, dict):
        raise InputError(f"{config} holds {type(plain).__name__}; {expected}")
    return read_model_config(plain)


if __name__ == "__main__":
    main()
