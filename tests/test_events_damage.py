"""Damaged events: every page is right or refused, whichever byte is turned and whatever stands behind a right check."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from histories import (
    Happened,
    Query,
    body_of,
    encoded,
    newest_first,
    opened,
    page_of,
    split,
    write_file,
    write_raw,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprofile import history, snapshot
from edgeprofile._store import Store
from edgeprofile.errors import FormatUnsupported, RecordDamaged
from edgeprofile.record import checksum

EVENTS = [Happened(n // 2 * 1_000, f"name {n % 3}", n, "text", f"{n:02}") for n in range(20)]
QUERIES = [Query(), Query(["name 1"]), Query(limit=3), Query(end_us=5_000, limit=4), Query(["name 2"], 2_000, 6_000)]
EDGES = [0, 1, 2, 15, 16, 17, 127, 128, 129, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 17, (1 << 32) - 1]


def answers(store: Store) -> Iterator[tuple[bytes, str | None] | None]:
    """What each query is answered: events and cursor, or None where it is refused."""
    for query in QUERIES:
        try:
            yield split(page_of(store, query).body())
        except (RecordDamaged, FormatUnsupported):
            yield None


class Damaged:
    """An open file of which bytes are turned, behind the back of who reads it, and turned back."""

    def __init__(self, folder: Path) -> None:
        manifest = write_file(folder, {"ann": EVENTS, "bob": EVENTS[:5]}, block_events=7)
        self.content = (folder / snapshot.PROFILES).read_bytes()
        self.file = os.open(folder / snapshot.PROFILES, os.O_RDWR)
        self.opening = opened(folder, manifest)
        self.store = self.opening.__enter__()
        directory = self.store.reader.directory("ann")
        assert directory is not None
        self.directory = bytes(directory)

    def turn(self, at: int, octets: bytes) -> None:
        os.pwrite(self.file, octets, at)

    def close(self) -> None:
        self.opening.__exit__(None, None, None)
        os.close(self.file)

    def places(self) -> Iterator[int]:
        """Of every byte of the directory and the blocks."""
        at = self.content.index(self.directory)
        yield from range(at, at + len(self.directory))
        for block in history.read_directory("ann", self.directory):
            segment = bytes(self.store.reader.event_segments[block.segment])
            at = self.content.index(segment) + block.offset
            yield from range(at, at + block.length)


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Damaged]:
    made = Damaged(tmp_path)
    yield made
    made.close()


def test_every_byte_of_directory_index_and_record_is_right_or_the_page_is_refused(damaged: Damaged) -> None:
    right = list(answers(damaged.store))
    assert None not in right
    refused = 0
    for at in damaged.places():
        for bits in (0x01, 0x80, 0xFF):
            damaged.turn(at, bytes([damaged.content[at] ^ bits]))
            found = list(answers(damaged.store))
            damaged.turn(at, damaged.content[at : at + 1])
            assert [answer for answer, good in zip(found, right, strict=True) if answer not in (None, good)] == []
            assert found[0] is None, "the first query reads every byte"
            refused += found.count(None)
    assert refused > 1_000
    assert list(answers(damaged.store)) == right


def test_a_refusal_names_the_snapshot_and_nothing_of_the_profile(damaged: Damaged) -> None:
    damaged.turn(next(damaged.places()), b"\xff")
    with pytest.raises(RecordDamaged) as refused:
        page_of(damaged.store, Query())
    assert damaged.store.reader.name in str(refused.value)
    assert not [word for word in ("ann", "name 1", "text") if word in str(refused.value)]


def test_a_directory_of_another_profile_is_refused(damaged: Damaged) -> None:
    good = damaged.directory
    other = damaged.store.reader.directory("bob")
    assert other is not None
    at = damaged.content.index(good)
    for wrong in (bytes(other), bytes(len(good))):
        damaged.turn(at, wrong)
        assert list(answers(damaged.store)) == [None] * len(QUERIES)
        damaged.turn(at, good)


EVERY = [encoded("ann", event, True) for event in newest_first(EVENTS)]
BODIES = {json.dumps(json.loads(body_of("ann", event, True))) for event in EVENTS}


NUMBERS = st.sampled_from(EDGES) | st.integers(0, 400)
MOMENTS = st.sampled_from([-(1 << 63), (1 << 63) - 1, 0, 1_000, 5_000, 9_000])
LIES = {"newest_us": MOMENTS, "oldest_us": MOMENTS} | dict.fromkeys(["segment", "offset", "length", "count"], NUMBERS)


@st.composite
def lying_histories(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A segment and a directory of ann's in which anything may stand, all of it behind checks that are right."""
    blocks, segment = [], b""
    for _ in range(draw(st.integers(1, 4))):
        events = draw(st.lists(st.sampled_from(EVERY), min_size=1, max_size=5))
        block, content = history.write_block("ann", events, 0, len(segment))
        index = bytearray(content[: history.MARK.size * len(events)])
        for number in draw(st.sets(st.integers(0, len(events) - 1))):
            mark = draw(MOMENTS), draw(NUMBERS), draw(NUMBERS)
            history.MARK.pack_into(index, history.MARK.size * number, *mark)
        check = checksum(checksum(0, b"ann"), bytes(index))
        lies = draw(st.fixed_dictionaries({}, optional=LIES))
        blocks.append(block._replace(names=(1 << 64) - 1, check=check, **lies))
        segment += bytes(index) + content[len(index) :]
    return segment, history.write_directory("ann", blocks)


@settings(max_examples=300)
@given(lying_histories(), st.sampled_from(QUERIES))
def test_lies_behind_right_checks_are_refused_or_lead_to_whole_events(lying: tuple[bytes, bytes], query: Query) -> None:
    segment, directory = lying
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_raw(Path(folder), ["ann"], [segment], [(b"ann", directory)])
        with opened(Path(folder), manifest) as store:
            cursor = None
            for _ in range(10):
                try:
                    events, cursor = split(page_of(store, query, cursor).body())
                except (RecordDamaged, FormatUnsupported):
                    return
                assert {json.dumps(event) for event in json.loads(b"[" + events + b"]")} <= BODIES
                if cursor is None:
                    return


def test_blocks_that_no_segment_holds_and_directories_of_no_blocks_are_refused(tmp_path: Path) -> None:
    block, content = history.write_block("ann", EVERY[:3], 0, 0)
    lies = ({"count": 0}, {"count": 1 << 28}, {"length": 0}, {"offset": 1 << 31}, {"segment": 1})
    directories = [history.write_directory("ann", [block._replace(**lie)]) for lie in lies]
    entries = history.BLOCK.pack(*block)
    for wrong in (b"", entries[:-1], entries + b"\0"):
        check = checksum(checksum(0, b"ann"), wrong) & 0xFFFFFFFF
        directories.append(history.CHECK.pack(check) + wrong)
    for directory in [*directories, b"", b"\0"]:
        manifest = write_raw(tmp_path, ["ann"], [content], [(b"ann", directory)])
        with opened(tmp_path, manifest) as store, pytest.raises(RecordDamaged):
            page_of(store, Query())
        (tmp_path / snapshot.PROFILES).unlink()
