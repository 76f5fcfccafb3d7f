"""Storage, and training, on an S3 server that fails, or seems to: moto behind a proxy that breaks up to half of the requests."""

import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import moto.s3.models
import numpy as np
import pytest
import torch
from botocore.exceptions import ClientError
from fault_proxy import KINDS, Fault, FaultProxy, Plan, seeded
from moto.server import ThreadedMotoServer

from ddpm_core import storage
from ddpm_core.artifacts.checkpoint import checkpoint_uri, read_checkpoint
from ddpm_core.artifacts.checkpoint_store import CheckpointStore, hold_run
from ddpm_core.data.config import DataConfig
from ddpm_core.data.sharding.plan import plan_dataset
from ddpm_core.data.sharding.writer import commit_dataset, write_shard
from ddpm_core.data.sources.base import ArraySource
from ddpm_core.diffusion.losses import LossConfig
from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from ddpm_core.model.unet import UNetConfig
from ddpm_core.serialization import to_json
from ddpm_core.storage import s3, s3_client
from ddpm_core.training.__main__ import read_spec
from ddpm_core.training.checkpointing import Checkpointer
from ddpm_core.training.config import TrainConfig
from ddpm_core.training.loop import Events
from ddpm_core.training.parallel import Worker
from ddpm_core.training.state import TrainState
from ddpm_core.training.worker import run_worker

BASE = "s3://bucket/some/prefix"
NO_FAULTS = seeded(0.0, seed=0)


