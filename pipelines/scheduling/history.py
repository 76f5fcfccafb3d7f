"""A schedule in MLflow: one run, with a point a tick and its last ticks as description."""

from pipelines.naming import digest
from pipelines.scheduling.calendar import parse_tick
from pipelines.scheduling.records import Schedules, Tick
from pipelines.scheduling.resolve import recipe_of
from pipelines.tracking import open_tracking


def log_ticks(store: str, name: str, schedules: Schedules) -> None:
    """Log the last ticks; those that are there already are left as they are.

    Raises:
        InputError: if the tracking store does not open.
    """
    schedule, ticks = schedules.read(name), schedules.history(name)
    tracker = open_tracking(store, f"ddpm-{recipe_of(schedule.command)}")
    params = {"cron": schedule.cron, "time_zone": schedule.time_zone, "command": " ".join(schedule.command)}
    key = digest(["schedule", store, name, schedule.command])
    with tracker.run(f"schedule {name}", key=key, params=params) as run:
        run.log_metrics(_point(tick) for tick in ticks)
        run.set_tags({"last_tick": ticks[0].due, "last_status": ticks[0].status})
        run.describe(_table(ticks))
    if ticks[0].status == "failed":
        run.end("FAILED")


def _point(tick: Tick) -> dict[str, float]:
    """At its Unix minute."""
    point = {"step": int(parse_tick(tick.due).timestamp()) // 60, "failed": float(tick.status == "failed")}
    return point if tick.seconds is None else {**point, "seconds": tick.seconds}


def _table(ticks: list[Tick]) -> str:
    rows = [
        f"| {tick.due} | {tick.status} | {'' if tick.seconds is None else f'{tick.seconds:.0f} s'} | {tick.outcome} |"
        for tick in ticks
    ]
    return "\n".join(["| tick | status | took | made, or why not |", "|---|---|---|---|", *rows])
