"""The recipes: each a function that returns one complete, typed config. Dotted flags override its fields."""

import dataclasses
from collections.abc import Callable

from ddpm_core.data.config import DataConfig
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.model.unet import UNetConfig
from pipelines.recipes.config import Recipe, SampleStage, TrainStage


def digits() -> Recipe:
    """scikit-learn's 1,797 handwritten digits, grey 8x8: the whole pipeline in minutes on a laptop."""
    return Recipe(
        data=DataConfig(source="digits", image_size=8, channels=1, samples_per_shard=256),
        unet=UNetConfig(
            base_channels=24, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.0
        ),
        # Won a sweep, docs/sweeps.md.
        schedule=ScheduleConfig(name="cosine"),
        reverse=ReverseConfig(prediction="v"),
        train=TrainStage(
            steps=960,
            batch_size=32,
            learning_rate=2e-3,
            warmup_steps=100,
            flip=False,
            log_every=20,
            checkpoint_every=240,
            preview_every=480,
            num_workers=2,
        ),
        sample=SampleStage(num_images=512, sampler=SamplerConfig(name="dpm_solver", num_steps=20)),
        evaluate=EvaluateConfig(num_images=512, bits_per_dim_images=160, bits_per_dim_steps=40),
    )


def mnist() -> Recipe:
    """MNIST, grey 28x28, from its four idx files: --data.source FOLDER."""
    return Recipe(
        data=DataConfig(source="mnist", image_size=28, channels=1, samples_per_shard=2_048),
        unet=UNetConfig(
            base_channels=8, channel_multipliers=(1, 4, 8), num_res_blocks=1, attention_resolutions=(7,), dropout=0.0
        ),
        # Won a sweep, docs/sweeps.md. The simple loss of x_0 weighs where there is much noise: there a digit's form is decided.
        schedule=ScheduleConfig(name="cosine"),
        reverse=ReverseConfig(prediction="x_0"),
        train=TrainStage(
            steps=8_500,
            batch_size=16,
            learning_rate=2e-3,
            warmup_steps=400,
            flip=False,
            checkpoint_every=1_700,
            preview_every=3_400,
            num_workers=2,
        ),
        sample=SampleStage(num_images=512, sampler=SamplerConfig(name="ancestral", num_steps=100)),
        evaluate=EvaluateConfig(num_images=512, bits_per_dim_images=160, bits_per_dim_steps=40),
    )


def cifar10() -> Recipe:
    """The paper's CIFAR-10 model: 35.7 M parameters, 800,000 steps of 128 images. Wants GPUs."""
    return Recipe(
        # All 50,000 training images, as in the paper: its FID is against them.
        data=DataConfig(
            source="cifar-10-python.tar.gz", image_size=32, channels=3, samples_per_shard=2_048, validation_fraction=0.0
        ),
        train=TrainStage(ema_decay=0.9999, use_gpu=True),
        sample=SampleStage(num_images=50_000, block_size=256, batch_size=256, use_gpu=True),
        evaluate=EvaluateConfig(num_images=50_000, features="inception", bits_per_dim_images=10_000),
    )


def cifar10_bound() -> Recipe:
    """The paper's CIFAR-10 model trained on the variational bound itself: the other row of its Table 1."""
    return dataclasses.replace(cifar10(), loss=LossConfig(objective="bound"))


def cifar10_small() -> Recipe:
    """A small model of 32x32 colour images that a laptop trains in minutes; it shows the pipeline, not the state of the art."""
    return Recipe(
        data=DataConfig(source="cifar10", image_size=32, channels=3, samples_per_shard=2_048),
        unet=UNetConfig(
            base_channels=32, channel_multipliers=(1, 2, 2), num_res_blocks=1, attention_resolutions=(8,), dropout=0.1
        ),
        # After few steps eps-prediction still guesses wildly from x_T, where eps says next to nothing of x_0; v does not.
        reverse=ReverseConfig(prediction="v"),
        train=TrainStage(
            steps=1_000,
            batch_size=64,
            learning_rate=1e-3,
            warmup_steps=100,
            checkpoint_every=500,
            preview_every=500,
            num_workers=2,
        ),
        sample=SampleStage(num_images=256, sampler=SamplerConfig(name="ddim", num_steps=50)),
        evaluate=EvaluateConfig(num_images=256, bits_per_dim_images=64, bits_per_dim_steps=40),
    )


def _paper_256(source: str, steps: int, base_channels: int = 128) -> Recipe:
    """The paper's 256x256 settings; trained on all images; its scripts sample with the small fixed variance."""
    return Recipe(
        data=DataConfig(
            source=source,
            image_size=256,
            channels=3,
            samples_per_shard=1_024,
            test_fraction=0.0,
            validation_fraction=0.0,
        ),
        unet=UNetConfig(
            base_channels=base_channels,
            channel_multipliers=(1, 1, 2, 2, 4, 4),
            attention_resolutions=(16,),
            dropout=0.0,
        ),
        train=TrainStage(steps=steps, batch_size=64, learning_rate=2e-5, ema_decay=0.9999, use_gpu=True),
        reverse=ReverseConfig(variance="fixed_small"),
        sample=SampleStage(num_images=50_000, batch_size=16, use_gpu=True),
        evaluate=EvaluateConfig(num_images=50_000, features="inception"),
    )


def celebahq256() -> Recipe:
    """The paper's CelebA-HQ 256x256 model: 114 M parameters, 500,000 steps of 64 images."""
    return _paper_256("celebahq256", 500_000)


def lsun_church256() -> Recipe:
    """The paper's LSUN Church 256x256 model: 114 M parameters, 1,200,000 steps of 64 images."""
    return _paper_256("lsun_church256", 1_200_000)


def lsun_cat256() -> Recipe:
    """The paper's LSUN Cat 256x256 model: 114 M parameters, 1,800,000 steps of 64 images."""
    return _paper_256("lsun_cat256", 1_800_000)


def lsun_bedroom256() -> Recipe:
    """The paper's LSUN Bedroom 256x256 model: 114 M parameters, 2,400,000 steps of 64 images."""
    return _paper_256("lsun_bedroom256", 2_400_000)


def lsun_bedroom256_large() -> Recipe:
    """The paper's large LSUN Bedroom 256x256 model: 256 M parameters, 1,150,000 steps of 64 images."""
    return _paper_256("lsun_bedroom256", 1_150_000, base_channels=192)


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        digits,
        mnist,
        cifar10,
        cifar10_bound,
        cifar10_small,
        celebahq256,
        lsun_church256,
        lsun_cat256,
        lsun_bedroom256,
        lsun_bedroom256_large,
    )
}


def make(name: str) -> Recipe:
    """The recipe of this name, which it carries.

    Raises:
        KeyError: if there is none.
    """
    return dataclasses.replace(RECIPES[name](), recipe=name)
