"""Augmentation that does not leak into what is generated: training images are moved about, and the network is told how.

The geometric part of StyleGAN2-ADA's augmentations (Karras et al. 2020) as in EDM (Karras et al. 2022, Appendix F.2): nine
numbers say what was done to an image, all 0 for nothing, and the network sees them; sampled with zeros, it draws images to
which nothing was done.

    0 x flip | 1 y flip | 2 scale | 3, 4 rotation | 5, 6 stretch | 7, 8 translation to the right, down

Other than in EDM: the two numbers of a stretch have twice its angle, so that they tell it from the one across (EDM's do not);
the warp interpolates by cubics, and averages where it makes an image smaller, where EDM filters by wavelets; and its result
is rounded to the 8-bit levels that all images have, as the variational bound needs them.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from ddpm_core.diffusion.checks import check_name
from ddpm_core.errors import InputError
from ddpm_core.random import Purpose, normals, uniforms
from ddpm_core.types import Float, Int, Tensor, UInt8

AugmentKind = Literal["x_flip", "y_flip", "scale", "rotation", "stretch", "translation", "shift"]
EDM_KINDS: tuple[AugmentKind, ...] = ("x_flip", "y_flip", "scale", "rotation", "stretch", "translation")
NUM_PARAMETERS = 9
"""Numbers that say what was done to an image."""

_LOG_SCALE = 0.2 * math.log(2)
"""A scale is 2^(0.2 z), z a standard normal; a stretch is that much one way and its inverse across."""
_MOVE = 1 / 8
"""Of height or width: the deviation of a translation, and the largest shift."""
_WHOLE = 1e-4
"""Pixels by which a shift is still a whole one: what float32 leaves of a large number."""


def check_augment(probability: float, kinds: tuple[str, ...]) -> None:
    """Refuse what is no probability, no kind, or both without an effect.

    Raises:
        InputError: in one line.
    """
    if not 0 <= probability <= 1:
        raise InputError(f"train.augment is {probability}; expected a probability in [0, 1]")
    for kind in kinds:
        check_name(kind, AugmentKind, "train.augment-kinds")
    said = " ".join(kinds) or "empty"
    if not kinds or len(set(kinds)) < len(kinds):
        raise InputError(f"train.augment-kinds is {said}; expected one or more names, each once")
    if probability == 0 and kinds != EDM_KINDS:
        raise InputError(
            f"train.augment-kinds is {said} and train.augment is 0, which does none of them; expected a probability, as "
            "--train.augment 0.12"
        )


def draw_augmentation(
    seed: int,
    positions: Int[Tensor, " b"],
    probability: float,
    kinds: tuple[AugmentKind, ...],
    *,
    height: int,
    width: int,
) -> Float[Tensor, "b 9"]:
    """What is to be done to each image: a pure function of (seed, its position in the stream), a kind's of that kind alone.

    Each kind is done with the probability; but an x flip, as in EDM, to half of all images, and a y flip to half of those
    chosen for it.

    Args:
        kinds: those that may be done.
        height: of the images in pixels, as `width`: a shift is by whole ones.
    """
    names = get_args(AugmentKind)
    chance = uniforms(seed, Purpose.AUGMENT, positions, len(names))
    uniform = uniforms(seed, Purpose.AUGMENT, positions, 7, step=1)
    normal = normals(seed, Purpose.AUGMENT, positions, (4,), step=2).to(torch.float64)

    def where(kind: AugmentKind, value: Tensor, share: float = probability) -> Tensor:
        done = chance[:, names.index(kind)] < (share if kind in kinds else 0)
        return torch.where(done, value, torch.zeros_like(value))

    coins = (uniform[:, :2] < 0.5).to(torch.float64)
    turn = math.pi * (2 * uniform[:, 2] - 1)
    # Along the axes in half of the cases, as in EDM.
    axis = torch.where(uniform[:, 3] < 0.5, torch.zeros_like(turn), 2 * math.pi * uniform[:, 4])
    size = torch.tensor([width, height], dtype=torch.float64, device=positions.device)
    shift = (_MOVE * size * (2 * uniform[:, 5:] - 1)).round() / (_MOVE * size)
    return torch.stack(
        (
            where("x_flip", coins[:, 0], share=1.0),
            where("y_flip", coins[:, 1]),
            where("scale", normal[:, 0]),
            where("rotation", turn.cos() - 1),
            where("rotation", turn.sin()),
            where("stretch", normal[:, 1] * axis.cos()),
            where("stretch", normal[:, 1] * axis.sin()),
            where("translation", normal[:, 2]) + where("shift", shift[:, 0]),
            where("translation", normal[:, 3]) + where("shift", shift[:, 1]),
        ),
        dim=1,
    ).to(torch.float32)


def augment(images: UInt8[Tensor, "b c h w"], parameters: Float[Tensor, "b 9"]) -> UInt8[Tensor, "b c h w"]:
    """Flip, scale, rotate (counterclockwise), stretch and translate each image about its centre, in this order, as the nine
    numbers say; what comes in from outside is the image mirrored at its border pixels.

    Flips and shifts by whole pixels are exact: all zeros give the image itself.
    """
    x_flip, y_flip = parameters[:, 0, None, None, None] > 0, parameters[:, 1, None, None, None] > 0
    images = torch.where(x_flip, images.flip(-1), images)
    images = torch.where(y_flip, images.flip(-2), images)
    height, width = images.shape[-2:]
    shift = parameters[:, 7:] * (_MOVE * torch.tensor([width, height], device=images.device))
    whole = shift.round()
    is_shift = (parameters[:, 2:7] == 0).all(1) & ((shift - whole).abs() < _WHOLE).all(1)
    warped = _warped(images, _inverse(parameters), shift)
    return torch.where(is_shift[:, None, None, None], _shifted(images, whole.to(torch.int64)), warped)


def _inverse(parameters: Float[Tensor, "b 9"]) -> Float[Tensor, "b 2 2"]:
    """From where an image's pixels are taken, as offsets (x, y) from its centre: of scale, rotation and stretch together."""
    parameters = parameters.to(torch.float64)  # so that no rounding of a batch's products shows
    scale, cos, sin = parameters[:, 2], parameters[:, 3] + 1, parameters[:, 4]
    # A stretch by 2^(0.2 z) along the angle r, and its inverse across, is exp(0.2 log(2) z [[cos 2r, sin 2r], [sin 2r, -cos 2r]]).
    a, b = -_LOG_SCALE * parameters[:, 5], -_LOG_SCALE * parameters[:, 6]
    size = torch.hypot(a, b)
    cosh, sinch = size.cosh(), size.clamp(min=1e-6).sinh() / size.clamp(min=1e-6)
    stretch = _matrices(cosh + sinch * a, sinch * b, sinch * b, cosh - sinch * a)
    # y points down.
    turned = _matrices(cos, -sin, sin, cos) @ stretch
    return (torch.exp(-_LOG_SCALE * scale)[:, None, None] * turned).to(torch.float32)


