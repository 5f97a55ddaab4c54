# A surface, for the compiled front.

cimport cython

from edgeprofile._metrics cimport Recorder


@cython.final
cdef class Surface:
    cdef readonly object handler
    cdef Recorder recorder
    cdef tuple paths, prefixes
    cdef bint claims(self, bytes path) except -1
