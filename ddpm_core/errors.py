"""Errors that are worded for whoever runs the program: one line, with the remedy. Any other is a mistake of ours."""

import difflib
from collections.abc import Iterable


def nearest(given: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?` for the known name that is most like what was given; empty if none is."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


class UserError(Exception):
    """What is said is meant for a person; no traceback is needed to understand it."""

    exit_code = 2
    """Of a command that ends with it."""


class InputError(UserError, ValueError):
    """Something that was given cannot be used: what, the value, what was expected."""


class MissingError(UserError, FileNotFoundError):
    """Nothing lies where something was named."""


class DivergedError(UserError, FloatingPointError):
    """Training came to numbers that are none."""


class TooLargeError(UserError, MemoryError):
    """What was asked for does not fit into memory."""


class FailedError(UserError):
    """All that was asked for was tried, and none of it came to an end; why was told."""

    exit_code = 1


class HeldError(UserError):
    """Another job writes what this one would write."""

    exit_code = 1
