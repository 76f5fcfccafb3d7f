"""One writer a run: who holds it, how it passes on, and that who lost it commits nothing more."""

import json
import re
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from ddpm_core import storage
from ddpm_core.artifacts import run_record
from ddpm_core.artifacts.run_record import Hold, hold, read_record
from ddpm_core.errors import HeldError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything sixty times as fast."""
    for name, seconds in {"BEAT_S": 0.1, "PATIENCE_S": 1.0, "_LOOK_S": 0.02}.items():
        monkeypatch.setattr(run_record, name, seconds)


def silent(line: str) -> None:
    """Nothing should be said."""
    raise AssertionError(line)


def paused(folder: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Hold:
    """A holder that gives no sign of life."""
    monkeypatch.setattr(run_record, "BEAT_S", 1e6)
    held = stack.enter_context(hold(str(folder), say=silent))
    monkeypatch.setattr(run_record, "BEAT_S", 0.1)
    return held


def test_a_folder_that_was_given_back_is_taken_at_once(tmp_path: Path) -> None:
    for attempt in (1, 2, 3):
        with hold(str(tmp_path), say=silent) as held:
            record = read_record(str(tmp_path))
            assert record is not None
            assert (record.attempt, record.holder) == (attempt, held.holder)
    record = read_record(str(tmp_path))
    assert record is not None
    assert record.holder is None


def test_a_holder_that_lives_is_named_and_keeps_it(tmp_path: Path) -> None:
    told: list[str] = []
    with hold(str(tmp_path), say=silent) as held:
        alive = r"is held by process \d+ on .*, since 20.*, and it is alive"
        with pytest.raises(HeldError, match=alive), hold(str(tmp_path), say=told.append):
            pass
        held.change()
    assert len(told) == 1
    assert f"held by {held.holder}" in told[0]


def test_a_holder_without_a_sign_of_life_loses_it_and_can_change_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with ExitStack() as stack:
        first = paused(tmp_path, stack, monkeypatch)
        began = time.monotonic()
        with hold(str(tmp_path), say=told.append) as second:
            assert 1.0 <= time.monotonic() - began < 3
            first.check()  # it has not looked yet
            with pytest.raises(HeldError, match=re.escape(f"taken over by {second.holder}; nothing")):
                first.change()
            with pytest.raises(HeldError):
                first.check()
            first.release()
            record = read_record(str(tmp_path))
            assert record is not None
            assert record.holder == second.holder
    assert len(told) == 1


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    code = (
        "import os, sys; from ddpm_core.artifacts.run_record import hold; "
        "held = hold(sys.argv[1], say=print); held.__enter__(); os._exit(9)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    deadline = time.monotonic() + 60
    while (record := read_record(str(tmp_path))) is None or process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert record.holder is not None
    assert record.holder.pid == process.pid
    with hold(str(tmp_path), say=silent):
        pass


@pytest.mark.parametrize("lost", ["process", "boot"])
def test_of_another_machine_or_number_space_nothing_is_concluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Its process number may be free here, or another's: it is watched like any."""
    told: list[str] = []
    with ExitStack() as stack:
        paused(tmp_path, stack, monkeypatch)
        record = json.loads((tmp_path / "run.json").read_text())
        words = record["holder"]["process"].split()
        record["holder"] |= {"pid": 1 << 30, "process": None if lost == "process" else " ".join(["other", *words[1:]])}
        (tmp_path / "run.json").write_text(json.dumps(record))
        with hold(str(tmp_path), say=told.append):
            pass
    assert len(told) == 1


def test_who_waits_until_it_is_free_gets_it_and_of_many_one_at_a_time(tmp_path: Path) -> None:
    inside, seen, lock = [0], [0], threading.Lock()

    def job() -> None:
        with hold(str(tmp_path), say=lambda line: None, until_free=True):
            inside[0] += 1
            assert inside[0] == 1
            time.sleep(0.02)
            inside[0] -= 1
            with lock:
                seen[0] += 1

    threads = [threading.Thread(target=job) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    record = read_record(str(tmp_path))
    assert record is not None
    assert (seen[0], record.attempt) == (6, 6)


def test_a_store_that_is_away_for_a_moment_is_told_once_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with hold(str(tmp_path), say=told.append) as held:
        with monkeypatch.context() as patch:

            def fail(*args: object) -> bool:
                raise storage.StorageError("the store is away")

            patch.setattr(storage, "replace_bytes", fail)
            time.sleep(0.5)
        time.sleep(0.3)
        held.change()
        held.check()
    assert len(told) == 1
    assert told[0].startswith("the store is away; ")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"{", "is not JSON; delete it"),
        (b"[]", "format_version None"),
        (b'{"format_version": 9}', "format_version 9; this code"),
    ],
)
def test_a_record_that_cannot_be_read_is_one_line(tmp_path: Path, data: bytes, match: str) -> None:
    (tmp_path / "run.json").write_bytes(data)
    with pytest.raises(ValueError, match=match):
        read_record(str(tmp_path))
