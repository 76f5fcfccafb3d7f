"""Images that are one file each, and what else lies beside them: labels, metadata, and files that are something else."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ddpm_core import storage
from ddpm_core.data.images import BadImage
from ddpm_core.data.pictures.containers import is_image_head
from ddpm_core.data.sources.base import NO_IMAGE, LeftOut, Listing, RawImage, Source, class_counts, is_image, suffix_of
from ddpm_core.data.sources.files import FileSet
from ddpm_core.data.sources.label_files import METADATA_NAMES, by_label_file, matched, read_label_file
from ddpm_core.data.sources.labels import LabelRule, Labels, by_folder, few, no_labels, numbered, ordered
from ddpm_core.data.sources.sidecars import ahead, by_sidecars
from ddpm_core.data.sources.splits import (
    SetAside,
    passed_over,
    set_aside,
    split_folders,
    split_of_file,
    split_of_folder,
)
from ddpm_core.errors import InputError

NO_IMAGE_BY_NAME = "no image by its name"
_PLAIN = (
    ".txt .md .rst .html .htm .css .js .json .jsonl .csv .tsv .xml .yaml .yml .toml .ini .cfg .db .sqlite .log .py .ipynb .sh .m "
    ".pdf .doc .docx .xls .xlsx .ppt .pptx .mp4 .avi .mov .mkv .webm .mp3 .wav .flac .pkl .pickle .pt .pth .ckpt .safetensors "
    ".mat .h5 .hdf5 .npz .npy .parquet .arrow .tfrecord .lmdb .mdb .zip .tar .gz .tgz .bz2 .xz .zst .7z .rar .md5 .sha1 .sha256 "
    ".svg .psd .eps .cls .lnk .url .exe .dll .so .lock .bak"
)
PLAIN_SUFFIXES = frozenset(_PLAIN.split())
"""Files of these names are no images; those of other names, or of none, are looked into."""
_READERS = 16
_BATCH, _BATCH_BYTES = 32, 8 << 20


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Images that are one file each; small, and the same on every machine that it is sent to."""

    files: FileSet
    places: NDArray[np.int64]
    """Which of the files they are."""
    labels: Labels
    own_splits: SetAside = field(default_factory=dict)
    listing: Listing = field(default_factory=Listing)

    @property
    def num_images(self) -> int:
        return len(self.places)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.labels.class_names

    def name(self, index: int) -> str:
        return storage.printable(self.files.name(int(self.places[index])))

    def read(self, index: int) -> RawImage:
        label = int(self.labels.numbers[index])
        data = self.files.read_at(int(self.places[index]))
        return RawImage(name=self.name(index), data=data, label=None if label < 0 else label)


def read_each(source: Source, positions: Sequence[int]) -> Iterator[RawImage | BadImage]:
    """The images at these places, in their order, or why one cannot be read; several at once where each waits for a server."""

    def read(position: int) -> RawImage | BadImage:
        try:
            return source.read(position)
        except BadImage as error:
            return error

    if isinstance(source, ImageFiles) and source.files.reader.remote:
        return ahead(read, positions, _READERS)
    return _in_batches(map(read, positions))


def _in_batches(raws: Iterable[RawImage | BadImage]) -> Iterator[RawImage | BadImage]:
    """The same, some read before the first of them is decoded: in turns each spoils the processor's caches for the other (12%)."""
    batch: list[RawImage | BadImage] = []
    num_bytes = 0
    for raw in raws:
        batch.append(raw)
        num_bytes += 0 if isinstance(raw, BadImage) else raw.num_bytes
        if len(batch) == _BATCH or num_bytes > _BATCH_BYTES:
            yield from batch
            batch, num_bytes = [], 0
    yield from batch


def open_images(files: FileSet, rule: LabelRule) -> ImageFiles:
    """The images among the files, with their classes and splits; the rest is listed as left out.

    Raises:
        InputError: if their labels cannot be understood.
    """
    names = files.names
    found, others, left_out = _told_apart(files, names)
    images = [names[place] for place in found]
    inside = files.names_inside
    depth = None if files.parts else split_folders(images)
    splits = {} if depth is None else set_aside(split_of_folder(name, depth) for name in images)
    splits_said = "none of its own" if depth is None else f"the folders {few(_folders(images, depth))}"
    parts = files.part_names
    if files.parts and (splits := set_aside(split_of_file(parts[place]) for place in found)):
        splits_said = f"the names of the shards ({few(files.parts)})"
    below = [inside[place] if depth is None else inside[place].split("/", depth + 1)[-1] for place in found]
    labels, described = _labels(files, names, images, others, below, rule) if images else (no_labels(0, "none"), set())
    left_out += [
        LeftOut(name=names[place], reason=NO_IMAGE_BY_NAME, lost=False) for place in others if place not in described
    ]
    listing = Listing(
        unit="files",
        labels=labels.said,
        splits=splits_said,
        class_counts=class_counts(labels.numbers, len(labels.class_names)),
        num_describing=len(described),
        left_out=tuple(
            replace(item, name=storage.printable(item.name))
            for item in sorted((*files.left_out, *left_out), key=lambda item: item.name)
        ),
        notes=(*labels.notes, *([] if files.parts else _passed_over(images))),
    )
    return ImageFiles(files=files, places=np.array(found, np.int64), labels=labels, own_splits=splits, listing=listing)


