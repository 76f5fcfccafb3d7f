"""What names a run: JSON that stays as it was, byte for byte, while configs learn to say more."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from ddpm_core.artifacts.checkpoint import Checkpoint
from ddpm_core.artifacts.manifest import make_index
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.serialization import from_json, to_json
from ddpm_core.training.identity import check_continues, run_config
from pipelines.recipes.recipes import RECIPES, make

INDEX = make_index("/data", image_size=32, channels=3, class_names=(), shards=(), num_rejected=0)
# Of version 1 of each recipe, but of digits and mnist, which are others since: runs of these names exist.
# A change here gives every run another name, and refuses old checkpoints.
NAMES = {
    "digits": "62ba6f02f84996f6",
    "mnist": "5a2aaa2d40a6d9a4",
    "cifar10": "83a0e7b35037c18d",
    "cifar10_bound": "2aeed64b6fb8035b",
    "cifar10_small": "478c41aa31059551",
    "celebahq256": "d027d174b6971129",
    "lsun_church256": "d027d174b6971129",
    "lsun_cat256": "d027d174b6971129",
    "lsun_bedroom256": "d027d174b6971129",
    "lsun_bedroom256_large": "f67e969e9c475a5f",
}


DECAYS = {"digits": 0.99, "cifar10_small": 0.995}
"""Of those that have the default by now: they had these."""


def config_of(name: str, schedule: ScheduleConfig | None = None) -> dict[str, Any]:
    recipe = make(name)
    return run_config(
        INDEX,
        unet=recipe.unet,
        schedule=schedule or recipe.schedule,
        reverse=recipe.reverse,
        loss=recipe.loss,
        train=replace(recipe.train, precision="float32", ema_decay=DECAYS.get(name, recipe.train.ema_decay)),
        init_from=None,
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_json_that_names_a_run_is_as_it_was(name: str) -> None:
    assert hashlib.sha256(json.dumps(config_of(name)).encode()).hexdigest()[:16] == NAMES[name]


def test_betas_stand_in_the_json_where_they_are_given_alone() -> None:
    plain = '{"name": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_timesteps": 1000, "rescale": false}'
    assert json.dumps(to_json(ScheduleConfig())) == plain
    assert from_json(ScheduleConfig, json.loads(plain)) == ScheduleConfig()
    given = ScheduleConfig(name="given", betas=(0.1, 1.0), num_timesteps=2)
    assert to_json(given)["betas"] == [0.1, 1.0]
    assert from_json(ScheduleConfig, to_json(given)) == given


def test_a_run_goes_on_only_with_its_own_betas() -> None:
    def checkpoint(config: dict[str, Any]) -> Checkpoint:
        return Checkpoint(
            step=1,
            images_seen=1,
            seed=0,
            dataset_digest="d",
            dataset_uri="/data",
            config=json.loads(json.dumps(config)),
            versions={},
            model={},
            ema={},
            optimizer={},
            history=[],
        )

    given = ScheduleConfig(name="given", betas=(0.1, 0.2), num_timesteps=2)
    other = replace(given, betas=(0.1, 0.3))
    check_continues(checkpoint(config_of("digits")), config_of("digits"), "d")
    check_continues(checkpoint(config_of("digits", given)), config_of("digits", given), "d")
    with pytest.raises(ValueError, match=r"schedule.betas = \[0.1, 0.2\], now it is \[0.1, 0.3\]"):
        check_continues(checkpoint(config_of("digits", given)), config_of("digits", other), "d")
