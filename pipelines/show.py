"""What a thing is, in a dozen lines: a run, a registered model, samples, a report, a dataset, a sweep, a project, a picture.

When it was made, by which recipe and settings that are not the paper's, from which data, how far and how well, which registered
model it became, and where its page lies. A thing is named as `store.py list` prints it, by its name alone, by its URI or that of a
file in it; a model by models:/NAME/VERSION, models:/NAME@ALIAS, or its name (then it is the champion). Of a project's file it says
what the store has of it; of a PNG, GIF, WebP or .npz that sample.py wrote, which model made it, and how.

examples:
  python pipelines/show.py runs/digits-600225bc2e2d
  python pipelines/show.py models:/ddpm-digits@champion
  python pipelines/show.py digits-5d21286bfccb --open
  python pipelines/show.py flowers.toml
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # typed as a file: Python looks beside it, not where the project begins
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import pipelines  # noqa: F401, a python without the libraries is told so here
    from pipelines.cli.opening import begin

    begin()

import webbrowser
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

import tyro

from ddpm_core import storage
from ddpm_core.errors import UserError
from pipelines.cli.command import Outcome, run_command
from pipelines.cli.invocation import ui
from pipelines.cli.parsing import parse_named
from pipelines.cli.subcommands import print_rows
from pipelines.housekeeping.description import Description, describe, describe_version
from pipelines.housekeeping.inventory import Item, add_registered, inventory
from pipelines.housekeeping.lookup import MODELS, Place, find_item, open_registry, place_of
from pipelines.housekeeping.outside import describe_outside, is_outside
from pipelines.progress import say
from pipelines.recipes.config import default_store
from pipelines.recipes.files import SUFFIX, find_recipe
from pipelines.tracking import Server, default_model, import_meanwhile, standing_server
from pipelines.tracking.registry import aliases_of, find_version, models, registered
from pipelines.tracking.store import is_server, is_there, tracking_uri

_WORD = "RUN|MODEL|SAMPLES|REPORT|DATASET|SWEEP|FILE"
_OFTEN = "open", "store"


@dataclass(frozen=True, kw_only=True)
class ShowArgs:
    """What to show, and whether in the browser, too."""

    thing: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar=_WORD)] = ""
    """KIND/NAME, NAME, a URI, models:/NAME/VERSION, models:/NAME@ALIAS, a project's file, or images that sample.py wrote."""
    open: bool = False
    """Also open its page in the browser: the report, else a run's own page, the grid, the contact sheet, else MLflow's page."""
    store: str = field(default_factory=default_store)
    """Where it lies: a folder or s3://bucket/prefix. A URI says it by itself."""


def run(args: ShowArgs) -> Outcome:
    """Say it."""
    outside = is_outside(args.thing)
    if outside and args.thing.endswith(SUFFIX):
        find_recipe(args.thing)  # refused at once, where there is none; MLflow takes seconds
    place = Place(args.store, args.thing) if outside else place_of(args.thing, args.store)
    said = (
        _model(args.thing, args.store)
        if args.thing.startswith(MODELS)
        else _thing(place.name, replace(args, store=place.store))
    )
    print_rows(said.rows)
    opened = args.open and _open(said, place.store)
    told = {"kind": said.kind, "name": said.name, "page": said.page, "opened": opened, "figures": said.figures}
    return Outcome(made={}, metrics={**told, "lines": dict(said.rows)})


def _model(uri: str, store: str, server: Server | None = None) -> Description:
    server = server or open_registry(uri, store)
    version = find_version(server.client, uri)
    aliases = aliases_of(registered(server.client, version.name)).get(int(version.version), [])
    return describe_version(version, aliases, store)


def _thing(name: str, args: ShowArgs) -> Description:
    """An item of the store, or a registered model by its name."""
    with import_meanwhile(args.store) if is_there(args.store) else nullcontext():
        items = inventory(args.store)
    server = _server(args.store)
    aliases = _aliases(server, items) if server else {}
    if is_outside(name):
        return describe_outside(name, args.store, items, aliases)
    found = find_item(
        name, args.store, items, dict.fromkeys(each.removeprefix(MODELS).partition("/")[0] for each in aliases)
    )
    if isinstance(found, Item):
        return describe(found, items, aliases)
    assert server is not None
    return _model(default_model(server, found), args.store, server)


def _server(store: str) -> Server | None:
    """The store's MLflow; none where nothing was ever tracked, or where it cannot be had, which is said: the rest is known."""
    try:
        return standing_server(store)
    except (UserError, OSError) as error:
        say(f"which models are registered is not known: {error}")
        return None


def _aliases(server: Server, items: dict[str, Item]) -> dict[str, list[str]]:
    """Of all registered versions; what refers to an item is added to it."""
    add_registered(items, server)
    return {
        f"{MODELS}{model.name}/{version}": aliases
        for model in models(server)
        for version, aliases in aliases_of(model).items()
    }


def _open(said: Description, store: str) -> bool:
    """Open its page, or MLflow's; where that cannot be, say where it lies. Whether a browser took it."""
    uri = tracking_uri(store)
    if said.page and storage.is_s3(said.page):
        say(f"not opened, as browsers do not read S3: {said.page}")
        return False
    if not said.page and not is_server(uri):
        say(f"it has no page; {ui(store)} shows MLflow's")
        return False
    page = Path(said.page).as_uri() if said.page else f"{uri.rstrip('/')}/#/{_in_mlflow(said)}"
    try:
        opened = webbrowser.open(page)
    except (webbrowser.Error, OSError):
        opened = False
    if not opened:
        say(f"there is no browser here to open {said.page or page}")
    return opened


def _in_mlflow(said: Description) -> str:
    """Where MLflow's pages have it."""
    return (
        f"models/{said.name.removeprefix(MODELS).replace('/', '/versions/')}" if said.kind == "model" else "experiments"
    )


if __name__ == "__main__":
    run_command(
        ShowArgs,
        __doc__,
        plan=lambda args: [f"show: {args.thing}, of {args.store}"],
        run=run,
        read=partial(parse_named, field="thing", word=_WORD, often=_OFTEN),
        store="leaves",
    )
