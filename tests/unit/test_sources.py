"""Every form that raw images come in is read in a fixed order with its labels, and damage is told in one line."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from picture_files import noise
from PIL import Image
from sklearn.datasets import load_digits
from source_files import idx, png

from ddpm_core import storage
from ddpm_core.data.images import BadImage, to_pixels
from ddpm_core.data.sources import LeftOut, base, check_source, open_source, source_identity, table
from ddpm_core.data.sources.cifar import read_plain_pickle

MNIST = Path("/work/shared/data/mnist")
CIFAR_JPEG = Path("/work/shared/data/cifar10-jpeg/cifar10_jpeg.tar.gz")

pytestmark = pytest.mark.usefixtures("cache")


FILES = {
    "dog/2.png": png(0),
    "cat/10.png": png(1),
    "cat/1.PNG": png(2),
    "top.jpg": png(3),
    "train/cat/a b é.png": png(4),
    "readme.txt": b"not an image",
    ".hidden.png": b"no",
    ".git/x.png": b"no",
    "__MACOSX/cat/._1.png": b"no",
    "cat/._1.png": b"no",
    "cat/.DS_Store": b"no",
}
EXPECTED = [
    ("cat/1.PNG", 2, "cat"),
    ("cat/10.png", 1, "cat"),
    ("dog/2.png", 0, "dog"),
    ("top.jpg", 3, None),
    ("train/cat/a b é.png", 4, "cat"),
]


def as_folder(files: dict[str, bytes], place: Path) -> Path:
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def as_tar(files: dict[str, bytes], place: Path, mode: str = "w") -> Path:
    with tarfile.open(place, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return place


def as_zip(files: dict[str, bytes], place: Path) -> Path:
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return place


def made(form: str, files: dict[str, bytes], tmp_path: Path) -> Path:
    if form == "folder":
        return as_folder(files, tmp_path / "images")
    if form == "zip":
        return as_zip(files, tmp_path / "images.zip")
    return as_tar(files, tmp_path / f"images.{form}", _TAR_MODES[form])


_TAR_MODES = {"tar": "w", "tar.gz": "w:gz", "tgz.xz": "w:xz", "tar.bz2": "w:bz2"}
FORMS = ["folder", *_TAR_MODES, "zip"]


@pytest.mark.parametrize("form", FORMS)
def test_images_in_files(form: str, tmp_path: Path) -> None:
    source = open_source(str(made(form, FILES, tmp_path)))
    assert source.class_names == ("cat", "dog")
    assert source.num_images == len(EXPECTED)
    for index, (name, seed, folder) in enumerate(EXPECTED):
        raw = source.read(index)
        assert (raw.name, raw.data) == (name, png(seed))
        assert source.name(index) == name
        assert raw.label == (None if folder is None else source.class_names.index(folder))


@pytest.mark.parametrize("form", FORMS)
def test_without_images_the_message_says_what_is_there(form: str, tmp_path: Path) -> None:
    place = made(form, {"a.txt": b"1", "b.csv": b"2", ".hidden.png": b"3"}, tmp_path)
    with pytest.raises(ValueError, match=r"2 files \(\.csv, \.txt\)") as error:
        check_source(str(place))
    assert "\n" not in str(error.value)


def test_a_source_that_is_not_there_is_told_with_its_nearest(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=rf"no source at {tmp_path}/imagse .nearest: {tmp_path}/images"):
        check_source(str(tmp_path / "imagse"))
    with pytest.raises(ValueError, match="images is empty; expected images"):
        check_source(str(tmp_path / "images"))
    with pytest.raises(ValueError, match="gs://x/y is no store"):
        check_source("gs://x/y")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match=r"of no kind that is known here .it starts with 68656c6c6f"):
        check_source(str(tmp_path / "text"))
    (tmp_path / "nothing").write_bytes(b"")
    with pytest.raises(ValueError, match="of no kind"):
        check_source(str(tmp_path / "nothing"))


@pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
def test_an_archive_that_is_cut_short_is_refused(form: str, tmp_path: Path) -> None:
    place = made(form, {f"{number}.png": os.urandom(5000) for number in range(20)}, tmp_path)
    place.write_bytes(place.read_bytes()[:50_000])
    with pytest.raises(ValueError, match=r"damaged") as error:
        check_source(str(place))
    assert "\n" not in str(error.value)


def test_a_damaged_member_of_a_zip_is_one_bad_image(tmp_path: Path) -> None:
    place = tmp_path / "x.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("a.png", b"A" * 100)
        archive.writestr("b.png", b"B" * 100)
    place.write_bytes(place.read_bytes().replace(b"A" * 100, b"A" * 99 + b"C"))
    source = open_source(str(place))
    with pytest.raises(BadImage, match="cannot be unpacked: Bad CRC-32"):
        source.read(0)
    assert source.read(1).data == b"B" * 100


def test_links_and_paths_out_of_an_archive_lead_nowhere(tmp_path: Path) -> None:
    lost = LeftOut(name="../out.png", reason="a name that leads out of the archive")
    place = as_zip({"../out.png": png(0), "ok.png": png(1), "a/../../out.txt": b"x"}, tmp_path / "x.zip")
    source = open_source(str(place))
    assert [source.name(index) for index in range(source.num_images)] == ["ok.png"]
    assert source.listing.left_out == (lost, replace(lost, name="a/../../out.txt", lost=False))
    place = tmp_path / "x.tar"
    with tarfile.open(place, "w") as tar:
        for name, target in [("link.png", "/etc/passwd"), ("../out.png", None), ("ok.png", None)]:
            member = tarfile.TarInfo(name)
            if target is not None:
                member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member, io.BytesIO(b""))
    assert [open_source(str(place)).name(0)] == ["ok.png"]
    assert open_source(str(place)).num_images == 1
    assert open_source(str(place)).listing.left_out == (lost, LeftOut(name="link.png", reason="dangling link"))


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_FILE_BYTES", 99)
    for form in FORMS:
        source = open_source(str(made(form, {"a.png": b"0" * 100, "b.png": b"1" * 99}, tmp_path)))
        with pytest.raises(BadImage, match="absurdly large: a file of 100 bytes, more than 99"):
            source.read(0)
        assert source.read(1).data == b"1" * 99


def test_a_file_that_cannot_be_read_is_one_bad_image_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(as_folder({"a.png": b"1"}, tmp_path)))

    def fail(uri: str) -> bytes:
        raise storage.StorageError(f"{uri}: Input/output error")

    monkeypatch.setattr(storage, "read_bytes", fail)
    with pytest.raises(BadImage, match=r"cannot be read: .+Input/output error"):
        source.read(0)


def test_a_packed_tar_is_unpacked_once_for_each_version(tmp_path: Path, cache: Path) -> None:
    place = made("tar.gz", {"a.png": b"1"}, tmp_path)
    assert open_source(str(place)).read(0).data == b"1"
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("plain")}
    open_source(str(place))
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("plain")} == before
    made("tar.gz", {"a.png": b"22"}, tmp_path)
    assert open_source(str(place)).read(0).data == b"22"


def _folder(root: Path, names: list[str]) -> dict[str, list[str]]:
    """What a folder of these images sets aside, by name."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number))
    source = open_source(str(root))
    return {split: [source.name(place) for place in places.tolist()] for split, places in source.own_splits.items()}


