"""Evaluation beside training: a checkpoint's samples and validation's likelihood, measured by a task while the workers train on, or
on a GPU by the first worker.

A task of our own rather than Ray Train's asynchronous validation: that one belongs to a group of workers and to checkpoints
that Ray keeps; this one reads a checkpoint at its URI, and outlives the group that wrote it.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
import torch

from ddpm_core.api.model import Model
from ddpm_core.artifacts.checkpoint import read_weights, step_of
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.artifacts.validation import DISTANCE, read_validations, write_validation
from ddpm_core.evaluation.features.random_conv import NAME
from ddpm_core.evaluation.frechet import FeatureStats
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.training.checkpointing import Run
from ddpm_core.training.state import TrainState
from pipelines.cluster.placement import SHARE
from pipelines.cluster.tasks import give_memory_back
from pipelines.measuring.features import real_stats
from pipelines.measuring.model_figures import sample_distance, validation_bound
from pipelines.progress import say
from pipelines.recipes.config import Recipe
from pipelines.training.looker import averaged_model

logger = logging.getLogger(__name__)

_TELL_S = 30.0


class Validator:
    """Measures every n-th checkpoint, one at a time; of those that come meanwhile only the newest is measured next.

    One that cannot be measured is a warning: it may have been deleted before its turn came.
    """

    def __init__(self, recipe: Recipe, index: DatasetIndex, run_uri: str) -> None:
        self._recipe, self._index, self._run_uri = recipe, index, run_uri
        self._every = recipe.train.validate_every
        self._reference = real_stats(index, "train", recipe.evaluate, recipe.store) if self._every else None
        self._running: Any = None
        self._next: str | None = None

    def here(self, run: Run) -> Callable[[TrainState], dict[str, float] | None] | None:
        """What the first worker measures on its GPU, while the others wait: there is none to spare, and a CPU would take days."""
        if self._reference is None or not self._recipe.train.use_gpu:
            return None
        return partial(_validate_state, run=run, index=self._index, recipe=self._recipe, reference=self._reference)

    def saved(self, uri: str) -> None:
        """A checkpoint stands."""
        if not self._recipe.train.use_gpu and _is_due(step_of(uri), self._recipe, self._run_uri):
            self._next = uri
        self._start()

    def _start(self) -> None:
        if self._next is not None and self._running is None:
            uri, self._next = self._next, None
            # Of the share that training leaves.
            self._running = _validate.remote(uri, self._run_uri, self._index, self._recipe, self._reference)

    def found(self, *, wait: bool = False) -> list[dict[str, float]]:
        """Figures that have come in: step, distance under its own name, bits_per_dim.

        Args:
            wait: for all that are under way.
        """
        rows, began = [], time.monotonic()
        while self._running is not None:
            done, _ = ray.wait([self._running], timeout=_TELL_S if wait else 0)
            if not done and wait:
                say(
                    f"validate: waiting for the figures of the newest checkpoint, {time.monotonic() - began:.0f} s so far"
                )
                continue
            if not done:
                break
            running, self._running = self._running, None
            try:
                rows.append(ray.get(running))
            except ray.exceptions.RayError as error:  # training goes on without this figure
                reason = str(error).strip().splitlines()[-1]
                logger.warning("a checkpoint of %s could not be validated: %s", self._run_uri, reason)
            self._start()
        return rows


def validate(
    model: Model, step: int, run_uri: str, index: DatasetIndex, recipe: Recipe, reference: FeatureStats
) -> dict[str, float]:
    """Figures of averaged weights, on the model's device; written beside its run, and returned as they are logged."""
    request = SampleConfig(sampler=recipe.sample.sampler)
    metrics = {DISTANCE: sample_distance(model, recipe.train.validate_images, request, reference)[0]}
    bound = validation_bound(model, index, recipe.evaluate)
    if bound is not None:
        metrics["bits_per_dim"] = bound
    write_validation(run_uri, step, metrics)
    shown = {(NAME if name == DISTANCE else name): value for name, value in metrics.items()}
    return {"step": step, **{f"validation/{name}": value for name, value in shown.items()}}


def _is_due(step: int, recipe: Recipe, run_uri: str) -> bool:
    every = recipe.train.validate_every
    return every > 0 and step % every == 0 and step not in read_validations(run_uri)


def _validate_state(
    state: TrainState, run: Run, index: DatasetIndex, recipe: Recipe, reference: FeatureStats
) -> dict[str, float] | None:
    if not _is_due(state.step, recipe, run.uri):
        return None
    return validate(averaged_model(state, run.config), state.step, run.uri, index, recipe, reference)


@ray.remote(num_cpus=SHARE)
def _validate(uri: str, run_uri: str, index: DatasetIndex, recipe: Recipe, reference: FeatureStats) -> dict[str, float]:
    torch.set_num_threads(1)
    weights = read_weights(uri)
    try:
        return validate(Model.from_weights(weights), weights.step, run_uri, index, recipe, reference)
    finally:
        give_memory_back()  # training goes on beside it
