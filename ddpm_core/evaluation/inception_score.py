"""The Inception score (Salimans et al. 2016), from sums that can be gathered piece by piece."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.errors import InputError
from ddpm_core.types import Float, Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreSums:
    """Sums over images of what a classifier with c classes says, p = softmax(logits); float64.

    Parts of a set are measured apart and merged, in any order up to rounding.
    """

    count: int
    log_p: float
    """Sum over images and classes of p log p, nats."""
    p: NDArray[np.float64]
    """[c]: sum over images of p."""

    @classmethod
    def from_logits(cls, logits: Float[Tensor, "n c"]) -> "ScoreSums":
        """Sums of a batch, n >= 0; c is the classifier's: 1,008 of the network of 2015, without its bias.

        Raises:
            InputError: if a logit is not finite.
        """
        logits = logits.detach().double()
        bad = int((~logits.isfinite().all(dim=1)).sum())
        if bad:
            raise InputError(f"{bad} of {len(logits)} images have logits that are not finite; expected finite ones")
        log_p = torch.log_softmax(logits, dim=1)
        p = log_p.exp()
        return cls(count=len(logits), log_p=float((p * log_p).sum()), p=p.sum(dim=0).cpu().numpy())

    def merge(self, other: "ScoreSums") -> "ScoreSums":
        """Sums of both sets together.

        Raises:
            InputError: if they are of other numbers of classes.
        """
        if self.p.shape != other.p.shape:
            raise InputError(
                f"logits of {len(self.p)} and of {len(other.p)} classes were put together; expected the same classifier"
            )
        return ScoreSums(count=self.count + other.count, log_p=self.log_p + other.log_p, p=self.p + other.p)

    @property
    def score(self) -> float:
        """exp of the mean over images of KL(p(y|x) || p(y)), p(y) the mean of all p(y|x); in [1, c].

        Few images bias it downwards.

        Raises:
            InputError: if there are no images.
        """
        if not self.count:
            raise InputError("an Inception score of 0 images was asked for; expected 1 or more")
        marginal = self.p / self.count
        seen = marginal[marginal > 0]
        return float(np.exp(self.log_p / self.count - (seen * np.log(seen)).sum()))


def score_of_splits(splits: Sequence[ScoreSums]) -> tuple[float, float]:
    """The customary figure: mean and standard deviation of the scores of 10 runs of neighbours among the images.

    A score of n / 10 images is lower than that of all. The images' order must not depend on what they show.
    """
    scores = [split.score for split in splits]
    return float(np.mean(scores)), float(np.std(scores))
