"""A column of labels, whatever Arrow holds them in, as numbers or names."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ddpm_core.data.sources.labels import NO_CLASS, Labels, lacking, natural, no_labels, of_numbers
from ddpm_core.errors import InputError


def plain_labels(column: pa.ChunkedArray, where: str) -> pa.Array:
    """A column of integers, strings, booleans, whole floats, dictionaries or lists of one of these, as int64 or strings.

    Raises:
        InputError: if a value is no label: several in a list, a fraction.
    """
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.nulls(0)
    kind = values.type
    if pa.types.is_dictionary(kind):
        return plain_labels(pa.chunked_array([pc.cast(values, kind.value_type)]), where)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.list_value_length(values)
        most = pc.max(lengths).as_py() or 0
        if most > 1:
            raise InputError(
                f"{where} has {most} labels for one image; expected one: leave them out by --data.labels none, or keep one of them"
            )
        whole = pc.if_else(pc.equal(lengths, 1), True, None)
        places = pc.if_else(
            whole, pc.subtract(pc.cumulative_sum(pc.fill_null(pc.cast(lengths, pa.int64()), 0)), 1), None
        )
        return plain_labels(pa.chunked_array([pc.take(pc.list_flatten(values), places)]), where)
    if pa.types.is_boolean(kind):
        return pc.if_else(values, "true", "false")
    if pa.types.is_floating(kind):
        values = pc.if_else(pc.is_nan(values), None, values)
        try:
            return pc.cast(values, pa.int64(), safe=True)
        except pa.ArrowInvalid as error:
            raise InputError(f"{where} has labels that are no whole numbers: {str(error).splitlines()[0]}") from None
    if pa.types.is_integer(kind):
        return pc.cast(values, pa.int64())
    return values if pa.types.is_null(kind) else pc.cast(values, pa.large_string())


def numbered_column(chunks: Sequence[pa.Array], where: str, said: str, given: Sequence[str]) -> Labels:
    """Labels as `plain_labels` gives them, file by file, as numbers and names of classes.

    Raises:
        InputError: if some are names and others numbers, or a number cannot be a class's.
    """
    kinds = {str(chunk.type) for chunk in chunks if not pa.types.is_null(chunk.type)}
    num_rows = sum(map(len, chunks))
    if len(kinds) > 1:
        raise InputError(f"{where} has numbers and names as labels ({said}); expected the one or the other")
    if not kinds:
        return no_labels(num_rows, "none", [f"{said} is empty"])
    values = pa.concat_arrays([chunk.cast(next(iter(kinds))) for chunk in chunks])
    if pa.types.is_integer(values.type):
        return of_numbers(pc.fill_null(values, NO_CLASS).to_numpy(zero_copy_only=False), where, said, given)
    coded = values.dictionary_encode()
    if not given or not set(coded.dictionary.to_pylist()) <= set(given):
        given = sorted(coded.dictionary.to_pylist(), key=natural)
    place = {name: number for number, name in enumerate(given)}
    lookup = np.array([*(place[name] for name in coded.dictionary.to_pylist()), NO_CLASS], np.int64)
    numbers = lookup[pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)]
    return Labels(numbers=numbers, class_names=tuple(given), said=said, notes=lacking(numbers, said))
