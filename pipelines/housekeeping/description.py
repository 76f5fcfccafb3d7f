"""What a thing is, in about a dozen lines: an item of a store, or a registered model."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import read_history
from ddpm_core.artifacts.checkpoint_files import read_state
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.artifacts.looks import PROGRESS
from ddpm_core.artifacts.manifest import INDEX_NAME, read_index
from ddpm_core.artifacts.report import MARKER_NAME, PAGE_NAME, read_findings
from ddpm_core.artifacts.run_record import read_record
from ddpm_core.artifacts.sample_set import SampleSet, read_sample_set
from ddpm_core.data.pixels import CHANNELS
from ddpm_core.data.sharding.census import CENSUS_NAME, SHEET_NAME
from ddpm_core.errors import MissingError
from ddpm_core.evaluation.figures import Figure, number
from ddpm_core.training.ailments import judge
from ddpm_core.training.course import course_of
from ddpm_core.types import height_and_width
from pipelines.housekeeping.inventory import KINDS, UNFINISHED, Item, age, size_words
from pipelines.naming import unlike_paper
from pipelines.progress import counted
from pipelines.tracking.promotion import judged_by
from pipelines.tracking.resolve import here

_PAGE, _WINNER = "sweep.html", "winner.toml"
_SHOWN = 3
"""Of a list: what does not fit on a line is counted."""
_CALLED = dict(zip(KINDS, ("dataset", "run", "samples", "report", "sweep"), strict=True))

Rows = Iterator[tuple[str, str]]
Aliases = Mapping[str, list[str]]
"""Of registered versions, models:/NAME/VERSION."""


@dataclass(kw_only=True)
class Description:
    """What is said of a thing."""

    name: str
    """KIND/NAME, or models:/NAME/VERSION."""
    kind: str
    """dataset, run, samples, report, sweep or model."""
    rows: list[tuple[str, str]] = field(default_factory=list)
    """(what, in words or where); no what twice."""
    figures: dict[str, float] = field(default_factory=dict)
    """What an evaluation found, by name."""
    page: str = ""
    """The URI of its page, its grid or its contact sheet; empty if it has none."""


def describe(item: Item, items: Mapping[str, Item], aliases: Aliases) -> Description:
    """An item of a store.

    Args:
        items: all of the store, with what registered models refer to.

    Raises:
        InputError, OSError: in one line, if it cannot be read.
    """
    made = Description(name=item.name, kind=_CALLED[item.kind])
    made.rows = [(made.kind, item.uri), ("changed", _changed(item))]
    if item.is_whole:
        made.rows += _DESCRIBED[item.kind](item, made, items)
    else:
        made.rows += [("state", UNFINISHED)]
    models = [with_aliases(name, aliases) for name in item.referred_by if name.startswith("models:/")]
    others = [name for name in item.referred_by if not name.startswith("models:/")]
    made.rows += [("model", some(models))] if models else []
    made.rows += [("used by", some(others))] if others else []
    made.rows += [("page", made.page)] if made.page else []
    return made


def describe_version(version: Any, aliases: list[str], store: str) -> Description:
    """A registered version, by what its tags say, and by the checkpoint and the report that they name, where these still stand.

    Args:
        version: MLflow's.
        aliases: that point at it.
    """
    tags, name = version.tags, f"models:/{version.name}/{version.version}"
    judged = judged_by(tags)
    made = Description(name=name, kind="model", figures={each.metric: each.value for each in judged.values()})
    made.rows = [("model", f"{name}{f' ({_listed(aliases)})' if aliases else ''}")]
    made.rows += [("registered", _when(version.creation_timestamp / 1000))]
    if "weights_sha256" not in tags:
        made.rows += [("state", "registered by another tool")]
        return made
    checkpoint = here(store, "runs", tags.get("checkpoint_uri", ""), "state.json")
    made.rows += _trained(checkpoint, store) or _told(tags)
    figures = [f"{each.metric} {number(each.value)} against {each.reference}" for each in judged.values()]
    made.rows += [("figures", "; ".join(figures))] if figures else []
    made.rows += [("gate", tags["gate"])] if "gate" in tags else []
    made.rows += [("checkpoint", checkpoint), ("sha256", tags["weights_sha256"]), ("MLflow run", version.run_id or "")]
    report = here(store, "reports", tags.get("report_uri", "").removesuffix(f"/{PAGE_NAME}"), MARKER_NAME)
    if report and storage.exists(storage.join(report, PAGE_NAME)):
        made.page = storage.join(report, PAGE_NAME)
        made.rows += [("page", made.page)]
    return made


def _dataset(item: Item, made: Description, items: Mapping[str, Item]) -> Rows:
    index = read_index(item.uri)
    size = "x".join(map(str, height_and_width(index.image_size)))
    counts = ", ".join(f"{split} {count:,}" for split, count in index.counts.items())
    yield "images", f"{size}, {CHANNELS[index.channels]}: {counts}"
    yield "classes", ", ".join(index.class_names) or "none"
    yield "left out", f"{index.num_rejected:,}"
    yield "digest", index.digest
    census = _file(item, CENSUS_NAME)
    if census:
        yield "from", str(json.loads(storage.read_bytes(census)).get("source", ""))
        yield "census", census
    made.page = _file(item, SHEET_NAME)


def _run(item: Item, made: Description, items: Mapping[str, Item]) -> Rows:
    record = read_record(item.uri)
    if record and record.holder:
        yield "at work", str(record.holder)
    uris = CheckpointStore(item.uri).uris()
    if not uris:
        yield "checkpoints", "none yet"
        return
    yield from _trained(uris[-1], item.store)
    if course := judge(course_of(uris[-1])).lines:
        yield "course", ". ".join(course)
    yield "checkpoints", f"{len(uris)}, the newest {uris[-1]}"
    made.page = _file(item, PROGRESS)
    yield from _judged(item, made, items)


def _samples(item: Item, made: Description, items: Mapping[str, Item]) -> Rows:
    sets = [entry for entry in item.entries if "/set-" in entry.name and entry.name.endswith(".json")]
    newest = sorted(sets, key=lambda entry: (entry.changed_s, entry.name))
    found = [read_sample_set(storage.join(item.uri, entry.name.rpartition("/")[2])) for entry in newest[-_SHOWN:]]
    more = f" and {len(sets) - len(found)} more" if len(sets) > len(found) else ""
    yield "images", "; ".join(map(_drawn, found)) + more
    yield from _as_trained(item, str(found[-1].facts["checkpoint"]), "recipe", "data")
    yield "made by", _versions(found[-1].facts.get("versions", {}))
    yield from _judged(item, made, items)
    made.page = found[-1].set_uri.removesuffix(".json") + "-grid.png"


def _drawn(found: SampleSet) -> str:
    return drawn_in_words(found.first_seed, found.num_images, found.identity["sampler"])


def drawn_in_words(first_seed: int, num_images: int, sampler: Mapping[str, Any]) -> str:
    """Which images, and by which sampler, given as JSON."""
    whose = f"seed {first_seed:,}" if num_images == 1 else f"{num_images:,} of seed {first_seed:,} on"
    steps = f" in {sampler['num_steps']} steps" if sampler.get("num_steps") else ""
    return f"{whose}, by {sampler['name']}{steps}"


def _report(item: Item, made: Description, items: Mapping[str, Item]) -> Rows:
    found, facts = _figures(item)
    for each in [each for each in found if each.headline] or found[:_SHOWN]:
        yield each.name, f"{each.text}, of {each.of}"
    rest = [each for each in found if not each.headline]
    if rest and len(rest) < len(found):
        yield "others", ", ".join(f"{each.name} {number(each.value)}" for each in rest)
    yield "against", facts.get("reference", "")
    if checkpoint := facts.get("checkpoint"):
        yield from _as_trained(item, checkpoint, "recipe")
    else:
        yield "of", facts.get("images") or ", ".join(facts.get("models", []))
    made.figures = {each.name: each.value for each in found}
    made.page = storage.join(item.uri, PAGE_NAME)


def _sweep(item: Item, made: Description, items: Mapping[str, Item]) -> Rows:
    said = json.loads(storage.read_bytes(storage.join(item.uri, "sweep.json")))
    yield "recipe", settings_in_words(said.get("recipe") or {})
    if verdict := said.get("verdict"):
        yield "verdict", str(verdict)
    yield "figures", f"{len([name for name in item.files if '/results/' in name]):,} of trials"
    if winner := _file(item, _WINNER):
        yield "winner", winner
    made.page = _file(item, _PAGE)


def _judged(item: Item, made: Description, items: Mapping[str, Item]) -> Rows:
    """What the newest report about an item says, whose page is the item's."""
    reports = [items[name] for name in item.referred_by if name.startswith("reports/") and items[name].is_whole]
    if reports:
        newest = max(reports, key=lambda report: (report.changed_s, report.name))
        found, _ = _figures(newest)
        made.figures, made.page = {each.name: each.value for each in found}, storage.join(newest.uri, PAGE_NAME)
        yield "figures", "; ".join(f"{each.name} {each.text}" for each in found if each.headline) or "in the report"


