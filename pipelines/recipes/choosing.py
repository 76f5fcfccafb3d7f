"""Which settings a person's own images get, by rules; docs/projects.md has them as a table, and where each comes from.

What sweeps and benchmarks found is taken from the recipes themselves, so that a rule moves with them. The rest is judgement, and
its reason says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ddpm_core.data.config import DataConfig
from ddpm_core.errors import InputError
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.model.blocks import group_norm
from ddpm_core.model.unet import UNetConfig
from ddpm_core.training.augmentation import AugmentKind
from ddpm_core.training.config import TrainConfig
from pipelines.recipes.config import Recipe, SampleStage, TrainStage
from pipelines.recipes.fitting import fitted
from pipelines.recipes.recipes import make
from pipelines.recipes.survey import Survey

FEWEST_IMAGES = 20
"""Of fewer none could be held out."""
TINY_GREY, SMALL_GREY = 10, 32
"""Pixels of the shorter side up to which grey images are like `digits`, and like `mnist`."""
LARGEST = {"cpu": 32, "gpu": 64}
"""Pixels a side that a machine trains in hours."""
FEW = 1_000
"""Training images, fewer of which are augmented."""
MANY = 10_000
"""Training images from which on a GPU trains the paper's whole width."""
LOOKS = 500
"""How often each training image is looked at, at most."""
LEAST_STEPS = 1_000
"""Fewer teach a network little, however few the images are."""
MOST_WORKERS = 4
_WIDE = 128
"""Base channels from which all norms have the paper's number of groups."""
_TRAINED_ON = 0.81
"""Of all images: a tenth is for the test, and a tenth of what is left for validation."""
_AUGMENTED = 0.12
_KINDS: tuple[AugmentKind, ...] = ("scale", "stretch", "translation")
_GRAIN = 20
"""Steps are a multiple of it, so that checkpoints divide them."""

Like = Literal["digits", "mnist", "cifar10_small", "cifar10"]
_IMAGES_SEEN: dict[Like, int] = {
    "digits": 30_720,
    "mnist": 136_000,
    "cifar10_small": 320_000,
    "cifar10": 2_560_000,
}
"""In a training, where there are images enough: the recipe's own, but five times cifar10_small's, and the paper's by a fortieth."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What trains."""

    cpus: int
    """1 or more."""
    gpu: bool


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A project's settings."""

    recipe: Recipe
    like: Like
    """The recipe that they were taken from, where they were not chosen."""
    reasons: Mapping[str, str]
    """By a field's dotted path."""


def choose(name: str, source: str, found: Survey, machine: Machine) -> Chosen:
    """The settings for images like these on this machine: a pure function.

    Args:
        name: the project's.
        source: where the images lie, as the file is to have it.

    Raises:
        InputError: if there are too few images.
    """
    if found.num_images < FEWEST_IMAGES:
        raise InputError(
            f"{source} holds {found.num_images} images; expected {FEWEST_IMAGES} or more: some are held out of training"
        )
    like = likeness(found, gpu=machine.gpu)
    base = make(like)
    data, of_data = _data(source, found, base, gpu=machine.gpu)
    unet, of_unet = _unet(found, like, base, data)
    train, of_train = _train(found, like, base, machine)
    sample, evaluate, of_images = _images(like, base, machine)
    taken = dict.fromkeys(_TAKEN, _as_in(like))
    return Chosen(
        recipe=Recipe(
            recipe=name,
            data=data,
            unet=unet,
            schedule=base.schedule,
            reverse=base.reverse,
            loss=base.loss,
            train=train,
            sample=sample,
            evaluate=evaluate,
        ),
        like=like,
        reasons=taken | _WON[like] | of_data | of_unet | of_train | of_images,
    )


def likeness(found: Survey, *, gpu: bool) -> Like:
    """The recipe whose images are most like these, and which the machine can train."""
    if found.is_grey and found.side <= TINY_GREY:
        return "digits"
    if found.is_grey and found.side <= SMALL_GREY:
        return "mnist"
    return "cifar10" if gpu else "cifar10_small"


