"""How a picture of any size comes to the size of a dataset's images."""

from typing import Literal

import torch
from PIL import Image

from ddpm_core.data.pictures import PillowAlone
from ddpm_core.random import Purpose, integers
from ddpm_core.types import ImageSize, height_and_width

Fit = Literal["crop", "pad", "stretch", "random_crop"]
_WHITE: dict[str, int | tuple[int, ...]] = {
    "L": 255,
    "LA": (255, 0),
    "RGB": (255, 255, 255),
    "RGBA": (255, 255, 255, 0),
}
"""Of each mode; transparent where that can be said."""


def fit_to(image: Image.Image, image_size: ImageSize, fit: Fit, *, seed: int = 0, position: int = 0) -> Image.Image:
    """A picture at this size; one that has it already is left as it is.

    `crop` keeps the largest centred part of the size's aspect, `random_crop` one whose place is a pure function of (seed,
    position); `pad` keeps all, and fills up with white, transparent where there is alpha; `stretch` keeps all, and no aspect.

    Resizing is Pillow's Lanczos, whose support grows with the reduction, so that it does not alias; where there is alpha it is
    premultiplied, so that what is invisible lends no colour.

    Args:
        image: of mode L, LA, RGB or RGBA.
        position: of the picture in its source.
    """
    height, width = height_and_width(image_size)
    if fit == "pad":
        return _padded(image, width, height)
    if fit != "stretch":
        image = _cropped(image, width, height, (seed, position) if fit == "random_crop" else None)
    return _resized(image, width, height)


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


def _padded(image: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / image.width, height / image.height)
    inside = _resized(image, *(max(1, round(side * scale)) for side in image.size))
    if inside.size == (width, height):
        return inside
    canvas = Image.new(image.mode, (width, height), _WHITE[image.mode])
    canvas.paste(inside, ((width - inside.width) // 2, (height - inside.height) // 2))
    return canvas


def _cropped(image: Image.Image, width: int, height: int, key: tuple[int, int] | None) -> Image.Image:
    """The largest part of this aspect; in the centre, or where the key says."""
    across = min(image.width, max(1, round(image.height * width / height)))
    down = min(image.height, max(1, round(image.width * height / width)))
    if image.size == (across, down):
        return image
    left, top = (
        spare // 2 if key is None else _drawn(key, spare) for spare in (image.width - across, image.height - down)
    )
    with PillowAlone():  # its own limit of pixels holds for a crop, too
        return image.crop((left, top, left + across, top + down))


def _drawn(key: tuple[int, int], spare: int) -> int:
    """From 0 to `spare`, each as likely."""
    seed, position = key
    return int(integers(seed, Purpose.CROP, torch.tensor([position]), spare + 1))
