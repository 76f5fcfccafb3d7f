"""What an item of a store is, in lines."""

from collections.abc import Iterator

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import read_history
from ddpm_core.artifacts.checkpoint_files import read_state
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.artifacts.manifest import read_index
from ddpm_core.artifacts.report import PAGE_NAME, read_findings
from ddpm_core.artifacts.run_record import read_record
from ddpm_core.artifacts.sample_set import read_sample_set
from ddpm_core.data.pixels import CHANNELS
from ddpm_core.data.sharding.census import CENSUS_NAME, SHEET_NAME
from ddpm_core.evaluation.figures import Figure, number
from pipelines.housekeeping.inventory import Item

_PAGE, _WINNER = "sweep.html", "winner.toml"


def describe(item: Item) -> Iterator[tuple[str, str]]:
    """(what, in words or where) of an item; nothing of one that is unfinished.

    Raises:
        InputError, OSError: in one line, if it cannot be read.
    """
    if item.is_whole and item.kind in _DESCRIBED:
        yield from _DESCRIBED[item.kind](item)


def _dataset(item: Item) -> Iterator[tuple[str, str]]:
    index = read_index(item.uri)
    size = index.image_size if isinstance(index.image_size, tuple) else (index.image_size, index.image_size)
    yield "images", f"{size[0]}x{size[1]}, {CHANNELS[index.channels]}: " + _counted(index.counts)
    yield "classes", ", ".join(index.class_names) or "none"
    yield "left out", f"{index.num_rejected:,}"
    yield "digest", index.digest
    yield from _files(item, {"census": CENSUS_NAME, "contact sheet": SHEET_NAME})


def _run(item: Item) -> Iterator[tuple[str, str]]:
    record = read_record(item.uri)
    yield "at work", str(record.holder) if record and record.holder else "nobody"
    uris = CheckpointStore(item.uri).uris()
    if not uris:
        yield "checkpoints", "none yet"
        return
    state = read_state(uris[-1])
    yield "recipe", state["versions"].get("recipe") or "not known"
    yield "checkpoints", f"{len(uris)}, the newest of step {state['step']:,}, after {state['images_seen']:,} images"
    for row in read_history(uris[-1])[-1:]:
        yield "loss", f"{number(row['loss'])} at step {row['step']:,}"
    yield "dataset", state["dataset_uri"]
    yield "made by", ", ".join(f"{name} {version}" for name, version in state["versions"].items() if name != "recipe")
    yield "newest", uris[-1]


def _samples(item: Item) -> Iterator[tuple[str, str]]:
    for name in item.files:
        if name.endswith(".json"):
            found = read_sample_set(storage.join(item.uri, name.rpartition("/")[2]))
            sampler = found.identity["sampler"]
            steps = f" in {sampler['num_steps']} steps" if sampler.get("num_steps") else ""
            yield "images", f"{found.num_images:,} of seed {found.first_seed:,} on, by {sampler['name']}{steps}"
            yield "of", f"{found.facts['checkpoint']}"
            yield "grid", found.set_uri.removesuffix(".json") + "-grid.png"


def _report(item: Item) -> Iterator[tuple[str, str]]:
    figures, facts = read_findings(item.uri)
    for each in figures:
        figure = Figure(**{**each, "left_out": ()})
        yield figure.name, f"{figure.text}, of {figure.of}"
    yield "against", facts.get("reference", "")
    yield "of", facts.get("checkpoint") or facts.get("images", "")
    yield "page", storage.join(item.uri, PAGE_NAME)


def _sweep(item: Item) -> Iterator[tuple[str, str]]:
    results = [name for name in item.files if "/results/" in name]
    yield "figures", f"{len(results):,} of trials"
    yield from _files(item, {"page": _PAGE, "winner": _WINNER})


def _files(item: Item, wanted: dict[str, str]) -> Iterator[tuple[str, str]]:
    for what, name in wanted.items():
        if f"{item.name}/{name}" in item.files:
            yield what, storage.join(item.uri, name)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in counts.items())


_DESCRIBED = {"datasets": _dataset, "runs": _run, "samples": _samples, "reports": _report, "sweeps": _sweep}
