"""The Ray session: attach to a cluster, or start one on this machine."""

import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import platformdirs

from pipelines.progress import say

logger = logging.getLogger(__name__)

_ANSWER_S = 5.0
"""A cluster that is there takes a connection in less."""
_SLOW_S, _AGAIN_S = 10.0, 60.0
"""When a start that takes long is told, and then again."""
_LONGEST = 40
"""Characters of a folder below which a socket's whole path, session and all, has its 107."""
_ROOM = 64 << 20
_JOBS = (
    "run it as a job of that cluster: ray job submit --address {address} --working-dir . -- python pipelines/NAME.py"
)


@contextmanager
def session() -> Iterator[None]:
    """A Ray session for one door: attached where RAY_ADDRESS or a started cluster says so, else of its own.

    Raises:
        ValueError: in one line, if there is no cluster at the address, or none can be started here.
    """
    import ray  # not before: --help and every mistake told by the flags are quicker without it

    if ray.is_initialized():
        yield
        return
    # Ray says on every start that its tokens are on, as they should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    address = cluster_address()
    if address:
        _check_cluster(address)
    else:
        _check_folder()
    with nullcontext() if address else _own_token():
        try:
            with _told_if_slow(
                f"attaching to the Ray cluster at {address}" if address else "starting Ray on this machine"
            ):
                ray.init(
                    address=address or "local",
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                    include_dashboard=None if address else False,
                    runtime_env={"env_vars": worker_environment()},
                )
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            where = f"the Ray cluster at {address} cannot be used" if address else "Ray cannot start on this machine"
            raise ValueError(f"{where}: {_line(error)}") from error
        before = signal.signal(signal.SIGTERM, _terminate)  # Ray's own ends the process where it stands
        try:
            yield
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, before)


def cluster_address() -> str | None:
    """HOST:PORT of the cluster that RAY_ADDRESS names or that was started on this machine; None: start one.

    One that was asked for and does not answer is a mistake; one that was started here and is gone is passed by.

    Raises:
        ValueError: in one line, if RAY_ADDRESS is none of a cluster, or nothing answers there.
    """
    given = os.environ.get("RAY_ADDRESS") or "auto"
    if given == "local":
        return None
    if "://" in given:
        kind = "Ray Client's address" if given.startswith("ray://") else "the Jobs API's address"
        raise ValueError(
            f"RAY_ADDRESS is {given}, {kind}; expected HOST:PORT of the cluster's head, as 10.0.0.1:6379, on one of its "
            f"nodes; or {_JOBS.format(address=given.replace('ray://', 'http://'))}"
        )
    found = _started_here() if given == "auto" else given
    if found is None:
        if os.environ.get("RAY_ADDRESS"):
            raise ValueError("RAY_ADDRESS is auto, and no cluster was started on this machine: ray start, or unset it")
        return None
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except (OSError, ValueError) as error:
        if given != "auto":
            raise ValueError(
                f"RAY_ADDRESS is {given}, and no Ray cluster answers there ({error}); expected HOST:PORT of its head, or "
                "unset it to run on this machine alone"
            ) from None
        logger.warning(
            "the Ray cluster started at %s is gone (%s): on this machine alone; `ray stop` forgets it", found, error
        )
        return None
    return found


def _started_here() -> str | None:
    from ray._private.services import find_bootstrap_address

    found: str | None = find_bootstrap_address(None)
    return found


@contextmanager
def _own_token() -> Iterator[None]:
    """A token for a cluster of this process's own, in its environment only.

    Left alone, Ray would leave a token file in the home folder, which later clusters without it would stumble over.
    """
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    if "RAY_AUTH_MODE" in os.environ:
        yield
        return
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    _read_again(AuthenticationTokenLoader, Config)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        _read_again(AuthenticationTokenLoader, Config)


def _read_again(tokens: type, config: type) -> None:
    """Ray keeps what it read of the environment."""
    config.initialize("")  # type: ignore[attr-defined]
    tokens.instance().reset_cache()  # type: ignore[attr-defined]


