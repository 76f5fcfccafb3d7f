"""A worker process's network, loaded once for all the tasks that it does."""

from functools import lru_cache
from typing import Any

import ray
import torch

from ddpm_core.model.unet import UNet
from pipelines.naming import build_denoiser


@lru_cache(maxsize=1)
def loaded_network(shared: tuple[ray.ObjectRef], device: torch.device) -> tuple[UNet, dict[str, Any]]:
    """The network with the averaged weights, ready to sample, and the model's config.

    Args:
        shared: the Weights in Ray's object store; in a tuple, so that a task gets the reference and fetches them only if
            its process does not have them.
    """
    weights = ray.get(shared[0])
    return build_denoiser(weights).to(device), weights.config
