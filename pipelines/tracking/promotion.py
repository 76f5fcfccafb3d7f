"""The champion: a model that only a better one replaces, where chance does not explain the difference; or that a person chose."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from ddpm_core.errors import InputError
from ddpm_core.evaluation.figures import Figure
from ddpm_core.evaluation.intervals import difference, difference_of_independent, difference_over_seeds
from pipelines.tracking.outage import refused
from pipelines.tracking.registry import CANDIDATE, CHAMPION, find_version, registered
from pipelines.tracking.runs import tracked_name
from pipelines.tracking.store import Server

_CHAMPIONS = "champions"
"""A model's tag: its champions, the newest last, as JSON."""
_KEPT, _REASON = 15, 200
"""Of them, and characters of why: MLflow takes 5,000 in all."""


class Promotion(NamedTuple):
    """Whether the alias `champion` now points at the version, and why."""

    promoted: bool
    reason: str


class Crowned(NamedTuple):
    """When a version became the champion, and why."""

    version: int
    at: str
    """ISO 8601, UTC."""
    reason: str


class Judged(NamedTuple):
    """A version's figure, as its tags keep it; lower is better."""

    metric: str
    value: float
    reference: str
    """What it was measured against and how: reference set, extractor, number of images. Only equal ones compare."""
    seeds: str = ""
    """Of the images; figures of equal seeds are compared group by group."""
    groups: tuple[float, ...] = ()
    """The figure without each group of images."""
    trainings: tuple[float, ...] = ()
    """The figure of each training seed, where there are several: then models are compared over trainings."""

    @property
    def tags(self) -> dict[str, str]:
        """Of a version."""
        facts = {"figure": repr(self.value), "reference": self.reference, "groups": json.dumps(self.groups)}
        facts |= {"seeds": self.seeds, "trainings": json.dumps(self.trainings)}
        return {f"{key}.{self.metric}": value for key, value in facts.items()}


def judged_by(tags: Mapping[str, str]) -> dict[str, Judged]:
    """What a version was judged by, by metric."""
    metrics = [key.removeprefix("figure.") for key in tags if key.startswith("figure.")]
    return {
        metric: Judged(
            metric,
            float(tags[f"figure.{metric}"]),
            tags.get(f"reference.{metric}", ""),
            tags.get(f"seeds.{metric}", ""),
            tuple(json.loads(tags.get(f"groups.{metric}", "[]"))),
            tuple(json.loads(tags.get(f"trainings.{metric}", "[]"))),
        )
        for metric in metrics
    }


def promote(
    server: Server,
    name: str,
    version: int,
    *,
    figure: Figure,
    reference: str,
    seeds: str = "",
    trainings: Sequence[float] = (),
    report_uri: str = "",
    veto: str = "",
) -> Promotion:
    """Record a version's figure, and make it the champion if there is none or the figure is better.

    A champion without a figure of this metric gives way. The caller sees to it that no other promotion of this model goes on at
    the same time: what is read here must still hold when the alias is set.

    Args:
        report_uri: where the figure stands, with all else that was found.
        veto: why it must not be the champion, whatever its figure.
    """
    ours = Judged(tracked_name(figure.name), figure.value, reference, seeds, tuple(figure.left_out), tuple(trainings))
    client = server.client
    with refused(f"promoting {name} version {version}"):
        champion = _champion(client, name)
        if math.isfinite(figure.value):
            _set_tags(client, name, version, {**ours.tags, **({"report_uri": report_uri} if report_uri else {})})
        if trainings:  # each of them was registered; this is the one that stands for all
            client.set_registered_model_alias(name, CANDIDATE, str(version))
        if champion and int(champion.version) == version:
            return Promotion(True, f"version {version} is the champion already")
        verdict = Promotion(False, veto) if veto else _decide(ours, champion, figure.text)
        _set_tags(
            client,
            name,
            version,
            {"gate": f"{_now()} {'promoted' if verdict.promoted else 'not promoted'}: {verdict.reason}"},
        )
        if verdict.promoted:
            _crown(client, name, version, verdict.reason)
        return verdict


def promote_by_hand(server: Server, uri: str, reason: str, *, unlike: bool = False) -> int:
    """Make a version the champion, whatever its figure.

    Args:
        unlike: also if it was judged on other data than the champion, or not at all.

    Raises:
        InputError: in one line, if there is no such version, or it was judged otherwise.
        TrackingError: if MLflow fails.
    """
    with refused(uri):
        version = find_version(server.client, uri)
        champion = _champion(server.client, version.name)
        if champion is not None and not unlike:
            _check_alike(uri, judged_by(version.tags), champion)
        _crown(server.client, version.name, int(version.version), f"by hand: {reason.strip()}")
    return int(version.version)


