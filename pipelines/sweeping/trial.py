"""A trial, in a process of its own: train a setting to the next rung, measure it, keep what was found; none of that is done twice.

A trial of one worker trains in this process; of several, by Ray Train, whose workers ask for nodes of their own.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ddpm_core.api.model import Model
from ddpm_core.artifacts.checkpoint import Weights, checkpoint_uri, read_weights
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, hold_run
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.diffusion.sampler_config import network_passes
from ddpm_core.errors import HeldError, UserError
from ddpm_core.evaluation.features.random_conv import NAME
from ddpm_core.evaluation.frechet import FeatureStats
from ddpm_core.evaluation.pictures import image_grid
from ddpm_core.training.checkpointing import Checkpointer
from ddpm_core.training.loop import Events
from ddpm_core.training.parallel import Worker
from ddpm_core.training.state import TrainState
from ddpm_core.training.worker import WorkerSpec, run_worker
from pipelines.cluster.session import shard_cache
from pipelines.cluster.tasks import give_memory_back
from pipelines.measuring.model_figures import sample_distance, validation_bound
from pipelines.recipes.config import Recipe, SweepMetric
from pipelines.sweeping.record import SweepRecord, Trial, TrialResult
from pipelines.sweeping.setting import apply
from pipelines.training.run import check_run, worker_spec
from pipelines.training.trainer import fit
from pipelines.training.watching import watched

METRICS: dict[SweepMetric, str] = {"distance": NAME, "bits_per_dim": "bits_per_dim"}
"""By the name that asks for it, the figure's own."""
NUM_SHOWN = 36
"""Images of each trial that are kept to look at."""

Post = Callable[[str, Any], None]
"""Tells the driver: `logged`, a row of a training's history; `warned`, a line."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What all trials of a sweep are measured with; the same for each."""

    recipe: Recipe
    index: DatasetIndex
    folder: str
    """The sweep's."""
    num_images: int
    bits_per_dim: bool
    """Whether that is measured, too."""
    reference: FeatureStats
    weights: Weights | None = None
    """Of a model that is there: then nothing is trained."""

    def recipe_of(self, trial: Trial, step: int) -> Recipe:
        """The recipe with the trial's setting and seed, to a step: of the recipe's own batch size, whatever the trial's."""
        recipe = apply(replace(self.recipe, train=replace(self.recipe.train, steps=step)), trial.setting)
        return replace(recipe, train=replace(recipe.train, seed=trial.seed, keep_checkpoints=1), name=None)


def run_trial(bench: Bench, trial: Trial, step: int, post: Post) -> TrialResult:
    """The trial's figure at a step: from the record, or trained and measured now.

    What is the setting's own fault (it diverges, does not fit into memory) is its figure, too: it would come again.
    """
    record = SweepRecord(bench.folder)
    found = record.result(trial, step)
    if found is not None:
        return found
    torch.set_num_threads(bench.recipe.train.threads)
    what: dict[str, Any] = {"setting": trial.setting, "seed": trial.seed, "step": step}
    began = time.perf_counter()
    try:
        weights = bench.weights or _train_to(bench, trial, step, record.run_uri(trial), post)
        train_s = 0.0 if bench.weights else time.perf_counter() - began
        metrics, samples = _measure(bench, bench.recipe_of(trial, step), weights)
        result = TrialResult(**what, metrics=metrics, train_s=train_s)
    except HeldError:
        raise
    except UserError as error:
        if isinstance(error, OSError):  # the store's, not the setting's
            raise
        result, samples = TrialResult(**what, failed=" ".join(str(error).split())), None
    record.write_result(result, samples)
    give_memory_back()
    return result


def _measure(bench: Bench, recipe: Recipe, weights: Weights) -> tuple[dict[str, float], bytes]:
    device = torch.device("cuda" if recipe.train.use_gpu else "cpu")
    model = Model.from_weights(weights, device)
    began = time.perf_counter()
    distance, images = sample_distance(model, bench.num_images, recipe.sample, bench.reference, NUM_SHOWN)
    sample_s = (time.perf_counter() - began) / bench.num_images
    passes = network_passes(recipe.sample.sampler, model.config.schedule.num_timesteps)
    metrics = {METRICS["distance"]: distance, "sample_s": sample_s, "passes": float(passes)}
    bound = validation_bound(model, bench.index, recipe.evaluate) if bench.bits_per_dim else None
    if bound is not None:
        metrics[METRICS["bits_per_dim"]] = bound
    return metrics, image_grid(images, columns=6)


def _train_to(bench: Bench, trial: Trial, step: int, run_uri: str, post: Post) -> Weights:
    """The averaged weights at a step, trained from wherever the run is."""
    recipe = bench.recipe_of(trial, step)
    warned = partial(post, "warned")
    with hold_run(run_uri, say=warned, until_free=True) as hold:  # one that was killed may seem alive for a while
        store = CheckpointStore(run_uri, hold)
        check_run(recipe, bench.index, None, store)
        what = worker_spec(recipe, bench.index, run_uri, None)
        if recipe.train.num_workers == 1:
            _train_here(what, store, recipe, bench, post)
        else:
            fit(what, hold, recipe.train, partial(_pass_on, post))
    return read_weights(checkpoint_uri(run_uri, recipe.train.steps))


def _train_here(what: WorkerSpec, store: CheckpointStore, recipe: Recipe, bench: Bench, post: Post) -> None:
    def checkpointer(state: TrainState) -> Checkpointer:
        return Checkpointer(state, what.train, what.run, store, saved=lambda uri: None, warned=partial(post, "warned"))

    events = Events(logged=partial(post, "logged"), look=lambda state: None, warned=partial(post, "warned"))
    device = torch.device("cuda" if recipe.train.use_gpu else "cpu")
    worker = Worker(rank=0, num_workers=1, device=device)
    with watched(events, what.run.uri, worker) as seen:
        run_worker(what, worker, seen, shard_cache(), store, checkpointer)


def _pass_on(post: Post, events: list[tuple[str, Any]]) -> None:
    for kind, what in events:
        post(kind, what)
