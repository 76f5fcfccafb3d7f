"""A dataset that grows from an earlier one: whose images still stand, and where those go that are new.

The grown dataset is a pure function of the source, the config and the earlier dataset. An image is known by its name in the
source. Its key, its split and its class's number stay; what is new comes in new shards.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ddpm_core.artifacts.manifest import SPLITS, DatasetIndex, Split
from ddpm_core.data.config import DataConfig
from ddpm_core.data.sharding.census import Grown
from ddpm_core.data.sharding.origins import OriginsHead, each_origins, listed_as, read_head
from ddpm_core.data.sharding.plan import ShardPlan, Standing, plan_dataset, plan_shards
from ddpm_core.data.sources import ImageFiles, LabelRule, Source, open_source, source_uri
from ddpm_core.errors import InputError
from ddpm_core.types import size_words

_LISTED = ("key", "shard", "split", "name", "size", "version", "label")


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """A dataset that another one grows from."""

    index: DatasetIndex
    head: OriginsHead


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What a dataset grows from, and what comes and goes by its listing."""

    earlier: Earlier
    grown: Grown


@dataclass(frozen=True, kw_only=True)
class PlannedSource:
    """A source as it was listed, and what its images will become."""

    source: Source
    plans: tuple[ShardPlan, ...]
    growth: Growth | None = None


def plan_source(config: DataConfig, grows: DatasetIndex | None) -> PlannedSource:
    """List the source and plan its dataset, anew or as one that grows from another.

    Raises:
        InputError: in one line, if the source cannot be used, or the two would not mix.
    """
    earlier = None if grows is None else open_earlier(grows, config)
    source = open_source(source_uri(config.source), label_rule(config, grows))
    if earlier is None:
        return PlannedSource(source=source, plans=plan_dataset(source.num_images, config, source.own_splits))
    plans, growth = plan_growth(source, config, earlier)
    return PlannedSource(source=source, plans=plans, growth=growth)


def label_rule(config: DataConfig, grows: DatasetIndex | None) -> LabelRule:
    """What is said of the labels: in the config, and by the dataset that this one grows from."""
    return config.label_rule if grows is None else replace(config.label_rule, earlier=grows.class_names)


def open_earlier(index: DatasetIndex, config: DataConfig) -> Earlier:
    """A dataset that one of this config can grow from.

    Raises:
        InputError: if it does not say what it was made from, or its images are of another form.
    """
    head = read_head(index.uri)
    pairs = [
        ("image-size", size_words(index.image_size), size_words(config.image_size)),
        ("channels", index.channels, config.channels),
        ("fit", head.fit, config.fit),
        ("max-image-pixels", head.max_image_pixels, config.max_image_pixels),
        *([("seed", head.seed, config.seed)] if config.fit == "random_crop" else []),  # it places the crops
    ]
    for name, before, now in pairs:
        if before != now:
            raise InputError(
                f"data.{name} is {now} and was {before} when {index.uri} was made; expected --data.{name} {before} to grow from "
                "it, for the images of one dataset are of one form, or no --data.grows"
            )
    return Earlier(index=index, head=head)


