"""The train stage: a run held, trained by Ray Train, and what is shown of it meanwhile."""

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import torch

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import (
    Checkpoint,
    HistoryRow,
    Weights,
    checkpoint_uri,
    read_history,
)
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, hold_run
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.evaluation.features.random_conv import NAME as DISTANCE_NAME
from ddpm_core.evaluation.pictures import image_grid
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.training.averages import young_average
from ddpm_core.training.checkpointing import Run
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.state import TrainState
from ddpm_core.types import Tensor
from pipelines.metrics import RUN_HELD_SINCE, VALIDATION_BITS_PER_DIM, VALIDATION_DISTANCE, Gauges
from pipelines.naming import run_folder
from pipelines.progress import Progress, counted, progress, say
from pipelines.recipes.config import Recipe
from pipelines.tracking import Machine, RunHandle
from pipelines.training.run import check_run, keep_recipe, run_name, worker_spec
from pipelines.training.trainer import fit
from pipelines.training.validation import Validator, averaged_model

_PREVIEW_IMAGES, _PREVIEW_STEPS = 64, 25
_VALIDATION = {f"validation/{DISTANCE_NAME}": VALIDATION_DISTANCE, "validation/bits_per_dim": VALIDATION_BITS_PER_DIM}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training run has come to."""

    name: str
    run_uri: str
    checkpoint_uri: str
    step: int
    images_per_s: float
    version: int | None = None
    """In the registry; none if MLflow was away when it was to be registered."""


def run_train(recipe: Recipe, index: DatasetIndex, run: RunHandle, init_from: Weights | None = None) -> Trained:
    """Train the recipe on a dataset, from its newest checkpoint on, and track it.

    Raises:
        InputError: as `check_run`.
        HeldError: if another job trains the run, or took it over.
        RuntimeError: if training failed more often than it is retried.
    """
    name = run_name(recipe, index, init_from)
    run_uri = run_folder(recipe.store, name)
    if not _is_done(recipe, index, init_from, run_uri, run):
        with hold_run(run_uri, say=say) as hold, Gauges(run=name) as gauges:
            gauges.set(RUN_HELD_SINCE, datetime.fromisoformat(hold.holder.since).timestamp(), host=hold.holder.host)
            done = _steps_done(check_run(recipe, index, init_from, CheckpointStore(run_uri, hold)), run)
            keep_recipe(recipe, run_uri)
            validator, what = Validator(recipe, index, run_uri), worker_spec(recipe, index, run_uri, init_from)
            with progress("train", recipe.train.steps, "step", initial=max(done, 0)) as shown:
                shown.say(f"train: starting Ray Train and {counted(recipe.train.num_workers, 'worker')}")
                reporter = _ProgressReporter(run, shown, validator, recipe.train, gauges)
                fit(what, hold, recipe.train, reporter.tell, partial(_preview, run=what.run), validator.here(what.run))
                reporter.note(validator.found(wait=True))
    final = checkpoint_uri(run_uri, recipe.train.steps)
    rates = sorted(row["images_per_s"] for row in read_history(final))
    return Trained(
        name=name,
        run_uri=run_uri,
        checkpoint_uri=final,
        step=recipe.train.steps,
        images_per_s=rates[len(rates) // 2] if rates else 0.0,
    )


def _is_done(recipe: Recipe, index: DatasetIndex, init_from: Weights | None, run_uri: str, run: RunHandle) -> bool:
    """Whether the run has come to its last step; it is left alone then."""
    store = CheckpointStore(run_uri)
    if store.steps()[-1:] != [recipe.train.steps]:
        return False
    return _steps_done(check_run(recipe, index, init_from, store), run) == recipe.train.steps


def _steps_done(checkpoint: Checkpoint | None, run: RunHandle) -> int:
    """Of the run; -1 before its first checkpoint. What its history says is tracked."""
    if checkpoint is None:
        return -1
    run.log_metrics(_points(checkpoint.history))
    return checkpoint.step


def _points(history: list[HistoryRow]) -> list[HistoryRow]:
    """The history as metrics: without the count that follows from the step."""
    return [{key: value for key, value in row.items() if key != "images_seen"} for row in history]


class _ProgressReporter:
    """Shows a run's progress, logs its figures and pictures, and has its checkpoints judged."""

    def __init__(
        self, run: RunHandle, shown: Progress, validator: Validator, train: TrainConfig, gauges: Gauges
    ) -> None:
        self._run, self._shown, self._validator, self._train, self._gauges = run, shown, validator, train, gauges
        self._warned = False
        self._step, self._machine = 0, Machine()

    def tell(self, events: list[tuple[str, Any]]) -> None:
        """What the workers posted."""
        rows = [what for kind, what in events if kind == "logged"]
        if rows:
            latest = rows[-1]
            self._step = int(latest["step"])
            self._shown.set(
                self._step,
                loss=f"{latest['loss']:.4f}",
                grad=f"{latest['grad_norm']:.2f}",
                speed=f"{latest['images_per_s']:.0f} images/s",
            )
            self._run.log_metrics(_points(rows))
        for kind, what in events:
            if kind == "preview":
                self._warn_once(what["step"])
                self._run.log_picture(what["uri"], "samples/ema", step=what["step"])
            elif kind == "saved":
                self._validator.saved(what)
            elif kind == "validated":
                self.note([what])
            elif kind == "warned":
                self._shown.say(what)
        self.note(self._validator.found())
        if self._step and (machine := self._machine.read()):
            self._run.log_metrics([{"step": self._step, **machine}])
        self._run.keep_up()

    def note(self, metrics: list[dict[str, float]]) -> None:
        """What validation found."""
        if metrics:
            self._warn_once(int(metrics[-1]["step"]))
            self._run.log_metrics(metrics)
            for name, metric in _VALIDATION.items():
                if name in metrics[-1]:
                    self._gauges.set(metric, metrics[-1][name])

    def _warn_once(self, step: int) -> None:
        """Whoever looks at the images of a young average is told so, at the first of them."""
        warning = "" if self._warned else young_average(self._train, step)
        if warning:
            self._warned = True
            self._shown.say(f"samples of step {step:,}: {warning}")


def preview_images(state: TrainState, config: dict[str, Any], seeds: range) -> Tensor:
    """Images of the averaged weights as they are now, uint8 [n, c, h, w]; a few DDIM steps each."""
    averaged = averaged_model(state, config)
    sampler = SamplerConfig(name="ddim", num_steps=min(_PREVIEW_STEPS, averaged.config.schedule.num_timesteps))
    return averaged.generate(torch.tensor(seeds), SampleConfig(sampler=sampler)).cpu()


def _preview(state: TrainState, run: Run) -> dict[str, Any]:
    images = preview_images(state, run.config, range(_PREVIEW_IMAGES))
    uri = storage.join(run.uri, "samples", f"step-{state.step:08d}.png")
    storage.write_bytes(uri, image_grid(images, columns=8))
    return {"uri": uri, "step": state.step}
