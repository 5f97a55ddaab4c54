"""The events routes over real sockets: which events an answer has, in which order, and how a caller walks them all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from conftest import EVENTS, EVENTS_DECLARED, MakeService
from service import Answer, Service, request, until

from edgeprofile import metrics
from edgeprofile._limiter import SharedMap
from edgeprofile.app import SHARED_MAP

ANN = "/v1/profiles/id/ann/events"
MSGPACK = ("Accept", "application/msgpack")


def found(answer: Answer) -> list[Any]:
    assert answer.status == 200, answer
    assert list(answer.json()) == ["events", "cursor"]
    return list(answer.json()["events"])


def ids(answer: Answer) -> list[str]:
    return [event["id"] for event in found(answer)]


def walk(service: Service, token: str, target: str, cursor: str | None = None) -> Iterator[Answer]:
    """Page after page, from the first or from a cursor on; `target` ends in a query string."""
    while True:
        answer = service.get(target + (f"&cursor={cursor}" if cursor else ""), token)
        assert answer.status == 200, answer
        yield answer
        cursor = answer.json()["cursor"]
        if cursor is None:
            return


# --- what an answer has --------------------------------------------------------------------------------------------


def test_events_are_compact_json_newest_first_with_their_parameters(shop: Service, token: str) -> None:
    answer = shop.get(ANN, token)

    assert answer.status == 200
    assert answer.body.decode() == (
        '{"events":['
        '{"id":"e3","name":"page","time":"2025-06-11T00:00:00Z","params":{"page":"/"}},'
        '{"id":"e4","name":"Add to cart","time":"2025-06-10T23:59:59.999999Z","params":{}},'
        '{"id":"e1","name":"page","time":"2025-06-10T12:00:00Z","params":{"page":"/ä\\""}},'
        '{"id":"e2","name":"order","time":"2025-06-10T12:00:00Z","params":{"amount":1.50,"tags":["a",null]}},'
        '{"id":"e5","name":"a,b&c=d","time":"2025-06-09T10:00:00.123Z","params":{}},'
        '{"id":"e6","name":"Käse+Brot","time":"1969-07-20T20:17:40Z","params":{"amount":-0.01,"tags":[]}}'
        '],"cursor":null}'
    )
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "private, no-cache"
    assert answer.headers["vary"] == "accept"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "target",
    [
        "/v1/profiles/identifier/email/ann@example.com/events",
        "/v1/profiles/identifier/email/ANN%40example.com/events",
        "/v1/profiles/identifier/profile_id/ann/events",
        "/v1/profiles/id/%61nn/events",
        f"{ANN}?unknown=1&fields=nope&Name=page",
        f"{ANN}?&&=&",
    ],
)
def test_every_way_to_a_profiles_events_gives_the_same_answer(shop: Service, token: str, target: str) -> None:
    whole, told = shop.get(ANN, token), shop.get(target, token)
    assert (told.status, told.body, told.headers["etag"]) == (200, whole.body, whole.headers["etag"])


def test_profiles_whose_ids_look_like_the_route_are_found(shop: Service, token: str) -> None:
    assert shop.get("/v1/profiles/id/events", token).json()["profile_id"] == "events"
    assert found(shop.get("/v1/profiles/id/events/events", token)) == []
    assert ids(shop.get("/v1/profiles/id/a%2Fb/events", token)) == ["e1"]
    assert shop.get("/v1/profiles/id/ann%2Fevents", token).code() == "profile_not_found"


def test_without_events_the_list_is_empty(shop: Service, token: str, service: Service, key: str) -> None:
    for answer in (
        shop.get("/v1/profiles/id/bob/events", token),
        shop.get("/v1/profiles/identifier/email/bob@example.com/events?name=page&limit=1", token),
        service.get("/v1/profiles/id/12345/events", key),
    ):
        assert (answer.status, answer.body) == (200, b'{"events":[],"cursor":null}')


@pytest.mark.parametrize("target", ["id/nobody", "identifier/email/nobody@example.com", "id/%00", "id/" + "x" * 600])
def test_an_unknown_profile_is_not_found(shop: Service, token: str, target: str) -> None:
    answer = shop.get(f"/v1/profiles/{target}/events", token)
    assert (answer.status, answer.code()) == (404, "profile_not_found")


# --- name, start, end, limit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("name=page", ["e3", "e1"]),
        ("name=page&name=order", ["e3", "e1", "e2"]),
        ("name=order&name=page&name=page", ["e3", "e1", "e2"]),
        ("name=Add+to+cart", ["e4"]),
        ("name=Add%20to%20cart", ["e4"]),
        ("n%61me=a%2Cb%26c%3Dd", ["e5"]),
        ("name=a,b%26c=d", ["e5"]),
        ("name=K%C3%A4se%2BBrot", ["e6"]),
        ("name=Page", []),
        ("name=page,order", []),
        ("name=pag", []),
        ("name=%00", []),
    ],
)
def test_names_are_compared_exactly_and_add_up(shop: Service, token: str, query: str, expected: list[str]) -> None:
    assert ids(shop.get(f"{ANN}?{query}", token)) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("start=2025-06-10T12:00:00Z", ["e3", "e4", "e1", "e2"]),
        ("start=2025-06-10T12:00:00.000001Z", ["e3", "e4"]),
        ("end=2025-06-10T12:00:00Z", ["e1", "e2", "e5", "e6"]),
        ("end=2025-06-10T11:59:59.999999Z", ["e5", "e6"]),
        ("start=2025-06-10&end=2025-06-10", ["e4", "e1", "e2"]),
        ("start=2025-06-11", ["e3"]),
        ("start=2025-06-10T14:00:00%2B02:00&end=2025-06-10T14:00:00%2B02:00", ["e1", "e2"]),
        ("start=2025-06-10T14:00:00+02:00&end=2025-06-10T14:00:00+02:00", ["e1", "e2"]),
        ("start=2025-06-10T07:00:00-05:00&end=2025-06-10t12:00:00z", ["e1", "e2"]),
        ("start=2025-06-10%2012:00:00Z&end=2025-06-10T12:00:00.0000009Z", ["e1", "e2"]),
        ("start=2025-06-09T10:00:00.123Z&end=2025-06-09T10:00:00.1230000000000Z", ["e5"]),
        ("end=1970-01-01", ["e6"]),
        ("start=0001-01-01&end=9999-12-31T23:59:59.999999Z", ["e3", "e4", "e1", "e2", "e5", "e6"]),
        ("start=0001-01-01T00:00:00%2B23:59&end=9999-12-31T23:59:59-23:59", ["e3", "e4", "e1", "e2", "e5", "e6"]),
        ("start=2030-01-01", []),
        ("end=1950-01-01", []),
        ("start=2025-06-10T13:00:00Z&end=2025-06-10T13:00:00Z", []),
        ("start=2025-06-10&end=2025-06-10&name=page", ["e1"]),
    ],
)
def test_start_and_end_are_both_included(shop: Service, token: str, query: str, expected: list[str]) -> None:
    assert ids(shop.get(f"{ANN}?{query}", token)) == expected


@pytest.mark.parametrize("limit", [1, 3, 5, 6, 7, 100])
def test_limit_bounds_a_page_and_the_cursor_is_null_on_the_last(shop: Service, token: str, limit: int) -> None:
    every = ids(shop.get(ANN, token))
    answer = shop.get(f"{ANN}?limit={limit}", token)
    assert ids(answer) == every[:limit]
    assert (answer.json()["cursor"] is None) == (limit >= len(every))


# --- walking -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["limit=100", "limit=37", "limit=9&name=name+1", "name=name+0&name=name+2"])
def test_all_pages_have_every_event_once_and_in_order(shop: Service, token: str, query: str) -> None:
    answers = list(walk(shop, token, f"/v1/profiles/id/walk/events?{query}"))
    events = [event for answer in answers for event in found(answer)]
    wanted = [f"name {n}" for n in range(3) if "name" not in query or f"name+{n}" in query]
    expected = [n for n in range(700) if f"name {n % 3}" in wanted]
    assert [event["params"]["amount"] for event in events] == sorted(expected, key=lambda n: (-(n // 7), n))
    assert len({answer.headers["etag"] for answer in answers}) == len(answers)


def test_without_a_limit_a_page_has_a_hundred(shop: Service, token: str) -> None:
    assert [len(found(answer)) for answer in walk(shop, token, "/v1/profiles/id/walk/events?")] == [100] * 7


def test_a_cursor_is_good_on_every_worker_and_either_route(shop: Service, token: str) -> None:
    cursor = shop.get(f"{ANN}?limit=2", token).json()["cursor"]
    answers: list[Answer] = []
    for connection in shop.connect_to_each():
        with connection:
            ways = (ANN, "/v1/profiles/identifier/email/ann@example.com/events")
            answers += [connection.ask(request(f"{way}?limit=2&cursor={cursor}", token)) for way in ways]
    assert [ids(answer) for answer in answers] == [["e1", "e2"]] * 4
    assert len({answer.json()["cursor"] for answer in answers}) == 1


def test_a_page_of_large_events_ends_early(shop: Service, token: str) -> None:
    answers = list(walk(shop, token, "/v1/profiles/id/wide/events?limit=50"))
    assert [event["params"]["amount"] for answer in answers for event in found(answer)] == list(range(59, -1, -1))
    assert [len(found(answer)) for answer in answers] == [34, 26]
    assert all(len(answer.body) <= 1_048_576 for answer in answers)


def test_an_event_too_large_is_said_to_be_and_can_be_stepped_over(shop: Service, token: str) -> None:
    first = shop.get("/v1/profiles/id/large/events", token)
    assert ids(first) == ["l2"]
    second = shop.get(f"/v1/profiles/id/large/events?cursor={first.json()['cursor']}", token)
    assert (second.status, second.code(), second.json()["bytes_max"]) == (413, "answer_too_large", 1_048_576)
    assert "limit" in second.json()["detail"]
    assert ids(shop.get("/v1/profiles/id/large/events?end=2025-01-01T00:00:00Z", token)) == ["l0"]


def test_a_walk_goes_on_at_the_same_place_after_a_refresh(make_service: MakeService) -> None:
    service = make_service({"shop": EVENTS_DECLARED})
    service.run_sql(EVENTS)
    service.load()
    token = service.key()
    service.start()
    target = "/v1/profiles/id/walk/events?limit=50"
    first = service.get(target, token)
    service.run_sql(
        "INSERT INTO events SELECT 'walk', 'n' || i, 'new', now()::TIMESTAMP, NULL, 1000 + i, NULL FROM range(30) r(i)"
    )
    service.load()
    until(lambda: found(service.get(target, token))[0]["name"] == "new", "the refresh is served")

    rest = list(walk(service, token, target, first.json()["cursor"]))

    events = [event["params"]["amount"] for answer in [first, *rest] for event in found(answer)]
    assert events == sorted(range(700), key=lambda n: (-(n // 7), n))


# --- headers and forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?name=page", "?limit=2", "?name=none"])
def test_an_etag_saves_the_body_until_the_page_changes(shop: Service, token: str, query: str) -> None:
    answer = shop.get(ANN + query, token)
    again = shop.get(ANN + query, token, ("If-None-Match", answer.headers["etag"]))
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    other = shop.get("/v1/profiles/id/walk/events", token, ("If-None-Match", answer.headers["etag"]))
    assert other.status == 200


def test_pages_that_differ_have_etags_that_differ(shop: Service, token: str) -> None:
    queries = ["", "?limit=2", "?limit=5", "?name=page", "?name=page&limit=1", "?limit=1"]
    targets = [f"{ANN}{query}" for query in queries]
    targets += ["/v1/profiles/id/bob/events", "/v1/profiles/id/a%2Fb/events"]
    answers = [shop.get(target, token) for target in targets]
    answers += [shop.get(target, token, MSGPACK) for target in targets]
    assert len({answer.body for answer in answers}) == len({answer.headers["etag"] for answer in answers})
    assert len({answer.headers["etag"] for answer in answers}) == len(answers)


@pytest.mark.parametrize("query", ["", "?limit=2", "?limit=0", "?name=none"])
def test_head_has_the_headers_of_get_and_no_body(shop: Service, token: str, query: str) -> None:
    with shop.connect() as connection:
        head, got = (
            connection.ask(request(ANN + query, token, ("x-request-id", "same"), method=method))
            for method in ("HEAD", "GET")
        )
    for answer in (head, got):
        del answer.headers["date"]
    assert (head.status, head.headers) == (got.status, got.headers)
    assert head.headers["content-length"] == str(len(got.body))


@pytest.mark.parametrize("target", [ANN, f"{ANN}?limit=2", "/v1/profiles/id/bob/events", "/v1/profiles/id/walk/events"])
def test_messagepack_has_the_content_of_the_json(shop: Service, token: str, target: str) -> None:
    packed, plain = shop.get(target, token, MSGPACK), shop.get(target, token)
    assert packed.headers["content-type"] == "application/msgpack"
    assert repr(msgspec.msgpack.decode(packed.body)) == repr(json.loads(plain.body))


# --- around --------------------------------------------------------------------------------------------------------


def test_no_events_request_comes_to_the_event_loop_and_each_is_counted_as_native(shop: Service, token: str) -> None:
    shared = SharedMap(shop.settings.data_dir / SHARED_MAP)
    statuses = metrics.slots(metrics.Surface.NATIVE).statuses
    targets = [(ANN, 200), (f"{ANN}?limit=0", 400), ("/v1/profiles/id/nobody/events", 404)]
    deferred = shared.counter(metrics.Counter.LOOKUPS_DEFERRED)
    before = [shared.counter(statuses[status]) for _, status in targets]
    for target, status in targets:
        assert shop.get(target, token).status == status
    assert [shared.counter(statuses[status]) for _, status in targets] == [count + 1 for count in before]
    assert shared.counter(metrics.Counter.LOOKUPS_DEFERRED) == deferred == 0


def test_a_request_for_events_takes_one_token(shop: Service) -> None:
    limited = shop.key(rate=0.01, burst_rate=3, burst_seconds=0)
    statuses = [shop.get(target, limited).status for target in (ANN, f"{ANN}?limit={quote('x')}", ANN, ANN)]
    assert statuses == [200, 400, 200, 429]
