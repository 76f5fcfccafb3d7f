"""Learning, from losses to samplers and likelihood: small networks, judged by tests that the untrained ones fail.

Points in the plane are judged by a two-sample test on the energy distance, digits by their held-out bits/dim against
independent pixels.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ddpm_core.data.pixels import to_uint8, to_unit
from ddpm_core.diffusion.likelihood import variational_bound
from ddpm_core.diffusion.losses import LossConfig, loss_per_image
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.samplers import sample
from ddpm_core.diffusion.schedule import NoiseSchedule, ScheduleConfig, make_schedule
from ddpm_core.random import Purpose, normals
from ddpm_core.training.timesteps import LossAwareTimesteps, uniform_timesteps


def learn(
    network: nn.Module,
    schedule: NoiseSchedule,
    reverse: ReverseConfig,
    loss: LossConfig,
    batches: Iterator[Tensor],
    *,
    steps: int,
    learning_rate: float,
    loss_aware: bool = False,
) -> ReverseProcess:
    """p_theta after so many steps of Adam, its learning rate falling along a cosine."""
    p = ReverseProcess(denoiser=network, schedule=schedule, config=reverse)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    timesteps = LossAwareTimesteps(schedule.num_timesteps)
    for step, x_0 in zip(range(steps), batches, strict=False):
        positions = torch.arange(step * len(x_0), (step + 1) * len(x_0))
        if loss_aware:
            t, weights = timesteps.draw(0, positions)
        else:
            t, weights = uniform_timesteps(0, positions, schedule.num_timesteps), torch.ones(len(x_0))
        losses = loss_per_image(p, x_0, t, normals(0, Purpose.EPS, positions, tuple(x_0.shape[1:])), loss)
        optimizer.zero_grad()
        (losses * weights).mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        cosine.step()
        timesteps.update(t, losses.detach())
    network.requires_grad_(False)
    return p


def waves(x: Tensor, frequencies: list[float]) -> Tensor:
    """Sines and cosines of each value, along a new last axis."""
    angles = x[..., None] * torch.tensor(frequencies)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


# --- points in the plane


class PointNetwork(nn.Module):
    """A multilayer perceptron on a point, shaped [b, 2, 1, 1], and t."""

    def __init__(self, num_timesteps: int, num_outputs: int) -> None:
        super().__init__()
        self.num_timesteps = num_timesteps
        sizes = [2 + 2 * 6 + 8, 96, 96, 96]
        hidden = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], num_outputs))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        point = x_t.flatten(1)
        of_point = waves(point, [math.pi, 2 * math.pi, 4 * math.pi]).flatten(1)
        of_time = waves(t / self.num_timesteps, [math.pi / 2, math.pi, 2 * math.pi, 4 * math.pi])
        out: Tensor = self.layers(torch.cat((point, of_point, of_time), dim=1))
        return out[:, :, None, None]


def five_gaussians(count: int, seed: int) -> Tensor:
    """Narrow Gaussians on a circle, on the 256 levels."""
    g = torch.Generator().manual_seed(seed)
    angle = torch.randint(0, 5, (count,), generator=g) * (2 * math.pi / 5)
    points = 0.7 * torch.stack((angle.cos(), angle.sin()), dim=1) + 0.06 * torch.randn(count, 2, generator=g)
    return to_unit(to_uint8(points[:, :, None, None]))


def swiss_roll(count: int, seed: int) -> Tensor:
    """A spiral of one turn and a half, on the 256 levels."""
    g = torch.Generator().manual_seed(seed)
    angle = 1.5 * math.pi * (1 + 2 * torch.rand(count, generator=g))
    points = torch.stack((angle * angle.cos(), angle * angle.sin()), dim=1) / 16
    return to_unit(to_uint8((points + 0.02 * torch.randn(count, 2, generator=g))[:, :, None, None]))


def p_value(ours: Tensor, theirs: Tensor, permutations: int = 499) -> float:
    """Of the energy distance of two samples, that they are of one distribution (Szekely and Rizzo 2004)."""
    together = torch.cat((ours.flatten(1), theirs.flatten(1))).double()
    distance = torch.cdist(together, together)
    signs = torch.cat((torch.ones(len(ours)), -torch.ones(len(theirs)))).double()
    g = torch.Generator().manual_seed(0)
    shuffled = torch.stack([signs, *(signs[torch.randperm(len(signs), generator=g)] for _ in range(permutations))])
    energy = -((shuffled @ distance) * shuffled).sum(dim=1)
    return float((energy >= energy[0]).double().mean())


NUM = 500
SAMPLERS = [
    SamplerConfig(),
    SamplerConfig(name="ddim", num_steps=50),
    SamplerConfig(name="dpm_solver", num_steps=30),
    SamplerConfig(name="heun", num_steps=30),
]


def drawn(p: ReverseProcess, sampler: SamplerConfig) -> Tensor:
    def noise(t: int) -> Tensor:
        return normals(5, Purpose.SAMPLING, torch.arange(NUM), (2, 1, 1), step=t)

    return sample(p, sampler, noise(p.schedule.num_timesteps), noise)


def of_points(
    data: Callable[[int, int], Tensor], reverse: ReverseConfig, loss: LossConfig, steps: int
) -> ReverseProcess:
    """A network that learnt these points."""
    torch.manual_seed(0)
    schedule = make_schedule(ScheduleConfig(num_timesteps=100, beta_start=1e-3, beta_end=0.12))
    network = PointNetwork(schedule.num_timesteps, reverse.num_outputs(2))
    batches = (data(256, seed) for seed in range(1000, 1000 + steps))
    return learn(network, schedule, reverse, loss, batches, steps=steps, learning_rate=6e-3)


def test_the_two_sample_test_knows_alike_from_unlike() -> None:
    """Samples of one distribution pass; the normal distribution of the same mean and covariance does not."""
    for data in (five_gaussians, swiss_roll):
        assert p_value(data(NUM, 1), data(NUM, 2)) > 0.05
        points = data(NUM, 1).flatten(1)
        g = torch.Generator().manual_seed(0)
        normal = points.mean(dim=0) + torch.randn(NUM, 2, generator=g) @ torch.linalg.cholesky(points.T.cov()).T
        assert p_value(normal[:, :, None, None], data(NUM, 2)) < 0.01
    # ... nor do points that are all there but for one Gaussian of the five
    points = five_gaussians(NUM * 2, 1)
    fewer = points[points[:, 0, 0, 0] < 0.4][:NUM]
    assert p_value(fewer, five_gaussians(NUM, 2)) < 0.01


@pytest.mark.parametrize(
    ("data", "reverse", "loss"),
    [
        (five_gaussians, ReverseConfig(), LossConfig()),
        (
            swiss_roll,
            ReverseConfig(prediction="v", variance="learned_range"),
            LossConfig(objective="hybrid"),
        ),
    ],
)
def test_every_sampler_draws_what_was_learnt(
    data: Callable[[int, int], Tensor], reverse: ReverseConfig, loss: LossConfig
) -> None:
    """The paper's settings, and those of Nichol and Dhariwal with v; without training every sampler fails."""
    heldout = data(NUM, 99)
    untrained, trained = (of_points(data, reverse, loss, steps) for steps in (0, 1000))
    for sampler in SAMPLERS:
        assert p_value(drawn(untrained, sampler), heldout) < 0.01, sampler
        assert p_value(drawn(trained, sampler), heldout) > 0.02, sampler


