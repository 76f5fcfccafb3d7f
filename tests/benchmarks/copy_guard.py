"""What the copy guard finds: copies planted among real unseen images, and how many unseen images it accuses.

    nice .venv/bin/python tests/benchmarks/copy_guard.py --mnist /work/shared/data/mnist \\
        --cifar10 /work/shared/data/cifar10-jpeg/cifar10_jpeg.tar.gz --table copy_table.md

Prints markdown. `--train-images 20000` is quicker. The training images are the source's own, without 2,000 that play
honest generated images; the held-out ones are the source's test images. Each kind of copy is planted 50 times.
"""

import argparse
import functools
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ddpm_core.data.images import to_pixels
from ddpm_core.data.sources import open_source
from ddpm_core.evaluation.copies import CopyReport, CopySearch, judge_copies, merge_searches, search_copies
from ddpm_core.evaluation.shares import Share
from ddpm_core.types import Tensor

UNSEEN = 2_000
PART = 5_000
Pixels = NDArray[np.uint8]
"""[n, h, w, c]"""


def read(uri: str, size: int, channels: int) -> tuple[Pixels, Pixels]:
    """The training images in a random order, and the test images in theirs."""
    source = open_source(uri)
    train, test = [], []
    for number in range(source.num_images):
        raw = source.read(number)
        held = raw.name.startswith(("test", "t10k"))
        (test if held else train).append(to_pixels(raw.data, size, channels))
    order = np.random.default_rng(0).permutation(len(train))
    return np.stack(train)[order], np.stack(test)


def recompressed(images: Pixels, quality: int) -> Pixels:
    """Through JPEG and back."""
    out = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(file)).reshape(image.shape))
    return np.stack(out)


def noisy(images: Pixels, sigma: float) -> Pixels:
    noise = np.random.default_rng(1).normal(0.0, sigma, images.shape)
    return np.clip(np.round(images + noise), 0, 255).astype(np.uint8)


def shifted(images: Pixels) -> Pixels:
    """One pixel to the right; the edge is repeated."""
    return np.concatenate([images[:, :, :1], images[:, :, :-1]], axis=2)


PLANTINGS: dict[str, Callable[[Pixels], Pixels]] = {
    "exact": lambda images: images,
    "mirrored": lambda images: images[:, :, ::-1],
    "JPEG, quality 75": lambda images: recompressed(images, 75),
    "JPEG, quality 50": lambda images: recompressed(images, 50),
    "noise, sigma 5 levels": lambda images: noisy(images, 5.0),
    "noise, sigma 15 levels": lambda images: noisy(images, 15.0),
    "brightness + 10 levels": lambda images: np.clip(images.astype(np.int64) + 10, 0, 255).astype(np.uint8),
    "contrast x 0.9": lambda images: np.round(images * 0.9).astype(np.uint8),
    "shifted by one pixel": shifted,
}
MUST = ("exact", "mirrored", "JPEG, quality 75")


def tensor(images: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def search(queries: Pixels, train: Pixels) -> CopySearch:
    """By parts, as workers would."""
    parts = (
        search_copies(tensor(queries), tensor(train[start : start + PART]), first_index=start)
        for start in range(0, len(train), PART)
    )
    return functools.reduce(merge_searches, parts)


def rows_of(found: CopySearch, rows: list[int]) -> CopySearch:
    """The search for some of the queries."""
    sides = (
        type(side)(squared=side.squared[rows], indices=side.indices[rows]) for side in (found.plain, found.mirrored)
    )
    plain, mirrored = sides
    return CopySearch(plain=plain, mirrored=mirrored, shape=found.shape)


def told(share: Share) -> str:
    return f"{share.count} of {share.total} = {share.rate:.2%} ({share.low:.2%} to {share.high:.2%})"


def verdict(report: CopyReport) -> str:
    return f"{told(report.generated)}: {'suspicious' if report.suspicious else 'not suspicious'}"


def measure(name: str, images: tuple[Pixels, Pixels], train_images: int, plants: int) -> list[str]:
    """The lines of one data set."""
    began = time.perf_counter()
    train, test = images
    unseen, train = train[:UNSEEN], train[UNSEEN:][:train_images]
    originals = train[np.random.default_rng(2).choice(len(train), plants, replace=False)]
    planted = np.concatenate([make(originals) for make in PLANTINGS.values()])
    generated, held_out = search(np.concatenate([unseen, planted]), train), search(test, train)
    honest = list(range(UNSEEN))
    report = judge_copies(rows_of(generated, honest), held_out)
    lines = [
        f"## {name}: {len(train):,} training images, {len(test):,} held-out, {report.num_purged} of these purged",
        "",
        f"threshold {report.threshold:.3f} (purged: {report.purge_rule})",
        "",
        "| what | suspects (95% interval) |",
        "|---|---|",
        f"| held-out, other half, purged | {told(report.held_out)} |",
        f"| held-out, other half, near-duplicates put back | {told(report.held_out_unpurged)} |",
        f"| real unseen images as generated, nothing purged | {verdict(report)} |",
    ]
    for place, kind in enumerate(PLANTINGS):
        copies = list(range(UNSEEN + place * plants, UNSEEN + (place + 1) * plants))
        found = judge_copies(rows_of(generated, copies), held_out).generated
        lines.append(f"| planted: {kind} | {told(found)} |")
    few = list(range(UNSEEN, UNSEEN + len(MUST) * plants))
    mixed = judge_copies(rows_of(generated, honest + few), held_out)
    lines.append(f"| {len(few)} planted ({', '.join(MUST)}) among the unseen | {verdict(mixed)} |")
    return [*lines, "", f"{time.perf_counter() - began:.0f} s, {torch.get_num_threads()} threads", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="folder of idx files")
    parser.add_argument("--cifar10", help="archive of class folders below train/ and test/")
    parser.add_argument("--train-images", type=int, default=60_000, help="at the most")
    parser.add_argument("--plants", type=int, default=50, help="of each kind")
    parser.add_argument("--table", type=Path, help="where the printed text is written too")
    given = parser.parse_args()
    lines: list[str] = []
    for name, uri, size, channels in (("MNIST", given.mnist, 28, 1), ("CIFAR-10, as JPEG", given.cifar10, 32, 3)):
        if uri is not None:
            found = measure(name, read(uri, size, channels), given.train_images, given.plants)
            print("\n".join(found), flush=True)
            lines += found
    if given.table is not None:
        given.table.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
