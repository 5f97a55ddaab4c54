"""A profile's events, the newest first: one page of them, found by the directory of their blocks.

The directory (history.py has it byte by byte) tells of each block which times and names are in it, the index at the
head of a block which events. So a page costs what is on it, however long the history: a block that cannot hold what
is asked for is not touched, and of the others no record is read but those that the page has.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

import json

from edgeprofile._live cimport LIVE_EVENTS, LIVE_HISTORIES
from edgeprofile._history cimport DIRECTORY_CHECK_BYTES, Block, Mark
from edgeprofile._record cimport (
    RECORD_GOOD, RECORD_UNKNOWN_FORMAT, View, checksum, end_at, index_check, open_record, rank,
)
from edgeprofile._store cimport Store, slice_of
from edgeprofile._tree cimport DAMAGED, FOUND, HISTORIES, MISSING

from edgeprofile.errors import FormatUnsupported, MalformedQuery, RecordDamaged

cdef enum:
    BLOCKS_MAX = 1024  # that one page may read: the search for a rare name must not hold up everybody else
    CURSOR_CHARS = 22  # as base64url
    HEAD_BYTES = 11  # {"events":[
    TAIL_BYTES = 11  # ],"cursor":
    END_BYTES = 2 + CURSOR_CHARS + 1  # "…"}
    NULL_BYTES = 5  # null}

cdef const char* BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@cython.final
@cython.auto_pickle(False)
cdef class Names:
    """Names of events, by which blocks and marks that have none of them are told. Raises ValueError for too many."""

    def __cinit__(self, names):
        cdef bytes name
        cdef str each
        cdef int i
        if len(names) > NAMES_MAX:
            raise ValueError(f"at most {NAMES_MAX} names can be asked for at once")
        self.texts = [f'"name":{json.dumps(each, ensure_ascii=False)}'.encode() for each in names]
        for i, each in enumerate(names):
            name = each.encode()
            self.hashes[i] = <uint32_t>checksum(0, PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
            self.mask |= <uint64_t>1 << (self.hashes[i] & 63)

    cdef bint may_have(self, uint32_t name_hash) noexcept:
        """Whether one of them has this hash."""
        cdef Py_ssize_t i
        if self.mask >> (name_hash & 63) & 1:
            for i in range(len(self.texts)):
                if self.hashes[i] == name_hash:
                    return True
        return False


@cython.final
@cython.auto_pickle(False)
cdef class Wanted:
    """What a query asks for; see the stub."""

    def __cinit__(self, names, int64_t start_us, int64_t end_us, int limit, bytes cursor):
        cdef bytes asked
        if not 0 < limit <= EVENTS_MAX or cursor is not None and len(cursor) != CURSOR_BYTES:
            raise ValueError("no page can be of this limit, or no cursor have this length")
        self.start_us, self.end_us, self.limit = start_us, end_us, limit
        self.names = Names(names) if names else None
        asked = json.dumps([sorted(names), start_us, end_us]).encode()
        self.mark = checksum(0, PyBytes_AS_STRING(asked), PyBytes_GET_SIZE(asked))
        self.has_cursor = cursor is not None
        if cursor is not None:
            memcpy(self.cursor, PyBytes_AS_STRING(cursor), CURSOR_BYTES)

    cdef uint32_t bound(self, const Cursor* cursor, bytes primary) noexcept:
        """The check of a cursor: of a place in the events that this query finds of this profile."""
        cdef uint64_t seed = checksum(self.mark, PyBytes_AS_STRING(primary), PyBytes_GET_SIZE(primary))
        return <uint32_t>checksum(seed, cursor, CURSOR_BYTES - sizeof(uint32_t))


@cython.auto_pickle(False)
cdef class History:
    """A profile's events, with a place among them: the event `at` of the block `number`."""

    cdef int find(self, Store store, bytes primary) except -1:
        """Finds the profile's directory, which is checked before it is believed. Raises ProfileNotFound."""
        self.store = store
        self.primary = primary
        self.held = []
        store.expect(primary)
        cdef const char* key = PyBytes_AS_STRING(primary)
        cdef size_t key_bytes = PyBytes_GET_SIZE(primary), size
        cdef const char* value
        cdef uint32_t check
        cdef int found = FOUND
        cdef bytes live = store.live_value(LIVE_HISTORIES, primary)
        if live is None:
            found = store.tree.find(HISTORIES, key, key_bytes, &value, &size)
        else:
            self.held.append(live)
            value, size = PyBytes_AS_STRING(live), PyBytes_GET_SIZE(live)
            found = FOUND if size else MISSING
        if found == MISSING:
            return 0
        if found == DAMAGED or size < DIRECTORY_CHECK_BYTES + sizeof(Block):
            raise self.damaged()
        memcpy(&check, value, DIRECTORY_CHECK_BYTES)
        value += DIRECTORY_CHECK_BYTES
        size -= DIRECTORY_CHECK_BYTES
        if size % sizeof(Block) or check != index_check(key, key_bytes, value, size):
            raise self.damaged()
        self.directory = value
        self.blocks = size / sizeof(Block)
        self.seed = checksum(0, key, key_bytes)
        return 0

    # --- blocks ----------------------------------------------------------------------------------------------------

    cdef void read_block(self, size_t number, Block* block) noexcept nogil:
        memcpy(block, self.directory + number * sizeof(Block), sizeof(Block))  # which is at no even place

    cdef void read_mark(self, uint32_t number, Mark* mark) noexcept nogil:
        """Of the open block."""
        memcpy(mark, self.block + number * sizeof(Mark), sizeof(Mark))

    cdef int open(self, size_t number) except -1:
        """Finds a block, and checks its index, unless it is the one that is open."""
        cdef Block block
        cdef const char* start
        if self.block != NULL and self.opened == number:
            return 0
        self.read_block(number, &block)
        if block.reserved:
            start = self.live_block(&block)
        else:
            start = slice_of(&self.store.events, block.segment, block.offset, block.length)
        if start == NULL or block.count == 0 or block.count > block.length / sizeof(Mark):
            raise self.damaged()
        if checksum(self.seed, start, block.count * sizeof(Mark)) != block.check:
            raise self.damaged()
        self.block = start
        self.block_bytes = block.length
        self.count = block.count
        self.opened = number
        self.blocks_read += 1
        return 0

    cdef const char* live_block(self, const Block* block) except? NULL:
        """A block of the live layer, copied: its place is the number of a value there. NULL where it is none."""
        cdef uint64_t number = <uint64_t>block.segment << 32 | block.offset
        cdef bytes content = self.store.live_value(LIVE_EVENTS, number.to_bytes(8, "big"))
        if content is None or <uint64_t>PyBytes_GET_SIZE(content) != block.length:
            return NULL
        self.held.append(content)
        return PyBytes_AS_STRING(content)

    cdef uint32_t first(self, int64_t time_us, bint below) noexcept nogil:
        """In the open block, the first event that is not after a time or, `below`, is before it; `count` for none."""
        cdef Mark mark
        cdef uint32_t low = 0, high = self.count, middle
        while low < high:
            middle = low + (high - low) / 2
            self.read_mark(middle, &mark)
            if mark.time_us > time_us or below and mark.time_us == time_us:
                low = middle + 1
            else:
                high = middle
        return low

    # --- a place among the events ----------------------------------------------------------------------------------

    cdef int seek(self, int64_t time_us, uint64_t passed) except -1:
        """Goes to the first event that is not after a time and, of those at that very time, past so many."""
        cdef Block block
        cdef size_t low = 0, high = self.blocks
        cdef uint32_t behind
        while low < high:
            self.number = low + (high - low) / 2
            self.read_block(self.number, &block)
            if block.oldest_us > time_us:
                low = self.number + 1
            else:
                high = self.number
        self.number, self.at = low, 0
        while self.number < self.blocks:
            self.read_block(self.number, &block)
            if block.newest_us < time_us or block.newest_us == time_us and passed == 0:
                return 0
            if block.newest_us == block.oldest_us and passed >= block.count:
                passed -= block.count
            else:
                self.open(self.number)
                self.at = self.first(time_us, False)
                behind = self.first(time_us, True)
                if passed < behind - self.at:
                    self.at += <uint32_t>passed
                    return 0
                passed -= behind - self.at
                self.at = behind
                if behind < self.count:
                    return 0
            self.number, self.at = self.number + 1, 0
        return 0

    cdef uint64_t same_before(self, size_t number, uint32_t at, int64_t time_us) except? 0:
        """How many events of exactly this time stand before a place, of which none is older than that."""
        cdef Block block
        cdef uint32_t first
        cdef uint64_t count = 0
        while True:
            if at == 0:
                if number == 0:
                    return count
                number -= 1
                self.read_block(number, &block)
                if block.oldest_us != time_us:
                    return count
                at = block.count
            self.read_block(number, &block)
            first = 0
            if block.newest_us != time_us:
                self.open(number)
                first = self.first(time_us, False)
            count += at - first if at > first else 0
            if first:
                return count
            at = 0

    cdef int64_t time_before(self, size_t number, uint32_t at) except? -1:
        """The time of the event before a place, which is not the first one."""
        cdef Block block
        cdef Mark mark
        if at == 0:
            self.read_block(number - 1, &block)
            return block.oldest_us
        self.open(number)
        self.read_mark(at - 1, &mark)
        return mark.time_us

    # --- the events ------------------------------------------------------------------------------------------------

    cdef int open_event(self, uint32_t number, View* view) except -1:
        """Checks a record of the open block, and points `view` into it."""
        cdef Mark mark, behind
        cdef uint64_t end = self.block_bytes
        cdef int code
        self.read_mark(number, &mark)
        if number + 1 < self.count:
            self.read_mark(number + 1, &behind)
            end = behind.offset
        if not self.count * sizeof(Mark) <= mark.offset < end <= self.block_bytes:
            raise self.damaged()
        code = open_record(view, self.block + mark.offset, end - mark.offset,
                           PyBytes_AS_STRING(self.primary), PyBytes_GET_SIZE(self.primary))
        if code == RECORD_UNKNOWN_FORMAT:
            raise FormatUnsupported(f"an event of snapshot {self.store.reader.name} has an unknown format")
        if code != RECORD_GOOD or view.updated_us != mark.time_us:
            raise self.damaged()
        self.records_read += 1
        return 0

    cdef bint is_named(self, const View* view, Names names) except -1:
        """By the name that the event has: a hash may be that of several."""
        cdef int field = self.store.name_field
        cdef int before
        cdef uint64_t start, end
        cdef bytes text
        if field >= view.fields or not view.bitmap[field >> 3] >> (field & 7) & 1:
            raise self.damaged()
        before = rank(view, field)
        start = end_at(view, before - 1) + 1 if before else 1
        end = end_at(view, before)
        if not start <= end <= view.body_bytes:
            raise self.damaged()
        for text in names.texts:
            if <uint64_t>PyBytes_GET_SIZE(text) == end - start \
                    and memcmp(PyBytes_AS_STRING(text), view.body + start, end - start) == 0:
                return True
        return False

    cdef object damaged(self):
        return RecordDamaged(f"events of snapshot {self.store.reader.name} are damaged")


