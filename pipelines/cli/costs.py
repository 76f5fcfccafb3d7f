"""What a command would cost, in words, before anything is spent."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from ddpm_core.data.order import lanes_of_worker, largest_share
from ddpm_core.diffusion.sampler_config import network_passes
from ddpm_core.diffusion.schedule import make_schedule
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.cost import few_images, forward_flops, rate_of
from ddpm_core.training.augmentation import NUM_PARAMETERS
from ddpm_core.types import bytes_words
from pipelines.cli.checks import num_in_split
from pipelines.cluster.address import cluster_address
from pipelines.cluster.placement import for_sampling, num_here, trials_here
from pipelines.datasets import find_dataset
from pipelines.progress import counted, short, span
from pipelines.recipes.config import Recipe, SampleStage, SweepStage, TrainStage
from pipelines.sweeping.plan import steps_in_all

_STEPS_TRIED = 5
"""Of a sampler."""
_WORTH_SAYING = 1.1
"""How much faster another precision is, to be named."""


def sampling_cost(sample: SampleStage, num_timesteps: int) -> str:
    """What a request costs, in words."""
    return f"{sample.num_images:,} images, {sample.num_images * _passes(sample, num_timesteps):,} network passes"


def _passes(sample: SampleStage, num_timesteps: int) -> int:
    """Of an image."""
    return network_passes(sample.sampler, num_timesteps) * (2 if sample.guidance else 1)


def evaluation_cost(evaluate: EvaluateConfig, num_timesteps: int) -> str:
    """What an evaluation costs, in words."""
    steps = min(evaluate.bits_per_dim_steps or num_timesteps, num_timesteps)
    bound = f"; bits/dim of {evaluate.bits_per_dim_images:,} images, {evaluate.bits_per_dim_images * steps:,} network passes"
    return f"{evaluate.features} of {evaluate.num_images:,} images" + (bound if evaluate.bits_per_dim_images else "")


def sampling_time(recipe: Recipe) -> list[str]:
    """How long the recipe's images take on this machine, by its own network with weights that say nothing; a line."""
    sample = recipe.sample
    at_once = min(sample.num_workers or sample.num_images, num_here(for_sampling(sample)))
    at_once = max(1, min(at_once, -(-sample.num_images // sample.block_size)))
    if sample.use_gpu and not torch.cuda.is_available():
        return ["sampling's time: not tried, as this machine has no GPU"]
    rate, tried = _passes_per_s(_model(recipe), sample)
    passes = sample.num_images * _passes(sample, recipe.schedule.num_timesteps)
    return [
        f"sampling's time: about {span(passes / at_once / rate)} at {short(rate)} passes/s a task, tried here with the recipe's "
        f"network and {counted(tried, 'image')} at once; {counted(at_once, 'task')} at once"
        f"{'' if cluster_address() is None else ' (the cluster may hold more)'}"
    ]


def _passes_per_s(model: ModelConfig, sample: SampleStage) -> tuple[float, int]:
    """Of the sampler in few steps, and how many images each had; with a task's threads, not compiled."""
    from ddpm_core.api.model import Model
    from ddpm_core.model.init import init_unet

    device = torch.device("cuda" if sample.use_gpu else "cpu")
    few = replace(sample, sampler=replace(sample.sampler, num_steps=min(_STEPS_TRIED, model.schedule.num_timesteps)))
    passes = _passes(few, model.schedule.num_timesteps)
    tried = few_images(passes * forward_flops(model), device, sample.batch_size)
    network = model.build_network().eval().requires_grad_(False)
    init_unet(network, 0)
    drawing, seeds = Model(config=model, network=network.to(device)), torch.arange(tried)
    with _threads(sample.threads):
        return passes * rate_of(lambda: drawing.generate(seeds, few).cpu(), tried), tried


def training_cost(recipe: Recipe) -> list[str]:
    """What training needs of each worker's memory, and how long it takes; two lines."""
    from ddpm_core.training.fixed_losses import look_passes
    from pipelines.training.looker import preview_passes

    passes = look_passes(recipe.train) + preview_passes(recipe.train, recipe.schedule.num_timesteps)
    return _training_cost(recipe, 1, passes)


def sweep_cost(recipe: Recipe, sweep: SweepStage, num_trials: int) -> list[str]:
    """As `training_cost`, of all trials of a sweep and the finalists' repeats; what measuring them takes is not in it."""
    steps, at_once = steps_in_all(num_trials, sweep, sweep.rungs(recipe.train.steps)), trials_here(sweep, recipe.train)
    train = replace(recipe.train, steps=steps, num_workers=sweep.num_workers, min_workers=None)
    together = (
        f"{counted(at_once, 'trial')} at once{'' if cluster_address() is None else ' (the cluster may hold more)'}"
    )
    lines = _training_cost(replace(recipe, train=train), at_once, 0)
    return [*lines, f"that is {steps:,} steps in all, {together}; measuring the trials comes on top"]


def _training_cost(recipe: Recipe, runs_at_once: int, passes: int) -> list[str]:
    # Not before: each command would begin the later for it.
    from ddpm_core.training.memory import images_at_once, memory_of_worker, step_bytes

    train, model = replace(recipe.train, precision=recipe.train.resolved_precision), _model(recipe)
    served = lanes_of_worker(train.lanes, 0, train.num_workers)
    share = largest_share(train.batch_size, num_in_split(recipe, "train"), train.lanes, served)
    device = torch.device("cuda" if train.use_gpu and torch.cuda.is_available() else "cpu")
    is_here = device.type == ("cuda" if train.use_gpu else "cpu")
    memory = memory_of_worker(device, train.num_workers if cluster_address() is None else 1)
    kind = {"recompute": train.recompute, "bfloat16": train.precision == "bfloat16"}
    if train.micro_batch_size == "auto" and is_here:
        train = replace(train, micro_batch_size=images_at_once(model, share, memory, **kind))
    at_once = min(share, train.micro_batch_size) if isinstance(train.micro_batch_size, int) else share
    needed = step_bytes(model, at_once, **kind)
    remedy = "set --train.micro-batch-size auto" if train.micro_batch_size is None else "lower --train.micro-batch-size"
    faster = ""
    if not is_here:
        time = "not tried, as this machine has no GPU"
    elif needed > memory:
        time = f"not tried, as a worker may take {bytes_words(memory)} here: {remedy}"
    else:
        mean_share = -(-train.batch_size // train.num_workers)
        images = train.steps / runs_at_once * mean_share + passes / 3  # backward costs twice what forward does
        rate, tried = _rate(recipe, train, model, device, mean_share)
        time = (
            f"about {span(images / rate)} at {short(rate)} images/s a worker, tried here in steps of {tried:,} images"
        )
        if device.type == "cpu" and train.precision == "float32" and torch.cpu.get_capabilities().get("amx_bf16"):
            other, _ = _rate(recipe, replace(train, precision="bfloat16"), model, device, mean_share)
            faster = f"; {short(other)} images/s by --train.precision bfloat16" if other > _WORTH_SAYING * rate else ""
    flops = 3 * forward_flops(model) * train.batch_size * train.steps
    return [
        f"training's memory: {bytes_words(needed)} of tensors for each worker, of a batch's {train.batch_size:,} at most "
        f"{at_once:,} images at a time",
        f"training's time: {time}; {flops:.1e} operations in all{faster}",
    ]


def _rate(recipe: Recipe, train: TrainStage, model: ModelConfig, device: torch.device, share: int) -> tuple[float, int]:
    """Images a second of a worker, by a few steps of made-up ones, with its threads; and how many a step had."""
    from ddpm_core.training.probe import images_per_s
    from ddpm_core.training.step import Objective

    objective = Objective(schedule=make_schedule(recipe.schedule).to(device), reverse=recipe.reverse, loss=recipe.loss)
    with _threads(train.threads):
        return images_per_s(model, objective, train, device, share)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many as a worker or a task has."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
