"""Whether two jobs mean the same sweep: what its figures depend on beside the setting, and which settings were tried."""

from collections.abc import Mapping, Sequence
from typing import Any

from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.errors import InputError
from ddpm_core.serialization import to_json
from pipelines.naming import trajectory
from pipelines.recipes.config import Recipe, SweepStage
from pipelines.sweeping.record import SweepRecord
from pipelines.sweeping.setting import Setting, unique
from pipelines.sweeping.space import Space, is_wider, read_space


def identity_of(recipe: Recipe, config: SweepStage, index: DatasetIndex, weights: Weights | None) -> dict[str, Any]:
    """What every figure of the sweep depends on beside its setting: the same name may not mean another."""
    sample = to_json(recipe.sample)
    for name in ("num_images", "num_workers", "threads", "node_labels", "block_size", "compile"):
        sample.pop(name, None)
    return {
        "dataset": index.digest,
        "model": weights.sha256 if weights else None,
        "recipe": trajectory(recipe, index, None),
        "sample": sample,
        "evaluate": {key: value for key, value in to_json(recipe.evaluate).items() if key.startswith("bits_per_dim")},
        "steps": [weights.step] if weights else list(config.rungs(recipe.train.steps)),
        "metrics": sorted(config.metrics),
        "num_images": config.num_images,
    }


def known_settings(record: SweepRecord, identity: Mapping[str, Any], space: Space, seed: int) -> list[Setting]:
    """Those that an earlier job of the sweep tried; of proposals that were not written down before it was killed, by their results.

    Raises:
        InputError: if that one was another sweep: naming the first difference.
    """
    found = record.read()
    if found is None:
        return []
    for key, value in identity.items():
        if found[key] != value:
            raise InputError(
                f"the sweep in {record.folder} was begun with {_difference(key, found[key], value)}; "
                "give this one another --name"
            )
    before = read_space(found["space"])
    if not is_wider(space, before):
        raise InputError(
            f"the sweep in {record.folder} searches {_words(found['space'])}; expected that, or a wider space: "
            "give this one another --name"
        )
    settings: list[Setting] = found["settings"]
    measured = (each.setting for each in record.results() if each.seed == seed)
    return [*settings, *(each for each in unique(measured) if each not in settings)]


def _difference(key: str, before: Any, now: Any) -> str:
    """The first value that is another one, and both."""
    if isinstance(before, dict) and isinstance(now, dict):
        name = next(name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name))
        return _difference(f"{key}.{name}", before.get(name), now.get(name))
    return f"{key} = {before}, now it is {now}"


def _words(space: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{path} {' '.join(values)}" for path, values in space.items())
