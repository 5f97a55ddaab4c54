"""Look-ups in a snapshot's file find what LMDB finds, and damage never takes them out of the file."""

from __future__ import annotations

import gc
import json
import random
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest
from fuzz_tree import (
    BRANCH,
    DEPTH_AT,
    NODE_BYTES,
    PAGE,
    PAGE_BYTES,
    ROOT_AT,
    Commit,
    database_at,
    small_file,
    write_file,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from workshop import WAIT_SECONDS_MAX, Workshop, environment

from edgeprofile._tree import Tree
from edgeprofile.errors import FormatUnsupported, SnapshotDamaged, StoreError
from edgeprofile.reader import DATABASES, EVENTS, IDENTIFIERS, KEY_BYTES_MAX, LIB_VERSION, PROFILES, RECORDS, Reader

DATABASE_BYTES = 48


def tree_of(path: Path) -> Tree:
    return Tree(path, path.stat().st_size, DATABASES)


def near(key: bytes) -> set[bytes]:
    """Keys that stand beside this one, or begin as it does."""
    more = {key[:-1], key + b"\0", key + b"\xff", key[:-1] + bytes([key[-1] ^ 1]), key * 2}
    return more | {key[:-1] + bytes([octet]) for octet in (key[-1] - 1, key[-1] + 1) if 0 <= octet < 256}


def walk(tree: Tree, name: bytes) -> Iterator[bytes]:
    """All keys of a database, each found as what is behind the one before."""
    key = tree.after(name, b"")
    while key is not None:
        yield key
        key = tree.after(name, key)


def above(cursor: lmdb.Cursor, key: bytes) -> bytes | None:
    """The first key above one, as LMDB's cursor has it, which takes none that no file can have."""
    low = key[:KEY_BYTES_MAX]
    if not (cursor.set_range(low) if low else cursor.first()):
        return None
    if cursor.key() == low and not cursor.next():
        return None
    return bytes(cursor.key())


def assert_alike(path: Path, keys: set[bytes]) -> None:
    """Tree and LMDB say the same about all keys of the file, and about these."""
    tree = tree_of(path)
    with lmdb.open(
        str(path), subdir=False, readonly=True, lock=False, max_dbs=len(DATABASES), lib_version=LIB_VERSION
    ) as env:
        for name in DATABASES:
            database = env.open_db(name, create=False)
            with env.begin(db=database) as txn, txn.cursor() as cursor:
                pairs = dict(cursor)
                assert tree.entries(name) == len(pairs)
                assert {key: tree.get(name, key) for key in pairs} == pairs
                beside = keys | {other for key in keys for other in near(key)}
                assert [key for key in beside - pairs.keys() if tree.get(name, key) is not None] == []
                assert tree.count(name, [(key, b"") for key in beside | pairs.keys()]) == len(pairs)
                assert list(walk(tree, name)) == list(pairs)
                assert {key: tree.after(name, key) for key in beside} == {key: above(cursor, key) for key in beside}


# --- the same as LMDB ----------------------------------------------------------------------------------------------

# Few different bytes and few beginnings, so that many keys have one in common.
KEYS = st.one_of(
    st.binary(min_size=1, max_size=KEY_BYTES_MAX),
    st.lists(st.sampled_from([b"a", b"\0", b"\xff", b"user-", b"x" * 200]), min_size=1, max_size=9).map(
        lambda parts: b"".join(parts)[:KEY_BYTES_MAX]
    ),
)
# By its length: few bytes, all that a leaf takes, or pages of its own.
VALUES = st.sampled_from([0, 1, 12, 300, 1900, 2000, 2040, 4080, 4081, 8177, 20_000]).map(lambda size: b"v" * size)
CHANGES = st.dictionaries(KEYS, VALUES | st.none(), max_size=40)
COMMITS = st.lists(st.dictionaries(st.sampled_from(DATABASES), CHANGES, max_size=3), max_size=4)


@settings(deadline=None, max_examples=60)
@given(COMMITS)
def test_what_was_written_in_any_order_rewritten_and_deleted_is_found_as_lmdb_finds_it(commits: list[Commit]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profiles.mdb"
        write_file(path, commits)
        assert_alike(path, {key for commit in commits for changes in commit.values() for key in changes})


@pytest.mark.parametrize(("key_bytes", "depth"), [(12, 3), (KEY_BYTES_MAX, 5)])
def test_every_key_of_a_deep_tree_is_found_and_its_neighbours_are_not(
    tmp_path: Path, key_bytes: int, depth: int
) -> None:
    chance = random.Random(3)
    path = tmp_path / "profiles.mdb"
    keys = [(b"%06d" % n).rjust(key_bytes, b"k")[-chance.randint(6, key_bytes) :] for n in range(0, 40_000, 4)]
    chance.shuffle(keys)
    write_file(
        path,
        [
            {PROFILES: {key: key[-6:] * 20 for key in keys}},
            {PROFILES: dict.fromkeys(keys[:3000])},
            {PROFILES: dict.fromkeys(keys[2000:6000], b""), IDENTIFIERS: dict.fromkeys(keys[:500], b"x" * 5000)},
        ],
    )
    with lmdb.open(
        str(path), subdir=False, readonly=True, lock=False, max_dbs=len(DATABASES), lib_version=LIB_VERSION
    ) as env:
        profiles = env.open_db(PROFILES, create=False)
        with env.begin() as txn:
            assert txn.stat(profiles)["depth"] >= depth
    assert_alike(path, set(keys))


def test_a_loaded_snapshot_is_found_as_lmdb_finds_it(tmp_path: Path) -> None:
    shop = Workshop(tmp_path)
    sql = "SELECT i AS id, 'm' || i || '@x' AS email, repeat('s', (i % 900)::INTEGER) AS story FROM range(5000) AS t(i)"
    shop.model(sql, identifiers=["email"]).load()
    assert_alike(shop.current_folder() / "profiles.mdb", {b"%d" % n for n in range(5100)} | {b"\x00\x01m7@x", b"\xff"})


def test_keys_that_lmdb_would_refuse_are_missing(tmp_path: Path) -> None:
    small_file(tmp_path / "profiles.mdb")
    tree = tree_of(tmp_path / "profiles.mdb")
    assert tree.get(PROFILES, b"") is None
    assert tree.get(PROFILES, b"k" * 100_000) is None


def test_nothing_is_behind_the_last_key_or_in_an_empty_database(tmp_path: Path) -> None:
    found = small_file(tmp_path / "profiles.mdb")
    tree = tree_of(tmp_path / "profiles.mdb")
    assert tree.after(PROFILES, max(found[PROFILES])) is None
    assert tree.after(PROFILES, b"\xff" * 100_000) is None
    assert tree.after(EVENTS, b"") is None


# --- the file ------------------------------------------------------------------------------------------------------


def test_the_file_stays_mapped_as_long_as_the_tree_lives_and_no_longer(tmp_path: Path) -> None:
    path = tmp_path / "profiles.mdb"
    content = small_file(path)
    tree = tree_of(path)
    path.unlink()
    assert tree.get(RECORDS, bytes(4)) == content[RECORDS][bytes(4)]
    assert str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")
    del tree
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_a_file_of_another_length_than_the_manifest_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profiles.mdb"
    small_file(path)
    size = path.stat().st_size
    for said in (0, size - 1, size + 1, size + PAGE_BYTES, 1 << 63):
        with pytest.raises(SnapshotDamaged, match=f"has {size} bytes, not {said}$"):
            Tree(path, said, DATABASES)
    for stays in (0, 100, PAGE_BYTES, 2 * PAGE_BYTES - 1):
        path.write_bytes(bytes(stays))
        with pytest.raises(SnapshotDamaged):
            tree_of(path)
    with pytest.raises(FileNotFoundError):
        Tree(tmp_path / "none", size, DATABASES)


def other_version(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for page in (0, PAGE_BYTES):
        struct.pack_into("<I", content, page + PAGE.size + 4, 2)
    path.write_bytes(content)


def other_engine(path: Path) -> None:
    path.unlink()
    with lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 20, max_dbs=len(DATABASES), lib_version=1) as env:
        for name in DATABASES:
            env.open_db(name)


def duplicates(path: Path) -> None:
    path.unlink()
    write_file(path, [], dupsort=True)


def no_databases(path: Path) -> None:
    """The names are there, but as keys of plain values that look like databases."""
    path.unlink()
    env = lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 20, lib_version=LIB_VERSION)
    with env.begin(write=True) as txn:
        for name in DATABASES:
            txn.put(name, bytes(DATABASE_BYTES))
    env.close()


def nothing_in_it(path: Path) -> None:
    path.unlink()
    lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 20, lib_version=LIB_VERSION).close()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (other_version, FormatUnsupported),
        (other_engine, StoreError),
        (duplicates, FormatUnsupported),
        (no_databases, SnapshotDamaged),
        (nothing_in_it, SnapshotDamaged),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), SnapshotDamaged),
        (lambda path: path.write_bytes(b"\xff" * path.stat().st_size), SnapshotDamaged),
    ],
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, change: Callable[[Path], None], error: type[Exception]
) -> None:
    path = tmp_path / "profiles.mdb"
    small_file(path)
    change(path)
    with pytest.raises(error) as refused:
        tree_of(path)
    assert str(tmp_path) not in str(refused.value)


