"""mParticle's Profile API, against the vendor's own samples and beyond them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import MakeService
from hypothesis import assume, given
from hypothesis import strategies as st
from service import Answer, Service, request
from test_http_live import META, NOW_US, Living
from workshop import Workshop

from edgeprofile import settings
from edgeprofile.api.dialect import OBJECT_BYTES_MAX
from edgeprofile.api.mparticle import _milliseconds
from edgeprofile.record import Field

SAMPLES = (Path(__file__).parents[2] / "shared" / "seeds" / "002_794be953d745345a.txt").read_text(encoding="utf-8")
FIELDS = ("device_identities", "user_identities", "user_attributes", "audience_memberships", "attribution")
ALL = "fields=" + ",".join(FIELDS)
PLACE = "/userprofile/v1/10/20/30"
RESOLVE = "/userprofile/v1/resolve/10/20/30"
MARKY = "9080350317581165000"
BOB = "/userprofile/v1/10/20/31/-1"

# What the vendor's sample shows, under the sample's own names.
SAMPLE = """
id = "mpid"
updated_at = "updated_at"
identifiers = ["customer_id", "email", "android_id", "unknown_1", "unknown_2", "gaid"]
audiences = ["Meret final CA test", "Never", "Decor Remarketing"]
metrics = ["churn_risk_score", "ltv"]
[workspaces.sample.mparticle]
org = "10"
account = "20"
workspace = "30"
mpid = "mpid"
user_identities = { customer_id = "customer_id", email = "email" }
device_identities = { android_id = "android_id", unknown = ["unknown_1", "unknown_2"], google_advertising_id = "gaid" }
immutable = ["customer_id"]
created = "created"
opted_out = "opted_out"
limit_ad_tracking = "limits"
"""
# The mpid is no primary id here, and values keep their types.
KINDS = """
id = "id"
updated_at = "updated_at"
identifiers = ["mpid", { column = "email", normalize = "lower" }, { column = "tablet", unique = false }, "number"]
audiences = ["vip", "risk"]
metrics = ["orders"]
[workspaces.kinds.mparticle]
org = "10"
account = "20"
workspace = "31"
mpid = "mpid"
user_identities = { customer_id = "id", email = "email", other = "number" }
device_identities = { android_id = "tablet" }
immutable = ["customer_id", "email", "other", "android_id"]
created = "created"
opted_out = "opted_out"
limit_ad_tracking = "limits"
attribution = "source"
values_as_text = false
"""
KINDS_TABLE = """
CREATE TABLE profiles (id VARCHAR, mpid BIGINT, email VARCHAR, tablet VARCHAR, number BIGINT, created TIMESTAMP,
    opted_out BOOLEAN, limits BOOLEAN, source JSON, name VARCHAR, tags VARCHAR[], height DOUBLE, since DATE, orders
    DECIMAL(5, 1), vip BOOLEAN, risk BOOLEAN, updated_at TIMESTAMP);
INSERT INTO profiles BY NAME SELECT 'ann' AS id, 9007199254740993 AS mpid, 'Ann@Example.com' AS email, 'T1' AS tablet,
    42 AS number, TIMESTAMP '2019-11-25 17:51:23.462999' AS created, true AS opted_out, false AS limits,
    '{"campaign": ["a", 1.50]}'::JSON AS source, 'Ann "A" Ä' AS name, ['x', NULL] AS tags, 'NaN'::DOUBLE AS height,
    DATE '2020-02-29' AS since, 2.0 AS orders, true AS vip, false AS risk,
    TIMESTAMP '2025-06-10 12:34:56.7899' AS updated_at;
INSERT INTO profiles BY NAME SELECT 'bob' AS id, -1 AS mpid, TIMESTAMP '1969-12-31 23:59:59.9995' AS created,
    'T1' AS tablet, true AS limits, TIMESTAMP '1969-12-31 23:59:59.9995' AS updated_at;
