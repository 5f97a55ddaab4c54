"""A published snapshot, opened for reading: all that workers and tools know of LMDB.

Six databases in one file:

    records      segment number (4 bytes, big-endian)         → many records, one behind the other
    profiles     primary id                                   → where its record is: PLACE
    identifiers  namespace number (2 bytes, big-endian) and   → the primary ids that have it, newest first:
                 the normalized value                            record.index_entry
    events       segment number (4 bytes, big-endian)         → many blocks of events, one behind the other
    histories    primary id                                   → where its blocks are: history.py's directory
    originals    primary id of a profile over which updates   → where the record of its row alone is: PLACE;
                 were laid                                       empty for one that the model does not have

Records stand together in segments because a page of LMDB holds a whole number of small values: an 800-byte
record on its own would waste a fifth of the file, one of 2.1 KB half of it.
"""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import msgspec

from edgeprofile import snapshot
from edgeprofile._history import check_history
from edgeprofile._identifiers import ids_of
from edgeprofile._live import Live
from edgeprofile._record import check
from edgeprofile._tree import Tree
from edgeprofile.errors import FormatUnsupported, LiveDamaged, RecordDamaged, SnapshotDamaged, StoreError
from edgeprofile.history import EventsSchema
from edgeprofile.record import Schema, normalize

T = TypeVar("T")
LIB_VERSION = 0  # LMDB's file format 0.9
KEY_BYTES_MAX = 511
VERIFY_SECONDS_MAX = 600
DATABASES = RECORDS, PROFILES, IDENTIFIERS, EVENTS, HISTORIES, ORIGINALS = (
    b"records",
    b"profiles",
    b"identifiers",
    b"events",
    b"histories",
    b"originals",
)
# Of a live layer, see loader.live.
LIVE_DATABASES = LIVE_PROFILES, LIVE_IDENTIFIERS, LIVE_HISTORIES, LIVE_EVENTS, LIVE_META = (
    b"profiles",
    b"identifiers",
    b"histories",
    b"events",
    b"meta",
)
SEGMENT_KEY = struct.Struct(">I")
NAMESPACE_KEY = struct.Struct(">H")
PLACE = struct.Struct("<III")  # segment, offset, length


