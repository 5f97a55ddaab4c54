"""A profile, or an event, as a dialect's answer has it: values of its record, put between texts that a Template has.

No JSON is parsed for that: a record's table says where each value begins and ends. Only a value that is to become a
text is looked into.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_RawFree
from libc.stdint cimport INT32_MAX, INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t

from edgeprofile._record cimport (
    AUDIENCES_OPEN_BYTES, RECORD_GOOD, RECORD_UNKNOWN_FORMAT, Run, View, end_at, open_record, rank,
)
from edgeprofile._store cimport Store
from json_scan cimport plain_end
from json_text cimport PUT_BAD_UTF8, SLACK_BYTES, Buffer, is_sayable, put, put_string, write_day, write_digits

from edgeprofile.errors import AnswerTooLarge, FormatUnsupported, RecordDamaged

# How an item of a template is rendered, see the stub. For Python they are the numbers of these names.
cdef enum:
    _CONSTANT = 0
    _SLOT = 1
    _VALUE = 2
    _TEXT = 3
    _IF_TRUE = 4
    _RUN = 5
    _OBJECT = 6
    _TIME_S = 7
    _TIME_MS = 8

CONSTANT, SLOT, VALUE, TEXT, IF_TRUE, RUN, OBJECT, TIME_S, TIME_MS = range(9)


# --- templates -----------------------------------------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class Template:
    """What to render of a record; see the stub."""

    def __cinit__(self, items, int first_nested, bint is_event=False):
        cdef Item* item
        cdef int i
        self.kept = []
        self.day = INT64_MAX  # none
        self.first_nested = first_nested
        self.open_bytes = PARAMS_OPEN_BYTES if is_event else AUDIENCES_OPEN_BYTES
        self.count = len(items)
        self.items = <Item*>PyMem_Calloc(self.count + 1, sizeof(Item))
        if self.items == NULL:
            raise MemoryError()
        for i in range(self.count):
            item = &self.items[i]
            item.how, *rest = items[i]
            if item.how in (_SLOT, _VALUE, _TEXT, _IF_TRUE):
                item.field, *rest = rest
            elif item.how in (_RUN, _OBJECT):
                runs, *rest = rest
                self.keep_runs(item, runs)
            elif item.how not in (_CONSTANT, _TIME_S, _TIME_MS):
                raise ValueError("a template has no items of this kind")
            # Behind the comma that it has where it is not the first.
            item.before, item.before_bytes = self.keep(rest[0] if rest else b"", b",")
            if len(rest) > 1:
                item.after, item.after_bytes = self.keep(rest[1], b"")
            if item.how == _TIME_S or item.how == _TIME_MS:
                item.field = rest[2] if len(rest) > 2 else -1
            if item.how == _OBJECT and item.before_bytes + item.after_bytes == 0:
                item.how = _RUN  # so that nothing of it leaves no comma

    def __dealloc__(self):
        cdef int i
        if self.items != NULL:
            for i in range(self.count):
                PyMem_Free(self.items[i].runs)
        PyMem_Free(self.items)

    cdef (const char*, size_t) keep(self, bytes text, bytes head):
        """Keeps a text and, in front of it, another."""
        if text is None:
            raise TypeError("a template's texts are bytes")
        kept = head + text
        self.kept.append(kept)
        return PyBytes_AS_STRING(kept) + PyBytes_GET_SIZE(head), PyBytes_GET_SIZE(text)

    cdef int keep_runs(self, Item* item, runs) except -1:
        cdef int i
        item.count = len(runs)
        item.runs = <Run*>PyMem_Malloc(sizeof(Run) * (item.count + 1))
        if item.runs == NULL:
            raise MemoryError()
        for i in range(item.count):
            item.runs[i].first, item.runs[i].last = runs[i]
            if not 0 <= item.runs[i].first <= item.runs[i].last:
                raise ValueError("a run of fields goes from a number to one that is not below it")
            if item.runs[i].first < self.first_nested < item.runs[i].last:
                raise ValueError("a run of fields is nested as a whole or not at all")
        return 0


cdef bytes render(const View* view, Template template, tuple slots, uint64_t bytes_max):
    """What a template makes of an opened record. Raises AnswerTooLarge past `bytes_max`, RecordDamaged."""
    cdef Buffer out
    bytes_max = begin(&out, bytes_max)
    try:
        if append(&out, view, template, slots) or out.size > bytes_max:
            raise AnswerTooLarge(bytes_max + 1, bytes_max)
        return PyBytes_FromStringAndSize(out.start, out.size)
    finally:
        PyMem_RawFree(out.start)


cdef uint64_t begin(Buffer* out, uint64_t bytes_max) noexcept:
    """Makes a buffer with room for more than what is allowed, which is returned and to be checked in the end.

    Texts are written into room for the worst case.
    """
    bytes_max = min(bytes_max, <uint64_t>INT32_MAX)
    out[0] = Buffer(NULL, 0, 0, bytes_max + SLACK_BYTES)
    return bytes_max


cdef int append(Buffer* out, const View* view, Template template, tuple slots) except -1:
    """Renders behind what is there already; anything but 0 means that there is no room for it."""
    cdef size_t start = out.size
    cdef int i
    for i in range(template.count):
        if put_item(out, view, template, &template.items[i], slots, out.size > start):
            return 1
    return 0


cdef int put_item(Buffer* out, const View* view, Template template, const Item* item, tuple slots,
                  bint is_behind) except -1:
    """Renders an item, with a comma before it if it `is_behind` others; nothing at all where nothing comes of it."""
    cdef Slice value
    cdef bytes slot
    if item.how == _CONSTANT:
        return put_before(out, item, is_behind) if item.before_bytes else 0
    if item.how == _SLOT:
        slot = slots[item.field]
        if slot is None:
            raise TypeError("the texts that come with a record are bytes")
        if PyBytes_GET_SIZE(slot) == 0:
            return 0
        return put_before(out, item, is_behind) or put(out, PyBytes_AS_STRING(slot), PyBytes_GET_SIZE(slot))
    if item.how == _RUN or item.how == _OBJECT:
        return put_runs(out, view, template, item, is_behind)
    if item.how == _TIME_S or item.how == _TIME_MS:
        return put_before(out, item, is_behind) or put_moment(out, view, template, item) or put_after(out, item)
    if not find_value(view, template.first_nested, template.open_bytes, item.field, &value):
        return 0
    if item.how == _IF_TRUE:
        return put_before(out, item, is_behind) if value.start[0] == b"t" and item.before_bytes else 0
    if item.how == _TEXT and value.start[0] == b"n":
        return 0
    if put_before(out, item, is_behind):
        return 1
    if item.how == _TEXT:
        if put_text(out, value.start, value.end, True):
            return 1
    elif put(out, value.start, value.end - value.start):
        return 1
    return put_after(out, item)


cdef inline int put_before(Buffer* out, const Item* item, bint is_behind) except -1:
    return put(out, item.before - is_behind, item.before_bytes + is_behind)


cdef inline int put_after(Buffer* out, const Item* item) except -1:
    return put(out, item.after, item.after_bytes) if item.after_bytes else 0


cdef int put_runs(Buffer* out, const View* view, Template template, const Item* item, bint is_behind) except -1:
    """Fields as they stand in the record, those of one run in one piece."""
    cdef size_t filled
    cdef Slice fields
    cdef int i
    if item.how == _OBJECT and put_before(out, item, is_behind):
        return 1
    filled = out.size
    for i in range(item.count):
        if not find_run(view, template.first_nested, template.open_bytes, &item.runs[i], &fields):
            continue
        if out.size > filled:
            if put(out, b",", 1):
                return 1
        elif item.how == _RUN and put_before(out, item, is_behind):
            return 1
        if put(out, fields.start, fields.end - fields.start):
            return 1
    if item.how == _RUN and out.size == filled:
        return 0
    return put_after(out, item)


# --- values --------------------------------------------------------------------------------------------------------

cdef bint find_run(const View* view, int first_nested, int open_bytes, const Run* run, Slice* found) except -1:
    """The fields from `first` to before `last`, all nested or none of them; False where there is none of them."""
    cdef int first = rank(view, run.first), last = rank(view, run.last)
    if first == last:
        return False
    take(view, first, last, run.first >= first_nested, rank(view, first_nested), open_bytes, found)
    return True


cdef int take(const View* view, int first, int last, bint is_nested, int flat, int open_bytes, Slice* found) except -1:
    """The fields from the `first` to before the `last` of those that there are, of which so many are flat."""
    cdef uint64_t start = end_at(view, first - 1) + 1 if first else 1
    cdef uint64_t end = end_at(view, last - 1)
    if is_nested and first == flat:
        start += open_bytes
    if not start < end < view.body_bytes or view.body[start] != b'"' \
            or view.body[end] != (c"}" if is_nested and last == view.present else c","):
        raise misled()
    found.start = view.body + start
    found.end = view.body + end
    return 0


cdef bint find_value(const View* view, int first_nested, int open_bytes, int field, Slice* value) except -1:
    """The value of a field; False where the record lacks it."""
    cdef bint is_nested = field >= first_nested
    cdef int first
    cdef const uint8_t* at
    cdef const uint8_t* end
    if not 0 <= field < view.fields or not view.bitmap[field >> 3] >> (field & 7) & 1:
        return False
    first = rank(view, field)
    take(view, first, first + 1, is_nested, rank(view, first_nested) if is_nested else 0, open_bytes, value)
    end = <const uint8_t*>value.end
    at = past_quote(<const uint8_t*>value.start + 1, end)
    if end - at < 2 or at[0] != b":":
        raise misled()
    value.start = <const char*>at + 1
    return True


cdef object misled():
    return RecordDamaged("the table of a record does not fit its fields")


cdef const uint8_t* past_quote(const uint8_t* at, const uint8_t* end) noexcept nogil:
    """Past the quotation mark that ends a string; `end` where none does."""
    while True:
        at = plain_end(at, end)
        if at == end:
            return end
        if at[0] == b'"':
            return at + 1
        at += 2 if end - at > 2 else 1


cdef int put_text(Buffer* out, const char* at, const char* end, bint with_lists) except -1:
    """A JSON value as a text or, `with_lists`, a list as one of texts."""
    cdef int refused
    if at[0] == b'"':
        return put(out, at, end - at)
    if at[0] == b"[" and with_lists:
        return put_texts(out, at, end)
    refused = put_string(out, at, end - at)
    if refused == PUT_BAD_UTF8:
        raise misled()  # to within a character
    return refused


cdef int put_texts(Buffer* out, const char* at, const char* end) except -1:
    """The elements of a list, without those that are null."""
    cdef const char* stop
    cdef size_t filled
    if put(out, b"[", 1):
        return 1
    filled = out.size
    at += 1
    while at < end - 1:
        stop = element_end(at, end - 1)
        if at[0] != b"n":
            if out.size > filled and put(out, b",", 1):
                return 1
            if put_text(out, at, stop, False):
                return 1
        at = stop + 1
    return put(out, b"]", 1)


cdef const char* element_end(const char* at, const char* end) noexcept nogil:
    """The comma behind an element, or `end`."""
    cdef int depth = 0
    while at < end:
        if at[0] == b'"':
            at = <const char*>past_quote(<const uint8_t*>at + 1, <const uint8_t*>end)
            continue
        if at[0] == b"," and depth == 0:
            return at
        depth += (at[0] == b"[" or at[0] == b"{") - (at[0] == b"]" or at[0] == b"}")
        at += 1
    return end


cdef int put_moment(Buffer* out, const View* view, Template template, const Item* item) except -1:
    """The value of the item's field, or the record's own time where it has none."""
    cdef Slice value
    if item.field >= 0 and find_value(view, template.first_nested, template.open_bytes, item.field, &value) \
            and value.start[0] != b"n":
        return put(out, value.start, value.end - value.start)
    return put_time(out, template, view.updated_us, item.how == _TIME_MS)


cdef int put_time(Buffer* out, Template template, int64_t moment_us, bint with_ms) except -1:
    """As RFC 3339 in UTC, cut off at the second or the millisecond; null outside the years 1 to 9999."""
    cdef int64_t ms = moment_us // 1000 - (1 if moment_us % 1000 < 0 else 0)
    cdef int64_t day = ms // 86400000 - (1 if ms % 86400000 < 0 else 0)
    cdef uint32_t rest = <uint32_t>(ms - day * 86400000)
    cdef char* text = template.time
    cdef size_t size = TIME_BYTES_MAX - (0 if with_ms else 4)
    if moment_us == template.moment_us and size == template.time_bytes:  # as one that stands for another's lack does
        return put(out, text, size)
    if not is_sayable(day):
        return put(out, b"null", 4)
    if day != template.day:  # most are of the day of the one before, and a date takes a while
        write_day(text + 1, day)
        template.day = day
    write_digits(text + 12, rest / 3600000, 2)
    write_digits(text + 15, rest / 60000 % 60, 2)
    write_digits(text + 18, rest / 1000 % 60, 2)
    if with_ms:
        text[20] = b"."
        write_digits(text + 21, rest % 1000, 3)
    text[11] = b"T"
    text[14] = text[17] = b":"
    text[size - 2] = b"Z"
    text[0] = text[size - 1] = b'"'
    template.moment_us, template.time_bytes = moment_us, size
    return put(out, text, size)


# --- profiles ------------------------------------------------------------------------------------------------------

@cython.final
@cython.freelist(8)
@cython.auto_pickle(False)
cdef class Profile:
    """A profile that was found; see the stub."""

    def value(self, int field):
        cdef Slice value
        if not find_value(&self.found.view, self.found.form.first_audience, AUDIENCES_OPEN_BYTES, field, &value):
            return None
        return PyBytes_FromStringAndSize(value.start, value.end - value.start)

    @property
    def updated_us(self):
        return self.found.view.updated_us

    @property
    def schema(self):
        return self.found.form.schema

    def recall(self, key not None, make not None):
        return self.found.form.recalled.recall(key, make)

    def render(self, Template template not None, tuple slots=(), uint64_t bytes_max=INT32_MAX):
        return render(&self.found.view, template, slots, bytes_max)


def find(Store store not None, bytes primary not None):
    """The profile of a primary id. Raises ProfileNotFound, RecordDamaged, FormatUnsupported."""
    cdef Profile profile = Profile.__new__(Profile)
    profile.store = store
    profile.primary = primary
    profile.found = store.open(primary)
    return profile


# --- for tests and tools -------------------------------------------------------------------------------------------

def render_record(const unsigned char[::1] record, bytes primary not None, Template template not None, tuple slots=(),
                  uint64_t bytes_max=INT32_MAX):
    """What a template makes of the record that was found under a primary id."""
    cdef View view
    cdef int code = open_record(&view, <const char*>&record[0] if record.shape[0] else NULL, record.shape[0],
                                PyBytes_AS_STRING(primary), PyBytes_GET_SIZE(primary))
    if code == RECORD_UNKNOWN_FORMAT:
        raise FormatUnsupported("a record has an unknown format")
    if code != RECORD_GOOD:
        raise RecordDamaged("a record is damaged")
    return render(&view, template, slots, bytes_max)
