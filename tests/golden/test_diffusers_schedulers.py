"""Step for step against the schedulers of diffusers 0.42.1, an implementation that shares no line with this one.

The network is a toy, not linear, and both sides get the same noise. Their tables are replaced by the float64 ones, so that
what is compared is what is done with them.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers.schedulers import scheduling_ddpm, scheduling_repaint
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_repaint import RePaintScheduler

from ddpm_core.diffusion.editing import inpaint
from ddpm_core.diffusion.process import Prediction
from ddpm_core.diffusion.respacing import Spacing, spaced_timesteps
from ddpm_core.diffusion.reverse import Clip, ReverseConfig, ReverseProcess, Variance, p_mean_variance
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.samplers import sample
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule, schedule_from_betas
from ddpm_core.types import Tensor

# They hand tensors to numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

T = 20
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=T, beta_start=0.01, beta_end=0.3))
SHAPE = (2, 3, 4, 4)
THEIR_NAMES: dict[Prediction, str] = {"eps": "epsilon", "x_0": "sample", "v": "v_prediction"}
NO_CLIP = {"clip_sample": False}
CLIPS: dict[Clip, dict[str, Any]] = {
    "none": {"thresholding": False},
    "static": {"thresholding": True, "sample_max_value": 1.0},
    "dynamic": {"thresholding": True, "sample_max_value": 1e9},
}


def noise(t: int, number: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * number + t)
    return torch.randn(SHAPE, dtype=torch.float64, generator=generator)


X_T = noise(T)


def network(x_t: Tensor, t: Tensor) -> Tensor:
    """Not linear; a pixel looks at its neighbours."""
    time = 0.1 * t[:, None, None, None]
    return 1.1 * torch.tanh(1.3 * x_t - 0.4 * x_t.roll(1, dims=2) + 0.2 * x_t.roll(1, dims=1) + time)


def with_second_output(x_t: Tensor, t: Tensor) -> Tensor:
    """The other half in [-1, 1]."""
    return torch.cat((network(x_t, t), torch.sin(2 * x_t + t[:, None, None, None])), dim=1)


def all_at(t: int) -> Tensor:
    return torch.full((SHAPE[0],), t)


def ours(
    config: SamplerConfig, prediction: Prediction = "eps", variance: Variance = "fixed_large", denoiser: Any = network
) -> dict[int, Tensor]:
    """The states by their step; -1 is x_0."""
    states: dict[int, Tensor] = {}
    reverse = ReverseConfig(prediction=prediction, variance=variance)
    p = ReverseProcess(denoiser=denoiser, schedule=SCHEDULE, config=reverse)
    x_0 = sample(p, config, X_T, noise, on_step=lambda t, x_t, x_0_hat: states.update({t: x_t}))
    return {**states, -1: x_0}


def theirs(scheduler: Any, step: Callable[[Tensor, int, Tensor], Tensor], denoiser: Any = network) -> dict[int, Tensor]:
    states, x_t = {}, X_T
    for t in scheduler.timesteps.tolist():
        states[t] = x_t
        x_t = step(denoiser(x_t, all_at(t)), t, x_t)
    return {**states, -1: x_t}


def assert_same(one: dict[int, Tensor], other: dict[int, Tensor], tolerance: float = 1e-10) -> None:
    assert list(one) == list(other)
    for t in one:
        torch.testing.assert_close(one[t], other[t], rtol=tolerance, atol=tolerance, msg=lambda m, t=t: f"t = {t}: {m}")


def exact(scheduler: Any) -> Any:
    scheduler.betas, scheduler.alphas, scheduler.alphas_cumprod = SCHEDULE.betas, SCHEDULE.alphas, SCHEDULE.alpha_bar
    return scheduler


def ddpm(monkeypatch: pytest.MonkeyPatch, timesteps: list[int], **settings: Any) -> tuple[Any, Any]:
    """Their scheduler, and a step of it that is given our noise.

    The last step gets none: Algorithm 2 has none there. Theirs draws it unless that step is from t = 0.
    """
    scheduler = exact(DDPMScheduler(num_train_timesteps=T, **settings))
    scheduler.set_timesteps(timesteps=timesteps[::-1])

    def step(output: Tensor, t: int, x_t: Tensor) -> Tensor:
        drawn = noise(t) if t != timesteps[0] else torch.zeros_like(x_t)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: drawn)
        moved: Tensor = scheduler.step(output, t, x_t).prev_sample
        return moved

    return scheduler, step


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(
    ("num_steps", "spacing"), [(None, "linspace"), (6, "linspace"), (5, "leading"), (7, "trailing"), (4, "quadratic")]
)
def test_ancestral_is_their_ddpm(
    prediction: Prediction, variance, num_steps, spacing: Spacing, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = spaced_timesteps(T, num_steps or T, spacing)
    scheduler, step = ddpm(
        monkeypatch, steps, variance_type=variance, prediction_type=THEIR_NAMES[prediction], clip_sample=True
    )
    config = SamplerConfig(num_steps=num_steps, spacing=spacing)
    assert_same(ours(config, prediction, variance), theirs(scheduler, step))


@pytest.mark.parametrize("clip", ["none", "static", "dynamic"])
def test_clipping_is_theirs(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, step = ddpm(monkeypatch, list(range(T)), variance_type="fixed_small", clip_sample=False, **CLIPS[clip])
    assert_same(ours(SamplerConfig(clip=clip), variance="fixed_small"), theirs(scheduler, step))


@pytest.mark.parametrize("num_steps", [None, 6])
def test_learned_range_is_theirs(num_steps: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Respaced, both keep the network's place between the bounds and take the bounds of the longer step."""
    steps = spaced_timesteps(T, num_steps or T)
    scheduler, step = ddpm(monkeypatch, steps, variance_type="learned_range", clip_sample=True)
    config = SamplerConfig(num_steps=num_steps)
    found = ours(config, variance="learned_range", denoiser=with_second_output)
    assert_same(found, theirs(scheduler, step, with_second_output))


