"""What a sweep will do: its space and settings, how many trials go how far, and what cannot be, before anything starts."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from operator import attrgetter

import torch

from ddpm_core.diffusion.losses import check_objective
from ddpm_core.diffusion.reverse import check_prediction
from ddpm_core.diffusion.schedule import make_schedule
from ddpm_core.errors import InputError
from ddpm_core.model.config import ModelConfig
from ddpm_core.sampling.checks import check_request
from pipelines.datasets import find_dataset
from pipelines.recipes.config import Recipe, SweepStage
from pipelines.recipes.spaces import OPEN, SPACES
from pipelines.sweeping.setting import Setting
from pipelines.sweeping.space import Space, check_space, draws, grid, read_space

Shape = tuple[int | tuple[int, int], int]
"""Image size and channels."""


def shape_of(recipe: Recipe) -> Shape:
    """Of the dataset's images, or of those that the raw images become."""
    shape = recipe.data if recipe.dataset is None else find_dataset(recipe.dataset, recipe.store)
    return shape.image_size, shape.channels


def space_of(recipe: Recipe, said: Mapping[str, Sequence[str]], sweep: SweepStage) -> Space:
    """What is searched: what was said, or the space of the sweep's name, in an open one with the recipe's own words.

    Raises:
        InputError: in one line, naming the field or the space.
    """
    if not said and sweep.space not in SPACES:
        raise InputError(f"sweep.space is {sweep.space}; expected {', '.join(SPACES)}, or fields by --space.FIELD")
    return read_space(said or (_with_own(recipe, sweep.space) if sweep.space in OPEN else SPACES[sweep.space]))


def _with_own(recipe: Recipe, space: str) -> Mapping[str, Sequence[str]]:
    """Else the setting that the recipe has could not win."""
    own = {field: attrgetter(field.replace("-", "_"))(recipe) for field in SPACES[space]}
    return {
        field: (*words, own[field]) if isinstance(own[field], str) and own[field] not in words else words
        for field, words in SPACES[space].items()
    }


def checker(shape: Shape) -> Callable[[Recipe], None]:
    """Refuses a recipe whose model cannot be trained or sampled on images of a shape, by InputError."""

    def check(recipe: Recipe) -> None:
        check_objective(recipe.loss, recipe.reverse)
        check_prediction(recipe.reverse, make_schedule(recipe.schedule))
        model = ModelConfig(
            image_size=shape[0],
            channels=shape[1],
            unet=recipe.unet,
            schedule=recipe.schedule,
            reverse=recipe.reverse,
        )
        _build(model)
        check_request(model, recipe.sample, label_dropout=recipe.train.label_dropout)

    return check


def settings_of(
    recipe: Recipe, sweep: SweepStage, space: Space, shape: Shape, known: Sequence[Setting] = ()
) -> list[Setting]:
    """The settings that are tried, those that were tried before first; of tpe those alone: it proposes the others.

    Raises:
        InputError: if there are none, or a value can stand in none of them.
    """
    check = checker(shape)
    check_space(space, recipe, check)
    if sweep.search == "grid":
        found = grid(space, recipe, check)
        return [*known, *(each for each in found if each not in known)]
    if sweep.search == "tpe":
        return list(known)
    return [*known, *islice(draws(space, recipe, sweep.seed, check, known), max(0, sweep.num_trials - len(known)))]


def trials_at(count: int, sweep: SweepStage, rungs: Sequence[int]) -> dict[int, int]:
    """How many of so many trials come to each rung, by its step."""
    return {step: max(1, count // sweep.reduction_factor**number) for number, step in enumerate(rungs)}


def steps_in_all(count: int, sweep: SweepStage, rungs: Sequence[int]) -> int:
    """Training steps of so many trials and the finalists' repeats; of asha about so many."""
    total, before = 0, 0
    for step, trials in trials_at(count, sweep, rungs).items():
        total += trials * (step - before)
        before = step
    return total + min(sweep.finalists, count) * sweep.repeats * rungs[-1]


@lru_cache(maxsize=4096)
def _build(model: ModelConfig) -> None:
    with torch.device("meta"):
        model.build_network()
