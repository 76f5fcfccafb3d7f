"""The network: our UNetConfig, and the config.json of diffusers' UNet2DModel.

A UNet2DModel of N classes has a row of its class embedding for each and none for images without a label; that of ours is row N
of N + 1, which is what `class_labels` says for none. `_null_label` says so in a config that we write: a reader that does not
know it sees N + 1 classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ddpm_core.errors import InputError
from ddpm_core.interop.settings import chosen, expect, expect_class, listed, number, refuse, settle, whole
from ddpm_core.model.form import UNetForm
from ddpm_core.model.unet import UNet, UNetConfig, level_sizes
from ddpm_core.types import ImageSize, canonical_size, height_and_width

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
_PAPER: dict[str, Any] = {
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
"""The paper's network, in the order in which it is written: an older export is to be the same file."""
_OF_FORM = (
    "freq_shift",
    "flip_sin_to_cos",
    "downsample_padding",
    "norm_eps",
    "resnet_time_scale_shift",
    "num_class_embeds",
)
"""Of these our form has others, too."""
# What a setting says of our form.
_SCALE_SHIFT = {"default": False, "scale_shift": True}
_SYMMETRIC = {0: False, 1: True}
_COS_FIRST = {False: False, True: True}
_NULL_LABEL = "_null_label"
_DOWN, _UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")
"""Without attention, and with it."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """All that decides which weights a network has."""

    unet: UNetConfig
    image_size: ImageSize
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
    expect(settings, {key: value for key, value in _PAPER.items() if key not in _OF_FORM}, where)
    widths = listed(settings, "block_out_channels", int, where)
    base = widths[0]
    if base < 1 or any(width < base or width % base for width in widths):
        refuse(settings, "block_out_channels", f"multiples of the first, {base}", where)
    if settings["time_embedding_dim"] not in (None, 4 * base):
        refuse(settings, "time_embedding_dim", f"{4 * base}, four times the first of block_out_channels", where)
    image_size, attended = _image_size(settings, where), _attended(settings, len(widths), where)
    smaller = min(height_and_width(image_size))
    num_classes, null_label = _classes(plain, settings, where)
    unet = UNetConfig(
        base_channels=base,
        channel_multipliers=tuple(width // base for width in widths),
        num_res_blocks=whole(settings, "layers_per_block", where),
        attention_resolutions=tuple(smaller >> level for level, has in enumerate(attended) if has),
        dropout=number(settings, "dropout", where),
        num_classes=num_classes,
        form=UNetForm(
            head_channels=_head_channels(settings, [*_where(attended, widths), widths[-1]], where),
            scale_shift=chosen(settings, "resnet_time_scale_shift", _SCALE_SHIFT, where),
            symmetric_padding=chosen(settings, "downsample_padding", _SYMMETRIC, where),
            norm_epsilon=number(settings, "norm_eps", where),
            time_cos_first=chosen(settings, "flip_sin_to_cos", _COS_FIRST, where),
            time_freq_shift=whole(settings, "freq_shift", where, least=0),
            null_label=null_label,
        ),
    )
    form = Form(
        unet=unet,
        image_size=image_size,
        channels=whole(settings, "in_channels", where),
        num_outputs=whole(settings, "out_channels", where),
    )
    return replace(form, unet=replace(unet, form=replace(unet.form, norm_groups=_norm_groups(settings, form, where))))


def unet_json(form: Form) -> dict[str, Any]:
    """The settings of the UNet2DModel that is our network.

    Raises:
        InputError: if there is none, naming what it cannot say.
    """
    config, ours = form.unet, form.unet.form
    if config.channel_multipliers[0] != 1:
        raise InputError(
            f"unet.channel-multipliers begins with {config.channel_multipliers[0]}; {CLASS} can only say 1 there"
        )
    if ours.time_scale != 1:
        raise InputError(f"unet.form.time-scale is {ours.time_scale:g}; {CLASS} can only say 1")
    groups = _groups(form)
    if len(groups) > 1:
        raise InputError(
            f"the network's norms have {_words(groups)} groups; {CLASS} has one number for all: "
            f"expected a model trained with unet.form.norm-groups {min(groups)}, or with unet.base-channels of 128 or more, a "
            "multiple of 32"
        )
    widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
    attended = [size in config.attention_resolutions for size in level_sizes(config, form.image_size)]
    told = {_NULL_LABEL: True} if config.knows_no_label else {}
    return {
        **_PAPER,
        "sample_size": form.image_size,
        "in_channels": form.channels,
        "out_channels": form.num_outputs,
        "freq_shift": ours.time_freq_shift,
        "flip_sin_to_cos": ours.time_cos_first,
        "down_block_types": [_DOWN[has] for has in attended],
        "up_block_types": [_UP[has] for has in reversed(attended)],
        "block_out_channels": widths,
        "layers_per_block": config.num_res_blocks,
        "downsample_padding": int(ours.symmetric_padding),
        "dropout": config.dropout,
        "attention_head_dim": _head_dim(ours, [*_where(attended, widths), widths[-1]]),
        "norm_num_groups": groups[0],
        # With scale_shift, None is no norm at all in the middle's attention.
        "attn_norm_num_groups": groups[0] if ours.scale_shift else None,
        "norm_eps": ours.norm_epsilon,
        "resnet_time_scale_shift": "scale_shift" if ours.scale_shift else "default",
        "num_class_embeds": config.num_classes + config.knows_no_label if config.num_classes else None,
        **told,
    }


def _image_size(settings: Mapping[str, Any], where: str) -> ImageSize:
    size = settings["sample_size"]
    sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
    if any(type(side) is not int or side < 1 for side in sides):
        refuse(settings, "sample_size", "one number of pixels, or height and width", where)
    return canonical_size(sides)


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


def _where(attended: list[bool], widths: list[int]) -> list[int]:
    """The channels of the levels with attention."""
    return [width for width, has in zip(widths, attended, strict=True) if has]


def _head_channels(settings: Mapping[str, Any], widths: list[int], where: str) -> int | None:
    """None for one head over all channels."""
    if settings["attention_head_dim"] is None:
        return None
    # Where it does not divide them, their queries have fewer channels than the attention.
    head = whole(settings, "attention_head_dim", where)
    if any(width % head for width in widths):
        refuse(settings, "attention_head_dim", f"None or a divisor of {_words(sorted(set(widths)))} channels", where)
    return None if set(widths) == {head} else head


def _head_dim(form: UNetForm, widths: list[int]) -> int | None:
    """The inverse."""
    sizes = sorted({width // form.heads_of(width) for width in widths})
    if len(sizes) == 1:
        return None if set(widths) == set(sizes) else sizes[0]
    if form.num_heads == 1:
        return None
    raise InputError(
        f"unet.form.num-heads is {form.num_heads}, of heads of {_words(sizes)} channels; {CLASS} has one number for all: "
        "expected unet.form.head-channels"
    )


def _norm_groups(settings: Mapping[str, Any], form: Form, where: str) -> int | None:
    """None where the number is what our rule gives."""
    groups, base = whole(settings, "norm_num_groups", where), form.unet.base_channels
    if base % groups:
        refuse(settings, "norm_num_groups", f"a divisor of the first of block_out_channels, {base}", where)
    scale_shift = form.unet.form.scale_shift
    if settings["attn_norm_num_groups"] not in ((groups,) if scale_shift else (None, groups)):
        either = "" if scale_shift else "None or "
        refuse(settings, "attn_norm_num_groups", f"{either}{groups}, that of the other norms", where)
    return None if _groups(form) == [groups] else groups


def _classes(plain: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> tuple[int, bool]:
    """How many classes there are, and whether there is a row for none behind theirs."""
    if settings["num_class_embeds"] is None:
        return 0, True
    ours = plain.get(_NULL_LABEL) is True
    return whole(settings, "num_class_embeds", where, least=1 + ours) - ours, ours


def _groups(form: Form) -> list[int]:
    """The numbers of groups that the norms of our network have."""
    return sorted({module.num_groups for module in form.empty().modules() if isinstance(module, nn.GroupNorm)})


def _words(numbers: list[int]) -> str:
    return " and ".join(map(str, numbers))
