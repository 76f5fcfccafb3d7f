"""How often the 95% intervals hold what they estimate, over repetitions with Gaussians of 16 and 64 dimensions.

    OMP_NUM_THREADS=1 .venv/bin/python tests/benchmarks/interval_coverage.py --repetitions 2000

What a figure estimates is its expectation at that number of images, taken as the mean over the repetitions: known to 1 /
sqrt(repetitions) of the figure's own deviation, which moves a coverage by less than 0.1%. For training seeds, means and
FD-infinity it is known exactly. Reference images are z, generated ones 1.2 z + 0.2 where nothing else is said, z standard
normal; "another" model's are those with a little noise. Of 2,000 it takes some 5 minutes.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ddpm_core.evaluation.blocks import group_bounds
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance, merge_all
from ddpm_core.evaluation.frechet_infinity import frechet_infinity
from ddpm_core.evaluation.inception_score import ScoreSums
from ddpm_core.evaluation.intervals import (
    GROUPS,
    Interval,
    difference,
    interval,
    jackknife,
    leave_one_out,
    of_mean,
)
from ddpm_core.evaluation.kid import kernel_sums, kid, kid_without_groups, sums_in_groups
from ddpm_core.evaluation.manifold import balls_around, held_by_balls, nearest_squared

COLUMNS = (
    "figure",
    "of",
    "mean",
    "its deviation",
    "repetitions",
    "interval holds, %",
    "all below, %",
    "all above, %",
    "error told / true",
    "s",
)
Repetition = Callable[[torch.Generator], dict[str, Interval]]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Figures that one draw of images gives, each with its interval."""

    title: str
    once: Repetition
    share: float = 1.0
    """Of the repetitions that are asked for."""
    expected: dict[str, float] = field(default_factory=dict)
    """What figures estimate, where it is known."""


