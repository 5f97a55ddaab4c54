"""Walks through a profile's events: what plain Python finds in a list of them, at the cost of what is asked for."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from histories import EVER, PARAMS, Happened, Histories, body_of, newest_first, store_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from templates import SLOTS, items_of, taken_apart
from test_events import EVENTS, NAMES, SAME_BIT, SAME_HASH, history_of

from edgeprofile import history
from edgeprofile._profile import CONSTANT, OBJECT, RUN, VALUE, Template
from edgeprofile._store import Store
from edgeprofile._walk import Walk
from edgeprofile.errors import AnswerTooLarge, ProfileNotFound
from edgeprofile.history import EventsSchema

# An event as the native answer has it, but for its braces.
WHOLE = Template([(RUN, [(0, 3)]), (OBJECT, [(3, 99)], b'"params":{', b"}")], 3, True)
WHOLE_WITHOUT_ID = Template([(RUN, [(0, 2)]), (OBJECT, [(2, 99)], b'"params":{', b"}")], 2, True)
BOUNDS = st.sampled_from(EVER) | st.integers(-2, 8)
SOME_NAMES = st.lists(st.sampled_from([*NAMES, "unknown"]), unique=True, max_size=3)


class Asked(NamedTuple):
    """What a walk is of."""

    names: Collection[str] = ()
    excluded: Collection[str] = ()
    start_us: int = EVER[0]
    end_us: int = EVER[1]
    ascending: bool = False

    def walk(self, store: Store, primary: str = "ann") -> Walk:
        return Walk(store, primary.encode(), **self._asdict())

    def finds(self, events: Sequence[Happened]) -> list[Happened]:
        found = [event for event in newest_first(events) if self.start_us <= event.time_us <= self.end_us]
        found = [event for event in found if not self.names or event.name in self.names]
        found = [event for event in found if event.name not in self.excluded]
        return found[::-1] if self.ascending else found


ASKED = st.builds(
    lambda names, excluded, bounds, ascending: Asked(names, excluded, min(bounds), max(bounds), ascending),
    st.just([]) | SOME_NAMES,
    st.just([]) | SOME_NAMES,
    st.just(EVER) | st.tuples(BOUNDS, BOUNDS),
    st.booleans(),
)
BOTH_WAYS = pytest.mark.parametrize("ascending", [False, True])


def text_of(events: Sequence[Happened], has_id: bool = True) -> bytes:
    return b",".join(body_of("ann", event, has_id) for event in events)


def rest_of(walk: Walk) -> bytes:
    return walk.page(WHOLE, 1 << 30)


# --- what is found -------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(EVENTS, ASKED, st.integers(1, 9), st.booleans())
def test_step_by_step_a_walk_finds_every_event_that_is_wanted_once_and_in_order(
    events: list[Happened], asked: Asked, block_events: int, has_id: bool
) -> None:
    events = events if has_id else [event._replace(id="") for event in events]
    expected = asked.finds(events)
    histories: Histories = {"ann": events, "bob": events[:3]}
    template = WHOLE if has_id else WHOLE_WITHOUT_ID
    names = EventsSchema(has_id, PARAMS).names
    with (
        tempfile.TemporaryDirectory() as folder,
        store_of(Path(folder), histories, block_events=block_events, has_id=has_id) as store,
    ):
        walk = asked.walk(store)
        for event in expected:
            assert walk.next()
            body = body_of("ann", event, has_id)
            assert (walk.time_us, b"{%b}" % walk.render(template)) == (event.time_us, body)
            parts = taken_apart(body, names, 2 + has_id, event.time_us)
            values = [walk.value(n) for n in range(-1, len(names) + 9)]
            assert values == [(v := parts.values.get(n)) and v.encode() for n in range(-1, len(names) + 9)]
        assert not walk.next()
        assert not walk.next()
        assert not walk.is_cut


Step = tuple[str, int, int]
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(
        st.sampled_from(["next", "skip", "page", "page", "page per name"]), st.integers(-1, 9), st.integers(1, 3)
    ),
    max_size=6,
)


class Expected:
    """The oracle of a walk: the events that are left of a list."""

    def __init__(self, left: list[Happened]) -> None:
        self.left = left

    def take(self, count: int, per_name: int = 0) -> list[Happened]:
        taken: list[Happened] = []
        seen: dict[str, int] = {}
        while self.left and len(taken) < count:
            event = self.left.pop(0)
            seen[event.name] = seen.get(event.name, 0) + 1
            if not per_name or seen[event.name] <= per_name:
                taken.append(event)
        return taken


def do(walk: Walk, expected: Expected, step: Step) -> None:
    """Takes one step with the walk, which must do what the oracle does."""
    what, count, per_name = step
    if what == "next":
        event = expected.take(1)
        assert walk.next() is bool(event)
        assert [walk.value(0)] * len(event) == [json.dumps(each.id).encode() for each in event]
    elif what == "skip":
        assert walk.skip(count) == len(expected.take(count))
    else:
        per_name = per_name if what == "page per name" else 0
        page = walk.page(WHOLE, count, field=1, limit_per_value=per_name)
        taken = expected.take(count, per_name)
        assert (page, walk.taken) == (text_of(taken), len(taken))


@settings(max_examples=300)
@given(EVENTS, ASKED, STEPS, st.integers(1, 9))
@example([Happened(n, "page", n) for n in range(12)], Asked(), [("skip", 8, 1)], 4)
@example([Happened(n, "page", n) for n in range(12)], Asked(ascending=True), [("skip", 8, 1)], 4)
@example([Happened(1, "page", n) for n in range(12)], Asked(), [("next", 1, 1), ("skip", -1, 1)], 2)
def test_steps_of_any_kind_take_turns_and_any_place_can_be_come_back_to(
    events: list[Happened], asked: Asked, steps: list[Step], block_events: int
) -> None:
    expected = Expected(asked.finds(events))
    with (
        tempfile.TemporaryDirectory() as folder,
        store_of(Path(folder), {"ann": events}, block_events=block_events) as store,
    ):
        walk = asked.walk(store)
        places = [(walk.position(), list(expected.left))]
        for step in steps:
            do(walk, expected, step)
            places.append((walk.position(), list(expected.left)))
        assert rest_of(walk) == text_of(expected.left)
        for place, left in places:
            for other in (asked.walk(store), walk):
                other.go_to(*place)
                assert other.position() == place
                assert rest_of(other) == text_of(left)


@settings(max_examples=200)
@given(EVENTS, EVENTS, ASKED, st.integers(1, 9), st.integers(1, 9), st.data())
def test_what_was_there_throughout_comes_once_across_a_refresh(
    events: list[Happened], added: list[Happened], asked: Asked, before: int, after: int, data: st.DataObject
) -> None:
    # None has an empty id, which nothing that is added could come before.
    events = [event._replace(time_us=2 * event.time_us, id=f"a{event.id}") for event in events]
    asked = asked._replace(
        **{end: max(EVER[0], min(2 * getattr(asked, end), EVER[1])) for end in ("start_us", "end_us")}
    )
    added = [event._replace(time_us=2 * event.time_us + 1, text="added") for event in added]
    added += data.draw(
        st.lists(st.builds(Happened, st.just(6), st.just("page"), text=st.just("added"), id=same_time(asked)))
    )
    expected = asked.finds(events)
    count = data.draw(st.integers(0, len(expected)))
    with tempfile.TemporaryDirectory() as old, store_of(Path(old), {"ann": events}, block_events=before) as store:
        walk = asked.walk(store)
        assert walk.page(WHOLE, count) == text_of(expected[:count])
        place = walk.position()
    with (
        tempfile.TemporaryDirectory() as new,
        store_of(Path(new), {"ann": [*events, *added]}, block_events=after) as store,
    ):
        walk = asked.walk(store)
        walk.go_to(*place)
        found = [json.dumps(event) for event in json.loads(b"[%b]" % rest_of(walk))]
    wanted = [json.dumps(json.loads(body_of("ann", event, True))) for event in asked.finds([*events, *added])]
    assert found == wanted[len(wanted) - len(found) :], "what is found is all that is left"
    assert [text for text in found if "added" not in text] == [
        json.dumps(json.loads(body_of("ann", event, True))) for event in expected[count:]
    ]


def same_time(asked: Asked) -> st.SearchStrategy[str]:
    """Ids of events that come behind those of the same time, in the direction of the walk."""
    return st.just("\x00") if asked.ascending else st.just("zz")


@BOTH_WAYS
def test_a_place_before_the_start_is_the_start(tmp_path: Path, ascending: bool) -> None:
    events = history_of(30)
    asked = Asked(start_us=5_000_000, end_us=20_000_000, ascending=ascending)
    with store_of(tmp_path, {"ann": events}, block_events=4) as store:
        walk = asked.walk(store)
        for place in ((EVER[ascending ^ 1], 0), (EVER[ascending ^ 1], 7), (4_999_999 if ascending else 20_000_001, 1)):
            walk.page(WHOLE, 3)
            walk.go_to(*place)
            assert rest_of(walk) == text_of(asked.finds(events))
        for place in ((EVER[ascending], 0), (EVER[ascending], 1 << 63)):
            walk.go_to(*place)
            assert not walk.next()


def test_more_events_of_a_time_than_there_are_lead_behind_all_of_them(tmp_path: Path) -> None:
    events = [Happened(time_us, "page", n, id=str(n)) for time_us in (1, 2, 3) for n in range(5)]
    with store_of(tmp_path, {"ann": events}, block_events=2) as store:
        for asked in (Asked(), Asked(ascending=True)):
            walk = asked.walk(store)
            walk.go_to(2, 99)
            assert rest_of(walk) == text_of(asked.finds(events)[10:])


def test_a_profile_without_events_is_walked_in_no_steps_and_an_unknown_one_not_at_all(tmp_path: Path) -> None:
    with store_of(tmp_path, {"ann": history_of(3), "bob": []}) as store:
        for asked in (Asked(), Asked(ascending=True)):
            walk = asked.walk(store, "bob")
            assert (walk.next(), walk.skip(5), rest_of(walk), walk.taken, walk.kinds()) == (False, 0, b"", 0, [])
            walk.go_to(*walk.position())
            assert (walk.value(0), walk.render(WHOLE), walk.is_cut) == (None, b'"params":{}', False)
            for unknown in ("carl", "", "an", "ann "):
                with pytest.raises(ProfileNotFound):
                    asked.walk(store, unknown)


def test_up_to_32_names_can_be_asked_for_or_excluded(tmp_path: Path) -> None:
    names = [str(n) for n in range(33)]
    with store_of(tmp_path, {"ann": [Happened(0, "31")]}) as store:
        assert Asked(names[:32]).walk(store).next()
        assert not Asked(excluded=names[:32]).walk(store).next()
        for asked in (Asked(names), Asked(excluded=names)):
            with pytest.raises(ValueError, match="32"):
                asked.walk(store)


# --- what is made of it --------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.data(), EVENTS.filter(bool), st.booleans())
def test_a_template_renders_what_plain_code_makes_of_an_event(
    data: st.DataObject, events: list[Happened], has_id: bool
) -> None:
    names = EventsSchema(has_id, PARAMS).names
    items = data.draw(items_of(len(names), 2 + has_id))
    template = Template(items, 2 + has_id, True)
    expected = [
        taken_apart(body_of("ann", event, has_id), names, 2 + has_id, event.time_us).render(items, SLOTS)
        for event in Asked().finds(events)
    ]
    page = b",".join(b"{%b}" % each for each in expected)
    with tempfile.TemporaryDirectory() as folder, store_of(Path(folder), {"ann": events}, has_id=has_id) as store:
        walk = Asked().walk(store)
        assert walk.next()
        assert walk.render(template, SLOTS) == walk.render(template, SLOTS, len(expected[0])) == expected[0]
        for bytes_max in (len(page), len(page) + 1, 1 << 40):
            assert Asked().walk(store).page(template, len(events), slots=SLOTS, bytes_max=bytes_max) == page
        for bytes_max in {len(page) - 1, data.draw(st.integers(0, len(page) - 1))}:
            with pytest.raises(AnswerTooLarge):
                Asked().walk(store).page(template, len(events), slots=SLOTS, bytes_max=bytes_max)


def test_a_page_of_no_limit_takes_nothing_and_an_empty_template_gives_empty_objects(tmp_path: Path) -> None:
    with store_of(tmp_path, {"ann": history_of(3)}) as store:
        walk = Asked().walk(store)
        assert [walk.page(WHOLE, limit) for limit in (0, -1)] == [b"", b""]
        assert walk.page(Template([], 3, True), 2) == b"{},{}"
        assert walk.page(Template([(CONSTANT, b"x")], 3, True), 9) == b"{x}"


def test_a_limit_for_each_value_counts_by_its_text_and_those_without_it_together(tmp_path: Path) -> None:
    texts = ["a", None, "a", None, "a", 'b"', None, 'b"']
    events = [Happened(-n, "page", n, text, str(n)) for n, text in enumerate(texts)]
    template = Template([(VALUE, 3)], 3, True)
    with store_of(tmp_path, {"ann": events}) as store:
        for limit_per_value, expected in ((1, [0, 1, 5]), (2, [0, 1, 2, 3, 5, 7]), (0, range(8)), (-1, range(8))):
            page = Asked().walk(store).page(template, 99, field=4, limit_per_value=limit_per_value)
            assert page == b",".join(b"{%d}" % n for n in expected)
        walk = Asked().walk(store)
        assert walk.page(template, 2, field=4, limit_per_value=1) == b"{0},{1}"
        assert walk.page(template, 2, field=4, limit_per_value=1) == b"{2},{3}", "each page counts anew"


# --- kinds ---------------------------------------------------------------------------------------------------------


def told_apart(events: Sequence[Happened]) -> list[tuple[Happened, Happened]]:
    """The newest and the oldest event of each name, or of names of one hash, the latest first."""
    found: dict[int, tuple[Happened, Happened]] = {}
    for event in newest_first(events):
        newest, _ = found.get(history.name_hash(event.name), (event, event))
        found[history.name_hash(event.name)] = newest, event
    return list(found.values())


def ends_of(walk: Walk) -> Iterator[list[tuple[int, bytes | None, bytes | None]]]:
    for places in walk.kinds():
        ends = []
        for place in places:
            walk.look_at(*place)
            ends.append((walk.time_us, walk.value(0), walk.value(1)))
        yield ends


def as_read(event: Happened) -> tuple[int, bytes, bytes]:
    return event.time_us, json.dumps(event.id).encode(), json.dumps(event.name, ensure_ascii=False).encode()


@settings(max_examples=100)
@given(EVENTS, ASKED, st.integers(1, 9), st.integers(0, 9))
def test_kinds_are_the_newest_and_the_oldest_event_of_each_name(
    events: list[Happened], asked: Asked, block_events: int, taken: int
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        store_of(Path(folder), {"ann": events}, block_events=block_events) as store,
    ):
        walk = asked.walk(store)
        expected = Expected(asked.finds(events))
        do(walk, expected, ("page", taken, 0))
        place = walk.position()
        assert list(ends_of(walk)) == [[as_read(end) for end in ends] for ends in told_apart(events)]
        assert walk.position() == place
        assert rest_of(walk) == text_of(expected.left), "the walk goes on where it was"


def test_of_many_names_the_latest_256_are_told_apart(tmp_path: Path) -> None:
    events = [Happened(-n, f"name {n % 300}", n, id=str(n)) for n in range(900)]
    with store_of(tmp_path, {"ann": events}) as store:
        assert list(ends_of(Asked().walk(store))) == [
            [as_read(events[n]), as_read(events[600 + n])] for n in range(256)
        ]


def test_of_a_long_history_the_newest_and_the_oldest_blocks_tell_its_kinds(tmp_path: Path) -> None:
    events = [Happened(-n, {600: "middle", 1_499: "last"}.get(n, "page"), n, id=str(n)) for n in range(1_500)]
    with store_of(tmp_path, {"ann": events}, block_events=1) as store:
        walk = Asked().walk(store)
        assert list(ends_of(walk)) == [[as_read(events[0]), as_read(events[1_498])], [as_read(events[1_499])] * 2]
        assert walk.blocks_read == 1_024 + 3


def test_places_that_there_are_not_are_refused(tmp_path: Path) -> None:
    with store_of(tmp_path, {"ann": history_of(5), "bob": []}, block_events=2) as store:
        for place in ((3, 0), (1 << 40, 0), (0, 2), (2, 1), (0, (1 << 32) - 1)):
            with pytest.raises(IndexError):
                Asked().walk(store).look_at(*place)
        with pytest.raises(IndexError):
            Asked().walk(store, "bob").look_at(0, 0)


# --- cost ----------------------------------------------------------------------------------------------------------


def cost(walk: Walk, **options: Any) -> tuple[int, int, int]:
    """How many events a page of 50 has, and what it took in all to come to its end."""
    walk.page(WHOLE, options.pop("limit", 50), **options)
    return walk.taken, walk.blocks_read, walk.records_read


@BOTH_WAYS
@pytest.mark.parametrize("count", [1_024, 20_480])
def test_a_page_takes_as_much_of_a_long_history_as_of_a_short_one(tmp_path: Path, ascending: bool, count: int) -> None:
    asked = Asked(ascending=ascending)
    middle_us = count // 2 * 1_000_000
    with store_of(tmp_path, {"ann": history_of(count)}) as store:
        assert cost(asked.walk(store)) == (50, 1, 50)
        for start_us, end_us in ((middle_us, EVER[1]), (EVER[0], middle_us), (middle_us, middle_us)):
            taken, blocks, records = cost(asked._replace(start_us=start_us, end_us=end_us).walk(store))
            assert (taken, records) == (1, 1) if start_us == end_us else (50, 50)
            assert blocks <= 2
        for start_us, end_us in ((EVER[0], -1), (count * 1_000_000, EVER[1])):
            assert cost(asked._replace(start_us=start_us, end_us=end_us).walk(store)) == (0, 0, 0)
        taken, blocks, records = cost(asked._replace(names=["name 1"]).walk(store), limit=20)
        assert (taken, blocks, records) == (20, 1, 20)
        assert cost(asked._replace(names=["another"]).walk(store)) == (0, 0, 0)
        walk = asked.walk(store)
        walk.go_to(middle_us, 1)
        assert cost(walk)[::2] == (50, 50)
        assert walk.blocks_read <= 3


@BOTH_WAYS
def test_to_skip_opens_no_block_that_it_passes_whole_and_no_record(tmp_path: Path, ascending: bool) -> None:
    asked = Asked(ascending=ascending)
    with store_of(tmp_path, {"ann": history_of(12_800)}) as store:
        walk = asked.walk(store)
        assert walk.skip(10_000) == 10_000
        assert (walk.blocks_read, walk.records_read) == (1, 0), "the block in which it ends"
        assert cost(walk) == (50, 1, 50)
        assert walk.skip(1 << 30) == 12_800 - 10_050
        assert (walk.blocks_read, walk.records_read) == (1, 50)
        assert not walk.next()

        walk = asked.walk(store)
        assert walk.skip(1_280) == 1_280
        assert (walk.blocks_read, walk.records_read) == (0, 0)

        walk = asked._replace(start_us=64 * 1_000_000, end_us=12_735 * 1_000_000).walk(store)
        assert walk.skip(1 << 30) == 12_800 - 128
        assert (walk.blocks_read, walk.records_read) == (2, 0), "those at both ends"


@BOTH_WAYS
def test_blocks_without_an_excluded_name_are_skipped_unopened_and_those_with_one_by_their_marks(
    tmp_path: Path, ascending: bool
) -> None:
    events = [event._replace(name="odd") if n in (300, 301) else event for n, event in enumerate(history_of(1_280))]
    asked = Asked(excluded=["odd"], ascending=ascending)
    with store_of(tmp_path, {"ann": events}) as store:
        walk = asked.walk(store)
        assert walk.skip(1 << 30) == 1_278
        assert (walk.blocks_read, walk.records_read) == (1, 2), "a hash may be that of two names"
        assert cost(asked.walk(store), limit=1_280)[::2] == (1_278, 1_280)


@BOTH_WAYS
def test_a_block_whose_mask_says_that_no_name_is_in_it_is_not_opened(tmp_path: Path, ascending: bool) -> None:
    events = [event._replace(name="rare") if n % 1_000 == 500 else event for n, event in enumerate(history_of(5_000))]
    asked = Asked(["rare"], ascending=ascending)
    with store_of(tmp_path, {"ann": events}) as store:
        assert cost(asked.walk(store)) == (5, 5, 5)
        walk = asked.walk(store)
        assert walk.skip(3) == 3
        assert (walk.blocks_read, walk.records_read) == (3, 3)


@BOTH_WAYS
def test_names_of_one_hash_or_one_bit_cost_no_more_than_to_tell_them_apart(tmp_path: Path, ascending: bool) -> None:
    events = [Happened(n, name, n) for n, name in enumerate([*SAME_HASH, SAME_BIT] * 40)]
    with store_of(tmp_path, {"ann": events}) as store:
        assert cost(Asked(SAME_HASH[:1], ascending=ascending).walk(store)) == (40, 1, 80)
        assert cost(Asked([SAME_BIT], ascending=ascending).walk(store)) == (40, 1, 40)
        walk = Asked(excluded=SAME_HASH[:1], ascending=ascending).walk(store)
        assert walk.skip(99) == 80
        assert walk.records_read == 80, "but of another bit's names none"


@BOTH_WAYS
@pytest.mark.parametrize("block_events", [1, 2])
def test_a_walk_is_cut_where_it_would_open_one_block_too_many(
    tmp_path: Path, ascending: bool, block_events: int
) -> None:
    events = [Happened(n, SAME_BIT, id=f"{n:05}") for n in range(1_100 * block_events)]
    asked = Asked(ascending=ascending)
    with store_of(tmp_path, {"ann": events}, block_events=block_events) as store:
        walk = asked.walk(store)
        assert cost(walk, limit=9_999) == (1_024 * block_events, 1_024, 1_024 * block_events)
        assert walk.is_cut
        assert not walk.next()
        after = asked.walk(store)
        after.go_to(*walk.position())
        assert rest_of(after) == text_of(asked.finds(events)[1_024 * block_events :])
        assert not after.is_cut
        rare = asked._replace(names=SAME_HASH[:1]).walk(store)
        assert (cost(rare), rare.is_cut) == ((0, 1_024, 0), True)
        assert asked.walk(store).skip(1 << 30) == len(events), "blocks that are passed whole are none that it opens"
