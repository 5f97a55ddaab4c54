"""Updates and erasures end to end: what a caller was told is on disk and served, whatever process ends when."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from batches import BATCHED, MASS_UPDATE, UPDATE, call
from conftest import MakeService
from hypothesis import given
from hypothesis import strategies as st
from service import Answer, Service, request, until
from test_http_batch import assert_error

from edgeprofile import snapshot

EVENTS = """
[workspaces.shop.events]
sql = "SELECT * FROM events"
profile = "profile_id"
name = "event_name"
time = "event_time"
id = "event_id"
"""
MODEL = """
CREATE TABLE profiles AS SELECT * FROM (VALUES
    ('jane', 'jane@example.com', 'd1', 1.50, true, false, 'Jane', ['bikes', 'cinema'], TIMESTAMP '2025-06-10'),
    ('joe', 'joe@example.com', 'd2', 0, false, false, 'Joe', NULL, TIMESTAMP '2025-06-10'),
    ('gone', 'gone@example.com', 'd3', 0, false, false, 'Gone', NULL, TIMESTAMP '2025-06-10')
) AS made(profile_id, email, device_id, lifetime_value, high_spenders, churn_risk, firstname, interests, updated_at);
CREATE TABLE events AS SELECT 'jane' AS profile_id, 'page' AS event_name, TIMESTAMP '2025-06-10' AS event_time,
    'e1' AS event_id, '/' AS url;
