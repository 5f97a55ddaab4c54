"""One request and its answer: what is read of a request in one pass, and the one place that answers and counts it."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memchr, memcmp, memcpy

from edgeprofile._metrics cimport Recorder, clock_ns
from edgeprofile._store cimport write_hex
from json_text cimport is_utf8

import logging
import traceback

from edgeprofile.errors import MalformedPath

cdef enum:
    HEX_BYTES = 16
    PATH_BYTES_MAX = 8192
    REQUEST_ID_BYTES_MAX = 128

log = logging.getLogger("edgeprofile")
# Whether this process is about to end, so that each answer is the last of its connection.
cdef bint is_leaving = False


def leave():
    """From now on answers say that their connection ends with them; see the stub."""
    global is_leaving
    is_leaving = True


cpdef bint ends_connection(scope) except -1:
    """HTTP/2 has no such header: a connection of it is told so by the server itself, once that ends."""
    return is_leaving and scope["http_version"] != "2"


@cython.final
@cython.freelist(64)
@cython.auto_pickle(False)
cdef class Exchange:
    """A request of which the headers that matter are known, and to which nothing was answered yet."""

    def header(self, bytes name not None):
        """The value of a header by its name in lower case; None where it was not sent, or on several lines."""
        cdef tuple pair
        value = None
        for pair in self.sent_headers:
            if pair[0] == name:
                if value is not None:
                    return None
                value = pair[1]
        return value

    cdef bytes read_headers(self):
        """One pass over the headers: compared by length first, because most are none of ours.

        Returns the request id that was sent, if one was.
        """
        cdef tuple pair
        cdef bytes name, value, request_id = None
        cdef Py_ssize_t size
        cdef int accepts = 0
        for pair in self.sent_headers:
            name = <bytes>pair[0]
            value = <bytes>pair[1]
            size = PyBytes_GET_SIZE(name)
            self.headers_bytes += size + PyBytes_GET_SIZE(value)
            if size == 13:
                if is_named(name, b"authorization", 13):
                    self.authorization = value
                    self.authorizations += 1
                elif is_named(name, b"if-none-match", 13):
                    self.none_match = value
            elif size == 6:
                if is_named(name, b"accept", 6):
                    # On several lines they would have to be joined; who sends such gets what we have.
                    accepts += 1
                    self.accept = value if accepts == 1 else None
            elif size == 12:
                if is_named(name, b"x-request-id", 12):
                    request_id = value
            elif size == 14:
                if is_named(name, b"content-length", 14):
                    self.body_bytes = int(value)
        return request_id

    cdef int reply(self, int status, list headers, bytes body) except -1:
        """Two messages. `send` acts on them when it is called; what it returns has nothing left to await.

        Counted and logged before that, so that who has an answer finds it there.
        """
        cdef uint64_t taken_ns
        if self.is_last:
            headers = [*headers, (b"connection", b"close")]
        if self.method == "HEAD" and status != 304:  # of which the length would be that of the whole answer
            headers = [*headers, (b"content-length", b"%d" % PyBytes_GET_SIZE(body))]
            body = b""
        taken_ns = self.recorder.record_c(status, self.started_ns)
        if status >= self.recorder.logged_from:
            self.recorder.log.put(status, taken_ns, self.method, self.request_id,
                                  None if self.workspace is None else self.workspace.name)
        self.send({"type": "http.response.start", "status": status, "headers": headers})
        self.send({"type": "http.response.body", "body": body})
        return 0


cdef Exchange begin(Recorder recorder, scope, send, uint64_t* ids):
    """Reads a request. `ids` is the state that request ids are made from where the caller sent no sane one."""
    cdef Exchange exchange = Exchange.__new__(Exchange)
    cdef char digits[HEX_BYTES]
    cdef bytes sent
    exchange.started_ns = clock_ns()
    exchange.recorder = recorder
    exchange.send = send
    exchange.method = <str>scope["method"]
    exchange.path = <bytes>scope["raw_path"]
    exchange.query = <bytes>scope["query_string"]
    exchange.sent_headers = <list>scope["headers"]
    exchange.is_last = ends_connection(scope)
    sent = exchange.read_headers()
    if sent is not None and is_sane(sent):
        exchange.request_id = sent
    else:
        ids[0] ^= ids[0] << 13
        ids[0] ^= ids[0] >> 7
        ids[0] ^= ids[0] << 17
        write_hex(digits, ids[0], HEX_BYTES)
        exchange.request_id = digits[:HEX_BYTES]
    return exchange


cdef inline bint is_named(bytes name, const char* expected, Py_ssize_t size) noexcept:
    return memcmp(PyBytes_AS_STRING(name), expected, size) == 0


cdef inline bint is_sane(bytes request_id) noexcept:
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


def request_id_of(header):
    """The request id that a caller sent, bytes or None, where it is sane; else None."""
    return header if header is not None and is_sane(header) else None


cpdef log_fault(bytes request_id, error):
    """Logs where a request failed, without the error's message: it may quote what the request asked for."""
    extra = {"request_id": request_id.decode(), "traceback": "".join(traceback.format_tb(error.__traceback__))}
    log.error("request %s failed: %s", extra["request_id"], type(error).__name__, extra=extra)


