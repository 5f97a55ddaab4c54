"""Answers as MessagePack: the same content as the JSON, for who asks for it, and with a tag of its own.

Integers that 64 bits hold stay integers, signed or not; all other numbers are 64-bit floats.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from conftest import ODD_IDS
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from service import Answer, Service, many, request
from test_http_bad_input import assert_problem

JANE = "/v1/profiles/id/12345"
MSGPACK = ("Accept", "application/msgpack")
VALID = ["application/json", "application/msgpack"]
IDS = ["12345", "types", "twin-new", "élodie", *ODD_IDS, "nobody"]
CHOICES = [None, "identifiers", "attributes", "metrics", "audiences", "identifiers.email", "attributes.preferences",
           "attributes.balance", "attributes.tags", "audiences.churn_risk"]  # fmt: skip


def number(text: str) -> int | float:
    return int(text) if -(2**63) <= int(text) < 2**64 else float(text)


def converted(answer: Answer) -> Any:
    """What the JSON of an answer becomes."""
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == "application/json"
    return json.loads(answer.body, parse_int=number)


def decoded(answer: Answer) -> Any:
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == "application/msgpack"
    assert answer.headers["content-length"] == str(len(answer.body))
    return msgspec.msgpack.decode(answer.body)


def assert_same(packed: Answer, plain: Answer) -> None:
    # As text, because only so do 1 and 1.0 differ, and does the order of the keys count.
    assert repr(decoded(packed)) == repr(converted(plain))
    assert packed.headers["cache-control"] == plain.headers["cache-control"]


# --- content -------------------------------------------------------------------------------------------------------


def test_jane_is_packed_in_the_smallest_forms(service: Service, key: str) -> None:
    fields = b"\xaaprofile_id\xa512345\xa5email\xb0jane@example.com\xaafirst_name\xa4Jane\xaelifetime_value"
    audiences = b"\xaa_audiences\x82\xadhigh_spenders\xc3\xaachurn_risk\xc2"
    value = b"\xcb\x40\x97\x50\xb8\x51\xeb\x85\x1f"
    updated = b"\xab_updated_at\xb42025-06-10T12:34:56Z"
    assert service.get(JANE, key, MSGPACK).body == b"\x86" + fields + value + audiences + updated


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("primary", ["12345", "types", "twin-new", "élodie"])
def test_a_packed_profile_has_the_content_of_its_json(
    service: Service, key: str, primary: str, choice: str | None
) -> None:
    target = f"/v1/profiles/id/{primary}" + ("" if choice is None else f"?fields={choice}")
    assert_same(service.get(target, key, MSGPACK), service.get(target, key))


def test_numbers_become_what_64_bits_hold(service: Service, key: str) -> None:
    found = decoded(service.get("/v1/profiles/id/types", key, MSGPACK))
    assert found["visits"] == 9223372036854775807
    assert repr(found["balance"]) == "1.2345678901234569e+27"
    assert found["ratio"] is None
    assert repr(found["preferences"]) == "{'b': 1, 'a': [1.5, None], 'n': 12345678901234567890}"
    assert found["tags"] == ["ä", None, '"']


@profile(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.sampled_from(IDS), max_size=40), fields=st.none() | st.lists(st.sampled_from(CHOICES[1:])))
def test_a_packed_batch_has_the_content_of_its_json(
    service: Service, key: str, ids: list[str], fields: list[str] | None
) -> None:
    asked = {"profiles": [{"id": primary} for primary in ids], "fields": fields or None}
    packed, plain = service.ask(many(asked, key, MSGPACK)), service.ask(many(asked, key))
    assert_same(packed, plain)
    assert len(decoded(packed)["profiles"]) == len(ids)


def test_an_answer_too_large_as_json_is_too_large(service: Service, key: str) -> None:
    answer = service.get("/v1/profiles/id/large", key, MSGPACK)
    size = service.get("/v1/profiles/id/large", key).json()["bytes"]
    assert_problem(answer, 413, "answer_too_large", bytes=size, bytes_max=1_048_576)


# --- tags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [JANE, f"{JANE}?fields=metrics", "/v1/profiles/identifier/email/jane@example.com"])
def test_each_form_has_a_strong_tag_of_its_own(service: Service, key: str, target: str) -> None:
    packed, plain = (service.get(target, key, *headers).headers["etag"] for headers in ([MSGPACK], []))

    assert packed != plain
    assert (packed[0], packed[-1], packed.count('"')) == ('"', '"', 2)
    for tag, headers, status in (
        (packed, [MSGPACK], 304),
        (plain, [MSGPACK], 200),
        (packed, [], 200),
        (plain, [], 304),
    ):
        answer = service.get(target, key, *headers, ("If-None-Match", tag))
        assert answer.status == status
        assert answer.headers["etag"] == (packed if headers else plain)
        assert (answer.body == b"") == (status == 304)


def test_the_tags_of_all_choices_and_forms_differ(service: Service, key: str) -> None:
    targets = [JANE if choice is None else f"{JANE}?fields={choice}" for choice in CHOICES[:5]]
    tags = [service.get(target, key, *headers).headers["etag"] for target in targets for headers in ([MSGPACK], [])]
    assert len(set(tags)) == len(tags)


def test_every_worker_packs_alike(service: Service, key: str) -> None:
    found = set()
    for connection in service.connect_to_each():
        with connection:
            answer = connection.ask(request(JANE, key, MSGPACK))
            found.add((answer.headers["etag"], answer.body))
    assert len(found) == 1


@pytest.mark.parametrize("target", [JANE, f"{JANE}?fields=audiences"])
def test_head_has_the_length_of_the_packed_answer(service: Service, key: str, target: str) -> None:
    with service.connect() as connection:
        head = connection.ask(request(target, key, MSGPACK, ("X-Request-Id", "same"), method="HEAD"))
        got = connection.ask(request(target, key, MSGPACK, ("X-Request-Id", "same")))
    del head.headers["date"], got.headers["date"]
    assert (head.status, head.headers) == (200, got.headers)
    assert head.headers["content-length"] == str(len(got.body)) != str(len(service.get(target, key).body))


# --- Accept --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("application/msgpack", "msgpack"),
        ("APPLICATION/MsgPack", "msgpack"),
        ("  application/msgpack  ", "msgpack"),
        ("application/msgpack;q=0.001", "msgpack"),
        ("application/msgpack; charset=binary", "msgpack"),
        ("application/msgpack;q=1.000", "msgpack"),
        ("application/msgpack ; q=0.5 , text/html", "msgpack"),
        ("application/msgpack, application/json;q=0.9", "msgpack"),
        ("application/json;q=0.2, application/msgpack;q=0.3", "msgpack"),
        ("application/json;q=0, application/*", "msgpack"),
        ("application/json;q=0, */*;q=0.1", "msgpack"),
        ("*/*;q=0.1, application/msgpack", "msgpack"),
        ("application/*;q=0.1, application/msgpack;q=0.2", "msgpack"),
        ("garbage, ;;;, application/msgpack", "msgpack"),
        ("application/json;q=nan, application/msgpack", "msgpack"),
        ("application/json;q=-1, application/msgpack", "msgpack"),
        ("application/json", "json"),
        ("application/json;version=1", "json"),
        ("*/*", "json"),
        ("application/*", "json"),
        ("*/*;q=0.001", "json"),
        ("application/json, application/msgpack", "json"),
        ("application/msgpack, application/json", "json"),
        ("application/msgpack;q=0.5, application/json;q=0.5", "json"),
        ("application/msgpack;q=0.5, application/json;q=0.501", "json"),
        ("application/msgpack;q=0.5, */*", "json"),
        ("application/msgpack;q=0, */*", "json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "json"),
        ("", "json"),
        ("   ", "json"),
        ("application/json;q=0", None),
        ("application/msgpack;q=0", None),
        ("application/json;q=0, application/msgpack;q=0.0", None),
        ("*/*;q=0", None),
        ("application/json;q=0, application/msgpack;q=0, */*", None),
        ("application/x-msgpack", None),
        ("application/msgpack+json", None),
        ("application", None),
        ("*", None),
        ("text/*", None),
        ("image/png, text/html", None),
        ("application/json;q=high", None),
        ("application/json;q=inf", None),
        (",", None),
        (";q=1", None),
        ("\xff\xfe", None),
        ("x" * 10_000, None),
        ("text/html, " * 2_000, None),
    ],
)
def test_accept_chooses_the_form(service: Service, key: str, accept: str, form: str | None) -> None:
    given = ("Accept", accept)
    for answer in (service.get(JANE, key, given), service.ask(many({"profiles": []}, key, given))):
        if form is None:
            assert_problem(answer, 406, "not_acceptable", valid=VALID)
        else:
            assert answer.status == 200
            assert answer.headers["content-type"] == f"application/{form}"


def test_accept_on_several_lines_is_answered_with_what_we_have(service: Service, key: str) -> None:
    for accepts in ([("Accept", "text/html"), MSGPACK], [MSGPACK, MSGPACK], [MSGPACK, MSGPACK, MSGPACK]):
        answer = service.get(JANE, key, *accepts)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")


def test_a_worker_remembers_no_more_than_it_should(service: Service, key: str) -> None:
    with service.connect() as connection:
        for n in range(600):
            accept = ("Accept", f"text/n{n}, application/msgpack;q=0.{n + 1}")
            connection.send(request(JANE, key, accept))
        kinds = {connection.read().headers["content-type"] for _ in range(600)}
    assert kinds == {"application/msgpack"}


# --- errors --------------------------------------------------------------------------------------------------------


def test_errors_stay_problems_in_json(service: Service, key: str) -> None:
    writer = service.key(scopes=("write",))
    limited = service.key(rate=0.01, burst_rate=1, burst_seconds=0)
    assert service.get(JANE, limited, MSGPACK).status == 200

    assert_problem(service.get("/v1/profiles/id/nobody", key, MSGPACK), 404, "profile_not_found")
    assert_problem(service.get("/v1/profiles/id/%", key, MSGPACK), 400, "malformed_path")
    assert_problem(service.get(JANE, None, MSGPACK), 401, "unauthorized")
    assert_problem(service.get(JANE, writer, MSGPACK), 403, "forbidden")
    assert_problem(
        service.get(JANE, key, MSGPACK, method="PUT"), 405, "method_not_allowed", valid=["DELETE", "GET", "HEAD"]
    )
    denied = service.get(JANE, limited, MSGPACK)
    assert_problem(denied, 429, "rate_limited", retry_after=int(denied.headers["retry-after"]))
    assert_problem(service.ask(many(b"{", key, MSGPACK)), 400, "malformed_body")
