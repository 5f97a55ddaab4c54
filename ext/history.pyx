"""Histories (history.py has them byte by byte): made of encoded batches, and checked as a whole.

What is being made is one block and one directory, however many events a profile has.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree
from libc.stdint cimport INT64_MAX, UINT32_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from edgeprofile._record cimport (
    RECORD_BYTES_MAX, RECORD_GOOD, RECORD_UNKNOWN_FORMAT, View, checksum, index_check, load64, open_record,
)
from json_text cimport Buffer, put

from edgeprofile.errors import FormatUnsupported, RecordDamaged, SourceError

cdef enum:
    PLACE_BYTES = 12
    TIME_OFFSET = 16  # of a record's time in its header


# --- writing -------------------------------------------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class HistoryBuilder:
    """Turns batches of encoded events, whose rows are sorted by profile and then as history.py says, into segments."""

    cdef Buffer records     # of the block that is open
    cdef Buffer directory   # of the profile whose events are being read
    cdef Buffer segment
    cdef Mark marks[BLOCK_EVENTS_MAX]
    cdef Block block
    cdef bytes primary
    cdef list histories

    def __cinit__(self):
        self.records.limit = RECORD_BYTES_MAX + BLOCK_BYTES_MAX
        self.directory.limit = self.segment.limit = UINT32_MAX
        self.histories = []

    def __dealloc__(self):
        PyMem_RawFree(self.records.start)
        PyMem_RawFree(self.directory.start)
        PyMem_RawFree(self.segment.start)

    def add(self, batch, uint32_t number) -> tuple:
        cdef bytes segment = batch.segment, hashes = batch.hashes, primary, place
        cdef list entries = batch.entries
        cdef const char* at = PyBytes_AS_STRING(hashes)
        cdef uint32_t where[3]  # reader.PLACE
        cdef uint32_t name_hash
        if len(hashes) != 4 * len(entries):
            raise ValueError("every event has the hash of its name")
        for primary, place in entries:
            memcpy(where, PyBytes_AS_STRING(place), PLACE_BYTES)
            memcpy(&name_hash, at, 4)
            at += 4
            if self.primary is None or primary != self.primary:
                self.close_history(number)
                self.primary = primary
            self.append(PyBytes_AS_STRING(segment) + where[1], where[2], name_hash, number)
        return self.taken()

    def finish(self, uint32_t number) -> tuple:
        self.close_history(number)
        self.primary = None
        return self.taken()

    cdef tuple taken(self):
        """What has become whole: blocks, one behind the other, and (primary id, directory)."""
        cdef tuple whole = (PyBytes_FromStringAndSize(self.segment.start, self.segment.size), self.histories)
        self.segment.size = 0
        self.histories = []
        return whole

    cdef int append(self, const char* record, size_t size, uint32_t name_hash, uint32_t number) except -1:
        cdef int64_t time_us = <int64_t>load64(record + TIME_OFFSET)
        cdef Mark* mark
        cdef bint is_first = self.block.count == 0 and self.directory.size == 0
        if not is_first and time_us > self.block.oldest_us:
            raise ValueError("the events of a profile come newest first")
        if self.block.count == BLOCK_EVENTS_MAX \
                or (self.block.count + 1) * sizeof(Mark) + self.records.size + size > BLOCK_BYTES_MAX:
            self.close_block(number)
        if self.block.count == 0:
            self.block.newest_us = time_us
        self.block.oldest_us = time_us
        self.block.names |= <uint64_t>1 << (name_hash & 63)
        mark = &self.marks[self.block.count]
        mark.time_us = time_us
        mark.name_hash = name_hash
        mark.offset = <uint32_t>self.records.size
        self.block.count += 1
        if put(&self.records, record, size):
            raise ValueError("an event's record is too large")
        return 0

    cdef int close_block(self, uint32_t number) except -1:
        """Writes the open block, if there is one, and its entry in the directory."""
        cdef size_t index_bytes = self.block.count * sizeof(Mark)
        cdef uint32_t i
        if self.block.count == 0:
            return 0
        for i in range(self.block.count):
            self.marks[i].offset += <uint32_t>index_bytes
        self.block.check = checksum(seed_of(self.primary), self.marks, index_bytes)
        self.block.segment = number
        self.block.offset = <uint32_t>self.segment.size
        self.block.length = <uint32_t>(index_bytes + self.records.size)
        if put(&self.segment, <const char*>self.marks, index_bytes) \
                or put(&self.segment, self.records.start, self.records.size) \
                or put(&self.directory, <const char*>&self.block, sizeof(Block)):
            raise SourceError("the warehouse gave more events at once than a segment of 4 GiB can hold")
        self.records.size = 0
        self.block.count = 0
        self.block.names = 0
        return 0

    cdef int close_history(self, uint32_t number) except -1:
        cdef uint32_t check
        if self.primary is None:
            return 0
        self.close_block(number)
        check = index_check(PyBytes_AS_STRING(self.primary), PyBytes_GET_SIZE(self.primary),
                            self.directory.start, self.directory.size)
        directory = (<char*>&check)[:DIRECTORY_CHECK_BYTES] + self.directory.start[:self.directory.size]
        self.histories.append((self.primary, directory))
        self.directory.size = 0
        return 0


cdef inline uint64_t seed_of(bytes primary) noexcept:
    return checksum(0, PyBytes_AS_STRING(primary), PyBytes_GET_SIZE(primary))


# --- the whole check, for tools ------------------------------------------------------------------------------------

def check_history(bytes primary, const unsigned char[::1] directory, list segments) -> tuple:
    cdef Block block
    cdef const unsigned char[::1] segment
    cdef Py_ssize_t at = DIRECTORY_CHECK_BYTES, size = directory.shape[0] - DIRECTORY_CHECK_BYTES
    cdef uint32_t check
    cdef int64_t reached_us = INT64_MAX
    cdef uint64_t events = 0, events_bytes = 0
    if size <= 0 or size % <Py_ssize_t>sizeof(Block):
        raise damaged()
    memcpy(&check, &directory[0], DIRECTORY_CHECK_BYTES)
    if check != index_check(PyBytes_AS_STRING(primary), PyBytes_GET_SIZE(primary),
                            <const char*>&directory[DIRECTORY_CHECK_BYTES], size):
        raise damaged()
    while at < directory.shape[0]:
        memcpy(&block, &directory[at], sizeof(Block))
        if block.segment >= <size_t>len(segments) or block.newest_us > reached_us:
            raise damaged()
        segment = segments[block.segment]
        if block.length == 0 or <uint64_t>block.offset + block.length > <uint64_t>segment.shape[0]:
            raise damaged()
        check_block(primary, &block, <const char*>&segment[0] + block.offset)
        reached_us = block.oldest_us
        at += sizeof(Block)
        events += block.count
        events_bytes += block.length
    return events, events_bytes


cdef int check_block(bytes primary, const Block* block, const char* content) except -1:
    """Every record against its check, and all that the directory says of the block against what is in it."""
    cdef View view
    cdef Mark mark, following
    cdef size_t index_bytes = block.count * sizeof(Mark)
    cdef uint64_t names = 0
    cdef int64_t reached_us = block.newest_us
    cdef uint32_t i
    cdef int code
    if not 0 < block.count <= BLOCK_EVENTS_MAX or block.length < index_bytes or block.reserved != 0 \
            or block.count > 1 and block.length > BLOCK_BYTES_MAX:
        raise damaged()
    if block.check != checksum(seed_of(primary), content, index_bytes):
        raise damaged()
    memcpy(&following, content, sizeof(Mark))
    if following.offset != index_bytes or following.time_us != block.newest_us:
        raise damaged()
    for i in range(1, block.count + 1):
        mark = following
        following.offset = block.length
        if i < block.count:
            memcpy(&following, content + i * sizeof(Mark), sizeof(Mark))
        if mark.time_us > reached_us or not mark.offset <= following.offset <= block.length:
            raise damaged()
        code = open_record(&view, content + mark.offset, following.offset - mark.offset,
                           PyBytes_AS_STRING(primary), PyBytes_GET_SIZE(primary))
        if code == RECORD_UNKNOWN_FORMAT:
            raise FormatUnsupported("an event's record has an unknown format")
        if code != RECORD_GOOD or view.updated_us != mark.time_us:
            raise damaged()
        reached_us = mark.time_us
        names |= <uint64_t>1 << (mark.name_hash & 63)
    if names != block.names or reached_us != block.oldest_us:
        raise damaged()
    return 0


cdef object damaged():
    return RecordDamaged("a profile's events are damaged")
