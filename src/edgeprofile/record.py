"""The grammar of a record, and a plain reader and writer of it.

A record is what a worker finds for a profile: the whole native answer as JSON, and a table that tells where
each field of it begins and ends, so that any part is a join of slices and nothing is parsed on a lookup.
The compiled code (`ext/record.pyx`) does the same on the hot paths; this module is the readable oracle that
tests hold it against, byte for byte.

    offset  size
    0       1      format version, FORMAT
    1       1      width of an offset in the table: 2 or 4
    2       2      number of fields in the snapshot's schema
    4       4      bytes of the body
    8       8      check: `checksum` of the rest, seeded by the primary id; also the ETag
    16      8      when the profile was updated, microseconds since 1970 in UTC, signed
    24      ⌈n/8⌉  which of the n fields this profile has, lowest bit first
    …       w·k    for each of its k fields, in order, where its text ends in the body
    …       …      the body

All numbers are little-endian. The body is `{f,f,…,"_audiences":{a,a,…},"_updated_at":"…"}`, where each f and a
is `"name":value`. Fields are numbered by the schema in the order in which they are served: identifiers (the
primary one first, which is never absent), attributes, metrics, audiences. A field's text begins one byte (the
comma) after the end of the one before it, so ends are all that the table has to hold.

An event's record differs in its texts alone, see history.py.
"""

from __future__ import annotations

import base64
import datetime as dt
import functools
import json
import math
import struct
from collections.abc import Callable, Sequence
from decimal import Decimal
from enum import IntEnum
from typing import Literal

import msgspec

from edgeprofile.errors import FormatUnsupported, RecordDamaged

FORMAT = 1
HEADER = struct.Struct("<BBHIQq")
RECORD_BYTES_MAX = 16 * 1024 * 1024
FIELDS_MAX = 4096
# DuckDB's `infinity`, in whatever unit; in nanoseconds it would pass for a moment in 2262.
INFINITE_TICKS = (1 << 63) - 1
AUDIENCES_OPEN = b'"_audiences":{'
PARAMS_OPEN = b'"params":{'
SECTIONS = ("identifiers", "attributes", "metrics", "audiences")

Section = Literal["identifiers", "attributes", "metrics", "audiences"]
# A choice of fields: ascending, non-overlapping runs [first, last) of field numbers.
Runs = tuple[tuple[int, int], ...]
# `checksum`, or `_record.check_of`, which is compiled.
Checksum = Callable[[int, bytes], int]
WHOLE: Runs = ((0, FIELDS_MAX),)


class Kind(IntEnum):
    """How a value is rendered as JSON; with the Arrow layout of its column, all that the encoder must know."""

    NULL = 0
    BOOLEAN = 1
    INTEGER = 2
    FLOAT = 3  # 32 bits: the shortest decimal that reads back as the same 32-bit number
    DOUBLE = 4  # 64 bits: likewise
    DECIMAL = 5
    TEXT = 6
    NUMBER = 7  # digits that the warehouse wrote as text, because no Arrow type is wide enough
    JSON = 8  # JSON text of the warehouse, embedded without its white space
    BINARY = 9
    DATE = 10
    TIME = 11
    TIMESTAMP = 12
    LIST = 13
    STRUCT = 14
    TUPLE = 15  # a struct without names: a JSON array
    MAP = 16
    UNION = 17  # the value of the member that is set


class Type(msgspec.Struct, frozen=True):
    """A column's type: its kind, and for nested ones the types and names of what is inside."""

    kind: Kind
    children: tuple[Type, ...] = ()
    names: tuple[str, ...] = ()


class Field(msgspec.Struct, frozen=True):
    """One field of the answer: its name, its section, and its type as the warehouse names it.

    The section of an event's parameters is `params`.
    """

    name: str
    section: Section | Literal["params"]
    type: str


class Namespace(msgspec.Struct, frozen=True):
    """An identifier by which profiles are found. The primary one is always unique."""

    name: str
    unique: bool = True
    normalize: Literal["lower"] | None = None


