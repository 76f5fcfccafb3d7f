"""The digits, with a network and a number of steps for tests."""

from dataclasses import replace
from pathlib import Path

from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.model.unet import UNetConfig
from pipelines.recipes.config import Recipe, SampleStage, TrainStage
from pipelines.recipes.recipes import make


def recipe(store: Path | str) -> Recipe:
    """Into a store."""
    base = make("digits")
    return replace(
        base,
        store=str(store),
        unet=UNetConfig(
            base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.1
        ),
        schedule=ScheduleConfig(num_timesteps=20),
        train=TrainStage(
            steps=6,
            batch_size=16,
            warmup_steps=2,
            ema_decay=0.25,  # of six updates the first counts for 0.1%: old enough to be promoted
            log_every=2,
            checkpoint_every=2,
            preview_every=6,
            num_workers=2,
        ),
        sample=SampleStage(num_images=24, block_size=8, batch_size=8, sampler=SamplerConfig(name="ddim", num_steps=4)),
        evaluate=EvaluateConfig(
            num_images=24, num_shown=9, num_rows=2, num_neighbours=2, bits_per_dim_images=40, bits_per_dim_steps=5
        ),
    )
