"""What the first worker does when it is time to see how a run goes: the loss on fixed images, a grid of samples now and then."""

from dataclasses import dataclass, field
from typing import Any

import torch

from ddpm_core.api.model import Model
from ddpm_core.artifacts.looks import Look, write_grid, write_look
from ddpm_core.artifacts.manifest import DatasetIndex
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.errors import InputError
from ddpm_core.evaluation.pictures import image_grid
from ddpm_core.model.config import read_model_config
from ddpm_core.sampling.config import SampleConfig
from ddpm_core.training.checkpointing import Run
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.fixed_losses import FixedLosses
from ddpm_core.training.loop import autocast_for
from ddpm_core.training.state import TrainState, ema_tensors
from ddpm_core.types import Tensor, UInt8
from pipelines.cluster.session import shard_cache

_IMAGES, _STEPS = 64, 25


Post = tuple[str, Any]


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A look that stands beside its run, and the URI of its grid of samples, where there is one."""

    look: Look
    grid: str | None


@dataclass
class Looker:
    """Looks at one run's states, and keeps the fixed images from one look to the next."""

    run: Run
    index: DatasetIndex
    train: TrainConfig
    _losses: FixedLosses | None = field(default=None, repr=False)

    def look(self, state: TrainState) -> list[Post]:
        """Write a look at a state beside its run; returns what is posted: that it is `looked` at, and what is to be `warned` of."""
        device = next(state.network.parameters()).device
        if self._losses is None:
            self._losses = FixedLosses(self.index, shard_cache(), self.run.config, device)
        made, refused = None, None
        if self._shows(state.step):
            try:
                made = preview_images(state, self.run.config, range(_IMAGES))
            except InputError as error:  # images that are no numbers: training itself watches its own
                refused = f"step {state.step:,} could not be looked at: {error}"
        look = self._losses.look(state, autocast_for(self.train, device), made)
        write_look(self.run.uri, look)
        grid = None
        if made is not None:
            grid = write_grid(self.run.uri, state.step, image_grid(made, columns=8))
        posts: list[Post] = [("looked", Looked(look=look, grid=grid))]
        return posts if refused is None else [*posts, ("warned", refused)]

    def _shows(self, step: int) -> bool:
        return step == self.train.steps or (step > 0 and step % self.train.preview_every == 0)


def preview_passes(config: TrainConfig, num_timesteps: int) -> int:
    """Network passes, one image each, of all pictures of a run."""
    return _IMAGES * min(_STEPS, num_timesteps) * -(-config.steps // config.preview_every)


def averaged_model(state: TrainState, config: dict[str, Any]) -> Model:
    """The model with a state's averaged weights as they are now, on its device."""
    device = next(state.network.parameters()).device
    return Model.from_tensors(read_model_config(config), ema_tensors(state), device)


def preview_images(state: TrainState, config: dict[str, Any], seeds: range) -> UInt8[Tensor, "n c h w"]:
    """Images of the averaged weights as they are now, on the CPU; a few DDIM steps each."""
    averaged = averaged_model(state, config)
    sampler = SamplerConfig(name="ddim", num_steps=min(_STEPS, averaged.config.schedule.num_timesteps))
    return averaged.generate(torch.tensor(seeds), SampleConfig(sampler=sampler)).cpu()
