"""What updates may say: each rule by its samples, and calls in which good and bad stand side by side."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeprofile.attributes import Fault, date, moment_us
from edgeprofile.updates import PROBLEMS_MAX, Problem, Reading, Rules

NOW_US = 1_750_000_000_000_000
HOUR_US = 3_600_000_000
RULES = Rules("profile_id", ["vip"], ["email", "phone"], "profile_id")


def read(*updates: Any, rules: Rules = RULES) -> Reading:
    reading = Reading(rules, NOW_US)
    for number, update in enumerate(updates):
        reading.take(number, update if isinstance(update, bytes) else json.dumps(update).encode())
    return reading


def update(attributes: Any = None, events: Any = None, custom_id: Any = "c1", **more: Any) -> dict[str, Any]:
    made = {"identifiers": {"custom_id": custom_id}, "attributes": attributes, "events": events, **more}
    return {key: value for key, value in made.items() if value is not None}


def problems(*updates: Any, rules: Rules = RULES) -> list[Problem]:
    return read(*updates, rules=rules).problems()


def sets(attributes: dict[str, Any]) -> dict[str, Any]:
    """What a good update of these attributes sets, by name."""
    reading = read(update(attributes))
    assert reading.problems() == []
    ((primary, made, adds, removes, events),) = reading.kept
    assert (primary, adds, removes, events) == ("c1", {}, {}, [])
    return {name: None if value is None else json.loads(value) for name, value in made.items()}


def event(attributes: Any = None, **more: Any) -> dict[str, Any]:
    made = {"name": "page_view", "attributes": attributes, **more}
    return {key: value for key, value in made.items() if value is not None}


def reason_of(attribute: str, value: Any) -> str:
    """Why an attribute is left out, alone."""
    reading = read(update({"kept": 1, attribute: value}))
    assert [kept[1] for kept in reading.kept] == [{"kept": b"1"}]
    (problem,) = reading.problems()
    assert (problem.category, problem.bulk_index, problem.attribute) == ("attribute", 0, attribute[:100])
    return problem.reason


# --- attributes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "stored", "as_what"),
    [
        ("firstname", "Jane", "firstname", "Jane"),
        ("A_9", "é" * 300, "A_9", "é" * 300),
        ("a" * 30, "x", "a" * 30, "x"),
        ("score", 1 << 62, "score", 1 << 62),
        ("score", -(1 << 63), "score", -(1 << 63)),
        ("ratio", 1.5, "ratio", 1.5),
        ("vip_since", True, "vip_since", True),
        ("gone", None, "gone", None),
        ("tags", ["a", "b"], "tags", ["a", "b"]),
        ("tags", [], "tags", []),
        ("tags", ["x"] * 25, "tags", ["x"] * 25),
        ("date(birthday)", "1989-07-20", "birthday", "1989-07-20"),
        ("date(birthday)", "1989-07-20T00:00:00Z", "birthday", "1989-07-20T00:00:00Z"),
        ("date(seen)", "2025-06-10T12:34:56.25+02:00", "seen", "2025-06-10T10:34:56.250Z"),
        ("date(seen)", None, "seen", None),
        ("url(site)", "https://example.com/a?b=c", "site", "https://example.com/a?b=c"),
        ("url(site)", "myapp://basket", "site", "myapp://basket"),
        ("url(site)", "https://e.com/" + "x" * 2034, "site", "https://e.com/" + "x" * 2034),
        ("email", "jane@example.com", "email", "jane@example.com"),
        ("phone", 33612345678, "phone", 33612345678),
        ("phone", None, "phone", None),
        ("$email_address", "jane.doe+x@mail.example.com", "email_address", "jane.doe+x@mail.example.com"),
        ("$phone_number", "+33612345678", "phone_number", "+33612345678"),
        ("$email_marketing", "subscribed", "email_marketing", "subscribed"),
        ("$sms_marketing", "unsubscribed", "sms_marketing", "unsubscribed"),
        ("$sms_marketing", None, "sms_marketing", None),
        ("$language", "en", "language", "en"),
        ("$region", "FR", "region", "FR"),
        ("$timezone", "Europe/Paris", "timezone", "Europe/Paris"),
    ],
)
def test_a_good_attribute_is_set_by_its_name(name: str, value: Any, stored: str, as_what: Any) -> None:
    assert sets({name: value}) == {stored: as_what}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("", 1, "a name has 1 to 30 of"),
        ("a" * 31, 1, "a name has 1 to 30 of"),
        ("a-b", 1, "a name has 1 to 30 of"),
        ("prénom", 1, "a name has 1 to 30 of"),
        ("a\n", 1, "a name has 1 to 30 of"),
        ("date()", "2025-01-01", "a name has 1 to 30 of"),
        ("date(a", "2025-01-01", "a name has 1 to 30 of"),
        ("time(a)", "2025-01-01", "a name has 1 to 30 of"),
        ("x" * 5000, 1, "a name has 1 to 30 of"),
        ("$first_name", "x", "there is no such native attribute; there are $email_address, "),
        ("profile_id", "2", "the primary id of a profile does not change"),
        ("vip", True, "an audience is the model's alone"),
        ("_audiences", 1, "this name is the answers' own"),
        ("date(_updated_at)", "2025-01-01", "this name is the answers' own"),
        ("a", "", "a string has 1 to 300 characters"),
        ("a", "x" * 301, "a string has 1 to 300 characters"),
        ("a", 1 << 63, "an integer has 64 bits"),
        ("a", -(1 << 63) - 1, "an integer has 64 bits"),
        ("a", ["x"] * 26, "an array has at most 25 items"),
        ("a", ["x", 1], "a string is expected"),
        ("a", ["x", None], "a string is expected"),
        ("a", ["x", ""], "a string has 1 to 300 characters"),
        ("a", [["x"]], "a string is expected"),
        ("a", ["\x01" * 300] * 20, "a value has at most 32768 bytes of JSON"),
        ("a", {}, "an array is changed by $add and $remove"),
        ("a", {"b": 1}, "an array is changed by $add and $remove"),
        ("a", {"$add": ["x"], "$set": ["y"]}, "an array is changed by $add and $remove"),
        ("a", {"$add": "x"}, "an array of strings is expected"),
        ("a", {"$add": ["x"], "$remove": None}, "an array of strings is expected"),
        ("a", {"$add": ["x"] * 26}, "an array has at most 25 items"),
        ("date(a)", {"$add": ["x"]}, "this attribute is no array"),
        ("email", {"$add": ["x"]}, "this attribute is no array"),
        ("a", ["[{" * 150] * 2, "a value has at most 500 brackets"),
        ("date(a)", 1_700_000_000, "a string is expected"),
        ("date(a)", "yesterday", "a date is expected, in ISO 8601"),
        ("date(a)", "2025-13-01", "there is no such day"),
        ("date(a)", "2025-01-01T24:00:00Z", "a date is expected, in ISO 8601"),
        ("date(a)", "2025-01-01T10:60", "a date is expected, in ISO 8601"),
        ("date(a)", "2025-01-01T10:00:00+24:00", "a date is expected, in ISO 8601"),
        ("date(a)", "0001-01-01T00:00:00+01:00", "a date is in the years 1 to 9999"),
        ("date(a)", "9999-12-31T23:00:00-02:00", "a date is in the years 1 to 9999"),
        ("url(a)", "example.com", "a URL is expected, with its scheme"),
        ("url(a)", "https://a b", "a URL is expected, with its scheme"),
        ("url(a)", "https://e.com/" + "x" * 2035, "a string has 1 to 2048 characters"),
        ("email", True, "a string is expected"),
        ("email", ["a@b.c"], "a string is expected"),
        ("email", 1.5, "a string is expected"),
        ("email", "é" * 260, "an identifier has at most 509 bytes"),
        ("phone", 1 << 63, "an integer has 64 bits"),
        ("date(phone)", "2025-01-01", "an identifier has no type"),
        ("$email_address", "jane", "an email address is expected"),
        ("$email_address", "a@b@c.d", "an email address is expected"),
        ("$email_address", "a@b." + "c" * 125, "a string has 1 to 128 characters"),
        ("$phone_number", "0612345678", "a phone number in E.164"),
        ("$phone_number", "+336 12", "a phone number in E.164"),
        ("$phone_number", "+" + "1" * 16, "a phone number in E.164"),
        ("$phone_number", 33612345678, "a string is expected"),
        ("$email_marketing", "yes", '"subscribed" or "unsubscribed" is expected'),
        ("$language", "EN", "a language of ISO 639-1"),
        ("$language", "eng", "a language of ISO 639-1"),
        ("$region", "fr", "a country of ISO 3166-1"),
        ("$timezone", "Paris", "a time zone is expected"),
        ("$timezone", "Europe/Paris ", "a time zone is expected"),
    ],
)  # fmt: skip
def test_a_bad_attribute_is_left_out_alone(name: str, value: Any, reason: str) -> None:
    assert reason_of(name, value).startswith(reason)


def test_arrays_are_changed_by_what_is_added_and_removed() -> None:
    reading = read(update({"a": {"$add": ["x", "y"]}, "b": {"$remove": ["z"]}, "c": {"$add": [], "$remove": ["é"]}}))
    assert reading.problems() == []
    removes = {"b": [b'"z"'], "c": ['"é"'.encode()]}
    assert reading.kept == [("c1", {}, {"a": [b'"x"', b'"y"'], "c": []}, removes, [])]


@pytest.mark.parametrize(
    "attributes",
    [
        {"date(a)": "2025-01-01", "url(a)": "https://a"},
        {"a": {"$add": ["x"]}, "date(a)": "2025-01-01"},
        {"a": {"$remove": ["x"]}, "date(a)": None},
        {"$language": "en", "language": "fr"},
        {"a": None, "url(a)": "https://a"},
    ],
)
def test_of_two_attributes_of_one_name_the_first_is_taken(attributes: dict[str, Any]) -> None:
    first, second = attributes
    reading = read(update(attributes))
    (problem,) = reading.problems()
    assert problem.attribute == second
    assert problem.reason.endswith("stands twice in this update")
    assert reading.kept == read(update({first: attributes[first]})).kept


@given(st.datetimes(dt.datetime(1, 1, 3), dt.datetime(9999, 12, 29)), st.integers(-23 * 60 - 59, 23 * 60 + 59))
@example(dt.datetime(1970, 1, 1), 0)
def test_a_date_is_the_moment_that_was_meant(moment: dt.datetime, offset_minutes: int) -> None:
    offset = dt.timedelta(minutes=offset_minutes)
    text = moment.replace(tzinfo=dt.timezone(offset)).isoformat()
    assert dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=moment_us(text)) == moment - offset
    assert dt.datetime.fromisoformat(date(text)) == (moment - offset).replace(tzinfo=dt.UTC)


@given(st.text(max_size=40))
@example("2025-01-01T10:00")
@example("2025-01-01T10:00:00.1234567891Z")
@example("\uff12\uff10\uff12\uff15-01-01")
def test_any_text_is_a_date_or_a_fault(text: str) -> None:
    try:
        made = date(text)
    except Fault:
        return
    dt.datetime.fromisoformat(made)


# --- updates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "category", "reason"),
    [
        ([], "update", "an update is an object"),
        (None, "update", "an update is an object"),
        (update(attribute={}), "update", "an update has identifiers, attributes and events, and nothing else"),
        (update([]), "update", "attributes is an object"),
        (update(events={}), "update", "events is an array"),
        (update(events=False), "update", "events is an array"),
        (update({f"a{n}": n for n in range(51)}), "update", "an update has at most 50 attributes"),
        (update({f"a{n}": [] for n in range(16)}), "update", "an update has at most 15 arrays"),
        (update({f"a{n}": {"$add": []} for n in range(16)}), "update", "an update has at most 15 arrays"),
        ({"attributes": {}}, "identifier", "identifiers is an object that has custom_id, and nothing else"),
        ({"identifiers": "c1"}, "identifier", "identifiers is an object that has custom_id, and nothing else"),
        ({"identifiers": {}}, "identifier", "identifiers is an object that has custom_id, and nothing else"),
        (
            {"identifiers": {"custom_id": "1", "x": "2"}},
            "identifier",
            "identifiers is an object that has custom_id, and nothing else",
        ),
        (update(custom_id=1), "identifier", "custom_id is a string that is not empty"),
        (update(custom_id=""), "identifier", "custom_id is a string that is not empty"),
        (update(custom_id="é" * 256), "identifier", "custom_id has at most 511 bytes"),
        (b"1e999", "update", "it cannot be read: Number out of range"),
        (b'{"identifiers": {"custom_id": "\xff"}}', "update", "it cannot be read: 'utf-8' codec"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "update", "it cannot be read: it is nested too deep"),
    ],
)
def test_a_bad_update_is_left_out_alone(bad: Any, category: str, reason: str) -> None:
    reading = read(update({"a": 1}, custom_id="before"), bad, update({"a": 2}, custom_id="after"))
    assert [kept[0] for kept in reading.kept] == ["before", "after"]
    assert reading.numbers == [0, 2]
    (problem,) = reading.problems()
    assert (problem.category, problem.bulk_index, problem.attribute) == (category, 1, None)
    assert problem.reason.startswith(reason)


def test_fifty_attributes_fifteen_arrays_and_the_longest_id_are_taken() -> None:
    attributes = {f"a{n}": n for n in range(35)} | {f"b{n}": ["x"] for n in range(15)}
    assert problems(update(attributes, custom_id="x" * 511)) == []


def test_an_id_that_is_found_by_a_namespace_has_the_length_of_an_identifier() -> None:
    rules = Rules("profile_id", [], ["crm_id"], "crm_id")
    assert problems(update({"a": 1}, custom_id="x" * 509), rules=rules) == []
    (problem,) = problems(update({"a": 1}, custom_id="x" * 510), rules=rules)
    assert problem.reason == "custom_id has at most 509 bytes"


def test_an_update_of_an_id_alone_is_kept_and_one_that_is_all_bad_is_not() -> None:
    reading = read(update(), update({}), update({"-": 1}, custom_id="bad"), update(events=[1], custom_id="bad"))
    assert reading.kept == [("c1", {}, {}, {}, [])] * 2
    assert reading.numbers == [0, 1]
    assert [problem.bulk_index for problem in reading.problems()] == [2, 3]


def test_problems_past_what_an_answer_lists_are_counted() -> None:
    found = problems(*[[]] * (PROBLEMS_MAX + 3))
    assert len(found) == PROBLEMS_MAX + 1
    assert found[-1] == Problem("update", PROBLEMS_MAX - 1, "3 more errors are not listed")


# --- events --------------------------------------------------------------------------------------------------------


def test_an_event_has_its_time_and_its_attributes_by_their_names() -> None:
    attributes = {
        "$label": "pumpkin",
        "$tags": ["fruits", "organic"],
        "quantity": 5,
        "date(due)": "2025-06-15T12:00:00+02:00",
        "url(page)": "https://example.com",
        "gone": None,
        "address": {"street": "Rue 1", "zip": 75003, "date(since)": "2020-01-01", "old": None, "in": {"x": {"y": 1}}},
        "items": [{"name": "Tee", "url(page)": "https://e.com"}, {"sizes": ["S", "M"]}],
    }
    time = "2025-06-15T14:00:00+02:00"
    reading = read(update(events=[event(attributes, time=time), event()]))
    assert reading.problems() == []
    ((_, _, _, _, (first, second)),) = reading.kept
    assert second == (None, "page_view", NOW_US, {})
    assert first[:3] == (None, "page_view", 1_749_988_800_000_000)
    assert {name: json.loads(value) for name, value in first[3].items()} == {
        "label": "pumpkin",
        "tags": ["fruits", "organic"],
        "quantity": 5,
        "due": "2025-06-15T10:00:00Z",
        "page": "https://example.com",
        "address": {"street": "Rue 1", "zip": 75003, "since": "2020-01-01", "in": {"x": {"y": 1}}},
        "items": [{"name": "Tee", "page": "https://e.com"}, {"sizes": ["S", "M"]}],
    }


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("page_view", "an event is an object"),
        ({}, "the name of an event has 1 to 30 of"),
        (event(name="a b"), "the name of an event has 1 to 30 of"),
        (event(name=1), "the name of an event has 1 to 30 of"),
        (event(tags=[]), "an event has a name, attributes and a time, and nothing else"),
        (event([]), "attributes is an object"),
        (event({f"a{n}": n for n in range(51)}), "an event has at most 50 attributes"),
        (event(time=1_750_000_000), "a string is expected"),
        (event(time="now"), "a time is expected, in ISO 8601"),
        (event(time="2025-06-15T15:07:41Z"), "the time of an event is within the last 24 hours, and not ahead"),
        (event(time="2025-06-14T15:05:39Z"), "the time of an event is within the last 24 hours, and not ahead"),
        (event(time="2025-06-15"), ""),
    ],
)
def test_a_bad_event_is_left_out_alone(bad: Any, reason: str) -> None:
    reading = read(update({"a": 1}, [event(), bad, event()]))
    ((_, made, _, _, events),) = reading.kept
    assert made == {"a": b"1"}
    assert len(events) == (2 if reason else 3)
    for problem in reading.problems():
        assert (problem.category, problem.bulk_index, problem.attribute) == ("event", 0, None)
        assert problem.reason.startswith(f"events[1]: {reason}")


@pytest.mark.parametrize("ago_us", [-60_000_000, 0, 24 * HOUR_US + 60_000_000])
def test_a_minute_is_left_for_clocks_that_differ(ago_us: int) -> None:
    moment = dt.datetime.fromtimestamp((NOW_US - ago_us) // 1_000_000, dt.UTC)
    assert problems(update(events=[event(time=moment.isoformat())])) == []


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("a b", 1, "a name has 1 to 30 of"),
        ("$language", "en", "there is no such native attribute; there are $label, $tags"),
        ("$tags", ["x"] * 26, "an array has at most 25 items"),
        ("$label", 5, "a string is expected"),
        ("a", "", "a string has 1 to 300 characters"),
        ("a", {"b": {"c": {"d": {"e": 1}}}}, "objects stand in each other at most 3 deep"),
        ("a", {"b c": 1}, "a name has 1 to 30 of"),
        ("a", {"b": 1, "date(b)": "2025-01-01"}, "b stands twice in an object"),
        ("a", {f"b{n}": n for n in range(51)}, "an object has at most 50 attributes"),
        ("a", [{"b": 1}] * 26, "an array has at most 25 items"),
        ("a", [{"b": 1}, "c"], "an array has strings, or else objects"),
        ("a", ["c", {"b": 1}], "a string is expected"),
        ("date(a)", {"b": 1}, "a string is expected"),
    ],
)
def test_a_bad_attribute_of_an_event_is_left_out_alone(name: str, value: Any, reason: str) -> None:
    reading = read(update(events=[event({"kept": 1, name: value})]))
    assert reading.kept == [("c1", {}, {}, {}, [(None, "page_view", NOW_US, {"kept": b"1"})])]
    (problem,) = reading.problems()
    assert (problem.category, problem.bulk_index, problem.attribute) == ("event", 0, name)
    assert problem.reason.startswith(f"events[0]: {reason}")


def test_a_profile_has_fifteen_events_a_call_in_however_many_updates() -> None:
    updates = [update({"a": n}, [event()] * count, custom_id=whose) for n, (whose, count) in
               enumerate([("c1", 10), ("c2", 15), ("c1", 6), ("c1", 5)])]  # fmt: skip
    reading = read(*updates)
    assert [(kept[0], len(kept[4])) for kept in reading.kept] == [("c1", 10), ("c2", 15), ("c1", 0), ("c1", 5)]
    assert reading.problems() == [
        Problem("event", 2, "a profile has at most 15 events a call; none of these was taken")
    ]


# --- good and bad side by side -------------------------------------------------------------------------------------

NAMES = st.from_regex(r"\A[a-zA-Z0-9_]{1,30}\Z").filter(
    lambda name: name not in {"profile_id", "vip", "email", "phone", "_audiences", "_updated_at"}
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)
PLAIN = (
    TEXTS | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
)
GOOD: st.SearchStrategy[tuple[str, Any, str, Any]] = st.one_of(
    st.tuples(NAMES, PLAIN | st.none() | st.lists(TEXTS, max_size=25)).map(lambda made: (made[0], made[1], *made)),
    st.tuples(NAMES, st.dates()).map(lambda made: (f"date({made[0]})", str(made[1]), made[0], str(made[1]))),
    st.tuples(NAMES, st.from_regex(r"\Ahttps://[a-z]{1,20}/[!-~]{0,20}\Z")).map(
        lambda made: (f"url({made[0]})", made[1], *made)
    ),
)
BAD: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.tuples(st.sampled_from(["a b", "", "date(x", "$nope", "vip", "profile_id", "x" * 31]), PLAIN),
    st.tuples(NAMES, st.sampled_from(["", "x" * 301, 1 << 63, ["x"] * 26, [1], {}, {"$add": 1}, {"y": "z"}])),
    st.tuples(NAMES.map("date({})".format), st.sampled_from(["x", "2025-02-30", 5, [], True])),
    st.tuples(NAMES.map("url({})".format), st.sampled_from(["x", "a b://c", 5, [], True])),
)


@st.composite
def attributes_of_updates(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    """The attributes of an update; what the good ones set; the names of the bad ones."""
    attributes: dict[str, Any] = {}
    expected: dict[str, Any] = {}
    bad: set[str] = set()
    for name, value, stored, as_what in draw(st.lists(GOOD, max_size=8, unique_by=lambda made: made[2])):
        attributes[name], expected[stored] = value, as_what
    for name, value in draw(st.lists(BAD, max_size=4, unique_by=lambda made: made[0])):
        if name not in attributes and name.removeprefix("date(").removeprefix("url(").rstrip(")") not in expected:
            attributes[name] = value
            bad.add(name)
    names = draw(st.permutations(list(attributes)))
    return {name: attributes[name] for name in names}, expected, bad


@given(st.lists(attributes_of_updates() | st.sampled_from([1, "x", [], {}, {"identifiers": {}}]), max_size=6))
def test_what_is_good_is_kept_and_what_is_bad_is_named_in_any_call(made: list[Any]) -> None:
    calls = [each if not isinstance(each, tuple) else update(each[0], custom_id=f"c{n}") for n, each in enumerate(made)]
    reading = read(*calls)
    kept = dict(zip(reading.numbers, reading.kept, strict=True))
    for number, each in enumerate(made):
        found = [problem for problem in reading.problems() if problem.bulk_index == number]
        if not isinstance(each, tuple):
            assert number not in kept
            assert len(found) == 1
            continue
        attributes, expected, bad = each
        assert {problem.attribute for problem in found} == bad
        assert len(found) == len(bad)
        assert (number in kept) == bool(expected or not attributes)
        if number in kept:
            primary, stored, *rest = kept[number]
            assert (primary, *rest) == (f"c{number}", {}, {}, [])
            assert {name: None if text is None else json.loads(text) for name, text in stored.items()} == expected


KEYS = st.sampled_from(["identifiers", "attributes", "events", "custom_id", "name", "time", "$add", "a"])
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=8)


@given(st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner)))
def test_any_json_is_an_update_or_a_problem(call: Any) -> None:
    reading = read(call)
    assert reading.numbers == [0] or reading.problems()
