"""What class an image is of, wherever its source says so; and the order in which classes are numbered."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_core.errors import InputError

MAX_CLASSES = 100_000
"""A larger label is no class's number but an image's or a person's; memory is taken for every class up to the highest."""
NO_CLASS = -1
_NAMED = 5
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """What a person said of the labels; by default the source is asked."""

    file: str = ""
    """A file of them, path or s3:// URI; `none` for no labels at all."""
    class_names: tuple[str, ...] = ()
    """The classes in the order of their numbers; empty for the natural order of what is found."""
    level: int | None = None
    """Which folder above an image names its class: 1 for the one that it lies in."""
    earlier: tuple[str, ...] = ()
    """Classes of the dataset that this one grows from, which keep their numbers; new ones come after them."""


NO_RULE = LabelRule()
"""The source is asked."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The class of every image."""

    numbers: NDArray[np.int64]
    """Places in class_names, NO_CLASS where an image has none; [n]."""
    class_names: tuple[str, ...]
    said: str
    """Where they come from, in words."""
    notes: tuple[str, ...] = ()
    """What was found and not used, and why."""


def no_labels(num_images: int, said: str, notes: Sequence[str] = ()) -> Labels:
    """None of the images has a class."""
    return Labels(numbers=np.full(num_images, NO_CLASS), class_names=(), said=said, notes=tuple(notes))


def natural(name: str) -> tuple[Any, ...]:
    """A key to sort names by as people do: "2" before "10"."""
    parts = re.split(r"(\d+)", name)
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts), name


def check_class_numbers(numbers: NDArray[Any], where: str) -> NDArray[np.int64]:
    """Labels that are numbers of classes.

    Raises:
        InputError: if the highest is not below MAX_CLASSES.
    """
    if len(numbers) and numbers.max() >= MAX_CLASSES:
        raise InputError(
            f"{where} has the label {numbers.max()}; expected numbers of classes, 0 to {MAX_CLASSES - 1}: give them as "
            "names (strings) and they are numbered, or leave them out by --data.labels none"
        )
    return numbers.astype(np.int64)


def numbered(values: Sequence[str | int | None], where: str, said: str, given: Sequence[str] = ()) -> Labels:
    """Labels as they stand, one for each image, as numbers and names of classes.

    Numbers stay as they are, -1 for none as by custom; names are numbered in natural order.

    Args:
        values: all of them names, or all numbers; None where there is none.
        where: the file that they are in, for messages.
        said: in what, in words.
        given: names of the numbers, where the file has such.

    Raises:
        InputError: if names and numbers are mixed, or a number cannot be a class's.
    """
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        return no_labels(len(values), "none", [f"{said} is empty"])
    if kinds == {str}:
        names = tuple(sorted({str(value) for value in values if value is not None}, key=natural))
        place = {name: number for number, name in enumerate(names)}
        numbers = np.array([NO_CLASS if value is None else place[str(value)] for value in values], np.int64)
        return Labels(numbers=numbers, class_names=names, said=said, notes=lacking(numbers, said))
    if str in kinds:
        odd = next(str(value) for value in values if isinstance(value, str))
        raise InputError(f"{where} has numbers and names as labels (one is {odd!r}); expected the one or the other")
    return of_numbers(np.array([NO_CLASS if value is None else value for value in values], object), where, said, given)


def of_numbers(found: NDArray[Any], where: str, said: str, given: Sequence[str] = ()) -> Labels:
    """Labels that are numbers already; those below 0 are none, as by custom."""
    odd = [value for value in found.tolist() if value < NO_CLASS]
    numbers = check_class_numbers(np.where(found < 0, NO_CLASS, found), where)
    highest = int(numbers.max()) if len(numbers) else NO_CLASS
    names = tuple(given) if len(given) > highest else numbered_classes(numbers)
    notes = lacking(numbers, said)
    if odd:
        notes = (*notes, f"{len(odd):,} labels below -1 (as {odd[0]}) are taken as none")
    if given and len(given) <= highest:
        notes = (*notes, f"the names of {len(given)} classes in {where} are too few for the label {highest}: not used")
    return Labels(numbers=numbers, class_names=names, said=said, notes=notes)


