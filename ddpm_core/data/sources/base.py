"""What every kind of raw images offers: a number of images, read by their place in a fixed order."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ddpm_core.data.images import BadImage
from ddpm_core.data.sources.labels import check_class_numbers
from ddpm_core.data.sources.splits import SetAside
from ddpm_core.errors import InputError

IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".pgm",
        ".ppm",
        ".pnm",
        ".pbm",
        ".jp2",
        ".avif",
        ".heic",
        ".heif",
        ".mpo",
    }
)
MAX_FILE_BYTES = 1 << 30
"""A larger file is no image; it is left out rather than read into memory."""
HIDDEN = "hidden, or left by macOS"
OUTSIDE = "a name that leads out of the archive"
DUPLICATE_NAME = "duplicate name"
NO_IMAGE = "no image by its content"


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A file that is no image of the dataset."""

    name: str
    reason: str
    """One of few, by which they are counted."""
    lost: bool = True
    """Whether an image may be missing by it; else it is plainly something else."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a source was found to hold, before any image of it is decoded."""

    unit: str = "images"
    """What is counted in it: files, rows of a table, images of an array."""
    labels: str = "none"
    """Where the images' classes come from, in words."""
    splits: str = "none of its own"
    """Where its splits come from, in words."""
    class_counts: tuple[int, ...] = ()
    """Images of each class."""
    num_describing: int = 0
    """Files that say something of the images, and were used: labels, metadata."""
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    """What was found and not used, and why."""


def class_counts(numbers: NDArray[np.int64] | None, num_classes: int) -> tuple[int, ...]:
    """Images of each class; those without one are not counted."""
    if numbers is None:
        return ()
    return tuple(np.bincount(numbers[numbers >= 0], minlength=num_classes).tolist())


@dataclass(frozen=True, kw_only=True)
class RawImage:
    """One image as it came."""

    name: str
    """Where it came from, for people."""
    data: bytes | NDArray[np.uint8]
    """An encoded image, or pixels [h, w] or [h, w, c]."""
    label: int | None
    """Its class, a place in class_names; None if it has none."""

    @property
    def num_bytes(self) -> int:
        """What it takes as it came."""
        return len(self.data) if isinstance(self.data, bytes) else self.data.nbytes


@runtime_checkable
class Source(Protocol):
    """Images in a fixed order, read by index, so that many processes can share the work; each opens its own."""

    @property
    def num_images(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def own_splits(self) -> SetAside:
        """Images that it sets aside itself for validation or the test."""
        ...

    @property
    def listing(self) -> Listing:
        """What else was found, and how it was understood."""
        ...

    def name(self, index: int) -> str:
        """The name that read(index) gives, also where the image cannot be read."""
        ...

    def read(self, index: int) -> RawImage:
        """The image at `index`.

        Raises:
            BadImage: if this one image cannot be read.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ArraySource:
    """Images that lie in one array (which may be a memory map)."""

    images: NDArray[np.uint8]
    """[n, h, w] or [n, h, w, c]."""
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    stem: str
    """The start of every name."""
    own_splits: SetAside = field(default_factory=dict)
    listing: Listing = field(default_factory=Listing)

    @property
    def num_images(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"{self.stem}#{index}"

    def read(self, index: int) -> RawImage:
        label = None if self.labels is None else int(self.labels[index])
        return RawImage(name=self.name(index), data=np.array(self.images[index]), label=label)


def checked_labels(labels: Sequence[int] | NDArray[np.integer], num_images: int, where: str) -> NDArray[np.int64]:
    """Labels as int64 [n].

    Raises:
        InputError: unless there is one for each image, all of them 0 or more, and numbers of classes.
    """
    array = np.asarray(labels)
    if array.shape != (num_images,):
        raise InputError(
            f"{where} has labels of shape {list(array.shape)}; expected one for each of {num_images} images"
        )
    if num_images and array.dtype.kind not in "iu":
        raise InputError(f"{where} has labels of type {array.dtype}; expected integers")
    if num_images and array.min() < 0:
        raise InputError(f"{where} has the label {array.min()}; expected 0 or more")
    return check_class_numbers(array, where)


def is_hidden(name: str) -> bool:
    """Whether a file is hidden or left by macOS, or lies in a folder that is."""
    if "/." not in f"/{name}" and "__MACOSX" not in name:  # most names, a million times
        return False
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in name.split("/"))


def suffix_of(name: str) -> str:
    """What follows the last dot of a file's name, with it, in small letters; "" if there is none, or nothing before it."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if dot and stem and suffix else ""


def is_image(name: str) -> bool:
    """Whether a file's name, below the folder or archive that is searched, is that of an image."""
    return suffix_of(name) in IMAGE_SUFFIXES and not is_hidden(name)


def check_file_size(size_bytes: int) -> None:
    """Refuse a file that is too large to be an image.

    Raises:
        BadImage: if it is.
    """
    if size_bytes > MAX_FILE_BYTES:
        raise BadImage(f"absurdly large: a file of {size_bytes} bytes, more than {MAX_FILE_BYTES}", "absurdly large")
