"""Intilery's API over real sockets: what of a profile each route has, and which events, in which order."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from brands import BANK, ODD_ID, SHOP, ask, found, profile
from service import Answer, Service

from edgeprofile import metrics
from edgeprofile._limiter import SharedMap
from edgeprofile.app import SHARED_MAP

ROOT = Path(__file__).parent.parent
ANN_EVENTS = f"{SHOP}/id:ann/events"
ANN_TRAITS = (
    '{"id":"ann","external":"x-ann","email":"Family@Example.com","name":"Ann","tags":["a",null],"audiences":"all",'
    '"lastEvent":"none","orders":3}'
)


@pytest.fixture(scope="module")
def token(intilery: Service) -> str:
    return intilery.key()


@pytest.fixture(scope="module")
def bank_token(intilery: Service) -> str:
    """A key with limits of its own, in the place of the bank's."""
    return intilery.key("bank", rate=1_000_000, burst_rate=1_000_000, burst_seconds=0)


def ids(answer: Answer) -> list[str]:
    return [event["eventId"] for event in found(answer)["data"]]


# --- profiles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("id_type", "value"), [("id", "ann"), ("userId", "x-ann")])
def test_traits_by_a_unique_id_are_one_flat_object(intilery: Service, token: str, id_type: str, value: str) -> None:
    answer = ask(intilery, profile(id_type, value, "traits"), token)
    assert found(answer)
    assert answer.body.decode() == ANN_TRAITS
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("email", ["family@example.com", "FAMILY@example.COM"])
def test_by_an_id_that_is_not_unique_all_who_share_it_are_answered_those_updated_last_first(
    intilery: Service, token: str, email: str
) -> None:
    for what in ("traits", "meta", "metadata", "audiences"):
        answer = found(ask(intilery, profile("email", email, what), token))
        assert [each["id"] for each in answer["data"]] == ["ann", "cat", "bob"]
        singly = [found(ask(intilery, profile("id", each["id"], what), token)) for each in answer["data"]]
        assert answer == {"data": singly}


def test_those_who_share_an_id_come_in_pages_by_from_and_size(intilery: Service, token: str) -> None:
    target = profile("email", "crowd@example.com", "traits")
    expected = [f"crowd-{n:03}" for n in range(149, -1, -1)]
    for query, slice_ in [
        ("", slice(0, 100)),
        ("?from=100", slice(100, 200)),
        ("?from=148&size=1", slice(148, 149)),
        ("?size=7", slice(0, 7)),
        ("?from=150", slice(0, 0)),
    ]:
        data = found(ask(intilery, target + query, token))["data"]
        assert [each["id"] for each in data] == expected[slice_]


@pytest.mark.parametrize("id_type", ["id", "userId"])
def test_an_id_may_hold_any_character(intilery: Service, token: str, id_type: str) -> None:
    value = {"id": ODD_ID, "userId": "x:odd"}[id_type]
    odd = {"id": ODD_ID, "external": "x:odd", "email": "odd@example.com"}
    assert found(ask(intilery, profile(id_type, value, "traits"), token)) == odd
    assert ids(ask(intilery, profile(id_type, value, "events"), token)) == ["o"]
    whole = f"{SHOP}/{id_type}%3A{profile(id_type, value, 'traits').removeprefix(f'{SHOP}/{id_type}:')}"
    assert found(ask(intilery, whole, token)) == odd


def test_audiences_are_the_names_of_those_that_are_true(intilery: Service, token: str) -> None:
    expected = {**json.loads(ANN_TRAITS), "audiences": ["vip"]}
    assert found(ask(intilery, profile("id", "ann", "audiences"), token)) == expected
    assert found(ask(intilery, profile("id", "bob", "audiences"), token))["audiences"] == ["vip", "board"]
    assert found(ask(intilery, profile("id", "busy", "audiences"), token))["audiences"] == []


@pytest.mark.parametrize("what", ["meta", "metadata"])
def test_metadata_has_what_the_profile_does_not_show_and_its_events_by_action(
    intilery: Service, token: str, what: str
) -> None:
    page = {
        "e1": {
            "eventId": "e1",
            "eventTime": "2025-06-10T12:00:00.000Z",
            "receivedTime": "2025-06-10T12:00:01.500Z",
            "page": '/ä"',
        },
        "e3": {
            "eventId": "e3",
            "eventTime": "2025-06-11T00:00:00.000Z",
            "receivedTime": "2025-06-11T00:00:00.000Z",
        },
    }
    others = {
        "order": {
            "eventId": "e2",
            "eventTime": "2025-06-10T12:00:00.000Z",
            "receivedTime": "2025-06-10T12:00:00.000Z",
            "amount": 1.5,
            "details": {"a": [1, None]},
        },
        "Add to cart": {
            "eventId": "e4",
            "eventTime": "2025-06-10T23:59:59.999Z",
            "receivedTime": "2025-06-10T23:59:59.999Z",
        },
        "Käse+Brot": {
            "eventId": "e5",
            "eventTime": "1969-07-20T20:17:40.000Z",
            "receivedTime": "1969-07-20T20:17:40.000Z",
        },
    }
    expected = json.loads(ANN_TRAITS)
    assert found(ask(intilery, profile("id", "ann", what), token)) == {
        **expected,
        "createdTime": "2020-08-24T15:54:15.323Z",
        "createdBy": {"type": "csv", "rows": [1, 2]},
        "audiencesStatic": ["vip"],
        "firstEvent": {"page": page["e1"], **others},
        "lastEvent": {"page": page["e3"], **others},
        "lastActivityTime": "2025-06-11T00:00:00.000Z",
    }


