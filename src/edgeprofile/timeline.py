"""The last minutes of a service: its counters read every two seconds, and what came between two readings.

It is for people who look at it now, and so it is kept in memory alone, for ten minutes; whoever wants more has the
metrics scraped.
"""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

import msgspec

from edgeprofile._limiter import SharedMap
from edgeprofile.metrics import BOUNDS_NS, OTHER_STATUS, STATUSES, Surface, slots

STEP_S = 2.0
KEPT = 300
# Of answers: by their first digit, but for those that were refused because of a limit, and those that none of ours has.
LIMITED, OTHER = "429", "other"
MEDIAN, TAIL = 0.5, 0.99


class Stretch(msgspec.Struct, frozen=True):
    """What was answered in the `seconds` up to `at`, in Unix seconds; nothing is in it that there was none of.

    `surfaces` has, by a surface's name, how many requests there were, and within how many seconds half of them and
    99 of 100 were answered. `answers` counts them by class: `2xx`, `3xx`, `4xx`, `429`, `5xx`, `other`.
    """

    at: float
    seconds: float
    surfaces: dict[str, tuple[int, float, float]]
    answers: dict[str, int]


class Reading(NamedTuple):
    """All counters of requests at one moment: by surface the buckets of its durations, and by class the answers."""

    on_clock: float
    buckets: dict[str, list[int]]
    answers: dict[str, int]


class Timeline:
    """The latest stretches. `note` is to be called every STEP_S."""

    def __init__(self, shared: SharedMap) -> None:
        self._shared = shared
        self._stretches: deque[Stretch] = deque(maxlen=KEPT)
        self._last = self._read()

    def note(self) -> None:
        """Adds the stretch since the last call."""
        last, self._last = self._last, self._read()
        counts = {
            name: [now - before for now, before in zip(buckets, last.buckets[name], strict=True)]
            for name, buckets in self._last.buckets.items()
        }
        answers = {name: count - last.answers[name] for name, count in self._last.answers.items()}
        self._stretches.append(
            Stretch(
                at=round(time.time(), 3),
                seconds=round(self._last.on_clock - last.on_clock, 3),
                surfaces={name: _summary(of) for name, of in counts.items() if any(of)},
                answers={name: count for name, count in answers.items() if count},
            )
        )

    def after(self, at: float) -> list[Stretch]:
        """Those that ended later than that, the oldest first."""
        return [stretch for stretch in self._stretches if stretch.at > at]

    def _read(self) -> Reading:
        buckets, answers = {}, dict.fromkeys(("2xx", "3xx", "4xx", LIMITED, "5xx", OTHER), 0)
        for surface in Surface:
            where = slots(surface)
            for status in (*STATUSES, OTHER_STATUS):
                answers[class_of(status)] += self._shared.counter(where.statuses[status])
            counts = [self._shared.counter(where.buckets + at) for at in range(len(BOUNDS_NS) + 1)]
            buckets[surface.name.lower()] = counts
        return Reading(time.monotonic(), buckets, answers)


def _summary(counts: list[int]) -> tuple[int, float, float]:
    return sum(counts), quantile_s(counts, MEDIAN), quantile_s(counts, TAIL)


def class_of(status: int) -> str:
    """Which answers one of this status is counted among."""
    if status == OTHER_STATUS:
        return OTHER
    return LIMITED if status == 429 else f"{status // 100}xx"


def quantile_s(counts: list[int], share: float) -> float:
    """Within how many seconds this share of requests was answered; `counts` has how many fell into each bucket.

    Within a bucket they count as spread evenly. Of those behind the last bound it is known only that they are: their
    time is that bound.
    """
    rank, seen = share * sum(counts), 0
    lower = 0
    for upper, count in zip(BOUNDS_NS, counts, strict=False):
        if count and seen + count >= rank:
            return round((lower + (upper - lower) * (rank - seen) / count) / 1e9, 7)
        seen += count
        lower = upper
    return BOUNDS_NS[-1] / 1e9
