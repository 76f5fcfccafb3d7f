"""The pipeline of a model with classes and a learned variance."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_recipe import recipe

from ddpm_core.artifacts.checkpoint import read_checkpoint
from ddpm_core.artifacts.report import read_report
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.errors import InputError
from pipelines import sample
from pipelines.pipeline import open_pipeline
from pipelines.subject import of_model

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_model_with_classes_and_a_learned_variance_walks_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps, then two more by two workers, a few images at a time; then images of two classes, guided, and bits/dim."""
    wanted = recipe(tmp_path)
    other = replace(
        wanted,
        unet=replace(wanted.unet, num_classes=10),
        reverse=ReverseConfig(prediction="v", variance="learned_range"),
        loss=LossConfig(objective="hybrid"),
        train=replace(wanted.train, timesteps="loss_aware", recompute=True),
        sample=replace(wanted.sample, labels=(3, 7), guidance=1.0, sampler=SamplerConfig(num_steps=4)),
    )
    with open_pipeline(replace(other, train=replace(other.train, steps=2, num_workers=1))) as pipeline:
        index = pipeline.shard()
        pipeline.train(index)
    with open_pipeline(replace(other, train=replace(other.train, steps=4, micro_batch_size=3))) as pipeline:
        trained = pipeline.train(index)
        weights = pipeline.find_weights(trained.checkpoint_uri)
        sampled = pipeline.sample(weights)
        evaluated = pipeline.evaluate(of_model(weights, sampled.samples), index)
    seen = read_checkpoint(trained.checkpoint_uri).optimizer["timesteps.counts"]
    assert (trained.step, int(seen.sum())) == (4, 64)
    assert sampled.samples.identity["labels"] == [3, 7]
    assert evaluated.metrics["bits_per_dim"] > 0
    assert "Their classes, in turn: 3, 7." in read_report(evaluated.report_uri).html
    by_name = sample.SampleArgs(
        recipe=other.recipe,
        store=other.store,
        model=trained.checkpoint_uri,
        classes=("3", "7"),
        sample=replace(other.sample, labels=()),
    )
    outcome = sample.run(by_name)
    assert (outcome.made["samples"], outcome.metrics["computed"]) == (sampled.samples.set_uri, 0)
    monkeypatch.delattr(
        "pipelines.pipeline.open_pipeline"
    )  # a name of no class is refused before Ray is asked for anything
    with pytest.raises(InputError, match="classes has '13'; expected some of 0, 1, 2"):
        sample.run(replace(by_name, classes=("3", "13")))
