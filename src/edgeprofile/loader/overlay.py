"""The overlay, in updates.mdb: what updates have said of profiles, which every refresh lays over the model's rows.

Five databases:

    meta         `format`, `sequence` (number of the last change), `secret` (for the hashes of erased ids)
    profiles     primary id                                                → Profile, in MessagePack
    events       hash of the primary id, sequence, number in the change    → changes.Event, in MessagePack
    changes      sequence, number in the change                            → primary id of a profile that it touched
    erased       keyed hash of the primary id                              → Erasure, in MessagePack

Numbers in keys are big-endian. A change is one batch of updates, or the like. Sequences begin with the time at which
the overlay was made, so that one that was lost is never taken for the one that comes after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lmdb
import msgspec

from edgeprofile import snapshot
from edgeprofile.errors import FormatUnsupported, StoreError
from edgeprofile.loader.changes import Event
from edgeprofile.loader.writer import MAP_BYTES, is_cut_short
from edgeprofile.locks import INTERVAL_S, TRIES
from edgeprofile.reader import LIB_VERSION

FORMAT = b"1"
DATABASES = (b"meta", b"profiles", b"events", b"changes", b"erased")
HASH_BYTES = 16
DUE_AT_SHARE = 0.9
PRUNED_AT_ONCE = 10_000
_SEQUENCE = struct.Struct(">Q")
_CHANGE = struct.Struct(">QI")


class Profile(msgspec.Struct, array_like=True, gc=False):
    """What updates have said of a profile: by the name of each attribute, in which change it was set, and its JSON.

    `sequence` is that of the last change, `events` that of the last one with events, or 0.
    """

    sequence: int
    updated_us: int
    events: int
    attributes: dict[str, tuple[int, bytes]]

    def since(self, sequence: int) -> Profile | None:
        """What is left of it where all that was said up to a change is void; None where that is nothing."""
        if self.sequence <= sequence:
            return None
        attributes = {name: said for name, said in self.attributes.items() if said[0] > sequence}
        return Profile(self.sequence, self.updated_us, self.events if self.events > sequence else 0, attributes)


class Erasure(msgspec.Struct, array_like=True, gc=False):
    """When a profile was erased, and by which change. One that was restored comes back with a later snapshot."""

    time_us: int
    sequence: int
    restored: bool = False

    def due_at(self, within_s: float) -> float:
        """When to see to it, in seconds since 1970, so that after `within_s` it is done; the rest of that is for the
        refresh which does it."""
        return self.time_us / 1e6 + within_s * DUE_AT_SHARE


_encoder = msgspec.msgpack.Encoder()
_profiles = msgspec.msgpack.Decoder(Profile)
_events = msgspec.msgpack.Decoder(Event)
_erasures = msgspec.msgpack.Decoder(Erasure)


class View:
    """The overlay as of one moment. Ids are in UTF-8."""

    def __init__(self, overlay: Overlay, *, write: bool = False) -> None:
        self._overlay = overlay
        self._meta, self._profiles, self._events, self._changes, self._erased = overlay.databases
        self._txn = overlay.env.begin(write=write)
        (self.sequence,) = _SEQUENCE.unpack(self._txn.get(b"sequence", b"", db=self._meta))
        self.secret = self._txn.get(b"secret", b"", db=self._meta).hex()
        self._has_erased = self._txn.stat(self._erased)["entries"] > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._txn.abort()

    def profile(self, primary: bytes) -> Profile | None:
        """What updates have said of a profile."""
        found = self._txn.get(primary, db=self._profiles)
        return None if found is None else _profiles.decode(found)

    def profiles(self) -> Iterator[tuple[bytes, Profile]]:
        """All of them, by the binary order of ids."""
        with self._txn.cursor(self._profiles) as cursor:
            for primary, value in cursor:
                yield primary, _profiles.decode(value)

    def events(self, primary: bytes, after: int) -> list[Event]:
        """The events of a profile that came with a later change than `after`, as they came."""
        prefix = _hash(primary)
        found: list[Event] = []
        with self._txn.cursor(self._events) as cursor:
            good = cursor.set_range(prefix + _SEQUENCE.pack(after + 1))
            while good and cursor.key().startswith(prefix):
                found.append(_events.decode(cursor.value()))
                good = cursor.next()
        return found

    def has_events(self, primary: bytes, upto: int) -> bool:
        """Whether a profile has events that came with a change up to one."""
        prefix = _hash(primary)
        with self._txn.cursor(self._events) as cursor:
            return bool(cursor.set_range(prefix) and cursor.key() < prefix + _SEQUENCE.pack(upto + 1))

    def erasure(self, primary: bytes) -> Erasure | None:
        """Whether a profile was erased, be it restored since."""
        if not self._has_erased:
            return None
        found = self._txn.get(self.erased_key(primary), db=self._erased)
        return None if found is None else _erasures.decode(found)

    def erasures(self) -> list[tuple[bytes, Erasure]]:
        """All of them, by the keyed hashes of their ids."""
        with self._txn.cursor(self._erased) as cursor:
            return [(key, _erasures.decode(value)) for key, value in cursor]

    def touched_since(self, sequence: int) -> list[bytes]:
        """The profiles that later changes touched, by the binary order of their ids."""
        found: set[bytes] = set()
        with self._txn.cursor(self._changes) as cursor:
            if cursor.set_range(_SEQUENCE.pack(sequence + 1)):
                found.update(cursor.iternext(keys=False, values=True))
        return sorted(found)

    def erased_key(self, primary: bytes) -> bytes:
        """Under what an erased profile is noted."""
        # In DuckDB's words: left(sha256(secret || id), 32), see loader.build.
        return hashlib.sha256(self.secret.encode() + primary).digest()[:HASH_BYTES]


class Change(View):
    """One change: all of it is written, or where the context is left by an error, nothing."""

    def __init__(self, overlay: Overlay, *, after: int = 0) -> None:
        super().__init__(overlay, write=True)
        self.before = self.sequence
        self.sequence = max(self.sequence, after) + 1
        self._touched: set[bytes] = set()
        self._numbered = 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._txn.abort()
            return
        if self._touched:
            self._txn.put(b"sequence", _SEQUENCE.pack(self.sequence), db=self._meta)
            touched = [(_CHANGE.pack(self.sequence, n), primary) for n, primary in enumerate(sorted(self._touched))]
            _put(self._txn, self._changes, touched)
        self._txn.commit()

    def put_profiles(self, profiles: dict[bytes, Profile]) -> None:
        """Sets what updates have said of these profiles."""
        self._touched.update(profiles)
        _put(self._txn, self._profiles, sorted((key, encoded(each)) for key, each in profiles.items()))

    def add_event(self, primary: bytes, event: Event) -> None:
        """Adds an event of a profile's, which is put too."""
        key = _hash(primary) + _CHANGE.pack(self.sequence, self._numbered)
        self._txn.put(key, _encoder.encode(event), db=self._events)
        self._numbered += 1

    def erase(self, primary: bytes, time_us: int) -> None:
        """Forgets all that updates have said of a profile, and notes that it is to be forgotten elsewhere too."""
        self._txn.delete(primary, db=self._profiles)
        self._delete_events(primary, self.sequence)
        self._txn.put(self.erased_key(primary), _encoder.encode(Erasure(time_us, self.sequence)), db=self._erased)
        self._touched.add(primary)

    def drop(self, primary: bytes, upto: int) -> None:
        """Forgets what was said of a profile up to a change."""
        profile = self.profile(primary)
        left = None if profile is None else profile.since(upto)
        self._delete_events(primary, upto)
        if left is None:
            self._txn.delete(primary, db=self._profiles)
        else:
            self._txn.put(primary, encoded(left), db=self._profiles)
        self._touched.add(primary)

    def restore(self, primary: bytes) -> bool:
        """Lets an erased profile come back with the next snapshot; False where it is none."""
        erasure = self.erasure(primary)
        if erasure is None or erasure.restored:
            return False
        self._put_restored(self.erased_key(primary), erasure)
        return True

    def restore_all(self) -> int:
        """Lets all of them come back; returns how many there are."""
        erased = [(key, erasure) for key, erasure in self.erasures() if not erasure.restored]
        for key, erasure in erased:
            self._put_restored(key, erasure)
        return len(erased)

    def _put_restored(self, key: bytes, erasure: Erasure) -> None:
        restored = Erasure(erasure.time_us, erasure.sequence, True)
        self._txn.put(key, _encoder.encode(restored), db=self._erased)

    def forget_restored(self, upto: int) -> None:
        """Forgets the erasures up to a change that were restored: no snapshot is left that they still matter to."""
        for key, erasure in self.erasures():
            if erasure.restored and erasure.sequence <= upto:
                self._txn.delete(key, db=self._erased)

    def forget_changes(self, upto: int) -> bool:
        """Forgets what changes up to one have touched; so few that it takes no time. Returns whether there are more."""
        with self._txn.cursor(self._changes) as cursor:
            cursor.first()
            for _ in range(PRUNED_AT_ONCE):
                key = cursor.key()  # none behind the last
                if not key or _CHANGE.unpack(key)[0] > upto:
                    return False
                cursor.delete()
        return True

    def _delete_events(self, primary: bytes, upto: int) -> None:
        prefix = _hash(primary)
        last = prefix + _SEQUENCE.pack(upto + 1)
        with self._txn.cursor(self._events) as cursor:
            cursor.set_range(prefix)
            while b"" < cursor.key() < last:
                cursor.delete()


