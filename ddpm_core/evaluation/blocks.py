"""All pairs of two sets of features, a block of rows against blocks of columns at a time, so that workers can share them."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

from ddpm_core.errors import InputError
from ddpm_core.types import Float, Tensor


def row_blocks(features: Float[Tensor, "n d"], size: int) -> list[tuple[int, Float[Tensor, "_ d"]]]:
    """Blocks of at most `size` rows, each with the index of its first row."""
    return [(first, features[first : first + size]) for first in range(0, len(features), size)]


def group_bounds(count: int, groups: int) -> list[tuple[int, int]]:
    """First and end of each of `groups` runs of neighbours, as even as may be.

    Raises:
        InputError: if there are fewer than 2 groups, or fewer images than groups.
    """
    if not 2 <= groups <= count:
        raise InputError(f"{groups} groups of {count} images; expected 2 groups or more, and an image for each")
    edges = [count * group // groups for group in range(groups + 1)]
    return list(pairwise(edges))


def facing(
    rows: Float[Tensor, "b d"], columns: Iterable[Float[Tensor, "_ e"]]
) -> Iterator[tuple[int, Float[Tensor, "_ e"]]]:
    """The blocks of columns in float64 on the rows' device, each with the index of its first column.

    Raises:
        InputError: if the dimensions differ.
    """
    first = 0
    for block in columns:
        if block.shape[1] != rows.shape[1]:
            raise InputError(
                f"features of {rows.shape[1]} and of {block.shape[1]} dimensions were put together; "
                "expected the same extractor for both"
            )
        yield first, block.to(rows.device).double()
        first += len(block)


def leave_out_self(pairs: Float[Tensor, "b c"], first_row: int | None, first_column: int, value: float) -> None:
    """Put `value` where an image meets itself, in place; nowhere if first_row is None: rows and columns are two sets."""
    if first_row is None:
        return
    low = max(first_row, first_column)
    high = min(first_row + pairs.shape[0], first_column + pairs.shape[1])
    if low < high:
        pairs[low - first_row : high - first_row, low - first_column : high - first_column].fill_diagonal_(value)
