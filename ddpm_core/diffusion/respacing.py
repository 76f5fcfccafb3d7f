"""The diffusion at some of its timesteps only: which, and what the schedule and p_theta are there."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch

from ddpm_core.diffusion.checks import check_name
from ddpm_core.diffusion.process import gather_at, predict_x_0
from ddpm_core.diffusion.reverse import ReverseProcess, split_output
from ddpm_core.diffusion.schedule import NoiseSchedule, schedule_of
from ddpm_core.errors import InputError
from ddpm_core.types import Float, Int, Tensor

Spacing = Literal["linspace", "leading", "trailing", "quadratic"]


def spaced_timesteps(num_timesteps: int, num_steps: int, spacing: Spacing = "linspace") -> list[int]:
    """Which of the timesteps 0 to T-1 a sampler of fewer steps visits, ascending.

    Args:
        num_timesteps: T.
        num_steps: S, how many.
        spacing: linspace spreads them from 0 to T-1, both included (one step is T-1). leading is 0, T / S, 2 T / S, ...
            rounded down, as in DDIM's code where S divides T; trailing counts down from T-1 in steps of T / S (Lin et al.
            2024, Table 2); quadratic is dense near 0, DDIM's choice for CIFAR-10; where its steps would coincide they are
            1 apart.

    Raises:
        InputError: if S is not in 1 to T.
    """
    check_name(spacing, Spacing, "sampler.spacing")
    T, S = num_timesteps, num_steps
    if not 1 <= S <= T:
        raise InputError(f"{S} sampling steps of a schedule of {T}; expected 1 to {T}")
    gaps = max(1, S - 1)
    match spacing:
        case "linspace":
            # (T-1) i / gaps to the nearest whole number, counted down from T-1
            return sorted(T - 1 - (2 * (T - 1) * i + gaps) // (2 * gaps) for i in range(S))
        case "leading":
            return [i * T // S for i in range(S)]
        case "trailing":
            return sorted(round(T - i * T / S) - 1 for i in range(S))
        case "quadratic":
            # Song, Meng, Ermon 2021, Appendix D.2: 0.8 T (i / gaps)^2, rounded down
            return [max(i, 4 * T * i**2 // (5 * gaps**2)) for i in range(S)]


def respace(schedule: NoiseSchedule, timesteps: Sequence[int]) -> NoiseSchedule:
    """The diffusion seen at some of its timesteps only (Nichol and Dhariwal 2021, Eq. 19).

    Args:
        timesteps: which of 0 to T-1, ascending.

    Returns:
        A schedule with a step for each of them, whose alpha_bar is the given one's there.

    Raises:
        InputError: if there are none, or they are not ascending in 0 to T-1.
    """
    steps, T = list(timesteps), schedule.num_timesteps
    if not steps or steps[0] < 0 or steps[-1] >= T or any(a >= b for a, b in pairwise(steps)):
        raise InputError(f"the timesteps are {steps}; expected one or more, strictly ascending, in 0 to {T - 1}")
    alpha_bar = schedule.alpha_bar[torch.tensor(steps, device=schedule.betas.device)]
    alphas = alpha_bar / torch.cat((torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]))
    return schedule_of(1 - alphas, alphas)


def spaced_process(p: ReverseProcess, timesteps: list[int]) -> ReverseProcess:
    """p_theta at some of its timesteps only (Nichol and Dhariwal 2021, Section 4).

    What a network says of x_{t-1} holds for the step that it was trained on. Of a longer step, its mean is said anew by
    way of x_0; its variance by its place between posterior_variance and beta, which is Var(x_0 | x_t) / (1 - alpha_bar_t)
    and so the same for every length. learned_range keeps the network's own place, on a log scale, as published.

    Args:
        timesteps: ascending; what is t to the result is timesteps[t] to the network.
    """
    own, spaced = p.schedule, respace(p.schedule, timesteps)
    visited = torch.tensor(timesteps, device=own.betas.device)
    same_steps = timesteps == list(range(len(timesteps)))
    from_mean = p.config.prediction == "mean" and not same_steps
    from_variance = p.config.variance == "learned" and not same_steps
    # of beta and posterior_variance: in float32 the two may not differ where there is much noise
    own_width, width = own.betas - own.posterior_variance, spaced.betas - spaced.posterior_variance

    def denoiser(x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b o h w"]:
        output = p.denoiser(x_t, visited[t])
        if not from_mean and not from_variance:
            return output
        value, second = split_output(output.to(x_t.dtype), x_t, p.config)
        if from_mean:
            value = predict_x_0("mean", value, x_t, visited[t], own)
        if from_variance and second is not None:
            above = second.exp() - gather_at(own.posterior_variance, visited[t], x_t)
            place = (above / gather_at(own_width, visited[t], x_t)).clamp(0, 1)
            second = (gather_at(spaced.posterior_variance, t, x_t) + place * gather_at(width, t, x_t)).log()
        return value if second is None else torch.cat((value, second), dim=1)

    config = replace(p.config, prediction="x_0") if from_mean else p.config
    return ReverseProcess(denoiser=denoiser, schedule=spaced, config=config)
