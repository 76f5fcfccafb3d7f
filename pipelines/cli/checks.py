"""What a command refuses before anything starts, each in one line."""

import json
import math
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path

import torch

from ddpm_core import storage
from ddpm_core.artifacts.manifest import SPLITS, Split
from ddpm_core.data.config import DataConfig
from ddpm_core.data.order import lanes_of_worker, largest_share
from ddpm_core.data.sharding.census import CENSUS_NAME
from ddpm_core.data.sharding.growth import PlannedSource, plan_source
from ddpm_core.data.sharding.writer import check_census, planned_census
from ddpm_core.data.sources import DIGITS
from ddpm_core.diffusion.losses import check_objective
from ddpm_core.diffusion.reverse import check_prediction
from ddpm_core.diffusion.schedule import make_schedule
from ddpm_core.errors import InputError, MissingError
from ddpm_core.evaluation.reference import open_reference
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.unet import UNet
from ddpm_core.sampling.checks import check_request
from ddpm_core.training.averages import young_average
from ddpm_core.training.identity import check_classes
from ddpm_core.types import bytes_words, height_and_width
from pipelines.cluster.placement import check_here, for_sampling, for_training
from pipelines.datasets import find_dataset
from pipelines.feature_weights import check_features, find_features
from pipelines.progress import say
from pipelines.recipes.config import Recipe, SampleStage, TrainStage

_MOST_RATE = 1.0
"""Of Adam, whose steps are about as long: weights begin at a twentieth of it."""


def check_data(recipe: Recipe) -> None:
    """Refuse a dataset or a source that cannot be used.

    Raises:
        InputError: in one line.
    """
    if recipe.dataset is not None:
        find_dataset(recipe.dataset, recipe.store)
        return
    _listed.cache_clear()  # each command looks anew, and once
    try:
        _planned(recipe)
    except (InputError, MissingError) as error:
        if recipe.data.source == DIGITS or Path(recipe.data.source).exists():
            raise
        made = [name for name, source in sources_in(recipe.store).items() if source == recipe.data.source]
        if not made:
            raise
        raise type(error)(f"{error}; the store has what was made of it: --dataset {made[-1]}") from None
    except OSError as error:
        raise InputError(f"the source cannot be read: {error}") from None


def sources_in(store: str) -> dict[str, str]:
    """What each dataset of a store was made of, by the dataset's name, as its census says."""
    datasets = storage.join(store, "datasets")
    censuses = [entry.name for entry in storage.walk(datasets) if entry.name.partition("/")[2] == CENSUS_NAME]
    return {
        name.partition("/")[0]: json.loads(storage.read_bytes(storage.join(datasets, name))).get("source", "")
        for name in censuses
    }


def _planned(recipe: Recipe) -> PlannedSource:
    """What the raw images would become."""
    return _listed(recipe.data, recipe.store)


@lru_cache(maxsize=1)
def _listed(data: DataConfig, store: str) -> PlannedSource:
    return plan_source(data, find_dataset(data.grows, store) if data.grows else None)


def split_counts(counts: Mapping[str, int], own_splits: Collection[str] = ()) -> str:
    """How many images are in each split, and which of the splits the source came with."""
    said = [f"{counts['train']:,} to train on"]
    for split in SPLITS[1:]:
        own = " (the source's own)" if split in own_splits else ""
        said.append(f"{counts[split]:,} for {'the test' if split == 'test' else split}{own}")
    return ", ".join(said)


def data_census(recipe: Recipe) -> list[str]:
    """What the raw images are found to be, in lines; none for a dataset that is there."""
    if recipe.dataset is not None:
        return []
    planned = _planned(recipe)
    census = planned_census(planned.source, planned.plans, recipe.data, planned.growth)
    check_census(census, recipe.data)
    return census.lines()


def data_summary(recipe: Recipe) -> str:
    """What would be trained on, in one line."""
    if recipe.dataset is not None:
        index = find_dataset(recipe.dataset, recipe.store)
        return f"none: {split_counts(index.counts)} lie in {index.uri}"
    config, planned = recipe.data, _planned(recipe)
    source, plans = planned.source, planned.plans
    counts: dict[str, int] = {
        split: sum(len(plan.indices) for plan in plans if plan.split == split) for split in SPLITS
    }
    classes = f"{len(source.class_names)} classes" if source.class_names else "no classes"
    return (
        f"{source.num_images:,} images of {classes} in {config.source}: {split_counts(counts, source.own_splits)}, "
        f"in {len(plans):,} shards of up to {config.samples_per_shard:,}"
    )


