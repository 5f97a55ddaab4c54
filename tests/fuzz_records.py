"""Attacks the compiled code for a while: damaged records behind a right check, cut down and rendered by templates,
random bytes as text, broken JSON.

Every outcome must be an answer made of the record's own bytes, or a refusal by name. What else could happen only
shows in a build that watches memory, so this is a script of its own, not one of pytest's tests:

    EDGEPROFILE_SANITIZE=1 CC=gcc python setup.py build_ext --inplace
    LD_PRELOAD="$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc PYTHONPATH=src \
        python tests/fuzz_records.py [seconds, default 60] [seed, default 1]

PYTHONMALLOC matters: Python's own allocator would hide small overruns from the sanitizer. Leaks are not looked
for because Python leaves some at its exit. Exit status 0 if nothing was found. A find ends the script, by an error
that names the round or by the sanitizer's report; the same seed comes to it again.
"""

from __future__ import annotations

import ctypes
import json
import random
import struct
import sys
import time
from collections.abc import Callable
from functools import partial

import msgspec
import pyarrow as pa  # type: ignore[import-untyped]
import templates
from strategies import TEXT, encoder_of, one_field, records_of, schema_of, shop_record, stream_of, value_in_msgpack

from edgeprofile import _identifiers, _msgpack, _record, record
from edgeprofile._profile import (
    CONSTANT,
    IF_TRUE,
    OBJECT,
    RUN,
    SLOT,
    TIME_MS,
    TIME_S,
    VALUE,
    Template,
    render_record,
)
from edgeprofile._profile import (
    TEXT as AS_TEXT,
)
from edgeprofile.errors import AnswerTooLarge, FormatUnsupported, RecordDamaged
from edgeprofile.record import Kind, Record, Type

Chance = random.Random
EDGES = [0, 1, 2, 3, 4, 5, 7, 8, 0x7F, 0x80, 0xFE, 0xFF]
# Pieces that end, cut or break a sequence, a number or a nesting.
PIECES = [
    b'"',
    b"\\",
    b"\\u",
    b"\x00",
    b"\x1f",
    b"\xc3",
    b"\xe2\x82",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x98",
    b"\xf4\x90",
    b"\xff",
    "é".encode(),
    "€".encode(),
    "😀".encode(),
    b"[",
    b"]",
    b"{",
    b"}",
    b":",
    b",",
    b"1e",
    b"-",
    b" ",
    b"null",
    b"1e1",
    b"\\ud83d",
    b"\\ude00",
    b"12345678901234567890",
]


# --- the reader ----------------------------------------------------------------------------------------------------


