"""Feature networks: each is a name in FeatureName and an entry of FEATURES, which names the figures on it and their protocol."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch

from ddpm_core.data.pixels import check_channels, num_colours, on_white
from ddpm_core.evaluation.features import dinov2, random_conv
from ddpm_core.evaluation.features.inception import NUM_FEATURES, Inception
from ddpm_core.evaluation.features.resize import RESIZES, ResizeName
from ddpm_core.evaluation.features.weights import Weights, read_network
from ddpm_core.precision import whole_float32
from ddpm_core.types import Float, ImageSize, Tensor, UInt8, height_and_width

FeatureName = Literal["random_conv", "pixels", "inception", "dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14"]
PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""The sha256 of the weights that FID is defined by, of which the published file's name has the first digits."""
PUBLISHED_DINOV2 = {
    "vits14": "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
    "vitb14": "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
    "vitl14": "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
}
"""The sha256 of each published `dinov2_*_pretrain.pth`, as several who fetched it wrote it down."""
FID_IMAGES = 50_000
_AT_ONCE = 32
"""Images that a network with weights sees at once: of 299x299, each takes some 15 MB in Inception."""


class Seen(NamedTuple):
    """What a network makes of images, float32."""

    features: Float[Tensor, "b d"]
    logits: Float[Tensor, "b k"] | None = None
    """Of classes, where the network knows any."""


See = Callable[[UInt8[Tensor, "b c h w"]], Seen]


@dataclass(frozen=True, kw_only=True)
class Network:
    """What there is to know of a feature network."""

    see: Callable[["Features"], See]
    digest: Callable[["Features"], str]
    """Its exact definition; that of the weights is added."""
    words: str
    """The definition, for the report."""
    num_features: int | None
    """None: as many as an image has values."""
    weights: Weights | None = None


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features that images are compared by: all that a worker needs to compute them, and the name of what comes of it."""

    network: FeatureName = "random_conv"
    resize: ResizeName = "tensorflow"
    """How images come to the size of `inception`; the others have no use for it."""
    weights: str = ""
    """URI of the weights of a network that has any."""
    sha256: str = ""
    """Of the weights' file."""

    @property
    def digest(self) -> str:
        """Names the exact definition of the features; figures of different names never compare."""
        definition = self._network.digest(self)
        return f"{definition}-{self.sha256[:16]}" if self._network.weights else definition

    @property
    def protocol(self) -> str:
        """The definition in words."""
        if not self._network.weights:
            return self._network.words
        whose = "the published weights" if self._is_published else "weights of another file than the published one"
        steps = self._network.weights.steps(self.resize)
        return f"{self._network.words}, {whose} (sha256 {self.sha256[:16]}), {steps}, float32"

    def figure(self, num_images: int) -> str:
        """The name of the Fréchet distance on these features: `fid` or `fd_dinov2` alone is what papers call by that name.

        Args:
            num_images: generated ones; fewer than 50,000 raise the distance, so the name says how many.
        """
        if self._known_as is None:
            return self.named("fd")
        name = self.named("fd") if self._known_as else "fid"
        return name if num_images == FID_IMAGES else f"{name}@{num_images}"

    def named(self, metric: str) -> str:
        """The name of another figure on these features, as `kid` or `recall`: bare where papers mean these features."""
        if self._known_as is not None:
            return f"{metric}_{self._known_as}" if self._known_as else metric
        return f"{metric}_{self.network}_{self.sha256[:8]}" if self._network.weights else f"{metric}_{self.network}"

    def dimensions(self, image_size: ImageSize, channels: int) -> int:
        """How many numbers stand for an image."""
        return self._network.num_features or num_colours(channels) * math.prod(height_and_width(image_size))

    @property
    def is_heavy(self) -> bool:
        """Whether the network is worth a GPU."""
        return self._network.weights is not None

    @property
    def _network(self) -> Network:
        return FEATURES[self.network]

    @property
    def _is_published(self) -> bool:
        return self._network.weights is not None and self.sha256 == self._network.weights.published

    @property
    def _known_as(self) -> str | None:
        return self._network.weights.known_as if self._network.weights and self._is_published else None

    def extract(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Features alone, as `see`."""
        return self.see(images).features

    def see(self, images: UInt8[Tensor, "b c h w"]) -> Seen:
        """Features of images, and what classes the network sees, on their device.

        Args:
            images: grey (repeated to three channels where a network has three) or colour, of any size; laid on white where
                there is alpha.

        Raises:
            InputError: if there are not 1 to 4 channels, or the weights are not those of the network.
        """
        check_channels(images)
        return self._network.see(self)(on_white(images))


def _random_conv(features: Features) -> See:
    return lambda images: Seen(random_conv.extract(images))


def _pixels(features: Features) -> See:
    return lambda images: Seen(images.flatten(1).float() / 255)


def _inception(features: Features) -> See:
    return lambda images: _seen(features, RESIZES[features.resize], images)


def _dinov2(features: Features) -> See:
    return lambda images: _seen(features, dinov2.prepare, images)


def _seen(features: Features, prepare: Callable[[Tensor], Tensor], images: Tensor) -> Seen:
    weights = FEATURES[features.network].weights
    assert weights is not None
    network = read_network(weights, features.weights, features.sha256, str(images.device))
    with torch.no_grad(), whole_float32():
        parts = [network(prepare(part).expand(-1, 3, -1, -1)) for part in torch.split(images, _AT_ONCE)]
    return Seen(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _build_inception(tensors: dict[str, Tensor]) -> Inception:
    network = Inception()
    network.load_state_dict(tensors)
    return network


def _dinov2_network(name: str, dims: dinov2.Dims, known_as: str | None = None) -> Network:
    return Network(
        see=_dinov2,
        digest=lambda features: f"dinov2-{name}-v1-d{dims.width}",
        words=f"the class token of DINOv2's {name} after its last norm ({dims.width:,} numbers)",
        num_features=dims.width,
        weights=Weights(
            of=f"DINOv2's {name}",
            steps=lambda _: "images brought to 224x224 by PIL's bicubic, as dgm-eval does",
            build=partial(dinov2.Dinov2, dims),
            published=PUBLISHED_DINOV2[name],
            known_as=known_as,
            check=dinov2.check_installed,
        ),
    )


FEATURES: dict[FeatureName, Network] = {
    "random_conv": Network(
        see=_random_conv,
        digest=lambda features: random_conv.extractor_digest(),
        words="256 features of a fixed, seeded, untrained convolution network at 32x32; "
        "this is not FID and must not be set beside one",
        num_features=random_conv.NUM_FEATURES,
    ),
    "pixels": Network(
        see=_pixels,
        digest=lambda features: "pixels-v1",
        words="the pixels themselves, 0 to 1",
        num_features=None,
    ),
    "inception": Network(
        see=_inception,
        digest=lambda features: f"inception-v1-d{NUM_FEATURES}-{features.resize}",
        words="2,048 pooled features of the Inception network of 2015",
        num_features=NUM_FEATURES,
        weights=Weights(
            of="FID's Inception network",
            steps=lambda resize: f"images brought to 299x299 as {resize} does",
            build=_build_inception,
            published=PUBLISHED,
            known_as="",
        ),
    ),
    "dinov2_vits14": _dinov2_network("vits14", dinov2.SMALL),
    "dinov2_vitb14": _dinov2_network("vitb14", dinov2.BASE),
    "dinov2_vitl14": _dinov2_network("vitl14", dinov2.LARGE, known_as="dinov2"),
}
