"""The model registry: versions named by their weights, and a candidate; the champion is `promotion.py`'s."""

import difflib
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs

from ddpm_core import storage
from ddpm_core.artifacts.run_record import hold
from ddpm_core.errors import InputError
from ddpm_core.interop.model_folder import CONFIG, WEIGHTS
from pipelines.progress import say
from pipelines.tracking.outage import TrackingError, refused
from pipelines.tracking.packaging import log_model
from pipelines.tracking.runs import RunHandle
from pipelines.tracking.store import Server
from pipelines.tracking.tracker import Tracker

CANDIDATE, CHAMPION = "candidate", "champion"
_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


class ResolvedModel(NamedTuple):
    """A registered version, with its files on local disk."""

    name: str
    version: int
    weights: Path
    """safetensors."""
    config: dict[str, Any]
    weights_sha256: str
    checkpoint_uri: str
    """Where the weights were trained to; empty if it was not told."""
    model_id: str
    """MLflow's id of the logged model, for figures that belong to it."""


def register_model(
    tracker: Tracker,
    run: RunHandle,
    *,
    name: str,
    weights: Path,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> int:
    """Register weights as a new version of a model, with the alias `candidate`. The same weights stay the same version.

    Args:
        run: the run that trained them.
        weights: a safetensors file: the averaged weights.
        config: JSON; `model`, `schedule`, `image_size` and `channels` are what serving reads.
        facts: tags of the version: `checkpoint_uri`, step, dataset digest, code version.

    Raises:
        TrackingError: if MLflow fails.
        InputError: if it refuses the name.
    """
    client, digest = tracker.client, _sha256(weights)
    with refused(f"registering {name}"):
        version = _version_of(client, name, digest)
        if version is None:
            with alone(tracker.store, name):
                version = _version_of(client, name, digest)
                if version is None:
                    return _create_version(tracker, run, name, weights, config, {"weights_sha256": digest, **facts})
        if CANDIDATE not in client.get_registered_model(name).aliases:
            client.set_registered_model_alias(name, CANDIDATE, str(version))
        return version


def _version_of(client: Any, name: str, weights_sha256: str) -> int | None:
    found = client.search_model_versions(f"name = '{_quotable(name)}' and tags.`weights_sha256` = '{weights_sha256}'")
    return min((int(each.version) for each in found), default=None)


def _create_version(
    tracker: Tracker, run: RunHandle, name: str, weights: Path, config: Mapping[str, Any], facts: Mapping[str, Any]
) -> int:
    client = tracker.client
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name, description="Denoising diffusion model; see each version's tags.")
    run_id = tracker.open_run(run).info.run_id
    model = log_model(tracker, run_id, name=name, weights=weights, config=config)
    tags = {"model_id": model.model_id, **{key: str(value) for key, value in facts.items()}}
    created = client.create_model_version(name, model.source, run_id, tags, model_id=model.model_id)
    # By this tag MLflow's pages link a logged model to its versions.
    versions = json.dumps([{"name": name, "version": created.version}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": versions})
    client.set_registered_model_alias(name, CANDIDATE, created.version)
    return int(created.version)


def model_name(uri: str) -> str:
    """Of models:/NAME@ALIAS or models:/NAME/VERSION.

    Raises:
        InputError: if it is neither.
    """
    return _parts(uri)["name"]


def resolve_model(tracker: Server, uri: str) -> ResolvedModel:
    """A registered version by models:/NAME@ALIAS or models:/NAME/VERSION, its files fetched once and checked.

    Raises:
        InputError: one line, naming the nearest that there is.
        TrackingError: if MLflow or the artifact store fails, or the weights are not those that were registered.
    """
    with refused(uri):
        version = find_version(tracker.client, uri)
        source = tracker.client.get_model_version_download_uri(version.name, version.version)
        return _fetch(tracker, version, source)


def champion_of(recipe: str) -> str:
    """The URI of a recipe's champion."""
    return f"models:/ddpm-{recipe}@{CHAMPION}"


def champion_or_candidate(recipe: str) -> str:
    """What `default_model` gives, in words."""
    return f"{champion_of(recipe)} (of the candidate, while there is no champion)"


def default_model(tracker: Server, name: str) -> str:
    """The URI of a model's champion, or of its candidate while there is no champion.

    Raises:
        TrackingError: if MLflow fails.
    """
    with refused(f"models:/{name}"):
        models = tracker.client.search_registered_models(f"name = '{_quotable(name)}'")
    aliases = models[0].aliases if models else {}
    return f"models:/{name}@{CANDIDATE if CANDIDATE in aliases and CHAMPION not in aliases else CHAMPION}"


def alone(store: str, name: str) -> AbstractContextManager[object]:
    """Nobody else registers or promotes this model in this store meanwhile: two at once could crown the worse."""
    return hold(storage.join(store, "registry", name), say=say, until_free=True)


def models(server: Server) -> list[Any]:
    """All registered models, by name."""
    return sorted(_every(server.client.search_registered_models), key=lambda model: str(model.name))


def registered(client: Any, name: str, uri: str = "") -> Any:
    """A registered model.

    Raises:
        InputError: in one line, naming the nearest, if there is none.
    """
    found = client.search_registered_models(f"name = '{_quotable(name)}'")
    if found:
        return found[0]
    names = [model.name for model in _every(client.search_registered_models)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    hint = f"the nearest is {near[0]!r}; or train it first" if near else "train one first"
    raise InputError(f"{uri or f'models:/{name}'}: no model {name!r} is registered; {hint}")


def aliases_of(model: Any) -> dict[int, list[str]]:
    """A registered model's aliases, by version."""
    found: dict[int, list[str]] = {}
    for alias, version in sorted(dict(model.aliases).items()):
        found.setdefault(int(version), []).append(alias)
    return found


def versions(server: Server, name: str) -> list[Any]:
    """Of a model, the newest first."""
    found = _every(server.client.search_model_versions, f"name = '{_quotable(name)}'")
    return sorted(found, key=lambda version: -int(version.version))


def find_version(client: Any, uri: str) -> Any:
    """The version that models:/NAME@ALIAS or models:/NAME/VERSION names.

    Raises:
        InputError: in one line, saying which there are, if there is none.
    """
    name, alias, number = _parts(uri).group("name", "alias", "version")
    aliases = dict(registered(client, name, uri).aliases)
    found = {int(each.version): each for each in _every(client.search_model_versions, f"name = '{_quotable(name)}'")}
    wanted = aliases.get(alias) if alias else number
    if wanted is not None and int(wanted) in found:
        return found[int(wanted)]
    there = [f"{name}@{each}" for each, version in aliases.items() if int(version) in found]
    there += [f"{name}/{each}" for each in sorted(found)]
    raise InputError(f"{uri}: no such version; there are {', '.join(there) or 'none'}")


def _parts(uri: str) -> re.Match[str]:
    match = _MODEL_URI.fullmatch(uri)
    if match is None:
        raise InputError(f"{uri} names no model; expected models:/NAME@ALIAS or models:/NAME/VERSION")
    return match


def _every(search: Callable[..., Any], *args: Any) -> Iterator[Any]:
    """All pages of what MLflow finds."""
    token = None
    while True:
        page = search(*args, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _fetch(tracker: Server, version: Any, source: str) -> ResolvedModel:
    digest = version.tags.get("weights_sha256")
    if digest is None:
        raise InputError(
            f"models:/{version.name}/{version.version} was registered by something else: it has no tag weights_sha256; "
            "expected a version that train.py or workflow.py registered"
        )
    folder = _files(tracker, f"{source}/artifacts", digest)
    weights = folder / WEIGHTS
    if _sha256(weights) != digest:
        raise TrackingError(f"{weights} is not what was registered as {version.name} version {version.version}")
    return ResolvedModel(
        name=version.name,
        version=int(version.version),
        weights=weights,
        config=json.loads((folder / CONFIG).read_text()),
        weights_sha256=digest,
        checkpoint_uri=version.tags.get("checkpoint_uri", ""),
        model_id=version.tags.get("model_id", ""),
    )


def _files(tracker: Server, uri: str, digest: str) -> Path:
    """The folder of a model's files: a local store's own, else a cache of this user."""
    from mlflow.artifacts import download_artifacts

    if uri.startswith(("file:", "/")):
        return Path(download_artifacts(uri, tracking_uri=tracker.uri))
    folder = platformdirs.user_cache_path("ddpm") / "models" / digest
    if not (folder / WEIGHTS).is_file() or _sha256(folder / WEIGHTS) != digest:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            got = Path(download_artifacts(uri, dst_path=aside, tracking_uri=tracker.uri))
            for part in (CONFIG, WEIGHTS):  # the weights last: where they are, all is
                (got / part).replace(folder / part)
    return folder


def _quotable(name: str) -> str:
    if "'" in name:
        raise InputError(f"a model's name is {name!r}; expected one without quotes")
    return name


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
