"""Weights of the paper's own code in TensorFlow (Ho, Jain, Abbeel 2020; github.com/hojonathanho/diffusion), by their names.

Its checkpoints are TensorFlow's, and TensorFlow reads them; `CONVERT` makes of one a file that is read here.
"""

import re
from dataclasses import replace

import torch

from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.errors import InputError
from ddpm_core.interop.diffusers import Imported
from ddpm_core.interop.names import Name, from_original, names_of, to_original
from ddpm_core.interop.tensors import check_tensors, read_tensors
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.form import PAPER
from ddpm_core.model.unet import UNetConfig
from ddpm_core.types import Tensor

CONVERT = (
    "import sys, numpy as np, tensorflow as tf; r = tf.train.load_checkpoint(sys.argv[1]); m = r.get_variable_to_dtype_map(); "
    "np.savez(sys.argv[2], **{n: r.get_tensor(n) for n in m if m[n] == tf.float32})"
)
"""Where TensorFlow is installed: python -c CONVERT model.ckpt-790000 model.npz."""
_CIFAR10 = ModelConfig(
    image_size=32,
    channels=3,
    unet=UNetConfig(),
    schedule=ScheduleConfig(),
    reverse=ReverseConfig(variance="fixed_large"),
)
_256 = ModelConfig(
    image_size=256,
    channels=3,
    unet=UNetConfig(channel_multipliers=(1, 1, 2, 2, 4, 4), attention_resolutions=(16,), dropout=0.0),
    schedule=ScheduleConfig(),
    reverse=ReverseConfig(variance="fixed_small"),
)
PUBLISHED = {
    "cifar10": _CIFAR10,
    **dict.fromkeys(("celebahq256", "lsun_church256", "lsun_cat256", "lsun_bedroom256"), _256),
    "lsun_bedroom256_large": replace(_256, unet=replace(_256.unet, base_channels=192)),
}
"""What the paper's models are, by the names of the recipes that train them."""
_SCOPE, _AVERAGE = "model/", "/ExponentialMovingAverage"
_OF_TRAINING = re.compile(r"global_step|beta[12]_power|.*/(Adam(_1)?|Momentum|RMSProp(_1)?)")
"""What else its checkpoints hold: the optimizer's."""


def read_original(uri: str, config: ModelConfig) -> Imported:
    """Read the variables of the original code, the averages where there are any.

    Args:
        uri: of an .npz or .safetensors file of them by name, with the scope `model/` or without it.
        config: what the model is, which they do not say: one of `PUBLISHED`, for those of the paper.

    Raises:
        InputError: in one line, naming the first variable that is missing, of another shape, or none of the network's.
    """
    if not uri.endswith((".npz", ".safetensors")):
        raise InputError(
            f"{uri} is no .npz or .safetensors file; expected the variables by name, which TensorFlow makes of its checkpoint: "
            f'python -c "{CONVERT}" {uri} model.npz'
        )
    if config.num_classes or config.unet.form != PAPER:
        what = f"unet.num-classes is {config.num_classes}" if config.num_classes else "unet.form is not the paper's"
        raise InputError(f"{what}, which no network of the original code is; expected a recipe of the paper")
    with torch.device("meta"):
        network = config.build_network()
    shapes = {name: p.shape for name, p in network.named_parameters()}
    names = {_of(name): name for name in names_of(network)}
    expected = {
        theirs: tuple(to_original(name, torch.empty(shapes[name.ours], device="meta")).shape)
        for theirs, name in names.items()
    }
    found = check_tensors(_weights(read_tensors(uri)), expected, uri)
    return Imported(config, {name.ours: from_original(name, found[theirs]) for theirs, name in names.items()})


def _of(name: Name) -> str:
    assert name.original is not None  # there are no classes
    return name.original


def _weights(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The averages, or else the variables, without scope."""
    plain = {name.removesuffix(":0").removeprefix(_SCOPE): tensor for name, tensor in found.items()}
    plain = {name: tensor for name, tensor in plain.items() if not _OF_TRAINING.fullmatch(name)}
    averages = {name.removesuffix(_AVERAGE): tensor for name, tensor in plain.items() if name.endswith(_AVERAGE)}
    return averages or plain
