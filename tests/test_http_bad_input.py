"""Bad requests over real sockets: each is answered with its own problem or closed, and the next is served as ever."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeService
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from service import Answer, Service, copy_snapshot, exchange, request, until

from edgeprofile import keys, snapshot
from edgeprofile.reader import Reader

JANE = "/v1/profiles/id/12345"
BY = "/v1/profiles/identifier"
MEMBERS = ["type", "title", "status", "detail", "code"]
SECTIONS = ["identifiers", "attributes", "metrics", "audiences"]
# What would be a leak: a path, a traceback, a module's name, an exception's.
LEAKS = re.compile(r"(?i)traceback|\.py|/tmp|/home|/root|\.mdb|lmdb|edgeprofile|error\(|exception|0x[0-9a-f]{6}")


def assert_problem(answer: Answer, status: int, code: str, **members: Any) -> None:
    """The one shape of every problem: status line, type, members in their order, and no more than those."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"]
    problem = answer.json()
    assert list(problem) == [*MEMBERS, *members]
    assert (problem["status"], problem["code"], problem["type"]) == (status, code, f"/docs#{code}")
    assert problem["title"]
    assert problem["detail"]
    assert {name: problem[name] for name in members} == members
    assert not LEAKS.search(answer.body.decode())


def assert_refused_by_the_server(port: int, content: bytes, statuses: tuple[int, ...]) -> None:
    """Below our code: a bare status of the HTTP server's, or a closed connection. Either way not our 5xx."""
    try:
        answer = exchange(port, content)
    except ConnectionError:
        return
    assert answer.status in statuses
    assert not LEAKS.search(answer.body.decode())


# --- the error table -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    ["id/%ZZ", "id/abc%4", "id/abc%", "id/%4G", "id/%%41", "id/", "id/?fields=metrics",
     "identifier/email/", "identifier//jane@example.com", "identifier//", "identifier/%zz/jane@example.com",
     # Not UTF-8: overlong, surrogates, beyond Unicode, cut short.
     "id/%ff", "id/%C0%AF", "id/%E0%80%AF", "id/%F0%80%80%AF", "id/%ED%A0%80", "id/%F4%90%80%80", "id/%E2%82",
     "identifier/email/%C1%81", "identifier/%C1%81/x"],
)  # fmt: skip
def test_paths_that_mean_nothing_are_malformed(service: Service, key: str, target: str) -> None:
    assert_problem(service.get(f"/v1/profiles/{target}", key), 400, "malformed_path")


@pytest.mark.parametrize("namespace", ["iban", "EMAIL", "e-mail", "phone", "%00", "%F0%9F%92%A5", "id", "x" * 600])
def test_an_undeclared_namespace_is_answered_with_those_declared(service: Service, key: str, namespace: str) -> None:
    answer = service.get(f"{BY}/{namespace}/IBAN-1", key)
    assert_problem(answer, 400, "unknown_namespace", valid=["profile_id", "email", "device_id"])


def test_a_namespace_belongs_to_its_workspace(service: Service, key: str, bank_key: str) -> None:
    assert service.get(f"{BY}/iban/IBAN-1", bank_key).json()["first_name"] == "Olga"
    assert_problem(
        service.get(f"{BY}/email/jane@example.com", bank_key), 400, "unknown_namespace", valid=["profile_id", "iban"]
    )


@pytest.mark.parametrize(
    "query",
    ["fields=", "fields", "fields=nope", "fields=attributes,", "fields=,metrics", "fields=attributes.nope",
     "fields=attributes.", "fields=metrics.first_name", "fields=identifiers.first_name", "fields=_updated_at",
     "fields=attributes&fields=nope", "fields=ATTRIBUTES", "fields=first_name", "fields=+metrics", "fields=%22%ff"],
)  # fmt: skip
def test_unknown_fields_are_answered_with_the_known_ones(service: Service, key: str, query: str) -> None:
    valid = [
        *SECTIONS,
        *(f"identifiers.{name}" for name in ("profile_id", "email", "device_id")),
        *(f"attributes.{name}" for name in ("first_name", "visits", "balance", "ratio", "preferences", "birthday")),
        *(f"attributes.{name}" for name in ("seen_at", "tags", "notes")),
        *("metrics.lifetime_value", "audiences.high_spenders", "audiences.churn_risk"),
    ]
    assert_problem(service.get(f"{JANE}?{query}", key), 400, "unknown_field", valid=valid)
    assert "'attributes.nope'" in service.get(f"{JANE}?fields=metrics,attributes.nope", key).json()["detail"]


