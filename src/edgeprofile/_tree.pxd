# Look-ups in a snapshot's file, for compiled code that has no time for py-lmdb.

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

# What `find` and `find_after` say.
cdef enum:
    MISSING
    FOUND
    DAMAGED

# The databases, in the order of reader.DATABASES.
cdef enum:
    RECORDS
    PROFILES
    IDENTIFIERS
    EVENTS
    HISTORIES
    ORIGINALS
    DATABASES


cdef enum:
    MAGIC = 0xBEEFC0DE
    DEPTH_MAX = 32
    PAGE_BYTES_MIN = 4096
    PAGE_BYTES_MAX = 32768
    IS_DATABASE = 0x02  # a flag of a leaf's node


cdef struct Map:
    const char* start
    size_t bytes, page_bytes
    uint64_t pages


cdef struct Database:  # as it stands in the file
    uint32_t page_bytes
    uint16_t flags, depth
    uint64_t branch_pages, leaf_pages, overflow_pages, entries, root


cdef struct Page:
    uint64_t number
    uint16_t unused, kind, lower, upper


cdef struct Meta:
    uint32_t magic, version
    uint64_t address, map_bytes
    Database free, main
    uint64_t last_page, transaction


cdef int read(const Map* map, const Database* database, uint16_t flags, const char* key, size_t key_bytes,
              const char** value, size_t* value_bytes) noexcept nogil


cdef int read_after(const Map* map, const Database* database, const char* key, size_t key_bytes,
                    const char** above, size_t* above_bytes) noexcept nogil


@cython.final
cdef class Tree:
    cdef Map map
    cdef Database databases[DATABASES]
    cdef tuple names
    cdef int find(self, int database, const char* key, size_t key_bytes,
                  const char** value, size_t* value_bytes) noexcept nogil
    cdef int find_after(self, int database, const char* key, size_t key_bytes,
                        const char** above, size_t* above_bytes) noexcept nogil
