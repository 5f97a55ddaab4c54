"""Values of Arrow columns as JSON: what a column of each kind looks like in memory, and how it is rendered."""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_Free
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport isfinite
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport strcmp, strncmp

import binascii

import msgspec

from edgeprofile._record cimport RECORD_BYTES_MAX
from json_text cimport (
    PUT_BAD_JSON, PUT_BAD_UTF8, PUT_TOO_LARGE, Buffer, is_sayable, is_utf8, put, put_clock, put_day, put_decimal,
    put_integer, put_string, put_timestamp, put_unsigned,
)

from edgeprofile.errors import SourceError

cdef extern from "Python.h":
    char* PyOS_double_to_string(double value, char code, int precision, int flags, int* type) except NULL
    double PyOS_string_to_double(const char* text, char** end, object overflow) except? -1.0
    int Py_DTSF_ADD_DOT_0

cdef enum:
    DECIMAL_DIGITS_MAX = 38
    JSON_DEPTH_MAX = 500  # what any parser of a caller's can take, and msgspec on any Python


# --- streams -------------------------------------------------------------------------------------------------------

cdef void free_children(Column* column) noexcept:
    cdef int i
    for i in range(column.children):
        free_children(column.child + i)
    PyMem_Free(column.child)


cdef ArrowArrayStream* stream_of(object capsule) except NULL:
    cdef ArrowArrayStream* source = <ArrowArrayStream*>PyCapsule_GetPointer(capsule, b"arrow_array_stream")
    if source.release == NULL:
        raise SourceError("the warehouse's answer was read before")
    return source


cdef int expect_columns(const ArrowSchema* schema, int64_t count) except -1:
    if strcmp(schema.format, b"+s") != 0 or schema.n_children != count:
        raise SourceError("the warehouse gave another number of columns than it had said")
    return 0


cdef str reason(ArrowArrayStream* source):
    cdef const char* why = source.get_last_error(source)
    return why.decode(errors="replace") if why != NULL else "no reason given"


cdef object broken(ArrowArrayStream* source):
    return SourceError(f"the warehouse broke off: {reason(source)}")


# --- from an Arrow format to a column ------------------------------------------------------------------------------

