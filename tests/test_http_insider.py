"""Insider's API over real sockets: their documented requests get their documented answer, and what it leaves open."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeService
from partners import DECLARED, PATH, SPACES, WHOLE_RANGE, make, post, posted
from service import Answer, Service, request, until

from edgeprofile import metrics
from edgeprofile._limiter import SharedMap
from edgeprofile.app import SHARED_MAP
from edgeprofile.metrics import limited_slot

ROOT = Path(__file__).parent.parent
# Their sample, of which all three requests have the same events.
SAMPLE_EVENTS: dict[str, Any] = {
    "start_date": 1606311893,
    "end_date": 1611582293,
    "wanted": [
        {"event_name": "email_click", "params": ["campaign_id", "timestamp"]},
        {"event_name": "item_added_to_cart", "params": ["product_id", "name", "timestamp"]},
        {"event_name": "journey_entered", "params": ["journey_id", "timestamp"]},
    ],
}
SAMPLE_ASKED = ["email", "name", "surname"]
SAMPLE_IDENTIFIERS = {"email": "example@useinsider.com"}
SAMPLES: dict[str, dict[str, Any]] = {
    "by an identifier": {"identifiers": SAMPLE_IDENTIFIERS, "attributes": SAMPLE_ASKED},
    "with a custom attribute": {"identifiers": SAMPLE_IDENTIFIERS, "attributes": [*SAMPLE_ASKED, "c_member_code"]},
    # Theirs is "sampleinsiderid", which is not the one that their answer has.
    "by insider_id": {"insider_id": "insider-id-user-1", "attributes": SAMPLE_ASKED},
}
# Theirs lacks the comma behind the surname, which is repaired here.
SAMPLE_ANSWER = """
{
  "attributes": {"email": "example@useinsider.com", "name": "John", "surname": "Doe", "iid": "insider-id-user-1"},
  "events": {
    "email_click": [
      {"campaign_id": 1456, "created_date": "2021-01-06T23:34:09Z"},
      {"campaign_id": 1245, "created_date": "2021-01-01T12:56:21Z"}
    ],
    "item_added_to_cart": [
      {"product_id": "3254634", "name": "Blue Shirt", "created_date": "2021-01-04T15:04:34Z"}
    ],
    "journey_entered": [{"journey_id": 12, "created_date": "2021-01-02T09:35:46Z"}]
  },
  "quota": {"cost": 2.5, "used": 2.5, "total": 1000}
}
"""


@pytest.fixture(scope="module")
def token(insider: Service) -> str:
    return insider.key()


@pytest.fixture(scope="module")
def bank_token(insider: Service) -> str:
    return insider.key("bank")


def found(answer: Answer) -> Any:
    assert answer.status == 200, answer
    return answer.json()


def attributes(service: Service, token: str, asked: list[str], **who: object) -> list[tuple[str, Any]]:
    """The attributes of an answer in their order, but for the last, which is the id."""
    answer = post(service, {"attributes": asked, **(who or {"insider_id": "ann"})}, token)
    assert list(found(answer)) == ["attributes"]
    pairs = list(answer.json()["attributes"].items())
    assert pairs[-1][0] == "iid"
    return pairs[:-1]


def events(service: Service, token: str, who: str, *wanted: object, **more: object) -> Any:
    answer = post(service, {"insider_id": who, "events": {**WHOLE_RANGE, "wanted": wanted, **more}}, token)
    assert found(answer)["attributes"] == {"iid": who}
    return answer.json()["events"]


def numbers(service: Service, token: str, wanted: dict[str, object], **more: object) -> list[int]:
    """Which of Ann's purchases an answer has."""
    listed = events(service, token, "ann", {"event_name": "purchase", "params": ["campaign_id"], **wanted}, **more)
    return [event["campaign_id"] for event in listed["purchase"]]


# --- their document ------------------------------------------------------------------------------------------------


