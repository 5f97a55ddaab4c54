"""The counters of the shared file: which slot holds what."""

from __future__ import annotations

from enum import IntEnum


class Counter(IntEnum):
    """Slots of `_limiter.SharedMap` that only ever grow, summed over all workers."""

    RECORDS_DAMAGED = 0
    SNAPSHOTS_REFUSED = 1
    SNAPSHOTS_OPENED = 2
