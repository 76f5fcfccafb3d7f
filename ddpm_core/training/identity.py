"""A run's identity: the config that decides its weights, made, compared, and turned into what training minimises."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ddpm_core.artifacts.checkpoint import Checkpoint
from ddpm_core.artifacts.finite import check_finite
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.errors import InputError
from ddpm_core.model.config import read_model_config
from ddpm_core.model.unet import UNetConfig
from ddpm_core.serialization import from_json, to_json
from ddpm_core.training.augmentation import NUM_PARAMETERS
from ddpm_core.training.config import MAY_CHANGE, TrainConfig
from ddpm_core.training.step import Objective


def run_config(
    index: DatasetIndex,
    *,
    unet: UNetConfig,
    schedule: ScheduleConfig,
    reverse: ReverseConfig,
    loss: LossConfig,
    train: TrainConfig,
    init_from: str | None,
) -> dict[str, Any]:
    """All that decides the weights of a run at a given step, as JSON.

    Args:
        train: with its precision said. Not "auto": a run that moved between CPU and GPU would go on in another one unnoticed.
        init_from: sha256 of the weights that it begins with, if not with the seed's.

    Raises:
        InputError: if images are to be shown without their label to a network that knows no such image.
    """
    if unet.num_classes and not unet.knows_no_label and train.label_dropout:
        raise InputError(
            f"train.label-dropout is {train.label_dropout:g} and unet.form.null-label is False: the network knows no image "
            "without a label; expected train.label-dropout 0"
        )
    decisive = {field.name for field in fields(TrainConfig)} - MAY_CHANGE
    # Only what is averaged by: of a fixed decay the JSON, and the name by its digest, are what they were before half-lives.
    decisive -= {"ema_decay"} if train.ema_decay is None else {"ema_half_life", "ema_warmup"}
    return {
        **to_json({"image_size": index.image_size}),
        "channels": index.channels,
        "unet": to_json(unet),
        "schedule": to_json(schedule),
        "reverse": to_json(reverse),
        "loss": to_json(loss),
        "train": {key: value for key, value in to_json(train).items() if key in decisive},
        "init_from": init_from,
        **({"unet_augment": NUM_PARAMETERS} if train.augment else {}),
    }


def check_continues(checkpoint: Checkpoint, config: dict[str, Any], dataset_digest: str) -> None:
    """Refuse to go on from a checkpoint that was trained otherwise, or of which a value is no number.

    The latter is no damage of a file, for which the checkpoint before would be taken: it was written so, by a fault that
    a person should know of.

    Raises:
        InputError: with both values, if dataset or config differ; naming the weight or moment that holds NaN or infinity.
    """
    check_same(checkpoint.config, checkpoint.dataset_digest, config, dataset_digest)
    where = f"checkpoints/step-{checkpoint.step:08d}"
    for part in ("model", "ema", "optimizer"):
        remedy = f"delete {where} of the run, and the same command goes on from the checkpoint before it"
        check_finite(getattr(checkpoint, part), f"{part} of {where}", remedy)


def check_same(found: dict[str, Any], found_digest: str, config: dict[str, Any], dataset_digest: str) -> None:
    """Refuse to go on with a run that was trained on another dataset or otherwise.

    Raises:
        InputError: with both values.
    """
    if found_digest != dataset_digest:
        raise InputError(
            f"the run was trained on dataset {found_digest[:12]}, this one is {dataset_digest[:12]}; give the run another --name"
        )
    if different := difference(found, config):
        key, was, wanted = different
        raise InputError(
            f"the run was started with {key} = {was}, now it is {wanted}; "
            f"give the run another --name, or go on with {_flag(key, was)}"
        )


def difference(found: dict[str, Any], wanted: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting that two configs of runs do not share, and both its values; None if they share all."""
    was, now = _in_full(found), _in_full(wanted)
    keys = sorted(was.keys() | now.keys())
    return next(((key, was.get(key), now.get(key)) for key in keys if was.get(key) != now.get(key)), None)


def check_classes(num_classes: int, class_names: Sequence[str]) -> None:
    """Refuse a network that is told of other classes than the dataset has.

    Raises:
        InputError: with both numbers.
    """
    if num_classes not in (0, len(class_names)):
        raise InputError(
            f"unet.num-classes is {num_classes}, the dataset has {len(class_names)} classes; "
            "expected as many, or 0 to train without labels"
        )


def check_steps(done: int, steps: int) -> None:
    """Refuse to train to a step that a run has passed.

    Raises:
        InputError: with both.
    """
    if done > steps:
        raise InputError(
            f"the run has {done:,} steps already, train.steps is {steps:,}; expected {done:,} or more, or another --name for "
            "a shorter run (of a project, its file has to say train.steps, too)"
        )


def _flag(key: str, value: Any) -> str:
    """The flag that gives a setting the value that it had."""
    part, _, name = key.replace("_", "-").rpartition(".")
    if not part:  # of the dataset, or the weights that it began with
        return "the value it has"
    if isinstance(value, bool):
        return f"--{part}.{name}" if value else f"--{part}.no-{name}"
    return f"--{part}.{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def _in_full(config: dict[str, Any]) -> dict[str, Any]:
    """A config, flat, with what `train` leaves out while it has its default."""
    defaults = to_json({each.name: each.default for each in fields(TrainConfig) if each.metadata.get("unless_default")})
    return _flat({**config, "train": {**defaults, **config.get("train", {})}})


def _flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def build_objective(config: dict[str, Any]) -> Objective:
    """What training on a checkpoint's config minimises."""
    model = read_model_config(config)
    return Objective(
        schedule=model.build_schedule(),
        reverse=model.reverse,
        loss=from_json(LossConfig, config["loss"]),
    )
