"""Traps in the paper's published code, of those that concern training: each with what a reader would do wrong."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.model.blocks import Downsample
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNet, UNetConfig
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.state import TrainState, new_state
from ddpm_core.training.step import Objective, advance, backward, draw
from pipelines.recipes.recipes import RECIPES

CONFIG = TrainConfig(batch_size=6, learning_rate=1e-3, warmup_steps=0, grad_clip=0.01, ema_decay=0.9, flip=False)
OBJECTIVE = Objective(
    schedule=make_schedule(ScheduleConfig(num_timesteps=50)), reverse=ReverseConfig(), loss=LossConfig()
)
IMAGES = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Gradients = dict[str, torch.Tensor]


def state() -> TrainState:
    config = UNetConfig(
        base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.0
    )
    network = UNet(config, image_size=8, channels=1)
    init_unet(network, 0)
    with torch.no_grad():  # the near-zero last layers would hide differences
        for p in network.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return new_state(network, CONFIG.learning_rate)


def step(trained: TrainState, rows: slice = slice(0, 6), num_workers: int = 1) -> Gradients:
    """One step on some of the images; the gradients that the optimizer was given."""
    positions, images = torch.arange(6)[rows], IMAGES[rows]
    none, ones = torch.full_like(positions, -1), torch.ones(len(positions))
    draws = draw(trained, images, none, positions, CONFIG, 50)
    off = torch.autocast("cpu", enabled=False)
    rest = (positions, ones, OBJECTIVE, CONFIG)
    backward(trained, trained.network, draws, *rest, num_workers=num_workers, autocast=off)
    advance(trained, CONFIG, update=True)
    return {name: p.grad.clone() for name, p in trained.network.named_parameters() if p.grad is not None}


def norm(gradients: Gradients) -> float:
    return float(torch.cat([gradient.flatten() for gradient in gradients.values()]).norm())


def clipped(gradients: Gradients) -> Gradients:
    scale = min(1.0, CONFIG.grad_clip / norm(gradients))
    return {name: scale * gradient for name, gradient in gradients.items()}


def unclipped(rows: slice, monkeypatch: pytest.MonkeyPatch) -> Gradients:
    """Of one of two workers, before anything is averaged or clipped."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, most: torch.zeros(()))
        return step(state(), rows, num_workers=2)


def average(p: torch.nn.Parameter, mean: torch.Tensor) -> None:
    def hook(p: torch.Tensor) -> None:
        p.grad = torch.empty_like(p).copy_(mean)  # lying as the weight does, as DDP leaves it

    p.register_post_accumulate_grad_hook(hook)


def on_two_workers(
    before_averaging: Callable[[Gradients], Gradients], monkeypatch: pytest.MonkeyPatch
) -> tuple[Gradients, TrainState]:
    """A step of the first of two workers. As DDP does, the mean over both is there when the backward pass ends."""
    shares = [before_averaging(unclipped(rows, monkeypatch)) for rows in (slice(0, 4), slice(4, 6))]
    trained = state()
    for name, p in trained.network.named_parameters():
        average(p, torch.stack([share[name] for share in shares]).mean(dim=0))
    return step(trained, slice(0, 4), num_workers=2), trained


def moved(trained: TrainState) -> Gradients:
    """What the step added to each weight."""
    before = dict(state().network.named_parameters())
    return {name: p.detach() - before[name].detach() for name, p in trained.network.named_parameters()}


def apart(ours: Gradients, theirs: Gradients) -> float:
    return norm({name: ours[name] - theirs[name] for name in ours}) / norm(theirs)


def test_the_global_gradient_is_clipped_not_each_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original clips on each replica, before the mean: the update then depends on how the batch was dealt."""
    alone = state()
    whole = step(alone)
    assert norm(whole) == pytest.approx(CONFIG.grad_clip, rel=1e-4)
    ours, ours_state = on_two_workers(lambda share: share, monkeypatch)
    planted, planted_state = on_two_workers(clipped, monkeypatch)
    assert apart(ours, whole) < 1e-5
    assert apart(planted, whole) > 0.05
    assert apart(moved(ours_state), moved(alone)) < 0.01
    assert apart(moved(planted_state), moved(alone)) > 0.05


@pytest.mark.parametrize("size", [4, 6, 32])
def test_stride_2_same_pads_at_the_bottom_and_right_only(size: int) -> None:
    """TensorFlow's SAME: of the padding that the output's size asks for, the smaller half comes first."""
    torch.manual_seed(0)
    layer, x = Downsample(3).double(), torch.randn(2, 3, size, size, dtype=torch.float64)
    half = -(-size // 2)
    total = max(0, (half - 1) * 2 + 3 - size)
    before = total // 2
    assert (before, total - before) == (0, 1)
    padded = np.zeros((2, 3, size + total, size + total))
    padded[:, :, before : before + size, before : before + size] = x.numpy()
    kernel, bias = layer.conv.weight.detach().numpy(), layer.conv.bias.detach().numpy()
    expected = np.empty((2, 3, half, half))
    for i, j in itertools.product(range(half), range(half)):
        window = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        expected[:, :, i, j] = np.einsum("bihw,oihw->bo", window, kernel) + bias
    ours = layer(x).detach()
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-9, atol=1e-12)
    symmetric = F.conv2d(x, layer.conv.weight, layer.conv.bias, stride=2, padding=1).detach()
    assert symmetric.shape == ours.shape
    assert float((symmetric - ours).abs().max()) > 0.1


def test_the_first_update_of_the_average_copies_the_weights() -> None:
    """Averaged from the initial weights on, a decay of 0.9999 would drag their noise along for ten thousands of steps."""
    trained = state()
    initial = {name: average.clone() for name, average in trained.ema.items()}
    step(trained)
    first = {name: p.detach().clone() for name, p in trained.network.named_parameters()}
    for name, p in first.items():
        assert torch.equal(trained.ema[name], p), name
        assert not torch.equal(p, initial[name]), name
    step(trained)
    for name, p in trained.network.named_parameters():
        torch.testing.assert_close(trained.ema[name], 0.9 * first[name] + 0.1 * p.detach())
        assert not torch.equal(trained.ema[name], p), name


def test_the_256_pixel_recipes_are_those_of_their_scripts() -> None:
    """Not CIFAR-10's at a larger size: the small fixed variance, no dropout, a tenth of the learning rate."""
    steps = {
        "celebahq256": 500_000,
        "lsun_church256": 1_200_000,
        "lsun_cat256": 1_800_000,
        "lsun_bedroom256": 2_400_000,
    }
    for name, expected in steps.items():
        recipe = RECIPES[name]()
        assert (recipe.reverse.variance, recipe.unet.dropout) == ("fixed_small", 0.0)
        assert (recipe.train.learning_rate, recipe.train.batch_size, recipe.train.steps) == (2e-5, 64, expected)
        assert (recipe.unet.channel_multipliers, recipe.unet.attention_resolutions) == ((1, 1, 2, 2, 4, 4), (16,))
    cifar10 = RECIPES["cifar10"]()
    assert (cifar10.reverse.variance, cifar10.unet.dropout, cifar10.train.steps) == ("fixed_large", 0.1, 800_000)
    assert (cifar10.train.learning_rate, cifar10.train.batch_size, cifar10.train.ema_decay) == (2e-4, 128, 0.9999)
