"""Damaged events under a walk: it finds what is right or is refused, whichever byte is turned and whoever lies."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from histories import EVER, opened, write_raw
from hypothesis import given, settings
from hypothesis import strategies as st
from test_events_damage import BODIES, Damaged, lying_histories
from test_walk import WHOLE, Asked

from edgeprofile._store import Store
from edgeprofile._walk import Walk
from edgeprofile.errors import FormatUnsupported, RecordDamaged

ASKED = [
    Asked(),
    Asked(ascending=True),
    Asked(["name 1"], ascending=True),
    Asked(excluded=["name 2", "name 0"]),
    Asked(start_us=2_000, end_us=6_000),
    Asked(start_us=2_000, end_us=6_000, ascending=True),
]


def parts_of(walk: Walk, skipped: int, taken: int) -> Iterator[bytes]:
    """All that a walk finds, by every way of going on; some of it comes twice."""
    yield walk.page(WHOLE, taken)
    place = walk.position()
    walk.skip(skipped)
    yield walk.page(WHOLE, taken)
    walk.go_to(*place)
    yield walk.page(WHOLE, 1_000)


def from_place(walk: Walk, place: tuple[int, int], skipped: int) -> Iterator[bytes]:
    walk.go_to(*place)
    walk.skip(skipped)
    walk.go_to(*walk.position())
    yield walk.page(WHOLE, 1_000)


def ends_of(walk: Walk) -> Iterator[bytes]:
    for places in walk.kinds():
        for place in places:
            walk.look_at(*place)
            yield b"{%b}" % walk.render(WHOLE)


def found_by(store: Store, asked: Asked) -> list[bytes] | None:
    """None where it is refused."""
    try:
        return [*parts_of(asked.walk(store), 5, 3), *ends_of(asked.walk(store))]
    except (RecordDamaged, FormatUnsupported):
        return None


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Damaged]:
    made = Damaged(tmp_path)
    yield made
    made.close()


def test_every_byte_of_directory_index_and_record_is_right_or_the_walk_is_refused(damaged: Damaged) -> None:
    right = [found_by(damaged.store, asked) for asked in ASKED]
    assert None not in right
    for at in damaged.places():
        for bits in (0x01, 0xFF):
            damaged.turn(at, bytes([damaged.content[at] ^ bits]))
            found = [found_by(damaged.store, asked) for asked in ASKED]
            damaged.turn(at, damaged.content[at : at + 1])
            assert [answer for answer, good in zip(found, right, strict=True) if answer not in (None, good)] == []
            assert found[:2] == [None, None], "the first two read every byte"
    assert [found_by(damaged.store, asked) for asked in ASKED] == right


PLACES = st.tuples(st.sampled_from([*EVER, 0, 1_000, 5_000, 9_000]), st.sampled_from([0, 1, 2, 3, (1 << 64) - 1]))


@settings(max_examples=300)
@given(lying_histories(), st.sampled_from(ASKED), st.integers(0, 6), st.integers(0, 6), PLACES)
def test_lies_behind_right_checks_are_refused_or_lead_to_whole_events(
    lying: tuple[bytes, bytes], asked: Asked, skipped: int, taken: int, place: tuple[int, int]
) -> None:
    segment, directory = lying
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_raw(Path(folder), ["ann"], [segment], [(b"ann", directory)])
        with opened(Path(folder), manifest) as store:
            ways: list[Callable[[Walk], Iterator[bytes]]] = [
                lambda walk: parts_of(walk, skipped, taken),
                lambda walk: from_place(walk, place, skipped),
                ends_of,
            ]
            for way in ways:
                with contextlib.suppress(RecordDamaged, FormatUnsupported):
                    for text in way(asked.walk(store)):
                        assert {json.dumps(event) for event in json.loads(b"[%b]" % text)} <= BODIES
