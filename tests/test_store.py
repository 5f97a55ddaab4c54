"""An open snapshot asked for many profiles: the next ones in the order of ids, and all that share a value."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from workshop import Workshop

from edgeprofile import reader, snapshot
from edgeprofile._store import Store
from edgeprofile.api.dialect import lowered
from edgeprofile.errors import ProfileNotFound, RecordDamaged, SnapshotDamaged, UnknownNamespace

# Ids of a few lengths, over several pages of the tree.
SQL = """
    SELECT 'p' || repeat(chr(97 + (i % 3)::INTEGER), (i % 40)::INTEGER) || i AS id, 'Home ' || i % 3 AS home,
           'É' || i AS name, TIMESTAMP '2025-01-01' + INTERVAL (i) HOUR AS updated_at
    FROM range(2000) AS made(i)
"""
IDENTIFIERS = [{"column": "home", "unique": False, "normalize": "lower"}, {"column": "name", "normalize": "lower"}]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    shop = Workshop(tmp_path_factory.mktemp("homes"))
    shop.model(SQL, identifiers=IDENTIFIERS, updated_at="updated_at").load()
    return shop


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Store]:
    found = reader.Reader(folder)
    try:
        yield Store(found)
    finally:
        found.close()


@pytest.fixture
def store(homes: Workshop) -> Iterator[Store]:
    with opened(homes.current_folder()) as found:
        yield found


def number(primary: bytes) -> int:
    return int(primary.lstrip(b"pabc"))


# --- the order of ids ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 100, 1999, 2000, 10_000])
def test_pages_of_ids_have_each_once_in_binary_order(store: Store, count: int) -> None:
    walked: list[bytes] = []
    while page := store.ids_after(walked[-1] if walked else None, count):
        assert len(page) == min(count, 2000 - len(walked))
        walked += page
    assert walked == [primary.encode() for primary in store.reader.ids()]


def test_ids_go_on_behind_one_that_is_not_there(store: Store) -> None:
    every = store.ids_after(None, 2000)
    for place, primary in enumerate(every):
        assert store.ids_after(primary + b"\0", 1) == every[place + 1 : place + 2]
        assert store.ids_after(primary[:-1] + bytes([primary[-1] - 1]) + b"\xff" * 600, 1) == [primary]
    assert store.ids_after(b"", 1) == every[:1]
    assert store.ids_after(b"\xff", 5) == store.ids_after(None, 0) == []


# --- sharing a value -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["home 1", "HOME 1"])
def test_all_that_share_a_value_are_found_newest_first(store: Store, value: str) -> None:
    expected = [n for n in range(1999, -1, -1) if n % 3 == 1]
    for count in (1, 2, 666, 667, 5000):
        found = store.primaries_of(b"home", value.encode(), lowered, count)
        assert [number(primary) for primary in found] == expected[:count]
    assert [number(each) for each in store.primaries_of(b"name", "é7".encode(), lowered, 9)] == [7]


def test_the_primary_namespace_gives_the_value_itself(store: Store) -> None:
    assert store.primaries_of(b"id", b"nobody", lowered, 5) == [b"nobody"]


def test_a_value_or_a_namespace_that_is_not_there_is_said_to_be_so(store: Store) -> None:
    with pytest.raises(ProfileNotFound):
        store.primaries_of(b"home", b"home 3", lowered, 5)
    with pytest.raises(UnknownNamespace) as refused:
        store.primaries_of(b"email", b"home 1", lowered, 5)
    assert refused.value.members["valid"] == ["id", "home", "name"]


# --- damage --------------------------------------------------------------------------------------------------------


def test_damage_never_gives_an_id_that_is_none(homes: Workshop, tmp_path: Path) -> None:
    chance = random.Random(8)
    folder = tmp_path / homes.current_folder().name
    folder.mkdir()
    for name in (snapshot.MANIFEST, snapshot.PROFILES):
        (folder / name).write_bytes((homes.current_folder() / name).read_bytes())
    content = (folder / snapshot.PROFILES).read_bytes()
    seen = {"right": 0, "damaged": 0, "other": 0}
    file = os.open(folder / snapshot.PROFILES, os.O_RDWR)
    with opened(folder) as store:
        middle = store.ids_after(None, 500)[-1]
        looks = [
            partial(store.primaries_of, b"home", b"home 0", lowered, 5000),
            partial(store.ids_after, middle, 200),
        ]
        shared, behind = (look() for look in looks)
        for _ in range(3000):
            at = chance.randrange(len(content))
            os.pwrite(file, bytes([content[at] ^ chance.randrange(1, 256)]), at)
            for look, expected in zip(looks, (shared, behind), strict=True):
                try:
                    found = look()
                except (RecordDamaged, SnapshotDamaged, ProfileNotFound):
                    seen["damaged"] += 1
                    continue
                seen["right" if found == expected else "other"] += 1
                # A key of the tree has no check of its own, but is in order; the record that it leads to has one.
                assert found == expected if expected is shared else found == sorted(set(found))
            os.pwrite(file, content[at : at + 1], at)
    os.close(file)
    assert min(seen.values()) > 0
