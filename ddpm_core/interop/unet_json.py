"""The network's form: our UNetConfig, and the config.json of diffusers' UNet2DModel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ddpm_core.errors import InputError
from ddpm_core.interop.settings import expect, expect_class, listed, number, refuse, settle, whole
from ddpm_core.model.unet import UNet, UNetConfig

CLASS = "UNet2DModel"
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
"""What diffusers 0.42.1 takes where a config says nothing. num_train_timesteps is read by a learned time embedding alone."""
# The paper's network is one of many that a UNet2DModel can be.
_OURS: dict[str, Any] = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_padding": 0,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "norm_eps": 1e-6,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
_DOWN, _UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")
"""Without attention, and with it."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """All that decides which weights a network has."""

    unet: UNetConfig
    image_size: int
    channels: int
    num_outputs: int

    def empty(self) -> UNet:
        """The network without weights: on the meta device."""
        with torch.device("meta"):
            return UNet(self.unet, image_size=self.image_size, channels=self.channels, num_outputs=self.num_outputs)


def read_unet(plain: Mapping[str, Any], where: str) -> Form:
    """The form that a UNet2DModel's config.json says.

    Args:
        where: its URI, for messages.

    Raises:
        InputError: naming what our network cannot say, with both values.
    """
    expect_class(plain, (CLASS,), where)
    settings = settle(plain, DEFAULTS, where)
    if settings["act_fn"] == "swish":  # another word for it
        settings["act_fn"] = "silu"
    expect(settings, _OURS, where)
    widths = listed(settings, "block_out_channels", int, where)
    base = widths[0]
    if base < 1 or any(width < base or width % base for width in widths):
        refuse(settings, "block_out_channels", f"multiples of the first, {base}", where)
    if settings["time_embedding_dim"] not in (None, 4 * base):
        refuse(settings, "time_embedding_dim", f"{4 * base}, four times the first of block_out_channels", where)
    image_size, attended = _image_size(settings, where), _attended(settings, len(widths), where)
    _expect_one_head(settings, [*(w for w, has in zip(widths, attended, strict=True) if has), widths[-1]], where)
    form = Form(
        unet=UNetConfig(
            base_channels=base,
            channel_multipliers=tuple(width // base for width in widths),
            num_res_blocks=whole(settings, "layers_per_block", where),
            attention_resolutions=tuple(image_size >> level for level, has in enumerate(attended) if has),
            dropout=number(settings, "dropout", where),
        ),
        image_size=image_size,
        channels=whole(settings, "in_channels", where),
        num_outputs=whole(settings, "out_channels", where),
    )
    _expect_groups(settings, form, where)
    return form


def unet_json(form: Form) -> dict[str, Any]:
    """The settings of the UNet2DModel that is our network.

    Raises:
        InputError: if there is none, naming what it cannot say.
    """
    config, groups = form.unet, _groups(form)
    if config.num_classes:
        raise InputError(
            f"unet.num-classes is {config.num_classes}; diffusers' DDPMPipeline gives no labels: expected 0"
        )
    if config.channel_multipliers[0] != 1:
        raise InputError(
            f"unet.channel-multipliers begins with {config.channel_multipliers[0]}; {CLASS} can only say 1 there"
        )
    if len(groups) > 1:
        raise InputError(
            f"the network's norms have {_words(groups)} groups; {CLASS} has one number for all: "
            "expected unet.base-channels of 128 or more, a multiple of 32"
        )
    levels = range(len(config.channel_multipliers))
    attended = [form.image_size >> level in config.attention_resolutions for level in levels]
    return {
        **_OURS,
        "sample_size": form.image_size,
        "in_channels": form.channels,
        "out_channels": form.num_outputs,
        "down_block_types": [_DOWN[has] for has in attended],
        "up_block_types": [_UP[has] for has in reversed(attended)],
        "block_out_channels": [config.base_channels * multiplier for multiplier in config.channel_multipliers],
        "layers_per_block": config.num_res_blocks,
        "dropout": config.dropout,
        "attention_head_dim": None,
        "norm_num_groups": groups[0],
        "attn_norm_num_groups": None,
    }


def _image_size(settings: Mapping[str, Any], where: str) -> int:
    size = settings["sample_size"]
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if type(size) is not int or size < 1:
        refuse(settings, "sample_size", "one number of pixels, as images here are square", where)
    return int(size)


def _attended(settings: Mapping[str, Any], num_levels: int, where: str) -> list[bool]:
    """Whether each level has attention, the finest first."""
    down = listed(settings, "down_block_types", str, where)
    if len(down) != num_levels or not set(down) <= set(_DOWN):
        refuse(settings, "down_block_types", f"{num_levels} of {' and '.join(_DOWN)}", where)
    attended = [kind == _DOWN[True] for kind in down]
    up = [_UP[has] for has in reversed(attended)]
    if listed(settings, "up_block_types", str, where) != up:
        refuse(settings, "up_block_types", f"{up!r}, attention on the way up at the sizes of the way down", where)
    return attended


def _expect_one_head(settings: Mapping[str, Any], widths: list[int], where: str) -> None:
    head = settings["attention_head_dim"]
    if head is not None and any(width != head for width in widths):
        expected = f"None, attention of one head over all of {_words(sorted(set(widths)))} channels"
        refuse(settings, "attention_head_dim", expected, where)


def _expect_groups(settings: Mapping[str, Any], form: Form, where: str) -> None:
    groups = _groups(form)
    if groups != [settings["norm_num_groups"]]:
        refuse(settings, "norm_num_groups", f"{_words(groups)}, as our network of these channels has", where)
    if settings["attn_norm_num_groups"] not in (None, groups[0]):
        refuse(settings, "attn_norm_num_groups", f"None or {groups[0]}, that of the other norms", where)


def _groups(form: Form) -> list[int]:
    """The numbers of groups that the norms of our network have."""
    return sorted({module.num_groups for module in form.empty().modules() if isinstance(module, nn.GroupNorm)})


def _words(numbers: list[int]) -> str:
    return " and ".join(map(str, numbers))
