"""Judge a model's samples against the images it was trained on: the Fréchet distance, neighbours, and a report to look at.

examples:
  python pipelines/evaluate.py                                     # models:/ddpm-digits@champion
  python pipelines/evaluate.py mnist --model models:/ddpm-mnist@candidate --evaluate.num-images 2048
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here

from dataclasses import dataclass, field

import tyro

from ddpm_core.evaluation.config import EvaluateConfig
from pipelines.cluster.placement import for_a_cpu, for_sampling
from pipelines.door import Outcome, as_recipe, check_sampling, open_door, ui
from pipelines.models import dataset_of
from pipelines.recipes import SampleStage, default_store


@dataclass(frozen=True, kw_only=True)
class EvaluateDoor:
    """Whose samples to judge, and how."""

    recipe: tyro.conf.Suppress[str] = ""
    store: str = field(default_factory=default_store)
    """Where all artifacts go: a folder or s3://bucket/prefix."""
    model: str | None = None
    """Whose samples: models:/NAME@ALIAS, models:/NAME/VERSION, or the URI of a checkpoint or run.
    Default: the recipe's champion, or its candidate while there is no champion."""
    sample: SampleStage = field(default_factory=SampleStage)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def check(door: EvaluateDoor) -> None:
    """That a block fits somewhere."""
    check_sampling(door.sample)


def plan(door: EvaluateDoor) -> list[str]:
    """What would be measured."""
    whose = door.model or f"models:/ddpm-{door.recipe}@champion"
    return [
        f"sample: {door.sample.num_images:,} images of {whose}, unless they are there",
        f"evaluate: the first {door.evaluate.num_images:,} of them against the model's dataset, into {door.store}",
    ]


def run(door: EvaluateDoor) -> Outcome:
    """Sample what is not there yet, then evaluate."""
    from pipelines.line import open_line

    with open_line(as_recipe(door), for_sampling(door.sample), for_a_cpu("evaluate")) as line:
        weights = line.find_weights(door.model)
        index = dataset_of(weights)
        evaluated = line.evaluate(weights, line.sample(weights), index)
    return Outcome(
        made={"figure": evaluated.summary, "report": evaluated.page_uri},
        figures=evaluated.figures,
        next=ui(door.store),
    )


if __name__ == "__main__":
    open_door(EvaluateDoor, __doc__, check=check, plan=plan, run=run)
