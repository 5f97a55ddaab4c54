"""Records: the compiled writer and reader against the plain ones, and against facts that owe nothing to either."""

from __future__ import annotations

import json
from decimal import Context, Decimal
from typing import Any, get_args

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import (
    COLUMNS,
    LEAVES,
    NOW_US,
    SHOP_WHOLE,
    TEXT,
    TEXTS,
    TIMESTAMP,
    Column,
    decimals,
    encoder_of,
    integers,
    one_field,
    plain,
    records_of,
    schema_of,
    shifted,
    shop_record,
    stream_of,
)

from edgeprofile import _record, record
from edgeprofile.errors import FormatUnsupported
from edgeprofile.record import Kind, Record, Schema, Section, Type


def answer_of(type_: Type, values: Any) -> list[str]:
    """What is served for `f` in each profile, read off the whole answer by hand."""
    answers = []
    for number, found in enumerate(records_of(one_field(type_, values))):
        whole = _record.project(found, b"id%d" % number, record.WHOLE, 2, True).decode()
        head, tail = f'{{"id":"id{number}","f":', ',"_audiences":{},"_updated_at":"2026-01-02T03:04:05.000006Z"}'
        assert whole.startswith(head)
        assert whole.endswith(tail)
        answers.append(whole[len(head) : -len(tail)])
    return answers


# --- compiled and plain agree --------------------------------------------------------------------------------------

ALIKE = settings(deadline=None, max_examples=120)
SECTIONS: tuple[Section, ...] = get_args(Section)


# A schema, its columns, rows of a value (or None) a field, and the primary id of each.
Profiles = tuple[Schema, list[Column], list[list[Any]], list[str]]


@st.composite
def profiles(draw: st.DrawFn, counts: st.SearchStrategy[int]) -> Profiles:
    """Many fields of few types."""
    pool = draw(st.lists(COLUMNS, min_size=1, max_size=5))
    ids = draw(st.lists(TEXTS, min_size=1, max_size=4))
    counted = [draw(counts) for _ in SECTIONS]
    fields = [(f"{section[:2]}{n}é", section) for section, n in zip(SECTIONS, counted, strict=True) for n in range(n)]
    columns = [pool[n % len(pool)] for n in range(len(fields))]
    drawn = [[draw(column.nullable) for _ in ids] for column in pool]
    present = [draw(st.integers(0, (1 << len(fields)) - 1)) for _ in ids]
    rows = []
    for number, primary in enumerate(ids):
        chosen: list[Any] = [primary]
        for n, column in enumerate(columns):
            chosen.append(drawn[n % len(pool)][(number + n) % len(ids)] if present[number] >> n & 1 else column.filler)
        rows.append(chosen)
    return schema_of([("id", "identifiers"), *fields]), [plain(Kind.TEXT, pa.utf8(), TEXTS), *columns], rows, ids


def batch_of(columns: list[Column], rows: list[list[Any]], ids: list[str], *more: Any) -> object:
    values = zip(*rows, strict=True)
    return stream_of([*(c.arrow(v) for c, v in zip(columns, values, strict=True)), pa.array(ids), *more])


def hold_against_plain(made: Profiles, times: list[int | None]) -> None:
    schema, columns, rows, ids = made
    times = [times[n % len(times)] for n in range(len(ids))]
    types = [c.type for c in columns]
    batch = encoder_of(schema, types, True).encode(
        batch_of(columns, rows, ids, pa.array(times, pa.timestamp("us"))), None, 0, 0
    )
    assert batch.refused == []
    assert [key for key, _ in batch.entries] == [i.encode() for i in ids]
    contents = b""
    for row, primary, time, found in zip(rows, ids, times, records_of(batch), strict=True):
        assert found == record.encode(schema, types, primary, row, NOW_US if time is None else time)
        body = Record(primary, found).body
        state = record.checksum((time or 0) % (1 << 64), primary.encode())
        contents += record.checksum(state, body[: body.rindex(b'},"_updated_at":')]).to_bytes(8, "little")
    assert batch.contents == contents
    assert sum(len(r) for r in records_of(batch)) == len(batch.segment)


TIMES = st.lists(st.none() | st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=4)


@ALIKE
@given(profiles(st.integers(0, 20)), TIMES)
def test_the_compiled_writer_writes_what_the_plain_one_does(made: Profiles, times: list[int | None]) -> None:
    hold_against_plain(made, times)


