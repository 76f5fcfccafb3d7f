"""Search a recipe's own settings: train many a little and the best further, measure all alike, and hold the winner against chance.

  --space.FIELD VALUES   search a field of the recipe: values, or uniform:LOW:HIGH, loguniform:LOW:HIGH, integers:LOW:HIGH[:STEP]
  --sweep.space NAME     a space by name: beta-schedules (default), quick, paper-table-2; sampler (with --model)

examples:
  python pipelines/sweep.py
  python pipelines/sweep.py digits --space.schedule.name linear cosine --space.schedule.beta-end loguniform:0.005:0.05
  python pipelines/sweep.py mnist --data.source /data/mnist --sweep.space quick --sweep.num-trials 16 --sweep.max-hours 2
  python pipelines/sweep.py digits --sweep.space sampler --sweep.search grid --model models:/ddpm-digits@champion
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here
    from pipelines.cli.opening import begin

    begin()

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import tyro

from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.errors import InputError
from pipelines.cli.checks import check_data, check_training, data_summary, num_in_split, warn_of_young_average
from pipelines.cli.command import Outcome, as_recipe, run_command
from pipelines.cli.costs import sweep_cost
from pipelines.cli.invocation import typed
from pipelines.cli.parsing import parse
from pipelines.cluster.placement import check_here, for_a_cpu, for_trials, for_workers_of_trials
from pipelines.naming import digest
from pipelines.progress import counted
from pipelines.recipes.config import Recipe, SweepStage, as_named
from pipelines.subject import of_model
from pipelines.sweeping.identity import identity_of
from pipelines.sweeping.plan import settings_of, shape_of, space_of, trials_at
from pipelines.sweeping.setting import flags_of, words_of
from pipelines.sweeping.space import Space
from pipelines.tracking.resolve import check_model

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline
    from pipelines.stages.sweep import Swept
    from pipelines.sweeping.ranking import Ranked

_SHOWN = 12
"""Rows of the ranking that are printed; the page has all."""


_OFTEN = (
    "sweep.space", "sweep.num_trials", "sweep.max_hours", "sweep.metrics", "sweep.finalists", "sweep.repeats", "model",
    "data.source", "train.steps", "name", "promote", "store",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SweepArgs(Recipe):
    """A recipe, and what of it is searched."""

    sweep: SweepStage = field(default_factory=SweepStage)
    space: tyro.conf.Suppress[Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    model: str | None = None
    """Try samplers on this model, and train nothing: a checkpoint, a run, or models:/NAME@ALIAS."""
    promote: bool = False
    """Afterwards sample and evaluate the winner, and promote it if it beats the champion."""

    @property
    def searched(self) -> Space:
        """The space that the flags say."""
        return space_of(self, self.space, self.sweep)


def read(args_type: type[SweepArgs], argv: list[str], program: str, about: str) -> SweepArgs:
    """The flags, and what of them is the space.

    Raises:
        InputError: in one line.
    """
    space = _take_space(argv)
    return replace(parse(args_type, argv, program, about, _OFTEN), space=space)


def _take_space(argv: list[str]) -> dict[str, tuple[str, ...]]:
    """Take --space.FIELD VALUES out of the words of the command line."""
    space: dict[str, tuple[str, ...]] = {}
    while found := next((place for place, word in enumerate(argv) if word.startswith("--space.")), None):
        end = next((place for place in range(found + 1, len(argv)) if argv[place].startswith("--")), len(argv))
        name, *first = argv[found].removeprefix("--space.").split("=", 1)
        if name in space:
            raise InputError(f"--space.{name} is given twice; expected all its values after one")
        space[name] = (*first, *argv[found + 1 : end])
        del argv[found:end]
    return space


def check(args: SweepArgs) -> None:
    """Source, space, and that the trials fit."""
    check_data(args)
    of_samplers = all(path.startswith("sample.") for path in args.searched.domains)
    if (args.model is None) is of_samplers:
        given = "no --model" if of_samplers else f"--model {args.model}"
        fields = ", ".join(f"space.{path}" for path in args.searched.domains)
        raise InputError(
            f"{given} beside {fields}; expected a --model where samplers alone are searched, and none where trials are trained"
        )
    settings = settings_of(args, args.sweep, args.searched, shape_of(args))
    if "bits_per_dim" in args.sweep.metrics:
        _check_bound(args)
    if args.train.validate_every:
        raise InputError(
            f"train.validate-every is {args.train.validate_every}; expected 0: a sweep measures its trials itself"
        )
    check_here(for_trials(args.sweep, args.train))
    check_here(for_workers_of_trials(args.sweep, args.train))
    if args.model is None:
        runs = (len(settings) or args.sweep.num_trials) + args.sweep.finalists * args.sweep.repeats
        all_of_them = replace(args.train, num_workers=args.sweep.num_workers, min_workers=None, keep_checkpoints=runs)
        check_training(replace(as_recipe(args), train=all_of_them))  # each keeps one, until the sweep ends
        first = args.sweep.rungs(args.train.steps)[0]
        warn_of_young_average(args.train, first, f"trials are first ranked after {first:,} steps")


def _check_bound(args: SweepArgs) -> None:
    if not args.evaluate.bits_per_dim_images:
        raise InputError(
            "sweep.metrics has bits_per_dim and evaluate.bits-per-dim-images is 0; expected how many images of validation"
        )
    if not num_in_split(args, "validation"):
        raise InputError(
            "sweep.metrics has bits_per_dim and the dataset has no validation images, which are to be held out of training; "
            "expected a share of them by --data.validation-fraction, or --sweep.metrics distance"
        )


def plan(args: SweepArgs) -> list[str]:
    """What would be tried."""
    sweep, space = args.sweep, args.searched
    settings = settings_of(args, sweep, space, shape_of(args))
    count = len(settings) or sweep.num_trials
    lines = [
        f"shard: {data_summary(args)}, unless it is there",
        *(f"search: {path} of {' '.join(words)}" for path, words in space.words.items()),
    ]
    if args.model is None:
        rungs = ", ".join(
            f"{trials:,} to step {step:,}"
            for step, trials in trials_at(count, sweep, sweep.rungs(args.train.steps)).items()
        )
        again = (
            f"; then the best {sweep.finalists} again, with {sweep.repeats} fresh seeds each" if sweep.repeats else ""
        )
        hours = f"; for {sweep.max_hours:g} hours at most" if sweep.max_hours else ""
        lines.append(f"train: {counted(count, 'trial')}: {rungs}{again}{hours}")
    else:
        lines.append(f"sample: {counted(count, 'sampler')} of {args.model}")
    lines.append(f"rank: by {' and '.join(sweep.metrics)} of {sweep.num_images:,} images each; into {args.store}")
    return [*lines, *(f"trial {place}: {words_of(each)}" for place, each in enumerate(settings[:_SHOWN], 1))]


def cost(args: SweepArgs) -> list[str]:
    """What training the trials takes."""
    settings = settings_of(args, args.sweep, args.searched, shape_of(args))
    return sweep_cost(as_recipe(args), args.sweep, len(settings) or args.sweep.num_trials) if args.model is None else []


def run(args: SweepArgs) -> Outcome:
    """Shard unless it is done, then sweep."""
    if args.model:
        check_model(args.model, args.store)
    from pipelines.pipeline import open_pipeline

    asks = (for_a_cpu("shard"), for_trials(args.sweep, args.train), for_workers_of_trials(args.sweep, args.train))
    with open_pipeline(as_recipe(args), *asks, reads_source=True) as pipeline:
        weights = pipeline.find_weights(args.model) if args.model else None
        index = pipeline.shard()
        swept = pipeline.sweep(args.sweep, args.searched, index, _name(args, index, weights), weights)
        _show(swept)
        promoted = _promote(pipeline, swept, index) if args.promote and weights is None else {}
    best = swept.ranking[0]
    if weights is None:
        following = typed("workflow.py", swept.winner_uri, store=args.store)
    else:
        flags = flags_of(best.setting)
        following = typed("sample.py", as_named(args), "--model", str(args.model), *flags, store=args.store)
    return Outcome(
        made={"sweep": swept.page_uri, "winner": swept.winner_uri, **promoted},
        metrics={"ranking": [_json(row) for row in swept.ranking], "verdict": swept.verdict, "state": swept.state},
        next=following,
    )


def _name(args: SweepArgs, index: DatasetIndex, weights: Weights | None) -> str:
    """As given; else of all that decides a figure, and of the space: how many trials there are, or who runs them, does not."""
    if args.name:
        return args.name
    identity = identity_of(as_recipe(args), args.sweep, index, weights)
    return f"{args.recipe}-{digest([identity, args.searched.words, args.sweep.search, args.sweep.seed])}"


def _show(swept: "Swept") -> None:
    from pipelines.sweeping.table import beside_the_paper

    passes = {row.metrics.get("passes") for row in swept.ranking}
    for place, row in enumerate(swept.ranking[:_SHOWN], 1):
        cost = f"  {row.metrics['passes']:5,.0f} passes" if len(passes) > 1 and "passes" in row.metrics else ""
        print(f"{place:3}  {row.figures}{cost}  step {row.step:6,}  trial {row.number:3}  {row.words}")
    if len(swept.ranking) > _SHOWN:
        print(f"     and {len(swept.ranking) - _SHOWN:,} more")
    for line in beside_the_paper(swept.ranking):
        print(line)
    if swept.state == "out of time":
        print(
            "out of time: not all trials went as far as they were to; the same command with more --sweep.max-hours goes on"
        )
    if swept.verdict:
        print(swept.verdict)


def _json(row: "Ranked") -> dict[str, Any]:
    return {
        "trial": row.number,
        "setting": row.setting,
        "step": row.step,
        "metrics": dict(row.metrics),
        "repeats": row.repeats,
        "train_s": row.train_s,
    }


def _promote(pipeline: "Pipeline", swept: "Swept", index: DatasetIndex) -> dict[str, str]:
    """Sample and evaluate the winner, which is trained already."""
    from pipelines.recipes.files import find_recipe

    recipe = replace(find_recipe(swept.winner_uri), store=pipeline.recipe.store)
    winner = replace(pipeline, recipe=recipe)
    trained = winner.train(index)
    weights = winner.find_weights(trained.checkpoint_uri)
    sampled = winner.sample(weights)
    evaluated = winner.evaluate(of_model(weights, sampled.samples), index)
    version, promotion = winner.promote(weights, evaluated)
    return {"report": evaluated.page_uri, "model": f"models:/{winner.model_name}/{version}: {promotion.reason}"}


if __name__ == "__main__":
    run_command(SweepArgs, __doc__, check=check, plan=plan, run=run, read=read, cost=cost)
