"""One trajectory, however many workers: loss and gradient norm at each step, the weights at the end, and whose samples.

    .venv/bin/python tests/distributed/trajectory.py --steps 50 --workers 1 2 3 4

Float32 under torchrun and gloo, constant learning rate, clipping that acts, dropout on, 8 lanes: three workers cannot share
them evenly. Prints the table of the largest relative differences to one worker.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import small_run
import torch

from ddpm_core.artifacts.checkpoint import Checkpoint
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.artifacts.manifest import read_index
from ddpm_core.data.loader import StreamConfig, TrainingStream
from ddpm_core.data.reader import ImageReader


def keys_of(dataset: str, num_workers: int, steps: int, batch_size: int, lanes: int, window: int) -> list[list[int]]:
    """The sorted (shard, row) numbers that all workers together read in each step."""
    index = read_index(dataset)
    config = StreamConfig(batch_size=batch_size, lanes=lanes, window=window, seed=0)
    read: list[list[int]] = [[] for _ in range(steps)]
    for worker in range(num_workers):
        reader = ImageReader(index, "train", Path("/nonexistent"))
        stream = TrainingStream(reader, config, worker=worker, num_workers=num_workers)
        for step in range(steps):
            batch = stream.batch(step)
            shard, row = stream.order.locate(batch.positions[batch.weights > 0].numpy())
            read[step] += (shard * 10**6 + row).tolist()
    return [sorted(keys) for keys in read]


def largest(ours: Checkpoint, one: Checkpoint, column: str) -> float:
    """The largest relative difference of a column of the history."""
    a, b = (np.array([row[column] for row in each.history]) for each in (ours, one))
    return float(np.max(np.abs(a - b) / np.abs(b)))


def weights_apart(ours: Checkpoint, one: Checkpoint) -> float:
    """The largest difference of a weight, as a part of the largest one of its tensor.

    The biases of attention's keys are left out: a softmax does not see them, their gradient is zero but for rounding, and
    Adam makes steps of full length of that.
    """
    seen = {name: tensor for name, tensor in one.model.items() if not name.endswith("key.bias")}
    return max(float((ours.model[name] - tensor).abs().max() / tensor.abs().max()) for name, tensor in seen.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4])
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = small_run.make_dataset(folder)
        config = small_run.write_config(
            folder / "config.json", steps=args.steps, log_every=1, checkpoint_every=args.steps, learning_rate=2e-4
        )
        found: dict[int, Checkpoint] = {}
        for count in args.workers:
            run = str(folder / f"run-{count}")
            small_run.train(count, dataset, run, config, folder / f"{count}.log")
            checkpoint = CheckpointStore(run).newest()
            assert checkpoint is not None
            found[count] = checkpoint
        one, train = found[args.workers[0]], found[args.workers[0]].config["train"]
        clipped = sum(row["grad_norm"] > train["grad_clip"] for row in one.history)
        print(f"{args.steps} steps of {train['batch_size']} images, clipped in {clipped}, float32, dropout 0.1\n")
        print("| workers | loss | gradient norm | final weights | sample keys of each batch |")
        print("|---|---|---|---|---|")
        order = (args.steps, train["batch_size"], train["lanes"], train["window"])
        expected = keys_of(dataset, args.workers[0], *order)
        for count, ours in found.items():
            same = "the same" if keys_of(dataset, count, *order) == expected else "OTHERS"
            figures = (largest(ours, one, "loss"), largest(ours, one, "grad_norm"), weights_apart(ours, one))
            print(f"| {count} | " + " | ".join(f"{figure:.1e}" for figure in figures) + f" | {same} |")


if __name__ == "__main__":
    main()
