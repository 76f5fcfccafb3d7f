"""The sweep stage: settings tried on the same data, seeds and noise, the best taken further, and the winner held against chance.

The training loss cannot rank settings: its scale changes with the noise schedule, and it falls while samples get worse.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights, checkpoint_uri, read_checkpoint
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, hold_run
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.artifacts.run_record import Hold
from ddpm_core.errors import FailedError
from ddpm_core.serialization import to_json
from pipelines.cluster.placement import for_trials, trials_at_once
from pipelines.measuring.features import real_stats
from pipelines.naming import run_folder
from pipelines.progress import counted, say
from pipelines.recipes.config import Recipe, SweepStage
from pipelines.recipes.files import recipe_file
from pipelines.sweeping.board import Board
from pipelines.sweeping.identity import identity_of, known_settings, space_words
from pipelines.sweeping.page import sweep_page
from pipelines.sweeping.plan import settings_of, steps_in_all
from pipelines.sweeping.proposals import tpe
from pipelines.sweeping.ranking import Ranked, best, rank, verdict
from pipelines.sweeping.record import SweepRecord, Trial
from pipelines.sweeping.search import Asha, Batch, Fleet, run_batches
from pipelines.sweeping.setting import Setting, apply, read_part
from pipelines.sweeping.space import Space
from pipelines.sweeping.trial import METRICS, Bench
from pipelines.tracking import RunHandle, Tracker
from pipelines.training.run import run_name

State = Literal["running", "interrupted", "failed", "out of time", "finished"]


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep found."""

    uri: str
    """sweep.json, with the whole ranking."""
    page_uri: str
    """What a person looks at."""
    winner_uri: str
    """The winner as a recipe file."""
    ranking: list[Ranked]
    """Best first."""
    verdict: str
    """Whether the winner's lead is more than chance, in a sentence."""
    state: State


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sweep:
    """A sweep at work."""

    recipe: Recipe
    config: SweepStage
    space: Space
    bench: Bench
    steps: tuple[int, ...]
    """Of the rungs."""
    hold: Hold
    record: SweepRecord
    settings: list[Setting]
    facts: dict[str, Any]
    """What sweep.json says beside settings and ranking."""
    deadline: float | None

    @property
    def metric(self) -> str:
        return METRICS[self.config.metrics[0]]

    @property
    def seed(self) -> int:
        return self.recipe.train.seed

    def trials(self, settings: Sequence[Setting]) -> list[Trial]:
        return [Trial(setting=each, seed=self.seed) for each in settings]

    def keep(self, state: State) -> list[Ranked]:
        """Write sweep.json, and return the ranking as it is now."""
        ranking = rank(self.record.results(), self.settings, self.metric, self.seed)
        self.hold.change()  # who lost the sweep says so here, and writes nothing
        outcome = {
            "settings": self.settings,
            "state": state,
            "verdict": verdict(ranking, self.metric),
            "ranking": [_row(each) for each in ranking],
        }
        self.record.write({**self.facts, **outcome})
        return ranking


def run_sweep(
    recipe: Recipe,
    config: SweepStage,
    space: Space,
    index: DatasetIndex,
    hold: Hold,
    tracker: Tracker,
    parent: RunHandle,
    weights: Weights | None = None,
) -> Swept:
    """Try settings and rank them; run again, it goes on where it was.

    Args:
        hold: on the sweep's folder.
        weights: of a model that is there: its samplers are tried, and nothing is trained.

    Raises:
        InputError: if a sweep of that name was begun otherwise, or there is nothing to try.
        HeldError: if another job took the sweep over.
        FailedError: if all trials failed.
    """
    sweep = _open(recipe, config, space, index, hold, weights)
    sweep.keep("running")
    state: State = "failed"
    try:
        finished = _search(sweep, tracker, parent)
        state = "finished" if finished else "out of time"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    finally:
        ranking = sweep.keep(state)
    standing = [row for row in ranking if not row.failed]
    if not standing:
        why = ranking[0].failed if ranking else "their processes were lost, or there was no time for one"
        raise FailedError(f"none of {counted(len(sweep.settings), 'trial')} came to a figure; the first: {why}")
    swept = _write_outcome(sweep, ranking, recipe, state)
    if finished and weights is None:
        _adopt(sweep, standing[0])
        for uri, _ in storage.list_files(storage.join(hold.folder, "runs")):  # what was found of them is on record
            storage.delete(uri)
    return swept


