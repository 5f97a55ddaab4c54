"""When a workspace is refreshed: the arithmetic of cadence, jitter and back-off, apart from clocks and processes.

A refresh is due one cadence after the last one began, or up to a tenth of it sooner, at random, so that the
workspaces of many machines do not ask their warehouse all at once. It is never due later: what is served is then
never older than one cadence and the time that a refresh takes. Where one takes longer than the cadence, the next
begins at its end. After a failure it is due ten seconds after that, then twenty, and so on up to the cadence, or to
an hour where that is less.

Delays count on the clock that never jumps. The calendar's is asked once, at the start, for the age of what is
served; whatever it says, the first refresh is due within one cadence.
"""

from __future__ import annotations

JITTER = 0.1
RETRY_S, RETRY_MAX_S = 10.0, 3_600.0
DOUBLINGS_MAX = 16


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
