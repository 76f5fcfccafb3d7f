"""What names a run and decides whether it may go on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddpm_core.artifacts.checkpoint import Checkpoint, checkpoint_uri
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, hold_run
from ddpm_core.artifacts.manifest import DatasetIndex, make_index
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.errors import InputError
from ddpm_core.training.identity import check_continues
from pipelines.naming import digest, trajectory
from pipelines.recipes.config import Recipe
from pipelines.recipes.recipes import make


def index_of(recipe: Recipe) -> DatasetIndex:
    return make_index(
        "/data",
        image_size=recipe.data.image_size,
        channels=recipe.data.channels,
        class_names=(),
        shards=(),
        num_rejected=0,
    )


def trained(recipe: Recipe, **tensors: torch.Tensor) -> Checkpoint:
    sound = {name: torch.zeros(2) for name in ("model", "ema", "optimizer")} | tensors
    return Checkpoint(
        step=480,
        images_seen=1,
        seed=0,
        dataset_digest="d",
        dataset_uri="/data",
        config=trajectory(recipe, index_of(recipe), None),
        versions={},
        history=[],
        **{name: {"conv.weight": tensor} for name, tensor in sound.items()},
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10", "f91e494b82b739013bf8c2cff9765b589da0c3b3430c59fb9e9ff36a5def3635"),
        ("cifar10_bound", "ddacd28aeb0c34dfd9edf9a5ef6e2ad272c50b4a96e869a899fe73f02f725105"),
        ("celebahq256", "53b4eb9da2576d90957ffe08759923149aa6b66be0ec7e0b1722c0bda873f604"),
        ("lsun_bedroom256_large", "a09d3d96977abd67a30f2003147f7cecd80edbea1bb5851d717e1301646ef54d"),
    ],
)
def test_the_papers_runs_have_the_names_that_they_had_before_half_lives(name: str, expected: str) -> None:
    """A run of hundreds of thousands of steps must be found again by a newer version of this code."""
    recipe = make(name)
    assert digest(trajectory(recipe, index_of(recipe), None), 64) == expected


def test_of_the_old_decay_a_recipe_s_run_has_its_old_name() -> None:
    recipe = make("digits")
    as_it_was = replace(recipe.train, steps=640, batch_size=64, learning_rate=1e-3, ema_decay=0.99)
    fixed = replace(recipe, schedule=ScheduleConfig(), reverse=ReverseConfig(), train=as_it_was)
    expected = "900b2768d496a4ccb178d40d783d03fc92a95eae1abdfa7873c86955cb52d496"
    assert digest(trajectory(fixed, index_of(recipe), None), 64) == expected
    assert digest(trajectory(recipe, index_of(recipe), None), 64) != expected


def test_a_run_is_named_by_what_it_is_averaged_by_alone() -> None:
    recipe = make("digits")
    train = trajectory(recipe, index_of(recipe), None)["train"]
    assert (train["ema_half_life"], train["ema_warmup"]) == (500_000, 0.05)
    assert "ema_decay" not in train
    fixed = replace(recipe, train=replace(recipe.train, ema_decay=0.5))
    train = trajectory(fixed, index_of(recipe), None)["train"]
    assert train["ema_decay"] == 0.5
    assert not {"ema_half_life", "ema_warmup"} & train.keys()


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (
            {"ema_decay": 0.9999},
            {},
            "the run was started with train.ema_decay = 0.9999, now it is None; give the run another --name, or go on with "
            "--train.ema-decay 0.9999",
        ),
        ({}, {"ema_decay": 0.9999}, "go on with --train.ema-decay None"),
        ({"ema_half_life": 1_000}, {}, "go on with --train.ema-half-life 1000"),
        ({"flip": True}, {"flip": False}, "go on with --train.flip"),
        ({"flip": False}, {"flip": True}, "go on with --train.no-flip"),
        ({}, {"augment": 0.12}, "with train.augment = 0.0, now it is 0.12; .* go on with --train.augment 0.0$"),
        ({"augment": 0.12}, {}, "with train.augment = 0.12, now it is 0.0; .* go on with --train.augment 0.12$"),
        (
            {"augment": 0.12},
            {"augment": 0.12, "augment_kinds": ("scale",)},
            "go on with --train.augment-kinds x_flip y_flip scale rotation stretch translation$",
        ),
    ],
)
def test_a_run_that_was_averaged_otherwise_is_told_how_to_go_on(
    before: dict[str, object], now: dict[str, object], said: str
) -> None:
    recipe = make("digits")
    old, new = (replace(recipe, train=replace(recipe.train, **fields)) for fields in (before, now))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=said) as told:
        check_continues(trained(old), trajectory(new, index_of(recipe), None), "d")
    assert "\n" not in str(told.value)
    check_continues(trained(old), trajectory(old, index_of(recipe), None), "d")


def test_tuples_are_told_as_they_are_typed() -> None:
    recipe = make("digits")
    wider = replace(recipe, unet=replace(recipe.unet, channel_multipliers=(1, 2, 4)))
    with pytest.raises(InputError, match=r"go on with --unet.channel-multipliers 1 2 4$"):
        check_continues(trained(wider), trajectory(recipe, index_of(recipe), None), "d")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("part", ["model", "ema", "optimizer"])
def test_a_checkpoint_that_holds_no_numbers_is_refused_and_without_it_the_run_goes_on_from_the_one_before(
    tmp_path: Path, part: str, value: float
) -> None:
    recipe, run_uri = make("digits"), str(tmp_path)
    config = trajectory(recipe, index_of(recipe), None)
    bad = trained(recipe, **{part: torch.tensor([1.0, value])})
    with hold_run(run_uri, say=print) as hold:
        store = CheckpointStore(run_uri, hold)
        store.commit(replace(trained(recipe), step=320))
        store.commit(bad)
        newest = store.newest()
        assert newest is not None
        with pytest.raises(InputError) as told:
            check_continues(newest, config, "d")
        assert str(told.value) == (
            f"{part} of checkpoints/step-00000480: conv.weight has 1 of 2 values that are not finite; expected finite ones: "
            "delete checkpoints/step-00000480 of the run, and the same command goes on from the checkpoint before it"
        )
        for file in Path(checkpoint_uri(run_uri, 480)).iterdir():
            file.unlink()
        newest = store.newest()
    assert newest is not None
    assert newest.step == 320
    check_continues(newest, config, "d")


def test_the_config_is_plain_json() -> None:
    recipe = make("cifar10")
    config = trajectory(recipe, index_of(recipe), None)
    assert json.loads(json.dumps(config)) == config
