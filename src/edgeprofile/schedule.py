"""When a workspace is refreshed: the arithmetic of cadence, jitter and back-off, apart from clocks and processes.

A refresh is due one cadence after the last one began, or up to a tenth of it sooner, at random, so that the
workspaces of many machines do not ask their warehouse all at once. It is never due later: what is served is then
never older than one cadence and the time that a refresh takes. Where one takes longer than the cadence, the next
begins at its end. After a failure it is due ten seconds after that, then twenty, and so on up to the cadence, or to
an hour where that is less.

Delays count on the clock that never jumps. The calendar's is asked at the start, for the age of what is served, and
for what was erased; whatever it says, the first refresh is due within one cadence, and no erasure later than it was.
"""

from __future__ import annotations

JITTER = 0.1
RETRY_S, RETRY_MAX_S = 10.0, 3_600.0
DOUBLINGS_MAX = 16
ERASURE_RETRY_S = 60.0


def first_delay_s(cadence_s: float, age_s: float | None) -> float:
    """Until the first refresh, where the warehouse was seen `age_s` ago to hold what is served. None: there is nothing.

    An age below zero is one of before the clock was set back.
    """
    return 0.0 if age_s is None else min(max(cadence_s - age_s, 0.0), cadence_s)


def next_delay_s(cadence_s: float, took_s: float, failures: int, share: float) -> float:
    """Until the next one from the end of one that took `took_s`, the last of so many failures in a row.

    `share` is random, from 0 to 1.
    """
    sooner = 1 - JITTER * share
    if failures:
        return backoff_s(cadence_s, failures) * sooner
    return max(cadence_s * sooner - took_s, 0.0)


def backoff_s(cadence_s: float, failures: int) -> float:
    """How long to wait after so many failures in a row, without jitter."""
    return min(cadence_s, RETRY_MAX_S, RETRY_S * 2.0 ** min(failures - 1, DOUBLINGS_MAX))


def erasure_delay_s(due_in_s: float, due_in_max_s: float) -> float:
    """Until the refresh that what was erased has to be gone with, which the calendar says is due in so long.

    One that is overdue, because refreshes fail, is tried again as they are. None is due later than it was at first,
    which the calendar may say while it is behind.
    """
    return min(max(due_in_s, ERASURE_RETRY_S), due_in_max_s)
