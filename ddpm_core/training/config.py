"""What a training run is told."""

from dataclasses import dataclass, field
from typing import Literal

from ddpm_core.errors import InputError
from ddpm_core.training.augmentation import EDM_KINDS, AugmentKind, check_augment

Precision = Literal["auto", "float32", "bfloat16"]

MAY_CHANGE = {
    "steps",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "max_skipped",
    "preview_every",
    "recompute",
    "micro_batch_size",
}
"""Fields that may change in mid-run: the weights at a step do not depend on them, but for rounding by the last."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The trajectory of training, and how often it is saved and shown. Nothing here follows from the number of workers.

    Raises:
        InputError: if a field is out of its range.
    """

    steps: int = 800_000
    """Optimizer steps in all; raise it and run again to train further."""
    batch_size: int = 128
    """Images in a global batch, over all workers."""
    learning_rate: float = 2e-4
    """Adam's learning rate, after the warm-up."""
    warmup_steps: int = 5_000
    """Steps over which the learning rate rises linearly."""
    grad_clip: float = 1.0
    """Largest norm of the global gradient."""
    ema_half_life: int = 500_000
    """Of the averaged weights, from which images are sampled: images after which what was averaged counts half
    (Karras et al. 2022)."""
    ema_warmup: float = 0.05
    """The half-life is at most this share of the images seen so far, so that short runs forget how they began; 0: no such
    limit."""
    ema_decay: float | None = None
    """A fixed decay of each step in place of the two; the paper's is 0.9999."""
    flip: bool = True
    """Mirror half of the images; the network is not told."""
    augment: float = field(default=0.0, metadata={"unless_default": True})
    """For small datasets: the probability of each kind of augmentation, told to the network so that none shows in samples
    (Karras et al. 2022: 0.12); 0: none."""
    augment_kinds: tuple[AugmentKind, ...] = field(default=EDM_KINDS, metadata={"unless_default": True})
    """What is done then. x_flip, to half of all images, replaces `flip`; shift, by whole pixels, is in none of EDM's."""
    label_dropout: float = 0.1
    """Of a network with classes: the share of images shown without their label, for guidance."""
    timesteps: Literal["uniform", "loss_aware"] = "uniform"
    """How t is drawn. loss_aware: more often where the loss is large, each weighted by how seldom it was to come
    (Nichol and Dhariwal 2021, Eq. 18); it steadies the bound, whose terms differ by orders of magnitude."""
    seed: int = 0
    """Of the initial weights, the data order, t, eps, flips, augmentation and dropout."""
    precision: Precision = "auto"
    """auto: bfloat16 autocast on a GPU, float32 on a CPU."""
    lanes: int = 8
    """Fixed lanes of the data order, the most workers a run can ever have."""
    window: int = 8
    """Shards over which a lane shuffles."""
    log_every: int = 50
    """Steps between points of the loss curve."""
    checkpoint_every: int = 5_000
    """Steps between checkpoints."""
    keep_checkpoints: int = 3
    """The newest ones that stay."""
    keep_every: int = 0
    """Those at multiples of so many steps stay too; 0: none."""
    max_skipped: int = 10
    """Steps in a row whose loss or gradient may be infinite or no number; each is skipped, one more ends the run."""
    preview_every: int = 5_000
    """Steps between grids of sampled images."""
    micro_batch_size: int | Literal["auto"] | None = field(default=None, metadata={"unless_default": True})
    """So many images at a time go through the network, one such part of a worker's batch after the other, and their gradients are
    added up: memory for so few, the training of the whole batch. auto: as many as fit; None: all at once."""
    recompute: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "ema_half_life",
            "lanes",
            "window",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "preview_every",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"train.{_flag(name)} is {getattr(self, name)}; expected 1 or more")
        if isinstance(self.micro_batch_size, int) and self.micro_batch_size < 1:
            raise InputError(f"train.micro-batch-size is {self.micro_batch_size}; expected 1 or more, auto or None")
        for name in ("steps", "warmup_steps", "keep_every", "max_skipped"):
            if getattr(self, name) < 0:
                raise InputError(f"train.{_flag(name)} is {getattr(self, name)}; expected 0 or more")
        for name in ("learning_rate", "grad_clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"train.{_flag(name)} is {getattr(self, name)}; expected more than 0")
        if not 0 <= self.label_dropout <= 1:
            raise InputError(f"train.label-dropout is {self.label_dropout}; expected a share in [0, 1]")
        if not 0 <= self.ema_warmup <= 1:
            raise InputError(f"train.ema-warmup is {self.ema_warmup}; expected a share in [0, 1]")
        check_augment(self.augment, self.augment_kinds)
        if self.ema_decay is not None:
            self._check_decay(self.ema_decay)

    def _check_decay(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"train.ema-decay is {decay}; expected a decay in [0, 1)")
        for name in ("ema_half_life", "ema_warmup"):
            if getattr(self, name) != getattr(TrainConfig, name):
                raise InputError(
                    f"train.{_flag(name)} is {getattr(self, name)} beside a fixed train.ema-decay of {decay}; expected one "
                    f"of them: leave --train.{_flag(name)} out, or add --train.ema-decay None"
                )


def _flag(name: str) -> str:
    return name.replace("_", "-")