def test_their_requests_get_their_answer(make_service: MakeService) -> None:
    declared = DECLARED.replace("quota_per_minute = 1_000_000", "")  # theirs is the default
    service = make(make_service({**SPACES, "shop": declared}))
    key = service.key()
    service.start()
    cookie = ("Cookie", "__cfduid=d1a0bc0c8335c7fecbd3485839787329b1615112066")
    expected = json.loads(SAMPLE_ANSWER, object_pairs_hook=list)
    used = []
    for sample in SAMPLES.values():
        asked = {**sample, "events": SAMPLE_EVENTS, "quota": True}
        answer = post(service, asked, key, "mybrand", ("Content-Type", "application/json"), cookie)
        assert answer.status == 200, answer
        told = json.loads(answer.body, object_pairs_hook=list)
        used.append(answer.json()["quota"]["used"])
        told[2][1][1] = ("used", 2.5)  # which grows from one to the next
        assert repr(told) == repr(expected)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"]
    assert used[0] == 2.5
    # Another minute may have begun behind each.
    assert all(later in (2.5, earlier + 2.5) for earlier, later in pairwise(used))


def test_an_answer_is_compact_with_figures_as_theirs_and_times_to_the_second(insider: Service, token: str) -> None:
    asked = {**SAMPLES["by an identifier"], "events": {**SAMPLE_EVENTS, "wanted": SAMPLE_EVENTS["wanted"][2:]}}
    assert post(insider, asked, token).body.decode() == (
        '{"attributes":{"email":"example@useinsider.com","name":"John","surname":"Doe","iid":"insider-id-user-1"},'
        '"events":{"journey_entered":[{"journey_id":12,"created_date":"2021-01-02T09:35:46Z"}]}}'
    )


def test_the_docs_show_what_the_sample_shop_answers(sample_shop: Service) -> None:
    key = sample_shop.key()
    shown = 0
    for page in ("docs/api.md", "README.md"):
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        for command, answer in re.findall(rf"^\$ (curl \S*{PATH} .*)\n(.*)$", text, re.MULTILINE):
            words = [word.replace("sk_live_…", key) for word in shlex.split(command)]
            sent = [value.split(": ") for flag, value in pairwise(words) if flag == "-H"]
            [body] = [value for flag, value in pairwise(words) if flag == "-d"]
            headers = [("Content-Length", str(len(body.encode()))), *((name, value) for name, value in sent)]
            content = request(PATH, None, *headers, method="POST", body=body.encode())
            assert sample_shop.ask(content).body.decode() == answer
            shown += 1
    assert shown == 2


def test_a_service_without_partners_has_no_such_path(service: Service, key: str) -> None:
    answer = post(service, SAMPLES["by an identifier"], key)
    assert (answer.status, answer.code()) == (404, "no_such_route")


# --- who -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "name"),
    [
        ({"identifiers": {"email": "ANN@example.com"}}, "ann"),
        ({"identifiers": {"email": "ÉLODIE@example.com"}}, "élodie"),
        ({"identifiers": {"phone_number": "+999 1"}}, "ann"),
        ({"identifiers": {"uuid": "u-1"}}, "ann"),
        ({"identifiers": {"custom": {"loyalty": "L1"}}}, "ann"),
        ({"identifiers": {"custom": {"member": "ann"}}}, "ann"),
        ({"identifiers": {"custom": {"unknown": "L2", "member": "ann"}}}, "ann"),
        ({"identifiers": {"iban": "L1"}}, "ann"),
        ({"insider_id": "ann"}, "ann"),
        ({"insider_id": "ann", "identifiers": {"uuid": "u-2"}}, "ann"),
        ({"insider_id": "", "identifiers": {"uuid": "u-2"}}, "élodie"),
        ({"insider_id": None, "identifiers": {"uuid": "u-2"}}, "élodie"),
        # The first of theirs that is there, whatever the order in the body or in the settings.
        (
            {"identifiers": {"custom": {"loyalty": "L2"}, "iban": "L2", "uuid": "u-2", "email": "ann@example.com"}},
            "ann",
        ),
        ({"identifiers": {"uuid": "u-2", "phone_number": "+999 1"}}, "ann"),
        ({"identifiers": {"custom": {"loyalty": "L2"}, "uuid": "u-1"}}, "ann"),
        ({"identifiers": {"custom": {"member": "ann", "loyalty": "L2"}}}, "élodie"),
        ({"identifiers": {"email": "", "phone_number": None, "uuid": "u-1"}}, "ann"),
        ({"identifiers": {"facebook": "ann", "uuid": "u-1", "custom": None}}, "ann"),
    ],
)
def test_a_profile_is_found_by_the_first_identifier_that_is_given(
    insider: Service, token: str, who: dict[str, object], name: str
) -> None:
    assert found(post(insider, {"attributes": [], **who}, token)) == {"attributes": {"iid": name}}


