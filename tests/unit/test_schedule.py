"""The schedules against the papers' formulas in 40 digits, against diffusers, and against closed forms."""

import itertools
import math
from fractions import Fraction
from functools import cache
from typing import get_args

import mpmath as mp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from ddpm_core.diffusion.respacing import Spacing, respace, spaced_timesteps
from ddpm_core.diffusion.schedule import (
    NoiseSchedule,
    ScheduleConfig,
    ScheduleName,
    make_schedule,
    schedule_from_betas,
    zero_terminal_snr,
)

NAMES = [name for name in get_args(ScheduleName) if name != "given"]
"""Those that are formulas."""
START, END = mp.mpf("1e-4"), mp.mpf("0.02")
DIGITS = mp.workdps(40)
# Of our float64: 1 - beta keeps beta to 1e-16 absolutely, so that 1 - alpha_bar at t = 0, about 1e-4, is good to 1e-12.
RELATIVE = 5e-12


def spread(start, end, count: int) -> list:
    """numpy.linspace in 40 digits."""
    return [start + (end - start) * i / max(1, count - 1) for i in range(count)]


def exact_betas(name: str, T: int, scale: float = 1) -> list:
    """The papers' formulas; start and end as the published code names them."""
    start, end = START * scale, END * scale

    def f(t: int):  # Nichol and Dhariwal 2021, Eq. 17
        return mp.cos((mp.mpf(t) / T + mp.mpf("0.008")) / mp.mpf("1.008") * mp.pi / 2) ** 2

    def warmup(share: float) -> list:  # _warmup_beta of the published code
        rising = int(T * share)
        return spread(start, end, rising) + [end] * (T - rising)

    formulas = {
        "linear": lambda: spread(start, end, T),
        "quadratic": lambda: [root**2 for root in spread(mp.sqrt(start), mp.sqrt(end), T)],
        "constant": lambda: [end] * T,
        "warmup10": lambda: warmup(0.1),
        "warmup50": lambda: warmup(0.5),
        "jsd": lambda: [1 / steps for steps in spread(mp.mpf(T), mp.mpf(1), T)],
        "cosine": lambda: [min(1 - f(t + 1) / f(t), mp.mpf("0.999")) for t in range(T)],
        "sigmoid": lambda: [start + (end - start) / (1 + mp.exp(-x)) for x in spread(mp.mpf(-6), mp.mpf(6), T)],
    }
    return formulas[name]()


@cache
def exact_fields(name: str, T: int) -> dict[str, list]:
    """Eqs. 4, 6 and 7 and what is named after them, in 40 digits."""
    rows, bar = [], mp.mpf(1)
    with DIGITS:
        for beta in exact_betas(name, T):
            prev, bar = bar, bar * (1 - beta)
            rows.append(
                {
                    "betas": beta,
                    "alphas": 1 - beta,
                    "alpha_bar": bar,
                    "alpha_bar_prev": prev,
                    "snr": bar / (1 - bar),
                    "log_snr": mp.log(bar / (1 - bar)) if bar else -mp.inf,
                    "posterior_variance": (1 - prev) / (1 - bar) * beta,
                    "posterior_mean_coef_x_0": mp.sqrt(prev) * beta / (1 - bar),
                    "posterior_mean_coef_x_t": mp.sqrt(1 - beta) * (1 - prev) / (1 - bar),
                }
            )
        fields = {field: [row[field] for row in rows] for field in rows[0]}
        variance = fields["posterior_variance"]
        floored = [variance[1] if T > 1 else fields["betas"][0], *variance[1:]]
        return {**fields, "posterior_log_variance_clipped": [mp.log(value) for value in floored]}


def relative_error(ours: float, exact, field: str) -> float:
    """Of a logarithm the absolute error, which is the relative one of what it is the logarithm of."""
    if ours == exact:  # zeros, ones and infinities among them
        return 0.0
    return float(abs(ours - exact) / (1 if "log" in field else abs(exact)))


