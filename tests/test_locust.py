"""The acceptance test in loadtest/: its arithmetic against a simulated service, and Locust itself against a real one.

Locust runs as a process of its own, because it changes the standard library under whatever imports it.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from acceptance import Answer, Burst, Run, Steady, lasts_s, percentile, profile_number, zipf_rank
from service import HOST, Service, free_port

from edgeprofile.limiter import RESTED, Policy, decide, policy, retry_after_s

LOCUSTFILE = Path(__file__).parent.parent / "loadtest" / "locustfile.py"
START = 1000.0
LATENCY_S = 0.002
DEFAULT = policy(500, 1000, 120)
SMALL = policy(50, 100, 20)


# --- who is asked for ----------------------------------------------------------------------------------------------


def test_ranks_follow_zipfs_law() -> None:
    draws, count = 20_000, 1_000
    ranks = Counter(zipf_rank((draw + 0.5) / draws, count) for draw in range(draws))
    assert set(ranks) == set(range(1, count + 1))
    for rank in (1, 2, 10, 100):
        assert ranks[rank] / draws == pytest.approx(math.log((rank + 1) / rank) / math.log(count + 1), abs=2 / draws)


@pytest.mark.parametrize("count", [1, 2, 5_000, 50_000_000])
def test_no_draw_leaves_the_profiles_that_there_are(count: int) -> None:
    assert zipf_rank(0.0, count) == 1
    assert zipf_rank(math.nextafter(1.0, 0.0), count) == count


@pytest.mark.parametrize("count", [1, 2, 4_096, 5_000])
def test_each_profile_has_one_rank(count: int) -> None:
    assert {profile_number(rank, count) for rank in range(1, count + 1)} == set(range(count))
    assert profile_number(1, count) == 0


def test_the_percentile_is_of_the_nearest_rank() -> None:
    values = array("d", range(100, 0, -1))
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (50, 99, 100)
    assert percentile(array("d", [7]), 99) == 7
    assert math.isnan(percentile(array("d"), 99))


# --- the verdict ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "tokens_a_second", "seconds"),
    [
        (DEFAULT, 1_000, 120),
        (DEFAULT, 500, math.inf),
        (DEFAULT, 600, 600),
        (DEFAULT, 2_000, 1),  # here it is the bucket `peak`
        (policy(500, 1_000, 0), 1_000, 2),
    ],
)
def test_a_rested_key_carries_a_load_as_long_as_its_buckets_last(
    limits: Policy, tokens_a_second: float, seconds: float
) -> None:
    assert lasts_s(limits, tokens_a_second) == pytest.approx(seconds)


def simulate(
    run: Run, limits: Policy, alter: Callable[[Answer], Answer] = lambda answer: answer, pause_s: float = 0
) -> list[str]:
    """What the run finds wrong with a service of these limits.

    `alter` changes its answers; the program that sends stands still for `pause_s` before every 700th request.
    """
    cell, now = RESTED, START
    for number, due in enumerate(run.slots(START)):
        now = max(due, now) + pause_s * (number % 700 == 699)
        decision = decide(cell, round(now * 1e9), 1, limits)
        cell = decision.cell
        answer = Answer(due, now, now + LATENCY_S, 1, 200, True)
        if not decision.allowed:
            answer = answer._replace(status=429, right=False, retry_after_s=retry_after_s(decision.wait_ns))
        run.record(alter(answer))
    return run.verdict(now + 2 * LATENCY_S)[1]


@pytest.mark.parametrize("limits", [(500, 1_000, 120), (50, 100, 20), (50, 150, 2), (50, 1_000, 0)])
def test_a_burst_against_a_limit_that_is_as_it_should_be_is_accepted(limits: tuple[float, float, float]) -> None:
    assert simulate(Burst(policy(*limits), limits[1]), policy(*limits)) == []


def test_a_burst_with_pauses_takes_longer_and_is_accepted() -> None:
    assert simulate(Burst(SMALL, 100), SMALL, pause_s=3) == []


@pytest.mark.parametrize(
    ("served", "problem"),
    [
        (policy(50, 100, 19), "429 came too early"),
        (policy(50, 100, 21), "more passed than the limit allows"),
        (policy(50, 10_000, 1_000), "more passed than the limit allows"),
        (policy(90, 100, 20), "more passed than the limit allows"),  # its first 429 is on time, but it refills too fast
    ],
)
def test_a_burst_against_another_limit_is_not_accepted(served: Policy, problem: str) -> None:
    [found] = simulate(Burst(SMALL, 100), served)
    assert found.startswith(problem)


def test_a_429_without_retry_after_is_not_accepted() -> None:
    [found] = simulate(Burst(SMALL, 100), SMALL, lambda answer: answer._replace(retry_after_s=0))
    assert re.fullmatch(r"\d+ requests failed", found)


def test_a_key_that_stays_refused_after_a_burst_is_not_accepted() -> None:
    refused = False

    def stay_refused(answer: Answer) -> Answer:
        nonlocal refused
        refused |= answer.status == 429
        return answer._replace(status=429, right=False, retry_after_s=1) if refused else answer

    found = simulate(Burst(SMALL, 100), SMALL, stay_refused)
    assert found[-1].endswith("requests within the sustained rate were refused after the rest")


def test_a_burst_that_is_stopped_is_not_accepted() -> None:
    run = Burst(SMALL, 100)
    slots = run.slots(START)
    for _ in range(500):
        due = next(slots)
        run.record(Answer(due, due, due + LATENCY_S, 1, 200, True))
    assert "it was stopped" in run.verdict(due)[1][0]


def test_a_burst_that_is_stopped_behind_its_first_429_is_not_accepted() -> None:
    run = Burst(SMALL, 100)
    for number, due in enumerate(run.slots(START)):
        is_denied = number == 2_000  # 20 s, in each of which 50 more are taken than flow back into a bucket of 1,000
        run.record(Answer(due, due, due + LATENCY_S, 1, 429 if is_denied else 200, not is_denied, 1))
        if is_denied:
            break
    assert run.verdict(due + 3_600)[1] == ["it was stopped before its end"]


def test_a_burst_no_faster_than_the_sustained_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="faster"):
        Burst(DEFAULT, 500)


def steady(run: Steady, seconds: float, alter: Callable[[int, Answer], Answer] = lambda _, answer: answer) -> list[str]:
    """What a steady run of so many seconds finds wrong; `alter` changes what the n-th answer was."""
    for number, due in enumerate(run.slots(START)):
        if due >= START + seconds:
            break
        run.record(alter(number, Answer(due, due, due + LATENCY_S, 1, 200, True)))
    return run.verdict(START + seconds)[1]


def test_a_steady_run_without_faults_is_accepted() -> None:
    assert steady(Steady(500, 30), 60) == []


def test_one_wrong_answer_is_not_accepted() -> None:
    [found] = steady(Steady(500, 30), 60, lambda number, answer: answer._replace(right=number != 7))
    assert found == "1 requests failed"


def test_a_429_of_a_steady_run_is_told_apart() -> None:
    [found] = steady(
        Steady(500, 30), 60, lambda number, one: one._replace(status=429, right=False) if not number else one
    )
    assert found.startswith("1 answers were 429")


def test_time_counts_from_the_planned_moment() -> None:
    def late(number: int, answer: Answer) -> Answer:
        """The last second's requests go out only after it, as if the service had stood still."""
        at = START + 10 if number >= 4_500 else answer.sent
        return answer._replace(sent=at, got=at + LATENCY_S)

    [found] = steady(Steady(500, 30), 10, late)
    assert re.fullmatch(r"p99 is \d+ ms, over 30 ms", found)


