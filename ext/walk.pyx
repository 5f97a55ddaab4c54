"""A walk through a profile's events in either direction, as the dialects ask for them.

It goes by the directory and the marks of the blocks (history.py has both), as a page does: what is not asked for
is passed without being opened, and a place is a time and a count, so that it means the same in the next snapshot.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree
from libc.stdint cimport INT32_MAX, INT64_MAX, INT64_MIN, UINT64_MAX, int64_t, uint32_t, uint64_t

from edgeprofile._events cimport History, Names
from edgeprofile._history cimport Block, Mark
from edgeprofile._profile cimport PARAMS_OPEN_BYTES, Slice, Template, append, begin, find_value, render
from edgeprofile._record cimport View
from edgeprofile._store cimport Store
from json_text cimport Buffer, put

from edgeprofile.errors import AnswerTooLarge

cdef enum:
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
    # The event that `step` came to last, and the one that was found last.
    cdef uint32_t seen_at
    cdef View seen, view
    # The place behind all that was found or passed.
    cdef size_t reached_in
    cdef uint32_t reached_at

    def __cinit__(self, Store store not None, bytes primary not None, *, names=(), excluded=(),
                  int64_t start_us=INT64_MIN, int64_t end_us=INT64_MAX, bint ascending=False):
        self.names = Names(names) if names else None
        self.excluded = Names(excluded) if excluded else None
        self.start_us, self.end_us, self.ascending = start_us, end_us, ascending
        self.find(store, primary)
        self.first_param = store.name_field + 2
        self.go_to(start_us if ascending else end_us, 0)

    # --- from event to event ---------------------------------------------------------------------------------------

    cdef bint enter(self, Block* block) noexcept:
        """The block in which the next event is; False where there is none."""
        if self.ascending and self.at == 0:
            if self.number == 0:
                return False
            self.number -= 1
            self.read_block(self.number, block)
            self.at = block.count
            return True
        while self.number < self.blocks:
            self.read_block(self.number, block)
            if self.ascending or self.at == 0 or self.at < block.count:
                return True
            self.leave()
        return False

    cdef void leave(self) noexcept:
        """Passes what is left of a block."""
        if not self.ascending:
            self.number += 1
        self.at = 0

    cdef bint step(self, Mark* mark) except -1:
        """Goes past the next event in the range that may be wanted; False where there is none."""
        cdef Block block
        while self.enter(&block):
            if block.oldest_us > self.end_us if self.ascending else block.newest_us < self.start_us:
                return False
            if self.names is None or block.names & self.names.mask:
                if self.is_enough():
                    return False
                self.open(self.number)
                while self.at > 0 if self.ascending else self.at < self.count:
                    self.seen_at = self.at - 1 if self.ascending else self.at
                    self.read_mark(self.seen_at, mark)
                    if mark.time_us > self.end_us if self.ascending else mark.time_us < self.start_us:
                        return False
                    self.at = self.seen_at if self.ascending else self.at + 1
                    if self.names is None or self.names.may_have(mark.name_hash):
                        return True
            self.leave()
        return False

    cdef bint is_enough(self) noexcept:
        """Whether to go on would be to open one block too many."""
        cdef bint is_open = self.block != NULL and self.opened == self.number
        self.is_cut = self.is_cut or not is_open and self.blocks_read >= BLOCKS_MAX
        return self.is_cut

    cdef bint go_on(self, bint is_passed) except -1:
        """Goes past the next event that is wanted. One that is to be passed is opened only where its name must be."""
        cdef Mark mark
        while self.step(&mark):
            if self.is_wanted(&mark, is_passed):
                if not is_passed:
                    self.view = self.seen
                self.reach()
                return True
        return False

    cdef bint is_wanted(self, const Mark* mark, bint is_passed) except -1:
        cdef bint may_be_excluded = self.excluded is not None and self.excluded.may_have(mark.name_hash)
        if is_passed and self.names is None and not may_be_excluded:
            return True
        self.open_event(self.seen_at, &self.seen)
        if self.names is not None and not self.is_named(&self.seen, self.names):
            return False  # another name of the same hash
        return not may_be_excluded or not self.is_named(&self.seen, self.excluded)

    def next(self):
        return self.go_on(False)

    def skip(self, int count):
        cdef int passed = 0
        while passed < count:
            passed += self.pass_blocks(count - passed)
            if passed == count or not self.go_on(True):
                break
            passed += 1
        return passed

    cdef int pass_blocks(self, int most) except -1:
        """Passes blocks without opening them, where all in them is wanted; returns how many events that are."""
        cdef Block block
        cdef int passed = 0
        cdef uint32_t left
        while self.names is None and self.enter(&block):
            left = self.at if self.ascending else block.count - self.at
            if left > <uint32_t>(most - passed) or self.excluded is not None and block.names & self.excluded.mask:
                break
            if block.newest_us > self.end_us if self.ascending else block.oldest_us < self.start_us:
                break
            passed += left
            self.leave()
            self.reach()
        return passed

    # --- a place ---------------------------------------------------------------------------------------------------

    cdef void reach(self) noexcept:
        self.reached_in, self.reached_at = self.number, self.at

    def position(self):
        """By the time of the event that was passed last, and a count among the events of that time."""
        cdef size_t number = self.reached_in
        cdef uint32_t at = self.reached_at
        cdef int64_t time_us
        if not self.ascending:
            if number == at == 0:
                return self.end_us, 0
            time_us = self.time_before(number, at)
            return time_us, self.same_before(number, at, time_us)
        if number >= self.blocks:
            return self.start_us, 0
        time_us = self.time_before(number, at + 1)
        return time_us, self.same_up_to(time_us) - self.same_before(number, at, time_us)

    cdef uint64_t same_up_to(self, int64_t time_us) except? 0:
        """How many events of exactly this time there are."""
        cdef size_t number = self.number
        cdef uint32_t at = self.at
        cdef uint64_t count
        self.seek(time_us, UINT64_MAX)
        count = self.same_before(self.number, self.at, time_us)
        self.number, self.at = number, at
        return count

    cpdef go_to(self, int64_t time_us, uint64_t passed):
        cdef uint64_t same
        if not self.ascending:
            self.seek(min(time_us, self.end_us), passed if time_us <= self.end_us else 0)
        elif passed == 0 or time_us < self.start_us:
            self.seek(max(time_us, self.start_us), UINT64_MAX)
        else:
            same = self.same_up_to(time_us)
            self.seek(time_us, same - min(passed, same))
        self.reach()

    # --- what is found ---------------------------------------------------------------------------------------------

    @property
    def time_us(self):
        return self.view.updated_us

    def value(self, int field):
        cdef Slice value
        if not find_value(&self.view, self.first_param, PARAMS_OPEN_BYTES, field, &value):
            return None
        return PyBytes_FromStringAndSize(value.start, value.end - value.start)

    def render(self, Template template not None, tuple slots=(), uint64_t bytes_max=INT32_MAX):
        return render(&self.view, template, slots, bytes_max)

    def page(self, Template template not None, int limit, *, tuple slots=(), uint64_t bytes_max=INT32_MAX,
             int field=-1, int limit_per_value=0):
        cdef Buffer out
        cdef uint64_t most = begin(&out, bytes_max)
        cdef dict counts = {}
        self.taken = 0
        try:
            while self.taken < limit and self.go_on(False):
                if limit_per_value > 0:
                    value = self.value(field)
                    counts[value] = counts.get(value, 0) + 1
                    if counts[value] > limit_per_value:
                        continue
                if put(&out, b"},{" if self.taken else b"{", 3 if self.taken else 1) \
                        or append(&out, &self.view, template, slots) or out.size >= most:
                    raise AnswerTooLarge(most + 1, most)
                self.taken += 1
            if self.taken:
                put(&out, b"}", 1)
            return PyBytes_FromStringAndSize(out.start, out.size)
        finally:
            PyMem_RawFree(out.start)

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
        if number >= self.blocks:
            raise IndexError("there is no such event")
        self.open(number)
        if at >= self.count:
            raise IndexError("there is no such event")
        self.open_event(at, &self.seen)
        self.view = self.seen