cdef int describe(Column* column, const ArrowSchema* schema) except -1:
    """Reads the layout off Arrow's format string; what the kind cannot be read from is an error, not a guess."""
    cdef const char* format = schema.format
    cdef int kind = column.kind
    cdef bytes numbers = b"cCsSiIlL"
    cdef int at
    if kind == INTEGER:
        at = numbers.find(format[:1])
        if at < 0 or format[1] != 0:
            raise mismatch(column, schema)
        column.width = 1 << (at // 2)
        column.signed = at % 2 == 0
    elif kind == DECIMAL:
        parts = (<bytes>format).split(b",")
        if not parts[0].startswith(b"d:") or parts[2:] not in ([], [b"128"]):
            raise mismatch(column, schema)
        column.scale = int(parts[1])
        # No more digits than the type has, as DuckDB does; Arrow itself would allow any number here, even below zero.
        if not 0 <= column.scale <= DECIMAL_DIGITS_MAX:
            raise mismatch(column, schema)
    elif kind in (TEXT, NUMBER, JSON, BINARY):
        if strcmp(format, b"u") != 0 and strcmp(format, b"z") != 0 and strcmp(format, b"U") != 0 \
                and strcmp(format, b"Z") != 0:
            raise mismatch(column, schema)
        column.width = 4 if format[0] in b"uz" else 8
    elif kind == TIME or kind == TIMESTAMP:
        if strncmp(format, b"tt" if kind == TIME else b"ts", 2) != 0:
            raise mismatch(column, schema)
        column.per_second = {b"s": 1, b"m": 1000, b"u": 1000000, b"n": 1000000000}[format[2:3]]
        column.width = 4 if kind == TIME and format[2] in b"sm" else 8
    elif kind == LIST and strncmp(format, b"+w:", 3) == 0:
        column.list_size = int((<bytes>format)[3:])
    elif kind == LIST or kind == MAP:
        if strcmp(format, b"+l") != 0 and strcmp(format, b"+L") != 0 and strcmp(format, b"+m") != 0:
            raise mismatch(column, schema)
        column.width = 8 if format[1] == b"L" else 4
        column.list_size = -1
    elif not (kind == NULL_ and strcmp(format, b"n") == 0
              or kind == BOOLEAN and strcmp(format, b"b") == 0
              or kind == FLOAT and strcmp(format, b"f") == 0
              or kind == DOUBLE and strcmp(format, b"g") == 0
              or kind == DATE and strcmp(format, b"tdD") == 0
              or (kind == STRUCT or kind == TUPLE) and strcmp(format, b"+s") == 0
              # The members' numbers are used as they come, so they must be 0, 1, 2, …
              or kind == UNION and format == b"+us:" + ",".join(map(str, range(column.children))).encode()):
        raise mismatch(column, schema)
    return 0


cdef object mismatch(const Column* column, const ArrowSchema* schema):
    return SourceError(f"the warehouse gave a column as Arrow's {schema.format.decode()!r}, which was not expected")


cdef int bind(Column* column, const ArrowArray* array) except -1:
    """Points a column, and all that is inside it, at the buffers of a batch."""
    cdef int i
    cdef const ArrowArray* inside = array
    column.array = array
    if column.kind == MAP:
        # A map is a list of one struct of key and value.
        inside = array.children[0]
    for i in range(column.children):
        bind(column.child + i, inside.children[i])
    return 0


cdef int fit(Column* column, const ArrowSchema* schema) except -1:
    cdef int i
    cdef const ArrowSchema* inside = schema
    describe(column, schema)
    if schema.dictionary != NULL:
        raise mismatch(column, schema)
    if column.kind == MAP:
        inside = schema.children[0]
        if strcmp(inside.format, b"+s") != 0:
            raise mismatch(column, inside)
    if inside.n_children != column.children:
        raise mismatch(column, schema)
    for i in range(column.children):
        fit(column.child + i, inside.children[i])
    return 0


# --- values --------------------------------------------------------------------------------------------------------

cdef int put_number(Buffer* out, const Column* column, int64_t at) except -1 nogil:
    cdef const void* numbers = column.array.buffers[1]
    cdef int64_t wide
    if column.width == 8:
        if column.signed:
            return put_integer(out, (<const int64_t*>numbers)[at])
        return put_unsigned(out, (<const uint64_t*>numbers)[at], 1)
    # Each is widened on its own: the two sides of one expression would meet in an unsigned type, and -1 with them.
    if column.width == 4:
        wide = <int64_t>(<const int32_t*>numbers)[at] if column.signed else <int64_t>(<const uint32_t*>numbers)[at]
    elif column.width == 2:
        wide = <int64_t>(<const int16_t*>numbers)[at] if column.signed else <int64_t>(<const uint16_t*>numbers)[at]
    else:
        wide = <int64_t>(<const int8_t*>numbers)[at] if column.signed else <int64_t>(<const uint8_t*>numbers)[at]
    return put_integer(out, wide)


cdef bint is_finite(const char* text, size_t size) noexcept nogil:
    """Whether a number's text has digits: those of NaN and the infinities begin with a letter."""
    cdef size_t sign = size > 0 and text[0] == b"-"
    return size > sign and b"0" <= text[sign] <= b"9"


cdef int put_double(Buffer* out, double value, char code, int precision) except -1 with gil:
    cdef char* text
    cdef int refused
    cdef size_t size = 0
    text = PyOS_double_to_string(value, code, precision, Py_DTSF_ADD_DOT_0, NULL)
    while text[size]:
        size += 1
    refused = put(out, text, size)
    PyMem_Free(text)
    return refused


cdef int put_float(Buffer* out, const Column* column, int64_t at) except -1 with gil:
    """The shortest digits that read back as the same number; null for NaN and infinities, which JSON lacks."""
    cdef double value
    cdef float narrow
    cdef int digits
    cdef char* text
    if column.kind == DOUBLE:
        value = (<const double*>column.array.buffers[1])[at]
        if not isfinite(value):
            return put(out, b"null", 4)
        return put_double(out, value, b"r", 0)
    narrow = (<const float*>column.array.buffers[1])[at]
    if not isfinite(narrow):
        return put(out, b"null", 4)
    for digits in range(6, 10):
        text = PyOS_double_to_string(narrow, b"g", digits, 0, NULL)
        value = PyOS_string_to_double(text, NULL, None)
        PyMem_Free(text)
        if <float>value == narrow:
            break
    return put_double(out, value, b"r", 0)


cdef int depth_of(const char* text, size_t size) noexcept nogil:
    """How deep brackets are nested, outside of strings; of text that is no JSON, any number."""
    cdef size_t i = 0
    cdef int depth = 0, deepest = 0
    cdef bint in_string = False
    while i < size:
        if text[i] == b'"':
            in_string = not in_string
        elif in_string:
            i += text[i] == b"\\"
        elif text[i] == b"[" or text[i] == b"{":
            depth += 1
            deepest = max(deepest, depth)
        elif text[i] == b"]" or text[i] == b"}":
            depth -= 1
        i += 1
    return deepest


cdef int put_json(Buffer* out, const char* text, size_t size) except -1 with gil:
    """JSON of the warehouse, checked and without its white space; digits stay as they are."""
    cdef bytes compact
    if size > RECORD_BYTES_MAX:
        return PUT_TOO_LARGE
    if not is_utf8(text, size):
        return PUT_BAD_UTF8
    if depth_of(text, size) > JSON_DEPTH_MAX:
        return PUT_BAD_JSON
    try:
        compact = msgspec.json.format(text[:size], indent=-1)
    except (msgspec.DecodeError, RecursionError):
        return PUT_BAD_JSON
    return put(out, PyBytes_AS_STRING(compact), len(compact))


cdef int put_base64(Buffer* out, const char* octets, size_t size) except -1 with gil:
    cdef bytes text
    if size > RECORD_BYTES_MAX:
        return PUT_TOO_LARGE
    text = binascii.b2a_base64(octets[:size], newline=False)
    return put(out, b'"', 1) or put(out, PyBytes_AS_STRING(text), len(text)) or put(out, b'"', 1)


cdef int put_sequence(Buffer* out, Column* column, int64_t at) except -1 nogil:
    """A list or a map."""
    cdef int64_t start, end, i
    cdef bint is_map = column.kind == MAP
    cdef int refused
    if column.list_size >= 0:
        start = at * column.list_size
        end = start + column.list_size
    else:
        start = offset_at(column, at)
        end = offset_at(column, at + 1)
    if is_map:
        start += column.array.children[0].offset
        end += column.array.children[0].offset
    refused = put(out, b"{" if is_map else b"[", 1)
    for i in range(start, end):
        if refused:
            break
        if i > start:
            refused = put(out, b",", 1)
        if is_map and not refused:
            refused = put_value(out, column.child, i) or put(out, b":", 1)
        refused = refused or put_value(out, column.child + (1 if is_map else 0), i)
    return refused or put(out, b"}" if is_map else b"]", 1)


cdef int put_struct(Buffer* out, Column* column, int64_t at) except -1 nogil:
    cdef int i, refused
    cdef Column* child
    refused = put(out, b"{" if column.kind == STRUCT else b"[", 1)
    for i in range(column.children):
        if refused:
            break
        child = column.child + i
        if i:
            refused = put(out, b",", 1)
        refused = refused or put(out, child.name, child.name_bytes) or put_value(out, child, at)
    return refused or put(out, b"}" if column.kind == STRUCT else b"]", 1)


cdef int put_value(Buffer* out, Column* column, int64_t row) except -1 nogil:
    """One value as JSON. `row` counts from the start of the column as its parent sees it."""
    cdef int64_t at = row + column.array.offset
    cdef int64_t ticks
    cdef size_t size
    cdef const char* text
    cdef int kind = column.kind
    if is_null(column, at):
        return put(out, b"null", 4)
    if kind == TEXT:
        text = text_at(column, at, &size)
        return put_string(out, text, size)
    if kind == INTEGER:
        return put_number(out, column, at)
    if kind == DECIMAL:
        return put_decimal(out, <const char*>column.array.buffers[1] + 16 * at, column.scale)
    if kind == BOOLEAN:
        if ((<const uint8_t*>column.array.buffers[1])[at >> 3] >> (at & 7)) & 1:
            return put(out, b"true", 4)
        return put(out, b"false", 5)
    if kind == DOUBLE or kind == FLOAT:
        return put_float(out, column, at)
    if kind == DATE:
        ticks = (<const int32_t*>column.array.buffers[1])[at]
        if not is_sayable(ticks):
            return put(out, b"null", 4)
        return put(out, b'"', 1) or put_day(out, ticks) or put(out, b'"', 1)
    if kind == TIMESTAMP:
        return put_timestamp(out, (<const int64_t*>column.array.buffers[1])[at], column.per_second)
    if kind == TIME:
        ticks = (<const int64_t*>column.array.buffers[1])[at] if column.width == 8 \
            else (<const int32_t*>column.array.buffers[1])[at]
        return (put(out, b'"', 1) or put_clock(out, ticks // column.per_second,
                                               ticks % column.per_second * (1000000000 // column.per_second))
                or put(out, b'"', 1))
    if kind == NUMBER:
        text = text_at(column, at, &size)
        if not is_finite(text, size):
            return put(out, b"null", 4)
        return put(out, text, size)
    if kind == JSON:
        text = text_at(column, at, &size)
        return put_json(out, text, size)
    if kind == BINARY:
        text = text_at(column, at, &size)
        return put_base64(out, text, size)
    if kind == LIST or kind == MAP:
        return put_sequence(out, column, at)
    if kind == UNION:
        return put_value(out, column.child + (<const int8_t*>column.array.buffers[0])[at], at)
    return put_struct(out, column, at)
