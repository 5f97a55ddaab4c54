"""The events of updates, put between those of the events' model: the newest first, and of one time behind them."""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from edgeprofile._record import Batch
from edgeprofile.history import Event, EventsSchema
from edgeprofile.loader.fold import Fold
from edgeprofile.loader.merging import record_us
from edgeprofile.loader.weave import EventFields
from edgeprofile.reader import PLACE

# About as many events of updates stand in a batch of their own.
BATCH_EVENTS = 8_192
_HASH = struct.Struct("<I")


class FoldedEvents:
    """Those of one fold. `schema` is the model's with the parameters that only updates know behind its own."""

    def __init__(self, fold: Fold, schema: EventsSchema) -> None:
        self._fold = fold
        names = {name for _, events in fold.events() for event in events for name in event.params}
        self._fields = EventFields(schema).extended(names)
        self.schema = self._fields.schema
        self._pending = self._encoded()
        self._next = next(self._pending, None)

    def _encoded(self) -> Iterator[tuple[bytes, list[Event]]]:
        """The events of each profile that has any of updates, newest first."""
        for primary, events in self._fold.events():
            found = [self._fields.encode(primary, event) for event in events]
            for event in found:
                self._fold.content.update(event.record)
            yield primary, sorted(found, key=lambda event: -event.time_us)

    def among(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The model's batches with them between, and what is left behind the last."""
        for batch in batches:
            is_for_it = batch.entries and self._next is not None and self._next[0] <= batch.entries[-1][0]
            yield self._woven(batch) if is_for_it else batch
        yield from self.alone()

    def alone(self) -> Iterator[Batch]:
        """Those that are left, in batches of their own."""
        made = _Making(b"")
        while self._next is not None:
            made.add(*self._next)
            self._next = next(self._pending, None)
            if len(made.entries) >= BATCH_EVENTS:
                yield made.batch()
                made = _Making(b"")
        if made.entries:
            yield made.batch()

    def _woven(self, batch: Batch) -> Batch:
        """One batch. What may stand behind events that only the next one has is left to that."""
        keys = [key for key, _ in batch.entries]
        times = _Times(batch)
        made = _Making(batch.segment)
        done = 0
        while self._next is not None and self._next[0] <= keys[-1]:
            primary, events = self._next
            first = bisect_left(keys, primary, done)
            last = bisect_right(keys, primary, first)
            made.take(batch, done, first)
            done = first
            left = []
            if primary == keys[-1]:
                oldest_us = times[last - 1]
                left = [event for event in events if event.time_us <= oldest_us]
                events = events[: len(events) - len(left)]
            for event in events:
                behind = bisect_right(times, -event.time_us, done, last, key=lambda time_us: -time_us)
                made.take(batch, done, behind)
                made.add(primary, [event])
                done = behind
            if left:
                self._next = (primary, left)
                break
            self._next = next(self._pending, None)
        made.take(batch, done, len(keys))
        return made.batch()


class _Times:
    """The times of a batch's events, which are read as they are asked for."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return len(self._batch.entries)

    def __getitem__(self, at: int) -> int:
        _, offset, _ = PLACE.unpack(self._batch.entries[at][1])
        return record_us(self._batch.segment, offset)


class _Making:
    """A batch in the making, whose segment begins with another's."""

    def __init__(self, segment: bytes) -> None:
        self._pieces = [segment]
        self._size = len(segment)
        self._hashes: list[bytes] = []
        self.entries: list[tuple[bytes, bytes]] = []

    def take(self, batch: Batch, first: int, last: int) -> None:
        """Takes over events of the batch whose segment this begins with."""
        self.entries += batch.entries[first:last]
        self._hashes.append(batch.hashes[_HASH.size * first : _HASH.size * last])

    def add(self, primary: bytes, events: list[Event]) -> None:
        for event in events:
            self.entries.append((primary, PLACE.pack(0, self._size, len(event.record))))
            self._hashes.append(_HASH.pack(event.name_hash))
            self._pieces.append(event.record)
            self._size += len(event.record)

    def batch(self) -> Batch:
        return Batch(b"".join(self._pieces), b"", b"".join(self._hashes), self.entries, [])