@settings(deadline=None, max_examples=6)
@given(profiles(st.sampled_from([17, 64, 300])), TIMES)
def test_wide_profiles_are_written_alike(made: Profiles, times: list[int | None]) -> None:
    hold_against_plain(made, times)


@pytest.mark.parametrize("leaf", range(len(LEAVES)))
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_each_plain_type_is_written_alike(leaf: int, data: st.DataObject) -> None:
    column = data.draw(shifted(LEAVES[leaf]))
    values = data.draw(st.lists(column.nullable, min_size=1, max_size=12))
    hold_against_plain(made_of(column, values), [None])


def test_decimals_of_every_precision_and_scale_are_written_alike() -> None:
    for precision in range(1, 39):
        for scale in range(precision + 1):
            most = 10**precision - 1
            values = [Decimal(n).scaleb(-scale, Context(38)) for n in (most, -most, 0, 1, -1)]
            hold_against_plain(made_of(decimals(precision, scale), values), [None])


def made_of(column: Column, values: list[Any]) -> Profiles:
    """Profiles of one attribute."""
    ids = [f"id{n}" for n in range(len(values))]
    columns = [plain(Kind.TEXT, pa.utf8(), TEXTS), column]
    return (
        schema_of([("id", "identifiers"), ("f", "attributes")]),
        columns,
        [list(row) for row in zip(ids, values, strict=True)],
        ids,
    )


def test_a_profile_may_have_as_many_fields_as_the_format_counts() -> None:
    count = record.FIELDS_MAX
    column = integers(64, True)
    fields: list[tuple[str, Section]] = [("id", "identifiers"), *((f"m{n}", "metrics") for n in range(count - 1))]
    made = (
        schema_of(fields),
        [plain(Kind.TEXT, pa.utf8(), TEXTS), *[column] * (count - 1)],
        [["a", *range(1, count)]],
        ["a"],
    )
    hold_against_plain(made, [None])
    with pytest.raises(ValueError, match="one type for each field"):
        encoder_of(schema_of([*fields, ("one more", "metrics")]), [TEXT, *[column.type] * count])


@pytest.mark.parametrize("wide", [False, True])
def test_text_is_escaped_alike_wherever_the_stretches_of_4096_bytes_end(wide: bool) -> None:
    odd = ['"', "\\", "\x01", "\x1f", "\x7f", "é", "€", "😀", "\u2028", "\n", "😀😀", "\x00" * 9]
    texts = ["x" * n + c + "yz" * 9 for n in [*range(4082, 4100), *range(8186, 8196)] for c in odd]
    texts += ["a" * n + c * 2100 for n in range(4) for c in odd]
    found = answer_of(TEXT, pa.array(texts, pa.large_utf8() if wide else pa.utf8()))
    assert found == [record.json_text(t) for t in texts]
    assert [json.loads(f) for f in found] == texts


@ALIKE
@given(st.data(), profiles(st.integers(0, 5)))
def test_any_choice_of_fields_is_cut_alike_and_is_json(data: st.DataObject, made: Profiles) -> None:
    schema, columns, rows, ids = made
    count = len(schema.fields)
    edges = sorted(data.draw(st.lists(st.integers(0, count + 70), max_size=8)))
    runs = tuple(zip(edges[::2], edges[1::2], strict=False))
    with_audiences = data.draw(st.booleans())
    found = record.encode(schema, [c.type for c in columns], ids[0], rows[0], NOW_US)
    cut = _record.project(found, ids[0].encode(), runs, schema.first_audience, with_audiences)
    assert cut == Record(ids[0], found).project(runs, schema.first_audience, with_audiences)

    whole = json.loads(Record(ids[0], found).body, parse_float=str, parse_int=str)
    chosen = {f.name: f.section for n, f in enumerate(schema.fields) if any(lo <= n < hi for lo, hi in runs)}
    expected = {n: v for n, v in whole.items() if chosen.get(n, "audiences") != "audiences"}
    if with_audiences:
        expected["_audiences"] = {n: v for n, v in whole["_audiences"].items() if n in chosen}
    expected["_updated_at"] = whole["_updated_at"]
    answer = json.loads(cut, parse_float=str, parse_int=str)
    assert answer == expected
    assert list(answer) == list(expected)


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=300))
@example(0, bytes(64))
def test_the_checksum_is_the_plain_one(seed: int, content: bytes) -> None:
    assert _record.check_of(seed, content) == record.checksum(seed, content)


