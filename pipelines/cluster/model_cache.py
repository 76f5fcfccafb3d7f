"""A worker process's model, loaded once for all the tasks that it does."""

from functools import lru_cache

import ray
import torch

from ddpm_core.api.model import Model


@lru_cache(maxsize=1)
def loaded_model(shared: tuple[ray.ObjectRef], device: torch.device) -> Model:
    """The model with the averaged weights, ready to sample.

    Args:
        shared: the Weights in Ray's object store; in a tuple, so that a task gets the reference and fetches them only if
            its process does not have them.
    """
    return Model.from_weights(ray.get(shared[0]), device)
