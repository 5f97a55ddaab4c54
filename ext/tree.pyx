"""The B-tree of a snapshot's file, read straight from the map: LMDB's format 0.9, as much as a lookup needs.

A published file never changes, so there is no transaction, no lock and nothing to write: a lookup goes from the
root to one leaf, and so does each step of a walk. All numbers in the file are in the machine's own order:

    page    number (8 bytes), unused (2), kind (2), end of the offsets (2), start of the nodes (2), then
            offsets of nodes (2 each), in the order of their keys. Pages 0 and 1 are meta pages. An overflow
            page, and those behind it, hold one large value after the first 16 bytes.
    node    low and high half of a size (2, 2), flags (2), bytes of the key (2), key, value. In a branch page the
            first three are a page's number, and there is no value: the child has the keys from this one on. The
            first key of a branch page counts as lower than any.

Nothing in a file is believed: every number, offset and length is checked against the map or the page, and a descent
has as many steps as its database is deep. Damage may yield a wrong value, which has a check of its own, but never
one from outside the map.
"""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from libc.stdint cimport uint16_t, uint64_t
from libc.string cimport memcmp, memcpy
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, mmap, munmap

from edgeprofile.errors import FormatUnsupported, SnapshotDamaged

cdef str DAMAGE = "a page of the snapshot's file is damaged"

cdef enum:
    VERSION = 1

# Kinds of pages. Leaves of a fixed key size (0x20) and pages inside of pages (0x40) are for duplicate keys.
cdef enum:
    BRANCH = 0x01
    LEAF = 0x02
    OVERFLOW = 0x04
    META = 0x08
    KINDS = 0x6F

# Flags of leaves' nodes.
cdef enum:
    IS_LARGE = 0x01  # the value is the number of the overflow page that has it


cdef struct Node:
    uint16_t low, high, flags, key_bytes


cdef struct Spot:  # a node, by its place in a page of so many
    const char* page
    size_t at, count


@cython.final
@cython.auto_pickle(False)
cdef class Tree:
    """A file's six named databases."""

    def __cinit__(self, path, size_t file_bytes, tuple names):
        cdef Database main
        cdef int i
        if len(names) != DATABASES:
            raise ValueError(f"a snapshot has {DATABASES} databases")
        self.names = names
        map_file(&self.map, path, file_bytes)
        main = main_database(&self.map)
        for i in range(DATABASES):
            self.databases[i] = named_database(&self.map, &main, names[i])

    def __dealloc__(self):
        if self.map.start != NULL:
            with nogil:  # because it takes a while to unmap gigabytes
                munmap(<void*>self.map.start, self.map.bytes)

    def entries(self, bytes name):
        return self.databases[<int>self.names.index(name)].entries

    def get(self, bytes name, bytes key):
        cdef const char* value
        cdef size_t value_bytes
        found = self.find(self.names.index(name), PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), &value, &value_bytes)
        if found == DAMAGED:
            raise SnapshotDamaged(DAMAGE)
        return value[:value_bytes] if found == FOUND else None

    def after(self, bytes name, bytes key):
        cdef const char* above
        cdef size_t above_bytes
        found = self.find_after(
            self.names.index(name), PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), &above, &above_bytes
        )
        if found == DAMAGED:
            raise SnapshotDamaged(DAMAGE)
        return above[:above_bytes] if found == FOUND else None

    def count(self, bytes name, entries):
        cdef bytes key
        cdef const char* value
        cdef size_t value_bytes, present = 0
        cdef int database = self.names.index(name), found
        for key, _ in entries:
            found = self.find(database, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), &value, &value_bytes)
            if found == DAMAGED:
                raise SnapshotDamaged(DAMAGE)
            present += found == FOUND
        return present

    cdef int find(self, int database, const char* key, size_t key_bytes,
                  const char** value, size_t* value_bytes) noexcept nogil:
        """FOUND, and where the value is in the map; MISSING; or DAMAGED."""
        return read(&self.map, &self.databases[database], 0, key, key_bytes, value, value_bytes)

    cdef int find_after(self, int database, const char* key, size_t key_bytes,
                        const char** above, size_t* above_bytes) noexcept nogil:
        """FOUND, and the first key above this one, the first of all above an empty one; MISSING; or DAMAGED."""
        return read_after(&self.map, &self.databases[database], key, key_bytes, above, above_bytes)


