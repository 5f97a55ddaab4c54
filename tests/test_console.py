"""The console without its page: the state that it shows, lookups by hand, and whom it answers at all."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from authority import Authority
from conftest import BANK, EVENTS, EVENTS_DECLARED, ODD_IDS, PROFILES, MakeService
from service import DECLARED, Answer, Header, Service, exchange, mappings, until
from test_metrics import requests, scrape
from workshop import roll_back

from edgeprofile import locks, outcomes, snapshot
from edgeprofile.api.console import BODY_BYTES_MAX, FILES
from edgeprofile.loader.apply import LiveWriter
from edgeprofile.loader.changes import Erasures, Updates, read
from edgeprofile.timeline import STEP_S

JSON = ("Content-Type", "application/json")
PAGES = ("/console", "/console/state", *(f"/console/{name}" for name in FILES))


def ask(
    service: Service,
    target: str,
    *headers: Header,
    host: str = "localhost:8001",
    method: str = "GET",
    body: bytes = b"",
) -> Answer:
    """What the admin listener answers to one that calls it so."""
    sent = [("Host", host), *headers]
    if body:
        sent.append(("Content-Length", str(len(body))))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in sent), "", ""]
    return exchange(service.admin_port, "\r\n".join(lines).encode() + body)


def state(service: Service, **query: object) -> Any:
    answer = ask(service, f"/console/state?{urlencode(query)}")
    assert answer.status == 200
    return answer.json()


def look_up(service: Service, key: str | None, *headers: Header, **wanted: object) -> Answer:
    who = [] if key is None else [("Authorization", f"Bearer {key}")]
    body = json.dumps(wanted).encode()
    return ask(service, "/console/lookup", JSON, *who, *headers, method="POST", body=body)


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def made(service: Service) -> Service:
    service.run_sql(
        PROFILES.replace("{ids}", "[" + ", ".join("'" + odd.replace("'", "''") + "'" for odd in ODD_IDS) + "]")
    )
    service.load()
    return service


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A shop, and a bank that has published nothing; for tests that only ask."""
    spaces = {"shop": DECLARED, "bank": BANK, "news": EVENTS_DECLARED.replace("shop", "news")}
    service = made(Service(tmp_path_factory.mktemp("console"), spaces, with_admin=True))
    service.run_sql(EVENTS, "news")
    service.load("news")
    yield service.start()
    service.stop()


@pytest.fixture(scope="module")
def key(running: Service) -> str:
    return running.key()


@pytest.fixture
def service(make_service: MakeService) -> Service:
    """One that a test may change, and has to start."""
    return made(make_service(with_admin=True))


# --- the state -----------------------------------------------------------------------------------------------------


def test_the_state_tells_of_each_workspace_what_its_files_say(running: Service) -> None:
    found = state(running, workspace="shop")
    manifest = snapshot.current_manifest(running.home())
    assert [each["workspace"] for each in found["workspaces"]] == ["shop", "bank", "news"]
    assert [each["health"] for each in found["workspaces"]] == ["unwatched", "empty", "unwatched"]
    shop = found["workspace"]
    for name in ("profiles", "rejected", "events", "evicted", "file_bytes", "identifiers", "forced"):
        assert shop[name] == getattr(manifest, name)
    assert (shop["snapshot"], shop["live_profiles"], shop["refresh"]) == (manifest.name, 0, 300)
    assert abs(found["now"] - manifest.finished_at - shop["age"]) < 2
    assert found["workspaces"][0] == {
        **{name: shop[name] for name in found["workspaces"][0] if name != "last"},
        "last": ["published"],
    }
    assert (found["workers"], found["certificate_expires_at"]) == (1, None)
    assert manifest.finished_at < found["started_at"] < found["now"] < time.time() + 1


def test_the_state_shows_in_full_the_workspace_in_most_need_of_attention_unless_another_is_named(
    running: Service,
) -> None:
    assert state(running)["workspace"]["workspace"] == "bank"
    assert state(running, workspace="shop")["workspace"]["workspace"] == "shop"
    assert state(running, workspace="nowhere")["workspace"]["workspace"] == "bank"


