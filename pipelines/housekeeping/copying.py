"""What lies in a store, in another store, too."""

from collections import defaultdict

from ddpm_core import storage
from pipelines.housekeeping.inventory import Item, says_whole


def copy(store: str, item: Item, to: str) -> None:
    """Have an item stand in another store, too: last what says that it is whole. Done twice, it changes nothing."""
    for name in sorted(item.files, key=lambda name: (says_whole(name), name)):
        storage.copy(storage.join(store, name), storage.join(to, name))


def needed_by(items: dict[str, Item], item: Item) -> list[Item]:
    """What an item refers to, and what that refers to."""
    needs: defaultdict[str, list[Item]] = defaultdict(list)
    for each in items.values():
        for other in each.referred_by:
            needs[other].append(each)
    found: dict[str, Item] = {}
    waiting = [item]
    while waiting:
        for each in needs[waiting.pop().name]:
            if each.name not in found and each.name != item.name:
                found[each.name] = each
                waiting.append(each)
    return list(found.values())
