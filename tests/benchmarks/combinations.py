"""Every sampler with every schedule, prediction and spacing: on data whose flow is known, and on digits that were learnt.

    python tests/benchmarks/combinations.py known
    python tests/benchmarks/combinations.py train FOLDER
    python tests/benchmarks/combinations.py learnt FOLDER
    python tests/benchmarks/combinations.py calls FOLDER --also mnist=RUN_URI

`known` takes a minute: the error of x_0 against the exact probability-flow ODE of a mixture of two normals, as a multiple
of DDIM's at as many network passes. `train` trains the recipe `digits` once for each schedule and prediction (31 runs, a
minute of a core each); what stands is kept. `learnt` draws from each of them and measures the Fréchet distance to the
training images, as a multiple of DDIM's over linspace: an hour. `calls` draws docs/pictures/samplers.png: distance against
network passes, the spread over sets of seeds. Each prints Markdown; docs/samplers.md has what came out.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import get_args

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit"))

from known_data import line_of, probability_flow  # noqa: E402

from ddpm_core.api.loading import load  # noqa: E402
from ddpm_core.api.model import Model  # noqa: E402
from ddpm_core.artifacts.manifest import read_index  # noqa: E402
from ddpm_core.diffusion.process import Prediction  # noqa: E402
from ddpm_core.diffusion.respacing import Spacing, respace, spaced_timesteps  # noqa: E402
from ddpm_core.diffusion.reverse import ReverseConfig, ReverseProcess  # noqa: E402
from ddpm_core.diffusion.sampler_config import SamplerConfig, SamplerName  # noqa: E402
from ddpm_core.diffusion.samplers import sample  # noqa: E402
from ddpm_core.diffusion.schedule import ScheduleConfig, ScheduleName, make_schedule  # noqa: E402
from ddpm_core.errors import InputError  # noqa: E402
from ddpm_core.evaluation.features.random_conv import extract  # noqa: E402
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance  # noqa: E402
from ddpm_core.sampling.config import SampleConfig  # noqa: E402
from ddpm_core.types import Tensor  # noqa: E402
from pipelines.measuring.image_sets import SplitImages  # noqa: E402

SCHEDULES = [name for name in get_args(ScheduleName) if name != "given"]
PREDICTIONS, SPACINGS = get_args(Prediction), get_args(Spacing)
PASSES = (5, 10, 20, 50)
DATA = line_of([0.4, 0.6], [-0.6, 0.5], [0.2, 0.1])
X_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 1, 9)
LOOKS: dict[SamplerName, tuple[str, str]] = {
    "ancestral": ("ancestral", "#a3483f"),
    "ddim": ("DDIM", "#8a857a"),
    "dpm_solver": ("DPM-Solver++(2M)", "#9a5b13"),
    "heun": ("Heun", "#2f6b7e"),
}
INK, FAINT = "#3b3832", "#b9b6ae"


def sampler_of(name: SamplerName, passes: int, spacing: Spacing, **more: object) -> SamplerConfig:
    """With about so many network passes: Heun takes two a step, but for the last."""
    return SamplerConfig(name=name, num_steps=(passes + 1) // 2 if name == "heun" else passes, spacing=spacing, **more)


def combinations() -> Iterator[tuple[ScheduleName, Prediction]]:
    """Those that the library does not refuse."""
    for schedule, prediction in itertools.product(SCHEDULES, PREDICTIONS):
        if (schedule, prediction) != ("jsd", "eps"):
            yield schedule, prediction


# On data whose flow is known.


@cache
def flow(schedule: ScheduleName, begin: int) -> Tensor:
    """Where the exact ODE takes x_T from a step. (From alpha_bar = 0 it cannot be begun; from the step before it can.)"""
    whole = make_schedule(ScheduleConfig(name=schedule))
    begin = min(begin, 998) if whole.ends_in_noise else begin
    return probability_flow(DATA, respace(whole, list(range(begin + 1))), X_T, clean=True)


def known_error(schedule: ScheduleName, prediction: Prediction, config: SamplerConfig) -> float | None:
    """Root mean square error of x_0; None where the library refuses."""
    numbers = make_schedule(ScheduleConfig(name=schedule))
    reverse = ReverseConfig(prediction=prediction)
    p = ReverseProcess(denoiser=DATA.denoiser(numbers, prediction), schedule=numbers, config=reverse)
    try:
        x_0 = sample(p, config, X_T, lambda t: X_T)
    except InputError:
        return None
    begin = spaced_timesteps(1000, config.num_steps or 1000, config.spacing)[-1]
    return float((x_0 - flow(schedule, begin)).square().mean().sqrt())


def known() -> None:
    print("| sampler | spacing | passes | combinations | median | worst | where |\n|---|---|---|---|---|---|---|")
    for name, spacing, passes in itertools.product(("dpm_solver", "heun"), SPACINGS, PASSES):
        found = []
        for schedule, prediction in combinations():
            ours = known_error(schedule, prediction, sampler_of(name, passes, spacing, clip="none"))
            ddim = known_error(schedule, prediction, sampler_of("ddim", passes, spacing, clip="none"))
            if ours is not None and ddim is not None:
                found.append((ours / ddim, f"{schedule}, {prediction}"))
        worst, where = max(found)
        middle = statistics.median(ratio for ratio, _ in found)
        print(f"| {name} | {spacing} | {passes} | {len(found)} | {middle:.2f} | {worst:.2f} | {where} |")


# On digits that were learnt.

AS_IT_WAS = ("--train.steps", "640", "--train.batch-size", "64", "--train.learning-rate", "1e-3")
"""The recipe before its sweep, so that figures compare with those recorded."""


def command(*args: str) -> str:
    run = subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(args)}\n{run.stdout}\n{run.stderr}")
    return run.stdout


def train(folder: Path) -> None:
    store = ["--store", str(folder)]
    dataset = json.loads(command("pipelines/shard.py", "digits", *store, "--json").splitlines()[-1])["dataset"]

    def one(pair: tuple[ScheduleName, Prediction]) -> None:
        schedule, prediction = pair
        flags = ["--schedule.name", schedule, "--reverse.prediction", prediction, *AS_IT_WAS, "--dry-run", "--json"]
        config = folder / f"{schedule}-{prediction}.json"
        config.write_text(command("pipelines/train.py", "digits", *store, *flags).splitlines()[-1])
        command("-m", "ddpm_core.training", dataset, str(folder / "runs" / config.stem), str(config))
        print(config.stem, flush=True)

    os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, combinations()))


@cache
def real_stats(dataset_uri: str) -> FeatureStats:
    """Of the training images."""
    images = SplitImages(read_index(dataset_uri), "train")
    parts = [some for part in images.parts for some in images.read(part, 256)]
    return stats_of(torch.cat(parts))


def stats_of(images: Tensor) -> FeatureStats:
    return FeatureStats.from_features(torch.cat([extract(some) for some in images.split(256)]))


def distance(model: Model, config: SamplerConfig, seeds: range) -> float | None:
    """Fréchet, on random_conv; None where the library refuses."""
    request = SampleConfig(sampler=config, batch_size=256)
    try:
        model.check(request)
    except InputError:
        return None
    assert model.weights is not None
    images = model.generate(torch.tensor(seeds), request)
    return frechet_distance(stats_of(images), real_stats(model.weights.dataset_uri))


def learnt(folder: Path, num_images: int) -> None:
    """All samplers over linspace; and all spacings, of the schedules that differ most at their ends."""
    every: dict[tuple[int, SamplerName, Spacing], list[tuple[float, str]]] = {}
    print("| schedule, prediction | passes | DDIM | " + " | ".join(f"{n}, {s}" for n, s in _cells()) + " |")
    print("|---" * (3 + len(_cells())) + "|")
    for schedule, prediction in combinations():
        run = folder / "runs" / f"{schedule}-{prediction}"
        if not (run / "checkpoints").exists():
            continue
        model = load(str(run))
        for passes in PASSES[1:3]:
            base = distance(model, sampler_of("ddim", passes, "linspace"), range(num_images))
            assert base is not None
            found = [
                distance(model, sampler_of(name, passes, spacing), range(num_images)) for name, spacing in _cells()
            ]
            ratios = " | ".join("refused" if each is None else f"{each / base:.2f}" for each in found)
            for cell, each in zip(_cells(), found, strict=True):
                if each is not None:
                    every.setdefault((passes, *cell), []).append((each / base, f"{schedule}, {prediction}"))
            print(f"| {schedule}, {prediction} | {passes} | {base:.1f} | {ratios} |", flush=True)
    print("\n| sampler | spacing | passes | combinations | median | worst | where |\n|---|---|---|---|---|---|---|")
    for (passes, name, spacing), ratios_of in sorted(every.items(), key=lambda item: (item[0][1:], item[0][0])):
        worst, where = max(ratios_of)
        middle = statistics.median(ratio for ratio, _ in ratios_of)
        print(f"| {name} | {spacing} | {passes} | {len(ratios_of)} | {middle:.2f} | {worst:.2f} | {where} |")


def _cells() -> list[tuple[SamplerName, Spacing]]:
    """Samplers and spacings, but for DDIM over linspace, which the others are measured by."""
    return [pair for pair in itertools.product(LOOKS, SPACINGS) if pair != ("ddim", "linspace")]


# Distance against network passes.


def calls(models: dict[str, str], num_images: int, num_sets: int, passes: list[int]) -> None:
    """Mean and standard deviation over sets of seeds."""
    print("| model | sampler | passes | distance | spread |\n|---|---|---|---|---|")
    measured: dict[str, dict[SamplerName, list[tuple[float, float]]]] = {}
    for title, uri in models.items():
        model, measured[title] = load(uri), {}
        for name, count in itertools.product(LOOKS, passes):
            sets = [range(i * num_images, (i + 1) * num_images) for i in range(num_sets)]
            found = [distance(model, sampler_of(name, count, "linspace"), seeds) for seeds in sets]
            values = [each for each in found if each is not None]
            row = statistics.mean(values), statistics.stdev(values)
            measured[title].setdefault(name, []).append(row)
            print(f"| {title} | {name} | {count} | {row[0]:.1f} | {row[1]:.1f} |", flush=True)
    draw(measured, passes)


def draw(measured: dict[str, dict[SamplerName, list[tuple[float, float]]]], passes: list[int]) -> None:
    figure = Figure(figsize=(5.2 * len(measured), 4.2), layout="constrained", facecolor="white")
    for place, (title, by_name) in enumerate(measured.items(), 1):
        axes = figure.add_subplot(1, len(measured), place)
        for name, rows in by_name.items():
            label, colour = LOOKS[name]
            means = [mean for mean, _ in rows]
            low, high = ([mean + sign * spread for mean, spread in rows] for sign in (-1, 1))
            axes.plot(passes, means, color=colour, marker="o", ms=3.5, lw=1.6, label=label)
            axes.fill_between(passes, low, high, color=colour, alpha=0.2, lw=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis, ticks in ((axes.xaxis, passes), (axes.yaxis, [10, 20, 50, 100, 200, 500])):
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter("{x:g}")
        axes.set_xlabel("network passes an image", color=INK)
        axes.set_title(title, color=INK, fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=FAINT, alpha=0.4, lw=0.5)
        if place == 1:
            axes.set_ylabel("Fréchet distance to the training images", color=INK)
            axes.legend(frameon=False, fontsize=9)
    path = ROOT / "docs" / "pictures" / "samplers.png"
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})  # type: ignore[no-untyped-call]
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["known", "train", "learnt", "calls"])
    parser.add_argument("folder", type=Path, nargs="?", help="a store for the runs")
    parser.add_argument("--also", action="append", default=[], metavar="TITLE=RUN_URI", help="another panel of `calls`")
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--num-sets", type=int, default=5)
    parser.add_argument("--passes", type=int, nargs="+", default=[5, 10, 20, 50])
    args = parser.parse_args()
    match args.what:
        case "known":
            known()
        case "train":
            train(args.folder)
        case "learnt":
            learnt(args.folder, args.num_images)
        case "calls":
            models = {"digits": str(args.folder / "runs" / "linear-eps")}
            models |= dict(each.split("=", 1) for each in args.also)
            calls(models, args.num_images, args.num_sets, args.passes)


if __name__ == "__main__":
    main()
