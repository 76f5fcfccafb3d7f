"""An HTTP proxy that stands before a real S3 server and fails some requests on purpose, the same ones in every run.

    python tests/distributed/fault_proxy.py --listen 9001 --to http://127.0.0.1:9000 --rate 0.1 --seed 0

Requests go through unchanged, Host included, so that the signature stays valid. Whether request number n fails, how, and
after which share of its bytes is a function of (seed, n) alone. Standard library only.
"""

import argparse
import http.client
import itertools
import random
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

KINDS = ("error_500", "slow_down", "reset_request", "reset_answer", "cut_answer", "delay", "lost_answer")
"""500; 503 SlowDown; reset in the middle of the request's body; reset in the middle of the answer; an orderly end before
all of Content-Length was sent; a late answer; an answer lost after the server carried the request out."""
_ERRORS = {"error_500": (500, "InternalError"), "slow_down": (503, "SlowDown")}
_RESET = struct.pack("ii", 1, 0)


class Fault(NamedTuple):
    """What happens to one request."""

    kind: str
    share: float = 0.5
    """Of the bytes, how many still pass before the break; in [0, 1)."""


Plan = Callable[[int, str, str], Fault | None]
"""(number of the request, method, path with query) -> what befalls it."""


def seeded(rate: float, seed: int) -> Plan:
    """Faults of all kinds alike, in a share `rate` of the requests."""

    def plan(number: int, method: str, path: str) -> Fault | None:
        draw = random.Random(f"{seed} {number}")
        return Fault(draw.choice(KINDS), draw.random()) if draw.random() < rate else None

    return plan


class FaultProxy(ThreadingHTTPServer):
    """Use as a context manager: `with FaultProxy(server, seeded(0.1, 0)) as proxy: ... proxy.url, proxy.counts`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, to: str, plan: Plan, *, listen: int = 0, latency_s: float = 2.0, one_at_a_time: bool = False
    ) -> None:
        """one_at_a_time: for servers whose conditional puts do not hold under a race (moto's)."""
        super().__init__(("127.0.0.1", listen), _Relay)
        self.to, self.plan, self.latency_s = urlsplit(to), plan, latency_s
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.counts: Counter[str] = Counter()
        self.turn = threading.Lock() if one_at_a_time else nullcontext()
        self._numbers, self._lock = itertools.count(), threading.Lock()

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def draw(self, method: str, path: str) -> Fault | None:
        """The next request's fault, counted."""
        with self._lock:
            fault = self.plan(next(self._numbers), method, path)
            self.counts[fault.kind if fault else "passed"] += 1
            return fault

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self.close_request(request)  # no orderly end first: a reset must look like one


class _Relay(BaseHTTPRequestHandler):
    server: FaultProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def relay(self) -> None:
        body = self._read_body()
        kind, share = self.server.draw(self.command, self.path) or (None, 1.0)
        if kind == "delay":
            time.sleep(self.server.latency_s)
        if kind in _ERRORS:
            status, code = _ERRORS[kind]
            text = (
                b""
                if self.command == "HEAD"
                else f"<Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
            )
            self.wfile.write(f"HTTP/1.1 {status} {code}\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
            return
        with self._forwarded(body[: int(len(body) * share)] if kind == "reset_request" else body) as server:
            if kind == "reset_request":
                self._end(reset=True)
                return
            head, content = self._answer(server)
        if kind in ("reset_answer", "cut_answer", "lost_answer"):
            if content and kind != "lost_answer":
                self.wfile.write(head + content[: int(len(content) * share)])
            self._end(reset=kind == "reset_answer")
        else:
            self.wfile.write(head + content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay

    def _read_body(self) -> bytes:
        """The body as it came, chunks with their frames."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        frames: list[bytes] = []
        while not frames or frames[-1] != b"0\r\n":
            frames.append(self.rfile.readline())
            frames.append(self.rfile.read(int(frames[-1].split(b";")[0], 16) + 2))
        return b"".join(frames)

    @contextmanager
    def _forwarded(self, body: bytes) -> Iterator[http.client.HTTPConnection]:
        """A connection over which the request's head, and this much of its body, has gone."""
        to = self.server.to
        with ExitStack() as stack:
            stack.enter_context(self.server.turn)
            connection = http.client.HTTPConnection(to.hostname or "", to.port, timeout=300)
            stack.callback(connection.close)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):  # between two neighbours only, and never signed
                    connection.putheader(name, value)
            connection.endheaders()
            connection.send(body)
            yield connection

    def _answer(self, connection: http.client.HTTPConnection) -> tuple[bytes, bytes]:
        """(head, body) of the server's answer."""
        answer = connection.getresponse()
        content = answer.read()
        headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")]
        if self.command != "HEAD" and answer.status != 204 and answer.getheader("Content-Length") is None:
            headers.append(("Content-Length", str(len(content))))
        lines = [f"HTTP/1.1 {answer.status} {answer.reason}", *(f"{name}: {value}" for name, value in headers)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), content

    def _end(self, reset: bool = False) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, http.client.HTTPException):  # either side went away: to the other it looks the same
            self._end(reset=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--to", required=True, help="the server, http://host:port")
    parser.add_argument("--rate", type=float, default=0.1, help="share of the requests that fail")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency-s", type=float, default=2.0, help="how late a late answer is")
    args = parser.parse_args()
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before the threads start, which inherit it
    with FaultProxy(args.to, seeded(args.rate, args.seed), listen=args.listen, latency_s=args.latency_s) as proxy:
        print(f"{proxy.url} -> {args.to}; Ctrl-C ends it", flush=True)
        signal.sigwait(signals)
    print("  ".join(f"{kind} {proxy.counts[kind]}" for kind in ("passed", *KINDS)))


if __name__ == "__main__":
    main()
