# What other compiled modules may use of the limiter without the interpreter.

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    COUNTERS = 2048
    CELLS = 16384

# Times are in units of 1/64 ns, see edgeprofile.limiter.
cdef struct CBucket:
    uint64_t interval
    uint64_t span
    uint64_t depth  # whole tokens: the largest cost that can ever pass

cdef struct CPolicy:
    int count
    CBucket buckets[2]

# The file, byte for byte. `cells` begins at a multiple of 64, so that no pair of tats crosses a cache line.
cdef struct Shared:
    char header[64]
    uint64_t counters[COUNTERS]
    uint64_t tags[CELLS]
    uint64_t cells[CELLS][2]


@cython.final
cdef class Policy:
    cdef CPolicy c


@cython.final
cdef class SharedMap:
    cdef Shared* shared
    # `cell` must come from cell() and `index` be below COUNTERS: neither is checked here.
    # take_c returns the wait in ns: 0 if the request passed, INT64_MAX if it costs more than a bucket can hold.
    # `bucket` is set when it did not pass: 0 is sustained, 1 is peak.
    cdef int64_t take_c(self, uint32_t cell, const CPolicy* policy, uint32_t cost, int* bucket) noexcept nogil
    cdef int used_c(self, uint32_t cell, const CPolicy* policy) noexcept nogil
    cdef void add_c(self, uint32_t index, uint64_t n) noexcept nogil
