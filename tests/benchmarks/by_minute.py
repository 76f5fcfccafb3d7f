"""How long good digits take: of a run's checkpoints, what share of samples is read, and their distance, against minutes.

    python pipelines/train.py mnist --data.source MNIST_FOLDER --train.steps STEPS --train.keep-every 1000
    python tests/benchmarks/by_minute.py MNIST_FOLDER RUN

RUN is the training run's folder. Minutes are those of its steps, by the speed that it logged, or by --images-per-s where other work
ran beside it; what else it does comes on top.
Samples are drawn as the recipe says, the same seeds at each checkpoint; read by the classifier of readable.py, and held against
all 60,000 training images by random_conv. A table on stdout, and docs/pictures/mnist_minutes.png.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray
from readable import CONFIDENT, classifier, idx, read

from ddpm_core.api.model import Model
from ddpm_core.artifacts.checkpoint import HistoryRow, checkpoint_uri, read_checkpoint, read_weights
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.evaluation.features.random_conv import extract
from ddpm_core.evaluation.frechet import FeatureStats, merge_all
from pipelines.measuring.model_figures import sample_distance
from pipelines.recipes.recipes import make

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "mnist_minutes.png"
INK, FAINT, SHARE, DISTANCE = "#3b3832", "#b9b6ae", "#2f6b7e", "#9a5b13"
SHOWN = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("mnist", type=Path)
    parser.add_argument("run")
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--images-per-s", type=float)
    parser.add_argument(
        "--every", type=int, default=1, help="only checkpoints at multiples of so many steps, and the last"
    )
    args = parser.parse_args()
    training, request = idx(args.mnist, "train-images"), make("mnist").sample
    network = classifier(training, idx(args.mnist, "train-labels"), epochs=3)
    batches = torch.from_numpy(training)[:, None].split(500)
    reference = merge_all([FeatureStats.from_features(extract(batch)) for batch in batches])
    kept = CheckpointStore(args.run).steps()
    steps = [step for step in kept if step % args.every == 0 or step == kept[-1]]
    history = read_checkpoint(checkpoint_uri(args.run, steps[-1])).history
    minutes, shares, distances, shown = [], [], [], []
    for step in steps:
        model = Model.from_weights(read_weights(checkpoint_uri(args.run, step)))
        distance, images = sample_distance(model, args.num_images, request, reference, args.num_images)
        digits = images[:, 0].numpy()
        minutes.append(minutes_to(history, step, args.images_per_s))
        shares.append(float(read(network, digits)[0].mean()))
        distances.append(distance)
        shown.append(digits[:SHOWN])
        print(
            f"step {step:6,}  {minutes[-1]:5.1f} minutes  {shares[-1]:.1%} read with {CONFIDENT}  distance {distance:.3f}"
        )
    draw(minutes, shares, distances, shown)


def minutes_to(history: list[HistoryRow], step: int, images_per_s: float | None) -> float:
    """Of training, to a step, at this speed, or at those that were logged."""
    rows = [row for row in history if row["step"] <= step]
    before, seconds = 0, 0.0
    for row in rows:
        seconds += (row["images_seen"] - before) / (images_per_s or row["images_per_s"])
        before = int(row["images_seen"])
    return seconds / 60


def draw(minutes: list[float], shares: list[float], distances: list[float], shown: list[NDArray[np.uint8]]) -> None:
    """The two curves, and below them the same seeds at each checkpoint."""
    figure = Figure(figsize=(11, 4.0 + 0.42 * len(shown)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, height_ratios=[3.4, 0.42 * len(shown)])
    left, right = above.subplots(1, 2)
    left.plot(minutes, [100 * share for share in shares], "o-", color=SHARE, markersize=4.5)
    left.set_title(
        f"% of samples that a classifier reads with confidence {CONFIDENT}", loc="left", color=INK, fontsize=11
    )
    left.set_ylim(0, 100)
    right.plot(minutes, distances, "o-", color=DISTANCE, markersize=4.5)
    right.set_title("fd_random_conv to the training images", loc="left", color=INK, fontsize=11)
    right.set_yscale("log")
    right.yaxis.set_major_locator(FixedLocator([0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]))
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_locator(NullLocator())
    for axes in (left, right):
        axes.set_xlim(0)
        axes.set_xlabel("minutes of training, 2 cores", color=INK)
        axes.tick_params(colors=INK, labelsize=9)
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
    for axes, digits, minute in zip(
        np.ravel(below.subplots(len(shown), 1, squeeze=False)), shown, minutes, strict=True
    ):
        axes.imshow(np.concatenate(list(digits), axis=1), cmap="gray", vmin=0, vmax=255)
        axes.set_ylabel(f"{minute:.0f} min", rotation=0, ha="right", va="center", color=INK, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    figure.savefig(PICTURE)


if __name__ == "__main__":
    main()
