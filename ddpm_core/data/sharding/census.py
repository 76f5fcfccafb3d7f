"""The census of a dataset: what of its source became an image of it, what did not and why, and how the rest was understood."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from ddpm_core import storage
from ddpm_core.artifacts.manifest import FORMAT_VERSION, Split
from ddpm_core.data.sources.base import LeftOut, Listing
from ddpm_core.errors import InputError

CENSUS_NAME = "census.json"
SHEET_NAME = "contact_sheet.png"
_NAMED = 3
"""Of what was left out, so many by name."""
_CLASSES_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """An image that was left out."""

    position: int
    """Its place in the source."""
    name: str
    reason: str
    kind: str = "undecodable"
    """One of few, by which they are counted."""


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Two images of the dataset with the same pixels, in two splits."""

    names: tuple[str, str]
    splits: tuple[Split, Split]


@dataclass(frozen=True, kw_only=True)
class Grown:
    """What came to an earlier dataset and what went."""

    dataset: str
    """URI of the earlier one."""
    digest: str
    """Its digest."""
    came: int
    went: int
    changed: int
    """Images that have other pixels or another class now; before they are read, how many may have."""
    kept: int
    """Shards that are those of the earlier dataset, byte for byte."""
    num_shards: int
    """Shards of the earlier dataset."""
    planned: bool = False
    """Whether this is said from the listing alone."""

    def line(self) -> str:
        """In words."""
        unsure = self.planned and self.changed
        changed = f"may have changed, and will be read: {self.changed:,}" if unsure else f"changed: {self.changed:,}"
        kept = f"{'at least ' if unsure else ''}{self.kept:,} of {self.num_shards:,} shards taken over"
        return f"came: {self.came:,} images, went: {self.went:,}, {changed}; {kept}"


@dataclass(frozen=True, kw_only=True)
class Census:
    """What became of every file of a source."""

    source: str
    listing: Listing
    num_images: int
    """Images that the listing found; those that were lost before are not among them."""
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    splits: Mapping[str, int]
    """Images of each split."""
    rejected: tuple[Rejected, ...] = ()
    remarks: Mapping[str, int] = field(default_factory=dict)
    """What was done to how many images that their owner should know of."""
    num_duplicates: int | None = None
    """Images whose pixels came before, in any split; None before they are read."""
    across: tuple[Twins, ...] = ()
    """The first of those in two splits."""
    num_across: int = 0
    grown: Grown | None = None
    """Against the dataset that it grew from, if it did."""

    @property
    def lost(self) -> tuple[LeftOut, ...]:
        """What the listing found and could not take for an image, though it may be one."""
        return tuple(item for item in self.listing.left_out if item.lost)

    @property
    def num_rejected(self) -> int:
        """Images that are missing."""
        return len(self.rejected) + len(self.lost)

    @property
    def num_found(self) -> int:
        """Files (rows, images of an array) in all."""
        return self.num_images + self.listing.num_describing + len(self.listing.left_out)

    def lines(self) -> list[str]:
        """In words: what is used and what not; the classes; the splits; then a line each for what its owner should know."""
        used = self.num_images - len(self.rejected)
        counts = Counter(item.kind for item in self.rejected) + Counter(item.reason for item in self.lost)
        other = Counter(item.reason for item in self.listing.left_out if not item.lost)
        found = self.num_found if self.listing.unit == "files" else self.num_images
        parts = [
            _many(used, "image")
            + (f" of {found:,} {self.listing.unit}" if self.listing.unit != "images" or used < found else "")
        ]
        parts += [f"left out: {_counted(counts)}"] if counts else []
        parts += [f"files that are something else: {_counted(other)}"] if other else []
        parts += [f"{self.listing.num_describing:,} say what they are of"] if self.listing.num_describing else []
        if self.num_duplicates:
            across = f", {self.num_across:,} across splits" if self.num_across else ""
            parts.append(f"{_many(self.num_duplicates, 'exact duplicate')}{across}")
        elif self.num_duplicates == 0:
            parts.append("no exact duplicates")
        lines = ["; ".join(parts)]
        if self.class_names:
            sizes = [f"{name}: {count:,}" for name, count in zip(self.class_names, self.class_counts, strict=False)]
            more = f" and {len(sizes) - _CLASSES_SHOWN:,} more" if len(sizes) > _CLASSES_SHOWN else ""
            lines.append(f"{len(sizes):,} classes: {', '.join(sizes[:_CLASSES_SHOWN])}{more}; by {self.listing.labels}")
        else:
            lines.append(f"classes: {self.listing.labels}")
        drawn = ", ".join(f"{split} {count:,}" for split, count in self.splits.items())
        lines.append(f"splits: {drawn}; from the source: {self.listing.splits}")
        lines += self._missing()
        lines += [self.grown.line()] if self.grown else []
        lines += [f"{_many(count, 'image')}: {remark}" for remark, count in sorted(self.remarks.items())]
        lines += [
            f"in two splits: {' and '.join(twins.names)} ({' and '.join(twins.splits)})" for twins in self.across[:3]
        ]
        return lines + list(self.listing.notes)

    def _missing(self) -> list[str]:
        """The first images that are missing, by name, and where the others are named."""
        missing = [f"{item.name} ({item.reason})" for item in self.rejected]
        missing += [f"{item.name} ({item.reason})" for item in self.lost]
        more = [f"{len(missing) - _NAMED:,} more, named in {CENSUS_NAME}"] if len(missing) > _NAMED else []
        return [f"left out: {each}" for each in missing[:_NAMED] + more]


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items(), key=lambda item: -item[1]))


