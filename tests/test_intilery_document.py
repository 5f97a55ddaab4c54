"""Intilery's document: each request in it, with a host, an id and a key of ours, gets the answer that stands beside it.

The answers are read from the document, and what is loaded is made of them. They are loosely written: "..." stands for
members that are left out, and some end in a brace too many, which is not read.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from brands import found
from service import Answer, Service, request

DOCUMENT = Path(__file__).parents[2] / "shared" / "seeds" / "003_ad60e55f45a55d25.txt"
TEXT = DOCUMENT.read_text(encoding="utf-8")
ID, EMAIL = "4c90b9cf-5e4d-4689-ba57-b0f3e7c813fe", "joe.bloggs@intilery.com"
PROFILES_DECLARED = """
id = "id"
identifiers = ["externalId", {{ column = "email", unique = false, normalize = "lower" }}]
{audiences}
[workspaces.{name}.intilery]
client = "intilery"
account = "marketing"
brand = "MARKETING"
id_types = {{ id = "id", userId = "externalId", email = "email" }}
{named}
"""
# What of the rest of a profile and of events each sample has.
NAMED = {
    "traits": "",
    "events": 'source = "source"\nreceived = "receivedTime"',
    "meta": 'created_by = "createdBy"\nreceived = "receivedTime"',
}
EVENTS_DECLARED = """
[workspaces.{name}.events]
sql = "SELECT * FROM events"
profile = "id"
name = "eventAction"
time = "eventTime"
id = "eventId"
"""
# The types of columns; those that are named nowhere are text, or JSON where a value is an object.
TYPES = {"eventTime": "TIMESTAMP", "receivedTime": "TIMESTAMP", "audience_board": "BOOLEAN", "other": "BOOLEAN"}


def answer_of(what: str, heading: str) -> Any:
    """The answer that stands under this heading, behind the request for it."""
    start = TEXT.index(f"\n{heading}\n", TEXT.index(f'{{idType}}:{{id}}/{what}"')) + len(heading) + 2
    return json.JSONDecoder().raw_decode(re.sub(r",\s*\.\.\.\s*}", "}", TEXT[start:].lstrip()))[0]


def request_of(what: str, service: Service, id_type: str, value: str, key: str) -> bytes:
    """The request for it, with what is the caller's own filled in."""
    [line] = [found for found in re.findall(r"curl .*", TEXT) if f'/{{idType}}:{{id}}/{what}"' in found]
    words = shlex.split(line.replace("\\ ", " "))
    filled = {"clientId": "intilery", "accountId": "marketing", "BRANDID": "MARKETING", "idType": id_type, "id": value}
    target = re.sub(r"\{(\w+)\}", lambda name: filled[name[1]], words[1].removeprefix("https://tracking.intilery.com"))
    headers = [header.replace("1234abcd", key).split(": ") for flag, header in pairwise(words) if flag == "-H"]
    assert [words[words.index("-X") + 1], len(headers)] == ["GET", 2]
    return request(target, None, *((name, text) for name, text in headers))


TRAITS, EVENTS, META = (
    answer_of(what, heading)
    for what, heading in [("traits", "200 OK (single response)"), ("events", "200 OK"), ("meta", "200 OK")]
)
# What the "..." of the first events stands for: each action has a first event as it has a last one.
META["firstEvent"]["email_opened"] = META["lastEvent"]["email_opened"]


