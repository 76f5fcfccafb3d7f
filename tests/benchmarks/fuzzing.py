"""Damage every form of raw images at random, for a stated time, and see that only worded errors come of it.

    python tests/benchmarks/fuzzing.py --seconds 60

Each form is made by code, small and whole; a case flips, cuts, repeats or overwrites some of its bytes (checksums of tar headers
are put right in half of the cases, so that what lies behind them is reached), opens it as a source and turns every image into
pixels. An error that is not an InputError of one line, a case of more than 10 s or more memory than 2 GiB, and a file that appears
outside the cache are failures: the bytes are kept beside, to be opened again.
"""

import argparse
import io
import json
import os
import pickle
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import platformdirs
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ddpm_core.data.images import BadImage, to_pixels
from ddpm_core.data.sources import LabelRule, open_source
from ddpm_core.errors import InputError

_CASE_S = 10
_MEMORY_BYTES = 2 << 30
_MAX_IMAGES = 50


def png(seed: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind)
    return out.getvalue()


FILES = {f"{name}/{number}.png": png(number) for number, name in enumerate(("cat", "dog", "cat", "owl"))}


def a_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in (*FILES.items(), ("long/" * 30 + "x.png", png(5))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for kind, name, target in (
            (tarfile.SYMTYPE, "soft.png", "cat/0.png"),
            (tarfile.LNKTYPE, "hard.png", "dog/1.png"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    return out.getvalue()


def a_pax_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "é"}) as tar:
        for name, data in FILES.items():
            member = tarfile.TarInfo(f"é{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def a_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    return out.getvalue()


def a_parquet() -> bytes:
    out = io.BytesIO()
    described = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}
    images = [{"bytes": data, "path": name} for name, data in FILES.items()]
    table = pa.table({"image": images, "label": pa.array([0, 1, 0, 1])})
    pq.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(described).encode()}), out)
    return out.getvalue()


def an_npz() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, images=np.arange(4 * 9 * 7, dtype=np.uint8).reshape(4, 9, 7), labels=np.arange(4))
    return out.getvalue()


def an_npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.arange(4 * 9 * 7, dtype=np.uint8).reshape(4, 9, 7))
    return out.getvalue()


def an_idx() -> bytes:
    return bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (4, 9, 7)) + bytes(range(252))


def a_batch() -> bytes:
    return pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [3, 4]}, protocol=4)


FORMS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "tar": ("x.tar", a_tar),
    "pax": ("x.tar", a_pax_tar),
    "zip": ("x.zip", a_zip),
    "parquet": ("x.parquet", a_parquet),
    "npz": ("x.npz", an_npz),
    "npy": ("x.npy", an_npy),
    "idx": ("train-images-idx3-ubyte", an_idx),
    "pickle": ("data_batch_1", a_batch),
    "labels.csv": (
        "labels.csv",
        lambda: b"path,label\n" + b"".join(b"%s,%d\n" % (name.encode(), n) for n, name in enumerate(FILES)),
    ),
    "labels.json": (
        "labels.json",
        lambda: json.dumps({"labels": [[name, n] for n, name in enumerate(FILES)]}).encode(),
    ),
    "png": ("x.png", lambda: png(1)),
    "palette": ("x.png", lambda: png(1, mode="P")),
    "jpeg": ("x.jpg", lambda: png(1, "JPEG")),
    "gif": ("x.gif", lambda: png(1, "GIF")),
    "webp": ("x.webp", lambda: png(1, "WEBP")),
    "tiff": ("x.tif", lambda: png(1, "TIFF")),
    "bmp": ("x.bmp", lambda: png(1, "BMP")),
    "jp2": ("x.jp2", lambda: png(1, "JPEG2000")),
    "avif": ("x.avif", lambda: png(1, "AVIF")),
}


def damaged(whole: bytes, draw: np.random.Generator) -> bytes:
    data = bytearray(whole)
    for _ in range(int(draw.integers(1, 6))):
        if not data:
            break
        place, length = int(draw.integers(len(data))), int(draw.integers(1, 64))
        what = draw.integers(6)
        if what == 0:
            data[place] ^= 1 << int(draw.integers(8))
        elif what == 1:
            data[place : place + length] = draw.bytes(length)
        elif what == 2:
            del data[place : place + length]
        elif what == 3:
            data[place:place] = data[place : place + length] * int(draw.integers(1, 20))
        elif what == 4:
            width = int(draw.choice([1, 2, 4, 8]))
            data[place : place + width] = bytes([int(draw.choice([0, 1, 127, 128, 255]))]) * width
        elif draw.integers(4) == 0:
            del data[place:]
    return bytes(data)


