"""Whether generated images repeat training images, searched by a task for each training shard."""

from dataclasses import dataclass

import numpy as np
import ray
import torch
import torch.nn.functional as F

from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.data.pixels import on_white
from ddpm_core.data.reader import ImageReader
from ddpm_core.evaluation.copies import CopyReport, CopySearch, judge_copies, merge_searches, search_copies
from ddpm_core.evaluation.figures import Figure
from ddpm_core.types import Tensor, UInt8, height_and_width
from pipelines.cluster.placement import for_a_cpu
from pipelines.cluster.session import shard_cache
from pipelines.cluster.tasks import merged
from pipelines.measuring.image_sets import ImageSet, SplitImages
from pipelines.progress import progress

_LARGEST = 64
"""Pixels of the longer side: larger images are averaged down for the search, whose work grows with the pixels."""
_BATCH = 1024
_Searches = tuple[CopySearch, CopySearch]
"""Of the generated images, and of real ones that were not trained on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Copies:
    """What the search found."""

    report: CopyReport
    pairs: UInt8[Tensor, "pairs 2 c h w"]
    """The worst: a generated image and the training image that it resembles most."""
    size: tuple[int, int]
    """Height and width in pixels at which images were compared."""


def find_copies(images: ImageSet, index: DatasetIndex, count: int) -> Copies:
    """Search the training set for a set's first `count` images, and for as many real ones that were not trained on.

    Raises:
        TooFewHeldOut: in one line, if nothing can be said of what is suspicious.
    """
    generated = first_images(images, count)
    unseen = first_images(SplitImages(index, index.final_split), count)
    queries = tuple(ray.put(_comparable(each).numpy()) for each in (generated, unseen))
    parts = [(number, part.start) for number, part in enumerate(SplitImages(index, "train").parts)]
    with progress("search copies", len(parts), "part") as shown:
        found = merged(_search_shard, parts, for_a_cpu("evaluate"), _merge, index, *queries, on_done=shown.set)
    report = judge_copies(*found)
    reader = ImageReader(index, "train", shard_cache(), keep_bytes=0)
    pairs = [torch.stack([generated[pair.generated], _image(reader, pair.training)]) for pair in report.worst]
    size = _compared_at(*height_and_width(index.image_size))
    return Copies(report=report, pairs=torch.stack(pairs), size=size)


def first_images(images: ImageSet, count: int) -> UInt8[Tensor, "n c h w"]:
    """A set's first `count` images, or all of them."""
    count = min(count, images.num_images)
    parts = [range(part.start, min(part.stop, count)) for part in images.parts if part.start < count]
    return torch.cat([batch for part in parts for batch in images.read(part, _BATCH)])


def _merge(one: _Searches, other: _Searches) -> _Searches:
    return merge_searches(one[0], other[0]), merge_searches(one[1], other[1])


def _search_shard(part: tuple[int, int], index: DatasetIndex, generated: np.ndarray, unseen: np.ndarray) -> _Searches:
    """In a task."""
    torch.set_num_threads(1)
    number, first = part
    reader = ImageReader(index, "train", shard_cache(), keep_bytes=0)
    queries = [torch.from_numpy(each.copy()) for each in (generated, unseen)]
    found: _Searches | None = None
    for images in reader.in_order(_BATCH, range(number, number + 1)):
        of_generated, of_unseen = (search_copies(each, _comparable(images), first_index=first) for each in queries)
        found = (of_generated, of_unseen) if found is None else _merge(found, (of_generated, of_unseen))
        first += len(images)
    assert found is not None
    return found


def _comparable(images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c small_h small_w"]:
    images, size = on_white(images), _compared_at(*images.shape[-2:])
    if images.shape[-2:] == size:
        return images
    small = [F.interpolate(each.float(), size=size, mode="area").round() for each in torch.split(images, 64)]
    return torch.cat(small).to(torch.uint8)


def _compared_at(height: int, width: int) -> tuple[int, int]:
    """Height and width of the same shape that are not too large."""
    scale = min(1, _LARGEST / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _image(reader: ImageReader, place: int) -> UInt8[Tensor, "c h w"]:
    return reader.images(*reader.places(range(place, place + 1)))[0]


def copy_figures(copies: Copies | None, index: DatasetIndex) -> tuple[Figure, ...]:
    """The share of suspects, with its interval."""
    if copies is None:
        return ()
    found, real = copies.report.generated, copies.report.held_out
    height, width = copies.size
    return (
        Figure(
            name="suspected_copies",
            value=found.rate,
            low=found.low,
            high=found.high,
            of=f"{found.count:,} of {found.total:,} generated images, compared at {height}x{width}",
            note=f"of {real.total:,} {index.final_split} images {real.count:,} are suspected, too ({real.rate:.2%})",
        ),
    )