def test_the_state_follows_what_becomes_of_loads(service: Service) -> None:
    service.start()
    service.load()
    with locks.watching(service.home()):
        until(lambda: state(service)["workspace"]["health"] == "ok", "it is watched")
        found = state(service)["workspace"]
        assert found["last_refresh"]["outcome"] == "unchanged"
        assert [outcome["outcome"] for outcome in found["history"]] == ["published", "unchanged"]
        service.run_sql("INSERT INTO profiles BY NAME SELECT 'new' AS profile_id")
        published = service.load()
        until(lambda: state(service)["workspace"]["snapshot"] == published.snapshot, "it is seen")
        assert state(service)["workspace"]["profiles"] == published.profiles
        with locks.loading(service.home()):
            outcomes.note(service.home(), outcomes.Attempt.begin().ended("source_error", message="<b>no</b> ärger"))
        until(lambda: state(service)["workspace"]["health"] == "failing", "it is seen")
        assert state(service)["workspace"]["last_refresh"]["message"] == "<b>no</b> ärger"
        with locks.loading(service.home()):
            old = roll_back(service.home())
            outcomes.note(service.home(), outcomes.Attempt.begin().ended("rolled_back", snapshot=old.name))
        until(lambda: state(service)["workspace"]["health"] == "rolled_back", "it is seen")
        found = state(service)
        assert (found["workspace"]["snapshot"], found["workspaces"][0]["last"][-1]) == (old.name, "rolled_back")
    (service.home() / snapshot.CURRENT).write_bytes(b"\xff")
    until(lambda: state(service)["workspace"]["health"] == "damaged", "it is seen")
    assert state(service)["workspace"]["snapshot"] is None


def test_the_timeline_has_every_request_once(running: Service, key: str) -> None:
    def counted(after: float) -> int:
        return sum(stretch["surfaces"].get("native", [0])[0] for stretch in state(running, after=after)["timeline"])

    until(lambda: state(running)["timeline"], "a step is over")
    since = state(running)["timeline"][-1]["at"]
    before = requests(scrape(running))["native", "200"] + requests(scrape(running))["native", "404"]
    for _ in range(3):
        running.get("/v1/profiles/id/12345", key)
        running.get("/v1/profiles/id/nobody", key)
    until(lambda: state(running)["timeline"][-1]["at"] > since + 2 * STEP_S, "two steps are over")
    all_of_them = state(running)["timeline"]
    total = sum(stretch["surfaces"].get("native", [0])[0] for stretch in all_of_them)
    assert total >= before
    assert counted(since) >= 6
    classes = [stretch["answers"] for stretch in state(running, after=since)["timeline"]]
    for name in ("2xx", "4xx"):
        assert sum(each.get(name, 0) for each in classes) >= 3
    assert counted(all_of_them[-1]["at"] + STEP_S * 10) == 0
    for stretch in all_of_them:
        assert 0 < stretch["seconds"] < 60
        assert all(0 <= half <= most <= 1 for _, half, most in stretch["surfaces"].values())


def test_nothing_of_a_profile_or_a_key_is_in_the_state(running: Service, key: str) -> None:
    for target in ("id/types", "identifier/email/jane%40example.com", "id/nobody"):
        running.get(f"/v1/profiles/{target}", key)
    look_up(running, key, value="types")
    text = ask(running, "/console/state?workspace=shop").body.decode()
    for secret in ("types", "jane", "nobody", *key.split("_")[2:], str(running.folder)):
        assert secret not in text


@pytest.mark.parametrize("after", ["", "x", "nan", "-1", "1e400"])
def test_a_state_after_no_moment_is_a_whole_one_or_none(running: Service, after: str) -> None:
    answer = ask(running, f"/console/state?after={after}")
    assert answer.status == 200
    assert isinstance(answer.json()["timeline"], list)


