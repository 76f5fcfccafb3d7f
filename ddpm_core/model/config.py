"""What a model is, without its weights; and as a checkpoint's JSON says it."""

from dataclasses import dataclass, field, fields
from typing import Any

from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.sampler_config import SamplerConfig
from ddpm_core.diffusion.schedule import NoiseSchedule, ScheduleConfig, make_schedule
from ddpm_core.model.unet import UNet, UNetConfig
from ddpm_core.serialization import from_json
from ddpm_core.types import ImageSize, canonical_size, height_and_width


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The images, the network, the noise that it undoes, and what its output means."""

    image_size: ImageSize
    channels: int
    unet: UNetConfig
    schedule: ScheduleConfig
    reverse: ReverseConfig
    unet_augment: int = field(default=0, metadata={"unless_default": True})
    """Numbers that told the network in training how an image was augmented; 0 for none. Whatever it is, images that are
    generated or measured are not augmented, and it is told nothing."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", canonical_size(self.image_size))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, *height_and_width(self.image_size)

    @property
    def num_classes(self) -> int:
        """Of which the network is told; 0 for none."""
        return self.unet.num_classes

    def build_network(self) -> UNet:
        """The network, with no weights in it yet."""
        return UNet(
            self.unet,
            image_size=self.image_size,
            channels=self.channels,
            num_outputs=self.reverse.num_outputs(self.channels),
            num_augment=self.unet_augment,
        )

    def build_schedule(self) -> NoiseSchedule:
        """The noise schedule's numbers."""
        return make_schedule(self.schedule)


def read_model_config(config: dict[str, Any]) -> ModelConfig:
    """The model's part of a config as a checkpoint holds it, which says how it was trained, too.

    Raises:
        InputError: if a part is missing, or says what this code does not know.
    """
    return from_json(ModelConfig, model_json(config))


def read_sampler_config(config: dict[str, Any]) -> SamplerConfig | None:
    """How a model is sampled by default, if a config says so: one from elsewhere does; ours leave it to the request.

    Raises:
        InputError: if it says what this code does not know.
    """
    return from_json(SamplerConfig, config["sampler"]) if "sampler" in config else None


def model_json(config: dict[str, Any]) -> dict[str, Any]:
    """The model's part of a config, as it was written: what names its images stays as it is when a config learns more."""
    return {each.name: config[each.name] for each in fields(ModelConfig) if each.name in config}
