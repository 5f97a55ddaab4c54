# What a lookup reads, for the compiled lookup.

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from edgeprofile._live cimport Live
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
cdef class Recalled:
    cdef dict table
    cdef object recall(self, key, make)


@cython.final
cdef class Form:
    cdef readonly object schema
    cdef int first_audience
    cdef dict plans
    cdef Recalled recalled
    cdef Plan keep(self, bytes key, parsed)


@cython.final
cdef class Found:
    cdef View view
    cdef Form form
    cdef bytes held


@cython.final
cdef class Store:
    cdef readonly object reader
    cdef Tree tree
    cdef Live live  # None where the snapshot has none
    cdef object read_schema, read_events_schema
    cdef Form base, newest
    cdef dict forms, namespaces
    cdef Recalled recalled  # of what goes with the events' schema
    cdef object known_events_schema
    cdef bytes events_content
    cdef uint64_t events_seen
    cdef int name_field  # of an event's record
    cdef Segments records, events
    cdef int find_segments(self, Segments* segments, int database, uint32_t count) except -1
    cdef int locate(self, bytes primary, const unsigned char** record, uint32_t* size) except -1
    cdef Found open(self, bytes primary)
    cdef int expect(self, bytes primary) except -1
    cdef Py_ssize_t measure(self, Found found, Plan plan, Cut* made) except -1
    cdef void write(self, Found found, Plan plan, Cut* made, char* to) noexcept
    cdef Plan plan_of(self, Form form, bytes query, parse)
    cdef Plan plan_of_fields(self, Form form, fields, choose)
    cdef object ask(self, Form form, parse, asked)
    cdef bytes live_value(self, int database, bytes key)
    cdef bint find_live(self, Found found, bytes primary, const unsigned char** record, uint32_t* size) except -1
    cdef Form form_of(self, uint32_t generation)
    cdef bint learn(self) except -1
    cpdef bytes primary_of(self, bytes namespace, bytes value, object normalize)
    cpdef list primaries_of(self, bytes namespace, bytes value, object normalize, Py_ssize_t count)
    cdef bytes own_after(self, bytes last)
    cdef bytes live_after(self, bytes last)


@cython.final
cdef class Workspace:
    cdef public Store store
    cdef readonly str name
    cdef uint32_t limited_counter
