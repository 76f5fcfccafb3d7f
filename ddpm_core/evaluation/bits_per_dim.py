"""Bits/dim of a set of images with its parts, rate and distortion (Ho et al. 2020, Section 4.3), gathered piece by piece."""

import io
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.data.pixels import to_unit
from ddpm_core.diffusion.likelihood import Bound, variational_bound
from ddpm_core.diffusion.reverse import Clip, ReverseProcess
from ddpm_core.errors import InputError
from ddpm_core.precision import whole_float32
from ddpm_core.random import Purpose, integers, normals
from ddpm_core.types import Float, Tensor, UInt8

GROUP = 32
"""Images that share their steps, aligned in the split: whoever measures which group, the figures are the same."""

_KEY = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class BoundStats:
    """Sums over images of the variational bound's parts; parts of a set are measured apart and merged."""

    count: int
    prior: float
    """Sum of L_T, bits/dim."""
    total: float
    """Sum of the bounds, bits/dim."""
    total_squares: float
    """Sum of their squares."""
    terms: NDArray[np.float64]
    """[T]: at each t the sum of its terms, bits/dim; L_0 at t = 0."""
    x_0_mse: NDArray[np.float64]
    """[T]: at each t the sum of the mean squared errors of x_0_hat, on the scale of [-1, 1]."""
    seen: NDArray[np.int64]
    """[T]: how many images were looked at there."""

    def merge(self, other: "BoundStats") -> "BoundStats":
        """Stats of both sets together.

        Raises:
            InputError: if they are of schedules of other lengths.
        """
        if self.terms.shape != other.terms.shape:
            raise InputError(f"bounds of {len(self.terms)} and of {len(other.terms)} steps; expected the same schedule")
        return BoundStats(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def to_bytes(self) -> bytes:
        """An .npz file."""
        out = io.BytesIO()
        np.savez(out, **{f.name: np.asarray(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "BoundStats":
        """The inverse of `to_bytes`, to the bit; refuses pickled content."""
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            found = {f.name: file[f.name] for f in fields(cls)}
        return cls(**{name: value if value.ndim else value.item() for name, value in found.items()})

    @property
    def bits_per_dim(self) -> float:
        """The bound: no more than this many bits a dimension are needed to store an image without loss."""
        return self.total / self.count

    @property
    def standard_error(self) -> float:
        """Of bits_per_dim, over images; 0 for a single one."""
        if self.count < 2:
            return 0.0
        variance = max(0.0, self.total_squares / self.count - self.bits_per_dim**2)
        return float(np.sqrt(variance / (self.count - 1)))

    @property
    def distortion(self) -> float:
        """L_0: bits/dim that the last step needs."""
        return float(self.terms[0] / self.seen[0])

    @property
    def rate(self) -> float:
        """L_1 + ... + L_T: bits/dim of all steps before the last."""
        return self.bits_per_dim - self.distortion

    @property
    def rmse(self) -> NDArray[np.float64]:
        """[T]: root mean squared error of x_0_hat seen from each t, on the scale of 0..255 (Fig. 5); nan where none was."""
        with np.errstate(invalid="ignore", divide="ignore"):
            root: NDArray[np.float64] = 127.5 * np.sqrt(self.x_0_mse / self.seen)
        return root

    @property
    def mean_terms(self) -> NDArray[np.float64]:
        """[T]: the term at each t, bits/dim; between two that were measured, on the line that joins them."""
        known = np.flatnonzero(self.seen)
        return np.interp(np.arange(len(self.seen)), known, self.terms[known] / self.seen[known])

    @property
    def received(self) -> NDArray[np.float64]:
        """[T]: bits/dim received when x_t is known, L_T + ... + L_{t+1} in code's t (Table 4's rate)."""
        later = np.cumsum(self.mean_terms[::-1])[::-1]
        return self.prior / self.count + np.append(later[1:], 0.0)


def progress_table(stats: BoundStats, rows: int = 10) -> list[tuple[int, float, float]]:
    """Table 4 of Ho et al. 2020: after so many reverse steps, the bits/dim received and the RMSE of x_0_hat (0..255)."""
    T, known = len(stats.seen), np.flatnonzero(stats.seen)
    rmse = np.interp(np.arange(T), known, stats.rmse[known])
    steps = [T - T * row // rows for row in range(min(rows, T))]
    return [(step, float(stats.received[T - step]), float(rmse[T - step])) for step in steps]


def strata(num_timesteps: int, num_steps: int | None) -> list[range]:
    """The timesteps in ranges, of each of which one step stands for all: t = 0 alone, then ranges that grow with t.

    The terms fall steeply with t, so that the small t need to be seen more often.

    Args:
        num_timesteps: T.
        num_steps: how many ranges, at the most; None for one a step.
    """
    T = num_timesteps
    count = T if num_steps is None else min(num_steps, T)
    if count == T:
        return [range(t, t + 1) for t in range(T)]
    edges = sorted({0, 1, *np.geomspace(1, T, max(2, count)).round().astype(int).tolist()})
    return [range(low, high) for low, high in pairwise(edges)]


@whole_float32()
def measure_bound(
    p: ReverseProcess,
    images: UInt8[Tensor, "b c h w"],
    first_index: int,
    num_steps: int | None = None,
    clip: Clip = "static",
) -> BoundStats:
    """The bound of one group of images, by all steps or by an unbiased choice of them.

    Args:
        p: for a network with classes its denoiser knows the labels of these images.
        images: at most GROUP of them.
        first_index: the place of the first one in its split, a multiple of GROUP; it keys the noise and the steps.
        num_steps: network passes an image; None for all T.
        clip: what is done to x_0_hat.

    Raises:
        InputError: if the group is not aligned, or an image's bound is not finite.
    """
    bound, chosen, widths = _measured(p, images, first_index, num_steps, clip)
    return _summed(bound, chosen, widths, p.schedule.num_timesteps)


def bits_per_image(
    p: ReverseProcess,
    images: UInt8[Tensor, "b c h w"],
    first_index: int = 0,
    num_steps: int | None = None,
    clip: Clip = "static",
) -> Float[Tensor, " b"]:
    """The bound of each image of a group, bits/dim; as `measure_bound` otherwise."""
    bound, _, widths = _measured(p, images, first_index, num_steps, clip)
    return _per_image(bound, widths)


def _measured(
    p: ReverseProcess, images: UInt8[Tensor, "b c h w"], first_index: int, num_steps: int | None, clip: Clip
) -> tuple[Bound, list[int], list[int]]:
    """The bound's terms, the steps at which they were measured, and for how many steps each of them stands."""
    if first_index % GROUP or len(images) > GROUP:
        raise InputError(f"{len(images)} images from number {first_index} on; expected a group of {GROUP}, aligned")
    T, device = p.schedule.num_timesteps, images.device
    p = replace(p, schedule=p.schedule.to(device))
    index = torch.arange(first_index, first_index + len(images), device=device)
    group = torch.tensor([first_index // GROUP])
    ranges = strata(T, num_steps)
    chosen = [
        width.start + int(integers(_KEY, Purpose.LIKELIHOOD, group, len(width), step=T + place)[0])
        for place, width in enumerate(ranges)
    ]

    def noise(t: int) -> Tensor:
        return normals(_KEY, Purpose.LIKELIHOOD, index, tuple(images.shape[1:]), step=t)

    bound = variational_bound(p, to_unit(images), noise, timesteps=chosen, clip=clip)
    finite = bound.terms.isfinite().all(dim=1)
    if not bool(finite.all()):
        raise InputError(
            f"the bound of {int((~finite).sum())} of {len(images)} images from number {first_index} on is not finite; expected "
            "finite terms: the network overflows, take another checkpoint"
        )
    return bound, chosen, [len(r) for r in ranges]


def _per_image(bound: Bound, widths: list[int]) -> Float[Tensor, " b"]:
    """Each term counts for all of its range."""
    return bound.prior + (bound.terms * torch.tensor(widths, device=bound.terms.device)).sum(dim=1)


def _summed(bound: Bound, timesteps: list[int], widths: list[int], num_timesteps: int) -> BoundStats:
    total = _per_image(bound, widths)
    terms, x_0_mse, seen = np.zeros(num_timesteps), np.zeros(num_timesteps), np.zeros(num_timesteps, dtype=np.int64)
    terms[timesteps] = bound.terms.sum(dim=0).cpu().numpy()
    x_0_mse[timesteps] = bound.x_0_mse.sum(dim=0).cpu().numpy()
    seen[timesteps] = len(total)
    return BoundStats(
        count=len(total),
        prior=float(bound.prior.sum()),
        total=float(total.sum()),
        total_squares=float(total.square().sum()),
        terms=terms,
        x_0_mse=x_0_mse,
        seen=seen,
    )
