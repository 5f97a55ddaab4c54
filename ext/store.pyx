"""What a lookup reads: an open snapshot, the choices of fields that were made of it, and what each key may do."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from edgeprofile._limiter cimport Policy
from edgeprofile._record cimport INDEX_CHECK_BYTES, Run, checksum, index_check

from edgeprofile.errors import ProfileNotFound, RecordDamaged, UnknownNamespace

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject* thing)

cdef enum:
    KEY_BYTES_MAX = 511
    PLACE_BYTES = 12
    SUFFIX_DIGITS = 8


@cython.final
cdef class Plan:
    """A choice of fields, as runs of their numbers, and what tells its ETag from the whole answer's."""

    def __cinit__(self, runs, bint with_audiences, bint is_whole):
        cdef int i
        cdef char digits[SUFFIX_DIGITS]
        cdef uint64_t mark
        self.count = len(runs)
        self.with_audiences = with_audiences
        self.is_whole = is_whole
        self.runs = <Run*>PyMem_Malloc(sizeof(Run) * (2 * self.count + 1))
        if self.runs == NULL:
            raise MemoryError()
        self.slices = self.runs + self.count
        for i in range(self.count):
            self.runs[i].first, self.runs[i].last = runs[i]
        self.suffix = b""
        if not is_whole:
            mark = checksum(with_audiences, self.runs, self.count * sizeof(Run))
            write_hex(digits, mark, SUFFIX_DIGITS)
            self.suffix = b"-" + digits[:SUFFIX_DIGITS]

    def __dealloc__(self):
        PyMem_Free(self.runs)


@cython.final
cdef class Store:
    """An open snapshot, as lookups see it. It lives as long as its `reader`, which it keeps."""

    def __cinit__(self, reader):
        cdef uint32_t i
        cdef const unsigned char[::1] view
        self.reader = reader
        self.get = reader.finder.get
        self.profiles = reader.profiles
        self.identifiers = reader.identifiers
        self.first_audience = reader.schema.first_audience
        self.namespaces = {
            space.name.encode(): (None if number == 0 else number.to_bytes(2, "big"), space.normalize == "lower")
            for number, space in enumerate(reader.schema.namespaces)
        }
        self.plans = {b"": Plan((), True, True)}
        self.segments = len(reader.segments)
        self.starts = <const unsigned char**>PyMem_Malloc(sizeof(char*) * (self.segments + 1))
        self.sizes = <uint64_t*>PyMem_Malloc(sizeof(uint64_t) * (self.segments + 1))
        if self.starts == NULL or self.sizes == NULL:
            raise MemoryError()
        for i in range(self.segments):
            view = reader.segments[i]
            self.starts[i] = &view[0] if view.shape[0] else NULL
            self.sizes[i] = view.shape[0]

    def __dealloc__(self):
        PyMem_Free(self.starts)
        PyMem_Free(self.sizes)

    cdef int locate(self, bytes primary, const unsigned char** record, uint32_t* size) except -1:
        """Where a profile's record is. Raises ProfileNotFound; a place outside the file is damage."""
        cdef bytes place
        cdef uint32_t at[3]
        if PyBytes_GET_SIZE(primary) > KEY_BYTES_MAX:
            raise ProfileNotFound()
        found = self.get(primary, None, self.profiles)
        if found is None:
            raise ProfileNotFound()
        place = found
        if PyBytes_GET_SIZE(place) != PLACE_BYTES:
            return 0
        memcpy(at, PyBytes_AS_STRING(place), PLACE_BYTES)
        if at[0] >= self.segments or <uint64_t>at[1] + at[2] > self.sizes[at[0]]:
            return 0
        record[0] = self.starts[at[0]] + at[1]
        size[0] = at[2]
        return 0

    cdef bytes primary_of(self, bytes namespace, bytes value, object normalize):
        """The primary id of the profile that an identifier finds: of several, the most recently updated."""
        cdef bytes key
        known = self.namespaces.get(namespace)
        if known is None:
            raise UnknownNamespace(
                "The workspace does not declare this namespace.",
                members={"valid": [name.decode() for name in self.namespaces]},
            )
        prefix, lower = known
        if lower:
            value = value.lower() if value.isascii() else normalize(value)
        if prefix is None:
            return value
        if PyBytes_GET_SIZE(value) + 2 > KEY_BYTES_MAX:
            raise ProfileNotFound()
        key = <bytes>prefix + value
        entry = self.get(key, None, self.identifiers)
        if entry is None:
            raise ProfileNotFound()
        return first_id(key, entry)


cdef bytes first_id(bytes key, bytes entry):
    """The first primary id of an entry of the index of identifiers, which is checked before it is believed."""
    cdef const char* ids = PyBytes_AS_STRING(entry) + INDEX_CHECK_BYTES
    cdef Py_ssize_t size = PyBytes_GET_SIZE(entry) - INDEX_CHECK_BYTES
    cdef uint32_t check
    cdef uint16_t length
    if size >= 2:
        memcpy(&check, PyBytes_AS_STRING(entry), INDEX_CHECK_BYTES)
        memcpy(&length, ids, 2)
        if 0 < length <= size - 2 and check == index_check(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), ids, size):
            return ids[2:2 + length]
    raise RecordDamaged("an entry of the index of identifiers is damaged")


@cython.final
cdef class Workspace:
    """A workspace, as lookups see it. Swapping `store` is how a new snapshot goes live."""

    def __init__(self, str name):
        self.name = name


@cython.final
cdef class Grant:
    """What a key may do. `token` is None until the key was once found good by its hash."""

    def __init__(self, Workspace workspace, Policy policy, limits, uint32_t cell, bint reads, int64_t expires_at):
        self.workspace = workspace
        self.policy = policy
        self.limits = limits
        self.cell = cell
        self.reads = reads
        self.expires_at = expires_at


def take_unheld(list stores):
    """Takes out of the list the stores that nothing but the list refers to: no lookup is at them any more.

    Counted here, and not by sys.getrefcount, because how many references a local name adds differs between Pythons.
    """
    cdef Py_ssize_t i
    cdef list unheld = []
    for i in range(len(stores) - 1, -1, -1):
        if Py_REFCNT(<PyObject*>PyList_GET_ITEM(stores, i)) == 1:
            unheld.append(stores.pop(i))
    return unheld