def test_learned_is_theirs_but_for_the_logarithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their network says the variance itself, ours its logarithm. (Respaced they part: theirs keeps that of a short step.)"""
    scheduler, step = ddpm(monkeypatch, list(range(T)), variance_type="learned", clip_sample=True)

    def says_variance(x_t: Tensor, t: Tensor) -> Tensor:
        out = with_second_output(x_t, t)
        return torch.cat((out[:, :3], out[:, 3:].exp()), dim=1)

    found = ours(SamplerConfig(), variance="learned", denoiser=with_second_output)
    assert_same(found, theirs(scheduler, step, says_variance))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_fixed_variances_are_theirs_above_t_0(variance) -> None:
    scheduler = exact(DDPMScheduler(num_train_timesteps=T))
    x_t = noise(0)[:1].expand(T, -1, -1, -1)
    p = ReverseProcess(denoiser=network, schedule=SCHEDULE, config=ReverseConfig(variance=variance))
    found = p_mean_variance(p, x_t, torch.arange(T))
    for t in range(1, T):
        expected = float(scheduler._get_variance(t, variance_type=variance))
        assert float(found.variance[t].flatten()[0]) == pytest.approx(expected, rel=1e-12)
    # At t = 0, where no noise is drawn, they part on purpose: theirs is never below 1e-20 and beta_0 if large. Ours has
    # the log-variance of t = 1 in both cases, as the paper's code has: the likelihood of the last step needs it.
    smallest = float(SCHEDULE.posterior_variance[1].log())
    assert float(found.log_variance[0].flatten()[0]) == pytest.approx(smallest, rel=1e-12)
    assert float(scheduler._get_variance(0, variance_type=variance)) == pytest.approx(
        {"fixed_small": 1e-20, "fixed_large": 0.01}[variance]
    )


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
# Theirs finds the step before by counting back T // S: of linspace that is right where all steps are taken.
@pytest.mark.parametrize(("num_steps", "spacing"), [(T, "linspace"), (5, "leading"), (5, "trailing"), (T, "trailing")])
@pytest.mark.parametrize("clip", ["none", "static", "dynamic"])
def test_ddim_is_their_ddim(prediction: Prediction, eta: float, num_steps, spacing: Spacing, clip: Clip) -> None:
    """With theirs told to take the eps that belongs to the clipped x_0, as ours and the paper's code for Glide do."""
    scheduler = exact(
        DDIMScheduler(
            num_train_timesteps=T,
            prediction_type=THEIR_NAMES[prediction],
            timestep_spacing=spacing,
            set_alpha_to_one=True,
            clip_sample=False,
            **CLIPS[clip],
        )
    )
    scheduler.set_timesteps(num_steps)

    def step(output: Tensor, t: int, x_t: Tensor) -> Tensor:
        given = {"variance_noise": noise(t)} if eta > 0 else {}
        moved: Tensor = scheduler.step(output, t, x_t, eta, use_clipped_model_output=True, **given).prev_sample
        return moved

    config = SamplerConfig(name="ddim", eta=eta, num_steps=num_steps, spacing=spacing, clip=clip)
    assert_same(ours(config, prediction), theirs(scheduler, step))


