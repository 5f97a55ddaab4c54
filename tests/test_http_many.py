"""Many profiles in one request: each is what a lookup of its own would give, all from one snapshot, and at its cost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any
from urllib.parse import quote

import pytest
from conftest import ODD_IDS, MakeService
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from service import Answer, Service, chunked, many, request
from test_http import JANE_WHOLE
from test_http_bad_input import assert_problem
from test_http_snapshots import DECLARED as GENERATIONS
from test_http_snapshots import publish

REFILL = 0.01
FIELDS = ["identifiers", "attributes", "metrics", "audiences", "identifiers.email", "attributes.first_name",
          "attributes.lifetime_value", "metrics.lifetime_value", "audiences.churn_risk", "attributes.tags"]  # fmt: skip
KEY_BYTES_MAX = 511  # of an id; LMDB's limit


def by_id(primary: str) -> dict[str, str]:
    return {"id": primary}


def by(namespace: str, value: str) -> dict[str, str]:
    return {"namespace": namespace, "value": value}


JANE, NOBODY = by_id("12345"), by_id("nobody")


def body_of(*profiles: bytes) -> bytes:
    return b'{"profiles":[' + b",".join(profiles) + b"]}"


def profiles(answer: Answer) -> list[Any]:
    assert answer.status == 200, answer
    return list(answer.json()["profiles"])


def ids(answer: Answer) -> list[str | None]:
    return [found and found["profile_id"] for found in profiles(answer)]


def single(asked: dict[str, str], fields: list[str] | None) -> str:
    """The target of the lookup that asks for the same."""
    parts = ["identifier", asked["namespace"], asked["value"]] if "value" in asked else ["id", asked["id"]]
    path = "/".join(quote(part, safe="") for part in parts)
    return f"/v1/profiles/{path}" + ("" if fields is None else f"?fields={quote(','.join(fields))}")


# --- what is found -------------------------------------------------------------------------------------------------


def test_answers_come_in_the_order_asked_with_null_for_nobody(service: Service, key: str) -> None:
    asked = [by_id("types"), NOBODY, by("email", "jane@example.com"), JANE, NOBODY, by_id("日本語"), JANE]
    answer = service.ask(many({"profiles": asked}, key, ("X-Request-Id", "mine")))

    assert ids(answer) == ["types", None, "12345", "12345", None, "日本語", "12345"]
    del answer.headers["server"], answer.headers["date"]
    assert answer.headers == {
        "content-type": "application/json",
        "content-length": str(len(answer.body)),
        "cache-control": "no-store",
        "x-request-id": "mine",
    }


def test_the_answer_is_compact(service: Service, key: str) -> None:
    assert service.ask(many({"profiles": [JANE, NOBODY, JANE]}, key)).body == body_of(JANE_WHOLE, b"null", JANE_WHOLE)
    assert service.ask(many({"profiles": []}, key)).body == body_of()


@pytest.mark.parametrize("count", [1, 2, 99, 100])
def test_up_to_a_hundred_may_be_asked_for(service: Service, key: str, count: int) -> None:
    odd = [*ODD_IDS, "12345"]
    wanted = [odd[n % len(odd)] for n in range(count)]
    assert ids(service.ask(many({"profiles": [by_id(one) for one in wanted]}, key))) == wanted


some = (
    st.sampled_from(["12345", "types", "twin-old", "élodie", *ODD_IDS, "nobody", "\0", "12345\0", "x" * 600]).map(by_id)
    | st.sampled_from(["jane@example.com", "JANE@Example.com", "ÉLODIE@example.com", "x"]).map(lambda v: by("email", v))
    | st.sampled_from(["tablet", "Tablet", "\0"]).map(lambda value: by("device_id", value))
    | st.sampled_from(["12345", "nobody", "twin-none"]).map(lambda value: by("profile_id", value))
)


@profile(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(some, min_size=1, max_size=12),
    fields=st.none() | st.lists(st.sampled_from(FIELDS), min_size=1, max_size=4),
)
def test_each_profile_is_byte_for_byte_what_a_lookup_of_its_own_gives(
    service: Service, key: str, asked: list[dict[str, str]], fields: list[str] | None
) -> None:
    with service.connect() as connection:
        whole = connection.ask(many({"profiles": asked, "fields": fields}, key))
        connection.send(b"".join(request(single(one, fields), key) for one in asked))
        singles = [connection.read() for _ in asked]

    assert {answer.status for answer in singles} <= {200, 404}
    assert whole.body == body_of(*(answer.body if answer.status == 200 else b"null" for answer in singles))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (by("email", "Jane@EXAMPLE.com"), "12345"),
        (by("email", "ÉLODIE@EXAMPLE.COM"), "élodie"),
        (by("device_id", "tablet"), "twin-new"),
        (by("device_id", "Tablet"), None),
        (by("profile_id", "12345"), "12345"),
        (by("profile_id", "TYPES"), None),
        (by_id("TYPES"), None),
        (by_id("e\u0301"), "e\u0301"),
        (by_id("\u00e9"), None),
        ({"id": "12345", "namespace": None, "value": None}, "12345"),
        ({"id": None, "namespace": "profile_id", "value": "12345"}, "12345"),
        (by_id("12345\0"), None),
        (by_id("\0"), None),
        (by("email", "jane@example.com\0"), None),
        (by_id("x" * KEY_BYTES_MAX), None),
        (by_id("x" * (KEY_BYTES_MAX + 1)), None),
        (by("email", "x" * 100_000), None),
    ],
)
def test_ids_and_namespaces_are_those_of_lookups(
    service: Service, key: str, asked: dict[str, Any], expected: str | None
) -> None:
    assert ids(service.ask(many({"profiles": [asked]}, key))) == [expected]


def test_the_longest_id_is_found_and_a_longer_one_is_nobodys(make_service: MakeService) -> None:
    service = make_service({"shop": 'id = "profile_id"'})
    longest = "é" * (KEY_BYTES_MAX // 2) + "x"
    service.run_sql(f"CREATE TABLE profiles AS SELECT '{longest}' AS profile_id")
    service.load()
    key = service.key()
    service.start()

    asked = [by_id(longest + "x"), by_id(longest), by_id(longest[:-1]), by("profile_id", longest)]
    assert ids(service.ask(many({"profiles": asked}, key))) == [None, longest, None, longest]


def test_what_a_key_may_not_see_looks_like_what_is_not_there(service: Service, key: str, bank_key: str) -> None:
    asked = many({"profiles": [by_id("types"), NOBODY]}, bank_key)
    assert service.ask(asked).body == body_of(b"null", b"null")
    assert profiles(service.ask(many({"profiles": [JANE]}, bank_key)))[0]["first_name"] == "Olga"


# --- fields --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [None, *([name] for name in FIELDS), ["metrics", "metrics"], FIELDS, FIELDS[::-1]])
def test_fields_choose_as_in_a_lookup(service: Service, key: str, fields: list[str] | None) -> None:
    expected = service.get(single(JANE, fields), key).body
    assert service.ask(many({"profiles": [JANE, JANE], "fields": fields}, key)).body == body_of(expected, expected)


def test_a_field_whose_name_holds_a_comma_can_be_chosen_here(service: Service, bank_key: str) -> None:
    asked = {"profiles": [JANE], "fields": ["attributes.cards, all"]}
    (found,) = profiles(service.ask(many(asked, bank_key)))
    assert (found["cards, all"], list(found)) == (7, ["cards, all", "_updated_at"])
    assert service.get("/v1/profiles/id/12345?fields=attributes.cards,%20all", bank_key).code() == "unknown_field"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ([], "empty item"),
        ([""], "empty item"),
        (["metrics", ""], "empty item"),
        (["nope"], "'nope'"),
        (["metrics", "attributes.nope"], "'attributes.nope'"),
        (["attributes,metrics"], "'attributes,metrics'"),
        (["ATTRIBUTES"], "'ATTRIBUTES'"),
        (["first_name"], "'first_name'"),
        (["attributes\0metrics"], "'attributes\\x00metrics'"),
        (["x" * 1_000], "'" + "x" * 100 + "'"),
    ],
)
def test_unknown_fields_are_named_beside_the_known_ones(
    service: Service, key: str, fields: list[str], named: str
) -> None:
    valid = service.get("/v1/profiles/id/12345?fields=nope", key).json()["valid"]
    # Whatever was asked for before: the choices that were good are kept.
    assert service.ask(many({"profiles": [], "fields": ["attributes", "metrics"]}, key)).status == 200

    answer = service.ask(many({"profiles": [JANE], "fields": fields}, key))

    assert_problem(answer, 400, "unknown_field", valid=valid)
    assert named in answer.json()["detail"]


def test_fields_may_be_named_as_often_as_a_body_holds(service: Service, key: str) -> None:
    fields = ["attributes", "audiences"]
    expected = service.ask(many({"profiles": [JANE], "fields": fields}, key)).body
    for times in (1_000, 35_000):
        assert service.ask(many({"profiles": [JANE], "fields": fields * times}, key)).body == expected


# --- limits --------------------------------------------------------------------------------------------------------


def counted(count: int, key: str) -> bytes:
    return many({"profiles": [NOBODY] * count}, key)


def test_a_batch_costs_as_much_as_it_asks_for_and_a_denied_one_nothing(service: Service) -> None:
    key = service.key(rate=REFILL, burst_rate=10, burst_seconds=0)
    with service.connect() as connection:
        assert connection.ask(counted(4, key)).status == 200
        for _ in range(20):
            denied = connection.ask(counted(7, key))
            wait_s = int(denied.headers["retry-after"])
            assert_problem(denied, 429, "rate_limited", retry_after=wait_s)
            assert 90 <= wait_s <= 100, "for one more token"
            assert denied.headers["ratelimit-policy"] == '"sustained";q=1;w=100'
            assert denied.headers["ratelimit"] == f'"sustained";r=6;t={wait_s}'
        assert connection.ask(counted(5, key)).status == 200
        assert connection.ask(request("/v1/profiles/id/nobody", key)).status == 404
        assert connection.ask(counted(1, key)).status == 429
        assert connection.ask(request("/v1/profiles/id/nobody", key)).status == 429


def test_an_empty_batch_costs_as_much_as_one(service: Service) -> None:
    key = service.key(rate=REFILL, burst_rate=2, burst_seconds=0)
    with service.connect() as connection:
        assert [connection.ask(counted(0, key)).status for _ in range(4)] == [200, 200, 429, 429]


def test_duplicates_cost_as_much_as_others(service: Service) -> None:
    key = service.key(rate=REFILL, burst_rate=3, burst_seconds=0)
    assert service.ask(many({"profiles": [JANE, JANE, JANE]}, key)).status == 200
    assert service.ask(counted(1, key)).status == 429


@pytest.mark.parametrize("burst_seconds", [0, 100])
def test_more_than_a_key_can_ever_ask_for_is_no_matter_of_waiting(service: Service, burst_seconds: float) -> None:
    # Without a burst one bucket of 5; else the peak holds 5, and sustained nearly 500.
    key = service.key(rate=REFILL, burst_rate=5, burst_seconds=burst_seconds)
    with service.connect() as connection:
        for _ in range(3):
            refused = connection.ask(counted(6, key))
            assert_problem(refused, 400, "malformed_body")
            assert "6 profiles" in refused.json()["detail"]
            assert "retry-after" not in refused.headers
        assert connection.ask(counted(5, key)).status == 200, "it cost nothing"


def test_what_is_malformed_or_not_allowed_costs_nothing(service: Service) -> None:
    key = service.key(rate=REFILL, burst_rate=1, burst_seconds=0)
    with service.connect() as connection:
        for content in (many(b"{", key), many(b'{"profiles":[{"id":1}]}', key), many({}, key, method="PUT")):
            assert connection.ask(content).status in (400, 405)
        assert connection.ask(counted(1, key)).status == 200


def test_two_workers_give_a_batch_no_more_than_one_would(service: Service) -> None:
    key = service.key(rate=REFILL, burst_rate=205, burst_seconds=0)
    connections = service.connect_to_each()
    statuses: Counter[int] = Counter()
    for _ in range(15):
        for connection in connections:
            connection.send(counted(10, key))
        statuses.update(connection.read().status for connection in connections)
    last = connections[0].ask(counted(5, key))
    for connection in connections:
        connection.close()

    assert statuses == {200: 20, 429: 10}
    assert last.status == 200, "five were left"


def test_retry_after_is_true_of_a_batch(service: Service) -> None:
    key = service.key(rate=40, burst_rate=40, burst_seconds=0)
    with service.connect() as connection:
        assert connection.ask(counted(40, key)).status == 200
        denied = connection.ask(counted(30, key))
        assert (denied.status, denied.headers["retry-after"]) == (429, "1")
        # No wait for something to happen: that this is long enough is what is tested.
        time.sleep(1)
        assert connection.ask(counted(30, key)).status == 200


# --- snapshots -----------------------------------------------------------------------------------------------------


def test_before_the_first_snapshot_there_is_a_reason_to_wait(make_service: MakeService) -> None:
    service = make_service()
    key = service.key()
    service.start(ready=503)

    answer = service.ask(many({"profiles": [JANE]}, key))

    assert_problem(answer, 503, "not_ready", retry_after=1)
    assert answer.headers["retry-after"] == "1"


def test_a_batch_is_of_one_snapshot_however_often_they_change(make_service: MakeService) -> None:
    service = make_service({"shop": GENERATIONS})
    publish(service, 0)
    key = service.key()
    service.start()
    newest = 4

    def publish_all() -> None:
        for generation in range(1, newest + 1):
            publish(service, generation)

    publisher = threading.Thread(target=publish_all)
    whole = many({"profiles": [by_id(f"p{n}") for n in range(100)]}, key)
    part = chunked(whole.partition(b"\r\n\r\n")[2].replace(b"]}", b'],"fields":["metrics"]}'), key, chunk_bytes=1000)
    seen = [0]
    publisher.start()
    with service.connect() as connection:
        give_up = time.monotonic() + 30
        while seen[-1] < newest and time.monotonic() < give_up:
            connection.send((whole + part) * 5)
            for _ in range(10):
                (generation,) = {found["last"] for found in profiles(connection.read())}
                assert generation >= seen[-1], "the worker went back to an older snapshot"
                seen.append(generation)
    publisher.join()

    assert len(set(seen)) > newest / 2
    assert seen[-1] == newest