# --- entity tags ---------------------------------------------------------------------------------------------------

cdef bytes etag_of(uint64_t check, bytes suffix, bint is_packed):
    """Differs with the content, the choice of fields and the form: a strong tag is of one representation."""
    cdef Py_ssize_t more = PyBytes_GET_SIZE(suffix)
    cdef Py_ssize_t size = HEX_BYTES + 2 + more + (2 if is_packed else 0)
    cdef bytes etag = PyBytes_FromStringAndSize(NULL, size)
    cdef char* to = PyBytes_AS_STRING(etag)
    to[0] = to[size - 1] = b'"'
    write_hex(to + 1, check, HEX_BYTES)
    memcpy(to + 1 + HEX_BYTES, PyBytes_AS_STRING(suffix), more)
    if is_packed:
        memcpy(to + 1 + HEX_BYTES + more, b"-m", 2)
    return etag


cdef bint matches(bytes none_match, bytes etag) except -1:
    """If-None-Match: a star, or a list in which our tag stands, weak or not. Quotes make the search exact."""
    return none_match == b"*" or etag in none_match


# --- paths ---------------------------------------------------------------------------------------------------------

cdef bint split(const char* at, const char* end, Route* route) noexcept:
    """Reads a path; False for one that is no lookup's."""
    cdef const char* slash
    if end - at < 16 or memcmp(at, b"/v1/profiles/", 13) != 0:
        return False
    at += 13
    route.namespace = NULL
    if memcmp(at, b"id/", 3) == 0:
        at += 3
    elif end - at >= 11 and memcmp(at, b"identifier/", 11) == 0:
        at += 11
        slash = <const char*>memchr(at, b"/", end - at)
        if slash == NULL:
            return False
        route.namespace = at
        route.namespace_bytes = slash - at
        at = slash + 1
    else:
        return False
    slash = <const char*>memchr(at, b"/", end - at) if end > at else NULL
    route.is_events = slash != NULL
    if route.is_events and (end - slash != 7 or memcmp(slash, b"/events", 7) != 0):
        return False
    route.value = at
    route.value_bytes = (slash if route.is_events else end) - at
    return True


cdef inline int digit(char c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    c |= 32
    return c - c'a' + 10 if c'a' <= c <= c'f' else -1


cdef bytes decoded(const char* text, Py_ssize_t size):
    """A path segment of at most 8 KB, percent-decoded once, as UTF-8. Raises MalformedPath."""
    cdef char buffer[PATH_BYTES_MAX]
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


def unescaped(bytes segment not None):
    """A path's segment, percent-decoded once."""
    if PyBytes_GET_SIZE(segment) > PATH_BYTES_MAX:
        raise MalformedPath("The path is too long.")
    return decoded(PyBytes_AS_STRING(segment), PyBytes_GET_SIZE(segment))
