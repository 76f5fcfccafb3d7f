"""On a GPU: whether its results are the CPU's, how fast they come beside diffusers', and where the time goes.

    python tests/benchmarks/gpu.py --out FOLDER                          # under ten minutes; gpu.json and gpu.md
    python tests/benchmarks/gpu.py --out FOLDER --parts cifar10 --source IMAGES --minutes 5
    python tests/benchmarks/gpu.py --record                              # on a CPU: the losses that a GPU is held against

Needs what ddpm_core needs, and no Ray; the rows beside diffusers need that. `laws` asks of the GPU what the tests ask of the CPU
(laws.py), `speed` times the paper's CIFAR-10 network in turns with diffusers' (sides.py), `profile` says what the device did in a
step, `cifar10` shards 32x32 images, trains that network on them for the minutes that are left, by `python -m ddpm_core.training`,
and draws from it. What no time is left for is named; each row is kept as soon as it is there. Without a GPU a small network goes
the same way on the CPU, to see that all of it runs. The commands of pipelines are tried by gpu_commands.py.
"""

import argparse
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from laws import SMALL, laws, record
from roofline import floor_s, operations
from sides import DEVICE, OURS, OURS_COMPILED, PASSES, Make, Net, Precision, finish
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ddpm_core.api.loading import load
from ddpm_core.api.model import Model
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.data.config import DataConfig
from ddpm_core.data.reader import ImageReader
from ddpm_core.data.sharding.growth import plan_source
from ddpm_core.data.sharding.writer import commit_dataset, write_shard
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.evaluation.features.networks import Features
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance, merge_all
from ddpm_core.evaluation.pictures import image_grid
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.cost import forward_flops
from ddpm_core.model.unet import UNetConfig
from ddpm_core.precision import whole_float32
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.serialization import to_json
from ddpm_core.training.config import TrainConfig

Row = dict[str, str | float]
Rows = Iterator[Row]
IS_GPU = DEVICE.type == "cuda"
PAPER = ModelConfig(image_size=32, channels=3, unet=UNetConfig(), schedule=ScheduleConfig(), reverse=ReverseConfig())
NET = Net(model=PAPER if IS_GPU else SMALL)
SPEED: dict[str, tuple[str, Precision, int]] = {
    f"{name}-{precision}-{batch}": (name, precision, batch)
    for name, precision, batch in (
        ("train", "bfloat16", 512),
        ("sample", "bfloat16", 500),
        ("train", "bfloat16", 2048),
        ("forward", "bfloat16", 512),
        ("train", "float32", 512),
        ("train", "bfloat16", 128),
        ("sample", "float32", 250),
    )
}
"""What is timed, by what it is worth knowing: time may be up before the last."""
ROWS = list(SPEED if IS_GPU else {pass_: name for name, (pass_, _, _) in reversed(SPEED.items())}.values())
CHAIN = 50 if IS_GPU else 3
NEEDED_S = {"train": 170, "sample": 190, "forward": 110} if IS_GPU else {"train": 0, "sample": 0, "forward": 0}
"""A row takes so long at the most: each side compiles."""
LAST_S = 90 if IS_GPU else 20
"""What drawing and measuring take, after the training."""
TERMINATED = 143
KINDS = {
    "layouts and copies": r"nchwtonhwc|nhwctonchw|converttensor|copy|memcpy|memset|catarray|fillfunctor|aten::(cat|transpose)",
    "convolutions and matrix products": r"conv|gemm|cutlass|xmma|wgrad|dgrad|nvjet|gemv|aten::(mm|bmm|addmm)",
    "attention": r"flash|fmha|attention|softmax",
    "norms": r"group_norm|groupnorm|rowwise|gamma|beta",
    "the update": r"multi_tensor|adam|lerp|foreach|vector_norm",
    "compiled by inductor": r"triton|inductor|compiledfxgraph",
    "elementwise": r"elementwise|vectorized|silu|aten::(add|mul|where|div|sub)",
}
"""Of what the device does, by the names of its kernels; the first that fits."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """How long this may take."""

    until: float

    @property
    def left_s(self) -> float:
        """Of it."""
        return self.until - time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What this device does at the most, as it was measured."""

    matrix: dict[Precision, float]
    """FLOP/s of a large product."""
    copied: float
    """Bytes/s, read and written."""


