"""What is said of a sampler: which one, over which steps, and what of that is refused. The samplers are in `samplers.py`."""

from dataclasses import dataclass
from typing import Literal

from ddpm_core.diffusion.checks import check_name
from ddpm_core.diffusion.respacing import Spacing, spaced_timesteps
from ddpm_core.diffusion.reverse import Clip, Variance
from ddpm_core.diffusion.schedule import NoiseSchedule
from ddpm_core.errors import InputError

SamplerName = Literal["ancestral", "ddim", "dpm_solver", "heun"]
FixedVariance = Literal["fixed_small", "fixed_large"]

_MISSING_SIGNAL = 0.2
"""Of an image's scale. What was measured on digits: twice DDIM's distance at 0.3, thrice at 0.4 (docs/samplers.md)."""
_NOISE_LEFT = 0.6
"""Deviation. What was measured on digits where x_0 is predicted: 4 to 13 times DDIM's distance at 0.8, up to 3 at 0.4."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How x_T becomes x_0.

    Raises:
        InputError: if a field is out of its range, or a name is unknown.
    """

    name: SamplerName = "ancestral"
    """How x_T becomes x_0: ancestral (the paper's Algorithm 2), ddim (Song, Meng, Ermon 2021), dpm_solver
    (DPM-Solver++(2M), Lu et al. 2022) or heun (on the probability-flow ODE, Karras et al. 2022; two passes a step). The
    last two are of second order; see docs/samplers.md."""
    num_steps: int | None = None
    """Steps of the schedule that are taken; none for all of them."""
    spacing: Spacing = "linspace"
    """Which of the schedule's steps: linspace takes both ends; leading, trailing, quadratic as in the literature."""
    eta: float = 0.0
    """Of ddim: its noise, from 0 (none) to 1 (as much as ancestral fixed_small)."""
    variance: FixedVariance | None = None
    """Of ancestral: another variance of a reverse step than the model's own; it must be a fixed one."""
    clip: Clip = "static"
    """What keeps the predicted image in [-1, 1] at every step: static clamps it, dynamic rescales it first, none lets it;
    original is static but leaves a predicted mean as it is."""

    def __post_init__(self) -> None:
        check_name(self.name, SamplerName, "sampler.name")
        check_name(self.spacing, Spacing, "sampler.spacing")
        check_name(self.clip, Clip, "sampler.clip")
        if self.variance is not None:
            check_name(self.variance, FixedVariance, "sampler.variance")
        if self.num_steps is not None and self.num_steps < 1:
            raise InputError(f"sampler.num-steps is {self.num_steps}; expected 1 or more")
        if not 0 <= self.eta <= 1:
            raise InputError(f"sampler.eta is {self.eta}; expected 0 to 1")


def check_spacing(config: SamplerConfig, schedule: NoiseSchedule) -> None:
    """Refuse steps that begin where x_T, which is taken for noise, should hold something of an image, or that end where an
    image is still mostly noise.

    Raises:
        InputError: if so many of the noisiest steps are left out that sqrt(alpha_bar) is over 0.2 more where they begin than
            at T-1; or so many of the last ones that of two steps or more the lowest has sqrt(1 - alpha_bar) over 0.6; or
            more steps are asked for than there are.
    """
    taken = steps_taken(config, schedule.num_timesteps)
    missing = float(schedule.alpha_bar[taken[-1]].sqrt() - schedule.alpha_bar[-1].sqrt())
    if missing > _MISSING_SIGNAL:
        raise InputError(
            f"sampler.spacing is {config.spacing}, which begins {config.num_steps} steps at t = {taken[-1]}, where an image is "
            f"still there by {missing:.2f} of its scale and x_T has nothing of it; expected linspace or trailing, or more steps"
        )
    left = float((1 - schedule.alpha_bar[taken[0]]).sqrt())
    if left > _NOISE_LEFT and len(taken) > 1:
        raise InputError(
            f"sampler.spacing is {config.spacing}, which ends {config.num_steps} steps at t = {taken[0]}, where the noise's "
            f"deviation is still {left:.2f} and one estimate is left with it; expected linspace, or more steps"
        )


def check_sampler(config: SamplerConfig, variance: Variance, num_timesteps: int) -> None:
    """Refuse a sampler that cannot run on this model.

    Raises:
        InputError: if it asks for more steps than there are, or for a fixed variance where the model learned its own.
    """
    spaced_timesteps(num_timesteps, config.num_steps or num_timesteps, config.spacing)
    if config.variance is not None and variance not in ("fixed_small", "fixed_large"):
        raise InputError(
            f"sampler.variance is {config.variance} and the model's own is {variance}; expected none: it learned it"
        )


def steps_taken(config: SamplerConfig, num_timesteps: int, start: int | None = None) -> list[int]:
    """The timesteps that a sampler visits, ascending; the last one is where the chain begins.

    Args:
        num_timesteps: T.
        start: the step from which to go down; T-1 by default, or what the spacing has below it.

    Raises:
        InputError: if the start is not in [0, T-1], or the spacing does not begin there.
    """
    T = num_timesteps
    if start is None:
        return spaced_timesteps(T, config.num_steps or T, config.spacing)
    if not 0 <= start < T:
        raise InputError(f"the start is step {start}; expected 0 to {T - 1}")
    below = spaced_timesteps(start + 1, min(config.num_steps or T, start + 1), config.spacing)
    if below[-1] != start:
        raise InputError(
            f"sampler.spacing is {config.spacing}, whose first step below {start} is {below[-1]}; "
            "expected linspace or trailing, which begin where the images are"
        )
    return below


def network_passes(config: SamplerConfig, num_timesteps: int) -> int:
    """Of an image: one a step, of heun two, but for its last step."""
    steps = config.num_steps or num_timesteps
    return 2 * steps - 1 if config.name == "heun" else steps
