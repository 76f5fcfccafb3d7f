"""Which images a source itself sets aside for validation or the test, told by the names of its files and folders."""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ddpm_core.artifacts.manifest import SPLITS, Split

_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "t10k"), "test"),
}
SetAside = dict[Split, NDArray[np.int64]]
"""The places of the images that are not for training, by split; empty if the source says nothing."""


def split_of_file(name: str) -> Split | None:
    """The split that a file's name says in a word of its own, as `t10k-images-idx3-ubyte` or `x_test`."""
    return next((_WORDS[word] for word in _words(name) if word in _WORDS), None)


def split_of_path(path: str) -> Split | None:
    """The split that a file's name says, or else the folder that it lies in, or one above it."""
    folders = (part.lower() for part in reversed(_parts(path)[:-1]))
    return split_of_file(path) or next((_WORDS[folder] for folder in folders if folder in _WORDS), None)


def set_of_file(path: str) -> tuple[str, str]:
    """The set that a file is of, whichever its split: its folders, and the words of its name, without those of a split."""
    folders = [part for part in _parts(path)[:-1] if part.lower() not in _WORDS]
    return "/".join(folders), "-".join(word for word in _words(path) if word and word not in _WORDS)


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", PurePosixPath(name).name.lower())


def set_aside(splits: Iterable[Split | None]) -> SetAside:
    """From the split of each image: nothing, unless every image has one and some are for training."""
    numbers = {split: number for number, split in enumerate(SPLITS)}
    found = np.fromiter((-1 if split is None else numbers[split] for split in splits), np.int8)
    if (found < 0).any() or not (found == numbers["train"]).any():
        return {}
    places = {split: np.flatnonzero(found == numbers[split]) for split in SPLITS[1:]}
    return {split: where for split, where in places.items() if len(where)}


def split_folders(names: Sequence[str]) -> int | None:
    """How many folders deep the names part into `train/` and others such, and nothing else; None if they do not.

    A folder of class `train` among other classes is none: each folder beside it must be a split's, too.
    """
    if not names:
        return None
    first, last = PurePosixPath(min(names)).parts, PurePosixPath(max(names)).parts
    depth = next((depth for depth, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), 0)
    heads = {tuple(_parts(name)[depth : depth + 1]) for name in names}
    splits = {_WORDS.get("".join(head).lower()) for head in heads}
    return depth if "train" in splits and None not in splits and len(splits) > 1 else None


def passed_over(names: Sequence[str]) -> list[str]:
    """Folders named as splits of which none is taken, for other images lie beside them."""
    if not names or split_folders(names) is not None:
        return []
    return sorted({part for name in names for part in _parts(name)[:-1][:2] if part.lower() in _WORDS})


def split_of_folder(name: str, depth: int) -> Split:
    """The split of an image below folders that `split_folders` found."""
    return _WORDS[_parts(name)[depth].lower()]


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part]