def test_folders_named_as_splits_are_splits_and_no_classes(tmp_path: Path) -> None:
    names = ["all/Train/cat/1.png", "all/Train/dog/2.png", "all/test/cat/3.png", "all/val/dog/4.png", "all/test/5.png"]
    found = _folder(tmp_path, names)
    assert found == {"validation": ["all/val/dog/4.png"], "test": ["all/test/5.png", "all/test/cat/3.png"]}
    source = open_source(str(tmp_path))
    assert source.class_names == ("cat", "dog")
    labels = {source.name(place): source.read(place).label for place in range(5)}
    assert [labels[name] for name in names] == [0, 1, 0, 1, None]


@pytest.mark.parametrize("train", ["train", "training", "Train"])
@pytest.mark.parametrize(
    ("word", "split"),
    [
        *((word, "validation") for word in ("val", "valid", "validation", "dev", "VAL")),
        *((word, "test") for word in ("test", "testing", "t10k", "Test")),
    ],
)
def test_the_names_of_splits(train: str, word: str, split: str, tmp_path: Path) -> None:
    assert _folder(tmp_path, [f"{train}/1.png", f"{word}/2.png"]) == {split: [f"{word}/2.png"]}


@pytest.mark.parametrize(
    "names",
    [
        ["train/1.png", "boat/2.png", "test/3.png"],  # a train is a vehicle, too
        ["train/1.png", "train/2.png"],
        ["test/1.png", "val/2.png"],
        ["train/1.png", "test.png"],
        ["train.png", "test.png"],
        ["1.png"],
    ],
)
def test_folders_that_are_no_splits(names: list[str], tmp_path: Path) -> None:
    assert _folder(tmp_path, names) == {}


