"""Train a DDPM on a recipe's images, on as many workers as there are; run it again and it goes on where it was.

examples:
  python pipelines/train.py
  python pipelines/train.py mnist --data.source /data/mnist --train.num-workers 2
  python pipelines/train.py digits --name tuned --init-from models:/ddpm-digits@champion --train.steps 500
  ray job submit --working-dir . -- python pipelines/train.py
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here

from dataclasses import dataclass

from pipelines.cluster.placement import for_a_cpu, for_training
from pipelines.door import Outcome, check_data, check_training, data_summary, open_door, typed
from pipelines.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class TrainDoor(Recipe):
    """A recipe, and where its weights begin."""

    init_from: str | None = None
    """Start from these weights instead of noise: the URI of a checkpoint, a run or a diffusers folder, or
    models:/NAME@ALIAS."""


def check(door: TrainDoor) -> None:
    """Source and workers."""
    check_data(door)
    check_training(door)


def plan(door: TrainDoor) -> list[str]:
    """The two stages."""
    train = door.train
    return [
        f"shard: {data_summary(door.data)}, unless it is there",
        f"train: {train.steps:,} steps of {train.batch_size} images on {train.num_workers} workers, into {door.store}",
    ]


def run(door: TrainDoor) -> Outcome:
    """Shard unless it is done, then train."""
    from pipelines.line import open_line

    with open_line(door, for_a_cpu("shard"), for_training(door.train), reads_source=True) as line:
        weights = line.find_weights(door.init_from) if door.init_from else None
        trained = line.train(line.shard(), weights)
        name = line.model_name
    return Outcome(
        made={
            "checkpoint": trained.checkpoint_uri,
            "previews": f"{trained.run_uri}/samples",
            **({"model": f"models:/{name}/{trained.version}"} if trained.version else {}),
        },
        figures={"step": trained.step, "images_per_s": trained.images_per_s, "run": trained.name},
        next=typed("sample.py", door.recipe, "--model", trained.checkpoint_uri, store=door.store),
    )


if __name__ == "__main__":
    open_door(TrainDoor, __doc__, check=check, plan=plan, run=run)
