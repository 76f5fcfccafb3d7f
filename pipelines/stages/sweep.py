"""The sweep stage: settings tried on the same data, seeds and noise, the best taken further, and the winner held against chance.

The training loss cannot rank settings: its scale changes with the noise schedule, and it falls while samples get worse.
"""

import time
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
from pipelines.sweeping.agenda import Agenda
from pipelines.sweeping.board import Board
from pipelines.sweeping.identity import identity_of, known_settings
from pipelines.sweeping.page import sweep_page
from pipelines.sweeping.plan import settings_of, steps_in_all
from pipelines.sweeping.ranking import Ranked, verdict
from pipelines.sweeping.record import SweepRecord, Trial
from pipelines.sweeping.search import Asha, Fleet, run_batches
from pipelines.sweeping.setting import apply
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

    agenda: Agenda
    bench: Bench
    hold: Hold
    facts: dict[str, Any]
    """What sweep.json says beside settings and ranking."""
    deadline: float | None

    def keep(self, state: State) -> list[Ranked]:
        """Write sweep.json, and return the ranking as it is now."""
        ranking = self.agenda.ranking()
        self.hold.change()  # who lost the sweep says so here, and writes nothing
        outcome = {
            "settings": self.agenda.settings,
            "state": state,
            "verdict": verdict(ranking, self.agenda.metric),
            "ranking": [_row(each) for each in ranking],
        }
        self.agenda.record.write({**self.facts, **outcome})
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
        raise FailedError(f"none of {counted(len(sweep.agenda.settings), 'trial')} came to a figure; the first: {why}")
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
    agenda = Agenda(
        recipe=recipe,
        config=config,
        space=space,
        steps=(weights.step,) if weights else config.rungs(recipe.train.steps),
        trains=weights is None,
        metric=METRICS[config.metrics[0]],
        record=record,
        settings=settings_of(recipe, config, space, (index.image_size, index.channels), known),
    )
    return _Sweep(
        agenda=agenda,
        bench=bench,
        hold=hold,
        facts={**identity, "space": space.words, "sweep": to_json(config)},
        deadline=None if config.max_hours is None else time.monotonic() + 3600 * config.max_hours,
    )


def _write_outcome(sweep: _Sweep, ranking: list[Ranked], recipe: Recipe, state: State) -> Swept:
    """The winner as a recipe, and the page.

    Args:
        recipe: as it was given, with its own number of workers.
    """
    folder, agenda = sweep.hold.folder, sweep.agenda
    said = verdict(ranking, agenda.metric)
    winner = recipe_file(apply(recipe, ranking[0].setting), f"The winner of the sweep in {folder}.")
    winner_uri, page_uri = (storage.join(folder, name) for name in ("winner.toml", "sweep.html"))
    storage.write_bytes(winner_uri, winner.encode())
    page = sweep_page(
        agenda.record,
        ranking,
        agenda.recipe,
        sweep.bench.index,
        agenda.space,
        agenda.metric,
        state=state,
        verdict=said,
        measured=_measured(agenda),
        winner=winner,
    )
    storage.write_bytes(page_uri, page.encode())
    return Swept(
        uri=agenda.record.uri,
        page_uri=page_uri,
        winner_uri=winner_uri,
        ranking=ranking,
        verdict=said,
        state=state,
    )


def _search(sweep: _Sweep, tracker: Tracker, parent: RunHandle) -> bool:
    """Bring all settings as far as they are to go; whether there was time for that."""
    agenda = sweep.agenda
    config, train = agenda.config, agenda.recipe.train
    num_trials = max(len(agenda.settings), config.num_trials)
    total = steps_in_all(num_trials, config, agenda.steps) if agenda.trains else 0
    asha = Asha(metric=agenda.metric, rungs=agenda.steps, factor=config.reduction_factor)
    with Board(agenda.settings, train, agenda.metric, total, tracker, parent) as board:
        board.known(agenda.record.results())
        fleet = Fleet(
            bench=sweep.bench,
            ask=replace(for_trials(config, train), count=trials_at_once(config, train)),
            tell=board.tell,
            entered=board.enter,
            time_s=None if sweep.deadline is None else max(1.0, sweep.deadline - time.monotonic()),
            asha=asha if config.stopping == "asha" and agenda.trains else None,
        )
        run_batches(fleet, agenda.batches())
    return sweep.deadline is None or time.monotonic() < sweep.deadline


def _row(row: Ranked) -> dict[str, Any]:
    interval = row.interval
    return {
        **asdict(row),
        "course": {str(step): value for step, value in row.course.items()},
        "mean": interval.value if interval else None,
        "interval": [interval.low, interval.high] if interval else None,
    }


def _measured(agenda: Agenda) -> str:
    """On what the figures are, in a sentence."""
    config, said = agenda.config, []
    if "distance" in config.metrics:
        said.append(
            f"{METRICS['distance']} of {config.num_images:,} images of the same seeds against all training images"
        )
    if "bits_per_dim" in config.metrics:
        said.append(
            f"bits/dim of up to {agenda.recipe.evaluate.bits_per_dim_images:,} validation images under the same noise"
        )
    return f"Less is better: {'; '.join(said)}. All settings saw the same images in the same order."


def _adopt(sweep: _Sweep, winner: Ranked) -> None:
    """The winner's run where train.py would have put it, so that nobody trains it once more; not one that was stopped early."""
    agenda = sweep.agenda
    recipe = replace(apply(agenda.recipe, winner.setting), name=None)
    uri = run_folder(recipe.store, run_name(recipe, sweep.bench.index, None))
    trial = Trial(setting=winner.setting, seed=agenda.seed)
    source = checkpoint_uri(agenda.record.run_uri(trial), recipe.train.steps)
    if winner.step == agenda.steps[-1] and storage.exists(storage.join(source, "state.json")):
        with hold_run(uri, say=say, until_free=True) as hold:
            store = CheckpointStore(uri, hold)
            if not store.steps():
                store.commit(read_checkpoint(source))
