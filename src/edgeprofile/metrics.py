"""The counters of the shared file: which slot holds what.

All are numbers of 64 bits that only grow, summed over all workers, from zero when the service starts.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from edgeprofile.settings import WORKSPACES_MAX


class Counter(IntEnum):
    """What is counted once for the whole service."""

    RECORDS_DAMAGED = 0
    SNAPSHOTS_REFUSED = 1
    SNAPSHOTS_OPENED = 2
    LOOKUPS_DEFERRED = 3  # answered by the event loop, and not before it
    WORKERS_DIED = 4
    LOG_LINES_DROPPED = 5


class Surface(IntEnum):
    """Whose requests are told apart; the name in lower case is the label."""

    NATIVE = 0
    NATIVE_BATCH = 1
    INSIDER = 2
    MPARTICLE = 3
    INTILERY = 4
    BATCH = 5
    OTHER = 6


# What our services answer with; every other status is counted in one slot more.
STATUSES = (200, 202, 204, 304, 400, 401, 403, 404, 405, 406, 413, 414, 415, 429, 431, 500, 503)
OTHER_STATUS = 0
# Of durations: 50 µs to 1 s. Each bucket takes what is not longer than its bound, and one more all the rest.
_BOUNDS_US = (50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000)
BOUNDS_NS = tuple(bound * 1_000 for bound in _BOUNDS_US)

# The file's counters: those of Counter, the block of each surface, and one for each workspace.
_SURFACES = 64
_SURFACE = 64
_WORKSPACES = 1_024
SLOTS = _WORKSPACES + WORKSPACES_MAX
# Within a block. What nearly every request adds to stands together, in one cache line: 200, the sum, the first buckets.
_OK, _SUM_NS, _BUCKETS = 0, 1, 2
_STATUSES = _BUCKETS + len(BOUNDS_NS) + 1
_AT = {OTHER_STATUS: _STATUSES} | {status: at for at, status in enumerate(STATUSES, _STATUSES + 1)} | {200: _OK}


class Slots(NamedTuple):
    """The slots of one surface, as `_metrics.Recorder` takes them.

    `statuses` has one for each status below 600; at `buckets` begins one for each of `bounds_ns` and one more.
    """

    statuses: tuple[int, ...]
    buckets: int
    sum_ns: int
    bounds_ns: tuple[int, ...]


def slots(surface: Surface) -> Slots:
    """The slots of a surface's requests."""
    block = _SURFACES + _SURFACE * surface
    statuses = tuple(block + _AT.get(status, _AT[OTHER_STATUS]) for status in range(600))
    return Slots(statuses, block + _BUCKETS, block + _SUM_NS, BOUNDS_NS)


def limited_slot(number: int) -> int:
    """The slot of the requests over their limit of a workspace, by its number in the order of the settings."""
    return _WORKSPACES + number