INSERT INTO profiles BY NAME SELECT 'none' AS id, 'none@example.com' AS email;
INSERT INTO profiles BY NAME SELECT 'least' AS id, -9223372036854775808 AS mpid;
INSERT INTO profiles BY NAME SELECT 'most' AS id, 9223372036854775807 AS mpid;
"""
# As many as a workspace may be: without this API, and of another company that has it.
PLAIN = 'id = "id"'
OTHER = """
id = "id"
[workspaces.other.mparticle]
org = "99"
account = "20"
workspace = "30"
mpid = "id"
audience = "https://other.example"
"""


def quoted(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"


def answers() -> list[Any]:
    """The JSON objects in the vendor's document that are answers with a profile or a token."""
    decode = json.JSONDecoder().raw_decode
    found = [decode(SAMPLES, start.start())[0] for start in re.finditer(r"^\{$", SAMPLES, re.MULTILINE)]
    return [each for each in found if "mpid" in each or "access_token" in each]


def sample_table() -> str:
    """SQL that makes the profile of the sample answer, each of its values as a warehouse would have it."""
    sample = next(each for each in answers() if "mpid" in each)
    devices = {"android_id": [], "unknown": [], "google_advertising_id": []}  # type: dict[str, list[str]]
    for identity in sample["device_identities"]:
        devices[identity["type"]].append(identity["value"])
    columns = {
        "mpid": f"{sample['mpid']}::BIGINT",
        "created": f"{sample['created_timestamp_ms']}::BIGINT",
        "opted_out": sample["is_opted_out"],
        "limits": "NULL::BOOLEAN",
        "updated_at": f"make_timestamp_ms({sample['last_stored_timestamp_ms']})",
        "android_id": quoted(devices["android_id"][0]),
        "unknown_1": quoted(devices["unknown"][0]),
        "unknown_2": quoted(devices["unknown"][1]),
        "gaid": quoted(devices["google_advertising_id"][0]),
        **{identity["type"]: quoted(identity["value"]) for identity in sample["user_identities"]},
        **{audience["audience_name"]: True for audience in sample["audience_memberships"]},
        "Never": False,
    }
    for name, value in sample["user_attributes"].items():
        number = {"churn_risk_score": f"{value}::BIGINT", "ltv": f"{value}::DECIMAL(9, 1)"}.get(name)
        columns[name] = number or (f"[{', '.join(map(quoted, value))}]" if isinstance(value, list) else quoted(value))
    return "CREATE TABLE profiles AS SELECT " + ", ".join(f'{value} AS "{name}"' for name, value in columns.items())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workers. Tests ask and mint keys, and rotate signing keys; they change nothing else."""
    spaces = {"sample": SAMPLE, "kinds": KINDS, "plain": PLAIN, "other": OTHER}
    made = Service(tmp_path_factory.mktemp("mparticle"), spaces, workers=2)
    made.run_sql(sample_table(), "sample")
    made.run_sql(KINDS_TABLE, "kinds")
    made.run_sql("CREATE TABLE profiles AS SELECT 1 AS id", "plain")
    for name in ("sample", "kinds", "plain"):
        made.load(name)
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def key(service: Service) -> str:
    return service.key("sample")


@pytest.fixture(scope="module")
def kinds(service: Service) -> str:
    return service.key("kinds")


def token_of(service: Service, key: str, **changes: str) -> str:
    asked = {"client_id": key[8:20], "client_secret": key, "grant_type": "client_credentials", **changes}
    return str(post(service, "/oauth/token", None, asked).json()["access_token"])


def post(service: Service, target: str, token: str | None, body: object, *headers: tuple[str, str]) -> Answer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = ("Content-Length", str(len(content)))
    return service.ask(request(target, token, length, *headers, method="POST", body=content))


def resolved(service: Service, key: str, kind: str, value: str, place: str = "10/20/31") -> Answer:
    asked = {"environment_type": "production", "identity": {"type": kind, "value": value}}
    return post(service, f"/userprofile/v1/resolve/{place}?{ALL}", key, asked)


def assert_refused(answer: Answer, status: int, code: str) -> str:
    """The message of an error, once its shape is found right."""
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json"), answer.body
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"]
    [error] = answer.json()["errors"]
    assert (set(answer.json()), set(error), error["code"]) == ({"errors"}, {"code", "message"}, code)
    return str(error["message"])


# --- the vendor's samples ------------------------------------------------------------------------------------------


def curl(sample: str, service: Service, **replaced: str) -> Answer:
    """Sends what a curl line of the document does, with its placeholders replaced, to our service."""
    for name, value in replaced.items():
        sample = sample.replace(f"<{name}>", value)
    words = iter(shlex.split(sample.replace("\\\n", " "))[1:])
    method, headers, url, body = "GET", [], "", b""
    for word in words:
        match word:
            case "-X" | "--request":
                method = next(words)
            case "-H" | "--header":
                name, _, value = next(words).partition(": ")
                headers.append((name, value))
            case "-d" | "--data":
                body = next(words).encode()
                headers.append(("Content-Length", str(len(body))))
            case "--url":
                url = next(words)
            case _:
                url = word
    target = re.sub(r"^https://[^/]+", "", url)
    if body and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("Content-Type", "application/x-www-form-urlencoded"))  # as curl does
    return service.ask(request(target, None, *headers, method=method, body=body))


def curl_lines() -> list[str]:
    return re.findall(r"^curl (?:.*\\\n)+.*$", SAMPLES, re.MULTILINE)


def assert_is_sample(answer: Answer, expected: dict[str, Any]) -> None:
    """Equal but for the audiences' ids, which are ours, and the order of a profile's devices."""
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json"), answer.body
    found = answer.json()
    assert list(found) == list(expected)
    ids = [audience.pop("audience_id") for audience in found["audience_memberships"]]
    assert all(isinstance(number, int) for number in ids)
    assert len(set(ids)) == len(ids)
    expected = json.loads(json.dumps(expected))
    for audience in expected["audience_memberships"]:
        del audience["audience_id"]
    for each in (found, expected):
        each["device_identities"].sort(key=lambda identity: (identity["type"], identity["value"]))
    assert found == expected


def test_the_vendors_requests_give_the_vendors_answers(service: Service, key: str) -> None:
    token_line, profile_line, resolve_line = curl_lines()
    token_answer, profile_answer, resolve_answer = answers()
    asked = token_line.replace('"client_id":"..."', f'"client_id":"{key[8:20]}"').replace('"..."', f'"{key}"')
    given = curl(asked, service)
    assert given.status == 200
    assert (given.headers["cache-control"], given.headers["pragma"]) == ("no-store", "no-cache")
    assert list(given.json()) == list(token_answer)
    assert {**given.json(), "access_token": ""} == {**token_answer, "access_token": ""}
    places = {"access token": given.json()["access_token"], "orgId": "10", "accountId": "20", "workspaceId": "30"}
    answer = curl(profile_line, service, **places, mpid=MARKY)
    assert answer.body.startswith(b'{"mpid":%s,' % MARKY.encode())
    assert_is_sample(answer, profile_answer)
    identity = resolve_answer["user_identities"][0]["value"]
    answer = curl(resolve_line.replace("12345", identity), service, **places)
    assert answer.body.startswith(b'{"mpid":%s,' % MARKY.encode())
    assert_is_sample(answer, resolve_answer)


def test_a_profile_is_asked_for_by_get_head_or_post_with_a_token_or_a_plain_key(service: Service, key: str) -> None:
    target = f"{PLACE}/{MARKY}?{ALL}"
    whole = service.get(target, key)
    assert whole.status == 200
    for credentials in (key, token_of(service, key)):
        assert service.get(target, credentials).body == whole.body
        assert post(service, target, credentials, b"").body == whole.body
        assert post(service, target, credentials, b'{"anything": [').body == whole.body
        head = service.get(target, credentials, method="HEAD")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(whole.body)))
    assert whole.headers["cache-control"] == "no-store"
    assert service.get(target, key, ("X-Request-Id", "mine")).headers["x-request-id"] == "mine"


# --- answers -------------------------------------------------------------------------------------------------------


def test_values_keep_their_types_where_the_settings_want_it(service: Service, kinds: str) -> None:
    answer = service.get(f"/userprofile/v1/10/20/31/9007199254740993?{ALL}", kinds)
    assert answer.body.startswith(b'{"mpid":9007199254740993,')
    assert answer.json() == {
        "mpid": 9007199254740993,
        "created_timestamp_ms": 1574704283462,
        "last_stored_timestamp_ms": 1749558896789,
        "is_opted_out": True,
        "limit_ad_tracking": False,
        "device_identities": [{"type": "android_id", "encoding": "none", "value": "T1"}],
        "user_identities": [
            {"type": "customer_id", "encoding": "none", "value": "ann"},
            {"type": "email", "encoding": "none", "value": "Ann@Example.com"},
            {"type": "other", "encoding": "none", "value": "42"},
        ],
        "account_userattributes": None,
        "user_attributes": {
            "name": 'Ann "A" Ä',
            "tags": ["x", None],
            "height": None,
            "since": "2020-02-29",
            "orders": 2.0,
        },
        "audience_memberships": [{"audience_id": 1, "audience_name": "vip", "expiration_timestamp_ms": None}],
        "attribution": {"campaign": ["a", 1.5]},
    }
    assert b'"orders":2.0' in answer.body
    assert b'"attribution":{"campaign":["a",1.50]}' in answer.body


def test_what_a_profile_lacks_is_null_false_empty_or_left_out(service: Service, kinds: str) -> None:
    assert service.get(f"/userprofile/v1/10/20/31/-1?{ALL}", kinds).json() == {
        "mpid": -1,
        "created_timestamp_ms": -1,
        "last_stored_timestamp_ms": -1,
        "is_opted_out": False,
        "limit_ad_tracking": True,
        "device_identities": [{"type": "android_id", "encoding": "none", "value": "T1"}],
        "user_identities": [{"type": "customer_id", "encoding": "none", "value": "bob"}],
        "account_userattributes": None,
        "user_attributes": {},
        "audience_memberships": [],
    }


@pytest.mark.parametrize("field", FIELDS)
def test_only_what_was_asked_for_is_answered(service: Service, kinds: str, field: str) -> None:
    always = ["mpid", "created_timestamp_ms", "last_stored_timestamp_ms", "is_opted_out", "limit_ad_tracking"]
    answer = service.get(f"/userprofile/v1/10/20/31/9007199254740993?fields={field}", kinds)
    beside = ["account_userattributes"] if field == "user_attributes" else []
    assert list(answer.json()) == [*always, *beside, field]


@pytest.mark.parametrize(
    "query",
    [
        "fields=user_attributes,attribution",
        "fields=attribution,user_attributes",
        "fields=attribution%2Cuser_attributes&x=1",
        "fields=user_attributes&fields=attribution",
        "%66ields=user%5Fattributes,attribution,user_attributes",
        "&&=&fields=attribution&fields=user_attributes&fieldsx=y",
    ],
)
def test_fields_add_up_however_they_are_written(service: Service, kinds: str, query: str) -> None:
    answer = service.get(f"/userprofile/v1/10/20/31/9007199254740993?{query}", kinds)
    assert list(answer.json())[5:] == ["account_userattributes", "user_attributes", "attribution"]


TIMES = [
    ("TIMESTAMP '2019-11-25 17:51:23.462'", 1574704283462),
    ("TIMESTAMP_NS '2019-11-25 17:51:23.462999999'", 1574704283462),
    ("TIMESTAMPTZ '2019-11-25 18:51:23+01'", 1574704283000),
    ("DATE '1970-01-02'", 86_400_000),
    ("'2019-11-25T18:51:23.5+01:00'", 1574704283500),
    ("'2019-11-25 17:51:23'", 1574704283000),
    ("1574704283462", 1574704283462),
    ("1574704283462::DECIMAL(18, 0)", 1574704283462),
    ("-1", -1),
    ("'soon'", None),
    ("''", None),
    ("'1574704283462'", None),
    ("1574704283.5::DOUBLE", None),
    ("true", None),
    ("['2019-11-25']", None),
    ("'infinity'::TIMESTAMP", None),
    ("TIMESTAMP '0001-01-01 00:00:00'", -62_135_596_800_000),
    ("TIMESTAMP '9999-12-31 23:59:59.999'", 253_402_300_799_999),
    ("NULL::TIMESTAMP", None),
]


def test_times_of_all_kinds_are_milliseconds(tmp_path: Path) -> None:
    columns = ", ".join(f"{created} AS c{number}" for number, (created, _) in enumerate(TIMES))
    shop = Workshop(tmp_path).model(f"SELECT 1 AS id, {columns}")
    shop.load()
    served = shop.profiles()["1"]
    for number, (created, milliseconds) in enumerate(TIMES):
        value = served.get(f"c{number}")
        found = _milliseconds(None if value is None else json.dumps(value).encode())
        assert json.loads(found) == milliseconds, created


def test_mpids_of_all_64_bits_are_found_digit_for_digit(service: Service, kinds: str) -> None:
    for mpid in (-(2**63), 2**63 - 1, 2**53 + 1):
        answer = service.get(f"/userprofile/v1/10/20/31/{mpid}?fields=attribution", kinds)
        assert answer.body.startswith(b'{"mpid":%d,' % mpid)


@pytest.mark.parametrize(
    ("kind", "value", "mpid"),
    [
        ("customer_id", "ann", 9007199254740993),
        ("email", "aNN@example.COM", 9007199254740993),
        ("other", "42", 9007199254740993),
        ("android_id", "T1", 9007199254740993),
    ],
)
def test_an_identity_is_resolved_as_its_namespace_has_it(
    service: Service, kinds: str, kind: str, value: str, mpid: int
) -> None:
    assert resolved(service, kinds, kind, value).json()["mpid"] == mpid


def test_resolving_takes_json_whatever_it_is_called(service: Service, kinds: str) -> None:
    body = {"environment_type": "development", "identity": {"type": "customer_id", "value": "ann", "x": 1}, "y": []}
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16", ""):
        target = f"/userprofile/v1/resolve/10/20/31?{ALL}"
        assert post(service, target, kinds, body, ("Content-Type", content_type)).status == 200


def test_what_is_live_is_answered_with_the_fields_that_it_has(make_service: MakeService) -> None:
    events = """
    [workspaces.shop.events]
    sql = "SELECT 'ann' AS id, 'seen' AS name, TIMESTAMP '2025-01-01' AS time"
    profile = "id"
    name = "name"
    time = "time"
    """
    service = make_service({"shop": KINDS.replace("kinds", "shop") + events})
    service.run_sql(KINDS_TABLE)
    service.load()
    living = Living(service)
    service.start()
    key, ann, bob = service.key(), f"/userprofile/v1/10/20/31/9007199254740993?{ALL}", f"{BOB}?{ALL}"
    before = [service.get(target, key).json() for target in (ann, bob)]
    fields = list(living.schema.fields)
    fields.insert(living.schema.run_of("attributes")[1], Field("mood", "attributes", "JSON"))
    schema = msgspec.structs.replace(living.schema, fields=tuple(fields))
    living.writer.write({META: {b"generation:\0\0\0\1": msgspec.json.encode(schema)}})
    living.put("ann", living.values("ann") | {"mood": b'"good"', "risk": b"true"}, 1, schema)
    changed = resolved(service, key, "customer_id", "ann").json()
    assert service.get(ann, key).json() == changed
    assert changed["user_attributes"] == before[0]["user_attributes"] | {"mood": "good"}
    assert [each["audience_name"] for each in changed["audience_memberships"]] == ["vip", "risk"]
    assert changed["last_stored_timestamp_ms"] == NOW_US // 1_000
    assert service.get(bob, key).json() == before[1]
    living.remove("ann")
    assert_refused(service.get(ann, key), 404, "profile_not_found")
    living.writer.env.close()


# --- errors --------------------------------------------------------------------------------------------------------


def test_an_unknown_profile_is_404(service: Service, kinds: str) -> None:
    for answer in (
        service.get(f"/userprofile/v1/10/20/31/5?{ALL}", kinds),
        resolved(service, kinds, "customer_id", "nobody"),
        resolved(service, kinds, "customer_id", "x" * 5_000),
        resolved(service, kinds, "email", "x" * 5_000),
        resolved(service, kinds, "customer_id", "a\0b"),
    ):
        assert_refused(answer, 404, "profile_not_found")
        assert answer.headers["x-mp-rate-limit-percentage-used"].isdigit()


def test_a_profile_without_an_mpid_is_none_of_this_api(service: Service, kinds: str) -> None:
    assert_refused(resolved(service, kinds, "customer_id", "none"), 404, "profile_not_found")


def test_another_place_than_the_keys_is_403_whether_there_is_one_or_not(service: Service, kinds: str) -> None:
    token = token_of(service, kinds)
    messages = set()
    for place in ("10/20/30", "99/20/30", "11/20/31", "10/21/31", "10/20/32", "resolve/10/20", "//", "10/20/31%00"):
        for credentials in (kinds, token):
            answer = service.get(f"/userprofile/v1/{place}/9007199254740993?{ALL}", credentials)
            if place.startswith("resolve"):
                assert_refused(answer, 405, "method_not_allowed")
                continue
            messages.add(assert_refused(answer, 403, "forbidden"))
            messages.add(assert_refused(resolved(service, credentials, "customer_id", "ann", place), 403, "forbidden"))
    for unfit in (service.key("plain"), service.key("kinds", scopes=("write",))):
        answer = service.get(f"/userprofile/v1/10/20/31/9007199254740993?{ALL}", unfit)
        messages.add(assert_refused(answer, 403, "forbidden"))
    assert len(messages) == 1


def test_escapes_in_a_path_stand_for_what_they_say(service: Service, kinds: str) -> None:
    assert service.get(f"/userprofile/v1/1%30/20/31/%2D1?{ALL}", kinds).json()["mpid"] == -1


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Basic eDp5", "Bearer x", "Bearer a.b.c", "Bearer sk_live_", "Token {token}",
     "Bearer  {token}", "Bearer {token}x", "{token}", "Bearer {key}x", "Bearer é", "bearer\t{token}"],
)  # fmt: skip
def test_without_a_good_token_or_key_everything_is_401(service: Service, kinds: str, authorization: str | None) -> None:
    token = token_of(service, kinds)
    headers = [] if authorization is None else [("Authorization", authorization.format(token=token, key=kinds))]
    for target in ("/userprofile/v1/10/20/31/1", "/userprofile/v1/0/0/0/x"):
        answer = service.ask(request(f"{target}?{ALL}", None, *headers))
        assert_refused(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    resolving = request(f"{RESOLVE}?{ALL}", None, *headers, ("Content-Length", "99999999"), method="POST")
    assert service.ask(resolving).status == 401, "before a body is there"


def test_two_authorizations_are_none(service: Service, kinds: str) -> None:
    twice = [("Authorization", f"Bearer {kinds}")] * 2
    assert service.ask(request(f"/userprofile/v1/10/20/31/-1?{ALL}", None, *twice)).status == 401


@pytest.mark.parametrize(
    "path",
    ["/userprofile/", "/userprofile/v1", "/userprofile/v1/10/20/31", "/userprofile/v1/10/20/31/1/",
     "/userprofile/v2/10/20/31/1", "/userprofile/v1/10/20/31/1/2", "/userprofile//v1/10/20/31/1",
     "/userprofile/v1/resolve/10/20", "/userprofile/V1/10/20/31/1"],
)  # fmt: skip
def test_other_paths_are_404(service: Service, kinds: str, path: str) -> None:
    assert_refused(service.get(path, kinds), 404, "no_such_route")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "get"])
def test_other_methods_are_405(service: Service, kinds: str, method: str) -> None:
    for target, allowed in ((f"{PLACE}/1", "GET, HEAD, POST"), (RESOLVE, "POST")):
        answer = service.get(target, kinds, method=method)
        assert_refused(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == allowed
    assert_refused(service.get(f"{RESOLVE}?{ALL}", kinds), 405, "method_not_allowed")


def test_a_key_over_its_limit_is_429_and_says_how_much_of_it_is_used(service: Service) -> None:
    key = service.key("kinds", rate=0.01, burst_rate=5, burst_seconds=0)
    token = token_of(service, key)  # takes one of the five
    found = [service.get(f"/userprofile/v1/10/20/31/-1?{ALL}", token) for _ in range(3)]
    found.append(resolved(service, token, "nothing", "at all"))
    assert [answer.headers["x-mp-rate-limit-percentage-used"] for answer in found] == ["40", "60", "80", "100"]
    assert [answer.status for answer in found] == [200, 200, 200, 400]
    denied = service.get(f"/userprofile/v1/10/20/31/-1?{ALL}", token)
    assert_refused(denied, 429, "rate_limited")
    assert 90 <= int(denied.headers["retry-after"]) <= 100
    assert denied.headers["x-mp-rate-limit-exceeded"] == "workspace"
    assert denied.headers["x-mp-rate-limit-percentage-used"] == "100"
    assert service.get("/v1/profiles/id/ann", key).status == 429, "it is the key's, whichever API it comes by"


def test_a_workspace_without_a_snapshot_is_503(service: Service) -> None:
    key = service.key("other")
    token = token_of(service, key, audience="https://other.example")
    answer = service.get(f"/userprofile/v1/99/20/30/1?{ALL}", token)
    assert_refused(answer, 503, "not_ready")
    assert answer.headers["retry-after"] == "1"


def test_an_answer_over_the_limit_is_413(make_service: MakeService) -> None:
    service = make_service({"kinds": KINDS}, limits="response_bytes_max = 300")
    service.run_sql(KINDS_TABLE, "kinds")
    service.load("kinds")
    service.start()
    key = service.key("kinds")
    assert_refused(service.get(f"/userprofile/v1/10/20/31/9007199254740993?{ALL}", key), 413, "answer_too_large")
    assert service.get("/userprofile/v1/10/20/31/9007199254740993?fields=device_identities", key).status == 200


def test_a_snapshot_from_before_its_identities_were_declared_is_not_ready(make_service: MakeService) -> None:
    service = make_service({"kinds": KINDS})
    declared = service.file.read_text()
    older = declared.replace('identifiers = ["mpid", ', "identifiers = [").replace('mpid = "mpid"', 'mpid = "id"')
    service.file.write_text(older)
    service.settings = settings.load(service.file, {})
    service.run_sql(KINDS_TABLE, "kinds")
    service.load("kinds")
    service.file.write_text(declared)
    service.start()
    assert_refused(service.get(f"/userprofile/v1/10/20/31/-1?{ALL}", service.key("kinds")), 503, "not_ready")


# --- what a request may get wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mpid",
    ["x", "+1", "01", "-0", "-01", "1.0", "1e3", "0x1", "1_000", "%201", "1%20", "%00", "1%0A", "%EF%BC%91", "%D9%A1",
     "9223372036854775808", "-9223372036854775809", "9" * 4_000, "--1", "-", "%", "%zz", "%ff", "null", "1;x=2"],
)  # fmt: skip
def test_an_mpid_that_is_no_integer_of_64_bits_is_400(service: Service, kinds: str, mpid: str) -> None:
    assert_refused(service.get(f"/userprofile/v1/10/20/31/{mpid}?{ALL}", kinds), 400, "malformed_path")


@pytest.mark.parametrize(
    "query",
    ["", "fields", "fields=", "fields=,", "fields=attribution,", "fields=Attribution", "fields=all",
     "Fields=attribution", "fields=attribution%20", "fields=attribution&fields=", "fields=%ff", "fields=%ed%a0%80",
     "fields=%00", "fields=%", "fields=%5c%22", "fields=" + "attribution," * 600, "fields=" + "&fields=" * 900],
)  # fmt: skip
def test_fields_that_there_are_not_are_400(service: Service, kinds: str, query: str) -> None:
    target = "/userprofile/v1/10/20/31/-1" + ("?" + query if query else "")
    assert assert_refused(service.get(target, kinds), 400, "malformed_query").startswith("fields ")


WRONG: list[object] = [None, 1, 1.5, True, [], {}, ["x"], ""]
GOOD: dict[str, Any] = {"environment_type": "production", "identity": {"type": "customer_id", "value": "ann"}}
NESTED = b'{"environment_type":"production","identity":' + b"[" * 7_000 + b"]" * 7_000 + b"}"
BAD_BODIES: list[object] = [
    b"",
    b"\0",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"1" * 10_000,
    b"\xff\xfe{}",
    b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
    json.dumps(GOOD).encode("utf-16"),
    json.dumps(GOOD).encode() + b"x",
    b"[" * 16_000,
    b'{"a":' * 2_500 + b"1" + b"}" * 2_500,
    NESTED,
    b"[" + b"1," * 8_000 + b"1]",
    b'{"environment_type":"production","environment_type":"production","identity":{"type":"customer_id","value":"ann"}}',
    b'{"environment_type":"production","identity":{"type":"customer_id","type":"email","value":"ann"}}',
    b'{"environment_type":"production","identity":{"type":"customer_id","value":"\\ud800"}}',
    b'{"environment_type":"production","identity":{"type":"\\udfff","value":"ann"}}',
    b'{"environment_type":"production","identity":{"type":"customer_id","value":"\xed\xa0\x80"}}',
    b'{"environment_type":"production","identity":{"type":"customer_id","value":NaN}}',
    {**GOOD, "environment_type": "staging"},
    {**GOOD, "environment_type": "Production"},
    {**GOOD, "environment_type": ["production"]},
    {**GOOD, "environment_type": {}},
    {**GOOD, "environment_type": None},
    {"identity": GOOD["identity"]},
    {"environment_type": "production"},
    *({**GOOD, "identity": wrong} for wrong in [*WRONG, "ann", [GOOD["identity"]]]),
    *({**GOOD, "identity": {**GOOD["identity"], name: wrong}} for name in ("type", "value") for wrong in WRONG),
    *(
        {**GOOD, "identity": {"type": kind, "value": "ann"}}
        for kind in ("Customer_id", "mpid", "id", "x" * 9_000, "\0")
    ),
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda body: str(body)[:60])
def test_a_body_that_asks_for_nobody_is_400(service: Service, kinds: str, body: object) -> None:
    answer = post(service, f"/userprofile/v1/resolve/10/20/31?{ALL}", kinds, body)
    assert_refused(answer, 400, "malformed_body")


def test_a_type_that_may_change_is_not_resolved(service: Service, key: str) -> None:
    for kind in ("email", "unknown", "android_id", "nonsense"):
        message = assert_refused(resolved(service, key, kind, "x", "10/20/30"), 400, "malformed_body")
        assert message == f"identity.type {kind!r} is not one by which profiles are resolved."


def test_a_body_larger_than_any_identity_is_413(service: Service, kinds: str) -> None:
    body = {**GOOD, "more": "x" * 20_000}
    answer = post(service, f"/userprofile/v1/resolve/10/20/31?{ALL}", kinds, body)
    assert_refused(answer, 413, "body_too_large")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = (
    st.sampled_from(["environment_type", "identity", "type", "value", "production", "customer_id", "ann"]) | st.text()
)


@given(st.binary() | st.dictionaries(NAMES, JSON | NAMES | st.dictionaries(NAMES, NAMES | JSON)))
def test_no_body_whatever_makes_it_fail(service: Service, kinds: str, body: object) -> None:
    assume(len(json.dumps(body, default=repr)) < OBJECT_BYTES_MAX)  # of a larger one, the test above
    answer = post(service, f"/userprofile/v1/resolve/10/20/31?{ALL}", kinds, body)
    assert answer.status in (200, 400, 404)


@given(st.binary(max_size=300))
def test_no_path_or_query_whatever_makes_it_fail(service: Service, kinds: str, noise: bytes) -> None:
    text = re.sub(rb"[\x00-\x20#\x7f]", b"", noise).decode("latin-1")
    content = (
        f"/userprofile/v1/10/20/31/{text}?{ALL}",
        f"/userprofile/v1/10/20/31/1?{text}&{ALL}",
        f"/userprofile/{text}",
    )
    for target in content:
        answer = service.ask(request(target, kinds).decode().encode("latin-1"))
        assert answer.status in (200, 400, 403, 404, 405), answer
