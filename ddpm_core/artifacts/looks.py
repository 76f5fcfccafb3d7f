"""What was seen of a run while it trained: <run>/looks/step-00000240.json, and samples in <run>/samples/step-00000240.png."""

import json
import re
from dataclasses import dataclass
from statistics import fmean

from ddpm_core import storage
from ddpm_core.errors import InputError
from ddpm_core.serialization import from_json, to_json

PROGRESS = "progress.html"
"""The page that shows them, in the run's folder."""
_LOOKS, _GRIDS = "looks", "samples"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How much some images differ, in 8-bit levels."""

    within: float
    """Standard deviation over the pixels of an image, in the mean over images: 0 if each is of one colour."""
    between: float
    """Standard deviation over the images at a pixel, in the mean over pixels: 0 if all are the same."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """The loss on fixed images under fixed noise, so that what differs from one look to the next is the network; by bands of t."""

    step: int
    bands: tuple[tuple[int, int], ...]
    """First and last t of each."""
    validation: tuple[float, ...]
    """A loss for each band: of the averaged weights, on validation's images; none if there are no such images."""
    train: tuple[float, ...]
    """Likewise, on images that are trained on."""
    newest: tuple[float, ...]
    """Likewise, of the weights as they are at this step, on validation's images; on the others if there are none."""
    weight_size: float
    """Root mean square of the newest weights."""
    real: Spread
    """Of images that are trained on,"""
    made: Spread | None = None
    """and of those that the averaged weights make, where some were made."""

    @property
    def judged(self) -> tuple[float, ...]:
        """The averaged weights' losses that count: on images held out, or on the others if there are none."""
        return self.validation or self.train

    @property
    def metrics(self) -> dict[str, float]:
        """Its losses by name, as a tracker shows them: the mean over the bands, and each band's of those that count."""
        means = {"validation": self.validation, "train": self.train, "newest": self.newest}
        by_band = zip(self.bands, self.judged, strict=True)
        return {
            **{f"losses/{name}": fmean(losses) for name, losses in means.items() if losses},
            **{f"losses/t_{first}_{last}": loss for (first, last), loss in by_band},
        }


def write_look(run_uri: str, look: Look) -> None:
    """Write a look; one at the same step is replaced by its like."""
    uri = storage.join(run_uri, _LOOKS, f"step-{look.step:08d}.json")
    storage.write_bytes(uri, json.dumps(to_json(look), indent=2).encode() + b"\n")


def read_looks(run_uri: str) -> list[Look]:
    """All of a run, in the order of steps.

    Raises:
        InputError: in one line, if one is damaged.
    """
    files = [uri for uri, _ in storage.list_files(storage.join(run_uri, _LOOKS))]
    return sorted(map(_read, files), key=lambda look: look.step)


def _read(uri: str) -> Look:
    try:
        return from_json(Look, json.loads(storage.read_bytes(uri)))
    except ValueError as error:
        raise InputError(f"{uri} is damaged ({error}); delete it: the run's page misses a point then") from None


def write_grid(run_uri: str, step: int, png: bytes) -> str:
    """Write a picture of the samples at a step; returns its URI."""
    uri = storage.join(run_uri, _GRIDS, f"step-{step:08d}.png")
    storage.write_bytes(uri, png)
    return uri


def list_grids(run_uri: str) -> dict[int, str]:
    """The URIs of such pictures by step."""
    files = [uri for uri, _ in storage.list_files(storage.join(run_uri, _GRIDS))]
    found = {uri: re.search(r"/step-(\d+)\.png$", uri) for uri in files}
    return {int(match[1]): uri for uri, match in found.items() if match}