def numbered_classes(labels: NDArray[np.int64] | None) -> tuple[str, ...]:
    """Class names "0", "1", ... up to the highest label; none without labels."""
    return () if labels is None or not len(labels) else tuple(str(number) for number in range(int(labels.max()) + 1))


def lacking(numbers: NDArray[np.int64], said: str) -> tuple[str, ...]:
    """A note on the images that have no label, if there are any."""
    without = int((numbers < 0).sum())
    return (f"{without:,} of {len(numbers):,} images have no label in {said}",) if without else ()


def by_folder(names: Sequence[str], level: int | None = None) -> Labels:
    """Classes from the folders that the images lie in.

    The folder an image lies in names its class; where all images have the same one there (`n01/images/x.png`), the first
    above it that tells them apart does.

    Args:
        names: paths below the source, or below the folders of its splits.
        level: which folder, counted from the image up; None to look.
    """
    folders = [[part for part in name.split("/")[:-1] if part] for name in names]
    deepest = max((len(parts) for parts in folders), default=0)

    def at(above: int) -> list[str | None]:
        return [parts[-above] if len(parts) >= above else None for parts in folders]

    if level is not None:
        if not 1 <= level <= deepest:
            raise InputError(f"data.class-level is {level}; expected 1 to {deepest}, the folders above an image")
        chosen = level
    else:
        chosen = next((above for above in range(1, deepest + 1) if len(set(at(above)) - {None}) > 1), 0)
    if not chosen:
        return no_labels(len(names), "none (all images lie in one folder)")
    found = at(chosen)
    example = next(name for name, folder in zip(names, found, strict=True) if folder is not None)
    what = "the folder that an image lies in" if chosen == 1 else f"the folder {chosen} above an image"
    labels = numbered(
        found, "the source", f"{what} ({example} is of class {PurePosixPath(example).parts[-1 - chosen]})"
    )
    above = at(chosen + 1)
    if level is None and len(set(zip(found, above, strict=True))) > len(set(found)) and len(set(above) - {None}) > 1:
        others = few(sorted({folder for folder in above if folder is not None}, key=natural))
        note = f"the folders above those ({others}) tell images apart, too: for their names, --data.class-level {chosen + 1}"
        labels = replace(labels, notes=(*labels.notes, note))
    return labels


def ordered(labels: Labels, rule: LabelRule) -> Labels:
    """The labels with their classes in the order that a person gave, or under the names that were given for numbers.

    Classes of an earlier dataset keep their numbers.

    Raises:
        InputError: if the names given are not those found, or would move a class of the earlier dataset.
    """
    labels = _as_given(labels, rule.class_names)
    names = tuple(dict.fromkeys((*rule.earlier, *labels.class_names)))
    if rule.class_names and rule.earlier and names != labels.class_names:
        raise InputError(
            f"data.class-names are {_some(rule.class_names)}; expected the classes of the earlier dataset first, so that they "
            f"keep their numbers: {_some(names)}"
        )
    place = {name: number for number, name in enumerate(names)}
    numbers = np.array([*(place[name] for name in labels.class_names), NO_CLASS], np.int64)[labels.numbers]
    return replace(labels, numbers=numbers, class_names=names)


def _as_given(labels: Labels, given: Sequence[str]) -> Labels:
    if not given:
        return labels
    if len(set(given)) < len(given):
        raise InputError(f"data.class-names names {Counter(given).most_common(1)[0][0]!r} twice; expected each once")
    found = labels.class_names
    if set(given) == set(found):
        place = np.array([given.index(name) for name in found] + [NO_CLASS], np.int64)
        return replace(labels, numbers=place[labels.numbers], class_names=tuple(given))
    if len(given) >= len(found) and all(name.isdecimal() for name in found):
        return replace(labels, class_names=tuple(given))
    raise InputError(
        f"data.class-names are {_some(given)}; expected the {len(found)} classes of the source in their order: {_some(found)}"
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more if names else "none"


def few(names: Iterable[str]) -> str:
    """The first names of some, for a message."""
    listed = list(names)
    return ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN:,} more" if len(listed) > _SHOWN else "")
