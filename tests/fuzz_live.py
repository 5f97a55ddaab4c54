"""Attacks the reader of live layers for a while, and what takes records apart and makes them anew: pages that lie,
announcements that are not true, damaged records behind a right check, values of any size.

What is found must come from the file, or be missed, or refused by name; what is taken apart must be the record's own,
and what is made must be what the plain writer makes. A script of its own:

    python tests/fuzz_live.py [seconds, default 60] [seed, default 1]

It is run as fuzz_records.py is, in a build with sanitizers.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from fuzz_records import damage
from fuzz_tree import edits_of, places
from test_live import Writer, live_of

from edgeprofile import record, snapshot
from edgeprofile._live import Live
from edgeprofile._merge import Shape
from edgeprofile.errors import FormatUnsupported, LiveDamaged, RecordDamaged
from edgeprofile.reader import LIVE_DATABASES
from edgeprofile.record import Field, Kind, Schema, Type

Chance = random.Random
NUMBERS = [0, 1, 2, 3, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 2, (1 << 64) - 1]


class Layer:
    """A live layer that is damaged, read and mended again and again."""

    def __init__(self, folder: Path) -> None:
        chance = Chance(7)
        writer = Writer(folder)
        for database in LIVE_DATABASES:
            keys = [chance.randbytes(chance.randrange(1, 200)) for _ in range(40)]
            writer.write({database: {key: chance.randbytes(chance.choice([0, 20, 5_000])) for key in keys}})
            writer.write({database: dict.fromkeys(keys[::7])})
        writer.env.close()
        self.folder = folder
        self.files = [os.open(folder / name, os.O_RDWR) for name in (snapshot.LIVE, snapshot.SEQUENCE)]
        self.content, self.sequence = ((folder / name).read_bytes() for name in (snapshot.LIVE, snapshot.SEQUENCE))
        self.places = list(places(self.content))
        whole = live_of(folder)
        self.keys = [(database, key) for database in LIVE_DATABASES for key in keys_of(whole, database)]
        assert len(self.keys) > 150

    def attack(self, chance: Chance) -> str:
        """Opens the layer damaged, or damages it while it is open."""
        was_open = live_of(self.folder) if chance.random() < 0.5 else None
        if was_open is not None:
            assert not was_open.is_empty
        for at, octets in edits_of(chance, self.content, self.places).items():
            os.pwrite(self.files[0], octets, at)
        if chance.random() < 0.3:
            os.pwrite(self.files[1], (chance.choice(NUMBERS) + chance.randrange(16)).to_bytes(9, "little")[:8], 0)
        try:
            return self.read(chance, was_open or live_of(self.folder))
        except LiveDamaged:
            return "layers refused"
        finally:
            for file, content in zip(self.files, (self.content, self.sequence), strict=True):
                os.pwrite(file, content, 0)

    def read(self, chance: Chance, live: Live) -> str:
        found, refused = (self.folder / snapshot.LIVE).read_bytes(), 0
        for database, key in chance.sample(self.keys, 20):
            try:
                value = live.get(database, key)
                above = live.after(database, key)
                live.entries(database)
            except LiveDamaged:
                refused += 1
                continue
            assert value is None or value in found, "what is found comes from the file"
            assert above is None or (above > key and above in found), "a walk goes on"
        return "layers read in part" if refused else "layers read"


def keys_of(live: Live, database: bytes) -> list[bytes]:
    keys: list[bytes] = []
    while (key := live.after(database, keys[-1] if keys else b"")) is not None:
        keys.append(key)
    return keys


# --- records taken apart and made ----------------------------------------------------------------------------------


def profile_of(chance: Chance) -> tuple[bytes, Schema, list[bytes | None]]:
    """A primary id, a schema, and the values of a profile; the first is the primary id, which every profile has."""
    count = chance.choice([1, 2, 8, 9, 70, record.FIELDS_MAX if chance.random() < 0.02 else 7])
    first_audience = chance.randint(1, count)
    fields = tuple(Field(f"f{n}", "attributes" if n < first_audience else "audiences", "JSON") for n in range(count))
    sizes = [0, 1, 7, *([300, chance.randrange(70_000)] if count < 10 else [])]
    values: list[bytes | None] = [
        None if number and chance.random() < 0.2 else json.dumps("x" * chance.choice(sizes)).encode()
        for number in range(count)
    ]
    return b"p" * chance.choice([0, 1, 40, 511]), Schema(fields, ()), values


def shape_of(schema: Schema) -> Shape:
    return Shape([field.name for field in schema.fields], schema.first_audience)


def attack_split(chance: Chance) -> str:
    """Of a record that is damaged, or of one whose schema is another."""
    primary, schema, values = profile_of(chance)
    shape = shape_of(schema)
    damaged = damage(chance, primary, shape.join(primary, values, 0))
    if chance.random() < 0.2:
        shape = shape_of(profile_of(chance)[1])
    try:
        # A copy of the exact size, so that the sanitizer sees the first byte that is read past its end.
        found = shape.split(bytearray(damaged), primary)
    except (RecordDamaged, FormatUnsupported):
        return "records refused"
    assert all(value is None or value in damaged for value in found)
    return "records taken apart"


def attack_join(chance: Chance) -> str:
    primary, schema, values = profile_of(chance)
    time_us = chance.choice([0, 1, -(10**15), 2 * 10**17, chance.randrange(-(1 << 63), 1 << 63)])
    made = shape_of(schema).join(primary, values, time_us)
    types = [Type(Kind.JSON)] * len(values)
    assert made == record.encode(schema, types, primary.decode(), values, time_us), "the writers disagree"
    assert shape_of(schema).split(bytearray(made), primary) == values
    return "records made"


def main(seconds: float, seed: int) -> None:
    seen: dict[str, int] = {}
    rounds = 0
    with tempfile.TemporaryDirectory() as folder:
        attacks = (Layer(Path(folder)).attack, attack_split, attack_join)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                kind = attacks[rounds % 3](Chance(f"{seed}/{rounds}"))
            except Exception:
                print(f"found with seed {seed} in round {rounds}", file=sys.stderr)
                raise
            seen[kind] = seen.get(kind, 0) + 1
            rounds += 1
    print(f"{rounds} rounds with seed {seed}:", ", ".join(f"{count} {kind}" for kind, count in sorted(seen.items())))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
