"""Bad requests to Intilery's API: each gets the documented status and an error in their shape, and never a 500."""

from __future__ import annotations

import base64
import re
from urllib.parse import quote, quote_from_bytes

import pytest
from brands import BANK, DECLARED, EVENTS, PROFILES, SHOP, SPACES, ask, asked, found, make, profile, refused
from conftest import MakeService
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from service import UNLIMITED, Service, exchange, request, until

ANN = profile("id", "ann", "events")
KEY_WANTED = "auth-token"


@pytest.fixture(scope="module")
def token(intilery: Service) -> str:
    return intilery.key()


@pytest.fixture(scope="module")
def bank_token(intilery: Service) -> str:
    return intilery.key("bank", rate=1_000_000, burst_rate=1_000_000, burst_seconds=0)


# --- who asks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [SHOP, ANN, profile("id", "nobody", "traits"), f"{SHOP}/nothing", f"{ANN}?size=x"])
def test_without_a_good_key_all_is_refused_alike(intilery: Service, token: str, target: str) -> None:
    answers = [
        ask(intilery, target, None),
        ask(intilery, target, ""),
        ask(intilery, target, f"{token}x"),
        ask(intilery, target, token.replace("sk_live_", "sk_live_a")),
        ask(intilery, target, "1234abcd"),
        ask(intilery, target, f"Bearer {token}"),
        ask(intilery, target, token, ("Auth-Token", token)),  # twice
        intilery.ask(request(target, token)),  # as the native API has it
    ]
    messages = {refused(answer, 401, "authentication_error") for answer in answers}
    assert len(messages) == 1
    assert KEY_WANTED in messages.pop()
    assert [answer for answer in answers if "www-authenticate" in answer.headers] == []


def test_a_revoked_key_is_a_wrong_one_on_every_worker(intilery: Service) -> None:
    revoked = intilery.key()
    assert ask(intilery, ANN, revoked).status == 200
    intilery.revoke(revoked)
    for connection in intilery.connect_to_each():
        with connection:
            until(lambda: connection.ask(asked(ANN, revoked)).status == 401, "the key is revoked")  # noqa: B023


def test_a_key_of_another_workspace_or_brand_is_a_wrong_one(intilery: Service, token: str, bank_token: str) -> None:
    plain = intilery.key("plain")
    for key, target in [
        (bank_token, ANN),
        (token, profile("id", "7", "traits", BANK)),
        (plain, ANN),
        (token, ANN.replace("SHOP", "shop")),
        (token, ANN.replace("acme", "other")),
        (token, ANN.replace("/marketing/", "/%6Darketing/")),
        (token, "/track/a/b/c/v1/profiles"),
    ]:
        assert KEY_WANTED in refused(ask(intilery, target, key), 401, "authentication_error")


def test_a_key_that_may_not_read_is_a_wrong_one(intilery: Service) -> None:
    refused(ask(intilery, ANN, intilery.key(scopes=("write",))), 401, "authentication_error")


# --- what is asked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/track",
        "/track/",
        "/track/acme/marketing/SHOP/v2/profiles",
        "/track/acme/marketing/SHOP/v1/profile",
        "/track/acme/marketing/SHOP/v1/profilesx",
        "/track/acme/marketing/v1/profiles",
        "/track/v1/profiles/userId:123-rty/events",
        "/track//marketing/SHOP/v1/profiles",
        f"{SHOP}/",
        f"{SHOP}/id:ann",
        f"{SHOP}/id:ann/",
        f"{SHOP}/id:ann/Traits",
        f"{SHOP}/id:ann/trait%73",
        f"{SHOP}/id:ann/external_ids",
        f"{SHOP}/id:ann/traits/",
        f"{SHOP}/id:a/b/traits",
    ],
)
def test_what_is_no_route_is_not_found(intilery: Service, token: str, target: str) -> None:
    answer = ask(intilery, target, token)
    if target == "/track":  # which is no path of theirs
        assert (answer.status, answer.code()) == (404, "no_such_route")
    else:
        refused(answer, 404, "not_found")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("target", [SHOP, ANN, "/track/nothing"])
def test_other_methods_are_refused_before_anything_else(intilery: Service, method: str, target: str) -> None:
    answer = ask(intilery, target, None, ("Content-Length", "0"), method=method)
    assert "GET, HEAD" in refused(answer, 405, "invalid_request_error")
    assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("what", ["traits", "meta", "metadata", "audiences", "events"])