# --- digits


class DigitNetwork(nn.Module):
    """Two layers that see the whole 8x8 image and t, and a head that all pixels share.

    The head sees sines and cosines of its pixel up to those of single levels, as in Kingma et al. 2021: what it has to
    find are the few levels that occur.
    """

    def __init__(self, log_snr: Tensor, num_outputs: int) -> None:
        super().__init__()
        self.log_snr, self.context, width, head = log_snr.float(), 6, 192, 32
        self.whole_1, self.whole_2 = nn.Linear(64 + 16, width), nn.Linear(width, width)
        self.to_pixels = nn.Linear(width, 64 * self.context)
        self.head_1, self.head_2 = nn.Linear(1 + 14 + self.context + 16, head), nn.Linear(head, head)
        self.out = nn.Linear(head, num_outputs)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        pixels = x_t.flatten(1)
        time = waves(self.log_snr[t], [0.05 * 2 ** (k / 2) for k in range(8)])
        h = F.silu(self.whole_1(torch.cat((pixels, time), dim=1)))
        h = self.to_pixels(h + F.silu(self.whole_2(h))).reshape(len(x_t), 64, self.context)
        fine = waves(pixels, [math.pi * 2**k for k in range(7)])
        u = F.silu(self.head_1(torch.cat((pixels[:, :, None], fine, h, time[:, None].expand(-1, 64, -1)), dim=2)))
        out: Tensor = self.out(u + F.silu(self.head_2(u)))
        return out.transpose(1, 2).reshape(len(x_t), -1, 8, 8)