def best_s(work: Callable[[], object], times: int = 10) -> float:
    """The median of the better half of so many."""
    took = []
    for _ in range(times + 2):
        finish()
        began = time.perf_counter()
        work()
        finish()
        took.append(time.perf_counter() - began)
    return statistics.median(sorted(took[2:])[: times // 2])


@whole_float32()
def ceilings() -> Ceilings:
    size = 8192 if IS_GPU else 1024

    def rate(dtype: torch.dtype) -> float:
        a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
        return 2 * size**3 / best_s(lambda: a @ b)

    memory = torch.zeros(1 << (32 if IS_GPU else 26), dtype=torch.uint8, device=DEVICE)
    copied = 2 * len(memory) / best_s(memory.clone)
    return Ceilings(matrix={"float32": rate(torch.float32), "bfloat16": rate(torch.bfloat16)}, copied=copied)


def machine(found: Ceilings) -> Rows:
    """What was measured on."""
    yield {"what": "device", "found": torch.cuda.get_device_name() if IS_GPU else "no GPU here: a CPU"}
    yield {
        "what": "beside it",
        "found": f"{os.cpu_count()} CPUs, Python {sys.version.split()[0]}, torch {torch.__version__}",
    }
    yield {
        "what": "diffusers",
        "found": _version() if find_spec("diffusers") else "not installed: nothing is beside ours",
    }
    for precision, rate in found.matrix.items():
        yield {"what": f"a large matrix product, {precision}", "found": f"{rate / 1e12:,.1f} TFLOP/s"}
    yield {"what": "a copy", "found": f"{found.copied / 1e12:.2f} TB/s read and written"}


def _version() -> str:
    import diffusers

    return str(diffusers.__version__)


def judged() -> Rows:
    """The laws, and whether they hold."""
    for law in laws():
        yield {"what": law.what, "found": law.found, "holds": "yes" if law.holds else "NO"}


def speed(clock: Clock, most: Ceilings, wanted: list[str]) -> Rows:
    """A row for each pass, precision and batch."""
    for row in wanted:
        name, precision, batch = SPEED[row]
        if clock.left_s < NEEDED_S[name]:
            yield {"what": row, "images/s": "not measured: the time was up"}
            continue
        try:
            yield {"what": row, **_timed(name, precision, batch if IS_GPU else 4, most)}
        except torch.OutOfMemoryError:
            yield {"what": row, "images/s": "does not fit into the device's memory"}


@whole_float32()
def _timed(name: str, precision: Precision, batch: int, most: Ceilings) -> Row:
    """Float32 is without TF32 for both sides."""
    torch.compiler.reset()  # it gives up where it has compiled the same code eight times
    rates, peaks = in_turns(PASSES[name](NET, batch, CHAIN, precision), batch, warm=1 if name == "sample" else 3)
    ours = max(rates.keys() & {OURS, OURS_COMPILED}, key=lambda side: statistics.median(rates[side]))
    rate = statistics.median(rates[ours])
    passes = {"train": 3, "forward": 1, "sample": CHAIN}[name]
    row: Row = {
        "images/s": round(rate, 1),
        "by": ours,
        "of the matrix rate": round(rate * passes * forward_flops(NET.model) / most.matrix[precision], 3),
        "of the roofline": round(rate / roofline(name, precision, batch), 3),
    }
    for side, other in rates.items():
        if side != ours:
            row[f"/ {side}"] = round(statistics.median(a / b for a, b in zip(rates[ours], other, strict=True)), 2)
    row |= {f"GiB, {side}": round(peak, 1) for side, peak in peaks.items()} if IS_GPU else {}
    if name == "sample":
        row["50,000 images"] = f"{50_000 / rate / 60:.1f} min, computed from {len(rates[ours]) * batch:,}"
    return row


def in_turns(
    makes: dict[str, Make], batch: int, warm: int, turns: int = 3
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Images a second of each side's turns, and the most memory that it took, GiB."""
    works, peaks = {}, {}
    for side, make in makes.items():
        before = _memory()
        works[side] = make()
        for _ in range(warm):
            works[side]()
        finish()
        peaks[side] = (torch.cuda.max_memory_allocated() - before) / 2**30 if IS_GPU else 0.0
    rates: dict[str, list[float]] = {side: [] for side in works}
    for _ in range(turns):
        for side, work in works.items():
            finish()
            began, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - began < 2:
                work()
                finish()
                count += batch
            rates[side].append(count / (time.perf_counter() - began))
    return rates, peaks


def _memory() -> int:
    """What lies there by now; peaks are counted from here."""
    if not IS_GPU:
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def roofline(name: str, precision: Precision, batch: int) -> float:
    """Images a second of the convolutions and matrix products alone, each at its own shape."""
    found = operations(NET.built(), torch.randn(batch, *NET.model.image_shape, device=DEVICE), _zeros(batch))
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    alone = floor_s(found, backward=name == "train", dtype=dtype)
    return batch / alone / (CHAIN if name == "sample" else 1)


def _zeros(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64, device=DEVICE)


def profiled(clock: Clock) -> Rows:
    """Where a training step and a forward pass spend the device's time, by kind and by kernel."""
    batch = 512 if IS_GPU else 4
    for name in ("train", "forward"):
        for side in (OURS, OURS_COMPILED):
            torch.compiler.reset()
            makes = PASSES[name](NET, batch, CHAIN, "bfloat16")
            if side not in makes:
                continue
            if clock.left_s < NEEDED_S[name] / 2:
                yield {"of": f"{name}, {side}", "kind": "not measured: the time was up"}
                continue
            yield from _profile(f"{name}, {side}, bfloat16, {batch} at once", makes[side]())


def _profile(of: str, work: Callable[[], object], times: int = 3) -> Rows:
    for _ in range(3):
        work()
    finish()
    began = time.perf_counter()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if IS_GPU else [])]
    with profile(activities=activities) as seen:
        for _ in range(times):
            work()
        finish()
    wall_ms = 1e3 * (time.perf_counter() - began) / times
    events = [each for each in seen.key_averages() if not IS_GPU or each.device_type == DeviceType.CUDA]
    took = {
        each.key: (each.self_device_time_total if IS_GPU else each.self_cpu_time_total) / 1e3 / times for each in events
    }
    busy_ms = sum(took.values())
    kinds: Counter[str] = Counter()
    for kernel, ms in took.items():
        kinds[next((kind for kind, names in KINDS.items() if re.search(names, kernel.lower())), "other")] += ms
    yield {
        "of": of,
        "kind": "all of it",
        "ms": round(busy_ms, 2),
        "share": f"{busy_ms / wall_ms:.0%} of {wall_ms:.1f} ms by the clock",
    }
    for kind, ms in kinds.most_common():
        yield {"of": "", "kind": kind, "ms": round(ms, 2), "share": f"{ms / busy_ms:.0%}"}
    for kernel, ms in sorted(took.items(), key=lambda each: -each[1])[:8]:
        yield {"of": "", "kind": f"`{kernel[:70]}`", "ms": round(ms, 2), "share": f"{ms / busy_ms:.0%}"}


def cifar10(clock: Clock, source: str, out: Path) -> Rows:
    """The paper's recipe on a folder or an archive of images, for as long as there is time; then how far its images are."""
    with TemporaryDirectory() as folder:
        yield from _trained(clock, source, Path(folder), out)


def _trained(clock: Clock, source: str, folder: Path, out: Path) -> Rows:
    began = time.monotonic()
    index = sharded(source, folder / "dataset")
    yield {"what": "sharded", "found": f"{sum(index.counts.values()):,} images in {time.monotonic() - began:.0f} s"}
    told = {name: to_json(getattr(NET.model, name)) for name in ("unet", "schedule", "reverse")}
    train = TrainConfig(warmup_steps=500, log_every=20, checkpoint_every=1_000, keep_checkpoints=1)
    config, run = folder / "cifar10.json", folder / "run"
    config.write_text(json.dumps({**told, "loss": to_json(NET.loss), "train": to_json(train)}))
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "ddpm_core.training", index.uri, str(run), str(config)],
        stderr=subprocess.PIPE,
        text=True,
    )
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(30.0, clock.left_s - LAST_S))
    process.send_signal(signal.SIGTERM)  # it saves the step that it has come to
    _, said = process.communicate()
    if process.returncode != TERMINATED:
        raise RuntimeError(f"the training ended with {process.returncode}: {said[-2000:]}")
    steps = [line for line in said.splitlines() if line.startswith("step ")]
    yield {"what": "trained", "found": f"{time.monotonic() - began:.0f} s: {steps[-1] if steps else 'no 20 steps'}"}
    images = _drawn(load(str(run), DEVICE))
    (out / "cifar10-grid.png").write_bytes(image_grid(images[:64]))
    yield from _distances(images, index, folder / "shards")


