"""The native lookup: the outermost ASGI callable, which answers `GET /v1/profiles/…` itself.

Everything else goes on to the app behind it. A lookup takes no lock, makes no system call of its own, parses no
JSON and allocates one body. What goes wrong is raised as an ApiError and becomes an answer in one place, `refuse`.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

import logging
import os
import traceback

from edgeprofile._limiter cimport SharedMap
from edgeprofile._record cimport RECORD_GOOD, RECORD_UNKNOWN_FORMAT, Cut, View, cut, open_record, paste
from edgeprofile._store cimport Grant, Plan, Store, write_hex
from json_text cimport is_utf8

from edgeprofile.errors import (
    AnswerTooLarge, ApiError, BodyTooLarge, Forbidden, FormatUnsupported, HeadersTooLarge, InternalError,
    MalformedPath, MethodNotAllowed, NotAcceptable, NotReady, RecordDamaged, StoreError, Unauthorized, UrlTooLong,
)

cdef enum:
    URL_BYTES_MAX = 8192
    HEADERS_BYTES_MAX = 32768
    HEX_BYTES = 16
    PLANS_MAX = 1024
    ACCEPTS_MAX = 256
    REQUEST_ID_BYTES_MAX = 128
    PUBLIC_ID_AT = 8  # behind sk_live_
    PUBLIC_ID_BYTES = 12

cdef const char* PREFIX = b"/v1/profiles/"
cdef tuple JSON_TYPE = (b"content-type", b"application/json")

log = logging.getLogger("edgeprofile")


@cython.final
cdef class Done:
    """What a request that is answered already gives its server to await."""

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration


cdef Done DONE = Done()


# --- the request ---------------------------------------------------------------------------------------------------

cdef struct Asked:
    # The headers that matter, borrowed from the scope's list for as long as the request is answered.
    void* authorization
    void* none_match
    void* request_id
    void* accept
    int authorizations
    int accepts
    uint64_t body_bytes


cdef inline bint named(bytes name, const char* expected, Py_ssize_t size) noexcept:
    return PyBytes_GET_SIZE(name) == size and memcmp(PyBytes_AS_STRING(name), expected, size) == 0


cdef Py_ssize_t read_headers(list headers, Asked* asked) except -1:
    """One pass over the headers: compared by length first, because most are none of ours. Returns their bytes."""
    cdef tuple pair
    cdef bytes name
    cdef Py_ssize_t size = 0
    asked.authorization = asked.none_match = asked.request_id = asked.accept = NULL
    asked.authorizations = asked.accepts = 0
    asked.body_bytes = 0
    for pair in headers:
        name = <bytes>pair[0]
        size += PyBytes_GET_SIZE(name) + PyBytes_GET_SIZE(<bytes>pair[1])
        if named(name, b"authorization", 13):
            asked.authorization = <void*>pair[1]
            asked.authorizations += 1
        elif named(name, b"if-none-match", 13):
            asked.none_match = <void*>pair[1]
        elif named(name, b"x-request-id", 12):
            asked.request_id = <void*>pair[1]
        elif named(name, b"accept", 6):
            # On several lines they would have to be joined; who sends such gets what we have.
            asked.accepts += 1
            asked.accept = <void*>pair[1] if asked.accepts == 1 else NULL
        elif named(name, b"content-length", 14):
            asked.body_bytes = int(<bytes>pair[1])
    return size


cdef inline int digit(char c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    c |= 32
    return c - c'a' + 10 if c'a' <= c <= c'f' else -1


cdef bytes decoded(const char* text, Py_ssize_t size):
    """A path segment, percent-decoded once, as UTF-8. Raises MalformedPath."""
    cdef char buffer[URL_BYTES_MAX]
    cdef Py_ssize_t i = 0, n = 0
    cdef int high, low
    while i < size:
        if text[i] != b"%":
            buffer[n] = text[i]
            i += 1
        else:
            high = digit(text[i + 1]) if i + 2 < size else -1
            low = digit(text[i + 2]) if i + 2 < size else -1
            if high < 0 or low < 0:
                raise MalformedPath("The path has a percent sign that two hexadecimal digits do not follow.")
            buffer[n] = <char>(high << 4 | low)
            i += 3
        n += 1
    if n == 0:
        raise MalformedPath("The path has an empty id, namespace or value.")
    if not is_utf8(buffer, n):
        raise MalformedPath("The path is not UTF-8 once its escapes are decoded.")
    return buffer[:n]


@cython.final
cdef class Lookup:
    """The ASGI callable.

    `app` answers what is no lookup. `translate(ApiError, request_id)` makes (status, headers, body) of
    an error, `parse_fields(query, schema)` makes (runs, with_audiences) of a query, `verify(token)` tells whether
    a key's secret is right, `accepts_json(header)` reads an Accept, `normalize(bytes)` lower-cases a value that is
    not ASCII, `limited(grant.limits, bucket, wait_ns)` makes the error of a request over its limit.
    """

    cdef object app, translate, parse_fields, verify, accepts_json, normalize, limited
    cdef SharedMap shared
    cdef uint32_t damaged_counter
    cdef uint64_t request_bytes_max, response_bytes_max
    cdef tuple cache_control
    cdef dict grants, accepts
    cdef uint64_t ids

    def __init__(self, app, SharedMap shared, *, translate, parse_fields, verify, accepts_json, normalize, limited,
                 uint32_t damaged_counter, uint64_t request_bytes_max, uint64_t response_bytes_max,
                 bytes cache_control):
        self.app = app
        self.shared = shared
        self.translate = translate
        self.parse_fields = parse_fields
        self.verify = verify
        self.accepts_json = accepts_json
        self.normalize = normalize
        self.limited = limited
        self.damaged_counter = damaged_counter
        self.request_bytes_max = request_bytes_max
        self.response_bytes_max = response_bytes_max
        self.cache_control = (b"cache-control", cache_control)
        self.grants = {}
        self.accepts = {}
        self.ids = int.from_bytes(os.urandom(8), "little") | 1

    def set_grants(self, dict grants):
        """Swaps what keys may do: public id (bytes) → Grant. Requests see all of the old or all of the new."""
        self.grants = grants

    def __call__(self, scope, receive, send):
        cdef bytes path, query
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        path = scope["raw_path"]
        query = scope["query_string"]
        if PyBytes_GET_SIZE(path) + PyBytes_GET_SIZE(query) > URL_BYTES_MAX:
            self.respond(scope, send, NULL, NULL, NULL)
            return DONE
        if PyBytes_GET_SIZE(path) < 16 or memcmp(PyBytes_AS_STRING(path), PREFIX, 13) != 0:
            return self.app(scope, receive, send)
        return self.look_up(path, scope, receive, send)

    cdef object look_up(self, bytes path, scope, receive, send):
        """Splits the path; what is no lookup goes on to the app."""
        cdef const char* at = PyBytes_AS_STRING(path) + 13
        cdef const char* end = PyBytes_AS_STRING(path) + PyBytes_GET_SIZE(path)
        cdef const char* namespace = NULL
        cdef const char* value
        cdef const char* slash
        if end - at >= 3 and memcmp(at, b"id/", 3) == 0:
            value = at + 3
        elif end - at >= 11 and memcmp(at, b"identifier/", 11) == 0:
            namespace = at + 11
            slash = <const char*>memchr(namespace, b"/", end - namespace)
            if slash == NULL:
                return self.app(scope, receive, send)
            value = slash + 1
        else:
            return self.app(scope, receive, send)
        if end > value and memchr(value, b"/", end - value) != NULL:
            return self.app(scope, receive, send)
        self.respond(scope, send, namespace, value, end)
        return DONE

    cdef int respond(self, scope, send, const char* namespace, const char* value, const char* end) except -1:
        cdef Asked asked
        cdef str method = scope["method"]
        cdef bytes request_id = b""
        cdef Py_ssize_t headers_bytes
        try:
            headers_bytes = read_headers(scope["headers"], &asked)
            request_id = self.request_id(&asked)
            if headers_bytes > HEADERS_BYTES_MAX:
                raise HeadersTooLarge(HEADERS_BYTES_MAX)
            if value == NULL:
                raise UrlTooLong(URL_BYTES_MAX)
            if method != "GET" and method != "HEAD":
                raise MethodNotAllowed("GET, HEAD")
            self.answer(scope["query_string"], &asked, namespace, value, end, request_id, method == "HEAD", send)
        except ApiError as error:
            self.refuse(error, request_id, method == "HEAD", send)
        except StoreError as error:
            self.shared.add_c(self.damaged_counter, 1)
            log.error("request %s: %s", request_id.decode(), error)
            self.refuse(InternalError(), request_id, method == "HEAD", send)
        except Exception as error:
            log_fault(request_id, error)
            self.refuse(InternalError(), request_id, method == "HEAD", send)
        return 0

    cdef int answer(self, bytes query, Asked* asked, const char* namespace, const char* value, const char* end,
                    bytes request_id, bint is_head, send) except -1:
        cdef Grant grant
        cdef Store store
        cdef Plan plan
        cdef bytes primary, etag, body
        cdef View view
        cdef const unsigned char* record = NULL
        cdef uint32_t size = 0
        grant = self.authenticate(asked)
        if not grant.reads:
            raise Forbidden("This key may not read profiles.")
        self.admit(grant)
        if asked.body_bytes > self.request_bytes_max:
            raise BodyTooLarge(f"A request body may have {self.request_bytes_max} bytes.")
        if asked.accept != NULL:
            self.check_accept(<bytes>asked.accept)
        store = grant.workspace.store
        if store is None:
            raise NotReady()
        if namespace == NULL:
            primary = decoded(value, end - value)
        else:
            primary = store.primary_of(decoded(namespace, value - 1 - namespace), decoded(value, end - value),
                                       self.normalize)
        plan = self.plan_of(store, query)
        store.locate(primary, &record, &size)
        check_opened(open_record(&view, <const char*>record, size, PyBytes_AS_STRING(primary),
                                 PyBytes_GET_SIZE(primary)), store)
        etag = etag_of(view.check, plan)
        if asked.none_match != NULL and matches(<bytes>asked.none_match, etag):
            self.send(send, 304, [(b"etag", etag), self.cache_control, (b"x-request-id", request_id)], b"")
            return 0
        body = self.body_of(&view, plan, store)
        headers = [JSON_TYPE, (b"etag", etag), self.cache_control, (b"x-request-id", request_id)]
        if is_head:
            headers.append((b"content-length", b"%d" % PyBytes_GET_SIZE(body)))
            body = b""
        self.send(send, 200, headers, body)
        return 0

    cdef Grant authenticate(self, Asked* asked):
        """The grant of the key that was sent. All that can be wrong with one looks the same: Unauthorized."""
        cdef bytes header
        cdef const char* text
        cdef Py_ssize_t size, i
        cdef Grant grant
        cdef unsigned char different = 0
        if asked.authorizations != 1:
            raise Unauthorized()
        header = <bytes>asked.authorization
        text = PyBytes_AS_STRING(header)
        size = PyBytes_GET_SIZE(header) - 7
        if size < PUBLIC_ID_AT + PUBLIC_ID_BYTES or not is_bearer(text):
            raise Unauthorized()
        text += 7
        grant = self.grants.get(PyBytes_FromStringAndSize(text + PUBLIC_ID_AT, PUBLIC_ID_BYTES))
        if grant is None:
            # As much work as for a key that exists, so that the time taken does not tell which do.
            self.verify(PyBytes_FromStringAndSize(text, size))
            raise Unauthorized()
        if grant.token is None or PyBytes_GET_SIZE(grant.token) != size:
            different = 1
        else:
            for i in range(size):
                different |= text[i] ^ PyBytes_AS_STRING(grant.token)[i]
        if different:
            token = PyBytes_FromStringAndSize(text, size)
            if not self.verify(token):
                raise Unauthorized()
            grant.token = token
        if grant.expires_at and now_s() >= grant.expires_at:
            raise Unauthorized()
        return grant

    cdef int admit(self, Grant grant) except -1:
        """Takes a token from the key's buckets."""
        cdef int bucket = 0
        cdef int64_t wait_ns = self.shared.take_c(grant.cell, &grant.policy.c, 1, &bucket)
        if wait_ns:
            raise self.limited(grant.limits, bucket, wait_ns)
        return 0

    cdef int check_accept(self, bytes header) except -1:
        accepted = self.accepts.get(header)
        if accepted is None:
            accepted = self.accepts_json(header)
            if len(self.accepts) >= ACCEPTS_MAX:
                self.accepts.clear()
            self.accepts[header] = accepted
        if not accepted:
            raise NotAcceptable("A profile is answered as application/json.", members={"valid": ["application/json"]})
        return 0

    cdef Plan plan_of(self, Store store, bytes query):
        """The plan of a query string, from the snapshot's table of them. When that is full it starts anew."""
        cdef Plan plan = store.plans.get(query)
        if plan is None:
            parsed = self.parse_fields(query, store.reader.schema)
            plan = store.plans[b""] if parsed is None else Plan(parsed[0], parsed[1], False)
            if len(store.plans) >= PLANS_MAX:
                store.plans = {b"": store.plans[b""]}
            store.plans[query] = plan
        return plan

    cdef bytes body_of(self, View* view, Plan plan, Store store):
        cdef Cut made
        cdef bytes body
        if plan.is_whole:
            if view.body_bytes > self.response_bytes_max:
                raise AnswerTooLarge(view.body_bytes, self.response_bytes_max)
            return PyBytes_FromStringAndSize(view.body, view.body_bytes)
        if cut(view, plan.runs, plan.count, store.first_audience, plan.with_audiences, plan.slices, &made):
            raise RecordDamaged("a record's table points outside it")
        if made.bytes > self.response_bytes_max:
            raise AnswerTooLarge(made.bytes, self.response_bytes_max)
        body = PyBytes_FromStringAndSize(NULL, made.bytes)
        paste(view, plan.slices, &made, plan.with_audiences, PyBytes_AS_STRING(body))
        return body

    cdef bytes request_id(self, Asked* asked):
        """The caller's where it sent a sane one, else 16 digits of our own."""
        cdef char digits[HEX_BYTES]
        if asked.request_id != NULL and is_sane(<bytes>asked.request_id):
            return <bytes>asked.request_id
        self.ids ^= self.ids << 13
        self.ids ^= self.ids >> 7
        self.ids ^= self.ids << 17
        write_hex(digits, self.ids, HEX_BYTES)
        return digits[:HEX_BYTES]

    cdef int refuse(self, error, bytes request_id, bint is_head, send) except -1:
        status, headers, body = self.translate(error, request_id)
        if is_head:
            headers.append((b"content-length", b"%d" % len(body)))
            body = b""
        self.send(send, status, headers, body)
        return 0

    cdef int send(self, send, int status, list headers, bytes body) except -1:
        """Two messages. Granian acts on them when `send` is called; what it returns has nothing left to await."""
        send({"type": "http.response.start", "status": status, "headers": headers})
        send({"type": "http.response.body", "body": body})
        return 0


