"""The Batch dialect as its callers meet it: keys and projects, types of bodies, limits, and what is said of each."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from batches import BATCHED, MASS_UPDATE, PROJECT, UPDATE, call, updates
from conftest import BANK, BANK_PROFILES, MakeService
from service import Answer, Service, exchange, request, until
from test_metrics import requests, scrape

SHOP = """CREATE TABLE profiles AS SELECT '12345' AS profile_id, 'jane@example.com' AS email, 'd1' AS device_id,
    1.5 AS lifetime_value, true AS high_spenders, false AS churn_risk, TIMESTAMP '2025-06-10' AS updated_at"""
BODY_BYTES_MAX = 2_000_000
# Without a time, because a test is called the same in all processes that share the tests.
gzipped = partial(gzip.compress, mtime=0)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    spaces = {"shop": f"{BATCHED}request_bytes_max = {BODY_BYTES_MAX}\n", "bank": BANK}
    made = Service(tmp_path_factory.mktemp("batch"), spaces, workers=2, with_admin=True)
    made.run_sql(SHOP)
    made.run_sql(BANK_PROFILES, "bank")
    made.load("shop")
    made.load("bank")
    made.watch()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def shared_key(service: Service) -> str:
    """For what takes few tokens."""
    return service.key(scopes=("read", "write"))


@pytest.fixture
def key(service: Service) -> str:
    """A rested key."""
    return service.key(scopes=("write",))


def assert_error(answer: Answer, status: int, code: str) -> str:
    """Checks the shape of an error, and returns its message."""
    error = answer.json()
    assert (answer.status, error["error_code"]) == (status, code)
    assert set(error) == {"error_code", "error_message"}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    return str(error["error_message"])


# --- paths and methods ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [UPDATE, "/2.13/profiles/update", "/2.0/profiles/mass-update", "/profiles/update"])
def test_any_version_of_the_api_is_served_and_none(path: str, service: Service, shared_key: str) -> None:
    answer = service.ask(call(path, shared_key, updates(1), ("X-Request-Id", "caller-1")))
    assert (answer.status, answer.body) == (202, b'{"code":"SUCCESS"}')
    assert answer.headers["x-request-id"] == "caller-1"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    ["/2.4/profiles/updates", "/2.4/profiles/update/", "/2.4/", "/profiles/", "/exports/x", "/profiles/2.4/update"],
)
def test_another_path_is_no_route(path: str, service: Service, shared_key: str) -> None:
    assert_error(service.ask(call(path, shared_key, updates(1))), 404, "ROUTE_NOT_FOUND")


@pytest.mark.parametrize("path", ["/3.4/profiles/update", "/2.x/profiles/update", "/2.4"])
def test_what_is_no_version_is_none_of_its_paths(path: str, service: Service, shared_key: str) -> None:
    assert service.ask(call(path, shared_key, updates(1))).code() == "no_such_route"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_another_method_is_refused(method: str, service: Service, shared_key: str) -> None:
    answer = service.ask(call(UPDATE, shared_key, method=method))
    assert_error(answer, 405, "METHOD_NOT_ALLOWED")
    assert answer.headers["allow"] == "POST"


# --- keys ----------------------------------------------------------------------------------------------------------


def test_a_key_writes_to_the_project_that_is_its_own_and_named(service: Service) -> None:
    reader, writer, other = service.key(), service.key(scopes=("write",)), service.key("bank", scopes=("write",))
    for key, project in [
        (None, PROJECT),
        ("sk_live_no", PROJECT),
        (reader, PROJECT),
        (other, PROJECT),
        (writer, None),
        (writer, "project_1"),
        (writer, PROJECT + "x"),
        (writer, "projet_é"),
    ]:
        answer = service.ask(call(UPDATE, key, updates(1), project=project))
        assert assert_error(answer, 401, "AUTHENTICATION_INVALID")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert service.ask(call(UPDATE, writer, updates(1))).status == 202


def test_a_key_that_is_sent_twice_is_none(service: Service, shared_key: str) -> None:
    twice = ("Authorization", f"Bearer {shared_key}")
    assert_error(service.ask(call(UPDATE, shared_key, updates(1), twice)), 401, "AUTHENTICATION_INVALID")


def test_a_key_that_is_revoked_while_the_body_comes_in_writes_nothing(service: Service, key: str) -> None:
    body = json.dumps(updates(1)).encode()
    with service.connect() as connection, contextlib.ExitStack() as open_ones:
        each = [open_ones.enter_context(one) for one in service.connect_to_each()]
        connection.send(call(UPDATE, key, body[:10], length=len(body)))
        service.revoke(key)
        until(lambda: all(one.ask(call(UPDATE, key, b"[")).status == 401 for one in each), "all know of it")
        connection.send(body[10:])
        assert_error(connection.read(), 401, "AUTHENTICATION_INVALID")


# --- bodies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"", "MALFORMED_JSON_BODY", "truncated"),
        (b"[", "MALFORMED_JSON_BODY", "truncated"),
        (b"[{}}", "MALFORMED_JSON_BODY", "byte 3"),
        (b"[01]", "MALFORMED_JSON_BODY", "byte 2"),
        (b"\xef\xbb\xbf[]", "MALFORMED_JSON_BODY", "byte 0"),
        (b"[" * 100_000, "MALFORMED_JSON_BODY", "nested too deep"),
        (b"{}", "MALFORMED_PARAMETER", "an array of updates"),
        (b"null", "MALFORMED_PARAMETER", "an array of updates"),
        (b'"x"', "MALFORMED_PARAMETER", "an array of updates"),
        (b"[]", "MALFORMED_PARAMETER", "1 to 200 updates"),
        (b"[" + b"1," * 200 + b"1]", "MALFORMED_PARAMETER", "1 to 200 updates"),
    ],
)
def test_a_body_that_is_no_array_of_updates_is_refused(
    body: bytes, code: str, message: str, service: Service, shared_key: str
) -> None:
    assert message in assert_error(service.ask(call(UPDATE, shared_key, body)), 400, code)


def test_a_mass_update_has_ten_thousand_updates_at_most(service: Service, key: str) -> None:
    answer = service.ask(call(MASS_UPDATE, key, updates(10_001)))
    assert "1 to 10000 updates" in assert_error(answer, 400, "MALFORMED_PARAMETER")
    assert service.ask(call(MASS_UPDATE, key, updates(10_000))).status == 202


def chunked(body: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:7], body[7:], b""))


def test_a_body_may_come_in_chunks_and_packed(service: Service, shared_key: str) -> None:
    body = json.dumps(updates(3)).encode()
    in_chunks = ("Transfer-Encoding", "chunked")
    assert service.ask(call(UPDATE, shared_key, chunked(body), in_chunks)).status == 202
    packed = gzip.compress(body)
    assert service.ask(call(UPDATE, shared_key, packed, ("Content-Encoding", "gzip"))).status == 202
    assert service.ask(call(UPDATE, shared_key, chunked(packed), in_chunks, ("Content-Encoding", "GZIP"))).status == 202
    assert service.ask(call(UPDATE, shared_key, body, ("Content-Encoding", "identity"))).status == 202


@pytest.mark.parametrize(
    "packed",
    [
        b"[]",
        gzipped(b"[]")[:-1],
        gzipped(b"[]") + b"x",
        gzipped(b"[") + gzipped(b"]"),
        zlib.compress(b"[]"),
        gzipped(b"[]")[:-5] + b"xxxxx",
    ],
)
def test_a_body_that_is_packed_otherwise_is_malformed(packed: bytes, service: Service, shared_key: str) -> None:
    answer = service.ask(call(UPDATE, shared_key, packed, ("Content-Encoding", "gzip")))
    assert "gzip" in assert_error(answer, 400, "MALFORMED_JSON_BODY")


@pytest.mark.parametrize(
    ("content_type", "encoding", "status"),
    [
        (None, None, 202),
        ("application/json; charset=utf-8", None, 202),
        ("Application/JSON", None, 202),
        ("application/x-www-form-urlencoded", None, 415),
        ("text/plain", None, 415),
        ("application/json", "br", 415),
        ("application/json", "gzip, gzip", 415),
    ],
)
def test_a_body_of_another_type_or_encoding_is_not_read(
    content_type: str | None, encoding: str | None, status: int, service: Service, shared_key: str
) -> None:
    headers = [("Content-Encoding", encoding)] if encoding else []
    answer = service.ask(call(UPDATE, shared_key, updates(1), *headers, content_type=content_type))
    assert answer.status == status
    if status != 202:
        assert_error(answer, 415, "UNSUPPORTED_MEDIA_TYPE")


def test_a_body_that_is_too_large_is_refused_announced_or_not_or_packed(service: Service, shared_key: str) -> None:
    large = b" " * BODY_BYTES_MAX + b"[]"
    packed = ("Content-Encoding", "gzip")
    assert_error(service.ask(call(UPDATE, shared_key, b"[", length=len(large))), 413, "BODY_TOO_LARGE")
    assert_error(service.ask(call(UPDATE, shared_key, gzip.compress(large), packed)), 413, "BODY_TOO_LARGE")
    with service.connect() as connection:
        connection.send(call(UPDATE, shared_key, b"", ("Transfer-Encoding", "chunked")))
        with contextlib.suppress(ConnectionError):
            connection.send(chunked(large))
        assert_error(connection.read(), 413, "BODY_TOO_LARGE")
    # To the byte.
    fits = large[: BODY_BYTES_MAX - 2] + b"[]"
    assert_error(service.ask(call(UPDATE, shared_key, fits)), 400, "MALFORMED_PARAMETER")
    assert_error(service.ask(call(UPDATE, shared_key, gzip.compress(fits), packed)), 400, "MALFORMED_PARAMETER")


# --- limits --------------------------------------------------------------------------------------------------------


def passed_until_denied(ask: Callable[[], Answer]) -> int:
    """How many calls passed until one was denied, which is checked."""
    for passed in range(100):
        answer = ask()
        if answer.status != 202:
            assert assert_error(answer, 429, "TOO_MANY_REQUESTS").endswith("in 1 s.")
            assert answer.headers["retry-after"] == "1"
            return passed
    raise AssertionError("no call was denied")


def test_a_thousand_updates_pass_at_once_over_all_workers_and_then_a_call_is_denied_whole(
    service: Service, key: str
) -> None:
    full = call(UPDATE, key, updates(200))
    one, other = service.connect_to_each()
    with one, other:
        turns = itertools.cycle((one, other))
        started = time.monotonic()
        passed = passed_until_denied(lambda: next(turns).ask(full))
        assert 5 <= passed <= (1_000 + 300 * (time.monotonic() - started)) / 200
        # The other limit is another, and so is that of another key.
        assert one.ask(call(MASS_UPDATE, key, updates(1))).status == 202
        assert one.ask(call(UPDATE, service.key(scopes=("write",)), updates(200))).status == 202
        # After what it was told to wait, the call passes.
        until(lambda: other.ask(full).status == 202, "there are tokens again")


def test_ten_thousand_updates_pass_by_mass_and_none_above_it(service: Service, key: str) -> None:
    # Bad ones count too, and are sooner read.
    full = call(MASS_UPDATE, key, [0] * 10_000)
    with service.connect() as connection:
        started = time.monotonic()
        passed = passed_until_denied(lambda: connection.ask(full))
        assert 1 <= passed <= 1 + time.monotonic() - started


def test_what_is_refused_as_a_whole_costs_nothing(service: Service, key: str) -> None:
    for _ in range(10):
        assert service.ask(call(UPDATE, key, updates(201))).status == 400
        assert service.ask(call(UPDATE, key, b"[")).status == 400
    for _ in range(5):
        assert service.ask(call(UPDATE, key, updates(200))).status == 202


def test_calls_do_not_count_as_requests_of_the_keys_own_limits(service: Service) -> None:
    key = service.key(scopes=("read", "write"), rate=0.01, burst_rate=1, burst_seconds=0)
    for _ in range(3):
        assert service.ask(call(UPDATE, key, updates(1))).status == 202
    assert service.get("/v1/profiles/id/12345", key).status == 200
    assert service.get("/v1/profiles/id/12345", key, method="DELETE").code() == "rate_limited"


# --- what is counted -----------------------------------------------------------------------------------------------


def test_calls_and_erasures_are_counted_under_their_surfaces(make_service: MakeService) -> None:
    service = make_service({"shop": BATCHED}, with_admin=True)
    service.run_sql(SHOP)
    service.load()
    service.watch()
    service.start()
    key = service.key(scopes=("write",))
    before = scrape(service)
    full = call(MASS_UPDATE, key, [0] * 10_000)
    passed = passed_until_denied(lambda: service.ask(full))
    assert service.get("/v1/profiles/id/1", key, method="DELETE").status == 204
    expected = {("batch", "202"): passed, ("batch", "429"): 1, ("native", "204"): 1}
    # What an event loop answers is counted just behind its answer.
    until(lambda: requests(scrape(service)) - requests(before) == expected, "all are counted")
    after = scrape(service)
    limited = "edgeprofile_limited_total"
    assert after[limited]["shop",] - before[limited]["shop",] == 1
    assert after["edgeprofile_lookup_deferred_total"] == before["edgeprofile_lookup_deferred_total"]


def test_nothing_of_an_update_is_in_the_log(service: Service, shared_key: str) -> None:
    secret: dict[str, Any] = {
        "identifiers": {"custom_id": "secret-id"},
        "attributes": {"secret": "secret-value", "-": 1},
    }
    assert service.ask(call(UPDATE, shared_key, [secret])).json()["code"] == "SUCCESS_WITH_PARTIAL_ERRORS"
    exchange(service.port, call(UPDATE, shared_key, b'["secret-value"'))
    assert "secret" not in service.log()


# --- erasure -------------------------------------------------------------------------------------------------------


def test_a_profile_is_erased_by_a_key_that_may_write(service: Service, shared_key: str) -> None:
    answer = service.get("/v1/profiles/id/a%2Fb", shared_key, ("X-Request-Id", "caller-2"), method="DELETE")
    assert (answer.status, answer.body, answer.headers["x-request-id"]) == (204, b"", "caller-2")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/profiles/id/", 400, "malformed_path"),
        ("/v1/profiles/id/%", 400, "malformed_path"),
        ("/v1/profiles/id/%FF", 400, "malformed_path"),
        ("/v1/profiles/id/a/b", 404, "no_such_route"),
        ("/v1/profiles/id", 404, "no_such_route"),
        ("/v1/profiles/id/1/events", 405, "method_not_allowed"),
        ("/v1/profiles/identifier/email/x", 405, "method_not_allowed"),
        ("/v1/profiles/lookup", 405, "method_not_allowed"),
        ("/v1/profiles/id/" + "x" * 8200, 414, "url_too_long"),
    ],
)
def test_what_is_no_profiles_id_cannot_be_erased(
    path: str, status: int, code: str, service: Service, shared_key: str
) -> None:
    answer = service.get(path, shared_key, method="DELETE")
    assert (answer.status, answer.code()) == (status, code)


def test_a_key_that_may_not_write_erases_nothing(service: Service) -> None:
    path = "/v1/profiles/id/12345"
    assert service.get(path, service.key(), method="DELETE").code() == "forbidden"
    assert service.get(path, method="DELETE").code() == "unauthorized"


def test_other_methods_are_told_that_a_profile_can_be_erased(service: Service, shared_key: str) -> None:
    answer = service.ask(request("/v1/profiles/id/1", shared_key, method="PUT"))
    assert (answer.status, answer.headers["allow"]) == (405, "DELETE, GET, HEAD")
    for path in ("/v1/profiles/id/1/events", "/v1/profiles/identifier/email/x"):
        assert service.ask(request(path, shared_key, method="PUT")).headers["allow"] == "GET, HEAD"
