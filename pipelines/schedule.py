"""Sample again and again, on a calendar: every tick is started at least once and has exactly one output.

Run as many of these as you like, on one machine or several: they share the work by claims in the store, and when one
dies another takes over what it had claimed. A job runs on the cluster that RAY_API_SERVER_ADDRESS or RAY_ADDRESS names,
else here. When a signal ends the scheduler, its local job ends too; a job on a cluster goes on, and the next one finds it.

A tick names its images: --sample.first-seed is the tick's Unix minute times 1,000,000 unless the command gives it, and
models:/NAME@ALIAS is the version that the alias points at when the tick is claimed.

examples:
  python pipelines/schedule.py --cron "0 3 * * *" --dry-run
  python pipelines/schedule.py --timezone Europe/Berlin -- python pipelines/sample.py digits --num-images 256
  python pipelines/schedule.py --cron "*/5 * * * *" --ticks 3 -- python pipelines/sample.py --model models:/NAME@champion
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import islice

import platformdirs
import tyro

from pipelines.door import Outcome, open_door, parse_flags
from pipelines.models import digest
from pipelines.progress import shown
from pipelines.recipes import default_store
from pipelines.stages.attend import Attendant
from pipelines.stages.claims import schedule_folder
from pipelines.stages.launch import open_launcher, ray_address
from pipelines.stages.pinning import DEFAULT_COMMAND, check_command, model_resolver, pin_command, recipe_of, rehearse
from pipelines.stages.schedule import Scheduler, run_scheduler, utc_now
from pipelines.stages.ticks import Calendar, interruptible_sleep, local_timezone, tick_name

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class ScheduleDoor:
    """When, and by which claims."""

    cron: str = "0 3 * * *"
    """Five fields: minute hour day-of-month month day-of-week."""
    timezone: str = field(default_factory=local_timezone)
    """In which the cron expression is read, as Europe/Berlin. Default: this machine's."""
    store: str = field(default_factory=default_store)
    """Where claims and images go: a folder or s3://bucket/prefix."""
    name: str | None = None
    """Schedulers of one name share its ticks. Default: the recipe and a digest of cron, time zone and command."""
    lease_s: float = 600.0
    """How long a tick of a scheduler that died waits for another; renewed while one lives."""
    catch_up_s: float = 0.0
    """How old the most recent missed tick may be and still be done."""
    retries: int = 2
    """How often a failed job is started again."""
    ticks: int | None = None
    """End after so many ticks. Default: never."""
    command: tyro.conf.Suppress[tuple[str, ...]] = DEFAULT_COMMAND

    def __post_init__(self) -> None:
        for flag, least in (("lease_s", 5), ("catch_up_s", 0), ("retries", 0), ("ticks", 1)):
            value = getattr(self, flag)
            if value is not None and not least <= value < float("inf"):
                raise ValueError(f"{flag.replace('_', '-')} is {value}; expected {least} or more")
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ValueError(f"name is {self.name!r}; expected up to 100 letters, digits, '.', '_' and '-'")
        Calendar(cron=self.cron, timezone=self.timezone)
        object.__setattr__(self, "command", check_command(self.command))

    @property
    def calendar(self) -> Calendar:
        """When."""
        return Calendar(cron=self.cron, timezone=self.timezone)

    @property
    def schedule_name(self) -> str:
        """The name, given or made."""
        made = f"{recipe_of(self.command)}-{digest([self.cron.split(), self.timezone, self.command], 8)}"
        return self.name or made

    @property
    def folder(self) -> str:
        """Where the claims lie."""
        return schedule_folder(self.store, self.schedule_name)


def check(door: ScheduleDoor) -> None:
    """Nothing more than the flags themselves say; `run` rehearses the command before it waits."""


def plan(door: ScheduleDoor) -> list[str]:
    """The next five ticks; nothing is touched."""
    ticks = islice(door.calendar.after(utc_now()), 5)
    return [f"claims: {door.folder}"] + [f"tick: {_local(door, tick)}  =  {tick:%Y-%m-%d %H:%M} UTC" for tick in ticks]


def run(door: ScheduleDoor) -> Outcome:
    """Check store, model, command and cluster; then wait for ticks and do them."""
    resolve = model_resolver(door.store, recipe_of(door.command))
    pin = partial(pin_command, door.command, store=door.store, resolve=resolve)
    address, logs = ray_address(), Path(platformdirs.user_log_dir("ddpm")) / "schedules" / door.schedule_name
    launcher = open_launcher(address, logs, door.store)
    rehearse(pin(utc_now()), address)
    attendant = Attendant(
        name=door.schedule_name,
        folder=door.folder,
        lease=timedelta(seconds=door.lease_s),
        retries=door.retries,
        launcher=launcher,
        pin=pin,
        now=utc_now,
        say=partial(print, flush=True),
    )
    catch_up = timedelta(seconds=door.catch_up_s)
    scheduler = Scheduler(attendant=attendant, calendar=door.calendar, catch_up=catch_up, ticks=door.ticks)
    with interruptible_sleep() as sleep:
        first = next(door.calendar.after(utc_now()))
        where = f"Ray at {shown(address)}" if address else "this machine"
        attendant.say(f"schedule {door.schedule_name} on {where}; next tick {tick_name(first)} ({_local(door, first)})")
        told = run_scheduler(scheduler, sleep)
    return _outcome(door, scheduler, told)


def _outcome(door: ScheduleDoor, scheduler: Scheduler, told: str | None) -> Outcome:
    failed = sum(ended.status == "failed" for ended in scheduler.done)
    said = f"{len(scheduler.done)} ticks ended, {failed} of them failed"
    print(f"stopped by {told}: {said}" if told else said, flush=True)
    ticks = [{"tick": e.tick, "status": e.status, "samples": e.samples, "attempt": e.attempt} for e in scheduler.done]
    return Outcome(
        made={"schedule": door.folder},
        figures={"ticks": ticks, "stopped_by": told},
        exit_code=1 if failed and not told else 0,
    )


def main(argv: list[str]) -> None:
    """Open the door; what follows -- is the command."""
    place = argv.index("--") if "--" in argv else len(argv)
    command = tuple(argv[place + 1 :]) or DEFAULT_COMMAND

    def read(args_type: type[ScheduleDoor], flags: list[str], program: str, about: str) -> ScheduleDoor:
        return parse_flags(args_type, flags, args_type(command=command), f"{program} [flags] -- COMMAND", about)

    open_door(ScheduleDoor, __doc__, check=check, plan=plan, run=run, read=read, argv=argv[:place])


def _local(door: ScheduleDoor, tick: datetime) -> str:
    return f"{tick.astimezone(door.calendar.zone):%a %Y-%m-%d %H:%M %Z}"


if __name__ == "__main__":
    main(sys.argv[1:])
