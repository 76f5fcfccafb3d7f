"""Raw images -> Dataset, on Ray: one task a shard, the index last."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from ddpm_core import storage
from ddpm_core.artifacts.manifest import FORMAT_VERSION, DatasetIndex, index_uri, read_index
from ddpm_core.data.config import DataConfig
from ddpm_core.data.sources import Source, open_source, source_identity, source_uri
from ddpm_core.data.writer import ShardPlan, ShardResult, check_rejected, commit_dataset, plan_dataset, write_shard
from ddpm_core.errors import InputError
from pipelines.cluster.placement import for_a_cpu
from pipelines.cluster.tasks import share

_IDENTITY_FIELDS = ("image_size", "channels", "heldout_fraction", "samples_per_shard", "seed", "max_image_pixels")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def dataset_uri(config: DataConfig, store: str, name: str) -> str:
    """Where the dataset of these images and settings lies: other images or settings, another folder.

    Raises:
        InputError: if the name cannot be a folder's.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"the dataset's name is {name!r}; expected letters, digits, '.', '_' and '-' only")
    identity = {field: getattr(config, field) for field in _IDENTITY_FIELDS}
    identity |= {"source": source_identity(config.source), "format_version": FORMAT_VERSION}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return storage.join(storage.absolute(store), "datasets", f"{name}-{digest[:12]}")


def run_shard(
    config: DataConfig, store: str, *, name: str, on_progress: Callable[[int, int], None] | None = None
) -> DatasetIndex:
    """Write the dataset, or find it written. Ray must be up.

    Args:
        config: what it is made from, and how.
        store: where the artifacts lie.
        name: the start of its folder's name.
        on_progress: called with (images done, images in all) after every shard.

    Raises:
        InputError: one line, for a source that cannot be used or too many bad images.
        StorageError: if the store cannot be reached.
    """
    config = replace(config, source=source_uri(config.source))
    uri = dataset_uri(config, store, name)
    if storage.exists(index_uri(uri)):
        index = read_index(uri)
        num_images = index.num_samples("train") + index.num_samples("heldout") + index.num_rejected
        check_rejected(index.num_rejected, num_images, config)
        return index
    source = open_source(config.source)
    plans = plan_dataset(source.num_images, config)
    results: dict[str, ShardResult] = {}
    num_done = 0
    identity = source_identity(config.source)
    for plan, result in share(_write_task, plans, for_a_cpu("shard"), config, uri, identity):
        results[plan.name] = result
        num_done += len(plan.indices)
        if on_progress is not None:
            on_progress(num_done, source.num_images)
    return commit_dataset(uri, [results[plan.name] for plan in plans], config, source.class_names)


def _write_task(plan: ShardPlan, config: DataConfig, uri: str, identity: str) -> ShardResult:
    return write_shard(plan, _opened(config.source, identity), config, uri)


@lru_cache(maxsize=1)
def _opened(source: str, identity: str) -> Source:
    """A worker's source, opened once for all the shards that it writes."""
    return open_source(source)
