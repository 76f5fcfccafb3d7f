"""Every tick is started at least once and done exactly once, whatever becomes of the schedulers; no test waits."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from ddpm_core import storage
from pipelines import schedule
from pipelines.scheduling import jobs as launch
from pipelines.scheduling.calendar import Calendar, interruptible_sleep, parse_tick, tick_name
from pipelines.scheduling.claims import Claim, read_claim, read_done, unfinished
from pipelines.scheduling.jobs import JobResult, LaunchError, LocalJobs, RayJobs, open_launcher
from pipelines.scheduling.loop import Scheduler, run_scheduler
from pipelines.scheduling.resolve import SEEDS_PER_TICK, check_command, first_seed, model_resolver, pin_command
from pipelines.scheduling.ticks import TickRunner

COMMAND = ("python", "pipelines/sample.py", "digits", "--model", "models:/ddpm-digits@champion", "--num-images", "256")
NIGHTLY = Calendar(cron="0 3 * * *", timezone="UTC")
EVENING = datetime(2026, 11, 22, 20, 0, tzinfo=UTC)
TICK = "20261123T030000Z"
MADE = '{"samples": "/store/samples/abc/set-1-256.json", "images": 256}'
SUCCESS = JobResult(exit_code=0, output=f"loading\n{MADE}\n")
FAILURE = JobResult(exit_code=1, output="Traceback\nRuntimeError: no memory\n")


# --- the world: a clock that sleeping moves, jobs that take as long as they are told


@dataclass
class Clock:
    time: datetime = EVENING

    def now(self) -> datetime:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@dataclass
class FakeJob:
    ends: datetime
    result: JobResult
    clock: Clock
    log: str = "log"
    left: bool = False

    def poll(self) -> JobResult | None:
        return self.result if self.clock.now() >= self.ends else None

    def leave(self) -> None:
        self.left = True


@dataclass
class FakeCluster:
    """Jobs by submission id; as a cluster it knows those of any scheduler, as a machine (`forgets`) it does not."""

    clock: Clock
    takes: timedelta = timedelta(minutes=2)
    results: list[JobResult] = field(default_factory=list)
    forgets: bool = False
    jobs: dict[str, FakeJob] = field(default_factory=dict)
    commands: list[tuple[str, ...]] = field(default_factory=list)

    def find(self, submission_id: str) -> FakeJob | None:
        job = None if self.forgets else self.jobs.get(submission_id)
        return job if job and (job.poll() or SUCCESS).exit_code == 0 else None

    def start(self, submission_id: str, command: Sequence[str]) -> FakeJob:
        assert submission_id not in self.jobs, "started twice"
        result = self.results.pop(0) if self.results else SUCCESS
        self.jobs[submission_id] = FakeJob(self.clock.now() + self.takes, result, self.clock)
        self.commands.append(tuple(command))
        return self.jobs[submission_id]


@dataclass
class World:
    store: str
    clock: Clock = field(default_factory=Clock)
    said: list[str] = field(default_factory=list)
    champion: int = 3
    cluster: FakeCluster = field(init=False)

    def __post_init__(self) -> None:
        self.cluster = FakeCluster(self.clock)

    @property
    def folder(self) -> str:
        return storage.join(self.store, "schedules", "nightly")

    def resolve(self, model: str) -> str:
        return model.replace("@champion", f"/{self.champion}")

    def scheduler(self, *, calendar: Calendar = NIGHTLY, lease_s: float = 600, retries: int = 2, **more) -> Scheduler:
        runner = TickRunner(
            name="nightly",
            folder=self.folder,
            lease=timedelta(seconds=lease_s),
            retries=retries,
            launcher=more.pop("launcher", self.cluster),
            pin=partial(pin_command, COMMAND, store=self.store, resolve=more.pop("resolve", self.resolve)),
            now=self.clock.now,
            say=self.said.append,
        )
        return Scheduler(runner=runner, calendar=calendar, **more)

    def claim(self, tick: str = TICK) -> Claim:
        found = read_claim(self.folder, tick)
        assert found is not None
        return found[0]

    def play(self, *schedulers: Scheduler, until: datetime | None = None, limit: int = 4000) -> None:
        """Rounds of all in turn, the clock moving to the next that wants one; until all are done, or a time."""
        for _ in range(limit):
            pauses = [pause for each in schedulers if (pause := each.round()) is not None]
            if not pauses or self.clock.now() == until:
                return
            step = max(min(pauses), 0.01)
            self.clock.sleep(min(step, (until - self.clock.now()).total_seconds()) if until else step)
        raise AssertionError("no end")


@pytest.fixture(params=["local", "s3"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    if request.param == "local":
        return World(str(tmp_path / "store"))
    return World(f"s3://{request.getfixturevalue('bucket')}/prefix")


@pytest.fixture
def here(tmp_path: Path) -> World:
    return World(str(tmp_path / "store"))


# --- ticks


@pytest.mark.parametrize(
    ("cron", "said"),
    [("61 * * * *", "bad minute"), ("* * * *", "five fields"), ("* * * * * *", "five fields"), ("", "five fields"),
     ("0 0 30 2 *", "day-of-month"), ("@daily", "five fields"), ("0 3 * * XYZ", "day-of-week")],
)  # fmt: skip
def test_a_wrong_cron_expression_is_one_line(cron: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as told:
        Calendar(cron=cron, timezone="UTC")
    assert repr(cron) in str(told.value)
    assert "0 3 * * *" in str(told.value)
    assert "\n" not in str(told.value)


def test_an_unknown_timezone_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'Europe/Berlim'.*did you mean Europe/Berlin"):
        Calendar(cron="0 3 * * *", timezone="Europe/Berlim")


@pytest.mark.parametrize(
    ("day_before", "expected"),
    [
        # 02:30 does not exist on 29 March: one tick at 03:00 CEST. It exists twice on 25 October: one tick, the first.
        ("2026-03-28T12:00", ["20260329T010000Z", "20260330T003000Z"]),
        ("2026-10-24T12:00", ["20261025T003000Z", "20261026T013000Z"]),
    ],
)
def test_daylight_saving_neither_drops_nor_doubles_a_daily_tick(day_before: str, expected: list[str]) -> None:
    calendar = Calendar(cron="30 2 * * *", timezone="Europe/Berlin")
    start = datetime.fromisoformat(day_before).replace(tzinfo=UTC)
    assert [tick_name(tick) for tick in islice(calendar.after(start), 2)] == expected


def test_hourly_ticks_are_an_hour_apart_when_the_clock_is_set_back() -> None:
    calendar = Calendar(cron="0 * * * *", timezone="Europe/Berlin")
    ticks = list(islice(calendar.after(datetime(2026, 10, 24, 20, tzinfo=UTC)), 8))
    assert {later - tick for tick, later in pairwise(ticks)} == {timedelta(hours=1)}


def test_in_the_hour_that_comes_twice_no_tick_lies_in_the_past() -> None:
    second_time = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)  # 02:10 CET; 02:30 CEST is past
    calendar = Calendar(cron="30 2 * * *", timezone="Europe/Berlin")
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
    ticks = list(islice(Calendar(cron="* * * * *", timezone="Europe/Berlin").after(EVENING), 200))
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
    assert check_command(["/usr/bin/python3.11", "/home/me/pipelines/sample.py", "mnist"]) == (
        "python", "pipelines/sample.py", "mnist")  # fmt: skip


def test_a_run_is_pinned_to_its_newest_checkpoint(tmp_path: Path) -> None:
    resolve = model_resolver(str(tmp_path), "digits")
    for step in (1, 2):
        storage.write_bytes(f"{tmp_path}/runs/r/checkpoints/step-{step:08d}/state.json", b"{}")
    assert resolve(f"{tmp_path}/runs/r") == f"{tmp_path}/runs/r/checkpoints/step-00000002"
    assert resolve(f"{tmp_path}/runs/r/checkpoints/step-00000001").endswith("step-00000001")
    with pytest.raises(ValueError, match=r"no model at .*runs/x; expected models:/NAME@champion"):
        resolve(f"{tmp_path}/runs/x")


# --- schedulers


def test_a_tick_is_claimed_started_and_done(world: World) -> None:
    scheduler = world.scheduler(ticks=1)
    scheduler.begin()
    world.play(scheduler)
    done = read_done(world.folder, TICK)
    assert done is not None
    assert (done.status, done.exit_code, done.attempt) == ("succeeded", 0, 1)
    assert done.samples == "/store/samples/abc/set-1-256.json"
    assert done.made == json.loads(MADE)
    assert done.command == world.claim().command == world.cluster.commands[0]
    assert "models:/ddpm-digits/3" in done.command
    assert list(world.cluster.jobs) == [f"nightly-{TICK}-1"]
    assert [datetime.fromisoformat(t) - parse_tick(TICK) for t in (done.started_at, done.ended_at)] == [
        timedelta(0), timedelta(minutes=2)]  # fmt: skip
    assert unfinished(world.folder) == []


def test_nothing_happens_before_the_tick_and_the_sleep_is_short(here: World) -> None:
    scheduler = here.scheduler()
    scheduler.begin()
    assert scheduler.round() == 30
    here.clock.time = parse_tick(TICK) - timedelta(seconds=5)
    assert scheduler.round() == 5
    assert storage.list_files(here.store) == []


def test_two_schedulers_one_start(here: World) -> None:
    hourly = Calendar(cron="0 * * * *", timezone="UTC")
    both = [here.scheduler(ticks=3, calendar=hourly), here.scheduler(ticks=3, calendar=hourly)]
    for each in both:
        each.begin()
    here.play(*both)
    ticks = ["20261122T210000Z", "20261122T220000Z", "20261122T230000Z"]
    assert sorted(here.cluster.jobs) == [f"nightly-{tick}-1" for tick in ticks]
    assert [[done.tick for done in each.done] for each in both] == [ticks, ticks]


def test_both_see_no_claim_and_one_start(world: World) -> None:
    """The second claims between the first's look and its own claim."""
    other = world.scheduler(ticks=1)

    def slow(model: str) -> str:
        other.round()
        return world.resolve(model)

    first = world.scheduler(ticks=1, resolve=slow)
    first.begin(), other.begin()
    world.clock.time = parse_tick(TICK)
    first.round()
    assert world.claim().owner == other.runner.me
    world.play(first, other)
    assert list(world.cluster.jobs) == [f"nightly-{TICK}-1"]


