# Records as dialects' answers have them, for compiled code that renders many.

cimport cython
from libc.stdint cimport int64_t, uint64_t

from edgeprofile._record cimport Run, View
from edgeprofile._store cimport Found, Store
from json_text cimport Buffer


cdef enum:
    PARAMS_OPEN_BYTES = 10
    TIME_BYTES_MAX = 26  # "YYYY-MM-DDTHH:MM:SS.mmmZ"


cdef struct Item:
    int how, field, count
    Run* runs
    const char* before
    const char* after
    size_t before_bytes, after_bytes


cdef struct Slice:
    const char* start
    const char* end


@cython.final
cdef class Template:
    cdef Item* items
    cdef int count, first_nested, open_bytes
    cdef list kept
    cdef char time[TIME_BYTES_MAX]  # that was rendered last, its length, its moment and its day
    cdef size_t time_bytes
    cdef int64_t moment_us, day
    cdef (const char*, size_t) keep(self, bytes text, bytes head)
    cdef int keep_runs(self, Item* item, runs) except -1


@cython.final
cdef class Profile:
    cdef Store store
    cdef readonly bytes primary
    cdef Found found


cdef bytes render(const View* view, Template template, tuple slots, uint64_t bytes_max)
cdef uint64_t begin(Buffer* out, uint64_t bytes_max) noexcept
cdef int append(Buffer* out, const View* view, Template template, tuple slots) except -1
cdef bint find_value(const View* view, int first_nested, int open_bytes, int field, Slice* value) except -1
