"""Bad requests for events over real sockets: each is answered with its own problem, and the next is served as ever."""

from __future__ import annotations

import base64

import pytest
from conftest import EVENTS, EVENTS_DECLARED, MakeService
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from service import Service, copy_snapshot, request
from test_http_bad_input import assert_problem

from edgeprofile import metrics, snapshot
from edgeprofile._limiter import SharedMap
from edgeprofile.app import SHARED_MAP

ANN = "/v1/profiles/id/ann/events"
WALK = "/v1/profiles/id/walk/events"


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("name=", "name"), ("name", "name"), ("name=page&name=", "name"), ("name=%", "name"), ("name=100%", "name"),
        ("name=%zz", "name"), ("name=%C3", "name"), ("name=%ED%A0%80", "name"), ("name=%ff", "name"),
        ("&".join(f"name={n}" for n in range(33)), "name"),
        ("start=", "start"), ("start=now", "start"), ("start=2025", "start"), ("start=2025-06", "start"),
        ("start=2025-6-1", "start"), ("start=2025-02-29", "start"), ("start=2025-06-31", "start"),
        ("start=20250610", "start"), ("start=0000-01-01", "start"), ("start=10000-01-01", "start"),
        ("start=-2025-01-01", "start"), ("start=1749556800", "start"), ("start=2025-W24-1", "start"),
        ("start=2025-06-10T12:00:00", "start"), ("start=2025-06-10T12:00Z", "start"), ("start=2025-06-10T", "start"),
        ("start=2025-06-10T24:00:00Z", "start"), ("start=2025-06-10T12:60:00Z", "start"),
        ("start=2025-06-10T23:59:60Z", "start"), ("start=2025-06-10T12:00:00.Z", "start"),
        ("start=2025-06-10T12:00:00,5Z", "start"), ("start=2025-06-10T12:00:00%2B24:00", "start"),
        ("start=2025-06-10T12:00:00%2B02", "start"), ("start=2025-06-10T12:00:00%2B02:60", "start"),
        ("start=2025-06-10T12:00:00Z%20", "start"), ("start=%202025-06-10", "start"), ("start=2025-06-10%0A", "start"),
        ("start=%D9%A2%D9%A0%D9%A2%D9%A5-06-10", "start"), ("start=2025-06-10&start=2025-06-10", "start"),
        ("end=tomorrow", "end"), ("end=2025-06-10&end=2025-06-11", "end"), ("end=9999-12-32", "end"),
        ("start=2025-06-11&end=2025-06-10", "start"), ("start=2025-06-10T12:00:00Z&end=2025-06-10T11:59:59Z", "start"),
        ("limit=", "limit"), ("limit=0", "limit"), ("limit=101", "limit"), ("limit=-1", "limit"),
        ("limit=1.0", "limit"), ("limit=1e1", "limit"), ("limit=ten", "limit"), ("limit=%2B5", "limit"),
        ("limit=+5", "limit"), ("limit=0x10", "limit"), ("limit=99999999999999999999", "limit"),
        ("limit=%D9%A1", "limit"), ("limit=5&limit=5", "limit"), ("limit=5%00", "limit"),
        ("cursor=", "cursor"), ("cursor=x", "cursor"), ("cursor=null", "cursor"), ("cursor=" + "A" * 22, "cursor"),
        ("cursor=" + "A" * 21, "cursor"), ("cursor=" + "A" * 23, "cursor"), ("cursor=" + "A" * 21 + "B", "cursor"),
        ("cursor=" + "%2B" * 22, "cursor"), ("cursor=" + "/" * 22, "cursor"), ("cursor=" + "x" * 5000, "cursor"),
        ("cursor=" + "A" * 22 + "%3D%3D", "cursor"), ("cursor=" + "A" * 22 + "&cursor=" + "A" * 22, "cursor"),
    ],
)  # fmt: skip
def test_a_query_that_means_nothing_is_malformed(shop: Service, token: str, query: str, parameter: str) -> None:
    answer = shop.get(f"{ANN}?{query}", token)
    assert_problem(answer, 400, "malformed_query")
    assert answer.json()["detail"].startswith(f"{parameter} ")
    # However often, and before the profile is looked for.
    assert shop.get(f"{ANN}?{query}", token).body == answer.body
    assert shop.get(f"{ANN}?{query}", token, method="HEAD").status == 400


