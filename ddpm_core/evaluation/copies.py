"""Whether a model repeats its training images: nearest ones by parts, a threshold from real unseen images, a verdict.

    parts = [search_copies(queries, shard, first_index=start) for start, shard in shards]  # in any process, any order
    found = functools.reduce(merge_searches, parts)
    report = judge_copies(found_for_generated, found_for_held_out)

An image is suspect if it, or its mirror, is much nearer to one training image than to the k nearest on average
(Carlini et al. 2023, "Extracting training data from diffusion models", section 5). Distances are L2 over raw pixels:
what is shifted by a pixel is another image to them, and a copy that was moved or redrawn is not found.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm_core.data.pixels import on_white
from ddpm_core.errors import InputError
from ddpm_core.evaluation.neighbours import NeighbourIndices, merge_indices, nearest_indices
from ddpm_core.evaluation.shares import Share
from ddpm_core.types import Tensor, UInt8

NUM_NEIGHBOURS = 50
"""The neighbourhood of an image; as in Carlini et al. (2023)."""
NEAR_DUPLICATE = 0.5
"""A real image below this relative distance is a near-duplicate; the factor alpha of Carlini et al. (2023)."""
EXACT_LEVELS = 1.5
"""An exact copy differs by less than this, root mean square in 8-bit levels: by what rounding does."""
EXACT_BELOW = 16
"""Pixels a side. Smaller images resemble each other too much for any but exact copies to mean something."""
NUM_WORST = 12

Rule = Literal["relative", "exact"]


class TooFewHeldOut(InputError):
    """So few images are held out that no threshold can be set by them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CopySearch:
    """The training images nearest to q queries and to their mirrors, among those searched so far."""

    plain: NeighbourIndices
    mirrored: NeighbourIndices
    """Of the queries flipped left to right."""
    shape: tuple[int, int, int]
    """Channels without alpha, height and width of an image."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A generated image and the training image that it resembles most."""

    generated: int
    """The former's row among the generated."""
    training: int
    """The latter's index in the training set."""
    mirrored: bool
    """Whether the generated image's mirror is what resembles it."""
    distance: float
    """L2 over all pixels and channels, on pixels in [0, 1]."""
    score: float
    """By the report's rule; suspect below its threshold."""


@dataclass(frozen=True, kw_only=True)
class CopyReport:
    """What `judge_copies` found."""

    rule: Rule
    threshold: float
    """Scores below it are suspect."""
    num_held_out: int
    num_purged: int
    """Held-out images that were left out, from both halves, as near-duplicates of training images."""
    purge_rule: str
    """By what, in words."""
    generated: Share
    """Suspects among the generated."""
    held_out: Share
    """Suspects among the held-out images that had no say in the threshold: the measured rate of false alarms."""
    held_out_unpurged: Share
    """The same with their near-duplicates put back."""
    worst: tuple[Pair, ...]
    """The twelve lowest scores among the generated, lowest first."""

    @property
    def suspicious(self) -> bool:
        """Whether more of the generated than of unseen real images are suspect, beyond chance.

        The two 95% intervals must not overlap, which an honest model suffers with a chance of 5% at the very most: one
        of two bounds must have failed. Against the held-out rate itself, whose error counts too, it would be more.
        """
        return self.generated.low > self.held_out.high


def search_copies(
    queries: UInt8[Tensor, "q c h w"],
    images: UInt8[Tensor, "n channels height width"],
    *,
    first_index: int = 0,
    k: int = NUM_NEIGHBOURS,
) -> CopySearch:
    """The k nearest of one part of the training set, exactly; in bounded memory, on the CPU. Alpha is laid on white first.

    Args:
        images: one part, of any size.
        first_index: index of the part's first image in the training set.

    Raises:
        InputError: if queries and images differ in shape.
    """
    queries, images = on_white(queries), on_white(images)
    plain = nearest_indices(queries, images, k, first_index=first_index)
    mirrored = nearest_indices(queries.flip(-1), images, k, first_index=first_index)
    channels, height, width = queries.shape[1:]
    return CopySearch(plain=plain, mirrored=mirrored, shape=(channels, height, width))


def merge_searches(a: CopySearch, b: CopySearch, k: int = NUM_NEIGHBOURS) -> CopySearch:
    """The search of two disjoint parts of the training set, in whichever order they come; the same queries in both."""
    plain, mirrored = merge_indices(a.plain, b.plain, k), merge_indices(a.mirrored, b.mirrored, k)
    return CopySearch(plain=plain, mirrored=mirrored, shape=a.shape)


def copy_rule(shape: tuple[int, int, int]) -> Rule:
    """What counts as a copy at this size: an image much nearer than its neighbourhood, or an exact copy alone."""
    return "exact" if min(shape[1:]) < EXACT_BELOW else "relative"


def copy_scores(found: CopySearch) -> NDArray[np.float64]:
    """[2, q]: how near a query, and its mirror, is to a training image; low is near.

    By the rule "relative", the distance to the nearest divided by the mean distance to the k nearest, in [0, 1]. By
    "exact", the root mean square difference to the nearest, in 8-bit levels.

    Raises:
        InputError: if fewer than two training images were searched.
    """
    distances = np.stack([found.plain.distances, found.mirrored.distances])
    if distances.shape[2] < 2:
        raise InputError(f"copies were searched among {distances.shape[2]} training images; expected 2 or more")
    if copy_rule(found.shape) == "exact":
        return np.asarray(distances[:, :, 0] * 255.0 / math.sqrt(math.prod(found.shape)))
    mean = distances.mean(axis=2)
    # A mean of zero: the training set repeats this image k times.
    relative: NDArray[np.float64] = np.divide(distances[:, :, 0], mean, out=np.zeros_like(mean), where=mean > 0)
    return relative


