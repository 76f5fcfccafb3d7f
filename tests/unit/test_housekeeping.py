"""What garbage collection takes, and what it leaves."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest

from ddpm_core import storage
from ddpm_core.artifacts import run_record
from ddpm_core.artifacts.run_record import hold
from pipelines.cli.subcommands import run_subcommand
from pipelines.housekeeping import removal
from pipelines.housekeeping.inventory import add_registered, inventory, unknown_models
from pipelines.housekeeping.removal import old_cache, remove_unused, unused
from pipelines.store import COMMANDS

DAY_S = 24 * 3600.0
DATASET, RUN, SAMPLES, REPORT = (
    "datasets/digits-0123456789ab",
    "runs/digits",
    "samples/0123456789abcdef-64",
    "reports/digits-0123456789ab",
)
FILES = {
    f"{DATASET}/index.parquet": "",
    f"{DATASET}/shard-000000.tar": "",
    f"{RUN}/run.json": '{"attempt": 1, "holder": null, "changes": 2, "checkpoints": [2], "format_version": 1}',
    f"{RUN}/checkpoints/step-00000001/state.json": '"elsewhere"',
    f"{RUN}/checkpoints/step-00000002/state.json": f'"/somewhere/{DATASET}"',
    f"{SAMPLES}/set-0-64.json": f'"s3://bucket/{RUN}/checkpoints/step-00000002"',
    f"{SAMPLES}/block-000000000000.tar": "",
    f"{REPORT}/report.json": f'"/somewhere/{SAMPLES}/set-0-64.json" "{DATASET}"',
}
CACHED = "references/0123456789abcdef-train-64-v1.npz", "bounds/0123456789abcdef/group-00000000-32.npz"
FOREIGN = (
    "runs/tensorboard/events",
    "datasets/photos/cat.png",
    "samples/drums.wav",
    "references/thesis.bib",
    "notes.json",
)


def write(store: str, files: dict[str, str], days: float = 40) -> None:
    for name, text in files.items():
        storage.write_bytes(storage.join(store, name), text.encode())
        os.utime(Path(store, name), (time.time() - days * DAY_S,) * 2)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A line of items that nobody has used for 40 days, and files of somebody else's."""
    write(str(tmp_path), FILES | dict.fromkeys((*CACHED, *FOREIGN), ""))
    return str(tmp_path)


def found(store: str, days: float = 30) -> list[str]:
    return [item.name for item in unused(store, inventory(store), time.time() - days * DAY_S)]


