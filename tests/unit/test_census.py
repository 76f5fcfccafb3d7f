"""Nothing of a source is lost and nothing guessed: every file is an image or listed with its reason, in every form alike."""

import io
import json
import os
import pickle
import stat
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_files import chunk, encoded, exif, noise, with_chunks
from PIL import Image
from source_files import idx, png

from ddpm_core import storage
from ddpm_core.data.config import DataConfig
from ddpm_core.data.sharding.plan import plan_dataset
from ddpm_core.data.sharding.writer import commit_dataset, planned_census, write_shard
from ddpm_core.data.sources import LabelRule, LeftOut, Source, open_source
from ddpm_core.errors import InputError

pytestmark = pytest.mark.usefixtures("cache")


def as_folder(place: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return str(place)


def tar_of(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def as_tar(place: Path, files: dict[str, bytes]) -> str:
    place.write_bytes(tar_of(files))
    return str(place)


def as_zip(place: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(place, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(place)


def as_bucket(place: str, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        storage.write_bytes(f"{place}/{name}", data)
    return place


def made(form: str, files: dict[str, bytes], root: Path) -> str:
    write = {"folder": as_folder, "tar": as_tar, "zip": as_zip}[form]
    return write(root / f"images-{form}", files)


def names_of(source: Source) -> list[str]:
    return [source.name(index) for index in range(source.num_images)]


def labels_of(source: Source) -> dict[str, str | None]:
    """The class of each image by name."""
    raws = [source.read(index) for index in range(source.num_images)]
    return {raw.name: None if raw.label is None else source.class_names[raw.label] for raw in raws}


def reasons(source: Source) -> dict[str, str]:
    return {item.name: item.reason for item in source.listing.left_out}


TEN = {f"{number}.png": png(number) for number in range(10)}


# ---- names -------------------------------------------------------------------------------------------------------------


def test_a_name_with_stars_means_files_at_any_depth(tmp_path: Path) -> None:
    place = as_folder(tmp_path, {"1.png": png(1), "a/2.png": png(2), "b/c/3.png": png(3), "b/c/4.bmp": png(4)})
    assert names_of(open_source(f"{place}/*.png")) == ["1.png", "a/2.png", "b/c/3.png"]
    assert names_of(open_source(f"{place}/b/*")) == ["c/3.png", "c/4.bmp"]


@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
def test_the_order_is_that_of_the_names_bytes(form: str, tmp_path: Path) -> None:
    """Neither that of people nor of folders first; 0x80 is no UTF-8, and comes before any letter that is."""
    names = ["B.png", "a-b.png", "a.png", "a/10.png", "a/2.png", "a0.png", "\udc80.png", "é.png", "日.png", "🐈.png"]
    names = [name for name in names if form != "zip" or name != "\udc80.png"]  # which zipfile cannot write
    source = open_source(made(form, {name: png(number) for number, name in reversed(list(enumerate(names)))}, tmp_path))
    assert [source.read(number).data for number in range(len(names))] == [png(number) for number in range(len(names))]
    assert names_of(source) == [name.replace("\udc80", r"\udc80") for name in names]


# ---- archives ----------------------------------------------------------------------------------------------------------


def test_a_flipped_byte_in_a_header_of_a_tar_is_told_with_its_place(tmp_path: Path) -> None:
    data = bytearray(tar_of(TEN))
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        fifth = tar.getmembers()[4].offset
    for byte in (3, 105, 130, 150):  # in its name, mode, size, checksum
        damaged = bytearray(data)
        damaged[fifth + byte] ^= 4
        (tmp_path / "x.tar").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"x.tar is a damaged tar: the header at byte {fifth} cannot be read"):
            open_source(str(tmp_path / "x.tar"))


def test_every_cut_of_a_tar_is_refused(tmp_path: Path) -> None:
    data = tar_of(TEN)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        starts = [member.offset for member in tar]
        end = tar.getmembers()[-1].offset_data + 512
    place = tmp_path / "x.tar"
    cuts = {size: f"it ends at byte {size} without the blocks of zeros" for size in (*starts[1:], end)}
    cuts |= {start + 300: f"the header at byte {start} cannot be read" for start in starts[1:]}
    for start in starts:  # in what follows its header
        cuts |= dict.fromkeys((start + 512, start + 600), f"unexpected end of data, before byte {start + 1023};")
    for size, message in cuts.items():
        place.write_bytes(data[:size])
        with pytest.raises(ValueError, match=f"damaged tar: {message}"):
            open_source(str(place))
    place.write_bytes(data[: end + 512])  # one block of zeros is an end, as for tar itself
    assert open_source(str(place)).num_images == 10


def test_archives_joined_to_the_end_of_one_are_read(tmp_path: Path) -> None:
    for gap in (0, 512, 3 << 20):
        (tmp_path / "x.tar").write_bytes(tar_of(TEN) + bytes(gap) + tar_of({"late.png": png(70)}) + bytes(10_240))
        source = open_source(str(tmp_path / "x.tar"))
        assert names_of(source) == [*sorted(TEN), "late.png"]
        assert source.read(10).data == png(70)
    (tmp_path / "x.tar").write_bytes(tar_of(TEN) + b"rubbish" * 100)
    with pytest.raises(ValueError, match="damaged tar: the header at byte 20480 cannot be read"):
        open_source(str(tmp_path / "x.tar"))


def test_links_in_a_tar_are_images_as_they_are_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    as_folder(folder, {f"a/{number}.png": png(number) for number in range(4)})
    os.link(folder / "a/0.png", folder / "hard 1.png")
    os.link(folder / "a/1.png", folder / "hard 2.png")
    (folder / "soft.png").symlink_to("a/2.png")
    (folder / "b").symlink_to("a")
    (folder / "lost.png").symlink_to("a/9.png")
    (folder / "round.png").symlink_to("round.png")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(folder, arcname="")
    here, there = open_source(str(folder)), open_source(str(tmp_path / "x.tar"))
    assert names_of(here) == names_of(there)
    assert here.num_images == 11
    assert [here.read(index).data for index in range(11)] == [there.read(index).data for index in range(11)]
    expected = {"lost.png": "dangling link", "round.png": "link that leads in a circle"}
    assert reasons(here) == reasons(there) == expected


def test_a_zip_from_windows_and_from_a_mac(tmp_path: Path) -> None:
    files = {"photos\\cat\\1.png": png(1), "photos\\dog\\2.png": png(2), "__MACOSX\\photos\\cat\\._1.png": b"x"}
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.filename = name  # as Windows' own tools write it
            archive.writestr(info, data)
    source = open_source(str(tmp_path / "x.zip"))
    assert labels_of(source) == {"photos/cat/1.png": "cat", "photos/dog/2.png": "dog"}
    assert reasons(source) == {"__MACOSX/photos/cat/._1.png": "hidden, or left by macOS"}


def test_links_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/1.png", png(1))
        for name, target in (("a/soft.png", "1.png"), ("lost.png", "../../etc/passwd")):
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
    source = open_source(str(tmp_path / "x.zip"))
    assert names_of(source) == ["a/1.png", "a/soft.png"]
    assert source.read(1).data == png(1)
    assert reasons(source) == {"lost.png": "dangling link"}


def test_a_zip_that_is_encrypted_or_two_zips_in_one(tmp_path: Path) -> None:
    place = tmp_path / "x.zip"
    as_zip(place, TEN)
    data = bytearray(place.read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 8] |= 1  # the flag of encryption of the last member
    (tmp_path / "locked.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"locked.zip is encrypted \(as 9.png is\)"):
        open_source(str(tmp_path / "locked.zip"))
    (tmp_path / "two.zip").write_bytes(place.read_bytes() * 2)
    with pytest.raises(ValueError, match="two zips joined"):
        open_source(str(tmp_path / "two.zip"))


def test_names_that_are_no_utf_8_or_come_twice(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        place = tmp_path / f"{form}.tar"
        place.write_bytes(tar_of({name: png(1), "a.png": png(2)}, form))
        source = open_source(str(place))
        assert names_of(source) == ["a.png", "caf\\udce9.png"]
        assert source.read(1).data == png(1)
    as_folder(tmp_path / "folder", {name: png(1), "a.png": png(2)})
    assert names_of(open_source(str(tmp_path / "folder"))) == ["a.png", "caf\\udce9.png"]
    end = tar_of({})
    first = tar_of({"a.png": png(1), "b.png": png(2)})
    (tmp_path / "twice.tar").write_bytes(first[: 4 * 512] + tar_of({"a.png": png(3)})[:1024] + end)
    source = open_source(str(tmp_path / "twice.tar"))
    assert [source.read(index).data for index in range(2)] == [png(3), png(2)]  # the last one counts, as for tar
    assert reasons(source) == {"a.png": "duplicate name"}
    assert source.listing.left_out[0].lost
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        for name, seed in (("a.png", 1), ("b.png", 2), ("./a.png", 3)):
            archive.writestr(name, png(seed))
    source = open_source(str(tmp_path / "twice.zip"))
    assert [source.read(index).data for index in range(2)] == [png(3), png(2)]
    assert reasons(source) == {"a.png": "duplicate name"}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_form_of_tar(form: int, tmp_path: Path) -> None:
    deep = "/".join(["folder" * 5] * (4 if form == tarfile.USTAR_FORMAT else 12))
    files = {f"{deep}/{number}.png": png(number) for number in range(3)}
    (tmp_path / "x.tar").write_bytes(tar_of(files, form))
    assert names_of(open_source(str(tmp_path / "x.tar"))) == list(files)


def test_a_sparse_member_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind in (("a.png", tarfile.REGTYPE), ("holes.png", tarfile.GNUTYPE_SPARSE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            tar.addfile(member)
    assert reasons(open_source(str(tmp_path / "x.tar"))) == {"holes.png": "sparse file"}
    with tarfile.open(tmp_path / "y.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
        old, new = tarfile.TarInfo("holes.png"), tarfile.TarInfo("GNUSparseFile.0/more.png")
        old.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "512"}
        tar.addfile(old)
        new.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "more.png"}
        new.size = 512
        tar.addfile(new, io.BytesIO(b"0\n".ljust(512, b"\0")))
    assert reasons(open_source(str(tmp_path / "y.tar"))) == dict.fromkeys(("holes.png", "more.png"), "sparse file")


def test_a_packed_tar_of_every_kind(tmp_path: Path) -> None:
    plain = tar_of(TEN)
    with pa.output_stream(str(tmp_path / "x.tar.zst"), compression="zstd") as out:
        out.write(plain)
    source = open_source(str(tmp_path / "x.tar.zst"))
    assert [source.read(index).data for index in range(10)] == list(TEN.values())
    cut = (tmp_path / "x.tar.zst").read_bytes()[:-40]
    (tmp_path / "cut.tar.zst").write_bytes(cut)
    with pytest.raises(ValueError, match="damaged"):
        open_source(str(tmp_path / "cut.tar.zst"))


# ---- shards ------------------------------------------------------------------------------------------------------------


def test_webdataset_shards_with_labels_beside_the_images(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("val", 4)):
        files: dict[str, bytes] = {}
        for number in range(first, first + 4):
            files |= {f"{number:03d}.png": png(number), f"{number:03d}.cls": str(number % 3).encode()}
            files[f"{number:03d}.txt"] = b"a caption"
        as_tar(tmp_path / f"set-{split}-000.tar", files)
    source = open_source(str(tmp_path))
    assert source.class_names == ("0", "1", "2")
    assert labels_of(source) == {f"set-{'train' if n < 4 else 'val'}-000.tar/{n:03d}.png": str(n % 3) for n in range(8)}
    assert source.own_splits["validation"].tolist() == [4, 5, 6, 7]
    assert source.listing.num_describing == 8
    assert set(reasons(source).values()) == {"no image by its name"}
    assert "8 texts beside the images (.txt) are not used" in source.listing.notes
    one = open_source(str(tmp_path / "set-val-000.tar"))
    assert labels_of(one) == {f"{n:03d}.png": str(n % 3) for n in range(4, 8)}
    assert (one.own_splits, one.listing.num_describing) == ({}, 4)


def test_labels_of_json_beside_the_images(tmp_path: Path) -> None:
    files = {f"{n}.png": png(n) for n in range(3)}
    files |= {f"{n}.json": json.dumps({"label": name, "w": 8}).encode() for n, name in enumerate(("owl", "cat", "owl"))}
    for form in ("folder", "tar", "zip"):
        source = open_source(made(form, files, tmp_path))
        assert labels_of(source) == {"0.png": "owl", "1.png": "cat", "2.png": "owl"}
        assert (source.listing.num_describing, source.listing.left_out) == (3, ())
    as_tar(tmp_path / "none.tar", {"0.png": png(0), "0.json": b'{"caption": "an owl"}'})
    source = open_source(str(tmp_path / "none.tar"))
    assert source.class_names == ()
    assert "1 files beside the images (.json) have no label (label, labels, class)" in source.listing.notes


def test_our_own_dataset_is_a_source(tmp_path: Path) -> None:
    """With its classes in their order and its splits, though its tars say only numbers."""
    names = [f"{split}/{name}/{n}.png" for split in ("train", "test") for name in ("10", "9") for n in range(6)]
    first = open_source(as_folder(tmp_path / "raw", {name: png(n) for n, name in enumerate(names)}))
    index = shard(
        first, tmp_path / "set", DataConfig(image_size=8, channels=1, samples_per_shard=5, class_names=("10", "9"))
    )
    again = open_source(index)
    assert again.class_names == first.class_names == ("9", "10")
    assert again.num_images == 24
    pixels = {first.read(n).data: labels_of(first)[first.name(n)] for n in range(24)}
    assert {again.read(n).data: labels_of(again)[again.name(n)] for n in range(24)} == pixels
    assert len(again.own_splits["test"]) == 12
    (tmp_path / "set/shard-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"lacks shard-000001.tar of its \d+ shards"):
        open_source(index)


# ---- labels ------------------------------------------------------------------------------------------------------------


def shard(source: Source, folder: Path, config: DataConfig) -> str:
    plans = plan_dataset(source.num_images, config, source.own_splits)
    results = [write_shard(plan, source, config, str(folder)) for plan in plans]
    commit_dataset(str(folder), results, config, source)
    return str(folder)


def test_classes_are_in_natural_order_or_in_one_that_is_given(tmp_path: Path) -> None:
    names = ("10", "2", "1", "b2", "b10", "B")
    place = as_folder(tmp_path, {f"{name}/x.png": png(n) for n, name in enumerate(names)})
    assert open_source(place).class_names == ("1", "2", "10", "B", "b2", "b10")
    given = ("b2", "10", "2", "1", "B", "b10")
    source = open_source(place, LabelRule(class_names=given))
    assert source.class_names == given
    assert labels_of(source) == {f"{name}/x.png": name for name in names}
    with pytest.raises(
        ValueError, match=r"class-names are a, b; expected the 6 classes of the source in their order: 1, 2"
    ):
        open_source(place, LabelRule(class_names=("a", "b")))


def test_names_are_given_for_numbers(tmp_path: Path) -> None:
    files = {f"{n}.png": png(n) for n in range(3)} | {f"{n}.cls": str(2 - n).encode() for n in range(3)}
    place = as_folder(tmp_path, files)
    for names in (("cat", "dog", "owl"), ("cat", "dog", "owl", "ape")):  # no image of the last one
        source = open_source(place, LabelRule(class_names=names))
        assert source.class_names == names
        assert labels_of(source) == {"0.png": "owl", "1.png": "dog", "2.png": "cat"}
    with pytest.raises(ValueError, match="class-names are cat, dog; expected the 3 classes"):
        open_source(place, LabelRule(class_names=("cat", "dog")))
    with pytest.raises(ValueError, match="class-names names 'cat' twice"):
        open_source(place, LabelRule(class_names=("cat", "cat", "owl")))


def test_the_folder_that_tells_images_apart_names_the_class(tmp_path: Path) -> None:
    files = {
        f"{split}/{wnid}/images/x.png": png(n)
        for n, (split, wnid) in enumerate([("train", "n01"), ("train", "n02"), ("val", "n01")])
    }
    source = open_source(as_folder(tmp_path / "tiny", files))
    assert list(labels_of(source).values()) == ["n01", "n02", "n01"]
    assert source.listing.labels == "the folder 2 above an image (n01/images/x.png is of class n01)"
    one = open_source(as_folder(tmp_path / "one", {f"photos/{n}.png": png(n) for n in range(2)}))
    assert (one.class_names, one.listing.labels) == ((), "none (all images lie in one folder)")
    both = as_folder(
        tmp_path / "both",
        {f"{a}/{year}/x.png": png(n) for n, (a, year) in enumerate([("cat", 1), ("dog", 1), ("dog", 2)])},
    )
    source = open_source(both)
    assert source.class_names == ("1", "2")
    assert any("--data.class-level 2" in note for note in source.listing.notes)
    assert open_source(both, LabelRule(level=2)).class_names == ("cat", "dog")
    with pytest.raises(ValueError, match="class-level is 3; expected 1 to 2"):
        open_source(both, LabelRule(level=3))


def parquet_of(columns: dict[str, list[object]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


CSV = b"path,label\n0.png,owl\n1.png,cat\n2.png,owl\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", CSV),
        ("l.csv", CSV.replace(b"path,label\n", b"")),
        ("l.csv", CSV.replace(b".png", b"").replace(b"path", b"id")),
        ("l.csv", CSV.replace(b"\n", b"\r\n")),
        ("l.tsv", CSV.replace(b",", b"\t")),
        (
            "l.csv",
            b"width,class,file_name\n"
            + b"".join(b"8,%s,%d.png\n" % (c, n) for n, c in enumerate((b"owl", b"cat", b"owl"))),
        ),
        ("l.json", json.dumps({"0.png": "owl", "1.png": "cat", "2.png": "owl"}).encode()),
        ("l.json", json.dumps({"labels": [["0.png", "owl"], ["1.png", "cat"], ["2.png", "owl"]]}).encode()),
        (
            "l.jsonl",
            b"".join(b'{"file": "./%d.png", "label": "%s"}\n' % (n, c) for n, c in enumerate((b"owl", b"cat", b"owl"))),
        ),
        ("l.parquet", parquet_of({"path": ["0.png", "1.png", "2.png"], "label": ["owl", "cat", "owl"]})),
        ("l.csv", CSV.replace(b"\n0", b"\nelsewhere/0").replace(b"path", b"image")),
    ],
)
def test_a_file_of_labels(name: str, content: bytes, tmp_path: Path) -> None:
    place = as_folder(tmp_path / "a", {f"x/{n}.png": png(n) for n in range(3)})
    (tmp_path / name).write_bytes(content)
    source = open_source(place, LabelRule(file=str(tmp_path / name)))
    assert labels_of(source) == {"x/0.png": "owl", "x/1.png": "cat", "x/2.png": "owl"}
    assert source.class_names == ("cat", "owl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "has the columns a, b; expected one of paths: file_name, path"),
        (b"", "holds no rows"),
        (b"path,label\n0.png,owl\n0.png,cat\n", "says of 0.png both 'owl' and 'cat'"),
        (b"path,label\nx.png,owl\n", "names none of the images: it has x.png, the source 0.png"),
        (b"path,label\n0.png\n", "cannot be read as a file of labels"),
        (b"\xff\xfe,\n", "cannot be read as a file of labels"),
        (b"path,label\n0.png,1099511627776\n", "has the label 1099511627776; expected numbers of classes"),
    ],
)
def test_a_file_of_labels_that_is_none(content: bytes, message: str, tmp_path: Path) -> None:
    place = as_folder(tmp_path / "a", {"0.png": png(0), "1.png": png(1)})
    (tmp_path / "l.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        open_source(place, LabelRule(file=str(tmp_path / "l.csv")))
    assert "\n" not in str(error.value)


def test_paths_of_labels_are_compared_whole_or_not_at_all_where_file_names_come_twice(tmp_path: Path) -> None:
    place = as_folder(tmp_path / "a", {f"{folder}/{n}.png": png(n) for folder in "xy" for n in range(2)})
    rule = LabelRule(file=str(tmp_path / "l.csv"))
    (tmp_path / "l.csv").write_text("path,label\nx/0.png,cat\ny/0.png,owl\ny/1.png,cat\nz/1.png,owl\n")
    source = open_source(place, rule)
    assert labels_of(source) == {"x/0.png": "cat", "x/1.png": None, "y/0.png": "owl", "y/1.png": "cat"}
    assert any("names 1 images that are not there (z/1.png)" in note for note in source.listing.notes)
    (tmp_path / "l.csv").write_text("path,label\n0.png,cat\n1.png,owl\n")
    with pytest.raises(ValueError, match="names none of the images"):
        open_source(place, rule)


@pytest.mark.parametrize("label", [99_999, 100_000])
@pytest.mark.parametrize("form", ["csv", "cls", "json", "npz", "parquet"])
def test_a_number_of_100_000_is_no_class_s(form: str, label: int, tmp_path: Path) -> None:
    rule, place = LabelRule(), as_folder(tmp_path / "a", {f"{n}.png": png(n) for n in range(2)})
    if form == "csv":
        (tmp_path / "l.csv").write_text(f"path,label\n0.png,{label}\n1.png,0\n")
        rule = LabelRule(file=str(tmp_path / "l.csv"))
    elif form == "npz":
        place = str(tmp_path / "x.npz")
        np.savez(place, images=noise(2, 4, 4), labels=np.array([label, 0]))
    elif form == "parquet":
        place = str(tmp_path / "x.parquet")
        pq.write_table(pa.table({"image": [png(0), png(1)], "label": [label, 0]}), place)
    else:
        for n, value in enumerate((label, 0)):
            (tmp_path / f"a/{n}.{form}").write_text(str(value) if form == "cls" else json.dumps({"label": value}))
    if label < 100_000:
        source = open_source(place, rule)
        assert ([source.read(n).label for n in range(2)], len(source.class_names)) == ([label, 0], 100_000)
    else:
        with pytest.raises(ValueError, match="has the label 100000; expected numbers of classes, 0 to 99999"):
            open_source(place, rule)


@pytest.mark.parametrize("form", ["json", "l.jsonl", "l.json"])
def test_several_labels_of_one_image_are_refused(form: str, tmp_path: Path) -> None:
    place = as_folder(tmp_path / "a", {"0.png": png(0), "1.png": png(1)})
    (tmp_path / "a/0.json").write_text('{"label": [1, 2]}')
    rule = LabelRule()
    if form != "json":
        rule = LabelRule(file=str(tmp_path / form))
        Path(rule.file).write_text('{"path": "0.png", "label": [1, 2]}' if form == "l.jsonl" else '{"0.png": [1, 2]}')
    with pytest.raises(ValueError, match=r"the label '\[1, 2\]' is neither a name nor a number") as error:
        open_source(place, rule)
    assert "\n" not in str(error.value)


def test_a_file_of_labels_in_the_folder_describes_it(tmp_path: Path) -> None:
    place = as_folder(tmp_path, {f"{n}.png": png(n) for n in range(3)} | {"l.csv": CSV, "other.csv": CSV})
    source = open_source(place, LabelRule(file=f"{place}/l.csv"))
    assert source.listing.num_describing == 1
    assert reasons(source) == {"other.csv": "no image by its name"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", b"file_name,label,width,text\n0.png,1,8,a\n1.png,0,8,b\n"),
        (
            "metadata.jsonl",
            b"".join(b'{"file_name": "%d.png", "label": %d, "width": 8, "text": "a"}\n' % (n, 1 - n) for n in range(2)),
        ),
        (
            "metadata.parquet",
            parquet_of({"file_name": ["0.png", "1.png"], "label": [1, 0], "width": [8, 8], "text": ["a", "b"]}),
        ),
    ],
)
def test_each_form_of_hugging_faces_metadata(name: str, content: bytes, tmp_path: Path) -> None:
    source = open_source(as_folder(tmp_path, {"0.png": png(0), "1.png": png(1), name: content}))
    assert labels_of(source) == {"0.png": "1", "1.png": "0"}
    assert source.listing.notes == (f"not used of {name}: width, text",)
    assert (source.listing.num_describing, source.listing.left_out) == (1, ())


def test_hugging_faces_metadata_beside_images(tmp_path: Path) -> None:
    files = {f"{split}/{n}.png": png(n) for split in ("train", "test") for n in range(3)}
    files["train/metadata.csv"] = b"file_name,label,text\n0.png,4,a\n1.png,0,b\n2.png,4,c\nlost.png,1,d\n"
    files["test/metadata.jsonl"] = b'{"file_name": "0.png", "label": 1}\n{"file_name": "2.png", "label": 2}\n'
    source = open_source(as_folder(tmp_path, files))
    found = labels_of(source)
    assert [found[f"train/{n}.png"] for n in range(3)] == ["4", "0", "4"]
    assert [found[f"test/{n}.png"] for n in range(3)] == ["1", None, "2"]
    assert len(source.own_splits["test"]) == 3
    notes = " | ".join(source.listing.notes)
    assert "names 1 images that are not there (lost.png)" in notes
    assert "not used of train/metadata.csv: text" in notes
    assert "1 of 6 images have no label" in notes
    assert open_source(str(tmp_path), LabelRule(file="none")).class_names == ()


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([2, 0, None]), ["2", "0", None]),
        (pa.array(["b10", "b2", None]), ["b10", "b2", None]),
        (pa.array(["owl", "cat", None]).dictionary_encode(), ["owl", "cat", None]),
        (pa.array([1, 0, 0]).dictionary_encode(), ["1", "0", "0"]),
        (pa.array([[2], [0], []]), ["2", "0", None]),
        (pa.array([["owl"], None, ["cat"]]), ["owl", None, "cat"]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array([2.0, 0.0, float("nan")]), ["2", "0", None]),
        (pa.array([2, -1, 0], pa.int8()), ["2", None, "0"]),
        (pa.array(["owl", "cat", None], pa.string_view()), ["owl", "cat", None]),
        (pa.nulls(3), [None, None, None]),
    ],
    ids=[
        "numbers",
        "names",
        "dictionary",
        "number-dictionary",
        "lists",
        "name-lists",
        "booleans",
        "floats",
        "minus-one",
        "views",
        "nulls",
    ],
)
def test_labels_of_parquet(column: pa.Array, expected: list[str | None], tmp_path: Path) -> None:
    table = pa.table({"image": [png(n) for n in range(3)], "label": column})
    for metadata in (
        {},
        {b"huggingface": b"null"},
        {b"huggingface": b'{"info": {"features": {"label": null}}}'},
        {b"huggingface": b"{"},
    ):
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "x.parquet")
        assert list(labels_of(open_source(str(tmp_path / "x.parquet"))).values()) == expected


@pytest.mark.parametrize("name", ["label", "labels", "class"])
def test_names_of_the_column_of_labels(name: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(0), png(1)], name: ["owl", "cat"]}), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert list(labels_of(source).values()) == ["owl", "cat"]
    assert source.listing.labels == f"the column {name}"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([2**40, 0]), "has the label 1099511627776; expected numbers of classes, 0 to 99999"),
        (pa.array([[1, 2], [0]]), "label in .*x.parquet has 2 labels for one image"),
        (pa.array([0.5, 1.0]), "labels that are no whole numbers"),
    ],
)
def test_labels_of_parquet_that_are_none(column: pa.Array, message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(0), png(1)], "label": column}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / "x.parquet"))
    assert open_source(str(tmp_path / "x.parquet"), LabelRule(file="none")).class_names == ()


