"""What Ray is told of a run and of a command, for how long, and what a worker's log says."""

import logging
import re
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddpm_core.training.config import TrainConfig
from ddpm_core.training.loop import Events
from ddpm_core.training.parallel import Worker
from pipelines import metrics
from pipelines.metrics import METRICS, RUN_HELD_SINCE, TRAIN_LOSS, TRAIN_STEP_SECONDS, WORK_LEFT, Gauges, tell
from pipelines.progress import Progress
from pipelines.stages.train import _ProgressReporter
from pipelines.training.watching import watched

Told = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What is told, in place of Ray."""
    found: Told = []

    def note(metric: metrics.Metric, value: float, **tags: str) -> bool:
        assert set(tags) == set(metric.tags)
        found.append((metric.name, value, tags))
        return True

    monkeypatch.setattr(metrics, "tell", note)
    monkeypatch.setattr("pipelines.training.watching.tell", note)
    monkeypatch.setattr(metrics, "_AGAIN_S", 0.01)
    return found


def test_names_are_those_of_prometheus() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"ddpm_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "Counter")
        assert bool(metric.bounds) == (metric.kind == "Histogram")
        assert not set(metric.tags) & {"uri", "store", "path"}


def test_where_no_ray_runs_nothing_is_told_and_nothing_raises() -> None:
    for metric in METRICS:
        assert not tell(metric, 1.0, **dict.fromkeys(metric.tags, "a"))
    with Gauges(run="a") as gauges:
        gauges.set(TRAIN_LOSS, 0.1)
        assert gauges._thread is None


def test_ray_failing_ends_nothing_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        @staticmethod
        def is_initialized() -> bool:
            raise RuntimeError("it ends just now")

    monkeypatch.setitem(__import__("sys").modules, "ray", Broken)
    caplog.set_level("INFO", "pipelines.metrics")
    for loss in (0.2, 0.1):
        tell(TRAIN_LOSS, loss, run="a")
    assert [line.count("it ends just now") for line in caplog.messages] == [1]


def test_a_gauge_stands_until_it_is_closed(told: Told) -> None:
    with Gauges(run="a") as gauges:
        gauges.set(TRAIN_LOSS, 0.5)
        gauges.set(RUN_HELD_SINCE, 7.0, host="b")
        gauges.set(TRAIN_LOSS, 0.25)
        for last in (
            ("ddpm_train_loss", 0.25, {"run": "a"}),
            ("ddpm_run_held_since_timestamp_seconds", 7.0, {"run": "a", "host": "b"}),
        ):
            wait_for(lambda last=last: told.count(last) > 3)
    (thread,) = [gauges._thread]
    assert thread is not None
    thread.join(5)
    losses = [value for name, value, _ in told if name == "ddpm_train_loss"]
    assert losses == sorted(losses, reverse=True), "an old value was told again"
    standing = len(told)
    time.sleep(0.05)
    assert len(told) == standing, "it is told though it is closed"


def test_progress_tells_what_is_left(told: Told) -> None:
    shown = Progress("sample", 10, "image", initial=2)
    shown.set(7)
    shown.close()
    left = [(value, tags) for name, value, tags in told if name == WORK_LEFT.name]
    assert left[0] == (8, {"work": "sample", "unit": "image"})
    assert left[-1][0] == 3


def events() -> tuple[Events, list[Any]]:
    seen: list[Any] = []
    return Events(
        logged=lambda row: seen.append(row),
        look=lambda state: time.sleep(0.05),
        warned=lambda line: seen.append(line),
        doing=lambda step, what: seen.append((step, what)),
    ), seen


def test_a_worker_tells_its_steps_and_their_figures(told: Told) -> None:
    plain, seen = events()
    row = {"step": 1, "images_seen": 4, "loss": 0.5, "grad_norm": 2.0, "images_per_s": 8.0}
    with watched(plain, "/a/store/runs/digits-1", Worker(rank=1, num_workers=2, device=torch.device("cpu"))) as each:
        each.doing(0, "reading")
        time.sleep(0.02)
        each.doing(0, "computing")
        time.sleep(0.01)
        each.logged(row)
        each.look(None)  # type: ignore[arg-type]
        each.doing(1, "reading")
    assert seen == [(0, "reading"), (0, "computing"), row, (1, "reading")]
    by_name = {name: (value, tags) for name, value, tags in told}
    both = {"run": "digits-1", "rank": "1"}
    assert by_name["ddpm_train_loss"] == (0.5, {"run": "digits-1"})
    assert by_name["ddpm_train_images_per_second"] == (8.0, {"run": "digits-1"})
    waited, computed = by_name["ddpm_train_data_wait_seconds_total"], by_name[TRAIN_STEP_SECONDS.name]
    assert waited[0] >= 0.02
    assert waited[1] == computed[1] == both
    assert 0.01 <= computed[0] < 0.05, "a look is no part of a step"
    assert "ddpm_train_workers" not in by_name, "the first worker tells that"


def work_and_fail(events: Events, library: logging.Logger) -> None:
    with watched(events, "s3://b/runs/d", Worker(rank=0, num_workers=1, device=torch.device("cpu"))) as each:
        each.doing(41, "computing")
        library.warning('a "word" from http://me:hidden@host\nand more')
        each.warned("told")
        raise ValueError("no more")


def test_a_workers_lines_say_run_rank_and_step(capsys: pytest.CaptureFixture[str]) -> None:
    plain, seen = events()
    library = logging.getLogger("ddpm_core.data.loader")
    before = library.getEffectiveLevel()
    with pytest.raises(ValueError, match="no more"):
        work_and_fail(plain, library)
    library.warning("it is not told so any more")
    assert library.getEffectiveLevel() == before
    assert seen[-1] == "told"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    form = r'ts=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=(\w+) run="d" rank=0 step=(\d+) logger=(\S+) (msg=.*)'
    read = [found.groups() for line in lines if (found := re.fullmatch(form, line))]
    assert [step for _, step, *_ in read] == ["0", "41", "41", "41"]
    assert read[1][:3] == ("warning", "41", "ddpm_core.data.loader")
    assert read[1][3] == r'msg="a \"word\" from http://me:***@host\nand more"'
    assert read[3][::3] == ("error", 'msg="ValueError: no more"')


def test_what_validation_found_is_told(told: Told) -> None:
    validator = SimpleNamespace(found=list, saved=lambda uri: None)
    nothing = SimpleNamespace(log_metrics=lambda rows: None, say=lambda line: None)
    with Gauges(run="a") as gauges:
        page = SimpleNamespace(tell=lambda rows, looks: False)
        reporter = _ProgressReporter(nothing, nothing, validator, TrainConfig(), gauges, page)  # type: ignore[arg-type]
        reporter.note([{"step": 5, "validation/fd_random_conv": 2.0, "validation/bits_per_dim": 3.0}])
    found = {name: value for name, value, tags in told if tags == {"run": "a"}}
    assert found == {"ddpm_validation_distance": 2.0, "ddpm_validation_bits_per_dim": 3.0}


def wait_for(what: Any) -> None:
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until, threading.enumerate()
        time.sleep(0.01)
