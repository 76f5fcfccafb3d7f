"""Noise, reverse process and how it is sampled: our configs, and diffusers' scheduler_config.json.

How many steps are taken is not said there: in both libraries it belongs to the request.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ddpm_core.diffusion.process import Prediction
from ddpm_core.diffusion.reverse import Clip, ReverseConfig, Variance
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig, ScheduleName, make_schedule, zero_terminal_snr
from ddpm_core.errors import InputError
from ddpm_core.interop.settings import expect, expect_class, flag, number, numbers, refuse, settle, whole

CLASS, DDIM_CLASS = "DDPMScheduler", "DDIMScheduler"
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
    "predict_epsilon": True,
    "timestep_values": None,
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
_SPACINGS = ("linspace", "leading", "trailing")
_RATIO = 0.995
_LARGE = 1000.0
"""What neither x_t nor a network's output gets to."""
_NO_LIMIT = 1e30


def read_scheduler(plain: Mapping[str, Any], where: str) -> tuple[ScheduleConfig, ReverseConfig]:
    """What a DDPMScheduler's or DDIMScheduler's config says of the noise and of the network's output.

    Args:
        where: its URI, for messages.

    Raises:
        InputError: naming what cannot be said here, with both values.
    """
    settings = _settings(plain, where)
    expect(settings, _OURS, where)
    if settings["tensor_format"] not in ("pt", "np"):  # the library of its arrays, which are not in the file
        refuse(settings, "tensor_format", "pt or np", where)
    variances = {**_VARIANCES, **_SAME_VARIANCE}
    T = whole(settings, "num_train_timesteps", where)
    if settings["trained_betas"] is not None:  # then nothing else is read of the betas
        schedule = _given(numbers(settings, "trained_betas", T, where))
    else:
        schedule = ScheduleConfig(
            name=_SCHEDULES[_one_of(settings, "beta_schedule", _SCHEDULES, where)],
            beta_start=number(settings, "beta_start", where),
            beta_end=number(settings, "beta_end", where),
            num_timesteps=T,
        )
    if flag(settings, "rescale_betas_zero_snr", where):
        schedule = _given(tuple(zero_terminal_snr(make_schedule(schedule).betas).tolist()))
    reverse = ReverseConfig(
        prediction=_PREDICTIONS[_one_of(settings, "prediction_type", _PREDICTIONS, where)],
        variance=variances[_one_of(settings, "variance_type", variances, where)],
    )
    return schedule, reverse


def read_sampler(
    plain: Mapping[str, Any], schedule: ScheduleConfig, reverse: ReverseConfig, where: str
) -> SamplerConfig:
    """How a scheduler samples, in all T steps: with a DDPMScheduler ancestrally, with a DDIMScheduler by ddim of eta 0.

    The steps of each spacing are theirs where all are taken, and of leading wherever S divides T. Elsewhere leading ends
    sooner there (at (S - 1) (T // S)); linspace and trailing differ by one step where a half is rounded.

    Args:
        schedule: what `read_scheduler` makes of the same config.
        reverse: likewise.
        where: its URI, for messages.

    Raises:
        InputError: naming what our samplers cannot do, with both values.
    """
    settings = _settings(plain, where)
    ddim = plain["_class_name"] == DDIM_CLASS
    spacing = _one_of(settings, "timestep_spacing", dict.fromkeys(_SPACINGS, ""), where)
    if spacing == "leading":  # read by no other
        expect(settings, {"steps_offset": 0}, where)
    if ddim:  # by it alone
        expect(settings, {"set_alpha_to_one": True}, where)
    return SamplerConfig(
        name="ddim" if ddim else "ancestral",
        spacing=spacing,  # type: ignore[arg-type]
        clip=_clip(settings, schedule, reverse, where),
    )


