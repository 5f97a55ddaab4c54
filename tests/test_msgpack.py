"""JSON as MessagePack: golden bytes of the format, and any JSON against plain decoders of both."""

from __future__ import annotations

import json
import math
import struct
import tracemalloc
from collections.abc import Callable
from decimal import ROUND_DOWN, ROUND_UP, Context, Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import SHOP_WHOLE, json_texts, value_in_msgpack
from typing_extensions import Buffer

from edgeprofile import record
from edgeprofile._msgpack import pack
from edgeprofile.errors import RecordDamaged

# --- golden bytes, by the MessagePack specification ----------------------------------------------------------------

INTEGERS: list[tuple[int, str]] = [
    (0, "00"),
    (127, "7f"),
    (128, "cc80"),
    (255, "ccff"),
    (256, "cd0100"),
    (65535, "cdffff"),
    (65536, "ce00010000"),
    (2**32 - 1, "ceffffffff"),
    (2**32, "cf0000000100000000"),
    (2**63 - 1, "cf7fffffffffffffff"),
    (2**63, "cf8000000000000000"),
    (10**19 - 1, "cf8ac7230489e7ffff"),
    (10**19, "cf8ac7230489e80000"),
    (2**64 - 1, "cfffffffffffffffff"),
    (-1, "ff"),
    (-32, "e0"),
    (-33, "d0df"),
    (-128, "d080"),
    (-129, "d1ff7f"),
    (-32768, "d18000"),
    (-32769, "d2ffff7fff"),
    (-(2**31), "d280000000"),
    (-(2**31) - 1, "d3ffffffff7fffffff"),
    (-(2**63) + 1, "d38000000000000001"),
    (-(2**63), "d38000000000000000"),
]


@pytest.mark.parametrize(("number", "packed"), INTEGERS)
def test_integers_take_the_smallest_form(number: int, packed: str) -> None:
    assert pack(b"%d" % number).hex() == packed


DOUBLES: list[tuple[str, float]] = [
    ("1492.18", 1492.18),
    ("1.0", 1.0),
    ("0.1", 0.1),
    ("-0.0", -0.0),
    ("1e0", 1.0),
    ("1E+22", 1e22),
    ("1.7976931348623157e308", 1.7976931348623157e308),
    ("5e-324", 5e-324),
    ("18446744073709551616", 2.0**64),
    ("99999999999999999999", 1e20),
    ("20000000000000000000", 2e19),
    ("-9223372036854775809", -(2.0**63)),
    ("-18446744073709551615", -(2.0**64)),
    ("123456789012345678901234567890", 1.2345678901234568e29),
    # Halfway between two doubles, and just above: to even, and up.
    ("9007199254740993.0", 9007199254740992.0),
    ("9007199254740993.001", 9007199254740994.0),
    ("9007199254740993." + "0" * 400 + "1", 9007199254740994.0),
    ("1e999", math.inf),
    ("-1e999", -math.inf),
    ("1" + "0" * 400, math.inf),
    ("1e99999999999999999999999999999", math.inf),
    ("1e-99999999999999999999999999999", 0.0),
    ("0e18446744073709551617", 0.0),
    ("-1e-999", -0.0),
    ("0." + "0" * 400 + "1e401", 1.0),
    ("1e00000000000000000000000000001", 10.0),
]


@pytest.mark.parametrize(("text", "value"), DOUBLES)
def test_other_numbers_are_the_nearest_double(text: str, value: float) -> None:
    assert pack(text.encode()) == b"\xcb" + struct.pack(">d", value)


def test_minus_zero_without_a_point_is_the_integer_that_it_is_to_other_parsers() -> None:
    assert pack(b"-0") == b"\x00" == msgspec.msgpack.encode(msgspec.json.decode(b"-0"))


def test_the_three_words_are_one_byte_each() -> None:
    assert pack(b"[null,false,true]").hex() == "93c0c2c3"


# How many there are, and the header of a text in bytes, of an array and of a map in members.
HEADERS: list[tuple[int, str, str, str]] = [
    (0, "a0", "90", "80"),
    (15, "af", "9f", "8f"),
    (16, "b0", "dc0010", "de0010"),
    (31, "bf", "dc001f", "de001f"),
    (32, "d920", "dc0020", "de0020"),
    (255, "d9ff", "dc00ff", "de00ff"),
    (256, "da0100", "dc0100", "de0100"),
    (65535, "daffff", "dcffff", "deffff"),
    (65536, "db00010000", "dd00010000", "df00010000"),
]


@pytest.mark.parametrize(("count", "text", "array", "map_"), HEADERS)
def test_headers_take_the_smallest_form(count: int, text: str, array: str, map_: str) -> None:
    assert pack(b'"%b"' % (b"x" * count)) == bytes.fromhex(text) + b"x" * count
    # An escape makes the same text, whatever header its longer form would have had.
    assert pack(b'"%b"' % (b"\\u0078" * count)) == bytes.fromhex(text) + b"x" * count
    assert pack(b"[%b]" % b",".join([b"7"] * count)) == bytes.fromhex(array) + b"\x07" * count
    assert pack(b"{%b}" % b",".join([b'"k":7'] * count)) == bytes.fromhex(map_) + b"\xa1k\x07" * count


