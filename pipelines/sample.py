"""Generate images, each by its own seed: the same image whatever the batch size, and wherever it is made.

examples:
  python pipelines/sample.py                                       # from models:/ddpm-digits@champion
  python pipelines/sample.py mnist --model models:/ddpm-mnist@champion --num-images 10000 --sample.num-workers 2
  python pipelines/sample.py --model /path/to/checkpoints/step-00001000 --sample.sampler.name ancestral
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here

from dataclasses import dataclass, field, replace

import tyro

from pipelines.cluster.placement import for_sampling
from pipelines.door import Outcome, as_recipe, check_sampling, open_door, typed
from pipelines.recipes import SampleStage, default_store


@dataclass(frozen=True, kw_only=True)
class SampleDoor:
    """Whose images, how many, and how."""

    recipe: tyro.conf.Suppress[str] = ""
    store: str = field(default_factory=default_store)
    """Where all artifacts go: a folder or s3://bucket/prefix."""
    model: str | None = None
    """Whose images: models:/NAME@ALIAS, models:/NAME/VERSION, or the URI of a checkpoint, a run or a diffusers folder.
    Default: the recipe's champion, or its candidate while there is no champion."""
    num_images: int | None = None
    """Images to generate, one a seed. Default: the recipe's number."""
    sample: SampleStage = field(default_factory=SampleStage)

    def __post_init__(self) -> None:
        if self.num_images is not None:
            object.__setattr__(self, "sample", replace(self.sample, num_images=self.num_images))
            object.__setattr__(self, "num_images", None)


def check(door: SampleDoor) -> None:
    """That a block fits somewhere."""
    check_sampling(door.sample)


def plan(door: SampleDoor) -> list[str]:
    """Whose images, and how."""
    sampler, first = door.sample.sampler, door.sample.first_seed
    steps, whose = sampler.num_steps or "all", door.model or f"models:/ddpm-{door.recipe}@champion"
    return [
        f"sample: {door.sample.num_images:,} images of {whose}, seeds from {first}, {sampler.name} in {steps} steps, "
        f"into {door.store}"
    ]


def run(door: SampleDoor) -> Outcome:
    """Generate what is not there yet."""
    from pipelines.line import open_line

    with open_line(as_recipe(door), for_sampling(door.sample)) as line:
        weights = line.find_weights(door.model)
        sampled = line.sample(weights)
    following = typed("evaluate.py", door.recipe, *(["--model", door.model] if door.model else []), store=door.store)
    return Outcome(
        made={"samples": sampled.samples.set_uri, "grid": sampled.grid_uri},
        figures={"images": door.sample.num_images, "computed": sampled.num_new, "images_per_s": sampled.images_per_s},
        next=following if weights.dataset_uri else "",  # a model from elsewhere has nothing to be judged against
    )


if __name__ == "__main__":
    open_door(SampleDoor, __doc__, check=check, plan=plan, run=run)
