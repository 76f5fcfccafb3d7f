"""Every tick is started at least once and what it makes is made once, whatever becomes of who does it; no test waits."""

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from ddpm_core import storage
from ddpm_core.artifacts.run_record import hold
from ddpm_core.errors import HeldError
from pipelines import schedule
from pipelines.cli.subcommands import run_subcommand
from pipelines.scheduling import calendar as calendars
from pipelines.scheduling import jobs as launch
from pipelines.scheduling import loop, state
from pipelines.scheduling.calendar import Calendar, local_time_zone, parse_tick, tick_name
from pipelines.scheduling.jobs import JobResult, LaunchError, Started, Wait, local_job, open_launcher, ray_job
from pipelines.scheduling.loop import Passed, passing
from pipelines.scheduling.records import Schedule, Schedules, Tick, said
from pipelines.scheduling.resolve import SEEDS_PER_TICK, check_command, first_seed, pin_command, resolved
from pipelines.scheduling.tick import Stopped, Ticker, do_due, do_now
from pipelines.tracking import TrackingError

COMMAND = ("python", "pipelines/sample.py", "digits", "--model", "models:/ddpm-digits@champion", "--num-images", "256")
NIGHTLY = Calendar(cron="0 3 * * *", time_zone="UTC")
EVENING = datetime(2026, 11, 22, 20, 0, tzinfo=UTC)
TICK = "20261123T030000Z"
NIGHT = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
MADE = '{"samples": "/store/samples/abc/set-1-256.json", "images": 256}'
SUCCESS = JobResult(exit_code=0, output=f"loading\n{MADE}\n")
FAILURE = JobResult(exit_code=1, output="Traceback\nRuntimeError: no memory\n")
MISTAKE = JobResult(exit_code=2, output="error: no such flag\n")


# --- the world: a clock that waiting moves, jobs that take as long as they are told, holds that a killed job does not give back


class Killed(BaseException):
    """As by kill -9: nothing is given back."""


@dataclass
class Clock:
    time: datetime = EVENING
    elapsed: timedelta = timedelta()
    """Whatever the clock is set to."""

    def now(self) -> datetime:
        return self.time

    def sleep(self, seconds: float) -> bool:
        self.time += timedelta(seconds=seconds)
        self.elapsed += timedelta(seconds=seconds)
        return False


@dataclass
class FakeJob:
    ends: timedelta
    result: JobResult
    clock: Clock
    left: bool = False

    def follow(self, wait: Callable[[], None]) -> JobResult:
        try:
            while self.clock.elapsed < self.ends:
                wait()
        except BaseException:
            self.left = True
            raise
        return replace(self.result, log="log")


@dataclass
class FakeCluster:
    """Jobs by submission id; as a cluster it knows those of anyone, as a machine (`forgets`) it does not."""

    clock: Clock
    takes: timedelta = timedelta(minutes=2)
    results: list[JobResult] = field(default_factory=list)
    forgets: bool = False
    jobs: dict[str, FakeJob] = field(default_factory=dict)
    commands: list[tuple[str, ...]] = field(default_factory=list)

    def launch(self, submission_id: str, command: Sequence[str], *, started: Started, wait: Wait) -> JobResult:
        if submission_id not in self.jobs or self.forgets:
            result = self.results.pop(0) if self.results else SUCCESS
            self.jobs[submission_id] = FakeJob(self.clock.elapsed + self.takes, result, self.clock)
            self.commands.append(tuple(command))
            started("log")
        return self.jobs[submission_id].follow(wait)


@dataclass
class FakeHolds:
    """As `hold`: whoever is killed keeps it, until a minute without a sign of life has gone."""

    clock: Clock
    held: dict[str, list[datetime]] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, folder: str, *, say: Callable[[str], None]) -> Iterator[Any]:
        now = self.clock.now()
        if folder in self.held and abs(now - self.held[folder][0]) < timedelta(minutes=1):
            raise HeldError("it is held")
        mine = self.held[folder] = [now]

        def check() -> None:
            if self.held.get(folder) is not mine:
                raise HeldError("it was taken over")
            mine[0] = self.clock.now()

        try:
            yield SimpleNamespace(check=check)
        except Killed:
            raise
        except BaseException:
            self._give_back(folder, mine)
            raise
        self._give_back(folder, mine)

    def _give_back(self, folder: str, mine: list[datetime]) -> None:
        if self.held.get(folder) is mine:
            del self.held[folder]


@dataclass
class World:
    store: str
    clock: Clock = field(default_factory=Clock)
    said: list[str] = field(default_factory=list)
    champion: int = 3
    cluster: FakeCluster = field(init=False)
    holds: FakeHolds = field(init=False)

    def __post_init__(self) -> None:
        self.cluster, self.holds = FakeCluster(self.clock), FakeHolds(self.clock)

    @property
    def schedules(self) -> Schedules:
        return Schedules(self.store)

    def add(self, name: str = "nightly", cron: str = "0 3 * * *", time_zone: str = "UTC", **more: Any) -> None:
        told = Schedule(cron=cron, time_zone=time_zone, command=COMMAND, since=said(self.clock.now()), **more)
        self.schedules.create(name, told)

    def resolve(self, model: str) -> str:
        return model.replace("@champion", f"/{self.champion}")

    def ticker(self, **more: Any) -> Ticker:
        resolve = more.pop("resolve", self.resolve)
        told = {
            "schedules": self.schedules,
            "launch": self.cluster.launch,
            "pin": lambda command, due: pin_command(command, due, self.store, resolve),
            "now": self.clock.now,
            "wait": self.clock.sleep,
            "say": self.said.append,
            "hold": self.holds,
        }
        return Ticker(**{**told, **more})

    def at(self, moment: datetime) -> "World":
        self.clock.time = moment
        return self

    def do(self, name: str = "nightly", **more: Any) -> list[Tick]:
        return do_due(self.ticker(**more), name)

    def current(self, name: str = "nightly") -> Tick | None:
        return self.schedules.standing(name, self.schedules.read(name))[0].current


