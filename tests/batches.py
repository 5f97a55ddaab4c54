"""Calls of the Batch dialect, and a stand-in for the loader behind them, which may be slow, or break.

The stand-in is only for what no loader of ours would do when it is asked to; the rest is tested with the real one.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from service import DECLARED, Header, request

from edgeprofile import wire

PROJECT = "project_0664hxvwffvbpn278gxdyhsadddqgna6"
BATCHED = f'{DECLARED}[workspaces.shop.batch]\nproject = "{PROJECT}"\n'
UPDATE, MASS_UPDATE = "/2.4/profiles/update", "/2.4/profiles/mass-update"

# What is sent for a request: a message, bytes as they are, or None for an end without an answer.
Said = dict[str, Any] | bytes | None


def updates(count: int) -> list[dict[str, Any]]:
    """So many good updates, each of another profile."""
    return [{"identifiers": {"custom_id": f"made-{n}"}, "attributes": {"number": n}} for n in range(count)]


def call(
    path: str,
    key: str | None,
    body: Any = None,
    *headers: Header,
    project: str | None = PROJECT,
    method: str = "POST",
    content_type: str | None = "application/json",
    length: int | None = None,
) -> bytes:
    """A request as bytes, without what is None. `body` is bytes or what becomes JSON, `length` what is announced."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = [] if project is None else [("X-Batch-Project", project)]
    sent += [] if content_type is None else [("Content-Type", content_type)]
    if not any(name == "Transfer-Encoding" for name, _ in headers):
        sent += [("Content-Length", str(len(content) if length is None else length))]
    return request(path, key, *sent, *headers, method=method, body=content)


class StandIn(threading.Thread):
    """Serves `home`'s socket for updates; `answer` makes the answer to each request, and `asked` has them all."""

    def __init__(self, home: Path, answer: Callable[[dict[str, Any]], Said]) -> None:
        super().__init__(daemon=True)
        home.mkdir(parents=True, exist_ok=True)
        self._answer = answer
        self._path = home / wire.UPDATES
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        with wire.address_of(self._path) as address:
            self._listener.bind(address)
        self._listener.listen()
        self.asked: list[dict[str, Any]] = []

    def __enter__(self) -> StandIn:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
        # Closing alone would leave the thread in its accept.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as file:
                if size := file.read(wire.LENGTH.size):
                    request = msgspec.msgpack.decode(file.read(*wire.LENGTH.unpack(size)))
                    self.asked.append(request)
                    answer = self._answer(request)
                    if answer is None:
                        continue
                    with contextlib.suppress(OSError):  # who asked may have gone
                        connection.sendall(answer if isinstance(answer, bytes) else wire.frame(answer))


def takes_all(_: dict[str, Any]) -> Said:
    """What a loader says that has written everything."""
    return {"ok": True, "refused": []}