_TAKEN = (
    "unet.base_channels",
    "unet.channel_multipliers",
    "unet.num_res_blocks",
    "unet.attention_resolutions",
    "unet.dropout",
    "schedule.name",
    "reverse.prediction",
    "train.batch_size",
    "train.learning_rate",
    "train.log_every",
    "sample.block_size",
    "sample.batch_size",
    "sample.sampler.name",
    "sample.sampler.num_steps",
)
_SEARCHED = ("schedule.name", "reverse.prediction")
_WON: dict[Like, dict[str, str]] = {
    "digits": dict.fromkeys(_SEARCHED, "Won the sweep of digits (docs/sweeps.md)."),
    "mnist": dict.fromkeys(_SEARCHED, "Won the sweep of mnist (docs/sweeps.md)."),
    "cifar10_small": {
        "reverse.prediction": "After 1,000 steps eps-prediction is still noise, at a distance of 791; v is at 67 (docs/results.md)."
    },
    "cifar10": dict.fromkeys(_SEARCHED, "The paper's."),
}


def _as_in(like: Like) -> str:
    return f"As in the recipe {like}."


def num_trained_on(found: Survey) -> int:
    """Images that will be trained on, about."""
    return int(_TRAINED_ON * found.num_images)


def _data(source: str, found: Survey, base: Recipe, *, gpu: bool) -> tuple[DataConfig, dict[str, str]]:
    largest, divisor = LARGEST["gpu" if gpu else "cpu"], 1 << len(base.unet.channel_multipliers) - 1
    nearest = (found.side + divisor // 2) // divisor * divisor
    what = f"The median of the shorter sides is {found.side}"
    if nearest > largest:
        trained = f"a GPU trains {largest}" if gpu else f"CPUs train {largest} (a GPU: {LARGEST['gpu']})"
        sized = f"{what}; {trained} in hours, and twice the side takes four times as long."
    else:
        sized = f"{what}; this is the nearest that the network can halve as often as it has levels."
    data = DataConfig(
        source=source, image_size=max(4, divisor, min(nearest, largest)), channels=1 if found.is_grey else 3
    )
    reasons = {
        "data.source": "Relative to this file, if it does not begin with / or s3:.",
        "data.image_size": sized,
        "data.channels": _colours(found),
        "data.fit": "The centre of each, of the square's shape; pad keeps all of it, on white.",
    }
    if found.unread_share > data.max_rejected_fraction:
        reasons["data.max_rejected_fraction"] = (
            f"{found.unread_share:.1%} of them cannot be read, by those that were looked at, and more than this share is an error: "
            "mend or remove them, or raise it."
        )
    return data, reasons


def _colours(found: Survey) -> str:
    told = "None that was looked at is coloured." if found.is_grey else f"{found.num_coloured:,} of them are coloured."
    if not found.num_transparent:
        return told
    kept = 2 if found.is_grey else 4
    return f"{told} {found.num_transparent:,} have transparency, which is laid on white; with {kept} it is kept."


def _unet(found: Survey, like: Like, base: Recipe, data: DataConfig) -> tuple[UNetConfig, dict[str, str]]:
    unet = fitted(base.unet, data.image_size)
    reasons = {"unet.num_classes": "None, as in the paper."}
    if unet != base.unet:
        reasons["unet.attention_resolutions"] = "The side of the level that is nearest to the recipe's."
    if like == "cifar10" and num_trained_on(found) < MANY:
        unet = replace(unet, base_channels=base.unet.base_channels // 2)
        reasons["unet.base_channels"] = (
            f"Half the paper's width for fewer than {MANY:,} images: a judgement. It takes a quarter of the time."
        )
    if (groups := group_norm(unet.base_channels).num_groups) < group_norm(_WIDE).num_groups:
        unet = replace(unet, form=replace(unet.form, norm_groups=groups))
        reasons["unet.form.norm_groups"] = (
            'One number for all norms, as `ddpm export --to diffusers` needs; "none": each as many as its channels allow, up to 32.'
        )
    if found.class_counts:
        count = len(found.class_counts)
        reasons["unet.num_classes"] = (
            f"Not told of the classes, as in the paper. {count:,}, before it trains, and `sample --classes NAME` draws some."
        )
    return unet, reasons


def _train(found: Survey, like: Like, base: Recipe, machine: Machine) -> tuple[TrainStage, dict[str, str]]:
    there, batch, reasons = num_trained_on(found), base.train.batch_size, {}
    while batch > there:
        batch //= 2
        reasons["train.batch_size"] = f"No more than the {there:,} images to train on."
    steps, why = num_steps(like, there, batch)
    reasons |= {
        "train.steps": f"{why} Raised later, the same command goes on.",
        "train.warmup_steps": f"As in the recipe {like}, or a tenth of the steps.",
        "train.ema_half_life": "In images; at most a twentieth of those seen so far, so it suits any number of steps.",
        "train.checkpoint_every": "Ten in all: what is killed goes on from the last.",
        "train.preview_every": "Ten in all, of the same seeds: how images come out of the noise.",
        "train.num_workers": "One." if machine.gpu else f"One a CPU, up to {MOST_WORKERS}; no result depends on it.",
        "train.use_gpu": "Whether there was one, or one was asked for.",
    }
    moved, of_moved = _moved(like, there)
    train = replace(
        base.train,
        steps=steps,
        batch_size=batch,
        warmup_steps=min(base.train.warmup_steps, steps // 10),
        ema_decay=None,
        ema_half_life=TrainConfig.ema_half_life,
        checkpoint_every=steps // 10,
        preview_every=steps // 10,
        num_workers=1 if machine.gpu else min(machine.cpus, MOST_WORKERS),
        use_gpu=machine.gpu,
        **moved,
    )
    return train, reasons | of_moved


def _moved(like: Like, trained_on: int) -> tuple[dict[str, Any], dict[str, str]]:
    """How training images are mirrored and moved about."""
    flip, few = like not in ("digits", "mnist"), trained_on < FEW
    moved: dict[str, Any] = {"flip": flip, "augment": _AUGMENTED if few else 0.0}
    reasons = {
        "train.flip": "Pictures may be mirrored, a judgement; false where left and right differ, as in writing."
        if flip
        else "Small grey images may be writing, which is not to be mirrored.",
        "train.augment": f"{FEW:,} images or more to train on: none, as it was only seen to help with few.",
    }
    if few:
        moved["augment_kinds"] = _KINDS
        reasons["train.augment"] = (
            f"Fewer than {FEW:,} images to train on: it helped with 50 and 300 digits once the network overfitted "
            "(docs/training.md). Photographs were not measured."
        )
        reasons["train.augment_kinds"] = "Those that helped; EDM's others were a burden (docs/training.md)."
    return moved, reasons


def num_steps(like: Like, trained_on: int, batch: int) -> tuple[int, str]:
    """How long to train, and why.

    Args:
        trained_on: images, 1 or more.
        batch: images in a step.
    """
    wanted, most = _IMAGES_SEEN[like], LOOKS * trained_on
    least = min(LEAST_STEPS, wanted // batch)
    steps = max(min(wanted, most) // batch, least) // _GRAIN * _GRAIN
    if most >= wanted:
        return steps, _LONG_ENOUGH[like]
    if most // batch > least:
        return steps, f"Each image about {LOOKS} times: 300 digits were overfitted after as many (docs/training.md)."
    return steps, "So few images are soon overfitted, but fewer steps teach a network little: a judgement."


_LONG_ENOUGH: dict[Like, str] = {
    "digits": "As many images as the recipe digits sees.",
    "mnist": "As many images as the recipe mnist sees.",
    "cifar10_small": "Five times the recipe's own, which only show the pipeline: a judgement.",
    "cifar10": "A fortieth of what the paper's model sees, an hour or a few of a GPU: a judgement.",
}


def _images(like: Like, base: Recipe, machine: Machine) -> tuple[SampleStage, EvaluateConfig, dict[str, str]]:
    """How images are made, and how many are judged."""
    sample, evaluate = base.sample, base.evaluate
    reasons = {
        "sample.num_images": "As many as are judged.",
        "sample.use_gpu": "As in training.",
        "evaluate.num_images": "Enough to tell a good model from a bad one; more make the interval smaller.",
        "evaluate.bits_per_dim_images": "Of those that are held out, as many as there are of so many.",
        "evaluate.bits_per_dim_steps": "At even distances; all of the schedule's make the bound tighter, and take longer.",
    }
    if like == "cifar10":  # which samples 50,000 images in 1,000 steps: hours of a GPU
        small = make("cifar10_small")
        sample, evaluate = replace(sample, sampler=small.sample.sampler), replace(small.evaluate, num_images=1_024)
        why = "The paper's model has FID 4.67 by 50 steps of DDIM, 4.04 by 1,000 (Song et al. 2021)."
        reasons |= dict.fromkeys(("sample.sampler.name", "sample.sampler.num_steps"), why)
    return replace(sample, num_images=evaluate.num_images, use_gpu=machine.gpu), evaluate, reasons