def test_a_map_keeps_its_order_and_the_names_that_come_twice() -> None:
    assert pack(b'{"b":1,"a":{"b":[]},"b":2}') == b"\x83\xa1b\x01\xa1a\x81\xa1b\x90\xa1b\x02"


ESCAPES: list[tuple[str, str]] = [
    (r"\"\\\/\b\f\n\r\t", '"\\/\b\f\n\r\t'),
    (r"\u0000\u007f\u0080\u07ff\u0800\uFFFF", "\x00\x7f\x80\u07ff\u0800\uffff"),
    (r"\u00e9\u00E9", "éé"),
    (r"\ud83d\ude00", "😀"),
    (r"\uD800\uDC00\udbff\udfff", "\U00010000\U0010ffff"),
    (r"\ud83d", "\ufffd"),
    (r"\ude00", "\ufffd"),
    (r"\ud83dx\ude00", "\ufffdx\ufffd"),
    (r"\ud83d\n", "\ufffd\n"),
    (r"\ud83d\u0041", "\ufffdA"),
    (r"\ud83d\ud83d\ude00", "\ufffd😀"),
    (r"\ude00\ud83d", "\ufffd\ufffd"),
    ("\x7fé€😀\u2028", "\x7fé€😀\u2028"),
]


@pytest.mark.parametrize(("escaped", "text"), ESCAPES)
def test_escapes_become_the_characters_that_they_stand_for(escaped: str, text: str) -> None:
    for padding in range(10):
        around = "x" * padding
        assert pack(f'"{around}{escaped}{around}"'.encode()) == msgspec.msgpack.encode(around + text + around)


def test_each_character_of_the_basic_plane_may_be_escaped() -> None:
    for code in range(0x10000):
        character = "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)
        assert pack(b'"\\u%04x"' % code) == msgspec.msgpack.encode(character)


# --- any JSON ------------------------------------------------------------------------------------------------------


# repr tells 1 from 1.0 and 0.0 from -0.0, which are equal.
@settings(deadline=None, max_examples=200)
@given(json_texts())
@example(' { "a" : [ 1 , -2.5e0 , { } , [ ] , "\\ud800" ] , "" : null } \r\n\t')
def test_any_json_is_the_same_value_in_messagepack(text: str) -> None:
    assert repr(msgspec.msgpack.decode(pack(text.encode()))) == repr(value_in_msgpack(text))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inside: st.lists(inside, max_size=40) | st.dictionaries(st.text(max_size=40), inside, max_size=20),
    max_leaves=60,
)


@settings(deadline=None, max_examples=150)
@given(VALUES, st.booleans())
def test_the_bytes_are_those_of_a_plain_encoder(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":")).encode()
    assert pack(text) == msgspec.msgpack.encode(value)


DIGITS = st.text("0123456789", min_size=1, max_size=24)


@settings(deadline=None, max_examples=800)
@given(st.floats(allow_nan=False, allow_infinity=False).map(repr) | st.builds("{}.{}".format, st.integers(), DIGITS))
def test_decimals_of_any_length_are_rounded_as_python_does(text: str) -> None:
    assert pack(text.encode()) == b"\xcb" + struct.pack(">d", float(text))


@settings(deadline=None, max_examples=800)
@given(st.integers(2**52, 2**53 - 1), st.integers(-62, 60), st.sampled_from([ROUND_DOWN, ROUND_UP]))
@example(2**52, 0, ROUND_DOWN)
@example(2**53 - 1, 2, ROUND_DOWN)
def test_decimals_next_to_halfway_between_two_doubles_are_rounded_as_python_does(
    mantissa: int, power: int, rounding: str
) -> None:
    halfway = Context(400).multiply(Decimal(2 * mantissa + 1), Context(400).power(Decimal(2), power))
    for digits in (17, 18, 19, 20, 40):
        text = f"{Context(digits, rounding).plus(halfway):e}"
        assert pack(text.encode()) == b"\xcb" + struct.pack(">d", float(text))


@pytest.mark.parametrize("depth", [500, 501, 100_000])
def test_nesting_has_no_limit_of_its_own(depth: int) -> None:
    assert pack(b"[" * depth + b"]" * depth) == b"\x91" * (depth - 1) + b"\x90"
    assert pack(b'{"":' * depth + b"1" + b"}" * depth) == b"\x81\xa0" * depth + b"\x01"


def test_wide_headers_inside_wide_ones_are_all_in_their_places() -> None:
    value: Any = 7
    for level in range(60):
        small: list[Any] = [value, [level] * (level % 18), {"k": list(range(16))}]
        wide = {str(n): [n] * 20 for n in range(15 + level % 3)}
        value = [small, wide, *range(level % 17)] if level % 2 else {"x" * level: small, **wide}
    assert pack(json.dumps(value).encode()) == msgspec.msgpack.encode(value)
    crowd = [list(range(16)) for _ in range(70_000)]
    assert pack(json.dumps(crowd).encode()) == msgspec.msgpack.encode(crowd)


