"""Raw images -> Dataset, on Ray: one task a shard, the index last."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import ray

from ddpm_core import storage
from ddpm_core.artifacts.manifest import DatasetIndex, index_uri
from ddpm_core.artifacts.run_record import hold
from ddpm_core.data.config import DataConfig
from ddpm_core.data.sharding.census import check_rejected, read_said
from ddpm_core.data.sharding.growth import label_rule, plan_source
from ddpm_core.data.sharding.plan import ShardPlan
from ddpm_core.data.sharding.shard_result import RESULT_SUFFIX, ShardResult, keep_result, read_result
from ddpm_core.data.sharding.writer import check_census, commit_dataset, planned_census, write_shard
from ddpm_core.data.sources import (
    ImageFiles,
    LabelRule,
    Source,
    open_source,
    source_identity,
)
from pipelines.cluster.placement import for_a_cpu
from pipelines.cluster.tasks import share
from pipelines.datasets import SourceRecord, source_record
from pipelines.progress import counted, say
from pipelines.recipes.config import check_folder_name


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
    record = source_record(config, store, name)
    index = record.read()
    if index is None or _damaged(index):
        # Two at once would move each other's shards away.
        with hold(f"{record.unfinished}.job", say=say, until_free=True):
            index = record.read()
            if index is not None and (damaged := _damaged(index)):
                say(f"shard: {damaged[0]} is missing or was cut, {counted(len(damaged), 'shard')} in all: made again")
                index = None
            if index is None:
                return _write(record, on_progress)
    num_images = sum(index.counts.values()) + index.num_rejected
    check_rejected(index.num_rejected, num_images, config.max_rejected_fraction)
    for line in read_said(index.uri)[:1]:
        say(f"shard: there already: {line}")
    return index


def _write(record: SourceRecord, on_progress: Callable[[int, int], None] | None) -> DatasetIndex:
    """Write the dataset; what an earlier job wrote of it is not written again."""
    config, unfinished = record.config, record.unfinished
    listed = plan_source(config, record.grows)
    source, plans, rule = listed.source, listed.plans, label_rule(config, record.grows)
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
    return _named(written, record)


def _damaged(index: DatasetIndex) -> list[str]:
    """The shards that are not there as the index says, by name; their bytes are not read."""
    there = {file.rpartition("/")[2]: size for file, size in storage.list_files(index.uri)}
    return [shard.name for shard in index.shards if there.get(shard.name) != shard.size_bytes]


def _named(written: DatasetIndex, record: SourceRecord) -> DatasetIndex:
    """Move a dataset to where its content says, but for what stands there whole; and remember what the source was found to be."""
    dataset = f"{record.name}-{written.digest[:12]}"
    uri = storage.join(record.datasets, dataset)
    files = [file for file, _ in storage.list_files(written.uri)]
    damaged = _damaged(replace(written, uri=uri))
    for file in sorted(files, key=lambda file: file == index_uri(written.uri)):  # the index last
        part = file.rpartition("/")[2]
        to = storage.join(uri, part)
        stands = part not in damaged and storage.exists(to)
        storage.delete(file) if stands or file.endswith(RESULT_SUFFIX) else _move(file, to)
    record.write(dataset, written.digest)
    return replace(written, uri=uri)


def _move(file: str, to: str) -> None:
    try:
        storage.move(file, to)
    except FileNotFoundError:  # this job was paused, and another took the writing over
        if not storage.exists(to):
            raise


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