def test_a_column_that_cannot_be_a_label_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(0)], "label": [{"x": 1}], "caption": ["c"]}), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"))
    assert source.class_names == ()
    assert source.listing.notes == ("columns that are not used: label (struct<x: int64>), caption (string)",)


def test_a_parquet_of_paths_says_so(tmp_path: Path) -> None:
    pq.write_table(
        pa.table(
            {"image": [{"bytes": None, "path": "/home/me/1.png"}], "label": [0]},
            schema=pa.schema(
                [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())]
            ),
        ),
        tmp_path / "x.parquet",
    )
    with pytest.raises(ValueError, match=r"holds the paths of images \(as /home/me/1.png\) and not the images"):
        open_source(str(tmp_path / "x.parquet"))


# ---- one set, and only one ------------------------------------------------------------------------------------------------


def test_two_sets_in_one_folder_are_refused_with_the_choice(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(n) for n in range(5)]}), tmp_path / "x.parquet")
    as_folder(tmp_path, {"preview 1.png": png(70), "preview 2.png": png(71)})
    with pytest.raises(
        ValueError,
        match=r"holds several sets: parquet \(x.parquet\); images \(preview 1.png, preview 2.png\); name the one",
    ):
        open_source(str(tmp_path))
    source = open_source(f"{tmp_path}/*.parquet")
    assert source.num_images == 5
    assert open_source(f"{tmp_path}/*.png").num_images == 2


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x.tar", "x.zip", "data_batch_1", "train-images-idx3-ubyte"])
def test_two_sets_of_any_kind_are_refused_and_the_choice_that_is_named_works(name: str, tmp_path: Path) -> None:
    place = as_folder(tmp_path, {"preview 1.png": png(70)})
    pixels = noise(3, 8, 8)
    if name.startswith("x.np"):
        (np.savez if name == "x.npz" else np.save)(tmp_path / name, pixels)
    elif name.startswith("x."):
        (as_tar if name == "x.tar" else as_zip)(tmp_path / name, {f"{n}.png": png(n) for n in range(3)})
    else:
        batch = pickle.dumps({b"data": noise(3, 3072), b"labels": [1, 2, 3]}, 3)
        (tmp_path / name).write_bytes(batch if name == "data_batch_1" else idx(pixels))
    with pytest.raises(ValueError, match=r"holds several sets: .*images \(preview 1.png\); name the one") as refused:
        open_source(place)
    assert open_source(str(refused.value).split("'")[-2]).num_images == 3


