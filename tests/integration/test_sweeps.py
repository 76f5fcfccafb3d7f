"""Sweeps on a real Ray: small, but every trial a training."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_recipe import recipe

from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.diffusion.sampler_config import SamplerConfig
from pipelines.naming import run_folder
from pipelines.pipeline import Pipeline, open_pipeline
from pipelines.recipes.config import Recipe, SweepStage
from pipelines.recipes.files import read_recipe
from pipelines.sweeping.space import read_space
from pipelines.sweeping.table import in_markdown
from pipelines.training.run import run_name

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """One store for all of them."""
    return recipe(tmp_path_factory.mktemp("store"))


def test_a_sweep_takes_the_best_further_and_goes_on_where_it_was(
    wanted: Recipe,
) -> None:
    sampler = replace(wanted.sample, sampler=SamplerConfig(name="ddim", num_steps=4))
    wanted = replace(wanted, train=replace(wanted.train, steps=4), sample=sampler, name=None)
    sweep = SweepStage(num_trials=3, num_images=16, num_rungs=2, max_concurrent=2, repeats=2)
    words = {
        "schedule.name": ("linear", "cosine", "sigmoid"),
        "train.learning-rate": ("uniform:0.001:0.002",),
        "train.batch-size": (str(wanted.train.batch_size // 2),),
    }
    with open_pipeline(wanted) as pipeline:
        index = pipeline.shard()
        swept = pipeline.sweep(sweep, read_space(words), index, "three")
        assert [row.step for row in swept.ranking] == [4, 1, 1]
        assert [len(row.repeats) for row in swept.ranking] == [2, 2, 0]
        folder = Path(swept.uri).parent
        results = {file: file.stat().st_mtime_ns for file in (folder / "results").iterdir()}
        assert len(results) == 3 + 1 + 4  # the first rung, the last one, the finalists' repeats
        assert len(list((folder / "samples").iterdir())) == len(results)

        # The winner stands where train.py looks for it; the trials' own checkpoints are gone.
        winner = replace(read_recipe(swept.winner_uri), store=wanted.store)
        assert pipeline_trained(replace(pipeline, recipe=winner), index) == winner.train.steps == 8  # of half the size
        assert not list((folder / "runs").rglob("*.safetensors"))

        # One more trial, in a wider space: what is on record is not done again.
        wider = read_space({**words, "schedule.name": (*words["schedule.name"], "quadratic")})
        more = pipeline.sweep(replace(sweep, num_trials=4), wider, index, "three")
        assert len(more.ranking) == 4
        assert {file: file.stat().st_mtime_ns for file in results} == results
        told = json.loads(Path(more.uri).read_text())
        assert (told["state"], len(told["settings"])) == ("finished", 4)
        experiment = pipeline.tracker.experiment_id
        (run,) = pipeline.tracker.client.search_runs(
            [experiment], "tags.winner LIKE '%' AND attributes.run_name = 'sweep digits'"
        )
        assert run.data.tags["mlflow.note.content"] == in_markdown(more.ranking, more.verdict)

        for space, asked, why in (
            (
                wider,
                replace(sweep, num_images=8),
                r"was begun with num_images = 16, now it is 8; give this one another",
            ),
            (read_space(words), sweep, "expected that, or a wider space"),
        ):
            with pytest.raises(ValueError, match=why):
                pipeline.sweep(asked, space, index, "three")


def test_a_sweep_by_proposals_and_asha_tells_of_what_failed(wanted: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two learning rates one diverges: its cause is its result, and the other wins."""
    sampler = replace(wanted.sample, sampler=SamplerConfig(name="ddim", num_steps=4))
    train = replace(wanted.train, steps=9, warmup_steps=0, max_skipped=0)
    wanted = replace(wanted, train=train, sample=sampler, name=None)
    sweep = SweepStage(num_trials=6, search="tpe", stopping="asha", num_images=16, num_rungs=2, repeats=0)
    space = read_space({"train.learning-rate": ("0.001", "1e30"), "schedule.name": ("linear", "cosine")})
    with open_pipeline(wanted) as pipeline:
        swept = pipeline.sweep(sweep, space, pipeline.shard(), "proposed")
    standing = [row for row in swept.ranking if not row.failed]
    assert standing[0].setting["train.learning-rate"] == 0.001
    assert standing[0].step == 9
    failed = [row for row in swept.ranking if row.failed]
    assert failed
    assert all("diverge" in row.failed or "no number" in row.failed or "finite" in row.failed for row in failed)
    assert "failed: " in capsys.readouterr().err


def pipeline_trained(pipeline: Pipeline, index: DatasetIndex) -> int:
    """The step of the run that training would go on from."""
    name = run_name(pipeline.recipe, index, None)
    return CheckpointStore(run_folder(pipeline.recipe.store, name)).steps()[-1]