def sharded(source: str, folder: Path) -> DatasetIndex:
    """All of its training images to train on; by a process for each CPU."""
    config = DataConfig(source=source, image_size=32, channels=3, samples_per_shard=2_048, validation_fraction=0.0)
    planned = plan_source(config, None)
    write = partial(write_shard, source=planned.source, config=config, uri=str(folder))
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        return commit_dataset(str(folder), list(pool.map(write, planned.plans)), config, planned.source)


def _drawn(model: Model) -> torch.Tensor:
    count, sampler = (2_048, SamplerConfig(name="ddim", num_steps=50)) if IS_GPU else (32, SamplerConfig(num_steps=5))
    return model.generate(torch.arange(count), SampleConfig(sampler=sampler, batch_size=256)).cpu()


def _distances(images: torch.Tensor, index: DatasetIndex, cache: Path) -> Rows:
    def stats(some: torch.Tensor) -> FeatureStats:
        return merge_all(FeatureStats.from_features(Features().extract(part)) for part in some.split(256))

    def real(split: str, at_most: int) -> torch.Tensor:
        reader = ImageReader(index, split, cache)
        return reader.images(*reader.places(range(min(at_most, reader.num_samples))))

    trained_on, held_out = stats(real("train", 10_000)), real(index.final_split, len(images))
    for what, some in (("generated", images), ("held-out", held_out)):
        distance = frechet_distance(stats(some), trained_on)
        yield {"what": f"fd_random_conv of {len(some):,} {what} images", "found": f"{distance:.4g}"}


