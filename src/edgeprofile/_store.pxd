# What a lookup reads, for the compiled lookup.

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from edgeprofile._record cimport Cut, Run, View
from edgeprofile._tree cimport Tree


cdef inline void write_hex(char* to, uint64_t value, int digits) noexcept nogil:
    """The lowest digits of a number, in hexadecimal."""
    cdef const char* hexadecimal = b"0123456789abcdef"
    cdef int i
    for i in range(digits):
        to[i] = hexadecimal[(value >> (4 * (digits - 1 - i))) & 15]


cdef struct Segments:  # of one database, by their numbers
    uint32_t count
    const char** starts
    size_t* sizes


cdef inline const char* slice_of(const Segments* segments, uint32_t number, uint32_t offset,
                                 uint32_t size) noexcept nogil:
    """Some bytes of a segment; NULL where they are not in it."""
    if number >= segments.count or <uint64_t>offset + size > segments.sizes[number]:
        return NULL
    return segments.starts[number] + offset


@cython.final
cdef class Plan:
    cdef Run* runs
    cdef Run* slices  # room for the cut; safe to share, because a lookup never gives way to another
    cdef int count
    cdef bint with_audiences, is_whole
    cdef bytes suffix


@cython.final
cdef class Store:
    cdef readonly object reader, schema, events_schema
    cdef Tree tree
    cdef dict namespaces, plans, recalled
    cdef int first_audience
    cdef int name_field  # of an event's record
    cdef Segments records, events
    cdef int find_segments(self, Segments* segments, int database, uint32_t count) except -1
    cdef int locate(self, bytes primary, const unsigned char** record, uint32_t* size) except -1
    cdef int open(self, View* view, bytes primary) except -1
    cdef Py_ssize_t measure(self, View* view, Plan plan, Cut* made) except -1
    cdef void write(self, View* view, Plan plan, Cut* made, char* to) noexcept
    cdef Plan plan_of(self, bytes query, parse)
    cdef Plan plan_of_fields(self, fields, choose)
    cdef Plan keep(self, bytes key, parsed)
    cpdef bytes primary_of(self, bytes namespace, bytes value, object normalize)
    cpdef list primaries_of(self, bytes namespace, bytes value, object normalize, Py_ssize_t count)


@cython.final
cdef class Workspace:
    cdef public Store store
    cdef readonly str name
    cdef uint32_t limited_counter
