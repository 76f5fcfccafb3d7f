"""Raw images -> Dataset, on Ray: one task a shard, the index last."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import ray

from ddpm_core import storage
from ddpm_core.artifacts.manifest import FORMAT_VERSION, DatasetIndex, index_uri, read_index
from ddpm_core.artifacts.run_record import hold
from ddpm_core.data.config import DataConfig
from ddpm_core.data.sharding.census import check_rejected, read_said
from ddpm_core.data.sharding.growth import label_rule, plan_source
from ddpm_core.data.sharding.plan import ShardPlan
from ddpm_core.data.sharding.shard_result import RESULT_SUFFIX, ShardResult, keep_result, read_result
from ddpm_core.data.sharding.writer import check_census, commit_dataset, planned_census, write_shard
from ddpm_core.data.sources import (
    READING,
    ImageFiles,
    LabelRule,
    Source,
    open_source,
    source_identity,
    source_uri,
)
from ddpm_core.serialization import to_json
from pipelines.cluster.placement import for_a_cpu
from pipelines.cluster.tasks import share
from pipelines.progress import counted, say
from pipelines.recipes.config import check_folder_name
from pipelines.recipes.recipes import RECIPES
from pipelines.tracking.resolve import find_dataset

_IDENTITY_FIELDS = (
    "image_size",
    "channels",
    "fit",
    "test_fraction",
    "validation_fraction",
    "samples_per_shard",
    "seed",
    "max_image_pixels",
    "class_names",
    "class_level",
)
_SOURCES = "sources"


def source_key(config: DataConfig, grows: DatasetIndex | None = None) -> str:
    """The name of these images and settings, without reading the images: other images or settings, another name.

    What a dataset grows from is one of the settings, by its digest.
    """
    identity = {field: value for field, value in to_json(config).items() if field in _IDENTITY_FIELDS}
    source = source_identity(config.source, config.label_rule)
    identity |= {"source": source, "format_version": FORMAT_VERSION, "reading": READING}
    identity |= {"grows": grows.digest} if grows else {}
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


def run_shard(
    config: DataConfig, store: str, *, name: str, on_progress: Callable[[int, int], None] | None = None
) -> DatasetIndex:
    """Write the dataset, or find it written. Ray must be up. A job that finds another one writing it waits for that.

    It lies in <store>/datasets/NAME-DIGEST, by its content; <store>/datasets/sources says which content a source had.

    Args:
        config: what it is made from, and how.
        store: where the artifacts lie.
        name: the start of its folder's name.
        on_progress: called with (images done, images in all) after every shard.

    Raises:
        InputError: one line, for a name that cannot be a folder's, a source that cannot be used, or too many bad images.
        StorageError: if the store cannot be reached.
    """
    check_folder_name("the dataset's name", name)
    labels = config.labels if config.labels in ("", "none") else storage.absolute(config.labels)
    config = replace(config, source=source_uri(config.source), labels=labels)
    grows = find_dataset(config.grows, store) if config.grows else None
    folder, key = storage.join(storage.absolute(store), "datasets"), source_key(config, grows)
    index = _known(folder, key, name)
    if index is None or _damaged(index):
        # Two at once would move each other's shards away.
        with hold(storage.join(folder, _SOURCES, f"{key}.job"), say=say, until_free=True):
            index = _known(folder, key, name)
            if index is not None and (damaged := _damaged(index)):
                say(f"shard: {damaged[0]} is missing or was cut, {counted(len(damaged), 'shard')} in all: made again")
                index = None
            if index is None:
                return _write(config, grows, folder, key, name, on_progress)
    num_images = sum(index.counts.values()) + index.num_rejected
    check_rejected(index.num_rejected, num_images, config.max_rejected_fraction)
    for line in read_said(index.uri)[:1]:
        say(f"shard: there already: {line}")
    return index


def _write(
    config: DataConfig,
    grows: DatasetIndex | None,
    folder: str,
    key: str,
    name: str,
    on_progress: Callable[[int, int], None] | None,
) -> DatasetIndex:
    """Write the dataset; what an earlier job wrote of it is not written again."""
    listed, unfinished = plan_source(config, grows), storage.join(folder, _SOURCES, key)
    source, plans, rule = listed.source, listed.plans, label_rule(config, grows)
    planned = planned_census(source, plans, config, listed.growth)
    check_census(planned, config)
    for line in planned.lines():
        say(f"shard: {line}")
    results: dict[str, ShardResult] = {}
    num_done = 0
    # Files are listed once, here; arrays are opened anew by each process, which maps them into its memory.
    travels = ray.put(source) if isinstance(source, ImageFiles) else source_identity(config.source, config.label_rule)
    for plan, result in share(_write_task, plans, for_a_cpu("shard"), config, unfinished, travels, rule):
        results[plan.name] = result
        num_done += len(plan.indices)
        if on_progress is not None:
            on_progress(num_done, source.num_images)
    written = commit_dataset(unfinished, [results[plan.name] for plan in plans], config, source, listed.growth)
    for line in read_said(unfinished):
        if line not in planned.lines()[1:]:
            say(f"sharded: {line}")
    return _named(written, folder, key, name)


def _known(folder: str, key: str, name: str) -> DatasetIndex | None:
    """The dataset that the source was found to be; or that code before this one named by its source.

    One that lies under another name is taken between recipes alone: a project has its own, which no other one can remove.
    """
    try:
        found = json.loads(storage.read_bytes(_pointer(folder, key)))
        own, other = f"{name}-{found['digest'][:12]}", found["dataset"]
    except FileNotFoundError:
        own = other = f"{name}-{key}"
    owner = other.rpartition("-")[0]
    shared = owner == name or {owner, name} <= RECIPES.keys()
    for dataset in dict.fromkeys((own, *([other] if shared else []))):
        uri = storage.join(folder, dataset)
        if storage.exists(index_uri(uri)):
            return read_index(uri)
    return None


def _damaged(index: DatasetIndex) -> list[str]:
    """The shards that are not there as the index says, by name; their bytes are not read."""
    there = {file.rpartition("/")[2]: size for file, size in storage.list_files(index.uri)}
    return [shard.name for shard in index.shards if there.get(shard.name) != shard.size_bytes]


def _named(written: DatasetIndex, folder: str, key: str, name: str) -> DatasetIndex:
    """Move a dataset to where its content says, but for what stands there whole; and remember what the source was found to be."""
    dataset = f"{name}-{written.digest[:12]}"
    uri = storage.join(folder, dataset)
    files = [file for file, _ in storage.list_files(written.uri)]
    damaged = _damaged(replace(written, uri=uri))
    for file in sorted(files, key=lambda file: file == index_uri(written.uri)):  # the index last
        part = file.rpartition("/")[2]
        to = storage.join(uri, part)
        stands = part not in damaged and storage.exists(to)
        storage.delete(file) if stands or file.endswith(RESULT_SUFFIX) else _move(file, to)
    storage.write_bytes(_pointer(folder, key), json.dumps({"dataset": dataset, "digest": written.digest}).encode())
    return replace(written, uri=uri)


def _move(file: str, to: str) -> None:
    try:
        storage.move(file, to)
    except FileNotFoundError:  # this job was paused, and another took the writing over
        if not storage.exists(to):
            raise


def _pointer(folder: str, key: str) -> str:
    return storage.join(folder, _SOURCES, f"{key}.json")


def _write_task(plan: ShardPlan, config: DataConfig, uri: str, source: Source | str, rule: LabelRule) -> ShardResult:
    """Write a shard, unless a command that was killed wrote it."""
    if (done := read_result(plan, uri)) is not None:
        return done
    if isinstance(source, str):
        source = _opened(config.source, rule, source)
    result = write_shard(plan, source, config, uri)
    keep_result(result, uri)
    return result


@lru_cache(maxsize=1)
def _opened(source: str, rule: LabelRule, identity: str) -> Source:
    """A worker's source, opened once for all the shards that it writes."""
    return open_source(source, rule)