def test_a_live_lease_is_waited_for_however_long_the_job(here: World) -> None:
    here.cluster.takes = timedelta(minutes=35)
    owner, waiting = here.scheduler(ticks=1), here.scheduler(ticks=1)
    owner.begin()
    here.play(owner, until=parse_tick(TICK) + timedelta(minutes=1))
    waiting.begin()
    here.play(owner, waiting, until=parse_tick(TICK) + timedelta(minutes=30))
    assert not here.claim().expired(here.clock.now())
    assert waiting.done == []
    here.play(owner)
    assert len(here.cluster.jobs) == 1


@pytest.mark.parametrize("forgets", [True, False], ids=["job died too", "job goes on"])
def test_a_killed_schedulers_tick_is_taken_over_with_its_command(here: World, forgets: bool) -> None:
    here.cluster.forgets, here.cluster.takes = forgets, timedelta(minutes=12)
    killed = here.scheduler()
    killed.begin()
    here.play(killed, until=parse_tick(TICK) + timedelta(minutes=1))
    before = here.claim()
    here.champion = 4  # a new champion changes nothing of a tick that was claimed
    another = here.scheduler()
    another.begin()
    here.play(another, until=datetime.fromisoformat(before.lease_until) - timedelta(seconds=1))
    assert here.claim() == before
    here.play(another, until=parse_tick(TICK) + timedelta(hours=1))
    done = read_done(here.folder, TICK)
    assert done is not None
    assert (done.status, done.attempt, done.owner) == ("succeeded", 2, another.runner.me)
    assert done.command == before.command
    assert set(here.cluster.commands) == {before.command}
    assert len(here.cluster.jobs) == (2 if forgets else 1)
    assert done.submission_id == f"nightly-{TICK}-{2 if forgets else 1}"