def test_an_id_that_is_none_is_told_and_one_that_finds_nobody_too(intilery: Service, token: str, what: str) -> None:
    for profile_id in ["", ":", "ann", "id:", ":ann", "joe.bloggs%40example.com"]:
        answer = ask(intilery, f"{SHOP}/{profile_id}/{what}", token)
        message = refused(answer, 400, "validation_error")
        assert message == "ProfileID must be in format of id_type:id"
    for profile_id in ["ID:ann", "phone:1", "external:x-ann", " id:ann", "é:ann"]:
        message = refused(ask(intilery, f"{SHOP}/{quote(profile_id)}/{what}", token), 400, "validation_error")
        assert message.endswith("id_type. It is one of: id, userId, email.")
    for profile_id in ["id:%", "id:%4", "id:%zz", "id:%ff", "%:ann"]:
        assert "ProfileID" in refused(ask(intilery, f"{SHOP}/{profile_id}/{what}", token), 400, "validation_error")
    for id_type, value in [("id", "nobody"), ("userId", "x"), ("email", "no@body"), ("id", "\0"), ("id", "n" * 600)]:
        answer = ask(intilery, profile(id_type, value, what), token)
        assert refused(answer, 404, "not_found") == "Profile was not found."


MOMENT = "is neither a time of ISO 8601 nor a date"
BAD_QUERIES = [
    ("size=0", "size is a whole number from 1 to 100"),
    ("size=101", "size is"),
    ("size=-1", "size is"),
    ("size=1.5", "size is"),
    ("size=ten", "size is"),
    ("size=%D9%A1", "size is"),
    ("size=" + "9" * 4000, "size is"),
    ("size=", "size is empty"),
    ("size", "size is empty"),
    ("size=5&size=5", "size is given more than once"),
    ("from=-1", "from is a whole number from 0 to 10000"),
    ("from=1e3", "from is"),
    ("from=10001", "from is"),
    ("from=9901", "from and size together are at most 10000"),
    ("from=10000&size=1", "from and size together"),
    ("from=1&from=2", "from is given more than once"),
    ("sort=up", "sort is asc or desc"),
    ("sort=ASC", "sort is"),
    ("sort=asc&sort=desc", "sort is given more than once"),
    ("start=yesterday", f"start {MOMENT}"),
    ("start=2025-02-30", f"start {MOMENT}"),
    ("start=2025-13-01", f"start {MOMENT}"),
    ("start=0000-01-01", f"start {MOMENT}"),
    ("start=20250101", f"start {MOMENT}"),
    ("start=2025-01-01T25:00", f"start {MOMENT}"),
    ("start=2025-01-01T10", f"start {MOMENT}"),
    ("start=2025-01-01T10:00.5", f"start {MOMENT}"),
    ("start=2025-01-01T10:00:60Z", f"start {MOMENT}"),
    ("start=2025-01-01T10:00Z%2B01:00", f"start {MOMENT}"),
    ("end=2025-01-01T10:00%2B24:00", f"end {MOMENT}"),
    ("end=99999-01-01", f"end {MOMENT}"),
    ("end=-2025-01-01", f"end {MOMENT}"),
    ("end=1749556800", f"end {MOMENT}"),
    ("end=%D9%A2025-01-01", f"end {MOMENT}"),
    ("start=2025-01-02&end=2025-01-01", "start is after end"),
    ("start=9999-12-31&end=0001-01-01", "start is after end"),
    ("start=2025-01-01T00:00:00.000001Z&end=2025-01-01T00:00Z", "start is after end"),
    ("start=2025-01-01&start=2025-01-01", "start is given more than once"),
    ("include=", "include is empty"),
    ("include=a,,b", "include has an empty item"),
    ("exclude=,", "exclude has an empty item"),
    ("exclude=%ff", "exclude is not UTF-8"),
    ("include=%4", "include has a percent sign"),
    ("include=" + ",".join(f"n{i}" for i in range(33)), "include has more than 32 actions"),
    ("&".join(f"exclude=n{i}" for i in range(33)), "exclude has more than 32 actions"),
]


@pytest.mark.parametrize(("query", "message"), BAD_QUERIES, ids=[query[:40] for query, _ in BAD_QUERIES])
def test_a_parameter_that_cannot_be_is_named(intilery: Service, token: str, query: str, message: str) -> None:
    for target in (ANN, profile("email", "family@example.com", "events"), SHOP):
        assert refused(ask(intilery, f"{target}?{query}", token), 400, "validation_error").startswith(message)