@pytest.mark.parametrize("query", ["name=", "start=2025-02-29", "limit=0", "cursor=x"])
def test_a_malformed_query_is_told_before_an_unknown_profile(shop: Service, token: str, query: str) -> None:
    assert_problem(shop.get(f"/v1/profiles/id/nobody/events?{query}", token), 400, "malformed_query")


def test_a_cursor_of_other_events_is_refused(shop: Service, token: str) -> None:
    cursor = shop.get(f"{WALK}?limit=5&name=name+1&start=2025-01-01", token).json()["cursor"]
    good = f"limit=9&name=name+1&start=2025-01-01T00:00:00Z&cursor={cursor}"
    assert shop.get(f"{WALK}?{good}", token).status == 200
    for target in (
        f"{ANN}?{good}",
        f"/v1/profiles/id/bob/events?{good}",
        f"{WALK}?cursor={cursor}",
        f"{WALK}?name=name+1&cursor={cursor}",
        f"{WALK}?start=2025-01-01&cursor={cursor}",
        f"{WALK}?{good}&name=name+2",
        f"{WALK}?{good}&end=2030-01-01",
    ):
        answer = shop.get(target, token)
        assert_problem(answer, 400, "malformed_query")
        assert answer.json()["detail"].startswith("cursor ")


def test_a_cursor_of_which_anything_is_changed_is_refused(shop: Service, token: str) -> None:
    cursor = shop.get(f"{WALK}?limit=5", token).json()["cursor"]
    decoded = base64.urlsafe_b64decode(cursor + "==")
    spoilt = [decoded[:at] + bytes([decoded[at] ^ 1]) + decoded[at + 1 :] for at in range(len(decoded))]
    with shop.connect() as connection:
        for each in (*(base64.urlsafe_b64encode(one).decode()[:22] for one in spoilt), cursor.swapcase(), cursor[::-1]):
            answer = connection.ask(request(f"{WALK}?limit=5&cursor={each}", token))
            assert_problem(answer, 400, "malformed_query")
        assert connection.ask(request(f"{WALK}?limit=5&cursor={cursor}", token)).status == 200


@pytest.mark.parametrize(
    "target",
    ["id//events", "id/%ZZ/events", "id/%ff/events", "id/%/events", "identifier/email//events",
     "identifier//ann@example.com/events", "identifier/%zz/x/events"],
)  # fmt: skip
def test_paths_that_mean_nothing_are_malformed(shop: Service, token: str, target: str) -> None:
    assert_problem(shop.get(f"/v1/profiles/{target}", token), 400, "malformed_path")


@pytest.mark.parametrize(
    "target",
    [f"{ANN}/", f"{ANN}/e1", f"{ANN}/events", f"{ANN}x", f"{ANN[:-1]}", "/v1/profiles/id/ann/Events",
     "/v1/profiles/id/ann//events", "/v1/profiles/id/ann/event%73", "/v1/profiles/identifier/email/x/y/events",
     "/v1/profiles/events", "/v1/events", "/v1/profiles/ann/events"],
)  # fmt: skip
def test_other_paths_are_no_routes(shop: Service, token: str, target: str) -> None:
    assert_problem(shop.get(target, token), 404, "no_such_route")


def test_an_undeclared_namespace_is_answered_with_those_declared(shop: Service, token: str) -> None:
    answer = shop.get("/v1/profiles/identifier/iban/x/events", token)
    assert_problem(answer, 400, "unknown_namespace", valid=["profile_id", "email"])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_not_allowed(shop: Service, token: str, method: str) -> None:
    answer = shop.get(ANN, token, method=method)
    assert_problem(answer, 405, "method_not_allowed", valid=["GET", "HEAD"])
    assert answer.headers["allow"] == "GET, HEAD"