def test_folders_named_as_splits_beside_others_are_told(tmp_path: Path) -> None:
    _folder(tmp_path, ["train/1.png", "boat/2.png", "test/3.png"])
    assert open_source(str(tmp_path)).listing.notes == (
        "the folders test, train are no splits, for images lie beside them or none is for training",
    )


def test_digits_are_scikit_learns() -> None:
    source, digits = open_source("digits"), load_digits()
    assert source.num_images == 1797
    assert source.class_names == tuple("0123456789")
    for index in (0, 1000, 1796):
        raw = source.read(index)
        assert raw.label == digits.target[index]
        assert np.abs(np.asarray(raw.data) / 255 - digits.images[index] / 16).max() <= 0.5 / 255
    assert source_identity("digits") == "digits"


@pytest.mark.parametrize("packed", [True, False])
def test_idx_takes_train_then_test(packed: bool, tmp_path: Path) -> None:
    images = {"train": noise(5, 6, 7), "t10k": noise(3, 6, 7, seed=1)}
    labels = {"train": np.arange(5, dtype=np.uint8), "t10k": np.array([9, 0, 2], dtype=np.uint8)}
    for split in images:
        for name, array in [("images-idx3", images[split]), ("labels-idx1", labels[split])]:
            data = gzip.compress(idx(array)) if packed else idx(array)
            (tmp_path / f"{split}-{name}-ubyte{'.gz' if packed else ''}").write_bytes(data)
    source = open_source(str(tmp_path))
    read = [source.read(index) for index in range(source.num_images)]
    np.testing.assert_array_equal([raw.data for raw in read], np.concatenate([images["train"], images["t10k"]]))
    assert [raw.label for raw in read] == [0, 1, 2, 3, 4, 9, 0, 2]
    assert source.class_names == tuple("0123456789")
    assert read[5].name.startswith("t10k")
    assert {split: places.tolist() for split, places in source.own_splits.items()} == {"test": [5, 6, 7]}


def test_one_idx_file_finds_its_labels_if_there_are_any(tmp_path: Path) -> None:
    place = tmp_path / "some-images.idx3-ubyte"
    place.write_bytes(idx(noise(2, 4, 4)))
    assert open_source(str(place)).read(1).label is None
    (tmp_path / "some-labels.idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([1, 0], dtype=np.uint8))))
    assert open_source(str(place)).read(0).label == 1


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (idx(noise(2, 4, 4))[:-1], None, r"31 bytes follow its header, which promises \[2, 4, 4\] = 32"),
        (idx(noise(2, 4, 4)) + b"x", None, "33 bytes follow"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), None, "0 bytes follow"),
        (idx(noise(2, 4, 4))[:9], None, "ends inside its header"),
        (b"\0\0\x0d\x03" + bytes(12), None, "starts with the bytes 00000d03"),
        (gzip.compress(idx(noise(2, 40, 40)))[:-500], None, "damaged: Compressed file ended"),
        (idx(noise(2, 4, 4)), idx(noise(3)), r"labels of shape \[3\]; expected one for each of 2 images"),
        (idx(noise(0, 4, 4)), None, "holds no images"),
    ],
    ids=["short", "long", "bomb", "header", "floats", "cut-gzip", "labels", "none"],
)
def test_damaged_idx_is_refused(images: bytes, labels: bytes | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(images)
    if labels is not None:
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(ValueError, match=message) as error:
        check_source(str(tmp_path))
    assert "\n" not in str(error.value)


def string(data: bytes) -> bytes:
    return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<I", len(data)) + data


def python2_batch(rows: NDArray[np.uint8], labels: list[int]) -> bytes:
    """A batch as Python 2 and its numpy pickled it: str as SHORT_BINSTRING, an array by _reconstruct and BUILD."""
    small = b"".join(b"K" + bytes([label]) for label in labels)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07K\x00\x85U\x01b\x87Rq\x08(K\x01"
        + b"".join(b"J" + struct.pack("<i", size) for size in rows.shape)
        + b"\x86cnumpy\ndtype\nq\x09U\x02u1K\x00K\x01\x87Rq\x0a(K\x03U\x01|NNN"
        + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + string(rows.tobytes())
        + b"tb"
    )
    names = b"".join(string(b"x_s_%06d.png" % number) for number in range(len(labels)))
    return (
        b"\x80\x02}q\x01("
        + (string(b"batch_label") + b"q\x02" + string(b"training batch 1 of 5") + b"q\x03")
        + (string(b"labels") + b"q\x04]q\x05(" + small + b"e")
        + (string(b"data") + array)
        + (string(b"filenames") + b"]q\x0b(" + names + b"eu.")
    )


def test_the_fixture_is_what_python_reads_as_a_batch() -> None:
    rows = noise(4, 3072)
    batch = pickle.loads(python2_batch(rows, [1, 2, 3, 9]), encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], rows)
    assert batch[b"labels"] == [1, 2, 3, 9]
    assert len(batch[b"filenames"]) == 4