# --- opening -------------------------------------------------------------------------------------------------------

cdef int map_file(Map* map, path, size_t file_bytes) except -1:
    cdef void* start
    cdef int file = os.open(path, os.O_RDONLY)
    try:
        found_bytes = os.fstat(file).st_size
        if found_bytes != file_bytes or file_bytes < 2 * PAGE_BYTES_MIN:
            raise SnapshotDamaged(f"the snapshot's file has {found_bytes} bytes, not {file_bytes}")
        start = mmap(NULL, file_bytes, PROT_READ, MAP_SHARED, file, 0)
        if start == MAP_FAILED:
            PyErr_SetFromErrno(OSError)
    finally:
        os.close(file)
    map.start = <const char*>start
    map.bytes = file_bytes
    return 0


cdef Database main_database(Map* map) except *:
    """The main database after the last transaction. Transactions write one meta page and the other by turns."""
    cdef Meta meta, newest
    cdef const char* page
    cdef int number
    memcpy(&newest, map.start + sizeof(Page), sizeof(Meta))
    map.page_bytes = newest.free.page_bytes
    if not PAGE_BYTES_MIN <= map.page_bytes <= PAGE_BYTES_MAX or map.page_bytes & (map.page_bytes - 1) != 0:
        raise SnapshotDamaged("the snapshot's file is not one of LMDB's, or its first page is damaged")
    map.pages = map.bytes / map.page_bytes
    for number in range(2):
        page = page_at(map, number, META)
        if page == NULL:
            raise SnapshotDamaged("a meta page of the snapshot's file is damaged")
        memcpy(&meta, page + sizeof(Page), sizeof(Meta))
        if meta.magic != MAGIC or meta.free.page_bytes != map.page_bytes:
            raise SnapshotDamaged("a meta page of the snapshot's file is damaged")
        if meta.version != VERSION:
            raise FormatUnsupported(f"the snapshot's file has LMDB's format {meta.version}, not {VERSION}")
        if meta.transaction > newest.transaction:
            newest = meta
    return checked(newest.main)


cdef Database named_database(const Map* map, const Database* main, bytes name) except *:
    """A named database is a value of the main one."""
    cdef Database database
    cdef const char* value
    cdef size_t size
    cdef int found = read(map, main, IS_DATABASE, PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), &value, &size)
    if found != FOUND or size != sizeof(Database):
        raise SnapshotDamaged("a database of the snapshot's file is missing or damaged")
    memcpy(&database, value, sizeof(Database))
    return checked(database)


cdef Database checked(Database database) except *:
    if database.flags != 0:  # duplicate keys, or another order of keys
        raise FormatUnsupported("a database of the snapshot's file is of an unknown kind")
    if database.depth > DEPTH_MAX:
        raise SnapshotDamaged("a database of the snapshot's file is deeper than can be")
    return database


# --- finding -------------------------------------------------------------------------------------------------------

cdef int read(const Map* map, const Database* database, uint16_t flags, const char* key, size_t key_bytes,
              const char** value, size_t* value_bytes) noexcept nogil:
    """As Tree.find, for a value with these flags."""
    cdef Node node
    cdef Spot spot
    cdef const char* at
    cdef uint64_t number = database.root
    cdef size_t room
    cdef int _level
    if database.depth == 0:
        return MISSING
    for _level in range(database.depth - 1):
        if seek(map, number, BRANCH, key, key_bytes, &spot, &node) == NULL:
            return DAMAGED
        number = child_of(&node)
    at = seek(map, number, LEAF, key, key_bytes, &spot, &node)
    if at == NULL:
        return DAMAGED
    if node.key_bytes != key_bytes or memcmp(at + sizeof(Node), key, key_bytes) != 0:
        return MISSING
    if node.flags & ~IS_LARGE != flags:
        return DAMAGED
    room = map.page_bytes - ((at - map.start) & (map.page_bytes - 1)) - sizeof(Node) - key_bytes
    at += sizeof(Node) + key_bytes
    if node.flags & IS_LARGE:
        if room < sizeof(number):
            return DAMAGED
        memcpy(&number, at, sizeof(number))
        at = page_at(map, number, OVERFLOW)
        if at == NULL:
            return DAMAGED
        at += sizeof(Page)
        room = map.start + map.bytes - at
    value[0] = at
    value_bytes[0] = node.low | <size_t>node.high << 16
    return FOUND if value_bytes[0] <= room else DAMAGED


