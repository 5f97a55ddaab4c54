# JSON text as it is read: blanks, strings, numbers. What is no JSON gives NULL; nothing is read at or past `end`.

from libc.math cimport ldexp
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from json_text cimport u128

cdef extern from *:
    """
    static inline int ep_trailing_zeros(uint64_t word) { return __builtin_ctzll(word); }
    static inline int ep_leading_zeros(uint64_t word) { return __builtin_clzll(word); }
    static const uint64_t ep_tens[20] = {
        1u, 10u, 100u, 1000u, 10000u, 100000u, 1000000u, 10000000u, 100000000u, 1000000000u, 10000000000u,
        100000000000u, 1000000000000u, 10000000000000u, 100000000000000u, 1000000000000000u, 10000000000000000u,
        100000000000000000u, 1000000000000000000u, 10000000000000000000u,
    };
    """
    int trailing_zeros "ep_trailing_zeros"(uint64_t word) noexcept nogil
    int leading_zeros "ep_leading_zeros"(uint64_t word) noexcept nogil
    const uint64_t* TENS "ep_tens"

cdef enum:
    TENS_MAX = 19  # 64 bits hold every number of so many digits, and this power of ten

ctypedef struct Number:
    uint64_t digits  # all of them, read as one number modulo 2**64
    int64_t count    # how many they are
    int64_t power    # of ten, by which to multiply them
    bint negative
    bint is_integer  # written without fraction and exponent, and 64 bits hold it, signed or not


cdef inline const uint8_t* past_blanks(const uint8_t* at, const uint8_t* end) noexcept nogil:
    while at < end and at[0] <= 32 and (at[0] == 32 or at[0] == 10 or at[0] == 13 or at[0] == 9):
        at += 1
    return at


cdef inline bint is_digit(uint8_t c) noexcept nogil:
    return b"0" <= c <= b"9"


# --- strings -------------------------------------------------------------------------------------------------------

cdef inline const uint8_t* plain_end(const uint8_t* at, const uint8_t* end) noexcept nogil:
    """Where the next quote or backslash is; `end` where there is none.

    Eight bytes at a time: subtracting one from each sets the top bit of those that were zero. The lowest bit set is
    right; a borrow can only spoil those above it.
    """
    cdef uint64_t word, quote, slash, found, ones = 0x0101010101010101ULL, tops = 0x8080808080808080ULL
    while end - at >= 8:
        memcpy(&word, at, 8)
        quote = word ^ (ones * 0x22)
        slash = word ^ (ones * 0x5C)
        found = (((quote - ones) & ~quote) | ((slash - ones) & ~slash)) & tops
        if found:
            return at + (trailing_zeros(found) >> 3)
        at += 8
    while at < end and at[0] != b'"' and at[0] != b"\\":
        at += 1
    return at


cdef inline const uint8_t* past_string(const uint8_t* at, const uint8_t* end, uint8_t** decoded) noexcept nogil:
    """Past the quote that ends a string, which is decoded to where `decoded` points, and that past it."""
    cdef const uint8_t* stop
    cdef uint8_t* to = decoded[0]
    cdef int code = 0
    while True:
        stop = plain_end(at, end)
        memcpy(to, at, stop - at)
        to += stop - at
        if stop == end:
            return NULL
        if stop[0] == b'"':
            decoded[0] = to
            return stop + 1
        at = past_escape(stop + 1, end, &code)
        if at == NULL:
            return NULL
        to = put_character(to, code)