def test_two_schedulers_take_over_once(world: World) -> None:
    killed = world.scheduler()
    killed.begin()
    world.play(killed, until=parse_tick(TICK))
    world.cluster.forgets = True
    both = [world.scheduler(), world.scheduler()]
    for each in both:
        each.begin()
    world.play(*both, until=parse_tick(TICK) + timedelta(minutes=13))
    assert list(world.cluster.jobs) == [f"nightly-{TICK}-1", f"nightly-{TICK}-2"]
    assert [[done.attempt for done in each.done] for each in both] == [[2], [2]]


def test_killed_between_claim_and_start(here: World) -> None:
    class Dies(FakeCluster):
        def start(self, submission_id: str, command: Sequence[str]) -> FakeJob:
            raise KeyboardInterrupt

    killed = here.scheduler(launcher=Dies(here.clock))
    killed.begin()
    with pytest.raises(KeyboardInterrupt):
        here.play(killed)
    another = here.scheduler(ticks=1)
    another.begin()
    here.play(another)
    assert f"nightly-{TICK}-2" in here.cluster.jobs
    assert unfinished(here.folder) == []


def test_who_slept_through_its_lease_lets_go(here: World) -> None:
    here.cluster.takes, here.cluster.forgets = timedelta(minutes=20), True
    slept, another = here.scheduler(), here.scheduler()
    slept.begin()
    here.play(slept, until=parse_tick(TICK) + timedelta(minutes=1))
    here.clock.sleep(900)
    another.begin()
    another.round()
    slept.round()
    assert here.cluster.jobs[f"nightly-{TICK}-1"].left
    here.play(slept, another, until=parse_tick(TICK) + timedelta(hours=1))
    assert [done.attempt for done in slept.done] == [done.attempt for done in another.done] == [2]


