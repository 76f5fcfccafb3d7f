"""Augmentation: closed forms of what is done, how often, and by what it is keyed."""

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch

from ddpm_core.training.augmentation import (
    EDM_KINDS,
    NUM_PARAMETERS,
    AugmentKind,
    augment,
    draw_augmentation,
)

KINDS = get_args(AugmentKind)
COLUMNS: dict[str, tuple[int, ...]] = {
    "x_flip": (0,),
    "y_flip": (1,),
    "scale": (2,),
    "rotation": (3, 4),
    "stretch": (5, 6),
    "translation": (7, 8),
    "shift": (7, 8),
}


def noise(height: int, width: int, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (count, 2, height, width), dtype=torch.uint8, generator=generator)


def smooth(height: int, width: int) -> torch.Tensor:
    """A broad blob off the centre, of other widths along x and y: what interpolation can follow."""
    y, x = torch.meshgrid(torch.arange(height) - height / 2, torch.arange(width) - width / 2, indexing="ij")
    blob = torch.exp(-((x - 2) ** 2 / 18 + (y + 1) ** 2 / 8 + (x - 2) * (y + 1) / 20))
    return (230 * blob).round().to(torch.uint8)[None, None]


def told(count: int = 1, **kinds: Any) -> torch.Tensor:
    """The same nine numbers for each image."""
    numbers = torch.zeros(count, NUM_PARAMETERS)
    for kind, values in kinds.items():
        numbers[:, list(COLUMNS[kind])] = torch.tensor(values, dtype=torch.float32).view(-1)
    return numbers


def turn(degrees: float) -> tuple[float, float]:
    return math.cos(math.radians(degrees)) - 1, math.sin(math.radians(degrees))


def shift_of(x: float, y: float, image: torch.Tensor) -> tuple[float, float]:
    """Numbers for a translation by so many pixels."""
    return 8 * x / image.shape[-1], 8 * y / image.shape[-2]


def drawn(count: int = 20_000, probability: float = 0.12, kinds: tuple[Any, ...] = KINDS, **more: Any) -> torch.Tensor:
    size = {"height": 16, "width": 24} | more
    return draw_augmentation(5, torch.arange(count), probability, kinds, **size)


def difference(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a.int() - b.int()).abs().max())


