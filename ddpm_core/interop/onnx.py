"""The denoiser as an ONNX file, which other runtimes run: without a schedule, a sampler or torch."""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.errors import InputError
from ddpm_core.model.config import ModelConfig, model_json, read_model_config, read_sampler_config
from ddpm_core.model.unet import UNet
from ddpm_core.model.weights import load_network
from ddpm_core.optional import late
from ddpm_core.serialization import to_json
from ddpm_core.types import Tensor

_onnx = late("onnx", "onnx", "an ONNX file", extra="onnx")
_protobuf = late("google.protobuf.message", "onnx", "an ONNX file", extra="onnx")
_onnxscript = late("onnxscript", "onnxscript", "an ONNX file", extra="onnx")

_OPSET = 20
_WHOLE_BYTES = 2**31 - 2**24
"""Of weights that go into the file itself: protobuf ends at 2 GiB, and the graph needs some of it."""


def check_installed() -> None:
    """Refuse to begin without the libraries that write an ONNX file.

    Raises:
        InputError: in one line, with what installs them.
    """
    _ = _onnx.ModelProto, _onnxscript.script


def write_onnx(uri: str, weights: Weights) -> None:
    """Write the denoiser of averaged weights; done twice, it changes nothing.

    Inputs: x_t, float32 [b, channels, height, width]; t, int64 [b], steps in [0, T-1]; of a network with classes
    also labels, int64 [b], -1 for none (unless it knows no image without a label). Output: output, float32 [b, o, height,
    width], as `UNet.forward` gives it; what it means stands in the config's `reverse`. b is free in each call.

    The file holds the weights, but for those of more than 2 GB: they lie beside it, in FILE.data. Its metadata say sha256 (of
    our weights), step, config (the model's, as JSON), and sampler where weights from elsewhere say how they are sampled.

    Args:
        uri: of the file, a path or s3://bucket/key.

    Raises:
        InputError: in one line: another file is there, onnx or onnxscript is not installed, or the weights are of another
            network than their config says.
    """
    model = read_model_config(weights.config)
    said = _metadata(weights)
    if storage.exists(uri):
        if _metadata_at(uri) != said:
            raise InputError(f"{uri} is there and is another model's or none; expected a file that does not exist")
        return
    network = model.build_network()
    load_network(network, weights.tensors)
    program = _export(network.requires_grad_(False), model)
    program.model.metadata_props.clear()
    program.model.metadata_props.update(said)
    # Each node says from which line of which path of this machine it comes, and the graph how it was traced.
    for part in (program.model.graph, *program.model.graph.all_nodes()):
        part.metadata_props.clear()
    beside = sum(p.numel() * p.element_size() for p in network.parameters()) > _WHOLE_BYTES
    with tempfile.TemporaryDirectory(prefix="ddpm-") as folder:
        file = Path(folder) / uri.rpartition("/")[2]
        program.save(file, external_data=beside)
        if beside:  # before the file that names it
            storage.upload(f"{file}.data", f"{uri}.data")
        storage.upload(file, uri)


class _Denoiser(nn.Module):
    """The network as it is asked for eps_hat: without dropout."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        out: Tensor = self.network(x_t, t, labels)
        return out


def _export(network: UNet, model: ModelConfig) -> Any:
    """By torch.export: torch's exporter by tracing is deprecated, and what it sees of a batch may become a constant."""
    check_installed()  # asked for in our words, before torch asks in its own
    # 2 images, as sizes of 0 and 1 are taken for constants
    inputs = {"x_t": torch.zeros(2, *model.image_shape), "t": torch.tensor([0, 1])}
    if model.num_classes:
        inputs["labels"] = torch.tensor([-1 if model.unet.knows_no_label else 0, 0])
    batch = torch.export.Dim("batch")
    with _quiet("torch.onnx"):
        return torch.onnx.export(
            _Denoiser(network).eval(),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=["output"],
            dynamic_shapes={name: {0: batch} for name in inputs},
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )


def _metadata(weights: Weights) -> dict[str, str]:
    said = {
        "sha256": weights.sha256,
        "step": str(weights.step),
        "config": json.dumps(model_json(weights.config), sort_keys=True),
    }
    sampler = read_sampler_config(weights.config)
    return said if sampler is None else {**said, "sampler": json.dumps(to_json(sampler), sort_keys=True)}


def _metadata_at(uri: str) -> dict[str, str]:
    """What a file says of itself; nothing of a file that is no ONNX."""
    try:
        stands = _onnx.load_model_from_string(storage.read_bytes(uri))
    except _protobuf.DecodeError:
        return {}
    return {prop.key: prop.value for prop in stands.metadata_props}


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without a library's warnings: of what it could export if more were installed, and of its own deprecated parts."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
