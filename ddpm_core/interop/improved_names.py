"""The names of the weights in improved-diffusion's networks, and what each of them is here."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from ddpm_core.model.blocks import Attention, ResBlock
from ddpm_core.model.unet import Down, Level, UNet, Up
from ddpm_core.types import Float, Tensor


class Entry(NamedTuple):
    """One weight's name there, and what it is here: one weight, or an attention's query, key and value."""

    theirs: str
    ours: tuple[str, ...]
    num_heads: int = 1
    """Of query, key and value."""
    pixels: int = 0
    """Of an attention's layer: dimensions of its kernel beyond [out, in], 1 there and 2 here; 0 for all other weights."""


def entries_of(network: UNet) -> Iterator[Entry]:
    """The table of a network's weights, in the order in which they are used.

    Args:
        network: may be on the meta device; only its form is looked at.
    """
    yield from _layer("time_embed.0", "time_1")
    yield from _layer("time_embed.2", "time_2")
    if network.label is not None:
        yield Entry("label_emb.weight", ("label.weight",))
    yield from _layer("input_blocks.0.0", "conv_in")
    place = 1
    for number, level in enumerate(network.down):
        assert isinstance(level, Down)
        for i in range(len(level.blocks)):
            yield from _step(level, i, f"input_blocks.{place}", f"down.{number}")
            place += 1
        if level.shrink is not None:
            yield from _layer(f"input_blocks.{place}.0.op", f"down.{number}.shrink.conv")
            place += 1
    yield from _block(network.middle_1, "middle_block.0", "middle_1")
    yield from _attention(network.middle_attention, "middle_block.1", "middle_attention")
    yield from _block(network.middle_2, "middle_block.2", "middle_2")
    place = 0
    for number, level in enumerate(network.up):
        assert isinstance(level, Up)
        for i in range(len(level.blocks)):
            yield from _step(level, i, f"output_blocks.{place}", f"up.{number}")
            place += 1
        if level.grow is not None:  # behind the level's last block, and its attention if it has one
            behind = 1 + isinstance(level.attentions[-1], Attention)
            yield from _layer(f"output_blocks.{place - 1}.{behind}.conv", f"up.{number}.grow.conv")
    yield from _layer("out.0", "norm_out")
    yield from _layer("out.2", "conv_out")


def _step(level: Level, i: int, theirs: str, ours: str) -> Iterator[Entry]:
    block, attention = level.blocks[i], level.attentions[i]
    assert isinstance(block, ResBlock)
    yield from _block(block, f"{theirs}.0", f"{ours}.blocks.{i}")
    if isinstance(attention, Attention):
        yield from _attention(attention, f"{theirs}.1", f"{ours}.attentions.{i}")


def _block(block: ResBlock, theirs: str, ours: str) -> Iterator[Entry]:
    for layer, name in (
        ("in_layers.0", "norm_1"),
        ("in_layers.2", "conv_1"),
        ("emb_layers.1", "time"),
        ("out_layers.0", "norm_2"),
        ("out_layers.3", "conv_2"),
    ):
        yield from _layer(f"{theirs}.{layer}", f"{ours}.{name}")
    if isinstance(block.shortcut, nn.Conv2d):
        yield from _layer(f"{theirs}.skip_connection", f"{ours}.shortcut")


def _attention(attention: Attention, theirs: str, ours: str) -> Iterator[Entry]:
    yield from _layer(f"{theirs}.norm", f"{ours}.norm")
    for part, pixels in (("weight", 1), ("bias", 0)):
        three = tuple(f"{ours}.{layer}.{part}" for layer in ("query", "key", "value"))
        yield Entry(f"{theirs}.qkv.{part}", three, attention.num_heads, pixels)
        yield Entry(f"{theirs}.proj_out.{part}", (f"{ours}.out.{part}",), pixels=pixels)


def _layer(theirs: str, ours: str) -> Iterator[Entry]:
    yield Entry(f"{theirs}.weight", (f"{ours}.weight",))
    yield Entry(f"{theirs}.bias", (f"{ours}.bias",))


def from_improved(entry: Entry, tensor: Tensor) -> dict[str, Tensor]:
    """Their weight as ours, by our names."""
    if entry.pixels:
        tensor = tensor[..., None]
    parts = split_qkv(tensor, entry.num_heads) if len(entry.ours) == 3 else [tensor]
    return dict(zip(entry.ours, parts, strict=True))


def split_qkv(rows: Float[Tensor, "o ..."], num_heads: int) -> list[Float[Tensor, "c ..."]]:
    """Query, key and value, whose rows lie there head by head: the first head's query, key and value, then the second's."""
    return [part.flatten(0, 1).contiguous() for part in rows.reshape(num_heads, 3, -1, *rows.shape[1:]).unbind(1)]


def shape_there(entry: Entry, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of their weight, given ours by our names."""
    first, *rest = shapes[entry.ours[0]]
    return len(entry.ours) * first, *(rest[:-1] if entry.pixels else rest)