@pytest.mark.parametrize("protocol", [3, 4])
def test_the_pickle_reader_agrees_with_pickle(protocol: int) -> None:
    value = {
        b"data": noise(3, 7),
        b"labels": [1, 256, 70_000, -3, 2**40],
        "text": "é",
        "n": None,
        "t": (1, True, (), ("a",) * 4),
    }
    read = read_plain_pickle(pickle.dumps(value, protocol))
    np.testing.assert_array_equal(read.pop(b"data"), value.pop(b"data"))
    assert read == value


BATCHES = {f"data_batch_{number}": number for number in (1, 2)} | {"test_batch": 3}


@pytest.mark.parametrize("form", FORMS)
def test_cifar_batches(form: str, tmp_path: Path) -> None:
    rows = {name: noise(4, 3072, seed=seed) for name, seed in BATCHES.items()}
    files = {
        f"cifar-10-batches-py/{name}": python2_batch(rows[name], [seed, 0, 9, 5]) for name, seed in BATCHES.items()
    }
    files["cifar-10-batches-py/readme.html"] = b"<html>"
    source = open_source(str(made(form, files, tmp_path)))
    assert source.num_images == 12
    assert source.class_names[5] == "dog"
    assert [source.read(index).label for index in range(0, 12, 4)] == [1, 2, 3]
    image = np.asarray(source.read(9).data)  # its first 1,024 bytes are the red plane, row by row (the dataset's page)
    np.testing.assert_array_equal(image[..., 0].ravel(), rows["test_batch"][1][:1024])
    np.testing.assert_array_equal(image[..., 2].ravel(), rows["test_batch"][1][2048:])
    assert {split: places.tolist() for split, places in source.own_splits.items()} == {"test": [8, 9, 10, 11]}


class _Bomb:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    target = tmp_path / "pwned"
    batch = {b"data": noise(1, 3072).tobytes(), b"labels": [_Bomb(str(target))]}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol))
    with pytest.raises(ValueError, match=r"data_batch_1 is not one of CIFAR-10's batches: refused") as error:
        check_source(str(tmp_path))
    assert "\n" not in str(error.value)
    assert not target.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "damaged|ended|exhausted"),
        (b"\x80\x02", "damaged|ended|exhausted"),
        (b"\x80\x02}q\x01(U", "expected 1 bytes|not enough data"),
        (b"\x80\x02R.", "damaged pickle: its stack is empty"),
        (b"\x80\x02h\x05.", "damaged pickle"),
        (b"\x80\x02K\x01K\x02s.", "damaged pickle"),
        (b"cbuiltins\neval\nU\x011\x85R.", "wants to call builtins.eval"),
        (b"cnumpy\nndarray\nU\x011\x85R.", "wants to call numpy.ndarray"),
        (b"\x80\x02cos\nsystem\n\x85\x81.", "uses NEWOBJ"),
        (b"(S'x'\nios\nsystem\n.", "uses (INST|STRING)"),
        (pickle.dumps({b"data": np.array([{}], dtype=object)}, 3), "refused: the pickle"),
        (pickle.dumps({b"data": np.zeros(3)}, 3), "another type; expected uint8"),
    ],
)
def test_damaged_and_strange_pickles_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_plain_pickle(data)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "damaged pickle: list where dict was expected"),
        ({}, "it has no data and no labels"),
        ({b"data": noise(1, 3072)}, "it has no labels"),
        ({b"data": noise(1, 3072), b"labels": [[3]]}, "its labels are no list of integers"),
        ({b"data": noise(1, 3071), b"labels": [3]}, "its data is not an array"),
    ],
)
def test_a_pickle_that_is_no_batch_is_refused_in_words(value: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(value, 3))
    with pytest.raises(ValueError, match=f"data_batch_1 is not one of CIFAR-10's batches: {message}"):
        check_source(str(tmp_path))


