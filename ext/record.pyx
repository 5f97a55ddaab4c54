"""Records from Arrow columns: the compiled writer of the grammar in record.py, and its reader for tests.

One `Encoder` turns every row of a bounded Arrow stream into a record, appended to one buffer (a segment). A
row becomes no Python object; what leaves is the segment, one key and location a profile, and the refused rows.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_RawFree
from libc.stdint cimport INT64_MAX, INT64_MIN, UINT32_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import json

from arrow cimport ArrowArray, ArrowArrayStream, ArrowSchema
from edgeprofile._columns cimport (
    MAP, STRUCT, TEXT, TIMESTAMP, Column, bind, broken, expect_columns, fit, free_children, is_null, put_value,
    stream_of, text_at,
)
from edgeprofile._record cimport (
    BITMAP_BYTES_MAX, FIELDS_MAX, FORMAT, HEADER_BYTES, RECORD_BYTES_MAX, RECORD_GOOD,
    RECORD_UNKNOWN_FORMAT, Cut, Run, View, checksum, cut, open_record, paste, record_check,
)
from json_text cimport (
    PUT_BAD_JSON, PUT_BAD_UTF8, PUT_GOOD, PUT_TOO_LARGE, SLACK_BYTES, Buffer, is_infinite, is_utf8, put,
    put_timestamp, reserve,
)

from edgeprofile.errors import FormatUnsupported, RecordDamaged, SourceError

cdef enum:
    DEPTH_MAX = 64

REASONS = {PUT_TOO_LARGE: "record_too_large", PUT_BAD_UTF8: "invalid_utf8", PUT_BAD_JSON: "invalid_json"}


ctypedef struct Made:
    # What became of a row: left out, refused for the reason `code`, or a record of that size in the segment.
    bint is_skipped
    int code
    uint32_t start
    uint32_t size


# --- rows ----------------------------------------------------------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class Batch:
    """What one stream became: `segment` (the records), `entries` ((id, place) of each, in the order of rows),
    `contents` (8 bytes a record that change with all but the time of the refresh), `hashes` (4 bytes a record, of the
    field that is to be hashed) and `refused` ((row, reason))."""

    cdef readonly bytes segment, contents, hashes
    cdef readonly list entries, refused

    def __cinit__(self, bytes segment, bytes contents, bytes hashes, list entries, list refused):
        self.segment = segment
        self.contents = contents
        self.hashes = hashes
        self.entries = entries
        self.refused = refused


@cython.final
@cython.auto_pickle(False)
cdef class Encoder:
    """Turns rows into records.

    `names` and `types` (trees of record.Type) describe the columns of every stream that is to come: the fields
    of the schema in their order, then the primary id as text, then, if `has_updated`, when the row was updated
    (a timestamp). Rows without that time are given `updated_us`. The fields from `first_nested` on stand in an object
    called `nested`; `_updated_at` follows it if `has_tail`. The number of a field of text may be `hashed`.
    """

    cdef Column* columns
    cdef int count, first_nested, hashed
    cdef bint has_updated, has_tail
    cdef bytes opening
    cdef const char* opening_text
    cdef size_t opening_bytes
    cdef int64_t updated_us
    cdef Buffer body
    cdef Buffer segment
    cdef uint32_t* ends
    cdef list names_kept

    def __cinit__(self, list names, list types, int first_nested, bint has_updated, int64_t updated_us,
                  str nested="_audiences", bint has_tail=True, int hashed=-1):
        cdef int i
        self.count = len(names)
        if self.count > FIELDS_MAX or len(types) != self.count + 1 + has_updated:
            raise ValueError("one type for each field, for the id, and for the time of update if there is one")
        if types[self.count].kind != TEXT or has_updated and types[self.count + 1].kind != TIMESTAMP:
            raise ValueError("the id is a text and the time of update a timestamp")
        if hashed >= self.count or hashed >= 0 and types[hashed].kind != TEXT:
            raise ValueError("what is hashed is a field of text")
        self.first_nested = first_nested
        self.has_updated = has_updated
        self.has_tail = has_tail
        self.hashed = hashed
        self.opening = b"," + json.dumps(nested).encode() + b":{"
        self.opening_text = PyBytes_AS_STRING(self.opening)
        self.opening_bytes = PyBytes_GET_SIZE(self.opening)
        self.updated_us = updated_us
        self.names_kept = []
        self.columns = <Column*>PyMem_Calloc(len(types), sizeof(Column))
        self.ends = <uint32_t*>PyMem_Malloc(sizeof(uint32_t) * (self.count + 1))
        if self.columns == NULL or self.ends == NULL:
            raise MemoryError()
        for i in range(len(types)):
            self.grow(self.columns + i, types[i], names[i] if i < self.count else None, 0)
        self.segment.limit = UINT32_MAX  # a location has 32 bits

    def __dealloc__(self):
        cdef int i
        if self.columns != NULL:
            for i in range(self.count + 1 + self.has_updated):
                free_children(self.columns + i)
        PyMem_Free(self.columns)
        PyMem_Free(self.ends)
        PyMem_RawFree(self.body.start)
        PyMem_RawFree(self.segment.start)

    cdef int grow(self, Column* column, object type, str name, int depth) except -1:
        cdef bytes key
        cdef int i
        if depth > DEPTH_MAX:
            raise ValueError(f"types may be nested {DEPTH_MAX} deep")
        column.kind = type.kind
        if column.kind == MAP and (len(type.children) != 2 or type.children[0].kind != TEXT):
            raise ValueError("a map has text for its keys")
        column.name = b""
        if name is not None:
            key = json.dumps(name, ensure_ascii=False).encode() + b":"
            self.names_kept.append(key)
            column.name = PyBytes_AS_STRING(key)
            column.name_bytes = len(key)
        if type.children:
            column.child = <Column*>PyMem_Calloc(len(type.children), sizeof(Column))
            if column.child == NULL:
                raise MemoryError()
            column.children = len(type.children)
            for i, inside in enumerate(type.children):
                self.grow(column.child + i, inside, type.names[i] if column.kind == STRUCT else None, depth + 1)
        return 0

    def encode(self, stream, skipped, int64_t first_row, uint32_t number) -> Batch:
        """Encodes a whole stream (an Arrow PyCapsule), whose rows are numbered from `first_row`, as segment `number`.

        `skipped` is a set of row numbers that are left out. Raises SourceError where the stream breaks off.
        """
        cdef ArrowArrayStream* source = stream_of(stream)
        cdef ArrowSchema schema
        cdef ArrowArray array
        cdef int64_t row = first_row
        cdef int i, failed
        cdef list entries = [], refused = [], contents = [], hashes = []
        self.segment.size = 0
        memset(&schema, 0, sizeof(schema))
        if source.get_schema(source, &schema):
            raise broken(source)
        try:
            expect_columns(&schema, self.count + 1 + self.has_updated)
            for i in range(schema.n_children):
                fit(self.columns + i, schema.children[i])
            while True:
                memset(&array, 0, sizeof(array))
                with nogil:
                    failed = source.get_next(source, &array)
                if failed:
                    raise broken(source)
                if array.release == NULL:
                    break
                try:
                    contents.append(self.encode_rows(&array, skipped, row, number, entries, refused, hashes))
                    row += array.length
                finally:
                    array.release(&array)
        finally:
            schema.release(&schema)
        segment = PyBytes_FromStringAndSize(self.segment.start, self.segment.size)
        return Batch(segment, b"".join(contents), b"".join(hashes), entries, refused)

    cdef bytes encode_rows(self, const ArrowArray* array, skipped, int64_t first_row, uint32_t number,
                           list entries, list refused, list hashes):
        cdef int64_t i
        cdef int64_t kept
        cdef size_t key_bytes
        cdef const char* key
        cdef uint32_t place[3]  # reader.PLACE
        cdef bint skips = bool(skipped)
        cdef bytes contents = PyBytes_FromStringAndSize(NULL, 8 * array.length)
        cdef bytes hashed = PyBytes_FromStringAndSize(NULL, 4 * array.length if self.hashed >= 0 else 0)
        cdef char* contents_text = PyBytes_AS_STRING(contents)
        cdef char* hashed_text = PyBytes_AS_STRING(hashed)
        cdef Column* primary = self.columns + self.count
        cdef Made* made = <Made*>PyMem_Calloc(array.length + 1, sizeof(Made))
        if made == NULL:
            raise MemoryError()
        try:
            for i in range(self.count + 1 + self.has_updated):
                bind(self.columns + i, array.children[i])
            if skips:
                for i in range(array.length):
                    made[i].is_skipped = first_row + i in skipped
            # Without the interpreter's lock, so that the batch before is written meanwhile.
            with nogil:
                kept = self.make(array, made, contents_text, hashed_text)
            place[0] = number
            for i in range(array.length):
                if made[i].is_skipped:
                    continue
                if made[i].code:
                    refused.append((first_row + i, REASONS[made[i].code]))
                    continue
                place[1] = made[i].start
                place[2] = made[i].size
                key = text_at(primary, array.offset + i + primary.array.offset, &key_bytes)
                entries.append((key[:key_bytes], PyBytes_FromStringAndSize(<char*>place, sizeof(place))))
        finally:
            PyMem_Free(made)
        hashes.append(hashed[:4 * kept if self.hashed >= 0 else 0])
        return contents[:8 * kept]

    cdef int64_t make(self, const ArrowArray* array, Made* made, char* contents, char* hashed) except -1 nogil:
        """Encodes the rows that are not skipped; returns how many of them were good."""
        cdef int64_t i, kept = 0
        cdef size_t key_bytes, start
        cdef const char* key
        cdef uint64_t content
        cdef Column* primary = self.columns + self.count
        for i in range(array.length):
            if made[i].is_skipped:
                continue
            key = text_at(primary, array.offset + i + primary.array.offset, &key_bytes)
            start = self.segment.size
            made[i].code = self.encode_row(array.offset + i, key, key_bytes, &content)
            if made[i].code:
                self.segment.size = start
                continue
            made[i].start = <uint32_t>start
            made[i].size = <uint32_t>(self.segment.size - start)
            memcpy(contents + 8 * kept, &content, 8)
            if self.hashed >= 0:
                self.put_hash(array.offset + i, hashed + 4 * kept)
            kept += 1
        return kept

    cdef void put_hash(self, int64_t row, char* to) noexcept nogil:
        """The low half of the checksum of the field that is hashed."""
        cdef Column* column = self.columns + self.hashed
        cdef size_t size
        cdef const char* text = text_at(column, row + column.array.offset, &size)
        cdef uint64_t hash = checksum(0, text, size)
        memcpy(to, &hash, 4)

    cdef int encode_row(self, int64_t row, const char* key, size_t key_bytes, uint64_t* content) except -1 nogil:
        """Appends one record to the segment."""
        cdef uint8_t bitmap[BITMAP_BYTES_MAX]
        cdef int present = 0, code
        cdef int64_t updated_us = self.updated_us
        cdef bint own_time
        cdef size_t fields_bytes
        memset(bitmap, 0, (self.count + 7) // 8)
        self.body.size = 0
        self.body.limit = RECORD_BYTES_MAX + SLACK_BYTES
        if not is_utf8(key, key_bytes):
            return PUT_BAD_UTF8
        code = self.put_fields(row, bitmap, &present)
        if code:
            return code
        fields_bytes = self.body.size
        own_time = self.has_updated and self.read_updated(row, &updated_us)
        if self.has_tail:
            code = put(&self.body, b'},"_updated_at":', 16) or put_timestamp(&self.body, updated_us, 1000000) \
                or put(&self.body, b"}", 1)
        else:
            code = put(&self.body, b"}}", 2)
        if code:
            return code
        # The time of the refresh is no content: without it, a refresh that found nothing new can be told.
        content[0] = checksum(updated_us if own_time else 0, key, key_bytes)
        content[0] = checksum(content[0], self.body.start, fields_bytes)
        return self.append(bitmap, present, key, key_bytes, updated_us)

    cdef int put_fields(self, int64_t row, uint8_t* bitmap, int* present) except -1 nogil:
        """`{f,f,…,"_audiences":{a,a,…`, without what closes it."""
        cdef int number, code
        cdef Column* column
        code = put(&self.body, b"{", 1)
        for number in range(self.count):
            column = self.columns + number
            if number == self.first_nested:
                code = code or put(&self.body, self.opening_text, self.opening_bytes)
            if code:
                return code
            if is_null(column, row + column.array.offset):
                continue
            if self.body.start[self.body.size - 1] != b"{":
                code = put(&self.body, b",", 1)
            code = code or put(&self.body, column.name, column.name_bytes) or put_value(&self.body, column, row)
            bitmap[number >> 3] |= 1 << (number & 7)
            self.ends[present[0]] = <uint32_t>self.body.size
            present[0] += 1
        if self.first_nested == self.count:
            code = code or put(&self.body, self.opening_text, self.opening_bytes)
        return code

    cdef bint read_updated(self, int64_t row, int64_t* updated_us) noexcept nogil:
        """The row's own time, in microseconds; False for a row without one, which keeps the time of the refresh."""
        cdef Column* column = self.columns + self.count + 1
        cdef int64_t at = row + column.array.offset
        cdef int64_t ticks, each
        if is_null(column, at):
            return False
        ticks = (<const int64_t*>column.array.buffers[1])[at]
        if is_infinite(ticks):
            updated_us[0] = ticks
        elif column.per_second == 1000000000:
            updated_us[0] = ticks // 1000 - (1 if ticks % 1000 < 0 else 0)
        else:
            # What microseconds cannot count is held at the last moment that they can, far past the year 9999.
            each = 1000000 // column.per_second
            updated_us[0] = min(max(ticks, INT64_MIN // each), INT64_MAX // each) * each
        return True

    cdef int append(self, const uint8_t* bitmap, int present, const char* key, size_t key_bytes,
                    int64_t updated_us) except -1 nogil:
        """Header, table and body, as the grammar has them."""
        cdef int bitmap_bytes = (self.count + 7) // 8
        cdef int width = 2 if self.body.size < 1 << 16 else 4
        cdef size_t size = HEADER_BYTES + bitmap_bytes + width * present + self.body.size
        cdef char* to
        cdef char* record
        cdef uint16_t fields = self.count
        cdef uint32_t body_bytes = self.body.size
        cdef uint64_t check = 0
        cdef int i
        if size > RECORD_BYTES_MAX:
            return PUT_TOO_LARGE
        if reserve(&self.segment, size):
            with gil:
                raise SourceError("the warehouse gave more rows at once than a segment of 4 GiB can hold")
        record = self.segment.start + self.segment.size
        record[0] = FORMAT
        record[1] = width
        memcpy(record + 2, &fields, 2)
        memcpy(record + 4, &body_bytes, 4)
        memcpy(record + 16, &updated_us, 8)
        memcpy(record + HEADER_BYTES, bitmap, bitmap_bytes)
        to = record + HEADER_BYTES + bitmap_bytes
        if width == 2:
            for i in range(present):
                memcpy(to + 2 * i, self.ends + i, 2)  # little-endian, so the low bytes come first
        else:
            memcpy(to, self.ends, 4 * present)
        memcpy(to + width * present, self.body.start, self.body.size)
        check = record_check(key, key_bytes, record, size)
        memcpy(record + 8, &check, 8)
        self.segment.size += size
        return PUT_GOOD


# --- the reader, for tests and tools -------------------------------------------------------------------------------

def check_of(seed, const unsigned char[::1] content) -> int:
    """record.checksum, compiled."""
    return checksum(<uint64_t>seed, &content[0] if content.shape[0] else NULL, content.shape[0])


def check(const unsigned char[::1] record, bytes primary):
    """Checks the record that was found under a primary id. Raises RecordDamaged or FormatUnsupported."""
    cdef View view
    open_checked(&view, record, primary)


cdef int open_checked(View* view, const unsigned char[::1] record, bytes primary) except -1:
    cdef int code = open_record(view, <const char*>&record[0] if record.shape[0] else NULL, record.shape[0],
                                PyBytes_AS_STRING(primary), len(primary))
    if code == RECORD_UNKNOWN_FORMAT:
        raise FormatUnsupported(f"record format {record[0]} is not known to this build, which reads {FORMAT}")
    if code != RECORD_GOOD:
        raise RecordDamaged("a record is damaged")
    return 0


def project(const unsigned char[::1] record, bytes primary, runs, int first_audience, bint with_audiences) -> bytes:
    """record.Record(...).project(...), compiled. Raises RecordDamaged and FormatUnsupported as it does.

    Raises ValueError for runs that do not ascend or that overlap, for which `cut` has no room.
    """
    cdef View view
    cdef Cut made
    cdef int n = len(runs), i, reached = 0
    cdef Run* asked
    cdef Run* slices
    cdef bytes answer
    open_checked(&view, record, primary)
    asked = <Run*>PyMem_Malloc(sizeof(Run) * (2 * n + 1))
    if asked == NULL:
        raise MemoryError()
    try:
        slices = asked + n
        for i in range(n):
            asked[i].first, asked[i].last = runs[i]
            if not reached <= asked[i].first <= asked[i].last:
                raise ValueError("runs of fields ascend and do not overlap")
            reached = asked[i].last
        if cut(&view, asked, n, first_audience, with_audiences, slices, &made):
            raise RecordDamaged("a record's table points outside it")
        answer = PyBytes_FromStringAndSize(NULL, made.bytes)
        paste(&view, slices, &made, with_audiences, PyBytes_AS_STRING(answer))
        return answer
    finally:
        PyMem_Free(asked)
