"""A snapshot as the live layer sees it: what is known of a profile there, and what it takes to lay updates over it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from edgeprofile import snapshot
from edgeprofile.errors import SnapshotDamaged
from edgeprofile.history import EventsSchema
from edgeprofile.loader.merging import Fields, Row, time_of
from edgeprofile.loader.overlay import Erasure, Profile, View
from edgeprofile.reader import Reader
from edgeprofile.record import Schema


class Standing(NamedTuple):
    """What a profile is made of: its row, and what updates have said. Where there is neither, there is no profile."""

    row: Row | None
    said: Profile | None


NOTHING = Standing(None, None)


class Base:
    """The snapshot under a live layer. `updates` is the overlay's last change that is in it, and `refreshed_us` the
    time of update of rows without one of their own.

    Raises SnapshotDamaged. Its file is opened when it is first asked for.
    """

    def __init__(self, folder: Path, manifest: snapshot.Manifest) -> None:
        try:
            self.fields = Fields(msgspec.convert(manifest.schema, Schema))
            self.events_schema = msgspec.convert(manifest.events_schema, EventsSchema | None)
        except (msgspec.ValidationError, ValueError):
            raise SnapshotDamaged(f"snapshot {folder.name}: {snapshot.MANIFEST} is damaged") from None
        self.name = folder.name
        self.updates = manifest.updates
        self.refreshed_us = int(manifest.started_at * 1e6)
        self._folder = folder
        self._manifest = manifest
        self._reader: Reader | None = None
        self._seen: dict[bytes, tuple[bool, Row | None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def reader(self) -> Reader:
        if self._reader is None:
            self._reader = Reader(self._folder, self._manifest)
        return self._reader

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def forget(self) -> None:
        """Lets go of the rows that were read since the last time."""
        self._seen.clear()

    def standing(self, primary: bytes, view: View, newer: bytes | None) -> Standing:
        """What a profile is made of by now, its row being `newer` where a delta refresh brought one, which is empty
        where it said that there is none any more. Raises RecordDamaged and FormatUnsupported."""
        erasure = view.erasure(primary)
        if erasure is not None and not erasure.restored:
            return NOTHING
        known, row = (False, None) if self.is_void(erasure) else self._look_up(primary, newer)
        said = view.profile(primary)
        if said is not None and not known:
            # Of a profile that this snapshot evicted, what was said up to then went with it.
            said = said.since(self.updates)
        return Standing(row, said)

    def is_void(self, erasure: Erasure | None) -> bool:
        """Whether what the snapshot has of a profile was erased since, and comes back with a later one at most."""
        return erasure is not None and erasure.sequence > self.updates

    def row_of(self, primary: bytes) -> bytes | memoryview | None:
        """The record of a profile's row alone, which is empty for one that only updates made."""
        record = self.reader.original_of(primary)
        return self.reader.record_of(primary) if record is None else record

    def _look_up(self, primary: bytes, newer: bytes | None) -> tuple[bool, Row | None]:
        """Whether the snapshot knows the profile, and its row, which one that only updates made does not have."""
        seen = self._seen.get(primary)
        if seen is None:
            found = self.row_of(primary)
            record = found if newer is None else newer
            row = Row(self.fields.shape.split(record, primary), time_of(record, self.refreshed_us)) if record else None
            seen = self._seen[primary] = (found is not None, row)
        return seen
