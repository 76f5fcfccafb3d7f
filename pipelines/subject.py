"""What an evaluation is about: images of a model, or images that others made."""

from dataclasses import dataclass
from typing import Any

from ddpm_core.artifacts.checkpoint import Weights
from ddpm_core.artifacts.sample_set import SampleSet
from pipelines.measuring.image_sets import ForeignImages, ImageSet, SampledImages


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """The images that are judged, and how they are named."""

    images: ImageSet
    identity: list[Any]
    """JSON; decides the images."""
    where: str
    """Their URI."""
    first: int
    """The number of the first image: its seed, or its place."""
    model: tuple[Weights, SampleSet] | None = None
    """What made them, if that is known."""
    by_steps: tuple[tuple[str, int, SampleSet], ...] = ()
    """Other images of the model, by sampler and steps: their distances are drawn, too."""

    @property
    def weights_sha256(self) -> str:
        """Of the model, if it is known."""
        return self.model[0].sha256 if self.model else ""

    @property
    def step(self) -> int:
        """Of the model's training; 0 where it is unknown."""
        return self.model[0].step if self.model else 0


def of_model(weights: Weights, samples: SampleSet, by_steps: tuple[tuple[str, int, SampleSet], ...] = ()) -> Subject:
    """A model's samples."""
    others = [[name, steps, other.identity] for name, steps, other in by_steps]
    return Subject(
        images=SampledImages(samples),
        identity=[samples.identity, samples.first_seed, samples.block_size, *others],
        where=samples.set_uri,
        first=samples.first_seed,
        model=(weights, samples),
        by_steps=by_steps,
    )


def of_others(images: ForeignImages) -> Subject:
    """Images without a model."""
    return Subject(images=images, identity=[images.source, images.identity], where=images.source, first=0)
