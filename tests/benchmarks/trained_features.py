"""A Fréchet distance on features that know what the images show: of a classifier that is trained here, on a dataset's own labels.

    python tests/benchmarks/trained_features.py DATASET SAMPLES [SAMPLES ...]

DATASET is one that shard.py wrote, with labels and a test split; SAMPLES are sample sets. Prints how many of the real test images
the classifier names rightly; then, for as many test images and for each set, the distance to the training images on its last 64
features, and the share that it names with confidence 0.9 or more. It is nobody's published figure: it compares what stands in one
output, where features of a network that nobody trained see edges and colours alone.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from ddpm_core.artifacts.manifest import DatasetIndex, read_index
from ddpm_core.artifacts.sample_set import read_images, read_sample_set
from ddpm_core.data.images import decode_png
from ddpm_core.data.reader import ImageReader
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance
from ddpm_core.types import Tensor

CONFIDENT = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("dataset")
    parser.add_argument("samples", nargs="+")
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    dataset = read_index(args.dataset)
    train, labels = split(dataset, "train")
    test, right = split(dataset, "test")
    began = time.monotonic()
    body, head = classifier(train, labels, len(dataset.class_names), args.epochs)
    named = torch.cat([head(part) for part in features(body, test).split(500)]).argmax(1)
    print(
        f"real test images: {(named == right).float().mean():.1%} rightly, after {time.monotonic() - began:.0f} s of training"
    )
    sets = {uri: generated(uri) for uri in args.samples}
    few = min(map(len, sets.values()))
    rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:few]
    wanted = FeatureStats.from_features(features(body, train))
    for name, images in {f"{few} real test images": test[rows], **sets}.items():
        found = features(body, images)
        distance = frechet_distance(FeatureStats.from_features(found[:few]), wanted)
        confidence, classes = head(found).softmax(1).max(1)
        shares = classes.bincount(minlength=len(dataset.class_names)) / len(images)
        print(
            f"{name}: distance {distance:.3f}; {(confidence >= CONFIDENT).float().mean():.0%} named with confidence {CONFIDENT}; "
            f"classes {' '.join(f'{share:.0%}' for share in shares)}"
        )


def generated(uri: str) -> Tensor:
    """A sample set's images, [n, c, h, w] in 0..255."""
    return torch.stack([torch.from_numpy(decode_png(png)) for _, png in read_images(read_sample_set(uri))]).permute(
        0, 3, 1, 2
    )


def split(dataset: DatasetIndex, name: str) -> tuple[Tensor, Tensor]:
    """All its images, [n, c, h, w] in 0..255, and their labels, [n]."""
    with tempfile.TemporaryDirectory() as cache:
        reader = ImageReader(dataset, name, Path(cache))
        shard, row = reader.places(range(reader.num_samples))
        return reader.images(shard, row), reader.labels(shard, row)


def classifier(images: Tensor, labels: Tensor, num_classes: int, epochs: int) -> tuple[nn.Module, nn.Module]:
    """Convolutions to 64 features, and a layer from these to the classes; mirrored and moved images, one-cycle SGD."""
    torch.manual_seed(0)

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    body = nn.Sequential(
        *block(images.shape[1], 32, 1), *block(32, 64, 2), *block(64, 128, 1), *block(128, 128, 2), *block(128, 128, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    head = nn.Linear(64, num_classes)
    both = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(both, 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(images) // 128)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        for rows in torch.randperm(len(images))[: len(images) // 128 * 128].split(128):
            loss = nn.functional.cross_entropy(head(body(moved(pixels(images[rows])))), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
        print(f"the classifier's epoch {epoch + 1} of {epochs}: loss {loss.item():.2f}", flush=True)
    return body.eval().requires_grad_(False), head.eval().requires_grad_(False)


def moved(images: Tensor) -> Tensor:
    """Half of them mirrored, the batch moved by up to 4 pixels."""
    images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images, images.flip(3))
    x, y = (int(each) for each in torch.randint(0, 9, (2,)))
    height, width = images.shape[2:]
    return nn.functional.pad(images, (4, 4, 4, 4))[:, :, y : y + height, x : x + width]


@torch.inference_mode()
def features(body: nn.Module, images: Tensor) -> Tensor:
    """[n, 64]."""
    return torch.cat([body(pixels(images[first : first + 500])) for first in range(0, len(images), 500)])


def pixels(images: Tensor) -> Tensor:
    """0..255 to [-1, 1]."""
    return images.to(memory_format=torch.channels_last).float().div(127.5).sub(1)


if __name__ == "__main__":
    main()
