"""A dataset is complete, permuted, the same twice over, readable by anyone, and there only once it is whole."""

import gc
import hashlib
import io
import json
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm_core.artifacts.manifest import FORMAT_VERSION, SPLITS, DatasetIndex, read_index, read_rows
from ddpm_core.data.config import DataConfig
from ddpm_core.data.images import BadImage, decode_png
from ddpm_core.data.sharding.plan import ShardPlan, plan_dataset
from ddpm_core.data.sharding.shard_result import keep_result, read_result
from ddpm_core.data.sharding.tar_writer import TarWriter
from ddpm_core.data.sharding.writer import commit_dataset, write_shard
from ddpm_core.data.sources import Listing, RawImage, Source
from ddpm_core.data.sources.splits import SetAside


@dataclass(frozen=True, kw_only=True)
class Made:
    """Images whose pixels tell their place; some of them bad."""

    num_images: int
    bad: frozenset[int] = frozenset()
    unreadable: frozenset[int] = frozenset()
    labelled: bool = True
    class_names: tuple[str, ...] = field(default=("even", "odd"))
    own_splits: SetAside = field(default_factory=dict)
    listing: Listing = field(default_factory=Listing)

    def name(self, index: int) -> str:
        return f"image {index}"

    def read(self, index: int) -> RawImage:
        if index in self.unreadable:
            raise BadImage("cannot be unpacked")
        data = b"rubbish" if index in self.bad else pixels_of(index)
        return RawImage(name=self.name(index), data=data, label=index % 2 if self.labelled else None)


def pixels_of(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (8, 8), dtype=np.uint8)


def config(**changes: object) -> DataConfig:
    return DataConfig(**{"samples_per_shard": 7, "test_fraction": 0.2, "validation_fraction": 0.0, **changes})  # type: ignore[arg-type]


def make(source: Source, folder: Path, settings: DataConfig) -> DatasetIndex:
    results = [write_shard(plan, source, settings, str(folder)) for plan in _plan(source, settings)]
    return commit_dataset(str(folder), results, settings, source)


def _plan(source: Source, settings: DataConfig) -> tuple[ShardPlan, ...]:
    return plan_dataset(source.num_images, settings, source.own_splits)


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@given(
    num_images=st.integers(2, 300),
    test_fraction=st.floats(0.001, 0.999),
    validation_fraction=st.floats(0.001, 0.999) | st.just(0.0),
    samples_per_shard=st.integers(1, 50),
    seed=st.integers(0, 2**64 - 1),
)
@settings(max_examples=60, deadline=None)
def test_a_plan_holds_every_image_once(num_images: int, **changes: object) -> None:
    plans = plan_dataset(num_images, config(**changes))
    assert sorted(index for plan in plans for index in plan.indices.tolist()) == list(range(num_images))
    sizes = Counter({"train": 0, "validation": 0, "test": 0})
    for plan in plans:
        assert 1 <= len(plan.indices) <= changes["samples_per_shard"]  # type: ignore[operator]
        sizes[plan.split] += len(plan.indices)
    assert min(sizes["train"], sizes["test"]) >= 1
    assert abs(sizes["test"] - num_images * changes["test_fraction"]) <= 1  # type: ignore[operator]
    assert abs(sizes["validation"] - (num_images - sizes["test"]) * changes["validation_fraction"]) <= 1  # type: ignore[operator]
    assert changes["validation_fraction"] or not sizes["validation"]
    assert [plan.name for plan in plans] == [f"shard-{number:06d}.tar" for number in range(len(plans))]
    assert [plan.split for plan in plans] == sorted((plan.split for plan in plans), key=SPLITS.index)


def test_what_the_source_sets_aside_is_kept(tmp_path: Path) -> None:
    """Its own test stays the test, whatever share is asked for; validation is drawn from the rest."""
    own = {"test": np.arange(30, 40)}
    source = Made(num_images=40, own_splits=own)
    index = make(source, tmp_path, config(test_fraction=0.7, validation_fraction=0.2))
    assert index.counts == {"train": 24, "validation": 6, "test": 10}
    assert index.own_splits == ("test",)
    keys = {split: set() for split in SPLITS}
    for number, shard in enumerate(index.shards):
        keys[shard.split] |= {int(key) for key in read_rows(index, number)["key"].to_pylist()}
    assert keys["test"] == set(range(30, 40))
    assert not keys["train"] & keys["validation"]
    both = plan_dataset(40, config(validation_fraction=0.5), {**own, "validation": np.array([3, 8])})
    validation = sorted(np.concatenate([plan.indices for plan in both if plan.split == "validation"]).tolist())
    assert validation == [3, 8]


