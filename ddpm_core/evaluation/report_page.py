"""The report as one page: a single HTML file that carries its pictures and asks nothing of the network."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddpm_core.artifacts.looks import Look
from ddpm_core.data.images import encode_png
from ddpm_core.data.pixels import CHANNELS, on_white
from ddpm_core.errors import InputError
from ddpm_core.evaluation.bits_per_dim import BoundStats, progress_table
from ddpm_core.evaluation.copies import CopyReport
from ddpm_core.evaluation.figures import Figure
from ddpm_core.evaluation.frechet_infinity import Extrapolation
from ddpm_core.evaluation.neighbours import Neighbours
from ddpm_core.evaluation.pages import png_uri, render, themed, webp_uri
from ddpm_core.evaluation.plots import (
    bound_curves,
    distance_curve,
    look_curves,
    loss_curve,
    precision_recall_curve,
    steps_curve,
)
from ddpm_core.types import ImageSize, Tensor, UInt8, height_and_width

_WIDTH, _GAP = 1104, 3
"""Of the page's content and between two images, in CSS pixels; as in report.css."""
_LARGE = 64
"""Pixels a side from which on images are not magnified and get more room."""
_LARGEST_PNG = 64
"""Larger images are shown as WebP, or the page would weigh tens of megabytes."""


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """The dataset that the model was trained on."""

    name: str
    uri: str
    digest: str
    image_size: ImageSize
    channels: int
    counts: Mapping[str, int]
    """Images in each split."""
    own_splits: tuple[str, ...]
    """Splits that the raw images came with; the others were drawn."""
    num_rejected: int
    class_names: tuple[str, ...]

    @property
    def shape(self) -> str:
        """Height and width of an image, in words."""
        height, width = height_and_width(self.image_size)
        return f"{height}×{width}"


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """The images that were measured."""

    uri: str
    first: int
    """The first one's seed, or its place where no model is known."""
    count: int


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The model that made them, and how it was sampled."""

    checkpoint_uri: str
    weights_sha256: str
    num_parameters: int
    step: int
    images_seen: int
    sampler: str
    """In words: name, number of steps, variance or eta, precision."""
    classes: tuple[str, ...] = ()
    """Those that the images have, in turn from the first on; none of a model without classes."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """All that decided the weights, by dotted name, in words."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Strip:
    """Images on their way from noise.

    Raises:
        InputError: if there is not one label a column.
    """

    frames: UInt8[Tensor, "rows columns c h w"]
    labels: tuple[str, ...]
    """A label a column, from x_T to x_0; such as `T`, `900`, ..., `0`."""

    def __post_init__(self) -> None:
        labels, columns = len(self.labels), self.frames.shape[1]
        if labels != columns:
            raise InputError(f"{labels} labels for {columns} columns of the denoising strip; expected one each")


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportContent:
    """All that the page says. Pictures are those of the standalone PNGs."""

    title: str
    created_at: str
    dataset: DatasetFacts
    images: ImageFacts
    figures: tuple[Figure, ...]
    """The figure that matters first, then its reference floor."""
    protocol: str
    """What the distance is measured by, in words."""
    extractor_digest: str
    real: UInt8[Tensor, "n_real c h w"]
    generated: UInt8[Tensor, "n_generated c h w"]
    queries: UInt8[Tensor, "q c h w"]
    """Generated images whose neighbours are shown."""
    neighbours: Neighbours
    commands: tuple[str, ...]
    """Command lines that give this report again."""
    versions: dict[str, str]
    model: ModelFacts | None = None
    """What made the images, where it is known."""
    strip: Strip | None = None
    history: Sequence[Mapping[str, int | float]] = field(default=(), repr=False)
    """Rows of a checkpoint's history; none, no curve."""
    looks: Sequence[Look] = field(default=(), repr=False)
    """At the run while it trained, up to the model's step."""
    course: Sequence[str] = ()
    """What to think of the run, in lines."""
    curve: Extrapolation | None = field(default=None, repr=False)
    """The distance against the number of images, where there are enough."""
    precision_recall: NDArray[np.float64] | None = field(default=None, repr=False)
    """[k, 2]: both by balls that reach to the 1st to k-th neighbour."""
    by_steps: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict, repr=False)
    """By sampler, its steps and the distance that they reach."""
    bound: BoundStats | None = field(default=None, repr=False)
    """The variational bound of images that were not trained on, where it was measured."""
    copies: CopyReport | None = None
    copy_pairs: UInt8[Tensor, "pairs 2 c height width"] | None = None
    """Of the report's worst pairs the generated and the training image."""
    without_copies: str = ""
    """Why copies were not sought."""
    paper_progress: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """Of the paper's own model, to stand below the table of the bound: bits/dim and RMSE after so many steps."""
    train_images_per_s: float | None = None
    sample_images_per_s: float | None = None


