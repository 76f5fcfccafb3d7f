"""Pictures as PNG bytes: grids of images, the way from noise to image, nearest neighbours."""

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ddpm_core.data.pixels import on_white
from ddpm_core.errors import InputError
from ddpm_core.types import Tensor, UInt8

_PAPER, _INK = "#ffffff", "#444444"
_TEXT_SIZE = 12
_LEGIBLE = 64
"""Pixels a side to which smaller images are magnified."""


def image_grid(
    images: UInt8[Tensor, "n c h w"], columns: int | None = None, *, scale: int | None = None, padding: int = 2
) -> bytes:
    """`grid_picture` as PNG."""
    return _png(grid_picture(images, columns, scale=scale, padding=padding))


def grid_picture(
    images: UInt8[Tensor, "n c h w"], columns: int | None = None, *, scale: int | None = None, padding: int = 2
) -> Image.Image:
    """Images side by side, row by row, on white.

    Args:
        images: n >= 1, grey or colour, with alpha or without.
        columns: by default as many as make the grid about square.
        scale: each pixel becomes scale x scale; by default small images are magnified to about 64 pixels a side.
        padding: pixels around each image.
    """
    count = len(images)
    columns = columns or math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    tiles = _magnified(images, scale)
    height, width = tiles.shape[1] + padding, tiles.shape[2] + padding
    canvas = Image.new("RGB", (columns * width + padding, rows * height + padding), _PAPER)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        canvas.paste(Image.fromarray(tile), (padding + column * width, padding + row * height))
    return canvas


def denoising_strip(
    frames: UInt8[Tensor, "rows columns c h w"], labels: Sequence[str], *, scale: int | None = None
) -> bytes:
    """Each row one image on its way from x_T (left) to x_0 (right); a label above each column.

    Raises:
        InputError: if there is not one label a column.
    """
    if len(labels) != frames.shape[1]:
        raise InputError(f"{len(labels)} labels for {frames.shape[1]} columns; expected one each")
    return _labelled(frames, [list(labels)], scale)


def neighbours_grid(
    queries: UInt8[Tensor, "q c h w"],
    neighbours: UInt8[Tensor, "q k c h w"],
    distances: NDArray[np.float64],
    *,
    scale: int | None = None,
) -> bytes:
    """Each row a generated image and then its k nearest training images, nearest first, their distances above."""
    labels = [["generated", *(f"{distance:.2f}" for distance in row)] for row in distances]
    return _labelled(torch.cat([queries[:, None], neighbours], dim=1), labels, scale)


def _labelled(rows: UInt8[Tensor, "rows columns c h w"], labels: list[list[str]], scale: int | None) -> bytes:
    """Rows of images, with a line of labels above each row, or one above the first."""
    count, columns = rows.shape[:2]
    tiles = _magnified(rows.flatten(0, 1), scale)
    font = ImageFont.load_default(_TEXT_SIZE)
    widest = max(font.getlength(text) for line in labels for text in line)
    side, gap, line = tiles.shape[1], 4, _TEXT_SIZE + 8
    pitch = max(tiles.shape[2], math.ceil(widest)) + gap
    height = gap + count * (side + gap) + len(labels) * line
    canvas = Image.new("RGB", (gap + columns * pitch, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    top = gap
    for row in range(count):
        if row < len(labels):
            for column, text in enumerate(labels[row]):
                centre = gap + column * pitch + (pitch - gap) / 2
                draw.text((centre, top + line / 2), text, fill=_INK, font=font, anchor="mm")
            top += line
        for column in range(columns):
            left = gap + column * pitch + (pitch - gap - tiles.shape[2]) // 2
            canvas.paste(Image.fromarray(tiles[row * columns + column]), (left, top))
        top += side + gap
    return _png(canvas)


def _magnified(images: UInt8[Tensor, "n c h w"], scale: int | None) -> UInt8[np.ndarray, "n H W 3"]:
    """Colour images in HWC, on white where there is alpha, each pixel a square.

    Small ones are brought to about 64 pixels of the longer side unless told otherwise.
    """
    scale = scale or max(1, round(_LEGIBLE / max(images.shape[2:])))
    pixels = on_white(images).cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return pixels.repeat(scale, axis=1).repeat(scale, axis=2)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()