@pytest.mark.parametrize(
    "who",
    [
        {"identifiers": {"email": "nobody@example.com"}},
        {"identifiers": {"email": "nobody@example.com", "uuid": "u-1"}},
        {"identifiers": {"uuid": "U-1"}},
        {"identifiers": {"uuid": "\0"}},
        {"identifiers": {"uuid": "x" * 100_000}},
        {"identifiers": {"custom": {"loyalty": "ann"}}},
        {"insider_id": "nobody"},
        {"insider_id": "ann\0"},
        {"insider_id": "x" * 100_000},
    ],
)
def test_who_is_unknown_has_no_data(insider: Service, token: str, who: dict[str, object]) -> None:
    for asked in ({"attributes": ["*"]}, {"events": SAMPLE_EVENTS}):
        answer = post(insider, {**asked, **who}, token)
        assert (answer.status, answer.body) == (404, b'{"error":"no such user for these identifiers: no data"}')


def test_a_partner_sees_its_own_workspace(insider: Service, token: str, bank_token: str) -> None:
    asked = {"insider_id": "ann", "attributes": ["cards", "name"]}
    assert found(post(insider, asked, token))["attributes"] == {"name": "Ann", "iid": "ann"}
    assert found(post(insider, asked, bank_token, "the-bank"))["attributes"] == {"cards": 7, "iid": "ann"}


# --- attributes ----------------------------------------------------------------------------------------------------


def test_attributes_come_as_asked_for_in_that_order_and_without_those_that_are_not_there(
    insider: Service, token: str
) -> None:
    asked = ["orders", "name", "surname", "nothing", "email", "address", "id", 'a "b" c']
    address = {"city": "Zürich", "zip": None}
    assert attributes(insider, token, asked) == [
        ("orders", 3), ("name", "Ann"), ("email", "Ann@Example.com"), ("address", address), ("id", "ann"),
        ('a "b" c', "hi"),
    ]  # fmt: skip
    assert attributes(insider, token, []) == []


def test_a_star_is_all_identifiers_attributes_and_metrics_but_no_audience(insider: Service, token: str) -> None:
    everything = attributes(insider, token, ["*"])
    names = ["id", "email", "phone", "user_id", "loyalty_id", "name", "c_colour", 'a "b" c', "address", "orders"]
    assert [name for name, _ in everything] == names
    assert attributes(insider, token, ["name", "*", "name"]) == everything
    assert attributes(insider, token, ["*", "c_name"]) == [*everything, ("c_name", "Ann")]
    assert attributes(insider, token, ["vip"]) == attributes(insider, token, ["_audiences", "_updated_at"]) == []


def test_the_prefix_of_custom_attributes_matches_with_and_without_ours(insider: Service, token: str) -> None:
    assert attributes(insider, token, ["c_name", "c_colour"]) == [("c_name", "Ann"), ("c_colour", "red")]
    assert attributes(insider, token, ["colour", "c_c_colour"]) == [("c_c_colour", "red")]
    assert attributes(insider, token, ["name", "c_name", "name"]) == [("name", "Ann"), ("c_name", "Ann")]


