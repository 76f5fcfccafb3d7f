"""The Ray session: attach to a cluster, or start one on this machine."""

import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import platformdirs

from ddpm_core.errors import FailedError, InputError
from pipelines.cluster.address import check_cluster_address, check_folder, cluster_address
from pipelines.cluster.failures import first_sentence
from pipelines.progress import say

_SLOW_S, _AGAIN_S = 10.0, 15.0
"""When it is told that a start takes long, and then again."""
_TRIES = 3
"""To start a Ray: where other work holds the processors its processes may be too late for each other."""
_MEMORY = {"hugetlb": 1, "arena_max": 1, "mmap_threshold": 2**30, "trim_threshold": 2**32}
"""Of glibc's malloc in workers: the memory of one step stays for the next, in huge pages. Else a step gives it back, and the next
waits until the kernel has emptied thousands of pages (docs/performance.md)."""


@contextmanager
def session() -> Iterator[None]:
    """A Ray session for one command: attached where RAY_ADDRESS or a started cluster says so, else of its own.

    Raises:
        InputError: in one line, if there is no cluster at the address.
        FailedError: likewise, if none comes up here.
    """
    import ray  # not before: --help and every mistake told by the flags are quicker without it

    if ray.is_initialized():
        yield
        return
    # Ray says on every start that its tokens are on, as they should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    ray._private.worker.print_to_stdstream = _told_by_ray  # else a page on stdout for each process that is lost
    address = cluster_address()
    if address:
        check_cluster_address(address)
    else:
        check_folder()
    with nullcontext() if address else _to_itself():
        try:
            _start(address)
        except BaseException:
            ray.shutdown()  # what had started by then
            raise
        before = signal.signal(signal.SIGTERM, _terminate)  # Ray's own ends the process where it stands
        logs = ray._private.worker._global_node.get_logs_dir_path()
        try:
            yield
        except Exception as error:
            error.add_note(f"Ray's logs lie in {logs}{' of each node' if address else ''}")
            raise
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, before)


def is_own() -> bool:
    """Whether this process started its Ray itself: it has one machine, and no more will come."""
    import ray

    return bool(ray._private.worker._global_node.is_head())


def _start(address: str | None) -> None:
    """Attach, or start a Ray here.

    Raises:
        InputError: in one line, if the cluster cannot be used.
        FailedError: likewise, if none comes up here: a later try may.
    """
    import ray

    if address:
        try:
            with _told(f"attaching to the Ray cluster at {address}"):
                _init(address, include_dashboard=None, runtime_env={"env_vars": worker_environment()})
        except Exception as error:  # of Ray, which raises all kinds, Exception itself among them
            raise InputError(f"the Ray cluster at {address} cannot be used: {first_sentence(error)}") from error
        return
    for tries in range(1, _TRIES + 1):
        before = _children()
        try:
            with _told("starting Ray on this machine"):
                # It has this process's environment, and with it processes that are started beforehand.
                _init("local", include_dashboard=False, runtime_env=None)
            return
        except Exception as error:
            ray.shutdown()
            _end(_children() - before)  # which Ray leaves to the end of this process
            why = first_sentence(error)
            if tries == _TRIES:
                said = f"Ray cannot start on this machine, tried {tries} times: {why}; it may be too busy now"
                raise FailedError(said) from error
            say(f"Ray did not come up ({why}), as on a busy machine: it is started again")


def _children() -> set[Any]:
    """The processes that this one started."""
    import psutil  # type: ignore[import-untyped]  # which Ray brings

    return set(psutil.Process().children())


def _end(processes: set[Any]) -> None:
    import psutil

    for process in processes:
        with suppress(psutil.NoSuchProcess):
            below = process.children(recursive=True)
            process.kill()
            for each in below:
                with suppress(psutil.NoSuchProcess):
                    each.kill()


def _init(address: str, **options: Any) -> None:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **options)


def _told_by_ray(batch: dict[str, Any], ignore_prefix: bool) -> None:
    for page in batch["lines"]:
        say(f"Ray: {first_sentence(page)}")


@contextmanager
def _to_itself() -> Iterator[None]:
    """A Ray of this process's own listens on loopback alone, and has a token, in the environment only, which its workers inherit.

    Left alone, Ray would listen on all networks, where clusters are not switched off as by default on macOS and Windows; and leave
    a token file in the home folder, which later clusters without it would stumble over.
    """
    from ray._private import ray_constants

    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that would wait for this machine to be taken away
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # of a few workers: else their end is seen up to two seconds late
        **_for_workers(),
    }
    before = {name: os.environ.get(name) for name in own}
    clusters, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    _set_environment(own)
    try:
        with _of_few_processes():
            yield
    finally:
        _set_environment(before)
        ray_constants.ENABLE_RAY_CLUSTER = clusters


@contextmanager
def _of_few_processes() -> Iterator[None]:
    """Without three that Ray starts one after the other, four seconds in all, and that have nothing to do here.

    They are the dashboard's, though it shall not be included; the autoscaler's, of a machine that stays alone; and the one that
    brings workers' output to the driver, which does not print it. Nor does Ray import here what its agent needs, half a second,
    only to see that it is there: we require ray[default].
    """
    from ray._private import node, utils

    class FewProcesses(node.Node):  # type: ignore[misc]
        def start_api_server(self, **_: Any) -> None:
            self._webui_url = ""

        def start_monitor(self) -> None:
            """Nothing to scale."""

        def start_log_monitor(self) -> None:
            """Nobody to tell."""

    before = node.Node, utils.get_dashboard_dependency_error
    node.Node, utils.get_dashboard_dependency_error = FewProcesses, lambda: None
    try:
        yield
    finally:
        node.Node, utils.get_dashboard_dependency_error = before


def _set_environment(environment: Mapping[str, str | None]) -> None:
    """Set the variables, and have Ray read its token again: it keeps what it read."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say what is done, and how long it takes if that is long."""
    done, began = threading.Event(), time.monotonic()
    say(what)

    def tell() -> None:
        wait_s = _SLOW_S
        while not done.wait(wait_s):
            say(f"{what}: {time.monotonic() - began:.0f} s so far")
            wait_s = _AGAIN_S

    threading.Thread(target=tell, name="told", daemon=True).start()
    try:
        yield
    finally:
        done.set()


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
    return {**passed, **_for_workers()}


def _for_workers() -> dict[str, str]:
    """What all workers are given; how memory is kept only where the driver's environment does not say."""
    memory = ":".join(f"glibc.malloc.{name}={value}" for name, value in _MEMORY.items())
    return {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0", "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", memory)}


def shard_cache() -> Path:
    """Where this node keeps copies of shards from S3: up to 50 GB, or DDPM_SHARD_CACHE_BYTES where that is set on the node."""
    return platformdirs.user_cache_path("ddpm") / "shards"


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    import ray
    import torch

    return {"python": sys.version.split()[0], "torch": str(torch.__version__), "ray": str(ray.__version__)}