def spoilt(key: str) -> list[str]:
    """Keys that are nearly good."""
    other = "0" if key[-1] != "0" else "1"
    return [key[:-1] + other, key[:-1], key + "0", key[:8] + "z" * 12 + key[20:], key.upper(), "sk_live_", "x" * 5000]


def test_all_that_can_be_wrong_with_a_key_looks_the_same(service: Service, key: str) -> None:
    revoked = service.key()
    service.revoke(revoked)
    for connection in service.connect_to_each():
        with connection:
            until(lambda: connection.ask(request(JANE, revoked)).status == 401, "it is refused")  # noqa: B023
    given = [f"Bearer {bad}" for bad in (*spoilt(key), revoked)]
    given += [key, "", "Bearer", "Bearer ", f"Basic {key}", f"Bearer  {key}", f"Bearer\t{key}", f"Bearer {key}, x"]
    given += [f"Bearer {key} x", f"Bearer \xff{key}", f"bearer{key}", f'Bearer "{key}"']
    answers = [service.get(JANE)]
    answers += [service.get(JANE, None, ("Authorization", value)) for value in given]
    answers.append(service.get(JANE, key, ("Authorization", f"Bearer {key}")))
    answers.append(service.get(f"{JANE}?api_key={key}"))

    for answer in answers:
        assert_problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert len({answer.body for answer in answers}) == 1


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEaReR"])
def test_the_scheme_may_be_in_any_case(service: Service, key: str, scheme: str) -> None:
    assert service.get(JANE, None, ("authorization", f"{scheme} {key}")).status == 200


def test_a_key_without_the_scope_is_forbidden(service: Service) -> None:
    assert_problem(service.get(JANE, service.key(scopes=("write",))), 403, "forbidden")


def test_the_key_decides_the_workspace(service: Service, key: str, bank_key: str) -> None:
    assert service.get(JANE, bank_key).json()["first_name"] == "Olga"
    assert service.get(JANE, key).json()["first_name"] == "Jane"
    assert_problem(service.get("/v1/profiles/id/types", bank_key), 404, "profile_not_found")


@pytest.mark.parametrize(
    "target",
    [
        "/v1/profiles/id/nobody",
        "/v1/profiles/id/%00",
        "/v1/profiles/id/12345%00",
        "/v1/profiles/id/%2F",
        "/v1/profiles/id/12345%20",
        "/v1/profiles/id/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/v1/profiles/id/" + "x" * 511,
        "/v1/profiles/id/" + "x" * 512,
        "/v1/profiles/id/" + "x" * 8000,
        f"{BY}/email/nobody@example.com",
        f"{BY}/email/" + "x" * 510,
        f"{BY}/email/" + "%C3%89" * 1200,
        f"{BY}/email/%00%00",
        f"{BY}/device_id/%00",
    ],
)
def test_what_nobody_has_is_not_found(service: Service, key: str, target: str) -> None:
    assert_problem(service.get(target, key), 404, "profile_not_found")


@pytest.mark.parametrize(
    "target",
    ["/", "/v1", "/v1/", "/v1/profiles", "/v1/profiles/", "/v1/profiles/id", "/v1/profiles/identifier", f"{BY}/",
     f"{BY}/email", f"{JANE}/", f"{JANE}//", f"{JANE}/x", f"{BY}/email/jane@example.com/", "/v1/profiles/ID/12345",
     "/V1/profiles/id/12345", "//v1/profiles/id/12345", "/v1//profiles/id/12345", "/v2/profiles/id/12345",
     "/v1/profiles/idx/12345", "/v1/profiles/id%2F12345", "/v1/../v1/profiles/id/12345", "/livez/", "/metrics"],
)  # fmt: skip
def test_other_paths_are_no_routes(service: Service, key: str, target: str) -> None:
    assert_problem(service.get(target, key), 404, "no_such_route")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "OPTIONS", "TRACE", "BREW", "get", "delete", "X" * 1000])
