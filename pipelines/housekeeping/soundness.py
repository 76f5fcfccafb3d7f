"""Whether what lies in a store is as it was written."""

import hashlib
import json
import re
from collections.abc import Iterator

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import is_sound
from ddpm_core.artifacts.checkpoint_store import CheckpointStore
from ddpm_core.artifacts.manifest import read_index
from ddpm_core.artifacts.parquet import opened_parquet
from ddpm_core.artifacts.report import read_report
from ddpm_core.artifacts.sample_set import missing_blocks, read_images, read_sample_set
from pipelines.housekeeping.inventory import Item


def problems(item: Item) -> Iterator[str]:
    """What is not as it was written: each file is read, and held against its sum."""
    if not item.is_whole or item.kind not in _CHECKS:
        return
    try:
        yield from _CHECKS[item.kind](item)
    except Exception as error:  # whatever stands in the way of reading it is what is wrong with it
        yield " ".join(str(error).split()) or type(error).__name__


def _of_dataset(item: Item) -> Iterator[str]:
    index = read_index(item.uri)
    for shard in index.shards:
        data = storage.read_bytes(storage.join(item.uri, shard.name))
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            yield f"{shard.name} is not what was written ({len(data):,} bytes)"


def _of_run(item: Item) -> Iterator[str]:
    for uri in CheckpointStore(item.uri).uris():
        if not is_sound(uri):
            yield f"{uri.rpartition('/')[2]} is damaged"


def _of_samples(item: Item) -> Iterator[str]:
    for name in item.files:
        if re.fullmatch(r"set-\d+-\d+\.json", name.rpartition("/")[2]):
            sample_set = read_sample_set(storage.join(item.uri, name.rpartition("/")[2]))
            if missing := missing_blocks(sample_set):
                yield f"{name}: {len(missing)} blocks are missing, the first is that of seed {missing[0]}"
                continue
            with opened_parquet(sample_set.set_uri.removesuffix(".json") + ".parquet") as file:
                table = file.read(columns=["seed", "sha256"], use_threads=False)
            expected = dict(zip(*table.to_pydict().values(), strict=True))
            wrong = [
                seed for seed, png in read_images(sample_set) if hashlib.sha256(png).hexdigest() != expected.get(seed)
            ]
            if wrong:
                yield f"{name}: {len(wrong)} images are not what was written, the first is that of seed {wrong[0]}"


def _of_report(item: Item) -> Iterator[str]:
    read_report(item.uri)
    yield from ()


def _of_sweep(item: Item) -> Iterator[str]:
    for name in item.files:
        if name.endswith(".json"):
            json.loads(storage.read_bytes(storage.join(item.uri, name.partition("/")[2].partition("/")[2])))
    yield from ()


_CHECKS = {"datasets": _of_dataset, "runs": _of_run, "samples": _of_samples, "reports": _of_report, "sweeps": _of_sweep}