def rollback(server: Server, name: str, reason: str = "") -> int:
    """Make the champion before this one the champion again; returns its version.

    Raises:
        InputError: in one line, if there was none that still exists.
        TrackingError: if MLflow fails.
    """
    with refused(f"models:/{name}"):
        model, champion = registered(server.client, name), _champion(server.client, name)
        now = int(champion.version) if champion else None
        for before in reversed(_line_of_succession(champions(model))):
            if before != now and _version(server.client, name, before) is not None:
                _crown(server.client, name, before, f"back from version {now}{f': {reason}' if reason else ''}")
                return before
    raise InputError(f"models:/{name} had no champion before version {now}; expected a version: registry.py promote")


def _line_of_succession(crowned: Sequence[Crowned]) -> list[int]:
    """Versions, each with the one that it replaced before it; who went back to one has undone what came after."""
    line: list[int] = []
    for version, *_ in crowned:
        line = [*(line[: line.index(version)] if version in line else line), version]
    return line


def champions(model: Any) -> list[Crowned]:
    """A registered model's champions, the newest last, as far as is known."""
    return [Crowned(*each) for each in json.loads(dict(model.tags).get(_CHAMPIONS, "[]"))]


def is_champion(server: Server, name: str, version: int) -> bool:
    """Whether the alias `champion` points at the version.

    Raises:
        TrackingError: if MLflow fails.
    """
    with refused(f"models:/{name}"):
        champion = _champion(server.client, name)
    return champion is not None and int(champion.version) == version


def compare(ours: Judged, theirs: Judged, whose: str) -> Promotion:
    """Whether the first is better, by more than chance explains; and in words, in which `whose` are the other's figures."""
    if theirs.reference != ours.reference:
        return Promotion(
            False,
            f"not compared: {whose} {ours.metric} was measured against {theirs.reference or None}, this one against "
            f"{ours.reference}",
        )
    said = f"{ours.metric} {ours.value:.4g}, {whose} {theirs.value:.4g}"
    if min(len(ours.trainings), len(theirs.trainings)) >= 2:
        apart, noise = difference_over_seeds(ours.trainings, theirs.trainings), "over training seeds"
    elif len(theirs.groups) >= 2 and len(theirs.groups) == len(ours.groups):
        by = difference if theirs.seeds == ours.seeds else difference_of_independent
        apart, noise = (
            by(ours.value, np.array(ours.groups), theirs.value, np.array(theirs.groups)),
            "sampling noise only",
        )
    else:
        return Promotion(ours.value < theirs.value, f"{said}; no interval is known of the difference")
    sure = f"difference {apart.value:.3g}, 95%: {apart.low:.3g} to {apart.high:.3g}, {noise}"
    if apart.low <= 0 <= apart.high:
        return Promotion(False, f"not distinguishable: {said}; {sure}")
    return Promotion(apart.high < 0, f"{'better' if apart.high < 0 else 'worse'}: {said}; {sure}")


def _decide(ours: Judged, champion: Any, text: str) -> Promotion:
    if not math.isfinite(ours.value):
        return Promotion(False, f"{ours.metric} is {ours.value}")
    if champion is None:
        return Promotion(True, f"the first champion, with {ours.metric} {text}")
    theirs = judged_by(champion.tags).get(ours.metric)
    if theirs is None:
        return Promotion(True, f"the champion, version {champion.version}, has no {ours.metric}")
    return compare(ours, theirs, f"the champion's (version {champion.version})")


def _check_alike(uri: str, ours: Mapping[str, Judged], champion: Any) -> None:
    theirs = judged_by(champion.tags)
    for metric in ours.keys() & theirs.keys():
        if ours[metric].reference == theirs[metric].reference:
            return
    if theirs:
        against = "; ".join(f"{each.metric} against {each.reference}" for each in ours.values()) or "not at all"
        raise InputError(
            f"{uri} was judged {against}; the champion, version {champion.version}, "
            f"{'; '.join(f'{each.metric} against {each.reference}' for each in theirs.values())}: their figures do not compare; "
            "expected one that workflow.py judged on the same data, or --unlike"
        )


def _crown(client: Any, name: str, version: int, reason: str) -> None:
    model = client.get_registered_model(name)
    crowned = [*champions(model), Crowned(version, _now(), reason[:_REASON])][-_KEPT:]
    client.set_registered_model_tag(name, _CHAMPIONS, json.dumps(crowned))
    client.set_registered_model_alias(name, CHAMPION, str(version))


def _set_tags(client: Any, name: str, version: int, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        client.set_model_version_tag(name, str(version), key, value)


def _champion(client: Any, name: str) -> Any:
    """None, too, if the version to which the alias points was deleted."""
    version = client.get_registered_model(name).aliases.get(CHAMPION)
    return _version(client, name, int(version)) if version else None


def _version(client: Any, name: str, version: int) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
