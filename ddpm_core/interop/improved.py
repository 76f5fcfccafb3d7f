"""Weights of improved-diffusion (Nichol and Dhariwal 2021; github.com/openai/improved-diffusion).

A .pt file holds the weights alone, no config. Most of it follows from their shapes; the rest is what the flags said with which
the model was trained, as the README of that code prints them for its published models.

Its network is the paper's but for its form: heads, scale and shift, symmetric padding, 32 groups everywhere, an epsilon of
1e-5, a time embedding that begins with the cosines, and t scaled to 1000 steps. Of classes there are as many rows, none for
images without a label.
"""

import re

import torch

from ddpm_core.diffusion.reverse import ReverseConfig, Variance, check_prediction
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.errors import InputError
from ddpm_core.interop.diffusers import Imported
from ddpm_core.interop.improved_flags import PUBLISHED, Flags, read_flags
from ddpm_core.interop.improved_names import entries_of, from_improved, shape_there
from ddpm_core.interop.tensors import check_tensors, read_tensors
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.form import UNetForm
from ddpm_core.model.unet import UNetConfig
from ddpm_core.types import Tensor

_SIZES = {(1, 2, 2, 2): 32, (1, 2, 3, 4): 64, (1, 1, 2, 2, 4, 4): 256}
"""The image size whose networks have these multiples of channels."""
_CHANNELS = 3
_REFERENCE_STEPS = 1000
"""The steps to which t is scaled, and of which its linear betas are told."""


def read_improved(uri: str, flags: Flags | None = None) -> Imported:
    """Read a model that improved-diffusion trained.

    Args:
        uri: of a .pt file, for samples the averaged one: ema_0.9999_200000.pt. Or of a .safetensors with the same names.
        flags: of its training; None for a published model, which is told by its file's name.

    Raises:
        InputError: in one line: the file cannot be read, flags and shapes do not agree, or a weight is missing, of another
            shape, or none of the network's.
    """
    if flags is None:
        file = uri.rpartition("/")[2]
        if file not in PUBLISHED:
            raise InputError(
                f"{file} is no published model of improved-diffusion; expected the flags that it was trained with, as "
                "--image_size 32 --diffusion_steps 4000 --noise_schedule cosine"
            )
        flags = read_flags(PUBLISHED[file])
    found = read_tensors(uri)
    config = _config(found, flags, uri)
    check_prediction(config.reverse, config.build_schedule())
    with torch.device("meta"):
        network = config.build_network()
    entries, shapes = list(entries_of(network)), {name: tuple(p.shape) for name, p in network.named_parameters()}
    tensors = check_tensors(found, {entry.theirs: shape_there(entry, shapes) for entry in entries}, uri)
    ours: dict[str, Tensor] = {}
    for entry in entries:
        ours.update(from_improved(entry, tensors[entry.theirs]))
    return Imported(config, ours)


