"""The report as one page: a single HTML file that carries its pictures and asks nothing of the network."""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ddpm_core.data.images import encode_png
from ddpm_core.errors import InputError
from ddpm_core.evaluation.bits_per_dim import BoundStats, progress_table
from ddpm_core.evaluation.neighbours import Neighbours
from ddpm_core.evaluation.plots import bound_curves, loss_curve
from ddpm_core.types import Tensor, UInt8

_TEMPLATES = Path(__file__).parent / "templates"
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
    image_size: int
    channels: int
    counts: Mapping[str, int]
    """Images in each split."""
    own_splits: tuple[str, ...]
    """Splits that the raw images came with; the others were drawn."""
    num_rejected: int
    class_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The model that was measured, and how it was sampled."""

    checkpoint_uri: str
    weights_sha256: str
    num_parameters: int
    step: int
    images_seen: int
    sampler: str
    """In words: name, number of steps, variance or eta, precision."""
    first_seed: int
    num_images: int
    """Seeds first_seed to first_seed + num_images - 1 were measured."""


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One figure and what it was measured on."""

    name: str
    of: str
    """Such as `512 generated images against 1,617 training images`."""
    value: float
    note: str = ""
    headline: bool = True
    """Whether it stands at the top too, not in the table alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportContent:
    """All that the page says. Pictures are those of the standalone PNGs."""

    title: str
    created_at: str
    dataset: DatasetFacts
    model: ModelFacts
    metrics: tuple[MetricRow, ...]
    """The figure that matters first, then its reference floor."""
    protocol: str
    """What the distance is measured by, in words."""
    extractor_digest: str
    real: UInt8[Tensor, "n_real c h w"]
    generated: UInt8[Tensor, "n_generated c h w"]
    denoising: UInt8[Tensor, "rows columns c h w"]
    denoising_labels: tuple[str, ...]
    """A label a column, from x_T to x_0; such as `T`, `900`, ..., `0`."""
    queries: UInt8[Tensor, "q c h w"]
    """Generated images whose neighbours are shown."""
    neighbours: Neighbours
    history: Sequence[Mapping[str, int | float]] = field(default=(), repr=False)
    """Rows of a checkpoint's history; none, no curve."""
    bound: BoundStats | None = field(default=None, repr=False)
    """The variational bound of images that were not trained on, where it was measured."""
    train_images_per_s: float | None = None
    sample_images_per_s: float | None = None
    commands: tuple[str, ...]
    """Command lines that give this report again."""
    versions: dict[str, str]


def render_report(content: ReportContent) -> str:
    """The whole page; everything that came from outside is escaped.

    Raises:
        InputError: if there is not one label a column of the denoising strip.
    """
    if len(content.denoising_labels) != content.denoising.shape[1]:
        labels, columns = len(content.denoising_labels), content.denoising.shape[1]
        raise InputError(f"{labels} labels for {columns} columns of the denoising strip; expected one each")
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=lambda value: f"{value:,}", number=_number)
    return environment.get_template("report.html.j2").render(
        content=content,
        **_sizes(content),
        real=_image_uris(content.real),
        generated=_image_uris(content.generated),
        denoising=[_image_uris(row) for row in content.denoising],
        neighbours=_neighbour_rows(content),
        curves=_themed(partial(loss_curve, content.history)) if content.history else {},
        bound=_themed(partial(bound_curves, content.bound)) if content.bound else {},
        progress=progress_table(content.bound) if content.bound else [],
    )


def _themed(chart: Callable[..., bytes]) -> dict[str, str]:
    """A chart for a light and for a dark page."""
    return {theme: _png_uri(chart(dark=theme == "dark")) for theme in ("light", "dark")}


def _neighbour_rows(content: ReportContent) -> list[tuple[str, list[tuple[str, float]]]]:
    """For each query its image, and (image, distance) of each neighbour."""
    found = content.neighbours
    return [
        (query, list(zip(_image_uris(images), distances.tolist(), strict=True)))
        for query, images, distances in zip(_image_uris(content.queries), found.images, found.distances, strict=True)
    ]


def _number(value: float) -> str:
    """Four significant digits, without an exponent for what people compare by eye."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _sizes(content: ReportContent) -> dict[str, int]:
    """Columns of the grids, and CSS pixels a side of an image in the grids, the strip and the rows of neighbours.

    Two grids and two rows of neighbours stand side by side if the images are small.
    """
    size = max(content.generated.shape[2:])
    columns = math.ceil(math.sqrt(max(len(content.real), len(content.generated))))
    half = _WIDTH if size > _LARGE else _WIDTH // 2 - 18
    return {
        "columns": columns,
        "tile": _fitting(size, columns, half),
        "strip_tile": _fitting(size, content.denoising.shape[1], _WIDTH),
        "neighbour_tile": _fitting(size, content.neighbours.squared.shape[1] + 1, half - 12),
    }


def _fitting(size: int, columns: int, width: int) -> int:
    """Pixels a side so that the columns fill a width; a whole multiple of the image, so that its pixels stay squares."""
    room = min((width + _GAP) // columns - _GAP, 128 if size > _LARGE else 96)
    return room // size * size or room


def _image_uris(images: UInt8[Tensor, "n c h w"]) -> list[str]:
    return [_image_uri(image) for image in images.cpu().permute(0, 2, 3, 1).contiguous().numpy()]


def _image_uri(image: UInt8[np.ndarray, "h w c"]) -> str:
    if max(image.shape) <= _LARGEST_PNG:
        return _png_uri(encode_png(image))
    out = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(out, format="WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def _png_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
