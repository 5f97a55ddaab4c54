"""The live layer, read while its one writer goes on: without a lock, a system call or a table of readers.

LMDB writes no page in place. What transaction N left is whole until a later one takes its pages up again, which is
N + 3 at the earliest: those that N + 1 freed are free to it. The writer announces each transaction once it is
durable, in a file that all map. A reader takes the last one announced, finds and copies what it wants, and looks
again: while no more than N + 1 has been announced, N + 3 cannot have begun, and what was copied is N's. Otherwise it
tries again. Whatever it meets meanwhile, it stays inside the map, as in tree.pyx.
"""

import mmap
import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from libc.stdint cimport UINT64_MAX, uint64_t
from libc.string cimport memcpy
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, mmap as map_memory, munmap

from edgeprofile._tree cimport (
    DEPTH_MAX, FOUND, IS_DATABASE, MAGIC, MISSING, PAGE_BYTES_MAX, PAGE_BYTES_MIN, Database, Meta, Page, read,
    read_after,
)

from edgeprofile.errors import LiveDamaged

cdef extern from *:
    """
    static inline uint64_t ep_announced(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
    static inline uint64_t ep_announced_after(const uint64_t *word)
    {
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        return __atomic_load_n(word, __ATOMIC_RELAXED);
    }
    static inline void ep_announce(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
    """
    uint64_t ep_announced(const uint64_t* word) noexcept nogil
    uint64_t ep_announced_after(const uint64_t* word) noexcept nogil
    void ep_announce(uint64_t* word, uint64_t value) noexcept nogil

cdef enum:
    VALUE_BYTES_MAX = 32 * 1024 * 1024
    TRIES_MAX = 1000  # each lost one to two commits, which are milliseconds; a lookup takes microseconds

cdef size_t MAP_BYTES = <size_t>1 << 36  # address space: the file grows in it
SEQUENCE_BYTES = mmap.PAGESIZE


@cython.final
@cython.auto_pickle(False)
cdef class Announcer:
    """What the writer announces its transactions by; see the stub."""

    cdef object mapped
    cdef uint64_t* word
    cdef unsigned char[::1] view

    def __cinit__(self, path):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # A hole would be filled on first use, where a full disk is a signal and no error.
            os.posix_fallocate(file, 0, SEQUENCE_BYTES)
            self.mapped = mmap.mmap(file, SEQUENCE_BYTES)
        finally:
            os.close(file)
        self.view = self.mapped
        self.word = <uint64_t*>&self.view[0]

    def announce(self, uint64_t transaction):
        ep_announce(self.word, transaction)


