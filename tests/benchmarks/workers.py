"""What more workers bring: two with a thread each beside one with two threads and one with one, in turns; and a model of it.

    python tests/benchmarks/workers.py --nets mnist --turns 7
    python tests/benchmarks/workers.py --gpu-hours

The step is `train.py`'s on images in memory, DDP over gloo around it. The model: a step takes a + c b + r, with b a worker's
images, a and c from one worker at half and at a quarter of the batch, and r from a gradient's all-reduce between two idle
processes, as if nothing of it were hidden behind the backward pass. What it says of two workers is held against what they did.

--gpu-hours puts the figures of docs/gpu.md in, those of one H100, and gives the paper's runs on 1 to 1,024 GPUs: hours, and
hours of all GPUs. Of other networks than CIFAR-10's an image costs as much more as it has more operations; GPUs are joined by
300 GB/s in eights and by 50 GB/s beyond, of which a ring is taken to reach two thirds. Nothing of it was run on several GPUs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack

import torch
import torch.distributed as dist
from nets import timed

from ddpm_core.diffusion.schedule import make_schedule
from ddpm_core.model.config import ModelConfig
from ddpm_core.model.cost import forward_flops
from ddpm_core.model.init import init_unet
from ddpm_core.training.loop import autocast_for
from ddpm_core.training.parallel import Worker, in_parallel
from ddpm_core.training.state import new_state
from ddpm_core.training.step import Objective, advance, backward, draw
from pipelines.cluster.session import worker_environment
from pipelines.recipes.config import Recipe

BATCHES = {"digits": 64, "mnist": 64, "cifar10": 16}
PAPERS = ("cifar10", "celebahq256", "lsun_church256", "lsun_cat256", "lsun_bedroom256", "lsun_bedroom256_large")
H100_S = {128: 128 / 879, 512: 512 / 1938}
"""Seconds of a bfloat16 step of the CIFAR-10 network, by its images (docs/gpu.md)."""
NEAR, FAR, IN_A_NODE, OF_A_RING = 300e9, 50e9, 8, 2 / 3


def model_of(recipe: Recipe) -> ModelConfig:
    return ModelConfig(
        image_size=recipe.data.image_size,
        channels=recipe.data.channels,
        unet=recipe.unet,
        schedule=recipe.schedule,
        reverse=recipe.reverse,
    )


class Group:
    """Workers of one run, which do a turn when they are told to."""

    def __init__(self, net: str, images: int, workers: int, threads: int, turn_s: float, what: str = "step") -> None:
        self.images = images * workers
        self._meeting = tempfile.NamedTemporaryFile(delete=False)  # noqa: SIM115, removed by dist
        os.unlink(self._meeting.name)
        words = [
            sys.executable,
            __file__,
            "--nets",
            net,
            "--be",
            self._meeting.name,
            str(images),
            str(workers),
            str(threads),
        ]
        environment = {**os.environ, **worker_environment(), "OMP_NUM_THREADS": str(threads)}
        self._processes = [
            subprocess.Popen(
                [*words, str(rank), what, str(turn_s)],
                env=environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for rank in range(workers)
        ]

    def __enter__(self) -> "Group":
        self.turn()
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def turn(self) -> float:
        """Seconds a step."""
        for process in self._processes:
            assert process.stdin is not None
            print(file=process.stdin, flush=True)
        return max(float(process.stdout.readline()) for process in self._processes if process.stdout)


def be_a_worker(net: str, words: list[str]) -> None:
    meeting, what = words[0], words[5]
    images, workers, threads, rank = map(int, words[1:5])
    torch.set_num_threads(threads)
    if workers > 1:
        dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=workers)
    recipe = timed(net)
    model, config = model_of(recipe), recipe.train
    network = model.build_network().train()
    init_unet(network, 0)
    worker = Worker(rank=rank, num_workers=workers, device=torch.device("cpu"))
    state, forward = new_state(network, config.learning_rate), in_parallel(network, worker, model.image_shape)
    objective = Objective(schedule=make_schedule(recipe.schedule), reverse=recipe.reverse, loss=recipe.loss)
    pictures = torch.randint(0, 256, (images, *model.image_shape), dtype=torch.uint8)
    gradient = torch.zeros(sum(p.numel() for p in network.parameters()))

    def step() -> None:
        if what == "reduce":
            dist.all_reduce(gradient)
            return
        first = (state.step * workers + rank) * images
        positions = torch.arange(first, first + images)
        draws = draw(state, pictures, torch.full((images,), -1), positions, config, len(objective.schedule.betas))
        found = backward(
            state,
            forward,
            draws,
            positions,
            torch.ones(images),
            objective,
            config,
            num_workers=workers,
            autocast=autocast_for(config, worker.device),
        )
        advance(state, config, update=found.is_finite)

    for _ in range(3):
        step()
    began = time.perf_counter()
    step()
    # All do the same number of steps, in as long as a turn takes.
    took = torch.tensor([time.perf_counter() - began])
    if workers > 1:
        dist.all_reduce(took, op=dist.ReduceOp.MAX)
    count = max(1, round(float(words[6]) / float(took)))
    for _ in sys.stdin:
        began = time.perf_counter()
        for _ in range(count):
            step()
        print((time.perf_counter() - began) / count, flush=True)


def compare(net: str, turns: int, turn_s: float) -> None:
    batch = BATCHES[net]
    with ExitStack() as stack:

        def group(images: int, workers: int, threads: int, what: str = "step") -> Group:
            return stack.enter_context(Group(net, images, workers, threads, turn_s, what))

        groups = {
            "two": group(batch // 2, 2, 1),
            "one of two threads": group(batch, 1, 2),
            "one": group(batch, 1, 1),
            "half": group(batch // 2, 1, 1),
            "quarter": group(batch // 4, 1, 1),
            "reduce": group(1, 2, 1, "reduce"),
        }
        took = [{name: each.turn() for name, each in groups.items()} for _ in range(turns)]

    def median(a: str, b: str) -> float:
        return statistics.median(turn[a] / turn[b] for turn in took)

    s = {name: statistics.median(turn[name] for turn in took) for name in groups}
    per_image = (s["half"] - s["quarter"]) / (batch // 2 - batch // 4)
    fixed = s["half"] - per_image * (batch // 2)
    told = f"{1e3 * fixed:,.0f} + {batch // 2} x {1e3 * per_image:.2f} + {1e3 * s['reduce']:.1f}"
    print(
        f"| {net}, batch {batch} | {median('one of two threads', 'two'):.2f} | {median('one', 'two'):.2f} | "
        f"{1e3 * s['two']:,.0f} | {1e3 * (s['half'] + s['reduce']):,.0f} = {told} |",
        flush=True,
    )


def gpu_hours() -> None:
    """The paper's runs, at its batches."""
    (few, few_s), (many, many_s) = H100_S.items()
    per_image = (many_s - few_s) / (many - few)
    fixed = few_s - few * per_image
    known = forward_flops(model_of(timed("cifar10")))
    counts = (1, 8, 64, 128, 1024)
    print(
        f"a step: {1e3 * fixed:.0f} ms, {1e3 * per_image:.3f} ms an image of CIFAR-10's network, and the all-reduce\n"
    )
    print(f"| run | steps, batch | {' | '.join(f'{count:,} GPU' for count in counts)} |\n|{'---|' * (2 + len(counts))}")
    for name in PAPERS:
        recipe = timed(name)
        model, train = model_of(recipe), recipe.train
        with torch.device("meta"):
            gradient = 4 * sum(p.numel() for p in model.build_network().parameters())
        cells = []
        for count in counts:
            if count > train.batch_size:
                cells.append("more than images")
                continue
            reduce = 2 * (count - 1) / count * gradient / (OF_A_RING * (NEAR if count <= IN_A_NODE else FAR))
            step = fixed + per_image * forward_flops(model) / known * train.batch_size / count + reduce
            hours = step * train.steps / 3600
            cells.append(f"{hours:,.0f} h, {hours * count:,.0f}")
        print(f"| {name} | {train.steps:,}, {train.batch_size} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["digits", "mnist", "cifar10"], choices=list(BATCHES))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--turn-s", type=float, default=4.0)
    parser.add_argument("--gpu-hours", action="store_true")
    parser.add_argument("--be", nargs=7, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.be:
        be_a_worker(args.nets[0], args.be)
    elif args.gpu_hours:
        gpu_hours()
    else:
        print(
            "| network | two workers / one of two threads | / one of one | ms a step | the model's |\n|---|---|---|---|---|"
        )
        for net in args.nets:
            compare(net, args.turns, args.turn_s)


if __name__ == "__main__":
    main()