def test_the_state_tells_until_when_the_certificate_is_good(make_service: MakeService) -> None:
    authority = Authority()
    files = 'tls_certificate = "server.pem"\ntls_key = "server.key"\nready_delay_seconds = 0'
    service = make_service(with_admin=True, server=files, context=authority.client())
    issued = authority.issue(days=9)
    issued.write(service.folder, "server")
    made(service).start()
    assert state(service)["certificate_expires_at"] == issued.certificate.not_valid_after_utc.timestamp()
    token = service.key()
    assert look_up(service, token, value="12345").body == service.get("/v1/profiles/id/12345", token).body


# --- lookups -------------------------------------------------------------------------------------------------------

LOOKUPS: list[dict[str, object]] = [
    {"value": "12345"},
    {"value": "types"},
    {"value": "12345", "fields": "attributes.first_name,audiences"},
    {"value": "12345", "fields": "nothing"},
    {"value": "12345", "fields": ","},
    {"namespace": "email", "value": "JANE@example.COM"},
    {"namespace": "email", "value": "élodie@example.com"},
    {"namespace": "profile_id", "value": "12345"},
    {"namespace": "device_id", "value": "tablet"},
    {"namespace": "device_id", "value": "nobody's"},
    {"namespace": "nick/name", "value": "x"},
    {"namespace": "", "value": "x"},
    {"value": "nobody"},
    {"value": ""},
    {"value": "1" * 9_000},
    {"value": "large"},
]
LOOKUPS += [{"value": odd} for odd in ODD_IDS]


def native(wanted: dict[str, Any]) -> str:
    """The request that a caller would make for this."""
    namespace = wanted.get("namespace")
    way = "id" if namespace is None else f"identifier/{quote(namespace, safe='')}"
    query = f"?{urlencode({'fields': wanted['fields']})}" if "fields" in wanted else ""
    return f"/v1/profiles/{way}/{quote(wanted['value'], safe='')}{query}"


@pytest.mark.parametrize("wanted", LOOKUPS, ids=lambda wanted: " ".join(wanted.values())[:40])
def test_a_lookup_is_answered_as_the_native_api_does(running: Service, key: str, wanted: dict[str, Any]) -> None:
    theirs = running.get(native(wanted), key)
    ours = look_up(running, key, **wanted)
    assert (ours.status, ours.body) == (theirs.status, theirs.body)
    for name in ("etag", "content-type", "www-authenticate"):
        assert ours.headers.get(name) == theirs.headers.get(name)
    assert re.fullmatch(r"lookup;dur=\d+\.\d{4}", ours.headers["server-timing"])


def test_a_lookup_may_ask_for_the_last_events(running: Service) -> None:
    token = running.key("news")
    theirs = running.get("/v1/profiles/id/ann/events?limit=20", token)
    ours = look_up(running, token, value="ann", events=True)
    assert (ours.status, ours.body) == (200, theirs.body)
    assert len(ours.json()["events"]) == 6
    assert look_up(running, token, namespace="email", value="ANN@example.com", events=True).body == theirs.body


def test_a_lookup_serves_what_is_published_at_that_moment_and_lets_go_of_it(service: Service) -> None:
    token = service.mint()
    service.start()
    assert look_up(service, token, value="new").status == 404
    service.run_sql("INSERT INTO profiles BY NAME SELECT 'new' AS profile_id")
    service.load()
    assert look_up(service, token, value="new").status == 200
    with LiveWriter(service.home()) as writer:
        writer.update(read({"updates": [["new", {"first_name": b'"Nina"'}]]}, Updates))
    assert look_up(service, token, value="new").json()["first_name"] == "Nina"
    with LiveWriter(service.home()) as writer:
        writer.erase(Erasures(["new"]))
    assert look_up(service, token, value="new").code() == "profile_not_found"
    pid = service.admin()
    assert pid is not None
    assert snapshot.PROFILES not in mappings(pid)


