"""The U-Net that predicts the noise (Ho, Jain, Abbeel 2020, Appendix B, and the published code where it says more)."""

import math
from dataclasses import dataclass, field
from itertools import count

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ddpm_core.errors import InputError
from ddpm_core.model.blocks import (
    Attention,
    Downsample,
    DropoutKey,
    KeyedDropout,
    ResBlock,
    Upsample,
    group_norm,
    time_embedding,
)
from ddpm_core.model.form import UNetForm
from ddpm_core.types import Float, ImageSize, Int, Tensor, canonical_size, height_and_width, size_words

__all__ = [
    "DropoutKey",
    "UNet",
    "UNetConfig",
    "UNetForm",
    "check_all_labelled",
    "check_image_size",
    "divides",
    "level_sizes",
    "recompute_activations",
]


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The network's form; the default is the paper's for CIFAR-10.

    Raises:
        InputError: if a field is out of its range.
    """

    base_channels: int = 128
    """Channels at full size; a multiple of 4."""
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Channels of each level as a multiple of base_channels; each level has half the size of the one before."""
    num_res_blocks: int = 2
    """Residual blocks of a level on the way down; one more on the way up."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Shorter sides in pixels of the feature maps with self-attention; the middle always has it. For images of another size
    than the recipe's the nearest that there are."""
    dropout: float = 0.1
    """Probability with which a residual block zeroes a value in training."""
    num_classes: int = 0
    """Classes of which the network is told; 0 for none, as in the paper. They are those of the dataset."""
    form: UNetForm = field(default_factory=UNetForm, metadata={"unless_default": True})
    """How it computes, where it is not the paper's network."""

    def __post_init__(self) -> None:
        if self.base_channels < 4 or self.base_channels % 4:
            raise InputError(f"unet.base-channels is {self.base_channels}; expected a multiple of 4, 4 or more")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise InputError(
                f"unet.channel-multipliers is {self.channel_multipliers}; expected one or more, each 1 or more"
            )
        if self.num_res_blocks < 1:
            raise InputError(f"unet.num-res-blocks is {self.num_res_blocks}; expected 1 or more")
        if not 0 <= self.dropout < 1:
            raise InputError(f"unet.dropout is {self.dropout}; expected a probability in [0, 1)")
        if self.num_classes < 0:
            raise InputError(f"unet.num-classes is {self.num_classes}; expected 0 or more")
        self.form.check_base(self.base_channels)

    @property
    def knows_no_label(self) -> bool:
        """Whether the network has classes, and a row for images without one."""
        return self.num_classes > 0 and self.form.null_label


class Level(nn.Module):
    """Residual blocks, each with attention behind it or without."""

    def __init__(self, blocks: list[ResBlock], attentions: list[nn.Module]) -> None:
        super().__init__()
        self.blocks, self.attentions = nn.ModuleList(blocks), nn.ModuleList(attentions)
        self.recompute = False

    def run(
        self, block: nn.Module, attention: nn.Module, parts: list[Tensor], time: Tensor, dropout: DropoutKey | None
    ) -> Tensor:
        """One block on its inputs side by side.

        With `recompute` what it computes inside is computed again on the way back instead of being kept (Chen et al. 2016).
        """
        if not self.recompute or not torch.is_grad_enabled():
            return _both(block, attention, dropout, time, *parts)
        # No generator state to restore: dropout is keyed.
        out: Tensor = checkpoint(
            _both, block, attention, dropout, time, *parts, use_reentrant=False, preserve_rng_state=False
        )
        return out


def _both(block: nn.Module, attention: nn.Module, dropout: DropoutKey | None, time: Tensor, *parts: Tensor) -> Tensor:
    h = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    out: Tensor = attention(block(h, time, dropout))
    return out


class Down(Level):
    """A level on the way down: residual blocks, with or without attention; then half the size, but for the last."""

    def __init__(self, blocks: list[ResBlock], attentions: list[nn.Module], shrink: Downsample | None) -> None:
        super().__init__(blocks, attentions)
        self.shrink = shrink

    def forward(self, h: Tensor, time: Tensor, dropout: DropoutKey | None) -> list[Tensor]:
        """Every feature map of the level, which the way up takes again; the last one goes on."""
        outs = []
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            h = self.run(block, attention, [h], time, dropout)
            outs.append(h)
        return outs if self.shrink is None else [*outs, self.shrink(h)]