def _clip(settings: Mapping[str, Any], schedule: ScheduleConfig, reverse: ReverseConfig, where: str) -> Clip:
    """Theirs clamps x_0_hat to [-s, s] and divides by s: a percentile of its magnitude, from 1 up to sample_max_value."""
    clamped = flag(settings, "clip_sample", where)
    if flag(settings, "thresholding", where):  # then clip_sample is not read
        most = number(settings, "sample_max_value", where)
        if most == 1:  # s is 1, whatever the percentile
            return "static"
        expect(settings, {"dynamic_thresholding_ratio": _RATIO}, where)
        # x_0_hat is (x_t - sqrt(1 - alpha_bar) eps_hat) / sqrt(alpha_bar), or of the size of x_t and of the output
        least = math.sqrt(float(make_schedule(schedule).alpha_bar[-1])) if reverse.prediction == "eps" else 1.0
        if not most >= _LARGE / least:
            expected = f"1 (static clipping), or {_LARGE / least:.3g} or more, which no image gets to (dynamic)"
            refuse(settings, "sample_max_value", expected, where)
        return "dynamic"
    if clamped:
        expect(settings, {"clip_sample_range": 1.0}, where)
    return "static" if clamped else "none"


def scheduler_json(
    schedule: ScheduleConfig, reverse: ReverseConfig, sampler: SamplerConfig | None = None
) -> tuple[str, dict[str, Any]]:
    """The class and the settings of the scheduler that is our schedule, reverse process and sampler.

    A schedule that diffusers has no name for is written as its betas.

    Args:
        sampler: as `read_sampler` gives it; none for DDPMScheduler's own ways.

    Raises:
        InputError: if there is none, naming what it cannot say.
    """
    # diffusers' learned is the variance itself, ours its logarithm.
    settings = {
        **DEFAULTS,
        "num_train_timesteps": schedule.num_timesteps,
        **_betas_json(schedule),
        "variance_type": _counterpart("reverse.variance", reverse.variance, _VARIANCES),
        "prediction_type": _counterpart("reverse.prediction", reverse.prediction, _PREDICTIONS),
    }
    if sampler is None:
        return CLASS, settings
    _expect_read(sampler)
    if sampler.clip == "dynamic":
        settings |= {"thresholding": True, "dynamic_thresholding_ratio": _RATIO, "sample_max_value": _NO_LIMIT}
    settings |= {"clip_sample": sampler.clip == "static", "timestep_spacing": sampler.spacing}
    if sampler.name == "ancestral":
        return CLASS, settings
    if reverse.variance == "fixed_small":  # a DDIMScheduler does not know the word, and we take this where it is silent
        del settings["variance_type"]
    return DDIM_CLASS, settings


def _betas_json(schedule: ScheduleConfig) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in _SCHEDULES.items()}
    if schedule.name not in names:
        return {"trained_betas": make_schedule(schedule).betas.tolist()}
    scale = _RESCALED_FROM / schedule.num_timesteps if schedule.rescale else 1.0
    return {
        "beta_schedule": names[schedule.name],
        "beta_start": scale * schedule.beta_start,
        "beta_end": scale * schedule.beta_end,
    }


def _expect_read(sampler: SamplerConfig) -> None:
    """Refuse a sampler that no scheduler says."""
    said = replace(SamplerConfig(), name=sampler.name, spacing=sampler.spacing, clip=sampler.clip)
    if sampler != said or sampler.name not in ("ancestral", "ddim") or sampler.spacing not in _SPACINGS:
        raise InputError(
            f"the model's sampler is {sampler}; expected ancestral or ddim of eta 0 in all steps, spaced as diffusers can say"
        )


def _given(betas: tuple[float, ...]) -> ScheduleConfig:
    return ScheduleConfig(name="given", betas=betas, num_timesteps=len(betas))


def _settings(plain: Mapping[str, Any], where: str) -> dict[str, Any]:
    expect_class(plain, (CLASS, DDIM_CLASS), where)
    return settle(plain, {**DEFAULTS, **_MORE}, where)


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