def test_every_cut_of_a_batch_is_refused() -> None:
    whole = python2_batch(noise(1, 3072), [3])
    for size in [*range(0, 400, 7), *range(400, len(whole), 101), len(whole) - 1]:
        with pytest.raises(ValueError, match=r".") as error:
            read_plain_pickle(whole[:size])
        assert not isinstance(error.value, UnicodeError)


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 3), (5, 3, 6, 7), (5, 6, 7, 1)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(shape: tuple[int, ...], save: object, tmp_path: Path) -> None:
    images = noise(*shape)
    save(tmp_path / "x.npz", images=images, labels=np.array([[2], [0], [1], [0], [3]]))  # type: ignore[operator]
    source = open_source(str(tmp_path / "x.npz"))
    expected = images.transpose(0, 2, 3, 1) if shape[1] == 3 else images
    np.testing.assert_array_equal([source.read(index).data for index in range(5)], expected)
    assert [source.read(index).label for index in range(5)] == [2, 0, 1, 0, 3]
    assert source.class_names == ("0", "1", "2", "3")


def test_npz_of_train_and_test_or_of_one_array(tmp_path: Path) -> None:
    x, y = noise(3, 4, 4), noise(2, 4, 4, seed=1)
    np.savez(tmp_path / "two.npz", x_test=y, y_test=np.array([0, 1]), x_train=x, y_train=np.array([1, 1, 1]))
    source = open_source(str(tmp_path / "two.npz"))
    np.testing.assert_array_equal(source.read(0).data, x[0])
    np.testing.assert_array_equal(source.read(3).data, y[0])
    assert {split: places.tolist() for split, places in source.own_splits.items()} == {"test": [3, 4]}
    np.savez(tmp_path / "one.npz", x)
    source = open_source(str(tmp_path / "one.npz"))
    assert (source.num_images, source.class_names, source.read(2).label) == (3, (), None)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.array([None, {}], dtype=object)}, "images in .* holds Python objects"),
        ({"images": np.zeros((2, 4, 4))}, "array of float64; expected uint8"),
        ({"images": noise(4, 4)}, r"has the shape \[4, 4\]; expected \[n, h, w\]"),
        ({"images": noise(2, 5, 5, 5)}, r"has the shape \[2, 5, 5, 5\]"),
        ({"images": noise(2, 4, 4), "labels": np.array(["a", "b"])}, "array of <U1; expected integers"),
        ({"images": noise(2, 4, 4), "labels": np.array([0, {}], dtype=object)}, "array of object; expected integers"),
        ({"images": noise(2, 4, 4), "labels": np.array([0])}, r"labels of shape \[\]|labels of shape \[1\]"),
        ({"images": noise(2, 4, 4), "labels": np.array([0, -1])}, "the label -1; expected 0 or more"),
        ({"a": noise(2, 4, 4), "b": noise(2)}, "holds the arrays a, b; expected one named images"),
    ],
    ids=["objects", "floats", "flat", "channels", "names", "object-labels", "few", "negative", "unnamed"],
)
def test_npz_that_is_no_set_of_images(arrays: dict[str, NDArray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        check_source(str(tmp_path / "x.npz"))
    assert "\n" not in str(error.value)


def test_parquet_of_bytes_with_named_labels(tmp_path: Path) -> None:
    table = pa.table({"png": [png(0), png(1), None], "label": ["dog", "cat", None], "other": [1, 2, 3]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    source = open_source(str(tmp_path / "x.parquet"))
    assert source.class_names == ("cat", "dog")
    assert [source.read(index).data for index in range(3)] == [png(0), png(1), b""]
    assert [source.read(index).label for index in range(3)] == [1, 0, None]
    assert source.name(1) == "x.parquet#1"


def test_a_folder_of_parquet_as_hugging_face_leaves_it(tmp_path: Path) -> None:
    described = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog", "owl"]}}}}
    for number in range(2):
        images = [{"bytes": png(2 * number + place), "path": f"{place}.png"} for place in range(2)]
        table = pa.table({"image": images, "label": [0, 1]})
        table = table.replace_schema_metadata({b"huggingface": json.dumps(described).encode()})
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"data/{('validation', 'train')[number]}-{number}-of-2.parquet")
    source = open_source(str(tmp_path))
    assert {split: places.tolist() for split, places in source.own_splits.items()} == {"validation": [2, 3]}
    assert source.class_names == ("cat", "dog", "owl")
    assert [source.read(index).data for index in range(4)] == [png(seed) for seed in (2, 3, 0, 1)]
    assert source.name(1) == "train-1-of-2.parquet#1 1.png"


def test_parquet_without_images_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), place)
    with pytest.raises(ValueError, match="has the columns a, b; expected one of images, as bytes"):
        check_source(str(place))
    pq.write_table(pa.table({"a": [b"1"], "b": [b"x"]}), place)
    with pytest.raises(ValueError, match="several columns of bytes: a, b"):
        check_source(str(place))
    place.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="cannot be read as parquet") as error:
        check_source(str(place))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("more", [{}, {"label": [0, 1, 0]}])
