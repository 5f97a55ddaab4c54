"""Attacks look-ups in a snapshot's file for a while: bytes, offsets, lengths and page numbers that are not true.

Every look-up and every step of a walk must end in what the file holds, in nothing, or in a refusal by name. Pages
that nobody may touch lie before and behind the map, so that a step outside ends the process. For test_tree.py, and a
script of its own:

    python tests/fuzz_tree.py [seconds, default 60] [seed, default 1]

It is run as fuzz_records.py is, in a build with sanitizers.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lmdb

from edgeprofile._tree import Tree
from edgeprofile.errors import SnapshotDamaged, StoreError
from edgeprofile.reader import DATABASES, IDENTIFIERS, LIB_VERSION, PROFILES, RECORDS

PAGE_BYTES = 4096
PAGE, META_BYTES, NODE_BYTES = struct.Struct("<QHHHH"), 152, 8
BRANCH, LEAF, META = 1, 2, 8
TRANSACTION_AT, MAIN_ROOT_AT = 144, 128  # in a meta page
DEPTH_AT, ROOT_AT = 6, 40  # in a database
Commit = dict[bytes, dict[bytes, bytes | None]]


def write_file(path: Path, commits: list[Commit], **options: Any) -> dict[bytes, dict[bytes, bytes]]:
    """A file of LMDB's, and what is in it: a transaction for each commit, in which None deletes a key."""
    content: dict[bytes, dict[bytes, bytes]] = {name: {} for name in DATABASES}
    env = lmdb.open(
        str(path),
        subdir=False,
        lock=False,
        sync=False,
        max_dbs=len(DATABASES),
        map_size=1 << 30,
        lib_version=LIB_VERSION,
    )
    databases = {name: env.open_db(name, **options) for name in DATABASES}
    for commit in commits:
        with env.begin(write=True) as txn:
            for name, changes in commit.items():
                for key, value in changes.items():
                    if value is None:
                        txn.delete(key, db=databases[name])
                        content[name].pop(key, None)
                    else:
                        txn.put(key, value, db=databases[name])
                        content[name][key] = value
    env.close()
    return content


def database_at(content: bytearray, name: bytes) -> int:
    """Where the last transaction's version of a named database is: in the one page of the main database."""
    metas = [(struct.unpack_from("<Q", content, page + TRANSACTION_AT)[0], page) for page in (0, PAGE_BYTES)]
    (root,) = struct.unpack_from("<Q", content, max(metas)[1] + MAIN_ROOT_AT)
    return content.index(name, root * PAGE_BYTES) + len(name)


def small_file(path: Path) -> dict[bytes, dict[bytes, bytes]]:
    """A dozen pages of every kind: branches, leaves, large values, pages that are free again.

    The one leaf of the identifiers is moved to the end, from where a step too far leads out of the file.
    """
    chance = random.Random(7)
    keys = [chance.randbytes(chance.randrange(1, 120)) for _ in range(150)]
    first: Commit = {
        RECORDS: {struct.pack(">I", n): chance.randbytes(size) for n, size in enumerate((5000, 9000, 100, 0))},
        PROFILES: {key: chance.randbytes(12) for key in keys},
        IDENTIFIERS: {key[:9] + b"@x": chance.randbytes(20) for key in keys[:20]},
    }
    found = write_file(path, [first, {PROFILES: dict.fromkeys(keys[::7])}])
    content = bytearray(path.read_bytes())
    root_at = database_at(content, IDENTIFIERS) + ROOT_AT
    (root,) = struct.unpack_from("<Q", content, root_at)
    last = len(content) // PAGE_BYTES
    content += struct.pack("<Q", last) + content[root * PAGE_BYTES + 8 : (root + 1) * PAGE_BYTES]
    struct.pack_into("<Q", content, root_at, last)
    path.write_bytes(content)
    return found


def places(content: bytes) -> Iterator[int]:
    """Where all that is no key and no value stands: the heads of pages and nodes, and the offsets of nodes."""
    for page in range(0, len(content), PAGE_BYTES):
        _, _, kind, lower, _ = PAGE.unpack_from(content, page)
        yield from range(page, page + (META_BYTES if kind == META else PAGE.size))
        if kind in (BRANCH, LEAF):
            yield from range(page + PAGE.size, page + lower)
            for (offset,) in struct.iter_unpack("<H", content[page + PAGE.size : page + lower]):
                yield from range(page + offset, page + offset + NODE_BYTES)