class Reader:
    """A snapshot. Opened without a lock and with one read transaction for life: the file cannot change.

    Raises SnapshotDamaged or FormatUnsupported where the file is not what its manifest says.
    """

    def __init__(self, folder: Path, manifest: snapshot.Manifest | None = None) -> None:
        self.manifest = manifest or snapshot.read_manifest(folder)
        self.name = folder.name
        self.segments: list[memoryview] = []
        self.event_segments: list[memoryview] = []
        snapshot.check_size(folder, self.manifest)
        try:
            self.schema = msgspec.convert(self.manifest.schema, Schema)
            self.events_schema = msgspec.convert(self.manifest.events_schema, EventsSchema | None)
            # What compiled lookups read: the same file, in a map of its own.
            self.tree = Tree(folder / snapshot.PROFILES, self.manifest.file_bytes, DATABASES)
            self.env = lmdb.open(
                str(folder / snapshot.PROFILES),
                subdir=False,
                readonly=True,
                lock=False,
                max_dbs=len(DATABASES),
                map_size=self.manifest.file_bytes,
                lib_version=LIB_VERSION,
            )
        except (lmdb.Error, msgspec.ValidationError, OSError) as error:
            raise SnapshotDamaged(f"snapshot {self.name} cannot be opened: {type(error).__name__}") from None
        except StoreError as error:
            raise type(error)(f"snapshot {self.name}: {error}") from None
        try:
            self._open_databases()
        except lmdb.Error as error:
            self.env.close()
            raise SnapshotDamaged(f"snapshot {self.name}: {type(error).__name__}") from None
        except SnapshotDamaged:
            self.close()
            raise

    def _open_databases(self) -> None:
        self.records, self.profiles, self.identifiers, self.events, self.histories, self.originals = (
            self.env.open_db(name, create=False) for name in DATABASES
        )
        self.txn = self.env.begin(buffers=True)
        manifest = self.manifest
        for what, database, expected in (
            ("profiles", self.profiles, manifest.profiles),
            ("profiles with events", self.histories, manifest.histories),
        ):
            count = self.txn.stat(database)["entries"]
            if count != expected:
                raise SnapshotDamaged(f"snapshot {self.name} has {count} {what}, not {expected}")
        self.segments += self._segments("segment", self.records, manifest.segments)
        self.event_segments += self._segments("segment of events", self.events, manifest.event_segments)

    def _segments(self, what: str, database: Any, count: int) -> Iterator[memoryview]:
        for number in range(count):
            segment = self.txn.get(SEGMENT_KEY.pack(number), db=database)
            if segment is None:
                raise SnapshotDamaged(f"snapshot {self.name} lacks {what} {number}")
            yield segment

    def record(self, primary: str) -> memoryview | None:
        """The bytes of a profile's record, unchecked; None where there is no such profile."""
        return self.record_of(primary.encode())

    def record_of(self, key: bytes) -> memoryview | None:
        """The same, by the id in UTF-8."""
        place = self.txn.get(key, db=self.profiles) if 0 < len(key) <= KEY_BYTES_MAX else None
        return None if place is None else self._at(place)

    def original_of(self, key: bytes) -> memoryview | None:
        """The record of a profile's row alone, where updates were laid over it: empty where there is no row."""
        place = self.txn.get(key, db=self.originals) if 0 < len(key) <= KEY_BYTES_MAX else None
        return self._at(place) if place else place

    def _at(self, place: memoryview) -> memoryview:
        try:
            segment, offset, length = PLACE.unpack(place)
            record: memoryview = self.segments[segment][offset : offset + length]
            return record
        except (struct.error, IndexError):
            raise RecordDamaged(f"snapshot {self.name}: a record's place is damaged") from None

    def primaries(self, namespace: str, value: str) -> list[str]:
        """The primary ids of the profiles that have an identifier, the most recently updated first."""
        number, how = next((n, s.normalize) for n, s in enumerate(self.schema.namespaces) if s.name == namespace)
        key = NAMESPACE_KEY.pack(number) + normalize(value, how).encode()
        return [primary.decode() for primary in self.primaries_of(key)]

    def primaries_of(self, key: bytes) -> list[bytes]:
        """The same, by the key of the index."""
        found = self.index_entry_of(key)
        return [] if found is None else ids_of(key, found)

    def index_entry_of(self, key: bytes) -> memoryview | None:
        """What stands in the index under a key, unchecked: see record.index_entry."""
        return self.txn.get(key, db=self.identifiers) if len(key) <= KEY_BYTES_MAX else None

    def directory(self, primary: str) -> memoryview | None:
        """Where a profile's events are (see history.py), unchecked; None where it has none."""
        key = primary.encode()
        return self.txn.get(key, db=self.histories) if 0 < len(key) <= KEY_BYTES_MAX else None

    def ids(self) -> Iterator[str]:
        """All primary ids in their binary order."""
        with self.txn.cursor(self.profiles) as cursor:
            for key, _ in cursor:
                yield bytes(key).decode()

    def check_samples(self) -> None:
        """Reads the first and the last profile and up to 256 between, with their events. Raises where one is bad."""
        starts = [bytes([i]) for i in range(256)]
        try:
            with self.txn.cursor(self.profiles) as cursor:
                moves: list[Callable[[], bool]] = [cursor.first, cursor.last]
                for move in moves + [partial(cursor.set_range, start) for start in starts]:
                    if move():
                        key = bytes(cursor.key())
                        check(self._at(cursor.value()), key)
                        directory = self.txn.get(key, db=self.histories)
                        if directory is not None:
                            check_history(key, directory, self.event_segments)
                        for database, value in ((PROFILES, cursor.value()), (HISTORIES, directory)):
                            if self.tree.get(database, key) != (None if value is None else bytes(value)):
                                raise SnapshotDamaged(f"snapshot {self.name}: a lookup would miss a profile")
        except lmdb.Error as error:
            raise SnapshotDamaged(f"snapshot {self.name}: {type(error).__name__}") from None

    def check_records(self) -> int:
        """Checks every record and history against its checksums, every identifier and history against the profiles.

        Returns the number of profiles.
        """
        checked = 0
        with self.txn.cursor(self.profiles) as cursor:
            for key, place in cursor:
                check(self._at(place), bytes(key))
                checked += 1
        with self.txn.cursor(self.identifiers) as cursor:
            for key, found in cursor:
                if any(self.record(primary.decode()) is None for primary in ids_of(bytes(key), found)):
                    raise SnapshotDamaged(f"snapshot {self.name}: an identifier leads to no profile")
        with self.txn.cursor(self.originals) as cursor:
            for key, place in cursor:
                if self.txn.get(key, db=self.profiles) is None:
                    raise SnapshotDamaged(f"snapshot {self.name}: updates belong to no profile")
                if place:
                    check(self._at(place), bytes(key))
        self._check_histories()
        return checked

    def _check_histories(self) -> None:
        """Together the histories are all that is in the segments of events, no more and no less."""
        events = events_bytes = 0
        with self.txn.cursor(self.histories) as cursor:
            for key, directory in cursor:
                if self.txn.get(key, db=self.profiles) is None:
                    raise SnapshotDamaged(f"snapshot {self.name}: events belong to no profile")
                count, size = check_history(bytes(key), directory, self.event_segments)
                events += count
                events_bytes += size
        if events != self.manifest.events or events_bytes != sum(map(len, self.event_segments)):
            raise SnapshotDamaged(f"snapshot {self.name} has {events} events, not {self.manifest.events}")

    def close(self) -> None:
        """Lets go of the file. Nothing that came from the reader may be used afterwards."""
        self.segments.clear()
        self.event_segments.clear()
        self.txn.abort()
        self.env.close()
        del self.tree