@pytest.mark.parametrize("groups", [b"\x06", b"\x08"])  # numbers of rows, doubled
@pytest.mark.parametrize("promised", [b"\0", b"\x02", b"\x06", b"\x08", b"\xfe\xff\xff\xff\xff\x7f"])
def test_parquet_that_promises_other_rows_than_it_holds_is_refused(
    promised: bytes, groups: bytes, more: dict[str, list[int]], tmp_path: Path
) -> None:
    """2^41 of them, too, before memory is taken for as many."""
    place = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [png(n) for n in range(3)], **more}), place)
    whole, end = place.read_bytes(), len(place.read_bytes()) - 8
    footer = whole[end - int.from_bytes(whole[end : end + 4], "little") : end]
    changed = footer.replace(b"\x16\x06\x19\x1c", b"\x16" + promised + b"\x19\x1c")
    changed = changed.replace(b"\x16\x06\x26\x08", b"\x16" + groups + b"\x26\x08")
    place.write_bytes(whole[: end - len(footer)] + changed + len(changed).to_bytes(4, "little") + b"PAR1")
    if promised == groups == b"\x06":
        assert open_source(str(place)).num_images == 3
        return
    with pytest.raises(ValueError, match=r"x.parquet is damaged") as error:
        check_source(str(place))
    assert "\n" not in str(error.value)


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in [("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")]:
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="raw-images")
    return "s3://raw-images"


def test_the_same_from_s3(bucket: str, tmp_path: Path) -> None:
    local = {form: made(form, FILES, tmp_path) for form in ("folder", "tar.gz", "zip")}
    as_folder(
        {"train-images-idx3-ubyte": idx(noise(2, 4, 4)), "train-labels-idx1-ubyte": idx(noise(2))}, tmp_path / "idx"
    )
    for path in [*local.values(), tmp_path / "idx"]:
        for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
            storage.upload(file, f"{bucket}/{file.relative_to(tmp_path)}")
    places = [path.name for path in local.values()] + ["idx", "idx/train-images-idx3-ubyte"]
    for place in places:
        here, there = open_source(str(tmp_path / place)), open_source(f"{bucket}/{place}")
        assert there.class_names == here.class_names
        for index in range(here.num_images):
            ours, theirs = here.read(index), there.read(index)
            assert (theirs.name, theirs.label) == (ours.name, ours.label)
            np.testing.assert_array_equal(theirs.data, ours.data)
        assert source_identity(f"{bucket}/{place}") != source_identity(str(tmp_path / place))


