"""Files that say of what class each image is, in csv, json, json lines or parquet: a person's, or Hugging Face's metadata."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from ddpm_core.artifacts.parquet import parquet_file
from ddpm_core.data.sources.base import is_image
from ddpm_core.data.sources.damage import worded
from ddpm_core.data.sources.labels import Labels, few, numbered
from ddpm_core.errors import InputError

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Hugging Face's, of images in the same folder and below."""
PATH_COLUMNS = ("file_name", "path", "file", "filename", "image", "image_path", "img", "name", "id", "image_id", "key")
LABEL_COLUMNS = ("label", "labels", "class", "category", "cls", "fine_label", "target", "class_name")
_MAX_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """What a file says of images."""

    where: str
    labels: Mapping[str, str | int | None]
    """By path."""
    column: str
    """The labels' column; empty if there is none."""
    ignored: tuple[str, ...]
    """Other columns."""


def read_label_file(data: bytes, where: str) -> LabelFile:
    """The labels in a file, by the path of their image.

    A table has a column of paths (`path`, `file_name`, ...) and one of labels (`label`, `class`, ...); a csv of two columns
    needs no names for them. JSON is {path: label}, a list of [path, label] or of objects, or either under `labels`.

    Args:
        data: the file's bytes.
        where: its name, for messages; its suffix tells its form.

    Raises:
        InputError: if it cannot be read as such, or says two things of one path.
    """
    if len(data) > _MAX_BYTES:
        raise InputError(f"{where} has {len(data):,} bytes; expected labels, {_MAX_BYTES:,} at most")
    suffix = PurePosixPath(where).suffix.lower()
    if suffix not in _READERS:
        raise InputError(f"{where} is no file of labels that is read here; expected {', '.join(_READERS)}")
    with worded(where, "a file of labels"):
        rows = _READERS[suffix](data)
        return _gathered(next(rows, None), rows, where)


def _gathered(first: dict[str, Any] | None, rows: Iterator[dict[str, Any]], where: str) -> LabelFile:
    if first is None:
        raise InputError(f"{where} holds no rows; expected a path and a label in each")
    columns = list(first)
    path = next((name for name in PATH_COLUMNS if name in columns), None)
    column = next((name for name in LABEL_COLUMNS if name in columns), "")
    if path is None:
        raise InputError(
            f"{where} has the columns {few(columns)}; expected one of paths: {', '.join(PATH_COLUMNS[:4])}"
        )
    found: dict[str, Any] = {}
    for row in chain([first], rows):
        name = str(row[path]).removeprefix("./")
        label = as_label(row.get(column)) if column else None
        if found.setdefault(name, label) != label:
            raise InputError(f"{where} says of {name} both {found[name]!r} and {label!r}; expected one label")
    if {type(label) for label in found.values()} <= {str, type(None)} and all(
        _is_number(label) for label in found.values()
    ):
        found = {name: None if label in (None, "") else int(label) for name, label in found.items()}
    ignored = tuple(name for name in columns if name not in (path, column))
    return LabelFile(where=where, labels=found, column=column, ignored=ignored)


def _is_number(label: str | None) -> bool:
    return label is None or label == "" or (label.isascii() and label.removeprefix("-").isdecimal() and len(label) < 19)


def as_label(value: Any) -> str | int | None:
    """A label as a name or a number; a list of one label is that label.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(value, list | tuple) and len(value) == 1:
        return as_label(value[0])
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        if value != value:  # not a number: pandas' way to say none
            return None
        if value.is_integer() and abs(value) < 2**53:
            return int(value)
    raise ValueError(f"the label {str(value)[:50]!r} is neither a name nor a number")


def _csv(data: bytes) -> Iterator[dict[str, Any]]:
    text = io.StringIO(data.decode("utf-8-sig"), newline="")
    tabs = text.readline().count("\t")
    text.seek(0)
    rows: Iterator[list[str]] = (row for row in csv.reader(text, delimiter="\t" if tabs else ",", strict=True) if row)
    head = next(rows, None)
    if head is None:
        return
    if len(head) == 2 and is_image(head[0]):
        head, rows = ["path", "label"], chain([head], rows)
    for row in rows:
        yield dict(zip(head, row, strict=True))


def _json(data: bytes) -> Iterator[dict[str, Any]]:
    content = json.loads(data)
    if isinstance(content, dict) and isinstance(content.get("labels"), dict | list):
        content = content["labels"]
    if isinstance(content, dict):
        content = list(content.items())
    for row in content:
        yield row if isinstance(row, dict) else dict(zip(("path", "label"), row, strict=True))


def _json_lines(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.decode("utf-8-sig").splitlines():
        if line.strip():
            yield json.loads(line)


def _parquet(data: bytes) -> Iterator[dict[str, Any]]:
    with parquet_file(pa.BufferReader(data)) as file:
        names = [name for name in file.schema_arrow.names if name in (*PATH_COLUMNS, *LABEL_COLUMNS)]
        for batch in file.iter_batches(4096, columns=names, use_threads=False):
            for row in batch.to_pylist():  # other columns are named, and not read
                yield {**dict.fromkeys(file.schema_arrow.names), **row}


_READERS: dict[str, Callable[[bytes], Iterator[dict[str, Any]]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}


def matched(names: Sequence[str], file: LabelFile, below: str = "") -> tuple[list[str | int | None], list[str]]:
    """The label of each image by a file's paths: whole ones; else, where these are unique, by file name, with suffix or without.

    Args:
        names: the images' paths below the source.
        file: the labels.
        below: the folder that the file's paths start from, with a slash.

    Returns:
        The labels, None for an image that the file does not name; and the file's paths that no image has.
    """
    for key in (lambda name: name, lambda name: PurePosixPath(name).name, lambda name: PurePosixPath(name).stem):
        by_key: dict[str, str] = {}
        for path in file.labels:
            by_key.setdefault(key(path), path)
        keys = [key(name.removeprefix(below)) for name in names]
        if any(name in by_key for name in keys) and len(by_key) == len(file.labels) and len(set(keys)) == len(keys):
            there = set(keys)
            found = [file.labels[by_key[name]] if name in by_key else None for name in keys]
            return found, [path for name, path in by_key.items() if name not in there]
    return [None] * len(names), list(file.labels)


def by_label_file(names: Sequence[str], file: LabelFile) -> Labels:
    """Labels from the file that a person named.

    Raises:
        InputError: if it has no labels, or names none of the images.
    """
    if not file.column:
        raise InputError(f"{file.where} has no column of labels; expected one called {', '.join(LABEL_COLUMNS[:3])}")
    found, missing = matched(names, file)
    if len(missing) == len(file.labels):
        raise InputError(
            f"{file.where} names none of the images: it has {few(file.labels)}, the source {few(names)}; expected paths "
            "below the source"
        )
    labels = numbered(found, file.where, f"{file.column} in {file.where}")
    notes = [*labels.notes]
    if missing:
        notes.append(f"{file.where} names {len(missing):,} images that are not there ({few(missing)})")
    if file.ignored:
        notes.append(f"not used of {file.where}: {few(file.ignored)}")
    return Labels(numbers=labels.numbers, class_names=labels.class_names, said=labels.said, notes=tuple(notes))