def test_several_sets_of_idx_files(tmp_path: Path) -> None:
    for number, name in enumerate(("emnist-letters", "emnist-digits")):
        for split in ("train", "test"):
            (tmp_path / f"{name}-{split}-images-idx3-ubyte").write_bytes(idx(noise(number + 2, 8, 8, seed=number)))
            (tmp_path / f"{name}-{split}-labels-idx1-ubyte").write_bytes(idx(np.arange(number + 2, dtype=np.uint8)))
    with pytest.raises(
        ValueError, match=r"several sets of idx files: emnist-digits, emnist-letters; .*/emnist-letters-\*'"
    ):
        open_source(str(tmp_path))
    source = open_source(f"{tmp_path}/emnist-digits-*")
    assert source.num_images == 6
    assert [source.read(n).label for n in range(6)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("meant", "others", "choice"),
    [
        (["MNIST/raw/train-", "MNIST/raw/t10k-"], ["FashionMNIST/raw/train-"], "MNIST/raw"),
        (["raw/e_letters_train_", "raw/e_letters_test_"], ["raw/a-"], r"raw/e_letters_\*"),
        (["sets/train/b-", "sets/test/b-"], ["a/train/b-"], "sets"),
        (["train/Some.", "test/Some."], ["train/Other."], r"Some.images-idx3-\*"),
        (["train.some.", "test.some."], ["train.other."], "test.some.images-idx3-ubyte"),
    ],
)
def test_what_a_refusal_of_two_sets_names_is_one_of_them(
    meant: list[str], others: list[str], choice: str, tmp_path: Path
) -> None:
    for number, name in enumerate([*meant, *others]):
        as_folder(tmp_path, {f"{name}images-idx3-ubyte": idx(noise(3, 8, 8, seed=number))})
    with pytest.raises(ValueError, match=rf"name the one that is meant, as --data.source '.*/{choice}'$") as refused:
        open_source(str(tmp_path))
    source = open_source(str(refused.value).split("'")[1])
    assert source.num_images == (3 if choice.endswith("ubyte") else 6)


