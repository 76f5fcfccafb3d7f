"""Links inside archives, followed to the files that they mean."""

import posixpath
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ddpm_core.data.sources.base import LeftOut, is_hidden, is_image
from ddpm_core.data.sources.files import Place

DANGLING = "dangling link"
CIRCLE = "link that leads in a circle"


def followed(files: Mapping[str, Place], links: Mapping[str, str]) -> tuple[list[Place], list[LeftOut]]:
    """The files that links add under their own names, and the links that lead to none.

    A link to a folder adds the files below it.

    Args:
        files: by name.
        links: what each means, by name: a path from the archive's top.
    """
    names = sorted(files)
    added, left_out = [], []
    for link in sorted(links):
        target = _end(link, links)
        found = [] if target is None else list(_below(target, link, files, names))
        if not found:
            reason = CIRCLE if target is None else DANGLING
            lost = not is_hidden(link) and (is_image(link) or "." not in posixpath.basename(link))
            left_out.append(LeftOut(name=link, reason=reason, lost=lost))
        added += found
    return added, left_out


def target_of(link: str, target: str) -> str:
    """The path from the archive's top that a symbolic link means; one that leads out of it means nothing there."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(link), target))


def _end(link: str, links: Mapping[str, str]) -> str | None:
    """Where a chain of links ends; None if it never does."""
    seen = {link}
    target = links[link]
    while target in links:
        if target in seen:
            return None
        seen.add(target)
        target = links[target]
    return target


def _below(target: str, link: str, files: Mapping[str, Place], names: Sequence[str]) -> Iterator[Place]:
    """The file that a link means, or those of the folder."""
    if target in files:
        yield replace(files[target], name=link)
        return
    start = bisect_left(names, f"{target}/")
    for name in names[start:]:
        if not name.startswith(f"{target}/"):
            return
        yield replace(files[name], name=f"{link}{name.removeprefix(target)}")
