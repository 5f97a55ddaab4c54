"""What a service logs: a line for each request, in either format, without anything of what was asked and answered."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import pytest
from batches import PROJECT, UPDATE, call
from brands import asked
from conftest import MakeService
from partners import posted
from service import DECLARED, Service, many, pipelined, request, until
from test_http_tokens import content
from test_logs import ENTRY
from test_metrics import scrape
from test_renewal import all_replaced, hang_up

ALL = f"""{DECLARED}
[workspaces.shop.events]
sql = "SELECT * FROM events"
profile = "profile_id"
name = "name"
time = "moment"
[workspaces.shop.insider]
partner = "mybrand"
identifiers = {{ email = "email" }}
[workspaces.shop.mparticle]
org = "1"
account = "2"
workspace = "3"
mpid = "profile_id"
[workspaces.shop.intilery]
client = "acme"
account = "marketing"
brand = "SHOP"
id_types = {{ id = "profile_id", email = "email" }}
[workspaces.shop.batch]
project = "{PROJECT}"
"""
# All that is anybody's has this word in it, which is in no line.
CANARY = "canary"
NUMBER = "9080350317581165"
# What is no request id is replaced by one of ours: it must not look like more than it is.
ODD_NAMES = ['a"b', "a\\b", "a b", "é", "x" * 129, '","level":"error', "x status=500", ""]
WAREHOUSE = """
CREATE TABLE profiles AS SELECT 'canary-id' AS profile_id, 'canary@example.com' AS email, 'canary-tablet' AS device_id,
    'canary-name' AS first_name, 1.5 AS lifetime_value, true AS high_spenders, false AS churn_risk, now() AS updated_at;
INSERT INTO profiles BY NAME SELECT '9080350317581165' AS profile_id;
CREATE TABLE events AS SELECT 'canary-id' AS profile_id, 'canary-event' AS name, now() AS moment, 'canary-page' AS page;
"""
ID = "/v1/profiles/id/canary-id"
EMAIL = "/v1/profiles/identifier/email/canary@example.com"
PROFILE = f"/userprofile/v1/1/2/3/{NUMBER}?fields=user_attributes"
BRAND = "/track/acme/marketing/SHOP/v1/profiles/id:canary-id/traits"
AGENT = ("User-Agent", "canary-agent/1")
Format = Literal["text", "json"]


class Sent(NamedTuple):
    """A request but for its id, and what its line says of it."""

    content: bytes
    surface: str
    status: int
    method: str = "GET"
    workspace: str | None = "shop"


def mixed(key: str) -> list[Sent]:
    """Good and bad requests on every surface. Of the loader's work some is done, some refused."""
    reader = {"client_id": key[8:20], "client_secret": key, "grant_type": "client_credentials"}
    bad_key = f"{key[:-1]}{'A' if key[-1] != 'A' else 'B'}"
    whom = {"email": "canary@example.com"}
    update = [{"identifiers": {"custom_id": "canary-id"}, "attributes": {"canary_attribute": "canary-value"}}]
    return [
        Sent(request(ID, key, AGENT), "native", 200),
        Sent(request(ID, key, method="HEAD"), "native", 200, "HEAD"),
        Sent(request(f"{EMAIL}?fields=attributes", key), "native", 200),
        Sent(request(f"{ID}/events", key), "native", 200),
        Sent(request(f"{ID}?fields=canary", key), "native", 400),
        Sent(request("/v1/profiles/identifier/canary/x", key), "native", 400),
        Sent(request(ID, bad_key), "native", 401, workspace=None),
        Sent(request(ID), "native", 401, workspace=None),
        Sent(request(f"{ID}-2", key), "native", 404),
        Sent(request(ID, key, method="CANARY"), "native", 405, "other", None),
        Sent(request(f"/v1/profiles/id/{CANARY * 2_000}", key), "native", 414, workspace=None),
        Sent(many({"profiles": [{"id": "canary-id"}]}, key), "native_batch", 200, "POST"),
        Sent(many(b'{"profiles": [{"canary": 1}]}', key), "native_batch", 400, "POST"),
        Sent(many({"profiles": [{"id": "canary-id"}]}, bad_key), "native_batch", 401, "POST", None),
        Sent(posted({"identifiers": whom, "attributes": ["*"]}, key), "insider", 200, "POST"),
        Sent(posted({"identifiers": {"canary": "canary"}}, key), "insider", 400, "POST"),
        Sent(posted({"identifiers": whom}, bad_key), "insider", 401, "POST", None),
        Sent(content(reader), "mparticle", 200, "POST"),
        Sent(content({**reader, "client_secret": bad_key}), "mparticle", 401, "POST", None),
        Sent(request(PROFILE, key), "mparticle", 200),
        Sent(request(PROFILE.replace("/3/", "/canary/"), key), "mparticle", 403),
        Sent(asked(BRAND, key), "intilery", 200),
        Sent(asked(f"{BRAND}?canary=1", bad_key), "intilery", 401, workspace=None),
        Sent(call(UPDATE, key, update), "batch", 202, "POST"),
        Sent(call(UPDATE, key, b"[{canary"), "batch", 400, "POST"),
        Sent(call(UPDATE, bad_key, update), "batch", 401, "POST", None),
        Sent(call("/2.4/profiles/canary", key, update), "batch", 404, "POST", None),
        Sent(request(f"{ID}-3", key, method="DELETE"), "native", 204, "DELETE"),
        Sent(request(ID, bad_key, method="DELETE"), "native", 401, "DELETE", None),
        Sent(request("/livez?canary", key), "other", 200, workspace=None),
        Sent(request("/canary", key), "other", 404, workspace=None),
    ]


