"""Sample again and again, on a calendar: a tick is started at least once, and what it makes, it makes once.

A schedule is a record in the store: any machine that reaches the store does what is due, by `run` (a loop), or by a `tick` a minute
from cron or systemd; as many as you like, at once. One does a tick, the others leave it alone; whatever dies, the next one goes
on with what was begun. Jobs run on the cluster that RAY_API_SERVER_ADDRESS or RAY_ADDRESS names, else here.

  add NAME [--cron ...] -- COMMAND   a new schedule
  list                               all of them: when they are due, and how they ended last
  show NAME                          one, and its last ticks
  pause NAME, resume NAME            no ticks from now on; again from now on
  remove NAME                        forget it; what it made stays
  run-now NAME                       do it now, whenever it is due
  tick [NAME]                        do what is due now, once; exit code 1 if something failed
  run [NAME]                         do what is due, until Ctrl-C
  units                              a crontab line and systemd units that call `tick` each minute

A tick names its images: --sample.first-seed is the tick's Unix minute times 1,000,000 unless the command gives it, and
models:/NAME@ALIAS is the version that the alias points at when the tick is begun.

examples:
  python pipelines/schedule.py add nightly --cron "0 3 * * *" -- python pipelines/sample.py digits --num-images 256
  python pipelines/schedule.py run
  python pipelines/schedule.py show nightly
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here
    from pipelines.cli.opening import begin

    begin()

import shlex
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from itertools import islice

import tyro

from ddpm_core.errors import InputError
from pipelines.cli.command import Outcome, Use
from pipelines.cli.invocation import typed
from pipelines.cli.subcommands import Subcommand, run_subcommand
from pipelines.progress import say, shown
from pipelines.recipes.config import check_name, default_store
from pipelines.scheduling.calendar import local_time_zone, parse_tick
from pipelines.scheduling.jobs import ray_address
from pipelines.scheduling.loop import AT_ONCE, keep_passing, passing, until_told, utc_now
from pipelines.scheduling.records import Schedule, Schedules, Terms, Tick, said
from pipelines.scheduling.resolve import DEFAULT_COMMAND, check_command, pin, rehearse
from pipelines.scheduling.state import local, state_of
from pipelines.scheduling.tick import Ticker, do_due, do_now
from pipelines.scheduling.units import units


@dataclass(frozen=True, kw_only=True)
class ScheduleArgs:
    """Whose schedules."""

    name: tyro.conf.Suppress[str] = ""
    store: str = field(default_factory=default_store)
    """Where schedules and images lie: a folder or s3://bucket/prefix."""

    @property
    def schedules(self) -> Schedules:
        """Of the store."""
        return Schedules(self.store)

    @property
    def names(self) -> list[str]:
        """The one that was named, or all."""
        return [self.name] if self.name else self.schedules.names()


@dataclass(frozen=True, kw_only=True)
class AddArgs(Terms, ScheduleArgs):
    """When, and what."""

    cron: str = "0 3 * * *"
    """Five fields: minute hour day-of-month month day-of-week."""
    time_zone: str = field(default_factory=local_time_zone)
    """In which the cron expression is read, as Europe/Berlin. Default: this machine's."""
    command: tyro.conf.Suppress[tuple[str, ...]] = DEFAULT_COMMAND

    def __post_init__(self) -> None:
        object.__setattr__(self, "command", check_command(self.command))


def check_add(args: AddArgs) -> None:
    """Refuse a name, a calendar or a number that is none."""
    check_name(args.name)
    if args.retries < 0:
        raise InputError(f"retries is {args.retries}; expected 0 or more")
    args.calendar  # noqa: B018, refuses what is none


def plan_add(args: AddArgs) -> list[str]:
    """The next five ticks; nothing is touched."""
    ticks = islice(args.calendar.after(utc_now()), 5)
    return [f"schedule: {args.name} in {args.store}"] + [f"tick: {local(args, tick)}" for tick in ticks]


def add(args: AddArgs) -> Outcome:
    """Try the command with --dry-run, and write the record."""
    if args.calendar.warning:
        print(f"warning: {args.calendar.warning}", file=sys.stderr)
    say("schedule: the command is tried with --dry-run")
    rehearse(pin(args.store, args.command, utc_now()), ray_address())
    terms = {f.name: getattr(args, f.name) for f in fields(Terms)}
    args.schedules.create(args.name, Schedule(**terms, since=said(utc_now())))
    first = local(args, next(args.calendar.after(utc_now())))
    print(f"first tick {first}, if `run` or `tick` is there to do it")
    made = {"schedule": args.name, "command": shlex.join(args.command)}
    return Outcome(made=made, next=typed("schedule.py", "run", store=args.store))


def listing(args: ScheduleArgs) -> Outcome:
    """A line a schedule."""
    states = {name: state_of(args.schedules, name) for name in args.names}
    width = max(map(len, states), default=0)
    for name, state in states.items():
        schedule, last = state.schedule, state.last
        ended = f"last {local(schedule, parse_tick(last.due))} {last.status}" if last else "no tick yet"
        told = "; ".join(filter(None, [state.doing, ended]))
        print(f"{name:{width}}  {schedule.cron:13} {schedule.time_zone:16} next {state.coming:23} {told}")
    if not states:
        print(f"no schedule in {args.store}")
    return Outcome(made={}, metrics={"schedules": {name: state.told for name, state in states.items()}})