def _open(
    recipe: Recipe, config: SweepStage, space: Space, index: DatasetIndex, hold: Hold, weights: Weights | None
) -> _Sweep:
    """The sweep as it stands."""
    workers = replace(recipe.train, num_workers=config.num_workers, min_workers=None)
    recipe, record = replace(recipe, train=workers), SweepRecord(hold.folder)
    identity = identity_of(recipe, config, index, weights)
    known = known_settings(record, identity, space, recipe.train.seed)
    bench = Bench(
        recipe=recipe,
        index=index,
        folder=hold.folder,
        num_images=config.num_images,
        bits_per_dim="bits_per_dim" in config.metrics,
        reference=real_stats(index, "train", recipe.evaluate, recipe.store),
        weights=weights,
    )
    return _Sweep(
        recipe=recipe,
        config=config,
        space=space,
        bench=bench,
        steps=(weights.step,) if weights else config.rungs(recipe.train.steps),
        hold=hold,
        record=record,
        settings=settings_of(recipe, config, space, (index.image_size, index.channels), known),
        facts={**identity, "space": space_words(space), "sweep": to_json(config)},
        deadline=None if config.max_hours is None else time.monotonic() + 3600 * config.max_hours,
    )


def _write_outcome(sweep: _Sweep, ranking: list[Ranked], recipe: Recipe, state: State) -> Swept:
    """The winner as a recipe, and the page.

    Args:
        recipe: as it was given, with its own number of workers.
    """
    folder, said = sweep.hold.folder, verdict(ranking, sweep.metric)
    winner = recipe_file(apply(recipe, ranking[0].setting), f"The winner of the sweep in {folder}")
    winner_uri, page_uri = (storage.join(folder, name) for name in ("winner.toml", "sweep.html"))
    storage.write_bytes(winner_uri, winner.encode())
    page = sweep_page(
        sweep.record,
        ranking,
        sweep.recipe,
        sweep.bench.index,
        sweep.space,
        sweep.metric,
        state=state,
        verdict=said,
        measured=_measured(sweep),
        winner=winner,
    )
    storage.write_bytes(page_uri, page.encode())
    return Swept(
        uri=sweep.record.uri,
        page_uri=page_uri,
        winner_uri=winner_uri,
        ranking=ranking,
        verdict=said,
        state=state,
    )


def _search(sweep: _Sweep, tracker: Tracker, parent: RunHandle) -> bool:
    """Bring all settings as far as they are to go; whether there was time for that."""
    config, train = sweep.config, sweep.recipe.train
    trained = sweep.bench.weights is None
    total = steps_in_all(max(len(sweep.settings), config.num_trials), config, train.steps) if trained else 0
    with Board(sweep.settings, sweep.seed, sweep.metric, total, tracker, parent) as board:
        board.known(sweep.record.results())
        asha = Asha(metric=sweep.metric, rungs=sweep.steps, factor=config.reduction_factor)
        fleet = Fleet(
            bench=sweep.bench,
            ask=replace(for_trials(config, train), count=trials_at_once(config, train)),
            tell=board.tell,
            entered=board.enter,
            time_s=None if sweep.deadline is None else sweep.deadline - time.monotonic(),
            asha=asha if config.stopping == "asha" and trained else None,
        )
        run_batches(fleet, _agenda(sweep))
    return sweep.deadline is None or time.monotonic() < sweep.deadline


