# What other compiled modules record their requests by, without the interpreter.

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from edgeprofile._limiter cimport SharedMap
from edgeprofile._log_lines cimport RequestLog

cdef enum:
    STATUSES = 600
    BOUNDS_MAX = 31

cpdef uint64_t clock_ns() noexcept nogil


@cython.final
cdef class Recorder:
    cdef SharedMap shared
    cdef uint32_t statuses[STATUSES]
    cdef uint32_t buckets, sum_ns
    cdef uint64_t bounds_ns[BOUNDS_MAX + 1]
    cdef RequestLog log
    cdef int logged_from  # requests of this status and over are to be logged by `log`
    cdef uint64_t add(self, int status, uint64_t started_ns, uint64_t now_ns) noexcept nogil
    # Counts a request that got `status` and began at `started_ns` of clock_ns. Most of its time is the clock's.
    # Returns how long it took.
    cdef uint64_t record_c(self, int status, uint64_t started_ns) noexcept nogil
