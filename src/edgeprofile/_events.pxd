# Pages of a profile's events, for the compiled lookup.

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from edgeprofile._history cimport Block, Mark
from edgeprofile._record cimport View
from edgeprofile._store cimport Store

cdef enum:
    EVENTS_MAX = 100  # on a page, as api.native's
    NAMES_MAX = 32  # of a query, as api.native's
    CURSOR_BYTES = 16


cdef packed struct Cursor:
    # Behind the last event that was passed, which is the `passed`th of its time. `check` binds it to profile and query.
    int64_t time_us
    uint32_t passed, check


@cython.final
cdef class Names:
    cdef list texts  # as they stand in a record
    cdef uint32_t hashes[NAMES_MAX]
    cdef uint64_t mask
    cdef bint may_have(self, uint32_t name_hash) noexcept


@cython.final
cdef class Wanted:
    cdef int64_t start_us, end_us
    cdef int limit
    cdef Names names  # None for any
    cdef uint64_t mark
    cdef bint has_cursor
    cdef uint8_t cursor[CURSOR_BYTES]
    cdef uint32_t bound(self, const Cursor* cursor, bytes primary) noexcept


cdef class History:
    cdef Store store
    cdef bytes primary
    cdef list held  # what is live of it: copies
    # The directory, behind its check, and of how many blocks.
    cdef const char* directory
    cdef size_t blocks
    cdef uint64_t seed
    # The block that is open, and how many events are in it.
    cdef const char* block
    cdef size_t opened
    cdef uint32_t block_bytes, count
    # Where the walk stands: a block, and an event in it.
    cdef size_t number
    cdef uint32_t at
    cdef readonly uint32_t blocks_read, records_read
    cdef int find(self, Store store, bytes primary) except -1
    cdef const char* live_block(self, const Block* block) except? NULL
    cdef void read_block(self, size_t number, Block* block) noexcept nogil
    cdef void read_mark(self, uint32_t number, Mark* mark) noexcept nogil
    cdef int open(self, size_t number) except -1
    cdef uint32_t first(self, int64_t time_us, bint below) noexcept nogil
    cdef int seek(self, int64_t time_us, uint64_t passed) except -1
    cdef uint64_t same_before(self, size_t number, uint32_t at, int64_t time_us) except? 0
    cdef int64_t time_before(self, size_t number, uint32_t at) except? -1
    cdef int open_event(self, uint32_t number, View* view) except -1
    cdef bint is_named(self, const View* view, Names names) except -1
    cdef object damaged(self)


@cython.final
cdef class Page(History):
    # What was found, and the bytes of it as an answer with a cursor.
    cdef View views[EVENTS_MAX + 1]  # one to look at what comes next
    cdef readonly int events
    cdef uint64_t bytes
    cdef bint has_cursor
    cdef uint8_t cursor[CURSOR_BYTES]
    cdef int set_cursor(self, Wanted wanted) except -1
    cdef int fill(self, Wanted wanted, uint64_t bytes_max) except -1
    cdef bint take(self, Wanted wanted, uint64_t bytes_max) except -1
    cdef uint64_t check(self) noexcept nogil
    cdef uint64_t size(self) noexcept nogil
    cpdef bytes body(self)


cpdef Page read_page(Store store, bytes primary, Wanted wanted, uint64_t bytes_max)