class Up(Level):
    """A level on the way up: residual blocks, with or without attention; then twice the size, but for the first."""

    def __init__(self, blocks: list[ResBlock], attentions: list[nn.Module], grow: Upsample | None) -> None:
        super().__init__(blocks, attentions)
        self.grow = grow

    def forward(self, h: Tensor, skips: list[Tensor], time: Tensor, dropout: DropoutKey | None) -> Tensor:
        """Takes one of `skips` off its end for each block."""
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            h = self.run(block, attention, [h, skips.pop()], time, dropout)
        return h if self.grow is None else self.grow(h)


class UNet(nn.Module):
    """A Denoiser with weights: `init_unet` sets them, or a checkpoint does.

    Inside, the channels of a pixel lie side by side in memory ("channels last"), and so do those of the weights: convolutions
    are faster so. What goes in may lie in any way, what comes out lies in rows.

    Args:
        image_size: height and width in pixels.
        channels: of an image: any number.
        num_outputs: channels of the output; None for as many as the image has.
        num_augment: numbers that tell it how an image was augmented, in training; 0 for none.

    Raises:
        InputError: as `check_image_size`, or if the heads of an attention do not divide its channels.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        image_size: ImageSize,
        channels: int,
        num_outputs: int | None = None,
        num_augment: int = 0,
    ) -> None:
        super().__init__()
        check_image_size(config, image_size)
        self.base_channels = base = config.base_channels
        self.form = form = config.form
        time_channels = 4 * base
        layer = count()

        def block(in_channels: int, out_channels: int) -> ResBlock:
            dropout = KeyedDropout(config.dropout, next(layer))
            return ResBlock(in_channels, out_channels, time_channels, dropout, form)

        def attention(size: int, width: int) -> nn.Module:
            return Attention(width, form) if size in config.attention_resolutions else nn.Identity()

        self.time_1 = nn.Linear(base, time_channels)
        self.time_2 = nn.Linear(time_channels, time_channels)
        # The row after the last class is for images without a label.
        rows = config.num_classes + config.knows_no_label
        self.label = nn.Embedding(rows, time_channels) if rows else None
        self.augment = nn.Linear(num_augment, base, bias=False) if num_augment else None
        self.conv_in = nn.Conv2d(channels, base, 3, padding=1)

        widths = [base * multiplier for multiplier in config.channel_multipliers]
        levels = list(zip(range(len(widths)), widths, level_sizes(config, image_size), strict=True))
        skips = [base]  # the channels of what the way up takes from the way down
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width, size in levels:
            last = level == len(widths) - 1
            blocks = [block(i, width) for i in [skips[-1], *[width] * (config.num_res_blocks - 1)]]
            attentions = [attention(size, width) for _ in blocks]
            self.down.append(Down(blocks, attentions, None if last else Downsample(width, form)))
            skips += [width] * (len(blocks) + (not last))

        self.middle_1 = block(widths[-1], widths[-1])
        self.middle_attention = Attention(widths[-1], form)
        self.middle_2 = block(widths[-1], widths[-1])

        below = widths[-1]
        for level, width, size in reversed(levels):
            blocks = [block(i + skips.pop(), width) for i in [below, *[width] * config.num_res_blocks]]
            attentions = [attention(size, width) for _ in blocks]
            self.up.append(Up(blocks, attentions, Upsample(width) if level > 0 else None))
            below = width

        self.norm_out = group_norm(below, form)
        self.conv_out = nn.Conv2d(below, channels if num_outputs is None else num_outputs, 3, padding=1)
        for p in self.parameters():
            if p.dim() == 4 and p[0, 0].numel() > 1:
                p.data = p.data.contiguous(memory_format=torch.channels_last)

    def forward(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        labels: Int[Tensor, " b"] | None = None,
        dropout: DropoutKey | None = None,
        augment: Float[Tensor, "b a"] | None = None,
    ) -> Float[Tensor, "b o h w"]:
        """Predict what took x_0 to x_t: the noise, or whatever the network was trained on.

        Args:
            t: steps in [0, T-1].
            labels: classes, -1 for none; None for none anywhere. A network without classes ignores them.
            dropout: what the dropout of training is keyed by; None for no dropout.
            augment: how each image was augmented; None for not at all, as zeros. A network that is not told ignores it.

        Raises:
            InputError: as `check_all_labelled`, if the network knows no image without a label.
        """
        time = time_embedding(t, self.base_channels, self.form).to(x_t.dtype)
        if self.augment is not None and augment is not None:  # where EDM adds it (Karras et al. 2022, its code)
            time = time + self.augment(augment.to(x_t.dtype))
        time = self.time_2(F.silu(self.time_1(time)))
        if self.label is not None:
            time = time + self.label(self._rows(t, labels))
        # Of one channel a tensor lies both ways, and torch may take it for rows.
        skips = [self.conv_in(x_t).contiguous(memory_format=torch.channels_last)]
        for level in self.down:
            skips += level(skips[-1], time, dropout)
        h = self.middle_1(skips[-1], time, dropout)
        h = self.middle_2(self.middle_attention(h), time, dropout)
        for level in self.up:
            h = level(h, skips, time, dropout)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out.contiguous()

    def _rows(self, t: Int[Tensor, " b"], labels: Int[Tensor, " b"] | None) -> Int[Tensor, " b"]:
        """Each label's row of the embedding."""
        assert self.label is not None
        if not self.form.null_label:
            return check_all_labelled(labels)
        nothing = self.label.num_embeddings - 1
        return torch.full_like(t, nothing) if labels is None else torch.where(labels < 0, nothing, labels)


