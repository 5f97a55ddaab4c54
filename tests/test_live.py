"""The live layer's reader beside a writer that never stops: what it finds is always of one transaction, and whole."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprofile._live import SEQUENCE_BYTES, Announcer, Live
from edgeprofile._record import check_of
from edgeprofile.errors import LiveDamaged
from edgeprofile.reader import LIB_VERSION, LIVE_DATABASES
from edgeprofile.snapshot import LIVE, SEQUENCE

PROFILES, IDENTIFIERS = LIVE_DATABASES[:2]
KEYS = 200
TRANSACTIONS = 100
READ_SECONDS_MAX = 60.0


class Writer:
    """What the loader does: transactions, each durable before it is announced."""

    def __init__(self, folder: Path, *, sync: bool = False) -> None:
        self.env = lmdb.open(
            str(folder / LIVE),
            subdir=False,
            lock=False,
            sync=sync,
            max_dbs=len(LIVE_DATABASES),
            map_size=1 << 30,
            lib_version=LIB_VERSION,
        )
        self.databases = {name: self.env.open_db(name) for name in LIVE_DATABASES}
        self.announcer = Announcer(folder / SEQUENCE)
        self.announce()

    def announce(self) -> None:
        self.announcer.announce(int(self.env.info()["last_txnid"]))

    def write(self, changes: dict[bytes, dict[bytes, bytes | None]], *, announced: bool = True) -> None:
        with self.env.begin(write=True) as txn:
            for name, values in changes.items():
                for key, value in values.items():
                    if value is None:
                        txn.delete(key, db=self.databases[name])
                    else:
                        txn.put(key, value, db=self.databases[name])
        if announced:
            self.announce()


def live_of(folder: Path) -> Live:
    return Live(folder / LIVE, folder / SEQUENCE, LIVE_DATABASES)


@contextlib.contextmanager
def both(folder: Path) -> Iterator[tuple[Writer, Live]]:
    writer = Writer(folder)
    try:
        yield writer, live_of(folder)
    finally:
        writer.env.close()


# --- what is read --------------------------------------------------------------------------------------------------

CHANGES = st.dictionaries(
    st.sampled_from(LIVE_DATABASES),
    st.dictionaries(
        st.binary(min_size=1, max_size=511) | st.sampled_from([b"a", b"b", b"c"]),
        st.none() | st.binary(max_size=20) | st.just(b"x" * 10_000),
        max_size=6,
    ),
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(CHANGES, max_size=8))
def test_each_announced_transaction_is_read_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, commits: list[dict[bytes, dict[bytes, bytes | None]]]
) -> None:
    expected: dict[tuple[bytes, bytes], bytes | None] = {}
    with both(tmp_path_factory.mktemp("live")) as (writer, live):
        for changes in commits:
            writer.write(changes, announced=False)
            for (name, key), value in expected.items():
                assert live.get(name, key) == value, "of a transaction that nobody announced"
            writer.announce()
            expected |= {(name, key): value for name, values in changes.items() for key, value in values.items()}
            for (name, key), value in expected.items():
                assert live.get(name, key) == value
            assert live.is_empty == (
                not any(value is not None for (name, _), value in expected.items() if name == PROFILES)
            )


def test_a_layer_without_profiles_is_empty(tmp_path: Path) -> None:
    with both(tmp_path) as (writer, live):
        assert live.is_empty
        writer.write({IDENTIFIERS: {b"a": b"1"}})
        assert live.is_empty
        writer.write({PROFILES: {b"a": b""}})
        assert not live.is_empty, "a tombstone hides a profile"


def test_the_file_may_grow_beneath_its_reader(tmp_path: Path) -> None:
    with both(tmp_path) as (writer, live):
        for number in range(40):
            writer.write({PROFILES: {b"%d" % number: os.urandom(100_000)}})
            assert len(live.get(PROFILES, b"%d" % number) or b"") == 100_000
        assert (tmp_path / LIVE).stat().st_size > 3_000_000


# --- beside a writer -----------------------------------------------------------------------------------------------


def sealed(key: bytes, number: int, size: int) -> bytes:
    """A value that tells a mixture of two from a whole one."""
    content = struct.pack("<Q", number) * size
    return struct.pack("<Q", check_of(number, key + content[:64])) + content


def opened(key: bytes, value: bytes | None) -> int:
    """The number in a value that is whole."""
    assert value is not None, "a key that is always there was missed"
    (number,) = struct.unpack_from("<Q", value, 8)
    assert value == sealed(key, number, (len(value) - 8) // 8)
    return int(number)


def write_on(folder: Path, stop: Any) -> None:
    """Changes everything in each transaction, as fast as it can, so that pages are taken up again at once."""
    writer = Writer(folder)
    number = 0
    while not stop.is_set():
        number += 1
        sizes = [1 + (key * 7 + number) % 90 for key in range(KEYS)]
        changes: dict[bytes, bytes | None] = {
            b"key-%d" % key: sealed(b"key-%d" % key, number, size) for key, size in enumerate(sizes)
        }
        extra = {b"more-%d-%d" % (number % 5, key): os.urandom(300) if number % 2 else None for key in range(50)}
        writer.write({PROFILES: changes | extra})


def test_no_reader_sees_half_a_transaction_or_one_of_the_past(tmp_path: Path) -> None:
    first = Writer(tmp_path)
    first.write({PROFILES: {b"key-%d" % key: sealed(b"key-%d" % key, 0, 3) for key in range(KEYS)}})
    first.env.close()
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=write_on, args=(tmp_path, stop))
    process.start()
    live = live_of(tmp_path)
    seen: list[int] = []
    faults: list[BaseException] = []

    def read(offset: int) -> None:
        try:
            last, until, key = 0, time.monotonic() + READ_SECONDS_MAX, offset
            while last < TRANSACTIONS and time.monotonic() < until:
                key = (key + 1) % KEYS
                number = opened(b"key-%d" % key, live.get(PROFILES, b"key-%d" % key))
                assert number >= last, "an older transaction came after a newer one"
                last = number
            seen.append(last)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=read, args=(offset,)) for offset in (0, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    process.join()

    assert not faults, faults
    assert min(seen) >= TRANSACTIONS, "the writer went on meanwhile"


def test_the_writers_end_leaves_what_it_announced(tmp_path: Path) -> None:
    with both(tmp_path) as (writer, live):
        writer.write({PROFILES: {b"a": b"1"}})
        writer.write({PROFILES: {b"a": b"2"}}, announced=False)
        assert live.get(PROFILES, b"a") == b"1"
    again = Writer(tmp_path)
    assert live.get(PROFILES, b"a") == b"2"
    again.env.close()


def test_an_announcement_that_the_power_took_is_made_up_for(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for number in range(9):
        writer.write({PROFILES: {b"a": b"%d" % number}})
    writer.env.close()
    for lost in (0, 1, 5):
        (tmp_path / SEQUENCE).write_bytes(struct.pack("<Q", lost).ljust(SEQUENCE_BYTES, b"\0"))
        assert live_of(tmp_path).get(PROFILES, b"a") == b"8"


# --- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 100, 4096, 8191])
def test_a_file_that_is_cut_short_is_told(tmp_path: Path, size: int) -> None:
    Writer(tmp_path).env.close()
    os.truncate(tmp_path / LIVE, size)
    with pytest.raises(LiveDamaged):
        live_of(tmp_path)


def test_a_sequence_that_is_cut_short_is_told(tmp_path: Path) -> None:
    Writer(tmp_path).env.close()
    os.truncate(tmp_path / SEQUENCE, 7)
    with pytest.raises(LiveDamaged):
        live_of(tmp_path)


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        live_of(tmp_path)


def test_a_cut_behind_the_readers_back_is_told_at_the_next_transaction(tmp_path: Path) -> None:
    with both(tmp_path) as (writer, live):
        writer.write({PROFILES: {b"%d" % number: b"x" * 1000 for number in range(100)}})
        assert live.get(PROFILES, b"1")
        os.truncate(tmp_path / LIVE, 16_384)
        writer.announce()
        writer.announcer.announce(live.transaction + 1)
        with pytest.raises(LiveDamaged):
            live.get(PROFILES, b"1")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 20), st.integers(1, 255))
def test_a_flipped_byte_yields_a_value_or_a_fault_and_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, at: int, bits: int
) -> None:
    folder = tmp_path_factory.mktemp("live")
    writer = Writer(folder)
    writer.write({PROFILES: {b"%d" % number: b"x" * (number * 40) for number in range(120)}})
    writer.env.close()
    content = bytearray((folder / LIVE).read_bytes())
    content[at % len(content)] ^= bits
    (folder / LIVE).write_bytes(content)
    with contextlib.suppress(LiveDamaged):
        live = live_of(folder)
        for number in range(120):
            with contextlib.suppress(LiveDamaged):
                live.get(PROFILES, b"%d" % number)
