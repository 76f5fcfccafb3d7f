"""The recipes: each a function that returns one complete, typed config. Dotted flags override its fields."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import platformdirs
import tyro

from ddpm_core.data.config import DataConfig
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.samplers import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.model.unet import UNetConfig
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.training.config import Precision, TrainConfig

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*=[A-Za-z0-9][A-Za-z0-9._-]*")


def default_store() -> str:
    """The per-user folder that every door uses unless told otherwise; absolute, so that a job's folder may vanish."""
    return str(platformdirs.user_data_path("ddpm"))


@dataclass(frozen=True, kw_only=True)
class TrainStage(TrainConfig):
    """Training, and the workers that do it."""

    num_workers: int = 1
    """Data-parallel workers, at most one a lane; the trajectory does not depend on them."""
    min_workers: int | None = None
    """Train on with as few while nodes are lost, and grow again when they are back; none: wait for all."""
    threads: int = 1
    """CPU threads a worker, all on one node; other numbers add up in another order, so weights differ by rounding."""
    use_gpu: bool = False
    """One GPU a worker."""
    node_labels: tuple[str, ...] = ()
    """Train on nodes with these labels only: KEY=VALUE, as ray.io/accelerator-type=H100."""
    validate_every: int = 0
    """Checkpoints at multiples of so many steps are judged while training goes on, and the best one stays; 0: none."""
    validate_images: int = 512
    """Images generated to judge a checkpoint; bits/dim as in `evaluate`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_workers < 1:
            raise ValueError(f"train.num-workers is {self.num_workers}; expected 1 or more")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise ValueError(
                f"train.min-workers is {self.min_workers}; expected 1 to {self.num_workers} (train.num-workers)"
            )
        _check_placement("train", self.threads, self.node_labels)
        if self.validate_every < 0 or self.validate_every % self.checkpoint_every:
            raise ValueError(
                f"train.validate-every is {self.validate_every}; expected a multiple of train.checkpoint-every, "
                f"which is {self.checkpoint_every}, or 0"
            )
        if self.validate_images < 2:
            raise ValueError(f"train.validate-images is {self.validate_images}; expected 2 or more")
        if self.num_workers > self.lanes:
            raise ValueError(
                f"train.num-workers is {self.num_workers} for {self.lanes} lanes; expected at most one worker a lane: "
                "lower it, or raise --train.lanes before the run's first step"
            )

    @property
    def resolved_precision(self) -> Precision:
        """What `auto` comes to: bfloat16 on GPUs, float32 on CPUs."""
        return ("bfloat16" if self.use_gpu else "float32") if self.precision == "auto" else self.precision


@dataclass(frozen=True, kw_only=True)
class SampleStage(SampleConfig):
    """Sampling, and the tasks that do it."""

    num_workers: int | None = None
    """Blocks that are generated at once, at most; none: as many as there is room for. No image depends on it."""
    threads: int = 1
    """CPU threads for each; other numbers add up in another order, so images differ by rounding."""
    use_gpu: bool = False
    """One GPU for each."""
    node_labels: tuple[str, ...] = ()
    """Sample on nodes with these labels only: KEY=VALUE, as ray.io/accelerator-type=H100."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"sample.num-workers is {self.num_workers}; expected 1 or more")
        _check_placement("sample", self.threads, self.node_labels)


def _check_placement(stage: str, threads: int, node_labels: tuple[str, ...]) -> None:
    if threads < 1:
        raise ValueError(f"{stage}.threads is {threads}; expected 1 or more")
    for label in node_labels:
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{stage}.node-labels has {label!r}; expected KEY=VALUE, as ray.io/accelerator-type=H100")