def _config(found: dict[str, Tensor], flags: Flags, uri: str) -> ModelConfig:
    """By the shapes of its weights, and by its flags where they do not tell."""

    def size(name: str, dimension: int) -> int:
        tensor = found.get(name)
        if tensor is None or tensor.ndim <= dimension:
            raise InputError(f"{uri}: there is no {name}; expected the weights of a network of improved-diffusion")
        return int(tensor.shape[dimension])

    base, channels, outputs = (
        size("time_embed.0.weight", 1),
        size("input_blocks.0.0.weight", 1),
        size("out.2.weight", 0),
    )
    if channels != _CHANNELS or outputs not in (channels, 2 * channels):
        raise InputError(
            f"{uri}: the network takes {channels} channels and gives {outputs}; expected {_CHANNELS}, and {_CHANNELS} or "
            f"{2 * _CHANNELS}: an upsampling model has no counterpart here"
        )
    levels = _levels(found)
    if base < 1 or not levels or any(width % base for level in levels for width, _ in level):
        raise InputError(
            f"{uri}: the widths of input_blocks are no multiples of {base}; expected those of improved-diffusion"
        )
    multipliers = tuple(level[0][0] // base for level in levels)
    image_size = _image_size(multipliers, flags, uri)
    attended = tuple(image_size >> number for number, level in enumerate(levels) if level[0][1])
    block_out, told = size("input_blocks.1.0.in_layers.2.weight", 0), size("input_blocks.1.0.emb_layers.1.weight", 0)
    num_classes = size("label_emb.weight", 0) if "label_emb.weight" in found else 0
    seen: dict[str, int | bool] = {
        "num_channels": base,
        "num_res_blocks": len(levels[0]),
        "learn_sigma": outputs != channels,
        "class_cond": num_classes > 0,
        "use_scale_shift_norm": told == 2 * block_out,
    }
    _check_seen(flags, seen, uri)
    _check_attention(flags, image_size, len(levels), attended, uri)
    fixed: Variance = "fixed_small" if flags.sigma_small else "fixed_large"
    steps = flags.diffusion_steps
    scaled = flags.noise_schedule == "linear" and steps != _REFERENCE_STEPS
    return ModelConfig(
        image_size=image_size,
        channels=channels,
        unet=UNetConfig(
            base_channels=base,
            channel_multipliers=multipliers,
            num_res_blocks=len(levels[0]),
            attention_resolutions=attended,
            dropout=flags.dropout,
            num_classes=num_classes,
            form=_form(flags, bool(seen["use_scale_shift_norm"]), num_classes),
        ),
        schedule=ScheduleConfig(
            name="cosine" if flags.noise_schedule == "cosine" else "linear", num_timesteps=steps, rescale=scaled
        ),
        reverse=ReverseConfig(
            prediction="x_0" if flags.predict_xstart else "eps",
            variance="learned_range" if seen["learn_sigma"] else fixed,
        ),
    )


def _form(flags: Flags, scale_shift: bool, num_classes: int) -> UNetForm:
    """How that code's networks compute, where the paper's do otherwise."""
    return UNetForm(
        num_heads=flags.num_heads,
        scale_shift=scale_shift,
        symmetric_padding=True,
        norm_groups=32,
        norm_epsilon=1e-5,
        time_cos_first=True,
        time_freq_shift=0,
        time_scale=_REFERENCE_STEPS / flags.diffusion_steps if flags.rescale_timesteps else 1.0,
        null_label=not num_classes,
    )


def _check_seen(flags: Flags, seen: dict[str, int | bool], uri: str) -> None:
    """Refuse flags that the weights contradict."""
    for name, value in seen.items():
        if getattr(flags, name) not in (None, value):
            raise InputError(
                f"{name} is {getattr(flags, name)}, by the weights of {uri} it is {value}; expected the same"
            )


def _levels(found: dict[str, Tensor]) -> list[list[tuple[int, bool]]]:
    """The residual blocks of each level on the way down: their channels, and whether attention stands behind them."""
    levels: list[list[tuple[int, bool]]] = [[]]
    places = {int(match[1]) for name in found if (match := re.match(r"input_blocks\.(\d+)\.", name))}
    for place in sorted(places - {0}):
        block = found.get(f"input_blocks.{place}.0.in_layers.2.weight")
        if block is None or block.ndim != 4:
            levels.append([])
        else:
            levels[-1].append((int(block.shape[0]), f"input_blocks.{place}.1.qkv.weight" in found))
    return [level for level in levels if level]


def _image_size(multipliers: tuple[int, ...], flags: Flags, uri: str) -> int:
    known = _SIZES.get(multipliers)
    if known is None and flags.image_size is None:
        raise InputError(f"{uri}: the multiples of channels, {multipliers}, tell no image size; expected --image_size")
    if known is not None and flags.image_size not in (None, known):
        raise InputError(
            f"image_size is {flags.image_size}, the multiples of channels in {uri} are {multipliers}; expected {known}"
        )
    size = known or flags.image_size
    assert size is not None
    return size


def _check_attention(flags: Flags, image_size: int, num_levels: int, attended: tuple[int, ...], uri: str) -> None:
    if flags.attention_resolutions is None:
        return
    words = [word.strip() for word in flags.attention_resolutions.split(",")]
    rates = {image_size // int(word) for word in words if word.isdecimal() and int(word)}  # as that code reads them
    if rates & {2**level for level in range(num_levels)} != {image_size // size for size in attended}:
        raise InputError(
            f"attention_resolutions is {flags.attention_resolutions}, by the weights of {uri} it is "
            f"{','.join(map(str, attended))}; expected the same"
        )
