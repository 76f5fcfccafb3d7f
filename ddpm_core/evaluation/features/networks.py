"""Feature networks: each is a function, a name in FeatureName, and a line in FEATURES. It names the figure and its protocol."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from safetensors.torch import load as load_safetensors

from ddpm_core import storage
from ddpm_core.errors import InputError
from ddpm_core.evaluation.features import random_conv
from ddpm_core.evaluation.features.inception import NUM_FEATURES, Inception
from ddpm_core.evaluation.features.resize import RESIZES, ResizeName
from ddpm_core.precision import whole_float32
from ddpm_core.types import Float, Tensor, UInt8

FeatureName = Literal["random_conv", "pixels", "inception"]
PUBLISHED = "6726825d"
"""The first digits of the sha256 of the weights that FID is defined by, as the published file's name has them."""
FID_IMAGES = 50_000
_AT_ONCE = 32
"""Images of 299x299 that the network sees at once: each takes some 15 MB there."""


class Seen(NamedTuple):
    """What a network makes of images, float32."""

    features: Float[Tensor, "b d"]
    logits: Float[Tensor, "b k"] | None = None
    """Of classes, where the network knows any."""


See = Callable[[UInt8[Tensor, "b c h w"]], Seen]


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features that images are compared by: all that a worker needs to compute them, and the name of what comes of it."""

    network: FeatureName = "random_conv"
    resize: ResizeName = "tensorflow"
    """How images come to the size of `inception`; the others have no use for it."""
    weights: str = ""
    """URI of the weights of `inception`."""
    sha256: str = ""
    """Of the weights' file."""

    @property
    def digest(self) -> str:
        """Names the exact definition of the features; figures of different names never compare."""
        if self.network == "inception":
            return f"inception-v1-d{NUM_FEATURES}-{self.resize}-{self.sha256[:16]}"
        return random_conv.extractor_digest() if self.network == "random_conv" else "pixels-v1"

    @property
    def protocol(self) -> str:
        """The definition in words."""
        if self.network == "inception":
            whose = "the published weights" if self._is_published else "other weights than the published ones"
            return (
                f"2,048 pooled features of the Inception network of 2015, {whose} (sha256 {self.sha256[:16]}), "
                f"images brought to 299x299 as {self.resize} does, float32"
            )
        if self.network == "pixels":
            return "the pixels themselves, 0 to 1"
        return (
            "256 features of a fixed, seeded, untrained convolution network at 32x32; "
            "this is not FID and must not be set beside one"
        )

    def figure(self, num_images: int) -> str:
        """The name of the Fréchet distance on these features: `fid` alone is what papers call by that name.

        Args:
            num_images: generated ones; fewer than 50,000 raise the distance, so the name says how many.
        """
        if self.network != "inception":
            return f"fd_{self.network}"
        if not self._is_published:
            return f"fd_inception_{self.sha256[:8]}"
        return "fid" if num_images == FID_IMAGES else f"fid@{num_images}"

    @property
    def _is_published(self) -> bool:
        return self.sha256.startswith(PUBLISHED)

    def named(self, metric: str) -> str:
        """The name of another figure on these features, as `kid` or `recall`: bare where papers mean these features."""
        if self._is_published and self.network == "inception":
            return metric
        return f"{metric}_inception_{self.sha256[:8]}" if self.network == "inception" else f"{metric}_{self.network}"

    def dimensions(self, image_size: int, channels: int) -> int:
        """How many numbers stand for an image."""
        match self.network:
            case "inception":
                return NUM_FEATURES
            case "pixels":
                return channels * image_size**2
            case "random_conv":
                return random_conv.NUM_FEATURES

    @property
    def is_heavy(self) -> bool:
        """Whether the network is worth a GPU."""
        return self.network == "inception"

    def extract(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Features alone, as `see`."""
        return self.see(images).features

    def see(self, images: UInt8[Tensor, "b c h w"]) -> Seen:
        """Features of images, and what classes the network sees, on their device.

        Args:
            images: grey (repeated to three channels where a network has three) or colour, of any size.

        Raises:
            InputError: if there are neither 1 nor 3 channels, or the weights are not those of the network.
        """
        if images.shape[1] not in (1, 3):
            raise InputError(f"images have {images.shape[1]} channels; expected 1 (grey) or 3 (colour)")
        return FEATURES[self.network](self)(images)


def _random_conv(features: Features) -> See:
    return lambda images: Seen(random_conv.extract(images))


def _pixels(features: Features) -> See:
    return lambda images: Seen(images.flatten(1).float() / 255)


def _inception(features: Features) -> See:
    def see(images: UInt8[Tensor, "b c h w"]) -> Seen:
        network = read_inception(features.weights, features.sha256, str(images.device))
        with torch.no_grad(), whole_float32():
            parts = [
                network(RESIZES[features.resize](part).expand(-1, 3, -1, -1)) for part in torch.split(images, _AT_ONCE)
            ]
        return Seen(*(torch.cat(each) for each in zip(*parts, strict=True)))

    return see


FEATURES: dict[FeatureName, Callable[[Features], See]] = {
    "random_conv": _random_conv,
    "pixels": _pixels,
    "inception": _inception,
}


@lru_cache(maxsize=1)
def read_inception(uri: str, sha256: str, device: str) -> Inception:
    """The network with the weights of a file, .pth or .safetensors; never unpickled.

    Raises:
        InputError: in one line, if the file has another sum, or holds the weights of another network.
    """
    data = storage.read_bytes(uri)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise InputError(f"{uri} has the sha256 {found}; expected {sha256}: it changed, or was cut short; delete it")
    network = Inception()
    try:
        network.load_state_dict(_tensors(uri, data))
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"{uri} (sha256 {found[:16]}) does not hold the weights of FID's Inception network; "
            f"expected a .pth or .safetensors with its tensors: {why}"
        ) from None
    return network.eval().requires_grad_(False).to(device)


def _tensors(uri: str, data: bytes) -> dict[str, Tensor]:
    tensors: dict[str, Tensor]
    if uri.endswith(".safetensors"):
        tensors = load_safetensors(data)
    else:
        tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return tensors