class Schema(msgspec.Struct, frozen=True):
    """What the records of a snapshot hold: the fields in numbered order, and the namespaces, the primary first.

    `audience_ids` gives every audience that was ever served a number that it keeps from snapshot to snapshot.
    """

    fields: tuple[Field, ...]
    namespaces: tuple[Namespace, ...]
    audience_ids: dict[str, int] = {}

    def run_of(self, section: str) -> tuple[int, int]:
        """The field numbers [first, last) of a section; an empty run where it has none."""
        numbers = [n for n, field in enumerate(self.fields) if field.section == section]
        if numbers:
            return numbers[0], numbers[-1] + 1
        before = [n for n, f in enumerate(self.fields) if SECTIONS.index(f.section) < SECTIONS.index(section)]
        return len(before), len(before)

    @property
    def first_audience(self) -> int:
        return self.run_of("audiences")[0]


@functools.cache
def lower_table() -> dict[int, str]:
    """The lower-case form of every character that has exactly one.

    A table, so that load (in SQL) and lookup (in compiled code) cannot come to differ over the characters for
    which Unicode's full rules look at the neighbours. None beyond U+1FFFF has a case.
    """
    return {c: low for c in range(0x20000) if (low := chr(c).lower()) != chr(c) and len(low) == 1}


def normalize(text: str, how: str | None) -> str:
    """An identifier's value as it is indexed and looked up."""
    return text.translate(lower_table()) if how == "lower" else text


# --- the check -----------------------------------------------------------------------------------------------------

_MASK = (1 << 64) - 1
_K1 = 0x9E3779B97F4A7C15
_K2 = 0xD6E8FEB86659FD93


def _fold(a: int, b: int) -> int:
    product = a * b
    return (product ^ (product >> 64)) & _MASK


def checksum(seed: int, content: bytes) -> int:
    """64 bits that change with any change of `content` or `seed`: no secret, a guard against damage.

    Each step folds 16 bytes by one full multiplication. The state is also rotated and added, so that a
    factor of zero cannot erase what came before.
    """
    state = (seed ^ (len(content) * _K1)) & _MASK
    padded = content + bytes(-len(content) % 16)
    for low, high in struct.iter_unpack("<QQ", padded):
        rotated = ((state << 29) | (state >> 35)) & _MASK
        state = (_fold(low ^ state, high ^ _K2) + (rotated ^ high)) & _MASK
    return _fold(state ^ _K1, state ^ (state >> 32) ^ _K2)


# --- values as JSON ------------------------------------------------------------------------------------------------


def json_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _fraction(nanoseconds: int) -> str:
    if nanoseconds == 0:
        return ""
    digits = f"{nanoseconds:09d}"
    return "." + (digits if nanoseconds % 1000 else digits[:6] if nanoseconds % 1_000_000 else digits[:3])


def timestamp_text(ticks: int, per_second: int) -> str | None:
    """RFC 3339 in UTC, or None for what that format cannot say: infinities, and outside the years 1 to 9999."""
    seconds, rest = divmod(ticks, per_second)
    if abs(ticks) == INFINITE_TICKS:
        return None
    try:
        moment = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)
    except OverflowError:
        return None
    return moment.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0") + _fraction(rest * (1_000_000_000 // per_second)) + "Z"


def _float32(value: float) -> str:
    for digits in range(6, 10):
        text = f"{value:.{digits}g}"
        if struct.unpack("<f", struct.pack("<f", float(text)))[0] == value:
            return json.dumps(float(text))
    raise AssertionError("nine digits always tell a 32-bit float")


