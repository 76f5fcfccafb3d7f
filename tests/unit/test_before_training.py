"""What only the evaluation would find after hours of training is refused before it, in one line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm_core import storage
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.errors import InputError
from pipelines import sweep, train, workflow
from pipelines.cli.checks import check_evaluation, check_training, prepare_evaluation
from pipelines.cli.costs import evaluation_cost, sampling_cost
from pipelines.recipes.config import Recipe, SweepStage
from pipelines.recipes.recipes import make


def digits(store: Path, **changes: dict[str, object]) -> Recipe:
    """The recipe, with other fields in its parts."""
    recipe = make("digits")
    parts = {part: replace(getattr(recipe, part), **fields) for part, fields in changes.items()}
    return replace(recipe, store=str(store), **parts)  # type: ignore[arg-type]


def begin(recipe: Recipe) -> None:
    check_training(recipe)
    check_evaluation(recipe)
    prepare_evaluation(recipe)


def refused(recipe: Recipe, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        begin(recipe)
    assert "\n" not in str(error.value)


def test_the_recipe_itself_may_begin(tmp_path: Path) -> None:
    begin(digits(tmp_path))


def test_more_measured_than_sampled(tmp_path: Path) -> None:
    recipe = digits(tmp_path, sample={"num_images": 511})
    refused(recipe, r"evaluate\.num-images is 512, sample\.num-images 511; expected no more than are sampled")


def test_labels_that_the_network_will_not_know(tmp_path: Path) -> None:
    refused(digits(tmp_path, sample={"labels": (3,)}), "labels is .3. and the model was trained without classes")
    refused(digits(tmp_path, sample={"labels": (10,)}, unet={"num_classes": 10}), "label")


def test_a_sampler_that_the_model_will_not_fit(tmp_path: Path) -> None:
    """Also where it is asked for first to judge checkpoints, in a command that trains alone."""
    steps = SamplerConfig(name="ddim", num_steps=1001)
    refused(
        digits(tmp_path, sample={"sampler": steps}), "1001 sampling steps of a schedule of 1000; expected 1 to 1000"
    )
    cosine = digits(
        tmp_path,
        schedule={"name": "cosine"},
        sample={"sampler": SamplerConfig(name="ddim", num_steps=10, spacing="quadratic")},
    )
    refused(cosine, "sampler.spacing is quadratic, which begins 10 steps at t = 800")
    check_training(cosine)
    with pytest.raises(InputError, match=r"sampler\.spacing is quadratic"):
        check_training(replace(cosine, train=replace(cosine.train, validate_every=cosine.train.checkpoint_every)))


def test_bits_per_dim_of_no_images(tmp_path: Path) -> None:
    recipe = digits(tmp_path, data={"test_fraction": 0.0, "validation_fraction": 0.0})
    refused(recipe, r"evaluate\.bits-per-dim-images is 160 and the dataset holds no image out of training")
    check_evaluation(digits(tmp_path, data={"test_fraction": 0.0}))


def test_weights_and_references(tmp_path: Path) -> None:
    weights = {"features": "inception", "weights": str(tmp_path / "none.pth")}
    refused(digits(tmp_path, evaluate=weights), "none.pth")
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    reference = {"reference": str(tmp_path / "stats.npz"), "reference_protocol": "anything"}
    refused(digits(tmp_path, evaluate=reference), "has 3 dimensions; the features random_conv have 256")


def test_a_learning_rate_that_leads_nowhere(tmp_path: Path) -> None:
    check_training(digits(tmp_path, train={"learning_rate": 1.0}))
    refused(
        digits(tmp_path, train={"learning_rate": 9999.0}), r"^train.learning-rate is 9999; expected at most 1 \(1e-4 to"
    )


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """395,641 weights of 4 bytes, four copies in each of 3 + 1 checkpoints; 512 images of 64 bytes."""
    needed = 395_641 * 4 * 4 * 4 + 512 * 64
    monkeypatch.setattr(storage, "free_bytes", lambda uri: needed)
    check_training(digits(tmp_path))
    monkeypatch.setattr(storage, "free_bytes", lambda uri: needed - 1)
    refused(
        digits(tmp_path), r"has 25\.4 MB left; expected 25\.4 MB for 3 checkpoints, one more under way, and 512 images"
    )
    monkeypatch.setattr(storage, "free_bytes", lambda uri: None)
    check_training(digits(tmp_path))


def test_what_is_left_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert storage.free_bytes("s3://bucket/store") is None
    free = storage.free_bytes(str(tmp_path / "not/yet"))
    assert free is not None
    assert free > 0


def test_costs_are_passes_of_the_network() -> None:
    papers = make("cifar10")
    assert sampling_cost(papers.sample, 1000) == "50,000 images, 50,000,000 network passes"
    twice = replace(papers.sample, sampler=SamplerConfig(name="heun", num_steps=50))
    assert sampling_cost(twice, 1000) == "50,000 images, 4,950,000 network passes"
    assert evaluation_cost(papers.evaluate, 1000).endswith("bits/dim of 10,000 images, 10,000,000 network passes")
    guided = replace(make("digits").sample, labels=(1,), guidance=1.5)
    assert sampling_cost(guided, 1000) == "512 images, 20,480 network passes"


@pytest.mark.parametrize(("command", "args_type"), [(train, train.TrainArgs), (workflow, workflow.WorkflowArgs)])
def test_a_run_whose_average_will_be_young_is_told_before_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: Any, args_type: Any
) -> None:
    """A warning, no mistake: more steps may come later."""
    for changes, expected in (
        (
            {"ema_decay": 0.9999},
            "warning: train.steps is 960: the averaged weights of step 960 are still 90.9% those",
        ),
        ({"steps": 0}, "warning: train.steps is 0: the averaged weights of step 0 are still 100% those"),
        ({"ema_decay": 0.99}, ""),
        ({}, ""),
    ):
        recipe = digits(tmp_path, train=changes)  # type: ignore[arg-type]
        command.check(args_type(**vars(recipe)))
        said = capsys.readouterr().err
        assert said.startswith(expected)
        assert len(said.splitlines()) == bool(expected)


def test_a_sweep_is_told_by_the_step_of_its_first_rung(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """960 steps of 0.99 are enough, the 106 after which trials are first stopped are not."""
    sweep.check(sweep.SweepArgs(**vars(digits(tmp_path, train={"ema_decay": 0.99}))))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "warning: trials are first ranked after 106 steps: the averaged weights of step 106 are still 34.8%"
    )
    sweep.check(sweep.SweepArgs(**vars(digits(tmp_path))))
    assert capsys.readouterr().err == ""


def test_rungs_are_shares_of_the_steps() -> None:
    config = SweepStage(num_rungs=3, reduction_factor=3)
    assert [config.rungs(steps) for steps in (640, 9, 1)] == [(71, 213, 640), (1, 3, 9), (1,)]