def render_report(content: ReportContent) -> str:
    """The whole page; everything that came from outside is escaped."""
    return render(
        "report.html.j2",
        content=content,
        form=f"{content.dataset.shape} {CHANNELS[content.dataset.channels]}",
        **_sizes(content),
        real=_image_uris(content.real),
        generated=_image_uris(content.generated),
        denoising=[_image_uris(row) for row in content.strip.frames] if content.strip else [],
        copies=[_image_uris(pair) for pair in content.copy_pairs] if content.copy_pairs is not None else [],
        neighbours=_neighbour_rows(content),
        curves=themed(partial(loss_curve, content.history)) if content.history else {},
        looks=themed(partial(look_curves, content.looks)) if content.looks else {},
        distance=themed(partial(distance_curve, content.curve)) if content.curve else {},
        precision_recall=themed(partial(precision_recall_curve, content.precision_recall))
        if content.precision_recall is not None
        else {},
        steps=themed(partial(steps_curve, content.by_steps)) if content.by_steps else {},
        bound=themed(partial(bound_curves, content.bound)) if content.bound else {},
        progress=progress_table(content.bound) if content.bound else [],
    )


def _neighbour_rows(content: ReportContent) -> list[tuple[str, list[tuple[str, float]]]]:
    """For each query its image, and (image, distance) of each neighbour."""
    found = content.neighbours
    return [
        (query, list(zip(_image_uris(images), distances.tolist(), strict=True)))
        for query, images, distances in zip(_image_uris(content.queries), found.images, found.distances, strict=True)
    ]


def _sizes(content: ReportContent) -> dict[str, int | str]:
    """Columns of the grids, and CSS pixels of an image's width in the grids, the strip and the rows of neighbours.

    Two grids and two rows of neighbours stand side by side if the images are small.
    """
    height, width = content.generated.shape[2:]
    size = max(height, width)
    columns = math.ceil(math.sqrt(max(len(content.real), len(content.generated))))
    half = _WIDTH if size > _LARGE else _WIDTH // 2 - 18
    return {
        "aspect": f"{width} / {height}",
        "columns": columns,
        "tile": _fitting(height, width, columns, half),
        "strip_tile": _fitting(height, width, content.strip.frames.shape[1], _WIDTH) if content.strip else 0,
        "copy_tile": _fitting(height, width, 13, _WIDTH),
        "neighbour_tile": _fitting(height, width, content.neighbours.squared.shape[1] + 1, half - 12),
    }


def _fitting(height: int, width: int, columns: int, page: int) -> int:
    """Pixels of a width so that the columns fill the page's; a whole multiple of the image's, so that its pixels stay squares."""
    longest = max(height, width)
    room = min((page + _GAP) // columns - _GAP, (128 if longest > _LARGE else 96) * width // longest)
    return room // width * width or room


def _image_uris(images: UInt8[Tensor, "n c h w"]) -> list[str]:
    return [_image_uri(image) for image in on_white(images).cpu().permute(0, 2, 3, 1).contiguous().numpy()]


def _image_uri(image: UInt8[np.ndarray, "h w c"]) -> str:
    if max(image.shape) <= _LARGEST_PNG:
        return png_uri(encode_png(image))
    return webp_uri(Image.fromarray(image[..., 0] if image.shape[2] == 1 else image))
