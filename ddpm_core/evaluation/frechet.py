"""The Fréchet distance between two sets of features, from moments that can be gathered piece by piece."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.errors import InputError
from ddpm_core.types import Float, Tensor

_PIVOTS = 64
"""Rows of a factor that are found before they are taken from the whole matrix in one product."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureStats:
    """Count, mean and second central moments of d features; float64.

    Parts of a set are measured apart and merged. The merge is associative and commutative up to rounding, and stats of
    count 0 change nothing.
    """

    count: int
    mean: NDArray[np.float64]
    """[d]."""
    m2: NDArray[np.float64]
    """[d, d]: the sum over images of (f - mean)(f - mean)^T."""

    @classmethod
    def from_features(cls, features: Float[Tensor, "b d"]) -> "FeatureStats":
        """Stats of a batch, b >= 0.

        Raises:
            InputError: if a feature is not finite.
        """
        values = features.detach().to(device="cpu", dtype=torch.float64).numpy()
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values).all(axis=1)).sum())
            raise InputError(f"{bad} of {len(values)} images have features that are not finite; expected finite ones")
        mean = values.mean(axis=0) if len(values) else np.zeros(values.shape[1])
        centred = values - mean
        return cls(count=len(values), mean=mean, m2=centred.T @ centred)

    def merge(self, other: "FeatureStats") -> "FeatureStats":
        """Stats of both sets together (the pairwise update of Chan, Golub and LeVeque 1983, for vectors).

        Raises:
            InputError: if the dimensions differ.
        """
        _same_dimension(self, other)
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        between = np.outer(delta, delta) * (self.count * other.count / count)
        return FeatureStats(count=count, mean=mean, m2=self.m2 + other.m2 + between)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """[d, d], unbiased (divided by count - 1).

        Raises:
            InputError: if count < 2.
        """
        if self.count < 2:
            raise InputError(f"a covariance of {self.count} images was asked for; expected 2 or more")
        return self.m2 / (self.count - 1)


def merge_all(parts: Iterable[FeatureStats]) -> FeatureStats:
    """Stats of all parts together, merged from left to right; at least one part."""
    return reduce(FeatureStats.merge, parts)


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """|mean_a - mean_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^1/2), S the covariances (Dowson and Landau 1982).

    With any factor S_a = A A^T, (S_a S_b)^1/2 has the trace of (A^T S_b A)^1/2. That product is symmetric: real
    eigenvalues, no matrix square root that fails on singular covariances. Few images bias the value upwards: only
    figures of equal counts compare.

    Raises:
        InputError: if one has fewer than 2 images, or the dimensions differ.
    """
    _same_dimension(a, b)
    s_a, s_b = a.covariance, b.covariance
    # The set of fewer images is factored: a product of its rank has no zero eigenvalues, whose rounded roots would add up.
    factored, other = (s_a, s_b) if a.count <= b.count else (s_b, s_a)
    factor = _factor(factored)
    product = factor.T @ other @ factor
    cross = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0.0)).sum()
    delta = a.mean - b.mean
    return max(0.0, float(delta @ delta + np.trace(s_a) + np.trace(s_b) - 2.0 * cross))


def _factor(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """A [d, rank] with A A^T = covariance: Cholesky's, with pivots where the covariance is singular."""
    try:
        return np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
    except np.linalg.LinAlgError:
        return _pivoted_cholesky(covariance)


def _pivoted_cholesky(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The columns of a factor in order of what they explain, until what is left is rounding (Higham 1990).

    Eigenvectors would do as well; at 2,048 dimensions and 1,000 images they take several times as long.
    """
    rest = covariance.copy()
    negligible = len(rest) * np.finfo(np.float64).eps * rest.diagonal().max()
    rows: list[NDArray[np.float64]] = []
    while len(rows) < len(rest):
        left, block = rest.diagonal().copy(), np.empty((0, len(rest)))
        while len(block) < _PIVOTS and left.max() > negligible:
            pivot = int(left.argmax())
            row = rest[pivot] - block[:, pivot] @ block
            block = np.vstack([block, row / np.sqrt(left[pivot])])
            left -= block[-1] ** 2
            left[pivot] = 0.0  # not what rounding leaves there: it is never chosen again
        rest -= block.T @ block
        rows.extend(block)
        if len(block) < _PIVOTS:
            break
    return np.array(rows).reshape(len(rows), len(rest)).T


def _same_dimension(a: FeatureStats, b: FeatureStats) -> None:
    if a.mean.shape != b.mean.shape:
        raise InputError(
            f"features of {len(a.mean)} and of {len(b.mean)} dimensions were put together; "
            "expected the same extractor for both"
        )