def show(args: ScheduleArgs) -> Outcome:
    """What it says, where it stands, and its last ticks."""
    state, ticks = state_of(args.schedules, args.name), args.schedules.history(args.name)
    schedule = state.schedule
    print(f"{args.name}  {schedule.cron}, {schedule.time_zone}; missed: {schedule.missed}, overlap: {schedule.overlap}")
    print(f"command  {shlex.join(schedule.command)}")
    print(f"next     {state.coming}")
    if state.doing:
        print(f"now      {state.doing}")
    for tick in filter(None, (state.current, *ticks)):
        facts = [
            "" if tick.seconds is None else f"{tick.seconds:.0f} s",
            f"attempt {tick.attempt}" if tick.attempt > 1 else "",
            f"exit code {tick.exit_code}" if tick.exit_code else "",
            tick.outcome or tick.by,
        ]
        print(f"{tick.due}  {tick.status:9}  {', '.join(filter(None, facts))}{f'; {tick.log}' if tick.log else ''}")
    told = {"schedule": vars(schedule), **state.told, "ticks": [vars(tick) for tick in ticks]}
    return Outcome(made={}, metrics=told)


def pause(args: ScheduleArgs) -> Outcome:
    """No ticks from now on."""
    args.schedules.change(args.name, paused=True)
    return Outcome(made={"paused": args.name})


def resume(args: ScheduleArgs) -> Outcome:
    """Ticks from now on; those in between are not missed ones."""
    schedule = args.schedules.read(args.name)
    if schedule.paused:
        args.schedules.change(args.name, paused=False, since=said(utc_now()))
    return Outcome(made={"resumed": args.name})


def remove(args: ScheduleArgs) -> Outcome:
    """Forget it."""
    args.schedules.remove(args.name)
    return Outcome(made={"removed": args.name})


def run_now(args: ScheduleArgs) -> Outcome:
    """Do it now."""
    return _once(args, do_now)


def tick(args: ScheduleArgs) -> Outcome:
    """Do what is due, once."""
    return _once(args, do_due)


def run(args: ScheduleArgs) -> Outcome:
    """Do what is due, until told to stop."""
    with until_told() as told:
        pass_over = passing(args.schedules, told, do_due)
        where = f"Ray at {shown(address)}" if (address := ray_address()) else "this machine"
        print(f"doing what is due in {args.store}, on {where}", flush=True)
        ended = (tick for passed in keep_passing(pass_over, lambda: args.names, told) for tick in passed.ended)
        counts = Counter(tick.status for tick in ended)
    print(f"stopped: {counts.total()} ticks ended, {counts['failed']} of them failed", flush=True)
    return Outcome(made={}, metrics={"ticks": dict(counts)})


def print_units(args: ScheduleArgs) -> Outcome:
    """What calls `tick` each minute."""
    print(units(args.store))
    return Outcome(made={})


def _once(args: ScheduleArgs, do: Callable[[Ticker, str], list[Tick]]) -> Outcome:
    names = args.names
    with until_told() as told, ThreadPoolExecutor(AT_ONCE) as pool:
        done = list(pool.map(passing(args.schedules, told, do), names)) if names else []
    ended = [each for passed in done for each in passed.ended]
    wrong = any(passed.wrong for passed in done) or any(each.status == "failed" for each in ended)
    return Outcome(made={}, metrics={"ticks": [vars(each) for each in ended]}, exit_code=1 if wrong else 0)


def check(args: ScheduleArgs) -> None:
    """Refuse a name that is none, or of no schedule."""
    if args.name:
        check_name(args.name)
        args.schedules.read(args.name)


def _word(
    about: str, do: Callable[[ScheduleArgs], Outcome], store: Use, *words: str, optional: bool = False
) -> Subcommand:
    return Subcommand(about=about, args=ScheduleArgs, do=do, store=store, words=words, optional=optional, check=check)


COMMANDS = {
    "add": Subcommand(
        about="A new schedule: what follows -- is its command.",
        args=AddArgs,
        do=add,
        store="makes",
        words=("name",),
        rest="command",
        check=check_add,
        plan=plan_add,
    ),
    "list": _word("All schedules of a store.", listing, "reads"),
    "show": _word("A schedule, and its last ticks.", show, "reads", "name"),
    "pause": _word("No ticks from now on.", pause, "changes", "name"),
    "resume": _word("Ticks again, from now on.", resume, "changes", "name"),
    "remove": _word("Forget a schedule; what it made stays.", remove, "changes", "name"),
    "run-now": _word("Do it now, whenever it is due.", run_now, "changes", "name"),
    "tick": _word("Do what is due now, once; exit code 1 if something failed.", tick, "changes", "name", optional=True),
    "run": _word("Do what is due, until Ctrl-C.", run, "changes", "name", optional=True),
    "units": _word("A crontab line and systemd units that call `tick` each minute.", print_units, "leaves"),
}


if __name__ == "__main__":
    run_subcommand("schedule.py", __doc__ or "", COMMANDS, sys.argv[1:])