def read_schema(content: bytes) -> Schema:
    """A schema as a live layer has it. Raises LiveDamaged."""
    return _decoded(content, Schema)


def read_events_schema(content: bytes) -> EventsSchema:
    """A schema of events as a live layer has it. Raises LiveDamaged."""
    return _decoded(content, EventsSchema)


def _decoded(content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise LiveDamaged("a schema of the live layer is damaged") from None


def live_profiles(folder: Path) -> int:
    """How many profiles changed since a snapshot, new ones and those that are gone included. Raises LiveDamaged."""
    try:
        live = Live(folder / snapshot.LIVE, folder / snapshot.SEQUENCE, LIVE_DATABASES)
    except OSError:
        return 0
    return live.entries(LIVE_PROFILES)


def open_current(home: Path) -> Reader:
    """The current snapshot of a workspace. Raises NoSnapshot, SnapshotDamaged or FormatUnsupported."""
    return Reader(snapshot.folder(home, snapshot.current(home)))


def verify(folder: Path) -> snapshot.Manifest:
    """Reads everything: the file's hash, every record, identifier and event. Raises StoreError at the first damage."""
    manifest = snapshot.read_manifest(folder)
    snapshot.check_hash(folder, manifest)
    reader = Reader(folder, manifest)
    try:
        reader.check_records()
    except (UnicodeDecodeError, FormatUnsupported) as error:
        raise SnapshotDamaged(f"snapshot {folder.name}: {error}") from None
    finally:
        reader.close()
    return manifest


@contextlib.contextmanager
def reading_back(folder: Path) -> Iterator[Callable[[Path, snapshot.Manifest], None]]:
    """What opens and samples a build's file in a process of its own, as a worker will: a fault there must not end this
    one. The process starts at once, so that it is ready when the file is, and opens nothing before it is called.

    The call raises SnapshotDamaged.
    """
    # Without the current folder on the path, where a file of a customer's may be named like a module.
    command, pipe = [sys.executable, "-P", "-m", "edgeprofile.reader", str(folder)], subprocess.PIPE

    def read_back(_: Path, manifest: snapshot.Manifest) -> None:
        try:
            complaints = process.communicate(msgspec.json.encode(manifest), VERIFY_SECONDS_MAX)[1]
        except subprocess.TimeoutExpired:
            raise SnapshotDamaged(f"the snapshot could not be read back within {VERIFY_SECONDS_MAX} s") from None
        if process.returncode != 0:
            why = complaints.decode(errors="replace").strip().rsplit("\n", 1)[-1][:200]
            raise SnapshotDamaged(f"the snapshot that was built cannot be read back: {why}")

    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            yield read_back
        finally:
            process.kill()


if __name__ == "__main__":
    # See reading_back: what a worker is to open, another opened first.
    opened = Reader(Path(sys.argv[1]), msgspec.json.decode(sys.stdin.buffer.read(), type=snapshot.Manifest))
    opened.check_samples()
    opened.close()
