"""A snapshot's file, written in key order: all that the loader knows of LMDB."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb

from edgeprofile.errors import DiskFull, StoreError
from edgeprofile.reader import DATABASES, LIB_VERSION, SEGMENT_KEY

# Address space, not memory or disk: the file grows as pages are written.
MAP_BYTES = 1 << 40
# A million bytes of primary ids are some 50,000 profiles that share one identifier; no caller reads more.
GROUP_BYTES_MAX = 1_000_000
DISK_FULL_BYTES = 1 << 20
# Of a meta page of LMDB's: bytes of a page, number of the last page, number of the transaction; see ext/tree.pyx.
META_AT = 16
_META = struct.Struct("<24xI92xQQ")

Entries = Sequence[tuple[bytes, bytes]]
# What a write raises, beside OSError; `code` is an errno, or one of LMDB's own.
WriterError = lmdb.Error


class Writer:
    """Appends segments of records with the profiles in them, identifiers, and segments of events with the histories
    that these complete, each in the order of keys.

    A key out of order is an error of LMDB's. Writes go through the file and not through a writable map, so that
    a full disk is an OSError or lmdb.Error here and never a SIGBUS. Nothing is durable before the file is synced.

    One transaction is written by a thread, most of it in the kernel, while the caller makes the next: what it ended in
    is raised by the call after it, and by `used_bytes` at last.
    """

    def __init__(self, path: Path) -> None:
        self.env = lmdb.open(
            str(path),
            subdir=False,
            lock=False,
            sync=False,
            metasync=False,
            max_dbs=len(DATABASES),
            map_size=MAP_BYTES,
            lib_version=LIB_VERSION,
        )
        self.records, self.profiles, self.identifiers, self.events, self.histories, self.originals = map(
            self.env.open_db, DATABASES
        )
        self.segments = self.event_segments = 0
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def add_segment(self, segment: bytes, entries: Entries, originals: Entries = ()) -> None:
        """One transaction: records, and the place in it of each profile, and of each row that has updates over it."""
        records = [(SEGMENT_KEY.pack(self.segments), segment)]
        self._add((self.records, records), (self.profiles, entries), (self.originals, originals))
        self.segments += 1

    def add_identifiers(self, entries: Entries) -> None:
        """One transaction of identifiers."""
        self._add((self.identifiers, entries))

    def add_events(self, segment: bytes, histories: Entries) -> None:
        """One transaction: blocks of events, if there are any, and the directories that are complete with them."""
        blocks = [(SEGMENT_KEY.pack(self.event_segments), segment)] if segment else []
        self._add((self.events, blocks), (self.histories, histories))
        self.event_segments += len(blocks)

    def _add(self, *added: tuple[Any, Entries]) -> None:
        self._finish()
        self._writing = self._thread.submit(_append, self.env, added)

    def _finish(self) -> None:
        """Waits for the transaction that is being written. No more than one is, so that memory stays bounded."""
        if self._writing is not None:
            self._writing.result()

    def used_bytes(self) -> int:
        """How many bytes of the file are in use, all that was added being written."""
        self._finish()
        return int((self.env.info()["last_pgno"] + 1) * self.env.stat()["psize"])

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # Also where the build fails: an open file would keep a full disk full.
        self._thread.shutdown()
        self.env.close()


def _append(env: lmdb.Environment, added: Sequence[tuple[Any, Entries]]) -> None:
    """Appends to each database. A key out of order, or there already, putmulti leaves out and does not count."""
    with env.begin(write=True) as txn:
        for database, entries in added:
            with txn.cursor(database) as cursor:
                _, count = cursor.putmulti(entries, append=True)
            if count != len(entries):
                raise lmdb.KeyExistsError("a key is out of order, or there twice")


def is_cut_short(path: Path) -> bool:
    """Whether a file of LMDB's lacks pages that it says it has, the first of which to be touched would end the process.

    An empty file, or none, lacks nothing: it is to be made.
    """
    try:
        with path.open("rb") as file:
            head = file.read(META_AT + _META.size)
            if not head:
                return False
            page_bytes: int = _META.unpack_from(head, META_AT)[0]
            file.seek(page_bytes)
            metas = [_META.unpack_from(each, META_AT) for each in (head, file.read(META_AT + _META.size))]
            pages: int = max(last_page for _, last_page, _ in metas) + 1
            return os.fstat(file.fileno()).st_size < pages * page_bytes
    except FileNotFoundError:
        return False
    except (struct.error, OverflowError):
        return True


def store_error(error: OSError | WriterError, folder: Path, what: str = "the snapshot") -> StoreError:
    """What a write to this folder ended in."""
    if _is_disk_full(error, folder):
        return DiskFull()
    number = _number(error)
    why = os.strerror(number) if number is not None and number > 0 else type(error).__name__
    return StoreError(f"{what} could not be written: {why}")


def _number(error: OSError | WriterError) -> int | None:
    return error.errno if isinstance(error, OSError) else getattr(error, "code", None)


def _is_disk_full(error: OSError | WriterError, folder: Path) -> bool:
    number = _number(error)
    if number == errno.EIO:  # which is what LMDB makes of a write that was cut short
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free < DISK_FULL_BYTES
    return number in (errno.ENOSPC, errno.EDQUOT)
