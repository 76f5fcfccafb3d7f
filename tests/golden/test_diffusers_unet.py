"""The network against an independent one: diffusers' UNet2DModel with the same weights, forward and gradients."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

from ddpm_core.interop.names import Name, from_diffusers, names_of, to_diffusers
from ddpm_core.interop.unet_json import Form, unet_json
from ddpm_core.model.blocks import time_embedding
from ddpm_core.model.unet import UNet, UNetConfig

# At 64 pixels the level that has 16 of 256 has 4; all else is the 256x256 networks'.
SIX_LEVELS = {"channel_multipliers": (1, 1, 2, 2, 4, 4), "attention_resolutions": (4,), "dropout": 0.0}
CIFAR10 = (UNetConfig(), 32, 35_746_307)
PAPER_256 = (UNetConfig(**SIX_LEVELS), 64, 113_673_219)
LARGE_256 = (UNetConfig(base_channels=192, **SIX_LEVELS), 64, 255_677_955)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Our network and diffusers', on the same weights."""

    ours: UNet
    theirs: UNet2DModel
    names: list[Name]

    def weights(self) -> Iterator[tuple[Name, nn.Parameter, nn.Parameter]]:
        ours, theirs = dict(self.ours.named_parameters()), dict(self.theirs.named_parameters())
        for name in self.names:
            yield name, ours[name.ours], theirs[name.diffusers]


def pair(config: UNetConfig, image_size: int, dtype: torch.dtype = torch.float32) -> Pair:
    """torch's own initialisation, which has no layer near zero, and norms and biases that are not 1 and 0."""
    torch.manual_seed(0)
    ours = UNet(config, image_size=image_size, channels=3).to(dtype)
    with torch.no_grad():
        for p in ours.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    with torch.device("meta"):
        theirs = UNet2DModel(**unet_json(Form(unet=config, image_size=image_size, channels=3, num_outputs=3)))
    names, weights = names_of(ours), dict(ours.named_parameters())
    shared = {name.diffusers: to_diffusers(name, weights[name.ours].detach()) for name in names}
    theirs.load_state_dict(shared, assign=True, strict=True)
    theirs.requires_grad_(True)
    return Pair(ours=ours, theirs=theirs.eval(), names=names)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, as a part of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


class OurEmbedding(nn.Module):
    """The two libraries round the frequencies of the time embedding, always float32, in different places."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return time_embedding(t, self.size)


def differences(networks: Pair, image_size: int, dtype: torch.dtype, num_images: int) -> dict[str, float]:
    """Of the gradient of the input and of that of every weight, of a random sum of the output, over images near to each other.

    What rounding does to one of them it does not do to the next, and so it grows as the root of their number; what truly
    differs grows as the gradient does.
    """
    torch.manual_seed(1)
    near, t = torch.randn(1, 3, image_size, image_size, dtype=dtype), torch.tensor([371])
    weight, found = torch.randn_like(near), {"input": 0.0}
    for _ in range(num_images):
        x = near + 0.1 * torch.randn_like(near)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        networks.ours(ours, t).backward(weight)
        networks.theirs(theirs, t).sample.backward(weight)
        assert ours.grad is not None
        assert theirs.grad is not None
        found["input"] = max(found["input"], difference(ours.grad, theirs.grad))
    queries: dict[str, float] = {}
    for name, mine, other in networks.weights():
        assert mine.grad is not None
        assert other.grad is not None
        if name.ours.endswith("query.bias"):
            queries[name.ours.replace("query", "key")] = float(mine.grad.abs().max())
        if name.ours.endswith("key.bias"):
            # It moves all scores of a pixel by the same: its gradient is 0 but for rounding, so queries' set the scale.
            gap = max(float(mine.grad.abs().max()), float(other.grad.abs().max()))
            found[name.ours] = gap / queries[name.ours]
        else:
            found[name.ours] = difference(mine.grad, from_diffusers(name, other.grad))
    return found


@torch.no_grad()
def outputs_apart(networks: Pair, image_size: int) -> float:
    """At the first step, one between and the last."""
    torch.manual_seed(2)
    x, t = torch.randn(3, 3, image_size, image_size), torch.tensor([0, 371, 999])
    return difference(networks.ours(x, t), networks.theirs(x, t).sample)


# One image alone leaves float32 no 1e-5 of every gradient, nor diffusers' own against float64; float64 does at a sixth of
# the time, and the large networks are held to each other in it.
@pytest.mark.parametrize(
    ("config", "image_size", "num_weights", "dtype", "num_images"),
    [
        pytest.param(*CIFAR10, torch.float32, 8, id="cifar10"),
        pytest.param(*PAPER_256, torch.float64, 1, id="256"),
        pytest.param(*LARGE_256, torch.float64, 1, id="large 256"),
    ],
)
def test_output_and_gradients_are_those_of_diffusers(
    config: UNetConfig, image_size: int, num_weights: int, dtype: torch.dtype, num_images: int
) -> None:
    assert outputs_apart(pair(config, image_size), image_size) < 1e-5
    networks = pair(config, image_size, dtype)
    assert sum(p.numel() for p in networks.ours.parameters()) == num_weights
    assert networks.theirs.num_parameters() == num_weights
    networks.theirs.time_proj = OurEmbedding(config.base_channels)
    found = differences(networks, image_size, dtype, num_images)
    assert len(found) == 1 + len(networks.names)
    assert {name: gap for name, gap in found.items() if gap > (1e-5 if dtype == torch.float32 else 1e-10)} == {}


@pytest.mark.parametrize("size", [128, 192])
def test_the_time_embedding_is_that_of_diffusers(size: int) -> None:
    t = torch.arange(1000)
    expected = get_timestep_embedding(t, size, flip_sin_to_cos=False, downscale_freq_shift=1)
    # An angle of up to 999, in float32.
    assert torch.allclose(time_embedding(t, size), expected, rtol=0, atol=1e-4)


def test_all_that_is_different_is_rounding() -> None:
    config = UNetConfig(attention_resolutions=(8,))
    networks = pair(config, 16, torch.float64)
    networks.theirs.time_proj = OurEmbedding(config.base_channels)
    found = differences(networks, 16, torch.float64, num_images=1)
    assert {name: gap for name, gap in found.items() if gap > 1e-10} == {}
