"""What becomes of a command whose output goes nowhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MANY = "from pipelines.cli.written import written\nwith written(): print('x' * {length})"
FULL = Path("/dev/full")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def ended(words: list[str], stdout: int) -> tuple[int, str]:
    done = subprocess.run(
        words, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT, check=False
    )
    return done.returncode, done.stderr


def closed_pipe() -> int:
    reads, writes = os.pipe()
    os.close(reads)
    return writes


@pytest.mark.parametrize(
    "words",
    [
        ["-c", MANY.format(length=10)],  # found when all is flushed
        ["-c", MANY.format(length=10**6)],  # by print itself
        ["-u", "-c", MANY.format(length=10)],
        ["pipelines/schedule.py", "units"],
        ["-m", "pipelines", "--help"],
        ["pipelines/schedule.py", "--help"],
        ["pipelines/schedule.py", "list", "--help"],
    ],
)
def test_a_reader_who_has_gone_is_no_error(words: list[str]) -> None:
    assert ended([sys.executable, *words], closed_pipe()) == (0 if "--help" in words else 141, "")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize("words", [["-c", MANY.format(length=10)], ["pipelines/schedule.py", "units", "--json"]])
def test_a_full_disk_is_a_line(words: list[str]) -> None:
    with open(FULL, "w") as full:
        code, said = ended([sys.executable, *words], full.fileno())
    assert (code, said) == (1, "error: the output cannot be written: No space left on device\n")