def test_iid_is_always_the_primary_id(insider: Service, token: str) -> None:
    for asked in (["iid"], ["*"], []):
        answer = post(insider, {"insider_id": "ann", "attributes": asked}, token)
        assert answer.body.endswith(b'"iid":"ann"}}')
        assert answer.body.count(b'"iid"') == 1
    assert attributes(insider, token, ["c_iid"]) == [("c_iid", "not the id")]


def test_attributes_follow_a_new_snapshot(make_service: MakeService) -> None:
    service = make(make_service(SPACES))
    key = service.key("bank")
    service.start()
    asked = {"insider_id": "ann", "attributes": ["cards", "name"], "events": {**WHOLE_RANGE, "wanted": []}}
    assert found(post(service, asked, key, "the-bank"))["attributes"] == {"cards": 7, "iid": "ann"}
    service.run_sql("CREATE OR REPLACE TABLE profiles AS SELECT 'ann' AS id, 'Ann' AS name, 8 AS cards", "bank")
    service.load("bank")
    until(lambda: found(post(service, asked, key, "the-bank"))["attributes"].get("name"), "the refresh is served")
    assert found(post(service, asked, key, "the-bank"))["attributes"] == {"cards": 8, "name": "Ann", "iid": "ann"}


# --- events --------------------------------------------------------------------------------------------------------


def test_events_come_by_name_newest_first_with_the_parameters_wanted(insider: Service, token: str) -> None:
    odd = {
        "event_name": 'Käse "view"',
        "params": ["source", "timestamp", "event_id", "id", "moment", "event", "nothing"],
    }
    never = {"event_name": "refund", "params": ["source"]}
    listed = events(insider, token, "ann", never, odd, {"event_name": "purchase", "params": ["source", "campaign_id"]})
    assert list(listed) == ["refund", 'Käse "view"', "purchase"]
    assert listed["refund"] == []
    assert listed['Käse "view"'] == [{"created_date": "2001-09-09T01:46:40Z"}]
    assert listed["purchase"][:3] == [
        {"campaign_id": 8}, {"source": "email", "campaign_id": 7}, {"source": "web", "campaign_id": 6}
    ]  # fmt: skip
    assert [event["campaign_id"] for event in listed["purchase"]] == [8, 7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ([], {}),
        (["timestamp", "timestamp"], {"created_date": "2001-09-09T01:46:40Z"}),
        (["created_date"], {"created_date": "own"}),
        (["created_date", "timestamp"], {"created_date": "2001-09-09T01:46:40Z"}),
        (["timestamp", "created_date"], {"created_date": "2001-09-09T01:46:40Z"}),
    ],
)
def test_the_parameter_timestamp_is_the_time_and_comes_as_created_date(
    insider: Service, token: str, params: list[str], expected: dict[str, str]
) -> None:
    listed = events(insider, token, "ann", {"event_name": 'Käse "view"', "params": params})
    assert listed == {'Käse "view"': [expected]}


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(1000, 1008, 9), (1001, 1008, 8), (1000, 1007, 8), (1003, 1003, 1), (0, 999, 0), (1009, 253_402_300_799, 0)],
)
def test_both_ends_of_the_range_are_included(insider: Service, token: str, start: int, end: int, expected: int) -> None:
    assert len(numbers(insider, token, {}, start_date=start, end_date=end)) == expected


def test_the_last_second_of_the_range_is_whole(insider: Service, token: str) -> None:
    wanted = {"event_name": 'Käse "view"', "params": []}
    at = 1_000_000_000
    assert events(insider, token, "ann", wanted, start_date=at, end_date=at) == {'Käse "view"': [{}]}
    assert events(insider, token, "ann", wanted, start_date=at - 9, end_date=at - 1) == {'Käse "view"': []}