def test_a_rate_that_was_not_reached_is_not_accepted() -> None:
    run = Steady(500, 30)
    slots = run.slots(START)
    for _ in range(4_400):
        due = next(slots)
        run.record(Answer(due, due, due + LATENCY_S, 1, 200, True))
    [found] = run.verdict(START + 10)[1]
    assert found.startswith("440.0 requests a second, not 500")


def test_a_run_without_answers_is_not_accepted() -> None:
    assert Steady(500, 30).verdict(START)[1] == ["not one request was answered"]


# --- Locust itself -------------------------------------------------------------------------------------------------

PROFILES = """
CREATE TABLE profiles AS SELECT
    CAST(12345 + range AS VARCHAR) AS profile_id, 'someone-' || range || '@example.com' AS email,
    'device-' || range AS device_id, 'Jane' AS first_name, 12.5 AS lifetime_value, true AS high_spenders,
    false AS churn_risk, TIMESTAMP '2025-06-10 12:34:56' AS updated_at
FROM range(100)
"""
# So slow, and so patient, that a busy machine passes too.
QUICK = ("--profiles", "100", "--rate", "40", "--run-time", "1s", "--p99-ms", "60000")
BURST_KEY: dict[str, Any] = {"rate": 20, "burst_rate": 120, "burst_seconds": 2}
BURST = ["--key-rate", "20", "--key-burst-rate", "120", "--key-burst-seconds", "2"]
BURST += ["--burst", "--profiles", "100", "--users", "10"]


