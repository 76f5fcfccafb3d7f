"""The objectives against the paper's equations, computed pixel by pixel with scipy and in plain Python numbers."""

import math
from typing import get_args

import pytest
import torch
from scipy import integrate, stats

from ddpm_core.diffusion.likelihood import variational_bound
from ddpm_core.diffusion.losses import (
    LossConfig,
    Objective,
    check_objective,
    loss_per_image,
    min_snr_weight,
    prior_term,
)
from ddpm_core.diffusion.process import Prediction, q_sample, to_prediction
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess, Variance
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.types import Tensor

T = 10
SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=T, beta_start=0.001, beta_end=0.4))
BETAS = [0.001 + i * 0.399 / (T - 1) for i in range(T)]
BAR = [1.0, *(math.prod(1 - b for b in BETAS[: t + 1]) for t in range(T))]
"""BAR[t] is the paper's alpha_bar_t, BETAS[t - 1] its beta_t: t from 1 to T."""
PREDICTIONS, VARIANCES = get_args(Prediction), get_args(Variance)
EVERY_T = torch.arange(T)


def randn(seed: int, rows: int = T, channels: int = 2) -> Tensor:
    return torch.randn(rows, channels, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(seed: int, rows: int = T) -> Tensor:
    """8-bit images with both ends of the scale in them."""
    g = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 256, (rows, 2, 3, 3), generator=g)
    drawn[:, 0, 0, :2] = torch.tensor([0, 255])
    return drawn.double() / 127.5 - 1


def of_output(output: Tensor, **config) -> ReverseProcess:
    return ReverseProcess(denoiser=lambda x_t, t: output, schedule=SCHEDULE, config=ReverseConfig(**config))


def bend(x_t: Tensor, t: Tensor) -> Tensor:
    """A network that is nothing in particular, with a second output that may be a log-variance or a share."""
    value = torch.tanh(x_t + 0.1 * t[:, None, None, None])
    return torch.cat((value, 0.3 * value.flip(-1) - 1), dim=1)


def network(variance: Variance):
    channels = 4 if variance.startswith("learned") else 2
    return lambda x_t, t: bend(x_t, t)[:, :channels]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_simple_is_the_mean_squared_error_of_the_prediction(prediction: Prediction) -> None:
    x_0, eps, error = randn(0).clamp(-1, 1), randn(1), randn(2)
    x_t = q_sample(x_0, EVERY_T, eps, SCHEDULE)
    p = of_output(to_prediction(prediction, x_0, x_t, EVERY_T, SCHEDULE) + error, prediction=prediction)
    loss = loss_per_image(p, x_0, EVERY_T, eps, LossConfig())
    expected = [sum(e**2 for e in image.flatten().tolist()) / 18 for image in error]
    assert loss.tolist() == pytest.approx(expected, rel=1e-9)


def test_the_target_is_eps_itself_even_in_float32() -> None:
    """By way of x_t it would be eps to one part in 1e5 where there is little noise."""
    x_0, eps = randn(0).clamp(-1, 1).float(), randn(1).float()
    assert not bool(loss_per_image(of_output(eps), x_0, EVERY_T, eps, LossConfig()).any())


def test_the_denoiser_sees_the_diffused_images() -> None:
    x_0, eps = randn(0).clamp(-1, 1), randn(1)
    p = ReverseProcess(denoiser=lambda x_t, t: x_t * t[:, None, None, None], schedule=SCHEDULE)
    root, deviation = (
        torch.tensor([f(b) for b in BAR[1:]], dtype=torch.float64) for f in (math.sqrt, lambda b: math.sqrt(1 - b))
    )
    x_t = root[:, None, None, None] * x_0 + deviation[:, None, None, None] * eps
    expected = (x_t * EVERY_T[:, None, None, None] - eps).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss_per_image(p, x_0, EVERY_T, eps, LossConfig()), expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_weighs_an_error_of_x_0_alike_whatever_is_predicted(gamma: float) -> None:
    """The loss of every prediction is min(SNR, gamma) times the squared error of x_0 (Hang et al. 2023, Section 3.4)."""
    x_0, x_0_hat, eps = randn(0).clamp(-1, 1), randn(1), randn(2)
    x_t = q_sample(x_0, EVERY_T, eps, SCHEDULE)
    snr = [bar / (1 - bar) for bar in BAR[1:]]
    errors = (x_0_hat - x_0).square().mean(dim=(1, 2, 3)).tolist()
    expected = [min(s, gamma) * error for s, error in zip(snr, errors, strict=True)]
    assert min(snr) < gamma < max(snr)
    for prediction in PREDICTIONS:
        output = to_prediction(prediction, x_0_hat, x_t, EVERY_T, SCHEDULE)
        p = of_output(output, prediction=prediction)
        config = LossConfig(objective="min_snr", min_snr_gamma=gamma)
        assert loss_per_image(p, x_0, EVERY_T, eps, config).tolist() == pytest.approx(expected, rel=1e-8)