def check_all_labelled(labels: Int[Tensor, " b"] | None) -> Int[Tensor, " b"]:
    """The labels, for a network that knows no image without one.

    Raises:
        InputError: if there are none, or one is -1; on a GPU they are not looked at, as the host would have to wait.
    """
    seen = labels is not None and labels.device.type == "cpu" and not torch.compiler.is_compiling()
    if labels is None or (seen and bool((labels < 0).any())):
        raise InputError(
            "the network knows no image without a label (unet.form.null-label is False); expected a class for each image, "
            "and guidance 0"
        )
    return labels


def recompute_activations(network: UNet) -> None:
    """Trade time for memory in training: keep only what stands between blocks, and compute the rest again."""
    for level in [*network.down, *network.up]:
        assert isinstance(level, Level)
        level.recompute = True


def level_sizes(config: UNetConfig, image_size: ImageSize) -> list[int]:
    """The shorter side in pixels of each level's feature maps, by which attention is placed; no two are the same."""
    return [min(height_and_width(image_size)) >> level for level in range(len(config.channel_multipliers))]


def divides(config: UNetConfig, image_size: ImageSize) -> bool:
    """Whether such images can be halved as often as there are levels."""
    return all(side >= 1 and side % _divisor(config) == 0 for side in height_and_width(image_size))


def _divisor(config: UNetConfig) -> int:
    return 1 << len(config.channel_multipliers) - 1


def check_image_size(config: UNetConfig, image_size: ImageSize) -> None:
    """Refuse images that the network cannot do.

    Raises:
        InputError: if they cannot be halved as often as there are levels, naming the nearest sizes that can, or attention is
            asked for at a size that no level has.
    """
    if not divides(config, image_size):
        sides, divisor = height_and_width(image_size), _divisor(config)
        raise InputError(
            f"the image size is {size_words(image_size)}; expected a multiple of {divisor}, "
            f"for the {len(config.channel_multipliers)} levels of unet.channel-multipliers; nearest: {_nearest(sides, divisor)}"
        )
    sizes = level_sizes(config, image_size)
    for resolution in config.attention_resolutions:
        if resolution not in sizes:
            expected = ", ".join(map(str, sizes))
            raise InputError(
                f"unet.attention-resolutions has {resolution}; expected sizes that the levels have: {expected}"
            )


def _nearest(sides: tuple[int, int], divisor: int) -> str:
    near = ([max(rounded(side / divisor), 1) * divisor for side in sides] for rounded in (math.floor, math.ceil))
    return " or ".join(dict.fromkeys(size_words(canonical_size(each)) for each in near))