@cython.final
@cython.auto_pickle(False)
cdef class Page(History):
    """A page of events, opened and measured."""

    cdef int set_cursor(self, Wanted wanted) except -1:
        """The cursor of where the walk stands: what `seek` comes back by, in this snapshot and about so in others."""
        cdef Cursor cursor
        cursor.time_us = self.time_before(self.number, self.at)
        cursor.passed = <uint32_t>self.same_before(self.number, self.at, cursor.time_us)
        cursor.check = wanted.bound(&cursor, self.primary)
        memcpy(self.cursor, &cursor, CURSOR_BYTES)
        self.has_cursor = True
        return 0

    cdef int fill(self, Wanted wanted, uint64_t bytes_max) except -1:
        """Walks until the page is full, there is nothing more, or it has read enough."""
        cdef Block block
        while self.number < self.blocks:
            self.read_block(self.number, &block)
            if block.newest_us < wanted.start_us:
                return 0
            if wanted.names is None or block.names & wanted.names.mask:
                if self.blocks_read >= BLOCKS_MAX or not self.take(wanted, bytes_max):
                    return self.set_cursor(wanted)
            self.number, self.at = self.number + 1, 0
        return 0

    cdef bint take(self, Wanted wanted, uint64_t bytes_max) except -1:
        """Takes what is wanted of the block where the walk stands; False where some is left to another page."""
        cdef Mark mark
        cdef View* view
        self.open(self.number)
        while self.at < self.count:
            self.read_mark(self.at, &mark)
            if mark.time_us < wanted.start_us:
                return True
            if wanted.names is None or wanted.names.may_have(mark.name_hash):
                # By a name, only the record tells whether there is one more: another name may have its hash.
                if self.events == wanted.limit and wanted.names is None:
                    return False
                view = &self.views[self.events]
                self.open_event(self.at, view)
                if wanted.names is None or self.is_named(view, wanted.names):
                    if self.events == wanted.limit:
                        return False
                    if self.events and self.bytes + 1 + view.body_bytes > bytes_max:
                        return False
                    self.bytes += view.body_bytes + (1 if self.events else 0)
                    self.events += 1
            self.at += 1
        return True

    # --- the answer ------------------------------------------------------------------------------------------------

    cdef uint64_t check(self) noexcept nogil:
        """What changes with the page: with an event on it, or with its cursor."""
        cdef uint64_t checks[EVENTS_MAX]
        cdef int i
        for i in range(self.events):
            checks[i] = self.views[i].check
        return checksum(checksum(self.has_cursor, self.cursor, CURSOR_BYTES), checks, self.events * sizeof(uint64_t))

    cdef uint64_t size(self) noexcept nogil:
        """How long the answer is."""
        return self.bytes if self.has_cursor else self.bytes - END_BYTES + NULL_BYTES

    cpdef bytes body(self):
        """`{"events":[…],"cursor":…}`"""
        cdef bytes body = PyBytes_FromStringAndSize(NULL, self.size())
        cdef char* to = PyBytes_AS_STRING(body)
        cdef int i
        memcpy(to, b'{"events":[', HEAD_BYTES)
        to += HEAD_BYTES
        for i in range(self.events):
            if i:
                to[0] = b","
                to += 1
            memcpy(to, self.views[i].body, self.views[i].body_bytes)
            to += self.views[i].body_bytes
        memcpy(to, b'],"cursor":', TAIL_BYTES)
        to += TAIL_BYTES
        if self.has_cursor:
            to[0] = to[CURSOR_CHARS + 1] = b'"'
            put_cursor(to + 1, self.cursor)
            to[CURSOR_CHARS + 2] = b"}"
        else:
            memcpy(to, b"null}", NULL_BYTES)
        return body


