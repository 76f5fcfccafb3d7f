"""What a command prints is written to its end; where it cannot be, the command ends and says so."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_NOBODY_READS = 141
"""What a shell expects of a program whose reader has gone."""

_HELP = {"-h", "--help", "--help-all"}


class UnwrittenError(BaseException):
    """stdout takes nothing more. No Exception, as KeyboardInterrupt is none: whoever mends other errors must not go on."""


class _Output:
    """stdout, whose errors are told from those of any other file."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            raise UnwrittenError(error.strerror) from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise UnwrittenError(error.strerror) from error


@contextmanager
def written() -> Iterator[None]:
    """At the end of the block all that it printed is written.

    Exits:
        where it cannot be: 141 if nobody reads it any more, as behind `| head` (0 where it is --help, of which that is enough);
        else 1 in a line, as on a full disk.
    """
    stdout = sys.stdout
    sys.stdout = _Output(stdout)
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except UnwrittenError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())  # else Python tries once more as it ends
        if isinstance(error.__cause__, BrokenPipeError):
            sys.exit(0 if _HELP & set(sys.argv) else _NOBODY_READS)
        print(f"error: the output cannot be written: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        sys.stdout = stdout
