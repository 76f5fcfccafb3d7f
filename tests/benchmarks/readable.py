"""How many generated digits can be read: by a classifier that is trained here, on the real training set.

    python tests/benchmarks/readable.py MNIST_FOLDER SAMPLES [SAMPLES ...]

MNIST_FOLDER holds the four idx files; SAMPLES are sample sets, as sample.py and workflow.py leave them. Prints what the
classifier reads of the real test images, then for each set the share that is read with confidence 0.9 or more, and of each class.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ddpm_core.artifacts.sample_set import read_images, read_sample_set
from ddpm_core.data.images import decode_png

CONFIDENT = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("mnist", type=Path)
    parser.add_argument("samples", nargs="+")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    network = classifier(idx(args.mnist, "train-images"), idx(args.mnist, "train-labels"), args.epochs)
    real, labels = idx(args.mnist, "t10k-images"), idx(args.mnist, "t10k-labels")
    sure, classes = read(network, real)
    print(f"real test images: {(classes == labels).mean():.2%} rightly, {sure.mean():.1%} with confidence {CONFIDENT}")
    for uri in args.samples:
        images = np.stack([decode_png(png)[..., 0] for _, png in read_images(read_sample_set(uri))])
        sure, classes = read(network, images)
        shares = np.bincount(classes, minlength=10) / len(classes)
        said = " ".join(f"{share:.0%}" for share in shares)
        print(f"{uri}: {sure.mean():.1%} of {len(images)} with confidence {CONFIDENT}; classes 0 to 9: {said}")


def classifier(images: NDArray[np.uint8], labels: NDArray[np.uint8], epochs: int) -> nn.Module:
    """Two convolutions and two layers, with dropout; Adam."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(128):
            loss = nn.functional.cross_entropy(network(pixels(images[rows])), torch.from_numpy(labels[rows]).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


@torch.inference_mode()
def read(network: nn.Module, images: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each is read with confidence, and as what."""
    parts = [network(pixels(images[first : first + 500])).softmax(1) for first in range(0, len(images), 500)]
    confidence, classes = torch.cat(parts).max(1)
    return (confidence >= CONFIDENT).numpy(), classes.numpy()


def pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    """[n, 28, 28] to [n, 1, 28, 28] in [0, 1]."""
    return torch.from_numpy(images).float().div(255)[:, None]


def idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """An idx file, packed or not."""
    (file,) = folder.glob(f"{name}*")
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    shape = np.frombuffer(data, ">u4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape).copy()


if __name__ == "__main__":
    main()
