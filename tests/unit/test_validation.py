"""Validation by the first training worker, as it is done where training is on GPUs; here on a CPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ddpm_core.artifacts.validation import DISTANCE, read_validations
from ddpm_core.data.config import DataConfig
from ddpm_core.data.sharding.plan import plan_dataset
from ddpm_core.data.sharding.writer import commit_dataset, write_shard
from ddpm_core.data.sources.base import ArraySource
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.features.random_conv import extract
from ddpm_core.evaluation.frechet import FeatureStats
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNetConfig
from ddpm_core.serialization import to_json
from ddpm_core.training.checkpointing import Run
from ddpm_core.training.state import new_state
from pipelines.recipes.config import SampleStage, TrainStage
from pipelines.recipes.recipes import make
from pipelines.training.looker import averaged_model
from pipelines.training.validation import _validate_state, validate

UNET = UNetConfig(base_channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=())
RECIPE = replace(
    make("digits"),
    train=TrainStage(checkpoint_every=2, validate_every=4, validate_images=10, use_gpu=True),
    sample=SampleStage(sampler=SamplerConfig(name="ddim", num_steps=2)),
    evaluate=EvaluateConfig(bits_per_dim_images=3, bits_per_dim_steps=3),
)


def test_a_state_is_measured_when_it_is_due_and_once(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    data = DataConfig(image_size=8, channels=1, samples_per_shard=16)
    source = ArraySource(images=images, labels=None, class_names=(), stem="noise")
    results = [write_shard(plan, source, data, str(tmp_path)) for plan in plan_dataset(20, data)]
    index = commit_dataset(str(tmp_path), results, data, source)
    model = ModelConfig(
        image_size=8, channels=1, unet=UNET, schedule=ScheduleConfig(num_timesteps=4), reverse=RECIPE.reverse
    )
    network = model.build_network()
    init_unet(network, 0)
    state = new_state(network, 1e-3)
    run = Run(uri=str(tmp_path / "run"), config=to_json(model), dataset_uri=index.uri, dataset_digest="", versions={})
    reference = FeatureStats.from_features(extract(torch.from_numpy(images)[:, None]))
    for step, due in ((2, False), (4, True), (4, False)):
        state.step = step
        row = _validate_state(state, run, index, RECIPE, reference)
        assert (row is not None) is due
    (found,) = read_validations(run.uri).values()
    again = validate(averaged_model(state, run.config), 4, str(tmp_path / "other"), index, RECIPE, reference)
    assert again["validation/bits_per_dim"] == found["bits_per_dim"]
    assert again["validation/fd_random_conv"] == found[DISTANCE] > 0
