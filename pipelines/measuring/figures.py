"""The figures of an evaluation, each with what it was measured on and how sure it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.evaluation.blocks import group_bounds
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.figures import Figure, jackknifed, number
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance
from ddpm_core.evaluation.frechet_infinity import Extrapolation, frechet_infinity
from ddpm_core.evaluation.inception_score import score_of_splits
from ddpm_core.evaluation.intervals import GROUPS, leave_one_out
from pipelines.measuring.features import Sums, Wanted, imported_reference, measure_features, real_features
from pipelines.measuring.image_sets import ImageSet
from pipelines.measuring.pairs import SMALLEST, measure_pairs, pair_figures
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

    @property
    def without_groups(self) -> Iterator[Sums]:
        """Of all generated images but each group's in turn; none where there are no groups."""
        return leave_one_out(self.groups, Sums.merge) if self.groups else iter(())

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
    reference, whose, real = _reference(index, num_pairs, config, store, features, where)
    place = {edge: number for number, edge in enumerate(wanted.edges)}
    found = _Found(
        features=features,
        index=index,
        groups=[measured.between(place[first], place[end]) for first, end in bounds],
        generated=measured.total,
        reference=reference,
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
        figures += pair_figures(pairs, measured.features, real, features)
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
    reference, _, _ = _reference(index, 0, config, store, features, where)
    found: dict[str, list[tuple[int, float]]] = {}
    for name, steps, images in sets:
        what, wanted = f"measure {name} {steps}", Wanted(count=config.num_images)
        measured = measure_features(what, images, wanted, features, config.batch_size, where)
        found.setdefault(name, []).append((steps, frechet_distance(measured.total.stats, reference)))
    return found


def _reference(
    index: DatasetIndex, num_kept: int, config: EvaluateConfig, store: str, features: Features, where: SampleStage
) -> tuple[FeatureStats, str, Array]:
    """What distances are held against, in moments and in words; and the features of the first training images."""
    count = index.num_samples("train")
    if config.reference is None or num_kept:
        train, kept = real_features(index, "train", count, num_kept, config, store, features, where)
    if config.reference is None:
        return train, f"{count:,} training images", kept
    imported = imported_reference(config.reference, index, features).stats
    words = f"{config.reference}, declared to be {config.reference_protocol}"
    return imported, words, kept if num_kept else np.empty((0, len(imported.mean)), np.float32)


def _distance(found: _Found) -> Figure:
    stats = found.generated.stats
    return jackknifed(
        frechet_distance(stats, found.reference),
        np.array([frechet_distance(rest.stats, found.reference) for rest in found.without_groups]),
        name=found.features.figure(stats.count),
        of=found.against(stats.count),
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
    left_out = [rest.scores.score for rest in found.without_groups if rest.scores]
    name, of = found.features.named("inception_score"), f"{scores.count:,} generated images"
    note = "higher is better; few images lower it"
    whole = jackknifed(scores.score, np.array(left_out), name=name, of=of, note=note)
    if not found.groups:
        return [whole]
    pairs = zip(found.groups[::2], found.groups[1::2], strict=True)
    splits = [both.scores for both in (one.merge(other) for one, other in pairs) if both.scores]
    mean, deviation = score_of_splits(splits)
    note = f"the customary mean over {len(splits)} splits; their standard deviation is {number(deviation)}"
    return [whole, Figure(name=f"{name}_splits", value=mean, of=of, note=note)]
