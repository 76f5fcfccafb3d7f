"""What the mathematics refuses: each message says what was given and what was expected.

The shapes and names in the signatures, which are checked while testing, are switched off here: a user has none of that.
"""

from collections.abc import Iterator
from typing import Any, get_args

import jaxtyping
import pytest
import torch

from ddpm_core.diffusion.checks import check_images, check_latents, check_levels, check_like, check_timesteps
from ddpm_core.diffusion.likelihood import variational_bound
from ddpm_core.diffusion.losses import OBJECTIVES, LossConfig, Objective, loss_per_image, min_snr_weight
from ddpm_core.diffusion.process import predict_x_0, q_posterior, q_sample, to_prediction
from ddpm_core.diffusion.respacing import spaced_timesteps
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess, clip_x_0, p_mean_variance, split_output
from ddpm_core.diffusion.sampler_config import SamplerName
from ddpm_core.diffusion.samplers import SAMPLERS
from ddpm_core.diffusion.schedule import SCHEDULES, ScheduleConfig, ScheduleName, make_schedule
from ddpm_core.types import Tensor

T = 10
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=T))
IMAGES = torch.arange(24.0).reshape(2, 3, 2, 2) * 5 / 127.5 - 1
EPS = torch.linspace(-2, 2, 24).reshape(2, 3, 2, 2)
STEPS = torch.tensor([0, 9])
P = ReverseProcess(denoiser=lambda x_t, t: 0.5 * x_t, schedule=SCHEDULE)


@pytest.fixture(autouse=True)
def unchecked_signatures() -> Iterator[None]:
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def changed(x: Tensor, value: float) -> Tensor:
    """With one value of its own."""
    x = x.clone()
    x[1, 2, 1, 0] = value
    return x


NO_IMAGES = [
    (IMAGES[0], r"x_0 has shape \[3, 2, 2\]; expected \[batch, channels, height, width\]"),
    (
        IMAGES.to(torch.uint8),
        r"x_0 is of type torch.uint8; expected floating point values, for images those in \[-1, 1\]",
    ),
    (IMAGES.long(), r"x_0 is of type torch.int64; expected floating point"),
    (changed(IMAGES, float("nan")), "x_0 has 1 values that are not finite; expected finite ones"),
    (changed(IMAGES, float("-inf")), "x_0 has 1 values that are not finite; expected finite ones"),
    (changed(IMAGES, 1.25), r"x_0 has values from -1 to 1.25; expected images in \[-1, 1\]"),
    (255 * (IMAGES + 1) / 2, r"x_0 has values from 0 to 115; expected images in \[-1, 1\]"),
]


@pytest.mark.parametrize(("x_0", "message"), NO_IMAGES)
@pytest.mark.parametrize("objective", ["simple", "bound", "min_snr"])
def test_training_refuses_what_is_no_image(x_0: Tensor, message: str, objective: Any) -> None:
    with pytest.raises(ValueError, match=message):
        loss_per_image(P, x_0, STEPS, EPS, LossConfig(objective=objective))