@pytest.fixture(params=["local", "s3"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    local = request.param == "local"
    made = World(str(tmp_path / "store") if local else f"s3://{request.getfixturevalue('bucket')}/prefix")
    made.add()
    return made


@pytest.fixture
def here(tmp_path: Path) -> World:
    made = World(str(tmp_path / "store"))
    made.add()
    return made


def killed_after(clock: Clock, seconds: float) -> Callable[[float], bool]:
    """A wait that ends as by kill -9 once so much has gone."""
    end = clock.now() + timedelta(seconds=seconds)

    def wait(seconds: float) -> bool:
        clock.sleep(seconds)
        if clock.now() >= end:
            raise Killed
        return False

    return wait


# --- ticks


@pytest.mark.parametrize(
    ("cron", "said"),
    [("61 * * * *", "bad minute"), ("* * * *", "five fields"), ("* * * * * *", "five fields"), ("", "five fields"),
     ("0 0 30 2 *", "day-of-month"), ("@daily", "five fields"), ("0 3 * * XYZ", "day-of-week"),
     ("0 0 */29 2 5#5", "it never comes true")],
)  # fmt: skip
def test_a_wrong_cron_expression_is_one_line(cron: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as told:
        Calendar(cron=cron, time_zone="UTC")
    assert repr(cron) in str(told.value)
    assert "0 3 * * *" in str(told.value)
    assert "\n" not in str(told.value)


def test_an_unknown_time_zone_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'Europe/Berlim'.*did you mean Europe/Berlin"):
        Calendar(cron="0 3 * * *", time_zone="Europe/Berlim")


@pytest.mark.parametrize(
    ("day_before", "expected"),
    [
        # 02:30 does not exist on 29 March: one tick at 03:00 CEST. It exists twice on 25 October: one tick, the first.
        ("2026-03-28T12:00", ["20260329T010000Z", "20260330T003000Z"]),
        ("2026-10-24T12:00", ["20261025T003000Z", "20261026T013000Z"]),
    ],
)
def test_daylight_saving_neither_drops_nor_doubles_a_daily_tick(day_before: str, expected: list[str]) -> None:
    calendar = Calendar(cron="30 2 * * *", time_zone="Europe/Berlin")
    start = datetime.fromisoformat(day_before).replace(tzinfo=UTC)
    assert [tick_name(tick) for tick in islice(calendar.after(start), 2)] == expected


def test_hourly_ticks_are_an_hour_apart_when_the_clock_is_set_back() -> None:
    calendar = Calendar(cron="0 * * * *", time_zone="Europe/Berlin")
    ticks = list(islice(calendar.after(datetime(2026, 10, 24, 20, tzinfo=UTC)), 8))
    assert {later - tick for tick, later in pairwise(ticks)} == {timedelta(hours=1)}


def test_in_the_hour_that_comes_twice_no_tick_lies_in_the_past() -> None:
    second_time = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)  # 02:10 CET; 02:30 CEST is past
    calendar = Calendar(cron="30 2 * * *", time_zone="Europe/Berlin")
    assert tick_name(next(calendar.after(second_time))) == "20261026T013000Z"


def test_the_last_tick_in_a_window() -> None:
    three = parse_tick(TICK)
    assert NIGHTLY.last(three, timedelta(hours=1)) == three
    assert NIGHTLY.last(three + timedelta(hours=1), timedelta(days=3)) == three
    assert NIGHTLY.last(three + timedelta(hours=1), timedelta(minutes=59)) is None
    assert NIGHTLY.last(three, timedelta()) is None


# --- the command


def test_the_pinned_command_decides_its_output() -> None:
    tick = parse_tick(TICK)
    resolve = {"models:/ddpm-digits@champion": "models:/ddpm-digits/3"}.__getitem__
    pinned = pin_command(check_command(COMMAND), tick, "/store", resolve)
    seed = int(tick.timestamp()) // 60 * 1_000_000
    assert pinned == (
        "python", "pipelines/sample.py", "digits", "--num-images", "256", "--model", "models:/ddpm-digits/3",
        "--store", "/store", "--sample.first-seed", str(seed), "--json",
    )  # fmt: skip


def test_without_a_model_the_recipes_champion_is_pinned() -> None:
    pin = partial(pin_command, tick=EVENING, store="/s", resolve=lambda uri: uri + "!")
    assert "models:/ddpm-mnist@champion!" in pin(("python", "pipelines/sample.py", "mnist"))
    assert "models:/ddpm-digits@champion!" in pin(("python", "pipelines/sample.py", "--num-images", "4"))


@pytest.mark.parametrize("flag", [["--sample.first-seed", "5"], ["--sample.first_seed=5"]])
def test_a_seed_that_is_given_stays(flag: list[str]) -> None:
    pinned = pin_command(["python", "pipelines/sample.py", *flag, "--json"], EVENING, "/s", str)
    assert sum("first" in argument for argument in pinned) == 1
    assert pinned[2 : 2 + len(flag)] == tuple(flag)
    assert pinned.count("--json") == 1


def test_no_two_ticks_share_a_seed() -> None:
    ticks = list(islice(Calendar(cron="* * * * *", time_zone="Europe/Berlin").after(EVENING), 200))
    firsts = [first_seed(tick) for tick in ticks]
    assert all(later - first >= SEEDS_PER_TICK for first, later in pairwise(firsts))
    with pytest.raises(ValueError, match="1000001 images a tick; expected at most 1000000"):
        check_command(["python", "pipelines/sample.py", "--num-images", "1000001"])
    check_command(["python", "pipelines/sample.py", "--num-images=1000000"])
    check_command(["python", "pipelines/sample.py", "--num-images", "1000001", "--sample.first-seed", "0"])


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["rm", "-rf", "x"], "'rm -rf x'; expected python pipelines/sample.py"),
        (["python", "pipelines/train.py"], "pipelines/train.py'; expected python pipelines/sample.py"),
        (["python", "sample.py"], "expected python pipelines/sample.py"),
        (["python"], "expected python pipelines/sample.py"),
        ([], "empty"),
        (["python", "pipelines/sample.py", "--store=x"], "--store; expected it before --"),
        (["python", "pipelines/sample.py", "--dry-run"], "--dry-run; expected it before --"),
    ],
)
def test_another_command_is_refused(command: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_command(command)


def test_any_python_and_any_path_to_the_door_will_do() -> None:
    assert check_command([".venv/bin/ddpm", "sample", "mnist"]) == ("python", "pipelines/sample.py", "mnist")
    assert check_command(["/usr/bin/python3.11", "/home/me/pipelines/sample.py", "mnist"]) == (
        "python", "pipelines/sample.py", "mnist")  # fmt: skip


def test_what_is_typed_as_a_path_is_one_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for typed, kept in (
        (["flowers.toml"], [f"{tmp_path}/flowers.toml"]),
        (["digits", "--out", "pngs/"], ["digits", "--out", f"{tmp_path}/pngs/"]),
        (["--out=latest.png", "digits"], ["digits", "--out", f"{tmp_path}/latest.png"]),
        (["digits", "--out", "s3://bucket/a"], ["digits", "--out", "s3://bucket/a"]),
        (["digits", "--model", "mine"], ["digits", "--model", f"{tmp_path}/mine"]),
        (["digits", "--model", "digits-0123"], ["digits", "--model", "digits-0123"]),
        (["digits", "--model=models:/a@champion"], ["digits", "--model", "models:/a@champion"]),
    ):
        assert check_command(["ddpm", "sample", *typed]) == ("python", "pipelines/sample.py", *kept)


def test_a_run_is_pinned_to_its_newest_checkpoint(tmp_path: Path) -> None:
    resolve = partial(resolved, str(tmp_path), "digits")
    for step in (1, 2):
        storage.write_bytes(f"{tmp_path}/runs/r/checkpoints/step-{step:08d}/state.json", b"{}")
    assert resolve(f"{tmp_path}/runs/r") == f"{tmp_path}/runs/r/checkpoints/step-00000002"
    assert resolve("r") == resolve("runs/r") == resolve(f"{tmp_path}/runs/r")  # by its name in the store
    assert resolve(f"{tmp_path}/runs/r/checkpoints/step-00000001").endswith("step-00000001")
    with pytest.raises(ValueError, match=r"no model at .*runs/x; expected models:/NAME@champion"):
        resolve(f"{tmp_path}/runs/x")


@pytest.mark.parametrize(
    ("cron", "warned"),
    [("*/90 * * * *", "minute"), ("0 */24 * * *", "hour"), ("*/30 */12 * * *", ""), ("0,10/70 3 * * *", "minute")],
)
def test_a_step_beyond_its_field_is_warned_of(cron: str, warned: str) -> None:
    said = Calendar(cron=cron, time_zone="UTC").warning
    assert (f"for the {warned}: a step beyond" in said) if warned else said == ""


def test_a_copy_of_a_zone_s_file_is_known_by_its_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As /etc/localtime is in many containers, where it is no link."""
    monkeypatch.delenv("TZ", raising=False)
    copied = tmp_path / "localtime"
    monkeypatch.setattr(calendars, "_LOCALTIME", copied)
    assert local_time_zone() == "UTC"
    source = next(
        Path(folder) / "Asia/Kathmandu" for folder in calendars.TZPATH if (Path(folder) / "Asia/Kathmandu").is_file()
    )
    copied.write_bytes(source.read_bytes())
    assert local_time_zone() in ("Asia/Kathmandu", "Asia/Katmandu")
    for given in ("Europe/Paris", ":Europe/Paris", ":/usr/share/zoneinfo/Europe/Paris"):
        monkeypatch.setenv("TZ", given)
        assert local_time_zone() == "Europe/Paris"


def test_a_tz_that_names_no_zone_is_refused_and_not_taken_for_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST")
    with pytest.raises(SystemExit):
        command("add", "a", "--store", str(tmp_path / "store"))
    (line,) = capsys.readouterr().err.splitlines()
    assert "time-zone is 'CET-1CEST' (this machine's TZ); expected a name as Europe/Berlin" in line
    command("add", "a", "--store", str(tmp_path / "store"), "--time-zone", "Europe/Berlin", "--dry-run")
    assert "CE" in capsys.readouterr().out.splitlines()[1]


def test_in_lord_howe_the_half_hour_neither_drops_nor_doubles_a_daily_tick() -> None:
    calendar = Calendar(cron="45 1 * * *", time_zone="Australia/Lord_Howe")
    ticks = list(islice(calendar.after(datetime(2026, 1, 1, tzinfo=UTC)), 365))
    days = [tick.astimezone(calendar.zone).date() for tick in ticks]
    assert all(later - day == timedelta(days=1) for day, later in pairwise(days))


def test_in_lord_howe_the_half_hour_takes_none_of_the_hours_after_it() -> None:
    calendar = Calendar(cron="0 */6 * * *", time_zone="Australia/Lord_Howe")
    six = parse_tick("20261003T190000Z")  # 06:00; at 02:00 the clock was set forward
    assert calendar.last(six + timedelta(minutes=1), timedelta(hours=1)) == six


# --- passes


def test_a_tick_is_begun_followed_and_recorded(world: World) -> None:
    (ended,) = world.at(NIGHT + timedelta(seconds=20)).do()
    assert (ended.due, ended.status, ended.exit_code, ended.attempt) == (TICK, "succeeded", 0, 1)
    assert ended.made == json.loads(MADE)
    assert ended.command == world.cluster.commands[0]
    assert "models:/ddpm-digits/3" in ended.command
    assert list(world.cluster.jobs) == [f"nightly-{TICK}-1"]
    assert ended.seconds == 120
    assert world.schedules.history("nightly", 5) == [ended]
    assert world.schedules.ended("nightly", NIGHT) == ended
    assert world.do() == []
    assert len(world.cluster.jobs) == 1


def test_nothing_is_written_before_it_is_due(here: World) -> None:
    before = storage.list_files(here.store)
    assert here.at(NIGHT - timedelta(seconds=1)).do() == []
    assert storage.list_files(here.store) == before


def test_who_comes_while_another_is_at_it_leaves_it_alone(here: World) -> None:
    others: list[list[Tick]] = []

    def wait(seconds: float) -> bool:
        others.append(here.do())
        return here.clock.sleep(seconds)

    here.cluster.takes = timedelta(seconds=20)
    (ended,) = here.at(NIGHT).do(wait=wait)
    assert ended.status == "succeeded"
    assert others == [[]] * 20
    assert len(here.cluster.jobs) == 1


@pytest.mark.parametrize("forgets", [True, False], ids=["job died too", "job goes on"])
def test_what_a_killed_job_began_is_gone_on_with_and_its_command_stays(here: World, forgets: bool) -> None:
    here.cluster.forgets, here.cluster.takes = forgets, timedelta(minutes=12)
    with pytest.raises(Killed):
        here.at(NIGHT).do(wait=killed_after(here.clock, 60))
    begun = here.current()
    here.champion = 4  # a new champion changes nothing of a tick that was begun
    assert here.do() == []
    here.clock.sleep(61)
    (ended,) = here.do()
    assert begun is not None
    assert (ended.status, ended.command, ended.by) == ("succeeded", begun.command, begun.by)
    assert set(here.cluster.commands) == {begun.command}
    assert len(here.cluster.commands) == (2 if forgets else 1)


def test_killed_between_record_and_start(here: World) -> None:
    def dies(*args: Any, **more: Any) -> JobResult:
        raise Killed

    with pytest.raises(Killed):
        here.at(NIGHT).do(launch=dies)
    here.clock.sleep(61)
    assert [tick.status for tick in here.do()] == ["succeeded"]
    assert list(here.cluster.jobs) == [f"nightly-{TICK}-1"]


def test_who_slept_while_another_took_over_lets_go(here: World) -> None:
    """Of a machine: its own process ends, for the other one runs by now."""
    here.cluster.takes, here.cluster.forgets = timedelta(minutes=20), True
    taken: list[Tick] = []

    def wait(seconds: float) -> bool:
        here.clock.sleep(seconds if taken else 900)
        taken.extend(here.do() if not taken else [])
        return False

    assert here.at(NIGHT).do(wait=wait) == []
    assert [tick.status for tick in taken] == ["succeeded"]
    assert here.said[-1].startswith("nightly  left alone: it was taken over")
    assert len(here.schedules.history("nightly", 9)) == 1


def test_a_failing_job_is_started_again_later_and_later_then_recorded(here: World) -> None:
    here.cluster.results = [FAILURE] * 3
    (ended,) = here.at(NIGHT).do()
    assert (ended.status, ended.exit_code, ended.attempt, ended.made) == ("failed", 1, 3, {})
    assert ended.message == "RuntimeError: no memory"
    assert len(set(here.cluster.commands)) == 1
    assert ended.seconds == 3 * 120 + 30 + 60
    assert list(here.cluster.jobs) == [f"nightly-{TICK}-{attempt}" for attempt in (1, 2, 3)]
    assert here.do() == []


def test_what_refuses_its_command_is_not_asked_again(here: World) -> None:
    here.cluster.results = [MISTAKE]
    (ended,) = here.at(NIGHT).do()
    assert (ended.status, ended.exit_code, ended.attempt, ended.message) == ("failed", 2, 1, "error: no such flag")


def test_a_job_that_fails_once_succeeds(here: World) -> None:
    here.cluster.results = [FAILURE]
    assert [(tick.status, tick.attempt) for tick in here.at(NIGHT).do()] == [("succeeded", 2)]


def test_a_store_that_is_away_costs_nothing(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write fails once, before or after it was done."""
    here.cluster.results = [FAILURE]
    told: set[bytes] = set()

    def lossy(write: Callable[..., bool]) -> Callable[..., bool]:
        def written(uri: str, data: bytes, *more: bytes) -> bool:
            if data not in told and not told.add(data):
                if len(told) % 2:
                    write(uri, data, *more)
                raise storage.StorageError("connection reset")
            return write(uri, data, *more)

        return written

    monkeypatch.setattr(storage, "create_bytes", lossy(storage.create_bytes))
    monkeypatch.setattr(storage, "replace_bytes", lossy(storage.replace_bytes))
    here.at(NIGHT)
    for _ in range(20):
        with contextlib.suppress(storage.StorageError):
            here.do()
        here.clock.sleep(61)
    (ended,) = here.schedules.history("nightly", 9)
    assert ended.status == "succeeded"
    assert len(set(here.cluster.commands)) == 1
    assert here.current() is None


def test_a_model_that_is_missing_is_told_each_time_and_the_tick_stays_due(here: World) -> None:
    def missing(model: str) -> str:
        raise ValueError("no model")

    for _ in range(3):
        here.at(NIGHT)
        with pytest.raises(ValueError, match="no model"):
            here.do(resolve=missing)
    assert [tick.due for tick in here.do()] == [TICK]


@pytest.mark.parametrize(("missed", "status"), [("last", "succeeded"), ("skip", "skipped")])
def test_of_missed_ticks_the_last_one_counts(tmp_path: Path, missed: str, status: str) -> None:
    world = World(str(tmp_path))
    world.add(missed=missed)
    (ended,) = world.at(NIGHT + timedelta(days=40, hours=5)).do()
    assert (ended.due, ended.status) == ("20270102T030000Z", status)
    assert world.schedules.history("nightly", 5) == [ended]
    assert world.do() == []
    assert [tick.status for tick in world.at(NIGHT + timedelta(days=41, minutes=9)).do()] == ["succeeded"]


@pytest.mark.parametrize(("overlap", "statuses"), [("wait", ["succeeded"] * 3), ("skip", ["succeeded", "skipped"])])
def test_ticks_that_came_while_the_one_before_was_at_work(tmp_path: Path, overlap: str, statuses: list[str]) -> None:
    """A job of 150 minutes each hour, for 5 hours: of those that came meanwhile the last one is done, or none."""
    world = World(str(tmp_path))
    world.add(cron="0 * * * *", overlap=overlap, missed="skip")
    world.cluster.takes = timedelta(minutes=150)
    ended = []
    while world.clock.now() < EVENING + timedelta(hours=5 if overlap == "skip" else 7):
        ended += world.do()
        world.clock.sleep(30)
    assert [tick.status for tick in ended][: len(statuses)] == statuses
    assert max(Counter(tick.due for tick in ended).values()) == 1
    if overlap == "wait":
        assert [tick.due[9:11] for tick in ended] == ["21", "23", "02"]


def test_a_clock_that_is_set_back_two_days_goes_on_and_repeats_nothing(here: World) -> None:
    for day in range(3):
        here.at(NIGHT + timedelta(days=day)).do()
    here.clock.time -= timedelta(days=2)
    ended = []
    for _ in range(6 * 24 * 6 + 6):
        ended += here.do()
        here.clock.sleep(600)
    assert sum("the clock was set back" in line for line in here.said) == 1
    assert [tick.due[6:8] for tick in ended] == ["26", "27", "28", "29"]
    assert len(here.cluster.jobs) == 7


def test_told_to_stop_it_lets_go_and_the_next_pass_goes_on(here: World) -> None:
    here.cluster.takes = timedelta(minutes=30)
    with pytest.raises(Stopped):
        here.at(NIGHT).do(wait=lambda seconds: True)
    (job,) = here.cluster.jobs.values()
    assert job.left
    assert [tick.status for tick in here.do()] == ["succeeded"]


def test_now_is_a_tick_of_its_own_and_takes_none_from_the_calendar(here: World) -> None:
    here.at(NIGHT - timedelta(minutes=1))
    (ended,) = do_now(here.ticker(), "nightly")
    assert (ended.due, ended.status) == ("20261123T025900Z", "succeeded")
    assert [tick.due for tick in here.do()] == [TICK]


def test_now_twice_in_a_minute_is_two_sets_of_images(here: World) -> None:
    here.cluster.takes = timedelta(seconds=5)
    here.at(NIGHT - timedelta(minutes=1))
    (one,), (other,) = do_now(here.ticker(), "nightly"), do_now(here.ticker(), "nightly")
    assert (one.due, other.due) == ("20261123T025900Z", "20261123T030000Z")
    seeds = [command[command.index("--sample.first-seed") + 1] for command in here.cluster.commands]
    assert int(seeds[1]) - int(seeds[0]) == 1_000_000
    assert [line for line in here.said if "waits" in line] == [
        "nightly  waits 55 s for the next minute, of which its seeds are: this one's images are made"
    ]
    with pytest.raises(Stopped):
        do_now(here.ticker(wait=lambda seconds: True), "nightly")
    assert len(here.cluster.commands) == 2


def test_now_in_the_minute_of_a_tick_is_that_tick(here: World) -> None:
    """Its images would be the same: seeds are a minute's."""
    (ended,) = do_now(here.at(NIGHT + timedelta(seconds=12)).ticker(), "nightly")
    assert (ended.due, ended.started_at) == (TICK, "2026-11-23T03:00:12+00:00")
    assert here.do() == []
    assert len(here.cluster.jobs) == 1


def test_now_in_a_month_without_a_tick_of_the_calendar_is_shown(tmp_path: Path) -> None:
    world = World(str(tmp_path))
    world.add(cron="0 0 15 * *")
    (ended,) = do_now(world.at(EVENING + timedelta(days=9)).ticker(), "nightly")
    assert ended.due == "20261201T200000Z"
    assert world.schedules.history("nightly", 5) == [ended]


def test_now_is_refused_while_another_is_at_it(here: World) -> None:
    with here.holds(here.schedules.folder("nightly"), say=print), pytest.raises(HeldError):
        do_now(here.ticker(), "nightly")
    assert here.cluster.jobs == {}


def test_paused_it_does_nothing_and_resumed_what_comes_then(here: World) -> None:
    here.schedules.change("nightly", paused=True)
    assert here.at(NIGHT).do() == []
    here.clock.sleep(3600)
    here.schedules.change("nightly", paused=False, since=said(here.clock.now()))
    assert here.do() == []
    assert [tick.due for tick in here.at(NIGHT + timedelta(days=1)).do()] == ["20261124T030000Z"]


def test_removed_it_is_forgotten_and_what_it_made_is_not(here: World) -> None:
    here.at(NIGHT).do()
    here.schedules.remove("nightly")
    assert here.schedules.names() == []
    with pytest.raises(ValueError, match=r"no schedule nightly in .*; there is none: `add` one first"):
        here.do()
    here.add("nightli")
    with pytest.raises(ValueError, match="there are nightli; did you mean nightli"):
        here.do()
    with pytest.raises(ValueError, match="there is a schedule nightli already"):
        here.add("nightli")
    assert here.schedules.ended("nightly", NIGHT) is not None


def test_a_record_of_a_newer_format_is_refused(here: World) -> None:
    storage.write_bytes(storage.join(here.store, "schedules/defined/nightly.json"), b'{"format_version": 2}')
    with pytest.raises(ValueError, match="format_version 2; this code reads up to 1"):
        here.do()


# --- a year


class Memory:
    """Files of which each write and read fails one time in ten, before or after it was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, chance: random.Random) -> None:
        self.files: dict[str, bytes] = {}
        self.fails = False
        self._chance = chance
        for name in ("read_bytes", "create_bytes", "replace_bytes", "list_files"):
            monkeypatch.setattr(storage, name, partial(self._asked, getattr(self, name)))

    def _asked(self, what: Callable[..., Any], *args: Any) -> Any:
        lot = self._chance.random() if self.fails else 1.0
        if lot < 0.05:
            raise storage.StorageError("connection refused")
        answer = what(*args)
        if lot < 0.1:
            raise storage.StorageError("connection reset")
        return answer

    def read_bytes(self, uri: str) -> bytes:
        if uri not in self.files:
            raise FileNotFoundError(uri)
        return self.files[uri]

    def create_bytes(self, uri: str, data: bytes) -> bool:
        return self.files.setdefault(uri, data) is data

    def replace_bytes(self, uri: str, data: bytes, expected: bytes) -> bool:
        stands = self.files.get(uri) == expected
        if stands:
            self.files[uri] = data
        return stands

    def list_files(self, uri: str) -> list[tuple[str, int]]:
        return sorted((each, len(data)) for each, data in self.files.items() if each.startswith(f"{uri}/"))


ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago")


@pytest.mark.parametrize("seed", [0, 1])
def test_a_year_of_kills_failures_and_clocks_that_jump_leaves_each_tick_one_output(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Three do what is due, in four zones with daylight saving; each is killed now and then, and the clock jumps by two days."""
    chance = random.Random(seed)
    memory = Memory(monkeypatch, chance)
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    world, end = World("/year", clock=Clock(begin)), begin + timedelta(days=366)
    world.cluster.takes = timedelta(minutes=7)
    world.add("noon", "15 12 * * *", retries=9)
    for zone in ZONES:
        world.add(zone.replace("/", "-"), "30 2 * * *", zone, retries=9)
    names, jumps = world.schedules.names(), [begin + timedelta(days=40 * n, hours=7 * n) for n in range(1, 9)]
    nested = False

    def wait(seconds: float) -> bool:
        nonlocal nested
        world.clock.sleep(max(seconds, 60))
        if chance.random() < 0.04:
            raise Killed
        if not nested and chance.random() < 0.1:
            nested = True
            pass_over(chance.choice(names))
            nested = False
        return False

    def pass_over(name: str) -> None:
        world.cluster.results = [FAILURE] if chance.random() < 0.2 else []
        with contextlib.suppress(Killed, storage.StorageError):
            do_due(world.ticker(wait=wait), name)

    memory.fails, ahead = True, False
    while world.clock.now() < end:
        for name in names:
            nested = False
            pass_over(name)
        if jumps and world.clock.now() > jumps[0]:
            world.clock.time += timedelta(days=-2 if ahead or len(jumps) % 2 else 2)
            ahead = not ahead and not len(jumps) % 2
            jumps = jumps if ahead else jumps[1:]
        world.clock.sleep(chance.uniform(600, 5400))
    memory.fails = False

    found = {name: world.schedules.history(name, 9999) for name in names}
    assert {tick.status for ticks in found.values() for tick in ticks} == {"succeeded"}
    for name, ticks in found.items():
        seeds = {tick.command[tick.command.index("--sample.first-seed") + 1] for tick in ticks}
        assert seeds == {str(first_seed(parse_tick(tick.due))) for tick in ticks}, name
        assert len(seeds) == len(ticks), name
    noons = {tick_name(begin + timedelta(days=n, hours=12, minutes=15)) for n in range(365)}
    assert {tick.due for tick in found["noon"]} - {"20270101T121500Z"} == noons
    for zone in ZONES:
        ticks = [parse_tick(tick.due).astimezone(ZoneInfo(zone)) for tick in found[zone.replace("/", "-")]]
        days = Counter(tick.date() for tick in ticks)
        assert set(days.values()) == {1}, zone
        assert len(days) >= 364
        # Where 02:30 does not exist, the tick comes when the gap ends.
        assert {f"{tick:%H:%M}" for tick in ticks} <= {"02:30", "03:00", "03:30"}, zone
    assert sum("the clock was set back" in line for line in world.said) >= 8


# --- jobs


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose sample.py is a few lines."""
    monkeypatch.setattr(launch, "project_root", lambda: tmp_path / "project")
    (tmp_path / "project" / "pipelines").mkdir(parents=True)
    return tmp_path / "project" / "pipelines" / "sample.py"


def test_a_real_process(project: Path, tmp_path: Path) -> None:
    project.write_text(
        "import json, os, sys\nprint('working', file=sys.stderr)\n"
        "print(json.dumps({'samples': sys.argv[-1], 'path': os.environ['PYTHONPATH']}))\n"
    )
    world = World(str(tmp_path / "store"))
    world.add()
    (ended,) = world.at(NIGHT).do(launch=partial(local_job, tmp_path / "logs"), wait=lambda seconds: time.sleep(0.05))
    assert (ended.status, ended.made["samples"]) == ("succeeded", "--json")
    assert ended.made["path"].split(os.pathsep)[0] == str(project.parents[1])
    assert ended.log == str(tmp_path / "logs" / f"nightly-{TICK}-1.log")
    assert "working" in Path(ended.log).read_text()


@pytest.mark.parametrize(("last", "code"), [('print(\'{"samples": "x"}\')', 0), ("raise SystemExit(1)", None)])
def test_a_process_that_outlived_its_starter_is_followed(
    project: Path, tmp_path: Path, last: str, code: int | None
) -> None:
    project.write_text(f"import time\nprint('up', flush=True)\ntime.sleep(1)\n{last}\n")
    launch = partial(local_job, tmp_path / "logs", "id", ["python", "pipelines/sample.py"])
    begun, waits = threading.Event(), Counter[str]()
    with ThreadPoolExecutor(1) as pool:
        starter = pool.submit(launch, started=lambda log: begun.set(), wait=lambda: time.sleep(0.05))
        assert begun.wait(60)
        ended = launch(started=not_again, wait=lambda: waits.update(["orphan"]) or time.sleep(0.05))
    assert ended.exit_code == code
    assert waits["orphan"] > 5
    assert starter.result().output == ended.output
    logs: list[str] = []
    launch(started=logs.append, wait=lambda: None)
    assert logs == [ended.log]


def not_again(log: str) -> None:
    raise AssertionError(f"started again: {log}")


def test_a_process_ends_with_its_starter(project: Path, tmp_path: Path) -> None:
    project.write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n")
    log = tmp_path / "logs" / "id.log"

    def wait() -> None:
        if log.read_text().endswith("\n"):
            raise Stopped

    with pytest.raises(Stopped):
        local_job(log.parent, "id", ["python", "pipelines/sample.py"], started=lambda log: None, wait=wait)
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)


@pytest.mark.parametrize(
    ("output", "made"),
    [("", {}), ("no\n", {}), ('{"a": 1}\nnoise\n{broken\n', {"a": 1}), ('{"a": 1}\n{"a": 2}', {"a": 2})],
)
def test_what_a_job_made_is_its_last_json_line(output: str, made: dict) -> None:
    assert JobResult(exit_code=0, output=output).made == made


class FakeJobsApi:
    """Answers as Ray 2.60's client does."""

    def __init__(self) -> None:
        self.jobs: dict[str, SimpleNamespace] = {}
        self.submitted: list[dict] = []
        self.away = self.full = False

    def submit_job(self, **request) -> str:
        if self.away or self.full:
            raise RuntimeError("Request failed with status code 503: Traceback\nno agent.")
        name = request["submission_id"]
        if name in self.jobs:
            raise RuntimeError(
                f"Request failed with status code 500: ValueError: Job with submission_id {name} already exists."
            )
        self.submitted.append(request)
        self.jobs[name] = SimpleNamespace(status="PENDING", driver_exit_code=None, message="pending")
        return name

    def get_job_info(self, name: str) -> SimpleNamespace:
        if self.away:
            raise RuntimeError("Request failed with status code 503: no agent.")
        if name not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist.")
        return self.jobs[name]

    def get_job_logs(self, name: str) -> str:
        return MADE


def job_info(status: str, code: int | None = None) -> SimpleNamespace:
    return SimpleNamespace(status=status, driver_exit_code=code, message="")


def test_a_submission_id_that_is_taken_is_the_job() -> None:
    api, logs = FakeJobsApi(), list[str]()

    def second() -> None:
        waits = iter([lambda: None, lambda: api.jobs.update({"n-1": job_info("SUCCEEDED", 0)})])
        followed = ray_job(api, "n-1", ("python", "pipelines/sample.py"), started=not_again, wait=lambda: next(waits)())
        assert followed.exit_code == 0

    words = ("python", "pipelines/sample.py", "--name", "a b")
    ended = ray_job(api, "n-1", words, started=logs.append, wait=second)
    assert ended == JobResult(exit_code=0, output=MADE, log="ray job logs n-1")
    assert logs == [ended.log]
    assert len(api.submitted) == 1
    assert api.submitted[0]["entrypoint"] == "python pipelines/sample.py --name 'a b'"
    assert (Path(api.submitted[0]["runtime_env"]["working_dir"]) / "pipelines" / "schedule.py").is_file()


@pytest.mark.parametrize(
    ("status", "waits", "code"),
    [("PENDING", 3, 0), ("RUNNING", 3, 0), ("SUCCEEDED", 0, 0), ("FAILED", 0, 1), ("STOPPED", 0, None)],
)
def test_a_job_of_a_dead_starter_is_followed_and_not_submitted_again(status: str, waits: int, code: int | None) -> None:
    api, waited = FakeJobsApi(), list[int]()
    api.jobs["n-1"] = job_info(status, 1 if status == "FAILED" else None)

    def wait() -> None:
        waited.append(1)
        if len(waited) == 3:
            api.jobs["n-1"] = job_info("SUCCEEDED", 0)

    assert ray_job(api, "n-1", COMMAND, started=not_again, wait=wait).exit_code == code
    assert api.submitted == []
    assert len(waited) == waits


def test_a_job_that_failed_or_was_lost_has_not_succeeded() -> None:
    api = FakeJobsApi()
    follow = partial(ray_job, api, "n-1", COMMAND, started=lambda log: None)
    for status, code, expected in [("FAILED", 2, 2), ("FAILED", 0, None), ("STOPPED", None, None)]:
        api.jobs["n-1"] = job_info(status, code)
        assert follow(wait=lambda: None).exit_code == expected
    api.jobs["n-1"] = job_info("RUNNING")
    lost = follow(wait=api.jobs.clear)
    assert (lost.exit_code, lost.output) == (None, "the cluster does not know the job any more")

    def goes_away() -> None:
        api.away = True

    with pytest.raises(LaunchError, match=r"the job n-1 was not told of .*no agent"):
        follow(wait=goes_away)
    api.away, api.full = False, True
    with pytest.raises(LaunchError, match=r"the job n-2 was not taken .*no agent"):
        ray_job(api, "n-2", COMMAND, started=not_again, wait=lambda: None)
    assert follow(wait=api.jobs.clear).exit_code is None  # it is there already


def test_the_launcher_follows_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert launch.ray_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert launch.ray_address() is None
    launch_here = open_launcher(None, tmp_path, str(tmp_path))
    assert isinstance(launch_here, partial)
    assert launch_here.func is local_job
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://10.0.0.1:8265")
    assert launch.ray_address() == "http://10.0.0.1:8265"


# --- the command


def command(*argv: str) -> None:
    run_subcommand("schedule.py", "", schedule.COMMANDS, list(argv))


def test_dry_run_shows_five_ticks_and_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--cron", "0 3 * * *", "--time-zone", "Asia/Tokyo", "--store", str(tmp_path / "store"), "--dry-run"]
    command("add", "nightly", *flags, "--", *COMMAND)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tick")]
    assert len(lines) == 5
    assert all("03:00 JST" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["add", "a", "--cron", "61 * * * *"], "cron is '61 * * * *' (bad minute); expected five fields"),
        (["add", "a", "--time-zone", "Europe/Berlim"], "did you mean Europe/Berlin"),
        (["add", "a", "--retries", "-1"], "retries is -1; expected 0 or more"),
        (["add", "a/b"], "name is 'a/b'; expected"),
        (["add"], "add has no name; expected `schedule.py add NAME`"),
        (["add", "a", "--misssed", "last"], "did you mean --missed?"),
        (["add", "a", "--", "python", "pipelines/train.py"], "expected python pipelines/sample.py"),
        (["show", "a"], "no schedule a in"),
        (["tick", "a"], "no schedule a in"),
        (["adds"], "did you mean add?"),
        ([], "expected add, list, show"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        command(*argv)
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert said in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_list_show_pause_resume_and_remove(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "utc_now", lambda: world.clock.now())
    world, store = World(str(tmp_path)), ["--store", str(tmp_path)]
    world.add("nightly", missed="skip")
    world.add("hourly", "0 * * * *", "Europe/Berlin")
    world.at(NIGHT).do()

    def told(*argv: str) -> list[str]:
        command(*argv, *store)
        return capsys.readouterr().out.splitlines()

    hourly, nightly = told("list")
    assert hourly.startswith("hourly   0 * * * *     Europe/Berlin    next ")
    assert "last Mon 2026-11-23 03:00 UTC succeeded" in nightly
    about, typed, coming, tick = told("show", "nightly")
    assert about == "nightly  0 3 * * *, UTC; missed: skip, overlap: wait"
    assert typed.endswith("--num-images 256")
    assert coming.startswith("next     ")
    assert tick == f"{TICK}  succeeded  120 s, /store/samples/abc/set-1-256.json; log"
    told("pause", "hourly")
    assert "next paused" in told("list")[0]
    told("resume", "hourly")
    assert "next paused" not in told("list")[0]
    told("remove", "hourly")
    assert len(told("list")) == 1


def test_a_tick_for_which_nobody_comes_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schedule is a record and no process: without `run` or `tick` nothing would ever say that nothing happens."""
    since = parse_tick("20261125T020000Z")
    world, store = World(str(tmp_path), clock=Clock(since - timedelta(hours=1))), ["--store", str(tmp_path)]
    world.add(time_zone="Europe/Berlin")
    monkeypatch.setattr(state, "utc_now", lambda: now)

    def told(word: str, *more: str) -> Any:
        command(*[word, *(["nightly"] if word == "show" else []), *more, *store])
        out = capsys.readouterr().out
        return json.loads(out.splitlines()[-1]) if more else out

    now = since + timedelta(minutes=1)  # cron's `tick` may be at it in a moment
    assert "nobody" not in told("list") + told("show")
    now = since + timedelta(days=1, hours=1)
    words = "due since Wed 2026-11-25 03:00 CET, and nobody came: neither `run` nor `tick` is at work"
    assert words in told("list")
    assert words in told("show")
    facts = told("list", "--json")["schedules"]["nightly"]
    assert facts == {
        "cron": "0 3 * * *",
        "time_zone": "Europe/Berlin",
        "paused": False,
        "next": "2026-11-27T02:00:00+00:00",
        "waits_since": "2026-11-25T02:00:00+00:00",
        "at_work": None,
        "last": None,
    }
    with hold(world.schedules.folder("nightly"), say=print):
        assert "nobody" not in told("list")
    before = world.schedules.standing("nightly", world.schedules.read("nightly"))
    begun = Tick(due=TICK, started_at=said(now))  # and killed with its starter
    world.schedules.stand("nightly", replace(before[0], current=begun), before[1])
    with hold(world.schedules.folder("nightly"), say=print):
        assert "at work on Mon 2026-11-23 04:00 CET; no tick yet" in told("list")
        assert told("list", "--json")["schedules"]["nightly"]["at_work"] == TICK
    assert "nobody came" in told("list")
    world.schedules.change("nightly", paused=True)
    assert "nobody" not in told("list")
    assert told("show", "--json")["next"] is None


def test_what_is_said_at_each_pass_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = iter(["a  is away", "b  is away", "a  is away", "a  done", "a  is away"])
    pass_over = passing(Schedules(str(tmp_path)), threading.Event(), lambda by, name: by.say(next(lines)) or [])
    for name in "abaaa":
        assert pass_over(name) == Passed([], wrong=False)
    assert capsys.readouterr().out.splitlines() == ["a  is away", "b  is away", "a  done", "a  is away"]


def test_what_ended_counts_where_mlflow_does_not_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args: Any) -> None:
        raise TrackingError("MLflow is away")

    monkeypatch.setattr(loop, "log_ticks", away)
    ended = [Tick(due=TICK, status="succeeded")]
    pass_over = passing(Schedules(str(tmp_path)), threading.Event(), lambda by, name: ended)
    assert pass_over("a") == Passed(ended, wrong=True)


def test_the_units_call_tick_each_minute(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command("units", "--store", str(tmp_path / "my store"))
    lines = capsys.readouterr().out.splitlines()
    (cron,) = [line for line in lines if line.startswith("* * * * * ")]
    assert cron.endswith(f"pipelines/schedule.py tick --store '{tmp_path}/my store'")
    assert f"ExecStart={cron[10:]}" in lines
    assert "Persistent=true" in lines


def test_a_signal_ends_the_loop(tmp_path: Path) -> None:
    """In a process of its own: the real handlers, a real SIGTERM."""
    World(str(tmp_path), clock=Clock(datetime.now(UTC))).add(cron="0 0 1 1 *")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    words = [sys.executable, str(Path(schedule.__file__)), "run", "--store", str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("doing what is due in")
        time.sleep(0.5)
        process.terminate()
        assert process.stdout.read().startswith("stopped: 0 ticks ended, 0 of them failed")
    assert process.returncode == 0
