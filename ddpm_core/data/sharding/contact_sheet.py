"""The contact sheet: some images of a dataset as they will be trained on, a row a class where there are classes."""

import io
from collections.abc import Iterator, Sequence

import pyarrow as pa
from PIL import Image

from ddpm_core import storage
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.data.sharding.census import SHEET_NAME

_ROWS = 16
_COLUMNS = 16
_GAP = 2
_ALL = -1
_SHORTEST = 32
"""Smaller images are shown in whole multiples of their pixels."""


def write_contact_sheet(index: DatasetIndex, rows: Sequence[pa.Table]) -> None:
    """Draw it from the shards of a dataset that is about to be committed."""
    out = io.BytesIO()
    _sheet(list(_pictures(index, rows))).save(out, "PNG")
    storage.write_bytes(storage.join(index.uri, SHEET_NAME), out.getvalue())


def _pictures(index: DatasetIndex, rows: Sequence[pa.Table]) -> Iterator[list[Image.Image]]:
    """The first training images of each class, or of all if there are no classes, in lines."""
    labelled = any((table["label"].to_numpy() >= 0).any() for table in rows)
    num_classes = min(len(index.class_names), _ROWS) if labelled else 0
    wanted = dict.fromkeys(range(num_classes), _COLUMNS) if num_classes else {_ALL: _ROWS * _COLUMNS}
    lines: dict[int, list[Image.Image]] = {label: [] for label in wanted}
    for shard, table in zip(index.shards, rows, strict=True):
        for offset, size, label in zip(*(table[name].to_pylist() for name in ("offset", "size", "label")), strict=True):
            line = label if num_classes else _ALL
            if line in lines and len(lines[line]) < wanted[line]:
                data = storage.read_range(storage.join(index.uri, shard.name), offset, size)
                lines[line].append(Image.open(io.BytesIO(data)).convert("RGBA"))
        if all(len(lines[line]) >= count for line, count in wanted.items()):
            break
    for line in lines.values():
        yield from (line[start : start + _COLUMNS] for start in range(0, len(line), _COLUMNS))


def _sheet(lines: Sequence[Sequence[Image.Image]]) -> Image.Image:
    width, height = lines[0][0].size
    times = -(-_SHORTEST // min(width, height))
    width, height = width * times, height * times
    columns = max(map(len, lines))
    sheet = Image.new("RGBA", (columns * (width + _GAP) + _GAP, len(lines) * (height + _GAP) + _GAP), "white")
    for row, line in enumerate(lines):
        for column, picture in enumerate(line):
            place = (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP))
            sheet.alpha_composite(picture.resize((width, height), Image.Resampling.NEAREST), place)
    return sheet.convert("RGB")
