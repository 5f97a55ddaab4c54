"""The counters, rate limits and quotas that all workers share, in one small memory-mapped file without a lock.

edgeprofile.limiter explains the arithmetic and the order of memory accesses, and is the oracle for what is here.
"""

import fcntl
import hashlib
import os

cimport cython
from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from edgeprofile.errors import StoreError

cdef extern from *:
    """
    #include <stdint.h>
    #if !defined(__x86_64__) && !defined(__aarch64__)
    #error "the limiter needs a 16-byte compare-and-swap"
    #endif

    typedef unsigned __int128 ep_pair __attribute__((may_alias));

    static inline uint64_t ep_load(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

    static inline void ep_add(uint64_t *word, uint64_t n) { __atomic_fetch_add(word, n, __ATOMIC_RELAXED); }

    static inline void ep_clear(uint64_t *word) { __atomic_store_n(word, 0, __ATOMIC_RELAXED); }

    static inline int ep_claim(uint64_t *word, uint64_t value) { return __sync_bool_compare_and_swap(word, 0, value); }

    /* Spelled out on x86-64: __atomic would call libatomic, which may take a lock that only one process sees, and
       clang makes a call to a function that does not exist of __sync, unless the whole file is built with -mcx16. */
    static inline int ep_swap(uint64_t *pair, const uint64_t *seen, const uint64_t *then)
    {
    #if defined(__x86_64__)
        uint64_t low = seen[0], high = seen[1];
        int swapped;
        __asm__ __volatile__("lock cmpxchg16b %1"
                             : "=@ccz"(swapped), "+m"(*(ep_pair *)pair), "+a"(low), "+d"(high)
                             : "b"(then[0]), "c"(then[1])
                             : "memory");
        return swapped;
    #else
        return __sync_bool_compare_and_swap(
            (ep_pair *)pair, (ep_pair)seen[1] << 64 | seen[0], (ep_pair)then[1] << 64 | then[0]);
    #endif
    }
    """
    uint64_t ep_load(const uint64_t* word) noexcept nogil
    void ep_add(uint64_t* word, uint64_t n) noexcept nogil
    void ep_clear(uint64_t* word) noexcept nogil
    bint ep_claim(uint64_t* word, uint64_t value) noexcept nogil
    bint ep_swap(uint64_t* pair, const uint64_t* seen, const uint64_t* then) noexcept nogil

cdef enum:
    UNITS_NS = 64
    MINUTE_S = 60
    SKEW = 64000000

# Magic, layout version and sizes in one: a file that differs here, or in length, is of another layout.
cdef bytes HEADER = b"edgeprofile shared map 1: %d counters, %d cells\n" % (COUNTERS, CELLS)
HEADER = HEADER.ljust(64, b"\0")


