"""What a command refuses before anything starts, each in one line."""

from collections.abc import Collection, Mapping

import torch

from ddpm_core.artifacts.manifest import SPLITS
from ddpm_core.data.sources import check_source, open_source, source_uri
from ddpm_core.data.writer import plan_dataset
from ddpm_core.diffusion.losses import check_objective
from ddpm_core.diffusion.reverse import check_prediction
from ddpm_core.diffusion.schedule import make_schedule
from ddpm_core.model.unet import UNet
from pipelines.cluster.placement import check_here, for_sampling, for_training
from pipelines.recipes.config import Recipe, SampleStage
from pipelines.tracking.resolve import find_dataset


def check_data(recipe: Recipe) -> None:
    """Refuse a dataset or a source that cannot be used.

    Raises:
        InputError: in one line.
    """
    if recipe.dataset is not None:
        find_dataset(recipe.dataset, recipe.store)
    else:
        check_source(recipe.data.source)


def split_counts(counts: Mapping[str, int], own_splits: Collection[str] = ()) -> str:
    """How many images are in each split, and which of the splits the source came with."""
    said = [f"{counts['train']:,} to train on"]
    for split in SPLITS[1:]:
        own = " (the source's own)" if split in own_splits else ""
        said.append(f"{counts[split]:,} for {'the test' if split == 'test' else split}{own}")
    return ", ".join(said)


def data_summary(recipe: Recipe) -> str:
    """What would be trained on, in one line."""
    if recipe.dataset is not None:
        index = find_dataset(recipe.dataset, recipe.store)
        return f"none: {split_counts(index.counts)} lie in {index.uri}"
    config = recipe.data
    source = open_source(source_uri(config.source))
    plans = plan_dataset(source.num_images, config, source.own_splits)
    counts: dict[str, int] = {
        split: sum(len(plan.indices) for plan in plans if plan.split == split) for split in SPLITS
    }
    classes = f"{len(source.class_names)} classes" if source.class_names else "no classes"
    return (
        f"{source.num_images:,} images of {classes} in {config.source}: {split_counts(counts, source.own_splits)}, "
        f"in {len(plans):,} shards of up to {config.samples_per_shard:,}"
    )


def check_training(recipe: Recipe) -> None:
    """Refuse more workers than can be placed, and a network that cannot be built.

    Raises:
        InputError: in one line.
    """
    check_here(for_training(recipe.train))
    check_objective(recipe.loss, recipe.reverse)
    check_prediction(recipe.reverse, make_schedule(recipe.schedule))
    with torch.device("meta"):
        shape = recipe.data if recipe.dataset is None else find_dataset(recipe.dataset, recipe.store)
        UNet(recipe.unet, image_size=shape.image_size, channels=shape.channels)


def check_sampling(sample: SampleStage) -> None:
    """Refuse what no node can hold.

    Raises:
        InputError: in one line.
    """
    check_here(for_sampling(sample))
