"""Parquet with a column of encoded images: bytes, or the {bytes, path} of Hugging Face's datasets.

Rows come in an arbitrary order later, and a row group can only be read whole; so the images are laid end to end in the
cache once, with an index of where each lies.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ddpm_core import storage
from ddpm_core.artifacts.parquet import opened_parquet
from ddpm_core.data.sources.base import Listing, RawImage, check_file_size, class_counts
from ddpm_core.data.sources.cache import Room, cached, fetched, make_room
from ddpm_core.data.sources.damage import worded
from ddpm_core.data.sources.label_files import LABEL_COLUMNS
from ddpm_core.data.sources.labels import NO_RULE, LabelRule, Labels, few, no_labels, ordered
from ddpm_core.data.sources.splits import SetAside, set_aside, split_of_path
from ddpm_core.data.sources.table_labels import numbered_column, plain_labels
from ddpm_core.errors import InputError

_IMAGE_NAMES = ("image", "img", "images", "picture", "png", "jpg", "jpeg", "webp")
_BATCH_ROWS = 256
_INDEX = pa.schema([("name", pa.large_string()), ("offset", pa.int64()), ("size", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class TableSource:
    """Encoded images, a row each; they are fetched and laid end to end when the first is read or named."""

    uris: tuple[str, ...]
    num_images: int
    labels: Labels
    own_splits: SetAside
    listing: Listing = field(default_factory=Listing)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.labels.class_names

    @cached_property
    def laid_out(self) -> tuple[Path, pa.Table]:
        """The file of the images, and name, offset and size of each in it.

        Raises:
            InputError: if a file is damaged, or holds no images but their paths.
        """
        identity = " ".join(f"{uri} {storage.fingerprint(uri)}" for uri in self.uris)
        folder = cached("table-3", identity, lambda aside: _lay_out(self.uris, aside))
        return folder / "blob", pq.read_table(folder / "index.parquet").combine_chunks()

    def name(self, index: int) -> str:
        return str(self.laid_out[1]["name"][index].as_py())

    def read(self, index: int) -> RawImage:
        blob, table = self.laid_out
        name, offset, size = (table[column][index].as_py() for column in ("name", "offset", "size"))
        check_file_size(size)
        label = int(self.labels.numbers[index])
        data = storage.read_range(str(blob), offset, size)
        return RawImage(name=name, data=data, label=None if label < 0 else label)


def open_parquet(uris: Sequence[str], rule: LabelRule = NO_RULE) -> TableSource:
    """The images of some parquet files, by file name and row. Of those on S3 only the labels are fetched, and what describes them.

    Raises:
        InputError: if a file is damaged, has no column of images, or labels that cannot be understood.
    """
    uris = sorted(map(storage.absolute, uris))
    where = uris[0] if len(uris) == 1 else f"{uris[0].rpartition('/')[0]} (of {len(uris)} parquet files)"
    with worded(where, "parquet"):
        sizes = [_num_rows(uri) for uri in uris]
        labels, notes = _labels(uris, where, rule, sum(sizes))
    names = _names_below(uris)
    splits = set_aside(split for name, rows in zip(names, sizes, strict=True) for split in [split_of_path(name)] * rows)
    listing = Listing(
        unit="rows",
        labels=labels.said,
        splits=f"the names of the files ({few(names)})" if splits else "none of its own",
        class_counts=class_counts(labels.numbers, len(labels.class_names)),
        notes=(*labels.notes, *notes),
    )
    source = TableSource(uris=tuple(uris), num_images=sum(sizes), labels=labels, own_splits=splits, listing=listing)
    if not any(map(storage.is_s3, uris)):
        source.laid_out  # noqa: B018, so that damage is told before anything starts
    return source


def _num_rows(uri: str) -> int:
    with opened_parquet(uri) as file:
        promised, groups = int(file.metadata.num_rows), range(file.metadata.num_row_groups)
        _check_rows(sum(file.metadata.row_group(group).num_rows for group in groups), promised, uri)
        return promised


def _check_rows(found: int, promised: int, where: str) -> None:
    if found != promised:
        raise InputError(f"{where} is damaged: it holds {found} rows, its end promises {promised}; fetch it again")


def _names_below(uris: Sequence[str]) -> list[str]:
    """The files' paths below the folder that they all lie in."""
    folders = zip(*(uri.split("/")[:-1] for uri in uris), strict=False)
    common = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, folders))
    return ["/".join(uri.split("/")[common:]) for uri in uris]