@contextmanager
def _told_if_slow(what: str) -> Iterator[None]:
    done, began = threading.Event(), time.monotonic()

    def tell() -> None:
        wait_s = _SLOW_S
        while not done.wait(wait_s):
            say(f"{what}: {time.monotonic() - began:.0f} s so far")
            wait_s = _AGAIN_S

    threading.Thread(target=tell, name="told if slow", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _check_cluster(address: str) -> None:
    """Refuse what Ray itself would try for minutes: no Ray's port, another token, other versions."""
    import ray
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as Ray will: of a token file that is there
    told: Queue[Any] = Queue()
    threading.Thread(target=lambda: told.put(_metadata(address)), name="ask", daemon=True).start()
    try:
        with _muted():
            metadata = told.get(timeout=_ANSWER_S)
    except Empty:
        raise ValueError(
            f"what answers at {address} is no Ray cluster's head, or one that hangs; expected HOST:PORT as `ray start --head` "
            "prints it, with port 6379 by default"
        ) from None
    match metadata:
        case dict():
            _check_versions(address, metadata)
        case ray.exceptions.AuthenticationError():
            raise ValueError(
                f"the Ray cluster at {address} asks for a token, and this process has none or another one; set "
                "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's"
            )
        case error:
            raise ValueError(f"the Ray cluster at {address} cannot be used: {_line(error)}")


def _metadata(address: str) -> dict[str, str] | Exception:
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    try:
        told = GcsClient(address=address).internal_kv_get(CLUSTER_METADATA_KEY, b"cluster", timeout=_ANSWER_S)
        return dict(json.loads(told))
    except Exception as error:  # told by who asked
        return error


@contextmanager
def _muted() -> Iterator[None]:
    """Ray's own warnings of an error that we tell in our words go past Python's stderr."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_versions(address: str, cluster: dict[str, str]) -> None:
    import ray
    from ray._private.utils import check_version_info

    try:
        check_version_info(cluster, "this process")
    except RuntimeError:
        python = sys.version.split()[0]
        raise ValueError(
            f"the Ray cluster at {address} runs Ray {cluster['ray_version']} on Python {cluster['python_version']}, this process "
            f"Ray {ray.__version__} on Python {python} ({sys.executable}); expected the same: start the cluster's nodes from this "
            "environment, or run it as a job there"
        ) from None


def _check_folder() -> None:
    """Refuse a folder in which a Ray of our own cannot work: its sockets bear no long path, and without room it only hangs."""
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    if len(str(folder)) > _LONGEST:
        why = f"its path of {len(str(folder))} characters is longer than {_LONGEST}, too long for Ray's sockets"
    elif (free := shutil.disk_usage(folder).free) < _ROOM:
        why = f"it has {free / 1e6:.0f} MB free, and Ray's logs need {_ROOM / 1e6:.0f} MB"
    else:
        return
    raise ValueError(f"Ray cannot start in {folder}: {why}; set RAY_TMPDIR to another folder")


def _line(error: Exception) -> str:
    """Ray's page of an error, as the start of a line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class Terminated(KeyboardInterrupt):
    """SIGTERM came: of a scheduler, a machine that is taken away, or `ray job stop`."""


def _terminate(signum: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise Terminated


def worker_environment() -> dict[str, str]:
    """What workers must see of the driver's environment, on whichever node they start.

    No secret is among it: Ray writes it into its logs. Credentials are the nodes' own, of their role or of the environment in
    which they were started; so are they of a Ray that this process starts itself.
    """
    names = ("DDPM_", "GLOO_SOCKET_IFNAME", "NCCL_")
    passed = {key: value for key, value in os.environ.items() if key.startswith(names)}
    return {**passed, "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}


def shard_cache() -> Path:
    """Where this node keeps copies of shards from S3: up to 50 GB, or DDPM_SHARD_CACHE_BYTES where that is set on the node."""
    return platformdirs.user_cache_path("ddpm") / "shards"


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    import ray
    import torch

    return {"python": sys.version.split()[0], "torch": str(torch.__version__), "ray": str(ray.__version__)}