def test_what_would_be_done_is_told_by_items_and_sizes_and_not_done(
    store: str, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    to, before = str(tmp_path_factory.mktemp("to") / "other"), sorted(Path(store).rglob("*"))

    def told(*words: str) -> list[str]:
        run_subcommand("store.py", "", COMMANDS, [*words, "--store", store, "--dry-run"])
        return capsys.readouterr().out.splitlines()

    sizes = {name: sum(len(FILES[file]) for file in FILES if file.startswith(name)) for name in (DATASET, RUN, SAMPLES)}
    *items, total = told("copy", SAMPLES, to)
    assert sorted(items) == [f"{name}, {size} B" for name, size in sizes.items()]
    assert items[-1].startswith(SAMPLES)
    assert total == f"{sum(sizes.values())} B would be copied to {to}"
    assert told("rm", RUN) == [f"{RUN}, {sizes[RUN]} B", f"stays: {SAMPLES} refers to it"]
    assert told("rm", REPORT)[1] == "nothing refers to it"
    assert told("list") == [f"list: in {store}; What lies in a store, and what refers to it."]
    with pytest.raises(SystemExit):
        told("rm", "registry")
    assert "no registry in the store" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        told("rm", "bounds")
    assert "bounds is cache, and no item; expected KIND/NAME" in capsys.readouterr().err
    assert sorted(Path(store).rglob("*")) == before
    assert not Path(to).exists()


def test_all_that_nobody_used_goes_what_refers_to_it_first(store: str) -> None:
    assert found(store) == [REPORT, SAMPLES, RUN, DATASET]
    assert found(store, days=50) == []
    assert all(not why for _, why in remove_unused(store, inventory(store), time.time() - 30 * DAY_S))
    assert {path.relative_to(store).as_posix() for path in Path(store).rglob("*") if path.is_file()} == {
        *CACHED,
        *FOREIGN,
    }
    assert not Path(store, RUN).exists()  # no empty folder is left, either
    assert [entry.name for entry in old_cache(inventory(store), time.time() - 30 * DAY_S)] == sorted(CACHED)


def test_what_is_used_stays_and_what_it_came_from(store: str) -> None:
    """Written to, named by what a command logged, or by a schedule."""
    for name, left in (
        (f"{SAMPLES}/block-000000000064.tar", [REPORT]),
        ("tracking/runs/digits/0/1.jsonl", [REPORT]),
        ("schedules/nightly/schedule.json", [REPORT, SAMPLES]),
    ):
        said = SAMPLES if name.startswith("tracking") else RUN if name.startswith("schedules") else ""
        write(store, {name: said}, days=1)
        assert found(store) == left
        Path(store, name).unlink()
    write(store, {"tracking/runs/digits/0/1.jsonl": SAMPLES}, days=31)
    assert len(found(store)) == 4


def test_what_a_registered_model_came_from_stays(store: str) -> None:
    tags = {"checkpoint_uri": f"/elsewhere/{RUN}/checkpoints/step-00000002", "report_uri": f"/elsewhere/{REPORT}"}
    version, model = SimpleNamespace(name="ddpm", version="1", tags=tags), SimpleNamespace(name="ddpm")

    class Page(list[object]):
        token = None

    client = SimpleNamespace(
        search_registered_models=lambda **_: Page([model]), search_model_versions=lambda *_, **__: Page([version])
    )
    write(store, {"registry/ddpm/run.json": "", "registry/other/run.json": ""})
    items, server = inventory(store), SimpleNamespace(client=client, uri="")
    assert unknown_models(items, server) == ["other"]
    assert unknown_models(items, None) == ["ddpm", "other"]
    assert add_registered(items, server) == 1
    assert items[REPORT].referred_by == ["models:/ddpm/1"]
    assert unused(store, items, time.time()) == []


def test_a_job_at_work_keeps_its_run_and_all_datasets(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_record, "BEAT_S", 0.2)
    write(store, {"datasets/other-0123456789ab/index.parquet": ""})
    with hold(storage.join(store, RUN), say=print):
        told = {item.name: why for item, why in remove_unused(store, inventory(store), time.time() - 30 * DAY_S)}
    assert "a job is at work in runs/digits" in told["datasets/other-0123456789ab"]
    assert "is alive" in told[RUN]
    assert {RUN, DATASET, "datasets/other-0123456789ab"} <= inventory(store).keys()


def test_what_a_command_begins_to_use_meanwhile_stays(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    items, remove = inventory(store), removal.remove

    def begin_and_remove(*args: object) -> None:
        write(store, {"tracking/runs/digits/0/1.jsonl": RUN}, days=0)
        remove(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(removal, "remove", begin_and_remove)
    told = {item.name: why for item, why in remove_unused(store, items, time.time() - 30 * DAY_S)}
    assert told[RUN] == "a command uses it by now"
    assert RUN in told[DATASET]
    assert {RUN, DATASET} <= inventory(store).keys()
    assert SAMPLES not in inventory(store)


def test_a_record_that_cannot_be_read_is_no_record_that_names_nothing(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise storage.StorageError(f"{path}: Permission denied")

    monkeypatch.setattr("ddpm_core.storage.local.read_bytes", refuse)
    with pytest.raises(storage.StorageError):
        inventory(store)


def test_on_s3_an_item_is_as_old_as_its_newest_object(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = f"s3://{bucket}/store"
    for name, text in FILES.items():
        storage.write_bytes(storage.join(store, name), text.encode())
    boto3.client("s3").create_multipart_upload(Bucket=bucket, Key=f"store/{REPORT}/half.png")
    assert found(store, days=1) == []
    monkeypatch.setattr(removal, "_CLOCKS_S", 0.0)
    monkeypatch.setattr(removal, "time", SimpleNamespace(time=lambda: time.time() + 60))
    since_s = time.time() + 30
    gone = [(item.name, why) for item, why in remove_unused(store, inventory(store), since_s)]
    assert gone == [(REPORT, ""), (SAMPLES, ""), (RUN, ""), (DATASET, "")]
    assert list(storage.walk(store)) == []
    assert "Uploads" not in boto3.client("s3").list_multipart_uploads(Bucket=bucket)


@pytest.fixture
def deletions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """[n]: the n-th deletion from now on is not done, nor anything after it."""
    left, delete = [10**6], storage.delete

    def delete_or_die(uri: str) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise KeyboardInterrupt
        delete(uri)

    monkeypatch.setattr("pipelines.housekeeping.removal.storage.delete", delete_or_die)
    return left


@pytest.mark.parametrize("deletion", range(1, 7))
def test_broken_off_at_any_deletion_the_next_one_ends_it(store: str, deletion: int, deletions: list[int]) -> None:
    """What is left of an item is no whole one, and what it came from is there until it is gone."""
    write(store, {"schedules/nightly/schedule.json": DATASET}, days=1)
    since_s = time.time() - 30 * DAY_S
    deletions[0] = deletion
    with pytest.raises(KeyboardInterrupt):
        list(remove_unused(store, inventory(store), since_s))
    items = inventory(store)
    for item in items.values():
        if item.is_ours and item.is_whole and item.name != RUN:
            assert {name for name in FILES if name.startswith(f"{item.name}/")} == set(item.files)
    deletions[0] = 10**6
    assert all(not why for _, why in remove_unused(store, inventory(store), since_s))
    assert [item.name for item in inventory(store).values() if item.is_ours] == [DATASET]
