"""On a machine with a GPU: whether its results are the CPU's, how fast they come, and the commands with one GPU for all of them.

    .venv/bin/python tests/benchmarks/gpu.py [--parts correctness speed commands] [--source FOLDER] [--out FOLDER]

Each part is a table; what fails is said and does not stop the next. `commands` runs the digits on the GPU, samples while a training
holds it, and with --source (CIFAR-10 as JPEGs) trains the paper's network for --steps.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.model.init import init_unet
from ddpm_core.model.unet import UNet, UNetConfig
from ddpm_core.precision import whole_float32
from ddpm_core.random import Purpose, normals
from ddpm_core.sampling.generate import generate
from ddpm_core.sampling.labels import labelled
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.loop import autocast_for
from ddpm_core.training.state import new_state
from ddpm_core.training.step import Objective, advance, backward, draw
from ddpm_core.types import Tensor

ROOT = Path(__file__).parents[2]
DEVICE, SHAPE = "cuda", (3, 32, 32)
Rows = Iterator[tuple[str, str]]


def network(device: str, config: UNetConfig | None = None) -> UNet:
    """The paper's CIFAR-10 network, or a smaller one, with weights that are not zero at the end."""
    made = UNet(config or UNetConfig(dropout=0.0), image_size=32, channels=3)
    init_unet(made, 0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in made.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return made.to(device).eval().requires_grad_(False)


def small() -> UNetConfig:
    return UNetConfig(
        base_channels=32, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(16,), dropout=0.0
    )


def images(
    unet: UNet, seeds: Tensor, name: str = "ddim", batch: int = 64, precision: torch.dtype | None = None
) -> Tensor:
    """uint8 [n, 3, 32, 32] of these seeds, so many at once."""
    device = seeds.device
    schedule = make_schedule(ScheduleConfig()).to(device)
    made = []
    for some in seeds.split(batch):
        none = torch.full_like(some, -1)
        p = ReverseProcess(denoiser=labelled(unet, none, 0.0, 3), schedule=schedule, config=ReverseConfig())
        with torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None):
            made.append(generate(p, SamplerConfig(name=name, num_steps=25), some, SHAPE))  # type: ignore[arg-type]
    return torch.cat(made).cpu()


def apart(one: Tensor, other: Tensor) -> str:
    """How two batches of uint8 images differ."""
    levels = (one.int() - other.int()).abs()
    return f"largest {int(levels.max())} levels, in {float((levels > 0).float().mean()):.2e} of all values"


def correctness() -> Rows:
    index = torch.arange(4096)
    here, there = (normals(7, Purpose.EPS, index.to(device), SHAPE).cpu() for device in ("cpu", DEVICE))
    yield (
        "noise of 4,096 seeds, 3,072 normals each: values that differ",
        f"{int((here != there).sum()):,} of {here.numel():,}",
    )
    on_cpu, on_gpu = network("cpu", small()), network(DEVICE, small())
    x, t = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1)), torch.arange(0, 1000, 125)
    expected = on_cpu.double()(x.double(), t).float()
    with whole_float32():
        found = on_gpu(x.to(DEVICE), t.to(DEVICE)).cpu()
    on_cpu.float()
    yield "one forward pass of a small U-Net, GPU float32 and CPU float64", f"relative {_relative(found, expected):.1e}"
    seeds = torch.arange(24)
    for name in ("ancestral", "ddim", "heun", "dpm_solver"):
        gpu = images(on_gpu, seeds.to(DEVICE), name)
        yield f"images of 24 seeds, {name}, GPU and CPU", apart(gpu, images(on_cpu, seeds, name))
        yield (
            f"  batches of 24 and of 5, {name}, both on the GPU",
            apart(gpu, images(on_gpu, seeds.to(DEVICE), name, batch=5)),
        )
    reduced = images(on_gpu, seeds.to(DEVICE), precision=torch.bfloat16)
    yield "  bfloat16 and float32, ddim, both on the GPU", apart(reduced, images(on_gpu, seeds.to(DEVICE)))


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def speed() -> Rows:
    parameters = sum(parameter.numel() for parameter in network("cpu").parameters())
    yield "the network", f"the paper's for CIFAR-10, {parameters / 1e6:.1f} M parameters"
    for precision in ("float32", "bfloat16"):
        for batch in (128, 512):
            torch.cuda.reset_peak_memory_stats()
            seconds = _step_seconds(batch, precision)
            memory = torch.cuda.max_memory_allocated() / 2**30
            yield f"train, batch {batch}, {precision}", f"{batch / seconds:,.0f} images/s, {memory:.1f} GiB"
    unet = network(DEVICE)
    for batch in (64, 256):
        for precision in (None, torch.bfloat16):
            seeds = torch.arange(batch, device=DEVICE)
            images(unet, seeds, batch=batch, precision=precision)
            began = time.perf_counter()
            images(unet, seeds + batch, batch=batch, precision=precision)
            rate = batch / (time.perf_counter() - began)
            said = "float32" if precision is None else "bfloat16"
            yield f"sample, ddim of 25 steps, batch {batch}, {said}", f"{rate:,.1f} images/s"