def _figures(report: Item) -> tuple[list[Figure], dict[str, Any]]:
    found, facts = read_findings(report.uri)
    return [Figure(**{"of": "", **each, "left_out": ()}) for each in found], facts


def _trained(checkpoint: str, store: str) -> list[tuple[str, str]]:
    """Of a checkpoint: how it was trained, on what, and how far; nothing if it does not stand any more.

    Raises:
        InputError: in one line, if it is damaged.
    """
    try:
        state, history = read_state(checkpoint), read_history(checkpoint)
    except MissingError:
        return []
    versions = dict(state["versions"])
    recipe = versions.pop("recipe", "") or "not known"
    loss = [f"; loss {number(row['loss'])} at step {row['step']:,}" for row in history[-1:]]
    begun = state["config"].get("init_from")
    return [
        ("recipe", f"{recipe}: {settings_in_words(state['config'])}"),
        *([("begun with", f"weights {begun}")] if begun else []),
        ("data", here(store, "datasets", state["dataset_uri"], INDEX_NAME)),
        ("step", f"{state['step']:,}, after {state['images_seen']:,} images{''.join(loss)}"),
        ("made by", _versions(versions)),
    ]


def _as_trained(item: Item, checkpoint: str, *wanted: str) -> Rows:
    """Which checkpoint an item was made of, and some rows of that."""
    checkpoint = here(item.store, "runs", checkpoint, "state.json")
    yield "of", checkpoint
    yield from (row for row in _trained(checkpoint, item.store) if row[0] in wanted)