def test_keys_are_read_as_they_are_listed(bucket: str) -> None:
    """Names that S3 allows and paths would put right; the same images as in a tar of these names."""
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"])
    keys = [
        "odd//a.png",
        "odd/%2F.png",
        "odd/a?b#c.png",
        "odd/ blank +.png",
        "odd/é.png",
        "odd/e\u0301.png",
        "odd//b",
        "odd/a\ttab.png",
    ]
    for number, key in enumerate(keys):
        client.put_object(Bucket="raw-images", Key=key, Body=png(number))
    client.put_object(Bucket="raw-images", Key="odd/notes.txt", Body=b"text")
    source = open_source(f"{bucket}/odd")
    assert {source.read(index).data for index in range(source.num_images)} == {
        png(number) for number in range(len(keys))
    }
    assert [item.name for item in source.listing.left_out] == ["notes.txt"]
    assert "a\\ttab.png" in [source.name(index) for index in range(source.num_images)]
    assert open_source(f"{bucket}/odd/a?b*.png").num_images == 1


def test_a_zip_on_s3_is_listed_without_being_fetched(bucket: str, tmp_path: Path, cache: Path) -> None:
    with zipfile.ZipFile(tmp_path / "big.zip", "w") as archive:
        for number in range(40):
            archive.writestr(f"{number % 2}/{number}.png", os.urandom(500_000))
    storage.upload(tmp_path / "big.zip", f"{bucket}/big.zip")
    source = open_source(f"{bucket}/big.zip")
    assert (source.num_images, source.class_names) == (40, ("0", "1"))
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert len(source.read(7).data) == 500_000


def test_nothing_on_s3_is_told(bucket: str) -> None:
    with pytest.raises(ValueError, match="s3://raw-images/none is empty; expected images"):
        check_source(f"{bucket}/none")
    with pytest.raises(ValueError, match=r"the source cannot be read: .* there is no bucket no-such-bucket"):
        check_source("s3://no-such-bucket/none")


@pytest.mark.skipif(not MNIST.exists(), reason=f"needs MNIST in {MNIST}")
def test_mnist_itself() -> None:
    source = open_source(str(MNIST))
    labels = np.array([source.read(index).label for index in range(0, 70_000, 7)])
    assert source.num_images == 70_000
    assert len(set(labels)) == 10
    assert (source.own_splits["test"] == np.arange(60_000, 70_000)).all()
    assert [source.read(index).label for index in (*range(5), 60_000)] == [5, 0, 4, 1, 9, 7]  # known to everyone


@pytest.mark.skipif(not CIFAR_JPEG.exists(), reason=f"needs CIFAR-10 as JPEG in {CIFAR_JPEG}")
def test_cifar_as_jpeg_in_class_folders() -> None:
    source = open_source(str(CIFAR_JPEG))
    assert source.num_images == 60_000
    assert len(source.class_names) == 10
    assert source.name(0).endswith("test/airplane/0000.jpg")
    assert (source.own_splits["test"] == np.arange(10_000)).all()
    raw = source.read(59_999)
    assert raw.label == source.class_names.index("truck")
    assert isinstance(raw.data, bytes)
    assert to_pixels(raw.data, 32, 3).std() > 1
    assert Image.open(io.BytesIO(raw.data)).size == (32, 32)


def test_parquet_on_s3_is_listed_by_its_labels_and_in_folders_of_splits(
    bucket: str, tmp_path: Path, cache: Path
) -> None:
    for split in ("train", "test"):
        images = [os.urandom(200_000) for _ in range(10)]
        table = pa.table({"image": images, "label": [number % 3 for number in range(10)]})
        pq.write_table(table, tmp_path / "0000.parquet", compression="none")
        storage.upload(tmp_path / "0000.parquet", f"{bucket}/default/{split}/0000.parquet")
    source = open_source(f"{bucket}/default")
    assert (source.num_images, source.class_names) == (20, ("0", "1", "2"))
    assert source.own_splits["test"].tolist() == list(range(10))
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert source.read(3).data == images[3]
    assert source.name(13) == "train/0000.parquet#3"


def test_parquet_is_read_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(tmp_path / "x.parquet", schema, compression="none") as writer:
        for _ in range(20):
            writer.write_table(pa.table({"image": [os.urandom(10_000) for _ in range(100)]}, schema=schema))
    real, held = table._rows, [0]

    def watched(*args: Any) -> Iterator[Any]:
        before = pa.total_allocated_bytes()
        for part in real(*args):
            held[0] = max(held[0], pa.total_allocated_bytes() - before)
            yield part

    monkeypatch.setattr(table, "_rows", watched)
    source = open_source(str(tmp_path / "x.parquet"))
    source.read(source.num_images - 1)
    assert 0 < held[0] < 6_000_000  # of 20 MB