def load(service: Service, workspace: str, profile: dict[str, Any], events: list[dict[str, Any]]) -> None:
    for table, rows in (("profiles", [profile]), ("events", events)):
        file = service.folder / f"{workspace}-{table}.json"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        kinds = {name: "JSON" if isinstance(row[name], dict) else "VARCHAR" for row in rows for name in row}
        columns = ", ".join(f"'{name}': '{TYPES.get(name, kind)}'" for name, kind in kinds.items())
        if rows:
            service.run_sql(f"CREATE TABLE {table} AS FROM read_json('{file}', columns = {{{columns}}})", workspace)
    service.load(workspace)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A workspace for each of the three samples, whose profiles differ."""
    audiences = {"traits": "", "events": "", "meta": 'audiences = ["audience_board", "other"]'}
    spaces = {
        name: PROFILES_DECLARED.format(name=name, audiences=declared, named=NAMED[name])
        for name, declared in audiences.items()
    }
    for name in ("events", "meta"):
        spaces[name] += EVENTS_DECLARED.format(name=name)
    made = Service(tmp_path_factory.mktemp("document"), spaces)
    load(made, "traits", TRAITS, [])
    happened = [{**event, **event["rawData"], "id": ID} for event in EVENTS["data"]]
    own = {"externalId", "email", "clientId", "accountId", "brandId", "customerId", "rawData"}
    profile = {name: EVENTS["data"][0][name] for name in ("id", "externalId", "email")}
    load(made, "events", profile, [{name: row[name] for name in row if name not in own} for row in happened])
    kinds = [(action, event) for when in ("firstEvent", "lastEvent") for action, event in META[when].items()]
    unique = {event["eventId"]: {**event, "id": ID, "eventAction": action} for action, event in kinds}
    columns = {"firstEvent", "lastEvent", "audiencesStatic", "lastActivityTime"}
    profile = {name: META[name] for name in META if name not in columns}
    load(made, "meta", {**profile, "audience_board": True, "other": False}, list(unique.values()))
    made.start()
    yield made
    made.stop()


def told(service: Service, what: str, id_type: str, value: str) -> Answer:
    return service.ask(request_of(what, service, id_type, value, service.key(what)))


@pytest.mark.parametrize(("id_type", "value"), [("userId", EMAIL), ("id", ID)])
def test_traits_by_an_id_that_is_unique(service: Service, id_type: str, value: str) -> None:
    assert found(told(service, "traits", id_type, value)) == TRAITS


def test_traits_by_email(service: Service) -> None:
    assert found(told(service, "traits", "email", EMAIL)) == answer_of("traits", "200 OK (multiple response)")


@pytest.mark.parametrize(("id_type", "value"), [("userId", EMAIL), ("email", EMAIL), ("id", ID)])
def test_events(service: Service, id_type: str, value: str) -> None:
    answer = found(told(service, "events", id_type, value))
    assert re.fullmatch(r"[A-Za-z0-9_-]+", answer["scrollId"])
    assert {**answer, "scrollId": EVENTS["scrollId"]} == EVENTS


def test_metadata(service: Service) -> None:
    assert found(told(service, "meta", "userId", EMAIL)) == META
    assert found(told(service, "meta", "email", EMAIL)) == {"data": [META]}


@pytest.mark.parametrize("what", ["traits", "events", "meta"])
def test_a_profile_that_is_not_there(service: Service, what: str) -> None:
    answer = told(service, what, "userId", "qrc-117322")
    documented = answer_of(what, "404 Not Found")
    # That of traits is spelled otherwise, in two ways.
    documented["error"]["message"] = "Profile was not found."
    assert (answer.status, answer.json()) == (404, documented)


def test_an_id_without_its_type(service: Service) -> None:
    answer = service.ask(request_of("traits", service, "", "", service.key("traits")))
    start = TEXT.index("{", TEXT.index("\nError Body\n"))
    assert (answer.status, answer.json()) == (400, json.JSONDecoder().raw_decode(TEXT[start:])[0])


def test_the_list_of_all_profiles_until_there_are_no_more(service: Service) -> None:
    target, next_target = (
        re.sub(r"\{\w+\}", "{}", url).format("intilery", "marketing", "MARKETING")
        for url in re.findall(r"GET https://tracking.intilery.com(/\S+/profiles\b(?!/)\S*)", TEXT)
    )
    key = ("auth-token", service.key("traits"))
    first = found(service.ask(request(target, None, key)))
    assert (list(first), first["data"]) == (["scrollId", "data"], [TRAITS])
    last = found(service.ask(request(next_target.replace("<your-scroll-id>", first["scrollId"]), None, key)))
    assert last["data"] == []


def test_every_answer_has_a_request_id(service: Service) -> None:
    name = re.findall(r"x-amzn-RequestId", TEXT)[0].lower()
    answers = [told(service, "traits", "id", value) for value in (ID, "nobody", "")]
    assert len({answer.headers[name] for answer in answers}) == 3
