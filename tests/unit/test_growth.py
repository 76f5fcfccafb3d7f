"""A dataset grows: what stands stays byte for byte, under its keys, splits and class numbers; what is new comes in new shards."""

import hashlib
import io
import json
import os
import shutil
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import png

from ddpm_core import storage
from ddpm_core.artifacts.manifest import SPLITS, DatasetIndex, read_index, read_rows
from ddpm_core.data.config import DataConfig
from ddpm_core.data.images import BadImage, decode_png, encode_png
from ddpm_core.data.shard_cache import open_copy
from ddpm_core.data.sharding import renewal
from ddpm_core.data.sharding.growth import PlannedSource, open_earlier, plan_growth, plan_source
from ddpm_core.data.sharding.origins import ORIGIN_SCHEMA, ORIGINS_NAME, each_origins, read_head
from ddpm_core.data.sharding.plan import plan_dataset, plan_shards
from ddpm_core.data.sharding.writer import commit_dataset, planned_census, write_shard
from ddpm_core.data.sources import Listing, RawImage
from ddpm_core.data.sources.splits import SetAside
from ddpm_core.errors import InputError
from ddpm_core.storage import s3
from pipelines.datasets import source_key

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddpm_core.storage.local._flush", lambda _: None)  # no power cut here, and a disk is slow


def photos(first: int, last: int) -> Files:
    """Some images of two classes."""
    return {f"{'cat' if number % 2 else 'dog'}/{number:03d}.png": png(number) for number in range(first, last)}


def as_folder(place: Path, files: Files) -> str:
    """The files and no other, those written anew whose content differs, as a person would have it."""
    for path in place.rglob("*.*") if place.exists() else []:
        if str(path.relative_to(place)) not in files:
            path.unlink()
    for name, data in files.items():
        path = place / name
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return str(place)


