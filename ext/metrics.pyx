"""Requests, counted into the shared file: by status, and by how long they took; and logged, where they are to be.

edgeprofile.metrics says which slot holds what; here is only how the right ones are found and added to.
"""

cimport cython
from libc.limits cimport INT_MAX
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from edgeprofile._limiter cimport COUNTERS, SharedMap
from edgeprofile._log_lines cimport RequestLog


cpdef uint64_t clock_ns() noexcept nogil:
    """CLOCK_MONOTONIC, which `Recorder.record` takes the start of a request in."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


@cython.final
@cython.auto_pickle(False)
cdef class Recorder:
    """Counts the requests of one surface, in the slots that `metrics.slots` gives."""

    def __cinit__(self, SharedMap shared not None, statuses, uint32_t buckets, uint32_t sum_ns, bounds_ns,
                  *, RequestLog log=None):
        cdef int i
        if len(statuses) != STATUSES:
            raise ValueError("there is one slot for each status below 600")
        if not len(bounds_ns) <= BOUNDS_MAX or sorted(set(bounds_ns)) != list(bounds_ns):
            raise ValueError("a histogram has up to 31 bounds, in rising order")
        if max(*statuses, sum_ns, buckets + len(bounds_ns)) >= COUNTERS:
            raise IndexError("no such counter")
        self.shared = shared
        self.statuses = statuses
        self.buckets = buckets
        self.sum_ns = sum_ns
        for i in range(len(bounds_ns)):
            self.bounds_ns[i] = bounds_ns[i]
        self.bounds_ns[len(bounds_ns)] = UINT64_MAX  # where the search ends, however long a request took
        self.log = log
        self.logged_from = INT_MAX if log is None else log.from_status

    def record(self, int status, uint64_t started_ns, now_ns=None):
        """Counts a request that began at `started_ns`. `now_ns` is the clock's unless given."""
        self.add(status, started_ns, clock_ns() if now_ns is None else now_ns)

    def logs(self, int status):
        """Whether requests of this status are to be logged."""
        return status >= self.logged_from

    def note(self, int status, uint64_t started_ns, str method not None, bytes request_id not None, str workspace):
        """Logs a request, of which `request_id` is a sane one, if it is to be logged."""
        if self.logs(status):
            self.log.put(status, clock_ns() - started_ns, method, request_id, workspace)

    cdef uint64_t record_c(self, int status, uint64_t started_ns) noexcept nogil:
        return self.add(status, started_ns, clock_ns())

    cdef inline uint64_t add(self, int status, uint64_t started_ns, uint64_t now_ns) noexcept nogil:
        cdef uint64_t taken_ns = now_ns - started_ns if now_ns > started_ns else 0
        cdef uint32_t bucket = 0
        while taken_ns > self.bounds_ns[bucket]:  # most requests are over within the first bound
            bucket += 1
        self.shared.add_c(self.statuses[status if 0 <= status < STATUSES else 0], 1)
        self.shared.add_c(self.buckets + bucket, 1)
        self.shared.add_c(self.sum_ns, taken_ns)
        return taken_ns