class Locust:
    """A run of Locust, from its start on. Its key must not be in what it prints."""

    def __init__(self, port: int, key: str, *options: str) -> None:
        command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", *options]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", "EDGEPROFILE_"))}
        self._process = subprocess.Popen(
            [*command, "--host", f"http://{HOST}:{port}"],
            env={**kept, "EDGEPROFILE_KEY": key},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._secret = key.rpartition("_")[2]

    def end(self) -> tuple[int, str]:
        """Waits for its end; returns the exit status and what it printed."""
        printed = self._process.communicate(timeout=100)[1]
        assert self._secret not in printed
        assert "Traceback" not in printed, printed
        return self._process.returncode, printed

    def kill(self) -> None:
        """Ends it where a failed test has left it."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("shop"))
    made.run_sql(PROFILES)
    made.load()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def burst(shop: Service) -> Iterator[Locust]:
    """A burst, which goes on beside the other tests because it mostly waits."""
    run = Locust(shop.port, shop.key(**BURST_KEY), *BURST)
    yield run
    run.kill()


@pytest.mark.usefixtures("burst")
def test_a_good_service_is_accepted(shop: Service) -> None:
    status, printed = Locust(shop.port, shop.key(), *QUICK).end()
    assert status == 0, printed
    assert printed.endswith("\naccepted\n")
    assert re.search(r"by id, whole +[1-9]\d* +0\(0.00%\)", printed)


@pytest.mark.parametrize(
    ("limits", "options", "reason"),
    [
        ({}, ("--p99-ms", "0.001"), r"NOT ACCEPTED: p99 is \S+ ms, over 0.001 ms"),
        ({"rate": 1, "burst_rate": 60, "burst_seconds": 0}, (), r"NOT ACCEPTED: \d+ answers were 429"),
    ],
    ids=["over the limit of p99", "over the limits of the key"],
)
def test_a_fault_decides_the_exit_status(
    shop: Service, limits: dict[str, Any], options: tuple[str, ...], reason: str
) -> None:
    status, printed = Locust(shop.port, shop.key(**limits), *QUICK, *options).end()
    assert status == 1
    assert re.search(reason, printed), printed


@pytest.mark.parametrize(
    ("key", "options", "reason"),
    [
        ("sk_live_AAAAAAAAAAAA_" + "A" * 49, (), "refuses the key"),
        ("sk_live_any", ("--rate", "600", "--run-time", "100h"), "tokens a second, which a rested key carries for"),
    ],
    ids=["a wrong key", "longer than the key lasts"],
)
def test_what_cannot_pass_is_said_before_the_test_begins(
    shop: Service, key: str, options: tuple[str, ...], reason: str
) -> None:
    status, printed = Locust(shop.port, key, *options).end()
    assert status == 1
    assert reason in printed, printed
    assert "All users spawned" not in printed


def test_a_service_that_is_not_there_is_said_before_the_test_begins() -> None:
    status, printed = Locust(free_port(), "sk_live_any").end()
    assert status == 1
    assert "nothing answers at" in printed, printed


def test_a_burst_meets_its_first_429_when_it_should(burst: Locust) -> None:
    status, printed = burst.end()
    assert status == 0, printed
    assert re.search(r"over the limit: 429, with Retry-After +[1-9]", printed)
