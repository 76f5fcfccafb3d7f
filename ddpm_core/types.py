"""Names for tensors and sizes, and the one protocol that networks and samplers share."""

from collections.abc import Callable, Sequence
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

__all__ = [
    "Bool",
    "Denoiser",
    "Float",
    "ImageSize",
    "Int",
    "Network",
    "Tensor",
    "UInt8",
    "canonical_size",
    "height_and_width",
    "size_words",
]

ImageSize = int | tuple[int, int]
"""Of an image in pixels: (height, width), or one number for a square, which is never said as two."""


def canonical_size(size: int | Sequence[int]) -> ImageSize:
    """A size in the one form that it has in configs and in their JSON: (32, 32) is 32."""
    if isinstance(size, int):
        return size
    height, width = size
    return height if height == width else (height, width)


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """Both numbers."""
    return (size, size) if isinstance(size, int) else size


def size_words(size: ImageSize) -> str:
    """As the flag has it: one number for a square, else height and width."""
    return " ".join(map(str, (size,) if isinstance(size, int) else size))


def bytes_words(num_bytes: int) -> str:
    """A number of bytes for a person, in MB or GB."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


Network = Callable[..., Tensor]
"""A U-Net, or what computes the same: of x_t, t and, if it has classes, labels."""


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