@cython.final
@cython.auto_pickle(False)
cdef class Policy:
    """The compiled form of `limiter.Policy`, made from its `pairs`."""

    def __cinit__(self, pairs):
        if not 1 <= len(pairs) <= 2:
            raise ValueError("a policy has one bucket or two")
        self.c.count = len(pairs)
        for index, (interval, span) in enumerate(pairs):
            self.c.buckets[index] = CBucket(interval, span, span // interval)


cdef inline uint64_t clock_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef inline uint64_t clock_units() noexcept nogil:
    return clock_ns() * UNITS_NS


cdef int64_t decide(
    const CPolicy* policy, const uint64_t* seen, uint64_t* then, uint64_t now, uint32_t cost, int* slowest
) noexcept nogil:
    """Returns the wait in ns and fills `then`, the tats to store if that is 0."""
    cdef uint64_t ahead, need, wait = 0
    cdef const CBucket* bucket
    cdef int index
    then[1] = seen[1]  # a plain policy leaves the second tat alone
    for index in range(policy.count):
        bucket = &policy.buckets[index]
        if cost > bucket.depth:
            slowest[0] = index
            return INT64_MAX
        need = cost * bucket.interval
        ahead = seen[index] - now
        if ahead > bucket.span + SKEW:  # in the past, or of another boot
            ahead = 0
        then[index] = now + ahead + need
        if ahead + need > bucket.span + wait:
            wait = ahead + need - bucket.span
            slowest[0] = index
    return <int64_t>((wait + UNITS_NS - 1) // UNITS_NS)


cdef int used_at(uint64_t* tats, const CPolicy* policy, uint64_t now_ns) noexcept nogil:
    """See `limiter.used_percent`. The clock is read after the tats, as in `take_at`."""
    cdef uint64_t seen[2]
    cdef uint64_t now, ahead, percent
    cdef int used = 0, index
    seen[0] = ep_load(&tats[0])
    seen[1] = ep_load(&tats[1])
    now = clock_units() if now_ns == UINT64_MAX else now_ns * UNITS_NS
    for index in range(policy.count):
        ahead = seen[index] - now
        if ahead <= policy.buckets[index].span + SKEW:
            percent = (policy.buckets[index].span + 99) // 100
            used = max(used, <int>min(<uint64_t>100, (ahead + percent - 1) // percent))
    return used


cdef int64_t take_at(
    uint64_t* tats, const CPolicy* policy, uint32_t cost, int* slowest, uint64_t now_ns
) noexcept nogil:
    """`now_ns` of UINT64_MAX stands for the clock. A round is lost only to a worker that won one."""
    cdef uint64_t seen[2]
    cdef uint64_t then[2]
    cdef uint64_t now
    cdef int64_t wait_ns
    while True:
        seen[0] = ep_load(&tats[0])
        seen[1] = ep_load(&tats[1])
        now = clock_units() if now_ns == UINT64_MAX else now_ns * UNITS_NS  # only after the loads
        wait_ns = decide(policy, seen, then, now, cost, slowest)
        if wait_ns != 0 or ep_swap(tats, seen, then):
            return wait_ns


cdef int64_t take_window_at(
    uint64_t* window, uint64_t* then, uint64_t cost, uint64_t total, uint64_t now_ns
) noexcept nogil:
    """As `take_at`, of a window. `then` is left with the minute and what is used in it."""
    cdef uint64_t seen[2]
    cdef uint64_t now, minute_ns = <uint64_t>MINUTE_S * 1000000000
    while True:
        seen[0] = ep_load(&window[0])
        seen[1] = ep_load(&window[1])
        now = clock_ns() if now_ns == UINT64_MAX else now_ns  # only after the loads
        then[0] = now // minute_ns
        then[1] = seen[1] if seen[0] == then[0] else 0
        if cost > total:
            return INT64_MAX
        if then[1] > total - cost:
            return <int64_t>((then[0] + 1) * minute_ns - now)
        then[1] += cost
        if ep_swap(window, seen, then):
            return 0


@cython.final
@cython.auto_pickle(False)
cdef class SharedMap:
    """The memory-mapped file of counters and limiter cells, shared by every process that opens it."""

    def __cinit__(self, path):
        try:
            fd = _open_sound(os.fsdecode(path))
        except OSError as error:
            raise StoreError(
                f"the shared file {os.fsdecode(path)} cannot be opened: {error.strerror}",
                hint="It needs a folder that this user can write to, and half a megabyte of space.",
            ) from error
        cdef void* start = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        os.close(fd)
        if start == MAP_FAILED:
            raise StoreError(f"the shared file {os.fsdecode(path)} cannot be mapped into memory")
        self.shared = <Shared*>start

    def __dealloc__(self):
        if self.shared != NULL:
            munmap(self.shared, sizeof(Shared))

    def cell(self, bytes name not None):
        """The cell of this name, claimed for good on first use."""
        cdef bytes digest = hashlib.blake2b(name, digest_size=8).digest()
        cdef uint64_t tag, held
        cdef uint32_t at
        cdef int probe
        memcpy(&tag, <const char*>digest, sizeof(tag))
        tag = tag or 1  # 0 marks a cell that is free
        for probe in range(CELLS):
            at = <uint32_t>((tag + probe) % CELLS)
            held = ep_load(&self.shared.tags[at])
            # A lost claim is looked at again: whoever won it may have come for the same name.
            if held == 0:
                if ep_claim(&self.shared.tags[at], tag):
                    return at
                held = ep_load(&self.shared.tags[at])
            if held == tag:
                return at
        raise StoreError(
            f"all {CELLS} rate limit cells are taken",
            hint="Stop the server, delete the shared file and start again: it is made anew with the keys in use.",
        )

    def take(self, uint32_t cell, Policy policy not None, uint32_t cost, now_ns=None):
        """Takes `cost` tokens. Returns 0, or the ns until they would be there, or `limiter.NEVER`."""
        return self.take_bucket(cell, policy, cost, now_ns)[0]

    def take_bucket(self, uint32_t cell, Policy policy not None, uint32_t cost, now_ns=None):
        """As `take`, with the index of the bucket that takes the longest to have enough (0 if none does)."""
        if cell >= CELLS:
            raise IndexError("no such cell")
        cdef int bucket = 0
        cdef uint64_t given_ns = UINT64_MAX if now_ns is None else now_ns
        cdef int64_t wait_ns = take_at(self.shared.cells[cell], &policy.c, cost, &bucket, given_ns)
        return wait_ns, bucket

    def take_window(self, uint32_t cell, uint64_t cost, uint64_t total, now_ns=None):
        """Takes `cost` of a quota of `total` a minute, both in thousandths: (minute, used, wait_ns)."""
        if cell >= CELLS:
            raise IndexError("no such cell")
        cdef uint64_t then[2]
        cdef uint64_t given_ns = UINT64_MAX if now_ns is None else now_ns
        cdef int64_t wait_ns = take_window_at(self.shared.cells[cell], then, cost, total, given_ns)
        return then[0], then[1], wait_ns

    def give_back(self, uint32_t cell, uint64_t minute, uint64_t cost):
        """Undoes what `take_window` took in that minute, unless another has begun."""
        if cell >= CELLS:
            raise IndexError("no such cell")
        cdef uint64_t* window = self.shared.cells[cell]
        cdef uint64_t seen[2]
        cdef uint64_t then[2]
        while True:
            seen[0] = ep_load(&window[0])
            seen[1] = ep_load(&window[1])
            if seen[0] != minute:
                return
            then[0] = minute
            then[1] = seen[1] - cost
            if ep_swap(window, seen, then):
                return

    def used_percent(self, uint32_t cell, Policy policy not None, now_ns=None):
        """How much of the tokens is gone, in whole per cent."""
        if cell >= CELLS:
            raise IndexError("no such cell")
        return used_at(self.shared.cells[cell], &policy.c, UINT64_MAX if now_ns is None else now_ns)

    def add(self, uint32_t index, uint64_t n):
        """Adds to one of the 2,048 counters, modulo 2**64."""
        if index >= COUNTERS:
            raise IndexError("no such counter")
        self.add_c(index, n)

    def counter(self, uint32_t index):
        """Reads a counter."""
        if index >= COUNTERS:
            raise IndexError("no such counter")
        return ep_load(&self.shared.counters[index])

    def clear_counters(self):
        """Sets all counters to zero; the limiter's cells stay as they are."""
        cdef int index
        for index in range(COUNTERS):
            ep_clear(&self.shared.counters[index])

    cdef int64_t take_c(self, uint32_t cell, const CPolicy* policy, uint32_t cost, int* bucket) noexcept nogil:
        return take_at(self.shared.cells[cell], policy, cost, bucket, UINT64_MAX)

    cdef int used_c(self, uint32_t cell, const CPolicy* policy) noexcept nogil:
        return used_at(self.shared.cells[cell], policy, UINT64_MAX)

    cdef void add_c(self, uint32_t index, uint64_t n) noexcept nogil:
        ep_add(&self.shared.counters[index], n)


def _open_sound(path):
    """A descriptor of the file at `path`, made or replaced unless it has this layout; OSError if that fails."""
    # The lock is on the folder and not on the file, because the file may be the thing to replace.
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return _create(path)
        if os.fstat(fd).st_size == sizeof(Shared) and os.pread(fd, len(HEADER), 0) == HEADER:
            return fd
        os.close(fd)
        return _create(path)
    finally:
        os.close(folder)


def _create(path):
    fresh = path + ".new"
    if os.path.lexists(fresh):  # left by a process that died here
        os.unlink(fresh)
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # A hole would be filled on first use, where a full disk is a SIGBUS and no longer an error.
        os.posix_fallocate(fd, 0, sizeof(Shared))
        os.pwrite(fd, HEADER, 0)
        # Not synced: what a power cut leaves of it either fails the check above or is harmless.
        os.rename(fresh, path)
    except BaseException:
        os.close(fd)
        raise
    return fd
