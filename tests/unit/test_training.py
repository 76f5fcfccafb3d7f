"""The training step: one trajectory, however the batch is dealt over workers."""

import copy
import itertools

import pytest
import torch

from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.model.unet import UNet, UNetConfig, init_unet
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.state import (
    TrainState,
    ema_tensors,
    load_network,
    load_tensors,
    network_tensors,
    new_state,
    optimizer_tensors,
)
from ddpm_core.training.step import Draws, StepResult, draw, train_step, warmup

CONFIG = TrainConfig(
    steps=10, batch_size=6, learning_rate=1e-3, warmup_steps=4, grad_clip=0.05, ema_decay=0.9, flip=True, lanes=6
)
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=50))
IMAGES = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def state() -> TrainState:
    config = UNetConfig(
        base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.3
    )
    network = UNet(config, image_size=8, channels=1)
    init_unet(network, 0)
    with torch.no_grad():  # the near-zero last layers would hide differences
        for p in network.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return new_state(network, CONFIG.learning_rate)


def step(state: TrainState, rows: slice, padding: int = 0, num_workers: int = 1, first: int = 0) -> StepResult:
    positions = torch.cat([torch.arange(first, first + 6)[rows], torch.zeros(padding, dtype=torch.int64)])
    images = torch.cat([IMAGES[rows], IMAGES[:1].expand(padding, 1, 8, 8)])
    weights = torch.cat([torch.ones(len(positions) - padding), torch.zeros(padding)])
    draws = draw(images, positions, seed=0, num_timesteps=50, flip=True)
    off = torch.autocast("cpu", enabled=False)
    return train_step(
        state, state.network, draws, positions, weights, SCHEDULE, CONFIG, num_workers=num_workers, autocast=off
    )


def gradient(state: TrainState) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in state.network.parameters() if p.grad is not None])


@pytest.mark.parametrize("cuts", [(0, 3, 6), (0, 4, 6), (0, 1, 6), (0, 2, 5, 6)])
def test_the_mean_over_workers_is_the_mean_over_the_global_batch(
    cuts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDP averages the workers' gradients; uneven shares, padded or not, must give the whole batch's gradient."""
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, norm: torch.zeros(()))
    whole = state()
    expected_loss = step(whole, slice(0, 6)).loss
    workers = len(cuts) - 1
    longest = max(b - a for a, b in itertools.pairwise(cuts))
    gradients, losses = [], []
    for a, b in itertools.pairwise(cuts):
        share = state()
        losses.append(step(share, slice(a, b), padding=longest - (b - a), num_workers=workers).loss)
        gradients.append(gradient(share))
    mean = torch.stack(gradients).mean(0)
    scale = gradient(whole).abs().max()
    assert float((mean - gradient(whole)).abs().max() / scale) < 2e-6
    assert float(torch.stack(losses).mean()) == pytest.approx(float(expected_loss), rel=1e-6)


def test_draws_belong_to_positions_not_to_the_batch() -> None:
    positions = torch.arange(100, 106)
    whole = draw(IMAGES, positions, seed=3, num_timesteps=50, flip=True)
    for chosen in ([4], [5, 0], [2, 1, 3]):
        part = draw(IMAGES[chosen], positions[chosen], seed=3, num_timesteps=50, flip=True)
        for ours, theirs in zip(part, Draws(*(each[chosen] for each in whole)), strict=True):
            assert torch.equal(ours, theirs)
    other = draw(IMAGES, positions, seed=4, num_timesteps=50, flip=True)
    assert not torch.equal(whole.eps, other.eps)


def test_flips_mirror_about_half_of_the_images_and_only_when_asked() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2000, 1, 16, 16)
    positions = torch.arange(2000)
    straight = images.float() / 127.5 - 1
    drawn = draw(images, positions, seed=0, num_timesteps=10, flip=True).x_0
    mirrored = (drawn != straight).flatten(1).any(1)
    assert torch.equal(drawn[mirrored], straight[mirrored].flip(-1))
    assert 0.45 < float(mirrored.float().mean()) < 0.55
    assert torch.equal(draw(images, positions, seed=0, num_timesteps=10, flip=False).x_0, straight)


def test_t_is_uniform_over_all_steps() -> None:
    positions = torch.arange(20_000)
    t = draw(IMAGES[:1].expand(20_000, 1, 8, 8)[:, :, :1, :1], positions, seed=0, num_timesteps=10, flip=False).t
    counts = torch.bincount(t, minlength=10)
    assert len(counts) == 10
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


def test_the_learning_rate_rises_linearly_then_stays() -> None:
    assert [warmup(s, CONFIG) for s in range(6)] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])


def test_the_gradient_is_clipped_and_its_norm_told_before_clipping() -> None:
    trained = state()
    told = step(trained, slice(0, 6)).grad_norm
    assert float(told) > CONFIG.grad_clip
    assert float(gradient(trained).norm()) == pytest.approx(CONFIG.grad_clip, rel=1e-4)


def test_a_resumed_state_walks_on_bit_for_bit() -> None:
    torch.use_deterministic_algorithms(True)
    unbroken = state()
    for s in range(4):
        step(unbroken, slice(0, 6), first=6 * s)
    broken = state()
    for s in range(2):
        step(broken, slice(0, 6), first=6 * s)
    saved = [copy.deepcopy(part(broken)) for part in (network_tensors, ema_tensors, optimizer_tensors)]
    resumed = state()
    load_tensors(resumed, *saved, step=2)
    for s in range(2, 4):
        step(resumed, slice(0, 6), first=6 * s)
    torch.use_deterministic_algorithms(False)
    for part in (network_tensors, ema_tensors, optimizer_tensors):
        ours, theirs = part(resumed), part(unbroken)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_of_another_architecture_are_refused_by_name() -> None:
    network = UNet(
        UNetConfig(base_channels=32, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,)),
        image_size=8,
        channels=1,
    )
    with pytest.raises(ValueError, match=r"another architecture: \S+ has shape \(.*\), the network expects \(.*\)"):
        load_network(network, network_tensors(state()))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_size": 0}, "train.batch-size is 0; expected 1 or more"),
        ({"steps": -1}, "train.steps is -1; expected 0 or more"),
        ({"learning_rate": 0.0}, "train.learning-rate is 0.0; expected more than 0"),
        ({"ema_decay": 1.0}, "train.ema-decay is 1.0"),
    ],
)
def test_bad_settings_are_refused_with_their_value(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainConfig(**wrong)
