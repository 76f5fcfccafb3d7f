"""The sweep stage: Ray Tune over noise schedules, early stopping by ASHA, ranked on a distance between images.

The training loss cannot rank schedules: its scale changes with them. A trial is a run like any other: it lies where train.py
would put it, so the winner needs no second training.
"""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import quote

import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, hold_run
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.artifacts.run_record import Hold
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.evaluation.features.random_conv import NAME, extract
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance
from ddpm_core.serialization import to_json
from ddpm_core.training.checkpointing import Checkpointer
from ddpm_core.training.loop import Events
from ddpm_core.training.parallel import Worker
from ddpm_core.training.state import TrainState
from ddpm_core.training.worker import WorkerSpec, run_worker
from pipelines.cluster.placement import Ask, Waiting, for_trials
from pipelines.cluster.session import shard_cache
from pipelines.measuring.features import real_stats
from pipelines.naming import run_folder
from pipelines.progress import say
from pipelines.recipes.config import Recipe, SweepStage
from pipelines.stages.train import preview_images, run_name, worker_spec
from pipelines.tracking import RunHandle, Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep found."""

    uri: str
    """sweep.json, with the whole ranking."""
    ranking: list[dict[str, Any]]
    """Best first: schedule, step reached, distance, run."""


def run_sweep(
    recipe: Recipe, config: SweepStage, index: DatasetIndex, hold: Hold, tracker: Tracker, parent: RunHandle
) -> Swept:
    """Try schedules and rank them; run again, it goes on where it was.

    Args:
        hold: on the sweep's folder.

    Raises:
        HeldError: if another job took the sweep over.
    """
    folder, name = hold.folder, hold.folder.rpartition("/")[2]
    reference = real_stats(index, "train", recipe.evaluate, recipe.store)
    runs = _ChildRuns(tracker, parent, name)
    tuner = _tuner(recipe, config, index, reference, folder, runs)
    with runs.told_while_none_runs(for_trials(config, recipe.train)):
        results = tuner.fit()
    failed = [str(error) for error in results.errors]
    if len(failed) == config.num_trials:
        raise RuntimeError(f"all {config.num_trials} trials failed; the first: {failed[0]}")
    ranking = sorted((_row(result) for result in results if result.metrics and NAME in result.metrics), key=_rank)
    hold.change()  # who lost the sweep says so here, and writes nothing
    uri = storage.join(folder, "sweep.json")
    facts = {"metric": NAME, "dataset": index.digest, "sweep": to_json(config), "ranking": ranking, "failed": failed}
    storage.write_bytes(uri, json.dumps(facts, indent=2).encode())
    return Swept(uri=uri, ranking=ranking)


def _rank(row: dict[str, Any]) -> tuple[int, float]:
    """Trials that went further stand above those that were stopped; among equals the smaller distance."""
    return -int(row["step"]), float(row[NAME])


def _row(result: Any) -> dict[str, Any]:
    return {"schedule": _schedule_fields(result.config), **{key: result.metrics[key] for key in ("step", NAME, "run")}}


def _tuner(
    recipe: Recipe,
    config: SweepStage,
    index: DatasetIndex,
    reference: FeatureStats,
    folder: str,
    callback: tune.Callback,
) -> tune.Tuner:
    rung = config.first_rung(recipe.train.steps)
    train = replace(recipe.train, num_workers=1, checkpoint_every=rung, preview_every=rung)
    trainable = tune.with_resources(
        tune.with_parameters(
            _trial, recipe=replace(recipe, train=train, name=None), sweep=config, index=index, reference=reference
        ),
        for_trials(config, train).resources,
    )
    folder = _for_ray(folder)
    records = storage.join(folder, "ray")
    if tune.Tuner.can_restore(records):
        return tune.Tuner.restore(records, trainable, resume_errored=True)
    asha = ASHAScheduler(
        time_attr="step",
        max_t=max(recipe.train.steps, 1),
        grace_period=rung,
        reduction_factor=config.reduction_factor,
    )
    return tune.Tuner(
        trainable,
        param_space={
            "name": tune.choice(list(config.schedules)),
            "beta_start": tune.loguniform(*config.beta_start),
            "beta_end": tune.loguniform(*config.beta_end),
        },
        tune_config=tune.TuneConfig(
            metric=NAME,
            mode="min",
            num_samples=config.num_trials,
            scheduler=asha,
            search_alg=BasicVariantGenerator(max_concurrent=config.max_concurrent, random_state=config.seed),
        ),
        run_config=tune.RunConfig(name="ray", storage_path=folder, verbose=0, callbacks=[callback]),
    )


def _for_ray(uri: str) -> str:
    """Ray takes local paths as they are, and what follows s3:// as a URI's, with %NN for all but the plainest characters."""
    return f"s3://{quote(uri.removeprefix('s3://'))}" if storage.is_s3(uri) else uri


