"""What --dry-run says a training costs: two lines, from a few steps of made-up images."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddpm_core.training import memory
from ddpm_core.training.fixed_losses import look_passes
from pipelines import progress, train
from pipelines.cli import costs
from pipelines.cli.command import run_command
from pipelines.recipes.config import Recipe, SweepStage
from pipelines.recipes.recipes import make


@pytest.fixture(autouse=True)
def _a_processor_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)


def digits(store: Path, **changes: object) -> Recipe:
    recipe = make("digits")
    return replace(recipe, store=str(store), train=replace(recipe.train, batch_size=64, **changes))  # type: ignore[arg-type]


def test_the_time_follows_from_the_speed_and_a_worker_has_its_share_of_the_batch(tmp_path: Path) -> None:
    """Half of 64 images; one more, where an epoch ends within a batch, which its memory has to hold."""
    threads = torch.get_num_threads()
    needs, time = costs.training_cost(digits(tmp_path, num_workers=2, steps=10_000))
    assert re.fullmatch(
        r"training's memory: [\d.]+ MB of tensors for each worker, of a batch's 64 at most 33 images at a time", needs
    )
    said = re.fullmatch(
        r"training's time: about ([\d.]+) (\w+) at ([\d,.]+) images/s a worker, tried here in steps of 32 images; "
        r"3\.\de\+13 operations in all",
        time,
    )
    assert said is not None
    seconds = float(said[1]) * dict(progress.SPANS)[said[2]]
    looks, pictures = (
        {*range(0, 10_001, 625), *range(0, 10_001, 240), *range(0, 10_001, 480)},
        21,
    )  # the last step's, too
    passes = len(looks) * 3 * 4 * 32 + pictures * 64 * 25
    assert look_passes(digits(tmp_path, steps=10_000).train) == len(looks) * 3 * 4 * 32
    assert seconds == pytest.approx((10_000 * 32 + passes / 3) / float(said[3].replace(",", "")), rel=0.06)
    assert torch.get_num_threads() == threads
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("amx", "speed", "told"), [(True, 2.0, True), (True, 1.05, False), (False, 2.0, False)])
def test_a_processor_that_multiplies_bfloat16_is_worth_a_word(
    amx: bool, speed: float, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": amx})
    monkeypatch.setattr(
        "ddpm_core.training.probe.images_per_s",
        lambda model, objective, train, *_: (500.0 * (speed if train.precision == "bfloat16" else 1), 32),
    )
    time = costs.training_cost(digits(tmp_path, num_workers=2))[1]
    assert time.endswith("operations in all; 1,000 images/s by --train.precision bfloat16") == told
    assert ("bfloat16" in time) == told
    assert "bfloat16 " not in costs.training_cost(digits(tmp_path, precision="bfloat16"))[1]


def test_a_batch_in_parts_takes_less_memory(tmp_path: Path) -> None:
    whole, parts = (costs.training_cost(digits(tmp_path, micro_batch_size=size))[0] for size in (None, 16))
    assert parts.endswith(" 16 images at a time")
    assert float(re.findall(r"([\d.]+) MB", parts)[0]) < float(re.findall(r"([\d.]+) MB", whole)[0])


def test_what_does_not_fit_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_memory_here", lambda: 30_000_000)
    needs, time = costs.training_cost(digits(tmp_path, num_workers=1))
    assert needs.endswith(" 64 images at a time")
    assert time.startswith(
        "training's time: not tried, as a worker may take 21.0 MB here: set --train.micro-batch-size auto; "
    )
    needs, time = costs.training_cost(digits(tmp_path, num_workers=1, micro_batch_size="auto"))
    assert re.fullmatch(
        r"training's memory: (1\d|20)\.\d MB of tensors for each worker, of a batch's 64 at most (32|22|16|13) images at a time",
        needs,
    )
    assert time.startswith("training's time: about ")


def test_a_network_that_is_told_of_classes_is_tried_too(tmp_path: Path) -> None:
    recipe = digits(tmp_path)
    assert "images/s" in costs.training_cost(replace(recipe, unet=replace(recipe.unet, num_classes=10)))[1]


def test_no_speed_is_said_of_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    lines = costs.training_cost(digits(tmp_path, use_gpu=True, micro_batch_size="auto"))
    assert lines[1].startswith("training's time: not tried, as this machine has no GPU; ")


@pytest.mark.parametrize(("num_workers", "block_size", "at_once"), [(None, 64, 3), (2, 64, 2), (None, 4_096, 1)])
def test_the_time_of_sampling_follows_from_the_passes_and_from_how_many_tasks_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int | None, block_size: int, at_once: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    recipe = digits(tmp_path)
    sample = replace(recipe.sample, num_images=4_096, num_workers=num_workers, block_size=block_size)
    threads = torch.get_num_threads()
    (line,) = costs.sampling_time(replace(recipe, sample=sample))
    said = re.match(
        r"sampling's time: about ([\d.]+) (\w+) at ([\d,]+) passes/s a task, .* 64 images at once; (\d) task", line
    )
    assert said is not None, line
    seconds = float(said[1]) * {"seconds": 1.0, **dict(progress.SPANS)}[said[2]]
    passes_per_s = float(said[3].replace(",", ""))
    assert int(said[4]) == at_once
    assert seconds == pytest.approx(4_096 * 20 / at_once / passes_per_s, rel=0.1)
    assert torch.get_num_threads() == threads
    assert not list(tmp_path.iterdir())


def test_no_speed_of_sampling_is_said_of_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    recipe = digits(tmp_path)
    (line,) = costs.sampling_time(replace(recipe, sample=replace(recipe.sample, use_gpu=True)))
    assert line == "sampling's time: not tried, as this machine has no GPU"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 seconds"), (119, "119 seconds"), (120, "2.0 minutes"), (7_200, "2.0 hours"), (8.64e6, "100 days")],
)
def test_a_time_is_said_in_the_largest_unit_of_which_there_are_two(seconds: float, said: str) -> None:
    assert progress.span(seconds) == said


def test_what_a_program_reads_is_not_kept_waiting(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def tried(args: train.TrainArgs) -> list[str]:
        return ["tried"]

    for flags, said in (([], True), (["--json"], False)):
        command = ["digits", "--store", str(tmp_path), "--dry-run", *flags]
        run_command(train.TrainArgs, "", check=train.check, plan=train.plan, run=train.run, cost=tried, argv=command)
        out = capsys.readouterr().out
        assert ("tried" in out.splitlines()) == said
    assert json.loads(out)["recipe"] == "digits"


def test_a_sweep_costs_the_steps_of_all_its_trials_side_by_side(tmp_path: Path) -> None:
    recipe, sweep = digits(tmp_path, steps=90), SweepStage(num_rungs=2, repeats=2, max_concurrent=2)
    needs, time, in_all = costs.sweep_cost(recipe, sweep, 9)
    assert needs == costs.training_cost(digits(tmp_path, num_workers=1))[0]
    steps = 9 * 30 + 3 * 60 + 2 * 2 * 90
    assert in_all.startswith(f"that is {steps:,} steps in all, 2 trials at once")
    told = re.search(r"about ([\d.,]+) (\w+) at ([\d,]+) images/s", time)
    assert told
    seconds = float(told[1].replace(",", "")) * {"seconds": 1.0, **dict(progress.SPANS)}[told[2]]
    rate = float(told[3].replace(",", ""))
    assert seconds == pytest.approx(steps / 2 * recipe.train.batch_size / rate, rel=0.06)
