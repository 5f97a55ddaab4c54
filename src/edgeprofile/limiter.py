"""The rate limit's arithmetic as pure functions, apart from the file where workers share it.

The compiled limiter does the same on shared memory; the tests hold it to what `decide` says.

A key has two token buckets. `sustained` refills at `rate` a second and holds (`burst_rate` - `rate`) x `burst_seconds`
tokens; `peak` refills at `burst_rate` a second and holds `burst_rate`. A request of cost n passes when both hold n
tokens, and takes n from both; a denied request takes none. With `burst_seconds` 0, or `burst_rate` equal to `rate`,
there is one plain bucket that refills at `rate` and holds `burst_rate`. Every bucket holds at least one token, or
nothing would ever pass.

Neither tokens nor the time of the last refill are stored. A bucket is one number, its theoretical arrival time (`tat`):
the moment when it will be full again, were nothing more to come (the generic cell rate algorithm, ITU-T I.371). A token
takes `interval` to refill and a full bucket `span` = depth x `interval`, so a tat that lies `ahead` of now means that
`span` - `ahead` is left. A request of cost n passes if `ahead` + n x `interval` <= `span`, and moves the tat to now +
`ahead` + n x `interval`. If it does not pass, the excess is exactly how long it must wait.

Times are unsigned 64-bit counts of 1/64 ns that wrap, every 9.1 years, as unsigned subtraction wants it. A whole
nanosecond would be too coarse: at a million a second it could put the rate off by 0.05 %, where 1/64 ns puts it off by
less than 0.001 % (and less than 0.01 % up to RATE_MAX). A tat in the past comes out of the subtraction as hugely ahead,
just like one that another boot has left in the file, and either means a rested bucket: one comparison serves both.
(Just before a wrap, once in 9.1 years of uptime, a cell of zeros looks drained, for one refill at the longest.)

Workers share a cell of two tats without a lock. A worker loads both, *then* reads the clock, decides, and stores both
with one 16-byte compare-and-swap that fails if either has changed, whereupon it starts again.
 - One swap means one total order of admissions. Nothing is half done when a worker dies, and nothing is ever undone.
 - Clock after load means that no tat comes from a later `now` than ours. Otherwise a bucket that others have drained
   meanwhile could pass for one from another boot. SKEW allows for CPUs whose clocks differ a little all the same.
 - A denial stores nothing, so the two loads may straddle another worker's swap. That is sound: each tat was true when
   loaded, a bucket that is short is reason enough to deny, and an admission is checked by the swap.

A quota is a fixed window of one minute, in a cell of the same kind: the number of the minute, by CLOCK_MONOTONIC, and
how much is used in it. Whatever number is not that of now, past or of another boot, means that nothing is used yet. It
is counted in thousandths of a unit, because a call may cost 2.5. The swap and its order are those of the buckets; one
more reason for the clock behind the loads is that no cell then has a minute that is still to come.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

UNITS_NS: Final = 64
"""Units of time in a nanosecond."""
WRAP: Final = 2**64
SKEW: Final = 1_000_000 * UNITS_NS
"""How far (1 ms) a tat may exceed the bucket's span and still be believed."""
SPAN_MAX: Final = 2**61
"""The longest refill of a bucket from empty, about 417 days."""
RATE_MAX: Final = 10_000_000
NEVER: Final = 2**63 - 1
"""The wait of a request that costs more than a bucket can hold, in place of nanoseconds."""
RESTED: Final = (0, 0)
"""The cell of a key that has sent nothing yet."""
MINUTE_NS: Final = 60 * 10**9


class Bucket(NamedTuple):
    """`rate` in tokens a second; `interval` and `span` in units of 1/64 ns."""

    name: str
    rate: float
    interval: int
    span: int


