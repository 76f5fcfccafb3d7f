"""The names of the weights: ours, those of diffusers' UNet2DModel, and the original TensorFlow code's, in one table.

The original's variables stand below a scope `model/`, their averages beside them as `.../ExponentialMovingAverage`. It counts
the levels of the way up by resolution, the finest being 0; here and in diffusers the way up begins at the coarsest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import nn

from ddpm_core.model.blocks import Attention, ResBlock
from ddpm_core.model.unet import Down, UNet, Up
from ddpm_core.types import Tensor

Kind = Literal["vector", "convolution", "dense", "shortcut", "projection"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Name:
    """One weight's three names."""

    ours: str
    diffusers: str
    original: str | None
    """None for the classes' embedding, which it has not."""
    kind: Kind
    """How it lies. vector: a bias, what a norm learns, or the classes' rows; the same everywhere. convolution: here
    [out, in, h, w], in the original [h, w, in, out]. dense: [out, in], in the original [in, out]. shortcut: a convolution of
    one pixel, in the original [in, out]. projection, an attention's: a convolution of one pixel here, elsewhere [out, in] and
    [in, out]."""


def names_of(network: UNet) -> list[Name]:
    """The table of a network's weights, in the order in which they are used.

    Args:
        network: may be on the meta device; only its form is looked at.
    """
    return list(_walk(network))


def to_diffusers(name: Name, tensor: Tensor) -> Tensor:
    """Our weight as diffusers has it."""
    return tensor[:, :, 0, 0].contiguous() if name.kind == "projection" else tensor


def from_diffusers(name: Name, tensor: Tensor) -> Tensor:
    """diffusers' weight as we have it."""
    return tensor[:, :, None, None] if name.kind == "projection" and tensor.ndim == 2 else tensor


def to_original(name: Name, tensor: Tensor) -> Tensor:
    """Our weight as the original has it."""
    match name.kind:
        case "vector":
            return tensor
        case "convolution":
            return tensor.permute(2, 3, 1, 0).contiguous()
        case "dense":
            return tensor.T.contiguous()
        case "shortcut" | "projection":
            return tensor[:, :, 0, 0].T.contiguous()


def from_original(name: Name, tensor: Tensor) -> Tensor:
    """The original's weight as we have it."""
    match name.kind:
        case "vector":
            return tensor
        case "convolution":
            return tensor.permute(3, 2, 0, 1).contiguous()
        case "dense":
            return tensor.T.contiguous()
        case "shortcut" | "projection":
            return tensor.T[:, :, None, None].contiguous()


def _walk(network: UNet) -> Iterator[Name]:
    last = len(network.down) - 1
    yield from _layer("time_1", "time_embedding.linear_1", "temb/dense0", "dense")
    yield from _layer("time_2", "time_embedding.linear_2", "temb/dense1", "dense")
    if network.label is not None:
        yield Name(ours="label.weight", diffusers="class_embedding.weight", original=None, kind="vector")
    yield from _layer("conv_in", "conv_in", "conv_in", "convolution")
    for level, down in enumerate(_all(network.down, Down)):
        yield from _level(down, f"down.{level}", f"down_blocks.{level}", f"down_{level}")
        if down.shrink is not None:
            diffusers, original = f"down_blocks.{level}.downsamplers.0.conv", f"down_{level}/downsample/conv"
            yield from _layer(f"down.{level}.shrink.conv", diffusers, original, "convolution")
    yield from _block(network.middle_1, "middle_1", "mid_block.resnets.0", "mid/block_1")
    yield from _attention("middle_attention", "mid_block.attentions.0", "mid/attn_1")
    yield from _block(network.middle_2, "middle_2", "mid_block.resnets.1", "mid/block_2")
    for place, up in enumerate(_all(network.up, Up)):
        level = last - place
        yield from _level(up, f"up.{place}", f"up_blocks.{place}", f"up_{level}")
        if up.grow is not None:
            diffusers, original = f"up_blocks.{place}.upsamplers.0.conv", f"up_{level}/upsample/conv"
            yield from _layer(f"up.{place}.grow.conv", diffusers, original, "convolution")
    yield from _norm("norm_out", "conv_norm_out", "norm_out")
    yield from _layer("conv_out", "conv_out", "conv_out", "convolution")


def _level(level: Down | Up, ours: str, diffusers: str, original: str) -> Iterator[Name]:
    for i, block in enumerate(_all(level.blocks, ResBlock)):
        yield from _block(block, f"{ours}.blocks.{i}", f"{diffusers}.resnets.{i}", f"{original}/block_{i}")
        if isinstance(level.attentions[i], Attention):
            yield from _attention(f"{ours}.attentions.{i}", f"{diffusers}.attentions.{i}", f"{original}/attn_{i}")


def _block(block: ResBlock, ours: str, diffusers: str, original: str) -> Iterator[Name]:
    yield from _norm(f"{ours}.norm_1", f"{diffusers}.norm1", f"{original}/norm1")
    yield from _layer(f"{ours}.conv_1", f"{diffusers}.conv1", f"{original}/conv1", "convolution")
    yield from _layer(f"{ours}.time", f"{diffusers}.time_emb_proj", f"{original}/temb_proj", "dense")
    yield from _norm(f"{ours}.norm_2", f"{diffusers}.norm2", f"{original}/norm2")
    yield from _layer(f"{ours}.conv_2", f"{diffusers}.conv2", f"{original}/conv2", "convolution")
    if isinstance(block.shortcut, nn.Conv2d):
        yield from _layer(f"{ours}.shortcut", f"{diffusers}.conv_shortcut", f"{original}/nin_shortcut", "shortcut")


def _attention(ours: str, diffusers: str, original: str) -> Iterator[Name]:
    yield from _norm(f"{ours}.norm", f"{diffusers}.group_norm", f"{original}/norm")
    for layer, theirs, first in (
        ("query", "to_q", "q"),
        ("key", "to_k", "k"),
        ("value", "to_v", "v"),
        ("out", "to_out.0", "proj_out"),
    ):
        yield from _layer(f"{ours}.{layer}", f"{diffusers}.{theirs}", f"{original}/{first}", "projection")


def _layer(ours: str, diffusers: str, original: str, kind: Kind) -> Iterator[Name]:
    yield Name(ours=f"{ours}.weight", diffusers=f"{diffusers}.weight", original=f"{original}/W", kind=kind)
    yield Name(ours=f"{ours}.bias", diffusers=f"{diffusers}.bias", original=f"{original}/b", kind="vector")


def _norm(ours: str, diffusers: str, original: str) -> Iterator[Name]:
    yield Name(ours=f"{ours}.weight", diffusers=f"{diffusers}.weight", original=f"{original}/gamma", kind="vector")
    yield Name(ours=f"{ours}.bias", diffusers=f"{diffusers}.bias", original=f"{original}/beta", kind="vector")


def _all(modules: nn.ModuleList, kind: type[T]) -> Iterator[T]:
    """The modules, known to be of a kind."""
    for module in modules:
        assert isinstance(module, kind)
        yield module