@cython.final
@cython.auto_pickle(False)
cdef class Live:
    """The databases of a live layer, as its last transaction left them; see the stub."""

    def __cinit__(self, path, sequence_path, tuple names not None):
        cdef Meta meta
        if len(names) != LIVE_DATABASES:
            raise ValueError(f"a live layer has {LIVE_DATABASES} databases")
        self.names = names
        self.announced = UINT64_MAX
        self.file = -1
        self.file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if os.fstat(self.file).st_size < 2 * PAGE_BYTES_MIN:
            raise LiveDamaged("the live layer's file is cut short")
        self.start = self.map.start = map_file(self.file, MAP_BYTES)
        memcpy(&meta, self.start + sizeof(Page), sizeof(Meta))
        self.map.page_bytes = meta.free.page_bytes
        if not PAGE_BYTES_MIN <= self.map.page_bytes <= PAGE_BYTES_MAX \
                or self.map.page_bytes & (self.map.page_bytes - 1) != 0:
            raise LiveDamaged("the live layer's file is not one of LMDB's, or its first page is damaged")
        sequence = os.open(sequence_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(sequence).st_size < <Py_ssize_t>sizeof(uint64_t):
                raise LiveDamaged("the live layer's sequence is cut short")
            self.sequence = <const uint64_t*>map_file(sequence, SEQUENCE_BYTES)
        finally:
            os.close(sequence)
        self.look()

    def __dealloc__(self):
        if self.file >= 0:
            os.close(self.file)
        if self.sequence != NULL:
            munmap(<void*>self.sequence, SEQUENCE_BYTES)
        if self.start != NULL:
            munmap(<void*>self.start, MAP_BYTES)

    @property
    def is_empty(self):
        self.look()
        return self.databases[LIVE_PROFILES].entries == 0

    @property
    def transaction(self):
        self.look()
        return self.taken

    def entries(self, bytes name not None):
        self.look()
        return self.databases[<int>self.names.index(name)].entries

    def get(self, bytes name not None, bytes key not None):
        return self.find(self.names.index(name), key)

    def after(self, bytes name not None, bytes key not None):
        return self.find_after(self.names.index(name), key)

    cdef bint has_any(self) except -1:
        """Whether any profile is live."""
        if ep_announced(self.sequence) != self.announced:
            self.take()
        return self.databases[LIVE_PROFILES].entries != 0

    cdef int look(self) except -1:
        """Takes over the last transaction that was announced."""
        if ep_announced(self.sequence) != self.announced:
            self.take()
        return 0

    cdef bint is_past(self) noexcept nogil:
        """Whether what was read since `look` may be of a later transaction."""
        cdef uint64_t now = ep_announced_after(self.sequence)
        return now > self.taken + 1 and now != self.announced

    cdef bytes find(self, int database, bytes key):
        """A copy of a value; None where there is no such key. Raises LiveDamaged."""
        cdef const char* value
        cdef size_t size
        cdef int found, _try
        for _try in range(TRIES_MAX):
            self.look()
            found = read(&self.map, &self.databases[database], 0, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key),
                         &value, &size)
            copy = None
            if found == FOUND and size <= VALUE_BYTES_MAX:
                copy = PyBytes_FromStringAndSize(value, size)
            if not self.is_past():
                if found == MISSING or copy is not None:
                    return copy
                break
        raise LiveDamaged("a page of the live layer is damaged")

    cdef bytes find_after(self, int database, bytes key):
        """A copy of the first key above one; None where there is none. Raises LiveDamaged."""
        cdef const char* above
        cdef size_t size
        cdef int found, _try
        for _try in range(TRIES_MAX):
            self.look()
            found = read_after(&self.map, &self.databases[database], PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key),
                               &above, &size)
            copy = PyBytes_FromStringAndSize(above, size) if found == FOUND else None
            if not self.is_past():
                if found == MISSING or copy is not None:
                    return copy
                break
        raise LiveDamaged("a page of the live layer is damaged")

    cdef int take(self) except -1:
        """Reads the databases of the last transaction that was announced.

        Where the file has none of that number, and none can be under way, the announcement was lost with the machine's
        power: then nobody has written since, and the later of the two meta pages holds.
        """
        cdef uint64_t announced
        cdef Meta meta
        cdef int _try
        for _try in range(TRIES_MAX):
            announced = ep_announced(self.sequence)
            self.read_meta(announced & 1, &meta)
            if meta.transaction != announced:
                if ep_announced_after(self.sequence) != announced:
                    continue
                self.read_newest_meta(&meta)
            try:
                self.use(&meta)
                self.announced, self.taken = announced, meta.transaction
                self.find_databases(&meta)
            except LiveDamaged:
                if not self.is_past():
                    self.announced = UINT64_MAX
                    raise
            if not self.is_past():
                return 0
        self.announced = UINT64_MAX
        raise LiveDamaged("the live layer changes faster than it can be read")

    cdef void read_meta(self, int number, Meta* meta) noexcept:
        memcpy(meta, self.start + number * self.map.page_bytes + sizeof(Page), sizeof(Meta))

    cdef void read_newest_meta(self, Meta* meta) noexcept:
        cdef Meta other
        self.read_meta(0, meta)
        self.read_meta(1, &other)
        if other.transaction > meta.transaction:
            meta[0] = other

    cdef int use(self, const Meta* meta) except -1:
        """As much of the file as a transaction has. All behind the system call is done under the interpreter's lock."""
        cdef uint64_t pages = meta.last_page + 1
        if meta.magic != MAGIC or pages > MAP_BYTES / self.map.page_bytes:
            raise LiveDamaged("the live layer's file is not one of LMDB's, or its first page is damaged")
        if os.fstat(self.file).st_size < <Py_ssize_t>(pages * self.map.page_bytes):
            raise LiveDamaged("the live layer's file is cut short")
        self.map.pages = pages
        self.map.bytes = pages * self.map.page_bytes
        return 0

    cdef int find_databases(self, const Meta* meta) except -1:
        cdef Database main = meta.main
        cdef Database database
        cdef const char* value
        cdef size_t size
        cdef bytes name
        cdef int i
        for i in range(LIVE_DATABASES):
            name = self.names[i]
            if not is_sound(&main) or read(&self.map, &main, IS_DATABASE, PyBytes_AS_STRING(name),
                                           PyBytes_GET_SIZE(name), &value, &size) != FOUND or size != sizeof(Database):
                raise LiveDamaged("a database of the live layer is missing or damaged")
            memcpy(&database, value, sizeof(Database))
            if not is_sound(&database):
                raise LiveDamaged("a database of the live layer is missing or damaged")
            self.databases[i] = database
        return 0


cdef inline bint is_sound(const Database* database) noexcept:
    return database.flags == 0 and database.depth <= DEPTH_MAX


cdef const char* map_file(int file, size_t size) except NULL:
    cdef void* start = map_memory(NULL, size, PROT_READ, MAP_SHARED, file, 0)
    if start == MAP_FAILED:
        PyErr_SetFromErrno(OSError)
    return <const char*>start