def test_metadata_of_a_long_history_has_its_very_first_and_last(intilery: Service, token: str) -> None:
    answer = found(ask(intilery, profile("id", "busy", "meta"), token))
    assert list(answer["firstEvent"]) == list(answer["lastEvent"]) == ["newest", "ping", "first"]
    assert answer["firstEvent"]["ping"]["eventId"] == "p1"
    assert answer["lastEvent"]["ping"]["eventId"] == "p131998"
    assert answer["lastActivityTime"] == answer["lastEvent"]["newest"]["eventTime"]


def test_metadata_without_events_has_no_time_of_one(intilery: Service, token: str, bank_token: str) -> None:
    nothing: dict[str, Any] = {"audiencesStatic": [], "firstEvent": {}, "lastEvent": {}}
    silent = found(ask(intilery, profile("id", "crowd-001", "meta"), token))
    assert {name: silent[name] for name in silent if name in nothing or "Time" in name} == nothing
    assert found(ask(intilery, profile("id", "7", "meta", BANK), bank_token)) == {
        "number": 7,
        "email": "Olga@Example.com",
        **nothing,
    }


def test_without_id_types_of_its_own_a_workspace_has_the_usual_ones(intilery: Service, bank_token: str) -> None:
    olga = {"number": 7, "email": "Olga@Example.com"}
    for id_type, value in [("id", "7"), ("userId", "7"), ("email", "Olga@Example.com")]:
        assert found(ask(intilery, profile(id_type, value, "traits", BANK), bank_token)) == olga
    assert found(ask(intilery, profile("id", "7", "events", BANK), bank_token)) == {"scrollId": None, "data": []}


# --- events --------------------------------------------------------------------------------------------------------


def test_an_event_has_what_it_is_of_and_all_other_parameters_apart(intilery: Service, token: str) -> None:
    common = {
        "id": "ann",
        "externalId": "x-ann",
        "email": "Family@Example.com",
        "customerId": "ann",
        "userId": "ann",
        "clientId": "acme",
        "accountId": "marketing",
        "brandId": "SHOP",
    }
    answer = found(ask(intilery, f"{ANN_EVENTS}?start=2025-06-10T12:00Z&end=2025-06-10T12:00Z", token))
    assert answer["data"] == [
        {
            **common,
            "eventId": "e1",
            "eventTime": "2025-06-10T12:00:00.000Z",
            "receivedTime": "2025-06-10T12:00:01.500Z",
            "eventAction": "page",
            "source": "WEB",
            "rawData": {"page": '/ä"'},
        },
        {
            **common,
            "eventId": "e2",
            "eventTime": "2025-06-10T12:00:00.000Z",
            "receivedTime": "2025-06-10T12:00:00.000Z",
            "eventAction": "order",
            "rawData": {"amount": 1.5, "details": {"a": [1, None]}, "eventTime": "mine"},
        },
    ]
    [other] = found(ask(intilery, profile("id", "crowd-000", "events"), token))["data"]
    assert ("externalId" in other, other["email"], other["rawData"]) == (False, "crowd@example.com", {})


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["e3", "e4", "e1", "e2", "e5"]),
        ("include=page", ["e3", "e1"]),
        ("include=page,order", ["e3", "e1", "e2"]),
        ("include=page%2Corder", ["e3", "e1", "e2"]),
        ("include=page&include=order", ["e3", "e1", "e2"]),
        ("include=Add+to%20cart,K%C3%A4se%2BBrot", ["e4", "e5"]),
        ("include=Page,pag", []),
        ("exclude=page", ["e4", "e2", "e5"]),
        ("exclude=page,order,nothing", ["e4", "e5"]),
        ("include=page,order&exclude=page", ["e2"]),
        ("include=page&exclude=page", []),
        ("sort=desc", ["e3", "e4", "e1", "e2", "e5"]),
        ("sort=asc", ["e5", "e2", "e1", "e4", "e3"]),
        ("sort=asc&exclude=order&from=1&size=2", ["e1", "e4"]),
        ("start=2025-06-10&end=2025-06-10", ["e4", "e1", "e2"]),
        ("start=2025-06-10T12:00:00.000001", ["e3", "e4"]),
        ("end=2025-06-10T14:00:00%2B02:00", ["e1", "e2", "e5"]),
        ("end=2025-06-10T14:00+0200&sort=asc", ["e5", "e2", "e1"]),
        ("end=2025-06-10T12:00+00", ["e1", "e2", "e5"]),
        ("start=2025-06-11&end=2025-06-11", ["e3"]),
        ("end=1970-01-01", ["e5"]),
        ("start=0001-01-01&end=9999-12-31", ["e3", "e4", "e1", "e2", "e5"]),
        ("start=2030-01-01", []),
        ("from=1", ["e4", "e1", "e2", "e5"]),
        ("from=4&size=1", ["e5"]),
        ("from=5", []),
        ("from=9900&size=100", []),
        ("size=2", ["e3", "e4"]),
        ("unknown=1&Include=order&&=", ["e3", "e4", "e1", "e2", "e5"]),
    ],
)
def test_events_are_those_that_are_asked_for(intilery: Service, token: str, query: str, expected: list[str]) -> None:
    assert ids(ask(intilery, f"{ANN_EVENTS}?{query}", token)) == expected