@pytest.mark.parametrize(
    ("target", "allow"), [(JANE, "DELETE, GET, HEAD"), (f"{BY}/email/x", "GET, HEAD"), ("/livez", "GET, HEAD")]
)
def test_other_methods_are_not_allowed(service: Service, key: str, method: str, target: str, allow: str) -> None:
    answer = service.get(target, key, method=method)
    assert_problem(answer, 405, "method_not_allowed", valid=allow.split(", "))
    assert answer.headers["allow"] == allow


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "application/xml, text/*", "\xff"])
def test_what_cannot_be_accepted_is_not_sent(service: Service, key: str, accept: str) -> None:
    answer = service.get(JANE, key, ("Accept", accept))
    assert_problem(answer, 406, "not_acceptable", valid=["application/json", "application/msgpack"])


def test_an_answer_too_large_says_its_size(service: Service, key: str) -> None:
    answer = service.get("/v1/profiles/id/large", key)
    size = answer.json()["bytes"]
    assert_problem(answer, 413, "answer_too_large", bytes=size, bytes_max=1_048_576)
    assert 1_100_000 < size < 1_100_300
    assert "fields" in answer.json()["detail"]
    assert service.get("/v1/profiles/id/large?fields=attributes.notes", key).code() == "answer_too_large"


def test_a_body_too_large_is_refused_without_reading_it(service: Service, key: str) -> None:
    # None of the announced bytes is ever sent.
    answer = service.get(JANE, key, ("Content-Length", "1048577"))
    assert_problem(answer, 413, "body_too_large", bytes_max=1_048_576)


@pytest.mark.parametrize("target", ["/v1/profiles/id/{}", "/{}", JANE + "?fields={}", BY + "/email/{}"])
def test_a_url_over_8_kb_is_too_long(service: Service, key: str, target: str) -> None:
    # The question mark is of neither the path nor the query.
    longest = 8192 - len(target.replace("?", "").replace("{}", ""))
    assert_problem(service.get(target.format("x" * 10_240), key), 414, "url_too_long")
    assert_problem(service.get(target.format("x" * (longest + 1)), key), 414, "url_too_long")
    assert service.get(target.format("x" * longest), key).status in (400, 404)


def test_a_key_over_its_rate_is_limited(service: Service) -> None:
    limited = service.key(rate=0.01, burst_rate=1, burst_seconds=0)
    assert service.get(JANE, limited).status == 200
    answer = service.get(JANE, limited)
    assert_problem(answer, 429, "rate_limited", retry_after=answer.json()["retry_after"])
    assert answer.headers["retry-after"] == str(answer.json()["retry_after"])


def test_before_the_first_snapshot_there_is_a_reason_to_wait(make_service: MakeService) -> None:
    service = make_service()
    key = service.key()
    service.start(ready=503)
    for target in (JANE, f"{BY}/email/x", "/readyz"):
        assert_problem(service.get(target, key), 503, "not_ready", retry_after=1)


def damage(folder: Path, ids: dict[str, str]) -> None:
    """Alters a published file behind its checksums: by id, a byte of its record, its place or its node in the tree."""
    reader = Reader(folder)
    path = folder / snapshot.PROFILES
    content = bytearray(path.read_bytes())
    for primary, what in ids.items():
        place = reader.txn.get(primary.encode(), db=reader.profiles)
        sought = bytes(reader.record(primary) or b"") if what == "record" else primary.encode() + bytes(place or b"")
        content[content.index(sought) + (-4 if what == "node" else len(sought) - 3)] ^= 0xFE
    reader.close()
    path.write_bytes(content)


