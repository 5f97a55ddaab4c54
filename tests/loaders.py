"""A stand-in for a workspace's loader as its callers meet it: a process behind a socket, which may be slow, or break.

Only for what no loader of ours would do when it is asked to; the rest is tested with the real one.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgeprofile import wire

# What is sent for a request: a message, bytes as they are, or None for an end without an answer.
Answer = dict[str, Any] | bytes | None


class StandIn(threading.Thread):
    """Serves `home`'s socket for updates; `answer` makes the answer to each request, and `asked` has them all."""

    def __init__(self, home: Path, answer: Callable[[dict[str, Any]], Answer]) -> None:
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
                    if answer is not None:
                        connection.sendall(answer if isinstance(answer, bytes) else wire.frame(answer))


def takes_all(_: dict[str, Any]) -> Answer:
    """What a loader says that has written everything."""
    return {"ok": True, "refused": []}