@dataclass(frozen=True, kw_only=True)
class SweepStage:
    """Which schedules are tried, and how long.

    Raises:
        ValueError: if a field is out of its range.
    """

    num_trials: int = 8
    """Schedules to draw and try."""
    max_concurrent: int = 1
    """Trials at the same time; they share the CPUs."""
    num_rungs: int = 3
    """Times that ASHA looks: after 1/f^(n-1) of the steps, ..., 1/f of them, all of them."""
    reduction_factor: int = 3
    """f: of so many trials one goes on to the next rung."""
    schedules: tuple[str, ...] = ("linear", "quadratic", "cosine")
    """Names to draw from."""
    beta_start: tuple[float, float] = (5e-5, 5e-4)
    """Range of the first beta, drawn evenly in its logarithm; cosine has none."""
    beta_end: tuple[float, float] = (5e-3, 5e-2)
    """Range of the last beta, likewise."""
    num_images: int = 256
    """Images that are generated and measured at each rung."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        for name, least in (
            ("num_trials", 1),
            ("max_concurrent", 1),
            ("num_rungs", 1),
            ("reduction_factor", 2),
            ("num_images", 2),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"sweep.{name.replace('_', '-')} is {getattr(self, name)}; expected {least} or more")
        for name in ("beta_start", "beta_end"):
            low, high = getattr(self, name)
            if not 0 < low <= high < 1:
                raise ValueError(
                    f"sweep.{name.replace('_', '-')} is {low} {high}; expected two betas, 0 < low <= high < 1"
                )
        for schedule in self.schedules:
            ScheduleConfig(name=schedule)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a run of the line needs to know."""

    store: str = field(default_factory=default_store)
    """Where all artifacts go: a folder or s3://bucket/prefix."""
    recipe: tyro.conf.Suppress[str] = ""
    name: str | None = None
    """Name of the run; by default the recipe's name and a digest of what decides its weights."""
    data: DataConfig = field(default_factory=DataConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    reverse: ReverseConfig = field(default_factory=ReverseConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainStage = field(default_factory=TrainStage)
    sample: SampleStage = field(default_factory=SampleStage)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def digits() -> Recipe:
    """scikit-learn's 1,797 handwritten digits, grey 8x8: the whole line in minutes on a laptop."""
    return Recipe(
        data=DataConfig(source="digits", image_size=8, channels=1, samples_per_shard=256),
        unet=UNetConfig(
            base_channels=24, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0.0
        ),
        train=TrainStage(
            steps=640,
            batch_size=64,
            learning_rate=1e-3,
            warmup_steps=100,
            ema_decay=0.99,
            flip=False,
            log_every=20,
            checkpoint_every=160,
            preview_every=320,
            num_workers=2,
        ),
        sample=SampleStage(num_images=512, sampler=SamplerConfig(name="ddim", num_steps=50)),
        evaluate=EvaluateConfig(num_images=512, bits_per_dim_images=160, bits_per_dim_steps=40),
    )


def mnist() -> Recipe:
    """MNIST, grey 28x28, from its four idx files: --data.source FOLDER."""
    return Recipe(
        data=DataConfig(source="mnist", image_size=28, channels=1, samples_per_shard=2_048),
        unet=UNetConfig(
            base_channels=16, channel_multipliers=(1, 2, 4), num_res_blocks=1, attention_resolutions=(7,), dropout=0.0
        ),
        train=TrainStage(
            steps=1_600,
            batch_size=64,
            learning_rate=1e-3,
            warmup_steps=200,
            ema_decay=0.995,
            flip=False,
            checkpoint_every=400,
            preview_every=800,
            num_workers=2,
        ),
        sample=SampleStage(num_images=512, sampler=SamplerConfig(name="ddim", num_steps=50)),
        evaluate=EvaluateConfig(num_images=512, bits_per_dim_images=160, bits_per_dim_steps=40),
    )


def cifar10() -> Recipe:
    """The paper's CIFAR-10 model: 35.7 M parameters, 800,000 steps of 128 images. Wants GPUs."""
    return Recipe(
        data=DataConfig(source="cifar-10-python.tar.gz", image_size=32, channels=3, samples_per_shard=2_048),
        train=TrainStage(use_gpu=True),
        sample=SampleStage(num_images=50_000, block_size=256, batch_size=256, use_gpu=True),
        evaluate=EvaluateConfig(num_images=50_000, bits_per_dim_images=2_048),
    )


def cifar10_small() -> Recipe:
    """A small model of 32x32 colour images that a laptop trains in minutes; it shows the line, not the state of the art."""
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
            ema_decay=0.995,
            checkpoint_every=500,
            preview_every=500,
            num_workers=2,
        ),
        sample=SampleStage(num_images=256, sampler=SamplerConfig(name="ddim", num_steps=50)),
        evaluate=EvaluateConfig(num_images=256, bits_per_dim_images=64, bits_per_dim_steps=40),
    )


def _paper_256(source: str, steps: int, base_channels: int = 128) -> Recipe:
    """The paper's 256x256 settings; its scripts sample with the small fixed variance."""
    return Recipe(
        data=DataConfig(source=source, image_size=256, channels=3, samples_per_shard=1_024),
        unet=UNetConfig(
            base_channels=base_channels,
            channel_multipliers=(1, 1, 2, 2, 4, 4),
            attention_resolutions=(16,),
            dropout=0.0,
        ),
        train=TrainStage(steps=steps, batch_size=64, learning_rate=2e-5, use_gpu=True),
        reverse=ReverseConfig(variance="fixed_small"),
        sample=SampleStage(num_images=50_000, batch_size=16, use_gpu=True),
        evaluate=EvaluateConfig(num_images=50_000),
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