def with_name(sent: bytes, name: str) -> bytes:
    return sent.replace(b"\r\n", f"\r\nX-Request-Id: {name}\r\n".encode(), 1)


def make(make_service: MakeService, form: Format, requests: str, **options: Any) -> Service:
    server = f'ready_delay_seconds = 0\ndrain_seconds = 5\n[log]\nformat = "{form}"\nrequests = "{requests}"'
    service = make_service({"shop": ALL}, server=server, **options)
    service.run_sql(WAREHOUSE)
    service.load()
    return service


def fields_of(line: str) -> dict[str, Any]:
    """What an entry says, from either format; a number is one in both."""
    if line.startswith("{"):
        found: dict[str, Any] = json.loads(line)
        return found
    entry = ENTRY.fullmatch(line)
    assert entry is not None, line
    message, *pairs = entry[4].split(" ")
    found = {"message": message if message == "request" else entry[4], "level": entry[2].lower(), "pid": int(entry[3])}
    if message == "request":
        for name, value in (pair.split("=") for pair in pairs):
            found[name] = int(value) if name in ("status", "duration_us") else value
    return found


def requests_in(service: Service) -> list[dict[str, Any]]:
    """All that is said of requests, as far as it is written."""
    lines = [line for line in service.log().splitlines(keepends=True) if line.endswith("\n")]
    return [fields_of(line) for line in lines if re.search(r'\] request |"message":"request"', line)]


@pytest.mark.parametrize("form", ["text", "json"])
def test_each_request_has_one_line_and_nothing_of_what_it_asked(make_service: MakeService, form: Format) -> None:
    service = make(make_service, form, "all", workers=2, with_admin=True)
    key = service.mint(scopes=("read", "write"))
    service.watch()
    service.start()
    names = [f"r{number}" for number in range(len(mixed(key)))]
    expected: dict[str, Sent] = {}
    for name, sent in [*zip(names, mixed(key), strict=True), *((odd, mixed(key)[0]) for odd in ODD_NAMES)]:
        with contextlib.closing(service.connect()) as connection:
            connection.send(with_name(sent.content, name))
            answer = connection.read(is_head=sent.method == "HEAD")
            assert answer.status == sent.status, (sent, answer)
            given = name if name in names else answer.headers["x-request-id"]
            assert expected.setdefault(given, sent) is sent
    assert not set(ODD_NAMES) & set(expected)

    def lines() -> list[dict[str, Any]]:
        # Those by which it is waited for are no test's.
        return [each for each in requests_in(service) if each["request_id"] in expected or each["surface"] != "other"]

    until(lambda: len(lines()) >= len(expected), "all are there")
    service.stop()
    assert sorted(each["request_id"] for each in lines()) == sorted(expected)
    for each in lines():
        sent = expected[each["request_id"]]
        said = (each["surface"], each["status"], each["method"], each.get("workspace"))
        assert said == (sent.surface, sent.status, sent.method, sent.workspace), each
        assert each["level"] == ("error" if sent.status >= 500 else "info")
        assert 0 <= each["duration_us"] < 60_000_000
    log = service.log()
    assert not [mark for mark in (CANARY, NUMBER, key[8:20]) if mark in log.lower()]
    for line in log.splitlines(keepends=True):
        if form == "json":
            assert isinstance(json.loads(line), dict)
        else:
            assert ENTRY.fullmatch(line) or line.startswith("time="), line