def as_tar(place: Path, files: Files) -> str:
    with tarfile.open(place, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(
                name
            )  # its time is 0 whatever is in it, as tars are made that shall be reproducible
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(place)


def as_zip(place: Path, files: Files) -> str:
    with zipfile.ZipFile(place, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(place)


def as_parquet(place: Path, files: Files) -> str:
    place.mkdir(exist_ok=True)
    names = sorted(files)
    rows = {"image": [files[name] for name in names], "label": [name.partition("/")[0] for name in names]}
    pq.write_table(pa.table(rows), place / f"part-{len(list(place.iterdir()))}.parquet")
    return str(place)


def data_config(source: str, **changes: Any) -> DataConfig:
    small = {"samples_per_shard": 16, "image_size": 8, "channels": 1, "max_rejected_fraction": 0.5}
    return DataConfig(**{"source": source, **small, **changes})


def listed(config: DataConfig, grows: DatasetIndex | None = None) -> PlannedSource:
    return plan_source(config, grows)


def shard(config: DataConfig, folder: Path | str, grows: DatasetIndex | None = None) -> DatasetIndex:
    planned = plan_source(config, grows)
    results = [write_shard(plan, planned.source, config, str(folder)) for plan in planned.plans]
    return commit_dataset(str(folder), results, config, planned.source, planned.growth)


def said(index: DatasetIndex) -> dict[str, Any]:
    return json.loads(storage.read_bytes(storage.join(index.uri, "census.json")))


def grown_line(index: DatasetIndex) -> str:
    return next(line for line in said(index)["said"] if line.startswith("came:"))


def images(index: DatasetIndex) -> dict[str, tuple[bytes, str | None, str, int]]:
    """Of every image by its name: its pixels, its class's name, its split and its key; each comes once."""
    names = {
        key: name
        for table in each_origins(index.uri, ["key", "name"])
        for key, name in zip(*table.to_pydict().values(), strict=True)
    }
    found: dict[str, tuple[bytes, str | None, str, int]] = {}
    for number, entry in enumerate(index.shards):
        data = storage.read_bytes(storage.join(index.uri, entry.name))
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (entry.sha256, entry.size_bytes)
        for row in read_rows(index, number).to_pylist():
            name = names[int(row["key"])]
            assert name not in found
            assert row["shard"] == number
            pixels = decode_png(data[row["offset"] : row["offset"] + row["size"]]).tobytes()
            label = None if row["label"] < 0 else index.class_names[row["label"]]
            found[name] = (pixels, label, entry.split, int(row["key"]))
    assert [entry.split for entry in index.shards] == sorted((entry.split for entry in index.shards), key=SPLITS.index)
    assert len({entry.name for entry in index.shards}) == len(index.shards)
    return found


def seen(index: DatasetIndex) -> dict[str, tuple[bytes, str | None]]:
    return {name: (pixels, label) for name, (pixels, label, _, _) in images(index).items()}


def placed(index: DatasetIndex) -> dict[str, tuple[str, int]]:
    return {name: (split, key) for name, (_, _, split, key) in images(index).items()}


def inodes(index: DatasetIndex) -> dict[str, int]:
    return {entry.name: (Path(index.uri) / entry.name).stat().st_ino for entry in index.shards}


# ---- images that are added ---------------------------------------------------------------------------------------------


def test_what_stands_is_taken_over_without_reading_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = data_config(as_folder(tmp_path / "raw", photos(0, 100)))
    before = shard(config, tmp_path / "one")
    as_folder(tmp_path / "raw", photos(0, 110))
    read: list[int] = []
    real = type(listed(config).source).read
    monkeypatch.setattr(
        "ddpm_core.data.sources.ImageFiles.read", lambda self, index: read.append(index) or real(self, index)
    )
    after = shard(config, tmp_path / "two", before)
    assert len(read) == 10
    old = {entry.name: entry for entry in before.shards}
    assert {entry.name: entry for entry in after.shards if entry.name in old} == old
    assert {name: inode for name, inode in inodes(after).items() if name in old} == inodes(before)
    assert set(seen(after)) == set(photos(0, 110))
    assert seen(after) == seen(shard(config, tmp_path / "anew"))
    assert {name: place for name, place in placed(after).items() if name in photos(0, 100)} == placed(before)
    assert sorted(key for _, key in placed(after).values()) == list(range(110))
    assert after.counts == {"train": 89, "validation": 10, "test": 11}
    assert grown_line(after) == f"came: 10 images, went: 0, changed: 0; {len(old)} of {len(old)} shards taken over"
    grown = said(after)["grown"]
    assert (grown["digest"], grown["came"], grown["kept"], grown["planned"]) == (before.digest, 10, len(old), False)


def test_the_listing_says_beforehand_what_the_census_says(tmp_path: Path) -> None:
    config = data_config(as_folder(tmp_path / "raw", photos(0, 100)))
    before = shard(config, tmp_path / "one")
    as_folder(tmp_path / "raw", {name: data for name, data in photos(0, 110).items() if name != "dog/004.png"})
    planned = listed(config, before)
    line = next(
        line
        for line in planned_census(planned.source, planned.plans, config, planned.growth).lines()
        if line[:5] == "came:"
    )
    assert line == grown_line(shard(config, tmp_path / "two", before))
    assert line.startswith("came: 10 images, went: 1, changed: 0; ")


def test_the_same_twice_over_and_in_every_form(tmp_path: Path) -> None:
    digests = set()
    for form, write in {"folder": as_folder, "tar": as_tar, "zip": as_zip}.items():
        config = data_config(write(tmp_path / f"raw-{form}", photos(0, 60)))
        before = shard(config, tmp_path / f"{form}-1")
        changed = {name: data for name, data in photos(0, 75).items() if name != "cat/007.png"} | {
            "dog/010.png": png(999)
        }
        write(tmp_path / f"raw-{form}", changed)
        after = [shard(config, tmp_path / f"{form}-{number}", before) for number in (2, 3)]
        assert after[0].digest == after[1].digest
        assert "changed: 1; " in grown_line(after[0])
        digests.add(after[0].digest)
    assert len(digests) == 1


def test_a_dataset_of_a_folder_grows_from_a_tar_of_it(tmp_path: Path) -> None:
    """Times and checksums of two forms cannot be compared: the images are read, none is decoded, and found the same."""
    before = shard(data_config(as_folder(tmp_path / "raw", photos(0, 60))), tmp_path / "one")
    config = data_config(as_tar(tmp_path / "raw.tar", photos(0, 70)))
    planned = listed(config, before)
    lines = planned_census(planned.source, planned.plans, config, planned.growth).lines()
    assert (
        f"came: 10 images, went: 0, may have changed, and will be read: 60; at least 0 of {len(before.shards)} shards taken over"
        in lines
    )
    after = shard(config, tmp_path / "two", before)
    assert f"changed: 0; {len(before.shards)} of" in grown_line(after)
    folder = data_config(as_folder(tmp_path / "raw", photos(0, 70)))
    assert shard(folder, tmp_path / "three", before).digest == after.digest


def test_a_folder_that_was_downloaded_again_is_taken_over_and_known_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = data_config(as_folder(tmp_path / "raw", photos(0, 40)))
    before = shard(config, tmp_path / "one")
    as_folder(tmp_path / "raw", photos(0, 44))
    for path in (tmp_path / "raw").rglob("*.png"):
        os.utime(path, (1, 1))
    after = shard(config, tmp_path / "two", before)
    assert "changed: 0; " in grown_line(after)
    assert inodes(before).items() <= inodes(after).items()
    monkeypatch.setattr(renewal, "read_each", lambda *_: pytest.fail("read again"))
    assert all(plan.standing and plan.standing.certain for plan in listed(config, after).plans)
    assert shard(config, tmp_path / "three", after).digest == after.digest


# ---- images that went, or changed ------------------------------------------------------------------------------------------


def test_one_image_less_rewrites_its_shard_alone(tmp_path: Path) -> None:
    config = data_config(as_folder(tmp_path / "raw", photos(0, 100)))
    before = shard(config, tmp_path / "one")
    name = min(images(before))
    as_folder(tmp_path / "raw", {each: data for each, data in photos(0, 100).items() if each != name})
    after = shard(config, tmp_path / "two", before)
    rewritten = [
        (old.name, old.num_samples, new.num_samples)
        for old, new in zip(before.shards, after.shards, strict=True)
        if old != new
    ]
    assert [(old - new) for _, old, new in rewritten] == [1]
    expected = placed(before)
    del expected[name]
    assert placed(after) == expected
    assert grown_line(after).endswith(
        f"went: 1, changed: 0; {len(before.shards) - 1} of {len(before.shards)} shards taken over"
    )
    assert shard(config, tmp_path / "three", before).digest == after.digest


def test_a_file_of_another_name_is_another_image(tmp_path: Path) -> None:
    config = data_config(as_folder(tmp_path / "raw", photos(0, 40)))
    before = shard(config, tmp_path / "one")
    (tmp_path / "raw/dog/010.png").rename(tmp_path / "raw/dog/renamed.png")
    after = shard(config, tmp_path / "two", before)
    assert grown_line(after).startswith("came: 1 images, went: 1, changed: 0; ")
    assert placed(after)["dog/renamed.png"][1] == 40
    assert "dog/010.png" not in placed(after)


@pytest.mark.parametrize("form", ["folder", "s3", "zip", "tar", "shards", "parquet", "npy"])
def test_what_a_source_tells_of_its_images_without_their_being_read(form: str, bucket: str, tmp_path: Path) -> None:
    """A folder's times, a bucket's ETags and a zip's checksums tell that nothing changed; of the rest all are read."""
    place = tmp_path / "raw"
    if form == "s3":
        for name, data in photos(0, 20).items():
            storage.write_bytes(f"s3://{bucket}/raw/{name}", data)
    elif form == "shards":
        place.mkdir()
        as_tar(place / "x.tar", photos(0, 20))
    elif form == "npy":
        np.save(tmp_path / "raw", np.stack([decode_png(data)[..., 0] for data in photos(0, 20).values()]))
    else:
        {"folder": as_folder, "zip": as_zip, "tar": as_tar, "parquet": as_parquet}[form](place, photos(0, 20))
    config = data_config({"s3": f"s3://{bucket}/raw", "npy": f"{place}.npy"}.get(form, str(place)))
    before = shard(config, tmp_path / "one")
    certain = {bool(plan.standing and plan.standing.certain) for plan in listed(config, before).plans}
    assert certain == {form in ("folder", "s3", "zip")}
    after = shard(config, tmp_path / "two", before)
    number = len(before.shards)
    assert grown_line(after) == f"came: 0 images, went: 0, changed: 0; {number} of {number} shards taken over"
    assert after.digest == before.digest


def test_another_size_at_the_same_time_is_a_change(tmp_path: Path) -> None:
    config = data_config(as_folder(tmp_path / "raw", photos(0, 40)))
    before = shard(config, tmp_path / "one")
    path = tmp_path / "raw/dog/010.png"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    data = encode_png(np.zeros((8, 8, 1), np.uint8))
    assert len(data) != path.stat().st_size
    path.write_bytes(data)
    os.utime(path, ns=times)
    after = shard(config, tmp_path / "two", before)
    assert "changed: 1; " in grown_line(after)
    assert images(after)["dog/010.png"][0] == decode_png(data).tobytes()


def test_one_image_changed_rewrites_its_shard_alone(tmp_path: Path) -> None:
    config = data_config(as_folder(tmp_path / "raw", photos(0, 100)))
    before = shard(config, tmp_path / "one")
    as_folder(tmp_path / "raw", photos(0, 100) | {"dog/050.png": png(999)})
    after = shard(config, tmp_path / "two", before)
    assert sum(old != new for old, new in zip(before.shards, after.shards, strict=True)) == 1
    assert placed(after) == placed(before)
    assert images(after)["dog/050.png"][0] == decode_png(png(999)).tobytes()
    assert "came: 0 images, went: 0, changed: 1; " in grown_line(after)


def test_other_bytes_of_the_same_pixels_are_no_change(tmp_path: Path) -> None:
    config = data_config(as_folder(tmp_path / "raw", photos(0, 40)))
    before = shard(config, tmp_path / "one")
    as_folder(tmp_path / "raw", photos(0, 40) | {"dog/010.png": png(10) + b"more"})
    after = shard(config, tmp_path / "two", before)
    assert after.digest == before.digest
    assert inodes(after) == inodes(before)
    assert "changed: 0; " in grown_line(after)


def test_what_could_not_be_used_is_not_new_and_comes_when_it_is_mended(tmp_path: Path) -> None:
    config = data_config(as_folder(tmp_path / "raw", photos(0, 40) | {"cat/bad.png": b"\x89PNG rubbish"}))
    before = shard(config, tmp_path / "one")
    as_folder(tmp_path / "raw", photos(0, 43) | {"cat/bad.png": b"\x89PNG rubbish"})
    after = shard(config, tmp_path / "two", before)
    assert grown_line(after).startswith("came: 3 images, went: 0, changed: 0; ")
    assert [item["name"] for item in said(after)["rejected"]] == ["cat/bad.png"]
    position = said(after)["rejected"][0]["position"]
    assert listed(config, before).source.name(position) == "cat/bad.png"
    as_folder(tmp_path / "raw", photos(0, 43) | {"cat/bad.png": png(77)})
    mended = shard(config, tmp_path / "three", after)
    assert grown_line(mended).startswith("came: 0 images, went: 0, changed: 1; ")
    assert (mended.num_rejected, sum(mended.counts.values())) == (0, 44)


def test_no_key_and_no_shard_s_name_comes_twice(tmp_path: Path) -> None:
    """Not even when the image with the highest key went before, and its shard with it."""
    config = data_config(as_folder(tmp_path / "raw", photos(0, 40)), test_fraction=0.0, validation_fraction=0.0)
    one = shard(config, tmp_path / "one")
    as_folder(tmp_path / "raw", photos(0, 43))
    two = shard(config, tmp_path / "two", one)
    as_folder(tmp_path / "raw", photos(0, 40))
    three = shard(config, tmp_path / "three", two)
    assert three.shards == one.shards
    as_folder(tmp_path / "raw", photos(0, 40) | photos(50, 53))
    four = shard(config, tmp_path / "four", three)
    assert sorted(key for _, key in placed(four).values()) == [*range(40), 43, 44, 45]
    assert {entry.name for entry in four.shards} & {entry.name for entry in two.shards} == {
        entry.name for entry in one.shards
    }
    assert (read_head(four.uri).next_key, read_head(four.uri).next_shard) == (46, 5)
    assert read_head(four.uri).grows == three.digest


def test_duplicates_are_found_across_what_was_and_what_is_new(tmp_path: Path) -> None:
    config = data_config(as_folder(tmp_path / "raw", photos(0, 40)), test_fraction=0.5)
    before = shard(config, tmp_path / "one")
    again = {f"new/{name.replace('/', '-')}": data for name, data in photos(0, 40).items()}
    as_folder(tmp_path / "raw", photos(0, 40) | again)
    after = shard(config, tmp_path / "two", before)
    assert said(after)["num_duplicates"] == 40
    pairs = said(after)["duplicates_across_splits"]
    assert pairs
    for pair in pairs:
        assert {f"new/{name.replace('/', '-')}" for name in pair["names"]} & set(pair["names"])


# ---- classes and splits ----------------------------------------------------------------------------------------------------


def test_a_new_class_between_old_ones_is_numbered_after_them(tmp_path: Path) -> None:
    config = data_config(as_folder(tmp_path / "raw", photos(0, 40)))
    before = shard(config, tmp_path / "one")
    new = {"bird/1.png": png(901), "cow/2.png": png(902), "cow/3.png": png(903)}
    as_folder(tmp_path / "raw", photos(0, 40) | new)
    after = shard(config, tmp_path / "two", before)
    assert before.class_names == ("cat", "dog")
    assert after.class_names == ("cat", "dog", "bird", "cow")
    assert {entry.sha256 for entry in before.shards} < {entry.sha256 for entry in after.shards}
    assert seen(after) == seen(shard(config, tmp_path / "anew"))
    assert said(after)["classes"] == {"cat": 20, "dog": 20, "bird": 1, "cow": 2}
    as_folder(
        tmp_path / "raw", {name: data for name, data in (photos(0, 40) | new).items() if not name.startswith("cat")}
    )
    assert shard(config, tmp_path / "three", after).class_names == after.class_names


def test_names_that_a_person_gives_may_not_move_a_class(tmp_path: Path) -> None:
    before = shard(data_config(as_folder(tmp_path / "raw", photos(0, 40))), tmp_path / "one")
    source = as_folder(tmp_path / "raw", photos(0, 40) | {"bird/1.png": png(901)})
    with pytest.raises(
        InputError, match=r"class-names are bird, cat, dog; expected .* earlier dataset first.*: cat, dog, bird"
    ):
        listed(data_config(source, class_names=("bird", "cat", "dog")), before)
    given = data_config(source, class_names=("cat", "dog", "bird"))
    assert shard(given, tmp_path / "two", before).class_names == ("cat", "dog", "bird")


def test_another_class_of_the_same_file_is_a_change(tmp_path: Path) -> None:
    def labels(**moved: str) -> str:
        lines = [f"{name},{moved.get(name[4:7], name[:3])}" for name in sorted(photos(0, 40))]
        (tmp_path / "labels.csv").write_text("\n".join(["path,label", *lines]))
        return str(tmp_path / "labels.csv")

    config = data_config(as_folder(tmp_path / "raw", photos(0, 40)), labels=labels())
    before = shard(config, tmp_path / "one")
    labels(**{"004": "cat"})
    after = shard(config, tmp_path / "two", before)
    assert images(after)["dog/004.png"][1] == "cat"
    assert "went: 0, changed: 1; " in grown_line(after)
    assert sum(old != new for old, new in zip(before.shards, after.shards, strict=True)) == 1


def test_the_source_s_own_splits_are_kept(tmp_path: Path) -> None:
    def own(train: int, test: int) -> Files:
        return {f"train/{n}.png": png(n) for n in range(train)} | {f"test/{n}.png": png(1000 + n) for n in range(test)}

    config = data_config(as_folder(tmp_path / "raw", own(40, 20)), test_fraction=0.3)
    before = shard(config, tmp_path / "one")
    as_folder(tmp_path / "raw", own(50, 27))
    after = shard(config, tmp_path / "two", before)
    assert after.own_splits == ("test",)
    assert after.counts == {"train": 45, "validation": 5, "test": 27}
    assert placed(before).items() <= placed(after).items()
    assert all((split == "test") == name.startswith("test/") for name, (split, _) in placed(after).items())
    as_folder(tmp_path / "raw", {f"a/{name}": data for name, data in own(50, 27).items()} | {"b.png": png(5)})
    with pytest.raises(
        InputError, match=r"sets aside no split of its own, .* made of one with test; expected the same"
    ):
        listed(config, after)
    drawn = shard(data_config(as_folder(tmp_path / "plain", photos(0, 20))), tmp_path / "three")
    moved = {f"{'test' if name.startswith('cat') else 'train'}/{name}": data for name, data in photos(0, 20).items()}
    with pytest.raises(
        InputError, match=r"sets aside test of its own, .* made of one with no split; expected the same"
    ):
        listed(data_config(as_folder(tmp_path / "plain", moved)), drawn)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Images of no file, by the numbers of their pictures; some cannot be read."""

    pictures: tuple[int, ...]
    own_splits: SetAside = field(default_factory=dict)
    unreadable: frozenset[int] = frozenset()
    class_names: tuple[str, ...] = ()
    listing: Listing = field(default_factory=Listing)

    @property
    def num_images(self) -> int:
        return len(self.pictures)

    def name(self, index: int) -> str:
        return f"image {index}"

    def read(self, index: int) -> RawImage:
        if index in self.unreadable:
            raise BadImage("cannot be unpacked")
        return RawImage(name=self.name(index), data=png(self.pictures[index]), label=None)


class SameNames(Plain):
    """Images that are all called the same."""

    def name(self, index: int) -> str:
        return "x.png"


def shard_plain(source: Plain, folder: Path, grows: DatasetIndex | None = None) -> DatasetIndex:
    config, growth = data_config("plain"), None
    plans = plan_dataset(source.num_images, config, source.own_splits)
    if grows is not None:
        plans, growth = plan_growth(source, config, open_earlier(grows, config))
    results = [write_shard(plan, source, config, str(folder)) for plan in plans]
    return commit_dataset(str(folder), results, config, source, growth)


def test_an_image_that_the_source_moves_to_its_test_is_not_trained_on(tmp_path: Path) -> None:
    """It goes and comes, in the other split under another key; the rest stays."""
    pictures = tuple(range(40))
    before = shard_plain(Plain(pictures=pictures, own_splits={"test": np.arange(30, 40)}), tmp_path / "one")
    after = shard_plain(Plain(pictures=pictures, own_splits={"test": np.arange(28, 38)}), tmp_path / "two", before)
    was, now = placed(before), placed(after)
    moved = {f"image {number}" for number in (28, 29, 38, 39)}
    assert {name for name in was if was[name] != now[name]} == moved
    assert {name for name, (split, _) in now.items() if split == "test"} == {f"image {n}" for n in range(28, 38)}
    assert sorted(now[name][1] for name in moved) == [40, 41, 42, 43]
    assert "came: 4 images, went: 4, changed: 0; " in grown_line(after)


def test_what_cannot_be_read_any_more_leaves_its_shard(tmp_path: Path) -> None:
    source = Plain(pictures=tuple(range(40)), unreadable=frozenset([3]))
    before = shard_plain(source, tmp_path / "one")
    assert "changed: 0; " in grown_line(shard_plain(source, tmp_path / "two", before))
    after = shard_plain(replace(source, unreadable=frozenset([3, 7])), tmp_path / "three", before)
    assert set(images(before)) - set(images(after)) == {"image 7"}
    assert (after.num_rejected, "changed: 1; " in grown_line(after)) == (2, True)


def test_arrays_grow_at_their_ends(tmp_path: Path) -> None:

    def arrays(train: int, test: int) -> str:
        def pixels(first: int, count: int) -> Any:
            return np.stack([decode_png(png(first + number))[..., 0] for number in range(count)])

        np.savez(
            tmp_path / "set.npz",
            x_train=pixels(0, train),
            y_train=np.arange(train) % 2,
            x_test=pixels(1000, test),
            y_test=np.arange(test) % 2,
        )
        return str(tmp_path / "set.npz")

    config = data_config(arrays(40, 20))
    before = shard(config, tmp_path / "one")
    arrays(50, 20)
    after, anew = shard(config, tmp_path / "two", before), shard(config, tmp_path / "anew")
    assert seen(after) == seen(anew)
    assert placed(before).items() <= placed(after).items()
    test = {decode_png(png(1000 + number)).tobytes() for number in range(20)}
    assert {pixels for pixels, _, split, _ in images(after).values() if split == "test"} == test
    assert read_index(after.uri).num_samples("train") == 45


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25])
def test_shares_hold_however_few_come_at_a_time(fraction: float) -> None:
    config = data_config("x", test_fraction=fraction, validation_fraction=fraction)
    counts = dict.fromkeys(SPLITS, 0)
    for first in range(100, 500):
        for plan in plan_shards(np.array([first]), config, {}, first_key=first):
            assert plan.keys.tolist() == [first]
            counts[plan.split] += 1
    assert counts["test"] == 400 * fraction
    assert abs(counts["validation"] - (400 - counts["test"]) * fraction) <= 1


# ---- other forms -------------------------------------------------------------------------------------------------------------


def test_parquet_grows_by_a_file_and_is_compared_row_by_row(tmp_path: Path) -> None:
    as_parquet(tmp_path / "tables", photos(0, 40))
    config = data_config(as_parquet(tmp_path / "tables", photos(40, 60)))
    before = shard(config, tmp_path / "one")
    as_parquet(tmp_path / "tables", photos(60, 70))
    after = shard(config, tmp_path / "two", before)
    assert {entry.sha256 for entry in before.shards} < {entry.sha256 for entry in after.shards}
    assert grown_line(after).startswith("came: 10 images, went: 0, changed: 0; ")
    assert seen(after) == seen(shard(config, tmp_path / "anew"))


def test_images_of_one_name_are_refused(tmp_path: Path) -> None:
    source = SameNames(pictures=tuple(range(9)))
    before = shard_plain(source, tmp_path / "one")
    with pytest.raises(InputError, match=r"several images of the name x.png; expected a name for each"):
        shard_plain(source, tmp_path / "two", before)


# ---- what cannot grow, and what is cut off -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 16}, r"data.image-size is 16 and was 8 when .*; expected --data.image-size 8 to grow"),
        ({"channels": 3}, r"data.channels is 3 and was 1"),
        ({"fit": "pad"}, r"data.fit is pad and was random_crop"),
        ({"seed": 5}, r"data.seed is 5 and was 0"),
        ({"max_image_pixels": 99}, r"data.max-image-pixels is 99 and was 64000000"),
    ],
)
def test_what_would_not_mix_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = as_folder(tmp_path / "raw", photos(0, 10))
    before = shard(data_config(source, fit="random_crop"), tmp_path / "one")
    with pytest.raises(InputError, match=message) as error:
        listed(data_config(source, **{"fit": "random_crop", **changes}), before)
    assert "\n" not in str(error.value)


def test_other_images_and_datasets_without_origins_are_refused(tmp_path: Path) -> None:
    source = as_folder(tmp_path / "raw", photos(0, 10))
    before = shard(data_config(source), tmp_path / "one")
    other = as_folder(tmp_path / "other", photos(20, 30))
    with pytest.raises(
        InputError, match=r"none of the images of .*/one is in .*/other under its name \('cat/021.png' is"
    ):
        listed(data_config(other), before)
    (tmp_path / "one" / ORIGINS_NAME).unlink()
    with pytest.raises(
        InputError, match=r"has no sources.parquet, .*: remove its index.parquet and shard the same images"
    ):
        listed(data_config(source), before)


def test_the_origins_say_of_each_image_what_it_was_and_may_be_made_anew(tmp_path: Path) -> None:
    source = as_folder(tmp_path / "raw", photos(0, 10) | {"cat/bad.png": b"\x89PNG rubbish"})
    config = data_config(source)
    index = shard(config, tmp_path / "one")
    rows = [row for table in each_origins(index.uri, ORIGIN_SCHEMA.names) for row in table.to_pylist()]
    assert sorted(row["key"] for row in rows) == list(range(11))
    assert len({row["hash"] for row in rows}) == 11
    for row in rows:
        path = Path(source, row["name"])
        data, bad = path.read_bytes(), row["name"] == "cat/bad.png"
        assert (row["size"], row["crc32"]) == (len(data), zlib.crc32(data))
        assert row["version"] == str(path.stat().st_mtime_ns)
        assert row["label"] == (0 if row["name"].startswith("cat") else 1)
        assert (row["hash"] is None, bool(row["reason"])) == (bad, bad)
    written = (tmp_path / "one" / ORIGINS_NAME).read_bytes()
    for name in ("index.parquet", ORIGINS_NAME):
        (tmp_path / "one" / name).unlink()
    again = shard(config, tmp_path / "one")
    assert again.digest == index.digest
    assert (tmp_path / "one" / ORIGINS_NAME).read_bytes() == written
    assert shard(config, tmp_path / "two", again).digest == index.digest


def test_a_seed_and_a_shard_s_size_may_change_for_what_is_new(tmp_path: Path) -> None:
    before = shard(data_config(as_folder(tmp_path / "raw", photos(0, 40))), tmp_path / "one")
    config = data_config(as_folder(tmp_path / "raw", photos(0, 60)), seed=3, samples_per_shard=5)
    after = shard(config, tmp_path / "two", before)
    assert {entry.sha256 for entry in before.shards} < {entry.sha256 for entry in after.shards}
    assert max(entry.num_samples for entry in set(after.shards) - set(before.shards)) == 5


def test_killed_in_the_middle_and_done_again(tmp_path: Path) -> None:
    config = data_config(as_folder(tmp_path / "raw", photos(0, 100)))
    before = shard(config, tmp_path / "one")
    as_folder(tmp_path / "raw", {name: data for name, data in photos(0, 130).items() if name != "dog/004.png"})
    whole = shard(config, tmp_path / "whole", before)
    planned = listed(config, before)
    for plan in planned.plans[::2]:
        write_shard(plan, planned.source, config, str(tmp_path / "half"))
    assert not (tmp_path / "half/index.parquet").exists()
    assert shard(config, tmp_path / "half", before).digest == whole.digest
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("half", "whole")]
    assert contents[0] == contents[1]
    assert inodes(before).keys() & inodes(whole).keys()


def test_a_disk_without_hard_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = data_config(as_folder(tmp_path / "raw", photos(0, 40)))
    before = shard(config, tmp_path / "one")
    as_folder(tmp_path / "raw", photos(0, 50))

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("ddpm_core.storage.local.os.link", refuse)
    after = shard(config, tmp_path / "two", before)
    shutil.rmtree(tmp_path / "one")
    assert set(seen(after)) == set(photos(0, 50))


def test_on_s3_the_server_copies_and_a_node_s_cache_fetches_only_what_is_new(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = f"s3://{bucket}"
    for name, data in photos(0, 40).items():
        storage.write_bytes(f"{bucket}/raw/{name}", data)
    config = data_config(f"{bucket}/raw")
    before = shard(config, f"{bucket}/one")
    for name, data in photos(40, 50).items():
        storage.write_bytes(f"{bucket}/raw/{name}", data)
    put: list[str] = []
    real_put = s3.write_bytes
    monkeypatch.setattr(s3, "write_bytes", lambda uri, data: put.append(uri.rpartition("/")[2]) or real_put(uri, data))
    after = shard(config, f"{bucket}/two", before)
    old, new = ({entry.name: entry for entry in index.shards} for index in (before, after))
    assert old.items() < new.items()
    assert {name for name in put if name.endswith(".tar")} == new.keys() - old.keys()
    assert set(seen(after)) == set(photos(0, 50))

    fetched: list[str] = []
    real = storage.download
    monkeypatch.setattr(storage, "download", lambda uri, path: fetched.append(uri) or real(uri, path))
    for index in (before, after):
        for entry in index.shards:
            uri = storage.join(index.uri, entry.name)
            os.close(open_copy(uri, sha256=entry.sha256, size_bytes=entry.size_bytes, folder=tmp_path / "copies"))
    assert fetched == [f"{bucket}/one/{name}" for name in old] + [
        f"{bucket}/two/{name}" for name in new if name not in old
    ]


def test_the_earlier_dataset_names_the_source(tmp_path: Path) -> None:
    config = data_config(as_folder(tmp_path / "raw", photos(0, 40)))
    before = shard(config, tmp_path / "one")
    other = shard(data_config(config.source, seed=1), tmp_path / "two")
    assert len({source_key(config), source_key(config, before), source_key(config, other)}) == 3


# ---- any history -------------------------------------------------------------------------------------------------------------

STEPS = st.lists(st.dictionaries(st.integers(0, 25), st.integers(0, 3), max_size=8), min_size=1, max_size=4)
"""In each step some of 26 names get other content: 0 for none (the image goes), else one of three pictures."""


@given(steps=STEPS, form=st.sampled_from([as_folder, as_tar, as_zip]))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_history_ends_where_sharding_anew_does(
    tmp_path_factory: pytest.TempPathFactory, steps: list[dict[int, int]], form: Any
) -> None:
    root = tmp_path_factory.mktemp("history")
    state = dict.fromkeys(range(14), 1)
    index: DatasetIndex | None = None
    keys: dict[str, tuple[str, int]] = {}
    for number, step in enumerate([{}, *steps]):
        state = {name: which for name, which in (state | step).items() if which}
        files = {f"{'abc'[name % 3]}/{name}.png": png(100 * name + which) for name, which in state.items()}
        config = data_config(form(root / "raw", files), samples_per_shard=4)
        if index is not None and not files.keys() & keys.keys():
            with pytest.raises(InputError, match="none of the images of"):
                listed(config, index)
            return
        index = shard(config, root / f"{number}", index)
        assert seen(index) == seen(shard(config, root / f"{number}-anew"))
        now = placed(index)
        assert {name: now[name] for name in now.keys() & keys.keys()} == {
            name: keys[name] for name in now.keys() & keys.keys()
        }
        assert all(
            key > max((old for _, old in keys.values()), default=-1)
            for name, (_, key) in now.items()
            if name not in keys
        )
        keys = now