def test_nothing_is_held_out_where_nothing_is_asked_for(tmp_path: Path) -> None:
    index = make(Made(num_images=40), tmp_path, config(test_fraction=0.0))
    assert index.counts == {"train": 40, "validation": 0, "test": 0}


def test_the_permutation_follows_the_seed_and_mixes() -> None:
    def order(seed: int, num_images: int = 10_000) -> np.ndarray:
        return np.concatenate([plan.indices for plan in plan_dataset(num_images, config(seed=seed))])

    assert (order(1) == order(1)).all()
    assert (order(1) != order(2)).mean() > 0.99
    assert abs(np.corrcoef(order(1), np.arange(10_000))[0, 1]) < 0.04  # four standard errors of a random order
    # The upper 32 bits of a seed count too.
    assert (order(1) != order(1 + 2**40)).mean() > 0.99


def test_one_image_is_too_few() -> None:
    with pytest.raises(ValueError, match="holds 1 image; expected 2 or more"):
        plan_dataset(1, config())


@pytest.mark.parametrize("labelled", [True, False])
def test_every_image_lies_where_the_index_says(labelled: bool, tmp_path: Path) -> None:
    source = Made(num_images=40, labelled=labelled)
    index = make(source, tmp_path, config())
    assert index == read_index(str(tmp_path))
    assert (index.counts, index.num_rejected) == ({"train": 32, "validation": 0, "test": 8}, 0)
    assert (index.image_size, index.channels, index.class_names) == (8, 1, ("even", "odd"))
    seen = []
    for number, shard in enumerate(index.shards):
        data = (tmp_path / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.size_bytes, shard.sha256)
        for row in read_rows(index, number).to_pylist():
            png = data[row["offset"] : row["offset"] + row["size"]]
            assert row["shard"] == number
            assert row["crc32"] == zlib.crc32(png)
            assert row["label"] == (int(row["key"]) % 2 if labelled else -1)
            np.testing.assert_array_equal(decode_png(png)[..., 0], pixels_of(int(row["key"])))
            seen.append(int(row["key"]))
    assert sorted(seen) == list(range(40))
    assert json.loads((tmp_path / "census.json").read_bytes())["rejected"] == []


def test_the_second_time_writes_the_same_bytes(tmp_path: Path) -> None:
    source = Made(num_images=40, bad=frozenset([3]))
    lenient = config(max_rejected_fraction=0.1)
    make(source, tmp_path / "a", lenient)
    first = content(tmp_path / "a")
    make(source, tmp_path / "a", lenient)
    second = make(source, tmp_path / "b", lenient)
    assert content(tmp_path / "a") == content(tmp_path / "b") == first
    assert second.digest == read_index(str(tmp_path / "a")).digest
    assert make(source, tmp_path / "c", config(max_rejected_fraction=0.1, seed=1)).digest != second.digest