cdef int read_after(const Map* map, const Database* database, const char* key, size_t key_bytes,
                    const char** above, size_t* above_bytes) noexcept nogil:
    """As Tree.find_after.

    What is not in the leaf to which the key leads is the first of the subtree behind it: that of the deepest branch
    with a child to the right of the way. Its number is noted on the way down.
    """
    cdef Node node
    cdef Spot spot
    cdef const char* at
    cdef uint64_t number = database.root, behind = 0
    cdef int level, behind_level = -1, _level
    if database.depth == 0:
        return MISSING
    for level in range(database.depth - 1):
        if seek(map, number, BRANCH, key, key_bytes, &spot, &node) == NULL:
            return DAMAGED
        number = child_of(&node)
        if spot.at + 1 < spot.count:
            if node_at(map, spot.page, spot.at + 1, &node) == NULL:
                return DAMAGED
            behind, behind_level = child_of(&node), level + 1
    at = seek(map, number, LEAF, key, key_bytes, &spot, &node)
    if at != NULL and not is_above(at + sizeof(Node), node.key_bytes, key, key_bytes):
        if spot.at + 1 < spot.count:
            at = node_at(map, spot.page, spot.at + 1, &node)
        elif behind_level < 0:
            return MISSING
        else:
            for _level in range(behind_level, database.depth - 1):
                if seek(map, behind, BRANCH, key, 0, &spot, &node) == NULL:
                    return DAMAGED
                behind = child_of(&node)
            at = seek(map, behind, LEAF, key, 0, &spot, &node)
    # One that is not above would lead a walk in circles.
    if at == NULL or not is_above(at + sizeof(Node), node.key_bytes, key, key_bytes):
        return DAMAGED
    above[0] = at + sizeof(Node)
    above_bytes[0] = node.key_bytes
    return FOUND


cdef inline uint64_t child_of(const Node* node) noexcept nogil:
    """The number of the page that a branch's node leads to."""
    return node.low | <uint64_t>node.high << 16 | <uint64_t>node.flags << 32


cdef inline const char* seek(const Map* map, uint64_t number, uint16_t kind, const char* key, size_t key_bytes,
                             Spot* spot, Node* node) noexcept nogil:
    """The last node of a page whose key is not above this one, or else the first; NULL where there is damage."""
    cdef const char* page = page_at(map, number, kind)
    cdef const char* at
    cdef size_t end, count, half, first = 0
    if page == NULL:
        return NULL
    end = (<const Page*>page).lower
    if not sizeof(Page) + sizeof(uint16_t) <= end <= map.page_bytes:
        return NULL
    count = (end - sizeof(Page)) / sizeof(uint16_t)
    spot.page, spot.count = page, count
    while count > 1:
        half = count / 2
        at = node_at(map, page, first + half, node)
        if at == NULL:
            return NULL
        if not is_above(at + sizeof(Node), node.key_bytes, key, key_bytes):
            first += half
        count -= half
    spot.at = first
    return node_at(map, page, first, node)


cdef inline const char* node_at(const Map* map, const char* page, size_t i, Node* node) noexcept nogil:
    """A page's node, which is inside the page with its key; NULL where it is not."""
    cdef size_t offset = (<const uint16_t*>(page + sizeof(Page)))[i]
    if offset + sizeof(Node) > map.page_bytes:
        return NULL
    memcpy(node, page + offset, sizeof(Node))  # in a damaged file it may begin at an odd place
    return page + offset if offset + sizeof(Node) + node.key_bytes <= map.page_bytes else NULL


cdef inline const char* page_at(const Map* map, uint64_t number, uint16_t kind) noexcept nogil:
    """A page of this kind, which is inside the map; NULL where it is not."""
    cdef const Page* page
    if number >= map.pages:
        return NULL
    page = <const Page*>(map.start + number * map.page_bytes)
    return <const char*>page if page.number == number and page.kind & KINDS == kind else NULL


cdef inline bint is_above(const char* a, size_t a_bytes, const char* b, size_t b_bytes) noexcept nogil:
    """LMDB's order of keys: by their bytes, and the shorter first where the other begins with it."""
    cdef int order = memcmp(a, b, min(a_bytes, b_bytes))
    return order > 0 or (order == 0 and a_bytes > b_bytes)
