"""The SampleSet artifact: generated images in blocks of seeds, and sets that name them.

    <store>/samples/<identity>/identity.json
    <store>/samples/<identity>/block-000000000064.tar            a PNG a seed, WebDataset form
    <store>/samples/<identity>/set-000000000000-000000001024.parquet   a row a seed
    <store>/samples/<identity>/set-000000000000-000000001024.json      last: the set stands

The identity is the sha256 of all that decides an image but its seed: weights, sampler, precision. A block is one object, so it is
there whole or not at all; doing it twice changes nothing; overlapping requests share blocks.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ddpm_core import storage
from ddpm_core.errors import InputError, MissingError

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """A range of seeds of one identity."""

    uri: str
    """The folder of the identity's blocks."""
    identity: dict[str, Any]
    """Weights' sha256, sampler with all its parameters, precision, image shape."""
    first_seed: int
    num_images: int
    block_size: int
    facts: dict[str, Any]
    """What does not change an image: the model's name and checkpoint, batch size, threads, versions."""

    @property
    def set_uri(self) -> str:
        """The set's own file, by which evaluate takes it."""
        return storage.join(self.uri, f"set-{self.first_seed:012d}-{self.num_images:012d}.json")

    def asked_of(self, block: int) -> int:
        """How many images of a block, named by its first seed, are the set's."""
        end = self.first_seed + self.num_images
        return len(range(max(block, self.first_seed), min(block + self.block_size, end)))

    @property
    def blocks(self) -> range:
        """The first seeds of the aligned blocks that cover the set."""
        start = self.first_seed // self.block_size * self.block_size
        return range(start, self.first_seed + self.num_images, self.block_size)


def identity_digest(identity: dict[str, Any]) -> str:
    """The first 16 hex digits of the sha256 over the identity's canonical JSON."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def sample_set_folder(store: str, identity: dict[str, Any], block_size: int) -> str:
    """Where the blocks of an identity lie."""
    return storage.join(store, "samples", f"{identity_digest(identity)}-{block_size}")


def block_uri(uri: str, first_seed: int) -> str:
    """The block that begins with this seed."""
    return storage.join(uri, _block_name(first_seed))


def _block_name(first_seed: int) -> str:
    return f"block-{first_seed:012d}.tar"


def missing_blocks(sample_set: SampleSet) -> list[int]:
    """The first seeds of the blocks that do not stand yet, by one listing of their folder."""
    there = {entry.name for entry in storage.walk(sample_set.uri)}
    return [first for first in sample_set.blocks if _block_name(first) not in there]


def write_block(uri: str, first_seed: int, pngs: list[bytes]) -> None:
    """Write a block in one step; a PNG for each of its seeds, in their order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, png in enumerate(pngs):
            entry = tarfile.TarInfo(f"{first_seed + number:012d}.png")
            entry.size = len(png)
            tar.addfile(entry, io.BytesIO(png))
    storage.write_bytes(block_uri(uri, first_seed), out.getvalue())


def read_block(uri: str, first_seed: int) -> list[tuple[int, bytes]]:
    """(seed, PNG) of each image of a block."""
    with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(block_uri(uri, first_seed)))) as tar:
        found = []
        for entry in tar:
            file = tar.extractfile(entry)
            assert file is not None
            found.append((int(entry.name.removesuffix(".png")), file.read()))
        return found


def read_images(sample_set: SampleSet, blocks: range | None = None) -> Iterator[tuple[int, bytes]]:
    """(seed, PNG) of the set's images, block by block."""
    stop = sample_set.first_seed + sample_set.num_images
    for first in sample_set.blocks if blocks is None else blocks:
        yield from ((s, png) for s, png in read_block(sample_set.uri, first) if sample_set.first_seed <= s < stop)


def commit_sample_set(sample_set: SampleSet) -> None:
    """Make the set visible, once all its blocks stand: the rows first, the JSON last."""
    rows = []
    for first in sample_set.blocks:
        for seed, png in read_images(sample_set, range(first, first + 1)):
            rows.append({"seed": seed, "block": _block_name(first), "sha256": hashlib.sha256(png).hexdigest()})
    table = pa.Table.from_pylist(rows)
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"ddpm": json.dumps(sample_set.identity, sort_keys=True)}), out)
    set_uri = sample_set.set_uri
    storage.write_bytes(set_uri.removesuffix(".json") + ".parquet", out.getvalue())
    facts = {key: value for key, value in vars(sample_set).items() if key != "uri"}
    text = json.dumps({"format_version": FORMAT_VERSION, **facts}, indent=2)
    storage.write_bytes(set_uri, text.encode())


def read_sample_set(set_uri: str) -> SampleSet:
    """Read a committed set by its own URI.

    Raises:
        MissingError: if no set is there.
        InputError: if its format is newer than this code.
    """
    try:
        facts = json.loads(storage.read_bytes(set_uri))
    except FileNotFoundError:
        raise MissingError(f"no sample set at {set_uri}; expected the set-....json that sample.py names") from None
    if facts["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"{set_uri} has format_version {facts['format_version']}; this code reads up to {FORMAT_VERSION}: update it"
        )
    del facts["format_version"]
    return SampleSet(uri=set_uri.rsplit("/", 1)[0], **facts)