@pytest.fixture(scope="module")
def front() -> Iterator[FaultProxy]:
    """The one way to the server: clients are costly to make, and one is made for each address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with FaultProxy(f"http://{host}:{port}", NO_FAULTS, latency_s=0.02, one_at_a_time=True) as front:
        yield front
    server.stop()


@pytest.fixture
def proxy(front: FaultProxy, use_s3: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """On the way to an empty bucket; without faults yet."""
    use_s3(front.url)
    monkeypatch.setattr(s3_client, "_FIRST_PAUSE_S", 0.002)
    monkeypatch.setattr(s3_client, "_LONGEST_PAUSE_S", 0.02)
    s3_client.client().create_bucket(Bucket="bucket")
    front.counts.clear()
    yield front
    front.plan = NO_FAULTS
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", front.url)
    monkeypatch.delenv("DDPM_S3_DEADLINE_S", raising=False)
    for uri, _ in storage.list_files("s3://bucket"):
        storage.delete(uri)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let objects of more than this many bytes travel in parts."""
    monkeypatch.setattr(s3, "PART_BYTES", 20_000)
    monkeypatch.setattr(moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", 1)
    return 20_000


def _once(kind: str, *methods_and_words: str, share: float = 0.5) -> Plan:
    """The first request whose "METHOD /path?query" holds all the words fails, no other."""
    left = [Fault(kind, share)]

    def plan(number: int, method: str, path: str) -> Fault | None:
        return left.pop() if left and all(word in f"{method} {path}" for word in methods_and_words) else None

    return plan


def _check_against(model: dict[str, bytes], draw: random.Random, uri: str) -> None:
    """One operation, drawn at random, on the store and on a dictionary that tells what it must give."""
    name, data = uri.removeprefix(BASE + "/"), draw.randbytes(draw.choice([0, 1, 1000, 50_000]))
    stands = model.get(name)
    match draw.choice(["write", "create", "swap", "delete", "list", "size", "read", "range", "stream", "print"]):
        case "write":
            storage.write_bytes(uri, data)
            model[name] = data
        case "create":
            assert storage.create_bytes(uri, data) == (stands is None)
            model.setdefault(name, data)
        case "swap":
            assert not storage.replace_bytes(uri, data, b"what never stood")
            assert storage.replace_bytes(uri, data, stands or b"") == (stands is not None)
            if stands is not None:
                model[name] = data
        case "delete":
            storage.delete(uri)
            model.pop(name, None)
        case "list":
            expected = sorted((f"{BASE}/{name}", len(content)) for name, content in model.items())
            assert storage.list_files(BASE) == expected
        case "size" if stands is not None:
            assert storage.size_bytes(uri) == len(stands)
        case "read" if stands is not None:
            assert storage.read_bytes(uri) == stands
        case "range" if stands is not None:
            offset = draw.randrange(len(stands) + 10)
            assert storage.read_range(uri, offset, 30_000) == stands[offset : offset + 30_000]
        case "stream" if stands is not None:
            with storage.open_read(uri) as file:
                file.seek(len(stands) // 2)
                assert file.read() == stands[len(stands) // 2 :]
        case "print" if stands is not None:
            assert storage.fingerprint(uri) == storage.fingerprint(uri)
        case _:
            assert not storage.exists(uri)
            with pytest.raises(FileNotFoundError):
                storage.read_bytes(uri)


def test_every_operation_gives_what_it_gives_without_faults(proxy: FaultProxy, small_parts: int) -> None:
    proxy.plan = seeded(0.4, seed=0)
    draw, model = random.Random(0), dict[str, bytes]()
    for _ in range(200):
        _check_against(model, draw, storage.join(BASE, draw.choice(["a", "b/c", "b/d", "e"])))
    assert min(proxy.counts[kind] for kind in KINDS) >= 5
    proxy.plan = NO_FAULTS
    assert {uri.removeprefix(BASE + "/"): storage.read_bytes(uri) for uri, _ in storage.list_files(BASE)} == model


def test_large_files_go_up_and_down_bit_exact(proxy: FaultProxy, small_parts: int, tmp_path: Path) -> None:
    proxy.plan = seeded(0.4, seed=1)
    for turn, size in enumerate([small_parts, small_parts + 1, 20 * small_parts, 20 * small_parts - 1]):
        data = random.Random(size).randbytes(size)
        (tmp_path / "up").write_bytes(data)
        storage.upload(tmp_path / "up", f"{BASE}/{turn}")
        storage.download(f"{BASE}/{turn}", tmp_path / "down")
        assert (tmp_path / "down").read_bytes() == data
        assert storage.read_bytes(f"{BASE}/{turn}") == data
    assert sum(proxy.counts[kind] for kind in KINDS) > 50
    assert [path.name for path in tmp_path.iterdir()].count("down") == 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "delay"])
@pytest.mark.parametrize("step", ["POST ?uploads", "PUT partNumber=2", "POST uploadId", "GET", "HEAD"])
def test_each_step_of_a_transfer_survives_each_fault(
    step: str, kind: str, proxy: FaultProxy, small_parts: int, tmp_path: Path
) -> None:
    data = random.Random(0).randbytes(2 * small_parts - 1)
    (tmp_path / "up").write_bytes(data)
    proxy.plan = _once(kind, *step.split())
    storage.upload(tmp_path / "up", f"{BASE}/file")
    with storage.open_read(f"{BASE}/file") as file:
        assert file.read() == data
    assert storage.read_bytes(f"{BASE}/file") == data
    assert proxy.counts[kind] == 1


@pytest.mark.parametrize("completed", [True, False])
def test_an_upload_that_is_gone_has_succeeded_only_if_its_object_is_there(
    completed: bool, proxy: FaultProxy, small_parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = s3_client.client()
    complete = client.complete_multipart_upload

    def second_try(**arguments: object) -> None:
        """Moto carries it out twice; other servers forget an upload that was completed."""
        if completed:
            complete(**arguments)
        raise ClientError({"Error": {"Code": "NoSuchUpload"}}, "CompleteMultipartUpload")

    monkeypatch.setattr(client, "complete_multipart_upload", second_try)
    (tmp_path / "up").write_bytes(b"x" * (2 * small_parts))
    with nullcontext() if completed else pytest.raises(storage.StorageError, match="NoSuchUpload"):
        storage.upload(tmp_path / "up", f"{BASE}/file")
    assert storage.exists(f"{BASE}/file") == completed


def test_an_upload_that_fails_leaves_no_parts(
    proxy: FaultProxy, small_parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDPM_S3_DEADLINE_S", "2")
    (tmp_path / "up").write_bytes(b"x" * (5 * small_parts))
    proxy.plan = lambda _, method, path: Fault("slow_down") if "partNumber=3" in path else None
    with pytest.raises(storage.StorageError, match=r"failing: cannot write at http.*SlowDown"):
        storage.upload(tmp_path / "up", f"{BASE}/failing")
    assert not storage.exists(f"{BASE}/failing")
    left = s3_client.client().list_multipart_uploads(Bucket="bucket").get("Uploads", [])
    assert [upload["Key"] for upload in left if "failing" in upload["Key"]] == []


def test_an_answer_without_its_body_is_no_empty_listing(proxy: FaultProxy) -> None:
    storage.write_bytes(f"{BASE}/file", b"x")
    proxy.plan = _once("cut_answer", "GET", "list-type", share=0.0)
    assert storage.list_files(BASE) == [(f"{BASE}/file", 1)]
    assert proxy.counts["cut_answer"] == 1


def _threads(num_threads: int, work: Callable[[int], object]) -> list[object]:
    barrier = threading.Barrier(num_threads)

    def run(number: int) -> object:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(num_threads) as threads:
        return list(threads.map(run, range(num_threads)))


def test_of_creators_of_the_same_bytes_exactly_one_wins(proxy: FaultProxy) -> None:
    proxy.plan = seeded(0.4, seed=1)
    for turn in range(5):
        won = _threads(8, lambda _, turn=turn: storage.create_bytes(f"{BASE}/marker-{turn}", b"done"))
        assert sorted(won) == [False] * 7 + [True]
    assert proxy.counts["lost_answer"] >= 5


def test_a_counter_counts_every_swap_that_was_told_to_have_won(proxy: FaultProxy) -> None:
    proxy.plan = seeded(0.4, seed=1)
    uri, num_threads, num_steps = f"{BASE}/counter", 4, 6
    storage.write_bytes(uri, b"0")

    def count(_: int) -> None:
        for _ in range(num_steps):
            while not storage.replace_bytes(uri, b"%d" % (int(stands := storage.read_bytes(uri)) + 1), stands):
                pass

    _threads(num_threads, count)
    assert storage.read_bytes(uri) == b"%d" % (num_threads * num_steps)
    assert proxy.counts["lost_answer"] >= 5


def test_a_swap_whose_answer_was_lost_has_won_though_others_swapped_since(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{BASE}/lease"
    assert storage.create_bytes(uri, b"free")
    proxy.plan = _once("lost_answer", "PUT")

    def others(_: float) -> None:
        """Between the first try, whose answer is lost, and the second."""
        assert storage.replace_bytes(uri, b"theirs", b"mine")
        assert storage.replace_bytes(uri, b"free again", b"theirs")

    with monkeypatch.context() as patch:
        patch.setattr(s3_client.time, "sleep", others)
        assert storage.replace_bytes(uri, b"mine", b"free")
    assert proxy.counts["lost_answer"] == 1
    assert storage.read_bytes(uri) == b"free again"
    assert not storage.replace_bytes(uri, b"mine", b"free")


def _fails_in_one_line(call: Callable[[], object], least_s: float, most_s: float) -> str:
    start = time.monotonic()
    with pytest.raises(storage.StorageError) as error:
        call()
    assert least_s <= time.monotonic() - start <= most_s
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_server_that_is_away_is_told_after_the_deadline(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_S3_DEADLINE_S", "2")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    message = _fails_in_one_line(lambda: storage.read_bytes(f"{BASE}/file"), 1.5, 15)
    pattern = (
        r"s3://bucket/some/prefix/file: cannot read at http://127\.0\.0\.1:9: tried (\d+) times in \d+\.\d s, at last: "
    )
    found = re.match(pattern + r"Could not connect.*\(DDPM_S3_DEADLINE_S is 2\)$", message)
    assert found
    assert int(found[1]) > 3


def test_a_server_that_never_answers_is_told(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_S3_DEADLINE_S", "0.5")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "timeout" in _fails_in_one_line(lambda: storage.read_bytes(f"{BASE}/file"), 0.4, 15)


def test_what_does_not_pass_is_told_at_once(proxy: FaultProxy) -> None:
    assert "there is no bucket" in _fails_in_one_line(lambda: storage.write_bytes("s3://nowhere-at-all/x", b""), 0, 15)
    assert sum(proxy.counts.values()) == 1


def test_a_deadline_that_is_no_time_is_refused(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("soon", "0", "inf", "nan"):
        monkeypatch.setenv("DDPM_S3_DEADLINE_S", text)
        with pytest.raises(ValueError, match=f"DDPM_S3_DEADLINE_S is {text}; expected a number of seconds above 0"):
            storage.exists(f"{BASE}/file")


def _shard_and_train(place: str, cache: Path, warned: list[str]) -> dict[str, str]:
    """24 steps of a small network on shards that lie beside its run; sha256 of the tensors that were saved every other step."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 4, 4)).astype(np.uint8)
    source = ArraySource(images=pixels, labels=None, class_names=(), stem="noise")
    data = DataConfig(image_size=4, channels=1, samples_per_shard=8)
    dataset, run = f"{place}/dataset", f"{place}/run"
    results = [write_shard(plan, source, data, dataset) for plan in plan_dataset(24, data)]
    commit_dataset(dataset, results, data, source)
    train = TrainConfig(steps=24, batch_size=8, warmup_steps=0, checkpoint_every=2, keep_checkpoints=99)
    unet = UNetConfig(base_channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_resolutions=())
    parts = {
        "schedule": ScheduleConfig(),
        "reverse": ReverseConfig(),
        "loss": LossConfig(),
        "unet": unet,
        "train": train,
    }
    worker = Worker(rank=0, num_workers=1, device=torch.device("cpu"))
    spec = read_spec(dataset, run, {name: to_json(part) for name, part in parts.items()}, worker.device)

    silent = Events(logged=lambda row: None, look=lambda state: None, warned=warned.append)
    with hold_run(run, say=warned.append) as hold:
        store = CheckpointStore(run, hold)

        def checkpointer(state: TrainState) -> Checkpointer:
            return Checkpointer(state, spec.train, spec.run, store, saved=lambda uri: None, warned=warned.append)

        run_worker(spec, worker, silent, cache, store, checkpointer)
    saved = [checkpoint_uri(run, step) for step in range(2, 25, 2)]
    assert CheckpointStore(run).uris() == saved
    assert read_checkpoint(saved[-1]).step == 24  # whose files are those that state.json names
    states = {uri[-8:]: json.loads(storage.read_bytes(f"{uri}/state.json")) for uri in saved}
    return {
        f"{step} {n}": sha for step, state in states.items() for n, sha in state["sha256"].items() if n != "history"
    }


def test_a_training_ends_in_the_same_weights_as_on_a_disk(proxy: FaultProxy, tmp_path: Path) -> None:
    warned: list[str] = []
    expected = _shard_and_train(str(tmp_path), tmp_path / "none", warned)
    proxy.plan = seeded(0.3, seed=2)
    found = _shard_and_train(BASE, tmp_path / "cache", warned)
    assert min(proxy.counts[kind] for kind in KINDS) >= 2
    assert list((tmp_path / "cache").iterdir())  # it was cold, and the shards came by way of it
    assert warned == []
    assert len(found) == 12 * 3
    assert found == expected