cdef inline uint8_t* put_character(uint8_t* to, int code) noexcept nogil:
    """UTF-8: a character of n bytes opens with n bits set, and has six bits of its code in each byte behind."""
    cdef int shift = 0 if code < 0x80 else 6 if code < 0x800 else 12 if code < 0x10000 else 18
    to[0] = <uint8_t>(code >> shift | (0xF0 << (3 - shift // 6) if shift else 0))
    while shift:
        to += 1
        shift -= 6
        to[0] = 0x80 | (code >> shift & 0x3F)
    return to + 1


cdef inline const uint8_t* past_escape(const uint8_t* at, const uint8_t* end, int* code) noexcept nogil:
    """What stands behind a backslash, as the code of a character; a lone half of a surrogate pair is U+FFFD."""
    cdef const char* letters = b'"\\/bfnrt'
    cdef const char* meant = b'"\\/\b\f\n\r\t'
    cdef int i, low
    if at < end and at[0] != b"u":
        for i in range(8):
            if at[0] == <uint8_t>letters[i]:
                code[0] = meant[i]
                return at + 1
    code[0] = unit_at(at, end)
    if code[0] < 0:
        return NULL
    if 0xD800 <= code[0] < 0xE000:
        low = unit_at(at + 6, end) if end - at >= 6 and at[5] == b"\\" else -1
        if code[0] < 0xDC00 and 0xDC00 <= low < 0xE000:
            code[0] = 0x10000 + ((code[0] & 0x3FF) << 10 | (low & 0x3FF))
            return at + 11
        code[0] = 0xFFFD
    return at + 5


cdef inline int unit_at(const uint8_t* at, const uint8_t* end) noexcept nogil:
    """The number in `u` and four hexadecimal digits; -1 where they are not."""
    cdef int i, code = 0
    if end - at < 5 or at[0] != b"u":
        return -1
    for i in range(1, 5):
        if is_digit(at[i]):
            code = code << 4 | (at[i] - 48)
        elif b"a" <= (at[i] | 0x20) <= b"f":
            code = code << 4 | ((at[i] | 0x20) - 87)
        else:
            return -1
    return code


# --- numbers -------------------------------------------------------------------------------------------------------

cdef inline const uint8_t* past_digits(const uint8_t* at, const uint8_t* end, uint64_t* value) noexcept nogil:
    """Appends digits, one at least, to a number that is counted modulo 2**64."""
    cdef const uint8_t* first = at
    while at < end and is_digit(at[0]):
        value[0] = 10 * value[0] + (at[0] - 48)
        at += 1
    return at if at != first else NULL


cdef inline const uint8_t* past_number(const uint8_t* at, const uint8_t* end, Number* number) noexcept nogil:
    cdef const uint8_t* part
    cdef bint is_whole = True, fits
    number.negative = at < end and at[0] == b"-"
    number.digits = 0
    number.power = 0
    part = at + number.negative
    at = past_digits(part, end, &number.digits)
    if at == NULL or part[0] == b"0" and at - part > 1:
        return NULL
    number.count = at - part
    # A 20th digit may go past 2**64; behind a leading 1, less is left then than there was before it.
    fits = number.count < 20 or number.count == 20 and part[0] == b"1" and number.digits >= TENS[TENS_MAX]
    if at < end and at[0] == b".":
        is_whole = False
        part = at + 1
        at = past_digits(part, end, &number.digits)
        if at == NULL:
            return NULL
        number.count += at - part
        number.power = part - at
    if at < end and (at[0] | 0x20) == b"e":
        is_whole = False
        at = past_exponent(at + 1, end, &number.power)
    number.is_integer = is_whole and fits and (not number.negative or number.digits <= <uint64_t>1 << 63)
    return at


cdef inline const uint8_t* past_exponent(const uint8_t* at, const uint8_t* end, int64_t* power) noexcept nogil:
    cdef uint64_t read = 0
    cdef bint is_down = at < end and at[0] == b"-"
    cdef const uint8_t* first = at + (is_down or at < end and at[0] == b"+")
    at = past_digits(first, end, &read)
    if at != NULL and at - first > 4:
        read = 1 << 30  # no more than a mark that it is too large for `nearest`
    power[0] += -<int64_t>read if is_down else <int64_t>read
    return at


cdef inline double double_of(const Number* number, const uint8_t* text, size_t size) except? -1:
    """The nearest double, of even digits where two are as near; infinite past their range, as Python has it."""
    cdef double value
    if number.count > TENS_MAX or not -TENS_MAX <= number.power <= TENS_MAX:
        return float((<const char*>text)[:size])
    value = nearest(number.digits, <int>number.power)
    return -value if number.negative else value


cdef inline double nearest(uint64_t digits, int power) noexcept nogil:
    """The double nearest to digits × 10**power, for powers up to TENS_MAX either way.

    Where both factors are doubles, one operation rounds once. Otherwise whole numbers of 128 bits are exact; the
    quotient has at least 63 bits, and its last one stands for all that remains, so that it is rounded once too.
    """
    cdef uint64_t ten = TENS[power if power >= 0 else -power], quotient
    cdef int up = 0, ten_up = 0
    cdef u128 wide = digits
    if digits <= <uint64_t>1 << 53:
        return <double>digits * <double>ten if power >= 0 else <double>digits / <double>ten
    if power >= 0:
        return <double>(wide * ten)
    up = leading_zeros(digits)
    ten_up = leading_zeros(ten)
    wide <<= up + 63
    ten <<= ten_up
    quotient = <uint64_t>(wide // ten)
    quotient |= quotient * ten != <uint64_t>wide
    return ldexp(<double>quotient, ten_up - up - 63)
