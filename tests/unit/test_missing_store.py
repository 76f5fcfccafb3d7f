"""What a command does about a store that does not exist: those that look or change say so in a line, and make none."""

import re
from pathlib import Path

import pytest
from written_run import typing

MODEL, OTHER = "models:/ddpm-digits/1", "models:/ddpm-digits/2"
NO_STORE, NO_MODEL = "there is no store at {store}; expected", "no model is registered in {store}; expected"
NO_SCHEDULE = "no schedule a in {store}; there is none: `add` one first"
TYPED = {
    "store.py list": NO_STORE,
    "store.py verify": NO_STORE,
    "store.py rm runs/a": NO_STORE,
    "store.py gc": NO_STORE,
    "store.py gc --dry-run": NO_STORE,
    "store.py copy runs/a {store}-2": NO_STORE,
    "schedule.py list": NO_STORE,
    "schedule.py show a": NO_SCHEDULE,
    "schedule.py pause a": NO_SCHEDULE,
    "schedule.py resume a": NO_SCHEDULE,
    "schedule.py remove a": NO_SCHEDULE,
    "schedule.py run-now a": NO_SCHEDULE,
    "schedule.py tick": NO_STORE,
    "schedule.py run": NO_STORE,
    "registry.py list": NO_MODEL,
    "registry.py list ddpm-digits": NO_MODEL,
    f"registry.py show {MODEL}": NO_MODEL,
    f"registry.py compare {MODEL} {OTHER}": NO_MODEL,
    f"registry.py promote {MODEL} --reason words": NO_MODEL,
    "registry.py rollback ddpm-digits": NO_MODEL,
    "show.py runs/a": "no runs/a in {store}; expected",
    f"show.py {MODEL}": NO_MODEL,
    "export.py a --to safetensors --out {store}-2": "no run and no model a in {store}; expected",
    "ui.py sync": "nothing is on record in {store}; expected",
}


@pytest.mark.parametrize("words", TYPED)
def test_it_is_said_and_none_is_made(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = str(tmp_path / "store")
    script, *more = words.format(store=store).split()
    code, out, err = typing(script, store, capsys, monkeypatch)(*more)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert re.match(f"error: .*{TYPED[words].format(store=re.escape(store))}", line), line
    assert list(tmp_path.iterdir()) == []
