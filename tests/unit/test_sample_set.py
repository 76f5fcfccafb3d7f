"""The SampleSet artifact: blocks that requests share, and sets that name them."""

import json
from pathlib import Path

import pytest

from ddpm_core.artifacts.sample_set import (
    SampleSet,
    block_uri,
    commit_sample_set,
    identity_digest,
    read_block,
    read_images,
    read_sample_set,
    sample_set_folder,
    write_block,
)

IDENTITY = {"weights_sha256": "a" * 64, "sampler": {"name": "ddim", "num_steps": 5}, "precision": "float32"}


def sample_set(store: Path, first_seed: int, num_images: int) -> SampleSet:
    uri = sample_set_folder(str(store), IDENTITY, 4)
    return SampleSet(
        uri=uri, identity=IDENTITY, first_seed=first_seed, num_images=num_images, block_size=4, facts={"batch_size": 2}
    )


def pngs(first: int) -> list[bytes]:
    return [f"png of seed {seed}".encode() for seed in range(first, first + 4)]


def test_blocks_are_aligned_so_that_overlapping_requests_share_them(tmp_path: Path) -> None:
    assert list(sample_set(tmp_path, 0, 8).blocks) == [0, 4]
    assert list(sample_set(tmp_path, 3, 6).blocks) == [0, 4, 8]
    assert list(sample_set(tmp_path, 4, 4).blocks) == [4]


def test_a_set_holds_its_seeds_and_no_others(tmp_path: Path) -> None:
    wanted = sample_set(tmp_path, 3, 6)
    for first in wanted.blocks:
        write_block(wanted.uri, first, pngs(first))
    commit_sample_set(wanted)
    read = read_sample_set(wanted.set_uri)
    assert read == wanted
    assert list(read_images(read)) == [(seed, f"png of seed {seed}".encode()) for seed in range(3, 9)]


def test_a_block_written_twice_is_the_same_bytes(tmp_path: Path) -> None:
    uri = sample_set(tmp_path, 0, 4).uri
    write_block(uri, 0, pngs(0))
    before = Path(block_uri(uri, 0)).read_bytes()
    write_block(uri, 0, pngs(0))
    assert Path(block_uri(uri, 0)).read_bytes() == before
    assert read_block(uri, 0) == list(enumerate(pngs(0)))


def test_anything_that_changes_an_image_changes_the_identity() -> None:
    changed = [
        {**IDENTITY, "weights_sha256": "b" * 64},
        {**IDENTITY, "sampler": {"name": "ddim", "num_steps": 6}},
        {**IDENTITY, "precision": "bfloat16"},
    ]
    assert len({identity_digest(each) for each in [IDENTITY, *changed]}) == 4
    assert identity_digest(dict(reversed(IDENTITY.items()))) == identity_digest(IDENTITY)


def test_an_absent_set_and_a_newer_format_are_said_in_one_line(tmp_path: Path) -> None:
    wanted = sample_set(tmp_path, 0, 4)
    with pytest.raises(FileNotFoundError, match="no sample set at"):
        read_sample_set(wanted.set_uri)
    write_block(wanted.uri, 0, pngs(0))
    commit_sample_set(wanted)
    path = Path(wanted.set_uri)
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 7}))
    with pytest.raises(ValueError, match="format_version 7; this code reads up to 1"):
        read_sample_set(wanted.set_uri)


def test_of_its_blocks_a_set_asks_for_as_many_images_as_it_has() -> None:
    """A display counts what was asked for: 36 images are no 64."""
    for first_seed, num_images, block_size in ((0, 36, 64), (60, 36, 64), (5, 1, 4), (0, 128, 64)):
        found = SampleSet(
            uri="/s", identity={}, first_seed=first_seed, num_images=num_images, block_size=block_size, facts={}
        )
        assert sum(map(found.asked_of, found.blocks)) == num_images
        assert all(1 <= found.asked_of(block) <= block_size for block in found.blocks)
