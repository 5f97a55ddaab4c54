# Who may ask, and how often, for the compiled lookup.

cimport cython
from libc.stdint cimport int64_t, uint32_t

from edgeprofile._exchange cimport Exchange
from edgeprofile._limiter cimport Policy, SharedMap
from edgeprofile._store cimport Workspace


@cython.final
cdef class Grant:
    cdef readonly Workspace workspace
    cdef Policy policy
    cdef readonly object limits
    cdef uint32_t cell
    cdef bint reads
    cdef int64_t expires_at
    cdef bytes token


@cython.final
cdef class Gate:
    cdef SharedMap shared
    cdef object verify, limited
    cdef dict grants
    cdef Grant authenticate(self, Exchange exchange)
    cdef int admit(self, Grant grant, uint32_t cost) except -1