def plan_growth(source: Source, config: DataConfig, earlier: Earlier) -> tuple[tuple[ShardPlan, ...], Growth]:
    """Which images go to which shard: those that stand stay where they are, new ones are permuted and drawn among themselves.

    Returns:
        The shards of training, of validation, of the test, in each split those of before first; and what came and went.

    Raises:
        InputError: if images cannot be told by their names, or none of the earlier ones stands.
    """
    uri = earlier.index.uri
    _check_splits(source, earlier.index)
    places, own = _places(source), _own_splits(source)
    numbers = {shard.name: number for number, shard in enumerate(earlier.index.shards)}
    plans: list[ShardPlan] = []
    num_went = num_unsure = 0
    for group, origins in enumerate(each_origins(uri, _LISTED)):
        found = np.array([places.get(name, -1) for name in origins["name"].to_pylist()], np.int64)
        stands = (found >= 0) & _split_agrees(own, found, origins["split"][0].as_py())
        num_went += int((~stands).sum())
        if stands.any():
            unsure = _num_unsure(origins.filter(pa.array(stands)), source, found[stands])
            num_unsure += unsure
            number = numbers.get(origins["shard"][0].as_py())
            standing = Standing(
                dataset=uri,
                group=group,
                number=-1 if number is None else number,
                entry=None if number is None else earlier.index.shards[number],
                whole=bool(stands.all()),
                certain=bool(stands.all()) and not unsure,
            )
            plans.append(_renewed(standing, origins, found, stands))
    if not plans:
        raise InputError(
            f"none of the images of {uri} is in {config.source} under its name ({next(iter(places), '')!r} is one of the "
            "source's); expected the source that it was made from, with more images, or no --data.grows"
        )
    new = np.setdiff1d(np.arange(source.num_images), np.concatenate([plan.indices for plan in plans]))
    added = plan_shards(
        new,
        config,
        source.own_splits,
        first_key=earlier.head.next_key,
        first_shard=earlier.head.next_shard,
    )
    grown = Grown(
        dataset=uri,
        digest=earlier.index.digest,
        came=len(new),
        went=num_went,
        changed=num_unsure,
        kept=sum(
            plan.standing is not None and plan.standing.certain and plan.standing.entry is not None for plan in plans
        ),
        num_shards=len(earlier.index.shards),
        planned=True,
    )
    in_order = tuple(sorted([*plans, *added], key=lambda plan: SPLITS.index(plan.split)))
    if in_order[0].split != "train":
        raise InputError(f"{config.source} leaves no image to train on; expected one of {uri} or a new one")
    return in_order, Growth(earlier=earlier, grown=grown)


def _renewed(standing: Standing, origins: pa.Table, found: NDArray[np.int64], stands: NDArray[np.bool_]) -> ShardPlan:
    """A shard of the earlier dataset with those of its images that still stand, at the places where they are found now."""
    name, split = origins["shard"][0].as_py(), origins["split"][0].as_py()
    keys = origins["key"].to_numpy()[stands]
    return ShardPlan(name=name, split=split, indices=found[stands], keys=keys, standing=standing)


def _check_splits(source: Source, index: DatasetIndex) -> None:
    now = tuple(split for split in SPLITS if split in source.own_splits)
    if now != index.own_splits:
        raise InputError(
            f"the source sets aside {_named(now)} of its own, the dataset at {index.uri} was made of one with "
            f"{_named(index.own_splits)}; expected the same, or images that were trained on would be tested with: shard it "
            "without --data.grows"
        )


def _named(splits: Collection[Split]) -> str:
    return " and ".join(splits) or "no split"


def _places(source: Source) -> dict[str, int]:
    """Each image's place in the source by its name."""
    places: dict[str, int] = {}
    for place in range(source.num_images):
        name = source.name(place)
        if places.setdefault(name, place) != place:
            raise InputError(
                f"the source has several images of the name {name}; expected a name for each, by which a dataset can grow"
            )
    return places


def _own_splits(source: Source) -> Mapping[Split, NDArray[np.bool_]]:
    """For each split that the source sets aside, whether it has an image of it at each place."""
    return {split: np.isin(np.arange(source.num_images), where) for split, where in source.own_splits.items()}


def _split_agrees(own: Mapping[Split, NDArray[np.bool_]], found: NDArray[np.int64], split: Split) -> NDArray[np.bool_]:
    """Whether the source still has images in the split that they were in; it does not if it moved one from train to test."""
    agrees = np.ones(len(found), bool)
    for each, where in own.items():
        agrees &= where[found] == (each == split)
    return agrees


def _num_unsure(origins: pa.Table, source: Source, indices: NDArray[np.int64]) -> int:
    """Of images that stand, how many may have changed by the listing: another size or version, or none that tells, or class."""
    if not isinstance(source, ImageFiles):
        return len(indices)
    listed = zip(indices.tolist(), source.labels.numbers[indices].tolist(), strict=True)
    now = ((*listed_as(source, index), label) for index, label in listed)
    then = zip(*(origins[name].to_pylist() for name in ("size", "version", "label")), strict=True)
    return sum(before != after or not before[1] for before, after in zip(then, now, strict=True))
