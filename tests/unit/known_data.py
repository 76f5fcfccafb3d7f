"""Data whose optimal denoiser is known in closed form: pixels drawn from a mixture of normal distributions."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.special import ndtr

from ddpm_core.diffusion.process import Prediction, to_prediction
from ddpm_core.diffusion.schedule import NoiseSchedule, schedule_from_betas
from ddpm_core.types import Denoiser, Tensor


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The channels of a pixel are drawn together from a mixture of K normals; pixels do not know of each other."""

    weights: tuple[float, ...]
    means: Tensor
    """[K, c]"""
    covariances: Tensor
    """[K, c, c]"""

    @property
    def mean(self) -> Tensor:
        """[c]"""
        return torch.einsum("k,kc->c", torch.tensor(self.weights, dtype=torch.float64), self.means)

    @property
    def covariance(self) -> Tensor:
        """[c, c], by the law of total variance."""
        apart = self.means - self.mean
        spread = self.covariances + torch.einsum("kc,kd->kcd", apart, apart)
        return torch.einsum("k,kcd->cd", torch.tensor(self.weights, dtype=torch.float64), spread)

    def cdf(self, x: Tensor) -> Tensor:
        """Of one channel."""
        deviations = self.covariances[:, 0, 0].sqrt()
        parts = [
            w * ndtr(((x - m) / d).numpy()) for w, m, d in zip(self.weights, self.means[:, 0], deviations, strict=True)
        ]
        return torch.as_tensor(sum(parts))

    def expected_x_0(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """E[x_0 | x_t].

        Args:
            x_t: [b, c, h, w], float64.
            alpha_bar: [b].
        """
        pixels = x_t.movedim(1, -1)
        logs, expected = [], []
        for weight, mean, covariance in zip(self.weights, self.means, self.covariances, strict=True):
            # x_t of one component is normal, and so is x_0 given x_t
            noisy = alpha_bar[:, None, None] * covariance + (1 - alpha_bar)[:, None, None] * torch.eye(len(mean))
            root = alpha_bar.sqrt()[:, None, None, None]
            centred = pixels - root * mean
            solved = torch.einsum("bcd,bhwd->bhwc", torch.linalg.inv(noisy), centred)
            expected.append(mean + root * torch.einsum("cd,bhwd->bhwc", covariance, solved))
            log_density = -0.5 * ((centred * solved).sum(-1) + torch.logdet(noisy)[:, None, None])
            logs.append(math.log(weight) + log_density)
        shares = torch.stack(logs).softmax(dim=0)
        return (shares[..., None] * torch.stack(expected)).sum(0).movedim(-1, 1)

    def denoiser(self, schedule: NoiseSchedule, prediction: Prediction = "eps") -> Denoiser:
        """The optimal one, which says it in any of the four ways."""

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            return to_prediction(prediction, self.expected_x_0(x_t, schedule.alpha_bar[t]), x_t, t, schedule)

        return denoise

    def draw(self, count: int, seed: int) -> Tensor:
        """[count, c]"""
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(torch.tensor(self.weights), count, replacement=True, generator=generator)
        roots = torch.linalg.cholesky(self.covariances)
        eps = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[which] + torch.einsum("ncd,nd->nc", roots[which], eps)


def mixture(weights: list[float], means: list[list[float]], covariances: list[list[list[float]]]) -> Mixture:
    """In float64 throughout: 0.3 in float32 is another number."""
    centres, spreads = (torch.tensor(values, dtype=torch.float64) for values in (means, covariances))
    return Mixture(weights=tuple(weights), means=centres, covariances=spreads)


def normal(mean: list[float], covariance: list[list[float]]) -> Mixture:
    """A mixture of one."""
    return mixture([1.0], [mean], [covariance])


def line_of(weights: list[float], means: list[float], deviations: list[float]) -> Mixture:
    """A mixture of normals on the line."""
    return mixture(weights, [[mean] for mean in means], [[[deviation**2]] for deviation in deviations])


def even_in_log_snr(low: float, high: float, num_timesteps: int) -> NoiseSchedule:
    """A schedule whose steps are all alike to the solvers: log SNR falls from high to low by equal steps."""
    alpha_bar = torch.linspace(high, low, num_timesteps, dtype=torch.float64).sigmoid()
    return schedule_from_betas(1 - alpha_bar / torch.cat((torch.ones(1), alpha_bar[:-1])))


def probability_flow(data: Mixture, schedule: NoiseSchedule, x_T: Tensor, *, clean: bool = False) -> Tensor:
    """Where the ODE takes x_T, by scipy and not by a denoiser: dy/ds = -s grad log q(y) in y = x / sqrt(alpha_bar).

    Args:
        data: of one channel.
        x_T: at the schedule's last step; float64.
        clean: to the end, s = 0. By default to x at t = 0.
    """
    weights = np.array(data.weights)
    means, variances = data.means[:, 0].numpy(), data.covariances[:, 0, 0].numpy()

    def by_log_s(log_s: float, y):
        noisy = variances + math.exp(2 * log_s)
        away = y[:, None] - means
        logs = np.log(weights / np.sqrt(noisy)) - away**2 / (2 * noisy)
        density = np.exp(logs - logs.max(axis=1, keepdims=True))
        return math.exp(2 * log_s) * (density * away / noisy).sum(1) / density.sum(1)

    first, last = (-0.5 * float(schedule.log_snr[t]) for t in (-1, 0))
    start = (x_T / schedule.alpha_bar[-1].sqrt()).flatten().numpy()
    ends = (first, math.log(1e-8) if clean else last)
    y = torch.as_tensor(solve_ivp(by_log_s, ends, start, method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1])
    return y.view_as(x_T) if clean else y.view_as(x_T) * schedule.alpha_bar[0].sqrt()