@pytest.mark.parametrize("T", [1, 2, 10, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_the_papers_at_every_t(name: str, T: int) -> None:
    schedule = make_schedule(ScheduleConfig(name=name, num_timesteps=T))
    assert schedule.num_timesteps == T
    with DIGITS:
        for field, exact in exact_fields(name, T).items():
            ours = getattr(schedule, field)
            assert ours.dtype == torch.float64
            pairs = zip(ours.tolist(), exact, strict=True)
            errors = [relative_error(mine, value, field) for mine, value in pairs]
            assert max(errors) < RELATIVE, (field, errors.index(max(errors)))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("linear", "linear"), ("quadratic", "scaled_linear"), ("cosine", "squaredcos_cap_v2"), ("sigmoid", "sigmoid")],
)
@pytest.mark.parametrize("T", [10, 1000])
def test_diffusers_has_the_same_betas(name: str, theirs: str, T: int) -> None:
    """Theirs are float32."""
    schedule = make_schedule(ScheduleConfig(name=name, num_timesteps=T, beta_start=8.5e-4, beta_end=0.012))
    scheduler = DDPMScheduler(num_train_timesteps=T, beta_schedule=theirs, beta_start=8.5e-4, beta_end=0.012)
    torch.testing.assert_close(schedule.betas, scheduler.betas.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(schedule.alpha_bar, scheduler.alphas_cumprod.double(), rtol=2e-4, atol=0)


@pytest.mark.parametrize("T", [1, 2, 7, 100])
def test_jsd_is_linear_in_alpha_bar(T: int) -> None:
    """1 - 1/(T - s) multiply up to (T - 1 - t) / T, in closed form; the last step leaves nothing."""
    schedule = make_schedule(ScheduleConfig(name="jsd", num_timesteps=T))
    expected = (T - 1 - torch.arange(T, dtype=torch.float64)) / T
    torch.testing.assert_close(schedule.alpha_bar, expected, rtol=1e-13, atol=0)
    assert schedule.ends_in_noise
    assert float(schedule.log_snr[-1]) == -math.inf
    for name in ("posterior_variance", "posterior_mean_coef_x_0", "posterior_mean_coef_x_t", "snr"):
        assert bool(getattr(schedule, name).isfinite().all()), name
    # x_T tells nothing, so that the posterior is q(x_{T-1} | x_0)
    prev = schedule.alpha_bar_prev[-1]
    assert float(schedule.posterior_mean_coef_x_t[-1]) == 0
    assert float(schedule.posterior_mean_coef_x_0[-1]) == pytest.approx(float(prev.sqrt()))
    assert float(schedule.posterior_variance[-1]) == pytest.approx(1 - float(prev))


def test_only_what_float32_takes_for_noise_ends_in_noise() -> None:
    assert not any(make_schedule(ScheduleConfig(name=name)).ends_in_noise for name in NAMES if name != "jsd")
    halving = torch.full((150,), 0.5, dtype=torch.float64)  # alpha_bar = 2^-150, float32's least is 2^-126
    assert schedule_from_betas(halving).ends_in_noise
    assert not schedule_from_betas(halving[:126]).ends_in_noise


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("jsd", "cosine")])
def test_rescaled_betas_destroy_as_much_in_fewer_steps(name: str) -> None:
    whole = make_schedule(ScheduleConfig(name=name))
    fewer = make_schedule(ScheduleConfig(name=name, num_timesteps=250, rescale=True))
    with DIGITS:
        exact = torch.tensor([float(beta) for beta in exact_betas(name, 250, scale=4)], dtype=torch.float64)
    torch.testing.assert_close(fewer.betas, exact, rtol=RELATIVE, atol=0)
    # log alpha_bar is -sum(beta) and, second, the betas' squares: of 0.08 at the most
    assert float(fewer.log_snr[-1]) == pytest.approx(float(whole.log_snr[-1]), rel=0.05)
    same = make_schedule(ScheduleConfig(name=name, rescale=True))
    torch.testing.assert_close(same.betas, whole.betas, rtol=0, atol=0)