def test_folders_of_idx_files_are_splits(tmp_path: Path) -> None:
    for number, split in enumerate(("test", "train")):
        images, labels = idx(noise(number + 2, 8, 8, seed=number)), idx(np.arange(number + 2, dtype=np.uint8))
        as_folder(tmp_path, {f"{split}/images-idx3-ubyte": images, f"{split}/labels-idx1-ubyte": labels})
    source = open_source(str(tmp_path))
    assert [source.read(n).label for n in range(5)] == [0, 1, 2, 0, 1]
    assert len({source.name(n) for n in range(5)}) == 5
    assert {split: places.tolist() for split, places in source.own_splits.items()} == {"test": [3, 4]}


def test_idx_files_packed_and_unpacked_count_once(tmp_path: Path) -> None:
    import gzip

    data = idx(noise(3, 8, 8))
    as_folder(
        tmp_path,
        {"train-images-idx3-ubyte": data, "train-images-idx3-ubyte.gz": gzip.compress(data), "README": b"hello"},
    )
    source = open_source(str(tmp_path))
    assert source.num_images == 3
    assert reasons(source) == {"README": "no image by its content"}


def test_npy_and_arrays_beside_others(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", noise(4, 6, 5, 3))
    source = open_source(str(tmp_path / "x.npy"))
    np.testing.assert_array_equal(source.read(3).data, noise(4, 6, 5, 3)[3])
    assert open_source(str(tmp_path)).num_images == 4
    np.savez(tmp_path / "y.npz", images=noise(4, 6, 5), ids=np.arange(4))
    assert open_source(str(tmp_path / "y.npz")).listing.notes == ("arrays that are not used: ids",)
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"cut\.npy is damaged and cannot be read as numpy's \.npy"):
        open_source(str(tmp_path / "cut.npy"))
    np.save(tmp_path / "objects.npy", np.array([{}, None], dtype=object))
    with pytest.raises(ValueError, match="holds Python objects"):
        open_source(str(tmp_path / "objects.npy"))


