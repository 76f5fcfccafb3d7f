"""What the U-Net is made of (Ho, Jain, Abbeel 2020, Appendix B, and the published code where it says more)."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ddpm_core.model.form import PAPER, UNetForm
from ddpm_core.random import dropout_mask
from ddpm_core.types import Float, Int, Tensor

_GROUPS = 32
_GROUP_CHANNELS = 4
_MANY = 1024
"""Pixels from which on, in bfloat16, a CPU's own norm is as fast as that of float32, though not on the way back; and beyond which
an attention whose scores are all kept gains nothing."""


class DropoutKey(NamedTuple):
    """What dropout depends on: the seed, and the position of each sample in the stream (int64)."""

    seed: int
    index: Int[Tensor, " b"]  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


def group_norm(channels: int, form: UNetForm = PAPER) -> nn.GroupNorm:
    """GroupNorm over 32 groups; in a network narrower than the paper's over fewer, each of 4 channels or more.

    In a group of one channel the norm would take away the shift by the time embedding: the network would not see t.
    A form that says a number of groups has that many.

    Args:
        channels: a multiple of 4.
    """
    wide = channels % _GROUPS == 0 and channels // _GROUPS >= _GROUP_CHANNELS
    groups = _GROUPS if wide else math.gcd(_GROUPS, channels // _GROUP_CHANNELS)
    return GroupNorm(form.norm_groups or groups, channels, eps=form.norm_epsilon)


class GroupNorm(nn.GroupNorm):
    """torch's own; of bfloat16 on a CPU by way of float32, which takes down to a tenth of the time."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if x.dtype != torch.bfloat16 or x.device.type != "cpu":
            return super().forward(x)
        if torch.is_grad_enabled():
            out: Tensor = _NormInFloat32.apply(x, self.weight, self.bias, self.num_groups, self.eps)  # type: ignore[no-untyped-call]
            return out
        return super().forward(_widened(x)).to(x.dtype)


def _widened(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """In float32, where the norm is faster so."""
    return x if x[0, 0].numel() >= _MANY else x.float()


class _NormInFloat32(torch.autograd.Function):
    """Keeps what goes in as it is, and not in float32, for the way back."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float
    ) -> Float[Tensor, "b c h w"]:
        shape = (len(x), x.shape[1], x[0, 0].numel(), num_groups)
        out, mean, rstd = torch.native_group_norm(_widened(x), weight, bias, *shape, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.shape = shape
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        back = torch.ops.aten.native_group_norm_backward
        of_x, of_weight, of_bias = back(grads[0].float(), x.float(), mean, rstd, weight, *ctx.shape, [True, True, True])
        return of_x.to(x.dtype), of_weight, of_bias, None, None


def time_embedding(t: Int[Tensor, " b"], size: int, form: UNetForm = PAPER) -> Float[Tensor, "b size"]:
    """Sinusoids of t, first all sines, then all cosines, of frequencies from 1 down to 1/10,000; float32.

    Args:
        size: even, 4 or more.
        form: which may scale t, end at another frequency, or begin with the cosines.
    """
    half = size // 2
    step = -math.log(10_000) / (half - form.time_freq_shift)
    frequencies = torch.exp(step * torch.arange(half, device=t.device, dtype=torch.float32))
    angles = t[:, None].to(torch.float32) * form.time_scale * frequencies
    sines, cosines = angles.sin(), angles.cos()
    return torch.cat((cosines, sines) if form.time_cos_first else (sines, cosines), dim=1)


class KeyedDropout(nn.Module):
    """Dropout that is a pure function of (seed, position of the sample in the stream, number of the layer).

    Args:
        p: the probability of 0, rounded to a multiple of 2^-16.
        layer: this layer's number in the network.
    """

    def __init__(self, p: float, layer: int) -> None:
        super().__init__()
        self.rate, self.layer = round(p * 2**16), layer

    def forward(self, h: Float[Tensor, "b c h w"], key: DropoutKey | None) -> Float[Tensor, "b c h w"]:
        """h, or without a key h itself."""
        if key is None or self.rate == 0:
            return h
        keep = dropout_mask(key.seed, key.index, tuple(h.shape[1:]), self.rate, step=self.layer)
        # Numbers that lie as h does: by them there is one multiplication each way, and no layout between.
        return h * torch.empty_like(h, requires_grad=False).copy_(keep).mul_(1 / (1 - self.rate / 2**16))


class Pointwise(nn.Conv2d):
    """A convolution of one pixel, as the matrix product that it is where the channels of a pixel lie side by side."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(in_channels, channels, 1)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """Two convolutions around a shift by the time embedding, and a shortcut."""

    def __init__(
        self, in_channels: int, channels: int, time_channels: int, dropout: KeyedDropout, form: UNetForm = PAPER
    ) -> None:
        super().__init__()
        self.scale_shift = form.scale_shift
        self.norm_1 = group_norm(in_channels, form)
        self.conv_1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.time = nn.Linear(time_channels, 2 * channels if form.scale_shift else channels)
        self.norm_2 = group_norm(channels, form)
        self.dropout = dropout
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == channels else Pointwise(in_channels, channels)

    def forward(
        self, x: Float[Tensor, "b i h w"], time: Float[Tensor, "b e"], key: DropoutKey | None
    ) -> Float[Tensor, "b o h w"]:
        h = self.conv_1(F.silu(self.norm_1(x)))
        told = self.time(F.silu(time))[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm_2(h) * (1 + scale) + shift
        else:
            h = self.norm_2(h + told)
        out: Tensor = self.shortcut(x) + self.conv_2(self.dropout(F.silu(h), key))
        return out


class Attention(nn.Module):
    """Self-attention among the pixels, and a shortcut. Each head has its part of the channels, in their order."""

    def __init__(self, channels: int, form: UNetForm = PAPER) -> None:
        super().__init__()
        self.num_heads = form.heads_of(channels)
        self.norm = group_norm(channels, form)
        self.query = Pointwise(channels, channels)
        self.key = Pointwise(channels, channels)
        self.value = Pointwise(channels, channels)
        self.out = Pointwise(channels, channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        h = self.norm(x)
        query, key, value = (
            project(h).flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)
            for project in (self.query, self.key, self.value)
        )
        out: Tensor = self.out(attended(query, key, value).transpose(2, 3).reshape(x.shape))
        return x + out


def attended(
    query: Float[Tensor, "b h n d"], key: Float[Tensor, "b h n d"], value: Float[Tensor, "b h n d"]
) -> Float[Tensor, "b h n d"]:
    """softmax(QK^T / sqrt(d)) V; torch's own, whose way back in bfloat16 on a CPU takes up to 30 times as long as this one."""
    slow = query.requires_grad and query.dtype == torch.bfloat16 and query.device.type == "cpu"
    if not slow or query.shape[2] > _MANY:
        return F.scaled_dot_product_attention(query, key, value)
    scores = torch.matmul(query * query.shape[3] ** -0.5, key.transpose(2, 3))
    return torch.matmul(scores.float().softmax(dim=3).to(value.dtype), value)


class Downsample(nn.Module):
    """Half the size by a convolution of stride 2, padded at the bottom and right only, as TensorFlow's SAME does; or on all
    sides, as the form says."""

    def __init__(self, channels: int, form: UNetForm = PAPER) -> None:
        super().__init__()
        self.padding = (1, 1, 1, 1) if form.symmetric_padding else (0, 1, 0, 1)
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h//2 w//2"]:
        out: Tensor = self.conv(F.pad(x, self.padding))
        return out


class Upsample(nn.Module):
    """Twice the size by repeating pixels, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out
