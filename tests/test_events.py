"""Pages of events, as compiled code reads them: the same that plain code finds, at a cost that is the page's own."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from histories import (
    BYTES_MAX,
    EVER,
    Happened,
    Histories,
    Query,
    body_of,
    decoded_cursor,
    newest_first,
    page_of,
    pages,
    split,
    store_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprofile import history
from edgeprofile._events import Wanted, read_page
from edgeprofile._store import Store
from edgeprofile.errors import MalformedQuery, ProfileNotFound

# The first two have one hash; the third has another, but the same bit of a block's mask.
SAME_HASH = ("name-21674", "name-91480")
SAME_BIT = "kind-19"
NAMES = [*SAME_HASH, SAME_BIT, "page", 'Seite ä"\\\x01\x7f😀', "a,b", "x" * 300]
# Few, so that many events share one; and the first and the last moments that an event can have.
TIMES = st.integers(0, 6) | st.sampled_from([-62135596800000000, 253402300799999999, -1])
TEXTS = st.none() | st.just("é")
EVENTS = st.lists(
    st.builds(Happened, TIMES, st.sampled_from(NAMES), st.integers(0, 9), TEXTS, st.text("ab", max_size=2)),
    max_size=40,
)
BOUNDS = st.sampled_from(EVER) | st.integers(-2, 8)
QUERIES = st.builds(
    lambda names, bounds, limit: Query(names, min(bounds), max(bounds), limit),
    st.lists(st.sampled_from([*NAMES, "unknown"]), unique=True, max_size=3),
    st.tuples(BOUNDS, BOUNDS),
    st.integers(1, 6) | st.just(100),
)
WHOLE = Query()


def history_of(count: int, first_us: int = 0) -> list[Happened]:
    """So many events, a second apart, of five names by turns."""
    return [Happened(first_us + n * 1_000_000, f"name {n % 5}", n, id=f"{n:06}") for n in range(count)]


def joined(found: list[bytes]) -> list[bytes]:
    """The events of all pages, one by one."""
    return [json.dumps(event).encode() for page in found for event in json.loads(b"[" + page + b"]")]


def test_the_names_of_these_tests_share_what_they_should() -> None:
    first, second = map(history.name_hash, SAME_HASH)
    assert first == second
    assert history.name_hash(SAME_BIT) != first
    assert history.name_hash(SAME_BIT) & 63 == first & 63


# --- what is found -------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(EVENTS, QUERIES, st.integers(1, 9), st.booleans())
def test_all_pages_together_have_every_event_that_is_wanted_once_and_in_order(
    events: list[Happened], query: Query, block_events: int, has_id: bool
) -> None:
    events = events if has_id else [event._replace(id="") for event in events]
    expected = [body_of("ann", event, has_id) for event in newest_first(events) if query.finds(event)]
    histories: Histories = {"ann": events, "anna": [], "bob": events[:3]}
    with (
        tempfile.TemporaryDirectory() as folder,
        store_of(Path(folder), histories, block_events=block_events, has_id=has_id) as store,
    ):
        found = list(pages(store, query))
        others = [b"".join(pages(store, WHOLE, primary)) for primary in ("anna", "bob")]
    each = [expected[at : at + query.limit] for at in range(0, len(expected), query.limit)] or [[]]
    assert found == [b",".join(page) for page in each]
    assert others == [b"", b",".join(body_of("bob", event, has_id) for event in newest_first(events[:3]))]


@settings(max_examples=100)
@given(EVENTS, QUERIES, st.sampled_from([None, *NAMES[2:]]))
def test_the_oracle_finds_the_same_in_the_same_bytes(events: list[Happened], query: Query, name: str | None) -> None:
    query = query._replace(names=() if name is None else (name,))
    with (
        tempfile.TemporaryDirectory() as folder,
        store_of(Path(folder), {"ann": events}, block_events=4) as store,
    ):
        found = b",".join(page for page in pages(store, query) if page)
        directory = bytes(store.reader.directory("ann") or b"")
        segments = list(map(bytes, store.reader.event_segments))
    plain: list[bytes] = []
    if directory:
        plain, _ = history.read(
            "ann",
            directory,
            lambda block: segments[block.segment][block.offset : block.offset + block.length],
            name=name,
            start_us=query.start_us,
            end_us=query.end_us + 1,
        )
    assert found == b",".join(plain)


def test_an_event_is_its_record_without_a_byte_changed(tmp_path: Path) -> None:
    event = Happened(1_605_793_157_380_000, "page", 7, 'ä"', "e1")
    with store_of(tmp_path, {"ann": [event]}) as store:
        body = page_of(store, WHOLE).body()
    assert (
        body
        == (
            '{"events":[{"id":"e1","name":"page","time":"2020-11-19T13:39:17.380Z","params":{"n":7,"text":"ä\\""}}],'
            '"cursor":null}'
        ).encode()
    )


def test_a_profile_without_events_has_an_empty_page_and_an_unknown_one_none(tmp_path: Path) -> None:
    with store_of(tmp_path, {"ann": history_of(3), "bob": []}) as store:
        assert page_of(store, WHOLE, primary="bob").body() == b'{"events":[],"cursor":null}'
        for unknown in ("carl", "", "an", "ann ", "x" * 600):
            with pytest.raises(ProfileNotFound):
                page_of(store, WHOLE, primary=unknown)


def test_names_with_one_hash_are_told_apart_by_the_names_themselves(tmp_path: Path) -> None:
    events = [Happened(n, name, n) for n, name in enumerate([*SAME_HASH, SAME_BIT] * 20)]
    with store_of(tmp_path, {"ann": events}, block_events=7) as store:
        for name in (*SAME_HASH, SAME_BIT):
            found = json.loads(page_of(store, Query([name])).body())["events"]
            assert [event["name"] for event in found] == [name] * 20
        assert json.loads(page_of(store, Query(["name"])).body()) == {"events": [], "cursor": None}


# --- the size of a page --------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(EVENTS, st.integers(0, 2_000))
def test_a_page_ends_before_it_is_too_large_but_has_one_event(events: list[Happened], bytes_max: int) -> None:
    expected = [body_of("ann", event, True) for event in newest_first(events)]
    with tempfile.TemporaryDirectory() as folder, store_of(Path(folder), {"ann": events}) as store:
        found = list(pages(store, WHOLE, bytes_max=bytes_max))
        answer = read_page(store, b"ann", WHOLE.wanted(), bytes_max)
        assert answer.events == 0 or answer.events == 1 or len(answer.body()) <= bytes_max
    assert b",".join(found) == b",".join(expected)
    assert all(found) or not expected


# --- cursors -------------------------------------------------------------------------------------------------------


def test_a_cursor_goes_on_at_the_same_place_after_a_refresh(tmp_path: Path) -> None:
    before = history_of(300)
    newer = history_of(50, first_us=10**12)
    between = [Happened(150 * 1_000_000 + 1, "late", id="late"), Happened(280 * 1_000_000 + 1, "later", id="later")]
    query = Query(limit=100)
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    with store_of(tmp_path / "old", {"ann": before}) as store:
        _, cursor = split(page_of(store, query).body())
    with store_of(tmp_path / "new", {"ann": [*before, *newer, *between]}, block_events=17) as store:
        found = joined(list(pages(store, query, cursor=cursor)))
    expected = [*before[:200], between[0]]
    assert found == [json.dumps(json.loads(body_of("ann", event, True))).encode() for event in newest_first(expected)]


@pytest.mark.parametrize("block_events", [1, 3, 5, 128])
@pytest.mark.parametrize("limit", [1, 4, 99])
def test_a_cursor_counts_among_events_of_one_time(tmp_path: Path, block_events: int, limit: int) -> None:
    events = [Happened(time_us, f"name {n % 3}", n, id=f"{n:03}") for time_us in (5, 7) for n in range(60)]
    for names in ([], ["name 1"], ["name 0", "name 2"]):
        query = Query(names, limit=limit)
        expected = [body_of("ann", event, True) for event in newest_first(events) if query.finds(event)]
        with store_of(tmp_path, {"ann": events}, block_events=block_events) as store:
            assert b",".join(pages(store, query)) == b",".join(expected)
        (tmp_path / "profiles.mdb").unlink()


def test_a_cursor_behind_events_that_are_gone_goes_on_below_them(tmp_path: Path) -> None:
    events = [Happened(9, "page", n, id=str(n)) for n in range(8)] + [Happened(4, "page", 8)]
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    with store_of(tmp_path / "old", {"ann": events}, block_events=2) as store:
        _, cursor = split(page_of(store, Query(limit=7)).body())
    with store_of(tmp_path / "new", {"ann": events[3:5] + events[8:]}, block_events=2) as store:
        (found,) = pages(store, Query(limit=7), cursor=cursor)
    assert found == body_of("ann", events[8], True)


def test_a_cursor_is_bound_to_its_profile_its_names_and_its_range_but_to_no_limit(tmp_path: Path) -> None:
    query = Query(["name 1", "name 2"], 0, 10**9, 10)
    histories: Histories = {"ann": history_of(100), "bob": history_of(100)}
    with store_of(tmp_path, histories) as store:
        _, cursor = split(page_of(store, query).body())
        same = [query._replace(limit=3), query._replace(names=["name 2", "name 1"])]
        assert [page_of(store, each, cursor).events for each in same] == [3, 10]
        other = [query._replace(names=[]), query._replace(names=["name 1"]), query._replace(names=["name 1,name 2"])]
        other += [query._replace(start_us=1), query._replace(end_us=10**9 + 1), query._replace(names=["name 3"])]
        for each in other:
            with pytest.raises(MalformedQuery, match="cursor"):
                page_of(store, each, cursor)
        with pytest.raises(MalformedQuery, match="cursor"):
            page_of(store, query, cursor, primary="bob")


@settings(max_examples=100)
@given(st.integers(0, 15), st.integers(1, 255))
def test_a_cursor_of_which_a_byte_is_changed_is_refused(at: int, bits: int) -> None:
    wanted = Wanted([], *EVER, 10, bytes(16))
    with tempfile.TemporaryDirectory() as folder, store_of(Path(folder), {"ann": history_of(30)}) as store:
        with pytest.raises(MalformedQuery):
            read_page(store, b"ann", wanted, BYTES_MAX)
        good = split(page_of(store, Query(limit=10)).body())[1]
        assert good is not None
        cursor = bytearray(decoded_cursor(good))
        cursor[at] ^= bits
        with pytest.raises(MalformedQuery):
            read_page(store, b"ann", Wanted([], *EVER, 10, bytes(cursor)), BYTES_MAX)


def test_what_no_query_can_be_is_refused_by_its_maker() -> None:
    for names, limit, cursor in (([], 0, None), ([], 101, None), (list("a" * 33), 1, None), ([], 1, b"short")):
        with pytest.raises(ValueError, match="can be"):
            Wanted(names, *EVER, limit, cursor)


# --- cost ----------------------------------------------------------------------------------------------------------


def cost(store: Store, query: Query, cursor: str | None = None) -> tuple[int, int, int]:
    page = page_of(store, query, cursor)
    return page.events, page.blocks_read, page.records_read


def test_a_page_takes_as_much_of_a_long_history_as_of_a_short_one(tmp_path: Path) -> None:
    found = []
    for count in (1_000, 20_000):
        (tmp_path / str(count)).mkdir()
        with store_of(tmp_path / str(count), {"ann": history_of(count)}) as store:
            middle_us = count // 2 * 1_000_000
            _, cursor = split(page_of(store, Query(end_us=middle_us, limit=50)).body())
            found.append(
                [
                    cost(store, WHOLE),
                    cost(store, Query(limit=1)),
                    cost(store, Query(["name 1"], limit=20)),
                    cost(store, Query(end_us=middle_us)),
                    cost(store, Query(start_us=middle_us, end_us=middle_us)),
                    cost(store, Query(end_us=middle_us, limit=50), cursor),
                    cost(store, Query(end_us=-1)),
                    cost(store, Query(start_us=count * 1_000_000)),
                    cost(store, Query(["another"])),
                ]
            )
    assert [events for events, _, _ in found[1]] == [100, 1, 20, 100, 1, 50, 0, 0, 0]
    # By a name one more, whose name tells whether there is another page.
    assert [records for _, _, records in found[1]] == [100, 1, 21, 100, 1, 50, 0, 0, 0]
    assert max(blocks for _, blocks, _ in found[1]) <= 2
    assert [blocks for _, blocks, _ in found[1]][-3:] == [0, 0, 0]
    assert max(abs(short[1] - long[1]) for short, long in zip(*found, strict=True)) <= 1


def test_a_rare_name_is_searched_for_in_steps_of_which_none_is_long(tmp_path: Path) -> None:
    rare, common = SAME_HASH[0], SAME_BIT
    events = [Happened(0, rare, id="rare"), *(Happened(n, common) for n in range(1, 2_300))]
    query = Query([rare])
    with store_of(tmp_path, {"ann": events}, block_events=1) as store:
        found = list(pages(store, query))
        assert cost(store, query) == (0, 1_024, 0)
    assert found == [b"", b"", body_of("ann", events[0], True)]
