"""Names for tensors, and the one protocol that networks and samplers share."""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, UInt8
    except ModuleNotFoundError:  # a bare GPU machine: the names stay, the checks go

        class _Unchecked:
            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Int = UInt8 = _Unchecked

__all__ = ["Bool", "Denoiser", "Float", "Int", "Tensor", "UInt8"]


@runtime_checkable
class Denoiser(Protocol):
    """A network that looks at x_t and says what took x_0 there; what its output means stands in a ReverseConfig.

    Args:
        x_t: noisy images.
        t: their steps in [0, T-1].

    Returns:
        The prediction, of x_t's shape; or of twice its channels, where the second half says the variance.
    """

    def __call__(self, x_t: Float[Tensor, "b c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b o h w"]: ...
