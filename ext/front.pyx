"""The outermost ASGI callable. Requests that wait for nothing but their body are answered here; the app has the rest.

A lookup of one profile is known by its path and goes straight to the compiled code for it; all else that is
answered without an event loop belongs to a `Surface`. What goes wrong is raised, and becomes an answer in one place.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t

import asyncio
import logging
import os

from edgeprofile._body cimport BODY_SECONDS_MAX, Body, Reading, too_slow
from edgeprofile._exchange cimport Exchange, Route, begin, log_fault, split
from edgeprofile._limiter cimport SharedMap
from edgeprofile._lookup cimport Lookup
from edgeprofile._metrics cimport Recorder, clock_ns
from edgeprofile._surface cimport Surface

from edgeprofile.errors import (
    ApiError, BodyTooLarge, HeadersTooLarge, InternalError, MethodNotAllowed, StoreError, UrlTooLong,
)

cdef enum:
    URL_BYTES_MAX = 8192
    HEADERS_BYTES_MAX = 32768
    HEADERS_MAX = 100  # as Granian has it for HTTP/1

log = logging.getLogger("edgeprofile")


@cython.final
cdef class Front:
    """The ASGI callable; see the stub."""

    cdef object app
    cdef Lookup lookup
    cdef list surfaces
    cdef SharedMap shared
    cdef Recorder recorder
    cdef uint32_t damaged_counter, deferred_counter
    cdef uint64_t request_bytes_max
    cdef set readings
    cdef uint64_t ids

    def __init__(self, app, Lookup lookup not None, list surfaces not None, SharedMap shared not None, *,
                 Recorder recorder not None, uint32_t damaged_counter, uint32_t deferred_counter,
                 uint64_t request_bytes_max):
        self.app = app
        self.lookup = lookup
        self.surfaces = surfaces
        self.shared = shared
        self.recorder = recorder
        self.damaged_counter = damaged_counter
        self.deferred_counter = deferred_counter
        self.request_bytes_max = request_bytes_max
        self.readings = set()
        self.ids = int.from_bytes(os.urandom(8), "little") | 1

    def __call__(self, scope, receive, send):
        cdef Surface surface
        cdef list messages = []
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        if self.look_up(scope, messages.append):
            self.shared.add_c(self.deferred_counter, 1)
            return deliver(messages, send)
        surface = self.surface_of(scope["raw_path"])
        if surface is not None:
            self.shared.add_c(self.deferred_counter, 1)
            return self.serve(surface, scope, receive, send)
        return self.app(scope, receive, send)

    def answer_now(self, scope, receive, send):
        """Answers the request, where it has a body as soon as that is there, unless it is the app's.

        Needs no event loop, and never raises: False leaves it to others.
        """
        cdef Surface surface
        try:
            if self.look_up(scope, send):
                return True
            surface = self.surface_of(scope["raw_path"])
            if surface is not None:
                self.start(surface, begin(surface.recorder, scope, send, &self.ids), receive)
                return True
        except Exception as error:
            log_fault(b"-", error)
        return False

    def expire_bodies(self):
        """Refuses the bodies that have taken too long. To be called now and then, from any thread."""
        cdef uint64_t now_ns = clock_ns()
        for reading in list(self.readings):
            # No difference of the two: that would wrap around for a body that has begun since.
            if (<Reading>reading).started_ns + <uint64_t>BODY_SECONDS_MAX * 1000000000 < now_ns:
                reading.expire()

    cdef int refuse(self, Exchange exchange, handler, error) except -1:
        """Every error as an answer: an ApiError says how, the others are ours and are logged."""
        if isinstance(error, StoreError):
            self.shared.add_c(self.damaged_counter, 1)
            name = exchange.request_id.decode()
            log.error("request %s: %s", name, error, extra={"request_id": name})
        elif not isinstance(error, ApiError):
            log_fault(exchange.request_id, error)
        if not isinstance(error, ApiError):
            error = InternalError()
        try:
            status, headers, body = checked(handler.refuse(exchange, error))
        except Exception as fault:
            # Nobody else would answer, or count, the request.
            log_fault(exchange.request_id, fault)
            status, headers, body = 500, [], b""
        exchange.reply(status, headers, body)
        return 0

    # --- one profile -----------------------------------------------------------------------------------------------

    cdef bint look_up(self, scope, send) except -1:
        """False for what is no lookup of one profile, to which nothing was answered."""
        cdef bytes path = scope["raw_path"]
        cdef const char* at = PyBytes_AS_STRING(path)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(path)
        cdef Exchange exchange
        cdef Route route
        if size + PyBytes_GET_SIZE(<bytes>scope["query_string"]) > URL_BYTES_MAX:
            if self.surface_of(path) is not None:
                return False
        elif not split(at, at + size, &route) or (is_erasable(&route) and scope["method"] == "DELETE"):
            return False
        exchange = begin(self.recorder, scope, send, &self.ids)
        try:
            check_sizes(exchange)
            if exchange.method != "GET" and exchange.method != "HEAD":
                raise MethodNotAllowed("DELETE, GET, HEAD" if is_erasable(&route) else "GET, HEAD")
            self.lookup.answer_one(exchange, &route)
        except Exception as error:
            self.refuse(exchange, self.lookup, error)
        return True

    # --- surfaces --------------------------------------------------------------------------------------------------

    cdef Surface surface_of(self, bytes path):
        cdef Surface surface
        for surface in self.surfaces:
            if surface.claims(path):
                return surface
        return None

    async def serve(self, Surface surface, scope, receive, send):
        """Answers a surface's request in an event loop."""
        cdef list messages = []
        cdef Exchange exchange = begin(surface.recorder, scope, messages.append, &self.ids)
        exchange.surface = surface
        try:
            self.check(exchange)
            outcome = b"" if is_without_body(exchange) else await whole_body(
                receive, Body(exchange.body_bytes, self.request_bytes_max)
            )
        except Exception as error:
            outcome = error
        self.end(exchange, outcome)
        await deliver(messages, send)

    cdef int start(self, Surface surface, Exchange exchange, receive) except -1:
        """The same without one."""
        cdef Reading reading
        exchange.surface = surface
        try:
            self.check(exchange)
        except Exception as error:
            return self.end(exchange, error)
        if is_without_body(exchange):
            return self.end(exchange, b"")
        reading = Reading(receive, exchange.body_bytes, self.request_bytes_max, self.finish, exchange)
        self.readings.add(reading)
        reading.go_on()
        return 0

    def finish(self, Reading reading, outcome):
        """What a Reading calls with its body, or why there is none."""
        self.readings.discard(reading)
        try:
            self.end(reading.exchange, outcome)
        except Exception as error:  # which nobody would see
            log_fault(reading.exchange.request_id, error)

    cdef int check(self, Exchange exchange) except -1:
        """What can be refused before the body is there."""
        check_sizes(exchange)
        (<Surface>exchange.surface).handler.check(exchange)
        if exchange.body_bytes > self.request_bytes_max:
            raise BodyTooLarge(self.request_bytes_max)
        return 0

    cdef int end(self, Exchange exchange, outcome) except -1:
        handler = (<Surface>exchange.surface).handler
        try:
            if isinstance(outcome, Exception):
                raise outcome
            status, headers, body = checked(handler.answer(exchange, outcome))
        except Exception as error:
            return self.refuse(exchange, handler, error)
        exchange.reply(status, headers, body)
        return 0


