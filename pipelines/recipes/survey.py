"""What a person's images are like, found by looking at some of them; nothing is written, and no Ray is needed."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from statistics import median_low

import numpy as np
from numpy.typing import NDArray

from ddpm_core.data.config import DataConfig
from ddpm_core.data.images import BadImage
from ddpm_core.data.pictures import open_picture
from ddpm_core.data.pictures.containers import HEAD_BYTES, picture_format
from ddpm_core.data.sources import Source
from ddpm_core.data.sources.base import RawImage
from ddpm_core.data.sources.image_files import read_each

MOST_LOOKED_AT = 400
"""Images that are decoded, a third of a second each of 12 megapixels; of more, so many at even distances."""
_SMALLEST_HASHED = 64
"""Pixels of the shorter side. Below it all pictures of one kind, as digits, have much the same perceptual hash."""
_NEAR = 4
"""Of a perceptual hash's 64 bits so many may differ: the same picture at another size or quality, or the next of a burst."""
_NAMED = 3
"""Of what cannot be read, so many by name."""
_GREY = 8
"""Levels that a grey picture's red, green and blue may lie apart, as a JPEG leaves them."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found."""

    num_images: int
    """By the listing."""
    num_looked_at: int
    """Of them, that were to be decoded."""
    num_unread: int
    """Of these, that cannot be."""
    num_lost: int
    """Files that should be an image and were left out by the listing."""
    formats: Mapping[str, int]
    """JPEG, PNG, ..., pixels (of an array), by how many."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each that was decoded, in pixels, at least one."""
    num_coloured: int
    num_transparent: int
    """With a pixel that is not opaque."""
    num_duplicates: int
    """With the pixels of one before."""
    num_near: int
    """That look like one before, and are no duplicate; of pictures of 64 pixels and more."""
    class_counts: Mapping[str, int]
    """Images of each class, by the listing; empty without classes."""
    unread: tuple[str, ...] = ()
    """The first of those that cannot be read: name and reason."""

    @property
    def side(self) -> int:
        """The median of the shorter sides, in pixels."""
        return median_low(min(size) for size in self.sizes)

    @property
    def unread_share(self) -> float:
        """Of all images, as far as those that were looked at tell, with those that the listing left out; in [0, 1)."""
        unread = self.num_unread / self.num_looked_at * self.num_images
        return (unread + self.num_lost) / (self.num_images + self.num_lost)

    @property
    def is_grey(self) -> bool:
        """Whether none that was looked at is coloured."""
        return self.num_coloured == 0

    def lines(self) -> list[str]:
        """In words."""
        read = len(self.sizes)
        seen = "" if self.num_looked_at == self.num_images else f", of which {self.num_looked_at:,} were looked at"
        shorter, longer = sorted(map(min, self.sizes)), sorted(map(max, self.sizes))
        unread = self.num_unread + self.num_lost
        return [
            f"{self.num_images:,} images{seen}: {_counted(self.formats)}; {read:,} were read"
            + (f", {unread:,} cannot be" if unread else ""),
            *(f"cannot be read: {each}" for each in self.unread),
            f"shorter side {_range(shorter)} pixels (median {self.side}), longer side {_range(longer)}",
            f"colour: {self.num_coloured:,}, grey: {read - self.num_coloured:,}"
            + (f", with transparency: {self.num_transparent:,}" if self.num_transparent else ""),
            f"classes: {_counted(self.class_counts) if self.class_counts else 'none'}",
            f"exact duplicates: {self.num_duplicates:,}; near-duplicates: {self.num_near:,}",
        ]