def _trial(
    drawn: dict[str, Any], recipe: Recipe, sweep: SweepStage, index: DatasetIndex, reference: FeatureStats
) -> None:
    """Train one schedule; at every rung generate, measure, report."""
    torch.set_num_threads(recipe.train.threads)
    schedule = replace(recipe.schedule, **_schedule_fields(drawn))
    recipe = replace(recipe, schedule=schedule)
    name = run_name(recipe, index, None)
    what = worker_spec(recipe, index, run_folder(recipe.store, name), None)

    def measure(state: TrainState) -> None:
        seeds = range(sweep.num_images)
        batches = (preview_images(state, what.run.config, seeds[i : i + 64]) for i in range(0, len(seeds), 64))
        generated = FeatureStats.from_features(extract(torch.cat(list(batches))))
        tune.report({"step": state.step, NAME: frechet_distance(generated, reference), "run": name})

    device = torch.device("cuda" if recipe.train.use_gpu else "cpu")
    events = Events(logged=lambda row: None, preview=measure, warned=logger.warning)
    worker = Worker(rank=0, num_workers=1, device=device)

    # Another sweep may draw the same trial: then it is done once.
    with hold_run(what.run.uri, say=logger.warning, until_free=True) as hold:
        store = CheckpointStore(what.run.uri, hold)
        run_worker(what, worker, events, shard_cache(), store, partial(_checkpointer, what=what, store=store))


def _checkpointer(state: TrainState, what: WorkerSpec, store: CheckpointStore) -> Checkpointer:
    return Checkpointer(state, what.train, what.run, store, saved=lambda uri: None, warned=logger.warning)


def _schedule_fields(drawn: dict[str, Any]) -> dict[str, Any]:
    """The drawn fields that the schedule reads: cosine and jsd have no betas of their own."""
    return dict(drawn) if ScheduleConfig(name=drawn["name"]).reads_betas else {"name": drawn["name"]}


class _ChildRuns(tune.Callback):  # type: ignore[misc]
    """Shows each trial as an MLflow run under the sweep; in the driver, where Tune's loop runs."""

    def __init__(self, tracker: Tracker, parent: RunHandle, name: str) -> None:
        self._tracker, self._parent, self._name = tracker, parent, name
        self._open: dict[str, tuple[ExitStack, RunHandle]] = {}
        self._running: set[str] = set()

    @contextmanager
    def told_while_none_runs(self, ask: Ask) -> Iterator[None]:
        """Says every minute what the trials wait for; Tune itself says nothing."""
        waited, ended = Waiting(ask, say), threading.Event()

        def watch() -> None:
            while not ended.wait(1):
                if self._running:
                    waited.started()
                else:
                    waited.tick()

        threading.Thread(target=watch, name="told while none runs", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It has its place."""
        self._running.add(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log the figure of a rung."""
        self._handle(trial).log_metrics([{"step": result["step"], NAME: result[NAME]}])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the trial's run."""
        self._running.discard(trial.trial_id)
        self._handle(trial)
        self._open.pop(trial.trial_id)[0].close()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the trial's run, and say that it failed."""
        self._running.discard(trial.trial_id)
        self._handle(trial).set_tags({"error": "the trial failed; see Ray's logs"})
        self._open.pop(trial.trial_id)[0].close()

    def _handle(self, trial: Any) -> RunHandle:
        if trial.trial_id not in self._open:
            stack = ExitStack()
            run = self._tracker.run(
                f"trial {trial.config['name']}",
                parent=self._parent,
                key=f"{self._name}-{trial.trial_id}",
                params={"schedule": _schedule_fields(trial.config)},
            )
            self._open[trial.trial_id] = (stack, stack.enter_context(run))
        return self._open[trial.trial_id][1]