def test_which_requests_have_a_line_and_of_what_format_is_taken_over_at_sighup(make_service: MakeService) -> None:
    service = make_service({"shop": ALL}, server="ready_delay_seconds = 0\ndrain_seconds = 0.2")
    service.run_sql(WAREHOUSE)
    service.load()
    key = service.mint(scopes=("read", "write"))
    service.start()

    def ask(name: str) -> None:
        assert service.get(ID, key, ("X-Request-Id", f"{name}-good")).status == 200
        assert service.get(f"{ID}-2", key, ("X-Request-Id", f"{name}-bad")).status == 404
        # There is no loader that could do this.
        assert service.get(ID, key, ("X-Request-Id", f"{name}-failed"), method="DELETE").status == 503

    def choose(requests: str) -> None:
        workers = service.workers()
        service.file.write_text(f'{text}[log]\nformat = "json"\nrequests = "{requests}"\n', encoding="utf-8")
        hang_up(service)
        until(lambda: all_replaced(service, workers), "the worker is a new one")

    text = service.file.read_text(encoding="utf-8")
    ask("by-default")
    choose("all")
    ask("all")
    choose("none")
    ask("none")
    service.stop()
    found = {each["request_id"]: each["status"] for each in requests_in(service) if each["surface"] != "other"}
    assert found == {"by-default-failed": 503, "all-good": 200, "all-bad": 404, "all-failed": 503}
    *_, last = service.log().splitlines()
    assert json.loads(last)["level"] == "info"


def test_the_last_lines_are_written_when_it_is_told_to_end(make_service: MakeService) -> None:
    service = make(make_service, "json", "all")
    service.start()
    key = service.key()
    with contextlib.closing(service.connect()) as connection:
        for answer in pipelined(connection, request(ID, key, ("X-Request-Id", "last")), 300):
            assert answer.status == 200
        service.stop()
    assert [each["request_id"] for each in requests_in(service)].count("last") == 300


class Stuck(NamedTuple):
    """A service whose standard error nobody reads, until somebody does."""

    service: Service
    end: int

    def read(self) -> bytes:
        """What there is."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self.end, 1 << 20)
        return b""


@pytest.fixture
def stuck(make_service: MakeService) -> Iterator[Stuck]:
    service = make(make_service, "json", "all", workers=2, with_admin=True)
    there, here = os.pipe()
    os.set_blocking(there, False)
    service.start(stderr=here)
    os.close(here)
    yield Stuck(service, there)
    with contextlib.suppress(OSError):
        os.close(there)


def drops(service: Service) -> float:
    return scrape(service)["edgeprofile_log_lines_dropped_total"][()]


def test_a_reader_that_does_not_read_stops_nothing_and_what_it_misses_is_counted(stuck: Stuck) -> None:
    service = stuck.service
    key = service.key()
    sent = 0
    while not drops(service):
        for connection in service.connect_to_each():
            with contextlib.closing(connection):
                for answer in pipelined(connection, request(ID, key), 5_000):
                    assert answer.status == 200
                    sent += 1
        assert sent < 200_000, "that would be more than a process holds"
    # What is not a request's has its place in the same memory, and waits for nobody either.
    old = service.workers()
    os.kill(old[0], signal.SIGKILL)
    until(lambda: len(set(service.workers()) - set(old)) == 1 and service.get(ID, key).status == 200, "it is replaced")
    assert scrape(service)["edgeprofile_requests_total"][("200", "native")] > sent

    entries: list[dict[str, Any]] = []
    rest = b""

    def is_said() -> bool:
        nonlocal rest
        *lines, rest = (rest + stuck.read()).split(b"\n")
        entries.extend(json.loads(line) for line in lines)
        return any("log lines were dropped" in each["message"] for each in entries)

    until(is_said, "the reader is told once it reads")
    missed = next(each for each in entries if "log lines were dropped" in each["message"])
    assert missed["level"] == "warning"
    assert int(missed["message"].split()[0]) <= drops(service)


def test_a_service_ends_though_nobody_reads(stuck: Stuck) -> None:
    service = stuck.service
    key = service.key()
    for connection in service.connect_to_each():
        with contextlib.closing(connection):
            for answer in pipelined(connection, request(ID, key), 2_000):
                assert answer.status == 200
    service.stop()


def test_a_service_whose_reader_has_gone_serves_on(stuck: Stuck) -> None:
    os.close(stuck.end)
    service = stuck.service
    key = service.key()
    before = drops(service)
    assert service.get(ID, key).status == 200
    until(lambda: drops(service) > before, "it is counted")
    assert service.get(ID, key).status == 200