def near_duplicates(found: CopySearch) -> NDArray[np.bool_]:
    """[q]: which real images nearly stand in the training set too, as some 3% of CIFAR-10's test images do.

    Each is judged by itself, against a constant that was fixed beforehand. So those that pass are a fair sample of
    all real images that would pass, and what is measured on them holds for those; of the others it says nothing.
    By the rule "exact" there are none: its threshold is a constant, which no duplicate can move.
    """
    if copy_rule(found.shape) == "exact":
        return np.zeros(len(found.plain.squared), dtype=np.bool_)
    return np.asarray(copy_scores(found).min(axis=0) < NEAR_DUPLICATE)


def judge_copies(generated: CopySearch, held_out: CopySearch, *, false_alarms: float = 0.005) -> CopyReport:
    """Set the threshold by one half of the held-out images, measure it on the other, count suspects among the generated.

    By the rule "relative", near-duplicates are left out of both halves: the images in even places set the threshold,
    those in odd places measure it. Guaranteed, if the held-out images stand in no order of significance: another real
    image that is no near-duplicate is suspect with a probability of `false_alarms` at the most, averaged over the choice
    of the held-out images (an order statistic, as in conformal prediction; Vovk et al. 2005). Not guaranteed: that real
    near-duplicates escape. All of them are suspect, for the threshold is never below the constant that purges them;
    `held_out_unpurged` counts them. So a perfect model of a set whose photographs repeat would be accused, although
    only the training set can have told it of them.
    By the rule "exact" the threshold is EXACT_LEVELS, nothing is purged, and all held-out images measure it.

    Args:
        generated: of the generated images.
        held_out: of real images that the model was not trained on, against the same training images.
        false_alarms: in (0, 1).

    Raises:
        TooFewHeldOut: if there are too few of them for the rate.
        InputError: if the shapes differ, or false_alarms is out of range.
    """
    if generated.shape != held_out.shape:
        raise InputError(f"generated images are {generated.shape} and held-out {held_out.shape}; expected the same")
    if not 0.0 < false_alarms < 1.0:
        raise InputError(f"the rate of false alarms is {false_alarms}; expected a number between 0 and 1")
    rule, scores = copy_rule(generated.shape), copy_scores(held_out).min(axis=0)
    duplicate = near_duplicates(held_out)
    if rule == "exact":
        threshold, measuring = EXACT_LEVELS, slice(None)
        purge_rule = "none: exact copies alone are suspect"
    else:
        threshold, measuring = _threshold(scores[::2][~duplicate[::2]], false_alarms), slice(1, None, 2)
        purge_rule = f"the nearest training image is below {NEAR_DUPLICATE} of the mean distance to the k nearest"
    return CopyReport(
        rule=rule,
        threshold=threshold,
        num_held_out=len(scores),
        num_purged=int(duplicate.sum()),
        purge_rule=purge_rule,
        generated=_suspects(copy_scores(generated).min(axis=0), threshold),
        held_out=_suspects(scores[measuring][~duplicate[measuring]], threshold),
        held_out_unpurged=_suspects(scores[measuring], threshold),
        worst=_worst(generated),
    )


def pair_images(
    pairs: Sequence[Pair], generated: UInt8[Tensor, "q c h w"], read: Callable[[Sequence[int]], Tensor]
) -> UInt8[Tensor, "p 2 c h w"]:
    """Each pair's generated image, as it is, and its training image.

    Args:
        generated: all that were searched for.
        read: the training images with these indices, in this order; uint8 [p, c, h, w].
    """
    training = read([pair.training for pair in pairs])
    return torch.stack([generated[[pair.generated for pair in pairs]], training], dim=1)


def _threshold(scores: NDArray[np.float64], false_alarms: float) -> float:
    """The r-th lowest of n: one more is below it with a probability of r / (n + 1) at the most."""
    rank = math.floor(false_alarms * (len(scores) + 1) + 1e-9)
    if rank < 1:
        raise TooFewHeldOut(
            f"{len(scores)} held-out images are left to set the threshold (half of all, without near-duplicates); "
            f"expected {math.ceil(1 / false_alarms) - 1} or more for {false_alarms:.2%} of false alarms: more "
            "images, or more of them held out as they are sharded (data.test_fraction, data.validation_fraction)"
        )
    return float(np.sort(scores)[rank - 1])


def _suspects(scores: NDArray[np.float64], threshold: float) -> Share:
    return Share(count=int((scores < threshold).sum()), total=len(scores))


def _worst(found: CopySearch) -> tuple[Pair, ...]:
    scores = copy_scores(found)
    rows = scores.min(axis=0).argsort(kind="stable")[:NUM_WORST]
    return tuple(_pair(found, int(row), scores[:, row]) for row in rows)


def _pair(found: CopySearch, row: int, scores: NDArray[np.float64]) -> Pair:
    mirrored = bool(scores[1] < scores[0])
    near = found.mirrored if mirrored else found.plain
    return Pair(
        generated=row,
        training=int(near.indices[row, 0]),
        mirrored=mirrored,
        distance=float(near.distances[row, 0]),
        score=float(scores.min()),
    )
