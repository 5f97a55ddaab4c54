# The native lookups, for the compiled front.

cimport cython
from libc.stdint cimport uint64_t

from edgeprofile._events cimport Wanted
from edgeprofile._exchange cimport Exchange, Route
from edgeprofile._gate cimport Gate, Grant
from edgeprofile._store cimport Found, Plan, Store


@cython.final
cdef class Lookup:
    cdef object translate, parse_fields, choose, parse_many, parse_events, accepted, normalize
    cdef Gate gate
    cdef uint64_t request_bytes_max, response_bytes_max
    cdef tuple cache_control
    cdef dict accepts, wanted
    cdef int answer_one(self, Exchange exchange, const Route* route) except -1
    cdef int answer_profile(self, Exchange exchange, Store store, bytes primary, int form) except -1
    cdef int answer_events(self, Exchange exchange, Store store, bytes primary, int form) except -1
    cdef Wanted wanted_of(self, bytes query)
    cdef bint is_known(self, Exchange exchange, bytes etag) except -1
    cdef int send(self, Exchange exchange, bytes etag, bytes body, int form) except -1
    cdef bytes body_of(self, Found found, Plan plan, Store store)
    cdef bytes collect(self, Store store, list asked, fields)
    cdef Found find(self, Store store, asked, int number)
    cdef bytes primary_asked(self, Store store, asked, int number)
    cdef Grant authorize(self, Exchange exchange)
    cdef int check_answer(self, uint64_t size) except -1
    cdef int form_of(self, Exchange exchange) except -1
    cdef bytes packed_of(self, bytes body)