def _agenda(sweep: _Sweep) -> Iterator[Batch]:
    """What is tried, one batch after the other, each by what came of those before; without what is on record already."""
    config, steps = sweep.config, sweep.steps
    if config.search == "tpe":
        yield _proposals(sweep)
    if config.stopping == "asha":
        # Those on record, too: by what they tell of it, at once, the others are stopped or not.
        yield Batch(phase="asha", trials=sweep.trials(sweep.settings), steps=steps)
    else:
        for number, step in enumerate(steps, 1):
            going_on = list(range(len(sweep.settings)))
            if number > 1:
                count = max(1, len(sweep.settings) // config.reduction_factor ** (number - 1))
                going_on = best(sweep.record.results(), sweep.settings, sweep.metric, steps[number - 2], count)
            trials = sweep.trials([sweep.settings[place] for place in sorted(going_on)])
            phase = f"rung {number} of {len(steps)}"
            yield Batch(phase=phase, trials=_missing(sweep, trials, step), steps=(step,))
    if sweep.bench.weights is None and config.repeats:
        yield Batch(phase="finalists", trials=_missing(sweep, _repeats(sweep), steps[-1]), steps=(steps[-1],))


def _proposals(sweep: _Sweep) -> Batch:
    """Settings that Optuna proposes, as many as are missing."""
    recipe, space = sweep.recipe, sweep.space
    known = [each for each in sweep.record.results() if each.step == sweep.steps[0]]
    return Batch(
        phase="proposals",
        proposals=max(0, sweep.config.num_trials - len(sweep.settings)),
        search=tpe(recipe, space, known, sweep.metric, sweep.config.seed),
        decoded=lambda words: sweep.trials([read_part(recipe, space.decoded(words))])[0],
        steps=sweep.steps[:1],
    )


def _repeats(sweep: _Sweep) -> list[Trial]:
    """The finalists again, all with the same fresh seeds. Chosen by their own seed alone: a sweep that goes on has the same."""
    ranking = rank(sweep.record.results(), sweep.settings, sweep.metric, sweep.seed)
    standing = (row for row in ranking if not row.failed)
    finalists = sorted(standing, key=lambda row: (-row.step, row.metrics[sweep.metric], row.number))
    seeds = range(sweep.seed + 1, sweep.seed + 1 + sweep.config.repeats)
    return [Trial(setting=row.setting, seed=seed) for seed in seeds for row in finalists[: sweep.config.finalists]]


def _missing(sweep: _Sweep, trials: Sequence[Trial], step: int) -> list[Trial]:
    return [trial for trial in trials if sweep.record.result(trial, step) is None]


def _row(row: Ranked) -> dict[str, Any]:
    interval = row.interval
    return {
        **asdict(row),
        "course": {str(step): value for step, value in row.course.items()},
        "mean": interval.value if interval else None,
        "interval": [interval.low, interval.high] if interval else None,
    }


def _measured(sweep: _Sweep) -> str:
    """On what the figures are, in a sentence."""
    config, said = sweep.config, []
    if "distance" in config.metrics:
        said.append(
            f"{METRICS['distance']} of {config.num_images:,} images of the same seeds against all training images"
        )
    if "bits_per_dim" in config.metrics:
        said.append(
            f"bits/dim of up to {sweep.recipe.evaluate.bits_per_dim_images:,} validation images under the same noise"
        )
    return f"Less is better: {'; '.join(said)}. All settings saw the same images in the same order."


def _adopt(sweep: _Sweep, winner: Ranked) -> None:
    """The winner's run where train.py would have put it, so that nobody trains it once more; not one that was stopped early."""
    recipe = replace(apply(sweep.recipe, winner.setting), name=None)
    uri = run_folder(recipe.store, run_name(recipe, sweep.bench.index, None))
    trial = Trial(setting=winner.setting, seed=sweep.seed)
    source = checkpoint_uri(sweep.record.run_uri(trial), winner.step)
    if winner.step == sweep.steps[-1] and storage.exists(storage.join(source, "state.json")):
        with hold_run(uri, say=say, until_free=True) as hold:
            store = CheckpointStore(uri, hold)
            if not store.steps():
                store.commit(read_checkpoint(source))