# --- damage --------------------------------------------------------------------------------------------------------

SAMPLE = (
    b'{"id":"ann","n":[0,-1,255,-129,65536,18446744073709551615,1.5,-0.0,1e999,12345678901234567890.5e-3],"e":"a\\n'
    b'\\u00e9\\ud83d\\ude00\\ud800","o":{"p":{},"q":[],"r":[true,false,null]},"m":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}'
)


@pytest.mark.parametrize("sample", [SAMPLE, SHOP_WHOLE, b'"text of a length"', b"[[[[1]]]]", b"true"])
def test_every_cut_is_refused(sample: bytes) -> None:
    for size in range(len(sample)):
        assert outcome(sample[:size]) is RecordDamaged


@pytest.mark.parametrize(
    "sample", [SAMPLE, b"-12345.678e90", b"18446744073709551616", b"1       ", b'"\\ud83d\\ude00"']
)
def test_what_is_behind_the_text_is_not_read(sample: bytes) -> None:
    for size in range(len(sample)):
        assert outcome(memoryview(sample)[:size]) == outcome(sample[:size])


def test_every_changed_byte_is_refused_or_answered_for_what_it_then_is() -> None:
    for at in range(len(SAMPLE)):
        for byte in range(256):
            damaged = SAMPLE[:at] + bytes([byte]) + SAMPLE[at + 1 :]
            packed = outcome(damaged)
            try:
                value = value_in_msgpack(damaged.decode())
            except ValueError:
                # Control characters and bad UTF-8 inside strings are not looked for again.
                assert packed is RecordDamaged or not 0x20 <= byte < 0x80
            else:
                assert isinstance(packed, bytes)
                assert repr(msgspec.msgpack.decode(packed)) == repr(value)


def outcome(text: Buffer) -> bytes | type[RecordDamaged]:
    try:
        return pack(text)
    except RecordDamaged:
        return RecordDamaged


NO_JSON = (
    '|x|tru|trux|nul|fals|falsx|-|+1|.5|1.|1.e1|1e|1e+|01|-01|--1|0x1|1_0|NaN|Infinity|\'a\'|"|"\\|"\\x"|"\\u12g4"|"\\u123"'
    '|"\\u12"|[|]|{|}|[1|[1,|[1,]|[,1]|[1 2]|[1}|{1:2}|{"a"}|{"a":}|{"a":1,}|{"a" 1}|{"a":1]|{,}|{"a":1 "b":2}|1 2|[]]'
    '|[][]|{}{}|"a""b"|\x0b1|1\x00|"\\ud800\\u12"|"\\ud800\\'
)


@pytest.mark.parametrize("text", NO_JSON.split("|"))
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(RecordDamaged):
        pack(text.encode())


def test_a_text_longer_than_any_record_is_refused() -> None:
    assert pack(b" " * (record.RECORD_BYTES_MAX - 1) + b"1") == b"\x01"
    with pytest.raises(RecordDamaged, match="too long"):
        pack(b" " * record.RECORD_BYTES_MAX + b"1")


# --- work ----------------------------------------------------------------------------------------------------------

SIZE = 8 * 1024 * 1024
NEVER_CLOSED = "arrays that are never closed"
WORST: dict[str, Callable[[], bytes]] = {
    "short numbers with exponents": lambda: b"[" + b"1e1," * (SIZE // 4) + b"0]",
    "empty arrays": lambda: b"[" + b"[]," * (SIZE // 3) + b"0]",
    "maps": lambda: b"[" + b'{"":{}},' * (SIZE // 8) + b"0]",
    "escapes": lambda: b'"' + b"\\n" * (SIZE // 2) + b'"',
    "lone surrogates": lambda: b'"' + b"\\ud800" * (SIZE // 6) + b'"',
    "one text": lambda: b'"' + b"x" * SIZE + b'"',
    "one number": lambda: b"1" * SIZE,
    "one fraction": lambda: b"0." + b"1" * SIZE,
    "blanks": lambda: b" " * SIZE + b"0",
    "arrays inside each other": lambda: b"[" * (SIZE // 2) + b"]" * (SIZE // 2),
    "wide arrays inside each other": lambda: (b"[" + b"0," * 15) * (SIZE // 32) + b"0" + b"]" * (SIZE // 32),
    NEVER_CLOSED: lambda: b"[" * SIZE,
}


@pytest.mark.parametrize("kind", WORST)
def test_no_text_takes_more_steps_or_memory_than_its_size_allows(kind: str) -> None:
    """Steps in the square of these sizes would go on far past the time that a test is given."""
    text = WORST[kind]()
    tracemalloc.start()
    try:
        packed = outcome(text)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(packed, bytes) is (kind != NEVER_CLOSED)
    assert most < 64 * SIZE
