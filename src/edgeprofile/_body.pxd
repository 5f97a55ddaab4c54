# Reading a request's body, for the compiled lookup.

cimport cython
from libc.stdint cimport uint64_t

from edgeprofile._exchange cimport Exchange

cdef enum:
    BODY_SECONDS_MAX = 30  # one that takes longer is a slow client's, or an attack


@cython.final
cdef class Body:
    cdef uint64_t announced, bytes_max, size
    cdef list pieces
    cdef bint take(self, dict message) except -1
    cdef bytes whole(self)


@cython.final
cdef class Reading:
    cdef object receive, then
    cdef Body body
    cdef Exchange exchange
    cdef uint64_t started_ns
    cpdef go_on(self)
    cpdef expire(self)
    cdef int end(self, outcome) except -1


cdef object too_slow()