class Policy(NamedTuple):
    """The one or two buckets that each key has."""

    buckets: tuple[Bucket, ...]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(interval, span) of each bucket: what the compiled Policy is made from."""
        return [(bucket.interval, bucket.span) for bucket in self.buckets]


class Decision(NamedTuple):
    """`cell` is what to store. When denied, `bucket` is the index of the one that takes the longest to have enough."""

    allowed: bool
    cell: tuple[int, int]
    wait_ns: int
    bucket: int


def policy(rate: float, burst_rate: float, burst_seconds: float) -> Policy:
    """Builds the buckets from rates in requests a second; ValueError if the numbers make no usable limit."""
    if not 0 < rate <= burst_rate <= RATE_MAX:
        raise ValueError(f"rate and burst_rate must satisfy 0 < rate <= burst_rate <= {RATE_MAX}")
    if not 0 <= burst_seconds < math.inf:
        raise ValueError("burst_seconds must be 0 or more")
    if burst_seconds == 0 or burst_rate == rate:
        return Policy((_bucket("sustained", rate, burst_rate),))
    depth = (burst_rate - rate) * burst_seconds
    return Policy((_bucket("sustained", rate, depth), _bucket("peak", burst_rate, burst_rate)))


def _bucket(name: str, rate: float, depth: float) -> Bucket:
    tokens = max(depth, 1.0)
    interval = round(1e9 * UNITS_NS / rate)
    if interval > SPAN_MAX:
        raise ValueError(f"the {name} limit would take over a year to refill one token")
    # Whole tokens are multiplied as integers: a product of floats could fall just short of the last token.
    whole = int(tokens)
    span = whole * interval + round((tokens - whole) * interval)
    # A bucket that would take longer than the clock can say to fill is made smaller: nobody lives to see it full.
    return Bucket(name, rate, interval, min(span, SPAN_MAX))


def decide(cell: tuple[int, int], now_ns: int, cost: int, policy: Policy) -> Decision:
    """Judges one request of `cost` tokens against a key's cell (tat of sustained, tat of peak)."""
    now = now_ns * UNITS_NS % WRAP
    tats = list(cell)
    wait, slowest = 0, 0
    for index, bucket in enumerate(policy.buckets):
        need = cost * bucket.interval
        if need > bucket.span:
            return Decision(False, cell, NEVER, index)
        ahead = (cell[index] - now) % WRAP
        if ahead > bucket.span + SKEW:
            ahead = 0
        if ahead + need - bucket.span > wait:
            wait, slowest = ahead + need - bucket.span, index
        tats[index] = (now + ahead + need) % WRAP
    if wait:
        return Decision(False, cell, -(-wait // UNITS_NS), slowest)
    return Decision(True, (tats[0], tats[1]), 0, 0)


def take_window(cell: tuple[int, int], now_ns: int, cost: int, total: int) -> tuple[int, int, int]:
    """Takes `cost` of a quota of `total` a minute, both in thousandths: (minute, used, wait_ns).

    The first two are what to store, unless there is a wait: then nothing is taken, and so many ns later the next minute
    begins. The wait is NEVER where a whole minute does not have so much.
    """
    minute = now_ns // MINUTE_NS
    used = cell[1] if cell[0] == minute else 0
    if cost > total:
        return minute, used, NEVER
    if used + cost > total:
        return minute, used, (minute + 1) * MINUTE_NS - now_ns
    return minute, used + cost, 0


def give_back(cell: tuple[int, int], minute: int, cost: int) -> tuple[int, int]:
    """The cell without what was taken in that minute; as it is where another has begun."""
    return (minute, cell[1] - cost) if cell[0] == minute else cell


def used_percent(cell: tuple[int, int], now_ns: int, policy: Policy) -> int:
    """How much of a key's tokens is gone, in the bucket of which the most is: 0 when rested, 100 when none is left.

    In whole per cent, rounded up, of spans that are rounded up to hundreds of units.
    """
    now = now_ns * UNITS_NS % WRAP
    used = 0
    for index, bucket in enumerate(policy.buckets):
        ahead = (cell[index] - now) % WRAP
        if ahead <= bucket.span + SKEW:
            used = max(used, min(100, -(-ahead // -(-bucket.span // 100))))
    return used


def retry_after_s(wait_ns: int) -> int:
    """Whole seconds for Retry-After, at least 1, after which the request passes; ValueError for NEVER."""
    if wait_ns == NEVER:
        raise ValueError("no wait is long enough for a request that costs more than the limit can hold")
    return max(1, -(-wait_ns // 10**9))


def rate_limit_headers(policy: Policy, bucket: int, wait_ns: int, cost: int = 1) -> list[tuple[bytes, bytes]]:
    """The fields of draft-ietf-httpapi-ratelimit-headers (-11) for a denied request, as ASGI headers.

    RateLimit tells of the bucket that denied: `r` tokens are left, and `t` seconds are to pass before the next attempt.
    """
    denied = policy.buckets[bucket]
    left = max(0, cost - -(-wait_ns * UNITS_NS // denied.interval))
    limit = f'"{denied.name}";r={left};t={retry_after_s(wait_ns)}'
    return [(b"ratelimit-policy", rate_limit_policy(policy)), (b"ratelimit", limit.encode())]


def rate_limit_policy(policy: Policy) -> bytes:
    """The RateLimit-Policy field: `q` tokens in a window of `w` seconds, a second unless the rate is below one."""
    windows = []
    for bucket in policy.buckets:
        window_s = max(1, math.ceil(1 / bucket.rate))
        windows.append(f'"{bucket.name}";q={max(1, int(bucket.rate * window_s))};w={window_s}')
    return ", ".join(windows).encode()
