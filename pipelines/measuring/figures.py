"""The figures of an evaluation, each with what it was measured on and how sure it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.evaluation.blocks import group_bounds
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.figures import Figure, jackknifed, number
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance
from ddpm_core.evaluation.frechet_infinity import Extrapolation, frechet_infinity
from ddpm_core.evaluation.intervals import GROUPS, Interval, interval, leave_one_out, of_mean
from ddpm_core.evaluation.kid import (
    NUM_SUBSETS,
    SUBSET_SIZE,
    KernelSums,
    kid,
    kid_subsets,
    kid_without_groups,
    sums_in_groups,
)
from ddpm_core.evaluation.manifold import K_DENSITY_COVERAGE, K_PRECISION_RECALL
from pipelines.measuring.features import Sums, Wanted, imported_reference, measure_features, real_features
from pipelines.measuring.image_sets import ImageSet
from pipelines.measuring.pairs import SMALLEST, Pairs, measure_pairs
from pipelines.measuring.wording import chosen_by, said
from pipelines.recipes.config import SampleStage

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureFigures:
    """What the features of generated images tell."""

    figures: tuple[Figure, ...]
    """The distance by which models are ranked comes first."""
    curve: Extrapolation | None
    """The distance against the number of images, if there are enough for one."""
    precision_recall: NDArray[np.float64] | None
    """[k, 2]: both by balls that reach to the 1st to k-th neighbour, if they were measured."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """What was measured, and how it is called."""

    features: Features
    index: DatasetIndex
    groups: list[Sums]
    """Of generated images; none where there are too few for an interval."""
    generated: Sums
    reference: FeatureStats
    whose: str
    """What the distance is held against, in words."""

    @property
    def dimensions(self) -> int:
        return len(self.reference.mean)

    def against(self, count: int, what: str = "generated") -> str:
        return f"{count:,} {what} images against {self.whose}"

    def few(self, count: int) -> str:
        """What to say beside a distance of so few images that their covariance has no full rank."""
        if count > self.dimensions:
            return ""
        return f"fewer images than the features' {self.dimensions:,} dimensions: much of it is bias"


def feature_figures(
    images: ImageSet, index: DatasetIndex, config: EvaluateConfig, store: str, features: Features, where: SampleStage
) -> FeatureFigures:
    """Figures of a set's first images against the training images, and those of real ones that were not trained on."""
    count, split = config.num_images, index.final_split
    num_floor = min(index.num_samples(split), count)
    num_pairs = min(config.num_pairs, count, index.num_samples("train"))
    num_pairs = num_pairs if num_pairs >= SMALLEST else 0
    bounds = group_bounds(count, GROUPS) if count >= 2 * GROUPS else []
    cuts = {first for first, _ in bounds} | {num_floor if num_floor >= 2 else count}
    wanted = Wanted(count=count, cuts=tuple(sorted(cuts - {0, count})), num_kept=num_pairs)
    measured = measure_features("measure samples", images, wanted, features, config.batch_size, where)
    train, real = real_features(index, "train", index.num_samples("train"), num_pairs, config, store, features, where)
    whose = f"{train.count:,} training images"
    if config.reference is not None:
        train = imported_reference(config.reference, index, features).stats
        whose = f"{config.reference}, declared to be {config.reference_protocol}"
    place = {edge: number for number, edge in enumerate(wanted.edges)}
    found = _Found(
        features=features,
        index=index,
        groups=[measured.between(place[first], place[end]) for first, end in bounds],
        generated=measured.total,
        reference=train,
        whose=whose,
    )
    figures = [_distance(found)]
    if num_floor >= 2:
        unseen, _ = real_features(index, split, num_floor, 0, config, store, features, where)
        same_n = measured.between(0, place[num_floor]).stats
        figures += _floor(found, unseen, same_n)
    curve = _curve(found)
    figures += _extrapolated(found, curve) + _inception_score(found)
    pairs = measure_pairs(measured.features, real) if num_pairs else None
    if pairs is not None:
        figures += _pair_figures(found, pairs, measured.features, real)
    return FeatureFigures(figures=tuple(figures), curve=curve, precision_recall=pairs.curve if pairs else None)


def distances_by_steps(
    sets: Sequence[tuple[str, int, ImageSet]],
    index: DatasetIndex,
    config: EvaluateConfig,
    store: str,
    features: Features,
    where: SampleStage,
) -> dict[str, list[tuple[int, float]]]:
    """By sampler, its steps and the distance that they reach; of as many images as the figures."""
    num_train = index.num_samples("train")
    train, _ = real_features(index, "train", num_train, 0, config, store, features, where)
    found: dict[str, list[tuple[int, float]]] = {}
    for name, steps, images in sets:
        what, wanted = f"measure {name} {steps}", Wanted(count=config.num_images)
        measured = measure_features(what, images, wanted, features, config.batch_size, where)
        found.setdefault(name, []).append((steps, frechet_distance(measured.total.stats, train)))
    return found


def _distance(found: _Found) -> Figure:
    stats = found.generated.stats
    left_out = (
        [frechet_distance(rest.stats, found.reference) for rest in leave_one_out(found.groups, Sums.merge)]
        if found.groups
        else []
    )
    return jackknifed(
        found.features.figure(stats.count),
        frechet_distance(stats, found.reference),
        np.array(left_out),
        found.against(stats.count),
        note=found.few(stats.count),
        headline=True,
    )


