"""Flags to arguments: a model's images are made as its own recipe says, whichever recipe is typed."""

import contextlib
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_checkpoint import checkpoint

from ddpm_core.artifacts.checkpoint import write_checkpoint
from ddpm_core.errors import InputError
from pipelines.cli.command import changed_flags
from pipelines.cli.parsing import parse
from pipelines.evaluate import EvaluateArgs
from pipelines.recipes.recipes import make
from pipelines.sample import SampleArgs
from pipelines.train import TrainArgs

ROOT = Path(__file__).parents[2]


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
    ("flags", "every"),
    [
        ([], (1_700, 3_400)),  # of 8,500 steps
        (["--train.steps", "100"], (25, 50)),
        (["--train.steps", "1"], (1, 1)),
        (["--train.steps", "8000"], (1_700, 3_400)),
        (["--train.steps", "20000"], (1_700, 3_400)),
        (["--train.steps", "100", "--train.checkpoint-every", "60"], (60, 50)),
    ],
)
def test_a_shorter_training_is_saved_and_shown_on_the_way_all_the_same(
    flags: list[str], every: tuple[int, int]
) -> None:
    train = parse(TrainArgs, ["mnist", *flags], "train.py", "").train
    assert (train.checkpoint_every, train.preview_every) == every


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


def test_on_a_terminal_a_mistake_is_one_plain_line_after_the_first_word() -> None:
    """There the first word is up before the libraries are, and the parser would draw a coloured box."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, str(ROOT / "pipelines/train.py"), "digits", "--train.steps", "-1"],
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # the end, as Linux says it
            while read := os.read(ours, 4096):
                said += read
    os.close(ours)
    assert process.returncode == 2
    expected = "error: train.steps is -1; expected 0 or more (all flags: --help-all)\r\n"
    assert said.decode() == f"train: starting\r\x1b[K{expected}"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--num-images", "36", "--sample.labels", "3", "7", "--sample.use-gpu"],
        ["--sample.sampler.name", "ddim", "--sample.sampler.num-steps", "None", "--sample.sampler.eta", "0.5"],
    ],
)
def test_what_comes_after_samples_judges_the_same_samples(words: list[str]) -> None:
    """evaluate.py draws them by the flags that it is given."""
    asked = parse(SampleArgs, ["mnist", *words], "sample.py", "").sample
    flags = changed_flags("sample", asked, make("mnist").sample)
    assert parse(EvaluateArgs, ["mnist", *flags], "evaluate.py", "").sample == asked
    assert changed_flags("sample", make("mnist").sample, asked) or not words


def test_a_switch_that_is_off_is_typed_as_such() -> None:
    on = make("cifar10").sample
    assert changed_flags("sample", replace(on, use_gpu=False), on) == ["--sample.no-use-gpu"]