def test_the_checksum_tells_every_length_and_every_flipped_bit() -> None:
    contents = [bytes(range(1, n + 1)) for n in range(101)]
    assert [_record.check_of(7, c) for c in contents] == [record.checksum(7, c) for c in contents]
    zeros = {_record.check_of(0, bytes(n)) for n in range(101)}
    flips = {_record.check_of(0, (1 << bit).to_bytes(100, "little")) for bit in range(800)}
    assert len(zeros | flips) == 901


# --- facts ---------------------------------------------------------------------------------------------------------

FACTS: list[tuple[Kind, Any, list[Any], list[str]]] = [
    (Kind.FLOAT, pa.float32(), [0.1, 16777216.0, 3.4028234663852886e38], ["0.1", "16777216.0", "3.4028235e+38"]),
    (Kind.DOUBLE, pa.float64(), [0.1, -0.0, 5e-324, 1e22], ["0.1", "-0.0", "5e-324", "1e+22"]),
    (Kind.DOUBLE, pa.float64(), [float("nan"), float("inf"), -float("inf")], ["null"] * 3),
    (Kind.FLOAT, pa.float32(), [float("nan"), float("inf"), -float("inf")], ["null"] * 3),
    (Kind.INTEGER, pa.int64(), [2**63 - 1, -(2**63), -1], ["9223372036854775807", "-9223372036854775808", "-1"]),
    (Kind.INTEGER, pa.int32(), [2**31 - 1, -(2**31), -1], ["2147483647", "-2147483648", "-1"]),
    (Kind.INTEGER, pa.int16(), [2**15 - 1, -(2**15), -1], ["32767", "-32768", "-1"]),
    (Kind.INTEGER, pa.int8(), [127, -128, -1], ["127", "-128", "-1"]),
    (Kind.INTEGER, pa.uint64(), [2**64 - 1, 0], ["18446744073709551615", "0"]),
    (Kind.INTEGER, pa.uint32(), [2**32 - 1], ["4294967295"]),
    (Kind.INTEGER, pa.uint16(), [2**16 - 1], ["65535"]),
    (Kind.INTEGER, pa.uint8(), [255], ["255"]),
    (
        Kind.NUMBER,
        pa.utf8(),
        ["-170141183460469231731687303715884105728"],
        ["-170141183460469231731687303715884105728"],
    ),
    (Kind.BOOLEAN, pa.bool_(), [True, False], ["true", "false"]),
    (Kind.BINARY, pa.binary(), [b"", b"\x00\xff\x10"], ['""', '"AP8Q"']),
    (Kind.JSON, pa.utf8(), [' {"b": 1.10, "a" : [1E400, true]}\n', "null"], ['{"b":1.10,"a":[1E400,true]}', "null"]),
    (
        Kind.JSON,
        pa.utf8(),
        ['{"a":1, "a":123456789012345678901234567890}'],
        ['{"a":1,"a":123456789012345678901234567890}'],
    ),
    (Kind.TEXT, pa.utf8(), ['say "é"\n', "\u2028😀/\x7f", ""], [r'"say \"é\"\n"', '"\u2028😀/\x7f"', '""']),
    (
        Kind.DATE,
        pa.date32(),
        [0, -719162, 2932896, 19782],
        ['"1970-01-01"', '"0001-01-01"', '"9999-12-31"', '"2024-02-29"'],
    ),
    (Kind.DATE, pa.date32(), [-719163, 2932897, 2**31 - 1, 1 - 2**31], ["null"] * 4),
    (Kind.TIME, pa.time64("us"), [0, 86_400_000_000, 3_723_000_004], ['"00:00:00"', '"24:00:00"', '"01:02:03.000004"']),
    (Kind.TIMESTAMP, pa.timestamp("s"), [-1, 951_827_696], ['"1969-12-31T23:59:59Z"', '"2000-02-29T12:34:56Z"']),
    (Kind.TIMESTAMP, pa.timestamp("ms"), [-1, 1000], ['"1969-12-31T23:59:59.999Z"', '"1970-01-01T00:00:01Z"']),
    (
        Kind.TIMESTAMP,
        pa.timestamp("us", "Asia/Tokyo"),
        [1, 1000],
        ['"1970-01-01T00:00:00.000001Z"', '"1970-01-01T00:00:00.001Z"'],
    ),
    (
        Kind.TIMESTAMP,
        pa.timestamp("ns"),
        [1, -1],
        ['"1970-01-01T00:00:00.000000001Z"', '"1969-12-31T23:59:59.999999999Z"'],
    ),
    (Kind.TIMESTAMP, pa.timestamp("ns"), [-(2**63)], ['"1677-09-21T00:12:43.145224192Z"']),
    (Kind.TIMESTAMP, pa.timestamp("us"), [-(2**63), -62_135_596_800_000_001, 253_402_300_800_000_000], ["null"] * 3),
    *((Kind.TIMESTAMP, pa.timestamp(unit), [2**63 - 1, 1 - 2**63], ["null"] * 2) for unit in ("s", "ms", "us", "ns")),
]