@pytest.mark.parametrize("last", [0.3, 1.0])
def test_given_betas_are_taken_as_they_are(last: float) -> None:
    betas = (0.1, 0.05, last)
    schedule = make_schedule(ScheduleConfig(name="given", betas=betas, num_timesteps=3))
    assert schedule.betas.dtype == torch.float64
    assert schedule.betas.tolist() == list(betas)
    assert schedule.ends_in_noise == (last == 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("T", [2, 1000])
def test_zero_terminal_snr_shifts_and_scales_the_root_of_alpha_bar(name: str, T: int) -> None:
    """Against Algorithm 1 of Lin et al. 2024 in 40 digits."""
    before = make_schedule(ScheduleConfig(name=name, num_timesteps=T))
    after = schedule_from_betas(zero_terminal_snr(before.betas))
    with DIGITS:
        roots = [mp.sqrt(bar) for bar in exact_fields(name, T)["alpha_bar"]]
        exact = [float((root - roots[-1]) * roots[0] / (roots[0] - roots[-1])) for root in roots]
    torch.testing.assert_close(after.alpha_bar.sqrt(), torch.tensor(exact, dtype=torch.float64), rtol=1e-9, atol=0)
    assert float(after.betas[-1]) == 1
    assert after.ends_in_noise
    again = zero_terminal_snr(after.betas)
    torch.testing.assert_close(again, after.betas, rtol=1e-9, atol=1e-15)


def test_zero_terminal_snr_is_theirs() -> None:
    """Theirs are float32."""
    betas = make_schedule(ScheduleConfig()).betas
    found = zero_terminal_snr(betas)
    theirs = DDPMScheduler(rescale_betas_zero_snr=True)
    torch.testing.assert_close(found, theirs.betas.double(), rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="the schedule has 1 betas; expected 2 or more"):
        zero_terminal_snr(betas[:1])


def test_the_cosine_schedule_is_clipped() -> None:
    assert float(make_schedule(ScheduleConfig(name="cosine")).betas[-1]) == 0.999


def test_a_schedule_of_one_step_has_a_finite_log_variance() -> None:
    schedule = make_schedule(ScheduleConfig(num_timesteps=1))
    assert float(schedule.posterior_variance[0]) == 0
    assert float(schedule.posterior_log_variance_clipped[0]) == pytest.approx(math.log(1e-4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_timesteps": 0}, "num-timesteps is 0; expected 1 or more"),
        ({"beta_start": 0.0}, "beta-start is 0.0; expected more than 0"),
        ({"beta_end": 1.0}, "beta-end is 1.0; expected more than 0 and less than 1"),
        ({"beta_end": math.nan}, "beta-end is nan"),
        ({"name": "jsd", "rescale": True}, "rescale is set and jsd reads no beta"),
        ({"name": "cosine", "rescale": True}, "rescale is set and cosine reads no beta"),
        ({"name": "given"}, "betas has 0 numbers and schedule.name is given; expected 1000, as schedule.num-timesteps"),
        ({"name": "given", "betas": (0.1,), "num_timesteps": 2}, "betas has 1 numbers and .* expected 2, as"),
        ({"betas": (0.1,), "num_timesteps": 1}, "betas has 1 numbers and schedule.name is linear; expected none"),
        ({"name": "given", "betas": (1.0, 0.1), "num_timesteps": 2}, r"betas has 1.0 at t = 0; expected more than 0"),
        (
            {"name": "given", "betas": (0.1, 0.0), "num_timesteps": 2},
            r"betas has 0.0 at t = 1; .* \(1 at the last step",
        ),
        ({"name": "given", "betas": (0.1, math.nan), "num_timesteps": 2}, r"betas has nan at t = 1; expected"),
        (
            {"name": "given", "betas": (0.1,), "num_timesteps": 1, "rescale": True},
            "rescale is set and given reads no b",
        ),
    ],
)
def test_a_config_out_of_range_is_refused(fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**fields)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("jsd", "cosine")])
def test_a_rescaled_beta_of_1_or_more_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"makes betas up to 2 of 10 steps; expected less than 1"):
        make_schedule(ScheduleConfig(name=name, num_timesteps=10, rescale=True))


@pytest.mark.parametrize("beta_end", [0.1, 0.15])
def test_a_rescaled_beta_of_1_is_one_too_many(beta_end: float) -> None:
    """As a last beta 1 would be taken; that of a rescaled schedule is a mistake."""
    with pytest.raises(ValueError, match=f"makes betas up to {10 * beta_end:g} of 100 steps; expected less than 1"):
        make_schedule(ScheduleConfig(num_timesteps=100, beta_end=beta_end, rescale=True))


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_beta_out_of_range_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"beta at t = 1 is {bad}; expected"):
        schedule_from_betas(torch.tensor([0.1, bad, 0.2], dtype=torch.float64))


def test_a_beta_that_1_minus_beta_does_not_show_is_refused() -> None:
    """It would divide by 1 - alpha_bar = 0."""
    with pytest.raises(ValueError, match="beta at t = 0 is 1e-17; expected more than 1e-16"):
        make_schedule(ScheduleConfig(beta_start=1e-17))


