"""Bad requests to Insider's API over real sockets: each is refused in their shape, and the next is served as ever."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeService
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from partners import PATH, SPACES, WHOLE_RANGE, make, post, posted
from service import Answer, Service, copy_snapshot, request
from test_http_bad_input import LEAKS

from edgeprofile import metrics, snapshot
from edgeprofile._limiter import SharedMap
from edgeprofile.app import SHARED_MAP

WHO = {"insider_id": "ann"}
GOOD = {**WHO, "attributes": ["name"]}
EVENT: dict[str, object] = {"event_name": "purchase", "params": ["source"]}
NAME = "a name of 1 to 256 characters"
LIMIT = "a whole number from 1 to 10000"
SECONDS = "a whole number of seconds since 1970, up to 253402300799"


@pytest.fixture(scope="module")
def token(insider: Service) -> str:
    return insider.key()


@pytest.fixture(scope="module")
def bank_token(insider: Service) -> str:
    return insider.key("bank")


def wanting(*wanted: object, **more: object) -> dict[str, object]:
    return {**WHO, "events": {**WHOLE_RANGE, "wanted": wanted, **more}}


def assert_refused(answer: Answer, status: int, error: str) -> None:
    """The one shape of their errors, and that it is whole."""
    assert (answer.status, answer.json()) == (status, {"error": error}), answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"]
    assert not LEAKS.search(answer.body.decode())


def assert_bad(answer: Answer, what: str) -> None:
    assert_refused(answer, 400, f"{what}: bad request")


# --- before the body -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partner", [None, "", "MyBrand", "MYBRAND", "nobody", "the_bank", "mybrand,mybrand", "é"])
def test_an_unknown_partner_is_invalid_whatever_the_token(insider: Service, token: str, partner: str | None) -> None:
    for sent in (token, None):
        answer = insider.ask(posted(GOOD, sent, partner))
        assert (answer.status, answer.body) == (400, b'{"success":false,"message":"Partner is invalid."}')


def test_a_bad_token_and_one_of_another_workspace_look_the_same(
    insider: Service, token: str, bank_token: str, service: Service, key: str
) -> None:
    revoked = insider.key()
    insider.revoke(revoked)
    insider.key()  # who knows this one knows of the revocation
    write_only = insider.key(scopes=("write",))
    spoilt = token[:-1] + ("0" if token[-1] != "0" else "1")
    for sent in (None, "", "1a2b3c4d5e6f", f"Bearer {token}", spoilt, key, bank_token, revoked, write_only):
        answer = insider.ask(posted(GOOD, sent))
        assert (answer.status, answer.body) == (
            401, b'{"success":false,"message":"Partner token authentication failed."}'
        )  # fmt: skip
        assert "www-authenticate" not in answer.headers
    body = json.dumps(GOOD).encode()
    headers = [("X-PARTNER-NAME", "mybrand"), ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    assert insider.ask(request(PATH, token, *headers, method="POST", body=body)).status == 401, "their header only"
    twice = [("X-REQUEST-TOKEN", token)] * 2
    assert insider.ask(request(PATH, None, *headers, *twice, method="POST", body=body)).status == 401


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_not_allowed(insider: Service, token: str, method: str) -> None:
    answer = insider.ask(posted(GOOD, token).replace(b"POST", method.encode(), 1))
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        assert_refused(answer, 405, "This path answers POST.")


@pytest.mark.parametrize("path", [f"{PATH}/", f"{PATH}s", PATH.upper(), "/api/user/v1", "/api/user/v2/profile"])
def test_other_paths_are_no_routes(insider: Service, token: str, path: str) -> None:
    answer = insider.ask(posted(GOOD, token).replace(PATH.encode(), path.encode()))
    assert (answer.status, answer.code()) == (404, "no_such_route")


def test_a_query_string_is_ignored(insider: Service, token: str) -> None:
    assert insider.ask(posted(GOOD, token).replace(PATH.encode(), f"{PATH}?attributes=%ff".encode())).status == 200


@pytest.mark.parametrize(
    ("kind", "is_taken"),
    [
        ("application/json", True), ("application/json; charset=utf-8", True), ("APPLICATION/JSON;charset=UTF-8", True),
        ("application/json ;x", True), ("", False), ("text/plain", False), ("application/jsonp", False),
        ("application/x-www-form-urlencoded", False), ("application/json, text/plain", False), ("json", False),
    ],
)  # fmt: skip
def test_the_content_type_is_json_with_or_without_parameters(
    insider: Service, token: str, kind: str, is_taken: bool
) -> None:
    answer = post(insider, GOOD, token, "mybrand", ("Content-Type", kind))
    if is_taken:
        assert answer.status == 200
    else:
        assert_refused(answer, 400, "content type must be application/json")


def test_without_a_content_type_nothing_is_read(insider: Service, token: str) -> None:
    answer = post(insider, GOOD, token, "mybrand", ("X-Other", "application/json"))
    assert_refused(answer, 400, "content type must be application/json")


# --- bodies --------------------------------------------------------------------------------------------------------

DEEP = b"[" * 200_000 + b"]" * 200_000


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "the body must be JSON in UTF-8"),
        (b" ", "the body must be JSON in UTF-8"),
        (b"{", "the body must be JSON in UTF-8"),
        (b"{}}", "the body must be JSON in UTF-8, and is not at byte 3"),
        (b"{'a':1}", "the body must be JSON in UTF-8, and is not at byte 1"),
        (b'\xef\xbb\xbf{"insider_id":"ann"}', "the body must be JSON in UTF-8, and is not at byte 0"),
        (json.dumps(GOOD).encode("utf-16"), "the body must be JSON in UTF-8, and is not at byte 0"),
        (b'{"insider_id":"\xff","attributes":[]}', "the body must be JSON in UTF-8"),
        (b'{"insider_id":"\\ud800","attributes":[]}', "the body must be JSON in UTF-8, and is not at byte 21"),
        (b'{"insider_id":"\\udc00 ","attributes":[]}', "the body must be JSON in UTF-8, and is not at byte 21"),
        (b'{"insider_id":"ann","attributes":["\xed\xa0\x80"]}', "attributes must be JSON in UTF-8"),
        (b'{"insider_id":"ann","attributes":["\\udc00 "]}', "the body must be JSON in UTF-8, and is not at byte 41"),
        (b"[]", "the body must be an object"),
        (b"null", "the body must be an object"),
        (b'"attributes"', "the body must be an object"),
        (DEEP, "the body must be an object"),
        (b'{"attributes":%b}' % DEEP, "the body must be less deep"),
        (b'{"other":%b}' % DEEP, "the body must be less deep"),
        (b'{"insider_id":%b}' % DEEP, "insider_id must be a string"),
        (b"{}", "attributes or events must be there"),
        (b'{"insider_id":"ann"}', "attributes or events must be there"),
        (b'{"insider_id":"ann","attributes":null,"events":null}', "attributes or events must be there"),
    ],
)  # fmt: skip
def test_what_is_no_body_is_told_with_its_place(insider: Service, token: str, body: bytes, what: str) -> None:
    assert_bad(post(insider, body, token), what)


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({**GOOD, "insider_id": 12}, "insider_id must be a string"),
        ({**GOOD, "insider_id": ["ann"]}, "insider_id must be a string"),
        ({**GOOD, "identifiers": ["ann"]}, "identifiers must be an object"),
        ({**GOOD, "identifiers": {"uuid": 1}}, "identifiers[...] must be a string, or of custom an object"),
        ({**GOOD, "identifiers": {"custom": {"x": 1}}}, "identifiers[...][...] must be a string"),
        ({"identifiers": {"custom": "L1"}, "attributes": []}, "identifiers.custom must be an object"),
        ({"identifiers": {"email": {"x": "y"}}, "attributes": []}, "identifiers.email must be a string"),
        ({**WHO, "attributes": "name"}, "attributes must be an array of at most 500 names"),
        ({**WHO, "attributes": {}}, "attributes must be an array of at most 500 names"),
        ({**WHO, "attributes": ["name", 1]}, f"attributes[1] must be {NAME}"),
        ({**WHO, "attributes": ["name", None]}, f"attributes[1] must be {NAME}"),
        ({**WHO, "attributes": [""]}, f"attributes[0] must be {NAME}"),
        ({**WHO, "attributes": ["x" * 257]}, f"attributes[0] must be {NAME}"),
        ({**WHO, "attributes": ["x"] * 501}, "attributes must be an array of at most 500 names"),
        ({**GOOD, "events": []}, "events must be an object"),
        ({**GOOD, "events": {}}, f"events.start_date must be {SECONDS}"),
        ({**GOOD, "events": {"start_date": 1}}, f"events.end_date must be {SECONDS}"),
        ({**GOOD, "events": WHOLE_RANGE}, "events.wanted must be an array of at most 32 objects"),
        (wanting(EVENT, wanted=None), "events.wanted must be an array of at most 32 objects"),
        (wanting(EVENT, wanted={"event_name": "x"}), "events.wanted must be an array of at most 32 objects"),
        (wanting("purchase"), "events.wanted[0] must be an object"),
        (wanting(EVENT, {}), f"events.wanted[1].event_name must be {NAME}"),
        (wanting({**EVENT, "event_name": ""}), f"events.wanted[0].event_name must be {NAME}"),
        (wanting({**EVENT, "event_name": "x" * 257}), f"events.wanted[0].event_name must be {NAME}"),
        (wanting({"event_name": "x"}), "events.wanted[0].params must be an array of at most 100 names"),
        (wanting({**EVENT, "params": "*"}), "events.wanted[0].params must be an array of at most 100 names"),
        (wanting({**EVENT, "params": ["x"] * 101}), "events.wanted[0].params must be an array of at most 100 names"),
        (wanting({**EVENT, "params": ["x", 1]}), f"events.wanted[0].params[1] must be {NAME}"),
        (wanting({**EVENT, "params": ["x" * 257]}), f"events.wanted[0].params[0] must be {NAME}"),
        (wanting({**EVENT, "limit_per_source": 0}), f"events.wanted[0].limit_per_source must be {LIMIT}"),
        (wanting({**EVENT, "limit_per_source": 10_001}), f"events.wanted[0].limit_per_source must be {LIMIT}"),
        (wanting({**EVENT, "limit_per_source": "1"}), f"events.wanted[0].limit_per_source must be {LIMIT}"),
        (wanting(EVENT, limit_per_source=-1), f"events.limit_per_source must be {LIMIT}"),
        (wanting(EVENT, limit_per_source=1.5), f"events.limit_per_source must be {LIMIT}"),
        (wanting(EVENT, {**EVENT, "params": []}), "events.wanted[1].event_name must be another than those before it"),
        (
            wanting(*({**EVENT, "event_name": f"{n}"} for n in range(33))),
            "events.wanted must be an array of at most 32 objects",
        ),
        (wanting(EVENT, start_date=2, end_date=1), "events.start_date must not be after events.end_date"),
        ({**GOOD, "quota": 1}, "quota must be true or false"),
        ({**GOOD, "quota": "true"}, "quota must be true or false"),
        ({**GOOD, "quota": None}, "quota must be true or false"),
    ],
)
def test_a_value_that_cannot_be_read_is_told_with_its_place(
    insider: Service, token: str, asked: dict[str, object], what: str
) -> None:
    for _ in range(2):  # however often it comes
        assert_bad(post(insider, asked, token), what)


@pytest.mark.parametrize("name", ["start_date", "end_date"])
@pytest.mark.parametrize(
    "moment",
    ["-1", "253402300800", "1606311893000", "1606311893.0", "1.5", "1e3", "1e400", "-0.0", '"1606311893"', "true",
     "null", "[]", "{}", "9" * 400],
)  # fmt: skip
def test_a_moment_that_is_no_whole_number_of_seconds_is_refused(
    insider: Service, token: str, name: str, moment: str
) -> None:
    body = json.dumps(wanting(EVENT, **{name: 42})).replace('": 42', f'": {moment}')
    assert_bad(post(insider, body.encode(), token), f"events.{name} must be {SECONDS}")


@pytest.mark.parametrize(
    "who",
    [{}, {"identifiers": {}}, {"identifiers": None}, {"identifiers": {"emial": "x"}}, {"identifiers": {"custom": {}}},
     {"identifiers": {"custom": {"email": "x"}}}, {"identifiers": {"loyalty": "L1"}}, {"insider_id": ""},
     {"identifiers": {"email": "", "uuid": None, "custom": {"loyalty": ""}}}, {"email": "ann@example.com"},
     {"identifiers": {"Email": "ann@example.com"}}],
)  # fmt: skip
def test_without_an_identifier_that_is_known_there_is_no_valid_one(
    insider: Service, token: str, who: dict[str, object]
) -> None:
    assert_bad(post(insider, {"attributes": ["name"], **who}, token), "no valid identifier")


def test_of_a_key_that_comes_twice_the_last_counts_and_unknown_keys_are_ignored(insider: Service, token: str) -> None:
    body = b'{"insider_id":"nobody","insider_id":"ann","attributes":3,"attributes":["name"],"x":{"y":[1,{"z":null}]}}'
    assert post(insider, body, token).json() == {"attributes": {"name": "Ann", "iid": "ann"}}


def test_everything_at_its_largest_is_answered(insider: Service, token: str) -> None:
    wanted = [{"event_name": f"{n:0256}", "params": [f"{m:0256}" for m in range(100)]} for n in range(32)]
    asked = {**wanting(*wanted), "attributes": [f"{n:0256}" for n in range(500)]}
    answer = post(insider, asked, token)
    assert answer.json()["attributes"] == {"iid": "ann"}
    assert list(answer.json()["events"].values()) == [[]] * 32


def test_lists_that_are_all_different_do_not_fill_the_memory(insider: Service, token: str) -> None:
    with insider.connect() as connection:

        def ask(first: int) -> int:
            """Sends a thousand; returns the kilobytes that the worker has then."""
            for number in range(first, first + 1_000):
                connection.send(
                    posted({**WHO, "attributes": [f"{number}", "x" * 250, *["c_name", "name"] * 50]}, token)
                )
                assert connection.read().status == 200
            status = Path(f"/proc/{insider.worker_of(connection)}/status").read_text()
            return int(re.search(r"VmRSS:\s*(\d+)", status)[1])  # type: ignore[index]

        before = ask(0)
        assert max(ask(first) for first in range(1_000, 5_000, 1_000)) < before + 10_000


def test_bodies_and_answers_over_the_limits_are_refused(insider: Service, token: str) -> None:
    assert_refused(post(insider, b" " * 1_048_577, token), 413, "A request body may have 1048576 bytes.")
    assert_bad(post(insider, b" " * 1_048_576, token), "the body must be JSON in UTF-8")
    asked: dict[str, Any] = {"insider_id": "large", "attributes": ["notes"]}
    assert post(insider, asked, token).status == 200
    for more in ({"attributes": ["notes", "c_notes"]}, {"attributes": ["notes"], **wanting(*many_names()), **asked}):
        answer = post(insider, {**asked, **more}, token)
        assert_refused(answer, 413, "the answer must not be over 1048576 bytes: ask for less")


def many_names() -> list[dict[str, object]]:
    return [{"event_name": f"{n:0200}", "params": []} for n in range(32)]


def test_headers_over_the_limit_are_refused_in_their_shape(insider: Service, token: str) -> None:
    headers = [(f"x-{n}", "y" * 1000) for n in range(33)]
    answer = post(insider, GOOD, token, "mybrand", ("Content-Type", "application/json"), *headers)
    assert_refused(answer, 431, "A request may have 100 headers, of 32768 bytes together.")


# --- the service's own faults --------------------------------------------------------------------------------------


def test_before_the_first_snapshot_it_says_when_to_try_again(make_service: MakeService) -> None:
    service = make_service(SPACES)
    key = service.mint()
    service.start(ready=503)
    answer = post(service, GOOD, key)
    assert_refused(answer, 503, "No snapshot is being served yet. Try again shortly.")
    assert answer.headers["retry-after"] == "1"


def test_a_damaged_profile_is_an_internal_error_and_the_rest_is_served(make_service: MakeService) -> None:
    service = make(make_service(SPACES))
    key = service.key()
    whole = snapshot.folder(service.home(), snapshot.current(service.home()))
    copied = whole.with_name(f"{whole.name[:-8]}00000000")
    copy_snapshot(whole, copied)
    content = bytearray((copied / snapshot.PROFILES).read_bytes())
    # Of neither the first nor the last profile, which a worker reads before it serves a snapshot.
    content[content.index(b'"Damaged"') + 1] ^= 1
    (copied / snapshot.PROFILES).write_bytes(content)
    snapshot.point_current(service.home(), copied.name)
    service.start()

    answer = post(service, {**GOOD, "insider_id": "anna"}, key)
    assert_refused(answer, 500, "The request could not be answered. The server's log has the reason.")
    assert post(service, GOOD, key).status == 200
    assert SharedMap(service.settings.data_dir / SHARED_MAP).counter(metrics.Counter.RECORDS_DAMAGED) == 1


# --- anything ------------------------------------------------------------------------------------------------------

KEYS = ["insider_id", "identifiers", "email", "custom", "attributes", "events", "start_date", "end_date", "wanted",
        "event_name", "params", "limit_per_source", "quota", "source", "timestamp", "*", "loyalty", "name"]  # fmt: skip
TEXTS = st.sampled_from([*KEYS, "ann", "busy", "view", "purchase", "", "\0", "c_name"]) | st.text(max_size=5)
SCALARS = st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)
NAMES = st.lists(TEXTS | SCALARS, max_size=4)
WANTED = st.fixed_dictionaries(
    {"event_name": TEXTS, "params": NAMES}, optional={"limit_per_source": st.integers(-1, 10_001) | SCALARS}
)
RANGES = st.fixed_dictionaries(
    {"start_date": st.integers(0, 2_000) | VALUES, "end_date": st.integers(0, 2**38) | VALUES},
    optional={"wanted": st.lists(WANTED, max_size=3) | VALUES, "limit_per_source": SCALARS},
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "insider_id": st.sampled_from(["ann", "busy"]) | VALUES,
        "identifiers": st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3) | VALUES,
        "attributes": NAMES | VALUES,
        "events": RANGES | VALUES,
        "quota": st.booleans() | VALUES,
    },
)


def spoilt(body: bytes, cuts: list[tuple[int, bytes]]) -> bytes:
    """A body in which some bytes are replaced."""
    for number, put in cuts:
        at = number % (len(body) + 1)
        body = body[:at] + put + body[at + 1 :]
    return body


ANYTHING = (
    st.builds(lambda body: json.dumps(body).encode(), BODIES | VALUES)
    | st.builds(
        spoilt,
        st.builds(lambda body: json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass"), BODIES),
        st.lists(st.tuples(st.integers(0, 1_000), st.binary(max_size=2)), min_size=1, max_size=3),
    )
    | st.binary(max_size=60)
)


@profile(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANYTHING)
def test_no_body_is_a_server_error(insider: Service, token: str, body: bytes) -> None:
    answer = post(insider, body, token)
    told = answer.json()
    match answer.status:
        case 200:
            assert next(iter(told)) == "attributes"
        case 400:
            assert re.fullmatch(r"[a-z][^\n]*: bad request", told["error"])
            assert not LEAKS.search(told["error"])
        case _:
            assert (answer.status, told["error"]) == (404, "no such user for these identifiers: no data")


def test_the_log_has_no_name_no_value_and_no_identifier(insider: Service, token: str) -> None:
    marks = {"identifiers": {"email": "mark-email"}, "attributes": ["mark-attribute"]}
    for asked in (marks, {**marks, "attributes": ["mark-attribute", 1]}, {**marks, "mark-key": "mark-value"}):
        assert b"mark" not in post(insider, asked, token).body
    post(insider, marks, token, "mark-partner")
    assert not [mark for mark in ("mark-", PATH, *insider.secrets) if mark in insider.log()]