@pytest.mark.parametrize(("kind", "arrow_type", "given_", "served"), FACTS)
def test_values_are_served_as_the_warehouse_has_them(
    kind: Kind, arrow_type: Any, given_: list[Any], served: list[str]
) -> None:
    is_ticks = kind in (Kind.DATE, Kind.TIME, Kind.TIMESTAMP)
    ticks = pa.int32() if is_ticks and arrow_type.bit_width == 32 else pa.int64()
    values = pa.array(given_, ticks).view(arrow_type) if is_ticks else pa.array(given_, arrow_type)
    assert answer_of(Type(kind), values) == served


def test_decimals_keep_their_digits() -> None:
    for precision, scale, text in [
        (4, 2, "1.50"),
        (3, 3, "-0.007"),
        (1, 0, "0"),
        (5, 2, "0.00"),
        (38, 0, "-" + "9" * 38),
        (38, 38, "0." + "9" * 38),
        (38, 10, "1234567890123456789012345678.0000000001"),
    ]:
        values = pa.array([text]).cast(pa.decimal128(precision, scale))
        assert answer_of(Type(Kind.DECIMAL), values) == [text]


def test_nested_values_are_json_of_the_same_shape() -> None:
    point = pa.struct([("x", pa.int32()), ('a "name"', pa.list_(pa.utf8()))])
    shape = Type(Kind.STRUCT, (Type(Kind.INTEGER), Type(Kind.LIST, (TEXT,))), ("x", 'a "name"'))
    values = pa.array([{"x": 1, 'a "name"': ["é", None]}, {"x": None, 'a "name"': []}], point)
    assert answer_of(shape, values) == [r'{"x":1,"a \"name\"":["é",null]}', r'{"x":null,"a \"name\"":[]}']
    tags = pa.array([[("k", 1), ("", None)]], pa.map_(pa.utf8(), pa.int8()))
    assert answer_of(Type(Kind.MAP, (TEXT, Type(Kind.INTEGER))), tags) == ['{"k":1,"":null}']


def test_lists_may_be_nested_64_deep_and_no_deeper() -> None:
    type_, values = Type(Kind.INTEGER), pa.array([7])
    for _ in range(64):
        type_, values = Type(Kind.LIST, (type_,)), pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), values)
    assert answer_of(type_, values) == ["[" * 64 + "7" + "]" * 64]
    with pytest.raises(ValueError, match="nested 64 deep"):
        one_field(Type(Kind.LIST, (type_,)), pa.array([None]))


def test_the_pairs_of_a_map_may_start_past_others() -> None:
    pairs = pa.StructArray.from_arrays([pa.array(["no", "a", "b"]), pa.array([0, 1, 2])], ["key", "value"]).slice(1)
    offsets = pa.array([0, 2], pa.int32()).buffers()[1]
    values = pa.Array.from_buffers(pa.map_(pa.utf8(), pa.int64()), 1, [None, offsets], children=[pairs])
    assert answer_of(Type(Kind.MAP, (TEXT, Type(Kind.INTEGER))), values) == ['{"a":1,"b":2}']


def test_arrays_of_no_members_are_empty_lists() -> None:
    values = pa.Array.from_buffers(pa.list_(pa.int32(), 0), 2, [None], children=[pa.array([], pa.int32())])
    assert answer_of(Type(Kind.LIST, (Type(Kind.INTEGER),)), values) == ["[]", "[]"]


def test_a_batch_may_itself_start_past_other_rows() -> None:
    rows = pa.StructArray.from_arrays([pa.array(["x", "a", "b"]), pa.array(["x", "a", "b"])], ["f", "id"]).slice(1)
    made = encoder_of(schema_of([("f", "identifiers")]), [TEXT]).encode(
        pa.chunked_array([rows]).__arrow_c_stream__(), None, 0, 0
    )
    assert [key for key, _ in made.entries] == [b"a", b"b"]


