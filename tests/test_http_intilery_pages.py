"""Intilery's pages over real sockets: a scroll has each event and profile once, whatever is published meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import msgspec
import pytest
from brands import DECLARED, EVENTS, ODD_ID, PROFILES, SHOP, ask, found, pages, profile, refused
from conftest import MakeService
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service import UNLIMITED, Service, until
from test_http_intilery import family
from test_http_live import META, Living
from test_real_data import CDNOW_MODEL, purchases

from edgeprofile.record import Field

FAMILY = profile("email", "family@example.com", "events") + "?start=2025-01-01&end=2025-01-31"
CUSTOMERS = 2_500
CDNOW_DECLARED = """
id = "id"
[workspaces.shop.intilery]
client = "acme"
account = "marketing"
brand = "SHOP"
rate = 1_000_000
burst = 1_000_000
"""


@pytest.fixture(scope="module")
def token(intilery: Service) -> str:
    return intilery.key()


def scrolled(service: Service, token: str, target: str) -> list[tuple[str, str]]:
    return [(event["id"], event["eventId"]) for page in pages(service, token, target) for event in page]


# --- events --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 33, 100])
@pytest.mark.parametrize("sort", ["asc", "desc"])
def test_a_scroll_through_merged_events_has_each_once_and_in_order(
    intilery: Service, token: str, size: int, sort: str
) -> None:
    assert scrolled(intilery, token, f"{FAMILY}&size={size}&sort={sort}") == family(sort == "asc")


@pytest.mark.parametrize("sort", ["asc", "desc"])
def test_a_scroll_through_one_profiles_events_has_each_once_and_in_order(
    intilery: Service, token: str, sort: str
) -> None:
    own = [pair for pair in family(sort == "asc") if pair[0] == "bob"]
    target = profile("id", "bob", "events")
    assert scrolled(intilery, token, f"{target}?size=19&sort={sort}") == own
    named = [pair for pair in own if int(pair[1][1:]) % 3]
    assert scrolled(intilery, token, f"{target}?size=4&exclude=seen+0&sort={sort}") == named


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_scroll_may_change_its_size_and_begin_behind_some(intilery: Service, token: str, data: st.DataObject) -> None:
    ascending, passed = data.draw(st.booleans()), data.draw(st.integers(0, 340))
    expected, walked = family(ascending)[passed:], list[tuple[str, str]]()
    target, scroll = f"{FAMILY}&sort={'asc' if ascending else 'desc'}&from={passed}", ""
    while True:
        # What `from` says is of the first page alone.
        page = found(ask(intilery, f"{target}&size={data.draw(st.integers(30, 100))}{scroll}", token))
        if not page["data"]:
            break
        walked += [(event["id"], event["eventId"]) for event in page["data"]]
        scroll = f"&{data.draw(st.sampled_from(['scrollId', 'scrollid', 'scroll%49d']))}={page['scrollId']}"
    assert walked == expected


def test_an_action_that_is_too_rare_is_said_to_be_so_and_found_within_a_shorter_range(
    intilery: Service, token: str
) -> None:
    target = profile("id", "busy", "events")
    assert scrolled(intilery, token, f"{target}?include=first") == [("busy", "p0")]  # by what each block may have
    others = f"{target}?exclude=ping,newest"
    assert "range of time" in refused(ask(intilery, others, token), 400, "validation_error")
    assert scrolled(intilery, token, f"{others}&end=1970-01-02") == [("busy", "p0")]
    assert scrolled(intilery, token, f"{others}&sort=asc&end=1970-01-02") == [("busy", "p0")]
    newest = found(ask(intilery, f"{target}?exclude=ping", token))
    assert [event["eventId"] for event in newest["data"]] == ["p131999"]
    # There may be more of these, for all that was read.
    refused(ask(intilery, f"{target}?exclude=ping&scrollId={newest['scrollId']}", token), 400, "validation_error")


def test_of_several_profiles_the_rarest_events_are_told_as_far_as_their_order_is_known(
    intilery: Service, token: str
) -> None:
    target = profile("email", "odd@example.com", "events") + "?exclude=ping"
    page = found(ask(intilery, target, token))
    assert [event["eventId"] for event in page["data"]] == ["o", "p131999"]
    refused(ask(intilery, f"{target}&scrollId={page['scrollId']}", token), 400, "validation_error")
    assert scrolled(intilery, token, f"{target}&end=1970-01-02") == [("busy", "p0")]


def test_a_scroll_through_events_goes_on_behind_the_same_one_after_refreshes(make_service: MakeService) -> None:
    service = make_service({"shop": DECLARED})
    service.run_sql(PROFILES + EVENTS)
    service.load()
    token = service.key()
    service.start()
    walked: list[tuple[str, str]] = []
    for number, page in enumerate(pages(service, token, f"{FAMILY}&size=40")):
        walked += [(event["id"], event["eventId"]) for event in page]
        if number < 2:
            # A new one of the family, who is the latest to be updated, and newer events of the others.
            new = f"new-{number}"
            service.run_sql(f"""
                INSERT INTO profiles BY NAME SELECT '{new}' AS id, 'family@example.com' AS email, now() AS updated_at;
                INSERT INTO events BY NAME SELECT 'bob' AS id, '{new}-' || i AS event_id, 'new' AS action,
                    TIMESTAMP '2025-01-30' + INTERVAL (i) SECOND AS moment FROM range(50) r(i);
            """)
            service.load()
            until(lambda: ask(service, profile("id", new, "traits"), token).status == 200, "the refresh is served")  # noqa: B023
    assert walked == family()


# --- the list ------------------------------------------------------------------------------------------------------


def listed(service: Service, token: str, query: str = "") -> Iterator[list[str]]:
    for page in pages(service, token, f"{SHOP}?{query}"):
        yield [each["id"] for each in page]


def test_the_list_has_all_profiles_in_the_order_of_their_ids(intilery: Service, token: str) -> None:
    every = list(listed(intilery, token, "size=20"))
    expected = ["ann", "bob", "busy", "cat", *(f"crowd-{n:03}" for n in range(150)), ODD_ID]
    assert [primary for page in every for primary in page] == sorted(expected)
    assert [len(page) for page in every] == [20] * 7 + [15]


def test_without_a_size_the_list_has_a_hundred_profiles_a_page(make_service: MakeService) -> None:
    service = make_service({"shop": CDNOW_DECLARED})
    service.run_sql("CREATE TABLE profiles AS SELECT i AS id FROM range(1000, 1230) r(i)")
    service.load()
    token = service.key()
    service.start()
    assert [len(page) for page in pages(service, token, f"{SHOP}?")] == [100, 100, 30]
    assert [len(page) for page in pages(service, token, f"{SHOP}?from=150&size=60")] == [60, 20]


def test_a_page_of_the_list_ends_before_what_does_not_fit_and_tells_what_never_does(make_service: MakeService) -> None:
    service = make_service({"shop": CDNOW_DECLARED}, limits=f"{UNLIMITED}\nresponse_bytes_max = 65536")
    service.run_sql("""
        CREATE TABLE profiles AS SELECT i AS id, repeat('x', CASE i WHEN 18 THEN 65536 ELSE 20000 END) AS notes
        FROM range(10, 21) r(i)
    """)
    service.load()
    token = service.key()
    service.start()
    page, sizes = found(ask(service, SHOP, token)), list[int]()
    for _ in range(3):
        sizes.append(len(page["data"]))
        answer = ask(service, f"{SHOP}?scrollId={page['scrollId']}", token)
        page = answer.json()
    assert sizes == [3, 3, 2]
    refused(answer, 413, "invalid_request_error")


def test_2500_customers_are_listed_once_each_while_two_refreshes_publish(make_service: MakeService) -> None:
    service = make_service({"shop": CDNOW_DECLARED})
    service.run_sql(f"CREATE TABLE profiles AS SELECT * FROM ({CDNOW_MODEL}) ORDER BY id LIMIT {CUSTOMERS}")
    # Of those that come and go, some stand before each place in the list, and some behind it.
    service.run_sql("INSERT INTO profiles BY NAME SELECT id || '-gone' AS id FROM profiles WHERE right(id, 1) = '7'")
    service.load()
    token = service.key()
    service.start()
    numbers = count()

    def refresh() -> None:
        number = next(numbers)
        service.run_sql(f"""
            DELETE FROM profiles WHERE id LIKE '%-%';
            UPDATE profiles SET orders = orders + 1;
            INSERT INTO profiles BY NAME SELECT id || '-new-{number}' AS id FROM profiles WHERE right(id, 1) = '3';
        """)
        service.load()
        target = profile("id", f"00003-new-{number}", "traits")
        until(lambda: ask(service, target, token).status == 200, "the refresh is served")

    walked: list[str] = []
    for page in listed(service, token):
        walked += page
        if len(walked) in (800, 1_600):
            refresh()
    assert next(numbers) == 2
    assert len(set(walked)) == len(walked)
    assert walked == sorted(walked)
    throughout = [primary for primary in walked if "-" not in primary]
    assert throughout == sorted(purchases())[:CUSTOMERS]


# --- what is live --------------------------------------------------------------------------------------------------


def test_what_is_live_is_in_every_answer(make_service: MakeService) -> None:
    service = make_service({"shop": DECLARED})
    service.run_sql(PROFILES + EVENTS)
    service.load()
    living = Living(service)
    token = service.key()
    service.start()
    fields = list(living.schema.fields)
    fields.insert(living.schema.run_of("attributes")[1], Field("mood", "attributes", "JSON"))
    schema = msgspec.structs.replace(living.schema, fields=tuple(fields))
    living.writer.write({META: {b"generation:\0\0\0\1": msgspec.json.encode(schema)}})
    living.put("ann", living.values("ann") | {"mood": b'"good"', "board": b"true"}, 1, schema)
    living.put("bee", living.values("busy") | {"id": b'"bee"', "external": b'"x-bee"'})
    living.happen("cat", [{"id": b'"live"', "name": b'"seen 0"', "amount": b"1"}])
    living.remove("bob")  # whom the email still leads to

    ann = found(ask(service, profile("id", "ann", "audiences"), token))
    assert (ann["mood"], ann["audiences"]) == ("good", ["vip", "board"])
    assert next(page[:4] for page in listed(service, token)) == [ODD_ID, "ann", "bee", "busy"]
    family = found(ask(service, profile("email", "family@example.com", "traits"), token))
    assert [each["id"] for each in family["data"]] == ["ann", "cat"]
    events = scrolled(service, token, profile("email", "family@example.com", "events") + "?size=30&include=seen+0")
    assert events[0] == ("cat", "live")
    assert {who for who, _ in events} == {"cat"}
    assert found(ask(service, profile("id", "cat", "meta"), token))["lastEvent"]["seen 0"]["eventId"] == "live"
    for what in ("traits", "events"):
        refused(ask(service, profile("userId", "x-bob", what), token), 404, "not_found")
    living.writer.env.close()
