"""What a person is told of images while a run is trained, and where weights are read to make some."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.looks import Look, Spread
from ddpm_core.errors import InputError
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.state import TrainState, new_state
from pipelines import pipeline
from pipelines.metrics import Gauges
from pipelines.recipes.recipes import make
from pipelines.stages.train import _ProgressReporter
from pipelines.training.looker import Looked
from pipelines.training.worker import _events

YOUNG = "samples of step 320: the averaged weights of step 320 are still 96.9% those that they began with"


class Shown:
    """What a reporter says and logs."""

    count = 0

    def __init__(self) -> None:
        self.said: list[str] = []
        self.pictures: list[int] = []
        self.rows: list[Any] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def log_picture(self, uri: str, name: str, step: int) -> None:
        self.pictures.append(step)

    def log_metrics(self, rows: list[Any]) -> None:
        self.rows += rows

    def keep_up(self) -> None:
        pass


def reporter(shown: Shown, config: TrainConfig) -> _ProgressReporter:
    validator = SimpleNamespace(found=list, saved=lambda uri: None)
    page = SimpleNamespace(tell=lambda rows, looks: False)
    return _ProgressReporter(shown, shown, validator, config, Gauges(), page)  # type: ignore[arg-type]


def looked(folder: Path, step: int) -> Looked:
    spread = Spread(within=60.0, between=70.0)
    look = Look(
        step=step, bands=((0, 999),), validation=(0.3,), train=(0.2,), newest=(0.4,), weight_size=0.1, real=spread
    )
    return Looked(look=look, grid=str(folder / "grid.png"))


@pytest.mark.parametrize("kind", ["looked", "validated"])
def test_the_images_of_a_young_average_are_told_once_a_run(tmp_path: Path, kind: str) -> None:
    shown = Shown()
    tells = reporter(shown, TrainConfig(ema_decay=0.9999))
    (tmp_path / "grid.png").write_bytes(b"")
    for step in (320, 640):
        tells.tell([(kind, looked(tmp_path, step) if kind == "looked" else {"step": step, "fd": 1.0})])
    (line,) = shown.said
    assert line.startswith(YOUNG)
    assert len(shown.rows) == 2  # shown and logged all the same
    assert shown.pictures == ([320, 640] if kind == "looked" else [])


def test_those_of_an_old_one_are_shown_in_silence(tmp_path: Path) -> None:
    shown = Shown()
    (tmp_path / "grid.png").write_bytes(b"")
    reporter(shown, TrainConfig()).tell([("looked", looked(tmp_path, 320))])
    assert (shown.said, shown.pictures) == ([], [320])
    losses = {"losses/validation": 0.3, "losses/train": 0.2, "losses/newest": 0.4, "losses/t_0_999": 0.3}
    assert shown.rows == [{"step": 320, **losses}]


@pytest.mark.parametrize(("step", "said"), [(640, True), (60_000, False)])
def test_whoever_reads_young_weights_for_a_command_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: int, said: bool
) -> None:
    weights = Weights(
        uri="/runs/a",
        step=step,
        sha256="",
        config={"train": {"batch_size": 64, "ema_decay": 0.9999}},
        dataset_digest="",
        dataset_uri="",
        file=b"",
    )
    monkeypatch.setattr(pipeline, "find_weights", lambda *_: weights)
    opened = pipeline.Pipeline(make("digits"), tracker=None, parent=None, main_seed=0)  # type: ignore[arg-type]
    assert opened.find_weights("/runs/a") is weights
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == said
    if said:
        assert lines[0].startswith("/runs/a: the averaged weights of step 640 are still 93.8% those")


def _posted(validate: Callable[[TrainState], Any]) -> list[tuple[str, Any]]:
    posted: list[tuple[str, Any]] = []
    post = SimpleNamespace(remote=lambda kind, what: posted.append((kind, pickle.loads(what))))
    spec = SimpleNamespace(coordinator=SimpleNamespace(post=post), looker=None, validate=validate)
    state = new_state(torch.nn.Linear(1, 1), 1.0)
    state.step = 7
    _events(spec, lambda step, doing: None).saved(state)  # type: ignore[arg-type]
    return posted


def test_images_that_are_none_are_told_and_training_goes_on() -> None:
    def validate(state: TrainState) -> Any:
        raise InputError("the image of seed 3 has values that are not finite")

    said = "step 7 could not be validated: the image of seed 3 has values that are not finite"
    assert _posted(validate) == [("warned", said)]
    assert _posted(lambda state: {"step": state.step}) == [("validated", {"step": 7})]

    def broken(state: TrainState) -> Any:
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError):
        _posted(broken)


def test_weights_that_are_no_numbers_are_not_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    file = safetensors.torch.save({"a": torch.tensor([float("nan"), 1.0])})
    weights = Weights(uri="/runs/a", step=1, sha256="", config={}, dataset_digest="", dataset_uri="", file=file)
    opened = pipeline.Pipeline(make("digits"), tracker=None, parent=None, main_seed=0)  # type: ignore[arg-type]

    def registered(*args: Any, **named: Any) -> int:
        raise AssertionError

    monkeypatch.setattr(pipeline, "register_model", registered)
    with pytest.raises(InputError, match=r"^/runs/a: a has 1 of 2 values that are not finite"):
        opened._register(None, weights)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):  # sound ones come so far
        opened._register(None, replace(weights, file=safetensors.torch.save({"a": torch.ones(2)})))  # type: ignore[arg-type]
