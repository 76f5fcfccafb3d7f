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
    from pipelines.cli.opening import first_word

    first_word()

from dataclasses import dataclass, field

from ddpm_core.diffusion.reverse import check_prediction
from ddpm_core.diffusion.schedule import ScheduleConfig, make_schedule
from ddpm_core.evaluation.features.random_conv import NAME
from ddpm_core.serialization import to_json
from pipelines.cli.checks import check_data, check_training, data_summary, warn_of_young_average
from pipelines.cli.command import Outcome, named_source, run_command, typed
from pipelines.cluster.placement import check_here, for_a_cpu, for_trials
from pipelines.naming import digest
from pipelines.recipes.config import Recipe, SweepStage


@dataclass(frozen=True, kw_only=True)
class SweepArgs(Recipe):
    """A recipe, and which schedules to try on it."""

    sweep: SweepStage = field(default_factory=SweepStage)


def check(args: SweepArgs) -> None:
    """Source, schedules, and that the trials fit."""
    check_data(args)
    check_training(args)
    first = args.sweep.first_rung(args.train.steps)
    warn_of_young_average(args.train, first, f"trials are first ranked after {first:,} steps")
    check_here(for_trials(args.sweep, args.train))
    for name in args.sweep.schedules:
        config = ScheduleConfig(name=name, num_timesteps=args.schedule.num_timesteps)  # type: ignore[arg-type]
        check_prediction(args.reverse, make_schedule(config))


def plan(args: SweepArgs) -> list[str]:
    """What would be tried."""
    sweep = args.sweep
    return [
        f"shard: {data_summary(args)}, unless it is there",
        f"sweep: {sweep.num_trials} of {', '.join(sweep.schedules)}, up to {args.train.steps:,} steps each, "
        f"{sweep.max_concurrent} at a time, ranked by {NAME}; into {args.store}",
    ]


def run(args: SweepArgs) -> Outcome:
    """Shard unless it is done, then sweep."""
    from pipelines.pipeline import open_pipeline

    with open_pipeline(args, for_a_cpu("shard"), for_trials(args.sweep, args.train), reads_source=True) as pipeline:
        index = pipeline.shard()
        name = args.name or f"{args.recipe}-{digest([to_json(args), index.digest])}"
        swept = pipeline.sweep(args.sweep, index, name)
    for place, row in enumerate(swept.ranking, 1):
        schedule = " ".join(f"{key} {value:.3g}" if key != "name" else value for key, value in row["schedule"].items())
        print(f"{place:3}  {NAME} {row[NAME]:8.4g}  step {row['step']:6,}  {schedule}  {row['run']}")
    best = swept.ranking[0]["schedule"]
    flags = [word for key, value in best.items() for word in (f"--schedule.{key.replace('_', '-')}", str(value))]
    return Outcome(
        made={"sweep": swept.uri},
        metrics={"ranking": swept.ranking},
        next=typed("workflow.py", args.recipe, *named_source(args), *flags, store=args.store),
    )


if __name__ == "__main__":
    run_command(SweepArgs, __doc__, check=check, plan=plan, run=run)
