"""What a Dataset is made from, and how."""

from dataclasses import dataclass, field

from ddpm_core.data.fit import Fit
from ddpm_core.data.pixels import CHANNELS, CHANNELS_IN_WORDS
from ddpm_core.data.sources.labels import LabelRule
from ddpm_core.errors import InputError
from ddpm_core.types import ImageSize, canonical_size, height_and_width, size_words


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """From raw images to shards.

    Raises:
        InputError: if a field is out of its range.
    """

    source: str = "digits"
    """Raw images: `digits` (scikit-learn's), or a path or s3:// URI of a folder, tar or zip of images, shards, idx files,
    CIFAR-10's python batches, .npy, .npz or parquet; FOLDER/*.png for those files of a folder."""
    image_size: ImageSize = 8
    """Pixels a side of a square, or height and width; larger and smaller images are brought to it as `fit` says."""
    channels: int = 1
    """1 for grey, 2 with alpha, 3 for colour, 4 with alpha; any colour mode is converted, and laid on white where alpha is
    left out."""
    fit: Fit = field(default="crop", metadata={"unless_default": True})
    """How an image of another shape comes to that size, antialiased: the centre of the size's aspect, all of it on white
    (transparent where there is alpha), all of it stretched, or a part whose place is drawn by the seed."""
    test_fraction: float = 0.1
    """Share of the images that only the final evaluation sees, drawn by the seed; 0 for none. A source that has a test
    set of its own (CIFAR-10's batches, MNIST's files, folders train/ and test/, ...) keeps that one instead."""
    validation_fraction: float = 0.1
    """Share of what is left that checkpoints are chosen by, drawn by the seed; 0 for none."""
    samples_per_shard: int = 1024
    """Images in a shard; the last one of a split may hold fewer."""
    seed: int = 0
    """Seed of the permutation."""
    max_image_pixels: int = 64_000_000
    """A larger image is left out and listed as absurdly large."""
    max_rejected_fraction: float = 0.01
    """More images than this share left out is an error."""
    labels: str = field(default="", metadata={"unless_default": True})
    """A file (csv, json, json lines, parquet) of paths and classes; `none` for no classes; by default what the source says."""
    class_names: tuple[str, ...] = field(default=(), metadata={"unless_default": True})
    """The classes in the order of their numbers; by default the natural one, 2 before 10."""
    class_level: int | None = field(default=None, metadata={"unless_default": True})
    """Which folder above an image names its class, 1 for the one it lies in; by default the first that tells images apart."""
    grows: str = field(default="", metadata={"unless_default": True})
    """An earlier dataset, URI or name in the store, of which this is the next state: images that still stand stay in their
    shards under their keys, splits and classes' numbers, and new ones are added in new shards; by default all is made anew."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", canonical_size(self.image_size))
        if min(height_and_width(self.image_size)) < 4:
            raise InputError(f"data.image-size is {size_words(self.image_size)}; expected 4 or more pixels")
        if self.channels not in CHANNELS:
            raise InputError(f"data.channels is {self.channels}; expected {CHANNELS_IN_WORDS}")
        for name in ("test_fraction", "validation_fraction"):
            if not 0 <= getattr(self, name) < 1:
                flag = f"data.{name.replace('_', '-')}"
                raise InputError(f"{flag} is {getattr(self, name)}; expected a share of 0 (none) to less than 1")
        if self.samples_per_shard < 1:
            raise InputError(f"data.samples-per-shard is {self.samples_per_shard}; expected 1 or more")
        if self.max_image_pixels < 1:
            raise InputError(f"data.max-image-pixels is {self.max_image_pixels}; expected 1 or more")
        if not 0 <= self.max_rejected_fraction <= 1:
            raise InputError(f"data.max-rejected-fraction is {self.max_rejected_fraction}; expected a share in [0, 1]")
        if self.class_level is not None and self.class_level < 1:
            raise InputError(
                f"data.class-level is {self.class_level}; expected 1 (the folder an image lies in) or more"
            )

    @property
    def label_rule(self) -> LabelRule:
        """What is said here of the labels."""
        return LabelRule(file=self.labels, class_names=self.class_names, level=self.class_level)