def _folders(images: Sequence[str], depth: int) -> list[str]:
    return sorted({PurePosixPath(name).parts[depth] for name in images})


def _passed_over(images: Sequence[str]) -> list[str]:
    folders = passed_over(images)
    return (
        [f"the folders {few(folders)} are no splits, for images lie beside them or none is for training"]
        if folders
        else []
    )


def _told_apart(files: FileSet, names: Sequence[str]) -> tuple[list[int], list[int], list[LeftOut]]:
    """The places of the images; of the files whose names say that they are none; and what was looked into and is none."""
    images: list[int] = []
    others: list[int] = []
    unsure: list[int] = []
    for place, name in enumerate(names):
        plain = suffix_of(name) in PLAIN_SUFFIXES
        (images if is_image(name) else others if plain else unsure).append(place)

    def look(place: int) -> bool:
        try:
            return is_image_head(files.reader.read_head(files.place(place)))
        except BadImage:
            return True  # the reason is told where it is read

    left_out = []
    for place, is_one in zip(unsure, ahead(look, unsure, _READERS if files.reader.remote else 1), strict=True):
        if is_one:
            images.append(place)
        else:
            left_out.append(LeftOut(name=names[place], reason=NO_IMAGE, lost=False))
    return sorted(images), others, left_out


def _labels(
    files: FileSet, names: Sequence[str], images: list[str], others: list[int], below: list[str], rule: LabelRule
) -> tuple[Labels, set[int]]:
    """The images' classes, and the places of the files that say them.

    Args:
        below: the images' names below the folders of splits, which are no classes.
    """
    if rule.file == "none":
        return no_labels(len(images), "none, as asked"), set()
    if rule.file:
        given = read_label_file(storage.read_bytes(rule.file), rule.file)
        beside = {place for place in others if storage.below(files.where, names[place]) == storage.absolute(rule.file)}
        return ordered(by_label_file(images, given), rule), beside
    notes: list[str] = []
    if rule.level is None:
        for way in (_by_metadata, by_sidecars):
            labels, places, said = way(files, {names[place]: place for place in others}, images)
            notes += said
            if labels is not None:
                return ordered(replace(labels, notes=(*labels.notes, *notes)), rule), places
    labels = by_folder(below, rule.level)
    return ordered(replace(labels, notes=(*labels.notes, *notes)), rule), set()


def _by_metadata(
    files: FileSet, others: dict[str, int], images: Sequence[str]
) -> tuple[Labels | None, set[int], list[str]]:
    """Labels from Hugging Face's metadata files, each of the images in its folder and below; as `by_sidecars` gives them."""
    notes: list[str] = []
    places: set[int] = set()
    found: list[str | int | None] = [None] * len(images)
    for name, place in others.items():
        if PurePosixPath(name).name not in METADATA_NAMES:
            continue
        try:
            file = read_label_file(files.read_at(place), name)
        except InputError as error:
            notes.append(f"{name} is not used: {error}")
            continue
        if file.ignored:
            notes.append(f"not used of {name}: {few(file.ignored)}")
        folder = name.removesuffix(PurePosixPath(name).name)
        inside = [index for index, image in enumerate(images) if image.startswith(folder)]
        values, missing = matched([images[index] for index in inside], file, folder)
        if missing:
            notes.append(f"{name} names {len(missing):,} images that are not there ({few(missing)})")
        if file.column:
            places.add(place)
            for index, value in zip(inside, values, strict=True):
                found[index] = value
    if not places:
        return None, set(), notes
    return (
        numbered(found, "the metadata", f"the metadata beside the images ({few(_shown(others, places))})"),
        places,
        notes,
    )


def _shown(others: dict[str, int], places: set[int]) -> Iterator[str]:
    return (name for name, place in others.items() if place in places)
