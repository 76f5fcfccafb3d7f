"""A diffusers folder: read into our weights, and written from them. diffusers itself is not imported.

    FOLDER/model_index.json  unet/config.json  unet/diffusion_pytorch_model.safetensors  scheduler/scheduler_config.json

or, as the first published models have it, config.json, diffusion_pytorch_model.safetensors and scheduler_config.json side by
side.
"""

import json
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Tensors, Weights
from ddpm_core.artifacts.checkpoint_files import sha256_of
from ddpm_core.diffusion.reverse import check_prediction
from ddpm_core.diffusion.schedule import make_schedule
from ddpm_core.errors import InputError
from ddpm_core.interop import scheduler_json, unet_json
from ddpm_core.interop.names import Name, from_diffusers, names_of, to_diffusers
from ddpm_core.interop.unet_json import Form
from ddpm_core.model.config import ModelConfig, read_model_config
from ddpm_core.serialization import to_json

_WEIGHTS, _PICKLE = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
_CONFIG, _SCHEDULER, _INDEX = "config.json", "scheduler_config.json", "model_index.json"
_WRITTEN_FOR = "0.42.1"
"""The version of diffusers whose form is written."""
# What the layers of attention are called in files of early versions, as in the first published models.
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


class Imported(NamedTuple):
    """A trained network, and what its output means."""

    config: ModelConfig
    tensors: Tensors
    """The weights under our names, float32."""


def is_diffusers(folder_uri: str) -> bool:
    """Whether a folder holds a config in one of the two forms."""
    return any(storage.exists(storage.join(folder_uri, *path)) for path in (("unet", _CONFIG), (_CONFIG,)))


def read_diffusers(folder_uri: str) -> Imported:
    """Read a DDPM from a folder that diffusers wrote.

    Raises:
        InputError: in one line: a file is missing, or is a pickle, or says what our network cannot say.
    """
    nested = storage.exists(storage.join(folder_uri, "unet", _CONFIG))
    unet_uri = storage.join(folder_uri, "unet") if nested else folder_uri
    scheduler_uri = storage.join(folder_uri, "scheduler") if nested else folder_uri
    form = unet_json.read_unet(*_read_json(storage.join(unet_uri, _CONFIG)))
    schedule, reverse = scheduler_json.read_scheduler(*_read_json(storage.join(scheduler_uri, _SCHEDULER)))
    check_prediction(reverse, make_schedule(schedule))
    if form.num_outputs != reverse.num_outputs(form.channels):
        raise InputError(
            f"{folder_uri}: out_channels is {form.num_outputs}; expected {reverse.num_outputs(form.channels)} "
            f"for images of {form.channels} channels and a variance_type that is {reverse.variance}"
        )
    config = ModelConfig(
        unet=form.unet, image_size=form.image_size, channels=form.channels, schedule=schedule, reverse=reverse
    )
    return Imported(config, _read_tensors(unet_uri, form))


def imported_weights(folder_uri: str) -> Weights:
    """A diffusers folder as the weights of one of our checkpoints, but of no step and no known dataset. Errors as in
    `read_diffusers`."""
    model = read_diffusers(folder_uri)
    file = safetensors.torch.save(model.tensors)
    return Weights(
        uri=folder_uri,
        step=0,
        sha256=sha256_of(file),
        config=to_json(model.config),
        dataset_digest="",
        dataset_uri="",
        file=file,
    )


