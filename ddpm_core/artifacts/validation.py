"""What was measured of a run's checkpoints while it trained: <run>/validation/step-00001000.json."""

import json
from collections.abc import Mapping

from ddpm_core import storage

DISTANCE = "distance"
"""The figure by which checkpoints are ranked; lower is better."""


def write_validation(run_uri: str, step: int, metrics: Mapping[str, float]) -> None:
    """Write the figures of a checkpoint; `distance` among them."""
    storage.write_bytes(_uri(run_uri, step), json.dumps({"step": step, **metrics}, indent=2).encode())


def read_validations(run_uri: str) -> dict[int, dict[str, float]]:
    """Figures by step, in its order."""
    files = [uri for uri, _ in storage.list_files(storage.join(run_uri, "validation"))]
    read = [json.loads(storage.read_bytes(uri)) for uri in files]
    return {each.pop("step"): each for each in sorted(read, key=lambda each: each["step"])}


def best_step(run_uri: str) -> int | None:
    """The step whose checkpoint has the smallest distance; None if none was measured. Of equals the earlier one."""
    found = read_validations(run_uri)
    return min(found, key=lambda step: found[step][DISTANCE], default=None)


def _uri(run_uri: str, step: int) -> str:
    return storage.join(run_uri, "validation", f"step-{step:08d}.json")
