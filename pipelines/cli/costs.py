"""What a command would cost, in words, before anything is spent."""

from dataclasses import replace

import torch

from ddpm_core.data.order import lanes_of_worker, local_batch_size
from ddpm_core.diffusion.sampler_config import network_passes
from ddpm_core.diffusion.schedule import make_schedule
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.cost import forward_flops
from ddpm_core.training.augmentation import NUM_PARAMETERS
from pipelines.cli.checks import num_to_train_on
from pipelines.cluster.address import cluster_address
from pipelines.recipes.config import Recipe, SampleStage
from pipelines.tracking.resolve import find_dataset

SPANS = (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0))


def sampling_cost(sample: SampleStage, num_timesteps: int) -> str:
    """What a request costs, in words."""
    passes = sample.num_images * network_passes(sample.sampler, num_timesteps) * (2 if sample.guidance else 1)
    return f"{sample.num_images:,} images, {passes:,} network passes"


def evaluation_cost(evaluate: EvaluateConfig, num_timesteps: int) -> str:
    """What an evaluation costs, in words."""
    steps = min(evaluate.bits_per_dim_steps or num_timesteps, num_timesteps)
    bound = f"; bits/dim of {evaluate.bits_per_dim_images:,} images, {evaluate.bits_per_dim_images * steps:,} network passes"
    return f"{evaluate.features} of {evaluate.num_images:,} images" + (bound if evaluate.bits_per_dim_images else "")


def training_cost(recipe: Recipe) -> list[str]:
    """What a worker needs, and how long it takes, tried here on a few steps of made-up images; two lines."""
    # Not before: each command would begin the later for it.
    from ddpm_core.training.memory import images_at_once, memory_of_worker, step_bytes
    from ddpm_core.training.probe import images_per_s
    from ddpm_core.training.step import Objective

    train, model = recipe.train, _model(recipe)
    train = replace(train, precision=train.resolved_precision)
    served = lanes_of_worker(train.lanes, 0, train.num_workers)
    share = local_batch_size(train.batch_size, num_to_train_on(recipe), train.lanes, served)
    device = torch.device("cuda" if train.use_gpu and torch.cuda.is_available() else "cpu")
    rest = {"recompute": train.recompute, "bfloat16": train.precision == "bfloat16"}
    is_here = device.type == ("cuda" if train.use_gpu else "cpu")
    memory = memory_of_worker(device, train.num_workers if cluster_address() is None else 1)
    if train.micro_batch_size == "auto" and is_here:
        train = replace(train, micro_batch_size=images_at_once(model, share, memory, **rest))
    at_once = min(share, train.micro_batch_size) if isinstance(train.micro_batch_size, int) else share
    needed = step_bytes(model, at_once, **rest)
    needs = f"a worker: {at_once:,} images at a time, about {_bytes(needed)} of tensors"
    flops = 3 * forward_flops(model) * train.batch_size * train.steps  # backward costs twice what forward does
    total = f"{flops:.1e} operations in all"
    if not is_here:
        return [needs, f"time: not tried, as this machine has no GPU; {total}"]
    if needed > memory:
        remedy = "set --train.micro-batch-size auto" if train.micro_batch_size is None else "set it lower"
        return [needs, f"time: not tried, as a worker may take {_bytes(memory)} here: {remedy}; {total}"]
    objective = Objective(schedule=make_schedule(recipe.schedule).to(device), reverse=recipe.reverse, loss=recipe.loss)
    before = torch.get_num_threads()
    torch.set_num_threads(train.threads)
    try:
        rate, tried = images_per_s(model, objective, train, device, share)
    finally:
        torch.set_num_threads(before)
    seconds = train.steps * share / rate
    return [
        needs,
        f"time: about {span(seconds)} at {_short(rate)} images/s a worker, as tried here on {tried:,} images at a time; {total}",
    ]


def _model(recipe: Recipe) -> ModelConfig:
    shape = recipe.data if recipe.dataset is None else find_dataset(recipe.dataset, recipe.store)
    return ModelConfig(
        image_size=shape.image_size,
        channels=shape.channels,
        unet=recipe.unet,
        schedule=recipe.schedule,
        reverse=recipe.reverse,
        unet_augment=NUM_PARAMETERS if recipe.train.augment else 0,
    )


def span(seconds: float) -> str:
    """In the largest unit of which there are two or more."""
    for unit, length in SPANS:
        if seconds >= 2 * length:
            return f"{_short(seconds / length)} {unit}"
    return f"{seconds:.0f} seconds"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
