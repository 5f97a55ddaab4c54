"""Requests for many profiles whose bodies are wrong, too large, slow or cut off: refused, and nobody else is harmed."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from conftest import MakeService
from service import UNLIMITED, Answer, Connection, Service, chunked, copy_snapshot, many, request, until
from test_http_bad_input import assert_problem, damage, spoilt

from edgeprofile import snapshot
from edgeprofile.api.native import parse_many
from edgeprofile.errors import MalformedBody

MANY = "/v1/profiles/lookup"
GOOD = b'{"profiles":[{"id":"12345"},{"namespace":"email","value":"x"}],"fields":["metrics"]}'
NEXT = request("/livez")
# What every refusal of a body has of where it is wrong, unless it is at the end.
PLACE = re.compile(r"\$|\(byte \d+\)|position \d+|truncated|`array`|`object`|`profiles`|unknown field")


def assert_malformed(service: Service, key: str, body: bytes, place: str = "") -> None:
    answer = service.ask(many(body, key))
    assert_problem(answer, 400, "malformed_body")
    detail = answer.json()["detail"]
    assert PLACE.search(detail), detail
    assert place in detail
    assert len(detail) < 500


# --- bodies --------------------------------------------------------------------------------------------------------


def test_a_body_cut_anywhere_is_malformed(service: Service, key: str) -> None:
    with service.connect() as connection:
        connection.send(b"".join(many(GOOD[:size], key) for size in range(len(GOOD))))
        answers = [connection.read() for _ in range(len(GOOD))]
        assert connection.ask(many(GOOD, key)).status == 200
    for answer in answers:
        assert_problem(answer, 400, "malformed_body")
        assert PLACE.search(answer.json()["detail"])


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"", ""),
        (b" ", ""),
        (b"null", "`null`"),
        (b"[]", "`array`"),
        (b'"profiles"', "`str`"),
        (b"{}", "`profiles`"),
        (b'{"profiles":null}', "$.profiles"),
        (b'{"profiles":{}}', "$.profiles"),
        (b'{"profiles":"12345"}', "$.profiles"),
        (b'{"profiles":["12345"]}', "$.profiles[0]"),
        (b'{"profiles":[{"id":"1"},null]}', "$.profiles[1]"),
        (b'{"profiles":[{"id":"1"},{"id":2}]}', "$.profiles[1].id"),
        (b'{"profiles":[{"id":true}]}', "$.profiles[0].id"),
        (b'{"profiles":[{"id":["1"]}]}', "$.profiles[0].id"),
        (b'{"profiles":[{"namespace":1,"value":"x"}]}', "$.profiles[0].namespace"),
        (b'{"profiles":[{"namespace":"email","value":1.5}]}', "$.profiles[0].value"),
        (b'{"profiles":[{}]}', "$.profiles[0]"),
        (b'{"profiles":[{"id":""}]}', "$.profiles[0]"),
        (b'{"profiles":[{"id":null}]}', "$.profiles[0]"),
        (b'{"profiles":[{"id":"1"},{"namespace":"email"}]}', "$.profiles[1]"),
        (b'{"profiles":[{"value":"x"}]}', "$.profiles[0]"),
        (b'{"profiles":[{"namespace":"email","value":""}]}', "$.profiles[0]"),
        (b'{"profiles":[{"id":"1","namespace":"email","value":"x"}]}', "$.profiles[0]"),
        (b'{"profiles":[{"id":"1","value":"x"}]}', "$.profiles[0]"),
        (b'{"profiles":[{"id":"1","ID":"1"}]}', "$.profiles[0]"),
        (b'{"profiles":[],"field":["metrics"]}', "`field`"),
        (b'{"profiles":[],"fields":"metrics"}', "$.fields"),
        (b'{"profiles":[],"fields":{}}', "$.fields"),
        (b'{"profiles":[],"fields":["metrics",null]}', "$.fields[1]"),
        (b'{"profiles":[],"profiles":null}', "$.profiles"),
        (b'{"profiles":[{"id":1e999999}]}', "$.profiles[0].id"),
        (b'{"profiles":[{"id":' + b"9" * 5000 + b"}]}", "$.profiles[0].id"),
        (b'{"profiles":[{"id":-0}]}', "$.profiles[0].id"),
        (b'{"profiles":' + b"[" * 100_000, "$.profiles"),
        (b'{"profiles":[{"id":' + b"[" * 100_000, "$.profiles[0].id"),
        (b'{"a":' * 100_000, "`a`"),
        (b'{"profiles":[]}x', "(byte 16)"),
        (b'{"profiles":[]}{"profiles":[]}', "(byte 16)"),
        (b'{"profiles":[],}', "(byte 15)"),
        (b"{'profiles':[]}", "(byte 1)"),
        (b'{"profiles":[{"id":"\t"}]}', "(byte 20)"),
        (b'{"profiles":[{"id":"\\x"}]}', "(byte 22)"),
        (b'{"profiles":[{"id":NaN}]}', "(byte 19)"),
        (b'\xef\xbb\xbf{"profiles":[]}', "0"),
        ('{"profiles":[]}'.encode("utf-16"), "0"),
        ('{"profiles":[]}'.encode("utf-16-le"), "(byte 1)"),
        (b'{"profiles":[{"id":"1\xff"}]}', "position 21"),
        (b'{"profiles":[{"id":"\xed\xa0\x80"}]}', "position 20"),
        (b'{"profiles":[{"id":"\xc0\xaf"}]}', "position 20"),
        (b'{"profiles":[{"id":"\xe2\x82"}]}', "position 20"),
        (b'{"profiles":[{"id":"\\ud800"}]}', ""),
        (b'{"profiles":[{"id":"\\ud800 and more of it"}]}', ""),
        (b'{"profiles":[{"id":"\\ud800\\ud800"}]}', ""),
        (b'{"profiles":[{"id":"\\udc00\\ud800"}]}', ""),
        (b'{"profiles":[],"fields":["\\udfff"]}', ""),
        (b'{"profiles":[],"' + b"x" * 100_000 + b'":1}', "xxx"),
        (b"profiles=12345", "(byte 0)"),
    ],
)
def test_a_malformed_body_is_answered_with_the_place(service: Service, key: str, body: bytes, place: str) -> None:
    assert_malformed(service, key, body, place)


@pytest.mark.parametrize("count", [101, 10_000])
def test_over_a_hundred_profiles_are_refused(service: Service, key: str, count: int) -> None:
    body = json.dumps({"profiles": [{"id": "12345"}] * count}).encode()
    assert_malformed(service, key, body, "<= 100 - at `$.profiles`")


def test_an_undeclared_namespace_is_told_with_its_place_and_those_declared(service: Service, key: str) -> None:
    for namespace in ("iban", "EMAIL", "", "\0", "x" * 600):
        asked = {"profiles": [{"id": "12345"}, {"namespace": namespace, "value": "x"}]}
        answer = service.ask(many(asked, key))
        assert_problem(answer, 400, "unknown_namespace", valid=["profile_id", "email", "device_id"])
        assert "$.profiles[1]" in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b' \r\n\t{ "fields" : null , "profiles" : [ ] } \n',
        b'{"profiles":[{"id":"12345"}],"profiles":[]}',
        b'{"profiles":[],"fields":null}',
        b'{"\\u0070rofiles":[]}',
    ],
)
def test_whatever_json_allows_is_understood(service: Service, key: str, body: bytes) -> None:
    assert service.ask(many(body, key)).body == b'{"profiles":[]}'


def test_a_content_type_is_not_asked_for(service: Service, key: str) -> None:
    for kind in ("text/plain", "application/json; charset=utf-16", ""):
        assert service.ask(many(GOOD, key, ("Content-Type", kind))).status == 200


def test_escapes_in_ids_are_those_of_json(service: Service, key: str) -> None:
    body = b'{"profiles":[{"id":"\\u65e5\\u672c\\u8a9e"},{"id":"a\\/b"},{"id":"\\ud83d\\udc69"},{"id":"a%2Fb"}]}'
    found = service.ask(many(body, key)).json()["profiles"]
    assert [one and one["profile_id"] for one in found] == ["日本語", "a/b", None, "a%2Fb"]


def test_parsing_raises_nothing_but_what_a_caller_can_mend() -> None:
    refused = set()
    for size in range(len(GOOD)):
        for byte in (b"\x00", b"\xff", b'"', b"\\", b"{", b"]", b"9"):
            try:
                parse_many(GOOD[:size] + byte + GOOD[size + 1 :])
            except MalformedBody as error:
                refused.add(error.detail)
    assert len(refused) > len(GOOD)
    assert not [detail for detail in refused if not PLACE.search(detail)]


# --- keys and methods ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "post", "BREW"])
def test_only_post_is_allowed(service: Service, key: str, method: str) -> None:
    for given_key in (key, None):
        with service.connect() as connection:
            answer = connection.ask(many(GOOD, given_key, method=method))
            if method == "HEAD":
                assert (answer.status, answer.body) == (405, b"")
            else:
                assert_problem(answer, 405, "method_not_allowed", valid=["POST"])
            assert answer.headers["allow"] == "POST"
            assert connection.ask(NEXT).status == 200


@pytest.mark.parametrize("target", [f"{MANY}/", "/v1/profiles/Lookup", "/v1/profiles/%6Cookup", "/v1/lookup"])
def test_paths_nearby_are_no_routes(service: Service, key: str, target: str) -> None:
    answer = service.ask(many(GOOD, key).replace(MANY.encode(), target.encode(), 1))
    assert_problem(answer, 404, "no_such_route")


def test_a_query_string_changes_nothing_unless_it_is_too_long(service: Service, key: str) -> None:
    plain = service.ask(many(GOOD, key)).body
    for size, expected in ((0, 200), (8192 - len(MANY), 200), (8193 - len(MANY), 414)):
        target = f"{MANY}?{'x' * size}".encode()
        answer = service.ask(many(GOOD, key).replace(MANY.encode(), target, 1))
        assert answer.status == expected
        assert expected != 200 or answer.body == plain


def test_all_that_can_be_wrong_with_a_key_looks_the_same(service: Service, key: str) -> None:
    bodies = set()
    for bad in (None, *spoilt(key)):
        answer = service.ask(many(GOOD, bad))
        assert_problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        bodies.add(answer.body)
    assert len(bodies) == 1


def test_a_key_without_the_scope_is_forbidden_whatever_it_asks_for(service: Service) -> None:
    writer = service.key(scopes=("write",))
    answers = [service.ask(many(asked, writer)) for asked in (GOOD, {"profiles": [{"id": "nobody"}]}, b"{")]
    for answer in answers:
        assert_problem(answer, 403, "forbidden")
    assert len({answer.body for answer in answers}) == 1


def test_a_key_revoked_while_a_body_comes_in_is_refused(service: Service) -> None:
    key = service.key()
    connections = service.connect_to_each()
    for connection in connections:
        connection.send(many(GOOD, key, ("Expect", "100-continue"))[: -len(GOOD)])
        assert connection.read().status == 100, "the key was good so far"

    service.revoke(key)
    for other in service.connect_to_each():
        with other:
            until(lambda: other.ask(many(GOOD, key)).status == 401, "it is refused")  # noqa: B023

    for connection in connections:
        with connection:
            assert_problem(connection.ask(GOOD), 401, "unauthorized")


# --- sizes ---------------------------------------------------------------------------------------------------------

ANSWER_BYTES_MAX, BODY_BYTES_MAX = 1_000, 300


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    """A service that answers and takes little, and a key of it."""
    limits = f"{UNLIMITED}\nresponse_bytes_max = {ANSWER_BYTES_MAX}\nrequest_bytes_max = {BODY_BYTES_MAX}"
    service = Service(tmp_path_factory.mktemp("small"), {"shop": 'id = "id"'}, limits=limits)
    service.run_sql("CREATE TABLE profiles AS SELECT i::VARCHAR AS id, repeat('x', 50 * i) AS text FROM range(20) r(i)")
    service.load()
    key = service.key()
    yield service.start(), key
    service.stop()


@pytest.mark.parametrize("accept", ["application/json", "application/msgpack"])
@pytest.mark.parametrize("number", range(4, 16))
def test_an_answer_too_large_says_its_exact_size(small: tuple[Service, str], number: int, accept: str) -> None:
    service, key = small
    asked = [{"id": str(number)}, {"id": "nobody"}, {"id": "1"}, {"id": "0"}]
    found = [service.get(f"/v1/profiles/id/{one['id']}", key).body for one in asked]
    size = len(b'{"profiles":[' + b",".join([found[0], b"null", *found[2:]]) + b"]}")

    answer = service.ask(many({"profiles": asked}, key, ("Accept", accept)))

    if size <= ANSWER_BYTES_MAX:
        assert answer.status == 200
        assert len(answer.body) == size or accept == "application/msgpack"
    else:
        assert_problem(answer, 413, "answer_too_large", bytes=size, bytes_max=ANSWER_BYTES_MAX)
        assert "fields" in answer.json()["detail"]
        narrowed = service.ask(many({"profiles": asked, "fields": ["identifiers"]}, key, ("Accept", accept)))
        assert narrowed.status == 200


def test_an_answer_of_a_hundred_large_profiles_is_measured_to_its_end(service: Service, key: str) -> None:
    one = service.get("/v1/profiles/id/large", key).json()["bytes"]
    answer = service.ask(many({"profiles": [{"id": "large"}] * 100}, key))
    assert answer.json()["bytes"] == len('{"profiles":[]}') + 100 * one + 99


def padded(size: int) -> bytes:
    return b'{"profiles":[{"id":"1"}]' + b" " * (size - 25) + b"}"


def test_a_body_may_have_so_many_bytes_and_not_one_more(small: tuple[Service, str]) -> None:
    service, key = small
    with service.connect() as connection:
        for send in (many, chunked):
            assert connection.ask(send(padded(BODY_BYTES_MAX), key)).status == 200
            refused = service.ask(send(padded(BODY_BYTES_MAX + 1), key))
            assert_problem(refused, 413, "body_too_large", bytes_max=BODY_BYTES_MAX)


@pytest.mark.parametrize("expects", [False, True])
@pytest.mark.parametrize("size", [BODY_BYTES_MAX + 1, 10**9, 2**63, 2**64 - 3])
def test_a_body_announced_too_large_is_refused_before_it_is_sent(
    small: tuple[Service, str], size: int, expects: bool
) -> None:
    service, key = small
    with service.connect() as connection:
        headers = [("Expect", "100-continue")] if expects else []
        answer = connection.ask(many(b"", key, *headers, length=size))
        assert_problem(answer, 413, "body_too_large", bytes_max=BODY_BYTES_MAX)
        assert connection.is_closed(), "what may still come is not read as a request"


def test_a_chunked_body_over_the_limit_is_refused_without_reading_on(small: tuple[Service, str]) -> None:
    service, key = small
    with service.connect() as connection:
        # Its end is never sent.
        connection.send(chunked(padded(BODY_BYTES_MAX + 1), key).removesuffix(b"0\r\n\r\n"))
        assert_problem(connection.read(), 413, "body_too_large", bytes_max=BODY_BYTES_MAX)
        assert connection.is_closed()


# --- connections ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encode", [many, chunked])
def test_a_body_that_comes_byte_by_byte_is_read(service: Service, key: str, encode: Callable[..., bytes]) -> None:
    content = encode(GOOD, key)
    with service.connect() as connection, service.connect() as other:
        for at in range(len(content)):
            connection.send(content[at : at + 1])
        assert connection.read().body == other.ask(many(GOOD, key)).body


def test_a_client_that_waits_to_be_asked_for_its_body_is(service: Service, key: str) -> None:
    content = many(GOOD, key, ("Expect", "100-continue"))
    with service.connect() as connection:
        connection.send(content[: -len(GOOD)])
        assert connection.read().status == 100
        assert connection.ask(GOOD).status == 200
        assert connection.ask(NEXT).status == 200


@pytest.mark.parametrize("length", [len(NEXT) * 2, 100_000], ids=["whole", "cut"])
@pytest.mark.parametrize(("keyed", "method", "status"), [(False, "POST", 401), (True, "PUT", 405), (False, "PUT", 405)])
def test_the_rest_of_a_refused_body_is_never_taken_for_a_request(
    service: Service, key: str, length: int, keyed: bool, method: str, status: int
) -> None:
    with service.connect() as connection:
        connection.send(many(NEXT * 2, key if keyed else None, method=method, length=length))
        assert connection.read().status == status
        if length > len(NEXT) * 2:
            assert connection.is_closed()
        else:
            connection.send(request("/v1/profiles/id/nobody", key))
            assert connection.read().status == 404, "not the answers to what stood in the body"


@pytest.mark.parametrize("encode", [many, chunked])
def test_a_refused_body_too_large_to_wait_for_ends_the_connection(
    service: Service, encode: Callable[..., bytes]
) -> None:
    with service.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.send(encode(NEXT * 40_000, None))
        assert connection.read().status == 401
        with contextlib.suppress(ConnectionError):
            assert connection.is_closed()


@pytest.mark.parametrize(
    "body",
    [b"zz\r\n{}\r\n0\r\n\r\n", b"2\r\n{}0\r\n\r\n", b"ffffffffffffffffff\r\n{}", b"-1\r\n{}\r\n0\r\n\r\n"],
)
def test_broken_chunks_are_a_malformed_body(service: Service, key: str, body: bytes) -> None:
    content = request(MANY, key, ("Transfer-Encoding", "chunked"), method="POST", body=body)
    with service.connect() as connection:
        assert_problem(connection.ask(content), 400, "malformed_body")
        assert connection.is_closed()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
@pytest.mark.parametrize("encode", [many, chunked])
def test_a_client_that_goes_away_in_its_body_harms_nobody_and_costs_nothing(
    service: Service, encode: Callable[..., bytes], share: float
) -> None:
    key = service.key(rate=0.01, burst_rate=2, burst_seconds=0)
    head, _, body = encode(GOOD, key).partition(b"\r\n\r\n")
    content = head + b"\r\n\r\n" + body[: int(len(body) * share)]
    for connection in service.connect_to_each():
        with connection:
            connection.send(content)
    # Those that have only ended what they send still hear what was wrong.
    assert_problem(exchange_half(service.port, content), 400, "malformed_body")
    assert service.ask(many(GOOD, key)).status == 200, "it had its tokens"
    assert "Traceback" not in service.log()


def exchange_half(port: int, content: bytes) -> Answer:
    """Sends bytes, says that no more are to come, and reads an answer."""
    with Connection(port) as connection:
        connection.send(content)
        connection.end()
        return connection.read()


def test_batches_and_lookups_may_be_pipelined(service: Service, key: str) -> None:
    lookup = request("/v1/profiles/id/12345", key)
    bad = many(b"{", key)
    contents = [lookup, many(GOOD, key), NEXT, chunked(GOOD, key), bad, lookup, many(GOOD, None), lookup] * 20
    with service.connect() as connection:
        connection.send(b"".join(contents))
        answers = [connection.read() for _ in contents]
    assert [answer.status for answer in answers] == [200, 200, 200, 200, 400, 200, 401, 200] * 20
    assert len({answer.body for answer in answers}) == 5, "lookups, batches, health, two errors"


# --- damage --------------------------------------------------------------------------------------------------------


def test_a_damaged_record_fails_the_batches_that_ask_for_it_and_no_others(make_service: MakeService) -> None:
    service = make_service({"shop": 'id = "id"\nidentifiers = ["email"]'})
    key = service.key()
    service.run_sql("CREATE TABLE profiles AS SELECT 'p' || i AS id, 'mail' || i AS email FROM range(10, 20) r(i)")
    service.load()
    whole = snapshot.folder(service.home(), snapshot.current(service.home()))
    copied = whole.with_name(f"{whole.name[:-8]}00000000")
    copy_snapshot(whole, copied)
    damage(copied, {"p13": "record", "p15": "place"})
    snapshot.point_current(service.home(), copied.name)
    service.start()

    def is_said(number: int) -> bool:
        return f"request look-{number}: a record of snapshot" in service.log()

    for number in (13, 15):
        for bad in ({"id": f"p{number}"}, {"namespace": "email", "value": f"mail{number}"}):
            asked = {"profiles": [{"id": "p10"}, bad, {"id": "p11"}]}
            answer = service.ask(many(asked, key, ("X-Request-Id", f"look-{number}")))
            assert_problem(answer, 500, "internal_error")
            until(partial(is_said, number), "the log says so")
            assert f"p{number}" not in service.log()
    good = [{"id": f"p{number}"} for number in (10, 11, 12, 14, 16, 17, 18, 19)]
    assert [one["id"] for one in service.ask(many({"profiles": good}, key)).json()["profiles"]] == [
        one["id"] for one in good
    ]