def normal(count: int, dimensions: int, generator: torch.Generator, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return scale * torch.randn(count, dimensions, generator=generator, dtype=torch.float64) + shift


def held_set(count: int, dimensions: int) -> Tensor:
    """Reference images that stay the same."""
    return normal(count, dimensions, torch.Generator().manual_seed(10**6))


def kid_experiment(n: int, d: int, scale: float, shift: float) -> Experiment:
    reference = held_set(n, d)

    def once(generator: torch.Generator) -> dict[str, Interval]:
        x, y, z = normal(n, d, generator, scale, shift), normal(n, d, generator), normal(n, d, generator)
        drawn, sums = kid(kernel_sums(x, y)), kernel_sums(x, reference)
        held = kid(sums)
        other = 1.02 * x + 0.3 * z  # another model, whose images of the same seeds are alike
        of_other = kernel_sums(other, reference)
        left_out = kid_without_groups(sums, sums_in_groups(x, GROUPS), GROUPS)
        other_left_out = kid_without_groups(of_other, sums_in_groups(other, GROUPS), GROUPS)
        return {
            "KID, reference drawn too": interval(drawn.value, drawn.variance**0.5, n - 1),
            "KID, reference held": interval(held.value, held.variance_generated**0.5, n - 1),
            "KID, reference held, 20 groups": jackknife(held.value, left_out),
            "KID of one model - another's": difference(held.value, left_out, kid(of_other).value, other_left_out),
        }

    return Experiment(title=f"{n} images, d = {d}, generated {scale} z + {shift}", once=once)


def frechet_experiment(n: int, d: int) -> Experiment:
    reference = FeatureStats.from_features(held_set(2000, d))

    def once(generator: torch.Generator) -> dict[str, Interval]:
        x, z = normal(n, d, generator, 1.2, 0.2), normal(n, d, generator)
        value, left_out = with_groups(x)
        other_value, other_left_out = with_groups(1.02 * x + 0.3 * z)
        return {
            "FD, reference held": jackknife(value, left_out),
            "FD of one model - another's": difference(value, left_out, other_value, other_left_out),
        }

    def with_groups(x: Tensor) -> tuple[float, np.ndarray]:
        parts = [FeatureStats.from_features(x[a:b]) for a, b in group_bounds(n, GROUPS)]
        left_out = [frechet_distance(stats, reference) for stats in leave_one_out(parts, FeatureStats.merge)]
        return frechet_distance(merge_all(parts), reference), np.array(left_out)

    return Experiment(title=f"{n} images, d = {d}", once=once)


def infinity_experiment(n: int, d: int) -> Experiment:
    count = 10**9
    reference = FeatureStats(count=count, mean=np.zeros(d), m2=np.eye(d) * (count - 1))

    def once(generator: torch.Generator) -> dict[str, Interval]:
        x = normal(n, d, generator, 1.2, 0.2)
        parts = [FeatureStats.from_features(x[a:b]) for a, b in group_bounds(n, GROUPS)]

        def by_parts(chosen: np.ndarray) -> float:
            smallest = max(2 * d, n // 100 * len(chosen))  # a fifth of what there is
            return frechet_infinity([parts[g] for g in chosen], reference, smallest=smallest).value

        every = np.arange(GROUPS)
        value = by_parts(every)
        left_out = [by_parts(np.delete(every, g)) for g in range(GROUPS)]
        return {"FD-infinity about the true FD": jackknife(value, np.array(left_out))}

    true = d * (0.2**2 + 0.2**2)
    expected = {"FD-infinity about the true FD": true}
    return Experiment(title=f"{n} images, d = {d}", once=once, share=0.25, expected=expected)


def manifold_experiment(n: int, d: int, scale: float, shift: float) -> Experiment:
    real = held_set(n, d)
    radii = nearest_squared(real, [real], 5, first_row=0)

    def once(generator: torch.Generator) -> dict[str, Interval]:
        x = normal(n, d, generator, scale, shift)
        found = per_image(x)
        kept = [torch.cat([x[:a], x[b:]]) for a, b in group_bounds(n, GROUPS)]
        left_out = [{name: values.mean() for name, values in per_image(part).items()} for part in kept]
        out = {
            f"{name}, 20 groups": jackknife(float(values.mean()), np.array([float(each[name]) for each in left_out]))
            for name, values in found.items()
        }
        for name in ("precision", "density"):
            out[f"{name}, over images"] = of_mean(found[name].tolist())
        return out

    def per_image(x: Tensor) -> dict[str, Tensor]:
        reach = nearest_squared(x, [x], 3, first_row=0)[:, 2]
        return {
            "precision": (balls_around(x, [real], radii[:, [2]])[:, 0] > 0).double(),
            "recall": (balls_around(real, [x], reach[:, None])[:, 0] > 0).double(),
            "density": balls_around(x, [real], radii[:, [4]])[:, 0].double() / 5,
            "coverage": (held_by_balls(real, radii[:, 4], [x]) > 0).double(),
        }

    return Experiment(title=f"{n} images, d = {d}, generated {scale} z + {shift}, reference held", once=once, share=0.2)


def score_experiment(n: int, classes: int) -> Experiment:
    def once(generator: torch.Generator) -> dict[str, Interval]:
        logits = normal(n, classes, generator, 3.0)
        parts = [ScoreSums.from_logits(logits[a:b]) for a, b in group_bounds(n, GROUPS)]
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.merge(part)
        left_out = np.array([sums.score for sums in leave_one_out(parts, ScoreSums.merge)])
        return {"Inception score": jackknife(whole.score, left_out)}

    return Experiment(title=f"{n} images, {classes} classes", once=once)


def mean_experiment(n: int) -> Experiment:
    def once(generator: torch.Generator) -> dict[str, Interval]:
        gamma = -torch.rand(n, 2, generator=generator, dtype=torch.float64).log().sum(dim=1)
        return {"mean of gamma(2) values": of_mean(gamma.tolist())}

    return Experiment(title=f"{n} images", once=once, expected={"mean of gamma(2) values": 2.0})


def seeds_experiment(n: int) -> Experiment:
    def once(generator: torch.Generator) -> dict[str, Interval]:
        return {"mean over training seeds": of_mean(normal(n, 1, generator)[:, 0].tolist())}

    return Experiment(title=f"{n} seeds, normal", once=once, expected={"mean over training seeds": 0.0})


def measure(experiment: Experiment, repetitions: int) -> None:
    """Print a row for each of its figures."""
    began, number = time.perf_counter(), max(2, round(repetitions * experiment.share))
    found = [experiment.once(torch.Generator().manual_seed(seed)) for seed in range(number)]
    took = time.perf_counter() - began
    for name in found[0]:
        intervals = [each[name] for each in found]
        values = np.array([each.value for each in intervals])
        target = experiment.expected.get(name, float(values.mean()))
        below, above = (
            np.mean([each.high < target for each in intervals]),
            np.mean([each.low > target for each in intervals]),
        )
        coverage = 1 - below - above
        error = (coverage * (1 - coverage) / number) ** 0.5
        told = np.sqrt(np.mean([each.standard_error**2 for each in intervals])) / values.std(ddof=1)
        row = (
            name,
            experiment.title,
            f"{values.mean():.4g}",
            f"{values.std(ddof=1):.2g}",
            str(number),
            f"{100 * coverage:.1f} +- {100 * error:.1f}",
            f"{100 * below:.1f}",
            f"{100 * above:.1f}",
            f"{told:.2f}",
            f"{took:.0f}",
        )
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--only", default="", help="figures whose experiment's name holds this")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    experiments = {
        "mean": [mean_experiment(64), mean_experiment(1000)],
        "seeds": [seeds_experiment(2), seeds_experiment(5)],
        "score": [score_experiment(1000, 16), score_experiment(1000, 64)],
        "kid": [
            kid_experiment(300, 16, 1.2, 0.2),
            kid_experiment(300, 64, 1.2, 0.2),
            kid_experiment(300, 16, 1.0, 0.0),
        ],
        "fd": [frechet_experiment(n, d) for n, d in ((400, 16), (2000, 16), (400, 64), (2000, 64))],
        "infinity": [infinity_experiment(2000, 16)],
        "manifold": [manifold_experiment(200, 16, 1.2, 0.2), manifold_experiment(200, 64, 0.95, 0.05)],
    }
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    for name, group in experiments.items():
        for experiment in group if settings.only in name else []:
            measure(experiment, settings.repetitions)


if __name__ == "__main__":
    main()
