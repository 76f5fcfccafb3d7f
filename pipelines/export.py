"""A trained model as a folder for other programs: for diffusers, as an ONNX file, or for ddpm_core.load.

Of a run it is the newest checkpoint's averaged weights, unless told; of a model's name its champion.

examples:
  python pipelines/export.py models:/ddpm-digits@champion --to safetensors --out digits
  python pipelines/export.py runs/digits-600225bc2e2d --to onnx --out digits-onnx
  python pipelines/export.py RUN --step 80000 --weights model --to diffusers --out s3://bucket/for-diffusers
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here
    from pipelines.cli.opening import begin

    begin()

from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Annotated, Literal, get_args

import tyro

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights, run_of
from ddpm_core.errors import InputError
from ddpm_core.interop.onnx import check_installed
from ddpm_core.model.config import ModelConfig, read_model_config
from ddpm_core.training.averages import young_weights
from pipelines.cli.command import Outcome, run_command
from pipelines.cli.invocation import typed
from pipelines.cli.parsing import parse_named
from pipelines.housekeeping.exporting import FORMS, Format, export, loading
from pipelines.housekeeping.lookup import weights_of
from pipelines.progress import say
from pipelines.recipes.config import default_store
from pipelines.recipes.files import KEPT
from pipelines.recipes.recipes import RECIPES

_WORD = "RUN|MODEL"
_READS = {"diffusers": "diffusers", "onnx": "onnxruntime"}
_OFTEN = "to", "out", "weights", "step", "store"


@dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """Whose weights, in which format, and where to."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar=_WORD)] = ""
    """A run by its name or URI, a checkpoint's URI, models:/NAME@ALIAS, models:/NAME/VERSION, a model's name or folder, or a
    project's file."""
    to: Format | None = None
    """diffusers: for its DDPMPipeline. onnx: the denoiser alone, for any runtime. safetensors: for ddpm_core.load."""
    out: str | None = None
    """The folder to write, which must not exist yet: a path or s3://bucket/prefix."""
    weights: Literal["ema", "model"] = "ema"
    """ema: averaged over the training, which are sampled from; model: those that training goes on from, of a run alone."""
    step: int | None = None
    """Of a run: the step of its checkpoint; the newest unless said."""
    store: str = field(default_factory=default_store)
    """Where the run or the model lies: a folder or s3://bucket/prefix."""


def check(args: ExportArgs) -> None:
    """What is missing, and what stands where the folder is to be."""
    if args.to is None:
        raise InputError(f"--to is missing; expected one of {', '.join(get_args(Format))}")
    if not args.out:
        raise InputError("--out is missing; expected the folder to write, which does not exist yet")
    if args.out.endswith(".onnx"):
        raise InputError(f"out is {args.out}; expected a folder, into which model.onnx is written")
    storage.check_absent(storage.absolute(args.out))
    if args.to == "onnx":
        check_installed()


def plan(args: ExportArgs) -> list[str]:
    """Whose weights, and where to."""
    weights = _find(args)
    return [f"export: the weights of step {weights.step:,} of {weights.uri}, for {args.to}, to {args.out}"]


def run(args: ExportArgs) -> Outcome:
    """Write it."""
    assert args.to is not None
    assert args.out is not None
    weights, out = _find(args), storage.absolute(args.out)
    if args.weights == "ema" and (warning := young_weights(weights.config, weights.step)):
        say(f"{weights.uri}: {warning}; or --weights model")
    if args.to == "onnx":
        say("export: torch writes the network down, which takes some 10 s")
    sha256 = export(weights, args.to, out)
    made = {
        "model": f"{weights.uri}, step {weights.step:,}, {'averaged' if args.weights == 'ema' else 'not averaged'}",
        "folder": out,
        "weights": storage.join(out, FORMS[args.to].weights),
        "sha256": sha256,
        **({"first": f"pip install {library}"} if (library := _READS.get(args.to)) and not find_spec(library) else {}),
        "load": loading(args.to, out),
    }
    made |= _calling(args.to, read_model_config(weights.config))
    again = typed("sample.py", *_recipe_of(weights), "--model", out, store=args.store)
    return Outcome(made=made, metrics={"step": weights.step}, next="" if args.to == "onnx" else again)


def _calling(to: Format, config: ModelConfig) -> dict[str, str]:
    """What the line that loads it does not say of how it is asked."""
    classes = config.unet.num_classes
    if to == "onnx":
        inputs = {"x_t": f"float32 {['b', *config.image_shape]}", "t": "int64 ['b']"}
        inputs |= {"labels": "int64 ['b']"} if classes else {}
        named = ", ".join(f"{name} {what}" for name, what in inputs.items()).replace("'", "")
        return {"takes": f"{named}; session.run(['output'], inputs) gives {config.reverse.prediction}"}
    if to == "diffusers" and classes:
        told = "of which DDPMPipeline gives none: pipeline.unet(x, t, class_labels=...) takes their numbers"
        return {"classes": f"{classes}, {told}"}
    return {}


def _recipe_of(weights: Weights) -> list[str]:
    """The recipe that says how its images are made, or the file of a project that its run keeps; none where neither is known."""
    kept = storage.join(run_of(weights.uri), KEPT)
    if weights.recipe in RECIPES:
        return [weights.recipe]
    return [kept] if run_of(weights.uri) and storage.exists(kept) else []


def _find(args: ExportArgs) -> Weights:
    return weights_of(args.model, args.store, step=args.step, part=args.weights)


if __name__ == "__main__":
    run_command(
        ExportArgs,
        __doc__,
        check=check,
        plan=plan,
        run=run,
        read=partial(parse_named, field="model", word=_WORD, often=_OFTEN),
        store="leaves",
    )
