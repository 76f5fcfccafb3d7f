"""The train stage: a run held, trained by Ray Train, and what is shown of it meanwhile."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ddpm_core.artifacts.checkpoint import (
    Checkpoint,
    HistoryRow,
    Weights,
    checkpoint_uri,
)
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, hold_run
from ddpm_core.artifacts.looks import read_looks
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.errors import HeldError, UserError
from ddpm_core.evaluation.features.random_conv import NAME as DISTANCE_NAME
from ddpm_core.training.ailments import Verdict, judge
from ddpm_core.training.averages import young_average
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.course import Course, course_from, course_of
from pipelines.metrics import RUN_HELD_SINCE, VALIDATION_BITS_PER_DIM, VALIDATION_DISTANCE, Gauges
from pipelines.naming import run_folder
from pipelines.progress import Progress, counted, progress, say
from pipelines.recipes.config import Recipe
from pipelines.tracking import Machine, RunHandle
from pipelines.training.looker import Looked, Looker
from pipelines.training.page import ProgressPage
from pipelines.training.run import check_run, fewer_than_said, keep_recipe, run_name, why_anew, worker_spec
from pipelines.training.trainer import fit
from pipelines.training.validation import Validator

_VALIDATION = {f"validation/{DISTANCE_NAME}": VALIDATION_DISTANCE, "validation/bits_per_dim": VALIDATION_BITS_PER_DIM}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training run has come to."""

    name: str
    run_uri: str
    checkpoint_uri: str
    step: int
    images_per_s: float
    verdict: Verdict
    """Whether it went well."""
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
    fewer = fewer_than_said(recipe)  # now: the file may be another one, or gone, once the run has come to its end
    if not _is_done(recipe, index, init_from, run_uri, run):
        with hold_run(run_uri, say=say) as hold, Gauges(run=name) as gauges:
            gauges.set(RUN_HELD_SINCE, datetime.fromisoformat(hold.holder.since).timestamp(), host=hold.holder.host)
            checkpoint = check_run(recipe, index, init_from, CheckpointStore(run_uri, hold))
            done, history = _steps_done(checkpoint, run), checkpoint.history if checkpoint else []
            keep_recipe(recipe, run_uri)
            validator, what = Validator(recipe, index, run_uri), worker_spec(recipe, index, run_uri, init_from)
            page = ProgressPage(run_uri, course_from(what.run.config, read_looks(run_uri), history), recipe.train.steps)
            with progress("train", recipe.train.steps, "step", initial=max(done, 0)) as shown:
                if done < 0 and (why := why_anew(recipe, index, init_from)):
                    shown.say(f"train: {why}")
                if done > 0:
                    shown.say(f"train: goes on from step {done:,} of {recipe.train.steps:,}")
                shown.say(f"train: starting Ray Train and {counted(recipe.train.num_workers, 'worker')}")
                reporter = _ProgressReporter(run, shown, validator, recipe.train, gauges, page, goes_on=done > 0)
                looker = Looker(what.run, index, recipe.train)
                try:
                    fit(what, hold, recipe.train, reporter.tell, looker, validator.here(what.run))
                    reporter.note(validator.found(wait=True))
                except HeldError:  # the page is another job's by now
                    raise
                except BaseException:
                    # What ended the training is told, and not that its page cannot be written.
                    with suppress(UserError, OSError):
                        page.stop()
                    raise
    final = checkpoint_uri(run_uri, recipe.train.steps)
    course = course_of(final)
    verdict = _judged(course, run_uri, recipe.train.steps, run)
    if fewer:
        say(f"train: {fewer}")
    rates = sorted(row["images_per_s"] for row in course.history)
    return Trained(
        name=name,
        run_uri=run_uri,
        checkpoint_uri=final,
        step=recipe.train.steps,
        images_per_s=rates[len(rates) // 2] if rates else 0.0,
        verdict=verdict,
    )


def _judged(course: Course, run_uri: str, steps: int, run: RunHandle) -> Verdict:
    """What to think of a run that has come to its end; told, and shown on its page and in MLflow."""
    verdict, page = judge(course), ProgressPage(run_uri, course, steps)
    for line in verdict.lines:
        say(f"train: {line}")
    if not page.is_last():
        page.write(verdict)
        run.set_tags({"course": verdict.words, "ailments": ", ".join(each.name for each in verdict.ailments)})
        run.log_file(page.uri)
    return verdict


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
        self,
        run: RunHandle,
        shown: Progress,
        validator: Validator,
        train: TrainConfig,
        gauges: Gauges,
        page: ProgressPage,
        *,
        goes_on: bool = False,
    ) -> None:
        self._run, self._shown, self._validator, self._train = run, shown, validator, train
        self._gauges, self._page, self._goes_on = gauges, page, goes_on
        self._warned = False
        self._step, self._machine = 0, Machine()

    def tell(self, events: list[tuple[str, Any]]) -> None:
        """What the workers posted."""
        if self._goes_on:  # here, where workers are still being started: it takes a second
            self._goes_on = False
            self._page.go_on()
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
            if kind == "at" and what > self._shown.count:
                self._shown.set(what)
            elif kind == "looked":
                self._show(what)
            elif kind == "saved":
                self._validator.saved(what)
            elif kind == "validated":
                self.note([what])
            elif kind == "warned":
                self._shown.say(what)
        if self._shown.count == self._train.steps:
            self._shown.beat("the last look at it")
        if self._page.tell(rows, [what.look for kind, what in events if kind == "looked"]):
            self._shown.say(f"train: how it goes, on a page that keeps up: {self._page.uri}")
        self.note(self._validator.found())
        if self._step and (machine := self._machine.read()):
            self._run.log_metrics([{"step": self._step, **machine}])
        self._run.keep_up()

    def _show(self, looked: Looked) -> None:
        self._run.log_metrics([{"step": looked.look.step, **looked.look.metrics}])
        if looked.grid:
            self._warn_once(looked.look.step)
            self._run.log_picture(looked.grid, "samples/ema", step=looked.look.step)

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
