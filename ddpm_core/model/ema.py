"""The exponential moving average of the weights, from which images are sampled."""

from collections.abc import Mapping

import torch

from ddpm_core.types import Tensor


@torch.no_grad()
def ema_update(ema: Mapping[str, Tensor], params: Mapping[str, Tensor], decay: float, *, num_updates: int) -> None:
    """Move the averages in place: ema = decay ema + (1 - decay) params.

    Args:
        ema: averages by name.
        params: the weights just updated, of the same names.
        decay: in [0, 1).
        num_updates: updates done before this one; the first one copies.
    """
    averages = list(ema.values())
    weights = [params[name].detach() for name in ema]
    if num_updates == 0:
        torch._foreach_copy_(averages, weights)
    else:
        torch._foreach_lerp_(averages, weights, 1 - decay)
