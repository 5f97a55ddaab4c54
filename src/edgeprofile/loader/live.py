"""The live layer, in a snapshot's live.mdb: whole profiles, entries of the index and histories that changed since.

Five databases, which workers read beside this one writer (see ext/live.pyx), and `rows`, which is the loader's alone:

    meta         `applied` (the overlay's last change that is in here), `block` (number of the next block of events),
                 `watermark` (behind which a delta refresh looks on, in microseconds, once there was one),
                 `generation:<number>` (JSON of record.Schema), `events_schema` (JSON of history.EventsSchema)
    profiles     primary id         → number of a generation (4 bytes, little-endian) and a record of its schema;
                                      empty where there is no such profile any more
    identifiers  as in a snapshot   → record.index_entry of all that have it now; empty where nobody has it any more
    histories    primary id         → directory of the whole history, whose blocks of the live layer are marked LIVE;
                                      empty where there are no events any more
    events       number of a block  → the block
    rows         primary id         → record of the row alone, as a delta refresh brought it; empty where it is gone

Generation 0 is the snapshot's own schema; each one after it has more attributes, as `events_schema` has parameters.
A profile is computed anew from the snapshot and the overlay whenever a change touched it, so that to do it again
changes nothing. What this holds of a profile equals what the next snapshot will hold.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import math
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

import lmdb
import msgspec

from edgeprofile import history, snapshot
from edgeprofile._identifiers import ids_of
from edgeprofile._live import Announcer
from edgeprofile._record import check_of
from edgeprofile.errors import FormatUnsupported, LiveDamaged, RecordDamaged, SnapshotDamaged
from edgeprofile.history import LIVE, WITHOUT_MODEL, Block, EventsSchema
from edgeprofile.loader.base import Base, Standing
from edgeprofile.loader.changes import Delta, Event
from edgeprofile.loader.merging import Fields, Merged, Row, Values, merge, time_of
from edgeprofile.loader.overlay import Profile, View
from edgeprofile.loader.weave import EventFields, number_of, weave
from edgeprofile.loader.writer import GROUP_BYTES_MAX, is_cut_short
from edgeprofile.reader import LIB_VERSION, LIVE_DATABASES
from edgeprofile.record import Schema, index_entry

MAP_BYTES = 1 << 36  # address space: as much as ext/live.pyx maps
ENTRY_HEAD_BYTES = 6  # of an entry of the index: its check, and the length of the first id
_GENERATION = struct.Struct("<I")
_NUMBER = struct.Struct(">Q")
_TIME = struct.Struct(">q")
_ALL_DATABASES = (b"rows", *LIVE_DATABASES)
_DAMAGED = "run edgeprofile load, which makes it anew"

log = logging.getLogger("edgeprofile")

Rank = tuple[float, bytes]
Standings = list[tuple[bytes, Standing]]
# What the profiles that were touched are made of by now, in binary order; and of how many the rows are damaged.
Touched = tuple[Standings, int]


class Live:
    """The live layer of a snapshot, open for writing, made where there is none. Its writer holds snapshot.updating.

    Raises LiveDamaged. What a write raises is writer.WriterError or OSError; the layer is to be opened anew then.
    """

    def __init__(self, folder: Path, base: Base) -> None:
        self.base = base
        if is_cut_short(folder / snapshot.LIVE):
            raise LiveDamaged(f"the live layer of snapshot {base.name} is cut short", hint=_DAMAGED)
        try:
            self._env = lmdb.open(
                str(folder / snapshot.LIVE),
                subdir=False,
                lock=False,
                mode=0o600,
                max_dbs=len(_ALL_DATABASES),
                map_size=MAP_BYTES,
                lib_version=LIB_VERSION,
            )
        except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError):
            raise LiveDamaged(f"the live layer of snapshot {base.name} is damaged", hint=_DAMAGED) from None
        try:
            self._open(base)
            self._announcer = Announcer(folder / snapshot.SEQUENCE)
            self._announce()
        except (lmdb.NotFoundError, lmdb.CorruptedError, struct.error, msgspec.MsgspecError):
            self._env.close()
            raise LiveDamaged(f"the live layer of snapshot {base.name} is damaged", hint=_DAMAGED) from None
        except BaseException:
            self._env.close()
            raise

    def _open(self, base: Base) -> None:
        with self._env.begin() as txn:
            is_new = txn.stat()["entries"] == 0
        if is_new:
            with self._env.begin(write=True) as txn:
                *_, meta = (self._env.open_db(name, txn) for name in _ALL_DATABASES)
                txn.put(b"applied", _NUMBER.pack(base.updates), db=meta)
                txn.put(b"block", _NUMBER.pack(0), db=meta)
                events_schema = base.events_schema or WITHOUT_MODEL
                txn.put(b"events_schema", msgspec.json.encode(events_schema), db=meta)
        self._rows, self._profiles, self._identifiers, self._histories, self._events, self._meta = (
            self._env.open_db(name, create=False) for name in _ALL_DATABASES
        )
        self._load(base)

    def _load(self, base: Base) -> None:
        with self._env.begin(db=self._meta) as txn:
            (self.applied,) = _NUMBER.unpack(txn.get(b"applied", b""))
            (self._next_block,) = _NUMBER.unpack(txn.get(b"block", b""))
            self._event_fields = EventFields(msgspec.json.decode(txn.get(b"events_schema", b""), type=EventsSchema))
            self._generations = [base.fields]
            while (found := txn.get(_generation_key(len(self._generations)))) is not None:
                self._generations.append(Fields(msgspec.json.decode(found, type=Schema)))
            self.rows = int(txn.stat(self._rows)["entries"])

    def follow(self) -> None:
        """Takes in what another process wrote meanwhile."""
        if int(self._env.info()["last_txnid"]) != self._announced:
            self._load(self.base)
            self.base.forget()
            self._announce()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._env.close()

    @property
    def fields(self) -> Fields:
        """Those of the last generation."""
        return self._generations[-1]

    def catch_up(self, view: View) -> None:
        """Applies all changes that are not in here yet."""
        if view.sequence > self.applied:
            standings: Standings = []
            damaged = 0
            for primary in view.touched_since(self.applied):
                try:
                    standings.append((primary, self.standing(primary, view)))
                except (RecordDamaged, FormatUnsupported):
                    damaged += 1
            self.apply(view, (standings, damaged))

    def standing(self, primary: bytes, view: View) -> Standing:
        """What a profile is made of by now. Raises RecordDamaged and FormatUnsupported."""
        return self.base.standing(primary, view, self._newer(primary))

    def row_of(self, primary: bytes) -> bytes | memoryview:
        """The record of a profile's row alone, as it is by now; empty where it has none."""
        newer = self._newer(primary)
        return (self.base.row_of(primary) or b"") if newer is None else newer

    def moved(self) -> dict[bytes, bool]:
        """The profiles that delta refreshes gave a row (True) or took it from, where the snapshot says otherwise."""
        with self._env.begin(db=self._rows) as txn, txn.cursor() as cursor:
            held = ((primary, record != b"") for primary, record in cursor)
            return {primary: has_row for primary, has_row in held if has_row != bool(self.base.row_of(primary))}

    def _newer(self, primary: bytes) -> bytes | None:
        with self._env.begin(db=self._rows) as txn:
            return txn.get(primary) if self.rows else None

    def apply(
        self, view: View, touched: Touched, at: snapshot.AtStep = snapshot.nothing, delta: Delta | None = None
    ) -> None:
        """Applies the changes since the last one that is in here, and a delta, which together touched these profiles.

        One transaction: durable, and announced to readers, when this returns.
        """
        try:
            with self._env.begin(write=True) as txn:
                merge = _Merge(self, txn, view, touched)
                if delta is not None:
                    merge.bring(delta)
                merge.run()
                if delta is not None and merge.damaged:
                    raise SnapshotDamaged(f"snapshot {self.base.name}: a record is damaged", hint=_DAMAGED)
                at("live_written")
            at("live_committed")
            self._generations, self._event_fields = merge.generations, merge.event_fields
            self._next_block, self.applied, self.rows = merge.next_block, view.sequence, merge.rows
            self._announce()
        finally:
            self.base.forget()

    def primaries_of(self, key: bytes) -> list[bytes]:
        """The profiles that have an identifier by now, by the key of the index."""
        with self._env.begin() as txn:
            return self.primaries_in(txn, key)

    def primaries_in(self, txn: lmdb.Transaction, key: bytes) -> list[bytes]:
        """The same, as of a transaction."""
        found = txn.get(key, db=self._identifiers)
        if found is None:
            return self.base.reader.primaries_of(key)
        return ids_of(key, found) if found else []

    def _announce(self) -> None:
        self._announced = int(self._env.info()["last_txnid"])
        self._announcer.announce(self._announced)


