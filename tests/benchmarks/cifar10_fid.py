"""Our FID held against a published figure: CIFAR-10's training images against its test images, 3.15.

    python tests/benchmarks/cifar10_fid.py --source cifar-10-python.tar.gz [--weights pt_inception-2015-12-05-6726825d.pth]

The figure is that of dgm-eval (Stein et al. 2023), of the lossless images (the python batches), the published weights and
TensorFlow's resize. Exit code 1 if ours is further than 0.02 from it. The weights are fetched once, unless a file is named;
with others, or with --limit, it prints the distance and compares with nothing. 60,000 passes of the Inception network: minutes
on a GPU (taken if there is one), hours on a CPU.
"""

import argparse
import time
from collections.abc import Iterator, Sequence

import torch

from ddpm_core.data.images import exact_pixels
from ddpm_core.data.sources import Source, open_source
from ddpm_core.errors import InputError
from ddpm_core.evaluation.config import EvaluateConfig
from ddpm_core.evaluation.features.networks import PUBLISHED, Features
from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance, merge_all
from ddpm_core.types import Tensor
from pipelines.feature_weights import find_features
from pipelines.recipes.config import default_store

EXPECTED, TOLERANCE = 3.15, 0.02
SIZES = {"train": 50_000, "test": 10_000}


def batches(source: Source, places: Sequence[int], size: int = 256) -> Iterator[Tensor]:
    for first in range(0, len(places), size):
        pixels = [exact_pixels(source.read(place).data, 32, 3) for place in places[first : first + size]]
        yield torch.stack([torch.from_numpy(each.copy()).permute(2, 0, 1) for each in pixels])


def measure(source: Source, places: Sequence[int], features: Features) -> FeatureStats:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return merge_all(FeatureStats.from_features(features.extract(each.to(device))) for each in batches(source, places))


def splits(source: Source) -> dict[str, list[int]]:
    test = source.own_splits.get("test", [])
    train = sorted(set(range(source.num_images)) - set(map(int, test)))
    found = {"train": train, "test": [int(place) for place in test]}
    if {name: len(places) for name, places in found.items()} != SIZES:
        raise InputError(
            f"the source has {len(train)} training and {len(test)} test images; expected {SIZES}: CIFAR-10"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--limit", type=int, help="of each split's images, for a trial")
    args = parser.parse_args()
    features = find_features(EvaluateConfig(features="inception", weights=args.weights), default_store())
    source = open_source(args.source)
    began, stats = time.perf_counter(), {}
    for name, places in splits(source).items():
        stats[name] = measure(source, places[: args.limit], features)
        print(f"{name}: {stats[name].count:,} images, {time.perf_counter() - began:,.0f} s", flush=True)
    found = frechet_distance(stats["test"], stats["train"])
    print(
        f"{features.figure(SIZES['train'])} of the test against the training images: {found:.4f}; published: {EXPECTED}"
    )
    if args.limit or features.sha256 != PUBLISHED:
        print("not compared: a part of the images, or other weights")
    elif abs(found - EXPECTED) > TOLERANCE:
        raise SystemExit(f"expected {EXPECTED} within {TOLERANCE}")


if __name__ == "__main__":
    main()
