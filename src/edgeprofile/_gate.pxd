# Who may ask, and how often, for the compiled lookup.

cimport cython
from libc.stdint cimport int64_t, uint32_t

from edgeprofile._exchange cimport Exchange
from edgeprofile._limiter cimport Policy, SharedMap
from edgeprofile._store cimport Workspace


@cython.final
cdef class Meter:
    cdef Policy policy
    cdef readonly object limits
    cdef readonly uint32_t cell


@cython.final
cdef class Grant:
    cdef readonly Workspace workspace
    cdef readonly bytes public_id
    cdef readonly Meter meter
    cdef readonly dict meters
    cdef readonly bint reads, writes
    cdef int64_t expires_at
    cdef bytes token
    cdef bint is_over(self) noexcept


@cython.final
cdef class Gate:
    cdef SharedMap shared
    cdef object verify, limited
    cdef dict grants
    cdef Grant authenticate(self, Exchange exchange)
    cdef Grant find(self, const char* text, Py_ssize_t size)
    cpdef int admit(self, Grant grant, Meter meter, uint32_t cost) except -1
