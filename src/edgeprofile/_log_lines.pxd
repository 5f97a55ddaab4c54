# What other compiled modules log requests by.

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.time cimport time_t

from edgeprofile._limiter cimport SharedMap


@cython.final
cdef class Lines:
    cdef char* pending  # what was put here since the last write, and what is being written now
    cdef char* leaving
    cdef size_t used, bytes_max
    cdef bint is_writing
    cdef readonly uint64_t dropped
    cdef SharedMap shared
    cdef uint32_t dropped_counter
    # The last second that was asked for, as text.
    cdef time_t second_s
    cdef char second[20]
    cdef char* room(self, size_t size) noexcept
    cdef void drop(self, uint64_t count) noexcept
    cdef char* write_time(self, char* to) noexcept


@cython.final
cdef class RequestLog:
    cdef Lines lines
    cdef readonly int from_status  # those below are not logged
    cdef tuple good, bad
    cdef int put(self, int status, uint64_t taken_ns, str method, bytes request_id, str workspace) except -1
