"""What a request for samples says."""

from dataclasses import dataclass, field
from typing import Literal

from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Which images, and how they are computed. Neither `batch_size` nor where it is computed changes an image.

    Raises:
        InputError: if a field is out of its range.
    """

    num_images: int = 1024
    """Images to generate, one a seed."""
    first_seed: int = 0
    """The seeds are first_seed, first_seed + 1, ..."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How x_T becomes x_0."""
    labels: tuple[int, ...] = ()
    """Of a model with classes: which to draw, in turn by seed (-1: without a label). None given: all of them."""
    guidance: float = 0.0
    """Of a model with classes: the scale w of classifier-free guidance. More makes images more typical, and more alike."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network while sampling."""
    block_size: int = 64
    """Seeds in a block, the unit in which images are stored and shared."""
    batch_size: int = 64
    """Images denoised at once."""

    def __post_init__(self) -> None:
        for name in ("num_images", "block_size", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"sample.{name.replace('_', '-')} is {getattr(self, name)}; expected 1 or more")
        if not self.guidance >= 0:
            raise InputError(f"sample.guidance is {self.guidance}; expected 0 or more")
        if not 0 <= self.first_seed < 2**63 - self.num_images:
            raise InputError(f"sample.first-seed is {self.first_seed}; expected 0 to {2**63 - self.num_images - 1}")