def _scalar(kind: Kind, value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() if kind is Kind.INTEGER:
            return str(value)
        case float():
            if not math.isfinite(value):
                return "null"
            return _float32(value) if kind is Kind.FLOAT else json.dumps(value)
        case Decimal():
            return f"{value:f}"
        case str() if kind is Kind.NUMBER and not value.removeprefix("-")[:1].isdecimal():
            return "null"  # NaN and infinities, which JSON lacks
        case str():
            return json_text(value) if kind is Kind.TEXT else value
        case bytes() if kind is Kind.BINARY:
            return f'"{base64.b64encode(value).decode()}"'
        case bytes():
            return msgspec.json.format(value, indent=-1).decode()
        case (int(ticks), int(per_second)):
            return _ticks(kind, ticks, per_second)
    raise TypeError(f"{kind!r} cannot hold {type(value).__name__}")


def _ticks(kind: Kind, ticks: int, per_second: int) -> str:
    if kind is Kind.TIME:
        seconds, rest = divmod(ticks, per_second)
        clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        return f'"{clock}{_fraction(rest * (1_000_000_000 // per_second))}"'
    if kind is Kind.DATE:
        text = timestamp_text(ticks * 86_400, 1)
        return "null" if text is None else f'"{text[:10]}"'
    text = timestamp_text(ticks, per_second)
    return "null" if text is None else f'"{text}"'


def render(type: Type, value: object) -> str:
    """A value as JSON. JSON columns and binary are given as bytes, moments as (ticks, ticks a second)."""
    if value is None:
        return "null"
    match type.kind:
        case Kind.LIST:
            assert isinstance(value, list)
            return "[" + ",".join(render(type.children[0], v) for v in value) + "]"
        case Kind.TUPLE:
            assert isinstance(value, tuple)
            return "[" + ",".join(render(t, v) for t, v in zip(type.children, value, strict=True)) + "]"
        case Kind.STRUCT:
            assert isinstance(value, tuple)
            parts = zip(type.names, type.children, value, strict=True)
            return "{" + ",".join(f"{json_text(n)}:{render(t, v)}" for n, t, v in parts) + "}"
        case Kind.MAP:
            assert isinstance(value, list)
            return "{" + ",".join(f"{json_text(k)}:{render(type.children[1], v)}" for k, v in value) + "}"
        case Kind.UNION:
            assert isinstance(value, tuple)
            return render(type.children[value[0]], value[1])
    return _scalar(type.kind, value)


def is_null(type: Type, value: object) -> bool:
    """Whether a value counts as NULL. Arrow's unions cannot be NULL themselves, only the member that is set."""
    if type.kind is Kind.UNION and isinstance(value, tuple):
        return is_null(type.children[value[0]], value[1])
    return value is None


# --- records -------------------------------------------------------------------------------------------------------


def encode(schema: Schema, types: Sequence[Type], primary: str, values: Sequence[object], updated_us: int) -> bytes:
    """The record of one profile. `values` has one value a field in the schema's order, None where it has none."""
    updated = timestamp_text(updated_us, 1_000_000)
    tail = b'},"_updated_at":' + (f'"{updated}"' if updated else "null").encode() + b"}"
    names = [field.name for field in schema.fields]
    return encode_fields(names, types, primary, values, updated_us, schema.first_audience, AUDIENCES_OPEN, tail)


def encode_fields(
    names: Sequence[str],
    types: Sequence[Type],
    primary: str,
    values: Sequence[object],
    updated_us: int,
    first_nested: int,
    opening: bytes,
    tail: bytes,
) -> bytes:
    """A record of any kind. `opening` stands before the first nested field, `tail` closes the object of these."""
    body = bytearray(b"{")
    ends: list[int] = []
    bitmap = 0
    for number, (name, type, value) in enumerate(zip(names, types, values, strict=True)):
        if number == first_nested:
            body += b"," + opening
        if is_null(type, value):
            continue
        if body[-1:] != b"{":
            body += b","
        body += f"{json_text(name)}:{render(type, value)}".encode()
        bitmap |= 1 << number
        ends.append(len(body))
    if first_nested == len(names):
        body += b"," + opening
    return _assemble(len(names), bitmap, ends, bytes(body + tail), primary, updated_us)


def _assemble(fields: int, bitmap: int, ends: list[int], body: bytes, primary: str, updated_us: int) -> bytes:
    width = 2 if len(body) < 1 << 16 else 4
    table = bitmap.to_bytes((fields + 7) // 8, "little") + b"".join(e.to_bytes(width, "little") for e in ends)
    head = HEADER.pack(FORMAT, width, fields, len(body), 0, updated_us)
    check = record_check(primary.encode(), head + table + body)
    return HEADER.pack(FORMAT, width, fields, len(body), check, updated_us) + table + body


def record_check(primary: bytes, record: bytes) -> int:
    """The check of a record: of its first 8 bytes and of all behind the check itself, seeded by the primary id."""
    seed = checksum(int.from_bytes(record[:8], "little"), primary)
    return checksum(seed, record[16:])


def index_entry(key: bytes, primaries: Sequence[str], checksum: Checksum = checksum) -> bytes:
    """What stands in the index of identifiers under `key`: a check of 4 bytes, seeded by it, and the primary ids,
    each behind its length in two bytes."""
    ids = b"".join(struct.pack("<H", len(primary)) + primary for primary in map(str.encode, primaries))
    return struct.pack("<I", checksum(checksum(0, key), ids) & 0xFFFFFFFF) + ids


class Record:
    """A record that has been checked. Raises RecordDamaged or FormatUnsupported, both without a value in them."""

    fields: int
    body_bytes: int
    check: int
    updated_us: int

    def __init__(self, primary: str, record: bytes) -> None:
        if not HEADER.size <= len(record) <= RECORD_BYTES_MAX:
            raise RecordDamaged("a record is cut short or too long")
        version, width, self.fields, self.body_bytes, self.check, self.updated_us = HEADER.unpack_from(record)
        if version != FORMAT:
            raise FormatUnsupported(f"record format {version} is not known to this build, which reads {FORMAT}")
        if self.check != record_check(primary.encode(), record):
            raise RecordDamaged("a record does not match its checksum")
        bitmap_end = HEADER.size + (self.fields + 7) // 8
        self.bitmap = int.from_bytes(record[HEADER.size : bitmap_end], "little")
        table_end = bitmap_end + width * self.bitmap.bit_count()
        if self.fields > FIELDS_MAX or width not in (2, 4):
            raise RecordDamaged("a record's header makes no sense")
        if self.bitmap >> self.fields or table_end + self.body_bytes != len(record):
            raise RecordDamaged("a record's table does not fit its length")
        table = record[bitmap_end:table_end]
        self.ends = [int.from_bytes(table[i : i + width], "little") for i in range(0, len(table), width)]
        self.body = record[table_end:]

    def _rank(self, number: int) -> int:
        below: int = (1 << min(number, self.fields)) - 1
        return (self.bitmap & below).bit_count()

    def _cut(self, start: int, end: int) -> bytes:
        if not start <= end <= self.body_bytes:
            raise RecordDamaged("a record's table points outside it")
        return self.body[start:end]

    def _slice(self, first: int, last: int, start_of_first: int) -> bytes:
        return self._cut(start_of_first if first == 0 else self.ends[first - 1] + 1, self.ends[last - 1])

    def project(self, runs: Runs, first_audience: int, with_audiences: bool) -> bytes:
        """The answer cut down to some fields; `_updated_at` is always there. Raises RecordDamaged."""
        split = self._rank(first_audience)
        opened = (self.ends[split - 1] if split else 0) + 1 + len(AUDIENCES_OPEN)
        closed = self.ends[-1] if len(self.ends) > split else opened
        flat: list[bytes] = []
        audiences: list[bytes] = []
        for lo, hi in runs:
            first, last = self._rank(lo), self._rank(hi)
            if first < min(last, split):
                flat.append(self._slice(first, min(last, split), 1))
            start = max(first, split)
            if with_audiences and start < last:
                audiences.append(self._cut(opened if start == split else self.ends[start - 1] + 1, self.ends[last - 1]))
        if with_audiences:
            flat.append(AUDIENCES_OPEN + b",".join(audiences) + b"}")
        flat.append(self._cut(closed + 2, self.body_bytes))
        return b"{" + b",".join(flat)
