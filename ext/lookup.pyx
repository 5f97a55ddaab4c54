"""The native lookups: the outermost ASGI callable, which answers `/v1/profiles/…` itself.

Everything else goes on to the app behind it. A lookup takes no lock, makes no system call of its own, parses no
JSON and allocates one body. What goes wrong is raised as an ApiError and becomes an answer in one place, `refuse`.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

import asyncio
import logging
import os

from edgeprofile._body cimport BODY_SECONDS_MAX, Body, Reading, too_slow
from edgeprofile._events cimport Page, Wanted, read_page
from edgeprofile._exchange cimport Exchange, Route, begin, decoded, etag_of, log_fault, matches, split
from edgeprofile._gate cimport Gate, Grant
from edgeprofile._limiter cimport SharedMap
from edgeprofile._metrics cimport Recorder, clock_ns
from edgeprofile._msgpack cimport packed
from edgeprofile._record cimport RECORD_BYTES_MAX, Cut, View
from edgeprofile._store cimport Plan, Store

from edgeprofile.errors import (
    AnswerTooLarge, ApiError, BodyTooLarge, Forbidden, HeadersTooLarge, InternalError, MalformedBody,
    MethodNotAllowed, NotAcceptable, NotReady, ProfileNotFound, StoreError, UnknownNamespace, UrlTooLong,
)

cdef enum:
    URL_BYTES_MAX = 8192
    HEADERS_BYTES_MAX = 32768
    WANTED_MAX = 1024
    ACCEPTS_MAX = 256
    MANY_MAX = 100  # as api.native's
    MANY_BYTES = 15  # {"profiles":[]}
    NULL_BYTES = 4

# How an answer may be written, as `accepted` tells of an Accept header.
cdef enum:
    NOTHING = 0
    JSON = 1
    MSGPACK = 2

cdef tuple JSON_TYPE = (b"content-type", b"application/json")
cdef tuple MSGPACK_TYPE = (b"content-type", b"application/msgpack")
cdef tuple VARY = (b"vary", b"accept")  # for caches, should the setting of cache-control let them keep answers
cdef tuple NO_STORE = (b"cache-control", b"no-store")

log = logging.getLogger("edgeprofile")


@cython.final
cdef class Lookup:
    """The ASGI callable. `app` answers what is no lookup; see the stub for what the other arguments do."""

    cdef object app, translate, parse_fields, choose, parse_many, parse_events, accepted, normalize
    cdef Gate gate
    cdef SharedMap shared
    cdef Recorder recorder, recorder_many
    cdef uint32_t damaged_counter, deferred_counter
    cdef uint64_t request_bytes_max, response_bytes_max
    cdef tuple cache_control
    cdef dict accepts, wanted
    cdef set readings
    cdef uint64_t ids

    def __init__(self, app, Gate gate, SharedMap shared, *, Recorder recorder, Recorder recorder_many, translate,
                 parse_fields, choose, parse_many, parse_events, accepted, normalize, uint32_t damaged_counter,
                 uint32_t deferred_counter, uint64_t request_bytes_max, uint64_t response_bytes_max,
                 bytes cache_control):
        self.app = app
        self.gate = gate
        self.shared = shared
        self.recorder = recorder
        self.recorder_many = recorder_many
        self.translate = translate
        self.parse_fields = parse_fields
        self.choose = choose
        self.parse_many = parse_many
        self.parse_events = parse_events
        self.accepted = accepted
        self.normalize = normalize
        self.damaged_counter = damaged_counter
        self.deferred_counter = deferred_counter
        self.request_bytes_max = request_bytes_max
        self.response_bytes_max = response_bytes_max
        self.cache_control = (b"cache-control", cache_control)
        self.accepts = {}
        self.wanted = {}
        self.readings = set()
        self.ids = int.from_bytes(os.urandom(8), "little") | 1

    def __call__(self, scope, receive, send):
        cdef bytes path
        cdef list messages = []
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        path = scope["raw_path"]
        if self.look_up(path, scope, messages.append):
            self.shared.add_c(self.deferred_counter, 1)
            return deliver(messages, send)
        if is_many(path):
            self.shared.add_c(self.deferred_counter, 1)
            return self.look_up_many(scope, receive, send)
        return self.app(scope, receive, send)

    def answer_now(self, scope, receive, send):
        """Answers the request if it is a lookup, of many as soon as the body is there.

        Needs no event loop, and never raises: False leaves it to others.
        """
        cdef bytes path
        try:
            path = scope["raw_path"]
            if self.look_up(path, scope, send):
                return True
            if is_many(path):
                self.begin_many(begin(self.recorder_many, scope, send, &self.ids), receive)
                return True
        except Exception as error:
            log_fault(b"-", error)
        return False

    def expire_bodies(self):
        """Refuses the bodies that have taken too long. To be called now and then, from any thread."""
        cdef uint64_t now_ns = clock_ns()
        for reading in list(self.readings):
            if now_ns - (<Reading>reading).started_ns > <uint64_t>BODY_SECONDS_MAX * 1000000000:
                reading.expire()

    # --- one profile -----------------------------------------------------------------------------------------------

    cdef bint look_up(self, bytes path, scope, send) except -1:
        """False for what is no lookup, to which nothing was answered."""
        cdef const char* at = PyBytes_AS_STRING(path)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(path)
        cdef Route route
        if size + PyBytes_GET_SIZE(<bytes>scope["query_string"]) > URL_BYTES_MAX:
            route.value = NULL
        elif not split(at, at + size, &route):
            return False
        self.respond(begin(self.recorder, scope, send, &self.ids), scope["query_string"], &route)
        return True

    cdef int respond(self, Exchange exchange, bytes query, const Route* route) except -1:
        try:
            check_headers(exchange)
            if route.value == NULL:
                raise UrlTooLong(URL_BYTES_MAX)
            if exchange.method != "GET" and exchange.method != "HEAD":
                raise MethodNotAllowed("GET, HEAD")
            self.answer(exchange, query, route)
        except Exception as error:
            self.refuse(exchange, error)
        return 0

    cdef int answer(self, Exchange exchange, bytes query, const Route* route) except -1:
        cdef Grant grant = self.authorize(exchange)
        cdef Store store
        cdef bytes primary
        cdef int form
        self.gate.admit(grant, 1)
        self.check_body(exchange)
        form = self.form_of(exchange)
        store = grant.workspace.store
        if store is None:
            raise NotReady()
        primary = decoded(route.value, route.value_bytes)
        if route.namespace != NULL:
            primary = store.primary_of(decoded(route.namespace, route.namespace_bytes), primary, self.normalize)
        if route.is_events:
            return self.answer_events(exchange, store, primary, query, form)
        return self.answer_profile(exchange, store, primary, query, form)

    cdef int answer_profile(self, Exchange exchange, Store store, bytes primary, bytes query, int form) except -1:
        cdef Plan plan = store.plan_of(query, self.parse_fields)
        cdef View view
        cdef bytes etag
        store.open(&view, primary)
        etag = etag_of(view.check, plan.suffix, form == MSGPACK)
        if not self.is_known(exchange, etag):
            self.send(exchange, etag, self.body_of(&view, plan, store), form)
        return 0

    cdef int answer_events(self, Exchange exchange, Store store, bytes primary, bytes query, int form) except -1:
        cdef Page page = read_page(store, primary, self.wanted_of(query), self.response_bytes_max)
        cdef bytes etag = etag_of(page.check(), b"", form == MSGPACK)
        self.check_answer(page.size())
        if not self.is_known(exchange, etag):
            self.send(exchange, etag, page.body(), form)
        return 0

    cdef Wanted wanted_of(self, bytes query):
        """What a query string asks of events. Kept, unless it has a cursor, which comes once."""
        cdef Wanted wanted = self.wanted.get(query)
        if wanted is None:
            wanted = self.parse_events(query)
            if not wanted.has_cursor:
                if len(self.wanted) >= WANTED_MAX:
                    self.wanted = {}
                self.wanted[query] = wanted
        return wanted

    cdef bint is_known(self, Exchange exchange, bytes etag) except -1:
        """Whether the caller has this answer; then that is told."""
        if exchange.none_match is None or not matches(exchange.none_match, etag):
            return False
        exchange.reply(304, [(b"etag", etag), self.cache_control, VARY, (b"x-request-id", exchange.request_id)], b"")
        return True

    cdef int send(self, Exchange exchange, bytes etag, bytes body, int form) except -1:
        if form == MSGPACK:
            body = self.packed_of(body)
        exchange.reply(200, [JSON_TYPE if form == JSON else MSGPACK_TYPE, (b"etag", etag), self.cache_control,
                             VARY, (b"x-request-id", exchange.request_id)], body)
        return 0

    cdef bytes body_of(self, View* view, Plan plan, Store store):
        cdef Cut made
        cdef size_t size = store.measure(view, plan, &made)
        cdef bytes body
        self.check_answer(size)
        body = PyBytes_FromStringAndSize(NULL, size)
        store.write(view, plan, &made, PyBytes_AS_STRING(body))
        return body

    # --- many profiles ---------------------------------------------------------------------------------------------

    async def look_up_many(self, scope, receive, send):
        """`POST /v1/profiles/lookup` for an event loop."""
        cdef list messages = []
        cdef Exchange exchange = begin(self.recorder_many, scope, messages.append, &self.ids)
        cdef Body body = Body(exchange.body_bytes, self.request_bytes_max)
        try:
            self.check_many(exchange)
            async with asyncio.timeout(BODY_SECONDS_MAX):
                while not body.take(await receive()):
                    pass
            outcome = body.whole()
        except TimeoutError:
            outcome = too_slow()
        except Exception as error:
            outcome = error
        self.end_many(exchange, outcome)
        await deliver(messages, send)

    cdef int begin_many(self, Exchange exchange, receive) except -1:
        """The same without one."""
        cdef Reading reading
        try:
            self.check_many(exchange)
            reading = Reading(receive, exchange.body_bytes, self.request_bytes_max, self.finish_many, exchange)
            self.readings.add(reading)
            reading.go_on()
        except Exception as error:
            self.refuse(exchange, error)
        return 0

    def finish_many(self, Reading reading, outcome):
        """What a Reading calls with its body, or why there is none."""
        self.readings.discard(reading)
        self.end_many(reading.exchange, outcome)

    cdef int check_many(self, Exchange exchange) except -1:
        """What can be refused before the body is there."""
        check_headers(exchange)
        if exchange.method != "POST":
            raise MethodNotAllowed("POST")
        self.authorize(exchange)
        return self.check_body(exchange)

    cdef int end_many(self, Exchange exchange, outcome) except -1:
        try:
            if isinstance(outcome, Exception):
                raise outcome
            # Authorized again, because a key may be revoked while a body comes in.
            self.answer_many(exchange, self.authorize(exchange), outcome)
        except Exception as error:
            self.refuse(exchange, error)
        return 0

    cdef int answer_many(self, Exchange exchange, Grant grant, bytes content) except -1:
        cdef list asked
        cdef Store store
        cdef bytes body
        cdef int form
        asked, fields = self.parse_many(content)
        self.gate.admit(grant, max(1, len(asked)))
        form = self.form_of(exchange)
        store = grant.workspace.store
        if store is None:
            raise NotReady()
        body = self.collect(store, asked, store.plan_of_fields(fields, self.choose))
        if form == MSGPACK:
            body = self.packed_of(body)
        exchange.reply(200, [JSON_TYPE if form == JSON else MSGPACK_TYPE, NO_STORE,
                             (b"x-request-id", exchange.request_id)], body)
        return 0

    cdef bytes collect(self, Store store, list asked, Plan plan):
        """The answer to many, `{"profiles":[…]}` with `null` where there is none: found, measured, then written."""
        cdef View views[MANY_MAX]
        cdef bint found[MANY_MAX]
        cdef Cut made
        cdef int count = len(asked), i
        cdef size_t size = MANY_BYTES + max(0, count - 1)
        cdef bytes body
        cdef char* to
        if count > MANY_MAX:
            raise MalformedBody(f"At most {MANY_MAX} profiles can be asked for at once.")
        for i in range(count):
            found[i] = self.find(&views[i], store, asked[i], i)
            size += store.measure(&views[i], plan, &made) if found[i] else NULL_BYTES
        self.check_answer(size)
        body = PyBytes_FromStringAndSize(NULL, size)
        to = PyBytes_AS_STRING(body)
        memcpy(to, b'{"profiles":[', MANY_BYTES - 2)
        to += MANY_BYTES - 2
        for i in range(count):
            if i:
                to[0] = b","
                to += 1
            if found[i]:
                size = store.measure(&views[i], plan, &made)  # again, because a plan has room for one cut
                store.write(&views[i], plan, &made, to)
            else:
                size = NULL_BYTES
                memcpy(to, b"null", NULL_BYTES)
            to += size
        memcpy(to, b"]}", 2)
        return body

    cdef bint find(self, View* view, Store store, asked, int number) except -1:
        try:
            store.open(view, self.primary_asked(store, asked, number))
            return True
        except ProfileNotFound:
            return False

    cdef bytes primary_asked(self, Store store, asked, int number):
        """The primary id of one of many, each `{"id": …}` or `{"namespace": …, "value": …}`."""
        cdef str primary = asked.id, namespace = asked.namespace, value = asked.value
        if primary is not None and namespace is None and value is None:
            if primary:
                return primary.encode()
        elif primary is None and namespace is not None and value:
            try:
                return store.primary_of(namespace.encode(), value.encode(), self.normalize)
            except UnknownNamespace as error:
                raise UnknownNamespace(f"{error.detail} It stands at $.profiles[{number}].", members=error.members)
        raise MalformedBody(
            'Each profile is asked for by {"id": …} or by {"namespace": …, "value": …}, none of them empty: '
            f"$.profiles[{number}] is not."
        )

    # --- what both need --------------------------------------------------------------------------------------------

    cdef Grant authorize(self, Exchange exchange):
        """The grant of the key that was sent, if it may read."""
        cdef Grant grant = self.gate.authenticate(exchange)
        if not grant.reads:
            raise Forbidden("This key may not read profiles.")
        return grant

    cdef int check_body(self, Exchange exchange) except -1:
        if exchange.body_bytes > self.request_bytes_max:
            raise BodyTooLarge(self.request_bytes_max)
        return 0

    cdef int check_answer(self, uint64_t size) except -1:
        if size > self.response_bytes_max:
            raise AnswerTooLarge(size, self.response_bytes_max)
        return 0

    cdef int form_of(self, Exchange exchange) except -1:
        """How the answer is to be written: JSON or MSGPACK."""
        if exchange.accept is None:
            return JSON
        form = self.accepts.get(exchange.accept)
        if form is None:
            form = self.accepted(exchange.accept)
            if len(self.accepts) >= ACCEPTS_MAX:
                self.accepts = {}
            self.accepts[exchange.accept] = form
        if form == NOTHING:
            raise NotAcceptable(
                "A profile is answered as application/json or application/msgpack.",
                members={"valid": ["application/json", "application/msgpack"]},
            )
        return form

    cdef bytes packed_of(self, bytes body):
        cdef bytes answer
        if PyBytes_GET_SIZE(body) > RECORD_BYTES_MAX:
            raise AnswerTooLarge(PyBytes_GET_SIZE(body), RECORD_BYTES_MAX)
        answer = packed(PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
        self.check_answer(PyBytes_GET_SIZE(answer))
        return answer

    cdef int refuse(self, Exchange exchange, error) except -1:
        """Every error as an answer: an ApiError says how, the others are ours and are logged."""
        if isinstance(error, StoreError):
            self.shared.add_c(self.damaged_counter, 1)
            log.error("request %s: %s", exchange.request_id.decode(), error)
        elif not isinstance(error, ApiError):
            log_fault(exchange.request_id, error)
        if not isinstance(error, ApiError):
            error = InternalError()
        status, headers, body = self.translate(error, exchange.request_id)
        exchange.reply(status, headers, body)
        return 0


cdef inline bint is_many(bytes path) noexcept:
    return PyBytes_GET_SIZE(path) == 19 and memcmp(PyBytes_AS_STRING(path), b"/v1/profiles/lookup", 19) == 0


async def deliver(list messages, send):
    """Sends an answer as any ASGI server wants it; Granian's `send`, which acts when it is called, needs no more."""
    for message in messages:
        await send(message)


cdef int check_headers(Exchange exchange) except -1:
    if exchange.headers_bytes > HEADERS_BYTES_MAX:
        raise HeadersTooLarge(HEADERS_BYTES_MAX)
    return 0
