"""Optuna over a sweep's space: what to try next by what came of the trials before (TPE), and which fields decide."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from pipelines.recipes.config import Recipe
from pipelines.sweeping.record import TrialResult
from pipelines.sweeping.setting import Setting
from pipelines.sweeping.space import Choice, Range, Space, would_be_read

_NAME = "sweep"
_ENOUGH = 30
"""Trials from which on a field's importance is told."""


def tpe(recipe: Recipe, space: Space, known: Sequence[TrialResult], metric: str, seed: int) -> Searcher:
    """Optuna's search, as Ray Tune uses it, which knows of what was found before: so trials can be added later."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune.search.optuna").setLevel(logging.ERROR)
    # Not those of the other trials: a field that a setting leaves unread is not proposed.
    order = sorted(space.domains, key=lambda path: isinstance(space.domains[path], Range))

    def propose(trial: Any) -> None:
        """A value for each field that those before it leave read."""
        setting: Setting = {}
        for path in order:
            if would_be_read(recipe, setting, path, space):
                setting |= space.decoded({path: _proposed(trial, path, space.domains[path])})

    storage = optuna.storages.InMemoryStorage()
    _study(space, known, metric, storage)
    return OptunaSearch(space=propose, metric=metric, mode="min", storage=storage, study_name=_NAME, seed=seed)


def importance(results: Sequence[TrialResult], space: Space, metric: str) -> dict[str, float]:
    """What share of the variation at the first rung each field explains.

    Of trials that read all fields; empty if these are fewer than 30, or there is one field alone.
    """
    first = min((each.step for each in results), default=0)
    seen = {
        each.trial.name: each for each in results if each.step == first and each.setting.keys() == space.domains.keys()
    }
    if len(seen) < _ENOUGH or len(space.domains) < 2:
        return {}
    found: Mapping[str, float] = optuna.importance.get_param_importances(_study(space, list(seen.values()), metric))
    return dict(found)


def _study(space: Space, known: Sequence[TrialResult], metric: str, storage: Any = None) -> optuna.Study:
    study = optuna.create_study(storage=storage, study_name=_NAME, direction="minimize")
    distributions = {path: _distribution(domain) for path, domain in space.domains.items()}
    for result in known:
        if metric in result.metrics:
            params = space.encoded(result.setting)
            held = {path: distributions[path] for path in params}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=held, value=result.metrics[metric]))
    return study


def _proposed(trial: Any, path: str, domain: Choice | Range) -> Any:
    if isinstance(domain, Choice):
        return trial.suggest_categorical(path, list(domain.words))
    return trial.suggest_float(path, domain.low, domain.high, log=domain.log)


def _distribution(domain: Choice | Range) -> Any:
    if isinstance(domain, Choice):
        return optuna.distributions.CategoricalDistribution(list(domain.words))
    return optuna.distributions.FloatDistribution(domain.low, domain.high, log=domain.log)
