"""What a model says of its dataset, resolved to where that lies now; and a model that is not where it is named."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.data.config import DataConfig
from ddpm_core.data.sharding.plan import plan_dataset
from ddpm_core.data.sharding.writer import commit_dataset, write_shard
from ddpm_core.data.sources.base import ArraySource
from ddpm_core.errors import InputError
from pipelines import evaluate, pipeline, sample, sweep, train
from pipelines.datasets import dataset_of, find_dataset


def test_the_dataset_of_a_model_is_looked_for_by_its_content(tmp_path: Path) -> None:
    """In the store that is open, in the model's own, where it was when the model was trained; never another one of that name."""
    config = DataConfig(image_size=4, channels=1, samples_per_shard=8)
    digests = {}
    for number, place in enumerate(("a/datasets/d", "b/datasets/d", "c/d")):
        source = ArraySource(
            images=np.full((9, 4, 4), number, dtype=np.uint8), labels=None, class_names=(), stem="image"
        )
        uri = str(tmp_path / place)
        results = [write_shard(plan, source, config, uri) for plan in plan_dataset(9, config)]
        digests[place] = commit_dataset(uri, results, config, source).digest
    for place, digest in digests.items():
        weights = Weights(
            uri=str(tmp_path / "b/runs/x/checkpoints/step-00000001"),
            step=1,
            sha256="",
            config={},
            dataset_digest=digest,
            dataset_uri=str(tmp_path / ("c/d" if place == "c/d" else "gone/datasets/d")),
            file=b"",
        )
        assert dataset_of(weights, str(tmp_path / "a")).uri == str(tmp_path / place)
        assert find_dataset(str(tmp_path / place), str(tmp_path / "a")).digest == digest
    assert find_dataset("d", str(tmp_path / "a")).digest == digests["a/datasets/d"]
    assert find_dataset("d", str(tmp_path / "b")).digest == digests["b/datasets/d"]
    with pytest.raises(
        ValueError, match=r"was trained on dataset 0000, which does not lie at .*/a/datasets/d or .*--dataset"
    ):
        dataset_of(replace(weights, dataset_digest="0000"), str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("run", "args", "said"),
    [
        (sample.run, sample.SampleArgs, r"models:/ddpm-digits@champion: no model is registered in "),
        (
            sample.run,
            partial(sample.SampleArgs, model="models:/other/3"),
            r"models:/other/3: no model is registered in ",
        ),
        (sample.run, partial(sample.SampleArgs, model="nosuch"), r"no model at nosuch; expected models:/NAME@champion"),
        (evaluate.run, evaluate.EvaluateArgs, r"models:/ddpm-digits@champion: no model is registered in "),
        (evaluate.run, partial(evaluate.EvaluateArgs, compare=("nosuch", "b")), r"no model at nosuch; "),
        (train.run, partial(train.TrainArgs, init_from="nosuch"), r"no model at nosuch; "),
        (sweep.run, partial(sweep.SweepArgs, model="nosuch"), r"no model at nosuch; "),
    ],
)
def test_a_model_that_is_not_there_is_said_before_ray_and_mlflow(
    run: Callable[[Any], object],
    args: Callable[..., object],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(pipeline, "open_pipeline", None)
    with pytest.raises(InputError, match=said):
        run(args(recipe="digits", store=str(tmp_path)))
    assert not list(tmp_path.iterdir())
