"""The native API as callers see it: whole answers, byte for byte, from a real service over real sockets."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from urllib.parse import quote

import pytest
from conftest import ODD_IDS, MakeService
from service import Answer, Connection, Service, request, until

JANE = "/v1/profiles/id/12345"
# The representation that the vendor's document shows, without its white space.
JANE_WHOLE = (
    b'{"profile_id":"12345","email":"jane@example.com","first_name":"Jane","lifetime_value":1492.18,'
    b'"_audiences":{"high_spenders":true,"churn_risk":false},"_updated_at":"2025-06-10T12:34:56Z"}'
)
UPDATED = b'"_updated_at":"2025-06-10T12:34:56Z"}'

# The document's requests, as it prints them, and what it shows. It hides the address behind "[email protected]".
DOCUMENT_BASE = "https://personalization.eu-west-1.dinmo.com"
DOCUMENT_CURL = 'curl -H "Authorization: Bearer sk_live_..." \\\n     "{}{}"'
DOCUMENT_ANSWER = """
{
  "profile_id": "12345",
  "email": "[email protected]",
  "first_name": "Jane",
  "lifetime_value": 1492.18,
  "_audiences": {
    "high_spenders": true,
    "churn_risk": false
  },
  "_updated_at": "2025-06-10T12:34:56Z"
}
""".replace("[email protected]", "jane@example.com")


def names(answer: Answer) -> list[str]:
    """The names of an answer's fields in their order, those of audiences as audiences.NAME."""
    assert answer.status == 200, answer
    found = answer.json()
    inside = [f"audiences.{name}" for name in found.pop("_audiences", {})]
    assert list(found)[-1] == "_updated_at"
    return [*list(found)[:-1], *inside]


def ask_twice(service: Service, target: str, key: str) -> tuple[Answer, Answer]:
    """HEAD and GET on one connection, which only works if the first has no body."""
    with service.connect() as connection:
        told = [connection.ask(request(target, key, ("x-request-id", "same"), method=m)) for m in ("HEAD", "GET")]
        assert connection.ask(request("/livez")).status == 200
    return told[0], told[1]


# --- the document --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "sections"),
    [
        ("/v1/profiles/id/12345", None),
        ("/v1/profiles/identifier/email/jane@example.com", None),
        ("/v1/profiles/id/12345?fields=attributes,audiences", ["first_name", "lifetime_value", "_audiences"]),
    ],
)
def test_the_documents_curl_lines_answer_as_it_shows(
    service: Service, key: str, path: str, sections: list[str] | None
) -> None:
    line = DOCUMENT_CURL.format(DOCUMENT_BASE, path)
    line = line.replace(DOCUMENT_BASE, f"http://127.0.0.1:{service.port}").replace("sk_live_...", key)

    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True, timeout=20)

    shown = json.loads(DOCUMENT_ANSWER)
    if sections is not None:
        shown = {name: shown[name] for name in [*sections, "_updated_at"]}
    # Dumped, because only so does the order of the keys count.
    assert json.dumps(json.loads(done.stdout)) == json.dumps(shown)


# --- lookups -------------------------------------------------------------------------------------------------------


def test_a_profile_is_compact_json_with_identifiers_attributes_metrics_audiences_and_update(
    service: Service, key: str
) -> None:
    answer = service.get(JANE, key)

    assert (answer.status, answer.body) == (200, JANE_WHOLE)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(JANE_WHOLE))
    assert answer.headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize(
    "target",
    [
        "/v1/profiles/identifier/profile_id/12345",
        "/v1/profiles/identifier/email/jane@example.com",
        "/v1/profiles/identifier/email/Jane@EXAMPLE.com",
        "/v1/profiles/identifier/email/%4aANE%40example%2Ecom",
        "/v1/profiles/identifier/%65mail/jane@example.com",
        "/v1/profiles/id/%31234%35",
    ],
)
def test_every_way_to_a_profile_gives_the_same_answer(service: Service, key: str, target: str) -> None:
    told = service.get(target, key)

    assert (told.status, told.body) == (200, JANE_WHOLE)
    assert told.headers["etag"] == service.get(JANE, key).headers["etag"]