class _Merge:
    """What one transaction does. Nothing of the layer's own state changes before it is committed."""

    def __init__(self, live: Live, txn: lmdb.Transaction, view: View, touched: Touched) -> None:
        self._live = live
        self._txn = txn
        self._view = view
        self._base = live.base
        self._applied = live.applied
        self._profiles, self._identifiers, self._histories = live._profiles, live._identifiers, live._histories
        self._events, self._meta = live._events, live._meta
        self.generations = live._generations.copy()
        self.event_fields = live._event_fields
        self.next_block = live._next_block
        self.rows = live.rows
        # For each key of the index, the profiles that no longer stand under it, or not where they did, and those that
        # do now.
        self._left: dict[bytes, set[bytes]] = {}
        self._entered: dict[bytes, set[bytes]] = {}
        self._standings, self.damaged = touched

    def bring(self, delta: Delta) -> None:
        """Keeps the rows of a delta refresh. The events of one that is back are back with it."""
        rows = self._live._rows
        for primary, record in delta.rows:
            was_gone = self._txn.get(primary, db=rows) == b""
            if record or self._base.row_of(primary):
                self._txn.put(primary, record, db=rows)
            else:
                self._txn.delete(primary, db=rows)
            if record and was_gone and self._txn.get(primary, db=self._histories) == b"":
                self._txn.delete(primary, db=self._histories)
        self._txn.put(b"watermark", _TIME.pack(delta.watermark_us), db=self._meta)
        self.rows = int(self._txn.stat(rows)["entries"])

    def run(self) -> None:
        self._extend()
        self._write_profiles()
        self._write_index()
        self._write_histories()
        self._txn.put(b"applied", _NUMBER.pack(self._view.sequence), db=self._meta)
        self._txn.put(b"block", _NUMBER.pack(self.next_block), db=self._meta)
        if self.damaged:
            log.error(
                "snapshot %s: updates of %d profiles wait for the next one, as their records are damaged",
                self._base.name,
                self.damaged,
            )

    # --- profiles --------------------------------------------------------------------------------------------------

    def _extend(self) -> None:
        """Makes a new generation where an update has an attribute of a new name."""
        names = {name for _, standing in self._standings if standing.said for name in standing.said.attributes}
        fields = self.generations[-1].extended(names)
        if fields is not self.generations[-1]:
            key = _generation_key(len(self.generations))
            self.generations.append(fields)
            self._txn.put(key, msgspec.json.encode(fields.schema), db=self._meta)

    def _write_profiles(self) -> None:
        fields = self.generations[-1]
        generation = _GENERATION.pack(len(self.generations) - 1)
        written: list[tuple[bytes, bytes]] = []
        for primary, standing in self._standings:
            try:
                before = self._identifiers_of(primary)
                merged = self._merged(fields, primary, *standing)
            except (RecordDamaged, FormatUnsupported):
                self.damaged += 1
                continue
            self._note(fields, primary, before or [], merged.values[1 : len(fields.namespaces)] if merged else [])
            if merged is not None:
                written.append((primary, generation + merged.record))
            elif self._base.reader.record_of(primary) is not None:
                written.append((primary, b""))
            else:
                self._txn.delete(primary, db=self._profiles)
        with self._txn.cursor(self._profiles) as cursor:
            cursor.putmulti(written)

    def _merged(self, fields: Fields, primary: bytes, row: Row | None, said: Profile | None) -> Merged | None:
        if row is None:
            return None if said is None else merge(fields, primary, None, said, 0)
        row = Row(fields.widened(row.values, self._base.fields), row.updated_us)
        return merge(fields, primary, row, said, self._base.refreshed_us)

    def _served(self, primary: bytes) -> tuple[Fields, bytes | memoryview] | None:
        """The record that a profile has by now, and its fields."""
        found = self._txn.get(primary, db=self._profiles)
        if found is None:
            record = self._base.reader.record_of(primary)
            return None if record is None else (self._base.fields, record)
        if not found:
            return None
        (generation,) = _GENERATION.unpack_from(found)
        return self.generations[generation], found[_GENERATION.size :]

    # --- the index -------------------------------------------------------------------------------------------------

    def _identifiers_of(self, primary: bytes) -> Values | None:
        served = self._served(primary)
        if served is None:
            return None
        fields, record = served
        return fields.shape.split(record, primary)[1 : len(fields.namespaces)]

    def _note(self, fields: Fields, primary: bytes, before: Values, now: Values) -> None:
        """Notes what the index has to change of a profile; also where it stands among others, and may move there."""
        for number, (left, entered) in enumerate(itertools.zip_longest(before, now), 1):
            key = fields.index_key(number, entered)
            if left == entered and (key is None or self._is_alone(primary, key)):
                continue
            if key is not None:
                self._entered.setdefault(key, set()).add(primary)
            key = fields.index_key(number, left)
            if key is not None:
                self._left.setdefault(key, set()).add(primary)

    def _is_alone(self, primary: bytes, key: bytes) -> bool:
        """Whether nobody else has an identifier; as much of the entry is told by its length."""
        found = self._txn.get(key, db=self._identifiers)
        if found is None:
            found = self._base.reader.index_entry_of(key)
        return found is not None and len(found) == ENTRY_HEAD_BYTES + len(primary)

    def _write_index(self) -> None:
        for key in sorted(self._left.keys() | self._entered.keys()):
            left, entered = self._left.get(key, set()), self._entered.get(key, set())
            before = self._live.primaries_in(self._txn, key)
            now = [primary for primary in before if primary not in left and primary not in entered]
            for primary in entered:
                now.insert(bisect.bisect_left(now, self._rank(primary), key=self._rank), primary)
            if now == before:
                continue
            if now:
                entry = index_entry(key, _bounded(now), check_of)
                self._txn.put(key, entry, db=self._identifiers)
            elif self._base.reader.primaries_of(key):
                self._txn.put(key, b"", db=self._identifiers)
            else:
                self._txn.delete(key, db=self._identifiers)

    def _rank(self, primary: bytes) -> Rank:
        """What the ids of an entry are sorted by: the last updated first, those without a time last."""
        served = self._served(primary)
        time_us = None if served is None else time_of(served[1], self._base.refreshed_us)
        return (math.inf if time_us is None else -time_us, primary)

    # --- histories -------------------------------------------------------------------------------------------------

    def _write_histories(self) -> None:
        new: list[tuple[bytes, list[Event]]] = []
        for primary, (row, said) in self._standings:
            if row is None and said is None:
                self._drop_history(primary)
                continue
            if self._base.is_void(self._view.erasure(primary)):
                self._hide_history(primary)
            if said is not None and said.events > self._applied:
                new.append((primary, self._view.events(primary, self._applied)))
        names = {name for _, events in new for event in events for name in event.params}
        fields = self.event_fields.extended(names)
        if fields is not self.event_fields:
            self.event_fields = fields
            self._txn.put(b"events_schema", msgspec.json.encode(fields.schema), db=self._meta)
        for primary, events in new:
            try:
                self._weave(primary, [fields.encode(primary, event) for event in events])
            except (RecordDamaged, FormatUnsupported):
                self.damaged += 1

    def _weave(self, primary: bytes, events: list[history.Event]) -> None:
        blocks = self._blocks(primary)
        woven = weave(primary.decode(), blocks, self._content_of, events, self.next_block)
        self.next_block += len(woven.written)
        for number, content in woven.written:
            self._txn.put(_NUMBER.pack(number), content, db=self._events)
        for block in woven.replaced:
            self._txn.delete(_NUMBER.pack(number_of(block)), db=self._events)
        directory = history.write_directory(primary.decode(), woven.blocks, check_of)
        self._txn.put(primary, directory, db=self._histories)

    def _blocks(self, primary: bytes) -> list[Block]:
        found = self._txn.get(primary, db=self._histories)
        if found is None:
            found = self._base.reader.directory(primary.decode())
        return history.read_directory(primary.decode(), bytes(found), check_of) if found else []

    def _content_of(self, block: Block) -> bytes:
        if block.reserved == LIVE:
            found = self._txn.get(_NUMBER.pack(number_of(block)), db=self._events)
            if found is None:
                raise RecordDamaged("a block of the live layer's events is missing")
            return bytes(found)
        if block.segment >= len(self._base.reader.event_segments):
            raise RecordDamaged("a directory of events points outside the snapshot")
        segment = self._base.reader.event_segments[block.segment]
        return bytes(segment[block.offset : block.offset + block.length])

    def _drop_history(self, primary: bytes) -> None:
        """A profile that is gone has no events; nor has one of that id that is made later those that it had."""
        found = self._txn.get(primary, db=self._histories)
        for block in history.read_directory(primary.decode(), bytes(found), check_of) if found else ():
            if block.reserved == LIVE:
                self._txn.delete(_NUMBER.pack(number_of(block)), db=self._events)
        if found is not None:
            self._txn.delete(primary, db=self._histories)
        self._hide_history(primary)

    def _hide_history(self, primary: bytes) -> None:
        """Hides what the snapshot has, unless that is done."""
        if self._base.reader.directory(primary.decode()) is not None:
            self._txn.put(primary, b"", overwrite=False, db=self._histories)


def _generation_key(number: int) -> bytes:
    return b"generation:" + struct.pack(">I", number)


def _bounded(primaries: list[bytes]) -> list[str]:
    """As many as one entry of the index has room for."""
    size = 0
    for count, primary in enumerate(primaries):
        size += 2 + len(primary)
        if size > GROUP_BYTES_MAX:
            return [each.decode() for each in primaries[:count]]
    return [each.decode() for each in primaries]
