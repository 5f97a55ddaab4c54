"""Attacks what reads Arrow streams for a while: columns of every type, by way of a relay or not, and columns of other
types than were announced.

Records must be those of the plain writer, and a column that does not fit must be refused by name. A script of its own:

    python tests/fuzz_columns.py [seconds, default 60] [seed, default 1]

It is run as fuzz_records.py is, in a build with sanitizers.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
from hypothesis import strategies as st
from strategies import (
    NOW_US,
    PER_SECOND,
    TEXT,
    Column,
    array_of,
    decimals,
    encoder_of,
    integers,
    json_column,
    list_of,
    map_of,
    moments,
    one_field,
    padded,
    plain,
    records_of,
    schema_of,
    struct_of,
    union_of,
)

from edgeprofile import record
from edgeprofile._relay import Relay
from edgeprofile.errors import SourceError
from edgeprofile.record import Kind

Chance = random.Random
# A column, and what makes a value of it.
Made = tuple[Column, Callable[[Chance], Any]]
# The columns' own strategies would be too slow in a build with sanitizers.
UNUSED: st.SearchStrategy[Any] = st.nothing()
LETTERS = '\x00\x1f "\\/\x7fé€\u2028\ufeff😀ab\n\r\U0010ffff'


def text_of(chance: Chance) -> str:
    size = chance.choice([0, 1, 5, 40, 4_090])
    return "x" * (size // 2) + "".join(chance.choices(LETTERS, k=min(size, 30)))


def json_of(chance: Chance) -> bytes:
    values: list[Any] = [None, True, -(2**70), 1.5, text_of(chance), [[], {}], {"a": [1, {"b": text_of(chance)}]}]
    return json.dumps(
        chance.choice(values), ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, 1])
    ).encode()


def decimal_of(chance: Chance) -> Made:
    precision = chance.randint(1, 38)
    scale, most = chance.randint(0, precision), 10**precision - 1

    def value(chance: Chance) -> Decimal:
        unscaled = chance.choice([-most, -1, 0, 1, most, chance.randint(-most, most)])
        return Decimal((int(unscaled < 0), tuple(map(int, str(abs(unscaled)))), -scale))

    return decimals(precision, scale), value


def moment_of(chance: Chance) -> Made:
    unit = chance.choice(list(PER_SECOND))
    zone = chance.choice([None, "UTC"])
    kind, arrow_type, bits = chance.choice(
        [(Kind.TIMESTAMP, pa.timestamp(unit, zone), 64), (Kind.DATE, pa.date32(), 32)]
    )
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    per_second = 1 if kind is Kind.DATE else PER_SECOND[unit]
    column = moments(kind, "" if kind is Kind.DATE else unit, arrow_type, low, high)
    return column, lambda chance: (
        chance.choice([low, high, 0, chance.randint(low, high) >> chance.choice([0, 20])]),
        per_second,
    )


def integer_of(chance: Chance) -> Made:
    bits, signed = chance.choice([8, 16, 32, 64]), chance.random() < 0.5
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return integers(bits, signed), lambda chance: chance.choice([low, high, 0, chance.randint(low, high)])


def double_of(chance: Chance) -> float:
    return float(chance.choice([0.1, -0.0, 5e-324, 1e300, struct.unpack("<d", chance.randbytes(8))[0]]))


def leaf_of(chance: Chance) -> Made:
    wide = chance.random() < 0.5
    leaves: list[Callable[[], Made]] = [
        lambda: (plain(Kind.BOOLEAN, pa.bool_(), UNUSED), lambda chance: chance.random() < 0.5),
        lambda: (plain(Kind.TEXT, pa.large_utf8() if wide else pa.utf8(), UNUSED), text_of),
        lambda: (json_column(pa.large_utf8() if wide else pa.utf8()), json_of),
        lambda: (
            plain(Kind.BINARY, pa.large_binary() if wide else pa.binary(), UNUSED),
            lambda chance: chance.randbytes(chance.choice([0, 1, 2, 3, 40])),
        ),
        lambda: (plain(Kind.DOUBLE, pa.float64(), UNUSED), double_of),
        lambda: integer_of(chance),
        lambda: decimal_of(chance),
        lambda: moment_of(chance),
    ]
    return chance.choice(leaves)()


def nullable(made: Made) -> Callable[[Chance], Any]:
    """A union has no NULL of its own, only members that are NULL."""
    column, value = made
    if column.type.kind is Kind.UNION:
        return value
    return lambda chance: None if chance.random() < 0.2 else value(chance)


def nest_of(chance: Chance, depth: int) -> Made:
    insides = [column_of(chance, depth - 1) for _ in range(chance.randint(1, 3))]
    columns, values = [column for column, _ in insides], [nullable(inside) for inside in insides]
    first, value, size = columns[0], values[0], chance.randint(1, 3)
    match chance.randrange(5):
        case 0:
            return list_of(first, chance.choice([32, 64])), lambda c: [value(c) for _ in range(c.randrange(4))]
        case 1:
            return array_of(first, size), lambda c: [value(c) for _ in range(size)]
        case 2:
            names = chance.choice([None, [f"{text_of(chance)[:5]}{n}" for n in range(len(columns))]])
            return struct_of(columns, names), lambda c: tuple(each(c) for each in values)
        case 3:
            return map_of(first), lambda c: [(f"{n}{text_of(c)[:8]}", value(c)) for n in range(c.randrange(4))]
        case _:
            return union_of(columns), lambda c: (n := c.randrange(len(values)), values[n](c))


def column_of(chance: Chance, depth: int) -> Made:
    column, value = leaf_of(chance) if depth == 0 or chance.random() < 0.4 else nest_of(chance, depth)
    return padded(column, chance.choice([0, 0, 1, 3, 8, 9])), value


def attack_writer(chance: Chance) -> str:
    """A few columns as a stream of one or several batches."""
    made = [column_of(chance, 3) for _ in range(chance.randint(1, 4))]
    ids = [f"{number}{text_of(chance)[:300]}" for number in range(chance.randint(1, 12))]
    rows = [[primary, *(nullable(each)(chance) for each in made)] for primary in ids]
    columns = [plain(Kind.TEXT, pa.utf8(), UNUSED), *(column for column, _ in made)]
    schema = schema_of([("id", "identifiers"), *((f"f{n}", "attributes") for n in range(len(made)))])
    types = [column.type for column in columns]
    values = [column.arrow(each) for column, each in zip(columns, zip(*rows, strict=True), strict=True)]
    batch = pa.record_batch([*values, pa.array(ids)], [str(number) for number in range(len(values) + 1)])
    stream = pa.RecordBatchReader.from_batches(batch.schema, [batch] * chance.randint(1, 3))
    is_relayed = chance.random() < 0.3
    encoded = encoder_of(schema, types).encode(
        (relayed(stream) if is_relayed else stream).__arrow_c_stream__(), None, 0, 0
    )
    assert encoded.refused == []
    expected = [record.encode(schema, types, i, row, NOW_US) for row, i in zip(rows, ids, strict=True)]
    found = records_of(encoded)
    assert found == expected * (len(found) // len(expected)), "the writers disagree"
    return "streams relayed" if is_relayed else "streams"


def relayed(stream: Any) -> Any:
    """The same, filled by a thread and read by another, as DuckDB does."""
    relay = Relay(stream)
    filling = threading.Thread(target=relay.fill)
    filling.start()
    read = pa.RecordBatchReader.from_stream(relay).read_all()
    filling.join()
    return read.to_reader()


def attack_types(chance: Chance) -> str:
    """A column of another type than was announced, or of one that is alike."""
    announced = column_of(chance, 2)[0].type if chance.random() < 0.8 else TEXT
    sent, value = column_of(chance, 2)
    values = [nullable((sent, value))(chance) for _ in range(chance.randint(1, 9))]
    try:
        encoded = one_field(announced, sent.arrow(values))
    except SourceError:
        return "columns refused"
    assert len(encoded.entries) + len(encoded.refused) == len(values)
    return "columns read"


def main(seconds: float, seed: int) -> None:
    seen: dict[str, int] = {}
    rounds = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            kind = (attack_writer if rounds % 3 else attack_types)(Chance(f"{seed}/{rounds}"))
        except Exception:
            print(f"found with seed {seed} in round {rounds}", file=sys.stderr)
            raise
        seen[kind] = seen.get(kind, 0) + 1
        rounds += 1
    print(f"{rounds} rounds with seed {seed}:", ", ".join(f"{count} {kind}" for kind, count in sorted(seen.items())))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