def test_min_snr_weights_are_the_papers() -> None:
    snr = [bar / (1 - bar) for bar in BAR[1:]]
    assert min_snr_weight("x_0", SCHEDULE, 5.0).tolist() == pytest.approx([min(s, 5) for s in snr], rel=1e-9)
    assert min_snr_weight("eps", SCHEDULE, 5.0).tolist() == pytest.approx([min(s, 5) / s for s in snr], rel=1e-9)
    assert min_snr_weight("v", SCHEDULE, 5.0).tolist() == pytest.approx([min(s, 5) / (s + 1) for s in snr], rel=1e-9)
    jsd = make_schedule(ScheduleConfig(name="jsd", num_timesteps=4))
    for prediction in ("x_0", "v", "mean"):
        weights = min_snr_weight(prediction, jsd, 5.0)
        assert bool(weights.isfinite().all())
        assert float(weights[-1]) == 0


def said_to_x_0(prediction: Prediction, value: float, x_t: float, t: int) -> float:
    """What a prediction says of x_0, in the paper's t; by solving its definition."""
    bar, prev, beta = BAR[t], BAR[t - 1], BETAS[t - 1]
    match prediction:
        case "eps":
            return (x_t - math.sqrt(1 - bar) * value) / math.sqrt(bar)
        case "x_0":
            return value
        case "v":
            return math.sqrt(bar) * x_t - math.sqrt(1 - bar) * value
        case "mean":  # Eq. 7
            return (value * (1 - bar) - math.sqrt(1 - beta) * (1 - prev) * x_t) / (math.sqrt(prev) * beta)


def mu_tilde(x_0: float, x_t: float, t: int) -> float:
    """Eq. 7."""
    bar, prev, beta = BAR[t], BAR[t - 1], BETAS[t - 1]
    return (math.sqrt(prev) * beta * x_0 + math.sqrt(1 - beta) * (1 - prev) * x_t) / (1 - bar)


def beta_tilde(t: int) -> float:
    """Eq. 7."""
    return (1 - BAR[t - 1]) / (1 - BAR[t]) * BETAS[t - 1]


def deviation_of(variance: Variance, second: float, t: int) -> float:
    """sigma_t of Section 3.2 and of Nichol and Dhariwal 2021, Eq. 15, in the paper's t."""
    small = beta_tilde(max(t, 2))
    match variance:
        case "fixed_small":
            return math.sqrt(small)
        case "fixed_large":
            return math.sqrt(BETAS[t - 1] if t > 1 else small)
        case "learned":
            return math.exp(second / 2)
        case "learned_range":
            share = (second + 1) / 2
            return math.sqrt(BETAS[t - 1] ** share * small ** (1 - share))


def kl_in_bits(true, other) -> float:
    """By integrating scipy's densities."""
    low, high = true.ppf(1e-14), true.isf(1e-14)
    nats, _ = integrate.fixed_quad(lambda x: true.pdf(x) * (true.logpdf(x) - other.logpdf(x)), low, high, n=60)
    return nats / math.log(2)


def term_by_hand(
    x_0: float, x_t: float, value: float, second: float, t: int, prediction: Prediction, variance: Variance
):
    """L_{t-1} of Eq. 5 of one pixel in bits, for t from 1 to T: a KL by scipy's densities, or a CDF's difference."""
    mean, deviation = mu_tilde(said_to_x_0(prediction, value, x_t, t), x_t, t), deviation_of(variance, second, t)
    if t == 1:  # Eq. 13
        upper = math.inf if x_0 > 0.999 else x_0 + 1 / 255
        lower = -math.inf if x_0 < -0.999 else x_0 - 1 / 255
        normal = stats.norm(mean, deviation)
        right = normal.sf(lower) - normal.sf(upper)
        return -math.log2(right if x_0 > mean else normal.cdf(upper) - normal.cdf(lower))
    return kl_in_bits(stats.norm(mu_tilde(x_0, x_t, t), math.sqrt(beta_tilde(t))), stats.norm(mean, deviation))