def test_a_lookup_before_anything_is_published_or_where_that_is_damaged_is_not_ready(service: Service) -> None:
    token = service.mint()
    service.start()
    assert look_up(service, token, value="12345").status == 200
    current = service.home() / snapshot.CURRENT
    whole = current.read_bytes()
    for content in (b"\xff", b"20250101T000000.000000Z-00000000\n"):
        current.write_bytes(content)
        answer = look_up(service, token, value="12345")
        assert (answer.status, answer.code(), answer.headers["retry-after"]) == (503, "not_ready", "1")
    current.write_bytes(whole)
    assert look_up(service, token, value="12345").status == 200


def test_a_lookup_without_a_snapshot_is_not_ready(running: Service) -> None:
    assert look_up(running, running.mint("bank"), value="12345").code() == "not_ready"


def test_the_key_decides_the_workspace_and_what_may_be_asked(running: Service, key: str) -> None:
    assert look_up(running, None, value="12345").code() == "unauthorized"
    for wrong in ("", "x", key[:-1], key[:-1] + ("a" if key[-1] != "a" else "b"), "sk_live_" + "a" * 62):
        assert look_up(running, wrong, value="12345").code() == "unauthorized"
    assert look_up(running, running.mint(scopes=("write",)), value="12345").code() == "forbidden"
    twice = look_up(running, key, ("Authorization", f"Bearer {key}"), value="12345")
    assert twice.status == 401
    revoked = running.mint()
    assert look_up(running, revoked, value="12345").status == 200
    running.revoke(revoked)
    assert look_up(running, revoked, value="12345").status == 401


def test_lookups_take_of_the_tokens_that_other_requests_take_of(running: Service) -> None:
    token = running.key(rate=0.001, burst_rate=2, burst_seconds=0)
    before = requests(scrape(running))
    assert running.get("/v1/profiles/id/12345", token).status == 200
    assert look_up(running, token, value="12345").status == 200
    denied = look_up(running, token, value="12345")
    assert (denied.status, denied.code()) == (429, "rate_limited")
    assert int(denied.headers["retry-after"]) == denied.json()["retry_after"] > 100
    assert "ratelimit" in denied.headers
    assert running.get("/v1/profiles/id/12345", token).status == 429
    until(lambda: (requests(scrape(running)) - before)["native", "429"] == 2, "both are counted")
    until(lambda: state(running, workspace="shop")["workspace"]["limited"] >= 2, "they are shown")


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ([], b'{"value":"x"}', 415, "unsupported_media_type"),
        ([("Content-Type", "text/plain")], b'{"value":"x"}', 415, "unsupported_media_type"),
        ([("Content-Type", "application/x-www-form-urlencoded")], b"value=x", 415, "unsupported_media_type"),
        ([JSON], b"", 400, "malformed_body"),
        ([JSON], b"{", 400, "malformed_body"),
        ([JSON], b'{"value":"\xff"}', 400, "malformed_body"),
        ([JSON], b'{"value":"\\ud800"}', 400, "malformed_body"),
        ([JSON], b'{"value":1}', 400, "malformed_body"),
        ([JSON], b'{"value":"x","key":"y"}', 400, "malformed_body"),
        ([JSON], b'{"value":"' + b"x" * BODY_BYTES_MAX + b'"}', 413, "body_too_large"),
    ],
)
def test_what_is_no_lookup_is_refused(
    running: Service, headers: list[Header], body: bytes, status: int, code: str
) -> None:
    answer = ask(running, "/console/lookup", *headers, method="POST", body=body)
    assert (answer.status, answer.code()) == (status, code)
    assert "x" * 100 not in answer.body.decode()


def test_neither_a_key_nor_a_value_is_logged(service: Service) -> None:
    token = service.mint()
    service.start()
    for wanted in (
        {"value": "12345"},
        {"value": "secret-value"},
        {"namespace": "email", "value": "secret@x.example"},
    ):
        look_up(service, token, **wanted)
        look_up(service, token[:-1], **wanted)
    (service.home() / snapshot.CURRENT).write_bytes(b"\xff")
    look_up(service, token, value="secret-value")
    service.stop()
    assert "secret" not in service.log()
    assert "12345" not in service.log()


