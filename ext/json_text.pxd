# Values as JSON text, appended to a growing buffer. Every function returns PUT_GOOD or why it could not, and none needs
# the interpreter's lock. A buffer's memory is `PyMem_RawFree`d.

from cpython.mem cimport PyMem_RawRealloc
from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    typedef unsigned __int128 ep_u128;
    """
    ctypedef unsigned long long u128 "ep_u128"

cdef enum:
    PUT_GOOD = 0
    PUT_TOO_LARGE = 1
    PUT_BAD_UTF8 = 2
    PUT_BAD_JSON = 3

cdef enum:
    DAY_BYTES = 10
    STRETCH_BYTES = 4096
    # How far past the size of a record its buffer may run while a value is written.
    SLACK_BYTES = 8 * STRETCH_BYTES

ctypedef struct Buffer:
    char* start
    size_t size
    size_t room
    size_t limit  # of `size`: past it a record is too large


cdef inline int reserve(Buffer* out, size_t more) except -1 nogil:
    """Makes room, doubling, so that a byte is moved once on average; bounded by the limit of a record."""
    cdef size_t room
    cdef char* grown
    if out.size + more > out.limit:
        return PUT_TOO_LARGE
    if out.size + more > out.room:
        room = min(max(out.size + more, 2 * out.room), out.limit)
        grown = <char*>PyMem_RawRealloc(out.start, room)
        if grown == NULL:
            with gil:
                raise MemoryError()
        out.start = grown
        out.room = room
    return PUT_GOOD


cdef inline int put(Buffer* out, const char* text, size_t size) except -1 nogil:
    # Most texts are short, and there is room for them; there is never more room than what is allowed.
    if size > out.room - out.size and reserve(out, size):
        return PUT_TOO_LARGE
    if size == 0:  # memcpy takes no NULL, not even for nothing
        return PUT_GOOD
    memcpy(out.start + out.size, text, size)
    out.size += size
    return PUT_GOOD


cdef inline int put_unsigned(Buffer* out, uint64_t value, int digits_min) except -1 nogil:
    """Decimal digits, at least `digits_min` of them."""
    cdef char digits[24]
    cdef int at = 24
    while value or digits_min > 24 - at:
        at -= 1
        digits[at] = <char>(48 + value % 10)
        value //= 10
    return put(out, digits + at, 24 - at)


cdef inline int put_integer(Buffer* out, int64_t value) except -1 nogil:
    cdef int refused
    if value < 0:
        refused = put(out, b"-", 1)
        return refused or put_unsigned(out, <uint64_t>0 - <uint64_t>value, 1)
    return put_unsigned(out, <uint64_t>value, 1)


cdef inline int put_decimal(Buffer* out, const void* at, int scale) except -1 nogil:
    """A 128-bit two's complement number with its point `scale` digits from the right."""
    cdef char digits[48]
    cdef u128 value
    cdef uint64_t rest
    cdef int end = 48, first = 48, whole = 0
    cdef bint negative
    memcpy(&value, at, 16)
    negative = <int64_t>(value >> 64) < 0
    if negative:
        value = 0 - value
    # Only digits that 64 bits cannot hold cost a division of 128, which most numbers do without.
    while value > UINT64_MAX:
        first -= 1
        digits[first] = <char>(48 + <int>(value % 10))
        value //= 10
    rest = <uint64_t>value
    while rest or 48 - first <= scale:
        first -= 1
        digits[first] = <char>(48 + rest % 10)
        rest //= 10
    whole = end - first - scale
    if negative and put(out, b"-", 1):
        return PUT_TOO_LARGE
    if put(out, digits + first, whole):
        return PUT_TOO_LARGE
    if scale == 0:
        return PUT_GOOD
    return put(out, b".", 1) or put(out, digits + first + whole, scale)


