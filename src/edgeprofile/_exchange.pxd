# One request and its answer, for the compiled lookup.

cimport cython
from libc.stdint cimport uint64_t

from edgeprofile._metrics cimport Recorder
from edgeprofile._store cimport Workspace


cdef struct Route:  # what a path asks for; `namespace` is NULL for a profile by its id
    const char* namespace
    const char* value
    Py_ssize_t namespace_bytes, value_bytes
    bint is_events


@cython.final
cdef class Exchange:
    cdef object send
    cdef list sent_headers
    cdef Recorder recorder
    cdef readonly bytes request_id
    cdef readonly str method
    cdef readonly bytes path, query  # as they were sent
    cdef object surface  # whose request it is; None for one of a single profile
    cdef public Workspace workspace  # that of the key, once that is known
    cdef uint64_t started_ns
    cdef bint is_last
    # Headers that matter; None where they were not sent, or (accept) were sent on several lines.
    cdef bytes authorization, none_match, accept
    cdef int authorizations
    cdef uint64_t headers_bytes, body_bytes
    cdef bytes read_headers(self)
    cdef int reply(self, int status, list headers, bytes body) except -1


cpdef bint ends_connection(scope) except -1
cdef Exchange begin(Recorder recorder, scope, send, uint64_t* ids)
cpdef log_fault(bytes request_id, error)
cdef bint split(const char* at, const char* end, Route* route) noexcept
cdef bytes decoded(const char* text, Py_ssize_t size)
cdef bytes etag_of(uint64_t check, bytes suffix, bint is_packed)
cdef bint matches(bytes none_match, bytes etag) except -1