"""


def prepared(service: Service) -> Service:
    service.run_sql(MODEL)
    service.load()
    service.watch()
    return service.start()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("updates"), {"shop": BATCHED + EVENTS}, workers=2)
    yield prepared(made)
    made.stop()


@pytest.fixture(scope="module")
def key(service: Service) -> str:
    return service.key(scopes=("read", "write"))


def update(custom_id: str, attributes: dict[str, Any] | None = None, *events: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"identifiers": {"custom_id": custom_id}}
    if attributes is not None:
        made["attributes"] = attributes
    return made | ({"events": list(events)} if events else {})


def send(service: Service, key: str, *updates: dict[str, Any], path: str = UPDATE) -> Answer:
    return service.ask(call(path, key, list(updates)))


def assert_success(answer: Answer) -> None:
    assert (answer.status, answer.body) == (202, b'{"code":"SUCCESS"}')


def profile(service: Service, key: str, of: str) -> dict[str, Any] | None:
    answer = service.get(f"/v1/profiles/{of}", key)
    assert answer.status in (200, 404)
    return answer.json() if answer.status == 200 else None


# --- what is served ------------------------------------------------------------------------------------------------


def test_what_the_vendor_shows_is_served_by_every_worker_as_soon_as_it_is_answered(service: Service, key: str) -> None:
    # The attributes and the event of the vendor's own sample, of whom it shows as custom_id.
    sample = update(
        "jane_doe@batch-store.com",
        {
            "$email_address": "jane_doe@batch-store.com",
            "$email_marketing": "subscribed",
            "$phone_number": "+33639981337",
            "$sms_marketing": "unsubscribed",
            "$language": "en",
            "$region": "FR",
            "$timezone": "Europe/Paris",
            "firstname": "Jane",
            "date(birthdate)": "1989-07-20T00:00:00Z",
            "interests": ["bikes", "cinema"],
            "reward_programs": {"$add": ["premium_customer"]},
        },
        {
            "name": "added_to_cart",
            "attributes": {
                "$label": "pumpkin",
                "quantity": 5,
                "unit_price": 3.99,
                "$tags": ["fruits", "organic", "on_sale"],
            },
        },
    )
    assert_success(send(service, key, sample))
    for connection in service.connect_to_each():
        with connection:
            answer = connection.ask(request("/v1/profiles/id/jane_doe@batch-store.com", key)).json()
            assert dt.datetime.fromisoformat(answer.pop("_updated_at")).year >= 2025
            assert answer == {
                "profile_id": "jane_doe@batch-store.com",
                "firstname": "Jane",
                "interests": ["bikes", "cinema"],
                "email_address": "jane_doe@batch-store.com",
                "email_marketing": "subscribed",
                "phone_number": "+33639981337",
                "sms_marketing": "unsubscribed",
                "language": "en",
                "region": "FR",
                "timezone": "Europe/Paris",
                "birthdate": "1989-07-20T00:00:00Z",
                "reward_programs": ["premium_customer"],
                "_audiences": {},
            }
    (event,) = service.get("/v1/profiles/id/jane_doe@batch-store.com/events", key).json()["events"]
    assert event["name"] == "added_to_cart"
    assert event["params"] == {
        "label": "pumpkin",
        "quantity": 5,
        "unit_price": 3.99,
        "tags": ["fruits", "organic", "on_sale"],
    }


def test_an_update_holds_over_the_model_until_it_is_cleared(service: Service, key: str) -> None:
    assert_success(send(service, key, update("joe", {"firstname": "Joseph", "lifetime_value": 7.25, "new": True})))
    found = profile(service, key, "id/joe")
    assert found is not None
    assert (found["firstname"], found["lifetime_value"], found["new"]) == ("Joseph", 7.25, True)
    assert_success(send(service, key, update("joe", {"firstname": None, "lifetime_value": None, "new": None})))
    found = profile(service, key, "id/joe")
    assert found is not None
    assert (found["firstname"], found["lifetime_value"], found.get("new")) == ("Joe", 0, None)


def test_a_changed_identifier_finds_its_profile_and_the_old_one_nobody(service: Service, key: str) -> None:
    assert_success(send(service, key, update("joe", {"email": "Joseph@Example.COM"})))
    found = profile(service, key, "identifier/email/joseph@example.com")
    assert found is not None
    assert (found["profile_id"], found["email"]) == ("joe", "Joseph@Example.COM")
    assert profile(service, key, "identifier/email/joe@example.com") is None
    assert_success(send(service, key, update("joe", {"email": None})))
    assert profile(service, key, "identifier/email/joe@example.com") == profile(service, key, "id/joe")


def test_arrays_are_added_to_and_removed_from(service: Service, key: str) -> None:
    assert_success(send(service, key, update("jane", {"interests": {"$add": ["garden", "bikes"]}})))
    assert_success(
        send(service, key, update("jane", {"interests": {"$remove": ["cinema"]}, "none": {"$remove": ["x"]}}))
    )
    found = profile(service, key, "id/jane")
    assert found is not None
    assert found["interests"] == ["bikes", "garden"]
    many = [f"i{n}" for n in range(24)]
    answer = send(service, key, update("joe"), update("jane", {"a": 1, "interests": {"$add": many}}))
    assert answer.status == 202
    (error,) = answer.json()["errors"]
    assert (error["category"], error["bulk_index"], error["attribute"]) == ("attribute", 1, "interests")
    found = profile(service, key, "id/jane")
    assert found is not None
    assert (found["a"], found["interests"]) == (1, ["bikes", "garden"])


def test_events_join_those_of_the_model_by_their_time(service: Service, key: str) -> None:
    then = dt.datetime.now(dt.UTC) - dt.timedelta(hours=23)
    events = [{"name": "later"}, {"name": "sooner", "time": then.isoformat()}]
    assert_success(send(service, key, update("jane", None, *events)))
    found = service.get("/v1/profiles/id/jane/events", key).json()["events"]
    assert [event["name"] for event in found] == ["later", "sooner", "page"]
    assert dt.datetime.fromisoformat(found[1]["time"]) == then


def test_the_same_profile_twice_in_a_call_is_updated_in_order(service: Service, key: str) -> None:
    assert_success(send(service, key, *[update("twice", {"n": n, f"a{n}": n}) for n in range(5)]))
    found = profile(service, key, "id/twice")
    assert found is not None
    assert [found["n"], *(found[f"a{n}"] for n in range(5))] == [4, 0, 1, 2, 3, 4]


def test_ten_thousand_profiles_are_made_by_one_call(service: Service, key: str) -> None:
    answer = send(service, key, *[update(f"mass-{n}", {"n": n}) for n in range(10_000)], path=MASS_UPDATE)
    assert_success(answer)
    for n in (0, 1, 4_999, 9_999):
        found = profile(service, key, f"id/mass-{n}")
        assert found is not None
        assert found["n"] == n


NAMES = st.sampled_from(["s1", "s2", "s3", "s4"])
TEXTS = st.text('aé"\\', min_size=1, max_size=3)
VALUES = st.none() | st.integers(-5, 5) | st.booleans() | TEXTS | st.lists(TEXTS, max_size=2)
CHANGES = st.tuples(st.sampled_from(["g1", "g2"]), st.dictionaries(NAMES, VALUES, min_size=1))


@hypothesis.settings(max_examples=20)
@given(st.lists(st.lists(CHANGES, min_size=1, max_size=3), min_size=1, max_size=3))
def test_any_updates_are_served_as_they_were_sent(
    service: Service, key: str, calls: list[list[tuple[str, dict[str, Any]]]]
) -> None:
    expected: dict[str, dict[str, Any]] = {}
    for changes in calls:
        assert_success(send(service, key, *[update(whose, attributes) for whose, attributes in changes]))
        for whose, attributes in changes:
            expected.setdefault(whose, {}).update(attributes)
    for whose, attributes in expected.items():
        found = profile(service, key, f"id/{whose}")
        assert found is not None
        for name, value in attributes.items():
            assert found.get(name) == value


def test_an_identifier_may_be_what_custom_ids_are_of(make_service: MakeService) -> None:
    service = prepared(make_service({"shop": f'{BATCHED}custom_id = "email"\n{EVENTS}'}))
    key = service.key(scopes=("read", "write"))
    assert_success(send(service, key, update("JOE@example.com", {"a": 1}), update("new@example.com", {"a": 2})))
    found = profile(service, key, "id/joe")
    assert found is not None
    assert (found["a"], found["email"]) == (1, "joe@example.com")
    found = profile(service, key, "identifier/email/new@example.com")
    assert found is not None
    assert (found["a"], found["profile_id"]) == (2, "new@example.com")


# --- erasure -------------------------------------------------------------------------------------------------------


def test_who_was_erased_is_gone_from_every_worker_and_no_update_or_load_brings_them_back(
    service: Service, key: str
) -> None:
    assert_success(send(service, key, update("gone", {"a": 1}, {"name": "page_view"})))
    assert service.get("/v1/profiles/id/gone", key, method="DELETE").status == 204
    for path in ("id/gone", "identifier/email/gone@example.com"):
        assert profile(service, key, path) is None
    assert service.get("/v1/profiles/id/gone/events", key).status == 404
    answer = send(service, key, update("jane", {"b": 1}), update("gone", {"a": 2}))
    (error,) = answer.json()["errors"]
    assert (error["category"], error["bulk_index"]) == ("update", 1)
    assert "erased" in error["reason"]
    service.load()
    found = until(lambda: service.get("/v1/profiles/id/jane", key).status == 200, "it serves")
    assert found
    assert profile(service, key, "id/gone") is None
    # Again, and of nobody: the same answer.
    for path in ("/v1/profiles/id/gone", "/v1/profiles/id/nobody", "/v1/profiles/id/" + "x" * 600):
        assert service.get(path, key, method="DELETE").status == 204


# --- ends of processes ---------------------------------------------------------------------------------------------


def test_what_was_acknowledged_survives_the_end_of_everything(make_service: MakeService) -> None:
    service = make_service({"shop": BATCHED + EVENTS})
    prepared(service)
    key = service.key(scopes=("read", "write"))
    assert_success(send(service, key, update("jane", {"firstname": "Janet"}), update("made", {"a": 1})))
    assert service.get("/v1/profiles/id/joe", key, method="DELETE").status == 204
    service.kill_all()
    service.start()
    # Without a loader too.
    assert seen(service, key) == ("Janet", 1, None)
    service.watch()
    assert seen(service, key) == ("Janet", 1, None)
    service.load()
    assert seen(service, key) == ("Janet", 1, None)


def seen(service: Service, key: str) -> tuple[Any, ...]:
    jane, made, joe = (profile(service, key, f"id/{of}") for of in ("jane", "made", "joe"))
    assert jane is not None
    assert made is not None
    return jane["firstname"], made["a"], joe


def test_a_loader_that_is_killed_again_and_again_loses_nothing_that_was_acknowledged(make_service: MakeService) -> None:
    service = make_service({"shop": BATCHED + EVENTS})
    prepared(service)
    key = service.key(scopes=("read", "write"))
    acknowledged: list[int] = []
    stopping = threading.Event()

    def write() -> None:
        number = 0
        while not stopping.is_set():
            answer = send(service, key, update(f"n{number}", {"n": number}), path=MASS_UPDATE)
            if answer.status == 202:
                acknowledged.append(number)
            else:
                assert_error(answer, 503, "MAINTENANCE_ERROR")
            number += 1

    writing = threading.Thread(target=write)
    writing.start()
    try:
        for _ in range(3):
            count = len(acknowledged)
            until(lambda: len(acknowledged) > count + 20, "updates are taken")  # noqa: B023
            watcher = service.watcher()
            os.kill(watcher.pid, signal.SIGKILL)
            watcher.wait()
            service.watch()
    finally:
        stopping.set()
        writing.join()
    for number in acknowledged:
        found = profile(service, key, f"id/n{number}")
        assert found is not None
        assert found["n"] == number


# --- exports -------------------------------------------------------------------------------------------------------


def test_a_live_layer_that_a_watcher_finds_damaged_is_made_anew_at_once(make_service: MakeService) -> None:
    service = make_service({"shop": BATCHED})
    service.run_sql(MODEL)
    name = service.load().snapshot
    (service.home() / "snapshots" / str(name) / snapshot.LIVE).write_bytes(b"x" * 8192)
    service.watch()
    service.start()
    key = service.key(scopes=("read", "write"))
    until(lambda: snapshot.current(service.home()) != name, "another is published")
    serving = f"serving snapshot {snapshot.current(service.home())},"
    until(lambda: service.log().count(serving) == service.workers_wanted, "all workers have taken it")
    until(lambda: send(service, key, update("jane", {"firstname": "Janet"})).status == 202, "updates are taken")
    assert (profile(service, key, "id/jane") or {})["firstname"] == "Janet"
    assert snapshot.current(service.home()) != name


def test_an_export_is_asked_for_and_had(make_service: MakeService) -> None:
    service = prepared(make_service({"shop": BATCHED + EVENTS}))
    key = service.key(scopes=("read", "write"))
    assert_success(send(service, key, update("jane", {"$email_address": "j@x.org"})))
    wanted = {"export_type": "ATTRIBUTES", "attributes": ["$email_address", "firstname"], "identifiers": ["custom_id"]}
    asked = service.ask(call("/2.4/profiles/export", key, wanted))
    assert asked.status == 202
    view = call(f"/2.4/exports/view?id={asked.json()['id']}", key, method="GET")
    until(lambda: service.ask(view).json()["status"] == "SUCCESS", "it is written")
    (file,) = service.ask(view).json()["files"]
    sent = service.ask(call(file["url"], key, method="GET"))
    assert len(sent.body) == file["size"]
    assert [json.loads(line) for line in gzip.decompress(sent.body).splitlines()] == [
        {"identifiers": {"custom_id": "gone"}, "attributes": {"firstname": "Gone"}},
        {"identifiers": {"custom_id": "jane"}, "attributes": {"$email_address": "j@x.org", "firstname": "Jane"}},
        {"identifiers": {"custom_id": "joe"}, "attributes": {"firstname": "Joe"}},
    ]