def test_a_damaged_record_is_an_internal_error_and_the_rest_is_served(make_service: MakeService) -> None:
    service = make_service()
    key = service.key()
    service.run_sql(
        "CREATE TABLE profiles AS SELECT 'p' || i AS profile_id, 'p' || i || '@example.com' AS email, '' AS device_id, "
        "i AS lifetime_value, true AS high_spenders, true AS churn_risk, now() AS updated_at FROM range(10, 20) r(i)"
    )
    service.load()
    whole = snapshot.folder(service.home(), snapshot.current(service.home()))
    copied = whole.with_name(f"{whole.name[:-8]}00000000")
    copy_snapshot(whole, copied)
    # Neither the first nor the last, which a worker reads before it serves a snapshot.
    damage(copied, {"p13": "record", "p15": "place", "p17": "node"})
    snapshot.point_current(service.home(), copied.name)
    service.start()

    for target in ("/v1/profiles/id/p13", f"{BY}/email/p13@example.com", "/v1/profiles/id/p15", "/v1/profiles/id/p17"):
        for method in ("GET", "HEAD"):
            answer = service.get(target, key, ("X-Request-Id", "look-me-up"), method=method)
            assert answer.status == 500
        assert_problem(service.get(target, key, ("X-Request-Id", "look-me-up")), 500, "internal_error")
    for number in (10, 11, 12, 14, 16, 18, 19):
        assert service.get(f"/v1/profiles/id/p{number}", key).json()["lifetime_value"] == number
    assert "request look-me-up: a record of snapshot" in service.log()
    assert "p13" not in service.log()


# --- around the HTTP server ----------------------------------------------------------------------------------------


def test_a_hundred_headers_are_served_and_two_hundred_refused(service: Service, key: str) -> None:
    assert service.get(JANE, key, *[(f"x-{n}", "y") for n in range(98)]).status == 200
    assert_refused_by_the_server(service.port, request(JANE, key, *[(f"x-{n}", "y") for n in range(99)]), (431,))
    assert_refused_by_the_server(service.port, request(JANE, key, *[(f"x-{n}", "y") for n in range(198)]), (431,))


def test_32_kb_of_headers_are_served_and_more_refused(service: Service, key: str) -> None:
    assert service.get(JANE, key, *[(f"x-{n}", "y" * 1000) for n in range(31)]).status == 200
    refused = service.get(JANE, key, *[(f"x-{n}", "y" * 1000) for n in range(33)])
    assert (refused.status, refused.json()["code"]) == (431, "headers_too_large")
    # Past the server's own buffer it answers itself; its last read may overrun that, but not by as much as this.
    many = request(JANE, key, *[(f"x-{n}", "y" * 1024) for n in range(90)])
    assert_refused_by_the_server(service.port, many, (431,))
    assert_refused_by_the_server(service.port, request(JANE, key, ("x", "y" * 1024 * 90)), (431,))


@pytest.mark.parametrize("encoded", [False, True], ids=["content-length", "chunked"])
@pytest.mark.parametrize("target", [JANE, "/v1/profiles/id/nobody", "/nowhere", "/livez"])
def test_a_body_on_get_is_ignored_and_the_connection_goes_on(
    service: Service, key: str, target: str, encoded: bool
) -> None:
    body = b"GET /livez HTTP/1.1\r\n\r\n"  # Would be an answer too many, if it were read as a request.
    headers = ("Transfer-Encoding", "chunked") if encoded else ("Content-Length", str(len(body)))
    sent = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if encoded else body
    with service.connect() as connection:
        plain = connection.ask(request(target, key))
        for _ in range(3):
            answer = connection.ask(request(target, key, headers, body=sent))
            assert (answer.status, len(answer.body)) == (plain.status, len(plain.body))
        assert connection.ask(request(JANE, key)).status == 200


def test_pipelined_requests_are_answered_in_their_order(service: Service, key: str) -> None:
    targets = [JANE, "/v1/profiles/id/nobody", "/livez", "/v1/profiles/id/a+b", "/nowhere", "/v1/profiles/id/%"] * 20
    with service.connect() as connection:
        connection.send(b"".join(request(target, key) for target in targets))
        statuses = [connection.read().status for _ in targets]
    assert statuses == [200, 404, 200, 200, 404, 400] * 20


