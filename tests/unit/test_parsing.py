"""Flags to arguments: a model's images are made as its own recipe says, whichever recipe is typed."""

from pathlib import Path

import pytest
import torch
from test_checkpoint import checkpoint

from ddpm_core.artifacts.checkpoint import write_checkpoint
from ddpm_core.errors import InputError
from pipelines.cli.parsing import parse
from pipelines.evaluate import EvaluateArgs
from pipelines.recipes.recipes import make
from pipelines.sample import SampleArgs


@pytest.mark.parametrize("typed", [[], ["digits"], ["mnist"]])
def test_a_registered_model_is_of_its_recipe(typed: list[str]) -> None:
    for args in (["--model", "models:/ddpm-mnist@candidate"], ["--model=models:/ddpm-mnist/3"]):
        parsed = parse(EvaluateArgs, [*typed, *args], "evaluate.py", "")
        assert (parsed.recipe, parsed.sample, parsed.evaluate) == (
            "mnist",
            make("mnist").sample,
            make("mnist").evaluate,
        )


def test_a_runs_checkpoint_says_its_recipe_and_flags_still_win(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = checkpoint(3)
    uri = write_checkpoint(str(tmp_path), trained)
    assert parse(SampleArgs, ["--model", uri], "sample.py", "").recipe == "digits"  # of before: it does not say
    trained.versions["recipe"] = "mnist"
    uri = write_checkpoint(str(tmp_path / "run"), trained)
    for model in (uri, str(tmp_path / "run")):
        parsed = parse(SampleArgs, ["--model", model, "--sample.sampler.num-steps", "7"], "sample.py", "")
        assert (parsed.recipe, parsed.sample.sampler.num_steps) == ("mnist", 7)
    assert parse(SampleArgs, ["mnist", "--model", str(tmp_path / "none")], "sample.py", "").recipe == "mnist"
    assert parse(SampleArgs, ["mnist", "--model", "models:/other@champion"], "sample.py", "").recipe == "mnist"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--evaluate.features", "incepton"], r"invalid choice 'incepton' .*; did you mean inception\? \(all flags"),
        (["--evaluate.features", "zzz"], r"invalid choice 'zzz' .*'dinov2_vitl14'\) \(all flags"),
        (["--evaluate.feature", "pixels"], r"did you mean --evaluate\.features\?"),
    ],
)
def test_a_misspelt_flag_or_name_is_told_with_its_nearest(flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse(EvaluateArgs, ["digits", *flags], "evaluate.py", "")
    assert "\n" not in str(error.value)
