"""The Fréchet distance between two sets of features, from moments that can be gathered piece by piece."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.errors import InputError
from ddpm_core.types import Float, Tensor


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

    def to_bytes(self) -> bytes:
        """An .npz file, for caches and for the way between processes."""
        out = io.BytesIO()
        np.savez(out, count=np.int64(self.count), mean=self.mean, m2=self.m2)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "FeatureStats":
        """The inverse of `to_bytes`, to the bit; refuses pickled content."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return cls(count=int(file["count"]), mean=file["mean"], m2=file["m2"])


def merge_all(parts: Iterable[FeatureStats]) -> FeatureStats:
    """Stats of all parts together, merged from left to right; at least one part."""
    return reduce(FeatureStats.merge, parts)


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """|mean_a - mean_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^1/2), S the covariances (Dowson and Landau 1982).

    (S_a S_b)^1/2 has the trace of (S_a^1/2 S_b S_a^1/2)^1/2. That product is symmetric: real eigenvalues, no matrix
    square root that fails on singular covariances. Few images bias the value upwards: only figures of equal counts
    compare.

    Raises:
        InputError: if one has fewer than 2 images, or the dimensions differ.
    """
    _same_dimension(a, b)
    s_a, s_b = a.covariance, b.covariance
    eigenvalues, vectors = np.linalg.eigh(s_a)
    root = (vectors * np.sqrt(eigenvalues.clip(min=0.0))) @ vectors.T
    product = root @ s_b @ root
    # Rounding leaves the zero eigenvalues of a singular covariance a little below zero.
    cross = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0.0)).sum()
    delta = a.mean - b.mean
    return max(0.0, float(delta @ delta + np.trace(s_a) + np.trace(s_b) - 2.0 * cross))


def _same_dimension(a: FeatureStats, b: FeatureStats) -> None:
    if a.mean.shape != b.mean.shape:
        raise InputError(
            f"features of {len(a.mean)} and of {len(b.mean)} dimensions were put together; "
            "expected the same extractor for both"
        )
