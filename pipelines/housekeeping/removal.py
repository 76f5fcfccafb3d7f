"""Less of a store: an item, or all that nobody has used for long. What anything refers to stays."""

import re
import time
from collections.abc import Iterator

from ddpm_core import storage
from ddpm_core.artifacts.run_record import RECORD, hold, read_record
from ddpm_core.errors import HeldError, InputError
from pipelines.housekeeping.inventory import Item, names_in, says_whole
from pipelines.progress import say

_TRACKING = "tracking/runs"
"""What commands logged, and so what they used."""
_CLOCKS_S = 600.0
"""By how much the store's clock may be behind this one's."""
_CACHED = re.compile(r"references/[0-9a-f]{16}-.*\.np[yz]|bounds/[0-9a-f]{16}/group-\d+-\d+\.npz")
"""What is computed again where it is missing."""


def remove(store: str, items: dict[str, Item], item: Item) -> None:
    """Delete an item. First what says that it is whole: killed in the middle, what is left is not taken for one.

    Args:
        items: all of the store's; it is taken out of them.

    Raises:
        InputError: in one line, if something refers to it, or may come to do so.
        HeldError: if a job is at work in it.
    """
    if item.referred_by:
        raise InputError(f"{item.name} is what {', '.join(item.referred_by[:3])} came from or shows; remove that first")
    if item.kind == "datasets":
        _check_no_reader(items, item)
    if item.kind in ("runs", "sweeps"):
        with hold(item.uri, say=say):
            _delete(store, [name for name in item.files if storage.join(store, name) != storage.join(item.uri, RECORD)])
        storage.delete(storage.join(item.uri, RECORD))
    else:
        _delete(store, item.files)
    storage.delete_rest(item.uri)
    del items[item.name]
    for other in items.values():
        other.referred_by = [name for name in other.referred_by if name != item.name]


def _check_no_reader(items: dict[str, Item], dataset: Item) -> None:
    """A run says what it reads with its first checkpoint: until then any may read it."""
    for run in items.values():
        record = read_record(run.uri) if run.kind in ("runs", "sweeps") else None
        if record is not None and record.holder is not None:
            raise InputError(
                f"a job is at work in {run.name} ({record.holder}) and may read {dataset.name}; expected that it has ended: "
                f"wait, type its command again, or remove {run.name} first"
            )


def _delete(store: str, names: list[str]) -> None:
    for name in sorted(names, key=lambda name: (not says_whole(name), name)):
        storage.delete(storage.join(store, name))


def unused(store: str, items: dict[str, Item], since_s: float) -> list[Item]:
    """What nobody has used since then, and nothing else refers to; what refers to an item comes before it.

    An item is used when a file of it is written, and when a command logs that it reads or makes it.
    """
    used = _logged_since(store, since_s)
    waiting = [item for item in items.values() if item.is_ours and _changed_s(item) < since_s and item.name not in used]
    found: dict[str, Item] = {}
    while free := [item for item in waiting if found.keys() >= set(item.referred_by)]:
        found |= {item.name: item for item in free}
        waiting = [item for item in waiting if item.name not in found]
    return list(found.values())


def _changed_s(item: Item) -> float:
    """Apart from who writes it, which a removal says there as well: whether that job lives is seen when it is removed."""
    return max((entry.changed_s for entry in item.entries if entry.name != f"{item.name}/{RECORD}"), default=0.0)


def _logged_since(store: str, since_s: float) -> set[str]:
    """The items that commands have logged since then."""
    folder = storage.join(store, _TRACKING)
    return names_in(folder, (entry.name for entry in storage.walk(folder) if entry.changed_s >= since_s))


def remove_unused(store: str, items: dict[str, Item], since_s: float) -> Iterator[tuple[Item, str]]:
    """Remove what `unused` finds; yields each, and why it stays if it does.

    A command that begins meanwhile may use what was found: what is logged is read again before each.
    """
    began_s = time.time() - _CLOCKS_S
    for item in unused(store, items, since_s):
        why = "a command uses it by now" if item.name in _logged_since(store, began_s) else ""
        try:
            if not why:
                remove(store, items, item)
        except (InputError, HeldError) as error:  # what was to go before it stays, or a job is at work
            why = str(error)
        yield item, why


def old_cache(items: dict[str, Item], since_s: float) -> list[storage.Entry]:
    """Files of features and bounds that nobody has written since then; they would be computed again."""
    return [
        entry
        for item in items.values()
        if item.kind == "cache"
        for entry in item.entries
        if _CACHED.fullmatch(entry.name) and entry.changed_s < since_s
    ]