def test_only_the_last_beta_may_be_1() -> None:
    assert float(schedule_from_betas(torch.tensor([0.1, 1.0], dtype=torch.float64)).alpha_bar[-1]) == 0


def test_betas_that_leave_nothing_before_the_end_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha_bar is 0 before the last of 1000 steps; expected smaller betas"):
        make_schedule(ScheduleConfig(name="constant", beta_end=0.9))


def test_the_last_signal_may_be_float64s_least() -> None:
    """Half is kept at each step: 2^-1074 is the least number above 0."""
    schedule = make_schedule(ScheduleConfig(name="constant", beta_end=0.5, num_timesteps=1075))
    assert float(schedule.alpha_bar[-2]) == 2.0**-1074
    with pytest.raises(ValueError, match="alpha_bar is 0 before the last of 1076 steps"):
        make_schedule(ScheduleConfig(name="constant", beta_end=0.5, num_timesteps=1076))


def test_betas_of_float32_are_computed_with_in_float64() -> None:
    betas = torch.tensor([0.1, 0.2])
    exact = schedule_from_betas(betas.double())
    for name, values in vars(schedule_from_betas(betas)).items():
        assert torch.equal(values, getattr(exact, name)), name
        assert values.dtype == torch.float64


def test_no_betas_are_refused() -> None:
    with pytest.raises(ValueError, match="0 betas; expected 1 or more"):
        schedule_from_betas(torch.tensor([], dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_respace_keeps_alpha_bar(name: str) -> None:
    schedule = make_schedule(ScheduleConfig(name=name))
    for timesteps in ([0, 999], [3, 500, 501, 998], [999], list(range(0, 1000, 7)), list(range(1000))):
        spaced = respace(schedule, timesteps)
        torch.testing.assert_close(spaced.alpha_bar, schedule.alpha_bar[timesteps], rtol=1e-12, atol=0)
        torch.testing.assert_close(1 - spaced.alphas, spaced.betas, rtol=0, atol=0)
    assert spaced.ends_in_noise is schedule.ends_in_noise


def test_respace_to_all_steps_changes_nothing() -> None:
    schedule = make_schedule(ScheduleConfig())
    for name, values in vars(respace(schedule, range(1000))).items():
        torch.testing.assert_close(values, getattr(schedule, name), rtol=1e-10, atol=0)


def test_respace_over_a_gap_that_float64_takes_for_1() -> None:
    """From alpha_bar = 2^-1 to 2^-80: beta rounds to 1, and alpha_bar is kept all the same."""
    schedule = make_schedule(ScheduleConfig(name="constant", beta_end=0.5, num_timesteps=100))
    spaced = respace(schedule, [0, 79, 99])
    torch.testing.assert_close(spaced.alpha_bar, torch.tensor([0.5, 2.0**-80, 2.0**-100], dtype=torch.float64))
    assert float(spaced.betas[1]) == 1
    assert float(spaced.posterior_mean_coef_x_0[1]) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("timesteps", [[], [-1, 3], [3, 10], [3, 3], [5, 3]])
def test_respace_refuses_other_timesteps(timesteps: list[int]) -> None:
    with pytest.raises(
        ValueError, match=r"the timesteps are \[.*\]; expected one or more, strictly ascending, in 0 to 9"
    ):
        respace(make_schedule(ScheduleConfig(num_timesteps=10)), timesteps)


@pytest.mark.parametrize("spacing", get_args(Spacing))
@pytest.mark.parametrize("T", [1, 2, 3, 10, 150])
def test_any_number_of_spaced_timesteps_are_distinct(spacing: Spacing, T: int) -> None:
    for S in range(1, T + 1):
        steps = spaced_timesteps(T, S, spacing)
        assert len(steps) == S
        assert steps == sorted(set(steps))
        assert steps[0] >= 0
        assert steps[-1] < T
    assert spaced_timesteps(T, T, spacing) == list(range(T))


@pytest.mark.parametrize(
    ("spacing", "S", "expected"),
    [
        ("linspace", 1, [9]),
        ("linspace", 2, [0, 9]),
        ("linspace", 3, [0, 4, 9]),  # 4.5: the half goes down
        ("linspace", 4, [0, 3, 6, 9]),
        ("leading", 1, [0]),
        ("leading", 4, [0, 2, 5, 7]),  # 0, 2.5, 5, 7.5 rounded down
        ("leading", 6, [0, 1, 3, 5, 6, 8]),
        ("trailing", 1, [9]),
        ("trailing", 4, [1, 4, 7, 9]),  # 2.5, 5, 7.5, 10, rounded half to even, less 1
        ("quadratic", 1, [0]),
        ("quadratic", 3, [0, 2, 8]),
        ("quadratic", 5, [0, 1, 2, 4, 8]),  # 0, 0.5, 2, 4.5, 8: the second would coincide with the first
    ],
)
def test_spaced_timesteps_by_hand(spacing: Spacing, S: int, expected: list[int]) -> None:
    assert spaced_timesteps(10, S, spacing) == expected


def test_timesteps_are_spaced_by_linspace_unless_it_is_said() -> None:
    assert spaced_timesteps(10, 4) == [0, 3, 6, 9]


def exact_steps(spacing: Spacing, T: int, S: int) -> list[Fraction]:
    """Before they are rounded, ascending."""
    match spacing:
        case "linspace":
            return [Fraction((T - 1) * i, S - 1) for i in range(S)]
        case "leading":
            return [Fraction(T * i, S) for i in range(S)]
        case "trailing":
            return [Fraction(T * (i + 1), S) - 1 for i in range(S)]
    raise AssertionError(spacing)


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_spaced_timesteps_are_those_of_diffusers_but_for_halves(spacing: Spacing) -> None:
    """What lies halfway between two steps may go down here and up there; nothing else may differ.

    Theirs of trailing are counted down in floats, which at times gives one more than was asked for: those are left out.
    """
    T, compared, halves = 200, 0, 0
    scheduler = DDIMScheduler(num_train_timesteps=T, timestep_spacing=spacing)
    for S in range(2, T + 1):
        scheduler.set_timesteps(S)
        theirs = scheduler.timesteps.tolist()[::-1]
        exact, ours = exact_steps(spacing, T, S), spaced_timesteps(T, S, spacing)
        assert all(abs(step - value) <= Fraction(1, 2) for step, value in zip(ours, exact, strict=True))
        if len(theirs) != S:
            continue
        compared += 1
        for value, mine, other in zip(exact, ours, theirs, strict=True):
            if mine != other:
                halves += 1
                assert abs(mine - value) == abs(other - value) == Fraction(1, 2)
    assert compared == 199 or (spacing == "trailing" and compared > 180)
    assert halves > 0


def test_leading_is_that_of_diffusers_where_S_divides_T_and_does_not_begin_low_elsewhere() -> None:
    """Theirs takes T // S for the gap: of 501 steps in 1,000 the first would be 500, with much of the image left in it."""
    T, scheduler = 200, DDIMScheduler(num_train_timesteps=200, timestep_spacing="leading")
    for S in range(1, T + 1):
        scheduler.set_timesteps(S)
        theirs, ours = scheduler.timesteps.tolist()[::-1], spaced_timesteps(T, S, "leading")
        assert ours == theirs or T % S > 0
        assert all(0 <= value - step < 1 for step, value in zip(ours, exact_steps("leading", T, S), strict=True))
    assert spaced_timesteps(1000, 501, "leading")[-1] == 998


@pytest.mark.parametrize("S", [10, 20, 50, 100])
def test_quadratic_timesteps_are_those_of_ddim_but_for_repeated_ones(S: int) -> None:
    """The published code's formula for CIFAR-10; its first steps coincide from S = 50 on."""
    theirs = [int(step) for step in np.linspace(0, np.sqrt(1000 * 0.8), S) ** 2]
    ours = spaced_timesteps(1000, S, "quadratic")
    assert ours == [max(place, step) for place, step in enumerate(theirs)]
    assert all(later - step >= 1 for step, later in itertools.pairwise(ours))


@pytest.mark.parametrize("spacing", get_args(Spacing))
@pytest.mark.parametrize("S", [0, 11])
def test_other_numbers_of_steps_are_refused(spacing: Spacing, S: int) -> None:
    with pytest.raises(ValueError, match=f"{S} sampling steps of a schedule of 10; expected 1 to 10"):
        spaced_timesteps(10, S, spacing)


def test_to_moves_every_field() -> None:
    moved = make_schedule(ScheduleConfig(num_timesteps=3)).to("meta")
    assert isinstance(moved, NoiseSchedule)
    assert len(vars(moved)) == 9
    assert all(tensor.is_meta for tensor in vars(moved).values())
