"""Recipes as TOML: what is written is read as the same recipe, and a mistake is one line."""

from dataclasses import replace
from pathlib import Path

import pytest

from ddpm_core.errors import InputError, MissingError
from pipelines.recipes.files import read_recipe, recipe_file
from pipelines.recipes.recipes import RECIPES, make
from pipelines.sweeping.setting import apply

DIGITS = make("digits")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    setting = {
        "schedule.name": "cosine",
        "train.learning-rate": 3e-4,
        "unet.channel-multipliers": [1, 2],
        "unet.form.head-channels": 8,
    }
    for recipe in (make(name), apply(make(name), {key: setting[key] for key in list(setting)[:3]})):
        file = tmp_path / "it.toml"
        file.write_text(recipe_file(recipe, "A test's."))
        assert replace(read_recipe(str(file)), store=recipe.store) == recipe


def test_none_is_written_too(tmp_path: Path) -> None:
    recipe = apply(make("cifar10"), {"train.ema-decay": None, "sample.sampler.num-steps": 50})
    (tmp_path / "it.toml").write_text(recipe_file(recipe, "A test's."))
    assert read_recipe(str(tmp_path / "it.toml")).train.ema_decay is None


def test_what_is_set_back_to_its_default_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config's JSON leaves some fields out while they have their defaults; the file may not."""
    monkeypatch.setitem(RECIPES, "digits", lambda: apply(DIGITS, {"train.augment": 0.12}))
    recipe = apply(make("digits"), {"train.augment": 0.0})
    (tmp_path / "it.toml").write_text(recipe_file(recipe, "A test's."))
    assert read_recipe(str(tmp_path / "it.toml")).train.augment == 0.0


def test_only_what_differs_is_written() -> None:
    text = recipe_file(apply(make("digits"), {"schedule.name": "linear"}), "A test's.")
    assert text == '# A test\'s.\nrecipe = "digits"\n\n[schedule]\nname = "linear"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("recipe = ", "is no TOML"),
        ("name = 'x'", "has recipe = None; expected one of digits"),
        ("recipe = 'digit'", "has recipe = 'digit'"),
        ("recipe = 'digits'\n[schedule]\nnam = 'cosine'", "did you mean schedule.name?"),
        ("recipe = 'digits'\n[schedule]\nname = 'cosin'", "schedule.name"),
        ("recipe = 'digits'\n[train]\nsteps = 'many'", "has train.steps = 'many'; expected a whole number"),
        ("recipe = 'digits'\nschedule = 'cosine'", "which is no field of a recipe"),
        ("recipe = 'digits'\nstore = '/tmp/x'", "which is no field of a recipe"),
    ],
)
def test_a_mistake_is_one_line(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "it.toml").write_text(text)
    with pytest.raises(InputError) as refused:
        read_recipe(str(tmp_path / "it.toml"))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no recipe file at"):
        read_recipe(str(tmp_path / "it.toml"))
