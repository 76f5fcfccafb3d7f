"""A server on this host that outlives the command which starts it.

It keeps its data in a folder of its own. `make` is for once, `start` for each time; both end when it answers. Its processes carry
`DDPM_STACK=<folder>` in their environment: by that they are found, whoever started them.
"""

import contextlib
import os
import subprocess
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

MARK = "DDPM_STACK"


def wait_until(holds: Callable[[], bool], what: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise RuntimeError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.5)


def answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    """Whether a page comes, with any status below 400."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers or {})), timeout=5):
            return True
    except OSError:
        return False


def write_secret(path: Path, text: str) -> None:
    """A file for its user alone, whole or not there."""
    part = path.with_name(path.name + ".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    part.rename(path)


def marked(folder: Path) -> list[int]:
    """The processes that were started with `folder`, or with one below it, as their mark."""
    found, mark = [], f"{MARK}={folder}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            variables = environ.read_bytes().split(b"\0")
            if any(each == mark or each.startswith(mark + b"/") for each in variables):
                found.append(int(environ.parent.name))
    return found


@dataclass(frozen=True)
class Service(ABC):
    name: str
    folder: Path

    @abstractmethod
    def make(self) -> None: ...

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def answers(self) -> bool: ...

    def kill(self) -> None:
        """As a machine that loses its power: kill -9 of all of it."""
        while pids := marked(self.folder):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            time.sleep(0.1)

    def daemon(self, *command: str | Path, env: Mapping[str, str] | None = None) -> None:
        """Start what outlives this process; what it says goes into the folder's `out.log`."""
        mark = {MARK: str(self.folder)}
        with open(self.folder / "out.log", "ab") as log:
            subprocess.Popen(
                [str(part) for part in command],
                env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **(env or {}), **mark},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, seconds: float = 90) -> None:
        try:
            wait_until(self.answers, self.name, seconds)
        except RuntimeError as error:
            tail = (self.folder / "out.log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{error}; {self.folder}/out.log ends with:\n{tail}") from None
