"""What is found below a folder, under exactly the name that it has there, and names as they can be shown and written."""

import math
from dataclasses import dataclass

UNREADABLE = "unreadable folder"
CIRCLE = "link that leads in a circle"
DANGLING = "dangling link"
SPECIAL = "not a regular file"
"""A pipe, a socket or a device, which is never opened: reading one may wait for ever."""
ENDS_WITH_SLASH = "its key ends with a slash, which names a folder"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One file below a folder, or what stands there instead of one."""

    name: str
    """Below the folder, exactly as found (`storage.below(folder, name)` is its URI); see `printable`."""
    size_bytes: int | None
    """None if it is no file that could be read."""
    version: str
    """What changes when it is written again: the time of its last change in ns, or on S3 its ETag; "" where there is a problem."""
    changed_s: float = math.nan
    """Unix time of its last change, by the store's clock; nan where there is a problem."""
    problem: str | None = None
    """Why it is no file that could be read."""


def printable(name: str) -> str:
    r"""A name on one line that can be shown, and written as UTF-8; no two names become the same.

    Of a local file's name the bytes that are no UTF-8 are given as \udcNN, which is how Python holds them; line breaks and other
    characters that do not print as Python writes them in a string; a backslash as two.
    """
    if name.isprintable() and "\\" not in name:  # nearly all
        return name
    return "".join(
        char if char.isprintable() and char != "\\" else char.encode("unicode_escape", "surrogatepass").decode()
        for char in name
    )