def _floor(found: _Found, unseen: FeatureStats, same_n: FeatureStats) -> list[Figure]:
    """What real images reach; and if there are fewer of them, what as many generated ones do, which compares with it."""
    split, few = found.index.final_split, found.few(unseen.count)
    note = said(
        f"{found.features.figure(unseen.count)} of real images that the model has not seen", chosen_by(found.index), few
    )
    floor = Figure(
        name="floor",
        value=frechet_distance(unseen, found.reference),
        of=found.against(unseen.count, split),
        note=note,
        headline=True,
    )
    if same_n.count == found.generated.stats.count:
        return [floor]
    why = f"{found.features.figure(same_n.count)} of as many as there are {split} images: fewer images raise it"
    value = frechet_distance(same_n, found.reference)
    return [Figure(name="same_n", value=value, of=found.against(same_n.count), note=said(why, few)), floor]


def _curve(found: _Found) -> Extrapolation | None:
    """None if there are not twice as many images in half of them as there are dimensions: no line in 1/N below that."""
    count, smallest = found.generated.stats.count, 2 * found.dimensions
    if not found.groups or count < 2 * smallest:
        return None
    parts = [group.stats for group in found.groups]
    return frechet_infinity(parts, found.reference, smallest=max(smallest, count // 10))


def _extrapolated(found: _Found, curve: Extrapolation | None) -> list[Figure]:
    if curve is None:
        return []
    of = f"{curve.counts[0]:,} to {found.against(int(curve.counts[-1]))}"
    note = "the distance that endless images would have; what is left of bias is of order 1/N^2"
    return [Figure(name=found.features.named("fd_infinity"), value=curve.value, of=of, note=note)]


def _inception_score(found: _Found) -> list[Figure]:
    scores = found.generated.scores
    if scores is None:
        return []
    without = leave_one_out(found.groups, Sums.merge) if found.groups else ()
    left_out = [rest.scores.score for rest in without if rest.scores]
    name, of = found.features.named("inception_score"), f"{scores.count:,} generated images"
    note = "higher is better; few images lower it"
    whole = jackknifed(name, scores.score, np.array(left_out), of, note=note)
    pairs = zip(found.groups[::2], found.groups[1::2], strict=True)
    splits = [both.scores.score for both in (one.merge(other) for one, other in pairs) if both.scores]
    if not splits:
        return [whole]
    note = f"the customary mean over {len(splits)} splits; their standard deviation is {number(float(np.std(splits)))}"
    return [whole, Figure(name=f"{name}_splits", value=float(np.mean(splits)), of=of, note=note)]


def _pair_figures(found: _Found, pairs: Pairs, generated: Array, real: Array) -> list[Figure]:
    n, m = len(generated), len(real)
    of, named = f"{n:,} generated and {m:,} training images", found.features.named
    balls = f"is the k-th real one, k = {K_DENSITY_COVERAGE}"
    precise = of_mean((pairs.balls[:, K_PRECISION_RECALL - 1] > 0).astype(np.float64))
    dense = of_mean(pairs.balls[:, K_DENSITY_COVERAGE - 1] / K_DENSITY_COVERAGE)
    return [
        _kid(pairs.kernel, generated, named("kid"), of),
        *_customary_kid(named("kid_subsets"), generated, real),
        _sure(
            precise,
            name=named("precision"),
            of=of,
            note=f"share of generated images among real ones, k = {K_PRECISION_RECALL}",
        ),
        Figure(
            name=named("recall"),
            value=pairs.manifold.recall,
            of=of,
            note=f"share of real images among generated ones, k = {K_PRECISION_RECALL}",
        ),
        _sure(
            dense,
            name=named("density"),
            of=of,
            note=f"real images that have a generated one as near as {balls}, over k",
        ),
        Figure(
            name=named("coverage"),
            value=pairs.manifold.coverage,
            of=of,
            note=f"share of real images with a generated one as near as {balls}",
        ),
    ]


def _kid(kernel: KernelSums, generated: Array, name: str, of: str) -> Figure:
    n, estimate = len(generated), kid(kernel)
    left_out: tuple[float, ...] = ()
    if n >= 2 * GROUPS:
        within = sums_in_groups(torch.from_numpy(generated), GROUPS)
        left_out = tuple(kid_without_groups(kernel, within, GROUPS).tolist())
    sure = interval(estimate.value, float(np.sqrt(estimate.variance_generated)), n - 1)
    return _sure(sure, name=name, of=of, left_out=left_out, note="unbiased, lower is closer; below 0 by chance")


def _customary_kid(name: str, generated: Array, real: Array) -> list[Figure]:
    """As other code prints it; none where there are fewer images than a subset has."""
    if min(len(generated), len(real)) < SUBSET_SIZE:
        return []
    mean, deviation = kid_subsets(torch.from_numpy(generated), torch.from_numpy(real))
    note = f"the customary mean over subsets; their standard deviation is {number(deviation)}"
    return [Figure(name=name, value=mean, of=f"{NUM_SUBSETS} subsets of {SUBSET_SIZE:,} images", note=note)]


def _sure(found: Interval, **rest: Any) -> Figure:
    return Figure(value=found.value, low=found.low, high=found.high, **rest)