@pytest.mark.parametrize("value", ["Élodie@Example.COM", "élodie@example.com", "ÉLODIE@EXAMPLE.COM"])
def test_lowercase_normalization_knows_more_than_ascii(service: Service, key: str, value: str) -> None:
    answer = service.get(f"/v1/profiles/identifier/email/{quote(value)}", key)

    assert answer.json()["profile_id"] == "élodie"
    assert answer.json()["email"] == "Élodie@Example.COM", "the value itself stays as the warehouse has it"


def test_namespaces_without_normalization_compare_exactly(service: Service, key: str) -> None:
    assert service.get("/v1/profiles/identifier/device_id/tablet", key).status == 200
    assert service.get("/v1/profiles/identifier/device_id/Tablet", key).code() == "profile_not_found"
    assert service.get("/v1/profiles/id/TYPES", key).code() == "profile_not_found"


def test_of_several_profiles_with_an_identifier_the_newest_is_found(service: Service, key: str) -> None:
    assert service.get("/v1/profiles/identifier/device_id/tablet", key).json()["profile_id"] == "twin-new"


@pytest.mark.parametrize("escape", ["upper", "lower", "all"])
@pytest.mark.parametrize("odd", ODD_IDS)
def test_odd_ids_are_found_by_their_escapes(service: Service, key: str, odd: str, escape: str) -> None:
    escaped = quote(odd, safe="") if escape != "all" else "".join(f"%{byte:02X}" for byte in odd.encode())
    escaped = escaped.lower() if escape == "lower" and odd.lower() == odd else escaped

    answer = service.get(f"/v1/profiles/id/{escaped}", key)

    assert answer.status == 200, answer
    assert answer.json()["profile_id"] == odd


def test_a_plus_in_a_path_is_a_plus(service: Service, key: str) -> None:
    assert service.get("/v1/profiles/id/a+b", key).json()["profile_id"] == "a+b"


def test_raw_utf8_in_a_path_is_served_like_its_escapes(service: Service, key: str) -> None:
    assert service.get("/v1/profiles/id/日本語", key).json()["profile_id"] == "日本語"


def test_values_keep_their_digits_and_their_types(service: Service, key: str) -> None:
    expected = (
        '{"profile_id":"types","visits":9223372036854775807,"balance":1234567890123456789012345678.0123456789,'
        '"ratio":null,"preferences":{"b":1,"a":[1.50,null],"n":12345678901234567890},"birthday":"1970-02-28",'
        '"seen_at":"2025-01-02T03:04:05.678Z","tags":["ä",null,"\\""],"lifetime_value":-0.01,"_audiences":{},'
    )
    assert service.get("/v1/profiles/id/types", key).body == expected.encode() + UPDATED