@pytest.mark.parametrize("what", ["traits", "meta", "audiences", "events"])
def test_a_parameter_that_cannot_be_is_told_of_whichever_id(intilery: Service, token: str, what: str) -> None:
    for id_type in ("id", "email"):
        answer = ask(intilery, f"{profile(id_type, 'nobody', what)}?size=0", token)
        assert refused(answer, 400, "validation_error").startswith("size is")


def test_names_may_be_long_and_a_url_may_not(intilery: Service, token: str) -> None:
    assert found(ask(intilery, f"{ANN}?include={'n' * 8_000}", token))["data"] == []
    for target in (f"{ANN}?include={'n' * 8_192}", f"{ANN}?{'&' * 9_000}", profile("id", "n" * 8_192, "traits")):
        assert "8192" in refused(ask(intilery, target, token), 414, "invalid_request_error")


def test_headers_and_bodies_that_are_too_large_are_refused_in_their_shape(intilery: Service, token: str) -> None:
    refused(ask(intilery, ANN, token, ("x-more", "h" * 33_000)), 431, "invalid_request_error")
    refused(ask(intilery, ANN, token, ("Content-Length", "1048577")), 413, "invalid_request_error")


def test_an_answer_that_is_too_large_says_what_to_do(make_service: MakeService) -> None:
    service = make_service({"shop": DECLARED}, limits=f"{UNLIMITED}\nresponse_bytes_max = 9500")
    service.run_sql(PROFILES + EVENTS)
    service.load()
    token = service.key()
    service.start()
    family = profile("email", "family@example.com", "events")
    for target in (family, profile("id", "bob", "events"), profile("email", "crowd@example.com", "traits")):
        assert "size" in refused(ask(service, target, token), 413, "invalid_request_error")
        assert found(ask(service, f"{target}?size=1", token))["data"]
    assert len(found(ask(service, f"{family}?size=20", token))["data"]) == 20
    for what in ("traits", "audiences", "meta"):
        assert found(ask(service, profile("id", "ann", what), token))


def test_more_profiles_than_can_be_merged_are_refused(intilery: Service, token: str) -> None:
    message = refused(ask(intilery, profile("email", "crowd@example.com", "events"), token), 400, "validation_error")
    assert message.startswith("More than 100 profiles")


# --- scroll ids ----------------------------------------------------------------------------------------------------


def test_a_scroll_id_is_good_for_the_request_that_had_it_and_for_no_other(
    intilery: Service, token: str, bank_token: str
) -> None:
    query = "include=page,order&start=2025-01-01&sort=desc"
    scroll = found(ask(intilery, f"{ANN}?{query}&size=1", token))["scrollId"]
    for same in (query, "sort=desc&start=2025-01-01T00:00Z&include=order&include=page&size=7", query + "&from=3"):
        data = found(ask(intilery, f"{ANN}?{same}&scrollId={scroll}", token))["data"]
        assert [event["eventId"] for event in data] == ["e1", "e2"]
    for other in (
        f"{ANN}?scrollId={scroll}",
        f"{ANN}?{query.replace('desc', 'asc')}&scrollId={scroll}",
        f"{ANN}?{query.replace('page,', '')}&scrollId={scroll}",
        f"{ANN}?{query.replace('include', 'exclude')}&scrollId={scroll}",
        f"{ANN}?{query.replace('2025-01-01', '2025-01-02')}&scrollId={scroll}",
        f"{ANN}?{query}&end=2026-01-01&scrollId={scroll}",
        profile("id", "bob", "events") + f"?{query}&scrollId={scroll}",
        profile("userId", "x-ann", "events") + f"?{query}&scrollId={scroll}",
        f"{SHOP}?scrollId={scroll}",
    ):
        refused(ask(intilery, other, token), 400, "validation_error")
    listed = found(ask(intilery, f"{BANK}?size=1", bank_token))["scrollId"]
    assert found(ask(intilery, f"{BANK}?scrollId={listed}", bank_token))["data"]
    for target, key in ((SHOP, token), (f"{ANN}", token), (profile("id", "7", "events", BANK), bank_token)):
        refused(ask(intilery, f"{target}?scrollId={listed}", key), 400, "validation_error")


