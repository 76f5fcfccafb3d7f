"""What a sweep tries, one batch after the other, each by what came of those before; what is on record is not done again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.recipes.config import Recipe, SweepStage
from pipelines.sweeping.plan import trials_at
from pipelines.sweeping.proposals import tpe
from pipelines.sweeping.ranking import Ranked, best, rank
from pipelines.sweeping.record import SweepRecord, Trial
from pipelines.sweeping.search import Batch
from pipelines.sweeping.setting import Setting, read_part
from pipelines.sweeping.space import Space

_TRIES = 4
"""Proposals for each new setting, at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Agenda:
    """What is tried, and how far."""

    recipe: Recipe
    config: SweepStage
    space: Space
    steps: tuple[int, ...]
    """Of the rungs, ascending."""
    trains: bool
    """Whether trials are trained, or samplers tried on a model that is there."""
    metric: str
    """What ranks."""
    record: SweepRecord
    settings: list[Setting]
    """In the order that numbers trials; it grows where settings are proposed."""

    @property
    def seed(self) -> int:
        """Of every setting's first training; finalists are trained again with those after it."""
        return self.recipe.train.seed

    def ranking(self) -> list[Ranked]:
        """By what is on record, best first."""
        return rank(self.record.results(), self.settings, self.metric, self.seed)

    def batches(self) -> Iterator[Batch]:
        """One after the other; the next is decided when it is asked for."""
        if self.config.search == "tpe":
            yield self._proposals()
        if self.config.stopping == "asha":
            # Those on record, too: by what they tell of it, at once, the others are stopped or not.
            yield Batch(phase="asha", trials=self._trials(self.settings), steps=self.steps)
        else:
            yield from self._rungs()
        if self.trains and self.config.repeats:
            yield self._batch("finalists", self._repeats(), self.steps[-1])

    def _rungs(self) -> Iterator[Batch]:
        """All to the first rung, of them the best to the next, and so on."""
        before = None
        for number, (step, count) in enumerate(trials_at(len(self.settings), self.config, self.steps).items(), 1):
            going_on = self.settings
            if before is not None:
                found = best(self.record.results(), self.settings, self.metric, before, count)
                going_on = [self.settings[place] for place in sorted(found)]
            yield self._batch(f"rung {number} of {len(self.steps)}", self._trials(going_on), step)
            before = step

    def _proposals(self) -> Batch:
        """Settings that Optuna proposes, as many as are missing; one that it proposes again is none of them."""
        known = [each for each in self.record.results() if each.step == self.steps[0]]
        wanted, tries = self.config.num_trials, 0

        def more() -> bool:
            # Of a small space it may propose the same few for ever.
            return len(self.settings) < wanted and tries < _TRIES * wanted

        def proposed(words: dict[str, Any]) -> Trial:
            nonlocal tries
            tries += 1
            setting = read_part(self.recipe, self.space.decoded(words))
            if setting not in self.settings:
                self.settings.append(setting)
            return Trial(setting=setting, seed=self.seed)

        return Batch(
            phase="proposals",
            more=more,
            search=tpe(self.recipe, self.space, known, self.metric, self.config.seed),
            proposed=proposed,
            steps=self.steps[:1],
        )

    def _repeats(self) -> list[Trial]:
        """The finalists again, all with the same fresh seeds. Chosen by their own seed: a sweep that goes on has the same ones."""
        standing = (row for row in self.ranking() if not row.failed)
        finalists = sorted(standing, key=lambda row: (-row.step, row.metrics[self.metric], row.number))
        seeds = range(self.seed + 1, self.seed + 1 + self.config.repeats)
        return [Trial(setting=row.setting, seed=seed) for seed in seeds for row in finalists[: self.config.finalists]]

    def _trials(self, settings: Sequence[Setting]) -> list[Trial]:
        return [Trial(setting=each, seed=self.seed) for each in settings]

    def _batch(self, phase: str, trials: Sequence[Trial], step: int) -> Batch:
        missing = [trial for trial in trials if self.record.result(trial, step) is None]
        return Batch(phase=phase, trials=missing, steps=(step,))