def test_tars_are_nobodys_and_of_no_time(tmp_path: Path) -> None:
    index = make(Made(num_images=9), tmp_path, config())
    with tarfile.open(tmp_path / index.shards[0].name) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own, of its last shard
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_webdataset_reader_reads_the_shards(tmp_path: Path) -> None:
    index = make(Made(num_images=40), tmp_path, config())
    urls = [str(tmp_path / shard.name) for shard in index.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8"))
    gc.collect()  # here, so that its warning falls to no other test
    keys = [row["key"] for number in range(len(urls)) for row in read_rows(index, number).to_pylist()]
    assert [sample["__key__"] for sample in samples] == keys
    for sample in samples:
        assert sample["cls"] == int(sample["__key__"]) % 2
        np.testing.assert_array_equal(sample["png"][..., 0], pixels_of(int(sample["__key__"])))


def test_a_bad_image_moves_no_other(tmp_path: Path) -> None:
    lenient = config(max_rejected_fraction=0.2)
    whole = make(Made(num_images=40), tmp_path / "whole", lenient)
    bad, unreadable = frozenset([0, 17, 39]), frozenset([5])
    index = make(Made(num_images=40, bad=bad, unreadable=unreadable), tmp_path / "less", lenient)
    assert index.num_rejected == 4
    for number, shard in enumerate(whole.shards):
        before, after = (read_rows(which, number)["key"].to_pylist() for which in (whole, index))
        assert after == [key for key in before if int(key) not in bad | unreadable]
        assert index.shards[number].num_samples == len(after)
        assert index.shards[number].name == shard.name
    listed = json.loads((tmp_path / "less/census.json").read_bytes())
    assert (listed["format_version"], listed["num_images"], listed["num_rejected"]) == (FORMAT_VERSION, 40, 4)
    assert [(item["position"], item["name"]) for item in listed["rejected"]] == [
        (n, f"image {n}") for n in (0, 5, 17, 39)
    ]
    assert [item["reason"].split()[:2] for item in listed["rejected"][:2]] == [["not", "an"], ["cannot", "be"]]


def test_a_shard_without_one_good_image_is_left_out(tmp_path: Path) -> None:
    lenient = config(max_rejected_fraction=0.5)
    plans = plan_dataset(40, lenient)
    bad = frozenset(plans[1].indices.tolist())
    index = make(Made(num_images=40, bad=bad), tmp_path, lenient)
    names = [plan.name for plan in plans if plan.name != plans[1].name]
    assert [shard.name for shard in index.shards] == names
    assert {path.name for path in tmp_path.glob("*.tar")} == set(names)
    for number, shard in enumerate(index.shards):
        rows = read_rows(index, number)
        assert set(rows["shard"].to_pylist()) == {number}
        assert len(rows) == shard.num_samples


def test_too_many_bad_images_make_no_dataset(tmp_path: Path) -> None:
    source = Made(num_images=40, bad=frozenset(range(10, 15)))
    with pytest.raises(ValueError, match="5 of 40 images") as error:
        make(source, tmp_path, config(max_rejected_fraction=0.1))
    message = str(error.value)
    assert "(12.50%)" in message
    assert "at most 10.00%" in message
    assert "image 10: not an image" in message
    assert "image 13" not in message
    assert "--data.max-rejected-fraction" in message
    assert f"{tmp_path}/census.json" in message
    assert "\n" not in message
    assert not (tmp_path / "index.parquet").exists()
    assert len(json.loads((tmp_path / "census.json").read_bytes())["rejected"]) == 5
    assert make(source, tmp_path, config(max_rejected_fraction=0.125)).num_rejected == 5


def test_an_empty_split_makes_no_dataset(tmp_path: Path) -> None:
    lenient = config(max_rejected_fraction=0.9)
    test = [index for plan in plan_dataset(40, lenient) if plan.split == "test" for index in plan.indices.tolist()]
    with pytest.raises(ValueError, match="no image of the test split could be used"):
        make(Made(num_images=40, bad=frozenset(test)), tmp_path, lenient)
    assert not (tmp_path / "index.parquet").exists()


def test_colour_and_size_are_the_configs(tmp_path: Path) -> None:
    index = make(Made(num_images=5), tmp_path, config(image_size=6, channels=3))
    with tarfile.open(tmp_path / index.shards[0].name) as tar:
        file = tar.extractfile(next(member for member in tar if member.name.endswith(".png")))
        assert file is not None
        image = Image.open(io.BytesIO(file.read()))
    assert (image.size, image.mode) == ((6, 6), "RGB")


def test_tars_are_webdatasets_to_the_byte(tmp_path: Path) -> None:
    content = {"png": b"x" * 700, "cls": b"3"}
    with open(tmp_path / "ours.tar", "wb") as file, TarWriter(file) as ours:
        found = {
            f"{number:09d}.{name}": ours.add(f"{number:09d}.{name}", content[name])
            for number in range(3)
            for name in ("cls", "png")
        }
    with (
        open(tmp_path / "theirs.tar", "wb") as file,
        webdataset.TarWriter(file, mtime=0, user="", group="", encoder=False) as theirs,
    ):
        for number in range(3):
            theirs.write({"__key__": f"{number:09d}", **content})
    data = (tmp_path / "theirs.tar").read_bytes()
    assert (tmp_path / "ours.tar").read_bytes() == data
    assert (ours.sha256, ours.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    with tarfile.open(tmp_path / "ours.tar") as tar:
        assert {member.name: member.offset_data for member in tar} == found


def test_a_shard_that_was_written_is_not_written_again(tmp_path: Path) -> None:
    """What a command that was killed had written is found beside its shards, the same in everything."""
    source = Made(num_images=40, bad=frozenset([0, 17]))
    settings = config(max_rejected_fraction=0.1)
    plans = _plan(source, settings)
    uri = str(tmp_path)
    for plan in plans[:3]:
        keep_result(write_shard(plan, source, settings, uri), uri)
    found = [read_result(plan, uri) for plan in plans]
    assert [result is not None for result in found] == [True] * 3 + [False] * (len(plans) - 3)
    for plan, result in zip(plans[:3], found, strict=False):
        again = write_shard(plan, source, settings, str(tmp_path / "again"))
        assert result is not None
        assert (result.entry, result.rejected, result.num_changed) == (again.entry, again.rejected, again.num_changed)
        assert result.rows.equals(again.rows)
        assert result.origins.equals(again.origins)
    (tmp_path / plans[1].name).write_bytes(b"cut")
    assert read_result(plans[1], uri) is None
    (tmp_path / plans[0].name).unlink()
    assert read_result(plans[0], uri) is None
