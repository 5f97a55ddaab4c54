# Histories as they stand on disk, see history.py: for the compiled modules that write and read them.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    BLOCK_EVENTS_MAX = 128
    BLOCK_BYTES_MAX = 64 * 1024
    DIRECTORY_CHECK_BYTES = 4

cdef struct Block:  # an entry of a directory
    int64_t newest_us, oldest_us
    uint64_t names, check
    uint32_t segment, offset, length, count
    uint64_t reserved

cdef struct Mark:  # an entry of a block's index
    int64_t time_us
    uint32_t name_hash, offset
