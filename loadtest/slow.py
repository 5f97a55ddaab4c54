"""Clients that take their time, all of them in one thread: for a service that is to serve others meanwhile."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import NamedTuple

from harness import HOST

TICK_S = 1.0
RECEIVE_BUFFER_BYTES = 2_048
PIPELINED = 200
BODY_BYTES = 1_000


class Kind(NamedTuple):
    """What such a client sends at first, what in each tick from then on, and how many bytes it takes in a tick."""

    first: bytes
    then: bytes
    reads: int


def kinds(path: str, header: str) -> dict[str, Kind]:
    """All there are. They ask for `path` with this header, which has a key."""
    asked = f"GET {path} HTTP/1.1\r\nHost: slow\r\n{header}\r\n"
    body = f"POST /v1/profiles/lookup HTTP/1.1\r\nHost: slow\r\n{header}\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    return {
        "headers": Kind(asked.encode(), b"X: y\r\n", 1_024),
        "body": Kind(body.encode() + b'{"profiles":[', b" ", 1_024),
        "read": Kind(f"{asked}\r\n".encode() * PIPELINED, b"", 16),
        "idle": Kind(f"{asked}\r\n".encode(), b"", 65_536),
    }


class _Client:
    """A connection of a kind, which is made anew whenever the server ends it."""

    def __init__(self, port: int, kind: Kind) -> None:
        self._port, self._kind = port, kind
        self._socket: socket.socket | None = None
        self.opened = 0

    def tick(self) -> None:
        if self._socket is None:
            self._socket = self._dial()
            self.opened += 1
            return
        try:
            with contextlib.suppress(BlockingIOError):
                self._socket.send(self._kind.then)
            with contextlib.suppress(BlockingIOError):
                if not self._socket.recv(self._kind.reads):
                    self.close()
        except OSError:
            self.close()

    def _dial(self) -> socket.socket | None:
        made = socket.socket()
        if self._kind.reads < RECEIVE_BUFFER_BYTES:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        try:
            made.connect((HOST, self._port))
            made.setblocking(False)
            made.send(self._kind.first)
        except OSError:
            made.close()
            return None
        return made

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @property
    def is_open(self) -> bool:
        return self._socket is not None


class SlowClients(threading.Thread):
    """Keeps so many of each kind connected from its `with` to the end of that."""

    def __init__(self, port: int, wanted: dict[Kind, int]) -> None:
        super().__init__(daemon=True)
        self._clients = [_Client(port, kind) for kind, count in wanted.items() for _ in range(count)]
        self._stopping = threading.Event()

    def run(self) -> None:
        """Gives each client its turn once in a tick, spread over that."""
        while not self._stopping.is_set():
            began = time.monotonic()
            for number, client in enumerate(self._clients):
                client.tick()
                ahead_s = began + TICK_S * number / len(self._clients) - time.monotonic()
                if ahead_s > 0.01 and self._stopping.wait(ahead_s):
                    return
            self._stopping.wait(max(0.0, began + TICK_S - time.monotonic()))

    @property
    def connected(self) -> int:
        """How many are connected now."""
        return sum(client.is_open for client in self._clients)

    @property
    def opened(self) -> int:
        """How many connections there were in all."""
        return sum(client.opened for client in self._clients)

    def __enter__(self) -> SlowClients:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()
        for client in self._clients:
            client.close()