class Target:
    """A small file that is damaged, read and mended again and again, at one and the same place in memory."""

    def __init__(self, path: Path) -> None:
        content = small_file(path)
        self.keys = [(name, key, value) for name, pairs in content.items() for key, value in pairs.items()]
        self.steps = [
            (name, low, above)
            for name, pairs in content.items()
            for low, above in zip([b"", *sorted(pairs)], [*sorted(pairs), None], strict=True)
        ]
        self.path = path
        self.content = path.read_bytes()
        self.places = list(places(self.content))
        self.seen = {"refused": 0, "damaged": 0, "missed": 0, "wrong": 0, "right": 0}
        self.file = os.open(path, os.O_RDWR)
        # The kernel fills gaps from above, and then stacks downwards; the file fits exactly into the one left open.
        self.guards = [mmap.mmap(-1, len(self.content), flags=mmap.MAP_PRIVATE, prot=0) for _ in range(200)]
        self.guards[-2].close()
        tree = Tree(path, len(self.content), DATABASES)
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        at = next(n for n, line in enumerate(maps) if line.endswith(str(path)))
        assert [line.split()[1] for line in maps[at - 1 : at + 2]] == ["---p", "r--s", "---p"], "the file is guarded"
        del tree

    def attack(self, edits: dict[int, bytes], size: int | None = None) -> None:
        """Reads every key of the damaged file."""
        for at, octets in edits.items():
            os.pwrite(self.file, octets, at)
        if size is not None:
            os.truncate(self.file, size)
        try:
            self.read(len(self.content) if size is None else size)
        finally:
            if size is not None:
                os.pwrite(self.file, self.content[size:], size)
            for at, octets in edits.items():
                os.pwrite(self.file, self.content[at : at + len(octets)], at)

    def read(self, size: int) -> None:
        try:
            tree = Tree(self.path, size, DATABASES)
        except StoreError:
            self.seen["refused"] += 1
            return
        for name, key, value in self.keys:
            self.look(partial(tree.get, name, key), value)
        for name, low, behind in self.steps:
            above = self.look(partial(tree.after, name, low), behind)
            assert above is None or above > low, "a walk goes on"

    def look(self, find: Callable[[], bytes | None], expected: bytes | None) -> bytes | None:
        """What is found, which is counted."""
        try:
            found = find()
        except SnapshotDamaged:
            self.seen["damaged"] += 1
            return None
        if found == expected:
            self.seen["right"] += 1
        elif found is None:
            self.seen["missed"] += 1
        else:
            assert found in self.path.read_bytes(), "what is found comes from the file"
            self.seen["wrong"] += 1
        return found


def flip_all(target: Target) -> None:
    """Every byte of the structure, and some of the others, with one bit or all of them turned."""
    for at in sorted({*target.places, *range(0, len(target.content), 101)}):
        for bits in (0x01, 0x80, 0xFF):
            target.attack({at: bytes([target.content[at] ^ bits])})


def cut_all(target: Target) -> None:
    """Every length that the file may be cut to, a page or part of one at a time."""
    for size in range(0, len(target.content), PAGE_BYTES // 4):
        target.attack({}, size)


def push_all(target: Target) -> None:
    """Every node of the last page at every place near its end, with a key and a value that do not fit there."""
    page = len(target.content) - PAGE_BYTES
    _, _, kind, lower, _ = PAGE.unpack_from(target.content, page)
    assert kind == LEAF
    key = next(key for name, key, _ in target.keys if name == IDENTIFIERS)
    for distance in range(1, 60):
        offsets = struct.pack("<H", PAGE_BYTES - distance) * ((lower - PAGE.size) // 2)
        for flags in (0, 1):
            for key_bytes in (0, len(key), 0xFFFF):
                node = struct.pack("<HHHH", 20, 0, flags, key_bytes) + key
                target.attack({page + PAGE.size: offsets, page + PAGE_BYTES - distance: node[:distance]})


def edits_of(chance: random.Random, content: bytes, places: list[int]) -> dict[int, bytes]:
    """A few numbers of two, four or eight bytes that are at an edge of something, and bytes of any value."""
    pages = len(content) // PAGE_BYTES
    edges = [0, 1, pages - 1, pages, PAGE_BYTES, PAGE_BYTES - NODE_BYTES, 1 << 15, 1 << 16, 1 << 31, 1 << 32, 1 << 63]
    edits = {}
    for _ in range(chance.randint(1, 4)):
        width = chance.choice([1, 2, 4, 8])
        edge = (chance.choice(edges) + chance.randint(-17, 17)) % (1 << 8 * width)
        at = chance.choice(places) // width * width
        edits[at] = edge.to_bytes(width, "little") if chance.random() < 0.8 else chance.randbytes(width)
    return edits


def main(seconds: float, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Target(Path(folder) / "profiles.mdb")
        flip_all(target)
        cut_all(target)
        push_all(target)
        rounds = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            chance = random.Random(f"{seed}/{rounds}")
            edits = edits_of(chance, target.content, target.places)
            size = chance.randrange(len(target.content)) if chance.random() < 0.05 else None
            try:
                target.attack({at: octets for at, octets in edits.items() if size is None or at + 8 <= size}, size)
            except Exception:
                print(f"found with seed {seed} in round {rounds}", file=sys.stderr)
                raise
            rounds += 1
        print(f"{rounds} rounds with seed {seed}:", ", ".join(f"{count} {kind}" for kind, count in target.seen.items()))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