async def whole_body(receive, Body body):
    """Reads a body in an event loop, from what `receive` brings."""
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            while not body.take(await receive()):
                pass
    except TimeoutError:
        raise too_slow()
    return body.whole()


async def deliver(list messages, send):
    """Sends an answer as any ASGI server wants it; Granian's `send`, which acts when it is called, needs no more."""
    for message in messages:
        await send(message)


cdef inline bint is_erasable(const Route* route) noexcept:
    """Whether it is a profile itself, by its id: to erase it is left to the app."""
    return route.namespace == NULL and not route.is_events


cdef inline bint is_without_body(Exchange exchange):
    return exchange.method == "GET" or exchange.method == "HEAD"


cdef int check_sizes(Exchange exchange) except -1:
    if exchange.headers_bytes > HEADERS_BYTES_MAX or len(exchange.sent_headers) > HEADERS_MAX:
        raise HeadersTooLarge(HEADERS_BYTES_MAX, HEADERS_MAX)
    if PyBytes_GET_SIZE(exchange.path) + PyBytes_GET_SIZE(exchange.query) > URL_BYTES_MAX:
        raise UrlTooLong(URL_BYTES_MAX)
    return 0


cdef inline tuple checked(answer):
    """What a handler gave, if it is an answer: what is none must fail where that can still be answered."""
    cdef int status
    cdef list headers
    cdef bytes body
    status, headers, body = answer
    if headers is None or body is None:
        raise TypeError("an answer has headers and a body")
    return status, headers, body
