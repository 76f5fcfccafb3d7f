"""What a sweep has found, in its folder: a file a figure, each written once; by them an interrupted sweep goes on.

    <store>/sweeps/NAME/sweep.json                       what is searched, how, and the outcome
    <store>/sweeps/NAME/results/KEY-seed0-step00000640.json
    <store>/sweeps/NAME/samples/KEY-seed0-step00000640.png
    <store>/sweeps/NAME/runs/KEY-seed0/                  the trial's training run, as any other

KEY names a setting (`setting.py: key_of`). A figure depends on setting, training seed and step alone, not on who measured it.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from ddpm_core import storage
from ddpm_core.errors import InputError
from ddpm_core.serialization import from_json, to_json
from pipelines.sweeping.setting import Setting, key_of

FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A setting that is trained with one seed, or only measured."""

    setting: Setting
    seed: int

    @property
    def name(self) -> str:
        """In files, and of its run."""
        return f"{key_of(self.setting)}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What was measured of a trial at a step."""

    setting: Setting
    seed: int
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    """Figures by name, and what sampling took an image: `sample_s`, and `passes` of the network; empty if the trial failed."""
    train_s: float = 0.0
    """Training took, from the step measured before."""
    failed: str = ""
    """Why there are no metrics, in one line: the setting's own fault, which comes again."""

    @property
    def trial(self) -> Trial:
        """Whose it is."""
        return Trial(setting=self.setting, seed=self.seed)


class SweepRecord:
    """A sweep's files."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @property
    def uri(self) -> str:
        """sweep.json."""
        return storage.join(self.folder, "sweep.json")

    def run_uri(self, trial: Trial) -> str:
        """Where the trial is trained."""
        return storage.join(self.folder, "runs", trial.name)

    def result(self, trial: Trial, step: int) -> TrialResult | None:
        """What was measured; None if nothing was."""
        uri = self._result_uri(trial, step)
        return _read(uri, storage.read_bytes(uri)) if storage.exists(uri) else None

    def write_result(self, result: TrialResult, samples: bytes | None = None) -> None:
        """Keep a figure, and a grid of the images that it was measured on."""
        if samples is not None:
            storage.write_bytes(self.samples_uri(result.trial, result.step), samples)
        storage.write_bytes(self._result_uri(result.trial, result.step), json.dumps(to_json(result), indent=2).encode())

    def results(self) -> list[TrialResult]:
        """All that was measured."""
        uris = [uri for uri, _ in storage.list_files(storage.join(self.folder, "results"))]
        found = []
        for uri, data in zip(uris, storage.read_many(uris), strict=True):
            if isinstance(data, OSError):
                raise data
            found.append(_read(uri, data))
        return found

    def samples_uri(self, trial: Trial, step: int) -> str:
        """The grid of images of a trial at a step."""
        return storage.join(self.folder, "samples", f"{_at(trial, step)}.png")

    def read(self) -> dict[str, Any] | None:
        """sweep.json; None before the sweep began.

        Raises:
            InputError: if another version of this code wrote it.
        """
        if not storage.exists(self.uri):
            return None
        found: dict[str, Any] = json.loads(storage.read_bytes(self.uri))
        if found.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{self.uri} has format_version {found.get('format_version')}; expected {FORMAT_VERSION}: "
                "give the sweep another --name"
            )
        return found

    def write(self, facts: dict[str, Any]) -> None:
        """Write sweep.json."""
        storage.write_bytes(self.uri, json.dumps({"format_version": FORMAT_VERSION, **facts}, indent=2).encode())

    def _result_uri(self, trial: Trial, step: int) -> str:
        return storage.join(self.folder, "results", f"{_at(trial, step)}.json")


def _at(trial: Trial, step: int) -> str:
    return f"{trial.name}-step{step:08d}"


def _read(uri: str, data: bytes) -> TrialResult:
    try:
        return from_json(TrialResult, json.loads(data))
    except ValueError as error:
        raise InputError(f"{uri} is no result of a trial: {error}; delete it, and it is measured again") from None
