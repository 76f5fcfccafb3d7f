"""A sweep with a known answer: data from a Gaussian, whose best variational bound under each noise schedule is a formula.

    python tests/benchmarks/planted.py [FOLDER]

Draws grey 8x8 images from a Gaussian of known mean and covariance, sweeps over noise schedules of few steps, ranked by bits/dim
of validation images, and prints each trial's figure beside the bound of the best denoiser there is (linear, for a Gaussian), and
Spearman's rank correlation of the two.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from ddpm_core.diffusion.schedule import NoiseSchedule, ScheduleConfig, make_schedule

ROOT = Path(__file__).parents[2]
SIZE, COUNT, STEPS, T = 8, 6_000, 600, 30
SCALE = 127.5
"""Levels of 8 bits for 1 in [-1, 1]."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of images and store; a temporary one by default")
    folder = parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="ddpm-planted-"))
    folder.mkdir(parents=True, exist_ok=True)
    mean, covariance = gaussian()
    np.savez(folder / "images.npz", images=drawn(mean, covariance))
    ranking = sweep(folder)
    rows = []
    for row in ranking:
        fields = {name.removeprefix("schedule.").replace("-", "_"): value for name, value in row["setting"].items()}
        schedule = make_schedule(ScheduleConfig(num_timesteps=T, **fields))
        rows.append((row["metrics"]["bits_per_dim"], best_bound(schedule, mean, covariance), row["setting"]))
    print("| trained, bits/dim | best possible, bits/dim | schedule |\n|---|---|---|")
    for found, best, setting in rows:
        print(f"| {found:.3f} | {best:.3f} | {' '.join(str(value) for value in setting.values())} |")
    found, best, _ = zip(*rows, strict=True)
    print(f"Spearman's rank correlation over {len(rows)} trials: {spearmanr(found, best).statistic:.3f}")


def gaussian() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [64] and covariance [64, 64] in [-1, 1]: neighbours are alike."""
    place = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), -1).reshape(-1, 2)
    squared = ((place[:, None] - place[None]) ** 2).sum(-1)
    centre = ((place - (SIZE - 1) / 2) ** 2).sum(-1)
    return 0.4 * np.exp(-centre / 12) - 0.2, 0.06 * np.exp(-squared / 8) + 0.004 * np.eye(SIZE**2)


def drawn(mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Images uint8 [n, h, w, 1]."""
    images = np.random.Generator(np.random.PCG64(0)).multivariate_normal(mean, covariance, COUNT)
    return np.clip(np.rint((images + 1) * SCALE), 0, 255).astype(np.uint8).reshape(-1, SIZE, SIZE, 1)


def sweep(folder: Path) -> list[dict[str, Any]]:
    """The ranking of the command's last line."""
    space = {
        "schedule.name": ("linear", "quadratic", "cosine", "sigmoid"),
        "schedule.beta-start": ("loguniform:0.0005:0.02",),
        "schedule.beta-end": ("loguniform:0.1:0.7",),
    }
    words = [word for path, values in space.items() for word in (f"--space.{path}", *values)]
    flags = [
        *("--data.source", folder / "images.npz", "--data.image-size", SIZE, "--data.channels", 1),
        *("--store", folder / "store", "--schedule.num-timesteps", T, "--reverse.variance", "fixed_small"),
        *(
            "--train.steps",
            STEPS,
            "--sample.sampler.num-steps",
            10,
            "--evaluate.bits-per-dim-images",
            320,
            "--evaluate.bits-per-dim-steps",
            T,
        ),
        *("--sweep.metrics", "bits_per_dim", "--sweep.num-images", 16),
        *("--sweep.num-trials", 12, "--sweep.stopping", "none", "--sweep.repeats", 0, "--json"),
    ]
    command = [sys.executable, ROOT / "pipelines/sweep.py", "digits", *words, *flags]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    ranking: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["ranking"]
    return ranking


def best_bound(schedule: NoiseSchedule, mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> float:
    """Bits/dim of L_T + sum L_{t-1} + L_0 (Ho et al. 2020, Eq. 5) where x_0_hat is E[x_0 | x_t], in the covariance's own axes.

    The variance of a reverse step is the posterior's (fixed_small), so each KL is the squared error of the mean alone. The last
    step's Gaussian is wider than a level of 8 bits: its share is a density times the width of a level.
    """
    spread = torch.from_numpy(np.linalg.eigvalsh(covariance))
    signal, kept = schedule.alpha_bar[:, None], spread + torch.from_numpy(mean).square().mean()
    error = spread * (1 - signal) / (signal * spread + 1 - signal)  # of x_0_hat, [T, 64]
    last = signal[-1]
    start = 0.5 * (last * kept - last - torch.log1p(-last)).sum()
    mean_error = schedule.posterior_mean_coef_x_0[1:, None].square() * error[1:]
    steps = (0.5 * mean_error / schedule.posterior_variance[1:, None]).sum()
    variance = schedule.posterior_log_variance_clipped[0].exp()
    level = 1 / SCALE
    end = (0.5 * torch.log(2 * torch.pi * variance) + 0.5 * error[0] / variance - np.log(level)).sum()
    return float((start + steps + end) / (SIZE**2 * np.log(2)))


if __name__ == "__main__":
    main()
