"""How many of how many, and how far the true share may lie from that."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ddpm_core.errors import InputError

_TAIL = 0.025
"""On each side of a 95% interval."""
_HALVINGS = 60


@dataclass(frozen=True, kw_only=True)
class Share:
    """`count` of `total` independent trials, with the exact 95% interval of Clopper and Pearson (1934).

    Each bound fails for 2.5% of all such experiments at the most, whatever the true share and however few the trials.

    Raises:
        InputError: if there are no trials, or count is not in [0, total].
    """

    count: int
    total: int

    def __post_init__(self) -> None:
        if self.total < 1 or not 0 <= self.count <= self.total:
            raise InputError(f"a share of {self.count} of {self.total} was asked for; expected 0 to 1 of 1 or more")

    @property
    def rate(self) -> float:
        """In [0, 1]."""
        return self.count / self.total

    @cached_property
    def low(self) -> float:
        """The interval's lower end."""
        return 1.0 - _upper(self.total - self.count, self.total)

    @cached_property
    def high(self) -> float:
        """The interval's upper end."""
        return _upper(self.count, self.total)


def _upper(count: int, total: int) -> float:
    """The share at which `count` or fewer of `total` have a chance of _TAIL. That chance falls as the share grows."""
    if count == total:
        return 1.0
    low, high = count / total, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _at_most(count, total, middle) > _TAIL:
            low = middle
        else:
            high = middle
    return high


def _at_most(count: int, total: int, share: float) -> float:
    """The chance of `count` or fewer of `total`: the binomial terms, by their logarithms."""
    hits = np.arange(1, count + 1)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log((total - hits + 1) / hits))])
    hits = np.arange(count + 1)
    return float(np.exp(log_choose + hits * np.log(share) + (total - hits) * np.log1p(-share)).sum())
