"""What a recipe says: the data, the network, and how each stage works."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import platformdirs
import tyro

from ddpm_core.data.config import DataConfig
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.errors import InputError
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.model.unet import UNetConfig
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.training.config import Precision, TrainConfig


def default_store() -> str:
    """The per-user folder that every command uses unless told otherwise; absolute, so that a job's folder may vanish."""
    return str(platformdirs.user_data_path("ddpm"))


_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*=[A-Za-z0-9][A-Za-z0-9._-]*")


def _check_placement(stage: str, threads: int, node_labels: tuple[str, ...]) -> None:
    if threads < 1:
        raise InputError(f"{stage}.threads is {threads}; expected 1 or more")
    for label in node_labels:
        if not _LABEL.fullmatch(label):
            raise InputError(f"{stage}.node-labels has {label!r}; expected KEY=VALUE, as ray.io/accelerator-type=H100")


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
    """One GPU for each worker."""
    node_labels: tuple[str, ...] = ()
    """Train on nodes with these labels only: KEY=VALUE, as ray.io/accelerator-type=H100."""
    validate_every: int = 0
    """Checkpoints at multiples of so many steps are judged while training goes on, and the best one stays; 0: none."""
    validate_images: int = 512
    """Images generated to judge a checkpoint; bits/dim as in `evaluate`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_workers < 1:
            raise InputError(f"train.num-workers is {self.num_workers}; expected 1 or more")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise InputError(
                f"train.min-workers is {self.min_workers}; expected 1 to {self.num_workers} (train.num-workers)"
            )
        _check_placement("train", self.threads, self.node_labels)
        if self.validate_every < 0 or self.validate_every % self.checkpoint_every:
            raise InputError(
                f"train.validate-every is {self.validate_every}; expected a multiple of train.checkpoint-every, "
                f"which is {self.checkpoint_every}, or 0"
            )
        if self.validate_images < 2:
            raise InputError(f"train.validate-images is {self.validate_images}; expected 2 or more")
        if self.num_workers > self.lanes:
            raise InputError(
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
    """One GPU for each block at work."""
    compile: Literal["auto", "on", "off"] = field(default="auto", metadata={"unless_default": True})
    """Whether the network is compiled first, which takes up to a minute and needs a C++ compiler; auto: where it pays, by how
    much is to be made. Images differ by rounding."""
    node_labels: tuple[str, ...] = ()
    """Sample on nodes with these labels only: KEY=VALUE, as ray.io/accelerator-type=H100."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_workers is not None and self.num_workers < 1:
            raise InputError(f"sample.num-workers is {self.num_workers}; expected 1 or more")
        _check_placement("sample", self.threads, self.node_labels)


SweepMetric = Literal["distance", "bits_per_dim"]


@dataclass(frozen=True, kw_only=True)
class SweepStage:
    """Which settings are tried, how far, and what ranks them.

    Raises:
        InputError: if a field is out of its range.
    """

    space: str = "beta-schedules"
    """What is searched, where no --space.FIELD says: beta-schedules, quick, paper-table-2; sampler: of a model that is there."""
    search: Literal["random", "grid", "tpe"] = "random"
    """random draws settings; grid tries all of them; tpe has Optuna propose them by what came of those before."""
    num_trials: int = 8
    """Settings to try; a grid has its own number. Raised later, the sweep goes on."""
    num_workers: int = 1
    """Data-parallel workers of each trial, in place of train.num-workers: more trials at once get further than more workers."""
    max_concurrent: int | None = None
    """Trials at the same time; none: as many as there is room for."""
    stopping: Literal["rungs", "asha", "none"] = "rungs"
    """rungs: at each all wait, and the best go on; asha: none waits, so which go on depends on who was first; none: all go on."""
    num_rungs: int = 3
    """Rungs: after 1/f^(n-1) of the steps, ..., 1/f of them, all of them; with another batch size as many images."""
    reduction_factor: int = 3
    """f: of so many trials one goes on to the next rung."""
    metrics: tuple[SweepMetric, ...] = ("distance",)
    """What is measured, on the same seeds and noise for all; the first one ranks, less is better. distance: between generated
    and training images; bits_per_dim: of validation's images."""
    num_images: int = 256
    """Images that are generated for the distance, at each rung."""
    finalists: int = 2
    """The best so many are trained again with fresh seeds, for no winner was lucky then."""
    repeats: int = 4
    """Fresh training seeds of each finalist; 0: none."""
    max_hours: float | None = None
    """After so long no trial goes on, and what there is is ranked; the same command with more goes on."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        for name, least in (
            ("num_trials", 1),
            ("num_workers", 1),
            ("num_rungs", 1),
            ("reduction_factor", 2),
            ("num_images", 2),
            ("finalists", 1),
            ("repeats", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(f"sweep.{name.replace('_', '-')} is {getattr(self, name)}; expected {least} or more")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise InputError(f"sweep.max-concurrent is {self.max_concurrent}; expected 1 or more, or none")
        if self.max_hours is not None and not self.max_hours > 0:
            raise InputError(f"sweep.max-hours is {self.max_hours}; expected more than 0, or none")
        if self.repeats == 1:
            raise InputError("sweep.repeats is 1; expected 2 or more, of which an interval follows, or 0")
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise InputError(f"sweep.metrics is {' '.join(self.metrics) or 'empty'}; expected each figure once")

    def rungs(self, steps: int) -> tuple[int, ...]:
        """The steps at which trials that go to `steps` are measured, ascending; the last one is `steps`."""
        if self.stopping == "none":
            return (steps,)
        return tuple(
            sorted({max(1, steps // self.reduction_factor**behind) for behind in range(self.num_rungs)} | {steps})
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that a run of the pipeline needs to know."""

    store: str = field(default_factory=default_store)
    """Where all artifacts go: a folder or s3://bucket/prefix."""
    recipe: tyro.conf.Suppress[str] = ""
    """The name under which its datasets, runs and models lie: a recipe's, or a project's."""
    file: tyro.conf.Suppress[str] = field(default="", metadata={"unless_default": True})
    """The file that says all this, as it was typed; empty where a name did."""
    name: str | None = None
    """Name of the run; by default the recipe's name and a digest of what decides its weights."""
    dataset: str | None = None
    """An existing dataset in place of raw images: its URI, or the name of its folder in the store."""
    data: DataConfig = field(default_factory=DataConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    reverse: ReverseConfig = field(default_factory=ReverseConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainStage = field(default_factory=TrainStage)
    sample: SampleStage = field(default_factory=SampleStage)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name)


def as_named(args: Any) -> str:
    """How a recipe is named on a command line, or flags that have its `recipe` and `file`: by the file, else by name."""
    return str(args.file or args.recipe)


def check_folder_name(what: str, name: str) -> None:
    """Refuse a name that cannot begin those of datasets and models everywhere.

    Args:
        what: it names.

    Raises:
        InputError: in one line.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise InputError(
            f"{what} is {name!r}; expected up to 100 of the letters A to Z, digits, dots, dashes and underscores, the first a "
            "letter or digit"
        )


def check_name(name: str) -> None:
    """Refuse what would lie elsewhere than its name says, or be read as something else.

    Raises:
        InputError: in one line.
    """
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise InputError(
            f"name is {name!r}; expected up to 100 letters, digits, dots, dashes and underscores, the first no dot or dash"
        )
