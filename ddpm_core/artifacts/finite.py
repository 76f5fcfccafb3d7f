"""Weights that are no numbers: found before anything is made of them."""

from collections.abc import Mapping

import torch

from ddpm_core.errors import InputError
from ddpm_core.types import Tensor


def find_not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The first tensor that holds NaN or infinity, with how many of its values are; empty if none does."""
    bad = [name for name, tensor in sorted(tensors.items()) if tensor.numel() and not _is_finite(tensor)]
    if not bad:
        return ""
    first = tensors[bad[0]]
    others = f", as have {len(bad) - 1} other tensors of {len(tensors)}" if len(bad) > 1 else ""
    return f"{bad[0]} has {int((~first.isfinite()).sum()):,} of {first.numel():,} values that are not finite{others}"


def check_finite(tensors: Mapping[str, Tensor], where: str, remedy: str) -> None:
    """Refuse weights of which one holds NaN or infinity: images from them are black.

    Args:
        where: they lie.
        remedy: what to do then.

    Raises:
        InputError: naming the first such weight.
    """
    if found := find_not_finite(tensors):
        raise InputError(f"{where}: {found}; expected finite ones: {remedy}")


def _is_finite(tensor: Tensor) -> bool:
    # NaN is the least and the greatest of all that it is among. One pass, without a mask of the tensor's size: an eighth of
    # the time of isfinite().all().
    least, greatest = torch.aminmax(tensor.detach())
    return bool(least.isfinite() & greatest.isfinite())