def settings_in_words(config: Mapping[str, Any]) -> str:
    """Those that are not the paper's."""
    unlike = unlike_paper(config)
    return ", ".join(f"{name} {_value(value)}" for name, value in unlike.items()) or "all as in the paper"


def _told(tags: Mapping[str, str]) -> list[tuple[str, str]]:
    """What a version's tags say of its training, where the checkpoint is gone."""
    said = {"recipe": "recipe", "data": "dataset_uri", "step": "step", "made by": "code_version"}
    return [(what, tags[key]) for what, key in said.items() if tags.get(key)]


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _value(value: Any) -> str:
    """A setting as its flag has it."""
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _changed(item: Item) -> str:
    size = f"{size_words(item.size_bytes)} in {counted(len(item.files), 'file')}"
    return f"{_when(item.changed_s)}, {age(item)}; {size}" if math.isfinite(item.changed_s) else size


def _when(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M} UTC"


def _file(item: Item, name: str) -> str:
    """The URI of a file of an item; empty if it is not there."""
    return storage.join(item.uri, name) if f"{item.name}/{name}" in item.files else ""


def with_aliases(model: str, aliases: Aliases) -> str:
    """models:/NAME/VERSION, and what points at it."""
    return f"{model} ({_listed(aliases[model])})" if aliases.get(model) else model


def _listed(words: list[str]) -> str:
    return ", ".join(words)


def some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return _listed(names[:_SHOWN]) + more


_DESCRIBED = {"datasets": _dataset, "runs": _run, "samples": _samples, "reports": _report, "sweeps": _sweep}
