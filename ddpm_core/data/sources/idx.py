"""idx files, MNIST's form: a big-endian header and raw bytes, gzipped or not."""

import posixpath
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ddpm_core.data.sources.base import ArraySource, Listing, RawImage, checked_labels, class_counts
from ddpm_core.data.sources.labels import few, numbered_classes
from ddpm_core.data.sources.packing import unpacked
from ddpm_core.data.sources.splits import SetAside, set_aside, set_of_file, split_of_path
from ddpm_core.errors import InputError

IMAGES_NAME = re.compile(r"(?:^|[-_.]|(?<=/))images?[-_.]idx[34][-_.]ubyte(\.gz)?$")
_UNSIGNED_BYTE = 0x08


@dataclass(frozen=True, kw_only=True)
class JoinedSource:
    """Several arrays of images, end to end, as one source."""

    parts: tuple[ArraySource, ...]
    starts: tuple[int, ...]
    num_images: int
    class_names: tuple[str, ...]
    own_splits: SetAside
    listing: Listing

    def _part(self, index: int) -> tuple[ArraySource, int]:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part], index - self.starts[part]

    def name(self, index: int) -> str:
        part, place = self._part(index)
        return part.name(place)

    def read(self, index: int) -> RawImage:
        part, place = self._part(index)
        return part.read(place)


def join_sources(parts: Sequence[ArraySource]) -> JoinedSource:
    """The parts end to end; all of them name their classes alike, some may know fewer. Their names say their splits."""
    sizes = [part.num_images for part in parts]
    starts = tuple(int(start) for start in np.cumsum([0, *sizes])[:-1])
    names = max((part.class_names for part in parts), key=len)
    splits = set_aside(split for part in parts for split in [split_of_path(part.stem)] * part.num_images)
    said = [part.listing.labels for part in parts if part.labels is not None]
    without = [part.stem for part in parts if part.labels is None]
    listing = Listing(
        labels=few(said) if said else "none",
        class_counts=tuple(map(sum, zip_longest(*(part.listing.class_counts for part in parts), fillvalue=0))),
        splits=f"the names {few(part.stem for part in parts)}" if splits else "none of its own",
        notes=(f"no labels for {few(without)}",) if said and without else (),
    )
    return JoinedSource(
        parts=tuple(parts),
        starts=starts,
        num_images=sum(sizes),
        class_names=names,
        own_splits=splits,
        listing=listing,
    )


def is_idx(head: bytes) -> bool:
    """Whether a file's first four bytes are those of an idx file of images."""
    return len(head) >= 4 and head[:2] == b"\0\0" and head[2] == _UNSIGNED_BYTE and head[3] in (3, 4)


def open_idx(files: Mapping[str, Path]) -> JoinedSource:
    """Files of images, by name, with the file of labels beside each if there is one; training files come first."""
    ordered = sorted(files, key=lambda name: (split_of_path(name) != "train", name))
    return join_sources([_open_pair(name, files[name]) for name in ordered])


def sets_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Files of images, by the set that they are of, `emnist-letters` or `MNIST/raw`, whichever their splits.

    A file that lies there packed and unpacked counts once, as it is unpacked.
    """
    sets: dict[str, list[str]] = {}
    for name in names:
        if name.removesuffix(".gz") not in names or not name.endswith(".gz"):
            sets.setdefault("/".join(filter(None, set_of_file(IMAGES_NAME.sub("-", name)))), []).append(name)
    return sets


def pattern_of(sets: Mapping[str, Sequence[str]]) -> str:
    """What names one of several sets alone: its folder, if it has one to itself, else how its names begin, or one of them."""
    meant = max(sets)
    folder = posixpath.commonpath([posixpath.dirname(name) for name in sets[meant]])
    if folder and not any(name.startswith(f"{folder}/") for other in sets if other != meant for name in sets[other]):
        return folder
    same = posixpath.commonprefix([posixpath.basename(name) for name in sets[meant]])
    start = re.sub(r"[A-Za-z0-9]*$", "", same)
    return posixpath.join(folder, f"{start}*") if start else sets[meant][0]


def label_names(images: str) -> tuple[str, str]:
    """What the file of labels that goes with a file of images may be called: plain, or gzipped."""
    name = re.sub(r"images?([-_.])idx[34]", r"labels\1idx1", images.removesuffix(".gz"))
    return name, f"{name}.gz"


def _open_pair(name: str, path: Path) -> ArraySource:
    images = _read_idx(path)
    if images.ndim not in (3, 4):
        raise InputError(f"{path} holds an array of {images.ndim} dimensions; expected images [n, h, w]")
    candidates = [path.with_name(labels) for labels in label_names(path.name)]
    beside = next((file for file in candidates if file != path and file.is_file()), None)
    labels = None if beside is None else checked_labels(_read_idx(beside), len(images), str(beside))
    listing = Listing(labels="none" if beside is None else beside.name, class_counts=class_counts(labels, 0))
    return ArraySource(images=images, labels=labels, class_names=numbered_classes(labels), stem=name, listing=listing)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an idx file, as a memory map; a gzipped one is unpacked into the cache first."""
    plain = unpacked(path)
    with open(plain, "rb") as file:
        shape = _read_shape(file, path)
    offset, expected = 4 + 4 * len(shape), int(np.prod(shape, dtype=object))
    found = plain.stat().st_size - offset
    if found != expected:
        raise InputError(
            f"{path} is damaged: {found} bytes follow its header, which promises {list(shape)} = {expected}"
        )
    if expected == 0:
        return np.zeros(shape, dtype=np.uint8)
    return np.memmap(plain, dtype=np.uint8, mode="r", offset=offset, shape=shape)


def _read_shape(file: BinaryIO, path: Path) -> tuple[int, ...]:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UNSIGNED_BYTE or not 1 <= head[3] <= 4:
        raise InputError(f"{path} starts with the bytes {head.hex()}; expected 0000080N, an idx file of unsigned bytes")
    sizes = file.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise InputError(f"{path} is damaged: it ends inside its header")
    return struct.unpack(f">{head[3]}I", sizes)