def test_a_scroll_id_that_was_altered_or_is_given_twice_is_refused(intilery: Service, token: str) -> None:
    scroll = found(ask(intilery, f"{SHOP}?size=1", token))["scrollId"]
    altered = [
        scroll[:-1],
        scroll + "A",
        scroll[1:],
        scroll[::-1],
        "",
        "A",
        "=",
        "%00",
        "é",
        "A" * 4_097,
        "A" * 8_000,
        scroll.swapcase(),
        *(scroll[:at] + ("B" if scroll[at] == "A" else "A") + scroll[at + 1 :] for at in range(len(scroll) - 1)),
    ]
    for text in altered:
        message = refused(ask(intilery, f"{SHOP}?scrollId={quote(text)}", token), 400, "validation_error")
        assert message.startswith("scrollId is")
    for query in ("scrollId={0}&scrollId={0}", "scrollId={0}&scrollid={0}", "scrollid={0}&scrollid={0}"):
        answer = ask(intilery, f"{SHOP}?{query.format(scroll)}", token)
        assert refused(answer, 400, "validation_error") == "scrollId is given more than once."
    assert found(ask(intilery, f"{SHOP}?scrollid={scroll}", token))["data"]


def test_no_id_stands_in_a_scroll_id(intilery: Service, token: str) -> None:
    scroll = found(ask(intilery, f"{SHOP}?size=1", token))["scrollId"]
    assert b"a/b" not in base64.urlsafe_b64decode(scroll + "===")


# --- limits --------------------------------------------------------------------------------------------------------


def test_keys_without_limits_of_their_own_have_those_of_the_dialect_there_alone(make_service: MakeService) -> None:
    service = make(make_service(SPACES))
    key, other, own = service.mint("bank"), service.mint("bank"), service.mint("bank", rate=1, burst_rate=5)
    service.start()
    target = profile("id", "7", "traits", BANK)
    assert [ask(service, target, key).status for _ in range(3)] == [200] * 3
    answer = ask(service, target, key)
    message = refused(answer, 429, "rate_limit_error")
    assert re.fullmatch(r"[1-9][0-9]*", answer.headers["retry-after"])
    assert answer.headers["retry-after"] in message
    assert "ratelimit" in answer.headers
    # Natively it may go on, and so may others here; what is refused for its key takes nothing.
    assert service.get("/v1/profiles/id/7", key).status == 200
    assert ask(service, target, other).status == 200
    assert [ask(service, target, own).status for _ in range(6)] == [200] * 5 + [429]


def test_before_there_is_a_snapshot_callers_are_told_to_come_again(make_service: MakeService) -> None:
    service = make_service({"shop": DECLARED})
    token = service.mint()
    service.start(ready=503)
    answer = ask(service, ANN, token)
    refused(answer, 503, "internal_server_error")
    assert answer.headers["retry-after"] == "1"


# --- anything ------------------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.sampled_from(["1", "100", "0", "asc", "page", "2025-01-01", "2025-06-10T12:00:00Z", "9999-12-31", "page,order"]),
    st.text(max_size=20).map(lambda text: quote(text, safe="")),
    st.binary(max_size=20).map(quote_from_bytes),
    st.text(alphabet="%0aA:,.-+_~&=", max_size=12),
)
NAMES = st.sampled_from(["include", "exclude", "start", "end", "sort", "from", "size", "scrollId", "scrollid", "x"])
QUERIES = st.lists(st.tuples(NAMES, VALUES).map("=".join), max_size=6).map("&".join)
IDS = st.one_of(st.sampled_from(["id:ann", "email:family@example.com", "userId:x-ann", "id:busy"]), VALUES)
WHATS = st.sampled_from(["traits", "meta", "metadata", "audiences", "events", "other"])
TARGETS = st.one_of(
    st.tuples(IDS, WHATS).map(lambda pair: f"{SHOP}/{pair[0]}/{pair[1]}"),
    st.just(SHOP),
    VALUES.map(lambda text: f"/track/{text}"),
)
KNOWN = {200: None, 400: "validation_error", 401: "authentication_error", 404: "not_found"}


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(target=TARGETS, query=QUERIES)
@example(target=ANN, query="start=0001-01-01T00:00%2B23:59&end=0001-01-01T00:00%2B23:59&sort=asc")
@example(target=ANN, query="end=9999-12-31T23:59:59-23:59&from=9999&size=1")
def test_whatever_is_asked_for_there_is_a_documented_answer(
    intilery: Service, token: str, target: str, query: str
) -> None:
    answer = exchange(intilery.port, asked(f"{target}?{query}", token))
    assert answer.status in KNOWN
    if answer.status == 200:
        found(answer)
    else:
        refused(answer, answer.status, str(KNOWN[answer.status]))
