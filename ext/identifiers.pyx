"""The index of identifiers: its entries (record.index_entry), made of a sorted Arrow stream and read back."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from arrow cimport ArrowArray, ArrowArrayStream, ArrowSchema
from edgeprofile._columns cimport TEXT, Column, broken, expect_columns, fit, stream_of, text_at
from edgeprofile._record cimport INDEX_CHECK_BYTES, index_check

from edgeprofile.errors import RecordDamaged


@cython.final
@cython.auto_pickle(False)
cdef class IndexBatches:
    """Iterates over lists of (prefix + value, entry), made of a stream of (value, primary id) sorted by value.

    An entry is as record.index_entry has it, with the ids in the order of the stream; those past `group_bytes_max`
    are left out. Raises SourceError where the stream breaks off.
    """

    cdef object stream
    cdef ArrowArrayStream* source
    cdef bytes prefix, last
    cdef Py_ssize_t group_bytes_max
    cdef list group
    cdef Py_ssize_t group_bytes

    def __cinit__(self, stream, bytes prefix, Py_ssize_t group_bytes_max):
        self.source = stream_of(stream)
        self.stream = stream
        self.prefix = prefix
        self.group_bytes_max = group_bytes_max
        self.group = []

    def __iter__(self):
        return self

    def __next__(self):
        cdef ArrowArray array
        cdef ArrowSchema schema
        cdef ArrowArrayStream* source = self.source
        cdef Column value, primary
        cdef int failed
        cdef list entries = []
        if source == NULL:
            raise StopIteration
        memset(&schema, 0, sizeof(schema))
        memset(&array, 0, sizeof(array))
        memset(&value, 0, sizeof(value))
        memset(&primary, 0, sizeof(primary))
        value.kind = primary.kind = TEXT
        if source.get_schema(source, &schema):
            raise broken(source)
        try:
            expect_columns(&schema, 2)
            fit(&value, schema.children[0])
            fit(&primary, schema.children[1])
        finally:
            schema.release(&schema)
        with nogil:
            failed = source.get_next(source, &array)
        if failed:
            raise broken(source)
        if array.release == NULL:
            self.source = NULL
            self.close_group(entries)
            return entries
        try:
            value.array = array.children[0]
            primary.array = array.children[1]
            self.read(&value, &primary, &array, entries)
        finally:
            array.release(&array)
        return entries

    cdef int read(self, const Column* value, const Column* primary, const ArrowArray* array, list entries) except -1:
        cdef int64_t i
        cdef size_t value_bytes, id_bytes
        cdef const char* text
        cdef const char* id_text
        cdef uint16_t length
        for i in range(array.offset, array.offset + array.length):
            text = text_at(value, i + value.array.offset, &value_bytes)
            if self.last is None or <size_t>len(self.last) != value_bytes \
                    or memcmp(PyBytes_AS_STRING(self.last), text, value_bytes) != 0:
                self.close_group(entries)
                self.last = text[:value_bytes]
            id_text = text_at(primary, i + primary.array.offset, &id_bytes)
            length = <uint16_t>id_bytes
            if self.group_bytes + <Py_ssize_t>id_bytes + 2 <= self.group_bytes_max:
                self.group.append((<char*>&length)[:2] + id_text[:id_bytes])
                self.group_bytes += id_bytes + 2
        return 0

    cdef int close_group(self, list entries) except -1:
        """A value whose last id has been read becomes an entry; it may have begun in an earlier batch."""
        cdef bytes key, ids
        cdef uint32_t check
        if self.group:
            key = self.prefix + self.last
            ids = b"".join(self.group)
            check = index_check(PyBytes_AS_STRING(key), len(key), PyBytes_AS_STRING(ids), len(ids))
            entries.append((key, (<char*>&check)[:INDEX_CHECK_BYTES] + ids))
        self.group = []
        self.group_bytes = 0
        return 0


def ids_of(bytes key, const unsigned char[::1] entry) -> list:
    """The primary ids in an entry of the index that was found under `key`. Raises RecordDamaged."""
    return ids_in(key, <const char*>&entry[0] if entry.shape[0] else NULL, entry.shape[0], entry.shape[0])


cdef list ids_in(bytes key, const char* entry, Py_ssize_t entry_bytes, Py_ssize_t count):
    """The first `count` primary ids in an entry of the index, which is checked before it is believed."""
    cdef const char* ids = entry + INDEX_CHECK_BYTES
    cdef Py_ssize_t rest = entry_bytes - INDEX_CHECK_BYTES
    cdef uint32_t check
    cdef uint16_t length = 0
    cdef list found = []
    if rest >= 2:
        memcpy(&check, entry, INDEX_CHECK_BYTES)
        if check == index_check(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), ids, rest):
            while rest >= 2 and len(found) < count:
                memcpy(&length, ids, 2)
                if not 0 < length <= rest - 2:
                    break
                found.append(ids[2:2 + length])
                ids += 2 + length
                rest -= 2 + length
    if not found or rest and len(found) < count:
        raise RecordDamaged("an entry of the index of identifiers is damaged")
    return found