def test_events_need_a_key_that_may_read(shop: Service, service: Service, key: str) -> None:
    for refused in (None, "sk_live_nonsense", key):  # a key of another service
        assert_problem(shop.get(ANN, refused), 401, "unauthorized")
    assert_problem(shop.get(ANN, shop.key(scopes=("write",))), 403, "forbidden")
    assert shop.get(f"{ANN}?limit=0").code() == "unauthorized", "who may not ask is told nothing of the query"


def test_a_key_sees_the_events_of_its_own_workspace(service: Service, bank_key: str) -> None:
    assert service.get("/v1/profiles/id/12345/events", bank_key).json() == {"events": [], "cursor": None}
    assert_problem(service.get("/v1/profiles/id/types/events", bank_key), 404, "profile_not_found")


def test_forms_bodies_and_lengths_that_are_refused(shop: Service, token: str) -> None:
    valid = ["application/json", "application/msgpack"]
    assert_problem(shop.get(ANN, token, ("Accept", "text/html")), 406, "not_acceptable", valid=valid)
    announced = shop.get(ANN, token, ("Content-Length", "1048577"))
    assert_problem(announced, 413, "body_too_large", bytes_max=1_048_576)
    assert_problem(shop.get(f"{ANN}?name={'x' * 8192}", token), 414, "url_too_long")
    headers = [(f"x-{n}", "y" * 1000) for n in range(33)]
    assert shop.get(ANN, token, *headers).code() == "headers_too_large"


def test_damaged_events_are_an_internal_error_and_the_rest_is_served(make_service: MakeService) -> None:
    service = make_service({"shop": EVENTS_DECLARED})
    key = service.key()
    service.run_sql(EVENTS)
    service.load()
    whole = snapshot.folder(service.home(), snapshot.current(service.home()))
    copied = whole.with_name(f"{whole.name[:-8]}00000000")
    copy_snapshot(whole, copied)
    # Of neither the first nor the last profile, which a worker reads before it serves a snapshot.
    content = bytearray((copied / snapshot.PROFILES).read_bytes())
    content[content.index(b'"a,b&c=d"') + 2] ^= 1
    (copied / snapshot.PROFILES).write_bytes(content)
    snapshot.point_current(service.home(), copied.name)
    service.start()

    for query in ("", "?name=a,b%26c=d", "?end=2025-06-09"):
        answer = service.get(ANN + query, key, ("X-Request-Id", "look-me-up"))
        assert_problem(answer, 500, "internal_error")
    for query in ("?limit=4", "?name=page", "?start=2025-06-10"):
        assert service.get(ANN + query, key).status == 200
    assert len(service.get(WALK, key).json()["events"]) == 100
    assert service.get("/v1/profiles/id/ann", key).status == 200
    assert "request look-me-up: events of snapshot" in service.log()
    shared = SharedMap(service.settings.data_dir / SHARED_MAP)
    assert shared.counter(metrics.Counter.RECORDS_DAMAGED) == 3


PIECES = ["name", "start", "end", "limit", "cursor", "=", "=", "&", "&", "%", "%00", "%C3", "+", "2025-06-10", "T", "Z",
          "12:00:00", "1", "100", "page", "A" * 22, "é", ":", "-", "."]  # fmt: skip


@profile(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_no_query_is_a_server_error(shop: Service, token: str, query: str) -> None:
    answer = shop.get(f"{ANN}?{query}", token)
    assert answer.status in (200, 400), answer
    assert answer.status == 200 or answer.code() == "malformed_query"


def test_the_log_has_no_name_no_id_and_no_cursor(shop: Service, token: str) -> None:
    cursor = shop.get(f"{WALK}?limit=5", token).json()["cursor"]
    shop.get(f"{WALK}?name=mark-name&start=mark-start&cursor={cursor}", token)
    shop.get(f"{ANN}?cursor={cursor}", token)
    shop.get("/v1/profiles/id/mark-id/events?name=mark-name", token)
    assert not [mark for mark in ("mark-", cursor, "/events", *shop.secrets) if mark in shop.log()]
