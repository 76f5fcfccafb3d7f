"""numpy's .npz: arrays of uint8 images, with labels if there are any. Pickled arrays are refused unread."""

import shutil
import zipfile
from dataclasses import replace
from io import BufferedIOBase
from pathlib import Path
from typing import cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ddpm_core import storage
from ddpm_core.data.sources.base import ArraySource, Listing, checked_labels, class_counts
from ddpm_core.data.sources.cache import cached, make_room
from ddpm_core.data.sources.damage import worded
from ddpm_core.data.sources.idx import JoinedSource, join_sources
from ddpm_core.data.sources.labels import few, numbered_classes
from ddpm_core.data.sources.zip import open_zip
from ddpm_core.errors import InputError

_PAIRS = (
    ("images", "labels"),
    ("x_train", "y_train"),
    ("x_val", "y_val"),
    ("x_test", "y_test"),
    ("train_images", "train_labels"),
    ("val_images", "val_labels"),
    ("test_images", "test_labels"),
    ("x", "y"),
    ("data", "labels"),
    ("arr_0", "arr_1"),
)
_CHANNELS = (1, 3, 4)


def is_npz(uri: str) -> bool:
    """Whether a zip holds numpy's arrays and nothing else."""
    with open_zip(uri) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") and "/" not in name for name in names)


def open_npz(path: Path) -> JoinedSource:
    """The images of an .npz: `images` (and `labels`), or x_train and x_test, or train_images and test_images, or its
    one array of images.

    Raises:
        InputError: if there are none, or they are not uint8 of shape [n, h, w], [n, h, w, c] or [n, c, h, w].
    """
    with worded(str(path), "numpy's .npz"):
        return _open_npz(path)


def _open_npz(path: Path) -> JoinedSource:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        pairs = [(images, labels) for images, labels in _PAIRS if images in names]
        if not pairs and len(names) == 1:
            pairs = [(names[0], "")]
        if not pairs:
            raise InputError(f"{path} holds the arrays {', '.join(names)}; expected one named images, or x_train")
        for images, _ in pairs:
            _check_images(*_header(archive, images), f"{images} in {path}")
        joined = join_sources([_open_pair(archive, path, images, labels) for images, labels in pairs])
    unused = sorted(set(names) - {name for pair in pairs for name in pair})
    note = f"arrays that are not used: {few(unused)}"
    return replace(joined, listing=replace(joined.listing, notes=(*joined.listing.notes, *([note] if unused else []))))


def open_npy(path: Path) -> ArraySource:
    """The images of one .npy: an array as in an .npz, without labels.

    Raises:
        InputError: as open_npz.
    """
    with worded(str(path), "numpy's .npy"):
        with open(path, "rb") as file:
            _check_images(*_read_header(file), str(path))
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    return ArraySource(images=_channels_last(array), labels=None, class_names=(), stem=path.name)


def _open_pair(archive: zipfile.ZipFile, path: Path, images: str, labels: str) -> ArraySource:
    array = _channels_last(_mapped(archive, path, images))
    found = None
    if f"{labels}.npy" in archive.namelist():
        found = _read_labels(archive, f"{labels} in {path}", labels, len(array))
    return ArraySource(
        images=array,
        labels=found,
        class_names=numbered_classes(found),
        stem=f"{path.name}/{images}",
        listing=Listing(labels="none" if found is None else labels, class_counts=class_counts(found, 0)),
    )


def _channels_last(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 and array.shape[3] not in _CHANNELS else array


def _read_labels(archive: zipfile.ZipFile, where: str, labels: str, num_images: int) -> NDArray[np.int64]:
    shape, dtype = _header(archive, labels)
    if dtype.kind not in "iu":
        raise InputError(f"{where} is an array of {dtype}; expected integers")
    if [size for size in shape if size != 1] != [size for size in (num_images,) if size != 1]:
        raise InputError(f"{where} has labels of shape {list(shape)}; expected one for each of {num_images} images")
    with archive.open(f"{labels}.npy") as file:
        return checked_labels(npy.read_array(file, allow_pickle=False).reshape(-1), num_images, where)


def _check_images(shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
    if dtype.hasobject:
        raise InputError(f"{where} holds Python objects, which are not read here; save it as uint8")
    if dtype != np.uint8:
        raise InputError(f"{where} is an array of {dtype}; expected uint8, 0 to 255")
    if not (len(shape) == 3 or (len(shape) == 4 and (shape[3] in _CHANNELS or shape[1] in _CHANNELS))):
        raise InputError(f"{where} has the shape {list(shape)}; expected [n, h, w], [n, h, w, c] or [n, c, h, w]")


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, without its content."""
    with archive.open(f"{name}.npy") as file:
        return _read_header(cast(BufferedIOBase, file))


def _read_header(file: BufferedIOBase) -> tuple[tuple[int, ...], np.dtype]:
    read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _mapped(archive: zipfile.ZipFile, path: Path, name: str) -> NDArray[np.uint8]:
    """An array as a memory map of its copy in the cache, which all processes of this machine share."""

    def unpack(folder: Path) -> None:
        make_room(folder, archive.getinfo(f"{name}.npy").file_size, str(path))
        with archive.open(f"{name}.npy") as packed, open(folder / "array.npy", "wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)

    folder = cached("npz", f"{path} {name} {storage.fingerprint(str(path))}", unpack)
    array: NDArray[np.uint8] = np.load(folder / "array.npy", mmap_mode="r", allow_pickle=False)
    return array