class Overlay:
    """A workspace's overlay, or a copy of it. A process has it open once at most.

    Raises FormatUnsupported, or StoreError where it is no overlay or another container's. A write raises
    writer.WriterError or OSError.
    """

    def __init__(self, path: Path, *, is_copy: bool = False) -> None:
        self.path = path
        if is_cut_short(path):
            raise StoreError(f"{path.name} is cut short", hint=_DAMAGED)
        try:
            self.env = _opened(path, is_copy=is_copy)
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError):
            raise StoreError(f"{path.name} is damaged", hint=_DAMAGED) from None
        try:
            # Who was killed while reading would keep pages from being used again.
            self.env.reader_check()
            if not is_copy:
                self._make()
            self.databases: list[Any] = [self.env.open_db(name, create=False) for name in DATABASES]
            with self.env.begin() as txn:
                found = txn.get(b"format", db=self.databases[0])
            if found != FORMAT:
                raise FormatUnsupported(f"{path.name} has a format that is not known to this build")
        except lmdb.NotFoundError:
            self.env.close()
            raise StoreError(f"{path.name} is no overlay", hint=_DAMAGED) from None
        except BaseException:
            self.env.close()
            raise

    def _make(self) -> None:
        """A new overlay is made as a whole."""
        with self.env.begin() as txn:
            is_new = txn.stat()["entries"] == 0
        if is_new:
            with self.env.begin(write=True) as txn:
                meta, *_ = (self.env.open_db(name, txn) for name in DATABASES)
                txn.put(b"sequence", _SEQUENCE.pack(time.time_ns() // 1000), db=meta)
                txn.put(b"secret", secrets.token_bytes(32), db=meta)
                txn.put(b"format", FORMAT, db=meta)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.env.close()

    def view(self) -> View:
        """To read from. It must not be kept for long: what changes meanwhile needs room of its own."""
        return View(self)

    def change(self, *, after: int = 0) -> Change:
        """To write to, as one change, whose sequence is above `after` too."""
        return Change(self, after=after)

    def forget(self, upto: int) -> None:
        """Forgets what no snapshot needs that has all changes up to one."""
        more = True
        while more:
            with self.change() as change:
                more = change.forget_changes(upto)
        with self.change() as change:
            change.forget_restored(upto)

    def copy(self, to: Path) -> None:
        """Copies it as of now, without its free pages."""
        to.unlink(missing_ok=True)
        self.env.copy(str(to), compact=True)


def _opened(path: Path, *, is_copy: bool) -> lmdb.Environment:
    """LMDB knows its readers by their pids, and takes no two alike: in another container somebody may have ours."""
    for _ in range(TRIES):
        with contextlib.suppress(lmdb.LockError):
            return lmdb.open(
                str(path),
                subdir=False,
                lock=not is_copy,
                readonly=is_copy,
                mode=0o600,
                max_dbs=len(DATABASES),
                map_size=os.stat(path).st_size if is_copy else MAP_BYTES,
                lib_version=LIB_VERSION,
            )
        time.sleep(INTERVAL_S)
    raise StoreError(
        f"{path.name} is open in another container, by a process of this one's number",
        hint="run commands in the watcher's container, or let this one have its PID namespace",
    )


def open_overlay(home: Path) -> Overlay:
    """A workspace's overlay, which is made where there is none."""
    snapshot.make_folder(home.parent)
    snapshot.make_folder(home)
    return Overlay(home / snapshot.UPDATES)


def has_overlay(home: Path) -> bool:
    """Whether a workspace ever had an update."""
    return (home / snapshot.UPDATES).exists()


_DAMAGED = "put back a copy of it; without the file, all updates so far are forgotten"


def encoded(profile: Profile) -> bytes:
    """What was said of a profile as it is kept."""
    return _encoder.encode(profile)


def _hash(primary: bytes) -> bytes:
    return hashlib.blake2b(primary, digest_size=HASH_BYTES).digest()


def _put(txn: lmdb.Transaction, database: Any, entries: Iterable[tuple[bytes, bytes]]) -> None:
    with txn.cursor(database) as cursor:
        cursor.putmulti(entries)
