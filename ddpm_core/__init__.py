"""Denoising diffusion models: load one, sample it, measure it, edit with it; without Ray and MLflow.

import ddpm_core

model = ddpm_core.load("STORE/runs/NAME")
images = model.sample(seeds=range(16), sampler="dpm_solver", num_steps=20)    # uint8 [16, height, width, channels]
bits = model.bits_per_dim(images)
ddpm_core.schedule("cosine", num_timesteps=1000).plot()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm_core.api.loading import load
    from ddpm_core.api.model import Model
    from ddpm_core.api.schedule import Schedule, schedule
    from ddpm_core.diffusion.sampler_config import SamplerConfig
    from ddpm_core.model.config import ModelConfig

__version__ = "0.1.0"
__all__ = ["Model", "ModelConfig", "SamplerConfig", "Schedule", "load", "schedule"]

_HOMES = {
    "Model": "ddpm_core.api.model",
    "ModelConfig": "ddpm_core.model.config",
    "SamplerConfig": "ddpm_core.diffusion.sampler_config",
    "Schedule": "ddpm_core.api.schedule",
    "load": "ddpm_core.api.loading",
    "schedule": "ddpm_core.api.schedule",
}


def __getattr__(name: str) -> Any:
    # Looked up when asked for: each room below needs only what it imports itself.
    if name not in _HOMES:
        raise AttributeError(f"module 'ddpm_core' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
