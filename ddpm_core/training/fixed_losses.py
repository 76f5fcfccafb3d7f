"""A look at a run: its loss on a few fixed images under fixed noise, by bands of t, on images held out and on images trained on."""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ddpm_core.artifacts.looks import Look, Spread
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.data.pixels import to_unit
from ddpm_core.data.reader import ImageReader
from ddpm_core.diffusion.losses import loss_per_image
from ddpm_core.diffusion.reverse import ReverseProcess
from ddpm_core.random import Purpose, integers, normals
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.identity import build_objective
from ddpm_core.training.state import TrainState
from ddpm_core.types import Denoiser, Float, Int, Tensor, UInt8

_IMAGES, _BANDS = 32, 4
_LOOKS = 16
"""Over a run, if checkpoints are not more frequent."""
_SEED = 0
_PIXELS = 1 << 17
"""Of the images that pass the network at once: less than a training step holds, as nothing is kept for a backward pass."""
SMALLEST, LARGEST = 1e-12, 1e9
"""A loss beyond these is written as the one that is nearer, and one that is no number as the largest: so quotients can be had."""


def is_look(step: int, config: TrainConfig) -> bool:
    """Whether it is time for one, after so many steps: at the beginning, sixteen times, and with each checkpoint and preview."""
    often = max(1, config.steps // _LOOKS)
    rhythms = often, config.checkpoint_every, config.preview_every
    return step == config.steps or any(step % every == 0 for every in rhythms)


def look_passes(config: TrainConfig) -> int:
    """Network passes, one image each, of all looks of a run: each is at three losses in each band."""
    often = max(1, config.steps // _LOOKS)
    rhythms = (range(0, config.steps, every) for every in (often, config.checkpoint_every, config.preview_every))
    return 3 * _BANDS * _IMAGES * (1 + len(set().union(*rhythms)))


class FixedLosses:
    """The fixed images, and what is drawn for them.

    Args:
        cache: where copies of shards from S3 are kept on this machine.
        run_config: of the run, as its checkpoints have it.
    """

    def __init__(self, index: DatasetIndex, cache: Path, run_config: dict[str, Any], device: torch.device) -> None:
        objective = build_objective(run_config)
        self._device, self._reverse, self._loss = device, objective.reverse, objective.loss
        self._schedule = objective.schedule.to(device)
        self._train = _first_images(index, "train", cache, device)
        self._held_out = _first_images(index, "validation", cache, device)
        T = self._schedule.num_timesteps
        edges = sorted({T * band // _BANDS for band in range(_BANDS + 1)})
        self._bands = [range(low, high) for low, high in pairwise(edges)]
        self._real = spread_of(self._train[0])

    def look(self, state: TrainState, autocast: torch.autocast, made: UInt8[Tensor, "n c h w"] | None = None) -> Look:
        """A look at the state as it is, which stays so.

        Args:
            made: images by its averaged weights, if some were made.
        """
        held_out, judged = len(self._held_out[0]) > 0, self._held_out if len(self._held_out[0]) else self._train
        with torch.no_grad(), autocast:
            return Look(
                step=state.step,
                bands=tuple((band.start, band.stop - 1) for band in self._bands),
                validation=self._losses(state, self._held_out, averaged=True) if held_out else (),
                train=self._losses(state, self._train, averaged=True),
                newest=self._losses(state, judged, averaged=False),
                weight_size=_root_mean_square(state.network),
                real=self._real,
                made=None if made is None else spread_of(made),
            )

    def _losses(self, state: TrainState, some: "_Images", *, averaged: bool) -> tuple[float, ...]:
        """The objective's mean over the images, at one t of each band for each image."""
        images, labels = some
        weights = state.ema if averaged else state.weights
        index = torch.arange(len(images), device=self._device)
        at_once = max(1, _PIXELS // math.prod(images.shape[2:]))

        def of_band(number: int, band: range) -> float:
            t = band.start + integers(_SEED, Purpose.LOOK, index, len(band), step=2 * number)
            eps = normals(_SEED, Purpose.LOOK, index, tuple(images.shape[1:]), step=2 * number + 1)
            parts = [
                loss_per_image(
                    ReverseProcess(
                        denoiser=_denoiser(state.network, weights, labels[rows]),
                        schedule=self._schedule,
                        config=self._reverse,
                    ),
                    to_unit(images[rows]),
                    t[rows],
                    eps[rows],
                    self._loss,
                )
                for rows in torch.split(index, at_once)
            ]
            mean = float(torch.cat(parts).double().mean())
            return min(max(mean, SMALLEST), LARGEST) if math.isfinite(mean) else LARGEST

        return tuple(of_band(number, band) for number, band in enumerate(self._bands))


def spread_of(images: UInt8[Tensor, "n c h w"]) -> Spread:
    """How much some images differ."""
    levels = images.double()
    within = levels.std(dim=(2, 3), correction=0).mean()
    between = levels.std(dim=0, correction=0).mean()
    return Spread(within=round(float(within), 3), between=round(float(between), 3))


def _root_mean_square(network: torch.nn.Module) -> float:
    weights = [p.double() for p in network.parameters()]
    total, count = sum(float(p.square().sum()) for p in weights), sum(p.numel() for p in weights)
    return math.sqrt(total / count)


_Images = tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]


def _first_images(index: DatasetIndex, split: str, cache: Path, device: torch.device) -> _Images:
    reader = ImageReader(index, split, cache, keep_bytes=0)
    places = reader.places(range(min(_IMAGES, reader.num_samples)))
    return reader.images(*places).to(device), reader.labels(*places).to(device)


def _denoiser(network: torch.nn.Module, weights: Mapping[str, Tensor], labels: Int[Tensor, " b"]) -> Denoiser:
    """The network with these weights; without dropout, which it does only where it is given a key for it."""

    def denoiser(x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b o h w"]:
        out: Tensor = torch.func.functional_call(network, dict(weights), (x_t, t, labels))
        return out

    return denoiser