# --- the properties of a record (design/store.md) ------------------------------------------------------------------


def test_the_whole_answer_is_one_slice_with_nulls_left_out_and_in_the_order_of_the_model() -> None:
    assert shop_record().endswith(SHOP_WHOLE)
    assert _record.project(shop_record(), b"ann", record.WHOLE, 4, True) == SHOP_WHOLE


def test_sections_and_single_fields_are_joins_of_slices() -> None:
    def cut(runs: record.Runs, with_audiences: bool) -> bytes:
        return _record.project(shop_record(), b"ann", runs, 4, with_audiences).replace(b',"_updated_at":', b" ")[:-31]

    assert cut(((0, 2),), False) == b'{"id":"ann","email":"a@b.example"'
    assert cut(((2, 4),), False) == b'{"spend":12'
    assert cut(((4, 6),), True) == b'{"_audiences":{"vip":true,"new":false}'
    assert cut(((0, 1), (3, 4), (5, 6)), True) == b'{"id":"ann","spend":12,"_audiences":{"new":false}'
    assert cut(((2, 3),), True) == b'{"_audiences":{}'
    assert cut(record.WHOLE, False) == b'{"id":"ann","email":"a@b.example","spend":12'


def test_a_record_carries_its_etag_its_time_and_its_format() -> None:
    version, _, fields, body_bytes, check, updated_us = record.HEADER.unpack_from(shop_record())
    assert (version, fields, body_bytes, updated_us) == (record.FORMAT, 6, len(SHOP_WHOLE), NOW_US)
    assert check == record.record_check(b"ann", shop_record())


def test_the_name_of_an_unknown_format_is_in_the_refusal() -> None:
    unknown = b"\x02" + shop_record()[1:]
    with pytest.raises(FormatUnsupported, match=r"format 2 .* reads 1"):
        Record("ann", unknown)
    with pytest.raises(FormatUnsupported, match=r"format 2 .* reads 1"):
        _record.project(unknown, b"ann", record.WHOLE, 4, True)


def test_a_union_whose_member_is_null_is_left_out() -> None:
    values = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([None, 1]), pa.array(["x", "y"])])
    union = Type(Kind.UNION, (Type(Kind.INTEGER), TEXT))
    bodies = [Record(f"id{n}", r).body for n, r in enumerate(records_of(one_field(union, values)))]
    assert [b'"f"' in body for body in bodies] == [False, True]


def test_a_profile_of_nothing_new_has_the_same_content_whenever_it_is_refreshed() -> None:
    def contents(refreshed_us: int, name: str, times: list[int | None]) -> bytes:
        encoder = _record.Encoder(["id"], [TEXT, TEXT, TIMESTAMP], 1, True, refreshed_us)
        return encoder.encode(
            stream_of([pa.array([name] * 2), pa.array(["a", "b"]), pa.array(times, pa.timestamp("s"))]), None, 0, 0
        ).contents

    assert contents(1, "x", [None, 5]) == contents(2, "x", [None, 5])
    assert contents(1, "x", [None, 5])[:8] != contents(1, "y", [None, 5])[:8]
    assert contents(1, "x", [None, 5])[8:] != contents(1, "x", [None, 6])[8:]


@pytest.mark.parametrize(
    ("unit", "ticks", "updated_us"),
    [
        ("s", 5, 5_000_000),
        ("ms", -5, -5000),
        ("us", 7, 7),
        ("ns", -1, -1),
        ("ns", 1999, 1),
        ("ns", 2**63 - 1, 2**63 - 1),
        ("s", 2**63 - 2, (2**63 - 1) // 10**6 * 10**6),
        ("ms", -(2**63), -((2**63 - 1) // 1000 * 1000)),
    ],
)
def test_the_time_of_update_is_in_microseconds_whatever_the_unit(unit: str, ticks: int, updated_us: int) -> None:
    times = pa.array([ticks], pa.int64()).view(pa.timestamp(unit))
    batch = encoder_of(schema_of([("id", "identifiers")]), [TEXT], True).encode(
        stream_of([pa.array(["a"]), pa.array(["a"]), times]), None, 0, 0
    )
    assert records_of(batch)[0] == record.encode(schema_of([("id", "identifiers")]), [TEXT], "a", ["a"], updated_us)