class Page:
    """The rows as they come, printed, and kept in FOLDER/gpu.json and FOLDER/gpu.md."""

    def __init__(self, out: Path) -> None:
        self._out, self._parts = out, dict[str, list[Row]]()
        out.mkdir(parents=True, exist_ok=True)

    def add(self, part: str, row: Row) -> None:
        """Print it, and write all of them anew: whoever ends this finds what there was."""
        self._parts.setdefault(part, []).append(row)
        print(f"{part}: {', '.join(f'{key} {value}' for key, value in row.items() if value != '')}", flush=True)
        (self._out / "gpu.json").write_text(json.dumps(self._parts, indent=2) + "\n")
        (self._out / "gpu.md").write_text("\n".join(map(self._table, self._parts)))

    def _table(self, part: str) -> str:
        rows = self._parts[part]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines = [columns, ["---"] * len(columns), *([str(row.get(key, "")) for key in columns] for row in rows)]
        return "\n".join([f"## {part}", "", *(f"| {' | '.join(cells)} |" for cells in lines), ""])


def main() -> int:
    """0 if all laws held and every part came to its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["laws", "speed", "profile", "cifar10"]
    parser.add_argument("--parts", nargs="+", choices=names, default=names[:3])
    parser.add_argument("--rows", nargs="+", choices=list(SPEED), default=ROWS, help="of speed")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it")
    parser.add_argument("--source", help="images for cifar10: a folder, or an archive")
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--record", action="store_true", help="keep this machine's losses, which must be a CPU's")
    given = parser.parse_args()
    if "cifar10" in given.parts and not given.source:
        parser.error("cifar10 needs --source")
    if given.record:
        record()
        return 0
    clock, page = Clock(until=time.monotonic() + 60 * given.minutes), Page(given.out)
    found = ceilings()
    parts: dict[str, Callable[[], Rows]] = {
        "machine": lambda: machine(found),
        "laws": judged,
        "speed": lambda: speed(clock, found, given.rows),
        "profile": lambda: profiled(clock),
        "cifar10": lambda: cifar10(clock, given.source, given.out),
    }
    wrong = 0
    for name in ["machine", *given.parts]:
        began = time.monotonic()
        try:
            for row in parts[name]():
                page.add(name, row)
                wrong += row.get("holds") == "NO"
        except Exception:  # what fails is said, and does not stop the next
            traceback.print_exc()
            page.add(name, {"what": "failed", "found": traceback.format_exc(limit=0).strip()})
            wrong += 1
        print(f"({name}: {time.monotonic() - began:.0f} s)", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