def write_census(census: Census, uri: str) -> None:
    """Write a census to a dataset's folder, with every file that was left out by name."""
    content = {
        "format_version": FORMAT_VERSION,
        "source": census.source,
        "said": census.lines(),
        "unit": census.listing.unit,
        "num_found": census.num_found,
        "num_images": census.num_images + len(census.lost),
        "num_used": census.num_images - len(census.rejected),
        "num_describing": census.listing.num_describing,
        "num_rejected": census.num_rejected,
        "num_duplicates": census.num_duplicates,
        "num_duplicates_across_splits": census.num_across,
        "labels": census.listing.labels,
        "classes": dict(zip(census.class_names, census.class_counts, strict=False)),
        "splits": dict(census.splits),
        "splits_from": census.listing.splits,
        "remarks": dict(census.remarks),
        "notes": list(census.listing.notes),
        "grown": asdict(census.grown) if census.grown else None,
        "duplicates_across_splits": [asdict(twins) for twins in census.across],
        "rejected": [
            *({"position": item.position, "name": item.name, "reason": item.reason} for item in census.rejected),
            *({"position": None, "name": item.name, "reason": item.reason} for item in census.lost),
        ],
        "something_else": [
            {"name": item.name, "reason": item.reason} for item in census.listing.left_out if not item.lost
        ],
    }
    storage.write_bytes(storage.join(uri, CENSUS_NAME), json.dumps(content, indent=1).encode())


def read_said(uri: str) -> list[str]:
    """The words of a dataset's census; none if it was made before there were any."""
    try:
        content = json.loads(storage.read_bytes(storage.join(uri, CENSUS_NAME)))
    except FileNotFoundError:
        return []
    return [str(line) for line in content["said"]]


def check_rejected(
    num_rejected: int, num_images: int, max_fraction: float, first: Sequence[tuple[str, str]] = (), listed: str = ""
) -> None:
    """Refuse a dataset of which too much is missing.

    Args:
        num_rejected: images that could not be used.
        num_images: in all.
        max_fraction: of them that may be missing.
        first: names and reasons of some.
        listed: where all of them are.

    Raises:
        InputError: if more were left out; it names the first few and where all are.
    """
    if num_rejected <= max_fraction * num_images:
        return
    named = "; ".join(f"{name}: {reason}" for name, reason in first[:_NAMED])
    details = f" ({named})" if named else ""
    where = f"; all are listed in {listed}" if listed else ""
    raise InputError(
        f"{num_rejected} of {num_images} images ({num_rejected / num_images:.2%}) cannot be used{details}; at most "
        f"{max_fraction:.2%} may be left out: mend them or raise --data.max-rejected-fraction{where}"
    )