def test_a_failing_job_is_recorded_after_its_retries(here: World) -> None:
    here.cluster.results = [FAILURE] * 3
    scheduler = here.scheduler(ticks=1, retries=2)
    scheduler.begin()
    here.play(scheduler)
    done = read_done(here.folder, TICK)
    assert done is not None
    assert (done.status, done.exit_code, done.attempt, done.samples) == ("failed", 1, 3, None)
    assert done.message == "RuntimeError: no memory"
    assert len(set(here.cluster.commands)) == 1
    assert len(here.cluster.jobs) == 3


def test_a_job_that_fails_once_succeeds(here: World) -> None:
    here.cluster.results = [FAILURE]
    scheduler = here.scheduler(ticks=1)
    scheduler.begin()
    here.play(scheduler)
    assert [(done.status, done.attempt) for done in scheduler.done] == [("succeeded", 2)]


def test_jobs_run_one_at_a_time_and_waiting_ticks_are_held(here: World) -> None:
    here.cluster.takes = timedelta(minutes=5)
    calendar = Calendar(cron="* * * * *", timezone="UTC")
    scheduler, idle = here.scheduler(calendar=calendar, ticks=4, lease_s=60), here.scheduler(calendar=calendar, ticks=4)
    scheduler.begin(), idle.begin()
    here.play(scheduler, idle)
    assert [done.tick for done in scheduler.done] == [done.tick for done in idle.done]
    starts = sorted(datetime.fromisoformat(done.started_at) for done in scheduler.done)
    assert all(later - start >= here.cluster.takes for start, later in pairwise(starts))
    assert {done.attempt for done in scheduler.done} == {1}


