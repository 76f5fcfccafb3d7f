"""The Fréchet distance from moments, beside scipy's matrix square root, in turns, in float64.

python tests/benchmarks/frechet.py --dimensions 2048 --times 3
"""

import argparse
import statistics
import time

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from ddpm_core.evaluation.frechet import FeatureStats, frechet_distance


def stats(dimensions: int, seed: int) -> FeatureStats:
    """Of twice as many features as there are dimensions."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((2 * dimensions, dimensions)) * np.geomspace(1, 1e-2, dimensions) + 0.1 * seed
    return FeatureStats.from_features(torch.from_numpy(features.astype(np.float32)))


def by_square_root(a: FeatureStats, b: FeatureStats) -> float:
    """As the usual FID programs compute it."""
    root: NDArray[np.complex128] = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root.real))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    a, b = stats(args.dimensions, 0), stats(args.dimensions, 1)
    seconds: dict[str, list[float]] = {"ours": [], "sqrtm": []}
    found = {}
    for _ in range(args.times):
        for name, distance in (("ours", frechet_distance), ("sqrtm", by_square_root)):
            began = time.perf_counter()
            found[name] = distance(a, b)
            seconds[name].append(time.perf_counter() - began)
    ours, theirs = (statistics.median(seconds[name]) for name in ("ours", "sqrtm"))
    apart = abs(found["ours"] - found["sqrtm"]) / found["sqrtm"]
    print(
        f"{args.dimensions} dimensions: {ours:.2f} s, sqrtm {theirs:.2f} s: {theirs / ours:.1f} times as fast, {apart:.0e} apart"
    )


if __name__ == "__main__":
    main()