# ---- the census ----------------------------------------------------------------------------------------------------------


def test_every_file_is_an_image_or_listed(tmp_path: Path) -> None:
    files = {
        "cat/1.png": png(1),
        "dog/2": png(2),
        "dog/3.xyz": png(3),
        "README": b"text",
        "notes.json": b"{}",
        "Thumbs.db": b"x",
        "cat/.DS_Store": b"x",
        "cat/bad.png": b"no",
        "dog/twin.png": png(1),
        "cat/clip.mp4": b"x",
    }
    place = as_folder(tmp_path / "raw", files)
    (tmp_path / "raw/lost.jpg").symlink_to("nowhere")
    source = open_source(place)
    config = DataConfig(image_size=8, channels=1, max_rejected_fraction=0.5, validation_fraction=0.0)
    planned = planned_census(source, plan_dataset(source.num_images, config), config)
    assert planned.num_found == len(files) + 1
    assert planned.lines()[0].startswith(
        "5 images of 11 files; left out: 1 dangling link; files that are something else: 3 no image by its name"
    )
    said = json.loads(Path(shard(source, tmp_path / "out", config), "census.json").read_bytes())
    assert (said["num_found"], said["num_used"], said["num_rejected"]) == (11, 4, 2)
    assert {item["name"]: item["reason"][:13] for item in said["rejected"]} == {
        "cat/bad.png": "not an image,",
        "lost.jpg": "dangling link",
    }
    assert Counter(item["reason"] for item in said["something_else"]) == {
        "no image by its name": 3,
        "no image by its content": 1,
        "hidden, or left by macOS": 1,
    }
    assert said["classes"] == {"cat": 1, "dog": 3}
    assert said["num_duplicates"] == 1
    assert sum(said["splits"].values()) == 4
    assert (tmp_path / "out/contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_twins_are_told_though_each_is_cropped_elsewhere(tmp_path: Path) -> None:
    wide = encoded(Image.fromarray(noise(8, 64)), "PNG")
    place = as_folder(tmp_path / "raw", {"a.png": wide, "b.png": wide, "c.png": png(1)})
    config = DataConfig(image_size=8, channels=1, fit="random_crop")
    said = json.loads(Path(shard(open_source(place), tmp_path / "out", config), "census.json").read_bytes())
    assert said["num_duplicates"] == 1


def test_what_is_left_out_is_counted_by_kind_and_what_was_done_is_told(tmp_path: Path) -> None:
    deep, turned = (encoded(Image.fromarray(pixels), "PNG") for pixels in (np.full((8, 8), 257, "u2"), noise(8, 8)))
    frames = [Image.fromarray(noise(8, 8, seed=seed)) for seed in (5, 6)]
    files = {
        "1.png": png(1),
        "2.png": png(2),
        "bad.png": png(3)[:60],
        "deep.png": deep,
        "empty.png": b"",
        "frames.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "large.png": encoded(Image.fromarray(noise(9, 8)), "PNG"),
        "large2.png": encoded(Image.fromarray(noise(8, 9)), "PNG"),
        "turned.png": with_chunks(turned, chunk(b"eXIf", exif(6))),
        "words.png": b"hello",
    }
    place = as_folder(tmp_path / "raw", files)
    (tmp_path / "raw/lost.png").symlink_to("nowhere")
    config = DataConfig(
        image_size=8,
        channels=1,
        max_image_pixels=64,
        max_rejected_fraction=0.9,
        test_fraction=0.0,
        validation_fraction=0.0,
    )
    said = json.loads(Path(shard(open_source(place), tmp_path / "out", config), "census.json").read_bytes())
    assert said["said"] == [
        "5 images of 11 files; left out: 2 absurdly large, 1 undecodable, 1 empty, 1 no image by content, 1 dangling link; "
        "no exact duplicates",
        "classes: none (all images lie in one folder)",
        "splits: train 5, validation 0, test 0; from the source: none of its own",
        "left out: bad.png (cannot be decoded: image file is truncated)",
        "left out: empty.png (empty file)",
        "left out: large.png (absurdly large: 8 x 9 pixels, more than max_image_pixels = 64)",
        "left out: 3 more, named in census.json",
        "1 image: 16 bits a channel scaled to 8",
        "1 image: first of several frames taken",
        "1 image: turned as its EXIF says",
    ]
    assert said["remarks"] == {line.removeprefix("1 image: "): 1 for line in said["said"][7:]}


def test_a_folder_that_cannot_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = as_folder(tmp_path, {"1.png": png(1), "2.png": png(2), "shut/3.png": png(3)})
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "shut":  # root may read whatever its mode is
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_source(place)
    assert source.listing.left_out == (LeftOut(name="shut", reason="unreadable folder: Permission denied"),)
    assert planned_census(source, (), DataConfig()).num_rejected == 1


def test_more_than_a_hundredth_left_out_is_an_error_and_something_else_is_none(tmp_path: Path) -> None:
    others = {f"{n}.txt": b"text" for n in range(50)}
    place = as_folder(tmp_path / "raw", {f"{n}.png": png(n) for n in range(99)} | others)
    config = DataConfig(image_size=8, channels=1)
    (tmp_path / "raw/lost 1.png").symlink_to("nowhere")
    said = json.loads(Path(shard(open_source(place), tmp_path / "one", config), "census.json").read_bytes())
    assert (said["num_used"], said["num_rejected"], len(said["something_else"])) == (99, 1, 50)
    (tmp_path / "raw/lost 2.png").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"2 of 101 images \(1.98%\) cannot be used .*--data.max-rejected-fraction"):
        shard(open_source(place), tmp_path / "two", config)


