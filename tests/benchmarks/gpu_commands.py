"""The commands of pipelines with one GPU for all of them: the digits, sampling beside a training that holds it, the paper's model.

    python tests/benchmarks/gpu_commands.py [--source FOLDER] [--out FOLDER]

With --source (CIFAR-10 as JPEGs) the paper's network is trained for --steps. What the GPU itself does is measured by gpu.py.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Rows = Iterator[tuple[str, str]]


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
    parser.add_argument("--source", help="CIFAR-10 as JPEGs: also train the paper's network")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("."))
    given = parser.parse_args()
    print("| what | found |\n|---|---|")
    for what, found in commands(given.out, given.source, given.steps):
        print(f"| {what} | {found} |", flush=True)


if __name__ == "__main__":
    main()
