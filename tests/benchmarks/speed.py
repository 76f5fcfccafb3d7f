"""How fast the network trains and answers beside diffusers' UNet2DModel of the same weights' shapes, in turns.

    make benchmark                                          # all of it, beside what was recorded last; half an hour
    python tests/benchmarks/speed.py --nets digits --passes forward --turns 9 --precision bfloat16
    python tests/benchmarks/speed.py --same-memory          # the networks alone: theirs with our workers' memory settings, too

Each side is a process, as its users would start it: ours with the memory settings that our commands give their workers
(pipelines/cluster/session.py), theirs without. A turn is a few seconds of one side, then of the next, and so on, while the others
wait; a ratio is that of the images a second of two sides in the same turn, and the median of the turns is printed.

What is timed stands in sides.py; on a GPU, gpu.py times the same. Of each side the network is taken as it is written and compiled,
whose time is not counted; ours trains as it is written. The share of the roofline is that of the network's convolutions and matrix
products alone (roofline.py) in the time of our fastest. Memory is the peak of the process.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from nets import timed
from roofline import floor_s, operations
from sides import COMPILED, DEVICE, EAGER, OURS, OURS_COMPILED, PASSES, Net, finish

from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.model.config import ModelConfig
from pipelines.cluster.session import worker_environment

BATCHES = (
    {"digits": 64, "mnist": 64, "cifar10": 16} if DEVICE.type == "cpu" else dict.fromkeys(("mnist", "cifar10"), 512)
)
CHAINS = {"digits": 10, "mnist": 10, "cifar10": 3}
"""Steps of a DDIM chain."""
RECORDED = Path(__file__).parent / "recorded" / "speed.json"


def net_of(name: str) -> Net:
    """With one number of groups in all norms, the only way that a UNet2DModel has, where the recipe's differ."""
    recipe = timed(name)
    unet = recipe.unet
    if unet.base_channels % 128:
        unet = replace(unet, form=replace(unet.form, norm_groups=4))
    model = ModelConfig(
        unet=unet,
        image_size=recipe.data.image_size,
        channels=recipe.data.channels,
        schedule=ScheduleConfig(),
        reverse=ReverseConfig(),
    )
    return Net(model=model, train=recipe.train, loss=recipe.loss)


def roofline(net: Net, batch: int, name: str, steps: int) -> float:
    """Images a second of the convolutions and matrix products alone."""
    found = operations(net.built(), torch.randn(batch, *net.model.image_shape), torch.arange(batch))
    return batch / floor_s(found, backward=name == "train") / (steps if name == "sample" else 1)


