"""How fast the averaged weights forget, and how much of them is still what they began with."""

from collections.abc import Mapping
from typing import Any

import torch

from ddpm_core.training.config import TrainConfig

LARGEST_SHARE = 0.01
"""Of its beginning in an average whose images are worth having."""
_FIELDS = ("batch_size", "ema_decay", "ema_half_life", "ema_warmup")


def decay_of(config: TrainConfig, num_updates: int) -> float:
    """The decay of an update, in [0, 1): fixed, or 0.5^(batch / half-life) (Karras et al. 2022, their training code).

    The half-life is `ema_half_life` images, but at most `ema_warmup` of the images that all updates have seen, this one's
    included (theirs counts those before it: one batch less).

    Args:
        num_updates: updates done before this one, 0 or more.
    """
    if config.ema_decay is not None:
        return config.ema_decay
    half_life: float = config.ema_half_life
    if config.ema_warmup > 0:
        half_life = min(half_life, config.ema_warmup * (num_updates + 1) * config.batch_size)
    return float(0.5 ** (config.batch_size / half_life))


def start_share(config: TrainConfig, updates: int) -> float:
    """The share of the average, in [0, 1], that is still the weights it began with: the product of the decays so far.

    The first update copies, so it has none of its own: after it the share is 1.

    Args:
        updates: of the weights, 0 or more.
    """
    later = max(0, updates - 1)
    if config.ema_decay is not None:
        return float(config.ema_decay**later)
    fixed = config.batch_size / config.ema_half_life  # halvings by an update
    if config.ema_warmup == 0:
        return float(0.5 ** (fixed * later))
    # Update k halves the share min(half-life, warm-up k B) / B times over: 1 / (warm-up k), until the half-life is reached.
    rising = max(1, min(later + 1, int(1 / (config.ema_warmup * fixed))))
    halvings = float((1 / torch.arange(2, rising + 1, dtype=torch.float64)).sum()) / config.ema_warmup
    return float(0.5 ** (halvings + fixed * (later + 1 - rising)))


def young_average(config: TrainConfig, step: int) -> str:
    """What is wrong with the averaged weights of a step, in one line; empty if they have left their beginning behind.

    Args:
        step: completed steps; skipped ones, which update nothing, are counted as if they did.
    """
    share = start_share(config, step)
    if share <= LARGEST_SHARE:
        return ""
    if config.ema_decay is not None:
        by, remedy = f"train.ema-decay {config.ema_decay}", "--train.ema-decay"
    else:
        by = f"train.ema-half-life {config.ema_half_life:,} images, train.ema-warmup {config.ema_warmup:g}"
        remedy = "--train.ema-half-life"
    return (
        f"the averaged weights of step {step:,} are still {100 * share:.3g}% those that they began with ({by}), so their "
        f"images show little of what was learned; expected at most {LARGEST_SHARE:.0%}: train on to step "
        f"{_enough(config):,}, or anew with a smaller {remedy}"
    )


def young_weights(config: Mapping[str, Any], step: int) -> str:
    """As `young_average`, of weights with a run's config as JSON; empty where that does not say how they were averaged,
    as of weights that were trained elsewhere."""
    known = {name: value for name, value in config.get("train", {}).items() if name in _FIELDS}
    if not {"ema_decay", "ema_half_life"} & known.keys():
        return ""
    return young_average(TrainConfig(**known), step)


def _enough(config: TrainConfig) -> int:
    """The first step whose average has left its beginning behind."""
    low, high = 1, 2  # too young, old enough
    while start_share(config, high) > LARGEST_SHARE:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if start_share(config, middle) > LARGEST_SHARE else (low, middle)
    return high