# --- fields --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("fields=identifiers", ["profile_id", "email"]),
        ("fields=attributes", ["first_name", "lifetime_value"]),
        ("fields=metrics", ["lifetime_value"]),
        ("fields=audiences", ["audiences.high_spenders", "audiences.churn_risk"]),
        ("fields=audiences,identifiers", ["profile_id", "email", "audiences.high_spenders", "audiences.churn_risk"]),
        ("fields=attributes.first_name", ["first_name"]),
        ("fields=attributes.lifetime_value", ["lifetime_value"]),
        ("fields=metrics.lifetime_value", ["lifetime_value"]),
        ("fields=identifiers.email", ["email"]),
        ("fields=audiences.churn_risk", ["audiences.churn_risk"]),
        ("fields=attributes.visits", []),
        ("fields=audiences.churn_risk,identifiers", ["profile_id", "email", "audiences.churn_risk"]),
        ("fields=identifiers.email&fields=metrics", ["email", "lifetime_value"]),
        ("fields=metrics,metrics&fields=metrics", ["lifetime_value"]),
        ("other=1&fields=identifiers.email&fields_=x", ["email"]),
        ("fields=identifiers%2Eemail%2Cmetrics", ["email", "lifetime_value"]),
        ("Fields=metrics", None),
        ("unknown=1", None),
        ("", None),
        ("&&=&", None),
    ],
)  # fmt: skip
def test_fields_choose_what_an_answer_has(service: Service, key: str, query: str, expected: list[str] | None) -> None:
    whole = ["profile_id", "email", "first_name", "lifetime_value", "audiences.high_spenders", "audiences.churn_risk"]
    assert names(service.get(f"{JANE}?{query}", key)) == (whole if expected is None else expected)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("fields=identifiers.email", b'{"email":"jane@example.com",' + UPDATED),
        ("fields=attributes.visits", b"{" + UPDATED),
        ("fields=audiences.churn_risk", b'{"_audiences":{"churn_risk":false},' + UPDATED),
        ("fields=identifiers,attributes,audiences", JANE_WHOLE),
    ],
)
def test_a_part_of_a_profile_is_cut_exactly(service: Service, key: str, query: str, expected: bytes) -> None:
    assert service.get(f"{JANE}?{query}", key).body == expected


def test_an_answer_too_large_can_be_narrowed_by_fields(service: Service, key: str) -> None:
    assert service.get("/v1/profiles/id/large", key).status == 413
    assert names(service.get("/v1/profiles/id/large?fields=attributes.first_name", key)) == ["first_name"]


# --- headers -------------------------------------------------------------------------------------------------------


def test_etags_are_strong_and_tell_representations_apart(service: Service, key: str) -> None:
    targets = [JANE, f"{JANE}?fields=metrics", f"{JANE}?fields=audiences", f"{JANE}?fields=audiences.churn_risk"]
    etags = [service.get(target, key).headers["etag"] for target in [*targets, "/v1/profiles/id/types"]]

    assert len(set(etags)) == len(etags)
    assert all(etag.startswith('"') and etag.endswith('"') and etag.count('"') == 2 for etag in etags)


def test_every_worker_gives_the_same_etag(service: Service, key: str) -> None:
    found: set[tuple[str, bytes]] = set()
    for connection in service.connect_to_each():
        with connection:
            answer = connection.ask(request(f"{JANE}?fields=metrics", key))
            found.add((answer.headers["etag"], answer.body))

    assert len(found) == 1


@pytest.mark.parametrize(
    ("pattern", "status"),
    [
        ("{}", 304),
        ("W/{}", 304),
        ('"other", {}', 304),
        ('W/"other",W/{},"third"', 304),
        ("*", 304),
        ('"other"', 200),
        ("", 200),
        ('W/"*"', 200),
    ],
)
def test_if_none_match_saves_the_body(service: Service, key: str, pattern: str, status: int) -> None:
    target = f"{JANE}?fields=metrics"
    etag = service.get(target, key).headers["etag"]
    with service.connect() as connection:
        answer = connection.ask(request(target, key, ("If-None-Match", pattern.format(etag))))
        assert connection.ask(request(JANE, key)).body == JANE_WHOLE, "a 304 has no body"

    assert answer.status == status
    assert (answer.headers["etag"], answer.headers["cache-control"]) == (etag, "private, no-cache")
    if status == 304:
        assert not answer.headers.keys() & {"content-type", "content-length"}
        head = service.get(target, key, ("If-None-Match", pattern.format(etag)), method="HEAD")
        assert (head.status, head.headers.keys()) == (304, answer.headers.keys())


def test_an_etag_of_another_representation_does_not_match(service: Service, key: str) -> None:
    etag = service.get(f"{JANE}?fields=metrics", key).headers["etag"]
    assert service.get(JANE, key, ("If-None-Match", etag)).status == 200


