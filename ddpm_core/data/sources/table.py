"""Parquet with a column of encoded images: bytes, or the {bytes, path} of Hugging Face's datasets.

Rows come in an arbitrary order later, and a row group can only be read whole; so the images are laid end to end in the
cache once, with an index of where each lies.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ddpm_core import storage
from ddpm_core.data.sources.base import RawImage, check_file_size, numbered_classes
from ddpm_core.data.sources.cache import cached
from ddpm_core.data.sources.splits import SetAside, set_aside, split_of_file
from ddpm_core.errors import InputError

_IMAGE_NAMES = ("image", "img", "images", "picture", "png", "jpg", "jpeg", "webp")
_LABEL_NAMES = ("label", "labels", "class", "category", "cls", "fine_label")
_BATCH_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class TableSource:
    """Encoded images end to end in one file."""

    blob: Path
    index: pa.Table
    """name, offset, size, label (null for none)."""
    class_names: tuple[str, ...]

    @property
    def num_images(self) -> int:
        return len(self.index)

    @cached_property
    def own_splits(self) -> SetAside:
        return set_aside(split_of_file(name.partition("#")[0]) for name in self.index["name"].to_pylist())

    def name(self, index: int) -> str:
        return str(self.index["name"][index].as_py())

    def read(self, index: int) -> RawImage:
        name, offset, size, label = (
            self.index[column][index].as_py() for column in ("name", "offset", "size", "label")
        )
        check_file_size(size)
        return RawImage(name=name, data=storage.read_range(str(self.blob), offset, size), label=label)


def open_parquet(paths: Sequence[Path]) -> TableSource:
    """The images of some parquet files, by file name and row.

    Raises:
        InputError: if a file is damaged, or has no column of images.
    """
    identity = " ".join(f"{path} {storage.fingerprint(str(path))}" for path in paths)
    folder = cached("table", identity, lambda aside: _lay_out(sorted(paths), aside))
    index = pq.read_table(folder / "index.parquet")
    names = json.loads(index.schema.metadata[b"class_names"])
    return TableSource(blob=folder / "blob", index=index.combine_chunks(), class_names=tuple(names))


def _lay_out(paths: Sequence[Path], folder: Path) -> None:
    """Write the images to folder/blob and where they lie to folder/index.parquet."""
    names: list[str] = []
    sizes: list[int] = []
    labels: list[Any] = []
    class_names: tuple[str, ...] = ()
    with open(folder / "blob", "wb") as blob:
        for path in paths:
            try:
                with pq.ParquetFile(path) as file:
                    class_names = max(class_names, _named_classes(file.schema_arrow), key=len)
                    for name, data, label in _rows(file, path):
                        blob.write(data)
                        names.append(name)
                        sizes.append(len(data))
                        labels.append(label)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise InputError(f"{path} cannot be read as parquet: {' '.join(str(error).split())}") from None
    numbers, class_names = _numbered(labels, class_names)
    offsets = np.cumsum([0, *sizes], dtype=np.int64)[:-1]
    columns = {
        "name": pa.array(names, pa.string()),
        "offset": offsets,
        "size": pa.array(sizes, pa.int64()),
        "label": pa.array(numbers, pa.int64()),
    }
    table = pa.table(columns).replace_schema_metadata({b"class_names": json.dumps(class_names).encode()})
    pq.write_table(table, folder / "index.parquet")


def _rows(file: pq.ParquetFile, path: Path) -> Iterator[tuple[str, bytes, Any]]:
    """(name, encoded image, label as it stands) of every row; an image that is null is empty."""
    image, label = _image_column(file.schema_arrow, path), _label_column(file.schema_arrow)
    number = 0
    for batch in file.iter_batches(_BATCH_ROWS, columns=[image, *([label] if label else [])]):
        found = batch.column(image).to_pylist()
        given = batch.column(label).to_pylist() if label else [None] * len(found)
        for value, of_class in zip(found, given, strict=True):
            data, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
            place = f"{path.name}#{number}"
            yield (f"{place} {name}" if name else place), data or b"", of_class
            number += 1


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _image_column(schema: pa.Schema, path: Path) -> str:
    columns: list[str] = [field.name for field in schema if _holds_images(field.type)]
    named = [name for name in _IMAGE_NAMES if name in columns]
    if not columns:
        raise InputError(f"{path} has the columns {', '.join(schema.names)}; expected one of images, as bytes")
    if not named and len(columns) > 1:
        raise InputError(f"{path} has several columns of bytes: {', '.join(columns)}; name the one of images `image`")
    return (named or columns)[0]


def _label_column(schema: pa.Schema) -> str | None:
    def fits(name: str) -> bool:
        if name not in schema.names:
            return False
        kind = schema.field(name).type
        return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))

    return next((name for name in _LABEL_NAMES if fits(name)), None)


def _named_classes(schema: pa.Schema) -> tuple[str, ...]:
    """Class names as Hugging Face's datasets leave them in the schema's metadata."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = described.get("info", {}).get("features", {}).get(_label_column(schema) or "", {})
    return tuple(feature.get("names", ())) if isinstance(feature, dict) else ()


def _numbered(labels: list[Any], class_names: tuple[str, ...]) -> tuple[list[int | None], tuple[str, ...]]:
    """Labels as numbers (None where there is none) and the class names; names as labels are numbered in their order."""
    there = [label for label in labels if label is not None]
    if any(isinstance(label, str) for label in there):
        class_names = tuple(sorted({str(label) for label in there}))
        place = {name: number for number, name in enumerate(class_names)}
        return [None if label is None else place[str(label)] for label in labels], class_names
    numbers = [None if label is None or label < 0 else int(label) for label in labels]  # -1 is unlabelled by custom
    array: NDArray[np.int64] = np.array([number for number in numbers if number is not None], dtype=np.int64)
    return numbers, max(class_names, numbered_classes(array), key=len)
