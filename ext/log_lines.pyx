"""The lines of a process's log on their way out: kept in memory, written by whoever may wait, and dropped past a bound.

Who logs holds the interpreter's lock and only copies bytes; who writes gives it up meanwhile. So neither a slow disk
nor a reader that has stopped reading is felt by a lookup.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from libc.time cimport gmtime_r, tm
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport write

from edgeprofile._limiter cimport SharedMap

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
    int POLLOUT
    int poll(pollfd* files, unsigned long count, int timeout_ms)

cdef enum:
    PIECE_BYTES_MAX = 4096  # PIPE_BUF: so many are written as one
    PART_BYTES_MAX = 128
    REQUEST_BYTES_MAX = 2048
    PIECES = 8
    FAILED = 500
    # Whoever goes on logging must not keep who writes from ever returning.
    TURNS = 2

ENTRY_BYTES_MAX = PIECE_BYTES_MAX
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


@cython.final
@cython.auto_pickle(False)
cdef class Lines:
    """See the stub."""

    def __cinit__(self, size_t bytes_max):
        # The system backs no more of it than is ever used.
        self.pending = <char*>malloc(bytes_max)
        self.leaving = <char*>malloc(bytes_max)
        if self.pending == NULL or self.leaving == NULL:
            raise MemoryError()
        self.bytes_max = bytes_max
        self.second_s = -1

    def __dealloc__(self):
        free(self.pending)
        free(self.leaving)

    def append(self, bytes entry not None):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(entry)
        cdef char* to = self.room(size)
        if to != NULL:
            memcpy(to, PyBytes_AS_STRING(entry), size)
            self.used += size

    def write(self, int fd):
        cdef size_t size, written
        cdef int turn = 0
        if self.is_writing:
            return
        self.is_writing = True
        while self.used and turn < TURNS:
            turn += 1
            size = self.used
            self.pending, self.leaving = self.leaving, self.pending
            self.used = 0
            with nogil:
                written = write_whole(fd, self.leaving, size)
            self.drop(entries(self.leaving + written, size - written))
        self.is_writing = False

    def reset(self):
        self.used = 0
        self.dropped = 0
        self.is_writing = False

    def count_drops(self, SharedMap shared not None, uint32_t counter):
        self.shared = shared
        self.dropped_counter = counter

    cdef char* room(self, size_t size) noexcept:
        """Where to put so many bytes, which the caller adds to `used`; NULL for an entry that is dropped."""
        if size > self.bytes_max - self.used:
            self.drop(1)
            return NULL
        return self.pending + self.used

    cdef void drop(self, uint64_t count) noexcept:
        self.dropped += count
        if self.shared is not None:
            self.shared.add_c(self.dropped_counter, count)

    cdef char* write_time(self, char* to) noexcept:
        """Now, as RFC 3339 has it, in UTC and to the microsecond."""
        cdef timespec now
        cdef tm made
        clock_gettime(CLOCK_REALTIME, &now)
        if now.tv_sec != self.second_s:  # one computation a second
            self.second_s = now.tv_sec
            gmtime_r(&self.second_s, &made)
            write_digits(self.second, made.tm_year + 1900, 4)
            self.second[4] = self.second[7] = b"-"
            write_digits(self.second + 5, made.tm_mon + 1, 2)
            write_digits(self.second + 8, made.tm_mday, 2)
            self.second[10] = b"T"
            write_digits(self.second + 11, made.tm_hour, 2)
            self.second[13] = self.second[16] = b":"
            write_digits(self.second + 14, made.tm_min, 2)
            write_digits(self.second + 17, made.tm_sec, 2)
            self.second[19] = b"."
        memcpy(to, self.second, 20)
        write_digits(to + 20, now.tv_nsec // 1000, 6)
        to[26] = b"Z"
        return to + 27


@cython.final
@cython.auto_pickle(False)
cdef class RequestLog:
    """See the stub."""

    def __init__(self, Lines lines not None, int from_status, tuple good not None, tuple bad not None):
        for pieces in (good, bad):
            if len(pieces) != PIECES or any(len(<bytes?>piece) > PART_BYTES_MAX for piece in pieces):
                raise ValueError("a line has eight pieces of up to 128 bytes")
        self.lines = lines
        self.from_status = from_status
        self.good = good
        self.bad = bad

    cdef int put(self, int status, uint64_t taken_ns, str method, bytes request_id, str workspace) except -1:
        """`request_id` is a sane one, and written as it is. A method that is none that is known may be any text."""
        cdef tuple pieces = self.bad if status >= FAILED else self.good
        cdef char* start = self.lines.room(REQUEST_BYTES_MAX)
        cdef char* to
        if start == NULL:
            return 0
        to = write_bytes(start, <bytes>pieces[0])
        to = self.lines.write_time(to)
        to = write_bytes(to, <bytes>pieces[1])
        to = write_bytes(to, request_id)
        to = write_bytes(to, <bytes>pieces[2])
        to = write_text(to, method if method in METHODS else "other")
        to = write_bytes(to, <bytes>pieces[3])
        to = write_number(to, status)
        to = write_bytes(to, <bytes>pieces[4])
        to = write_number(to, taken_ns // 1000)
        if workspace is not None:
            to = write_bytes(to, <bytes>pieces[5])
            to = write_text(to, workspace)
            to = write_bytes(to, <bytes>pieces[6])
        to = write_bytes(to, <bytes>pieces[7])
        self.lines.used += to - start
        return 0


cdef inline char* write_bytes(char* to, bytes part) noexcept:
    return write_part(to, PyBytes_AS_STRING(part), PyBytes_GET_SIZE(part))


cdef inline char* write_text(char* to, str part) except NULL:
    cdef Py_ssize_t size
    cdef const char* text = PyUnicode_AsUTF8AndSize(part, &size)
    return write_part(to, text, size)


cdef inline char* write_part(char* to, const char* part, Py_ssize_t size) noexcept:
    """No part is longer; were one, it would be cut."""
    size = min(size, <Py_ssize_t>PART_BYTES_MAX)
    memcpy(to, part, size)
    return to + size


cdef inline char* write_number(char* to, uint64_t n) noexcept:
    cdef int count = 1
    cdef uint64_t rest = n
    while rest > 9:
        rest //= 10
        count += 1
    write_digits(to, n, count)
    return to + count


cdef inline void write_digits(char* to, uint64_t n, int count) noexcept:
    cdef int i
    for i in range(count - 1, -1, -1):
        to[i] = <char>(c"0" + n % 10)
        n //= 10


cdef size_t write_whole(int fd, const char* at, size_t size) noexcept nogil:
    """Writes entries, as many at once as stay in one piece. Returns how much was written before it failed."""
    cdef size_t done = 0
    cdef Py_ssize_t wrote
    cdef pollfd file
    while done < size:
        wrote = write(fd, at + done, whole_entries(at + done, size - done))
        if wrote >= 0:
            done += wrote
        elif errno == EAGAIN:  # who shares the file may have made it one that does not block
            file.fd = fd
            file.events = POLLOUT
            poll(&file, 1, -1)
        elif errno != EINTR:
            break
    return done


cdef inline size_t whole_entries(const char* at, size_t size) noexcept nogil:
    """How many bytes to write: up to the last end of an entry that fits."""
    cdef size_t end
    if size <= PIECE_BYTES_MAX:
        return size
    for end in range(PIECE_BYTES_MAX, 0, -1):
        if at[end - 1] == b"\n" and at[end] != b" ":
            return end
    return PIECE_BYTES_MAX


cdef uint64_t entries(const char* at, size_t size) noexcept nogil:
    """How many end there."""
    cdef uint64_t count = 0
    cdef size_t i
    for i in range(size):
        if at[i] == b"\n" and (i + 1 == size or at[i + 1] != b" "):
            count += 1
    return count