# --- whom it answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", PAGES)
def test_every_answer_tells_browsers_to_be_strict(running: Service, target: str) -> None:
    for answer in (ask(running, target), ask(running, target, host="evil.example")):
        found = answer.headers
        policy = dict(part.strip().split(" ", 1) for part in found["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert {value for name, value in policy.items() if name.endswith("-src")} == {"'none'", "'self'"}
        assert (found["cache-control"], found["x-content-type-options"]) == ("no-store", "nosniff")
        assert (found["referrer-policy"], found["cross-origin-opener-policy"]) == ("no-referrer", "same-origin")


def test_the_root_leads_to_the_console(running: Service) -> None:
    answer = ask(running, "/")
    assert (answer.status, answer.headers["location"]) == (307, "console")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:9000",
        "127.0.0.1",
        "127.0.0.1:8001",
        "[::1]:8001",
        "192.0.2.9:8001",
        socket.gethostname(),
    ],
)
def test_the_console_answers_to_names_that_only_this_machine_can_have(running: Service, host: str) -> None:
    assert ask(running, "/console/state", host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8001", "localhost.evil.example", "127.0.0.1.evil.example", "", "a:b:8001"]
)
def test_the_console_answers_to_no_name_that_a_page_elsewhere_could_have(running: Service, key: str, host: str) -> None:
    for target in PAGES:
        assert ask(running, target, host=host).code() == "forbidden"
    who, body = ("Authorization", f"Bearer {key}"), b'{"value":"12345"}'
    assert ask(running, "/console/lookup", JSON, who, host=host, method="POST", body=body).code() == "forbidden"
    assert ask(running, "/metrics", host=host).status == 200, "scrapers may call it as they like"


def test_the_console_answers_to_the_name_that_the_settings_have(make_service: MakeService) -> None:
    # Which browsers would write out, so that nothing but the settings makes it ours.
    service = made(make_service(with_admin=True, server='ready_delay_seconds = 0\nadmin_host = "127.1"')).start()
    assert ask(service, "/console", host="127.1:8001").status == 200
    assert ask(service, "/console", host="127.2:8001").status == 403


@pytest.mark.parametrize(
    ("headers", "is_answered"),
    [
        ([], True),
        ([("Sec-Fetch-Site", "same-origin")], True),
        ([("Sec-Fetch-Site", "none")], True),
        ([("Sec-Fetch-Site", "cross-site")], False),
        ([("Sec-Fetch-Site", "same-site")], False),
        ([("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")], False),
        ([("Origin", "http://localhost:8001")], True),
        ([("Origin", "https://console.example"), ("Sec-Fetch-Site", "same-origin")], True),
        ([("Origin", "http://localhost:8001"), ("Sec-Fetch-Site", "same-site")], False),
        ([("Origin", "http://localhost:8002")], False),
        ([("Origin", "http://evil.example")], False),
        ([("Origin", "null")], False),
    ],
)
def test_the_state_and_lookups_are_for_the_consoles_own_page(
    running: Service, key: str, headers: list[Header], is_answered: bool
) -> None:
    expected = 200 if is_answered else 403
    assert ask(running, "/console/state", *headers).status == expected
    assert look_up(running, key, *headers, value="12345").status == expected


def test_a_link_from_elsewhere_may_lead_to_the_page(running: Service) -> None:
    headers = [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")]
    assert ask(running, "/console", *headers).status == 200
    assert ask(running, "/console", headers[0]).status == 403


def test_the_other_port_has_no_console(running: Service, key: str) -> None:
    for target in PAGES:
        assert running.get(target, key).code() == "no_such_route"
    assert ask(running, "/console/lookup").code() == "method_not_allowed"
    assert ask(running, "/console/").code() == ask(running, "/console/console.html").code() == "no_such_route"
