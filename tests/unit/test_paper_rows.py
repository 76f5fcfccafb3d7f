"""The paper's figures stand beside a model only where it is the paper's, trained as long."""

from dataclasses import replace

import pytest

from ddpm_core.artifacts.manifest import make_index
from ddpm_core.training.identity import run_config
from pipelines.recipes.config import Recipe
from pipelines.recipes.paper import PAPER, printed
from pipelines.recipes.recipes import make

INDEX = make_index("/data", image_size=32, channels=3, class_names=(), shards=(), num_rejected=0)
STEPS = 800_000


def found(recipe: Recipe, steps: int = STEPS) -> object:
    train = replace(recipe.train, precision="bfloat16", seed=7)
    parts = {name: getattr(recipe, name) for name in ("unet", "schedule", "reverse", "loss")}
    config = run_config(INDEX, **parts, train=train, init_from=None)
    return printed(recipe.recipe, config, steps)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_own_recipes(name: str) -> None:
    assert found(make(name)) is PAPER[name]


def test_another_model_is_not_the_papers() -> None:
    papers = make("cifar10")
    assert found(papers, STEPS - 1) is None
    assert found(make("cifar10_small")) is None
    assert found(replace(papers, train=replace(papers.train, learning_rate=1e-4))) is None
    assert found(replace(papers, unet=replace(papers.unet, dropout=0.2))) is None
    assert found(replace(make("cifar10_bound"), recipe="cifar10")) is None


def test_table_4_falls_as_more_is_received() -> None:
    progress = PAPER["cifar10"].progress
    rates, errors = zip(*(progress[step] for step in sorted(progress)), strict=True)
    assert list(rates) == sorted(rates)
    assert list(errors) == sorted(errors, reverse=True)
