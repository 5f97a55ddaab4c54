"""One JSON text as MessagePack: what a record holds, for callers who would rather not parse JSON.

The text is read once, without recursion, and written as it is read. The header of a map or an array says how many
members it has, which only its end tells. So one byte is left for it, and the few containers of more than 15 members
get their wider headers last, in one move of all that was written, from back to front. The text was validated when
it was loaded: only its grammar is checked again, not that its strings are UTF-8.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from edgeprofile._record cimport RECORD_BYTES_MAX
from json_scan cimport Number, double_of, is_digit, past_blanks, past_number, past_string, plain_end

from edgeprofile.errors import RecordDamaged

cdef extern from *:
    """
    static inline uint64_t ep_swapped(uint64_t word) { return __builtin_bswap64(word); }
    """
    uint64_t swapped "ep_swapped"(uint64_t word) noexcept nogil

cdef enum:
    GROWTH_MAX = 3           # nothing grows more: at worst `1e1` becomes nine bytes, two brackets a header of five
    MEMBERS_NARROW_MAX = 15  # those that a header of one byte can count

ctypedef struct Container:
    uint32_t at       # where its header is in what is written
    uint32_t members  # so far; a key and its value are one
    int outer         # the index of the container that it is in, -1 for none
    uint8_t close     # the bracket that ends it

ctypedef struct Containers:
    # In order of opening: those that are open, those that need a wider header, and those around them.
    Container* first
    int count
    int room
    size_t widening   # bytes that the wider headers add


def pack(const unsigned char[::1] json) -> bytes:
    """`packed`, for tests."""
    return packed(<const char*>(&json[0] if json.shape[0] else NULL), json.shape[0])


cdef bytes packed(const char* json, size_t size):
    """A JSON text as MessagePack. Raises RecordDamaged."""
    cdef Containers containers = Containers(first=NULL, count=0, room=0, widening=0)
    cdef const uint8_t* at = <const uint8_t*>json
    cdef uint8_t* start
    cdef uint8_t* to
    if size > RECORD_BYTES_MAX:
        raise RecordDamaged("a record's body is too long")
    start = <uint8_t*>PyMem_Malloc(GROWTH_MAX * size)
    if start == NULL:
        raise MemoryError()
    try:
        to = put_all(start, at, at + size, &containers)
        if to == NULL:
            raise RecordDamaged("a record's body is not JSON")
        if containers.widening:
            widen(start, to, &containers)
        return PyBytes_FromStringAndSize(<char*>start, to - start + containers.widening)
    finally:
        PyMem_Free(start)
        PyMem_Free(containers.first)


cdef uint8_t* put_all(uint8_t* to, const uint8_t* at, const uint8_t* end, Containers* containers) except? NULL:
    """The whole text, with one byte for the header of each container; NULL where it is no JSON."""
    cdef uint8_t* start = to
    cdef Container* inside = NULL
    while True:
        at = past_blanks(at, end)
        if at == end:
            return NULL
        if at[0] == b"{" or at[0] == b"[":
            inside = opened(containers, inside, <uint32_t>(to - start), at[0] + 2)
            at += 1
            to += 1
        else:
            to = put_scalar(to, &at, end)
            if to == NULL:
                return NULL
        # Behind a value, or behind an opening bracket: whatever else ends here, until the next value is due.
        at = past_blanks(at, end)
        while inside != NULL and at < end and at[0] == inside.close:
            inside = closed(containers, inside, start)
            at = past_blanks(at + 1, end)
        if inside == NULL:
            return to if at == end else NULL
        if inside.members:
            if at == end or at[0] != b",":
                return NULL
            at = past_blanks(at + 1, end)
        inside.members += 1
        if inside.close == b"}":
            if at == end or at[0] != b'"':
                return NULL
            to = put_text(to, &at, end)
            at = past_blanks(at, end)
            if to == NULL or at == end or at[0] != b":":
                return NULL
            at += 1


# --- containers ----------------------------------------------------------------------------------------------------

cdef inline Container* opened(Containers* containers, Container* outer, uint32_t at, uint8_t close) except NULL:
    cdef int outer_index = <int>(outer - containers.first) if outer != NULL else -1
    cdef Container* grown
    if containers.count == containers.room:
        grown = <Container*>PyMem_Realloc(containers.first, (2 * containers.room + 32) * sizeof(Container))
        if grown == NULL:
            raise MemoryError()
        containers.first = grown
        containers.room = 2 * containers.room + 32
    containers.count += 1
    containers.first[containers.count - 1] = Container(at=at, members=0, outer=outer_index, close=close)
    return containers.first + containers.count - 1


cdef inline Container* closed(Containers* containers, Container* inside, uint8_t* start) noexcept nogil:
    """Writes the header of a container unless it is to be wider; gives the container that it is in, or NULL."""
    cdef int outer = inside.outer
    if inside.members > MEMBERS_NARROW_MAX:
        containers.widening += wider_by(inside)
    else:
        put_header(start + inside.at, inside)
        if inside == containers.first + containers.count - 1:
            containers.count -= 1
    return containers.first + outer if outer >= 0 else NULL


cdef inline int wider_by(const Container* container) noexcept nogil:
    return 0 if container.members <= MEMBERS_NARROW_MAX else 2 if container.members < 1 << 16 else 4


cdef void widen(uint8_t* start, uint8_t* end, const Containers* containers) noexcept nogil:
    """Moves what was written apart, to make room for the wider headers; no byte is moved twice."""
    cdef size_t shift = containers.widening
    cdef const Container* container = containers.first + containers.count
    cdef uint8_t* behind
    while shift:
        container -= 1
        if wider_by(container):
            behind = start + container.at + 1
            memmove(behind + shift, behind, end - behind)
            shift -= wider_by(container)
            end = behind - 1
            put_header(end + shift, container)


cdef inline void put_header(uint8_t* to, const Container* container) noexcept nogil:
    cdef bint is_map = container.close == b"}"
    if container.members <= MEMBERS_NARROW_MAX:
        to[0] = (0x80 if is_map else 0x90) | container.members
    elif container.members < 1 << 16:
        put_tagged(to, 0xDE if is_map else 0xDC, container.members, 2)
    else:
        put_tagged(to, 0xDF if is_map else 0xDD, container.members, 4)


# --- scalars -------------------------------------------------------------------------------------------------------

cdef inline uint8_t* put_tagged(uint8_t* to, uint8_t tag, uint64_t value, int size) noexcept nogil:
    """A byte that says what follows, and the lowest `size` bytes of a number, the highest of them first."""
    value = swapped(value << (64 - 8 * size))
    to[0] = tag
    memcpy(to + 1, &value, size)
    return to + 1 + size


cdef inline uint8_t* put_smallest(uint8_t* to, uint8_t tag, uint64_t value, uint64_t most) noexcept nogil:
    """In as many bytes as hold `most`. The tags for one byte, two, four and eight follow each other from `tag` on."""
    if most < 1 << 8:
        return put_tagged(to, tag, value, 1)
    if most < 1 << 16:
        return put_tagged(to, tag + 1, value, 2)
    if most < <uint64_t>1 << 32:
        return put_tagged(to, tag + 2, value, 4)
    return put_tagged(to, tag + 3, value, 8)


cdef inline uint8_t* put_scalar(uint8_t* to, const uint8_t** from_, const uint8_t* end) except? NULL:
    cdef const uint8_t* at = from_[0]
    if at[0] == b'"':
        return put_text(to, from_, end)
    if at[0] == b"-" or is_digit(at[0]):
        return put_number(to, from_, end)
    if end - at >= 4 and (memcmp(at, b"true", 4) == 0 or memcmp(at, b"null", 4) == 0):
        to[0] = 0xC3 if at[0] == b"t" else 0xC0
        from_[0] = at + 4
        return to + 1
    if end - at >= 5 and memcmp(at, b"false", 5) == 0:
        to[0] = 0xC2
        from_[0] = at + 5
        return to + 1
    return NULL


cdef inline uint8_t* put_number(uint8_t* to, const uint8_t** from_, const uint8_t* end) except? NULL:
    cdef Number number
    cdef double value
    cdef uint64_t bits
    cdef const uint8_t* at = past_number(from_[0], end, &number)
    if at == NULL:
        return NULL
    if number.is_integer:
        from_[0] = at
        return put_integer(to, number.digits, number.negative)
    value = double_of(&number, from_[0], at - from_[0])
    from_[0] = at
    memcpy(&bits, &value, 8)
    return put_tagged(to, 0xCB, bits, 8)


cdef inline uint8_t* put_integer(uint8_t* to, uint64_t magnitude, bint negative) noexcept nogil:
    """An integer that 64 bits hold, given without its sign."""
    cdef uint64_t value = 0 - magnitude if negative else magnitude
    if magnitude <= 32 if negative else magnitude < 128:
        to[0] = <uint8_t>value
        return to + 1
    if negative:
        return put_smallest(to, 0xD0, value, 2 * magnitude - 1)  # a bit for the sign; eight hold -128
    return put_smallest(to, 0xCC, value, magnitude)


cdef inline uint8_t* put_text(uint8_t* to, const uint8_t** from_, const uint8_t* end) noexcept nogil:
    """The string whose opening quote is at `from_`."""
    cdef const uint8_t* at = from_[0] + 1
    cdef const uint8_t* stop = plain_end(at, end)
    cdef size_t size = stop - at
    if stop == end:
        return NULL
    if stop[0] == b"\\":
        return put_escaped(to, from_, end)
    from_[0] = stop + 1
    to = put_text_header(to, size)
    memcpy(to, at, size)
    return to + size


cdef inline uint8_t* put_text_header(uint8_t* to, size_t size) noexcept nogil:
    if size < 32:
        to[0] = 0xA0 | size
        return to + 1
    return put_smallest(to, 0xD9, size, size)


cdef inline uint8_t* put_escaped(uint8_t* to, const uint8_t** from_, const uint8_t* end) noexcept nogil:
    """A string with escapes: decoded behind room for the widest header, then moved up to the one that it gets."""
    cdef uint8_t* text = to + 5
    cdef uint8_t* text_end = text
    cdef const uint8_t* at = past_string(from_[0] + 1, end, &text_end)
    if at == NULL:
        return NULL
    from_[0] = at
    to = put_text_header(to, text_end - text)
    memmove(to, text, text_end - text)
    return to + (text_end - text)