def test_a_store_that_is_away_is_waited_for(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, create = here.scheduler(ticks=1), storage.create_bytes
    scheduler.begin()

    def flaky(uri: str, data: bytes) -> bool:
        if here.clock.now() < parse_tick(TICK) + timedelta(minutes=10) and uri.endswith((".claim.json", ".done.json")):
            raise storage.StorageError("cannot reach the server")
        return create(uri, data)

    monkeypatch.setattr(storage, "create_bytes", flaky)
    here.play(scheduler)
    assert [done.status for done in scheduler.done] == ["succeeded"]
    assert sum("cannot reach" in line for line in here.said) == 1


def test_an_answer_that_is_lost_costs_nothing(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write to the store succeeds once with an error."""
    here.cluster.results, here.cluster.takes = [FAILURE], timedelta(minutes=20)
    told: set[bytes] = set()

    def lossy(write):
        def written(uri: str, data: bytes, *more: bytes) -> bool:
            result = write(uri, data, *more)
            if data not in told and not told.add(data) and len(told) % 2:
                raise storage.StorageError("connection reset")
            return result

        return written

    monkeypatch.setattr(storage, "create_bytes", lossy(storage.create_bytes))
    monkeypatch.setattr(storage, "replace_bytes", lossy(storage.replace_bytes))
    scheduler = here.scheduler(ticks=1)
    scheduler.begin()
    here.play(scheduler)
    assert [(done.status, done.attempt) for done in scheduler.done] == [("succeeded", 2)]
    assert list(here.cluster.jobs) == [f"nightly-{TICK}-1", f"nightly-{TICK}-2"]


def test_a_model_that_is_missing_is_waited_for(here: World) -> None:
    def missing(model: str) -> str:
        if here.clock.now() < parse_tick(TICK) + timedelta(hours=1):
            raise ValueError("no model")
        return here.resolve(model)

    scheduler = here.scheduler(ticks=1, resolve=missing)
    scheduler.begin()
    here.play(scheduler)
    assert [done.status for done in scheduler.done] == ["succeeded"]


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [(timedelta(), []), (timedelta(hours=1), []), (timedelta(days=3), ["20261122T030000Z"])],
)
def test_only_the_most_recent_missed_tick_is_caught_up(here: World, catch_up: timedelta, expected: list[str]) -> None:
    scheduler = here.scheduler(catch_up=catch_up)
    scheduler.begin()
    here.play(scheduler, until=EVENING + timedelta(hours=1))
    assert [done.tick for done in scheduler.done] == expected
    again = here.scheduler(catch_up=catch_up)
    again.begin()
    here.play(again, until=EVENING + timedelta(hours=2))
    assert again.done == []


def test_after_a_long_sleep_the_ticks_in_between_were_missed(here: World) -> None:
    scheduler = here.scheduler(calendar=Calendar(cron="0 * * * *", timezone="UTC"))
    scheduler.begin()
    here.clock.sleep(5 * 3600 + 60)
    here.play(scheduler, until=EVENING + timedelta(hours=5, minutes=30))
    assert [done.tick for done in scheduler.done] == ["20261123T010000Z"]
    assert any("missed" in line and "20261122T210000Z to 20261123T000000Z, 4 in all" in line for line in here.said)


def test_a_clock_that_is_set_back_repeats_nothing(here: World) -> None:
    scheduler = here.scheduler(ticks=2)
    scheduler.begin()
    here.play(scheduler, until=parse_tick(TICK) + timedelta(minutes=30))
    here.clock.time -= timedelta(hours=1)
    here.play(scheduler)
    assert [done.tick for done in scheduler.done] == [TICK, "20261124T030000Z"]


def test_a_signal_lets_go_and_the_next_scheduler_goes_on_at_once(here: World) -> None:
    here.cluster.takes = timedelta(minutes=30)

    def sleep(seconds: float) -> str | None:
        here.clock.sleep(seconds)
        return "SIGTERM" if here.cluster.jobs else None

    assert run_scheduler(here.scheduler(), sleep) == "SIGTERM"
    assert here.cluster.jobs[f"nightly-{TICK}-1"].left
    assert here.claim().expired(here.clock.now())
    another = here.scheduler()
    another.begin()
    another.round()
    assert here.claim().owner == another.runner.me


def test_a_record_of_a_newer_format_is_refused(here: World) -> None:
    storage.write_bytes(storage.join(here.folder, f"{TICK}.claim.json"), b'{"format_version": 2}')
    with pytest.raises(ValueError, match="format_version 2; this code reads up to 1"):
        read_claim(here.folder, TICK)


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
    scheduler = world.scheduler(ticks=1, launcher=LocalJobs(tmp_path / "logs"))
    scheduler.begin()
    world.clock.time = parse_tick(TICK)
    while (pause := scheduler.round()) is not None:
        subprocess.run(["sleep", "0.05"], check=True)
        world.clock.sleep(pause)
    (done,) = scheduler.done
    assert (done.status, done.samples) == ("succeeded", "--json")
    assert done.made["path"].split(os.pathsep)[0] == str(project.parents[1])
    assert done.log == str(tmp_path / "logs" / f"nightly-{TICK}-1.log")
    assert "working" in Path(done.log).read_text()


def test_a_process_ends_with_its_scheduler(project: Path, tmp_path: Path) -> None:
    project.write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    job = LocalJobs(tmp_path / "logs").start("id", ["python", "pipelines/sample.py"])
    assert job.poll() is None
    job.leave()
    ended = job.poll()
    assert ended is not None
    assert ended.exit_code not in (0, None)


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
        self.away = False

    def submit_job(self, **request) -> str:
        if self.away:
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


def test_a_submission_id_that_is_taken_is_the_job() -> None:
    api = FakeJobsApi()
    first = RayJobs(api).start("n-1", ("python", "pipelines/sample.py", "--name", "a b"))
    second = RayJobs(api).start("n-1", ("python", "pipelines/sample.py"))
    assert len(api.submitted) == 1
    assert api.submitted[0]["entrypoint"] == "python pipelines/sample.py --name 'a b'"
    assert (Path(api.submitted[0]["runtime_env"]["working_dir"]) / "pipelines" / "schedule.py").is_file()
    assert first.poll() is second.poll() is None
    api.jobs["n-1"] = SimpleNamespace(status="SUCCEEDED", driver_exit_code=0, message="done")
    assert first.poll() == second.poll() == JobResult(exit_code=0, output=MADE)


@pytest.mark.parametrize(
    ("status", "found"),
    [("PENDING", True), ("RUNNING", True), ("SUCCEEDED", True), ("FAILED", False), ("STOPPED", False)],
)
def test_a_job_of_a_dead_scheduler_is_found_if_it_did_not_fail(status: str, found: bool) -> None:
    api = FakeJobsApi()
    api.jobs["n-1"] = SimpleNamespace(status=status, driver_exit_code=None, message="")
    assert (RayJobs(api).find("n-1") is not None) == found
    assert RayJobs(api).find("n-2") is None


def test_a_job_that_failed_or_was_lost_has_not_succeeded() -> None:
    api = FakeJobsApi()
    job = RayJobs(api).start("n-1", COMMAND)
    for status, code, expected in [("FAILED", 2, 2), ("FAILED", 0, None), ("STOPPED", None, None)]:
        api.jobs["n-1"] = SimpleNamespace(status=status, driver_exit_code=code, message="")
        assert job.poll().exit_code == expected
    del api.jobs["n-1"]
    assert job.poll().exit_code is None
    api.away = True
    with pytest.raises(LaunchError, match="n-1"):
        job.poll()
    with pytest.raises(LaunchError, match=r"the job n-2 was not taken .*no agent"):
        RayJobs(api).start("n-2", COMMAND)


def test_the_launcher_follows_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert launch.ray_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert launch.ray_address() is None
    assert isinstance(open_launcher(None, tmp_path, str(tmp_path)), LocalJobs)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://10.0.0.1:8265")
    assert launch.ray_address() == "http://10.0.0.1:8265"


# --- the command


def open_with(*argv: str) -> None:
    schedule.main(list(argv))


def test_dry_run_shows_five_ticks_and_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    open_with("--cron", "0 3 * * *", "--timezone", "Asia/Tokyo", "--store", str(store), "--dry-run", "--", *COMMAND)
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if line.startswith("tick")]
    assert len(lines) == 5
    assert all("03:00 JST" in line and "18:00 UTC" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--cron", "61 * * * *"], "cron is '61 * * * *' (bad minute); expected five fields"),
        (["--lease-s", "1"], "lease-s is 1.0; expected 5 or more"),
        (["--ticks", "0"], "ticks is 0; expected 1 or more"),
        (["--retries", "-1"], "retries is -1; expected 0 or more"),
        (["--name", "a/b"], "name is 'a/b'; expected"),
        (["--leese-s", "9"], "did you mean --lease-s?"),
        (["--", "python", "pipelines/train.py"], "expected python pipelines/sample.py"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        open_with(*argv)
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert said in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_the_name_follows_from_what_is_scheduled() -> None:
    one = schedule.ScheduleArgs(timezone="UTC")
    assert one.schedule_name == schedule.ScheduleArgs(timezone="UTC", lease_s=60).schedule_name
    others = [{"cron": "1 3 * * *"}, {"timezone": "Asia/Tokyo"}, {"command": COMMAND}]
    names = {schedule.ScheduleArgs(**{"timezone": "UTC", **other}).schedule_name for other in others}
    assert len(names | {one.schedule_name}) == 4


def test_a_signal_ends_the_sleep() -> None:
    """In a process of its own: the real handlers, a real SIGTERM."""
    code = (
        "import os, signal, threading\nfrom pipelines.scheduling.calendar import interruptible_sleep\n"
        "with interruptible_sleep() as sleep:\n"
        "    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    assert sleep(0) is None\n    print(sleep(30), sleep(30))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert ran.stdout == "SIGTERM SIGTERM\n", ran.stderr


def test_handlers_are_put_back() -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with interruptible_sleep() as sleep:
        assert sleep(0) is None
    assert signal.getsignal(signal.SIGTERM) is before
