"""Raw images in, a Dataset out: WebDataset tars with an index, sharded by parallel Ray tasks.

examples:
  python pipelines/shard.py                                        # scikit-learn's digits, into the default store
  python pipelines/shard.py mnist --data.source /data/mnist
  python pipelines/shard.py cifar10 --data.source s3://raw/photos.tar.gz --store s3://bucket/ddpm
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here
    from pipelines.cli.opening import begin

    begin()

from ddpm_core import storage
from ddpm_core.data.sharding.census import CENSUS_NAME, SHEET_NAME
from ddpm_core.errors import InputError
from ddpm_core.model.unet import check_image_size
from pipelines.cli.checks import check_data, data_census, data_summary
from pipelines.cli.command import Outcome, named_source, run_command
from pipelines.cli.invocation import typed
from pipelines.cluster.placement import for_a_cpu
from pipelines.recipes.config import Recipe, as_named

_OFTEN = (
    "data.source", "data.image_size", "data.channels", "data.fit", "data.labels", "data.test_fraction", "data.validation_fraction",
    "data.max_rejected_fraction", "data.grows", "name", "store",
)  # fmt: skip


def check(recipe: Recipe) -> None:
    """The source, and that the network can do images of this size."""
    if recipe.dataset is not None:
        raise InputError(f"dataset is {recipe.dataset}; expected raw images here (--data.source), of which one is made")
    check_data(recipe)
    # The dataset is for the recipe, whose training is what comes next; for another network it is said which one.
    check_image_size(recipe.unet, recipe.data.image_size)


def plan(recipe: Recipe) -> list[str]:
    """What would be written."""
    return [f"shard: {data_summary(recipe)}, into {recipe.store}", *data_census(recipe)]


def run(recipe: Recipe) -> Outcome:
    """Shard."""
    from pipelines.pipeline import open_pipeline

    with open_pipeline(recipe, for_a_cpu("shard"), reads_source=True) as pipeline:
        index = pipeline.shard()
    return Outcome(
        made={
            "dataset": index.uri,
            "census": storage.join(index.uri, CENSUS_NAME),
            "contact sheet": storage.join(index.uri, SHEET_NAME),
        },
        metrics={"digest": index.digest, **index.counts, "rejected": index.num_rejected},
        next=typed("train.py", as_named(recipe), *named_source(recipe), store=recipe.store),
    )


if __name__ == "__main__":
    run_command(Recipe, __doc__, check=check, plan=plan, run=run, often=_OFTEN)
