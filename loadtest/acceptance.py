"""The arithmetic of the acceptance test: which profiles are asked for, when each request is due, and what is judged.

Nothing here knows Locust or sends anything, so that tests can put it to a simulated service. Times are seconds of one
steady clock. A token is what the limit counts: a request takes one, a batch as many as it asks for.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from edgeprofile.limiter import Bucket, Policy

BEHIND_S_MAX: Final = 1.0
"""A run that ends further behind its plan than this has not held its rate."""
SCATTER: Final = 2_654_435_761
"""A prime above any count of profiles: rank times SCATTER, modulo the count, meets each profile once."""


class Answer(NamedTuple):
    """One answer. `status` is 0 where there was none; `right` says that it was what should have come."""

    due: float
    sent: float
    got: float
    tokens: int
    status: int
    right: bool
    retry_after_s: int = 0


class Run(Protocol):
    """A plan of requests, and the judge of their answers."""

    tokens_at_once: bool
    """Whether a request of several tokens takes as many places in the plan."""

    def slots(self, start: float) -> Iterator[float]:
        """When to send each request; it may read what was recorded so far."""

    def record(self, answer: Answer) -> None: ...

    def verdict(self, end: float) -> tuple[str, list[str]]:
        """What was measured, and what is wrong with it, of a run that ended at `end`."""


def zipf_rank(uniform: float, count: int) -> int:
    """A rank from 1 to `count` whose probability falls as 1 over the rank, from a uniform draw of [0, 1).

    That is the inverse of P(rank <= k) = ln(k + 1) / ln(count + 1), which needs no table, whatever the count.
    """
    return min(count, int(math.pow(count + 1, uniform)))


def profile_number(rank: int, count: int) -> int:
    """Which of `count` profiles has this rank; the popular ones are scattered, but for the first, which is number 0."""
    return (rank - 1) * SCATTER % count


def percentile(values: array[float], percent: float) -> float:
    """The nearest-rank percentile; NaN of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else math.nan


def depth(bucket: Bucket) -> float:
    """How many tokens a bucket holds."""
    return bucket.span / bucket.interval


def lasts_s(policy: Policy, tokens_a_second: float) -> float:
    """How long a rested key carries a load before its first 429; infinite where it never comes."""
    drained = [bucket for bucket in policy.buckets if tokens_a_second > bucket.rate]
    return min((depth(bucket) / (tokens_a_second - bucket.rate) for bucket in drained), default=math.inf)


class Steady:
    """One rate throughout; every answer must be right, and the 99th percentile of their times within a limit."""

    tokens_at_once = False

    def __init__(self, rate: float, p99_ms_max: float) -> None:
        self._rate = rate
        self._p99_ms_max = p99_ms_max
        self._start = math.nan
        # From the moment when a request was due, and from that when it went out.
        self._from_due_ms = array("d")
        self._from_sent_ms = array("d")
        self._wrong = 0
        self._limited = 0

    def slots(self, start: float) -> Iterator[float]:
        self._start = due = start
        while True:
            yield due
            due += 1 / self._rate

    def record(self, answer: Answer) -> None:
        self._from_due_ms.append((answer.got - answer.due) * 1e3)
        self._from_sent_ms.append((answer.got - answer.sent) * 1e3)
        self._wrong += not answer.right
        self._limited += answer.status == 429

    def verdict(self, end: float) -> tuple[str, list[str]]:
        count = len(self._from_due_ms)
        if not count:
            return "no answers", ["not one request was answered"]
        took_s = end - self._start
        median, p99 = percentile(self._from_due_ms, 50), percentile(self._from_due_ms, 99)
        facts = (
            f"{count} requests in {took_s:.1f} s, {count / took_s:.1f} a second; from the planned moment "
            f"p50 {median:.2f} ms, p99 {p99:.2f} ms; from the sending p99 {percentile(self._from_sent_ms, 99):.2f} ms"
        )
        problems = []
        if self._limited:
            problems.append(
                f"{self._limited} answers were 429: another caller has used the key, a burst has drained it (two "
                "minutes' rest refill it), its limits are lower than --key-rate and the like say, or this program "
                "stood still for seconds and then caught up"
            )
        if self._wrong > self._limited:
            problems.append(f"{self._wrong - self._limited} requests failed")
        if p99 > self._p99_ms_max:
            problems.append(f"p99 is {p99:.4g} ms, over {self._p99_ms_max:g} ms")
        if count < self._rate * (took_s - BEHIND_S_MAX):
            problems.append(
                f"{count / took_s:.1f} requests a second, not {self._rate:g}: either this program (see its CPU; more "
                "--users may help) or the service did not keep up"
            )
        return facts, problems


