"""The native lookups: of one profile, of its events, and of many profiles.

A lookup takes no lock, makes no system call of its own, parses no JSON and allocates one body.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from edgeprofile._events cimport Page, Wanted, read_page
from edgeprofile._exchange cimport Exchange, Route, decoded, etag_of, matches
from edgeprofile._gate cimport Gate, Grant
from edgeprofile._msgpack cimport packed
from edgeprofile._record cimport RECORD_BYTES_MAX, Cut
from edgeprofile._store cimport Form, Found, Plan, Store

from edgeprofile.errors import (
    AnswerTooLarge, BodyTooLarge, Forbidden, MalformedBody, MethodNotAllowed, NotAcceptable, NotReady,
    ProfileNotFound, UnknownNamespace,
)

cdef enum:
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


@cython.final
cdef class Lookup:
    """Answers lookups; see the stub for what the arguments do."""

    def __init__(self, Gate gate not None, *, translate, parse_fields, choose, parse_many, parse_events, accepted,
                 normalize, uint64_t request_bytes_max, uint64_t response_bytes_max, bytes cache_control):
        self.gate = gate
        self.translate = translate
        self.parse_fields = parse_fields
        self.choose = choose
        self.parse_many = parse_many
        self.parse_events = parse_events
        self.accepted = accepted
        self.normalize = normalize
        self.request_bytes_max = request_bytes_max
        self.response_bytes_max = response_bytes_max
        self.cache_control = (b"cache-control", cache_control)
        self.accepts = {}
        self.wanted = {}

    # --- one profile -----------------------------------------------------------------------------------------------

    cdef int answer_one(self, Exchange exchange, const Route* route) except -1:
        """`GET /v1/profiles/…`: a profile, or a page of its events."""
        cdef Grant grant = self.authorize(exchange)
        cdef Store store
        cdef bytes primary
        cdef int form
        self.gate.admit(grant, grant.meter, 1)
        if exchange.body_bytes > self.request_bytes_max:
            raise BodyTooLarge(self.request_bytes_max)
        form = self.form_of(exchange)
        store = grant.workspace.store
        if store is None:
            raise NotReady()
        primary = decoded(route.value, route.value_bytes)
        if route.namespace != NULL:
            primary = store.primary_of(decoded(route.namespace, route.namespace_bytes), primary, self.normalize)
        if route.is_events:
            return self.answer_events(exchange, store, primary, form)
        return self.answer_profile(exchange, store, primary, form)

    cdef int answer_profile(self, Exchange exchange, Store store, bytes primary, int form) except -1:
        cdef Found found
        cdef Plan plan
        cdef bytes etag
        try:
            found = store.open(primary)
        except ProfileNotFound:
            store.plan_of(store.newest, exchange.query, self.parse_fields)  # what is asked wrongly is told first
            raise
        plan = store.plan_of(found.form, exchange.query, self.parse_fields)
        etag = etag_of(found.view.check, plan.suffix, form == MSGPACK)
        if not self.is_known(exchange, etag):
            self.send(exchange, etag, self.body_of(found, plan, store), form)
        return 0

    cdef int answer_events(self, Exchange exchange, Store store, bytes primary, int form) except -1:
        cdef Page page = read_page(store, primary, self.wanted_of(exchange.query), self.response_bytes_max)
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

    cdef bytes body_of(self, Found found, Plan plan, Store store):
        cdef Cut made
        cdef size_t size = store.measure(found, plan, &made)
        cdef bytes body
        self.check_answer(size)
        body = PyBytes_FromStringAndSize(NULL, size)
        store.write(found, plan, &made, PyBytes_AS_STRING(body))
        return body

    # --- many profiles ---------------------------------------------------------------------------------------------

    def check(self, Exchange exchange):
        """`POST /v1/profiles/lookup`, of which the body is to come."""
        if exchange.method != "POST":
            raise MethodNotAllowed("POST")
        self.authorize(exchange)

    def answer(self, Exchange exchange, bytes content):
        """The same, with its body."""
        # Authorized again, because a key may be revoked while a body comes in.
        cdef Grant grant = self.authorize(exchange)
        cdef list asked
        cdef Store store
        cdef bytes body
        cdef int form
        asked, fields = self.parse_many(content)
        self.gate.admit(grant, grant.meter, max(1, len(asked)))
        form = self.form_of(exchange)
        store = grant.workspace.store
        if store is None:
            raise NotReady()
        body = self.collect(store, asked, fields)
        if form == MSGPACK:
            body = self.packed_of(body)
        return 200, [JSON_TYPE if form == JSON else MSGPACK_TYPE, NO_STORE,
                     (b"x-request-id", exchange.request_id)], body

    cdef bytes collect(self, Store store, list asked, fields):
        """The answer to many, `{"profiles":[…]}` with `null` where there is none: found, measured, then written."""
        cdef list every = []
        cdef Found found
        cdef Form form = store.newest
        cdef Plan plan = store.plan_of_fields(form, fields, self.choose)
        cdef Cut made
        cdef int count = len(asked), i
        cdef size_t size = MANY_BYTES + max(0, count - 1)
        cdef bytes body
        cdef char* to
        if count > MANY_MAX:
            raise MalformedBody(f"At most {MANY_MAX} profiles can be asked for at once.")
        for i in range(count):
            found = self.find(store, asked[i], i)
            every.append(found)
            if found is not None and found.form is not form:
                form, plan = found.form, store.plan_of_fields(found.form, fields, self.choose)
            size += NULL_BYTES if found is None else store.measure(found, plan, &made)
        self.check_answer(size)
        body = PyBytes_FromStringAndSize(NULL, size)
        to = PyBytes_AS_STRING(body)
        memcpy(to, b'{"profiles":[', MANY_BYTES - 2)
        to += MANY_BYTES - 2
        for i in range(count):
            if i:
                to[0] = b","
                to += 1
            found = every[i]
            if found is not None:
                if found.form is not form:
                    form, plan = found.form, store.plan_of_fields(found.form, fields, self.choose)
                size = store.measure(found, plan, &made)  # again, because a plan has room for one cut
                store.write(found, plan, &made, to)
            else:
                size = NULL_BYTES
                memcpy(to, b"null", NULL_BYTES)
            to += size
        memcpy(to, b"]}", 2)
        return body

    cdef Found find(self, Store store, asked, int number):
        try:
            return store.open(self.primary_asked(store, asked, number))
        except ProfileNotFound:
            return None

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

    def refuse(self, Exchange exchange, error):
        """An ApiError as a problem."""
        return self.translate(error, exchange.request_id)
