"""The course of a run, as what it left behind tells it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddpm_core.artifacts.checkpoint import read_history, run_of
from ddpm_core.artifacts.checkpoint_files import read_state
from ddpm_core.artifacts.looks import Look, read_looks


@dataclass(frozen=True, kw_only=True)
class Course:
    """What is known of a run."""

    looks: Sequence[Look]
    history: Sequence[Mapping[str, int | float]]
    """Rows of a checkpoint: step, loss, grad_norm, images_per_s."""
    train: Mapping[str, object]
    """The run's `train` settings: batch_size, learning_rate, grad_clip and how it averages."""
    skipped: int = 0
    """Steps whose loss or gradient was no number."""
    objective: str = "simple"
    """The run's loss.objective."""
    from_noise: bool = True
    """Whether it began with weights that had learned nothing, and not with a model's."""


def course_from(
    config: Mapping[str, Any], looks: Sequence[Look], history: Sequence[Mapping[str, int | float]], skipped: int = 0
) -> Course:
    """The course of a run with this config, as its checkpoints have it."""
    return Course(
        looks=looks,
        history=history,
        train=config.get("train", {}),
        skipped=skipped,
        objective=config.get("loss", {}).get("objective", "simple"),
        from_noise=config.get("init_from") is None,
    )


def course_of(checkpoint: str) -> Course:
    """The course of a run up to one of its checkpoints.

    Raises:
        MissingError: if the checkpoint does not stand any more.
        InputError: in one line, if it is damaged.
    """
    state = read_state(checkpoint)
    looks = [look for look in read_looks(run_of(checkpoint)) if look.step <= state["step"]]
    return course_from(state["config"], looks, read_history(checkpoint), state.get("skipped", 0))