SHAPES = [(8, 8), (12, 20), (20, 12), (1, 1), (2, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_leaves_each_image_as_it_is_beside_others_that_are_moved(shape: tuple[int, int]) -> None:
    images = noise(*shape)
    assert torch.equal(augment(images, told(3)), images)
    mixed = told(3, scale=1.0, rotation=turn(50))
    mixed[1] = 0
    assert torch.equal(augment(images, mixed)[1], images[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_flips_are_exact_and_undo_themselves(shape: tuple[int, int]) -> None:
    images = noise(*shape)
    assert torch.equal(augment(images, told(3, x_flip=1)), images.flip(-1))
    assert torch.equal(augment(images, told(3, y_flip=1)), images.flip(-2))
    both = told(3, x_flip=1, y_flip=1)
    assert torch.equal(augment(augment(images, both), both), images)


@pytest.mark.parametrize(("x", "y"), [(1, 0), (0, -2), (-3, 2), (9, -13), (40, 31)])
def test_a_shift_by_whole_pixels_is_numpys_padding_by_reflection(x: int, y: int) -> None:
    images = noise(11, 19)  # an eighth of which is no whole number
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (64, 64), (64, 64)), mode="reflect")
    expected = padded[:, :, 64 - y : 64 - y + 11, 64 - x : 64 - x + 19]
    assert np.array_equal(augment(images, told(3, translation=shift_of(x, y, images))).numpy(), expected)


@pytest.mark.parametrize(("x", "y"), [(1, 0), (-2, 1)])
def test_the_warp_reflects_as_the_shift_does(x: int, y: int) -> None:
    """A hair beside whole pixels it is interpolated, and all but the same."""
    images = noise(12, 16)
    exact = augment(images, told(3, translation=shift_of(x, y, images)))
    beside = augment(images, told(3, translation=shift_of(x + 5e-4, y, images)))
    assert difference(exact, beside) <= 1


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_those_of_rot90(quarters: int) -> None:
    images = noise(10, 10)
    turned = augment(images, told(3, rotation=turn(90 * quarters)))
    assert difference(turned, torch.rot90(images, quarters, (-2, -1))) <= 1


def test_half_a_turn_of_an_image_that_is_not_square_is_both_flips() -> None:
    images = noise(8, 20)
    assert difference(augment(images, told(3, rotation=turn(180))), images.flip(-1, -2)) <= 1


def test_a_quarter_turn_is_in_pixels_where_width_and_height_differ() -> None:
    """The square in the middle turns as it would alone; in coordinates from -1 to 1 it would be drawn out."""
    image = smooth(16, 32)
    turned = augment(image, told(rotation=turn(90)))
    expected = torch.rot90(image[..., 8:24], 1, (-2, -1))
    assert difference(turned[..., 8:24], expected) <= 1
    assert int(expected.max()) > 100


def ramp(height: int, width: int) -> torch.Tensor:
    """0 in the middle, 3 a pixel to the right, 5 a pixel down."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    return 3 * x + 5 * y


@pytest.mark.parametrize("power", [-2.0, -1.0, 1.5])
def test_a_scaled_ramp_is_a_ramp(power: float) -> None:
    """Twice as large, half as steep; where it is made smaller, too, where each pixel is a mean of several."""
    before = ramp(24, 32) + 127
    scaled = augment(before.round().to(torch.uint8)[None, None], told(scale=power / 0.2))[0, 0]
    expected = ramp(24, 32) / 2**power + 127
    inside = (slice(10, 14), slice(13, 19)) if power < 0 else (slice(2, -2), slice(2, -2))
    assert float((scaled - expected)[inside].abs().max()) <= 1.5


@pytest.mark.parametrize(("angle", "row", "column"), [(0, 1, 2), (90, 2, 1)])
def test_a_stretch_along_an_axis_makes_wider_and_lower(angle: float, row: float, column: float) -> None:
    """By 2^(0.2 z) along it, by the inverse across; twice the angle in the numbers, so 180 degrees are along y."""
    z = 1 / 0.2
    numbers = (z * math.cos(math.radians(2 * angle)), z * math.sin(math.radians(2 * angle)))
    before = (ramp(24, 24) + 127).round().to(torch.uint8)[None, None]
    after = augment(before, told(stretch=numbers))[0, 0].float()
    inside = after[9:15, 9:15]
    expected_x, expected_y = (3 / 2, 5 * 2) if angle == 0 else (3 * 2, 5 / 2)
    assert float(inside.diff(dim=1).mean()) == pytest.approx(expected_x, abs=0.2)
    assert float(inside.diff(dim=0).mean()) == pytest.approx(expected_y, abs=0.2)


def test_a_slanted_stretch_is_one_along_x_between_two_turns() -> None:
    image, z = smooth(24, 24), 1.3
    slanted = augment(image, told(stretch=(z * math.cos(math.radians(60)), z * math.sin(math.radians(60)))))
    # Along 30 degrees, in coordinates whose y points down.
    parts = image
    for numbers in (told(rotation=turn(30)), told(stretch=(z, 0.0)), told(rotation=turn(-30))):
        parts = augment(parts, numbers)
    assert difference(slanted, parts) <= 6
    assert difference(slanted, augment(image, told(stretch=(z, 0.0)))) > 40


def test_the_order_is_flip_scale_rotation_stretch_translation() -> None:
    image = smooth(48, 48)
    steps: list[dict[str, Any]] = [
        {"x_flip": 1.0},
        {"scale": 1.0},
        {"rotation": turn(70)},
        {"stretch": (0.8, 0.9)},
        {"translation": (0.4, -0.7)},
    ]
    together = augment(image, told(**{kind: value for step in steps for kind, value in step.items()}))
    parts = image
    for step in steps:
        parts = augment(parts, told(**step))
    backwards = image
    for step in reversed(steps):
        backwards = augment(backwards, told(**step))
    assert difference(together, parts) <= 12
    assert difference(together, backwards) > 60


def test_what_is_made_smaller_is_not_aliased() -> None:
    """Stripes of one pixel, at half the size: grey, where single samples would see black or white."""
    stripes = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    stripes[..., ::2] = 255
    halved = augment(stripes, told(scale=-1 / 0.2))[..., 12:20, 12:20].float()
    assert float((halved - 127.5).abs().max()) < 30


def test_how_often_each_is_done() -> None:
    """At 0.12; but an x flip to half of all, a y flip to half of the chosen. Of scale 1 and no turn there is none."""
    count = 20_000
    shares = {kind: float((drawn(count, kinds=(kind,)) != 0).any(1).float().mean()) for kind in KINDS}
    expected = dict.fromkeys(KINDS, 0.12) | {"x_flip": 0.5, "y_flip": 0.06}
    # A shift of at most 2 by 3 pixels is none in 1/4 x 1/6 of the cases.
    expected["shift"] = 0.12 * (1 - 1 / 24)
    for kind, share in shares.items():
        assert abs(share - expected[kind]) < 4 * math.sqrt(expected[kind] / count), kind
    assert not drawn(probability=0.0, kinds=KINDS[1:]).any()


def test_what_is_drawn_has_its_distribution() -> None:
    numbers = drawn(probability=1.0, kinds=EDM_KINDS).double()
    for column in (2, 7, 8):
        assert abs(float(numbers[:, column].mean())) < 0.03
        assert abs(float(numbers[:, column].std()) - 1) < 0.03
    angles = torch.atan2(numbers[:, 4], numbers[:, 3] + 1)
    counts = torch.histc(angles, 8, -math.pi, math.pi)
    assert float(((counts - 2500) ** 2 / 2500).sum()) < 24.3  # chi-squared, 7 degrees of freedom, p = 0.001
    assert 0.48 < float((numbers[:, 6] == 0).double().mean()) < 0.52  # along the axes
    assert abs(float(torch.hypot(numbers[:, 5], numbers[:, 6]).square().mean()) - 1) < 0.04
    slanted = numbers[:, 6] != 0
    axes = torch.atan2(numbers[:, 6], numbers[:, 5])  # but for half a turn, as z may be negative
    assert abs(complex(torch.exp(2j * (axes - angles))[slanted].mean())) < 0.04
    pairs = torch.corrcoef(numbers.T[[0, 1, 2, 4, 6, 7, 8]]).triu(1).abs()
    assert float(pairs.max()) < 0.03
    shifts = drawn(probability=1.0, kinds=("shift",))[:, 7:] * torch.tensor([3.0, 2.0])
    assert set(shifts[:, 0].tolist()) == {-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0}
    assert set(shifts[:, 1].tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}


def test_a_kind_draws_the_same_whichever_others_are_done() -> None:
    everything = drawn()
    for kind in KINDS[:5]:
        columns = list(COLUMNS[kind])
        assert torch.equal(drawn(kinds=(kind,))[:, columns], everything[:, columns])


def test_draws_and_images_belong_to_positions_not_to_the_batch() -> None:
    positions, images = torch.arange(2**33, 2**33 + 40), noise(12, 10, count=40)
    rest: dict[str, Any] = {"probability": 0.5, "kinds": KINDS, "height": 12, "width": 10}
    whole = draw_augmentation(3, positions, **rest)
    moved = augment(images, whole)
    assert int((whole != 0).any(1).sum()) > 30
    for chosen in ([4], [39, 0], list(range(7, 30))):
        part = draw_augmentation(3, positions[chosen], **rest)
        assert torch.equal(part, whole[chosen])
        assert torch.equal(augment(images[chosen], part), moved[chosen])
    assert not torch.equal(draw_augmentation(4, positions, **rest), whole)


def test_the_numbers_are_zero_exactly_where_nothing_was_done() -> None:
    images, numbers = noise(16, 24, count=400), drawn(400)
    same = (augment(images, numbers) == images).flatten(1).all(1)
    assert torch.equal(same, (numbers == 0).all(1))
    assert 0 < int(same.sum()) < 400
