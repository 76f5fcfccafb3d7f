"""numpy's .npz: arrays of uint8 images, with labels if there are any. Pickled arrays are refused unread."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ddpm_core import storage
from ddpm_core.data.sources.base import ArraySource, checked_labels, numbered_classes
from ddpm_core.data.sources.cache import cached
from ddpm_core.data.sources.idx import JoinedSource, join_sources
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


def is_npz(path: Path) -> bool:
    """Whether a zip holds numpy's arrays and nothing else."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") and "/" not in name for name in names)


def open_npz(path: Path) -> JoinedSource:
    """The images of an .npz: `images` (and `labels`), or x_train and x_test, or train_images and test_images, or its
    one array of images.

    Raises:
        InputError: if there are none, or they are not uint8 of shape [n, h, w], [n, h, w, c] or [n, c, h, w].
    """
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        pairs = [(images, labels) for images, labels in _PAIRS if images in names]
        if not pairs and len(names) == 1:
            pairs = [(names[0], "")]
        if not pairs:
            raise InputError(f"{path} holds the arrays {', '.join(names)}; expected one named images, or x_train")
        for images, _ in pairs:
            _check_images(archive, images, path)
        return join_sources([_open_pair(archive, path, images, labels) for images, labels in pairs])


def _open_pair(archive: zipfile.ZipFile, path: Path, images: str, labels: str) -> ArraySource:
    array = _mapped(archive, path, images)
    if array.ndim == 4 and array.shape[3] not in _CHANNELS:
        array = array.transpose(0, 2, 3, 1)
    found = None
    if f"{labels}.npy" in archive.namelist():
        _, dtype = _header(archive, labels)
        if dtype.kind not in "iu":
            raise InputError(f"{labels} in {path} is an array of {dtype}; expected integers")
        with archive.open(f"{labels}.npy") as file:
            found = checked_labels(
                npy.read_array(file, allow_pickle=False).squeeze(), len(array), f"{labels} in {path}"
            )
    return ArraySource(images=array, labels=found, class_names=numbered_classes(found), stem=f"{path.name}/{images}")


def _check_images(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    shape, dtype = _header(archive, name)
    if dtype.hasobject:
        raise InputError(f"{name} in {path} holds Python objects, which are not read here; save it as uint8")
    if dtype != np.uint8:
        raise InputError(f"{name} in {path} is an array of {dtype}; expected uint8, 0 to 255")
    if not (len(shape) == 3 or (len(shape) == 4 and (shape[3] in _CHANNELS or shape[1] in _CHANNELS))):
        raise InputError(
            f"{name} in {path} has the shape {list(shape)}; expected [n, h, w], [n, h, w, c] or [n, c, h, w]"
        )


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array, without its content."""
    with archive.open(f"{name}.npy") as file:
        read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, dtype


def _mapped(archive: zipfile.ZipFile, path: Path, name: str) -> NDArray[np.uint8]:
    """An array as a memory map of its copy in the cache, which all processes of this machine share."""

    def unpack(folder: Path) -> None:
        with archive.open(f"{name}.npy") as packed, open(folder / "array.npy", "wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)

    folder = cached("npz", f"{path} {name} {storage.fingerprint(str(path))}", unpack)
    array: NDArray[np.uint8] = np.load(folder / "array.npy", mmap_mode="r", allow_pickle=False)
    return array
