"""Models in the registry: which there are, how they were judged, why one is the champion, and another one in its place.

  list [NAME]                       the models; or the versions of one
  show MODEL                        a version: its figures, what it was made from, how it was judged, and the champions so far
  compare MODEL OTHER               two versions, figure by figure
  promote MODEL --reason TEXT       make it the champion, whatever the gate said
  rollback NAME                     the champion before this one, again

MODEL is models:/NAME@champion, models:/NAME@candidate or models:/NAME/VERSION. What other tools registered is listed, and left
alone.

examples:
  python pipelines/registry.py list
  python pipelines/registry.py compare models:/ddpm-digits@candidate models:/ddpm-digits@champion
  python pipelines/registry.py promote models:/ddpm-digits/3 --reason "cleaner strokes, seen by two of us"
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here
    from pipelines.cli.opening import begin

    begin()

from dataclasses import dataclass, field
from typing import Any

import tyro

from ddpm_core.errors import InputError
from ddpm_core.evaluation.figures import number
from pipelines.cli.command import Outcome
from pipelines.cli.invocation import typed
from pipelines.cli.subcommands import Subcommand, print_rows, print_table, run_subcommand
from pipelines.housekeeping.description import describe_version
from pipelines.recipes.config import default_store
from pipelines.tracking import Server, open_server
from pipelines.tracking.promotion import champions, compare, judged_by, promote_by_hand, rollback
from pipelines.tracking.registry import (
    CHAMPION,
    aliases_of,
    alone,
    find_version,
    model_name,
    models,
    registered,
    versions,
)
from pipelines.tracking.resolve import none_registered
from pipelines.tracking.store import is_there

_OF_MODELS = "model", "aliases", "why the champion is one"
_OF_VERSIONS = "version", "aliases", "figures", "trained to", "the gate"
_LINEAGE = (
    "checkpoint_uri",
    "dataset_digest",
    "dataset_uri",
    "report_uri",
    "recipe",
    "step",
    "code_version",
    "weights_sha256",
)


@dataclass(frozen=True, kw_only=True)
class RegistryArgs:
    """Whose registry."""

    name: tyro.conf.Suppress[str] = ""
    model: tyro.conf.Suppress[str] = ""
    other: tyro.conf.Suppress[str] = ""
    store: str = field(default_factory=default_store)
    """Whose registry, a folder or s3://bucket/prefix; MLFLOW_TRACKING_URI names another MLflow than the store's own."""

    def open(self) -> Server:
        """MLflow, which `check` has found."""
        return open_server(self.store)


@dataclass(frozen=True, kw_only=True)
class RollbackArgs(RegistryArgs):
    """Why."""

    reason: str = ""
    """In a few words; it stays with the model."""


@dataclass(frozen=True, kw_only=True)
class PromoteArgs(RollbackArgs):
    """Why, and whether it may be judged on other data."""

    unlike: bool = False
    """Also a version that was judged on other data than the champion, or not at all."""


def check(args: RegistryArgs) -> None:
    """Refuse what names no model, and to make a registry in order to find that there is nothing in it."""
    for uri in (args.model, args.other):
        if uri:
            model_name(uri)
    if not is_there(args.store):
        raise InputError(none_registered(args.store))


def check_reason(args: PromoteArgs) -> None:
    """Whoever overrules the gate says why."""
    check(args)
    if not args.reason.strip():
        raise InputError("promote has no --reason; expected in a few words why another one is the champion now")


def listing(args: RegistryArgs) -> Outcome:
    """A line a model, or a line a version."""
    server = args.open()
    if args.name:
        told = _versions(server, args.name)
        print_table(_OF_VERSIONS, [_version_row(version, of) for version, of in told.items()])
        return Outcome(made={}, metrics={"versions": told})
    told = {model.name: _model(model) for model in models(server)}
    if told:
        print_table(_OF_MODELS, [_model_row(name, of) for name, of in told.items()])
    else:
        print(f"no model is registered in {args.store}; train.py and workflow.py register theirs")
    return Outcome(made={}, metrics={"models": told})


def _model(model: Any) -> dict[str, Any]:
    aliases = {alias: int(version) for alias, version in sorted(dict(model.aliases).items())}
    crowned = champions(model)[-1:]
    return {"aliases": aliases, "champion": {"since": crowned[0].at, "reason": crowned[0].reason} if crowned else None}


