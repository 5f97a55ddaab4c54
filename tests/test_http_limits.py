"""Limits and keys as callers meet them: shared by all workers, true to the second, and never slow to be withdrawn.

Most keys here refill so slowly (a token in 100 s) that a count of answers is exact however slow the machine is.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections import Counter

import pytest
from conftest import MakeService
from service import Answer, Connection, Service, pipelined, request, until

from edgeprofile import keys
from edgeprofile.errors import SettingsError, UsageError

JANE = "/v1/profiles/id/12345"
ONE = "CREATE TABLE profiles AS SELECT '12345' AS profile_id"
PLAIN = 'id = "profile_id"'
# The contract's bound, and what a machine that is busy with other things may add to it.
KEY_SECONDS_MAX, SLACK_SECONDS = 1.0, 2.0
REFILL = 0.01


def statuses(connection: Connection, key: str, times: int) -> Counter[int]:
    return Counter(answer.status for answer in pipelined(connection, request(JANE, key), times))


def assert_denied(answer: Answer, policy: str, bucket: str) -> int:
    """Checks all that tells a caller of its limit; returns Retry-After."""
    wait_s = int(answer.headers["retry-after"])
    assert (answer.status, answer.code()) == (429, "rate_limited")
    assert answer.json()["retry_after"] == wait_s >= 1
    assert answer.headers["ratelimit-policy"] == policy
    assert answer.headers["ratelimit"] == f'"{bucket}";r=0;t={wait_s}'
    return wait_s


# --- how many ------------------------------------------------------------------------------------------------------


def test_by_default_a_rested_key_may_send_a_thousand_at_once_and_then_as_many_a_second(
    make_service: MakeService,
) -> None:
    service = make_service({"shop": PLAIN}, limits="")
    service.run_sql(ONE)
    service.load()
    key, other = service.key(), service.key()
    service.start()
    with service.connect() as connection:
        started = time.monotonic()
        answers = enumerate(pipelined(connection, request(JANE, key), 50_000, at_once=1_000))
        passed, denied = next((n, answer) for n, answer in answers if answer.status != 200)
        elapsed = time.monotonic() - started

    assert 1_000 <= passed <= 1_000 + 1_000 * elapsed
    assert assert_denied(denied, '"sustained";q=500;w=1, "peak";q=1000;w=1', "peak") == 1
    assert service.get(JANE, other).status == 200, "every key has buckets of its own"


def test_a_thousand_at_once_over_many_connections_pass_and_no_more(service: Service) -> None:
    key = service.key(rate=REFILL, burst_rate=1_000, burst_seconds=0)
    connections = [service.connect() for _ in range(50)]
    for connection in connections:
        connection.send(request(JANE, key) * 24)
    answers = [connection.read() for connection in connections for _ in range(24)]
    for connection in connections:
        connection.close()

    assert Counter(answer.status for answer in answers) == {200: 1_000, 429: 200}


def test_two_workers_give_no_more_than_one_would(service: Service) -> None:
    key = service.key(rate=REFILL, burst_rate=1_000, burst_seconds=0)
    connections = service.connect_to_each()
    assert len({service.worker_of(connection) for connection in connections}) == 2
    found = [Counter[int]() for _ in connections]
    for _ in range(12):
        for connection in connections:
            connection.send(request(JANE, key) * 50)
        for connection, counts in zip(connections, found, strict=True):
            counts.update(connection.read().status for _ in range(50))
    for connection in connections:
        connection.close()

    assert sum(found, Counter()) == {200: 1_000, 429: 200}
    assert all(counts[200] >= 400 for counts in found), "600 were sent to each"


def test_without_burst_seconds_there_is_one_plain_bucket(service: Service) -> None:
    key = service.key(rate=REFILL, burst_rate=3, burst_seconds=0)
    with service.connect() as connection:
        answers = list(pipelined(connection, request(JANE, key), 4))

    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    wait_s = assert_denied(answers[3], '"sustained";q=1;w=100', "sustained")
    assert 90 <= wait_s <= 100


def test_with_burst_seconds_the_shallower_bucket_decides(service: Service) -> None:
    # Sustained holds (0.05 - 0.01) x 100 = 4 tokens, peak one: it cannot hold less.
    key = service.key(rate=REFILL, burst_rate=0.05, burst_seconds=100)
    with service.connect() as connection:
        answers = list(pipelined(connection, request(JANE, key), 2))

    assert answers[0].status == 200
    assert assert_denied(answers[1], '"sustained";q=1;w=100, "peak";q=1;w=20', "peak") <= 20


def test_retry_after_is_true_and_a_denied_request_costs_nothing(service: Service) -> None:
    key = service.key(rate=1, burst_rate=3, burst_seconds=0)
    with service.connect() as connection:
        started = time.monotonic()
        answers = list(pipelined(connection, request(JANE, key), 203))
        elapsed = time.monotonic() - started
        denied = [int(answer.headers["retry-after"]) for answer in answers if answer.status == 429]

        assert 3 <= len(answers) - len(denied) <= 3 + math.floor(elapsed)
        assert set(denied) == {1}, "200 denials have not made the wait longer"
        # No wait for something to happen: that this is long enough is what is tested.
        time.sleep(denied[-1])
        assert connection.ask(request(JANE, key)).status == 200


def test_what_is_not_authenticated_is_not_limited_and_costs_the_key_nothing(service: Service) -> None:
    key = service.key(rate=REFILL, burst_rate=2, burst_seconds=0)
    writer = service.key(rate=REFILL, burst_rate=2, burst_seconds=0, scopes=("write",))
    guess = key[:-1] + ("0" if key[-1] != "0" else "1")
    with service.connect() as connection:
        assert statuses(connection, guess, 1_500) == {401: 1_500}
        assert statuses(connection, writer, 20) == {403: 20}
        assert statuses(connection, key, 3) == {200: 2, 429: 1}


def test_one_keys_limit_is_not_anothers(service: Service, key: str, bank_key: str) -> None:
    limited = service.key(rate=REFILL, burst_rate=1, burst_seconds=0)
    with service.connect() as connection:
        assert statuses(connection, limited, 3) == {200: 1, 429: 2}
        assert statuses(connection, key, 100) == {200: 100}
        assert statuses(connection, bank_key, 100) == {200: 100}


@pytest.mark.parametrize(
    "limits", ["rate = 1e6\nburst_rate = 1e6", "rate = 0.001\nburst_rate = 1_000_000\nburst_seconds = 86_400"]
)
def test_limits_that_the_settings_accept_are_served(make_service: MakeService, limits: str) -> None:
    with contextlib.suppress(SettingsError):  # Refusing them at the start is as good.
        service = make_service({"shop": PLAIN}, limits=limits)
        service.run_sql(ONE)
        service.load()
        key = service.key()
        service.start()
        assert service.get(JANE, key).status == 200


# --- workers and keys ----------------------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_the_limit_goes_on_counting(make_service: MakeService) -> None:
    service = make_service({"shop": PLAIN}, workers=2)
    service.run_sql(ONE)
    service.load()
    key = service.key(rate=REFILL, burst_rate=10, burst_seconds=0)
    service.start()
    before = service.connect_to_each()
    for connection in before:
        assert statuses(connection, key, 3) == {200: 3}
    victim, survivor = (service.worker_of(connection) for connection in before)
    assert victim is not None
    assert survivor is not None

    os.kill(victim, signal.SIGKILL)

    until(lambda: victim not in service.workers() and len(service.workers()) == 2, "the worker is replaced")
    assert survivor in service.workers()
    assert before[1].ask(request("/livez")).status == 200
    after = service.connect_to_each()
    passed = sum(statuses(connection, key, 10)[200] for connection in after)
    for connection in (*before, *after):
        connection.close()
    assert passed == 4


def everywhere(service: Service, key: str, status: int, since: float) -> list[float]:
    """How many seconds after `since` each worker answers a key with `status`."""
    took: list[float] = []
    for connection in service.connect_to_each():
        with connection:
            until(lambda: connection.ask(request(JANE, key)).status == status, f"a {status}")  # noqa: B023
            took.append(time.monotonic() - since)
    return took


def test_a_new_key_is_accepted_and_a_revoked_one_refused_by_every_worker_within_a_second(service: Service) -> None:
    since = time.monotonic()
    key = service.mint()
    accepted = everywhere(service, key, 200, since)

    since = time.monotonic()
    service.revoke(key)
    refused = everywhere(service, key, 401, since)

    assert len(accepted) == len(refused) == 2
    assert max(accepted + refused) < KEY_SECONDS_MAX + SLACK_SECONDS
    for connection in service.connect_to_each():
        with connection:
            assert statuses(connection, key, 20) == {401: 20}, "and it stays refused"


def test_an_expired_key_is_refused(service: Service) -> None:
    expires_at = int(time.time()) + 3
    key = service.key(expires_at=expires_at)
    with service.connect() as connection:
        while True:
            asked_at, status, told_at = time.time(), connection.ask(request(JANE, key)).status, time.time()
            if status == 401:
                break
            # Refused from the very second on, though no file changed: the workers look at the clock.
            assert (status, asked_at < expires_at) == (200, True)
            time.sleep(0.05)
    assert told_at >= expires_at


def test_a_damaged_key_file_changes_nothing_until_it_is_mended(make_service: MakeService) -> None:
    service = make_service({"shop": PLAIN})
    service.run_sql(ONE)
    service.load()
    key = service.key()
    service.start()
    file = service.settings.data_dir / keys.FILE.name
    whole = file.read_bytes()

    file.write_bytes(whole.replace(b'"shop"', b'"bank"'))
    until(lambda: "the keys stay as they were" in service.log(), "the damage is noticed")
    assert service.get(JANE, key).status == 200
    file.write_bytes(whole)
    assert service.get(JANE, service.key()).status == 200
    assert service.log().count("the keys stay as they were") == 1, "it is said once"


def test_a_key_with_limits_beyond_all_sense_does_not_keep_another_from_being_revoked(
    make_service: MakeService,
) -> None:
    service = make_service({"shop": PLAIN})
    service.run_sql(ONE)
    service.load()
    key = service.key()
    with contextlib.suppress(UsageError):  # Refusing to mint it is as good.
        service.mint(rate=0.001, burst_rate=1_000_000, burst_seconds=86_400)
    service.start()
    assert service.get(JANE, key).status == 200

    service.revoke(key)

    until(lambda: service.get(JANE, key).status == 401, "the key is refused", KEY_SECONDS_MAX + SLACK_SECONDS)