def family(ascending: bool = False) -> list[tuple[str, str]]:
    """The profile and the id of each event of Bob's and Cat's, in the order of the answers."""
    each = [(i // 5, "bob" if i % 2 == 0 else "cat", f"f{i:03}") for i in range(330)]
    each.sort(key=lambda event: event[2], reverse=ascending)
    each.sort(key=lambda event: (event[0] if ascending else -event[0], event[1]))
    return [(who, event) for _, who, event in each]


@pytest.mark.parametrize("query", ["sort=desc", "sort=asc"])
def test_the_events_of_all_who_share_an_id_are_merged_in_order(intilery: Service, token: str, query: str) -> None:
    expected = family("asc" in query)
    target = profile("email", "family@example.com", "events") + f"?start=2025-01-01&end=2025-01-31&{query}"
    assert [(event["id"], event["eventId"]) for event in found(ask(intilery, target, token))["data"]] == expected[:100]
    later = found(ask(intilery, f"{target}&from=299&size=7", token))["data"]
    assert [(event["id"], event["eventId"]) for event in later] == expected[299:306]
    seen = found(ask(intilery, f"{target}&include=seen+1&exclude=other", token))["data"]
    named = [pair for pair in expected if int(pair[1][1:]) % 3 == 1]
    assert [(event["id"], event["eventId"]) for event in seen] == named[:100]


# --- around --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["traits", "meta", "audiences", "events", "nothing"])
def test_head_has_the_headers_of_get_and_no_body(intilery: Service, token: str, what: str) -> None:
    head, got = (
        ask(intilery, profile("id", "ann", what), token, ("x-request-id", "same"), method=method)
        for method in ("HEAD", "GET")
    )
    for answer in (head, got):
        del answer.headers["date"]
        assert answer.headers["x-amzn-requestid"] == "same"
    assert (head.status, head.headers) == (got.status, got.headers)
    assert head.headers["content-length"] == str(len(got.body))


def test_requests_are_answered_before_the_event_loop_and_counted_as_intilerys(intilery: Service, token: str) -> None:
    shared = SharedMap(intilery.settings.data_dir / SHARED_MAP)
    statuses = metrics.slots(metrics.Surface.INTILERY).statuses
    targets = [(ANN_EVENTS, 200), (f"{ANN_EVENTS}?size=0", 400), (profile("id", "nobody", "meta"), 404)]
    before = [shared.counter(statuses[status]) for _, status in targets]
    for target, status in targets:
        assert ask(intilery, target, token).status == status
    assert [shared.counter(statuses[status]) for _, status in targets] == [count + 1 for count in before]
    assert shared.counter(metrics.Counter.LOOKUPS_DEFERRED) == 0


def test_the_docs_show_what_the_sample_shop_answers(sample_shop: Service) -> None:
    key = sample_shop.key()
    shown = 0
    for page in ("docs/api.md", "README.md"):
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        for command, told in re.findall(r"^\$ (curl .*/track/.*)\n((?:\{.*\n)(?:[^$`\n].*\n)*)", text, re.MULTILINE):
            url = next(word for word in shlex.split(command) if word.startswith("http"))
            answer = ask(sample_shop, url.partition(":8000")[2], key).body.decode()
            # What an ellipsis stands for is not looked at; lines are broken where they are long.
            parts = [re.escape(part.strip()) for part in told.replace("\n", "").split("…")]
            assert re.fullmatch(".*".join(parts), answer), (told, answer)
            shown += 1
    assert shown == 9
