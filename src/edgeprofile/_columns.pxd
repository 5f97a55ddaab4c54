# Columns of an Arrow batch, for the compiled modules that turn them into something else.

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t

from arrow cimport ArrowArray, ArrowArrayStream, ArrowSchema
from json_text cimport Buffer

# The numbers of record.Kind.
cdef enum Kind:
    NULL_, BOOLEAN, INTEGER, FLOAT, DOUBLE, DECIMAL, TEXT, NUMBER, JSON, BINARY, DATE, TIME, TIMESTAMP
    LIST, STRUCT, TUPLE, MAP, UNION

cdef struct Column:
    int kind
    int width              # bytes of a number, or of an offset of text and lists
    bint signed
    int scale
    int64_t per_second
    int64_t list_size      # -1 where offsets tell
    const char* name       # `"name":`, borrowed from the encoder's list of them
    size_t name_bytes
    int children
    Column* child
    const ArrowArray* array

cdef ArrowArrayStream* stream_of(object capsule) except NULL
cdef int expect_columns(const ArrowSchema* schema, int64_t count) except -1
cdef str reason(ArrowArrayStream* source)
cdef object broken(ArrowArrayStream* source)
cdef int fit(Column* column, const ArrowSchema* schema) except -1
cdef int bind(Column* column, const ArrowArray* array) except -1
cdef void free_children(Column* column) noexcept
cdef int put_value(Buffer* out, Column* column, int64_t row) except -1 nogil


cdef inline bint is_null(const Column* column, int64_t at) noexcept nogil:
    """`at` counts from the start of the buffers, the array's offset included."""
    cdef const uint8_t* valid
    cdef const Column* member
    if column.kind == NULL_:
        return True
    if column.kind == UNION:
        # Arrow's unions cannot be NULL themselves, only the member that is set.
        member = column.child + (<const int8_t*>column.array.buffers[0])[at]
        return is_null(member, at + member.array.offset)
    if column.array.null_count == 0:
        return False
    valid = <const uint8_t*>column.array.buffers[0]
    return valid != NULL and not (valid[at >> 3] >> (at & 7)) & 1


cdef inline int64_t offset_at(const Column* column, int64_t at) noexcept nogil:
    if column.width == 8:
        return (<const int64_t*>column.array.buffers[1])[at]
    return (<const int32_t*>column.array.buffers[1])[at]


cdef inline const char* text_at(const Column* column, int64_t at, size_t* size) noexcept nogil:
    cdef int64_t start = offset_at(column, at)
    size[0] = offset_at(column, at + 1) - start
    if size[0] == 0:
        return b""  # a column of nothing but empty texts may have no buffer at all
    return <const char*>column.array.buffers[2] + start