cdef inline int sequence_bytes(const uint8_t* at, size_t rest) noexcept nogil:
    """The length of the well-formed UTF-8 sequence that starts here with a byte over 0x7f; 0 where there is none."""
    cdef uint8_t a = at[0], b
    if rest < 2 or a < 0xC2 or a > 0xF4:
        return 0
    b = at[1]
    if a < 0xE0:
        return 2 if b & 0xC0 == 0x80 else 0
    if rest < 3 or at[2] & 0xC0 != 0x80:
        return 0
    if a < 0xF0:
        if b < (0xA0 if a == 0xE0 else 0x80) or b > (0x9F if a == 0xED else 0xBF):
            return 0
        return 3
    if rest < 4 or at[3] & 0xC0 != 0x80 or b < (0x90 if a == 0xF0 else 0x80) or b > (0x8F if a == 0xF4 else 0xBF):
        return 0
    return 4


cdef inline bint is_utf8(const char* text, size_t size) noexcept nogil:
    cdef const uint8_t* at = <const uint8_t*>text
    cdef const uint8_t* end = at + size
    cdef int step
    while at < end:
        step = 1 if at[0] < 0x80 else sequence_bytes(at, end - at)
        if step == 0:
            return False
        at += step
    return True


cdef inline bint eight_plain(const uint8_t* at) noexcept nogil:
    """Whether eight bytes are ASCII that JSON needs no escape for; most text is, so it is copied by eights."""
    cdef uint64_t word, quote, slash, ones = 0x0101010101010101ULL, tops = 0x8080808080808080ULL
    memcpy(&word, at, 8)
    quote = word ^ (ones * 0x22)
    slash = word ^ (ones * 0x5C)
    return not ((word | (word - ones * 0x20) | (quote - ones) | (slash - ones)) & tops)


cdef inline int put_string(Buffer* out, const char* text, size_t size) except -1 nogil:
    """A JSON string. Refuses what is not UTF-8."""
    cdef const uint8_t* at = <const uint8_t*>text
    cdef const uint8_t* end = at + size
    cdef const uint8_t* stop
    cdef int refused = put(out, b'"', 1)
    while at < end and not refused:
        # Room for the worst case is taken a stretch at a time, so that a long text is not refused for its escapes.
        stop = at + min(<size_t>(end - at), <size_t>STRETCH_BYTES)
        refused = reserve(out, 6 * <size_t>(stop - at) + 8) or put_stretch(out, &at, stop, end)
    return refused or put(out, b'"', 1)


cdef inline int put_stretch(Buffer* out, const uint8_t** from_, const uint8_t* stop, const uint8_t* end) noexcept nogil:
    cdef const uint8_t* at = from_[0]
    cdef char* to = out.start + out.size
    cdef int step
    while at < stop:
        if stop - at >= 8 and eight_plain(at):
            memcpy(to, at, 8)
            to += 8
            at += 8
        elif stop - at < 8 <= at - from_[0] and eight_plain(stop - 8):
            # The last few together with some before them, which were plain too, and so stand there as they are.
            step = stop - at
            memcpy(to + step - 8, stop - 8, 8)
            to += step
            at = stop
        elif at[0] < 0x80:
            to += put_ascii(to, at[0])
            at += 1
        else:
            step = sequence_bytes(at, end - at)
            if step == 0:
                return PUT_BAD_UTF8
            memcpy(to, at, step)
            to += step
            at += step
    from_[0] = at
    out.size = to - out.start
    return PUT_GOOD


cdef inline int put_ascii(char* to, uint8_t c) noexcept nogil:
    """One ASCII character, escaped where JSON asks for it; returns how many bytes that took."""
    cdef const char* hexadecimal = b"0123456789abcdef"
    if c >= 0x20 and c != 0x22 and c != 0x5C:
        to[0] = <char>c
        return 1
    to[0] = b"\\"
    if c == 0x22 or c == 0x5C:
        to[1] = <char>c
    elif c == 10:
        to[1] = b"n"
    elif c == 13:
        to[1] = b"r"
    elif c == 9:
        to[1] = b"t"
    elif c == 8:
        to[1] = b"b"
    elif c == 12:
        to[1] = b"f"
    else:
        memcpy(to + 1, b"u00", 3)
        to[4] = hexadecimal[c >> 4]
        to[5] = hexadecimal[c & 15]
        return 6
    return 2