def multistep(steps: list[int], **settings: Any) -> Any:
    """DPM-Solver++(2M) to sigma = 0."""
    scheduler = exact(
        DPMSolverMultistepScheduler(
            num_train_timesteps=T,
            algorithm_type="dpmsolver++",
            solver_order=2,
            solver_type="midpoint",
            final_sigmas_type="zero",
            lower_order_final=True,
            use_karras_sigmas=False,
            **settings,
        )
    )
    scheduler.set_timesteps(timesteps=steps[::-1])
    return scheduler


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
@pytest.mark.parametrize(
    ("num_steps", "spacing"),
    [(None, "linspace"), (10, "trailing"), (5, "trailing"), (1, "trailing"), (4, "quadratic")],
)
@pytest.mark.parametrize("clip", ["none", "static", "dynamic"])
def test_dpm_solver_is_their_multistep_solver(prediction: Prediction, num_steps, spacing: Spacing, clip: Clip) -> None:
    """Theirs computes in float32."""
    steps = spaced_timesteps(T, num_steps or T, spacing)
    scheduler = multistep(steps, prediction_type=THEIR_NAMES[prediction], **CLIPS[clip])
    config = SamplerConfig(name="dpm_solver", num_steps=num_steps, spacing=spacing, clip=clip)
    found = theirs(scheduler, lambda output, t, x_t: scheduler.step(output, t, x_t).prev_sample)
    assert_same(ours(config, prediction), found, tolerance=3e-6)


def test_dpm_solver_leaps_to_t_0_along_another_line() -> None:
    """On purpose unlike theirs, which extrapolates in log SNR even there: ours goes on from a step of theirs of first order."""
    steps = spaced_timesteps(T, 5)
    assert steps[:3] == [0, 5, 9]
    scheduler = multistep(steps)

    def step(output: Tensor, t: int, x_t: Tensor) -> Tensor:
        if t != 5:
            moved: Tensor = scheduler.step(output, t, x_t).prev_sample
            return moved
        before = scheduler.model_outputs[-1]
        scheduler.lower_order_nums = 0
        moved = scheduler.step(output, t, x_t).prev_sample
        root = SCHEDULE.alpha_bar.sqrt()
        turned = 1 - torch.cos(root[5].acos() - root[0].acos())
        return moved + turned * (scheduler.model_outputs[-1] - before) / (root[5] - root[9])

    found = ours(SamplerConfig(name="dpm_solver", num_steps=5, clip="none"))
    assert_same(found, theirs(scheduler, step), tolerance=3e-6)


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
@pytest.mark.parametrize(("num_steps", "spacing"), [(None, "linspace"), (6, "leading"), (7, "trailing")])
@pytest.mark.parametrize("clip_sample", [True, False])
def test_heun_looks_where_their_heun_looks(
    prediction: Prediction, num_steps, spacing: Spacing, clip_sample: bool
) -> None:
    """Theirs walks in y = x / sqrt(alpha_bar) and s = 1 / sqrt(SNR), half a step at a time; ours, in phi, corrects a step
    by the same difference of two looks, weighed otherwise."""
    scheduler = exact(
        HeunDiscreteScheduler(num_train_timesteps=T, prediction_type=THEIR_NAMES[prediction], clip_sample=clip_sample)
    )
    steps = spaced_timesteps(T, num_steps or T, spacing)[::-1]
    scheduler.set_timesteps(timesteps=steps)
    s = SCHEDULE.snr.rsqrt()[steps]
    scheduler.sigmas = torch.cat((s[:1], s[1:].repeat_interleave(2), torch.zeros(1)))
    phi, root = SCHEDULE.angle, SCHEDULE.alpha_bar.sqrt()
    states, y, step = {}, X_T * (1 + s[0] ** 2).sqrt(), 0
    for t in scheduler.timesteps:
        x_t = scheduler.scale_model_input(y, t)
        if scheduler.state_in_first_order:
            states[int(t)] = x_t
        first, y = y, scheduler.step(network(x_t, all_at(int(t))), t, y).prev_sample
        if scheduler.state_in_first_order and step + 1 < len(steps):
            here, there, step = steps[step], steps[step + 1], step + 1
            ours_of_x_0 = (1 - (phi[here] - phi[there]).cos()) / (root[there] - root[here])
            theirs_of_x_0 = 0.5 * (s[step - 1] - s[step]) * root[there] ** 2 / (1 - root[there] ** 2).sqrt()
            y = first + ours_of_x_0 / theirs_of_x_0 * (y - first)
    config = SamplerConfig(name="heun", num_steps=num_steps, spacing=spacing, clip="static" if clip_sample else "none")
    assert_same(ours(config, prediction), {**states, -1: y})