cpdef Page read_page(Store store, bytes primary, Wanted wanted, uint64_t bytes_max):
    """The page of a profile's events that a query asks for, of at most so many bytes unless one event has more.

    Raises ProfileNotFound, MalformedQuery for a cursor of other events, RecordDamaged and FormatUnsupported.
    """
    cdef Page page = Page.__new__(Page)
    cdef Cursor cursor
    page.find(store, primary)
    page.bytes = HEAD_BYTES + TAIL_BYTES + END_BYTES
    if not wanted.has_cursor:
        page.seek(wanted.end_us, 0)
    else:
        memcpy(&cursor, wanted.cursor, CURSOR_BYTES)
        if cursor.check != wanted.bound(&cursor, primary):
            raise MalformedQuery("cursor is of another profile's events, or of another name, start or end.")
        page.seek(min(cursor.time_us, wanted.end_us), cursor.passed)
    page.fill(wanted, bytes_max)
    return page


cdef void put_cursor(char* to, const uint8_t* cursor) noexcept nogil:
    """As base64url, without the padding."""
    cdef uint32_t held = 0
    cdef int i, bits = 0
    for i in range(CURSOR_BYTES):
        held = held << 8 | cursor[i]
        bits += 8
        while bits >= 6:
            bits -= 6
            to[0] = BASE64[held >> bits & 63]
            to += 1
    to[0] = BASE64[held << (6 - bits) & 63]
