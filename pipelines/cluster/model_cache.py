"""A worker process's model, loaded and compiled once for all the tasks that it does."""

import os
from functools import lru_cache

import platformdirs
import ray
import torch

from ddpm_core.api.model import Model
from ddpm_core.model.compiled import CompileError
from ddpm_core.sampling.config import SampleConfig


@lru_cache(maxsize=1)
def loaded_model(shared: tuple[ray.ObjectRef], device: torch.device) -> Model:
    """The model with the averaged weights, ready to sample.

    Args:
        shared: the Weights in Ray's object store; in a tuple, so that a task gets the reference and fetches them only if
            its process does not have them.
    """
    return Model.from_weights(ray.get(shared[0]), device)


@lru_cache(maxsize=1)
def compiled_model(shared: tuple[ray.ObjectRef], device: torch.device, request: SampleConfig) -> tuple[Model, str]:
    """The model compiled for a request; or as it is, and why it could not be compiled.

    What was compiled is kept in the user's cache, where a later process finds it. Left alone, torch would take a folder in /tmp
    that anybody may have made before, and run what lies there.
    """
    folder = platformdirs.user_cache_path("ddpm") / "compiled"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    model = loaded_model(shared, device)
    try:
        return model.compile(request, folder), ""
    except CompileError as error:
        return model, f"{error}; expected g++ and a cache folder to write to on each node, or --sample.compile off"