cdef inline int64_t now_s() noexcept:
    """Not time(), which may still be in the second before."""
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return now.tv_sec


cdef int check_opened(int code, Store store) except -1:
    if code == RECORD_UNKNOWN_FORMAT:
        raise FormatUnsupported(f"a record of snapshot {store.reader.name} has an unknown format")
    if code != RECORD_GOOD:
        raise RecordDamaged(f"a record of snapshot {store.reader.name} is damaged")
    return 0


def log_fault(bytes request_id, error):
    """Logs where a request failed, without the error's message: it may quote what the request asked for."""
    log.error("request %s failed: %s\n%s", request_id.decode(), type(error).__name__,
              "".join(traceback.format_tb(error.__traceback__)))


def request_id_of(header):
    """The request id that a caller sent, bytes or None, where it is sane; else None."""
    return header if header is not None and is_sane(header) else None


cdef inline bint is_bearer(const char* text) noexcept:
    """The scheme's name in any case, and one space."""
    cdef const char* bearer = b"bearer"
    cdef int i
    for i in range(6):
        if text[i] | 32 != bearer[i]:
            return False
    return text[6] == b" "


cdef bytes etag_of(uint64_t check, Plan plan):
    cdef Py_ssize_t more = PyBytes_GET_SIZE(plan.suffix)
    cdef bytes etag = PyBytes_FromStringAndSize(NULL, HEX_BYTES + 2 + more)
    cdef char* to = PyBytes_AS_STRING(etag)
    to[0] = to[HEX_BYTES + 1 + more] = b'"'
    write_hex(to + 1, check, HEX_BYTES)
    memcpy(to + 1 + HEX_BYTES, PyBytes_AS_STRING(plan.suffix), more)
    return etag


cdef bint matches(bytes none_match, bytes etag) except -1:
    """If-None-Match: a star, or a list in which our tag stands, weak or not. Quotes make the search exact."""
    return none_match == b"*" or etag in none_match


cdef bint is_sane(bytes request_id) noexcept:
    """Up to 128 printable ASCII characters without space, quote or backslash: safe in a header and in a log."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(request_id), i
    cdef unsigned char c
    if size == 0 or size > REQUEST_ID_BYTES_MAX:
        return False
    for i in range(size):
        c = PyBytes_AS_STRING(request_id)[i]
        if c <= 32 or c >= 127 or c == 34 or c == 92:
            return False
    return True
