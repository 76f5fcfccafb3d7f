"""Raw images in, whatever they lie in: one kind a file, told apart here by content."""

import difflib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from ddpm_core import storage
from ddpm_core.data.sources.base import LeftOut, Listing, RawImage, Source
from ddpm_core.data.sources.cache import fetched, fetched_together
from ddpm_core.data.sources.cifar import BATCH_NAME, open_batches
from ddpm_core.data.sources.digits import open_digits
from ddpm_core.data.sources.files import FileSet, kinds, list_folder
from ddpm_core.data.sources.idx import IMAGES_NAME, is_idx, label_names, open_idx, pattern_of, sets_of
from ddpm_core.data.sources.image_files import ImageFiles, open_images
from ddpm_core.data.sources.label_files import METADATA_NAMES
from ddpm_core.data.sources.labels import NO_RULE, LabelRule, few
from ddpm_core.data.sources.npz import is_npz, open_npy, open_npz
from ddpm_core.data.sources.packing import packing, unpacked
from ddpm_core.data.sources.shards import is_dataset, is_shard, list_shards, open_dataset
from ddpm_core.data.sources.table import TableSource, open_parquet
from ddpm_core.data.sources.tar import is_tar, list_tar
from ddpm_core.data.sources.zip import list_zip
from ddpm_core.errors import InputError

__all__ = [
    "DIGITS",
    "ImageFiles",
    "LabelRule",
    "LeftOut",
    "Listing",
    "RawImage",
    "Source",
    "check_source",
    "open_source",
    "source_identity",
    "source_uri",
]

DIGITS = "digits"
_EXPECTED = "expected images, idx files, CIFAR-10's python batches, shards, .npy, .npz or parquet"
READING = 2
"""Which images and labels a source is understood to hold: 2 since a class's number goes by natural order."""
_GLOB = frozenset("*?[")
_SHOWN = 3
_HEAD_BYTES = 512


def source_uri(source: str) -> str:
    """The same source, independent of the working directory."""
    return source if source == DIGITS else storage.absolute(source)


def source_identity(source: str, rule: LabelRule = NO_RULE) -> str:
    """What changes when the raw images or their labels do: names, sizes, and times of change or ETags; nothing is read."""
    if source == DIGITS:
        return DIGITS
    folder, pattern = _parted(storage.absolute(source))
    labels = storage.fingerprint(rule.file) if rule.file not in ("", "none") else rule.file
    return " ".join(part for part in (storage.fingerprint(folder), pattern, labels) if part)


def open_source(uri: str, rule: LabelRule = NO_RULE) -> Source:
    """The raw images at a path or s3:// URI, or `digits`.

    An archive or parquet file on S3 is downloaded into a local cache, once; a folder of images there is read image by
    image. The order is that of the sorted names. A name with stars, as FOLDER/*.png, means those files of the folder, at
    any depth.

    Args:
        uri: the source.
        rule: what a person said of the labels.

    Raises:
        InputError: one line, if there is nothing, or nothing that is known here, or more than one thing that it could mean.
    """
    if uri == DIGITS:
        return open_digits()
    base, pattern = _parted(storage.absolute(uri))
    if pattern:
        source = _open_folder(base, rule, list_folder(base).matching(pattern), uri)
    elif _is_file(base):
        source = _open_file(uri, rule)
    else:
        source = _open_folder(uri, rule, list_folder(uri), uri)
    if source.num_images == 0:
        raise InputError(f"{uri} holds no images; {_EXPECTED}")
    if replace(rule, earlier=()) != NO_RULE and not isinstance(source, ImageFiles | TableSource):
        raise InputError(
            f"{uri} has labels of its own form; data.labels, class-names and class-level are of images in files"
        )
    if source.class_names[: len(rule.earlier)] != rule.earlier:
        raise InputError(
            f"{uri} has the classes {few(source.class_names)}; expected those of the earlier dataset first, whose numbers must "
            f"not move: {few(rule.earlier)}"
        )
    return source


