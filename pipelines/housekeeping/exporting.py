"""A model as a folder for other programs, or for `ddpm_core.load`: there whole, or not at all."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.checkpoint_files import sha256_of
from ddpm_core.interop import diffusers, model_folder, onnx

Format = Literal["diffusers", "onnx", "safetensors"]


class Form(NamedTuple):
    """A way to write a model."""

    write: Callable[[str, Weights], None]
    """Into a folder."""
    weights: str
    """The file that holds them."""
    last: str
    """The file without which the others are no model."""
    load: str
    """Python that reads it, of {!r}: the folder, or of ONNX the file."""


def _write_onnx(folder: str, weights: Weights) -> None:
    onnx.write_onnx(storage.join(folder, "model.onnx"), weights)


FORMS: dict[Format, Form] = {
    "diffusers": Form(
        diffusers.write_diffusers,
        "unet/diffusion_pytorch_model.safetensors",
        "model_index.json",
        "from diffusers import DDPMPipeline; pipeline = DDPMPipeline.from_pretrained({!r}, low_cpu_mem_usage=False)",
    ),
    "onnx": Form(
        _write_onnx,
        "model.onnx",
        "model.onnx",
        "import onnxruntime; session = onnxruntime.InferenceSession({!r})",
    ),
    "safetensors": Form(
        model_folder.write_weights,
        model_folder.WEIGHTS,
        model_folder.WEIGHTS,
        "import ddpm_core; model = ddpm_core.load({!r})",
    ),
}


def export(weights: Weights, form: Format, out: str) -> str:
    """Write a model to a folder that does not exist yet, local or on S3.

    Returns:
        the sha256 of the file that holds the weights.

    Raises:
        InputError: in one line, and nothing is written: something stands there, a package is missing, or the format cannot say
            what the model is.
    """
    how = FORMS[form]
    with storage.writing_folder(out, how.last) as folder:
        how.write(str(folder), weights)
        return sha256_of((folder / how.weights).read_bytes())


def loading(form: Format, out: str) -> str:
    """A line of Python that reads what was written; of S3, which other libraries do not read, once it is on local disk."""
    how, remote = FORMS[form], storage.is_s3(out) and form != "safetensors"
    folder = "FOLDER" if remote else out
    line = how.load.format(storage.join(folder, how.weights) if form == "onnx" else folder)
    return f"copy it to a FOLDER of this machine; {line}" if remote else line