def _model_row(name: str, told: dict[str, Any]) -> list[str]:
    aliases = ", ".join(f"{alias} {version}" for alias, version in told["aliases"].items())
    crowned = told["champion"]
    return [
        name,
        aliases or "no champion",
        f"since {crowned['since'][:10]}: {crowned['reason']}" if crowned else "",
    ]


def _versions(server: Server, name: str) -> dict[str, dict[str, Any]]:
    aliases = aliases_of(registered(server.client, name))
    return {
        str(version.version): {
            "aliases": aliases.get(int(version.version), []),
            "ours": "weights_sha256" in version.tags,
            "figures": {each.metric: each.value for each in judged_by(version.tags).values()},
            "step": int(version.tags["step"]) if "step" in version.tags else None,
            "gate": version.tags.get("gate", "").partition(" ")[2],
        }
        for version in versions(server, name)
    }


def _version_row(version: str, told: dict[str, Any]) -> list[str]:
    figures = "; ".join(f"{metric} {number(value)}" for metric, value in told["figures"].items())
    return [
        version,
        ", ".join(told["aliases"]),
        figures if told["ours"] else "by another tool",
        "" if told["step"] is None else f"step {told['step']}",
        told["gate"],
    ]


def show(args: RegistryArgs) -> Outcome:
    """What is known of a version, and which were the champion so far."""
    server = args.open()
    version = find_version(server.client, args.model)
    model = registered(server.client, version.name)
    said = describe_version(version, aliases_of(model).get(int(version.version), []), args.store)
    crowned = [("champion", f"version {each.version} since {each.at}: {each.reason}") for each in champions(model)]
    print_rows([*said.rows, *crowned])
    facts = {key: version.tags[key] for key in _LINEAGE if key in version.tags}
    return Outcome(made={}, metrics={**facts, "figures": said.figures})


def comparing(args: RegistryArgs) -> Outcome:
    """A sentence a figure that both have."""
    server = args.open()
    ours, theirs = (find_version(server.client, uri) for uri in (args.model, args.other))
    judged, other = judged_by(ours.tags), judged_by(theirs.tags)
    if not judged.keys() & other.keys():
        raise InputError(
            f"{args.model} was judged by {', '.join(judged) or 'nothing'}, {args.other} by {', '.join(other) or 'nothing'}; "
            "expected two that workflow.py judged; evaluate.py --compare measures any two anew"
        )
    said = {
        metric: compare(judged[metric], other[metric], f"that of {args.other}").reason
        for metric in judged
        if metric in other
    }
    for line in said.values():
        print(line)
    return Outcome(made={}, metrics=said)


def promoting(args: PromoteArgs) -> Outcome:
    """Overrule the gate."""
    server = args.open()
    with alone(args.store, model_name(args.model)):
        version = promote_by_hand(server, args.model, args.reason, unlike=args.unlike)
    return _crowned(args, model_name(args.model), version)


def rolling_back(args: RollbackArgs) -> Outcome:
    """The one before."""
    server = args.open()
    with alone(args.store, args.name):
        version = rollback(server, args.name, args.reason)
    return _crowned(args, args.name, version)


def _crowned(args: RegistryArgs, name: str, version: int) -> Outcome:
    uri = f"models:/{name}@{CHAMPION}"
    return Outcome(
        made={"champion": uri},
        metrics={"version": version},
        notes={"version": str(version)},
        next=typed("registry.py", "show", uri, store=args.store),
    )


COMMANDS = {
    "list": Subcommand(
        about="The models of a registry, or the versions of one.",
        args=RegistryArgs,
        do=listing,
        store="leaves",
        words=("name",),
        optional=True,
        check=check,
    ),
    "show": Subcommand(
        about="A version, and how it was judged.",
        args=RegistryArgs,
        do=show,
        store="leaves",
        words=("model",),
        check=check,
    ),
    "compare": Subcommand(
        about="Two versions, figure by figure.",
        args=RegistryArgs,
        do=comparing,
        store="leaves",
        words=("model", "other"),
        check=check,
    ),
    "promote": Subcommand(
        about="Make a version the champion, whatever the gate said.",
        args=PromoteArgs,
        do=promoting,
        store="makes",
        words=("model",),
        check=check_reason,
    ),
    "rollback": Subcommand(
        about="The champion before this one, again.",
        args=RollbackArgs,
        do=rolling_back,
        store="makes",
        words=("name",),
        check=check,
    ),
}


if __name__ == "__main__":
    run_subcommand("registry.py", __doc__ or "", COMMANDS, sys.argv[1:])
