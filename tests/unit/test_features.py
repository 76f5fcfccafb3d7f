"""The features must rank what people would rank: less noise, all classes, sharp images come closer."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

from ddpm_core.evaluation.features.random_conv import NUM_FEATURES, _filters, extract, extractor_digest
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """The real digits in a fixed random order, uint8 [1797, 1, 8, 8], and their classes."""
    found = load_digits()
    images = torch.from_numpy((found.images * 255 / 16).round().astype(np.uint8))[:, None]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.from_numpy(found.target)[order]


def stats(images: Tensor) -> FeatureStats:
    return FeatureStats.from_features(extract(images))


def noisy(images: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + sigma * noise).clamp(0, 255).round().byte()


@pytest.fixture(scope="module")
def reference(digits: tuple[Tensor, Tensor]) -> FeatureStats:
    """Of 600 digits."""
    return stats(digits[0][:600])


@pytest.fixture(scope="module")
def other(digits: tuple[Tensor, Tensor]) -> Tensor:
    """400 other digits."""
    return digits[0][600:1000]


@pytest.fixture(scope="module")
def floor(reference: FeatureStats, other: Tensor) -> float:
    """The distance of other real digits."""
    return frechet_distance(stats(other), reference)


def test_distance_falls_with_the_noise(reference: FeatureStats, other: Tensor, floor: float) -> None:
    found = [frechet_distance(stats(noisy(other, sigma)), reference) for sigma in (128, 32, 16, 8, 4)]
    assert [*found, floor] == sorted([*found, floor], reverse=True)
    assert found[-2] > 2 * floor


def test_dropped_classes_show(digits: tuple[Tensor, Tensor], reference: FeatureStats, floor: float) -> None:
    kept = digits[0][600:][digits[1][600:] < 5][:400]
    assert frechet_distance(stats(kept), reference) > 3 * floor


def test_a_single_image_repeated_is_far(reference: FeatureStats, other: Tensor, floor: float) -> None:
    one = stats(other[:1])
    repeated = FeatureStats(count=400, mean=one.mean, m2=one.m2)
    assert frechet_distance(repeated, reference) > 50 * floor


@pytest.mark.parametrize("name", ["blurred", "inverted", "mirrored", "moved", "scrambled"])
def test_what_people_see_shows(reference: FeatureStats, other: Tensor, floor: float, name: str) -> None:
    scramble = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    changed = {
        "blurred": functional.avg_pool2d(other.float(), 3, stride=1, padding=1).round().byte(),
        "inverted": 255 - other,
        "mirrored": other.flip(3),
        "moved": other.roll(1, dims=3),
        "scrambled": other.flatten(1)[:, scramble].reshape(other.shape),
    }[name]
    assert frechet_distance(stats(changed), reference) > 8 * floor


def test_lost_colour_shows() -> None:
    generator = torch.Generator().manual_seed(3)
    colour = torch.randint(256, (400, 3, 4, 4), generator=generator, dtype=torch.uint8)
    grey = colour[:200].float().mean(1, keepdim=True).byte()
    reference = stats(colour[200:])
    assert frechet_distance(stats(grey), reference) > 5 * frechet_distance(stats(colour[:200]), reference)


def test_features_do_not_depend_on_the_batch(other: Tensor) -> None:
    images = other[:7]
    whole = extract(images)
    torch.testing.assert_close(whole, torch.cat([extract(images[:3]), extract(images[3:])]), rtol=1e-5, atol=1e-5)


def test_grey_equals_the_same_image_in_colour(other: Tensor) -> None:
    grey = other[:5]
    torch.testing.assert_close(extract(grey), extract(grey.expand(-1, 3, -1, -1).contiguous()))


@pytest.mark.parametrize("size", [4, 8, 28, 32, 256])
def test_any_size(size: int) -> None:
    images = torch.randint(256, (2, 3, size, size), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    features = extract(images)
    assert features.shape == (2, NUM_FEATURES)
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_size_hardly_matters_where_content_is_the_same() -> None:
    """A smooth picture of 32 pixels and the same one at 256 have nearly the same features."""
    coarse = torch.randint(256, (4, 3, 4, 4), generator=torch.Generator().manual_seed(5)).float()
    small, large = (
        functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False).round().byte()
        for size in (32, 256)
    )
    other = small.flip(2)
    difference = (extract(small) - extract(large)).norm(dim=1)
    assert (difference < 0.2 * (extract(small) - extract(other)).norm(dim=1)).all()


def test_detail_finer_than_the_grid_is_averaged_not_sampled() -> None:
    """White lines 8 pixels apart at 256x256 are an even dark grey at 32x32; without antialiasing they would vanish."""
    lines = torch.zeros(1, 1, 256, 256, dtype=torch.uint8)
    lines[..., ::8] = 255
    even, black = torch.full_like(lines, round(255 / 8)), torch.zeros_like(lines)
    difference = (extract(lines) - extract(even)).norm()
    assert difference < 0.2 * (extract(black) - extract(even)).norm()


def test_known_weights_give_the_known_values() -> None:
    """A constant image has no variation: the means follow from the filters alone, computed here with plain sums."""
    features = extract(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8))[0]
    x = torch.ones(3, dtype=torch.float64)
    place = 0
    for weight, bias in _filters("cpu"):
        x = (weight.double().sum((2, 3)) @ x + bias.double()).abs()
        torch.testing.assert_close(features[place : place + len(x)].double(), 10 * x, rtol=1e-4, atol=1e-4)
        assert features[place + len(x) : place + 2 * len(x)].abs().max() < 1e-3
        place += 2 * len(x)
    torch.testing.assert_close(features[place:].double(), (10 * x[:4] / 4).repeat_interleave(16), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [0, 5])
def test_refuses_other_numbers_of_channels(channels: int) -> None:
    with pytest.raises(ValueError, match=f"{channels} channels; expected 1"):
        extract(torch.zeros(1, channels, 8, 8, dtype=torch.uint8))


def test_digest_names_extractor_and_dimensions() -> None:
    assert extractor_digest().startswith(f"fd_random_conv-v1-d{NUM_FEATURES}-")
