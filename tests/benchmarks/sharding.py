"""How fast raw images are sharded, beside a plain loop of Pillow and WebDataset's TarWriter over the same files, in one run.

    python tests/benchmarks/sharding.py --num-images 100000
    python tests/benchmarks/sharding.py --num-images 1000000 --only folder --no-plain

The images are PNGs of 32 pixels, made by code; they lie in a folder of ten class folders, in a tar of the same names, in parquet.
Sharding is `run_shard` on a Ray of this machine; Ray's start is not counted, listing and the commit are. The plain loop reads each
file, converts, resizes and saves it by Pillow and writes it by TarWriter, in one process, as a person would. For each form:
seconds, images a second, the ratio, and how much the process that grew most grew.

--kill S: a command is killed after S seconds (SIGKILL, all its processes) and run again: the dataset must be the same to the byte.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).parents[2]
_SIZE = 32


def pictures(num_images: int) -> Iterator[tuple[str, bytes]]:
    """Names and PNGs: smooth colours and some noise, about 2 KB each; no two the same."""
    rng = np.random.default_rng(0)
    bases = [
        np.asarray(Image.fromarray(base).resize((_SIZE, _SIZE)))
        for base in rng.integers(0, 256, (64, 8, 8, 3), np.uint8)
    ]
    for number in range(num_images):
        pixels = bases[number % 64].copy()
        pixels[:4, :, 0] = rng.integers(0, 256, (4, _SIZE))
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG", compress_level=1)
        yield f"{number % 10}/{number:07d}.png", out.getvalue()


def make(form: str, place: Path, num_images: int) -> Path:
    if form == "folder":
        for name in range(10):
            (place / f"folder/{name}").mkdir(parents=True)
        for name, data in pictures(num_images):
            (place / "folder" / name).write_bytes(data)
        return place / "folder"
    if form == "tar":
        with tarfile.open(place / "images.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in pictures(num_images):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return place / "images.tar"
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    with pq.ParquetWriter(place / "images.parquet", schema) as writer:
        rows: list[tuple[bytes, int]] = []
        for name, data in pictures(num_images):
            rows.append((data, int(name[0])))
            if len(rows) == 1000:
                writer.write_table(
                    pa.table({"image": [row[0] for row in rows], "label": [row[1] for row in rows]}, schema=schema)
                )
                rows = []
        if rows:
            writer.write_table(
                pa.table({"image": [row[0] for row in rows], "label": [row[1] for row in rows]}, schema=schema)
            )
    return place / "images.parquet"


def plain(source: Path, out: Path) -> float:
    """The loop that a person would write, over a folder or a tar; its seconds."""
    import webdataset

    began = time.perf_counter()
    with open(out, "wb") as file, webdataset.TarWriter(file, encoder=False) as writer:
        for number, (name, data) in enumerate(_each(source)):
            with Image.open(io.BytesIO(data)) as image:
                pixels = image.convert("RGB").resize((_SIZE, _SIZE), Image.Resampling.LANCZOS)
            png = io.BytesIO()
            pixels.save(png, "PNG")
            writer.write({"__key__": f"{number:09d}", "png": png.getvalue(), "cls": name.split("/")[-2].encode()})
    return time.perf_counter() - began


def _each(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for path in sorted(source.rglob("*.png")):
            yield str(path), path.read_bytes()
    else:
        with tarfile.open(source) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                yield f"./{member.name}", file.read()


def family(of: int) -> list[int]:
    """A process and all that it started, and these, and so on."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        children.setdefault(int(fields[1]), []).append(int(place.parent.name))
    found = [of]
    for process in found:
        found += children.get(process, [])
    return found


class Peak:
    """By how much the processes of this one's family grew at most, in bytes that are theirs alone, while it is watched."""

    def __init__(self) -> None:
        self.grown: dict[str, int] = {}
        self._first: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stop.wait(0.5):
            for process in family(os.getpid()):
                try:
                    _, resident, shared = map(int, Path(f"/proc/{process}/statm").read_text().split()[:3])
                    name = Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")[:40]
                except OSError:
                    continue
                held = (resident - shared) * page
                first = self._first.setdefault(process, held)
                self.grown[name] = max(self.grown.get(name, 0), held - first)


def sharded(source: Path, store: Path) -> tuple[float, str, dict[str, int]]:
    """Seconds, the digest, and by how much processes grew."""
    import ray

    from ddpm_core.data.config import DataConfig
    from pipelines.cluster.session import session
    from pipelines.stages.shard import run_shard

    config = DataConfig(source=str(source), image_size=_SIZE, channels=3, samples_per_shard=2048)
    with session(), Peak() as peak:
        ray.get([ray.remote(_warm).remote() for _ in range(os.cpu_count() or 1)])  # a process for each CPU is up
        began = time.perf_counter()
        index = run_shard(config, str(store), name="images")
        return time.perf_counter() - began, index.digest, peak.grown


def _warm() -> None:
    import ddpm_core.data.sharding.writer  # noqa: F401

    time.sleep(1)


def killed(source: Path, store: Path, after_s: float) -> str:
    """The digest of a dataset whose command was killed once in the middle."""
    command = [
        *(sys.executable, str(ROOT / "pipelines/shard.py"), "cifar10_small", "--data.source", str(source)),
        *("--data.image-size", str(_SIZE), "--store", str(store), "--json"),
    ]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(after_s)
    written = len(list(store.glob("datasets/sources/*/*.tar")))
    for process in family(first.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    first.wait()
    print(f"killed after {after_s:.0f} s with {written} shards written", flush=True)
    again = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    digest = str(json.loads(again.stdout.splitlines()[-1])["digest"])
    print(f"typed again: digest {digest[:12]}", flush=True)
    return digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=100_000)
    parser.add_argument("--only", nargs="*", default=["folder", "tar", "parquet"])
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--kill", type=float, default=0, help="seconds after which a run is killed once")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="ddpm-sharding-"))
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    digests = set()
    try:
        for form in args.only:
            source = make(form, root, args.num_images)
            baseline = plain(source, root / "plain.tar") if args.plain and form != "parquet" else 0.0
            seconds, digest, grown = sharded(source, root / f"store-{form}")
            digests.add(digest)
            most = max(grown.items(), key=lambda item: item[1])
            print(
                f"{form}: {seconds:.1f} s, {args.num_images / seconds:,.0f} images/s; plain loop {baseline:.1f} s, ratio "
                f"{baseline / seconds:.2f}; grew most: {most[0]} {most[1] / 2**20:,.0f} MiB; digest {digest[:12]}",
                flush=True,
            )
            if args.kill:
                digests.add(killed(source, root / f"killed-{form}", args.kill))
    finally:
        shutil.rmtree(root)
    print("one digest" if len(digests) == 1 else f"several digests: {digests}")


if __name__ == "__main__":
    main()
