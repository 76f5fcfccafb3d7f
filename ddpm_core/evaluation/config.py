"""What an evaluation measures and shows."""

from dataclasses import dataclass

from ddpm_core.diffusion.checks import check_name
from ddpm_core.diffusion.reverse import Clip
from ddpm_core.errors import InputError
from ddpm_core.evaluation.features.networks import FeatureName
from ddpm_core.evaluation.features.resize import ResizeName


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How many images are measured, and how many the report shows.

    Raises:
        InputError: if a field is out of its range.
    """

    num_images: int = 1_000
    """Generated images that are measured. Figures compare only at the same number."""
    features: FeatureName = "random_conv"
    """What images are compared by: random_conv (nothing to fetch, no FID), pixels, inception (FID), or one of
    the three sizes of DINOv2, of which dinov2_vitl14 gives FD-DINOv2 (the extra dinov2 installs what they need).
    Validation while training and sweeps use random_conv, whatever this says."""
    resize: ResizeName = "tensorflow"
    """How inception's images come to 299x299; figures of different resizes do not compare."""
    weights: str | None = None
    """Of inception or DINOv2: a path or URL of a .pth or .safetensors. Default: for inception the published file, fetched once;
    DINOv2's is to be named."""
    reference: str | None = None
    """Hold the Fréchet distance against the moments in this .npz (mu, sigma), a path or URI, in place of the training images'."""
    reference_protocol: str = ""
    """What that file was measured on and how, in your words: the report prints them as declared by you."""
    num_pairs: int = 10_000
    """Of so many generated and as many training images KID, precision, recall, density and coverage are measured; 0: none."""
    num_copies: int = 2_000
    """Of so many generated images, and as many that were not trained on, copies among the training images are sought; 0: none."""
    num_shown: int = 64
    """Images in the grid of real and in the grid of generated images."""
    num_rows: int = 8
    """Generated images shown on their way from noise, and with their neighbours."""
    num_neighbours: int = 5
    """Nearest training images shown beside each of those."""
    bits_per_dim_images: int = 0
    """Images of the test whose bits/dim is measured (of validation, where there is no test, and while training); 0: none."""
    bits_per_dim_steps: int | None = None
    """Network passes for each of them; none for all T, the exact terms. Fewer give an unbiased estimate."""
    bits_per_dim_clip: Clip = "static"
    """What is done to the predicted image there: static clamps it, as in the paper's evaluation; original leaves a predicted
    mean as it is, as in its published code; dynamic, none."""
    batch_size: int = 256
    """Images measured at once; no figure depends on it, but for the last digits."""

    def __post_init__(self) -> None:
        if self.num_images < 2:
            raise InputError(f"evaluate.num-images is {self.num_images}; expected 2 or more: a covariance needs two")
        if bool(self.reference) != bool(self.reference_protocol.strip()):
            raise InputError(
                f"evaluate.reference is {self.reference} and evaluate.reference-protocol is {self.reference_protocol!r}; "
                "expected both: a file does not say what it was measured on"
            )
        check_name(self.bits_per_dim_clip, Clip, "evaluate.bits-per-dim-clip")
        check_name(self.features, FeatureName, "evaluate.features")
        check_name(self.resize, ResizeName, "evaluate.resize")
        for name in ("bits_per_dim_images", "num_pairs", "num_copies"):
            if getattr(self, name) < 0:
                raise InputError(f"evaluate.{name.replace('_', '-')} is {getattr(self, name)}; expected 0 or more")
        if self.bits_per_dim_steps is not None and self.bits_per_dim_steps < 3:
            raise InputError(f"evaluate.bits-per-dim-steps is {self.bits_per_dim_steps}; expected 3 or more, or none")
        for name in ("num_shown", "num_rows", "num_neighbours", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"evaluate.{name.replace('_', '-')} is {getattr(self, name)}; expected 1 or more")
