"""The event loop of a worker: uvloop, but that lookups are answered before they ever come to it.

Granian brings each request from a thread of its own by `call_soon_threadsafe`. A lookup waits for nothing, so
answering it in that thread, there and then, gives the same answer without waking the loop's thread, which costs more
than the lookup. Other requests wait for their body at most, of which Granian brings the pieces in the same way and by
the same thread. Those that the app behind all this has to answer take the usual way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVarTuple, cast

import uvloop

from edgeprofile._body import Reading
from edgeprofile._front import Front

# What Granian 2.8 hands over with a request's coroutine. With another server, or another version that does it
# differently, no request is recognized, and all take the usual way: slower, and counted by LOOKUPS_DEFERRED.
WATCHER = "CallbackWatcherHTTP"
ANSWERED = cast(asyncio.Handle, None)  # which Granian does not look at
Ts = TypeVarTuple("Ts")


class Loop(uvloop.Loop):
    """`front` is set once the app is built."""

    front: Front | None = None

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        given: tuple[Any, ...] = args
        if type(callback) is Reading:
            callback(*args)
            return ANSWERED
        if len(given) == 2 and self.front is not None and type(given[1]).__name__ == WATCHER:
            coroutine, watcher = given
            if self.front.answer_now(watcher.scope, watcher.proto.receive, watcher.proto.send):
                coroutine.close()
                return ANSWERED
        return super().call_soon_threadsafe(callback, *args, context=context)


def make_loop() -> asyncio.AbstractEventLoop:
    """A loop for this process, as Granian's registry of loops wants it."""
    loop = Loop()
    asyncio.set_event_loop(loop)
    return loop