def survey(source: Source, data: DataConfig, tell: Callable[[int], None] = lambda done: None) -> Survey | None:
    """Look at a source's images; None if none of those that were looked at can be read.

    Args:
        source: opened.
        data: whose max_image_pixels counts.
        tell: called with how many were looked at so far.
    """
    positions = _evenly(source.num_images)
    seen = _Seen(data.max_image_pixels)
    for done, raw in enumerate(read_each(source, positions), 1):
        seen.look(raw, source.name(positions[done - 1]))
        tell(done)
    if not seen.sizes:
        return None
    counts, lost = source.listing.class_counts, [item for item in source.listing.left_out if item.lost]
    return Survey(
        num_images=source.num_images,
        num_looked_at=len(positions),
        num_unread=len(seen.unread),
        num_lost=len(lost),
        formats=dict(seen.formats.most_common()),
        sizes=tuple(seen.sizes),
        num_coloured=seen.num_coloured,
        num_transparent=seen.num_transparent,
        num_duplicates=len(seen.pixels) - len(set(seen.pixels)),
        num_near=_num_near(seen.hashes, seen.hashed_pixels),
        class_counts=dict(zip(source.class_names, counts, strict=False)),
        unread=(*seen.unread, *(f"{item.name}: {item.reason}" for item in lost))[:_NAMED],
    )


def _evenly(num_images: int) -> list[int]:
    """The places of the images to look at, ascending, each once."""
    count = min(num_images, MOST_LOOKED_AT)
    return [place * num_images // count for place in range(count)]


class _Seen:
    """What has been seen so far: no picture is kept."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self.num_coloured = self.num_transparent = 0
        self.unread: list[str] = []
        self.formats: Counter[str] = Counter()
        self.sizes: list[tuple[int, int]] = []
        self.pixels: list[bytes] = []
        self.hashes: list[NDArray[np.bool_]] = []
        self.hashed_pixels: list[bytes] = []

    def look(self, raw: RawImage | BadImage, name: str) -> None:
        """Count one."""
        try:
            if isinstance(raw, BadImage):
                raise raw
            picture = open_picture(raw.data, self._max_pixels)
        except BadImage as error:
            self.unread.append(f"{name}: {error}")
            return
        image, pixels = picture.image, np.asarray(picture.image)
        self.formats[_form(raw)] += 1
        self.sizes.append((image.height, image.width))
        self.num_coloured += image.mode in ("RGB", "RGBA") and _is_coloured(pixels)
        self.num_transparent += image.mode in ("LA", "RGBA") and bool(pixels[..., -1].min() < 255)
        digest = sha256(f"{image.mode} {image.size} ".encode())
        digest.update(pixels.data)
        self.pixels.append(digest.digest())
        if min(image.size) >= _SMALLEST_HASHED:
            from imagehash import phash  # with it comes SciPy, which no other command needs

            self.hashes.append(phash(image.convert("L")).hash.ravel())
            self.hashed_pixels.append(self.pixels[-1])


def _form(raw: RawImage) -> str:
    """What it is stored as."""
    return (picture_format(raw.data[:HEAD_BYTES]) or "other") if isinstance(raw.data, bytes) else "pixels"


def _is_coloured(pixels: NDArray[np.uint8]) -> bool:
    """Whether red, green and blue lie apart somewhere; [h, w, 3 or 4]."""
    red, green, blue = (pixels[..., channel] for channel in range(3))
    highest, lowest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return bool((highest - lowest).max() > _GREY)


def _num_near(hashes: Sequence[NDArray[np.bool_]], pixels: Sequence[bytes]) -> int:
    """How many have a hash like that of one before with other pixels."""
    found, seen = 0, set[bytes]()
    for place, (one, own) in enumerate(zip(hashes, pixels, strict=True)):
        if own not in seen and place:
            found += bool((np.count_nonzero(np.stack(hashes[:place]) != one, axis=1) <= _NEAR).any())
        seen.add(own)
    return found


def _counted(counts: Mapping[str, int], most: int = 6) -> str:
    listed = [f"{name} {count:,}" for name, count in counts.items()]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most:,} more" if len(listed) > most else "")


def _range(ascending: Sequence[int]) -> str:
    low, high = ascending[0], ascending[-1]
    return str(low) if low == high else f"{low} to {high}"
