"""The training step: one trajectory, however the batch is dealt over workers."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from ddpm_core.diffusion import losses
from ddpm_core.diffusion.losses import LossConfig, check_objective
from ddpm_core.diffusion.process import Prediction
from ddpm_core.diffusion.reverse import ReverseConfig, Variance
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNet, UNetConfig
from ddpm_core.model.weights import load_network
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.parallel import Worker, in_parallel
from ddpm_core.training.state import (
    TrainState,
    ema_tensors,
    load_tensors,
    network_tensors,
    new_state,
    optimizer_tensors,
)
from ddpm_core.training.step import Backward, Draws, Objective, advance, backward, draw, warmup

CONFIG = TrainConfig(
    steps=10, batch_size=6, learning_rate=1e-3, warmup_steps=4, grad_clip=0.05, ema_decay=0.9, flip=True, lanes=6
)
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=50))
PAPER = Objective(schedule=SCHEDULE, reverse=ReverseConfig(), loss=LossConfig())
IMAGES = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
OFF = torch.autocast("cpu", enabled=False)
OBJECTIVES: tuple[str, ...] = get_args(losses.Objective)
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
VARIANCES: tuple[str, ...] = get_args(Variance)


def state(objective: Objective = PAPER) -> TrainState:
    config = UNetConfig(
        base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.3
    )
    network = UNet(config, image_size=8, channels=1, num_outputs=objective.reverse.num_outputs(1))
    init_unet(network, 0)
    with torch.no_grad():  # the near-zero last layers would hide differences
        for p in network.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return new_state(network, CONFIG.learning_rate)


def drawn(images: torch.Tensor, positions: torch.Tensor, *, T: int = 50, **changes: object) -> Draws:
    """What a step draws at these positions, without labels."""
    uniform = new_state(torch.nn.Linear(1, 1), 1.0)
    return draw(uniform, images, torch.full((len(images),), -1), positions, replace(CONFIG, **changes), T)


def step(state: TrainState, rows: slice, padding: int = 0, num_workers: int = 1, first: int = 0) -> Backward:
    positions = torch.cat([torch.arange(first, first + 6)[rows], torch.zeros(padding, dtype=torch.int64)])
    images = torch.cat([IMAGES[rows], IMAGES[:1].expand(padding, 1, 8, 8)])
    weights = torch.cat([torch.ones(len(positions) - padding), torch.zeros(padding)])
    return train_step(state, drawn(images, positions), positions, weights, num_workers=num_workers)


def train_step(
    state: TrainState,
    draws: Draws,
    positions: torch.Tensor,
    weights: torch.Tensor,
    objective: Objective = PAPER,
    num_workers: int = 1,
) -> Backward:
    """One whole step, as the loop does it."""
    rest = (positions, weights, objective, CONFIG)
    found = backward(state, state.network, draws, *rest, num_workers=num_workers, autocast=OFF)
    advance(state, CONFIG, update=found.is_finite)
    return found


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


@pytest.mark.parametrize("size", [1, 3, 4])
def test_micro_batches_walk_the_same_path(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout and flips, over 50 steps, the last part smaller or not."""
    whole, parts = state(), state()
    for first in range(0, 300, 6):
        monkeypatch.setattr(sys.modules[__name__], "CONFIG", replace(CONFIG, micro_batch_size=None))
        expected = step(whole, slice(0, 6), first=first)
        monkeypatch.setattr(sys.modules[__name__], "CONFIG", replace(CONFIG, micro_batch_size=size))
        found = step(parts, slice(0, 6), first=first)
        torch.testing.assert_close(found.losses, expected.losses, rtol=2e-4, atol=0)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=0)
    for ours, theirs in zip(network_tensors(parts).values(), network_tensors(whole).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def _a_worker(rank: int, folder: Path) -> None:
    """One of two, with half of the batch in two parts of two images and of one."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    share, positions = state(), torch.arange(6)[rank::2]
    worker = Worker(rank=rank, num_workers=2, device=torch.device("cpu"))
    config = replace(CONFIG, micro_batch_size=2, grad_clip=1e9)
    backward(
        share,
        in_parallel(share.network, worker, (1, 8, 8)),
        drawn(IMAGES[rank::2], positions),
        positions,
        torch.ones(3),
        PAPER,
        config,
        num_workers=2,
        autocast=OFF,
    )
    assert all(p.grad is not None and p.grad.stride() == p.stride() for p in share.network.parameters())
    torch.save(gradient(share), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_workers_with_micro_batches_have_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_a_worker, (tmp_path,), nprocs=2)
    whole, positions = state(), torch.arange(6)
    rest = (torch.ones(6), PAPER, replace(CONFIG, grad_clip=1e9))
    backward(whole, whole.network, drawn(IMAGES, positions), positions, *rest, num_workers=1, autocast=OFF)
    expected = gradient(whole)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert float((found - expected).abs().max() / expected.abs().max()) < 2e-6


def test_one_micro_batch_is_the_whole_batch_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, same = state(), state()
    expected = step(whole, slice(0, 6))
    monkeypatch.setattr(sys.modules[__name__], "CONFIG", replace(CONFIG, micro_batch_size=6))
    found = step(same, slice(0, 6))
    assert torch.equal(found.losses, expected.losses)
    assert all(map(torch.equal, network_tensors(same).values(), network_tensors(whole).values()))


def test_draws_belong_to_positions_not_to_the_batch() -> None:
    positions = torch.arange(100, 106)
    whole = drawn(IMAGES, positions, seed=3)
    for chosen in ([4], [5, 0], [2, 1, 3]):
        part = drawn(IMAGES[chosen], positions[chosen], seed=3)
        for ours, theirs in zip(part, Draws(*(each[chosen] for each in whole)), strict=True):
            assert torch.equal(ours, theirs)
    other = drawn(IMAGES, positions, seed=4)
    assert not torch.equal(whole.eps, other.eps)


def test_flips_mirror_about_half_of_the_images_and_only_when_asked() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2000, 1, 16, 16)
    positions = torch.arange(2000)
    straight = images.float() / 127.5 - 1
    x_0 = drawn(images, positions).x_0
    mirrored = (x_0 != straight).flatten(1).any(1)
    assert torch.equal(x_0[mirrored], straight[mirrored].flip(-1))
    assert 0.45 < float(mirrored.float().mean()) < 0.55
    assert torch.equal(drawn(images, positions, flip=False).x_0, straight)


def test_t_is_uniform_over_all_steps() -> None:
    positions = torch.arange(20_000)
    t = drawn(IMAGES[:1].expand(20_000, 1, 8, 8)[:, :, :1, :1], positions, T=10).t
    counts = torch.bincount(t, minlength=10)
    assert len(counts) == 10
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


def test_the_loss_is_the_weighted_mean_of_the_losses_told() -> None:
    """A loss-aware t comes with weights; padding weighs nothing, whatever its loss."""
    trained, positions = state(), torch.tensor([0, 1, 2, 3, 0, 0])
    draws = drawn(IMAGES, positions)._replace(weights=torch.tensor([0.5, 2.0, 1.0, 0.0, 7.0, 7.0]))
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    told = train_step(trained, draws, positions, weights, num_workers=3)
    share = (told.losses * torch.tensor([0.5, 2.0, 1.0, 0.0, 0.0, 0.0])).sum()
    assert float(told.loss) == pytest.approx(float(share) * 3 / 6, rel=1e-6)


def _is_allowed(objective: str, variance: str) -> bool:
    learned = variance in ("learned", "learned_range")
    return {"simple": not learned, "min_snr": not learned, "hybrid": learned, "bound": True}[objective]


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_of_every_prediction_and_variance_trains_or_is_refused(
    objective: str, prediction: str, variance: str
) -> None:
    reverse, loss = ReverseConfig(prediction=prediction, variance=variance), LossConfig(objective=objective)
    if not _is_allowed(objective, variance):
        with pytest.raises(ValueError, match=f"reverse.variance is {variance}"):
            check_objective(loss, reverse)
        return
    check_objective(loss, reverse)
    wanted = Objective(schedule=SCHEDULE, reverse=reverse, loss=loss)
    trained, positions = state(wanted), torch.arange(6)
    before = {name: p.clone() for name, p in trained.network.named_parameters()}
    draws = drawn(IMAGES, positions)._replace(t=torch.tensor([0, 1, 2, 25, 48, 49]))  # both ends of the chain
    told = train_step(trained, draws, positions, torch.ones(6), wanted)
    assert bool(told.losses.isfinite().all())
    assert 0 < float(told.grad_norm) < float("inf")
    for name, p in trained.network.named_parameters():
        assert bool(p.isfinite().all()), name
        assert not torch.equal(p, before[name]), name


@pytest.mark.parametrize("prediction", ["x_0", "mean", "v"])
@pytest.mark.parametrize("objective", ["simple", "min_snr"])
def test_a_schedule_that_ends_without_signal_trains_but_not_by_eps(objective: str, prediction: str) -> None:
    jsd = make_schedule(ScheduleConfig(name="jsd", num_timesteps=50))
    wanted = Objective(schedule=jsd, reverse=ReverseConfig(prediction=prediction), loss=LossConfig(objective=objective))
    trained, positions = state(wanted), torch.arange(6)
    draws = drawn(IMAGES, positions)._replace(t=torch.tensor([0, 1, 2, 25, 48, 49]))
    rest = (positions, torch.ones(6))
    told = train_step(trained, draws, *rest, wanted)
    assert 0 < float(told.grad_norm) < float("inf")
    with pytest.raises(ValueError, match=r"reverse.prediction is eps and the schedule ends at alpha_bar = 0"):
        train_step(trained, draws, *rest, replace(wanted, reverse=ReverseConfig()))


def test_the_learning_rate_rises_linearly_then_stays() -> None:
    assert [warmup(s, CONFIG) for s in range(6)] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3])


def test_the_gradient_is_clipped_and_its_norm_told_before_clipping() -> None:
    trained = state()
    told = step(trained, slice(0, 6)).grad_norm
    assert float(told) > CONFIG.grad_clip
    assert float(gradient(trained).norm()) == pytest.approx(CONFIG.grad_clip, rel=1e-4)


def test_the_update_is_adams() -> None:
    """Kingma and Ba 2015, Algorithm 1, whose moments and gradients must lie in memory as the weights do."""
    trained = state()
    names = [name for name, _ in trained.network.named_parameters()]
    moments = dict.fromkeys(names, (0.0, 0.0))
    for s in range(3):
        before = {name: tensor.double() for name, tensor in network_tensors(trained).items()}
        step(trained, slice(0, 6), first=6 * s)
        after = network_tensors(trained)
        for name, p in trained.network.named_parameters():
            assert p.grad is not None
            assert p.grad.stride() == p.stride() == trained.ema[name].stride()
            g, (m, v) = p.grad.double(), moments[name]
            moments[name] = m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            m_hat, v_hat = m / (1 - 0.9 ** (s + 1)), v / (1 - 0.999 ** (s + 1))
            expected = before[name] - warmup(s, CONFIG) * m_hat / (v_hat.sqrt() + 1e-8)
            torch.testing.assert_close(after[name].double(), expected, rtol=0, atol=2e-7)


def test_a_resumed_state_walks_on_bit_for_bit() -> None:
    torch.use_deterministic_algorithms(True)
    unbroken = state()
    for s in range(4):
        step(unbroken, slice(0, 6), first=6 * s)
    broken = state()
    for s in range(2):
        step(broken, slice(0, 6), first=6 * s)
    parts = (network_tensors(broken), ema_tensors(broken), optimizer_tensors(broken))
    saved = [
        {name: tensor.contiguous().clone() for name, tensor in part.items()} for part in parts
    ]  # as files have them
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
        ({"ema_decay": -0.1}, r"train.ema-decay is -0.1; expected a decay in \[0, 1\)"),
        ({"ema_half_life": 0}, "train.ema-half-life is 0; expected 1 or more"),
        ({"ema_warmup": -0.05}, r"train.ema-warmup is -0.05; expected a share in \[0, 1\]"),
        ({"ema_warmup": 1.5}, r"train.ema-warmup is 1.5; expected a share in \[0, 1\]"),
        ({"ema_warmup": float("nan")}, r"train.ema-warmup is nan; expected a share in \[0, 1\]"),
        (
            {"ema_decay": 0.9999, "ema_half_life": 10},
            "train.ema-half-life is 10 beside a fixed train.ema-decay of 0.9999; expected one of them: leave "
            "--train.ema-half-life out, or add --train.ema-decay None",
        ),
        ({"ema_decay": 0.9, "ema_warmup": 0.0}, "train.ema-warmup is 0.0 beside a fixed train.ema-decay of 0.9"),
        ({"label_dropout": 1.5}, r"train.label-dropout is 1.5; expected a share in \[0, 1\]"),
    ],
)
def test_bad_settings_are_refused_with_their_value(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainConfig(**wrong)
