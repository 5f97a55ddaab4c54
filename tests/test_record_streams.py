"""What the warehouse may send: rows that are refused, columns that do not fit, streams that break off, the index."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import NOW_US, TEXT, encoder_of, one_field, records_of, schema_of, stream_of, unchecked_text

from edgeprofile import _identifiers, _record, record
from edgeprofile.errors import RecordDamaged, SourceError
from edgeprofile.record import Kind, Type

LIMIT = record.RECORD_BYTES_MAX

# --- rows that are refused -----------------------------------------------------------------------------------------

BAD_UTF8 = [
    b"\x80",
    b"\xc3",
    b"\xc0\xaf",
    b"\xc1\xbf",
    b"\xe0\x80\xaf",
    b"\xe2\x82",
    b"\xed\xa0\x80",
    b"\xed\xbf\xbf",
    b"\xf0\x80\x80\xaf",
    b"\xf0\x9f\x98",
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
    b"\xff",
    b"\xe2\x28\xa1",
]


@pytest.mark.parametrize("bad", BAD_UTF8)
@pytest.mark.parametrize("wide", [False, True])
def test_invalid_utf8_is_refused_wherever_it_stands_and_its_neighbours_are_not(bad: bytes, wide: bool) -> None:
    around = [b"", b"x" * 7, b"x" * 4095, "é".encode() * 2048]
    values = [v for a in around for v in (a, a + bad, a + bad + b"tail of text")]
    refused = [(n, "invalid_utf8") for n in range(len(values)) if n % 3]
    texts = unchecked_text(values, wide)
    ids = pa.array([str(n) for n in range(len(values))])
    text_map = pa.MapArray.from_arrays(pa.array(range(len(values) + 1), pa.int32()), unchecked_text(values), ids)
    map_type, json_type = Type(Kind.MAP, (TEXT, TEXT)), Type(Kind.JSON)
    quoted = unchecked_text([b'"' + v + b'"' for v in values], wide)
    for type_, column in ((TEXT, texts), (map_type, text_map), (json_type, quoted)):
        batch = one_field(type_, column)
        assert batch.refused == refused
        assert [key for key, _ in batch.entries] == [b"id%d" % n for n in range(0, len(values), 3)]
    encoder = encoder_of(schema_of([("f", "identifiers")]), [TEXT])
    assert encoder.encode(stream_of([ids, texts]), None, 0, 0).refused == refused


@given(
    st.binary(max_size=24) | st.text(max_size=8).flatmap(lambda t: st.binary(max_size=3).map(lambda b: t.encode() + b))
)
def test_bytes_are_refused_as_text_exactly_when_python_refuses_them(octets: bytes) -> None:
    try:
        octets.decode()
        refused = []
    except UnicodeDecodeError:
        refused = [(0, "invalid_utf8")]
    assert one_field(TEXT, unchecked_text([octets])).refused == refused


def test_what_is_not_json_is_refused() -> None:
    bad = ["", " ", "{", "[1,]", "01", "1.", "NaN", "Infinity", "{1:2}", "1 2", '"\x01"', '"\\x"', "tru", "[" * 5000]
    batch = one_field(Type(Kind.JSON), pa.array(["1", *bad, "[]"]))
    assert batch.refused == [(n + 1, "invalid_json") for n in range(len(bad))]
    assert len(batch.entries) == 2


def test_a_record_may_have_16_mib_and_not_a_byte_more() -> None:
    over = len(records_of(one_field(TEXT, pa.array(["x" * 70_000])))[0]) - 70_000
    texts = [
        "before",
        "x" * (LIMIT - over),
        "x" * (LIMIT - over + 1),
        "x" * (LIMIT + 100_000),
        "\x01" * (LIMIT // 6 + 1),
        "after",
    ]
    batch = one_field(TEXT, pa.array(texts))
    assert batch.refused == [(2, "record_too_large"), (3, "record_too_large"), (4, "record_too_large")]
    before, largest, after = records_of(batch)
    assert len(largest) == LIMIT
    assert texts[1].encode() in _record.project(largest, b"id1", record.WHOLE, 2, True)
    assert b'"f":"before"' in _record.project(before, b"id0", record.WHOLE, 2, True)
    assert b'"f":"after"' in _record.project(after, b"id5", record.WHOLE, 2, True)


@pytest.mark.parametrize(
    ("kind", "arrow_type"), [(Kind.BINARY, pa.binary()), (Kind.JSON, pa.utf8()), (Kind.NUMBER, pa.utf8())]
)
def test_every_kind_that_may_be_long_keeps_to_the_limit(kind: Kind, arrow_type: Any) -> None:
    values = [b"1", b"1" * (LIMIT - 10), b"1" * (LIMIT + 1), b"1"]
    batch = one_field(Type(kind), pa.array(values, pa.binary()).view(arrow_type))
    assert batch.refused == [(1, "record_too_large"), (2, "record_too_large")]


def test_rows_that_are_skipped_keep_their_numbers() -> None:
    encoder = encoder_of(schema_of([("f", "identifiers")]), [TEXT])
    texts = unchecked_text([b"a", b"b", b"\xff", b"d"])
    batch = encoder.encode(stream_of([texts, pa.array(["a", "b", "c", "d"])]), {101}, 100, 7)
    assert [key for key, _ in batch.entries] == [b"a", b"d"]
    assert batch.refused == [(102, "invalid_utf8")]
    assert {struct.unpack("<III", place)[0] for _, place in batch.entries} == {7}


# --- streams -------------------------------------------------------------------------------------------------------

LIST_OF_TEXT = Type(Kind.LIST, (TEXT,))
MISFITS: list[tuple[Type, Any]] = [
    (TEXT, pa.array([1])),
    (TEXT, pa.array(["a"]).dictionary_encode()),
    (Type(Kind.INTEGER), pa.array(["a"]).dictionary_encode()),
    (Type(Kind.INTEGER), pa.array([1.5])),
    (Type(Kind.BOOLEAN), pa.array([1])),
    (Type(Kind.DATE), pa.array([1], pa.date64())),
    (Type(Kind.TIMESTAMP), pa.array([1], pa.duration("s"))),
    (Type(Kind.TIME), pa.array([1], pa.timestamp("s"))),
    (Type(Kind.DECIMAL), pa.array([1], pa.decimal256(40, 2))),
    (Type(Kind.DECIMAL), pa.array([100], pa.decimal128(5, 0)).cast(pa.decimal128(5, -2))),
    (Type(Kind.DECIMAL), pa.nulls(1, pa.decimal128(38, 60))),
    (Type(Kind.DOUBLE), pa.array([1.0], pa.float32())),
    (Type(Kind.BINARY), pa.array([b"ab"], pa.binary(2))),
    (LIST_OF_TEXT, pa.array(["a"])),
    (LIST_OF_TEXT, pa.array([[1]])),
    (LIST_OF_TEXT, pa.array([["a"]], pa.list_view(pa.utf8()))),
    (Type(Kind.STRUCT, (TEXT,), ("a",)), pa.array([{"a": "b", "c": "d"}])),
    (Type(Kind.STRUCT, (TEXT,), ("a",)), pa.array([["a"]])),
    (Type(Kind.MAP, (TEXT, TEXT)), pa.array([["a"]])),
    (Type(Kind.MAP, (TEXT, TEXT)), pa.array([{"a": "b", "c": "d"}])),
    (Type(Kind.UNION, (TEXT,)), pa.UnionArray.from_sparse(pa.array([5], pa.int8()), [pa.array(["a"])], ["a"], [5])),
    (
        Type(Kind.UNION, (TEXT,)),
        pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array(["a"])]),
    ),
]


@pytest.mark.parametrize(("type_", "values"), MISFITS)
def test_a_column_that_does_not_fit_its_declared_type_is_an_error(type_: Type, values: Any) -> None:
    with pytest.raises(SourceError, match="was not expected"):
        one_field(type_, values)


def test_another_number_of_columns_is_an_error() -> None:
    encoder = encoder_of(schema_of([("f", "identifiers")]), [TEXT])
    for count in (0, 1, 3):
        with pytest.raises(SourceError, match="another number of columns"):
            encoder.encode(stream_of([pa.array(["a"])] * count), None, 0, 0)
    with pytest.raises(SourceError, match="another number of columns"):
        next(_identifiers.IndexBatches(stream_of([pa.array(["a"])]), b"", 100))
    with pytest.raises(SourceError, match="another number of columns"):
        next(_identifiers.IndexBatches(pa.chunked_array([pa.array([["a"]])]).__arrow_c_stream__(), b"", 100))


def test_an_answer_cannot_be_read_twice() -> None:
    stream = pa.record_batch([pa.array(["a"])] * 2, ["f", "id"]).__arrow_c_stream__()
    pa.RecordBatchReader._import_from_c_capsule(stream).close()
    with pytest.raises(SourceError, match="was read before"):
        encoder_of(schema_of([("f", "identifiers")]), [TEXT]).encode(stream, None, 0, 0)


def test_what_cannot_be_encoded_is_refused_before_any_row() -> None:
    schema = schema_of([("f", "identifiers")])
    with pytest.raises(ValueError, match="text for its keys"):
        encoder_of(schema, [Type(Kind.MAP, (Type(Kind.INTEGER), TEXT))])
    with pytest.raises(ValueError, match="the id is a text"):
        _record.Encoder(["f"], [TEXT, Type(Kind.INTEGER)], 1, False, 0)
    with pytest.raises(ValueError, match="time of update a timestamp"):
        _record.Encoder(["f"], [TEXT, TEXT, TEXT], 1, True, 0)


def test_a_stream_that_breaks_off_is_an_error_and_the_encoder_goes_on() -> None:
    batch = pa.record_batch([pa.array(["a"])] * 2, ["f", "id"])

    def breaking() -> Iterator[Any]:
        yield batch
        raise OSError("gone")

    encoder = encoder_of(schema_of([("f", "identifiers")]), [TEXT])
    reader = pa.RecordBatchReader.from_batches(batch.schema, breaking())
    with pytest.raises(SourceError, match="broke off"):
        encoder.encode(reader.__arrow_c_stream__(), None, 0, 0)
    with pytest.raises(SourceError, match="broke off"):
        list(
            _identifiers.IndexBatches(
                pa.RecordBatchReader.from_batches(batch.schema, breaking()).__arrow_c_stream__(), b"", 9
            )
        )
    assert [key for key, _ in encoder.encode(batch.__arrow_c_stream__(), None, 0, 0).entries] == [b"a"]


def test_one_encoder_takes_streams_of_many_batches_and_other_layouts() -> None:
    schema = schema_of([("id", "identifiers"), ("f", "attributes")])
    numbers = Type(Kind.LIST, (Type(Kind.INTEGER),))
    encoder = encoder_of(schema, [TEXT, numbers])
    layouts = [
        (pa.list_(pa.int8(), 2), pa.utf8()),
        (pa.large_list(pa.uint64()), pa.large_utf8()),
        (pa.list_(pa.int32()), pa.utf8()),
    ]
    for list_type, text_type in layouts * 2:
        ids = pa.array(["a", "b", "c"], text_type)
        table = pa.table([ids, pa.array([[1, 2], None, [3, 4]], list_type), ids], ["0", "1", "2"])
        for stream in (table, table.slice(1), pa.concat_tables([table.slice(2), table.slice(0, 1), table.slice(0, 0)])):
            batch = encoder.encode(stream.__arrow_c_stream__(), None, 0, 0)
            rows = list(zip(*(column.to_pylist() for column in stream.columns), strict=True))
            assert records_of(batch) == [record.encode(schema, [TEXT, numbers], i, [i, v], NOW_US) for i, v, _ in rows]
            assert len(batch.contents) == 8 * len(rows)


# --- the index -----------------------------------------------------------------------------------------------------


def plain_groups(rows: list[tuple[str, str]], prefix: bytes, bytes_max: int) -> list[tuple[bytes, bytes]]:
    groups: dict[bytes, list[str]] = {}
    for value, primary in rows:
        held = groups.get(prefix + value.encode(), [])
        if sum(2 + len(each.encode()) for each in [*held, primary]) <= bytes_max:
            groups[prefix + value.encode()] = [*held, primary]
    return [(key, record.index_entry(key, ids)) for key, ids in groups.items()]


VALUES = st.sampled_from(["", "a", "b", "é", "ba"])


@given(st.lists(st.tuples(VALUES, st.text(max_size=6))), st.integers(0, 40), st.data())
def test_ids_are_grouped_by_value_across_batches(rows: list[tuple[str, str]], most: int, data: st.DataObject) -> None:
    rows.sort(key=lambda row: row[0])
    type_ = data.draw(st.sampled_from([pa.utf8(), pa.large_utf8()]))
    table = pa.table([pa.array([row[n] for row in rows], type_) for n in (0, 1)], ["value", "id"])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    parts = [table.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    batches = list(_identifiers.IndexBatches(pa.concat_tables(parts).__arrow_c_stream__(), b"\x01", most))
    assert [entry for batch in batches for entry in batch] == plain_groups(rows, b"\x01", most)


def test_an_index_that_was_read_to_its_end_stays_there() -> None:
    batches = _identifiers.IndexBatches(stream_of([pa.array(["a"]), pa.array(["p"])]), b"\x01", 100)
    assert list(batches) == [[], [(b"\x01a", record.index_entry(b"\x01a", ["p"]))]]
    assert list(batches) == []


@given(st.binary(min_size=1, max_size=20), st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=4), st.data())
def test_an_entry_of_the_index_is_read_whole_or_refused(key: bytes, ids: list[str], data: st.DataObject) -> None:
    entry = record.index_entry(key, ids)
    assert [found.decode() for found in _identifiers.ids_of(key, entry)] == ids
    at = data.draw(st.integers(0, len(entry) - 1))
    flipped = bytearray(entry)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    for damaged_key, damaged in ((key, bytes(flipped)), (key, entry[:at]), (key + b"x", entry)):
        with pytest.raises(RecordDamaged):
            _identifiers.ids_of(damaged_key, damaged)
