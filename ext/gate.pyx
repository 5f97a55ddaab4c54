"""Who may ask, and how often: the keys' grants and their token buckets, as every request meets them first."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from edgeprofile._exchange cimport Exchange
from edgeprofile._limiter cimport Policy, SharedMap
from edgeprofile._store cimport Workspace

from edgeprofile.errors import Unauthorized

cdef enum:
    PUBLIC_ID_AT = 8  # behind sk_live_
    PUBLIC_ID_BYTES = 12
    BEARER_BYTES = 7  # and the space


@cython.final
cdef class Meter:
    """A key's buckets of one kind; see the stub."""

    def __init__(self, Policy policy, limits, uint32_t cell):
        self.policy = policy
        self.limits = limits
        self.cell = cell


@cython.final
cdef class Grant:
    """What a key may do. `token` is None until the key was once found good by its hash."""

    def __init__(self, Workspace workspace, bytes public_id, Meter meter, dict meters, bint reads, bint writes,
                 int64_t expires_at):
        self.workspace = workspace
        self.public_id = public_id
        self.meter = meter
        self.meters = meters
        self.reads = reads
        self.writes = writes
        self.expires_at = expires_at

    cdef bint is_over(self) noexcept:
        return self.expires_at != 0 and now_s() >= self.expires_at


@cython.final
cdef class Gate:
    """Lets a request in by its key. `verify(token)` tells whether a key's secret is right; `limited(limits, bucket,
    wait_ns, cost)` makes the error of a request that is over its limits by so long."""

    def __init__(self, SharedMap shared not None, *, verify, limited):
        self.shared = shared
        self.verify = verify
        self.limited = limited
        self.grants = {}

    def set_grants(self, dict grants not None):
        """Swaps what keys may do: public id (bytes) → Grant. Requests see all of the old or all of the new."""
        self.grants = grants

    cdef Grant authenticate(self, Exchange exchange):
        """The grant of the key that was sent. All that can be wrong with one looks the same: Unauthorized."""
        cdef const char* text
        cdef Py_ssize_t size
        cdef Grant grant
        if exchange.authorizations != 1:
            raise Unauthorized()
        text = PyBytes_AS_STRING(exchange.authorization)
        size = PyBytes_GET_SIZE(exchange.authorization) - BEARER_BYTES
        if size < 0 or not is_bearer(text):
            raise Unauthorized()
        grant = self.find(text + BEARER_BYTES, size)
        exchange.workspace = grant.workspace
        return grant

    def grant_of(self, bytes token not None):
        """The grant of a key. Raises Unauthorized, whatever is wrong with it."""
        return self.find(PyBytes_AS_STRING(token), PyBytes_GET_SIZE(token))

    def grant_by_id(self, bytes public_id not None):
        """The grant of a key by its public id alone, for who has shown otherwise to have it; None where it is over."""
        cdef Grant grant = self.grants.get(public_id)
        return None if grant is None or grant.is_over() else grant

    cdef Grant find(self, const char* text, Py_ssize_t size):
        cdef Py_ssize_t i
        cdef Grant grant
        cdef unsigned char different = 0
        if size < PUBLIC_ID_AT + PUBLIC_ID_BYTES:
            raise Unauthorized()
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
        if grant.is_over():
            raise Unauthorized()
        return grant

    cpdef int admit(self, Grant grant, Meter meter, uint32_t cost) except -1:
        """Takes tokens from the buckets of one of the key's meters."""
        cdef int bucket = 0
        cdef int64_t wait_ns = self.shared.take_c(meter.cell, &meter.policy.c, cost, &bucket)
        if wait_ns:
            if wait_ns != INT64_MAX:  # which no wait would help
                self.shared.add_c(grant.workspace.limited_counter, 1)
            raise self.limited(meter.limits, bucket, wait_ns, cost)
        return 0

    def used_percent(self, Meter meter not None):
        """How much of a meter's tokens is gone."""
        return self.shared.used_c(meter.cell, &meter.policy.c)


cdef inline int64_t now_s() noexcept:
    """Not time(), which may still be in the second before."""
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return now.tv_sec


cdef inline bint is_bearer(const char* text) noexcept:
    """The scheme's name in any case, and one space."""
    cdef const char* bearer = b"bearer"
    cdef int i
    for i in range(6):
        if text[i] | 32 != bearer[i]:
            return False
    return text[6] == b" "
