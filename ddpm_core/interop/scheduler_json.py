"""Noise and reverse process: our ScheduleConfig and ReverseConfig, and diffusers' scheduler_config.json.

How the images are then sampled (clipping, spacing, the number of steps) stands there too, but here belongs to the request
and not to the model: it is not read, except where no request could say it.
"""

from collections.abc import Mapping
from typing import Any

from ddpm_core.diffusion.process import Prediction
from ddpm_core.diffusion.reverse import ReverseConfig, Variance
from ddpm_core.diffusion.schedule import ScheduleConfig, ScheduleName
from ddpm_core.errors import InputError
from ddpm_core.interop.settings import expect, expect_class, number, refuse, settle, whole

CLASS = "DDPMScheduler"
DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
"""What diffusers 0.42.1 takes where a config says nothing."""
# DDIMScheduler has all of it but variance_type; its noise of eta = 1 is that of fixed_small. The others are of old versions.
_MORE: dict[str, Any] = {
    "set_alpha_to_one": True,
    "predict_epsilon": True,
    "timestep_values": None,
    "tensor_format": "pt",
}
_OURS: dict[str, Any] = {
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "thresholding": False,
    "predict_epsilon": True,
}
_SCHEDULES: dict[str, ScheduleName] = {
    "linear": "linear",
    "scaled_linear": "quadratic",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
_VARIANCES: dict[str, Variance] = {
    "fixed_small": "fixed_small",
    "fixed_large": "fixed_large",
    "learned_range": "learned_range",
}
# The logarithm is exponentiated again before it is used. Of fixed_large it is not, and sampling gives NaN: refused.
_SAME_VARIANCE: dict[str, Variance] = {"fixed_small_log": "fixed_small"}
_RESCALED_FROM = 1000


def read_scheduler(plain: Mapping[str, Any], where: str) -> tuple[ScheduleConfig, ReverseConfig]:
    """What a DDPMScheduler's or DDIMScheduler's config says of the noise and of the network's output.

    Args:
        where: its URI, for messages.

    Raises:
        InputError: naming what cannot be said here, with both values.
    """
    expect_class(plain, (CLASS, "DDIMScheduler"), where)
    settings = settle(plain, {**DEFAULTS, **_MORE}, where)
    expect(settings, _OURS, where)
    if settings["clip_sample"]:
        expect(settings, {"clip_sample_range": 1.0}, where)
    variances = {**_VARIANCES, **_SAME_VARIANCE}
    schedule = ScheduleConfig(
        name=_SCHEDULES[_one_of(settings, "beta_schedule", _SCHEDULES, where)],
        beta_start=number(settings, "beta_start", where),
        beta_end=number(settings, "beta_end", where),
        num_timesteps=whole(settings, "num_train_timesteps", where),
    )
    reverse = ReverseConfig(
        prediction=_PREDICTIONS[_one_of(settings, "prediction_type", _PREDICTIONS, where)],
        variance=variances[_one_of(settings, "variance_type", variances, where)],
    )
    return schedule, reverse


def scheduler_json(schedule: ScheduleConfig, reverse: ReverseConfig) -> dict[str, Any]:
    """The settings of the DDPMScheduler that is our schedule and reverse process.

    Raises:
        InputError: if there is none, naming what it cannot say.
    """
    # diffusers' learned is the variance itself, ours its logarithm.
    scale = _RESCALED_FROM / schedule.num_timesteps if schedule.rescale else 1.0
    return {
        **DEFAULTS,
        "num_train_timesteps": schedule.num_timesteps,
        "beta_start": scale * schedule.beta_start,
        "beta_end": scale * schedule.beta_end,
        "beta_schedule": _counterpart("schedule.name", schedule.name, _SCHEDULES),
        "variance_type": _counterpart("reverse.variance", reverse.variance, _VARIANCES),
        "prediction_type": _counterpart("reverse.prediction", reverse.prediction, _PREDICTIONS),
    }


def _one_of(settings: Mapping[str, Any], key: str, known: Mapping[str, str], where: str) -> str:
    value = settings[key]
    if value not in known:
        refuse(settings, key, f"one of {', '.join(known)}", where)
    return str(value)


def _counterpart(field: str, ours: str, known: Mapping[str, str]) -> str:
    for theirs, name in known.items():
        if name == ours:
            return theirs
    raise InputError(
        f"{field} is {ours}, which diffusers' {CLASS} cannot say; expected one of {', '.join(known.values())}"
    )