def write_diffusers(folder_uri: str, weights: Weights) -> None:
    """Write the folder from which `DDPMPipeline.from_pretrained` loads the weights; done twice, it changes nothing.

    Raises:
        InputError: in one line: diffusers cannot say what the network is, or another model lies in the folder.
    """
    model = read_model_config(weights.config)
    form = Form(
        unet=model.unet,
        image_size=model.image_size,
        channels=model.channels,
        num_outputs=model.reverse.num_outputs(model.channels),
    )
    unet = unet_json.unet_json(form)
    scheduler = scheduler_json.scheduler_json(model.schedule, model.reverse)
    ours = weights.tensors
    tensors = {name.diffusers: to_diffusers(name, ours[name.ours]) for name in names_of(form.empty())}
    index = {"scheduler": ["diffusers", scheduler_json.CLASS], "unet": ["diffusers", unet_json.CLASS]}
    # In this order: without its index there is no model.
    files = {
        storage.join(folder_uri, "unet", _WEIGHTS): safetensors.torch.save(tensors, metadata={"format": "pt"}),
        storage.join(folder_uri, "unet", _CONFIG): _json_bytes(unet_json.CLASS, unet),
        storage.join(folder_uri, "scheduler", _SCHEDULER): _json_bytes(scheduler_json.CLASS, scheduler),
        storage.join(folder_uri, _INDEX): _json_bytes("DDPMPipeline", index),
    }
    there = {uri for uri, data in files.items() if _stands(uri, data)}
    for uri, data in files.items():
        if uri not in there:
            storage.write_bytes(uri, data)


def _stands(uri: str, data: bytes) -> bool:
    """Whether the file is there already.

    Raises:
        InputError: if another one is.
    """
    if not storage.exists(uri):
        return False
    if storage.size_bytes(uri) != len(data) or storage.read_bytes(uri) != data:
        raise InputError(f"{uri} is there and is another model's; expected a folder that is empty or does not exist")
    return True


def _read_tensors(unet_uri: str, form: Form) -> Tensors:
    """The weights under our names."""
    uri, pickled = storage.join(unet_uri, _WEIGHTS), storage.join(unet_uri, _PICKLE)
    if not storage.exists(uri) and storage.exists(pickled):
        raise InputError(
            f"{pickled} is a pickle, which may run any code and is not read; where you trust it, convert it once: "
            f'python -c "from diffusers import UNet2DModel as U; '
            f'U.from_pretrained({unet_uri!r}, use_safetensors=False).save_pretrained({unet_uri!r})"'
        )
    try:
        found: Tensors = safetensors.torch.load(_read(uri))
    except safetensors.SafetensorError as error:
        raise InputError(f"{uri} is not a safetensors file ({error})") from None
    found = {_modern(name): tensor for name, tensor in found.items()}
    network = form.empty()
    shapes, names = {key: p.shape for key, p in network.named_parameters()}, names_of(network)
    for key in sorted(found.keys() - {name.diffusers for name in names}):
        raise InputError(f"{uri}: {key} of shape {tuple(found[key].shape)} is no weight of the network in {_CONFIG}")
    return {name.ours: _fitting(name, found.get(name.diffusers), shapes[name.ours], uri) for name in names}


def _fitting(name: Name, tensor: torch.Tensor | None, shape: torch.Size, uri: str) -> torch.Tensor:
    """One weight as we have it, float32."""
    expected = tuple(to_diffusers(name, torch.empty(shape, device="meta")).shape)
    found = None if tensor is None else tuple(tensor.shape)
    if tensor is None or found != expected:
        raise InputError(f"{uri}: {name.diffusers} has shape {found}; expected {expected} for the network in {_CONFIG}")
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise InputError(f"{uri}: {name.diffusers} is of type {tensor.dtype}; expected float32, float16 or bfloat16")
    return from_diffusers(name, tensor.float())


def _modern(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        if ".attentions." in name:
            name = name.replace(old, new)
    return name


def _read_json(uri: str) -> tuple[dict[str, Any], str]:
    """A JSON object, and where it lies."""
    data = _read(uri)
    try:
        plain = json.loads(data)
    except ValueError as error:  # bytes that are no text are one too
        raise InputError(f"{uri} is not JSON ({error})") from None
    if not isinstance(plain, dict):
        raise InputError(f"{uri} holds {type(plain).__name__}; expected an object")
    return plain, uri


def _read(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except FileNotFoundError:
        raise InputError(f"no {uri}; expected a diffusers folder with it") from None


def _json_bytes(kind: str, settings: dict[str, Any]) -> bytes:
    plain = {"_class_name": kind, "_diffusers_version": _WRITTEN_FOR, **settings}
    return (json.dumps(plain, indent=2) + "\n").encode()
