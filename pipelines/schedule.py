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
    from pipelines.cli.opening import first_word

    first_word()

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import islice

import platformdirs
import tyro

from ddpm_core.errors import InputError
from pipelines.cli.command import Outcome, run_command
from pipelines.cli.parsing import parse_flags
from pipelines.naming import digest
from pipelines.progress import shown
from pipelines.recipes.config import check_name, default_store
from pipelines.scheduling.calendar import Calendar, interruptible_sleep, local_timezone, tick_name
from pipelines.scheduling.claims import schedule_folder
from pipelines.scheduling.jobs import open_launcher, ray_address
from pipelines.scheduling.loop import Scheduler, run_scheduler, utc_now
from pipelines.scheduling.resolve import (
    DEFAULT_COMMAND,
    check_command,
    model_resolver,
    pin_command,
    recipe_of,
    rehearse,
)
from pipelines.scheduling.ticks import TickRunner


@dataclass(frozen=True, kw_only=True)
class ScheduleArgs:
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
                raise InputError(f"{flag.replace('_', '-')} is {value}; expected {least} or more")
        if self.name is not None:
            check_name(self.name)
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


def check(args: ScheduleArgs) -> None:
    """Nothing more than the flags themselves say; `run` rehearses the command before it waits."""


def plan(args: ScheduleArgs) -> list[str]:
    """The next five ticks; nothing is touched."""
    ticks = islice(args.calendar.after(utc_now()), 5)
    return [f"claims: {args.folder}"] + [f"tick: {_local(args, tick)}  =  {tick:%Y-%m-%d %H:%M} UTC" for tick in ticks]


def run(args: ScheduleArgs) -> Outcome:
    """Check store, model, command and cluster; then wait for ticks and do them."""
    resolve = model_resolver(args.store, recipe_of(args.command))
    pin = partial(pin_command, args.command, store=args.store, resolve=resolve)
    address, logs = ray_address(), Path(platformdirs.user_log_dir("ddpm")) / "schedules" / args.schedule_name
    launcher = open_launcher(address, logs, args.store)
    rehearse(pin(utc_now()), address)
    runner = TickRunner(
        name=args.schedule_name,
        folder=args.folder,
        lease=timedelta(seconds=args.lease_s),
        retries=args.retries,
        launcher=launcher,
        pin=pin,
        now=utc_now,
        say=partial(print, flush=True),
    )
    catch_up = timedelta(seconds=args.catch_up_s)
    scheduler = Scheduler(runner=runner, calendar=args.calendar, catch_up=catch_up, ticks=args.ticks)
    with interruptible_sleep() as sleep:
        first = next(args.calendar.after(utc_now()))
        where = f"Ray at {shown(address)}" if address else "this machine"
        runner.say(f"schedule {args.schedule_name} on {where}; next tick {tick_name(first)} ({_local(args, first)})")
        told = run_scheduler(scheduler, sleep)
    return _outcome(args, scheduler, told)


def _outcome(args: ScheduleArgs, scheduler: Scheduler, told: str | None) -> Outcome:
    failed = sum(ended.status == "failed" for ended in scheduler.done)
    said = f"{len(scheduler.done)} ticks ended, {failed} of them failed"
    print(f"stopped by {told}: {said}" if told else said, flush=True)
    ticks = [{"tick": e.tick, "status": e.status, "samples": e.samples, "attempt": e.attempt} for e in scheduler.done]
    return Outcome(
        made={"schedule": args.folder},
        metrics={"ticks": ticks, "stopped_by": told},
        exit_code=1 if failed and not told else 0,
    )


def main(argv: list[str]) -> None:
    """Run the command; what follows -- is the command."""
    place = argv.index("--") if "--" in argv else len(argv)
    command = tuple(argv[place + 1 :]) or DEFAULT_COMMAND

    def read(args_type: type[ScheduleArgs], flags: list[str], program: str, about: str) -> ScheduleArgs:
        return parse_flags(args_type, flags, args_type(command=command), f"{program} [flags] -- COMMAND", about)

    run_command(ScheduleArgs, __doc__, check=check, plan=plan, run=run, read=read, argv=argv[:place])


def _local(args: ScheduleArgs, tick: datetime) -> str:
    return f"{tick.astimezone(args.calendar.zone):%a %Y-%m-%d %H:%M %Z}"


if __name__ == "__main__":
    main(sys.argv[1:])
