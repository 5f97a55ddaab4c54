# The live layer, for the compiled store.

cimport cython
from libc.stdint cimport uint64_t

from edgeprofile._tree cimport Database, Map, Meta

# The databases, in the order of reader.LIVE_DATABASES.
cdef enum:
    LIVE_PROFILES
    LIVE_IDENTIFIERS
    LIVE_HISTORIES
    LIVE_EVENTS
    LIVE_META
    LIVE_DATABASES


@cython.final
cdef class Live:
    cdef tuple names
    cdef int file
    cdef const char* start
    cdef const uint64_t* sequence
    cdef Map map  # of what the transaction has, within what is mapped
    cdef uint64_t announced, taken
    cdef Database databases[LIVE_DATABASES]
    cdef bint has_any(self) except -1
    cdef int look(self) except -1
    cdef bint is_past(self) noexcept nogil
    cdef bytes find(self, int database, bytes key)
    cdef bytes find_after(self, int database, bytes key)
    cdef int take(self) except -1
    cdef void read_meta(self, int number, Meta* meta) noexcept
    cdef void read_newest_meta(self, Meta* meta) noexcept
    cdef int use(self, const Meta* meta) except -1
    cdef int find_databases(self, const Meta* meta) except -1