def _lay_out(uris: Sequence[str], folder: Path) -> None:
    """Write the images to folder/blob and where they lie to folder/index.parquet, a batch at a time."""
    paths = [fetched(uri) for uri in uris]
    what = uris[0] if len(uris) == 1 else uris[0].rpartition("/")[0]
    make_room(folder, sum(path.stat().st_size for path in paths), what)
    offset, room = 0, Room(folder, what)
    with open(folder / "blob", "wb") as blob, pq.ParquetWriter(folder / "index.parquet", _INDEX) as index:
        for path, name in zip(paths, _names_below(uris), strict=True):
            # Buffered beforehand, what was read would stay in memory to the end of the file.
            with worded(str(path), "parquet"), pq.ParquetFile(path, pre_buffer=False) as file:
                num_rows = 0
                for names, images in _rows(file, name, path):
                    num_rows += len(names)
                    sizes = [len(data) for data in images]
                    room.take(sum(sizes))
                    blob.writelines(images)
                    offsets = np.cumsum([offset, *sizes], dtype=np.int64)
                    index.write_table(pa.table([names, offsets[:-1], sizes], schema=_INDEX))
                    offset = int(offsets[-1])
                _check_rows(num_rows, file.metadata.num_rows, str(path))


def _rows(file: pq.ParquetFile, below: str, path: Path) -> Iterator[tuple[list[str], list[bytes]]]:
    """Names and encoded images of every batch of rows; an image that is null is empty."""
    column = _image_column(file.schema_arrow, str(path))
    number = 0
    for batch in file.iter_batches(_BATCH_ROWS, columns=[column]):
        names, images = [], []
        for value in batch.column(0).to_pylist():
            data, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
            if data is None and name:
                raise InputError(
                    f"{path} holds the paths of images (as {str(name)[:80]}) and not the images; name the folder that they lie "
                    "in as the source, and labels by --data.labels"
                )
            names.append(storage.printable(f"{below}#{number} {name}" if name else f"{below}#{number}"))
            images.append(data or b"")
            number += 1
        yield names, images


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _image_column(schema: pa.Schema, path: str) -> str:
    columns: list[str] = [field.name for field in schema if _holds_images(field.type)]
    named = [name for name in _IMAGE_NAMES if name in columns]
    if not columns:
        raise InputError(f"{path} has the columns {', '.join(schema.names)}; expected one of images, as bytes")
    if not named and len(columns) > 1:
        raise InputError(f"{path} has several columns of bytes: {', '.join(columns)}; name the one of images `image`")
    return (named or columns)[0]


def _labels(uris: Sequence[str], where: str, rule: LabelRule, num_rows: int) -> tuple[Labels, list[str]]:
    """The labels of all files, and what of their columns is not used."""
    if rule.file == "none":
        return no_labels(num_rows, "none, as asked"), []
    if rule.file:
        raise InputError(
            f"data.labels is {rule.file} and the source is parquet, whose labels are a column; expected none or nothing"
        )
    notes: dict[str, None] = {}
    chunks: list[pa.Array] = []
    given: dict[str, tuple[str, ...]] = {}
    column = ""
    for uri in uris:
        with opened_parquet(uri) as file:
            schema = file.schema_arrow
            image = _image_column(schema, uri)
            found = _label_column(schema)
            rest = [f"{field.name} ({field.type})" for field in schema if field.name not in (image, found)]
            notes |= {f"columns that are not used: {few(rest)}": None} if rest else {}
            rows = file.metadata.num_rows
            if not found:
                chunks.append(pa.nulls(rows))
                continue
            column = found
            given |= {uri: _named_classes(schema, found)}
            labels = file.read([found], use_threads=False)[found]
            _check_rows(len(labels), rows, uri)
            chunks.append(plain_labels(labels, f"{found} in {uri}"))
    if not column:
        return no_labels(num_rows, "none"), list(notes)
    names = _agreed(given)
    return ordered(numbered_column(chunks, where, f"the column {column}", names), rule), list(notes)


def _label_column(schema: pa.Schema) -> str:
    """The column of labels; "" if there is none."""
    return next((name for name in LABEL_COLUMNS if name in schema.names and _can_be_label(schema.field(name).type)), "")


def _can_be_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _can_be_label(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _can_be_label(kind.value_type)
    tests = (
        pa.types.is_integer,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_boolean,
        pa.types.is_floating,
        pa.types.is_null,
    )
    return any(test(kind) for test in tests)


def _named_classes(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """Class names as Hugging Face's datasets leave them in the schema's metadata, if they are there and whole."""
    try:
        described: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        for key in ("info", "features", column):
            described = (described or {}).get(key)
        feature = (
            described.get("feature", described) if isinstance(described, dict) else {}
        )  # a list of labels has it inside
        names = feature.get("names") if isinstance(feature, dict) else None
    except (ValueError, AttributeError, RecursionError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _agreed(given: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The one list of class names that all files with names have.

    Raises:
        InputError: if they differ.
    """
    named = {path: names for path, names in given.items() if names}
    if len(set(named.values())) > 1:
        (one, ours), (other, theirs) = list({names: (path, names) for path, names in named.items()}.values())[:2]
        raise InputError(
            f"{one} names the classes {few(ours)}, {other} {few(theirs)}; expected one list: name a file of one set, as "
            "--data.source 'FOLDER/train-*.parquet'"
        )
    return next(iter(named.values()), ())
