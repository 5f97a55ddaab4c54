"""Histories: what the compiled builder makes of batches, against the plain writer, and damage of every byte of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import COLUMNS, TEXT, TEXTS, TIMESTAMP, Column, plain, stream_of

from edgeprofile import _record, history
from edgeprofile._history import HistoryBuilder, check_history
from edgeprofile.errors import RecordDamaged, StoreError
from edgeprofile.history import BLOCK_BYTES_MAX, BLOCK_EVENTS_MAX, Event, EventsSchema, Position
from edgeprofile.record import Field, Kind

TIME_US = 1_767_323_045_000_006
TIMES = Column(TIMESTAMP, st.none(), lambda given: pa.array([v[0] for v in given], pa.timestamp("us")))
WORDS = plain(Kind.TEXT, pa.utf8(), TEXTS)


class Row(NamedTuple):
    """An event, with one value a column."""

    primary: str
    time_us: int
    name: str
    values: list[Any]


class Made(NamedTuple):
    """What the compiled code made."""

    segments: list[bytes]
    directories: dict[str, bytes]

    def content_of(self, block: history.Block) -> bytes:
        return self.segments[block.segment][block.offset : block.offset + block.length]

    def views(self) -> list[memoryview]:
        return [memoryview(segment) for segment in self.segments]


def schema_of(has_id: bool, params: int) -> EventsSchema:
    return EventsSchema(has_id, tuple(Field(f"p{n} é", "params", "") for n in range(params)))


def encoder_of(schema: EventsSchema, columns: list[Column]) -> _record.Encoder:
    types = [*(column.type for column in columns), TEXT, TIMESTAMP]
    return _record.Encoder(
        schema.names, types, schema.first_param, True, 0, "params", False, schema.names.index("name")
    )


def built(schema: EventsSchema, columns: list[Column], batches: Sequence[Sequence[Row]]) -> Made:
    """What the encoder and the builder make of rows that come in these batches."""
    encoder, builder, made = encoder_of(schema, columns), HistoryBuilder(), Made([], {})

    def take(segment: bytes, ready: list[tuple[bytes, bytes]]) -> None:
        made.segments.extend([segment] if segment else [])
        made.directories.update({primary.decode(): directory for primary, directory in ready})

    for rows in batches:
        arrays = [column.arrow([row.values[n] for row in rows]) for n, column in enumerate(columns)]
        keys = [pa.array([row.primary for row in rows]), TIMES.arrow([(row.time_us, 0) for row in rows])]
        batch = encoder.encode(stream_of([*arrays, *keys]), None, 0, 0)
        assert batch.refused == []
        take(*builder.add(batch, len(made.segments)))
    take(*builder.finish(len(made.segments)))
    return made


def hold_against_plain(schema: EventsSchema, columns: list[Column], batches: Sequence[Sequence[Row]]) -> None:
    made, types = built(schema, columns, batches), [column.type for column in columns]
    rows = list(itertools.chain(*batches))
    assert list(made.directories) == list(dict.fromkeys(row.primary for row in rows))
    total = 0
    for primary, directory in made.directories.items():
        events = [
            Event(
                row.time_us,
                history.name_hash(row.name),
                history.encode(schema, types, primary, row.values, row.time_us),
            )
            for row in rows
            if row.primary == primary
        ]
        blocks = history.read_directory(primary, directory)
        for block, part in zip(blocks, history.cut(events), strict=True):
            expected = history.write_block(primary, part, block.segment, block.offset)
            assert (block, made.content_of(block)) == expected
            assert history.read_block(primary, block, expected[1]) == part
        assert directory == history.write_directory(primary, blocks)
        size = sum(block.length for block in blocks)
        assert check_history(primary.encode(), directory, made.views()) == (len(events), size)
        total += size
    assert total == sum(map(len, made.segments))


def batches_of(rows: list[Row], sizes: list[int]) -> list[list[Row]]:
    """The rows cut into batches of these sizes, over and over."""
    remaining = iter(rows)
    batches: list[list[Row]] = []
    for size in itertools.cycle(sizes):
        batch = list(itertools.islice(remaining, size))
        if not batch:
            return batches
        batches.append(batch)
    raise AssertionError("a cycle ends only by its return")


@st.composite
def histories(draw: st.DrawFn) -> tuple[EventsSchema, list[Column], list[list[Row]]]:
    """Few profiles; some of their histories are of many blocks."""
    has_id = draw(st.booleans())
    params = draw(st.lists(COLUMNS, max_size=3))
    columns = [*[WORDS] * has_id, WORDS, TIMES, *params]
    pool = draw(st.lists(st.tuples(TEXTS, TEXTS, *(p.nullable for p in params)), min_size=1, max_size=3))
    counts = st.sampled_from([1, 2, BLOCK_EVENTS_MAX - 1, BLOCK_EVENTS_MAX, BLOCK_EVENTS_MAX + 1, 300])
    steps = draw(st.lists(st.sampled_from([0, 1, 1_000_000]), min_size=1, max_size=3))
    rows = []
    for primary in draw(st.lists(TEXTS, min_size=1, max_size=3, unique=True)):
        time_us = draw(st.integers(-TIME_US, TIME_US))
        for number in range(draw(counts)):
            id, name, *values = pool[number % len(pool)]
            rows.append(Row(primary, time_us, name, [*[id] * has_id, name, (time_us, 1_000_000), *values]))
            time_us -= steps[number % len(steps)]
    sizes = draw(st.lists(st.integers(1, 400), min_size=1, max_size=3))
    return schema_of(has_id, len(params)), columns, batches_of(rows, sizes)


@settings(max_examples=60)
@given(histories())
def test_the_compiled_builder_makes_what_the_plain_writer_does(
    made: tuple[EventsSchema, list[Column], list[list[Row]]],
) -> None:
    hold_against_plain(*made)


def worded(primary: str, *words: str) -> list[Row]:
    """Events a second apart, of two names by turns, with a word each."""
    return [
        Row(primary, at, name, [name, (at, 1_000_000), word])
        for number, word in enumerate(words)
        for at, name in [(TIME_US - number * 1_000_000, ("page", "buy")[number % 2])]
    ]


WORDED = schema_of(False, 1)
WORDED_COLUMNS = [WORDS, TIMES, WORDS]


@pytest.mark.parametrize("sizes", [[1], [7], [128], [1000], [3, 500]])
def test_a_block_ends_at_128_events_or_64_kib_wherever_batches_end(sizes: list[int]) -> None:
    edge = (
        BLOCK_BYTES_MAX
        - 2 * 16
        - 2 * len(history.encode(WORDED, [TEXT, TIMESTAMP, TEXT], "p", worded("p", "")[0].values, 0))
    )
    words = ["x" * n for n in (70_000, 1, edge - 1, 0, 3, edge, 0, edge + 1, 0, 65_536, 2)] + ["y"] * 700
    rows = [*worded("p", *words), *worded("q", "z"), *worded("r", *["w" * 600] * 400)]
    hold_against_plain(WORDED, WORDED_COLUMNS, batches_of(rows, sizes))


def test_an_events_record_is_its_answer() -> None:
    made = built(WORDED, WORDED_COLUMNS, [worded("p", "é")])
    [block] = history.read_directory("p", made.directories["p"])
    [event] = history.read_block("p", block, made.content_of(block))
    text = '{"name":"page","time":"2026-01-02T03:04:05.000006Z","params":{"p0 é":"é"}}'
    assert history.body("p", event).decode() == text
    assert (event.time_us, event.name_hash) == (TIME_US, history.name_hash("page"))
    assert block.names == 1 << (history.name_hash("page") & 63)


def test_events_that_do_not_come_newest_first_are_an_error() -> None:
    rows = worded("p", *"abc")
    with pytest.raises(ValueError, match="newest first"):
        built(WORDED, WORDED_COLUMNS, [rows[::-1]])
    with pytest.raises(ValueError, match="newest first"):
        built(WORDED, WORDED_COLUMNS, [worded("p", *"w" * 128), worded("p", "x")])
    built(WORDED, WORDED_COLUMNS, [worded("p", "a"), worded("q", "b")])


def test_a_batch_without_hashes_is_no_batch_of_events() -> None:
    encoder = _record.Encoder(["id"], [TEXT, TEXT], 1, False, 0)
    batch = encoder.encode(stream_of([pa.array(["a"]), pa.array(["a"])]), None, 0, 0)
    with pytest.raises(ValueError, match="hash of its name"):
        HistoryBuilder().add(batch, 0)


@pytest.mark.parametrize("hashed", [1, 7])
def test_what_is_hashed_is_a_field_of_text(hashed: int) -> None:
    with pytest.raises(ValueError, match="field of text"):
        _record.Encoder(["name", "time"], [TEXT, TIMESTAMP, TEXT, TIMESTAMP], 2, True, 0, "params", False, hashed)


# --- the plain reader ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long() -> Made:
    """300 events of two names, the seconds of a few minutes."""
    return built(WORDED, WORDED_COLUMNS, [worded("p", *map(str, range(300)))])


def words_of(found: list[bytes]) -> list[str]:
    return [json.loads(text)["params"]["p0 é"] for text in found]


@pytest.mark.parametrize("limit", [1, 7, 128, 299, 300, 301])
@pytest.mark.parametrize("name", [None, "buy", "no such"])
def test_pages_go_through_every_event_once(long: Made, limit: int, name: str | None) -> None:
    found: list[str] = []
    after: Position | None = None
    while True:
        page, after = history.read("p", long.directories["p"], long.content_of, name=name, limit=limit, after=after)
        found += words_of(page)
        if after is None:
            break
        assert len(page) == limit
    numbers = {None: range(300), "buy": range(1, 300, 2), "no such": range(0)}[name]
    assert found == list(map(str, numbers))


def test_a_range_has_its_start_and_not_its_end(long: Made) -> None:
    start_us, end_us = TIME_US - 20_000_000, TIME_US - 10_000_000
    page, after = history.read("p", long.directories["p"], long.content_of, start_us=start_us, end_us=end_us)
    assert (words_of(page), after) == ([str(n) for n in range(11, 21)], None)


# --- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_noticed(bits: int) -> None:
    made = built(WORDED, WORDED_COLUMNS, [worded("p", *["w"] * 130)])
    directory = made.directories["p"]
    for at in range(len(directory)):
        damaged = directory[:at] + bytes([directory[at] ^ bits]) + directory[at + 1 :]
        with pytest.raises(StoreError):
            check_history(b"p", damaged, made.views())
        with pytest.raises(RecordDamaged):
            history.read_directory("p", damaged)
    for number, segment in enumerate(made.segments):
        for at in range(len(segment)):
            segments = made.views()
            segments[number] = memoryview(segment[:at] + bytes([segment[at] ^ bits]) + segment[at + 1 :])
            with pytest.raises(StoreError):
                check_history(b"p", directory, segments)


def test_a_history_is_good_only_under_its_own_id(long: Made) -> None:
    with pytest.raises(RecordDamaged):
        check_history(b"q", long.directories["p"], long.views())


@pytest.mark.parametrize("size", [0, 3, 4, 59, 61])
def test_a_directory_of_another_length_is_noticed(long: Made, size: int) -> None:
    with pytest.raises(RecordDamaged):
        check_history(b"p", long.directories["p"][:size], long.views())
    with pytest.raises(RecordDamaged):
        history.read_directory("p", long.directories["p"][:size])


@pytest.mark.parametrize("field", history.Block._fields)
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("by", [1, -1, 1 << 31])
def test_a_directory_that_lies_is_noticed_though_its_check_is_right(
    long: Made, field: str, number: int, by: int
) -> None:
    blocks = history.read_directory("p", long.directories["p"])
    bits = {"newest_us": 63, "oldest_us": 63, "names": 64, "check": 64, "reserved": 64}.get(field, 32)
    blocks[number] = blocks[number]._replace(**{field: (getattr(blocks[number], field) + by) % (1 << bits)})
    with pytest.raises(RecordDamaged):
        check_history(b"p", history.write_directory("p", blocks), long.views())


@pytest.mark.parametrize("segments", [[], [b""], [b"", b""], [b"x"]])
def test_segments_that_are_gone_or_empty_are_noticed(long: Made, segments: list[bytes]) -> None:
    emptied = history.read_directory("p", long.directories["p"])[0]._replace(length=0, offset=0)
    for directory in (long.directories["p"], history.write_directory("p", [emptied])):
        with pytest.raises(RecordDamaged):
            check_history(b"p", directory, [memoryview(segment) for segment in segments])


def test_blocks_in_another_order_are_noticed(long: Made) -> None:
    blocks = history.read_directory("p", long.directories["p"])
    with pytest.raises(RecordDamaged):
        check_history(b"p", history.write_directory("p", blocks[::-1]), long.views())
    assert check_history(b"p", history.write_directory("p", blocks[1:]), long.views())[0] == 300 - BLOCK_EVENTS_MAX