def check_source(uri: str, rule: LabelRule = NO_RULE) -> None:
    """Make sure that there are images at `uri`, by opening it.

    Raises:
        InputError: one line: nothing there, no images in it, damaged, or out of reach.
    """
    if uri == DIGITS:
        return
    try:
        open_source(uri, rule)
    except OSError as error:
        raise InputError(f"the source cannot be read: {error}") from None


def _parted(uri: str) -> tuple[str, str]:
    """The folder and the pattern of names in it; no pattern if there is such a file or folder, or no star."""
    folder, _, name = uri.rpartition("/")
    if not _GLOB & set(name) or storage.exists(uri) or (not storage.is_s3(uri) and Path(uri).exists()):
        return uri, ""
    return folder, name


def _is_file(base: str) -> bool:
    if storage.is_s3(base):
        return storage.exists(base)
    path = Path(base)
    if not path.exists():
        raise InputError(
            f"there is no source at {base}{_nearest(path)}; expected a file, a folder, s3://... or {DIGITS} (--data.source)"
        )
    return path.is_file()


def _open_folder(base: str, rule: LabelRule, files: FileSet, uri: str) -> Source:
    """The one set that a folder holds.

    Raises:
        InputError: if it holds none, or several.
    """
    names = files.names
    if not names and not files.left_out:
        raise InputError(f"{uri} is empty; {_EXPECTED}")
    if is_dataset(base, names):
        return open_dataset(base, names, rule)
    images = open_images(files, rule)
    found = {kind: [name for name in names if is_one(name)] for kind, (is_one, _) in _FOLDER_KINDS.items()}
    if images.num_images:
        found["images"] = [files.name(int(place)) for place in images.places[:_SHOWN]]
    found = {kind: listed for kind, listed in found.items() if listed}
    if len(found) > 1:
        held = "; ".join(f"{kind} ({few(listed)})" for kind, listed in found.items())
        choice = PurePosixPath(next(iter(found.values()))[0])
        meant = f"*{choice.suffix}" if choice.suffix else f"{choice.name[:4]}*"
        raise InputError(
            f"{uri} holds several sets: {held}; name the one that is meant, as --data.source '{base}/{meant}'"
        )
    if not found:
        raise InputError(f"{uri} holds no images among {len(names)} files ({kinds(names)}); {_EXPECTED}")
    kind, listed = found.popitem()
    return (
        images
        if kind == "images"
        else _beside(_FOLDER_KINDS[kind][1](base, listed, names, rule), images.listing.left_out)
    )


def _beside(opened: tuple[Source, Collection[str]], left_out: Iterable[LeftOut]) -> Source:
    """A set of a folder, with what else lies there."""
    source, used = opened
    rest = [item for item in left_out if item.name not in used]
    listing = replace(source.listing, left_out=(*source.listing.left_out, *rest))
    return replace(source, listing=listing)  # type: ignore[type-var]  # each kind is a dataclass


def _idx(base: str, listed: list[str], names: list[str], rule: LabelRule) -> tuple[Source, Collection[str]]:
    sets = sets_of(listed)
    if len(sets) > 1:
        raise InputError(
            f"{base} holds several sets of idx files: {few(sorted(sets))}; name the one that is meant, as --data.source "
            f"'{base}/{pattern_of(sets)}'"
        )
    (images,) = sets.values()
    labels = {label for name in images for label in label_names(name) if label in names}
    folder = fetched_together(base, sorted({*images, *labels}))
    return open_idx({name: folder / name for name in images}), {*listed, *labels}


def _batches(base: str, listed: list[str], names: list[str], rule: LabelRule) -> tuple[Source, Collection[str]]:
    return open_batches([(name, storage.read_bytes(storage.below(base, name))) for name in listed]), listed


def _tables(base: str, listed: list[str], names: list[str], rule: LabelRule) -> tuple[Source, Collection[str]]:
    return open_parquet([storage.below(base, name) for name in listed], rule), listed


def _shards(base: str, listed: list[str], names: list[str], rule: LabelRule) -> tuple[Source, Collection[str]]:
    return open_images(list_shards(base, listed), rule), listed


def _one(base: str, listed: list[str], names: list[str], rule: LabelRule) -> tuple[Source, Collection[str]]:
    if len(listed) > 1:
        raise InputError(
            f"{base} holds {len(listed)} archives ({few(listed)}); name the one that is meant as the source"
        )
    return _open_file(storage.below(base, listed[0]), rule), listed


