"""Noise schedules by name, to look at and to build with."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ddpm_core.diffusion.checks import check_name
from ddpm_core.diffusion.schedule import NoiseSchedule, ScheduleConfig, ScheduleName, make_schedule
from ddpm_core.errors import InputError
from ddpm_core.optional import late

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_plots = late("ddpm_core.evaluation.plots", "matplotlib", "a plot")


@dataclass(frozen=True, kw_only=True)
class Schedule(NoiseSchedule):
    """What q(x_t | x_0) and q(x_{t-1} | x_t, x_0) need at each step t from 0 to T-1: float64 tensors [T].

    `betas`, `alphas`, `alpha_bar`, `alpha_bar_prev`, `snr`, `log_snr`, `posterior_variance` and more, by the paper's names.
    In code t = 0 is the paper's t = 1.
    """

    name: str

    def plot(self) -> "Figure":
        """beta, alpha_bar and log SNR over t, as a matplotlib figure; a notebook shows it.

        Raises:
            InputError: in one line, if matplotlib is not installed.
        """
        figure: Figure = _plots.schedule_curves({self.name: self})
        return figure


def schedule(name: str, **config: Any) -> Schedule:
    """The noise schedule of that name.

    Args:
        name: linear (the paper's), quadratic, constant, warmup10, warmup50, jsd, cosine, sigmoid or given.
        config: num_timesteps (T, 1000), beta_start (1e-4), beta_end (0.02), rescale (False); betas of given, T of them.

    Raises:
        InputError: if there is no such schedule, or a value is out of its range.
    """
    known = [field.name for field in fields(ScheduleConfig) if field.name != "name"]
    if unknown := sorted(config.keys() - set(known)):
        raise InputError(f"a schedule has no {', '.join(unknown)}; expected {', '.join(known)}")
    check_name(name, ScheduleName, "schedule.name")
    made = make_schedule(ScheduleConfig(name=name, **config))  # type: ignore[arg-type]
    return Schedule(name=name, **vars(made))