def test_heun_ends_where_their_heun_ends() -> None:
    """By different sums, one ODE: the more steps, the closer, as two methods of second order do."""
    apart = []
    for count in (40, 80, 160):
        alpha_bar = torch.linspace(6, -6, count, dtype=torch.float64).sigmoid()
        schedule = schedule_from_betas(1 - alpha_bar / torch.cat((torch.ones(1), alpha_bar[:-1])))
        scheduler = HeunDiscreteScheduler(num_train_timesteps=count, trained_betas=schedule.betas.numpy())
        scheduler.set_timesteps(timesteps=list(range(count))[::-1])

        def denoise(x_t: Tensor, t: Tensor, schedule: Any = schedule) -> Tensor:
            """Of normal data; it knows where it is by alpha_bar alone."""
            left = schedule.alpha_bar[t][:, None, None, None]
            return (1 - left).sqrt() * (x_t - left.sqrt() * 0.3) / (1 - 0.75 * left)

        y = X_T / schedule.alpha_bar[-1].sqrt()
        for t in scheduler.timesteps:
            y = scheduler.step(denoise(scheduler.scale_model_input(y, t), all_at(int(t))), t, y).prev_sample
        p = ReverseProcess(denoiser=denoise, schedule=schedule, config=ReverseConfig())
        x_0 = sample(p, SamplerConfig(name="heun", clip="none"), X_T, noise)
        apart.append(float((x_0 - y).abs().max()))
    assert all(3 < coarse / fine < 5.5 for coarse, fine in pairwise(apart)), apart


@pytest.mark.parametrize("resamplings", [1, 3])
def test_inpaint_is_their_repaint(resamplings: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its step and the way back, in the order of the paper's Algorithm 1.

    Theirs draws once for the known and the unknown part of a step, so ours is given the same noise for both. With eta = 1
    its step has the variance fixed_small.
    """
    known = (torch.arange(SHAPE[3]) < 2).double().expand(1, 1, SHAPE[2], SHAPE[3])
    x_0 = noise(0, number=99).clamp(-1, 1)
    scheduler = RePaintScheduler(num_train_timesteps=T, eta=1.0, trained_betas=SCHEDULE.betas.numpy(), clip_sample=True)
    scheduler.set_timesteps(T, jump_length=1, jump_n_sample=resamplings)
    x_t = X_T
    for t in reversed(range(T)):
        for again in reversed(range(resamplings if t > 0 else 1)):
            monkeypatch.setattr(
                scheduling_repaint, "randn_tensor", lambda *args, t=t, again=again, **kwargs: noise(t, 2 * again)
            )
            # theirs moves x_t by the unclipped eps; ours by the one that belongs to the clipped x_0
            alpha_bar = SCHEDULE.alpha_bar[t]
            eps = network(x_t, all_at(t))
            x_0_hat = ((x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()).clamp(-1, 1)
            eps = (x_t - alpha_bar.sqrt() * x_0_hat) / (1 - alpha_bar).sqrt()
            x_t = scheduler.step(eps, t, x_t, x_0, known).prev_sample
            if again > 0:
                monkeypatch.setattr(
                    scheduling_repaint,
                    "randn_tensor",
                    lambda *args, t=t, again=again, **kwargs: noise(t, 2 * again + 1),
                )
                x_t = scheduler.undo_step(x_t, t)

    def drawn(t: int, number: int) -> Tensor:
        again, kind = divmod(number, 3)
        return noise(t, 2 * again + 1 if kind == 2 else 2 * again)

    p = ReverseProcess(denoiser=network, schedule=SCHEDULE, config=ReverseConfig(variance="fixed_small"))
    found = inpaint(p, x_0, known, X_T, drawn, resamplings=resamplings)
    torch.testing.assert_close(found, x_t, rtol=1e-10, atol=1e-10)
