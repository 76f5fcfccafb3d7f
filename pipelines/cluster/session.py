"""The Ray session: attach to a cluster, or start one on this machine."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

logger = logging.getLogger(__name__)

_ANSWER_S = 5.0
"""A cluster that is there takes a connection in less."""


@contextmanager
def session() -> Iterator[None]:
    """A Ray session for one door: attached where RAY_ADDRESS or a started cluster says so, else of its own."""
    import ray

    if ray.is_initialized():
        yield
        return
    # Ray says on every start that its tokens are on, as they should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    ray.init(
        address=_address(),
        log_to_driver=False,
        logging_level=logging.WARNING,
        include_dashboard=False if not os.environ.get("RAY_ADDRESS") else None,
        runtime_env={"env_vars": _worker_environment()},
    )
    before = signal.signal(signal.SIGTERM, _terminate)  # Ray's own ends the process where it stands
    try:
        yield
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


def _address() -> str | None:
    """None lets Ray look for a cluster, `local` does not: a started one that is gone, Ray would wait for during minutes."""
    from ray._private.services import find_bootstrap_address

    started = None if os.environ.get("RAY_ADDRESS") else find_bootstrap_address(None)
    if started is None:
        return None
    host, port = started.rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except OSError as error:
        logger.warning(
            "the Ray cluster started at %s is gone (%s): on this machine alone; `ray stop` forgets it", started, error
        )
        return "local"
    return None


class Terminated(KeyboardInterrupt):
    """SIGTERM came: of a scheduler, a machine that is taken away, or `ray job stop`."""


def _terminate(signum: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise Terminated


def _worker_environment() -> dict[str, str]:
    """What workers must see of the driver's environment, on whichever node they start."""
    names = ("AWS_", "DDPM_", "GLOO_SOCKET_IFNAME", "NCCL_")
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