@whole_float32()
def _step_seconds(batch: int, precision: str, steps: int = 12) -> float:
    device = torch.device(DEVICE)
    unet = UNet(UNetConfig(), image_size=32, channels=3)
    init_unet(unet, 0)
    state = new_state(unet.to(device).train(), 2e-4)
    config = TrainConfig(batch_size=batch, precision=precision)  # type: ignore[arg-type]
    objective = Objective(
        schedule=make_schedule(ScheduleConfig()).to(device), reverse=ReverseConfig(), loss=LossConfig()
    )
    took = []
    for number in range(steps):
        pictures = torch.randint(0, 256, (batch, *SHAPE), dtype=torch.uint8, device=device)
        positions = torch.arange(number * batch, (number + 1) * batch, device=device)
        labels, weights = torch.full_like(positions, -1), torch.ones(batch, device=device)
        torch.cuda.synchronize()
        began = time.perf_counter()
        draws = draw(state, pictures, labels, positions, config, 1000)
        rest = (positions, weights, objective, config)
        backward(state, state.network, draws, *rest, num_workers=1, autocast=autocast_for(config, device))
        advance(state, config, update=True)
        torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return statistics.median(took[4:])


class Commands:
    """The commands on one machine with a Ray of their own, each with --json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, script: str, *args: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / f"pipelines/{script}.py"), *args, "--store", str(self.folder), "--json"]
        return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, script: str, *args: str) -> tuple[dict[str, Any], str, float]:
        began = time.perf_counter()
        process = self.start(script, *args)
        out, err = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{script}.py ended with {process.returncode}: {out[-1000:]} {err[-3000:]}")
        return json.loads(out.strip().splitlines()[-1]), err, time.perf_counter() - began


def commands(out: Path, source: str | None, steps: int) -> Rows:
    made = Commands(Path(tempfile.mkdtemp(prefix="gpu-")))
    gpu = ["--train.use-gpu", "--sample.use-gpu", "--train.num-workers", "1"]
    whole, _, seconds = made.run("workflow", "digits", *gpu)
    figure = f"fd_random_conv {whole['fd_random_conv']:.4g}"
    yield "workflow.py digits on the GPU", f"{seconds:.0f} s: {_stages(whole)}; {figure}"
    model = ["--model", "models:/ddpm-digits@champion"]
    many = ["--num-images", "8192", "--sample.first-seed", "1000000"]
    sampled, _, _ = made.run("sample", "digits", *model, *many, "--sample.use-gpu")
    yield (
        "  sample.py, 8,192 images in 128 blocks, processes' start included",
        f"{sampled['images_per_s']:,.0f} images/s",
    )
    yield from _shared_gpu(made, model)
    if source:
        yield from _cifar10(made, source, steps, out)
    shutil.rmtree(made.folder, ignore_errors=True)


def _shared_gpu(made: Commands, model: list[str]) -> Rows:
    """A cluster of one GPU: what asks for it while a training has it says so, and gets it when that ends."""
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-benchmark"})
    subprocess.run([*ray, "start", "--head", "--include-dashboard=false"], check=True, capture_output=True)
    os.environ["RAY_ADDRESS"] = "127.0.0.1:6379"
    try:
        long = ["--train.num-workers", "1", "--name", "long", "--train.steps", "100000"]
        training = made.start("train", "digits", "--train.use-gpu", *long)
        time.sleep(25)
        few = ["--num-images", "64", "--sample.first-seed", "5000000"]
        sampling = made.start("sample", "digits", *model, *few, "--sample.use-gpu")
        time.sleep(35)
        waits = sampling.poll() is None
        training.send_signal(signal.SIGTERM)
        training.communicate(timeout=60)
        _, err = sampling.communicate(timeout=90)
        told = next((line for line in err.splitlines() if "waiting for" in line), "nothing was said")
        yield "sample.py beside a training on the only GPU", f"{'waits' if waits else 'does not wait'}: {told}"
        yield "  once that has ended", f"it ends with {sampling.returncode}"
    finally:
        del os.environ["RAY_ADDRESS"]
        subprocess.run([*ray, "stop", "--force"], check=False, capture_output=True)


def _cifar10(made: Commands, source: str, steps: int, out: Path) -> Rows:
    rest = f"""
        --train.steps {steps} --train.checkpoint-every {steps} --train.preview-every {steps} --train.warmup-steps 500
        --train.ema-decay 0.999 --sample.sampler.name ddim --sample.sampler.num-steps 50 --sample.num-images 2048
        --sample.precision bfloat16
        --evaluate.num-images 2048 --evaluate.bits-per-dim-images 64 --evaluate.bits-per-dim-steps 50
    """
    whole, _, seconds = made.run("workflow", "cifar10", "--data.source", source, *rest.split())
    rate = f"{whole['train_images_per_s']:,.0f} images/s"
    yield f"workflow.py cifar10, {steps:,} steps of 128", f"{seconds:.0f} s: {_stages(whole)}; {rate}"
    figures = f"{whole['fd_random_conv']:.4g}, {whole['floor']:.4g}, {whole['bits_per_dim']:.3f}"
    yield "  fd_random_conv of 2,048 images, of held-out ones, bits/dim", figures
    shutil.copy(str(whole["grid"]), out / "cifar10-grid.png")


def _stages(whole: dict[str, Any]) -> str:
    return ", ".join(f"{name} {whole[f'{name}_s']} s" for name in ("shard", "train", "sample", "evaluate"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["correctness", "speed", "commands"])
    parser.add_argument("--source", help="CIFAR-10 as JPEGs: also train the paper's network")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("."))
    given = parser.parse_args()
    parts: dict[str, Callable[[], Rows]] = {
        "correctness": correctness,
        "speed": speed,
        "commands": lambda: commands(given.out, given.source, given.steps),
    }
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, {os.cpu_count()} CPUs")
    for name in given.parts:
        began = time.perf_counter()
        print(f"\n| {name} | |\n|---|---|", flush=True)
        try:
            for what, found in parts[name]():
                print(f"| {what} | {found} |", flush=True)
        except Exception:
            traceback.print_exc()
        print(f"({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
