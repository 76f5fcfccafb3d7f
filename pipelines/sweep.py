"""Try noise schedules and rank them by the Fréchet distance of their samples, stopping the hopeless ones early.

examples:
  python pipelines/sweep.py
  python pipelines/sweep.py mnist --data.source /data/mnist --sweep.num-trials 16 --sweep.max-concurrent 2
  python pipelines/sweep.py digits --sweep.schedules linear cosine --train.steps 1500
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here

from dataclasses import dataclass, field

from ddpm_core.diffusion.reverse import check_prediction
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.evaluation.features import NAME
from ddpm_core.plain import to_json
from pipelines.cluster.placement import check_here, for_a_cpu, for_trials
from pipelines.door import Outcome, check_data, check_training, data_summary, named_source, open_door, typed
from pipelines.models import digest
from pipelines.recipes import Recipe, SweepStage


@dataclass(frozen=True, kw_only=True)
class SweepDoor(Recipe):
    """A recipe, and which schedules to try on it."""

    sweep: SweepStage = field(default_factory=SweepStage)


def check(door: SweepDoor) -> None:
    """Source, schedules, and that the trials fit."""
    check_data(door)
    check_training(door)
    check_here(for_trials(door.sweep, door.train))
    for name in door.sweep.schedules:
        config = ScheduleConfig(name=name, num_timesteps=door.schedule.num_timesteps)  # type: ignore[arg-type]
        check_prediction(door.reverse, make_schedule(config))


def plan(door: SweepDoor) -> list[str]:
    """What would be tried."""
    sweep = door.sweep
    return [
        f"shard: {data_summary(door.data)}, unless it is there",
        f"sweep: {sweep.num_trials} of {', '.join(sweep.schedules)}, up to {door.train.steps:,} steps each, "
        f"{sweep.max_concurrent} at a time, ranked by {NAME}; into {door.store}",
    ]


def run(door: SweepDoor) -> Outcome:
    """Shard unless it is done, then sweep."""
    from pipelines.line import open_line

    with open_line(door, for_a_cpu("shard"), for_trials(door.sweep, door.train), reads_source=True) as line:
        index = line.shard()
        name = door.name or f"{door.recipe}-{digest([to_json(door), index.digest])}"
        swept = line.sweep(door.sweep, index, name)
    for place, row in enumerate(swept.ranking, 1):
        schedule = " ".join(f"{key} {value:.3g}" if key != "name" else value for key, value in row["schedule"].items())
        print(f"{place:3}  {NAME} {row[NAME]:8.4g}  step {row['step']:6,}  {schedule}  {row['run']}")
    best = swept.ranking[0]["schedule"]
    flags = [word for key, value in best.items() for word in (f"--schedule.{key.replace('_', '-')}", str(value))]
    return Outcome(
        made={"sweep": swept.uri},
        figures={"ranking": swept.ranking},
        next=typed("workflow.py", door.recipe, *named_source(door), *flags, store=door.store),
    )


if __name__ == "__main__":
    open_door(SweepDoor, __doc__, check=check, plan=plan, run=run)