@pytest.mark.parametrize("target", [JANE, f"{JANE}?fields=metrics", "/v1/profiles/id/nobody", "/livez", "/nowhere"])
def test_head_has_the_headers_of_get_and_no_body(service: Service, key: str, target: str) -> None:
    head, got = ask_twice(service, target, key)

    for answer in (head, got):
        del answer.headers["date"]
    assert (head.status, head.headers) == (got.status, got.headers)
    assert head.headers["content-length"] == str(len(got.body))


@pytest.mark.parametrize("target", [JANE, "/v1/profiles/id/nobody", "/nowhere"])
@pytest.mark.parametrize("sane", ["a", "4bf92f3577b34da6a3ce929d0e0e4736", "!#$%&'()*+,-./:;<=>?@[]^_`{|}~", "x" * 128])
def test_a_sane_request_id_comes_back(service: Service, key: str, sane: str, target: str) -> None:
    assert service.get(target, key, ("X-Request-Id", sane)).headers["x-request-id"] == sane


@pytest.mark.parametrize("odd", ["", "a b", 'a"b', "a\\b", "é", "\t", "x" * 129])
def test_an_odd_request_id_is_replaced(service: Service, key: str, odd: str) -> None:
    given = service.get(JANE, key, ("X-Request-Id", odd)).headers["x-request-id"]

    assert given != odd
    assert len(bytes.fromhex(given)) == 8


def test_request_ids_of_ours_do_not_come_twice(service: Service, key: str) -> None:
    seen: Counter[str] = Counter()
    for connection in service.connect_to_each():
        with connection:
            seen.update(connection.ask(request(JANE, key)).headers["x-request-id"] for _ in range(50))

    assert len(seen) == 100


@pytest.mark.parametrize(
    "accept", ["*/*", "application/*", "text/html, application/json;q=0.1", "Application/JSON", ""]
)
def test_accept_headers_that_leave_json_are_served(service: Service, key: str, accept: str) -> None:
    assert service.get(JANE, key, ("Accept", accept)).body == JANE_WHOLE


# --- health --------------------------------------------------------------------------------------------------------


def test_health_routes_need_no_key(service: Service) -> None:
    for target in ("/livez", "/readyz"):
        answer = service.get(target)
        assert (answer.status, answer.json()) == (200, {"status": "ok"})


def test_a_service_without_a_snapshot_is_alive_but_not_ready_until_the_first_is_published(
    make_service: MakeService,
) -> None:
    service = make_service()
    key = service.key()
    service.start(ready=503)

    assert service.get("/livez").status == 200
    for target in ("/readyz", JANE):
        answer = service.get(target, key)
        assert (answer.status, answer.code(), answer.headers["retry-after"]) == (503, "not_ready", "1")

    service.run_sql(
        "CREATE TABLE profiles AS SELECT '12345' AS profile_id, 'jane@example.com' AS email, NULL::VARCHAR AS "
        "device_id, 'Jane' AS first_name, 1492.18 AS lifetime_value, true AS high_spenders, false AS churn_risk, "
        "TIMESTAMP '2025-06-10 12:34:56' AS updated_at"
    )
    service.load()
    until(lambda: service.get("/readyz").status == 200, "the first snapshot is served")
    first = service.get(JANE, key)
    assert first.body == JANE_WHOLE

    # The same answers after a restart: an ETag is of the content, not of the process.
    service.stop()
    service.start()
    again = service.get(JANE, key, ("If-None-Match", first.headers["etag"]))
    assert (again.status, again.headers["etag"]) == (304, first.headers["etag"])


def test_a_connection_serves_request_after_request(service: Service, key: str) -> None:
    with Connection(service.port) as connection:
        answers = [connection.ask(request(JANE, key)) for _ in range(50)]
    assert {answer.body for answer in answers} == {JANE_WHOLE}
