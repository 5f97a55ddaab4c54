"""A walk through a profile's events in either direction, as the dialects ask for them.

It goes by the directory and the marks of the blocks (history.py has both), as a page does: what is not asked for
is passed without being opened, and a place is a time and a count, so that it means the same in the next snapshot.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free
from libc.stdint cimport INT32_MAX, INT64_MAX, INT64_MIN, UINT64_MAX, int64_t, uint32_t, uint64_t

from edgeprofile._events cimport History, Names
from edgeprofile._history cimport Block, Mark
from edgeprofile._profile cimport Slice, Template, append, find_value, render
from edgeprofile._record cimport View
from edgeprofile._store cimport Store
from json_text cimport Buffer, put

from edgeprofile.errors import AnswerTooLarge

cdef enum:
    PARAMS_OPEN_BYTES = 10
    BLOCKS_MAX = 1024  # that one walk may read, as of a page
    KINDS_MAX = 256  # names that `kinds` tells apart
    TABLE = 1024


cdef struct Kind:  # of events that have one name
    uint32_t name_hash, newest_at, oldest_at
    size_t newest_in, oldest_in
    bint is_used


@cython.final
@cython.auto_pickle(False)
cdef class Walk(History):
    """See the stub."""

    cdef Names names, excluded
    cdef int64_t start_us, end_us
    cdef bint ascending
    cdef readonly bint is_cut
    cdef readonly int taken
    cdef int first_param
    # The event that was found last.
    cdef View view
    cdef readonly int64_t time_us
    cdef size_t found_in, seen_in
    cdef uint32_t found_at, seen_at

    def __cinit__(self, Store store not None, bytes primary not None, *, names=(), excluded=(),
                  int64_t start_us=INT64_MIN, int64_t end_us=INT64_MAX, bint ascending=False):
        self.names = Names(names) if names else None
        self.excluded = Names(excluded) if excluded else None
        self.start_us, self.end_us, self.ascending = start_us, end_us, ascending
        self.find(store, primary)
        self.first_param = store.name_field + 2
        if ascending:
            self.seek(start_us, UINT64_MAX)
        else:
            self.seek(end_us, 0)

    # --- from event to event ---------------------------------------------------------------------------------------

    cdef bint step(self, Mark* mark) except -1:
        """Goes to the next event in the range that may be wanted; False where there is none.

        Behind it, the place is one past that event, in the direction of the walk.
        """
        cdef Block block
        while True:
            if self.ascending:
                if self.at == 0:
                    if self.number == 0:
                        return False
                    self.number -= 1
                    self.read_block(self.number, &block)
                    self.at = block.count
            elif self.number >= self.blocks:
                return False
            self.read_block(self.number, &block)
            if block.oldest_us > self.end_us if self.ascending else block.newest_us < self.start_us:
                return False
            if self.names is None or block.names & self.names.mask:
                if self.is_enough():
                    return False
                self.open(self.number)
                while self.at > 0 if self.ascending else self.at < self.count:
                    self.seen_in = self.number
                    self.seen_at = self.at - 1 if self.ascending else self.at
                    self.read_mark(self.seen_at, mark)
                    if mark.time_us > self.end_us if self.ascending else mark.time_us < self.start_us:
                        return False
                    self.at = self.seen_at if self.ascending else self.at + 1
                    if self.names is None or self.names.may_have(mark.name_hash):
                        return True
            if self.ascending:
                self.at = 0
            else:
                self.number, self.at = self.number + 1, 0

    cdef bint is_enough(self) noexcept:
        self.is_cut = self.is_cut or self.blocks_read >= BLOCKS_MAX
        return self.is_cut

    cdef bint go_on(self, bint is_passed) except -1:
        """Goes to the next event that is wanted. One that is to be passed is opened only where its name must be."""
        cdef Mark mark
        while self.step(&mark):
            if self.is_wanted(&mark, is_passed):
                self.time_us = mark.time_us
                self.found_in, self.found_at = self.seen_in, self.seen_at
                return True
        return False

    cdef bint is_wanted(self, const Mark* mark, bint is_passed) except -1:
        cdef bint may_be_excluded = self.excluded is not None and self.excluded.may_have(mark.name_hash)
        if is_passed and self.names is None and not may_be_excluded:
            return True
        self.open_event(self.seen_at, &self.view)
        if self.names is not None and not self.is_named(&self.view, self.names):
            return False  # another name of the same hash
        return not may_be_excluded or not self.is_named(&self.view, self.excluded)

    def next(self):
        return self.go_on(False)

    def skip(self, int count):
        cdef int passed = self.pass_blocks(count)
        while passed < count and self.go_on(True):
            passed += 1
        return passed

    cdef int pass_blocks(self, int most) except -1:
        """Passes blocks without opening them, where all in them is wanted; returns how many events that are."""
        cdef Block block
        cdef uint32_t passed = 0
        if self.names is not None or self.excluded is not None or self.ascending:
            return 0
        while self.number < self.blocks:
            self.read_block(self.number, &block)
            if block.oldest_us < self.start_us or passed + (block.count - self.at) > <uint32_t>most:
                break
            passed += block.count - self.at
            self.number, self.at = self.number + 1, 0
        return passed

    # --- a place ---------------------------------------------------------------------------------------------------

    def position(self):
        cdef uint64_t passed = self.same_before(self.found_in, self.found_at, self.time_us)
        cdef size_t number = self.number
        cdef uint32_t at = self.at
        if not self.ascending:
            return self.time_us, passed + 1
        History.seek(self, self.time_us, UINT64_MAX)
        passed = self.same_before(self.number, self.at, self.time_us) - passed
        self.number, self.at = number, at
        return self.time_us, passed

    def go_to(self, int64_t time_us, uint64_t passed):
        cdef uint64_t same
        if not self.ascending:
            self.seek(min(time_us, self.end_us), passed if time_us <= self.end_us else 0)
            return
        if time_us < self.start_us:
            return
        self.seek(time_us, UINT64_MAX)
        same = self.same_before(self.number, self.at, time_us)
        self.seek(time_us, same - min(passed, same))

    # --- what is found ---------------------------------------------------------------------------------------------

    def value(self, int field):
        cdef Slice value
        if not find_value(&self.view, self.first_param, PARAMS_OPEN_BYTES, field, &value):
            return None
        return PyBytes_FromStringAndSize(value.start, value.end - value.start)

    def render(self, Template template not None, tuple slots=(), uint64_t bytes_max=INT32_MAX):
        return render(&self.view, template, slots, bytes_max)

    def page(self, Template template not None, int limit, *, tuple slots=(), uint64_t bytes_max=INT32_MAX,
             int field=-1, int limit_per_value=0):
        cdef Buffer out = Buffer(NULL, 0, 0, min(bytes_max, <uint64_t>INT32_MAX))
        cdef dict counts = {}
        self.taken = 0
        try:
            while self.taken < limit and self.go_on(False):
                if limit_per_value:
                    value = self.value(field)
                    counts[value] = counts.get(value, 0) + 1
                    if counts[value] > limit_per_value:
                        continue
                if self.taken and put(&out, b",", 1) or put(&out, b"{", 1) \
                        or append(&out, &self.view, template, slots) or put(&out, b"}", 1):
                    raise AnswerTooLarge(bytes_max + 1, bytes_max)
                self.taken += 1
            return PyBytes_FromStringAndSize(out.start, out.size)
        finally:
            PyMem_Free(out.start)

    def kinds(self):
        cdef Kind table[TABLE]
        cdef Kind* kind
        cdef Block block
        cdef Mark mark
        cdef size_t number
        cdef uint32_t at
        cdef int used = 0, i
        for i in range(TABLE):
            table[i].is_used = False
        for number in range(self.blocks):
            if BLOCKS_MAX / 2 <= number < self.blocks - min(self.blocks, <size_t>(BLOCKS_MAX / 2)):
                continue
            self.read_block(number, &block)
            self.open(number)
            for at in range(block.count):
                self.read_mark(at, &mark)
                kind = &table[mark.name_hash % TABLE]
                while kind.is_used and kind.name_hash != mark.name_hash:
                    kind = kind + 1 if kind < &table[TABLE - 1] else &table[0]
                if not kind.is_used:
                    if used == KINDS_MAX:
                        continue
                    used += 1
                    kind[0] = Kind(mark.name_hash, at, at, number, number, True)
                kind.oldest_in, kind.oldest_at = number, at
        found = [((table[i].newest_in, table[i].newest_at), (table[i].oldest_in, table[i].oldest_at))
                 for i in range(TABLE) if table[i].is_used]
        found.sort()
        return found

    def look_at(self, size_t number, uint32_t at):
        """Opens an event by a place that `kinds` gave."""
        cdef Mark mark
        if number >= self.blocks:
            raise IndexError("there is no such event")
        self.open(number)
        if at >= self.count:
            raise IndexError("there is no such event")
        self.read_mark(at, &mark)
        self.open_event(at, &self.view)
        self.time_us = mark.time_us
        self.found_in, self.found_at = number, at
