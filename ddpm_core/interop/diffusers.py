"""A diffusers folder: read into our weights, and written from them. diffusers itself is not imported.

    FOLDER/model_index.json  unet/config.json  unet/diffusion_pytorch_model.safetensors  scheduler/scheduler_config.json

or, as the first published models have it, config.json, diffusion_pytorch_model.safetensors and scheduler_config.json side by
side. The weights may lie in several files with an index (`..safetensors.index.json`), or in half precision (`..fp16.safetensors`).
"""

import json
import re
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Tensors, Weights
from ddpm_core.artifacts.checkpoint_files import sha256_of
from ddpm_core.diffusion.reverse import check_prediction
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import make_schedule
from ddpm_core.errors import InputError
from ddpm_core.interop import scheduler_json, unet_json
from ddpm_core.interop.model_folder import write_once
from ddpm_core.interop.names import Name, from_diffusers, names_of, to_diffusers
from ddpm_core.interop.unet_json import Form
from ddpm_core.model.config import ModelConfig, read_model_config, read_sampler_config
from ddpm_core.serialization import to_json

_WEIGHTS, _PICKLE = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
_READ = (
    "diffusion_pytorch_model.safetensors.index.json",
    _WEIGHTS,
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "diffusion_pytorch_model.fp16.safetensors",
)
"""The files that name or hold the weights; the first that is there is read. diffusers, too, takes an index before a file."""
_SHARD = re.compile(r"[\w.-]+\.safetensors")
"""A file beside its index: nothing that leads out of the folder, and no pickle."""
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
    sampler: SamplerConfig | None = None
    """How its folder samples it; None where nothing is said of that."""


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
    plain, where = _read_json(storage.join(scheduler_uri, _SCHEDULER))
    schedule, reverse = scheduler_json.read_scheduler(plain, where)
    check_prediction(reverse, make_schedule(schedule))
    sampler = scheduler_json.read_sampler(plain, schedule, reverse, where)
    if form.num_outputs != reverse.num_outputs(form.channels):
        raise InputError(
            f"{folder_uri}: out_channels is {form.num_outputs}; expected {reverse.num_outputs(form.channels)} "
            f"for images of {form.channels} channels and a variance_type that is {reverse.variance}"
        )
    config = ModelConfig(
        unet=form.unet, image_size=form.image_size, channels=form.channels, schedule=schedule, reverse=reverse
    )
    return Imported(config, _read_tensors(unet_uri, form), sampler)


def imported_weights(folder_uri: str) -> Weights:
    """A diffusers folder as the weights of one of our checkpoints, but of no step and no known dataset.

    Its config says how the folder samples them, too (`ddpm_core/model/config.py: read_sampler_config`). Errors as in
    `read_diffusers`.
    """
    model = read_diffusers(folder_uri)
    file = safetensors.torch.save(model.tensors)
    return Weights(
        uri=folder_uri,
        step=0,
        sha256=sha256_of(file),
        config=to_json(model.config) | ({"sampler": to_json(model.sampler)} if model.sampler else {}),
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
    sampler = read_sampler_config(weights.config)
    scheduler_class, scheduler = scheduler_json.scheduler_json(model.schedule, model.reverse, sampler)
    ours = weights.tensors
    tensors = {name.diffusers: to_diffusers(name, ours[name.ours]) for name in names_of(form.empty())}
    index = {"scheduler": ["diffusers", scheduler_class], "unet": ["diffusers", unet_json.CLASS]}
    # In this order: without its index there is no model.
    files = {
        storage.join(folder_uri, "unet", _WEIGHTS): safetensors.torch.save(tensors, metadata={"format": "pt"}),
        storage.join(folder_uri, "unet", _CONFIG): _json_bytes(unet_json.CLASS, unet),
        storage.join(folder_uri, "scheduler", _SCHEDULER): _json_bytes(scheduler_class, scheduler),
        storage.join(folder_uri, _INDEX): _json_bytes("DDPMPipeline", index),
    }
    write_once(files)


def _read_tensors(unet_uri: str, form: Form) -> Tensors:
    """The weights under our names."""
    there = [uri for name in _READ if storage.exists(uri := storage.join(unet_uri, name))]
    uri, pickled = (there or [storage.join(unet_uri, _WEIGHTS)])[0], storage.join(unet_uri, _PICKLE)
    if not there and storage.exists(pickled):
        raise InputError(
            f"{pickled} is a pickle, which may run any code and is not read; where you trust it, convert it once: "
            f'python -c "from diffusers import UNet2DModel as U; '
            f'U.from_pretrained({unet_uri!r}, use_safetensors=False).save_pretrained({unet_uri!r})"'
        )
    written = _read_shards(uri) if uri.endswith(".json") else _read_safetensors(uri)
    found = {_modern(name): tensor for name, tensor in written.items()}
    for name in sorted(written.keys() - found.keys()):
        if _modern(name) in written:
            raise InputError(f"{uri}: {name} and {_modern(name)} are one weight by two names; expected one of them")
    network = form.empty()
    shapes, names = {key: p.shape for key, p in network.named_parameters()}, names_of(network)
    for key in sorted(found.keys() - {name.diffusers for name in names}):
        raise InputError(f"{uri}: {key} of shape {tuple(found[key].shape)} is no weight of the network in {_CONFIG}")
    return {name.ours: _fitting(name, found.get(name.diffusers), shapes[name.ours], uri) for name in names}


def _read_shards(index_uri: str) -> Tensors:
    """The weights of all files that an index names, which are those that it says are there."""
    files = _read_json(index_uri)[0].get("weight_map")
    if not isinstance(files, dict) or not files:
        raise InputError(
            f"{index_uri}: weight_map is {files!r:.80}; expected an object, each weight's name to its file"
        )
    shards = sorted(set(map(str, files.values())))
    for file in shards:
        if not _SHARD.fullmatch(file):
            raise InputError(
                f"{index_uri} names the file {file!r:.80}; expected a .safetensors file in the same folder"
            )
    weights: Tensors = {}
    for file in shards:
        uri, said = storage.join(index_uri.rpartition("/")[0], file), {k for k, v in files.items() if v == file}
        if not storage.exists(uri):
            raise InputError(
                f"no {uri}, which {index_uri} names; expected the folder with all its files: fetch it again"
            )
        shard = _read_safetensors(uri)
        for key in sorted(said ^ shard.keys()):
            has, but = ("has", "does not say so") if key in shard else ("has no", "says that it has")
            raise InputError(f"{uri} {has} {key} and its index {but}; expected both of one model: fetch them again")
        weights |= shard
    return weights


def _read_safetensors(uri: str) -> Tensors:
    try:
        tensors: Tensors = safetensors.torch.load(_read(uri))
    except safetensors.SafetensorError as error:
        raise InputError(f"{uri} is not a safetensors file ({error})") from None
    return tensors


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