def test_duplicates_are_counted_and_those_in_two_splits_named(tmp_path: Path) -> None:
    files = {f"train/{n}.png": png(n) for n in range(5)} | {f"test/{n}.png": png(n + 3) for n in range(4)}
    files["train/again.png"] = png(0)
    source = open_source(as_folder(tmp_path / "raw", files))
    said = json.loads(
        Path(shard(source, tmp_path / "out", DataConfig(image_size=8, channels=1)), "census.json").read_bytes()
    )
    assert (said["num_duplicates"], said["num_duplicates_across_splits"]) == (3, 2)
    pairs = {tuple(sorted(item["names"])) for item in said["duplicates_across_splits"]}
    assert pairs == {("test/0.png", "train/3.png"), ("test/1.png", "train/4.png")}


NAMES = st.sampled_from(["a", "b1", "é", "train", "images", "x.y", ".h", "__MACOSX"])
SUFFIXES = st.sampled_from([".png", ".PNG", ".txt", ".json", ".cls", "", ".xyz"])


@given(
    st.dictionaries(
        st.builds(
            lambda parts, stem, suffix: "/".join([*parts, stem + suffix]),
            st.lists(NAMES, max_size=2),
            st.sampled_from("pqrs"),
            SUFFIXES,
        ),
        st.one_of(st.integers(0, 3).map(png), st.sampled_from([b"", b"3", b"{}", b"\x89PNG damaged"])),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_census_adds_up_in_every_form_and_gives_one_digest(
    tmp_path_factory: pytest.TempPathFactory, bucket: str, files: dict[str, bytes]
) -> None:
    root = tmp_path_factory.mktemp("census")
    config = DataConfig(image_size=8, channels=1, max_rejected_fraction=1.0, test_fraction=0.0, validation_fraction=0.0)
    outcomes = []
    places = [made(form, files, root) for form in ("folder", "tar", "zip")]
    places.append(as_bucket(f"s3://{bucket}/{root.name}", files))
    for number, place in enumerate(places):
        out = root / f"out-{number}"
        try:
            source = open_source(place)
            said = json.loads(Path(shard(source, out, config), "census.json").read_bytes())
        except InputError:  # no image, or none that is whole: in every form alike
            outcomes.append(None)
            continue
        assert said["num_found"] == len(files)
        assert said["num_used"] + said["num_rejected"] + len(said["something_else"]) + said["num_describing"] == len(
            files
        )
        outcomes.append(
            (
                pq.read_schema(out / "index.parquet").metadata[b"ddpm"],
                said["rejected"],
                said["something_else"],
            )
        )
    assert outcomes == [outcomes[0]] * 4


# ---- harm ------------------------------------------------------------------------------------------------------------------


def _doubled(leaf: bytes, times: int = 60) -> bytes:
    """Pickle code of a tuple of two of the same, so many levels deep: a few hundred bytes, 2^60 leaves."""
    return leaf + b"".join(b"\x94h" + bytes([level]) + b"\x86" for level in range(times))


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x04}(" + _doubled(b"K\x01") + b"K\x01u.",
        b"\x80\x04}(U\x04data" + b"K\x01U\x06labels](" + _doubled(b"K\x01") + b"eu.",
        b"\x80\x04}(U\x06labels" + _doubled(b"K\x01") + b"U\x04dataK\x01u.",
        b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n)R(K\x01"
        + _doubled(b"K\x01")
        + b"cnumpy\ndtype\nU\x02u1\x85RK\x00U\x01xtb.",
    ],
    ids=["key", "labels", "labels-alone", "shape"],
)
def test_a_pickle_that_is_small_and_immense_is_refused_at_once(code: bytes, tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(code)
    with pytest.raises(ValueError, match=r".") as error:
        open_source(str(tmp_path))
    assert "\n" not in str(error.value)
