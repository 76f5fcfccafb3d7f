"""Which Ray cluster a command uses, and whether that can work.

Asked before Ray is: it would wait for minutes, or end in pages.
"""

import json
import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from ddpm_core.errors import InputError
from pipelines.cluster.failures import first_sentence

logger = logging.getLogger(__name__)

_ANSWER_S = 5.0
"""A cluster that is there answers in less."""
_LONGEST = 40
"""Characters of a folder below which a socket's whole path, session and all, has its 107."""
_ROOM = 64 << 20
_JOBS = (
    "run it as a job of that cluster: ray job submit --address {address} --working-dir . -- python pipelines/NAME.py"
)


def cluster_address() -> str | None:
    """HOST:PORT of the cluster that RAY_ADDRESS names or that was started on this machine; None: start one.

    One that was asked for and does not answer is a mistake; one that was started here and is gone is passed by.

    Raises:
        InputError: in one line, if RAY_ADDRESS is none of a cluster, or nothing answers there.
    """
    given = os.environ.get("RAY_ADDRESS") or "auto"
    if given == "local":
        return None
    if "://" in given:
        kind = "Ray Client's address" if given.startswith("ray://") else "the Jobs API's address"
        raise InputError(
            f"RAY_ADDRESS is {given}, {kind}; expected HOST:PORT of the cluster's head, as 10.0.0.1:6379, on one of its "
            f"nodes; or {_JOBS.format(address=given.replace('ray://', 'http://'))}"
        )
    found = _started_here() if given == "auto" else given
    if found is None:
        if os.environ.get("RAY_ADDRESS"):
            raise InputError("RAY_ADDRESS is auto, and no cluster was started on this machine: ray start, or unset it")
        return None
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except (OSError, ValueError) as error:
        if given != "auto":
            raise InputError(
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


def check_cluster_address(address: str) -> None:
    """Refuse a cluster that would not take this driver: no head, another token, other versions, no node on this machine.

    Raises:
        InputError: in one line.
    """
    import ray
    from ray._private.authentication.authentication_token_setup import (
        ensure_token_if_auth_enabled,
        maybe_enable_token_auth_if_token_available,
    )

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as Ray will: of a token file that is there
    told: Queue[Any] = Queue()
    threading.Thread(target=lambda: told.put(_ask(address)), name="ask", daemon=True).start()
    try:
        ensure_token_if_auth_enabled(create_token_if_missing=False)
        with _muted():
            answer = told.get(timeout=_ANSWER_S)
    except ray.exceptions.AuthenticationError as error:
        answer = error
    except Empty:
        raise InputError(
            f"what answers at {address} is no Ray cluster's head, or one that hangs; expected HOST:PORT as `ray start --head` "
            "prints it, with port 6379 by default"
        ) from None
    match answer:
        case versions, nodes:
            _check_versions(address, versions)
            _check_node_here(address, nodes)
        case ray.exceptions.AuthenticationError():
            raise InputError(
                f"the Ray cluster at {address} asks for a token, and this process has none or another one; set "
                "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's"
            )
        case error:
            raise InputError(f"the Ray cluster at {address} cannot be used: {first_sentence(error)}")


def _ask(address: str) -> tuple[dict[str, str], dict[str, str]] | Exception:
    """The cluster's versions, and the addresses of its nodes by their ids."""
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    try:
        head = GcsClient(address=address)
        versions = json.loads(head.internal_kv_get(CLUSTER_METADATA_KEY, b"cluster", timeout=_ANSWER_S))
        nodes = head.get_all_node_info(timeout=_ANSWER_S, state_filter=GcsNodeInfo.ALIVE)
        return versions, {node.hex(): row.node_manager_address for node, row in nodes.items()}
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


def _check_node_here(address: str, nodes: dict[str, str]) -> None:
    """A driver works with the node of its machine: Ray would look for it for a minute."""
    from ray._private.services import find_node_ids

    if nodes and not any(map(_is_own, nodes.values())) and not find_node_ids().intersection(nodes):
        raise InputError(
            f"this machine is no node of the Ray cluster at {address}; {_JOBS.format(address='http://HEAD:8265')}, or have this "
            f"machine join it: ray start --address={address}"
        )


def _is_own(address: str) -> bool:
    """Whether it is one of this machine's: only to those can a socket be bound."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _check_versions(address: str, cluster: dict[str, str]) -> None:
    import ray
    from ray._private.utils import check_version_info

    try:
        check_version_info(cluster, "this process")
    except RuntimeError:
        python = sys.version.split()[0]
        raise InputError(
            f"the Ray cluster at {address} runs Ray {cluster['ray_version']} on Python {cluster['python_version']}, this process "
            f"Ray {ray.__version__} on Python {python} ({sys.executable}); expected the same: start the cluster's nodes from this "
            "environment, or run it as a job there"
        ) from None


def check_folder() -> None:
    """Refuse a folder in which a Ray of our own cannot work: its sockets bear no long path, and without room it only hangs.

    Raises:
        InputError: in one line.
    """
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir())  # as Ray does
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())  # Ray makes what is missing
    if len(str(folder)) > _LONGEST:
        why = f"its path of {len(str(folder))} characters is longer than {_LONGEST}, too long for Ray's sockets"
    elif not os.access(there, os.W_OK):
        why = "it cannot be written"
    elif (free := shutil.disk_usage(there).free) < _ROOM:
        why = f"it has {free / 1e6:.0f} MB free, and Ray's logs need {_ROOM / 1e6:.0f} MB"
    else:
        return
    raise InputError(f"Ray cannot start in {folder}: {why}; set RAY_TMPDIR to another folder")