class Side:
    """A process that does one side's work when it is told to, and otherwise waits."""

    def __init__(self, net: str, name: str, side: str, args: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--nets", net, "--passes", name, "--precision", args.precision]
        command += ["--turn-s", str(args.turn_s), "--side", side]
        kept = {"GLIBC_TUNABLES": worker_environment()["GLIBC_TUNABLES"]}
        environment = {**os.environ, **(kept if args.same_memory or side in (OURS, OURS_COMPILED) else {})}
        self._side = side
        self._process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> "Side":
        self._process.__enter__()
        self.turn()  # until it is ready, so that no two get ready at once
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.__exit__(None, None, None)

    def turn(self) -> tuple[float, float]:
        """Images a second of a turn, and the peak of memory so far, MiB."""
        assert self._process.stdin
        assert self._process.stdout
        print(file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._side} ended with {self._process.wait()}")
        rate, peak = answer.split()
        return float(rate), float(peak)


def be_a_side(args: argparse.Namespace) -> None:
    """A turn for each line that is read; the first one also builds, compiles and allocates."""
    net, batch = net_of(args.nets[0]), BATCHES[args.nets[0]]
    torch.manual_seed(0)
    work = PASSES[args.passes[0]](net, batch, CHAINS[args.nets[0]], args.precision)[args.side]()
    for _ in range(3):
        work()
    for _ in sys.stdin:
        began, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - began < args.turn_s:
            work()
            finish()
            count += batch
        print(count / (time.perf_counter() - began), peak_mib(), flush=True)


def peak_mib() -> float:
    """Of this process, or of what it took of the GPU."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024  # getrusage's would be that of who started it, too


def row_of(rates: dict[str, list[float]], limit: float | None) -> dict[str, float]:
    """The images a second of our fastest, its share of the roofline, and the medians of the ratios of ours to theirs."""

    def ratio(ours: str, theirs: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[ours], rates[theirs], strict=True))

    best = OURS_COMPILED if OURS_COMPILED in rates else OURS
    rate = statistics.median(rates[best])
    share = {} if limit is None else {"of the roofline": rate / limit}
    return {
        "images/s": rate,
        **share,
        f"{OURS} / {EAGER}": ratio(OURS, EAGER),
        f"best / {EAGER}": ratio(best, EAGER),
        f"best / {COMPILED}": ratio(best, COMPILED),
    }


def processor() -> str:
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def measured(of: str, name: str, args: argparse.Namespace) -> dict[str, float]:
    net, batch = net_of(of), BATCHES[of]
    with ExitStack() as stack:
        sides = {
            side: stack.enter_context(Side(of, name, side, args))
            for side in PASSES[name](net, batch, CHAINS[of], args.precision)
        }
        turns = [{side: each.turn() for side, each in sides.items()} for _ in range(args.turns)]
    rates = {side: [turn[side][0] for turn in turns] for side in sides}
    row = row_of(
        rates,
        roofline(net, batch, name, CHAINS[of]) if (DEVICE.type, args.precision) == ("cpu", "float32") else None,
    )
    best = OURS_COMPILED if OURS_COMPILED in rates else OURS
    return {**row, **{f"MiB {side}": turns[-1][side][1] for side in (best, EAGER, COMPILED)}}


def shown(key: str, value: float, before: float | None) -> str:
    """A figure, and what was recorded of it."""
    words = f"{value:,.0f}" if key.startswith("MiB") or value >= 100 else f"{value:.2f}"
    return words if before is None or key == "images/s" or key.startswith("MiB") else f"{words} ({before:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=list(BATCHES), choices=list(BATCHES))
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=list(PASSES))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--turn-s", type=float, default=4.0)
    parser.add_argument("--times", type=int, default=1, help="the whole table so many times; recorded are the medians")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--same-memory", action="store_true", help="theirs with our workers' memory settings, too")
    parser.add_argument("--record", action="store_true", help=f"keep the figures in {RECORDED}")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        be_a_side(args)
        return
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {"rows": {}}
    print(
        f"{processor()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.precision}"
    )
    print(f"in parentheses, of {recorded['machine']}" if recorded["rows"] else "nothing is recorded yet")
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.times):
        show(found, recorded["rows"], of_all(args))
    if args.times > 1:
        print(f"\nmedians of {args.times} times")
        show({}, recorded["rows"], ((title, medians(rows)) for title, rows in found.items()))
    if args.record:
        machine = f"{processor()}, {os.cpu_count()} CPUs, torch {torch.__version__}"
        rows = {**recorded["rows"], **{title: medians(each) for title, each in found.items()}}
        RECORDED.parent.mkdir(exist_ok=True)
        RECORDED.write_text(json.dumps({"rows": rows, "machine": machine}, indent=2) + "\n")


def of_all(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """Each row's title and figures, as they are measured."""
    for net in args.nets:
        for name in args.passes:
            yield f"{net}, {name}, {args.precision}", measured(net, name, args)


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def show(
    found: dict[str, list[dict[str, float]]],
    before: dict[str, dict[str, float]],
    rows: Iterable[tuple[str, dict[str, float]]],
) -> None:
    """Print the rows as they come, beside what was recorded before, and put each to what was found."""
    header = ""
    for title, row in rows:
        now = f"| network, pass | {' | '.join(row)} |\n|{'---|' * (len(row) + 1)}"
        if now != header:
            header = now
            print(f"\n{header}")
        words = (shown(key, value, before.get(title, {}).get(key)) for key, value in row.items())
        print(f"| {title} | {' | '.join(words)} |", flush=True)
        found.setdefault(title, []).append(row)


if __name__ == "__main__":
    sys.exit(main())