def test_limit_per_source_takes_the_newest_of_each_source_and_of_those_without(insider: Service, token: str) -> None:
    assert numbers(insider, token, {"limit_per_source": 1}) == [8, 7, 6]
    assert numbers(insider, token, {"limit_per_source": 2}) == [8, 7, 6, 5, 4, 3]
    assert numbers(insider, token, {}, limit_per_source=1) == [8, 7, 6]
    assert numbers(insider, token, {"limit_per_source": 2}, limit_per_source=1) == [8, 7, 6, 5, 4, 3]
    assert numbers(insider, token, {"limit_per_source": 1}, end_date=1006) == [6, 5, 4]
    assert numbers(insider, token, {"limit_per_source": 10_000}) == [8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_a_workspace_without_events_has_none_of_any_name(insider: Service, bank_token: str) -> None:
    for more in ({}, {"limit_per_source": 1}):
        wanted = [{"event_name": "purchase", "params": ["source", "timestamp"], **more}]
        asked = {"insider_id": "olga", "attributes": ["*"], "events": {**WHOLE_RANGE, "wanted": wanted}}
        told = {"attributes": {"id": "olga", "cards": 7, "iid": "olga"}, "events": {"purchase": []}}
        assert found(post(insider, asked, bank_token, "the-bank")) == told


@pytest.mark.parametrize("wanted", [{"event_name": "view"}, {"event_name": "ping", "limit_per_source": 3}])
def test_too_many_events_are_refused_and_a_shorter_range_helps(
    insider: Service, token: str, wanted: dict[str, object]
) -> None:
    asked: dict[str, Any] = {"insider_id": "busy"}
    asked["events"] = {**WHOLE_RANGE, "wanted": [{**wanted, "params": []}]}
    answer = post(insider, asked, token)
    error = "events must have a shorter range or a limit_per_source: these are too many: bad request"
    assert (answer.status, answer.json()) == (400, {"error": error})
    found(post(insider, {**asked, "events": {**asked["events"], "start_date": 1, "end_date": 130_000}}, token))


def test_ten_thousand_events_are_answered(insider: Service, token: str) -> None:
    view = {"event_name": "view", "params": []}
    ping = {"event_name": "ping", "params": []}
    assert len(events(insider, token, "busy", view, start_date=1)["view"]) == 10_000
    assert len(events(insider, token, "busy", {**view, "limit_per_source": 3})["view"]) == 3
    listed = events(insider, token, "busy", view, ping, start_date=9_001, end_date=108_999)
    assert [len(each) for each in listed.values()] == [1_000, 9_000]
    asked = {"insider_id": "busy", "events": {"start_date": 9_001, "end_date": 109_000, "wanted": [view, ping]}}
    assert post(insider, asked, token).status == 400, "of all that are wanted"


# --- the quota and the key's limits --------------------------------------------------------------------------------


def costs(answer: Answer) -> list[float]:
    return [answer.json()["quota"][name] for name in ("cost", "used", "total")]


def tight(types: int = 0) -> dict[str, object]:
    """A request that costs 0.5, and 2.2 more for each type of event."""
    wanted = [{"event_name": f"event {number}", "params": []} for number in range(types)]
    return {"insider_id": "ann", "attributes": [], "quota": True, "events": {**WHOLE_RANGE, "wanted": wanted}}


def test_a_partners_quota_is_for_all_its_keys_on_all_workers(insider: Service) -> None:
    keys = [insider.key("tight"), insider.key("tight")]
    connections = insider.connect_to_each()
    before: float | None = None
    answers = []
    for number in range(100):
        answer = connections[number % 2].ask(posted(tight(1), keys[number // 2 % 2], "tight"))
        answers.append(answer)
        if answer.status == 429:
            break
        cost, used, total = costs(answer)
        assert (cost, total) == (2.7, 10)
        # What is used grows by each cost, whoever asked whom, until another minute begins.
        assert used == 2.7 or (before is not None and used == round(before + 2.7, 3))
        assert used <= 10
        before = used
    for connection in connections:
        connection.close()
    assert (answers[-1].status, answers[-1].body) == (429, b'{"error":"rejected: too many requests"}')
    assert before == 8.1, "only then it is too much"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
    assert '"total":10}' in answers[0].body.decode()


def test_a_call_over_the_quota_costs_nothing_and_is_counted(insider: Service) -> None:
    shared = SharedMap(insider.settings.data_dir / SHARED_MAP)
    limited = limited_slot(list(insider.settings.workspaces).index("tight"))
    key = insider.key("tight", rate=0.01, burst_rate=50, burst_seconds=0)
    until(lambda: post(insider, tight(3), key, "tight").status == 429, "the quota is used up")
    # At 3.5 or 7 of 10, or at what the test before left; one token of the key is left for each.
    before = shared.counter(limited)
    statuses = [post(insider, tight(4), key, "tight").status for _ in range(60)]
    assert statuses.count(200) <= 1, "in another minute"
    assert shared.counter(limited) - before == statuses.count(429)
    assert post(insider, tight(), key, "tight").status == 200


def test_a_call_over_the_keys_limit_takes_nothing_of_the_quota(insider: Service, token: str) -> None:
    limited = insider.key(rate=0.01, burst_rate=2, burst_seconds=0)
    asked = {**SAMPLES["by an identifier"], "quota": True}
    used = [costs(post(insider, asked, key))[1] for key in (token, limited, limited)]
    denied = [post(insider, asked, limited) for _ in range(3)]
    used.append(costs(post(insider, asked, token))[1])
    assert all(later in (1, earlier + 1) for earlier, later in pairwise(used))
    for answer in denied:
        assert (answer.status, answer.body) == (429, b'{"error":"rejected: too many requests"}')
        assert 90 <= int(answer.headers["retry-after"]) <= 200
        assert answer.headers["ratelimit-policy"] == '"sustained";q=1;w=100'


def test_what_cannot_be_answered_takes_one_token_and_nothing_of_the_quota(insider: Service, token: str) -> None:
    limited = insider.key(rate=0.01, burst_rate=3, burst_seconds=0)
    asked = {**SAMPLES["by an identifier"], "quota": True}
    used = [costs(post(insider, asked, token))[1]]
    bodies: list[object] = [b"{", {**asked, "attributes": 3}, {}, asked]
    assert [post(insider, body, limited).status for body in bodies] == [400, 400, 400, 429]
    used.append(costs(post(insider, asked, token))[1])
    assert used[1] in (1, used[0] + 1)


def test_what_costs_more_than_a_minute_has_is_a_bad_request(insider: Service) -> None:
    answer = post(insider, tight(5), insider.key("tight"), "tight")
    assert (answer.status, answer.json()) == (
        400,
        {"error": "it costs more than the quota of a minute has: bad request"},
    )


# --- around --------------------------------------------------------------------------------------------------------


def test_requests_never_come_to_the_event_loop_and_are_counted_as_insiders(insider: Service, token: str) -> None:
    shared = SharedMap(insider.settings.data_dir / SHARED_MAP)
    statuses = metrics.slots(metrics.Surface.INSIDER).statuses
    good = SAMPLES["by an identifier"]
    asked = [(good, 200), ({}, 400), ({**good, "insider_id": "nobody"}, 404)]
    before = [shared.counter(statuses[status]) for _, status in asked]
    for body, status in asked:
        assert post(insider, body, token).status == status
    assert [shared.counter(statuses[status]) for _, status in asked] == [count + 1 for count in before]
    assert shared.counter(metrics.Counter.LOOKUPS_DEFERRED) == 0


def test_a_body_in_pieces_on_a_busy_connection_is_answered(insider: Service, token: str) -> None:
    content = posted({**SAMPLES["by an identifier"], "events": SAMPLE_EVENTS}, token)
    whole = insider.ask(content)
    with insider.connect() as connection:
        for at in range(0, len(content), 50):
            connection.send(content[at : at + 50])
        assert connection.read().body == whole.body
        connection.send(content * 20)
        assert {connection.read().body for _ in range(20)} == {whole.body}


def test_the_request_id_is_the_callers(insider: Service, token: str) -> None:
    kind = ("Content-Type", "application/json")
    for asked in (SAMPLES["by an identifier"], {}):
        assert post(insider, asked, token, "mybrand", kind, ("X-Request-Id", "mine")).headers["x-request-id"] == "mine"
