"""Columns of every type that a record can hold: strategies for their values, their layout in Arrow, their encoding.

A value is what `record.render` takes. Every array, at every level, is a slice that starts past a few other
values, so that no test passes by leaving an offset out.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
from hypothesis import strategies as st

from edgeprofile import _record
from edgeprofile.record import Field, Kind, Schema, Section, Type

Values = st.SearchStrategy[Any]
PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True)
class Column:
    """A type, strategies for its values, and a function from values to an Arrow array of them."""

    type: Type
    values: Values
    layout: Callable[[list[Any]], Any]
    padding: int = 0
    filler: object = None  # what stands in the places before the slice

    def arrow(self, values: Sequence[Any]) -> Any:
        return self.layout([self.filler] * self.padding + list(values)).slice(self.padding)

    @property
    def nullable(self) -> Values:
        """Unions have no NULL of their own, only members that are NULL."""
        return self.values if self.type.kind is Kind.UNION else st.none() | self.values


def nulls_of(values: list[Any]) -> Any:
    return pa.array([v is None for v in values], pa.bool_()) if None in values else None


def offsets_of(values: list[Any], width: int = 32) -> Any:
    offsets = [0]
    for value in values:
        offsets.append(offsets[-1] + len(value or ()))
    return pa.array(offsets, pa.int64() if width == 64 else pa.int32())


def flat(values: list[Any]) -> list[Any]:
    return [inside for value in values for inside in value or ()]


# --- scalars -------------------------------------------------------------------------------------------------------


def plain(kind: Kind, arrow_type: Any, values: Values) -> Column:
    return Column(Type(kind), values, lambda given: pa.array(given, arrow_type))


def integers(bits: int, signed: bool) -> Column:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    values = st.integers(low, high) | st.sampled_from([low, high, 0, 1])
    return plain(Kind.INTEGER, getattr(pa, f"{'' if signed else 'u'}int{bits}")(), values)


def decimals(precision: int, scale: int) -> Column:
    most = 10**precision - 1
    unscaled = st.integers(-most, most) | st.sampled_from([-most, most, 0, 1, -1])
    values = unscaled.map(lambda n: Decimal((int(n < 0), tuple(map(int, str(abs(n)))), -scale)))
    return plain(Kind.DECIMAL, pa.decimal128(precision, scale), values)


def moments(kind: Kind, unit: str, arrow_type: Any, low: int, high: int) -> Column:
    """Timestamps, times and dates, given as (ticks, ticks a second)."""
    per_second = PER_SECOND.get(unit, 1)
    today = min(high, 20_000 * (1 if kind is Kind.DATE else 86_400 * per_second))
    ticks = st.integers(low, high) | st.integers(max(low, -today), today) | st.sampled_from([low, high, 0])
    in_arrow = pa.int32() if arrow_type.bit_width == 32 else pa.int64()

    def layout(given: list[Any]) -> Any:
        return pa.array([v and v[0] for v in given], in_arrow).view(arrow_type)

    return Column(Type(kind), ticks.map(lambda n: (n, per_second)), layout)


def narrow(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


TEXTS = (
    st.text(max_size=40)
    | st.text(st.sampled_from('\x00\x1f "\\/\x7fé€\u2028\u2029\ufeff😀ab\n\r\t\b\f\U0010ffff'), max_size=40)
    | st.tuples(st.integers(4070, 4110), st.text(min_size=1, max_size=12)).map(lambda t: "x" * t[0] + t[1])
)
BLANKS = st.text(" \t\n\r", max_size=2)
DIGITS = st.from_regex(r"\A-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?\Z")


def json_texts() -> st.SearchStrategy[str]:
    """JSON with white space wherever it may be, numbers that no double can hold, and names that come twice."""
    strings = st.builds(lambda text, ascii_only: json.dumps(text, ensure_ascii=ascii_only), st.text(), st.booleans())
    leaves = strings | DIGITS | st.sampled_from(["null", "true", "false", "[]", "{}", "1.10", "-0"])

    def nested(inside: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        blank = st.builds(lambda a, text, b: a + text + b, BLANKS, inside, BLANKS)
        pairs = st.builds(lambda name, blank, text: f"{name}{blank}:{text}", st.just('"a"') | strings, BLANKS, blank)
        return st.lists(blank, min_size=1, max_size=3).map(lambda all_: f"[{','.join(all_)}]") | st.lists(
            pairs, min_size=1, max_size=3
        ).map(lambda all_: f"{{{','.join(all_)}}}")

    return st.builds(lambda a, text, b: a + text + b, BLANKS, st.recursive(leaves, nested, max_leaves=6), BLANKS)


def number_of(text: str) -> int | float:
    """An integer where 64 bits hold it, else the nearest double."""
    if re.fullmatch(r"-?\d{1,20}", text) and -(2**63) <= int(text) < 2**64:
        return int(text)
    return float(text)


def repaired(value: Any) -> Any:
    """A JSON value with U+FFFD for each surrogate that has no other half."""
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, list):
        return [repaired(v) for v in value]
    return {repaired(k): repaired(v) for k, v in value.items()} if isinstance(value, dict) else value


def value_in_msgpack(text: str) -> Any:
    """What MessagePack has for a JSON text, as Python reads both. Raises ValueError where it is none."""
    return repaired(json.loads(text, parse_int=number_of, parse_float=number_of))


def json_column(arrow_type: Any) -> Column:
    values = json_texts().map(str.encode)
    return Column(Type(Kind.JSON), values, lambda given: pa.array([v and v.decode() for v in given], arrow_type))


# Those of PostgreSQL's numeric among them, which JSON has no number for.
NUMBERS = st.integers(-(1 << 127), 1 << 128).map(str) | st.sampled_from(["-0.10", "NaN", "nan", "Infinity", "-inf"])
DOUBLES = st.floats() | st.sampled_from([5e-324, -0.0, 0.1, 1e16, 1.7976931348623157e308, 2**53 + 2.0])
LEAVES: list[st.SearchStrategy[Column]] = [
    st.just(plain(Kind.NULL, pa.null(), st.none())),
    st.just(plain(Kind.BOOLEAN, pa.bool_(), st.booleans())),
    st.builds(integers, st.sampled_from([8, 16, 32, 64]), st.booleans()),
    st.just(
        plain(Kind.FLOAT, pa.float32(), st.floats(width=32) | st.sampled_from([0.1, 1e-45, 3.4028235e38]).map(narrow))
    ),
    st.just(plain(Kind.DOUBLE, pa.float64(), DOUBLES)),
    st.integers(1, 38).flatmap(lambda p: st.builds(decimals, st.just(p), st.integers(0, p))),
    st.sampled_from([pa.utf8(), pa.large_utf8()]).map(lambda t: plain(Kind.TEXT, t, TEXTS)),
    st.just(plain(Kind.NUMBER, pa.utf8(), NUMBERS)),
    st.sampled_from([pa.utf8(), pa.large_utf8()]).map(json_column),
    st.sampled_from([pa.binary(), pa.large_binary()]).map(lambda t: plain(Kind.BINARY, t, st.binary(max_size=40))),
    st.just(moments(Kind.DATE, "", pa.date32(), -(1 << 31), (1 << 31) - 1)),
    st.sampled_from(["s", "ms"]).map(lambda u: moments(Kind.TIME, u, pa.time32(u), 0, 86_400 * PER_SECOND[u])),
    st.sampled_from(["us", "ns"]).map(lambda u: moments(Kind.TIME, u, pa.time64(u), 0, 86_400 * PER_SECOND[u])),
    st.builds(
        lambda u, zone: moments(Kind.TIMESTAMP, u, pa.timestamp(u, zone), -(1 << 63), (1 << 63) - 1),
        st.sampled_from(list(PER_SECOND)),
        st.sampled_from([None, "UTC"]),
    ),
]


# --- nested --------------------------------------------------------------------------------------------------------


def list_of(inside: Column, width: int) -> Column:
    made = pa.LargeListArray if width == 64 else pa.ListArray

    def layout(given: list[Any]) -> Any:
        return made.from_arrays(offsets_of(given, width), inside.arrow(flat(given)), mask=nulls_of(given))

    return Column(Type(Kind.LIST, (inside.type,)), st.lists(inside.nullable, max_size=3), layout)


def array_of(inside: Column, size: int) -> Column:
    if inside.type.kind is Kind.UNION:
        return list_of(inside, 32)  # a NULL array would need unions that are NULL below it
    arrow_type = pa.list_(inside.arrow([]).type, size)

    def layout(given: list[Any]) -> Any:
        below = flat([[None] * size if v is None else v for v in given])
        return pa.FixedSizeListArray.from_arrays(inside.arrow(below), type=arrow_type, mask=nulls_of(given))

    return Column(Type(Kind.LIST, (inside.type,)), st.lists(inside.nullable, min_size=size, max_size=size), layout)


def struct_of(insides: list[Column], names: list[str] | None) -> Column:
    kind = Kind.TUPLE if names is None else Kind.STRUCT
    names = names or [str(n) for n in range(len(insides))]

    def layout(given: list[Any]) -> Any:
        columns = [[inside.filler if v is None else v[n] for v in given] for n, inside in enumerate(insides)]
        children = [inside.arrow(column) for inside, column in zip(insides, columns, strict=True)]
        return pa.StructArray.from_arrays(children, names, mask=nulls_of(given))

    type_ = Type(kind, tuple(i.type for i in insides), tuple(names) if kind is Kind.STRUCT else ())
    return Column(type_, st.tuples(*(i.nullable for i in insides)), layout)


def map_of(inside: Column) -> Column:
    def layout(given: list[Any]) -> Any:
        pairs = flat(given)
        keys = pa.array(["padding", *(k for k, _ in pairs)], pa.utf8()).slice(1)
        return pa.MapArray.from_arrays(
            offsets_of(given), keys, inside.arrow([v for _, v in pairs]), mask=nulls_of(given)
        )

    pairs = st.lists(st.tuples(st.text(max_size=8), inside.nullable), max_size=3)
    return Column(Type(Kind.MAP, (Type(Kind.TEXT), inside.type)), pairs, layout)


def union_of(insides: list[Column]) -> Column:
    def layout(given: list[Any]) -> Any:
        tags = pa.array([v[0] for v in given], pa.int8())
        members = [[v[1] if v[0] == n else i.filler for v in given] for n, i in enumerate(insides)]
        return pa.UnionArray.from_sparse(tags, [i.arrow(m) for i, m in zip(insides, members, strict=True)])

    values = st.one_of(*(st.tuples(st.just(n), i.nullable) for n, i in enumerate(insides)))
    return Column(Type(Kind.UNION, tuple(i.type for i in insides)), values, layout, filler=(0, insides[0].filler))


def padded(column: Column, padding: int) -> Column:
    return Column(column.type, column.values, column.layout, padding, column.filler)


def shifted(columns: st.SearchStrategy[Column]) -> st.SearchStrategy[Column]:
    return st.builds(padded, columns, st.sampled_from([0, 1, 3, 8, 9]))


def nests(inside: st.SearchStrategy[Column]) -> st.SearchStrategy[Column]:
    some = st.lists(inside, min_size=1, max_size=3)
    named = some.flatmap(
        lambda made: st.lists(st.text(max_size=6), min_size=len(made), max_size=len(made), unique=True).map(
            lambda names: struct_of(made, names)
        )
    )
    return shifted(
        st.builds(list_of, inside, st.sampled_from([32, 64]))
        | st.builds(array_of, inside, st.integers(1, 3))
        | named
        | some.map(lambda made: struct_of(made, None))
        | inside.map(map_of)
        | some.map(union_of)
    )


COLUMNS = st.recursive(shifted(st.one_of(*LEAVES)), nests, max_leaves=5)


# --- records -------------------------------------------------------------------------------------------------------

TEXT = Type(Kind.TEXT)
TIMESTAMP = Type(Kind.TIMESTAMP)
NOW_US = 1_767_323_045_000_006  # 2026-01-02T03:04:05.000006Z


def schema_of(fields: Sequence[tuple[str, Section]]) -> Schema:
    return Schema(tuple(Field(name, section, "") for name, section in fields), ())


def encoder_of(schema: Schema, types: list[Type], updated: bool = False) -> _record.Encoder:
    columns = [*types, TEXT, TIMESTAMP] if updated else [*types, TEXT]
    return _record.Encoder([f.name for f in schema.fields], columns, schema.first_audience, updated, NOW_US)


def stream_of(columns: list[Any]) -> object:
    return pa.record_batch(columns, [str(n) for n in range(len(columns))]).__arrow_c_stream__()


def records_of(batch: _record.Batch) -> list[bytes]:
    places = [struct.unpack("<III", place) for _, place in batch.entries]
    return [batch.segment[start : start + size] for _, start, size in places]


def one_field(type_: Type, values: Any, ids: list[str] | None = None) -> _record.Batch:
    """Profiles with an id and one attribute `f`."""
    ids = ids or [f"id{n}" for n in range(len(values))]
    encoder = encoder_of(schema_of([("id", "identifiers"), ("f", "attributes")]), [TEXT, type_])
    return encoder.encode(stream_of([pa.array(ids), values, pa.array(ids)]), None, 0, 0)


def unchecked_text(values: list[bytes], wide: bool = False) -> Any:
    made = pa.array(values, pa.large_binary() if wide else pa.binary())
    return made.view(pa.large_utf8() if wide else pa.utf8())


SHOP: list[tuple[str, Section]] = [
    ("id", "identifiers"),
    ("email", "identifiers"),
    ("name", "attributes"),
    ("spend", "metrics"),
    ("vip", "audiences"),
    ("new", "audiences"),
]
SHOP_TYPES = [TEXT, TEXT, TEXT, Type(Kind.INTEGER), Type(Kind.BOOLEAN), Type(Kind.BOOLEAN)]
SHOP_WHOLE = (
    b'{"id":"ann","email":"a@b.example","spend":12,"_audiences":{"vip":true,"new":false},'
    b'"_updated_at":"2026-01-02T03:04:05.000006Z"}'
)


def shop_record() -> bytes:
    values = ["ann", "a@b.example", None, 12, True, False]
    columns = [pa.array([v]) if v is not None else pa.nulls(1, pa.utf8()) for v in values]
    batch = encoder_of(schema_of(SHOP), SHOP_TYPES).encode(stream_of([*columns, pa.array(["ann"])]), None, 0, 0)
    return records_of(batch)[0]
