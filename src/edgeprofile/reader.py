"""A published snapshot, opened for reading: all that workers and tools know of LMDB.

Three databases in one file:

    records      segment number (4 bytes, big-endian)         → many records, one behind the other
    profiles     primary id                                   → where its record is: PLACE
    identifiers  namespace number (2 bytes, big-endian) and   → the primary ids that have it, newest first:
                 the normalized value                            record.index_entry

Records stand together in segments because a page of LMDB holds a whole number of small values: an 800-byte
record on its own would waste a fifth of the file, one of 2.1 KB half of it.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import lmdb
import msgspec

from edgeprofile import snapshot
from edgeprofile._identifiers import ids_of
from edgeprofile._record import check
from edgeprofile._tree import Tree
from edgeprofile.errors import FormatUnsupported, RecordDamaged, SnapshotDamaged, StoreError
from edgeprofile.record import Schema, normalize

LIB_VERSION = 0  # LMDB's file format 0.9
KEY_BYTES_MAX = 511
DATABASES = RECORDS, PROFILES, IDENTIFIERS = b"records", b"profiles", b"identifiers"
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
        snapshot.check_size(folder, self.manifest)
        try:
            self.schema = msgspec.convert(self.manifest.schema, Schema)
            # What compiled lookups read: the same file, in a map of its own.
            self.tree = Tree(folder / snapshot.PROFILES, self.manifest.file_bytes, DATABASES)
            self.env = lmdb.open(
                str(folder / snapshot.PROFILES),
                subdir=False,
                readonly=True,
                lock=False,
                max_dbs=3,
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
        self.records, self.profiles, self.identifiers = (self.env.open_db(name, create=False) for name in DATABASES)
        self.txn = self.env.begin(buffers=True)
        count = self.txn.stat(self.profiles)["entries"]
        if count != self.manifest.profiles:
            raise SnapshotDamaged(f"snapshot {self.name} has {count} profiles, not {self.manifest.profiles}")
        for number in range(self.manifest.segments):
            segment = self.txn.get(SEGMENT_KEY.pack(number), db=self.records)
            if segment is None:
                raise SnapshotDamaged(f"snapshot {self.name} lacks segment {number}")
            self.segments.append(segment)

    def record(self, primary: str) -> memoryview | None:
        """The bytes of a profile's record, unchecked; None where there is no such profile."""
        key = primary.encode()
        if not 0 < len(key) <= KEY_BYTES_MAX:
            return None
        place = self.txn.get(key, db=self.profiles)
        return None if place is None else self._at(place)

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
        found = self.txn.get(key, db=self.identifiers) if len(key) <= KEY_BYTES_MAX else None
        return [] if found is None else [primary.decode() for primary in ids_of(key, found)]

    def ids(self) -> Iterator[str]:
        """All primary ids in their binary order."""
        with self.txn.cursor(self.profiles) as cursor:
            for key, _ in cursor:
                yield bytes(key).decode()

    def check_samples(self) -> None:
        """Reads the first and the last profile and up to 256 between. Raises where one is damaged."""
        starts = [bytes([i]) for i in range(256)]
        try:
            with self.txn.cursor(self.profiles) as cursor:
                moves: list[Callable[[], bool]] = [cursor.first, cursor.last]
                for move in moves + [partial(cursor.set_range, start) for start in starts]:
                    if move():
                        key = bytes(cursor.key())
                        check(self._at(cursor.value()), key)
                        if self.tree.get(PROFILES, key) != bytes(cursor.value()):
                            raise SnapshotDamaged(f"snapshot {self.name}: a lookup would miss a profile")
        except lmdb.Error as error:
            raise SnapshotDamaged(f"snapshot {self.name}: {type(error).__name__}") from None

    def check_records(self) -> int:
        """Checks every record against its checksum and every identifier against the profiles; returns the number."""
        checked = 0
        with self.txn.cursor(self.profiles) as cursor:
            for key, place in cursor:
                check(self._at(place), bytes(key))
                checked += 1
        with self.txn.cursor(self.identifiers) as cursor:
            for key, found in cursor:
                if any(self.record(primary.decode()) is None for primary in ids_of(bytes(key), found)):
                    raise SnapshotDamaged(f"snapshot {self.name}: an identifier leads to no profile")
        return checked

    def close(self) -> None:
        """Lets go of the file. Nothing that came from the reader may be used afterwards."""
        self.segments.clear()
        self.txn.abort()
        self.env.close()
        del self.tree


def open_current(home: Path) -> Reader:
    """The current snapshot of a workspace. Raises NoSnapshot, SnapshotDamaged or FormatUnsupported."""
    return Reader(snapshot.folder(home, snapshot.current(home)))


def verify(folder: Path) -> snapshot.Manifest:
    """Reads everything: the file's hash, every record and every identifier. Raises StoreError at the first damage."""
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


if __name__ == "__main__":
    # The loader runs this in a process of its own before it publishes: what a worker is to open, another opened first.
    opened = Reader(Path(sys.argv[1]), msgspec.json.decode(sys.stdin.buffer.read(), type=snapshot.Manifest))
    opened.check_samples()
    opened.close()
