"""When the next refresh is due, whatever clocks and failures say: the arithmetic alone, without processes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprofile.schedule import (
    ERASURE_RETRY_S,
    JITTER,
    RETRY_MAX_S,
    RETRY_S,
    backoff_s,
    erasure_delay_s,
    first_delay_s,
    next_delay_s,
)

CADENCES = st.floats(1, 86_400 * 9_999)
SHARES = st.floats(0, 1)
FAILURES = st.integers(1, 10**9)


@pytest.mark.parametrize(
    ("age_s", "delay_s"),
    [
        (None, 0),  # nothing is served
        (0, 300),
        (100, 200),
        (300, 0),
        (1e9, 0),
        (-5, 300),  # the clock was set back a little
        (-1e9, 300),  # or by decades
    ],
)
def test_the_first_refresh_is_due_when_what_is_served_is_a_cadence_old(age_s: float | None, delay_s: float) -> None:
    assert first_delay_s(300, age_s) == delay_s


@given(CADENCES, st.floats(allow_nan=False))
def test_no_clock_stalls_the_first_refresh_for_longer_than_a_cadence(cadence_s: float, age_s: float) -> None:
    assert 0 <= first_delay_s(cadence_s, age_s) <= cadence_s


@given(CADENCES, st.floats(0, 1e9), SHARES)
def test_no_refresh_begins_later_than_a_cadence_after_the_last_or_long_before_that(
    cadence_s: float, took_s: float, share: float
) -> None:
    between_s = took_s + next_delay_s(cadence_s, took_s, 0, share)
    # Where one takes longer than the cadence, the next begins at its end: never before, so that none overlap.
    assert between_s >= took_s
    assert between_s <= max(cadence_s, took_s) or math.isclose(between_s, cadence_s)
    least_s = cadence_s * (1 - JITTER)
    assert between_s >= least_s or math.isclose(between_s, least_s)


@given(CADENCES, FAILURES, FAILURES)
def test_back_off_grows_with_every_failure_but_never_over_its_bounds(cadence_s: float, one: int, more: int) -> None:
    sooner, later = (backoff_s(cadence_s, failures) for failures in sorted((one, more)))
    assert 0 < sooner <= later <= min(cadence_s, RETRY_MAX_S)
    assert backoff_s(cadence_s, 1) == min(cadence_s, RETRY_S)
    assert backoff_s(cadence_s, one + 1) == min(2 * backoff_s(cadence_s, one), cadence_s, RETRY_MAX_S)


@given(CADENCES, st.floats(0, 1e9), FAILURES, SHARES)
def test_a_failure_is_tried_again_by_the_back_off_however_long_it_took(
    cadence_s: float, took_s: float, failures: int, share: float
) -> None:
    least_s, most_s = backoff_s(cadence_s, failures) * (1 - JITTER), backoff_s(cadence_s, failures)
    delay_s = next_delay_s(cadence_s, took_s, failures, share)
    assert least_s <= delay_s <= most_s or math.isclose(delay_s, least_s)


@pytest.mark.parametrize(
    ("due_in_s", "delay_s"),
    [
        (1_000, 1_000),
        (-5, ERASURE_RETRY_S),  # overdue
        (3_300 + 1e9, 3_300),  # the clock was set back by decades
    ],
)
def test_no_clock_delays_what_an_erasure_is_gone_with(due_in_s: float, delay_s: float) -> None:
    assert erasure_delay_s(due_in_s, 3_300) == delay_s