def mended(data: bytes) -> bytes:
    """A tar with the checksums of its headers put right."""
    out = bytearray(data)
    for start in range(0, len(out) - 511, 512):
        if out[start + 257 : start + 262] == b"ustar":
            out[start + 148 : start + 156] = b" " * 8
            out[start + 148 : start + 156] = b"%06o\0 " % sum(out[start : start + 512])
    return bytes(out)


def try_one(name: str, data: bytes, root: Path) -> str:
    """Open it as a source and decode all; what came of it."""
    folder = root / "source"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / name).write_bytes(data)
    rule, uri = LabelRule(), str(folder / name)
    if name.startswith("labels"):
        for image, content in FILES.items():
            (folder / image).parent.mkdir(exist_ok=True)
            (folder / image).write_bytes(content)
        rule, uri = LabelRule(file=uri), str(folder)
    elif (
        Path(name).suffix in (".png", ".jpg", ".gif", ".webp", ".tif", ".bmp", ".jp2", ".avif")
        or name == "data_batch_1"
    ):
        uri = str(folder)
    try:
        source = open_source(uri, rule)
        read = 0
        for index in range(min(source.num_images, _MAX_IMAGES)):
            try:
                to_pixels(source.read(index).data, 8, 3)
                read += 1
            except BadImage as error:
                _check_line(error)
        return "read" if read == min(source.num_images, _MAX_IMAGES) else "some left out"
    except InputError as error:
        _check_line(error)
        return "refused"


def _check_line(error: Exception) -> None:
    assert "\n" not in str(error), f"more than a line: {error}"
    assert str(error), "no words"


def late(signum: int, frame: object) -> None:
    raise TimeoutError(f"more than {_CASE_S} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="for all forms together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(FORMS))
    args = parser.parse_args()
    kept = Path(tempfile.mkdtemp(prefix="ddpm-fuzzing-"))
    root = Path(tempfile.mkdtemp(prefix="ddpm-fuzz-"))
    platformdirs.user_cache_dir = lambda name: str(root / "cache")  # type: ignore[assignment]
    signal.signal(signal.SIGALRM, late)
    for form in args.only:  # what a first call imports is not counted
        try_one(FORMS[form][0], FORMS[form][1](), root)
    resource.setrlimit(resource.RLIMIT_AS, (_used() + _MEMORY_BYTES,) * 2)
    failures = 0
    for form in args.only:
        name, make = FORMS[form]
        whole, draw = make(), np.random.default_rng(args.seed)
        assert try_one(name, whole, root) == "read", form
        counts: dict[str, int] = {}
        end, slowest = time.monotonic() + args.seconds / len(args.only), 0.0
        while time.monotonic() < end:
            data = damaged(whole, draw)
            data = mended(data) if form in ("tar", "pax") and draw.integers(2) else data
            began = time.monotonic()
            signal.alarm(_CASE_S)
            try:
                outcome = try_one(name, data, root)
            except (Exception, MemoryError) as error:
                outcome = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:100]}"
                failures += 1
                (kept / f"{failures:03d}-{name}").write_bytes(data)
                (kept / f"{failures:03d}-{name}.txt").write_text(traceback.format_exc())
            finally:
                signal.alarm(0)
            slowest = max(slowest, time.monotonic() - began)
            counts[outcome] = counts.get(outcome, 0) + 1
            shutil.rmtree(root / "cache", ignore_errors=True)
        said = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(counts.items()))
        print(f"{form:12} {sum(counts.values()):,} cases, slowest {slowest:.1f} s: {said}", flush=True)
    strangers = {path.name for path in root.iterdir()} - {"source", "cache"}
    assert not strangers, f"files outside the cache: {strangers}"
    shutil.rmtree(root)
    print(f"{failures} failures" + (f", kept in {kept}" if failures else ""))
    sys.exit(bool(failures))


def _used() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