def test_http_1_0_is_answered_and_closed(service: Service, key: str) -> None:
    for content in (request(JANE, key), request(JANE, key).replace(b"Host: test\r\n", b"")):
        with service.connect() as connection:
            assert connection.ask(content.replace(b"HTTP/1.1", b"HTTP/1.0")).status == 200
            assert connection.is_closed()


def test_a_lookup_does_not_need_a_host(service: Service, key: str) -> None:
    assert service.ask(request(JANE, key).replace(b"Host: test\r\n", b"")).status == 200


def test_bytes_beyond_ascii_in_headers_change_nothing(service: Service, key: str) -> None:
    content = request(JANE, key).replace(b"\r\n\r\n", b"\r\nX-Name: \xff\xfe\x80\r\nUser-Agent: \xe2\x82\r\n\r\n")
    for sent in (content, content.replace(JANE.encode(), b"/livez")):
        assert service.ask(sent).status == 200


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/profiles/id/a b HTTP/1.1\r\n\r\n",
        b"GET /v1/profiles/id/\x00 HTTP/1.1\r\n\r\n",
        b"GET /v1/profiles/id/\r HTTP/1.1\r\n\r\n",
        b"GET /v1/profiles/id/\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: \x00\r\n\r\n",
        b"\x00" * 70_000,
    ],
)
def test_what_is_no_http_is_refused_before_it_reaches_us(service: Service, content: bytes) -> None:
    assert_refused_by_the_server(service.port, content, (400, 431, 505))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_request_cut_in_the_middle_harms_nobody(service: Service, key: str, share: float) -> None:
    whole = request(JANE, key, ("Content-Length", "1000"), body=b"x" * 1000)
    with service.connect() as cut, service.connect() as other:
        cut.send(whole[: int(len(whole) * share)])
        assert other.ask(request(JANE, key)).status == 200
        cut.close()
        assert other.ask(request(JANE, key)).status == 200


# --- anything ------------------------------------------------------------------------------------------------------

PARTS = ["id/", "identifier/", "email/", "12345", "?", "fields=", "metrics", ",", "&", "=", "%", "%2", "%2F", "%00",
         "%C3", "%c3%a9", "..", "//", "/", "+", "#", "é", "\x7f", "\0"]  # fmt: skip
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\r\n")
PATHS = st.lists(st.sampled_from(PARTS) | st.text(CHARACTERS, max_size=3), max_size=8).map("".join)
VALUES = st.text(CHARACTERS, max_size=40)
NAMES = ["Accept", "If-None-Match", "X-Request-Id", "Authorization", "Content-Length", "Transfer-Encoding", "Expect",
         "Connection", "Host", "Cookie"]  # fmt: skip


@profile(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS, headers=st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=4), keyed=st.booleans())
def test_no_request_is_a_server_error_or_ends_a_worker(
    service: Service, key: str, path: str, headers: list[tuple[str, str]], keyed: bool
) -> None:
    workers = service.workers()
    with service.connect() as connection:
        connection.send(request(f"/v1/profiles/{path}", key if keyed else None, *headers))
        try:
            answer = connection.read()
        except ConnectionError:
            answer = None
    assert answer is None or 200 <= answer.status < 500, answer
    assert service.workers() == workers
    assert service.get(JANE, key).status == 200


def test_the_log_has_no_key_no_id_and_no_value(service: Service, key: str) -> None:
    marks = ["mark-id", "mark-value", "mark-field", "mark-namespace", "mark-accept", "mark-key"]
    service.get(f"/v1/profiles/id/mark-id?fields=mark-field&x={key}", key, ("Accept", "mark-accept"))
    service.get(f"/v1/profiles/id/mark-id/{key}", key)
    service.get(f"{BY}/mark-namespace/mark-value", key)
    service.get(f"{BY}/email/mark-value%ff", key)
    service.get(JANE, "sk_live_mark-key", method="mark-key")
    service.get("/v1/profiles/id/large", key)

    log = service.log()
    public_ids = [found.public_id for found in keys.listing(service.settings.data_dir, None)]
    assert not [mark for mark in [*marks, *service.secrets, *public_ids, "jane@", "Olga", "IBAN-1"] if mark in log]
    assert until(lambda: len(service.workers()) == 2, "both workers live")