def _matrices(*entries: Float[Tensor, " b"]) -> Float[Tensor, "b 2 2"]:
    return torch.stack(entries, dim=1).reshape(-1, 2, 2)


def _shifted(images: UInt8[Tensor, "b c h w"], shift: Int[Tensor, "b 2"]) -> UInt8[Tensor, "b c h w"]:
    """Images shifted by whole pixels (x, y)."""
    count, channels, height, width = images.shape
    x = _mirrored(torch.arange(width, device=images.device) - shift[:, :1], width)
    y = _mirrored(torch.arange(height, device=images.device) - shift[:, 1:], height)
    rows, planes = (torch.arange(n, device=images.device) for n in (count, channels))
    return images[rows[:, None, None, None], planes[:, None, None], y[:, None, :, None], x[:, None, None, :]]


def _mirrored(at: Int[Tensor, "b n"], size: int) -> Int[Tensor, "b n"]:
    """Places mirrored at the first and the last pixel until they lie between them."""
    last = size - 1
    return last - (last - at % max(1, 2 * last)).abs()


def _warped(
    images: UInt8[Tensor, "b c h w"], inverse: Float[Tensor, "b 2 2"], shift: Float[Tensor, "b 2"]
) -> UInt8[Tensor, "b c h w"]:
    """Images at inverse (place - shift), places as offsets (x, y) from the centre in pixels.

    Where the pixels taken lie j > 1 apart, each is the mean of four around it, spread so as to have the variance of a box of
    j pixels beside the interpolation's one: against aliasing.
    """
    height, width = images.shape[-2:]
    last = torch.tensor([width - 1, height - 1], dtype=torch.float32, device=images.device)
    y, x = torch.meshgrid(
        *(torch.arange(n, device=images.device) - (n - 1) / 2 for n in (height, width)), indexing="ij"
    )
    places = torch.stack((x, y), dim=-1) - shift[:, None, None, :]
    apart = inverse.square().sum(1)  # j^2 for a step in x and in y
    spread = ((1 - 1 / apart).clamp(min=0) / 12).sqrt()
    pixels, total = images.to(torch.float32), torch.zeros_like(images, dtype=torch.float32)
    for signs in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        offset = spread * torch.tensor(signs, device=images.device)
        at = places + offset[:, None, None, :]
        taken = at[..., :1] * inverse[:, None, None, :, 0] + at[..., 1:] * inverse[:, None, None, :, 1]
        grid = taken / (last / 2).clamp(min=0.5)
        total += F.grid_sample(pixels, grid, mode="bicubic", padding_mode="reflection", align_corners=True)
    return (total / 4).round().clamp(0, 255).to(torch.uint8)