# --- damage --------------------------------------------------------------------------------------------------------


def looped(path: Path, depth: int) -> dict[bytes, dict[bytes, bytes]]:
    """A file whose branch page is the child of itself, for ever, under a database that says how deep it is."""
    found = write_file(path, [{PROFILES: {b"%0100d" % n: b"" for n in range(100)}}])
    content = bytearray(path.read_bytes())
    database = database_at(content, PROFILES)
    (number,) = struct.unpack_from("<Q", content, database + ROOT_AT)
    assert PAGE.unpack_from(content, number * PAGE_BYTES)[2] == BRANCH
    _, _, _, lower, _ = PAGE.unpack_from(content, number * PAGE_BYTES)
    for at in range(number * PAGE_BYTES + PAGE.size, number * PAGE_BYTES + lower, 2):
        (offset,) = struct.unpack_from("<H", content, at)
        struct.pack_into("<HHH", content, number * PAGE_BYTES + offset, number, 0, 0)
    struct.pack_into("<H", content, database + DEPTH_AT, depth)
    path.write_bytes(content)
    return found


@pytest.mark.parametrize("depth", [1, 2, 3, 31, 32])
def test_pages_that_lead_to_themselves_are_damage_and_end(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "profiles.mdb"
    found = looped(path, depth)
    tree = tree_of(path)
    for key in found[PROFILES]:
        with pytest.raises(SnapshotDamaged):
            tree.get(PROFILES, key)
        with pytest.raises(SnapshotDamaged):
            tree.after(PROFILES, key)
        with pytest.raises(SnapshotDamaged):
            tree.count(PROFILES, [(key, b"")])
    assert tree.get(RECORDS, bytes(4)) is None


def test_a_page_whose_keys_are_out_of_order_is_damage_and_leads_no_walk_in_circles(tmp_path: Path) -> None:
    path = tmp_path / "profiles.mdb"
    found = sorted(write_file(path, [{PROFILES: {b"%0100d" % n: b"" for n in range(100)}}])[PROFILES])
    content = bytearray(path.read_bytes())
    (root,) = struct.unpack_from("<Q", content, database_at(content, PROFILES) + ROOT_AT)
    second = root * PAGE_BYTES + struct.unpack_from("<H", content, root * PAGE_BYTES + PAGE.size + 2)[0]
    leaf = PAGE_BYTES * struct.unpack_from("<H", content, second)[0]
    first = leaf + struct.unpack_from("<H", content, leaf + PAGE.size)[0] + NODE_BYTES
    before = found.index(bytes(content[first : first + 100])) - 1
    content[first : first + 100] = b"!" * 100
    path.write_bytes(content)
    tree = tree_of(path)
    assert tree.after(PROFILES, found[before - 1]) == found[before]
    with pytest.raises(SnapshotDamaged):
        tree.after(PROFILES, found[before])


@pytest.mark.parametrize("depth", [33, 65535])
def test_a_tree_that_is_deeper_than_can_be_is_refused(tmp_path: Path, depth: int) -> None:
    looped(tmp_path / "profiles.mdb", depth)
    with pytest.raises(SnapshotDamaged, match="deep"):
        tree_of(tmp_path / "profiles.mdb")


def test_a_page_with_the_number_of_another_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "profiles.mdb"
    found = small_file(path)
    content = bytearray(path.read_bytes())
    (number,) = struct.unpack_from("<Q", content, database_at(content, IDENTIFIERS) + ROOT_AT)
    struct.pack_into("<Q", content, number * PAGE_BYTES, number - 1)
    path.write_bytes(content)
    tree = tree_of(path)
    for key in found[IDENTIFIERS]:
        with pytest.raises(SnapshotDamaged):
            tree.get(IDENTIFIERS, key)
    assert {key: tree.get(PROFILES, key) for key in found[PROFILES]} == found[PROFILES]


def test_a_reader_of_a_damaged_tree_names_the_snapshot(tmp_path: Path) -> None:
    shop = Workshop(tmp_path).model("SELECT i AS id FROM range(100) AS t(i)")
    shop.load()
    path = shop.current_folder() / "profiles.mdb"
    content = bytearray(path.read_bytes())
    struct.pack_into("<H", content, database_at(content, RECORDS) + DEPTH_AT, 33)
    path.write_bytes(content)
    with pytest.raises(SnapshotDamaged, match=rf"^snapshot {shop.current()}: "):
        Reader(shop.current_folder())


@pytest.mark.parametrize("how", ["flip_all", "cut_all", "push_all"])
def test_no_damage_takes_a_look_up_out_of_the_file_or_ends_the_process(tmp_path: Path, how: str) -> None:
    program = (
        "import json, pathlib, sys, fuzz_tree;"
        "target = fuzz_tree.Target(pathlib.Path(sys.argv[1]));"
        "getattr(fuzz_tree, sys.argv[2])(target);"
        "print(json.dumps(target.seen))"
    )
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program, str(tmp_path / "profiles.mdb"), how],
        env=environment() | {"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    seen = json.loads(done.stdout)
    assert min(seen["damaged"], seen["right"]) > 0
