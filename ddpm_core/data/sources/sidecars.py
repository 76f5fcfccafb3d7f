"""Labels in a file of their own beside each image, as in WebDataset's shards: 0001.jpg with 0001.cls or 0001.json."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, TypeVar

from ddpm_core.data.sources.files import FileSet
from ddpm_core.data.sources.label_files import LABEL_COLUMNS, as_label
from ddpm_core.data.sources.labels import Labels, numbered
from ddpm_core.errors import InputError

T = TypeVar("T")
_THREADS = 16
_MAX_BYTES = 1 << 24


def key_of(name: str) -> str:
    """What the files of one sample share: the path up to the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def by_sidecars(
    files: FileSet, others: Mapping[str, int], images: Sequence[str]
) -> tuple[Labels | None, set[int], list[str]]:
    """Labels from the files beside images.

    Args:
        files: all files.
        others: the places of those that are no images, by name.
        images: the images' names.

    Returns:
        The labels, None if there are no such files; the places of the files that they are from; what was not used, and why.
    """
    keys = [key_of(name) for name in images]
    wanted = set(keys)
    beside: dict[str, dict[str, int]] = {".cls": {}, ".json": {}, ".txt": {}}
    for name, place in others.items():
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in beside and (key := key_of(name)) in wanted:
            beside[suffix][key] = place
    notes = [f"{len(beside['.txt']):,} texts beside the images (.txt) are not used"] if beside[".txt"] else []
    for suffix, read in ((".cls", _of_cls), (".json", _of_json)):
        places = beside[suffix]
        if not places:
            continue
        found = dict(zip(places, _each(files, places.values(), read), strict=True))
        if all(value is None for value in found.values()):
            notes.append(
                f"{len(places):,} files beside the images ({suffix}) have no label ({', '.join(LABEL_COLUMNS[:3])})"
            )
            continue
        labels = numbered([found.get(key) for key in keys], files.where, f"the {suffix} beside each image")
        return labels, set(places.values()), notes
    return None, set(), notes


def _each(files: FileSet, places: Iterable[int], read: Callable[[str, bytes], T]) -> Iterator[T]:
    """What is in each of some files; many at once where each waits for a server."""

    def one(place: int) -> T:
        where = f"{files.name(place)} in {files.where}"
        if files.place(place).size > _MAX_BYTES:
            raise InputError(f"{where} has {files.place(place).size:,} bytes; expected a label, {_MAX_BYTES:,} at most")
        return read(where, files.read_at(place))

    return ahead(one, places, _THREADS if files.reader.remote else 1)


def ahead(work: Callable[[Any], T], items: Iterable[Any], threads: int) -> Iterator[T]:
    """work(item) of each item, in order; several at once, no more of them under way or waiting than there are threads."""
    if threads == 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(threads)
    rest = iter(items)
    try:
        under_way = [pool.submit(work, item) for item in islice(rest, threads)]
        while under_way:
            done = under_way.pop(0).result()
            under_way += [pool.submit(work, item) for item in islice(rest, 1)]
            yield done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _of_cls(where: str, data: bytes) -> str | int | None:
    try:
        text = data.decode().strip()
        return int(text) if text.removeprefix("-").isdecimal() and text.isascii() else text or None
    except ValueError as error:
        raise InputError(f"{where} is no label: {error}; expected a number or a name") from None


def _of_json(where: str, data: bytes) -> str | int | None:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        return None
    column = next((name for name in LABEL_COLUMNS if content.get(name) is not None), None)
    try:
        return None if column is None else as_label(content[column])
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
