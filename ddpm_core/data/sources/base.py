"""What every kind of raw images offers: a number of images, read by their place in a fixed order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ddpm_core.data.images import BadImage
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
        ".mpo",
    }
)
MAX_FILE_BYTES = 1 << 30
"""A larger file is no image; it is left out rather than read into memory."""


@dataclass(frozen=True, kw_only=True)
class RawImage:
    """One image as it came."""

    name: str
    """Where it came from, for people."""
    data: bytes | NDArray[np.uint8]
    """An encoded image, or pixels [h, w] or [h, w, c]."""
    label: int | None
    """Its class, a place in class_names; None if it has none."""


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
        InputError: unless there is one for each image, all of them 0 or more.
    """
    array = np.asarray(labels, dtype=np.int64)
    if array.shape != (num_images,):
        raise InputError(
            f"{where} has labels of shape {list(array.shape)}; expected one for each of {num_images} images"
        )
    if num_images and array.min() < 0:
        raise InputError(f"{where} has the label {array.min()}; expected 0 or more")
    return array


def numbered_classes(labels: NDArray[np.int64] | None) -> tuple[str, ...]:
    """Class names "0", "1", ... up to the highest label; none without labels."""
    return () if labels is None or not len(labels) else tuple(str(number) for number in range(int(labels.max()) + 1))


def is_hidden(name: str) -> bool:
    """Whether a file is hidden or left by macOS, or lies in a folder that is."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def is_image(name: str) -> bool:
    """Whether a file's name, below the folder or archive that is searched, is that of an image."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not is_hidden(name)


def classes_by_folder(names: Iterable[str]) -> tuple[tuple[str, ...], list[int | None]]:
    """Classes from the folders that the images lie in.

    Args:
        names: paths below the source, as `airplane/0001.png` or `train/airplane/0001.png`.

    Returns:
        The class names, sorted, and each image's label; images that lie at the top have none.
    """
    folders = [PurePosixPath(name).parent.name for name in names]
    class_names = tuple(sorted(set(folders) - {""}))
    place = {name: number for number, name in enumerate(class_names)}
    return class_names, [place.get(folder) for folder in folders]


def check_file_size(size_bytes: int) -> None:
    """Refuse a file that is too large to be an image.

    Raises:
        BadImage: if it is.
    """
    if size_bytes > MAX_FILE_BYTES:
        raise BadImage(f"absurdly large: a file of {size_bytes} bytes, more than {MAX_FILE_BYTES}")