def grown_records() -> list[tuple[bytes, bytes]]:
    """(primary id, record) of sound records: small, of JSON, with a wide table, with wide ends, without a field."""
    made = [(b"ann", shop_record())]
    values = pa.array(['["a,]",null,[1],{"b":"\\\\"}]', '{"a":[1,"]"]}', "[]"])
    made += [(b"id%d" % n, r) for n, r in enumerate(records_of(one_field(Type(Kind.JSON), values)))]
    for count, size in ((70, 1), (1100, 2), (130, 900)):
        names = [(f"f{n}", "audiences" if n > count // 2 else "attributes") for n in range(count)]
        encoder = _record.Encoder([n for n, _ in names], [TEXT] * (count + 1), count // 2 + 1, False, 0)
        columns = [pa.array(["x" * size if n % 3 else None], pa.utf8()) for n in range(count)]
        made += [(b"p", r) for r in records_of(encoder.encode(stream_of([*columns, pa.array(["p"])]), None, 0, 0))]
    empty = encoder_of(schema_of([]), []).encode(stream_of([pa.array([""])]), None, 0, 0)
    made += [(b"", r) for r in records_of(empty)]
    assert {r[1] for _, r in made} == {2, 4}, "both widths of a table are under attack"
    return made


def table_of(found: bytes) -> tuple[int, int, int]:
    """Where the ends begin, the width of one, and how many there are, as the record itself says."""
    width, fields = found[1], int.from_bytes(found[2:4], "little")
    start = record.HEADER.size + (fields + 7) // 8
    return start, width, int.from_bytes(found[record.HEADER.size : start], "little").bit_count()


def damage(chance: Chance, primary: bytes, found: bytes) -> bytes:
    """Some bytes changed, or some ends, or the length; then the check made right again."""
    changed = bytearray(found)
    start, width, present = table_of(found)
    for _ in range(chance.randrange(4)):
        if present and chance.random() < 0.5:  # an end at an edge of its type or of the body
            edge = chance.choice([1 << 32, 1 << 31, 1 << 16, len(found), len(found) - start]) - chance.randrange(20)
            at = start + width * chance.choice([0, present // 2, present - 1, chance.randrange(present)])
            changed[at : at + width] = (edge & (1 << 8 * width) - 1).to_bytes(width, "little")
        else:
            at = chance.choice([chance.randrange(1, record.HEADER.size), chance.randrange(1, len(changed))])
            changed[at] = chance.choice([chance.choice(EDGES), chance.randrange(256)])
    if chance.random() < 0.2:
        at = chance.randrange(record.HEADER.size, len(changed) + 1)
        changed[at:] = chance.randbytes(chance.randrange(40))
    if chance.random() < 0.5:  # the lengths agree again, so that the table is what is wrong
        start, width, present = table_of(bytes(changed))
        struct.pack_into("<I", changed, 4, max(0, len(changed) - start - width * present))
    struct.pack_into("<Q", changed, 8, record.record_check(primary, bytes(changed)))
    return bytes(changed)


def runs_of(chance: Chance) -> record.Runs:
    most = chance.choice([8, 80, 1200, record.FIELDS_MAX + 100])
    edges = sorted(chance.randrange(most) for _ in range(chance.randrange(12)))
    return tuple(zip(edges[::2], edges[1::2], strict=False))


def outcome(cut: Callable[[], bytes]) -> bytes | type[Exception]:
    try:
        return cut()
    except (RecordDamaged, FormatUnsupported) as error:
        return type(error)


def attack_reader(sound: list[tuple[bytes, bytes]], chance: Chance) -> str:
    primary, found = chance.choice(sound)
    damaged = damage(chance, primary, found)
    runs, first_audience, with_audiences = (
        runs_of(chance),
        chance.choice([0, 1, 4, 36, 551, 5000]),
        chance.random() < 0.7,
    )
    # A copy of the exact size, so that the sanitizer sees the first byte that is read past its end.
    compiled = outcome(lambda: _record.project(bytearray(damaged), primary, runs, first_audience, with_audiences))
    plain = outcome(lambda: Record(primary.decode(), damaged).project(runs, first_audience, with_audiences))
    assert compiled == plain, "the readers disagree about a damaged record"
    return "answers" if isinstance(compiled, bytes) else "refusals"


def item_of(chance: Chance, first_nested: int) -> templates.Item:
    """An item of any kind, of a field or of runs that the record may have or not."""
    how = chance.choice([CONSTANT, SLOT, VALUE, VALUE, AS_TEXT, AS_TEXT, IF_TRUE, RUN, RUN, OBJECT, TIME_S, TIME_MS])
    texts = [chance.choice([b"", b'"k":', b"x" * 40])] * chance.randrange(2)
    if how == SLOT:
        return how, chance.randrange(len(templates.SLOTS))
    if how in (VALUE, AS_TEXT, IF_TRUE):
        return how, chance.choice([0, 1, chance.randrange(-2, 8), chance.randrange(1200), first_nested]), *texts
    if how not in (RUN, OBJECT):
        return how, *texts
    runs = []
    for _ in range(chance.randrange(3)):
        low, high = (0, first_nested) if chance.random() < 0.5 else (first_nested, first_nested + 600)
        runs.append(tuple(sorted((chance.randint(low, high), chance.randint(low, high)))))
    return how, runs, *texts


def attack_templates(sound: list[tuple[bytes, bytes]], chance: Chance) -> str:
    primary, found = chance.choice(sound)
    damaged = damage(chance, primary, found)
    first_nested = chance.choice([0, 1, 2, 4, 36, 66, 551, 5000])
    items = [item_of(chance, first_nested) for _ in range(chance.randrange(5))]
    template = Template(items, first_nested, chance.random() < 0.3)
    bytes_max = chance.choice([1 << 31, chance.randrange(200)])
    try:
        text = outcome(lambda: render_record(bytearray(damaged), primary, template, templates.SLOTS, bytes_max))
    except AnswerTooLarge:
        return "too large"
    if not isinstance(text, bytes):
        return "refusals"
    assert len(text) <= bytes_max
    if len(items) == 1 and (items[0][0] == VALUE or (items[0][0] == RUN and len(items[0][1]) == 1)):
        assert text.removeprefix(b"".join(items[0][2:])) in damaged, "a value is the record's own"
    return "renderings"


# --- the writer ----------------------------------------------------------------------------------------------------


def octets_of(chance: Chance) -> bytes:
    """Random bytes with something odd near the end of a stretch of 4096 bytes, or right at the start."""
    head = b"x" * chance.choice([0, chance.randrange(20), 4096 - chance.randrange(20), 8192 - chance.randrange(20)])
    odd = b"".join(chance.choice([chance.choice(PIECES), chance.randbytes(2)]) for _ in range(chance.randrange(8)))
    return head + odd + chance.choice([b"", b"tail", b"\x01" * chance.randrange(5000)])


def text_column(values: list[bytes | None], wide: bool) -> pa.Array:
    """Text that nobody checked, in buffers of the exact size, behind one value that the slice leaves out."""
    content = b"".join(v or b"" for v in values)
    offsets = [0]
    for value in values:
        offsets.append(offsets[-1] + len(value or b""))
    bits = sum(1 << n for n, v in enumerate(values) if v is not None).to_bytes((len(values) + 7) // 8, "little")
    width, type_ = ("q", pa.large_utf8()) if wide else ("i", pa.utf8())
    buffers = [bits, struct.pack(f"<{len(offsets)}{width}", *offsets), content]
    return pa.Array.from_buffers(type_, len(values), [pa.py_buffer(bytearray(b)) for b in buffers]).slice(1)


def is_text(octets: bytes) -> bool:
    try:
        octets.decode()
    except UnicodeDecodeError:
        return False
    return True


def attack_writer(chance: Chance) -> str:
    values = [None if chance.random() < 0.1 else octets_of(chance) for _ in range(chance.randint(2, 6))]
    kind = chance.choice([Kind.TEXT, Kind.JSON, Kind.BINARY])
    column = text_column(values, chance.random() < 0.5)
    batch = one_field(Type(kind), column)
    reasons = dict(batch.refused)
    served = iter(records_of(batch))
    for row, value in enumerate(values[1:]):
        if row in reasons:
            assert value is not None
            assert kind is not Kind.BINARY
            assert (reasons[row] == "invalid_utf8") is not is_text(value)
            assert kind is Kind.JSON or reasons[row] == "invalid_utf8"
            continue
        answer = json.loads(_record.project(next(served), b"id%d" % row, record.WHOLE, 2, True))
        assert kind is Kind.BINARY or value is None or is_text(value)
        assert kind is not Kind.TEXT or value is None or answer["f"] == value.decode()
        assert ("f" in answer) is (value is not None)
    attack_keys(column.fill_null(""))
    return "refused rows" if reasons else "encoded rows"


def attack_keys(keys: pa.Array) -> None:
    """The same bytes as primary ids, as the keys of a map and as values of the index."""
    encoder_of(schema_of([("id", "identifiers")]), [TEXT]).encode(stream_of([keys, keys]), None, 0, 0)
    offsets = pa.array([0] * len(keys) + [len(keys)], pa.int32())
    if keys.type == pa.utf8():
        one_field(Type(Kind.MAP, (TEXT, TEXT)), pa.MapArray.from_arrays(offsets, keys, keys))
    list(_identifiers.IndexBatches(stream_of([keys, keys]), b"\x01", 300))


# --- MessagePack ---------------------------------------------------------------------------------------------------


def json_of(chance: Chance, depth: int) -> bytes:
    """JSON, but that an odd piece may stand for a value or in a string."""
    kind = chance.randrange(8 if depth else 6)
    count = chance.choice([0, 1, 3, 15, 16, 17]) >> (3 - depth)
    if kind == 7:
        alike = chance.random() < 0.5
        members = [json_of(chance, depth - 1)] * count if alike else [json_of(chance, depth - 1) for _ in range(count)]
        return b"[" + b",".join(members) + b"]"
    if kind == 6:
        return b"{" + b",".join(b'"k%d":' % n + json_of(chance, depth - 1) for n in range(count)) + b"}"
    if kind == 5:
        return b'"' + b"x" * chance.choice([0, 1, 7, 8, 31, 32, 255, 256]) + chance.choice(PIECES) + b'"'
    number = chance.choice([chance.uniform(-1e6, 1e6), 10.0 ** chance.randint(-320, 308), -(2 ** chance.randrange(70))])
    return chance.choice([repr(number).encode(), b"true", b"false", b"null", b'"\\u00e9"', chance.choice(PIECES)])


def attack_msgpack(chance: Chance) -> str:
    text = json_of(chance, 3)
    for _ in range(chance.randrange(3)):
        at = chance.randrange(len(text) + 1)
        text = text[:at] + chance.choice([b"", chance.choice(PIECES), chance.randbytes(1)]) + text[at + 1 :]
    text = text[: chance.choice([len(text), chance.randrange(len(text) + 1)])]
    # ctypes keeps more than a few bytes in memory of the exact size, without the NUL that `bytes` has behind them.
    packed = outcome(lambda: _msgpack.pack((ctypes.c_ubyte * len(text)).from_buffer_copy(text)))
    try:
        value = value_in_msgpack(text.decode())
    except ValueError:
        return "broken JSON"
    assert isinstance(packed, bytes), "good JSON is refused"
    assert repr(msgspec.msgpack.decode(packed)) == repr(value)
    return "packed JSON"


def main(seconds: float, seed: int) -> None:
    sound = grown_records()
    seen: dict[str, int] = {}
    rounds = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        chance = Chance(f"{seed}/{rounds}")
        try:
            attacks = (attack_writer, partial(attack_reader, sound), attack_msgpack, partial(attack_templates, sound))
            attack = attacks[rounds % 4]
            kind = attack(chance)
        except Exception:
            print(f"found with seed {seed} in round {rounds}", file=sys.stderr)
            raise
        seen[kind] = seen.get(kind, 0) + 1
        rounds += 1
    print(f"{rounds} rounds with seed {seed}:", ", ".join(f"{count} {kind}" for kind, count in sorted(seen.items())))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
