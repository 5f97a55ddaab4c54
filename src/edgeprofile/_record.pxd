# The reading half of the record grammar (see record.py), inlined into every module that reads records.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    static inline uint64_t ep_fold(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    static inline int ep_popcount(uint64_t word) { return __builtin_popcountll(word); }
    """
    uint64_t ep_fold(uint64_t a, uint64_t b) noexcept nogil
    int ep_popcount(uint64_t word) noexcept nogil

cdef enum:
    FORMAT = 1
    HEADER_BYTES = 24
    FIELDS_MAX = 4096
    BITMAP_BYTES_MAX = 512
    AUDIENCES_OPEN_BYTES = 14
    RECORD_BYTES_MAX = 16 * 1024 * 1024
    INDEX_CHECK_BYTES = 4

cdef enum:
    RECORD_GOOD = 0
    RECORD_DAMAGED = 1
    RECORD_UNKNOWN_FORMAT = 2

ctypedef struct Run:
    int first
    int last

ctypedef struct View:
    # A record whose check and lengths were found right; ends are checked one by one as they are used.
    const uint8_t* bitmap
    const uint8_t* ends
    const char* body
    uint64_t check
    int64_t updated_us
    uint32_t body_bytes
    int fields
    int present
    int width

ctypedef struct Cut:
    # The slices of the body that make one answer: `flat` of them come before the audiences.
    int flat
    int audiences
    const char* tail
    size_t tail_bytes
    size_t bytes


cdef inline uint64_t load64(const void* at) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, at, 8)
    return word


cdef inline uint64_t rotated(uint64_t state) noexcept nogil:
    return (state << 29) | (state >> 35)


cdef inline uint64_t checksum(uint64_t seed, const void* content, size_t size) noexcept nogil:
    cdef const uint8_t* at = <const uint8_t*>content
    cdef uint64_t k1 = <uint64_t>0x9E3779B97F4A7C15ULL
    cdef uint64_t k2 = <uint64_t>0xD6E8FEB86659FD93ULL
    cdef uint64_t state = seed ^ (<uint64_t>size * k1)
    cdef uint64_t high
    cdef uint64_t last[2]
    cdef size_t rest = size
    while rest >= 16:
        high = load64(at + 8)
        state = ep_fold(load64(at) ^ state, high ^ k2) + (rotated(state) ^ high)
        at += 16
        rest -= 16
    if rest:
        memset(last, 0, 16)
        memcpy(last, at, rest)
        state = ep_fold(last[0] ^ state, last[1] ^ k2) + (rotated(state) ^ last[1])
    return ep_fold(state ^ k1, state ^ (state >> 32) ^ k2)


cdef inline uint64_t record_check(const char* primary, size_t primary_bytes,
                                  const char* record, size_t size) noexcept nogil:
    cdef uint64_t seed = checksum(load64(record), primary, primary_bytes)
    return checksum(seed, record + 16, size - 16)


cdef inline uint32_t index_check(const char* key, size_t key_bytes, const char* ids, size_t ids_bytes) noexcept nogil:
    """The first 4 bytes of an entry of the index of identifiers, see record.index_entry."""
    return <uint32_t>checksum(checksum(0, key, key_bytes), ids, ids_bytes)


cdef inline uint64_t end_at(const View* view, int index) noexcept nogil:
    """Wider than what is stored, so that the sums that are made of it cannot wrap around."""
    cdef uint16_t narrow
    cdef uint32_t wide
    if view.width == 2:
        memcpy(&narrow, view.ends + 2 * index, 2)
        return narrow
    memcpy(&wide, view.ends + 4 * index, 4)
    return wide


cdef inline int rank(const View* view, int number) noexcept nogil:
    """How many of the fields before `number` the profile has."""
    cdef int whole, bits, count = 0
    cdef const uint8_t* at = view.bitmap
    cdef uint64_t word
    if number >= view.fields:
        return view.present
    whole = number >> 3
    while whole >= 8:
        count += ep_popcount(load64(at))
        at += 8
        whole -= 8
    word = 0
    bits = number & 7
    memcpy(&word, at, whole + (1 if bits else 0))
    return count + ep_popcount(word & ((<uint64_t>1 << (8 * whole + bits)) - 1))


cdef inline int open_record(View* view, const char* record, size_t size,
                            const char* primary, size_t primary_bytes) noexcept nogil:
    """Checks a record that was found under `primary` and points `view` into it."""
    cdef const uint8_t* at = <const uint8_t*>record
    cdef uint16_t fields
    cdef uint32_t body_bytes
    cdef int bitmap_bytes, i
    cdef uint8_t last
    if size < HEADER_BYTES or size > RECORD_BYTES_MAX:
        return RECORD_DAMAGED
    if at[0] != FORMAT:
        return RECORD_UNKNOWN_FORMAT
    view.check = load64(at + 8)
    if view.check != record_check(primary, primary_bytes, record, size):
        return RECORD_DAMAGED
    view.width = at[1]
    memcpy(&fields, at + 2, 2)
    memcpy(&body_bytes, at + 4, 4)
    memcpy(&view.updated_us, at + 16, 8)
    bitmap_bytes = (fields + 7) // 8
    if fields > FIELDS_MAX or (view.width != 2 and view.width != 4) or size < <size_t>(HEADER_BYTES + bitmap_bytes):
        return RECORD_DAMAGED
    view.fields = fields
    view.body_bytes = body_bytes
    view.bitmap = at + HEADER_BYTES
    view.present = 0
    for i in range(bitmap_bytes):
        view.present += ep_popcount(view.bitmap[i])
    if fields & 7:
        last = view.bitmap[bitmap_bytes - 1]
        if last >> (fields & 7):
            return RECORD_DAMAGED
    view.ends = view.bitmap + bitmap_bytes
    view.body = <const char*>(view.ends + view.width * view.present)
    if size != <size_t>(HEADER_BYTES + bitmap_bytes + view.width * view.present) + body_bytes:
        return RECORD_DAMAGED
    return RECORD_GOOD


cdef inline int add_slice(const View* view, Run* slice, uint64_t start, uint64_t end) noexcept nogil:
    if start > end or end > view.body_bytes:
        return RECORD_DAMAGED
    slice.first = <int>start
    slice.last = <int>end
    return RECORD_GOOD


cdef inline int cut(const View* view, const Run* runs, int n, int first_audience, bint with_audiences,
                    Run* slices, Cut* out) noexcept nogil:
    """Turns runs of field numbers into slices of the body; `slices` has room for n + 1 of them.

    The runs ascend and do not overlap: only one can lie across the first audience and become two slices.
    """
    cdef int split = rank(view, first_audience)
    cdef int i, first, last, middle
    cdef uint64_t opened = (end_at(view, split - 1) if split else 0) + 1 + AUDIENCES_OPEN_BYTES
    cdef uint64_t closed = end_at(view, view.present - 1) if view.present > split else opened
    cdef Run* slice = slices
    out.flat = 0
    out.audiences = 0
    out.bytes = 1
    for i in range(n):
        first = rank(view, runs[i].first)
        last = rank(view, runs[i].last)
        middle = min(last, split)
        if first < middle:
            if add_slice(view, slice, end_at(view, first - 1) + 1 if first else 1, end_at(view, middle - 1)):
                return RECORD_DAMAGED
            out.bytes += slice.last - slice.first + 1
            out.flat += 1
            slice += 1
        middle = max(first, split)
        if with_audiences and middle < last:
            if add_slice(view, slice, opened if middle == split else end_at(view, middle - 1) + 1,
                         end_at(view, last - 1)):
                return RECORD_DAMAGED
            out.bytes += slice.last - slice.first + (1 if out.audiences else 0)
            out.audiences += 1
            slice += 1
    if with_audiences:
        out.bytes += AUDIENCES_OPEN_BYTES + 2
    if closed + 2 > view.body_bytes:
        return RECORD_DAMAGED
    out.tail = view.body + closed + 2
    out.tail_bytes = view.body_bytes - closed - 2
    out.bytes += out.tail_bytes
    return RECORD_GOOD


cdef inline void paste(const View* view, const Run* slices, const Cut* made, bint with_audiences,
                       char* to) noexcept nogil:
    """Writes the answer that `cut` measured: exactly `made.bytes` bytes."""
    cdef int i
    cdef size_t size
    to[0] = b'{'
    to += 1
    for i in range(made.flat):
        size = slices[i].last - slices[i].first
        memcpy(to, view.body + slices[i].first, size)
        to[size] = b','
        to += size + 1
    if with_audiences:
        memcpy(to, b'"_audiences":{', AUDIENCES_OPEN_BYTES)
        to += AUDIENCES_OPEN_BYTES
        for i in range(made.flat, made.flat + made.audiences):
            size = slices[i].last - slices[i].first
            memcpy(to, view.body + slices[i].first, size)
            to += size
            if i + 1 < made.flat + made.audiences:
                to[0] = b','
                to += 1
        to[0] = b'}'
        to[1] = b','
        to += 2
    memcpy(to, made.tail, made.tail_bytes)
