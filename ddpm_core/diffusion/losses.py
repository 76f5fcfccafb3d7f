"""What training minimises."""

from ddpm_core.diffusion.process import q_sample
from ddpm_core.diffusion.schedule import NoiseSchedule
from ddpm_core.types import Denoiser, Float, Int, Tensor


def simple_loss(
    denoiser: Denoiser,
    x_0: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    eps: Float[Tensor, "b c h w"],
    schedule: NoiseSchedule,
) -> Float[Tensor, " b"]:
    """The simple loss of each image (Ho et al. 2020, Eq. 14), as a mean over channels and pixels.

    Args:
        x_0: images in [-1, 1].
        t: steps in [0, T-1].
        eps: standard normal noise.
    """
    eps_hat = denoiser(q_sample(x_0, t, eps, schedule), t)
    return (eps - eps_hat).square().mean(dim=(1, 2, 3))