def check_training(recipe: Recipe) -> None:
    """Refuse more workers than can be placed, a network that cannot be built, and what does not fit the images.

    Raises:
        InputError: in one line.
    """
    if recipe.train.learning_rate > _MOST_RATE:
        raise InputError(
            f"train.learning-rate is {recipe.train.learning_rate:g}; expected at most {_MOST_RATE:g} (1e-4 to 2e-3 is usual): "
            "Adam moves each weight by about that much a step"
        )
    check_here(for_training(recipe.train))
    check_objective(recipe.loss, recipe.reverse)
    check_prediction(recipe.reverse, make_schedule(recipe.schedule))
    check_classes(recipe.unet.num_classes, _class_names(recipe))
    lanes = recipe.train.lanes
    largest_share(recipe.train.batch_size, num_in_split(recipe, "train"), lanes, lanes_of_worker(lanes, 0, 1))
    if recipe.train.validate_every:
        check_samples(recipe)
    _check_disk(recipe, *_network(recipe))


def warn_of_young_average(train: TrainStage, step: int, when: str) -> None:
    """Say, before anything starts, that the averaged weights of a planned step will be too much those that they begin with.

    No mistake: the run may be meant to be trained further by the same command.

    Args:
        when: images are looked at, as `train.steps is 640`.
    """
    if warning := young_average(train, step):
        say(f"warning: {when}: {warning}")


def check_counts(num_sampled: int, num_measured: int) -> None:
    """Refuse to measure more images than are sampled.

    Raises:
        InputError: in one line.
    """
    if num_sampled < num_measured:
        raise InputError(
            f"evaluate.num-images is {num_measured}, sample.num-images {num_sampled}; expected no more than are sampled: "
            "lower the one or raise the other"
        )


def check_samples(recipe: Recipe) -> None:
    """Refuse a request for samples that the recipe's model cannot fulfil.

    Raises:
        InputError: in one line.
    """
    model = ModelConfig(
        image_size=recipe.data.image_size,
        channels=recipe.data.channels,
        unet=recipe.unet,
        schedule=recipe.schedule,
        reverse=recipe.reverse,
    )
    check_request(model, recipe.sample, label_dropout=recipe.train.label_dropout)


def check_evaluation(recipe: Recipe) -> None:
    """Refuse what only the evaluation would find after hours of training: too few images, none to hold against, no disk.

    Raises:
        InputError: in one line.
    """
    check_counts(recipe.sample.num_images, recipe.evaluate.num_images)
    check_features(recipe.evaluate)
    check_samples(recipe)
    if recipe.evaluate.bits_per_dim_images and not (num_in_split(recipe, "validation") or num_in_split(recipe, "test")):
        raise InputError(
            f"evaluate.bits-per-dim-images is {recipe.evaluate.bits_per_dim_images} and the dataset holds no image out of "
            "training; expected 0, or a share of images by --data.test-fraction"
        )


def prepare_evaluation(recipe: Recipe) -> None:
    """Fetch the features' weights, if they have any, and read the reference, before hours of training.

    Raises:
        InputError: in one line, if that cannot be done.
    """
    features = find_features(recipe.evaluate, recipe.store)
    shape = recipe.data if recipe.dataset is None else find_dataset(recipe.dataset, recipe.store)
    if recipe.evaluate.reference is not None:
        open_reference(recipe.evaluate.reference, features, features.dimensions(shape.image_size, shape.channels))


def _check_disk(recipe: Recipe, network: UNet, image_bytes: int) -> None:
    """Refuse a run whose checkpoints and samples will not fit on the disk; a store on S3 has none.

    Args:
        image_bytes: of an image, unpacked; as a PNG it is no larger, but for a few bytes.
    """
    free = storage.free_bytes(recipe.store)
    weights = 4 * sum(parameter.numel() for parameter in network.parameters())
    checkpoints = 4 * weights * (recipe.train.keep_checkpoints + 1)  # weights, average and Adam's two moments
    needed = checkpoints + image_bytes * recipe.sample.num_images
    if free is not None and free < needed:
        raise InputError(
            f"{recipe.store} has {bytes_words(free)} left; expected {bytes_words(needed)} for {recipe.train.keep_checkpoints} "
            f"checkpoints, one more under way, and {recipe.sample.num_images:,} images: free some, or name another --store"
        )


def _network(recipe: Recipe) -> tuple[UNet, int]:
    """The network without its numbers, and the bytes of an image."""
    shape = recipe.data if recipe.dataset is None else find_dataset(recipe.dataset, recipe.store)
    with torch.device("meta"):
        network = UNet(recipe.unet, image_size=shape.image_size, channels=shape.channels)
    return network, shape.channels * math.prod(height_and_width(shape.image_size))


def _class_names(recipe: Recipe) -> tuple[str, ...]:
    """Of a dataset, or of the raw images that would become one."""
    if recipe.dataset is not None:
        return find_dataset(recipe.dataset, recipe.store).class_names
    return tuple(_planned(recipe).source.class_names)


def num_in_split(recipe: Recipe, split: Split) -> int:
    """Images of a split, of a dataset or of the raw images that would become one."""
    if recipe.dataset is not None:
        return find_dataset(recipe.dataset, recipe.store).num_samples(split)
    return sum(len(plan.indices) for plan in _planned(recipe).plans if plan.split == split)


def check_sampling(sample: SampleStage) -> None:
    """Refuse what no node can hold.

    Raises:
        InputError: in one line.
    """
    check_here(for_sampling(sample))
