"""A surface: the paths of an API, who answers what is asked there, and what counts it."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcmp

from edgeprofile._metrics cimport Recorder


@cython.final
@cython.auto_pickle(False)
cdef class Surface:
    """See the stub."""

    def __init__(self, handler, Recorder recorder not None, *, tuple paths=(), tuple prefixes=()):
        self.handler = handler
        self.recorder = recorder
        self.paths = paths
        self.prefixes = prefixes

    cdef bint claims(self, bytes path) except -1:
        """Whether a request for this path is one of its own."""
        cdef bytes prefix
        cdef Py_ssize_t size = PyBytes_GET_SIZE(path)
        if path in self.paths:
            return True
        for prefix in self.prefixes:
            if size >= PyBytes_GET_SIZE(prefix) \
                    and memcmp(PyBytes_AS_STRING(path), PyBytes_AS_STRING(prefix), PyBytes_GET_SIZE(prefix)) == 0:
                return True
        return False