def digits() -> tuple[Tensor, Tensor]:
    """1,500 digits to train on and 297 held out, uint8."""
    pixels = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    shuffled = torch.from_numpy(pixels[np.random.default_rng(0).permutation(len(pixels))])[:, None]
    return shuffled[:1500], shuffled[1500:]


def independent_pixels(train: Tensor, heldout: Tensor, added: float) -> float:
    """Held-out bits/dim of a histogram of 256 levels a pixel, with so much added to every count."""
    counts = F.one_hot(train.flatten(1).long(), 256).sum(dim=0).double() + added
    probability = counts / counts.sum(dim=1, keepdim=True)
    found = probability.expand(len(heldout), 64, 256).gather(2, heldout.flatten(1).long()[:, :, None])
    return float(-found.log2().mean())


def gaussian_pixels(train: Tensor, heldout: Tensor) -> float:
    """Held-out bits/dim of a normal distribution a pixel, cut into the 256 levels."""
    x, levels = train.flatten(1).double(), heldout.flatten(1).double()
    mean, deviation = x.mean(dim=0), x.std(dim=0).clamp(min=0.3)
    upper = torch.where(levels == 255, 1.0, torch.special.ndtr((levels + 0.5 - mean) / deviation))
    lower = torch.where(levels == 0, 0.0, torch.special.ndtr((levels - 0.5 - mean) / deviation))
    return float(-(upper - lower).clamp(min=1e-12).log2().mean())


def test_digits_cost_fewer_bits_than_independent_pixels() -> None:
    """The bound of a tiny network on held-out digits, against the best histogram of each pixel.

    The histogram is the stronger of the two models of independent pixels, by far: only 17 of the 256 levels occur. Of the
    counts added to it the one is taken that suits the held-out images best.
    """
    train, heldout = digits()
    histogram = min(independent_pixels(train, heldout, added) for added in (1.0, 0.3, 0.1, 0.03, 0.01))
    assert 2.3 < histogram < 2.5 < gaussian_pixels(train, heldout)
    schedule = make_schedule(ScheduleConfig(name="quadratic", num_timesteps=100, beta_start=1.5e-5, beta_end=0.18))
    reverse, loss = ReverseConfig(prediction="v", variance="learned_range"), LossConfig(objective="bound")

    def noise(t: int) -> Tensor:
        return normals(0, Purpose.LIKELIHOOD, torch.arange(len(heldout)), (1, 8, 8), step=t)

    bits = {}
    for steps in (0, 700):
        torch.manual_seed(0)
        g = torch.Generator().manual_seed(1)
        batches = (to_unit(train[torch.randint(0, len(train), (64,), generator=g)]) for _ in range(steps))
        network = DigitNetwork(schedule.log_snr, num_outputs=2)
        p = learn(network, schedule, reverse, loss, batches, steps=steps, learning_rate=6e-3, loss_aware=True)
        bound = variational_bound(p, to_unit(heldout), noise)
        bits[steps] = float((bound.prior + bound.terms.sum(dim=1)).mean())
    assert bits[0] > gaussian_pixels(train, heldout)
    assert bits[700] < histogram - 0.1
