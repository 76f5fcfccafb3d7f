"""The Inception network and its resizes against torch-fidelity's and clean-fid's own files, and against definitions."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import foreign
from torch import Tensor, nn

from ddpm_core.evaluation.features import resize
from ddpm_core.evaluation.features.inception import Inception


def random_weights() -> Inception:
    """Through which a signal comes to the end: with torch's own scale the last features would not depend on the image."""
    generator = torch.Generator().manual_seed(0)
    network = Inception().eval()
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data.normal_(0, (2 / part.weight[0].numel()) ** 0.5, generator=generator)
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.7, 1.3, generator=generator)
            part.weight.data.uniform_(0.9, 1.3, generator=generator)
            part.bias.data.normal_(0, 0.1, generator=generator)
    return network


def images(size: tuple[int, int], channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randint(256, (2, channels, *size), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Inception, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Ours and torch-fidelity's, on the same weights."""
    path: Path = tmp_path_factory.mktemp("inception") / "weights.pth"
    ours = random_weights()
    torch.save(ours.state_dict(), path)
    theirs = foreign("torch_fidelity", "feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    outputs = ["2048", "logits_unbiased"]
    return ours, theirs("inception", outputs, feature_extractor_weights_path=str(path))


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (301, 299)])
def test_network_is_torch_fidelitys(networks: tuple, size: tuple[int, int]) -> None:
    ours, theirs = networks
    given = images(size)
    with torch.no_grad():
        found, expected = ours(resize.tensorflow(given)), theirs(given)
    for mine, their in zip(found, expected, strict=True):
        scale = their.abs().max()
        assert (their[0] - their[1]).abs().max() > 0.01 * scale  # it depends on the image
        assert (mine - their).abs().max() < 1e-4 * scale


ODD = [(8, 8), (28, 33), (32, 32), (299, 299), (301, 173)]


@pytest.mark.parametrize("size", ODD)
def test_tensorflow_resize_is_its_definition(size: tuple[int, int]) -> None:
    """Output i takes place i * size / 299; checked against torch-fidelity's code, and in float64 against the formula."""
    given = images(size)
    theirs = foreign("torch_fidelity", "interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    found = resize.tensorflow(given)
    assert (found - (theirs(given.float(), size=(299, 299), align_corners=False) - 128) / 128).abs().max() < 1e-5
    by_formula = bilinear(given, lambda place, from_size: place * from_size / 299)
    assert (
        found - (by_formula - 128) / 128
    ).abs().max() < 1e-4  # a place that is rounded differently: 255 * 299 * 2^-24


@pytest.mark.parametrize("size", ODD)
def test_pytorch_fid_resize_is_its_definition(size: tuple[int, int]) -> None:
    """Output i takes place (i + 1/2) * size / 299 - 1/2, within the image."""
    given = images(size)
    by_formula = bilinear(given, lambda place, from_size: ((place + 0.5) * from_size / 299 - 0.5).clip(0))
    assert (resize.pytorch_fid(given) - (by_formula / 127.5 - 1)).abs().max() < 1e-4


@pytest.mark.parametrize("size", ODD)
def test_clean_fid_resize_is_clean_fids(size: tuple[int, int]) -> None:
    given = images(size)
    theirs = foreign("cleanfid", "resize").build_resizer("clean")
    expected = torch.stack([torch.from_numpy(theirs(image.permute(1, 2, 0).numpy())) for image in given])
    assert (resize.clean_fid(given) - (expected.permute(0, 3, 1, 2) - 128) / 128).abs().max() < 1e-5


def test_resizes_differ_and_take_grey() -> None:
    """A figure of one is not a figure of another: that is why they have names."""
    grey = images((32, 32), channels=1)
    found = [resized(grey) for resized in resize.RESIZES.values()]
    assert all(each.shape == (2, 1, 299, 299) for each in found)
    assert all((one - other).abs().mean() > 1e-3 for one, other in itertools.pairwise(found))


def bilinear(given: Tensor, place_of: Callable[[np.ndarray, int], np.ndarray]) -> Tensor:
    """By the formula, in float64."""
    x = given.double().numpy()
    for axis in (2, 3):
        size = x.shape[axis]
        place = place_of(np.arange(299, dtype=np.float64), size)
        low = np.floor(place).astype(int).clip(0, size - 1)
        high = (low + 1).clip(0, size - 1)
        share = (place - low).reshape([-1 if each == axis else 1 for each in range(4)])
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return torch.from_numpy(x).float()