def bound_by_hand(
    x_0: Tensor, eps: Tensor, output: Tensor, t: int, prediction: Prediction, variance: Variance
) -> float:
    """The mean over an image's pixels, in the paper's t."""
    root, deviation = math.sqrt(BAR[t]), math.sqrt(1 - BAR[t])
    second = output[2:] if len(output) == 4 else output
    pixels = zip(*(part.flatten().tolist() for part in (x_0, eps, output[:2], second)), strict=True)
    terms = [
        term_by_hand(x, root * x + deviation * e, value, other, t, prediction, variance)
        for x, e, value, other in pixels
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_bound_is_eqs_5_to_13(prediction: Prediction, variance: Variance) -> None:
    x_0, eps = levels(0), randn(1)
    p = ReverseProcess(
        denoiser=network(variance), schedule=SCHEDULE, config=ReverseConfig(prediction=prediction, variance=variance)
    )
    loss = loss_per_image(p, x_0, EVERY_T, eps, LossConfig(objective="bound"))
    output = p.denoiser(q_sample(x_0, EVERY_T, eps, SCHEDULE), EVERY_T)
    for t in (1, 2, 5, T):
        expected = bound_by_hand(x_0[t - 1], eps[t - 1], output[t - 1], t, prediction, variance)
        assert float(loss[t - 1]) == pytest.approx(T * expected, rel=1e-8), t


def test_the_prior_term_is_the_kl_of_eq_5() -> None:
    x_0 = levels(0, rows=3)
    ours = prior_term(x_0, SCHEDULE)
    for image, value in zip(x_0, ours.tolist(), strict=True):
        pixels = [stats.norm(math.sqrt(BAR[T]) * x, math.sqrt(1 - BAR[T])) for x in image.flatten().tolist()]
        assert value == pytest.approx(sum(kl_in_bits(last, stats.norm()) for last in pixels) / len(pixels), rel=1e-9)


def test_no_prior_term_is_left_where_the_schedule_ends_in_noise() -> None:
    assert not bool(prior_term(levels(0), make_schedule(ScheduleConfig(name="jsd", num_timesteps=5))).any())


@pytest.mark.parametrize("variance", VARIANCES)
def test_all_t_average_to_the_bound(variance: Variance) -> None:
    """T times the term, averaged over every t, is the sum of the terms: what a uniform t estimates without bias."""
    p = ReverseProcess(denoiser=network(variance), schedule=SCHEDULE, config=ReverseConfig(variance=variance))
    image, eps = levels(0, rows=1), randn(1)
    losses = loss_per_image(p, image.expand(T, -1, -1, -1), EVERY_T, eps, LossConfig(objective="bound"))
    bound = variational_bound(p, image, lambda t: eps[t : t + 1], clip="none")
    assert float(losses.mean()) == pytest.approx(float(bound.terms.sum()), rel=1e-12)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_hybrid_is_simple_and_a_little_of_the_bound(variance: Variance) -> None:
    x_0, eps = levels(0), randn(1)
    p = ReverseProcess(denoiser=network(variance), schedule=SCHEDULE, config=ReverseConfig(variance=variance))
    simple, bound, hybrid = (
        loss_per_image(p, x_0, EVERY_T, eps, LossConfig(objective=name, hybrid_weight=0.01))
        for name in ("simple", "bound", "hybrid")
    )
    torch.testing.assert_close(hybrid, simple + 0.01 * bound, rtol=1e-12, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_the_bounds_part_of_hybrid_moves_the_variance_alone(prediction: Prediction, variance: Variance) -> None:
    x_0, eps = levels(0), randn(1)
    gradients = {}
    for name in ("simple", "bound", "hybrid"):
        output = bend(randn(2), EVERY_T).requires_grad_()
        p = of_output(output, prediction=prediction, variance=variance)
        loss_per_image(p, x_0, EVERY_T, eps, LossConfig(objective=name, hybrid_weight=0.5)).sum().backward()
        gradients[name] = output.grad[:, :2], output.grad[:, 2:]
    (simple, nothing), (_, bound), (mean, variance_part) = (gradients[name] for name in ("simple", "bound", "hybrid"))
    assert not bool(nothing.any())
    torch.testing.assert_close(mean, simple, rtol=1e-12, atol=0)
    torch.testing.assert_close(variance_part, 0.5 * bound, rtol=1e-12, atol=1e-12)
    assert bool((bound != 0).all())


@pytest.mark.parametrize("objective", get_args(Objective))
def test_every_objective_is_least_for_the_true_answer(objective: Objective) -> None:
    """A step along the gradient's opposite lowers each, and the true x_0 lowers them further."""
    x_0, eps = levels(0), randn(1)
    variance = "learned_range" if objective == "hybrid" else "fixed_large"
    config = LossConfig(objective=objective)
    output = network(variance)(randn(2), EVERY_T).requires_grad_()
    p = of_output(output, variance=variance)
    losses = loss_per_image(p, x_0, EVERY_T, eps, config)
    losses.sum().backward()
    step = 1e-4 * output.grad / output.grad.abs().amax(dim=(1, 2, 3), keepdim=True)
    lower = loss_per_image(of_output((output - step).detach(), variance=variance), x_0, EVERY_T, eps, config)
    truth = torch.cat((eps, torch.zeros_like(eps)), dim=1)[:, : output.shape[1]]
    least = loss_per_image(of_output(truth, variance=variance), x_0, EVERY_T, eps, config)
    assert bool((lower < losses).all())
    assert bool((least < lower).all())


@pytest.mark.parametrize("spoken", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("objective", get_args(Objective))
def test_networks_of_another_precision_train_in_the_images_type(objective: Objective, spoken: torch.dtype) -> None:
    variance = "learned_range" if objective == "hybrid" else "fixed_small"
    p = ReverseProcess(
        denoiser=lambda x_t, t: network(variance)(x_t, t).to(spoken),
        schedule=SCHEDULE,
        config=ReverseConfig(variance=variance),
    )
    loss = loss_per_image(p, levels(0).float(), EVERY_T, randn(1).float(), LossConfig(objective=objective))
    assert loss.dtype == torch.float32
    assert bool(loss.isfinite().all())


def test_float32_training_on_the_bound_has_float64s_gradients() -> None:
    """On the paper's schedule, for a network that knows nothing yet: at all t to 1 in 1,000 of the largest."""
    schedule = make_schedule(ScheduleConfig())
    t = torch.tensor([0, 1, 2, 10, 100, 500, 998, 999])
    x_0, eps = levels(0, rows=8), randn(1, rows=8)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        output = randn(2, rows=8).to(dtype).requires_grad_()
        p = ReverseProcess(denoiser=lambda x_t, t, output=output: output, schedule=schedule)
        loss_per_image(p, x_0.to(dtype), t, eps.to(dtype), LossConfig(objective="bound")).sum().backward()
        gradients.append(output.grad.double())
    exact, rounded = gradients
    assert float(((rounded - exact).abs() / exact.abs().amax(dim=(1, 2, 3), keepdim=True)).max()) < 1e-3


@pytest.mark.parametrize(
    ("loss", "reverse", "message"),
    [
        ("simple", "learned", "variance is learned and loss.objective is simple, which does not see the variance"),
        ("min_snr", "learned_range", "variance is learned_range and loss.objective is min_snr, which does not see"),
        (
            "hybrid",
            "fixed_small",
            "objective is hybrid and reverse.variance is fixed_small, which the bound's part cannot",
        ),
        (
            "hybrid",
            "fixed_large",
            "objective is hybrid and reverse.variance is fixed_large, which the bound's part cannot",
        ),
    ],
)
def test_objectives_that_do_not_fit_the_variance_are_refused(loss: Objective, reverse: Variance, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_objective(LossConfig(objective=loss), ReverseConfig(variance=reverse))


def test_all_other_objectives_fit() -> None:
    for objective in get_args(Objective):
        for variance in VARIANCES:
            learned = variance.startswith("learned")
            if objective == "bound" or learned == (objective == "hybrid"):
                check_objective(LossConfig(objective=objective), ReverseConfig(variance=variance))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hybrid_weight": 0.0}, "loss.hybrid-weight is 0.0; expected more than 0"),
        ({"min_snr_gamma": -1.0}, "loss.min-snr-gamma is -1.0; expected more than 0"),
        ({"min_snr_gamma": math.nan}, "loss.min-snr-gamma is nan; expected more than 0"),
    ],
)
def test_a_config_out_of_range_is_refused(fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**fields)