@pytest.mark.parametrize(("x_0", "message"), NO_IMAGES)
def test_the_bound_refuses_what_is_no_image(x_0: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        variational_bound(P, x_0, lambda t: EPS)


def test_the_bound_refuses_what_is_not_of_8_bits() -> None:
    """Its decoder gives the probability of a level: of values between them it would be of no bin, and sum to anything."""
    between = changed(IMAGES, 0.5)  # level 191.25
    message = "x_0 has 1 values between the levels of 8-bit images, as 0.5; expected k / 127.5 - 1 for k from 0 to 255"
    with pytest.raises(ValueError, match=message):
        variational_bound(P, between, lambda t: EPS)
    with pytest.raises(ValueError, match=message):
        loss_per_image(P, between, STEPS, EPS, LossConfig(objective="bound"))
    learned = ReverseProcess(
        denoiser=lambda x_t, t: x_t.repeat(1, 2, 1, 1), schedule=SCHEDULE, config=ReverseConfig(variance="learned")
    )
    with pytest.raises(ValueError, match=message):
        loss_per_image(learned, between, STEPS, EPS, LossConfig(objective="hybrid"))
    assert bool(loss_per_image(P, between, STEPS, EPS, LossConfig()).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_all_levels_are_levels_however_they_are_rounded(dtype: torch.dtype) -> None:
    check_levels((torch.arange(256, dtype=torch.float64) / 127.5 - 1).to(dtype).reshape(1, 1, 16, 16))


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.tensor([0, T]), "t is 10; expected 0 to 9"),
        (torch.tensor([-1, 3]), "t is -1; expected 0 to 9"),
        (torch.tensor([0, 1, 2]), r"t has shape \[3\], x_0 has \[2, 3, 2, 2\]; expected one t an image"),
        (torch.tensor([5]), r"t has shape \[1\], x_0 has \[2, 3, 2, 2\]; expected one t an image"),
        (torch.tensor([0.0, 1.0]), "t is of type torch.float32; expected torch.int64 or torch.int32"),
        (torch.tensor([0, 1], dtype=torch.uint8), "t is of type torch.uint8; expected torch.int64 or torch.int32"),
        (torch.tensor([True, False]), "t is of type torch.bool; expected torch.int64 or torch.int32"),
    ],
)
def test_training_refuses_other_timesteps(t: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_per_image(P, IMAGES, t, EPS, LossConfig())


@pytest.mark.parametrize(
    ("eps", "message"),
    [
        (EPS[:, :1], r"eps has shape \[2, 1, 2, 2\], x_0 has \[2, 3, 2, 2\]; expected equal shapes"),
        (EPS[0], r"eps has shape \[3, 2, 2\]; expected \[batch, channels, height, width\]"),
        (changed(EPS, float("nan")), "eps has 1 values that are not finite"),
        (EPS.long(), "eps is of type torch.int64; expected floating point"),
    ],
)
def test_training_refuses_other_noise(eps: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_per_image(P, IMAGES, STEPS, eps, LossConfig())


def test_diffusion_refuses_noise_that_would_broadcast() -> None:
    message = r"eps has shape \[2, 1, 2, 2\], x_0 has \[2, 3, 2, 2\]; expected equal shapes"
    with pytest.raises(ValueError, match=message):
        q_sample(IMAGES, STEPS, EPS[:, :1], SCHEDULE)
    with pytest.raises(ValueError, match=message):
        variational_bound(P, IMAGES, lambda t: EPS[:, :1])


def test_integers_are_refused_wherever_coefficients_would_become_0() -> None:
    images = IMAGES.long()
    for refused in (
        lambda: q_sample(images, STEPS, images, SCHEDULE),
        lambda: q_posterior(images, images, STEPS, SCHEDULE),
        lambda: predict_x_0("eps", images, images, STEPS, SCHEDULE),
        lambda: to_prediction("v", images, images, STEPS, SCHEDULE),
    ):
        with pytest.raises(ValueError, match=r"the images are of type torch.int64; expected floating point values"):
            refused()


@pytest.mark.parametrize("timesteps", [[], [3, 10], [-1]])
def test_the_bound_refuses_other_timesteps(timesteps: list[int]) -> None:
    with pytest.raises(ValueError, match=r"the timesteps are \[.*\]; expected one or more in 0 to 9"):
        variational_bound(P, IMAGES, lambda t: EPS, timesteps=timesteps)


def test_a_networks_output_of_another_shape_is_refused() -> None:
    for output, message in (
        (EPS[:, :1], "the network gives 1 channels; expected 3 for images of 3"),
        (
            EPS[:, :, :1],
            r"the network's prediction has shape \[2, 3, 1, 2\], x_t has \[2, 3, 2, 2\]; expected equal shapes",
        ),
        (EPS[:1], r"the network's prediction has shape \[1, 3, 2, 2\], x_t has \[2, 3, 2, 2\]; expected equal shapes"),
    ):
        p = ReverseProcess(denoiser=lambda x_t, t, output=output: output, schedule=SCHEDULE)
        for refused in (
            lambda output=output: split_output(output, IMAGES, ReverseConfig()),
            lambda p=p: p_mean_variance(p, IMAGES, STEPS),
            lambda p=p: loss_per_image(p, IMAGES, STEPS, EPS, LossConfig()),
        ):
            with pytest.raises(ValueError, match=message):
                refused()


def test_unknown_names_are_refused_with_those_that_there_are() -> None:
    wrong: Any = "epsilon"
    schedules = "linear, quadratic, constant, warmup10, warmup50, jsd, cosine, sigmoid, given"
    predictions, variances = "eps, x_0, mean, v", "fixed_small, fixed_large, learned, learned_range"
    for refused, flag, names in (
        (lambda: ScheduleConfig(name=wrong), "schedule.name", schedules),
        (lambda: ReverseConfig(prediction=wrong), "reverse.prediction", predictions),
        (lambda: ReverseConfig(variance=wrong), "reverse.variance", variances),
        (lambda: LossConfig(objective=wrong), "loss.objective", "simple, bound, hybrid, min_snr"),
        (lambda: predict_x_0(wrong, EPS, IMAGES, STEPS, SCHEDULE), "reverse.prediction", predictions),
        (lambda: to_prediction(wrong, IMAGES, IMAGES, STEPS, SCHEDULE), "reverse.prediction", predictions),
        (lambda: min_snr_weight(wrong, SCHEDULE, 5.0), "reverse.prediction", predictions),
        (lambda: clip_x_0(IMAGES, wrong), "sampler.clip", "none, static, dynamic, original"),
        (lambda: spaced_timesteps(T, 3, wrong), "sampler.spacing", "linspace, leading, trailing, quadratic"),
    ):
        with pytest.raises(ValueError, match=f"{flag} is epsilon; expected one of {names}$"):
            refused()


def test_what_is_right_passes() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        check_images(IMAGES.to(dtype))
    check_images(IMAGES[:0])
    check_levels(IMAGES)
    check_latents(3 * EPS, "x_T")
    check_like(EPS, IMAGES, "eps", "x_0")
    check_timesteps(STEPS.int(), IMAGES, "x_0")


def test_values_that_lie_elsewhere_are_not_waited_for() -> None:
    """On a device a look makes the host wait; shapes and types cost nothing, and are checked there too."""
    away = torch.full((2, 3, 2, 2), 7.0, device="meta")
    check_images(away)
    check_levels(away)
    check_latents(away, "x_T")
    with pytest.raises(ValueError, match="x_0 has shape"):
        check_images(away[0])
    with pytest.raises(ValueError, match="x_0 is of type"):
        check_images(away.long())
    with pytest.raises(ValueError, match="expected one t an image"):
        check_timesteps(torch.zeros(3, dtype=torch.int64, device="meta"), away, "x_0")


def test_the_checks_break_no_graph() -> None:
    """Compiled, the loss is one graph without a look at a value, and gives what it gives otherwise."""
    config = LossConfig(objective="bound")

    def loss(x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return loss_per_image(P, x_0, t, eps, config)

    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGES, STEPS, EPS), loss(IMAGES, STEPS, EPS))


def test_each_name_that_a_config_takes_is_registered() -> None:
    assert get_args(SamplerName) == tuple(SAMPLERS)
    assert get_args(ScheduleName) == (*SCHEDULES, "given")  # which is a list, and no formula
    assert set(get_args(Objective)) == OBJECTIVES.keys()
