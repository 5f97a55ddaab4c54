"""The rate limiter: the arithmetic on a simulated clock, and the compiled code that does the same."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprofile import _limiter, limiter
from edgeprofile.limiter import (
    MINUTE_NS,
    NEVER,
    RATE_MAX,
    RESTED,
    SPAN_MAX,
    UNITS_NS,
    decide,
    give_back,
    policy,
    rate_limit_headers,
    retry_after_s,
    take_window,
    used_percent,
)

SECOND = 10**9
DEFAULT = policy(500, 1000, 120)
CELLS, COUNTERS = 16_384, 2_048


@st.composite
def policies(draw: st.DrawFn) -> limiter.Policy:
    rate = draw(st.floats(0.1, 1e6))
    burst_rate = rate * draw(st.just(1.0) | st.floats(1, 10))
    return policy(rate, burst_rate, draw(st.just(0.0) | st.floats(0.01, 1_000)))


EXAMPLE = itertools.count()
NOW = st.integers(1, 2**61)
STEPS_NS = st.integers(0, 1_000) | st.integers(0, 10 * SECOND)
REQUESTS = st.lists(st.tuples(STEPS_NS, st.integers(1, 5) | st.integers(1, 2_000)), max_size=60)


class Key:
    """One key on a clock that only moves when told."""

    def __init__(self, limits: limiter.Policy, now_ns: int = 5 * SECOND, cell: tuple[int, int] = RESTED) -> None:
        self.limits, self.now_ns, self.cell = limits, now_ns, cell

    def send(self, cost: int = 1, after_ns: int = 0) -> limiter.Decision:
        self.now_ns += after_ns
        decision = decide(self.cell, self.now_ns, cost, self.limits)
        self.cell = decision.cell
        return decision

    def send_many(self, times: int, every_ns: int = 0) -> int:
        return sum(self.send(after_ns=every_ns).allowed for _ in range(times))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> _limiter.SharedMap:
    return _limiter.SharedMap(tmp_path_factory.mktemp("limiter") / "shared.map")


def compiled(limits: limiter.Policy) -> _limiter.Policy:
    return _limiter.Policy(limits.pairs)


# The arithmetic


def test_a_rested_key_sends_a_thousand_at_once_on_the_default_limits() -> None:
    key = Key(DEFAULT)
    assert key.send_many(1_200) == 1_000
    assert key.send().bucket == 1


def test_a_key_sends_a_thousand_a_second_for_two_minutes_then_five_hundred() -> None:
    key = Key(DEFAULT)
    millisecond = SECOND // 1_000
    # By the last of them, 119.999 s after the first, there were 60,000 tokens and 500 a second: not quite 120,000.
    assert key.send_many(120_000, every_ns=millisecond) == 119_999
    assert key.send_many(20_000, every_ns=millisecond) == pytest.approx(10_000, abs=2)
    assert key.send().bucket == 0


def test_without_burst_seconds_there_is_one_plain_bucket() -> None:
    for limits in (policy(500, 1_000, 0), policy(1_000, 1_000, 120)):
        assert [bucket.name for bucket in limits.buckets] == ["sustained"]
        key = Key(limits)
        assert key.send_many(1_200) == 1_000
        assert key.send_many(4_000, every_ns=SECOND // 2_000) == pytest.approx(limits.buckets[0].rate * 2, abs=1)
        assert key.cell[1] == 0


def test_a_rate_below_one_a_second_lets_a_request_pass() -> None:
    for limits in (policy(0.1, 0.1, 0), policy(0.1, 0.5, 0.01)):
        key = Key(limits)
        assert key.send().allowed
        assert key.send().wait_ns == 10 * SECOND
        assert key.send(after_ns=10 * SECOND).allowed


@given(rate=st.floats(0.1, RATE_MAX))
def test_the_long_run_rate_is_off_by_less_than_a_hundredth_of_a_percent(rate: float) -> None:
    bucket = policy(rate, rate, 0).buckets[0]
    assert 1e9 * UNITS_NS / bucket.interval == pytest.approx(rate, rel=1e-4)


@given(limits=policies(), start_ns=NOW, requests=REQUESTS)
def test_no_window_ever_admits_more_than_its_depth_and_refill(
    limits: limiter.Policy, start_ns: int, requests: list[tuple[int, int]]
) -> None:
    key = Key(limits, start_ns)
    admitted = [(key.now_ns, cost) for step_ns, cost in requests if key.send(cost, step_ns).allowed]
    for bucket in limits.buckets:
        for first, (from_ns, _) in enumerate(admitted):
            sent = 0
            for until_ns, cost in admitted[first:]:
                sent += cost
                assert sent * bucket.interval <= bucket.span + (until_ns - from_ns) * UNITS_NS


@given(limits=policies(), start_ns=NOW, requests=REQUESTS, cost=st.integers(1, 2_000))
def test_the_wait_is_true_to_the_nanosecond(
    limits: limiter.Policy, start_ns: int, requests: list[tuple[int, int]], cost: int
) -> None:
    key = Key(limits, start_ns)
    for step_ns, before in requests:
        key.send(before, step_ns)
    denied = key.send(cost)
    if denied.wait_ns == NEVER:
        bucket = limits.buckets[denied.bucket]
        assert cost * bucket.interval > bucket.span
    elif not denied.allowed:
        assert not decide(key.cell, key.now_ns + denied.wait_ns - 1, cost, limits).allowed
        assert decide(key.cell, key.now_ns + denied.wait_ns, cost, limits).allowed
        assert decide(key.cell, key.now_ns + retry_after_s(denied.wait_ns) * SECOND, cost, limits).allowed


@given(limits=policies(), start_ns=NOW, requests=REQUESTS)
def test_a_denied_request_costs_nothing(limits: limiter.Policy, start_ns: int, requests: list[tuple[int, int]]) -> None:
    key = Key(limits, start_ns)
    for step_ns, cost in requests:
        before = key.cell
        decision = key.send(cost, step_ns)
        assert decision.allowed == (key.cell != before)
        assert decision.allowed == (decision.wait_ns == 0)


def test_a_request_that_no_bucket_can_hold_never_passes() -> None:
    decision = Key(DEFAULT).send(cost=1_001)
    assert (decision.allowed, decision.wait_ns, decision.bucket) == (False, NEVER, 1)
    with pytest.raises(ValueError, match="no wait is long enough"):
        retry_after_s(decision.wait_ns)


@given(limits=policies(), now_ns=NOW, cell=st.tuples(*[st.integers(0, 2**64 - 1)] * 2))
def test_a_tat_of_another_boot_makes_no_key_wait_longer_than_a_refill(
    limits: limiter.Policy, now_ns: int, cell: tuple[int, int]
) -> None:
    decision = decide(cell, now_ns, 1, limits)
    bucket = limits.buckets[decision.bucket]
    assert decision.wait_ns <= (bucket.span + limiter.SKEW) // UNITS_NS + 1


@given(jump_s=st.integers(-(10**6), 10**6).filter(lambda jump_s: not -1 <= jump_s < 121))
def test_a_drained_key_is_rested_when_the_clock_jumps(jump_s: int) -> None:
    drained_ns = 2 * 10**6 * SECOND
    full = tuple(drained_ns * UNITS_NS + bucket.span for bucket in DEFAULT.buckets)
    assert not Key(DEFAULT, drained_ns, (full[0], full[1])).send().allowed
    assert Key(DEFAULT, drained_ns + jump_s * SECOND, (full[0], full[1])).send(cost=1_000).allowed


def test_a_clock_slightly_behind_another_worker_does_not_refill_a_drained_bucket(shared: _limiter.SharedMap) -> None:
    key, cell = Key(policy(500, 1_000, 0)), shared.cell(b"behind")
    assert key.send(cost=1_000).allowed
    assert shared.take(cell, compiled(key.limits), 1_000, now_ns=key.now_ns) == 0
    assert key.send(after_ns=-100).wait_ns == SECOND // 500 + 100
    assert shared.take(cell, compiled(key.limits), 1, now_ns=key.now_ns) == SECOND // 500 + 100


def test_the_clock_may_wrap_around() -> None:
    key = Key(DEFAULT, now_ns=2**64 // UNITS_NS - 200 * SECOND)
    assert key.send().allowed
    key.now_ns += 199 * SECOND + SECOND // 2
    assert key.send_many(2_000, every_ns=SECOND // 1_000) == 2_000
    key.now_ns += SECOND
    assert key.send_many(1_200) == 1_000


@pytest.mark.parametrize(
    ("rate", "burst_rate", "burst_seconds"),
    [
        (0, 1, 1),
        (-1, 1, 1),
        (2, 1, 1),
        (1, RATE_MAX * 2, 1),
        (float("nan"), 1, 1),
        (1, 2, -1),
        (1, 2, float("inf")),
        (1, 2, float("nan")),
        (1e-12, 1e-12, 0),
    ],
)
def test_numbers_that_make_no_limit_are_refused(rate: float, burst_rate: float, burst_seconds: float) -> None:
    with pytest.raises(ValueError, match=r"burst|refill"):
        policy(rate, burst_rate, burst_seconds)


def test_a_bucket_that_would_take_years_to_fill_is_made_as_large_as_the_clock_can_say() -> None:
    sustained = policy(0.001, 1_000_000, 86_400).buckets[0]
    assert sustained.span == SPAN_MAX
    decision = decide(RESTED, 0, 1_000, policy(0.001, 1_000_000, 86_400))
    assert decision.allowed


def test_what_is_used_is_that_of_the_bucket_that_is_used_the_most() -> None:
    key = Key(DEFAULT)
    assert used_percent(key.cell, key.now_ns, DEFAULT) == 0
    key.send()
    assert used_percent(key.cell, key.now_ns, DEFAULT) == 1, "0 is of a rested key alone"
    key.send_many(499)
    assert used_percent(key.cell, key.now_ns, DEFAULT) == 50
    key.send_many(600)
    assert used_percent(key.cell, key.now_ns, DEFAULT) == 100
    assert used_percent(key.cell, key.now_ns + SECOND // 2, DEFAULT) == 50
    # The peak is rested a second later, and of the 60,000 tokens of the other bucket 500 are gone.
    assert used_percent(key.cell, key.now_ns + SECOND, DEFAULT) == 1
    assert used_percent(key.cell, key.now_ns + 2 * SECOND, DEFAULT) == 0


@given(limits=policies(), now_ns=NOW, cell=st.tuples(*[st.integers(0, 2**64 - 1)] * 2))
def test_what_is_used_is_a_percentage_whatever_another_boot_has_left(
    limits: limiter.Policy, now_ns: int, cell: tuple[int, int]
) -> None:
    assert 0 <= used_percent(cell, now_ns, limits) <= 100


# The answer's headers


def test_retry_after_is_whole_seconds_rounded_up_and_never_zero() -> None:
    assert [retry_after_s(wait_ns) for wait_ns in (1, SECOND - 1, SECOND, SECOND + 1)] == [1, 1, 1, 2]


def test_the_headers_name_the_bucket_that_denied() -> None:
    assert rate_limit_headers(DEFAULT, 0, 2_000_000) == [
        (b"ratelimit-policy", b'"sustained";q=500;w=1, "peak";q=1000;w=1'),
        (b"ratelimit", b'"sustained";r=0;t=1'),
    ]


def test_the_headers_of_a_plain_policy_have_one_bucket_and_a_window_of_whole_tokens() -> None:
    assert rate_limit_headers(policy(0.3, 2, 0), 0, 2 * SECOND + 1) == [
        (b"ratelimit-policy", b'"sustained";q=1;w=4'),
        (b"ratelimit", b'"sustained";r=0;t=3'),
    ]


def test_the_headers_say_what_is_left_for_a_cheaper_request() -> None:
    key = Key(policy(1, 10, 0))
    key.send(cost=7)
    denied = key.send(cost=5)
    assert rate_limit_headers(key.limits, denied.bucket, denied.wait_ns, cost=5)[1] == (
        b"ratelimit",
        b'"sustained";r=3;t=2',
    )


# The compiled limiter


@given(
    limits=policies(),
    start_ns=NOW,
    requests=REQUESTS,
    jump_ns=st.integers(-(2**61), 2**61) | st.integers(-(10**12), 10**12) | st.integers(-(10**6), 10**6),
)
def test_the_compiled_limiter_decides_as_the_plain_one(
    shared: _limiter.SharedMap, limits: limiter.Policy, start_ns: int, requests: list[tuple[int, int]], jump_ns: int
) -> None:
    cell, fast = shared.cell(b"equal %d" % next(EXAMPLE)), compiled(limits)
    key = Key(limits, start_ns)
    for number, (step_ns, cost) in enumerate(requests):
        if number == 30:
            key.now_ns = max(1, key.now_ns + jump_ns)
        plain = key.send(cost, step_ns)
        assert shared.take_bucket(cell, fast, cost, now_ns=key.now_ns) == (plain.wait_ns, plain.bucket)
        assert shared.used_percent(cell, fast, now_ns=key.now_ns) == used_percent(key.cell, key.now_ns, limits)


def test_the_compiled_limiter_says_never_to_any_cost_beyond_the_depth(shared: _limiter.SharedMap) -> None:
    cell = shared.cell(b"never")
    for cost, bucket in ((1_001, 1), (2**32 - 1, 0)):
        assert shared.take_bucket(cell, compiled(DEFAULT), cost) == (NEVER, bucket)
    assert shared.take(cell, compiled(DEFAULT), 1_000) == 0


def test_the_compiled_limiter_reads_the_monotonic_clock(shared: _limiter.SharedMap) -> None:
    cell, slow = shared.cell(b"clock"), compiled(policy(0.1, 0.1, 0))
    assert shared.take(cell, slow, 1) == 0
    wait_ns = shared.take(cell, slow, 1)
    assert 0 < wait_ns <= 10 * SECOND
    assert shared.take(cell, slow, 1, now_ns=time.monotonic_ns() + wait_ns) == 0


@pytest.mark.parametrize("pairs", [[], [(1, 1)] * 3])
def test_a_compiled_policy_has_one_bucket_or_two(pairs: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="one bucket or two"):
        _limiter.Policy(pairs)


def test_indices_outside_the_file_are_refused(shared: _limiter.SharedMap) -> None:
    with pytest.raises(IndexError):
        shared.take(CELLS, compiled(DEFAULT), 1)
    with pytest.raises(IndexError):
        shared.take_window(CELLS, 1, 1)
    with pytest.raises(IndexError):
        shared.give_back(CELLS, 0, 1)
    with pytest.raises(IndexError):
        shared.used_percent(CELLS, compiled(DEFAULT))
    with pytest.raises(IndexError):
        shared.add(COUNTERS, 1)
    with pytest.raises(IndexError):
        shared.counter(COUNTERS)


# The quota of a minute


def test_a_quota_holds_its_total_and_says_when_the_next_minute_begins() -> None:
    now_ns = 7 * MINUTE_NS + 15 * SECOND
    cell = RESTED
    for used in (400, 800):
        *taken, wait_ns = take_window(cell, now_ns, cost=400, total=1_000)
        assert (taken, wait_ns) == ([7, used], 0)
        cell = (7, used)
    assert take_window(cell, now_ns, cost=201, total=1_000) == (7, 800, 45 * SECOND)
    assert take_window(cell, now_ns, cost=200, total=1_000) == (7, 1_000, 0)
    assert take_window(cell, now_ns + 45 * SECOND, cost=201, total=1_000) == (8, 201, 0)
    assert take_window(cell, now_ns, cost=1_001, total=1_000) == (7, 800, NEVER)


@given(cell=st.tuples(*[st.integers(0, 2**64 - 1)] * 2), now_ns=NOW, total=st.integers(0, 2**40))
def test_a_cell_of_another_minute_or_boot_is_an_empty_window(cell: tuple[int, int], now_ns: int, total: int) -> None:
    if cell[0] != now_ns // MINUTE_NS:
        assert take_window(cell, now_ns, total, total) == (now_ns // MINUTE_NS, total, 0)


def test_what_is_given_back_can_be_taken_again_in_the_same_minute_only() -> None:
    assert give_back((7, 800), minute=7, cost=300) == (7, 500)
    assert give_back((8, 800), minute=7, cost=300) == (8, 800)


COSTS = st.integers(0, 10) | st.integers(0, 2_000)
CALLS = st.lists(st.tuples(st.integers(0, 90 * SECOND), COSTS, st.booleans()), max_size=60)


@given(total=COSTS, start_ns=NOW, calls=CALLS, jump_ns=st.integers(-(2**61), 2**61))
def test_the_compiled_quota_counts_as_the_plain_one_and_no_minute_has_more_than_its_total(
    shared: _limiter.SharedMap, total: int, start_ns: int, calls: list[tuple[int, int, bool]], jump_ns: int
) -> None:
    name, cell, now_ns = shared.cell(b"window %d" % next(EXAMPLE)), RESTED, start_ns
    for number, (step_ns, cost, is_given_back) in enumerate(calls):
        now_ns += step_ns
        if number == 30:
            now_ns = max(1, now_ns + jump_ns)
        minute, used, wait_ns = take_window(cell, now_ns, cost, total)
        assert shared.take_window(name, cost, total, now_ns=now_ns) == (minute, used, wait_ns)
        cell = cell if wait_ns else (minute, used)
        assert cell[1] <= total
        if is_given_back and not wait_ns:
            cell = give_back(cell, minute + number % 2, cost)
            shared.give_back(name, minute + number % 2, cost)


def test_the_compiled_quota_reads_the_monotonic_clock(shared: _limiter.SharedMap) -> None:
    minute, used, _ = shared.take_window(shared.cell(b"minute"), 3, 10)
    assert used == 3
    assert minute in (time.monotonic_ns() // MINUTE_NS, time.monotonic_ns() // MINUTE_NS - 1)