class Burst:
    """The most that a rested key may send, until its first 429, which must come when the key's bucket is empty.

    Then: 1. more of the same, of which only what flows back may pass; 2. a rest, as long as Retry-After says and a
    second more; 3. the sustained rate, all of which must pass.

    What the bucket should hold is reckoned from what has passed and when, so that a pause of this program, in which the
    bucket fills up a little, makes the burst longer but not wrong. What a pause has kept from being sent is not made
    up for, beyond half a second's worth: the bucket `peak`, which holds a second's worth, would run short of it.
    """

    tokens_at_once = True
    # Of the depth; and tokens, for a small bucket, because answers overtake each other and a batch wants many at once.
    TOLERANCE: Final = 0.02
    TOLERANCE_TOKENS: Final = 25
    CATCH_UP_S: Final = 0.5

    def __init__(self, policy: Policy, burst_rate: float) -> None:
        """ValueError where a load of `burst_rate` tokens a second would drain no bucket of the policy."""
        self._rate = policy.buckets[0].rate
        self._burst_rate = burst_rate
        self._depth = depth(policy.buckets[0])
        self._climb_s = lasts_s(policy, burst_rate)
        if math.isinf(self._climb_s):
            raise ValueError("a burst must be faster than the sustained rate")
        self._tolerance = max(self.TOLERANCE * self._depth, self.TOLERANCE_TOKENS)
        self._hold_s = max(1.0, self._climb_s / 24)
        self._after_s = max(2.0, self._climb_s / 12)
        self._start = self._latest = math.nan
        self._denied_at = self._rested_at = math.inf
        self._retry_after_s = 0
        # Tokens that the bucket lacks: now; at the most; at the first 429; at that 429 before the rest at which it
        # lacked the least.
        self._lacking = self._most = 0.0
        self._at_first = math.nan
        self._least = math.inf
        self._wrong = 0
        self._passed_after = 0
        self._denied_after = 0
        self._is_over = False

    @property
    def seconds_max(self) -> float:
        """How long it takes at the most."""
        return 1.5 * self._climb_s + self._hold_s + self._after_s + 30

    def slots(self, start: float) -> Iterator[float]:
        self._start = self._latest = due = start
        give_up = start + 1.5 * self._climb_s + 5
        while math.isinf(self._denied_at) and self._most <= self._depth + self._tolerance and due < give_up:
            yield due
            due = max(due + 1 / self._burst_rate, self._latest - self.CATCH_UP_S)
        if math.isinf(self._denied_at) or self._is_early:
            return
        while due < self._denied_at + self._hold_s:
            yield due
            due = max(due + 1 / self._burst_rate, self._latest - self.CATCH_UP_S)
        due = self._rested_at = max(due, self._latest) + self._retry_after_s + 1
        while due < self._rested_at + self._after_s:
            yield due
            due = max(due + 1 / self._rate, self._latest - self.CATCH_UP_S)
        self._is_over = True

    def record(self, answer: Answer) -> None:
        self._lacking = max(0.0, self._lacking - self._rate * (answer.got - self._latest))
        self._latest = answer.got
        is_after = answer.due >= self._rested_at
        if answer.status == 429:
            self._record_denial(answer, is_after)
        elif answer.right:
            self._lacking += answer.tokens
            self._most = max(self._most, self._lacking)
            self._passed_after += answer.tokens * is_after
        else:
            self._wrong += 1

    def _record_denial(self, answer: Answer, is_after: bool) -> None:
        if math.isinf(self._denied_at):
            self._denied_at = answer.got
            self._at_first = self._lacking
        self._wrong += answer.retry_after_s < 1
        self._retry_after_s = max(self._retry_after_s, answer.retry_after_s)
        if is_after:
            self._denied_after += 1
        else:
            self._least = min(self._least, self._lacking)

    @property
    def _is_early(self) -> bool:
        return self._least < self._depth - self._tolerance

    def verdict(self, end: float) -> tuple[str, list[str]]:
        problems = [f"{self._wrong} requests failed"] if self._wrong else []
        if self._most > self._depth + self._tolerance:
            problems.append("more passed than the limit allows")
        if math.isinf(self._denied_at):
            if not problems:
                problems.append(
                    f"no 429: it was stopped, or this program did not send {self._burst_rate:g} tokens a second"
                )
            return f"{self._most:.0f} tokens of a bucket of {self._depth:.0f}, and no 429", problems
        if self._is_early:
            problems.append(
                "429 came too early: was the key rested, and unused by others (two minutes do), and are its limits "
                "those that --key-rate and the like say?"
            )
        elif not self._is_over:
            problems.append("it was stopped before its end")
        if self._denied_after:
            problems.append(f"{self._denied_after} requests within the sustained rate were refused after the rest")
        facts = (
            f"first 429 after {self._denied_at - self._start:.1f} s, {self._at_first:.0f} tokens into a bucket of "
            f"{self._depth:.0f}; after a rest {self._passed_after} tokens passed, and {self._denied_after} requests not"
        )
        return facts, problems