cdef inline int put_fraction(Buffer* out, uint64_t nanoseconds) except -1 nogil:
    """`.mmm`, `.mmmuuu` or `.mmmuuunnn`, the shortest that loses nothing; nothing for zero."""
    if nanoseconds == 0:
        return PUT_GOOD
    if put(out, b".", 1):
        return PUT_TOO_LARGE
    if nanoseconds % 1000:
        return put_unsigned(out, nanoseconds, 9)
    if nanoseconds % 1000000:
        return put_unsigned(out, nanoseconds // 1000, 6)
    return put_unsigned(out, nanoseconds // 1000000, 3)


cdef inline int put_clock(Buffer* out, int64_t seconds, uint64_t nanoseconds) except -1 nogil:
    """`HH:MM:SS` and the fraction."""
    return (put_unsigned(out, seconds // 3600, 2) or put(out, b":", 1)
            or put_unsigned(out, seconds // 60 % 60, 2) or put(out, b":", 1)
            or put_unsigned(out, seconds % 60, 2) or put_fraction(out, nanoseconds))


cdef inline void write_digits(char* to, uint32_t value, int digits) noexcept nogil:
    """Exactly so many decimal digits, into a place that has room for them."""
    cdef int at
    for at in range(digits - 1, -1, -1):
        to[at] = <char>(48 + value % 10)
        value //= 10


cdef inline int put_day(Buffer* out, int64_t days) except -1 nogil:
    """As write_day."""
    cdef int refused = reserve(out, DAY_BYTES)
    if refused:
        return refused
    write_day(out.start + out.size, days)
    out.size += DAY_BYTES
    return PUT_GOOD


cdef inline void write_day(char* to, int64_t days) noexcept nogil:
    """`YYYY-MM-DD` for days since 1970-01-01; the caller has checked the years 1 to 9999, and that there is room.

    Counts from 1 March of year 0, so that the leap day is the last of its year: an era is 400 years, 146,097 days.
    """
    cdef int64_t since = days + 719468
    cdef int64_t era = since // 146097
    cdef int64_t in_era = since - era * 146097
    cdef int64_t year = (in_era - in_era // 1460 + in_era // 36524 - in_era // 146096) // 365
    cdef int64_t in_year = in_era - (365 * year + year // 4 - year // 100)
    cdef int64_t month = (5 * in_year + 2) // 153
    cdef int64_t day = in_year - (153 * month + 2) // 5 + 1
    month = month + 3 if month < 10 else month - 9
    year += era * 400 + (1 if month <= 2 else 0)
    write_digits(to, <uint32_t>year, 4)
    to[4] = to[7] = b"-"
    write_digits(to + 5, <uint32_t>month, 2)
    write_digits(to + 8, <uint32_t>day, 2)


cdef inline bint is_sayable(int64_t days) noexcept nogil:
    """Whether RFC 3339 can say the date: the years 1 to 9999."""
    return -719162 <= days <= 2932896


cdef inline bint is_infinite(int64_t ticks) noexcept nogil:
    """DuckDB's infinities, in whatever unit; in nanoseconds they would pass for moments in 1677 and 2262."""
    return ticks == INT64_MAX or ticks == -INT64_MAX


cdef inline int put_timestamp(Buffer* out, int64_t ticks, int64_t per_second) except -1 nogil:
    """RFC 3339 in UTC with its quotes; null for infinities and outside the years 1 to 9999."""
    cdef int64_t seconds = ticks // per_second
    cdef int64_t rest = ticks % per_second
    cdef int64_t days
    if rest < 0:
        rest += per_second
        seconds -= 1
    days = seconds // 86400 - (1 if seconds % 86400 < 0 else 0)
    if is_infinite(ticks) or not is_sayable(days):
        return put(out, b"null", 4)
    return (put(out, b'"', 1) or put_day(out, days) or put(out, b"T", 1)
            or put_clock(out, seconds - days * 86400, rest * (1000000000 // per_second)) or put(out, b'Z"', 2))
