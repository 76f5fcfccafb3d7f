"""The dataset that a name, a model or a source means, as the store says."""

import hashlib
import json
from dataclasses import dataclass, replace

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.manifest import FORMAT_VERSION, INDEX_NAME, DatasetIndex, index_uri, read_index
from ddpm_core.data.config import DataConfig
from ddpm_core.data.sources import READING, source_identity, source_uri
from ddpm_core.errors import InputError
from ddpm_core.serialization import to_json
from pipelines.recipes.recipes import RECIPES

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


def find_dataset(named: str, store: str) -> DatasetIndex:
    """A dataset by its URI, or by the name of its folder in the store.

    Raises:
        InputError: if there is none, in one line.
    """
    places = [
        storage.absolute(named),
        *([] if "/" in named else [storage.join(storage.absolute(store), "datasets", named)]),
    ]
    for uri in places:
        if storage.exists(storage.join(uri, INDEX_NAME)):
            return read_index(uri)
    raise InputError(
        f"no dataset at {' or '.join(places)}; expected a folder with {INDEX_NAME}, as shard.py names it at its end"
    )


def dataset_of(weights: Weights, store: str) -> DatasetIndex:
    """The dataset that a model was trained on: in this store, in the one where the model lies, or where it was then.

    Raises:
        InputError: if that is not known, as of a model that was trained elsewhere, or it lies at none of these places.
    """
    if not weights.dataset_uri:
        raise InputError(
            f"the model at {weights.uri} does not say what it was trained on, so there is nothing to judge it against; "
            "expected --dataset, or a model that was trained here"
        )
    name = weights.dataset_uri.rpartition("/")[2]
    stores = [storage.absolute(store), weights.uri.rpartition("/runs/")[0]]
    places = [*(storage.join(each, "datasets", name) for each in stores if each), weights.dataset_uri]
    for uri in places:
        if (
            storage.exists(storage.join(uri, INDEX_NAME))
            and (index := read_index(uri)).digest == weights.dataset_digest
        ):
            return index
    raise InputError(
        f"the model at {weights.uri} was trained on dataset {weights.dataset_digest[:12]}, which does not lie at "
        f"{' or '.join(dict.fromkeys(places))}; expected --dataset, to judge it against another one"
    )


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """What stands in a store of a source, read with these settings: which dataset it was made into, and what is not yet whole."""

    config: DataConfig
    """With places that hold for every machine."""
    grows: DatasetIndex | None
    name: str
    """The start of its dataset's."""
    datasets: str
    """The store's folder of datasets."""
    key: str

    @property
    def unfinished(self) -> str:
        """The folder in which the dataset is made, until it is whole."""
        return storage.join(self.datasets, "sources", self.key)

    def read(self) -> DatasetIndex | None:
        """The dataset that the source was found to be; or that code before this one named by its source.

        One that lies under another name is taken between recipes alone: a project has its own, which no other one can remove.
        """
        try:
            found = json.loads(storage.read_bytes(f"{self.unfinished}.json"))
            own, other = f"{self.name}-{found['digest'][:12]}", found["dataset"]
        except FileNotFoundError:
            own = other = f"{self.name}-{self.key}"
        owner = other.rpartition("-")[0]
        shared = owner == self.name or {owner, self.name} <= RECIPES.keys()
        for dataset in dict.fromkeys((own, *([other] if shared else []))):
            uri = storage.join(self.datasets, dataset)
            if storage.exists(index_uri(uri)):
                return read_index(uri)
        return None

    def write(self, dataset: str, digest: str) -> None:
        """Remember the dataset, by its folder's name, and its content."""
        said = json.dumps({"dataset": dataset, "digest": digest})
        storage.write_bytes(f"{self.unfinished}.json", said.encode())


def source_record(config: DataConfig, store: str, name: str) -> SourceRecord:
    """The one of these images and settings. They are listed, not read.

    Raises:
        InputError: if the dataset that it is to grow from is not there, or there is nothing where the source is said to be.
    """
    labels = config.labels if config.labels in ("", "none") else storage.absolute(config.labels)
    config = replace(config, source=source_uri(config.source), labels=labels)
    grows = find_dataset(config.grows, store) if config.grows else None
    datasets = storage.join(storage.absolute(store), "datasets")
    return SourceRecord(config=config, grows=grows, name=name, datasets=datasets, key=source_key(config, grows))


def source_key(config: DataConfig, grows: DatasetIndex | None = None) -> str:
    """The name of these images and settings, without reading the images: other images or settings, another name.

    What a dataset grows from is one of the settings, by its digest.
    """
    identity = {field: value for field, value in to_json(config).items() if field in _IDENTITY_FIELDS}
    source = source_identity(config.source, config.label_rule)
    identity |= {"source": source, "format_version": FORMAT_VERSION, "reading": READING}
    identity |= {"grows": grows.digest} if grows else {}
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]
