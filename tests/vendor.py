"""A surface for tests, with shapes of its own, on a front as the server has it. As a script it serves that by Granian.

python tests/vendor.py SETTINGS
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import Any

from edgeprofile import settings
from edgeprofile._exchange import Exchange
from edgeprofile._front import Front
from edgeprofile._gate import Gate
from edgeprofile._limiter import SharedMap
from edgeprofile._lookup import Lookup
from edgeprofile._metrics import Recorder
from edgeprofile._surface import Surface
from edgeprofile.api import dialect, native
from edgeprofile.api.dialect import Answer
from edgeprofile.api.problems import problem
from edgeprofile.app import open_shared
from edgeprofile.errors import ApiError, Forbidden, NotReady, RecordDamaged, Unauthorized
from edgeprofile.loop import Loop
from edgeprofile.metrics import Counter, slots
from edgeprofile.metrics import Surface as Counted
from edgeprofile.server import granian
from edgeprofile.settings import Settings

REQUEST_BYTES_MAX = 1_000
SECRET = "a value of somebody's"
TYPE = (b"content-type", b"text/vendor")
# One list for every answer, as a handler may have it.
HEADERS = [TYPE]


class Vendor:
    """Answers `/vendor` and `/vendor/…` as the path's end says, to who sends `x-key`; `calls` tells what was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def check(self, request: Exchange) -> None:
        self.calls.append("check")
        if request.header(b"x-key") is None:
            raise Unauthorized()
        if request.path == b"/vendor/check-fails":
            raise ValueError(SECRET)
        if request.path == b"/vendor/check-times-out":
            raise TimeoutError(SECRET)

    def answer(self, request: Exchange, body: bytes) -> Answer:
        self.calls.append("answer")
        match request.path:
            case b"/vendor/forbidden":
                raise Forbidden()
            case b"/vendor/not-ready":
                raise NotReady()
            case b"/vendor/fails" | b"/vendor/all-fails":
                raise ValueError(SECRET)
            case b"/vendor/damaged":
                raise RecordDamaged("a record of snapshot s is damaged")
            case b"/vendor/created":
                return 202, [TYPE, (b"x-request-id", request.request_id)], b""
        if request.path in BROKEN:
            broken: Answer = BROKEN[request.path]
            return broken
        about = b" ".join((request.method.encode(), request.path, request.query, body))
        return 200, HEADERS, about

    def refuse(self, request: Exchange, error: ApiError) -> Answer:
        self.calls.append("refuse")
        if request.path == b"/vendor/all-fails":
            raise ValueError(SECRET)
        return error.status, [TYPE, *error.headers], f"vendor {error.code}".encode()


# What is no answer.
BROKEN: dict[bytes, Any] = {
    b"/vendor/none": None,
    b"/vendor/short": (200, []),
    b"/vendor/no-headers": (200, None, b""),
    b"/vendor/no-body": (200, [], None),
    b"/vendor/text": (200, [], "text"),
    b"/vendor/pairs": (200, ((b"a", b"b"),), b""),
    b"/vendor/status": ("200", [], b""),
}


async def beyond(scope: Any, receive: Any, send: Any) -> None:
    """The app behind the front."""
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"beyond"})


def front_of(shared: SharedMap, vendor: Vendor) -> Front:
    """A front with the vendor's surface. No key is good for the native lookups beside it."""
    gate = Gate(shared, verify=lambda _: False, limited=lambda *_: Forbidden())
    lookup = Lookup(
        gate,
        translate=problem,
        parse_fields=native.parse_fields,
        choose=native.choose,
        parse_many=native.parse_many,
        parse_events=native.parse_events,
        accepted=native.accepted,
        normalize=dialect.lowered,
        request_bytes_max=REQUEST_BYTES_MAX,
        response_bytes_max=1 << 20,
        cache_control=b"no-store",
    )
    return Front(
        beyond,
        lookup,
        [Surface(vendor, recorder(shared, Counted.INSIDER), paths=(b"/vendor",), prefixes=(b"/vendor/", b"/more/"))],
        shared,
        recorder=recorder(shared, Counted.NATIVE),
        damaged_counter=Counter.RECORDS_DAMAGED,
        deferred_counter=Counter.LOOKUPS_DEFERRED,
        request_bytes_max=REQUEST_BYTES_MAX,
    )


def recorder(shared: SharedMap, surface: Counted) -> Recorder:
    return Recorder(shared, *slots(surface))


def counted(shared: SharedMap, surface: Counted, status: int) -> int:
    return shared.counter(slots(surface).statuses[status])


def load(found: Settings) -> Front:
    """Runs in the worker."""
    front = front_of(open_shared(found), Vendor())
    loop = asyncio.get_event_loop()
    assert isinstance(loop, Loop)
    loop.front = front
    return front


if __name__ == "__main__":
    served = settings.load(Path(sys.argv[1]), {})
    granian(served).serve(target_loader=partial(load, served), wrap_loader=False)
