"""The champion: a model that only a better one replaces, where chance does not explain the difference."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_core.evaluation.figures import Figure
from ddpm_core.evaluation.intervals import difference, difference_of_independent, difference_over_seeds
from pipelines.tracking.outage import refused
from pipelines.tracking.registry import CANDIDATE, CHAMPION
from pipelines.tracking.runs import tracked_name
from pipelines.tracking.tracker import Tracker


class Promotion(NamedTuple):
    """Whether the alias `champion` now points at the version, and why."""

    promoted: bool
    reason: str


def promote(
    tracker: Tracker,
    name: str,
    version: int,
    *,
    figure: Figure,
    reference: str,
    seeds: str = "",
    trainings: Sequence[float] = (),
    veto: str = "",
) -> Promotion:
    """Record a version's figure, and make it the champion if there is none or the figure is better; lower is better.

    Figures against different references are never compared; a champion without a figure of this metric gives way. The
    caller sees to it that no other promotion of this model goes on at the same time: what is read here must still hold
    when the alias is set.

    Args:
        figure: a distance, as `fid`; what it is without each group of images makes the interval of the difference.
        reference: what the figure was measured against and how: reference set, extractor, number of images.
        seeds: of the images; figures of equal seeds are compared group by group.
        trainings: the figure of each training seed, where there are several: then models are compared over trainings.
        veto: why it must not be the champion, whatever its figure.
    """
    client, metric = tracker.client, tracked_name(figure.name)
    with refused(f"promoting {name} version {version}"):
        champion = _champion(client, name)
        theirs = dict(champion.tags) if champion else {}
        if math.isfinite(figure.value):
            groups = json.dumps(figure.left_out)
            facts = {"figure": repr(figure.value), "reference": reference, "groups": groups, "seeds": seeds}
            facts["trainings"] = json.dumps(list(trainings))
            for key, value in facts.items():
                client.set_model_version_tag(name, str(version), f"{key}.{metric}", value)
        if trainings:  # each of them was registered; this is the one that stands for all
            client.set_registered_model_alias(name, CANDIDATE, str(version))
        if champion and int(champion.version) == version:
            return Promotion(True, f"version {version} is the champion already")
        if veto:
            return Promotion(False, veto)
        verdict = _compare(theirs, metric, figure, reference, seeds, trainings, champion.version if champion else None)
        if verdict.promoted:
            client.set_registered_model_alias(name, CHAMPION, str(version))
        return verdict


def is_champion(tracker: Tracker, name: str, version: int) -> bool:
    """Whether the alias `champion` points at the version.

    Raises:
        TrackingError: if MLflow fails.
    """
    with refused(f"models:/{name}"):
        champion = _champion(tracker.client, name)
    return champion is not None and int(champion.version) == version


def _compare(
    theirs: Mapping[str, str],
    metric: str,
    figure: Figure,
    reference: str,
    seeds: str,
    trainings: Sequence[float],
    champion: str | None,
) -> Promotion:
    if not math.isfinite(figure.value):
        return Promotion(False, f"{metric} is {figure.value}")
    if champion is None:
        return Promotion(True, f"the first champion, with {metric} {figure.text}")
    if f"figure.{metric}" not in theirs:
        return Promotion(True, f"the champion, version {champion}, has no {metric}")
    if theirs.get(f"reference.{metric}") != reference:
        return Promotion(
            False,
            f"not compared: the champion's {metric} (version {champion}) was measured against "
            f"{theirs.get(f'reference.{metric}')}, this one against {reference}",
        )
    best = float(theirs[f"figure.{metric}"])
    said = f"{metric} {figure.value:.4g}, the champion's (version {champion}) {best:.4g}"
    their_trainings, groups = (json.loads(theirs.get(f"{key}.{metric}", "[]")) for key in ("trainings", "groups"))
    if min(len(trainings), len(their_trainings)) >= 2:
        apart, noise = difference_over_seeds(trainings, their_trainings), "over training seeds"
    elif len(groups) >= 2 and len(groups) == len(figure.left_out):
        compare = difference if theirs.get(f"seeds.{metric}") == seeds else difference_of_independent
        apart, noise = compare(figure.value, np.array(figure.left_out), best, np.array(groups)), "sampling noise only"
    else:
        return Promotion(figure.value < best, f"{said}; no interval is known of the difference")
    sure = f"difference {apart.value:.3g}, 95%: {apart.low:.3g} to {apart.high:.3g}, {noise}"
    if apart.low <= 0 <= apart.high:
        return Promotion(False, f"not distinguishable: {said}; {sure}")
    return Promotion(apart.high < 0, f"{'better' if apart.high < 0 else 'worse'}: {said}; {sure}")


def _champion(client: Any, name: str) -> Any:
    number = client.get_registered_model(name).aliases.get(CHAMPION)
    return client.get_model_version(name, str(number)) if number else None
