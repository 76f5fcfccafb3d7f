"""MLflow's pages on a store: a server on loopback, for as long as the terminal wants it."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO

from ddpm_core.errors import InputError
from pipelines.progress import say
from pipelines.tracking.store import is_server, open_server, tracking_uri, with_driver

HOST = "127.0.0.1"
FIRST_PORT = 5000
_ENDS_S = 5.0
ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore:starlette.middleware.wsgi is deprecated",
}


def serve(store: str) -> int:
    """Show a store until interrupted.

    Args:
        store: its URI.

    Returns:
        The exit code.

    Raises:
        InputError: one line, if the store or the port cannot be had.
    """
    uri = tracking_uri(store)
    if is_server(uri):
        print(f"MLflow runs already: {uri} (MLFLOW_TRACKING_URI)")
        return 0
    port = free_port(os.environ.get("PORT"))
    say("ui: MLflow starts, which takes 10 s or more")
    open_server(store)  # creates a new database before the server's processes could do so at once
    # Its errors are shown; what it says of its own defaults and dependencies is not.
    server = subprocess.Popen(
        server_command(port), env=server_environment(uri), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    errors = threading.Thread(target=_pass_on, args=[server.stderr], daemon=True)
    errors.start()
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    try:
        if wait_until_up(server, port):
            print(f"MLflow: http://{HOST}:{port} on {store}; Ctrl-C stops it", flush=True)
        exit_code = server.wait()
        errors.join(_ENDS_S)  # why it ended is told to the last line
        return exit_code
    except KeyboardInterrupt:  # of a terminal, the server got it too
        try:
            server.wait(_ENDS_S)
        except subprocess.TimeoutExpired:  # of a supervisor it did not
            server.terminate()
            server.wait()
        return 0


def _pass_on(errors: IO[bytes]) -> None:
    """But for the advice to open the server to others by flags of MLflow's own."""
    for line in errors:
        if not line.startswith(b"[MLflow] Security middleware enabled"):
            sys.stderr.write(line.decode(errors="replace"))
            sys.stderr.flush()


def free_port(wanted: str | None) -> int:
    """The port that was asked for; else the first free one from 5000 on.

    Raises:
        InputError: if it is no port, or taken.
    """
    if wanted:
        if not wanted.isdecimal() or not 0 < int(wanted) < 65536:
            raise InputError(f"PORT is {wanted!r}; expected a number from 1 to 65535")
        if not _is_free(int(wanted)):
            raise InputError(f"PORT is {wanted}, which is taken; choose another, or unset it to get the next free one")
        return int(wanted)
    for port in range(FIRST_PORT, FIRST_PORT + 100):
        if _is_free(port):
            return port
    raise InputError(f"no free port from {FIRST_PORT} to {FIRST_PORT + 99}; choose one: PORT=6000 make ui")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def server_environment(uri: str) -> dict[str, str]:
    """Where its database is, which may have a password: anyone may read the arguments of a process."""
    return os.environ | ENVIRONMENT | {"MLFLOW_BACKEND_STORE_URI": with_driver(uri)}


def server_command(port: int) -> list[str]:
    """What starts a server."""
    # One worker, as one person looks; MLflow's default of four takes a gigabyte more.
    options = ["--host", HOST, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    return [sys.executable, "-m", "mlflow", "server", *options]


def wait_until_up(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait for the server to answer; False if it ends instead."""
    while server.poll() is None:
        connection = http.client.HTTPConnection(HOST, port, timeout=2)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return True
        except OSError:
            time.sleep(0.2)
        finally:
            connection.close()
    return False
