"""Records taken apart into the JSON of their fields, and made of such again: how the live layer merges profiles."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

import json

from edgeprofile._record cimport (
    BITMAP_BYTES_MAX, FIELDS_MAX, FORMAT, HEADER_BYTES, RECORD_BYTES_MAX, RECORD_GOOD, RECORD_UNKNOWN_FORMAT, View,
    end_at, open_record, record_check,
)
from json_text cimport Buffer, put_timestamp

from edgeprofile.errors import FormatUnsupported, RecordDamaged, RecordTooLarge

cdef enum:
    TIME_BYTES_MAX = 40


@cython.final
@cython.auto_pickle(False)
cdef class Shape:
    """The fields of records of one schema; see the stub."""

    cdef list keys  # each name as it stands in a record, with its colon
    cdef bytes opening
    cdef int count, first_nested
    cdef bint is_event

    def __cinit__(self, names, int first_nested, bint is_event=False):
        self.keys = [f"{json.dumps(name, ensure_ascii=False)}:".encode() for name in names]
        self.count = len(self.keys)
        self.first_nested = first_nested
        self.is_event = is_event
        self.opening = b'"params":{' if is_event else b'"_audiences":{'
        if not 0 < first_nested <= self.count <= FIELDS_MAX:
            raise ValueError("a record has a flat field, and at most 4,096 of all")

    def split(self, const unsigned char[::1] record, bytes primary not None):
        cdef View view
        cdef list values = [None] * self.count
        cdef uint64_t start = 1, end
        cdef bytes key
        cdef Py_ssize_t key_bytes
        cdef int number, found = 0
        cdef bint is_nested = False
        cdef int code = open_record(&view, <const char*>&record[0] if record.shape[0] else NULL, record.shape[0],
                                    PyBytes_AS_STRING(primary), PyBytes_GET_SIZE(primary))
        if code == RECORD_UNKNOWN_FORMAT:
            raise FormatUnsupported("a record has an unknown format")
        if code != RECORD_GOOD or view.fields > self.count:
            raise RecordDamaged("a record is damaged, or of another schema")
        for number in range(view.fields):
            if not view.bitmap[number >> 3] >> (number & 7) & 1:
                continue
            if number >= self.first_nested and not is_nested:
                is_nested = True
                start += PyBytes_GET_SIZE(self.opening)
            end = end_at(&view, found)
            key = self.keys[number]
            key_bytes = PyBytes_GET_SIZE(key)
            if not start + key_bytes < end <= view.body_bytes \
                    or memcmp(view.body + start, PyBytes_AS_STRING(key), key_bytes) != 0:
                raise RecordDamaged("a record points outside itself, or is of another schema")
            values[number] = PyBytes_FromStringAndSize(view.body + start + key_bytes, end - start - key_bytes)
            start = end + 1
            found += 1
        return values

    def join(self, bytes primary not None, values not None, int64_t time_us):
        cdef uint8_t bitmap[BITMAP_BYTES_MAX]
        cdef uint32_t ends[FIELDS_MAX]
        cdef char text[TIME_BYTES_MAX]
        cdef Buffer time
        cdef size_t size, head_bytes
        cdef int present = 0, width, number
        cdef uint16_t fields = self.count
        cdef uint32_t body_bytes
        cdef uint64_t check
        cdef bytes record
        cdef char* to
        if len(values) != self.count:
            raise ValueError("a record has one value for each field, or None")
        time.start, time.size, time.room, time.limit = text, 0, TIME_BYTES_MAX, TIME_BYTES_MAX
        if not self.is_event:
            put_timestamp(&time, time_us, 1000000)
        size = self.measure(values, bitmap, ends, &present) + (2 if self.is_event else 17 + time.size)
        if size > RECORD_BYTES_MAX:
            raise RecordTooLarge(size)
        body_bytes = size
        width = 2 if size < 1 << 16 else 4
        head_bytes = HEADER_BYTES + (self.count + 7) // 8 + width * present
        if head_bytes + size > RECORD_BYTES_MAX:
            raise RecordTooLarge(head_bytes + size)
        record = PyBytes_FromStringAndSize(NULL, head_bytes + size)
        to = PyBytes_AS_STRING(record)
        memset(to, 0, HEADER_BYTES)
        to[0] = FORMAT
        to[1] = width
        memcpy(to + 2, &fields, 2)
        memcpy(to + 4, &body_bytes, 4)
        memcpy(to + 16, &time_us, 8)
        memcpy(to + HEADER_BYTES, bitmap, (self.count + 7) // 8)
        to += HEADER_BYTES + (self.count + 7) // 8
        for number in range(present):
            memcpy(to, &ends[number], width)  # little-endian, so the low bytes come first
            to += width
        to = self.write(values, to)
        if self.is_event:
            memcpy(to, b"}}", 2)
        else:
            memcpy(to, b'},"_updated_at":', 16)
            memcpy(to + 16, text, time.size)
            to[16 + time.size] = b"}"
        to = PyBytes_AS_STRING(record)
        check = record_check(PyBytes_AS_STRING(primary), PyBytes_GET_SIZE(primary), to, head_bytes + size)
        memcpy(to + 8, &check, 8)
        return record

    cdef size_t measure(self, values, uint8_t* bitmap, uint32_t* ends, int* present) except 0:
        """The bytes of `{f,f,…,"_audiences":{a,a,…`, with the table of where each field will end."""
        cdef size_t size = 1
        cdef int number
        cdef bint is_first = True
        cdef bytes value
        memset(bitmap, 0, (self.count + 7) // 8)
        for number in range(self.count):
            if number == self.first_nested:
                size += 1 + PyBytes_GET_SIZE(self.opening)
                is_first = True
            value = values[number]
            if value is None:
                continue
            size += (0 if is_first else 1) + PyBytes_GET_SIZE(<bytes>self.keys[number]) + PyBytes_GET_SIZE(value)
            if size > RECORD_BYTES_MAX:
                raise RecordTooLarge(size)
            is_first = False
            bitmap[number >> 3] |= 1 << (number & 7)
            ends[present[0]] = <uint32_t>size
            present[0] += 1
        if self.first_nested == self.count:
            size += 1 + PyBytes_GET_SIZE(self.opening)
        return size

    cdef char* write(self, values, char* to) except NULL:
        cdef int number
        cdef bint is_first = True
        to[0] = b"{"
        to += 1
        for number in range(self.count):
            if number == self.first_nested:
                to = append(to, b",", self.opening)
                is_first = True
            value = values[number]
            if value is not None:
                to = append(to, b"" if is_first else b",", <bytes>self.keys[number])
                to = append(to, b"", <bytes>value)
                is_first = False
        if self.first_nested == self.count:
            to = append(to, b",", self.opening)
        return to


cdef inline char* append(char* to, const char* separator, bytes text) noexcept:
    if separator[0]:
        to[0] = separator[0]
        to += 1
    memcpy(to, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
    return to + PyBytes_GET_SIZE(text)