_FOLDER_KINDS: dict[
    str, tuple[Callable[[str], bool], Callable[[str, list[str], list[str], LabelRule], tuple[Source, Collection[str]]]]
] = {
    "idx files": (lambda name: bool(IMAGES_NAME.search(name)), _idx),
    "CIFAR-10's batches": (lambda name: bool(BATCH_NAME.search(name)), _batches),
    "parquet": (lambda name: name.endswith(".parquet") and PurePosixPath(name).name not in METADATA_NAMES, _tables),
    "shards": (is_shard, _shards),
    "zips or arrays": (lambda name: name.endswith((".zip", ".npz", ".npy")), _one),
}
"""What a folder may hold besides images, told by names: whether a file is of it; and how those are opened, with what was used."""


def _open_file(uri: str, rule: LabelRule) -> Source:
    file = _File(uri)
    for fits, opened in FILE_KINDS.values():
        if fits(file):
            return opened(file, rule)
    raise InputError(f"{uri} is of no kind that is known here (it starts with {file.head[:8].hex()}); {_EXPECTED}")


class _File:
    """One file, of which no more is fetched than is asked for."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @cached_property
    def head(self) -> bytes:
        """Its first 512 bytes."""
        return storage.read_range(self.uri, 0, _HEAD_BYTES)

    @cached_property
    def path(self) -> Path:
        """A local copy, or itself."""
        return fetched(self.uri)

    @cached_property
    def plain_head(self) -> bytes:
        """The first 512 bytes of what is packed in it."""
        return storage.read_range(str(unpacked(self.path)), 0, _HEAD_BYTES) if packing(self.head) else self.head


def _open_archive(uri: str, files: FileSet, rule: LabelRule) -> Source:
    """CIFAR-10's batches or single images."""
    batches = [place for place, name in enumerate(files.names) if BATCH_NAME.search(name)]
    images = open_images(files, rule)
    if batches and images.num_images:
        raise InputError(f"{uri} holds CIFAR-10's batches and images; unpack it and name the set that is meant")
    if batches:
        read = [(files.name(place), files.read_at(place)) for place in batches]
        return _beside((open_batches(read), [files.name(place) for place in batches]), images.listing.left_out)
    if not images.num_images:
        found = f"{len(files)} files ({kinds(files.names)})"
        raise InputError(f"{uri} is an archive without images among {found}; expected images or CIFAR-10's batches")
    return images


def _with_labels(uri: str) -> dict[str, Path]:
    """A single file of idx images, locally, with the file of its labels beside it if there is one."""
    folder, _, name = storage.absolute(uri).rpartition("/")
    labels = [label for label in label_names(name) if label != name and storage.exists(storage.join(folder, label))]
    return {name: fetched_together(folder, [name, *labels]) / name}


def _nearest(path: Path) -> str:
    """A name like this one in the same folder, for a message."""
    siblings: Sequence[str] = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return f" (nearest: {path.parent / close[0]})" if close else ""


FILE_KINDS: dict[str, tuple[Callable[[_File], bool], Callable[[_File, LabelRule], Source]]] = {
    "parquet": (lambda file: file.head.startswith(b"PAR1"), lambda file, rule: open_parquet([file.uri], rule)),
    "npy": (lambda file: file.head.startswith(b"\x93NUMPY"), lambda file, rule: open_npy(file.path)),
    "npz": (lambda file: file.head.startswith(b"PK") and is_npz(file.uri), lambda file, rule: open_npz(file.path)),
    "zip": (
        lambda file: file.head.startswith(b"PK"),
        lambda file, rule: _open_archive(file.uri, list_zip(file.uri), rule),
    ),
    "idx": (lambda file: is_idx(file.plain_head), lambda file, rule: open_idx(_with_labels(file.uri))),
    "tar": (lambda file: is_tar(file.plain_head), lambda file, rule: _open_archive(file.uri, list_tar(file.uri), rule)),
}
"""Whether a file is of a kind, by its content, and how it is opened; the first that fits."""
