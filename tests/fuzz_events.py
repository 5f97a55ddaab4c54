"""Attacks walks through events, and pages of them, for a while: directories and indices of blocks that lie.

All of it stands behind checks that are right. Whatever is found must be a whole event of that profile's, and what is
not found must be missed or refused by name. A script of its own:

    python tests/fuzz_events.py [seconds, default 60] [seed, default 1]

It is run as fuzz_records.py is, in a build with sanitizers.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from histories import EVER, page_of, split
from test_events_damage import BODIES, EDGES, QUERIES, Damaged
from test_walk_damage import ASKED, ends_of, from_place, parts_of

from edgeprofile import history
from edgeprofile.errors import FormatUnsupported, MalformedQuery, RecordDamaged
from edgeprofile.record import checksum

MOMENTS = [*EVER, 0, 1_000, 5_000, 9_000]


def number_of(chance: random.Random) -> int:
    return chance.choice([chance.choice(EDGES), chance.randrange(400)])


class Target:
    """A file whose history of one profile lies anew in each round, at one and the same place in memory."""

    def __init__(self, folder: Path) -> None:
        self.damaged = Damaged(folder)
        self.directory_at = self.damaged.content.index(self.damaged.directory)
        self.blocks = history.read_directory("ann", self.damaged.directory)
        segments = [bytes(segment) for segment in self.damaged.store.reader.event_segments]
        self.starts = [self.damaged.content.index(segments[block.segment]) + block.offset for block in self.blocks]
        self.seen = {"found": 0, "refused": 0}

    def lie(self, chance: random.Random) -> None:
        blocks = [self.lying_block(chance, number) for number in range(len(self.blocks))]
        if chance.random() < 0.2:
            chance.shuffle(blocks)
        self.damaged.turn(self.directory_at, history.write_directory("ann", blocks))

    def lying_block(self, chance: random.Random, number: int) -> history.Block:
        block, at = self.blocks[number], self.starts[number]
        index = bytearray(self.damaged.content[at : at + history.MARK.size * block.count])
        for _ in range(chance.randrange(3)):
            mark = chance.choice(MOMENTS), number_of(chance), number_of(chance)
            history.MARK.pack_into(index, history.MARK.size * chance.randrange(block.count), *mark)
        self.damaged.turn(at, bytes(index))
        lies: dict[str, int] = {}
        if chance.random() < 0.5:
            lies[chance.choice(["segment", "offset", "length", "count"])] = number_of(chance)
        if chance.random() < 0.5:
            lies[chance.choice(["newest_us", "oldest_us"])] = chance.choice(MOMENTS)
        names = chance.choice([block.names, 0, (1 << 64) - 1])
        return block._replace(names=names, check=checksum(checksum(0, b"ann"), bytes(index)), **lies)

    def read(self, chance: random.Random) -> None:
        asked, query = chance.choice(ASKED), chance.choice(QUERIES)
        place = chance.choice(MOMENTS), chance.choice([0, 1, 3, (1 << 64) - 1])
        store = self.damaged.store
        ways = (
            lambda: parts_of(asked.walk(store), chance.randrange(30), chance.randrange(30)),
            lambda: from_place(asked.walk(store), place, chance.randrange(30)),
            lambda: ends_of(asked.walk(store)),
            lambda: [split(page_of(store, query).body())[0]],
        )
        for way in ways:
            self.seen["refused"] += 1
            with contextlib.suppress(RecordDamaged, FormatUnsupported, MalformedQuery):
                for text in way():
                    events = {json.dumps(event) for event in json.loads(b"[%b]" % text)}
                    assert events <= BODIES, "events are whole and the profile's own"
                self.seen["refused"] -= 1
                self.seen["found"] += 1


def main(seconds: float, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Target(Path(folder))
        rounds = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            chance = random.Random(f"{seed}/{rounds}")
            try:
                target.lie(chance)
                target.read(chance)
            except Exception:
                print(f"found with seed {seed} in round {rounds}", file=sys.stderr)
                raise
            rounds += 1
        target.damaged.close()
        print(f"{rounds} rounds with seed {seed}:", ", ".join(f"{count} {kind}" for kind, count in target.seen.items()))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
