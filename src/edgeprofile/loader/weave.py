"""New events woven into a history that is there: only the blocks between which they belong are written anew."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgeprofile import history
from edgeprofile._merge import Shape
from edgeprofile._record import check_of
from edgeprofile.history import LIVE, Block, EventsSchema
from edgeprofile.loader.changes import Event
from edgeprofile.record import FIELDS_MAX, Field, json_text, timestamp_text


class EventFields:
    """The fields of events of one schema. Parameters that only updates know stand behind the model's."""

    def __init__(self, schema: EventsSchema) -> None:
        self.schema = schema
        self.number_of = {name: number for number, name in enumerate(schema.names) if number >= schema.first_param}
        self._shape = Shape(schema.names, schema.first_param, True)

    def extended(self, names: set[str]) -> EventFields:
        """With these parameters too, as many as there may be."""
        free = sorted(names - self.number_of.keys())
        more = tuple(Field(name, "params", "JSON") for name in free[: FIELDS_MAX - len(self.schema.names)])
        return EventFields(EventsSchema(self.schema.has_id, self.schema.fields + more)) if more else self

    def encode(self, primary: bytes, event: Event) -> history.Event:
        """An event of an update's, as it stands in a block."""
        values: list[bytes | None] = [None] * len(self.schema.names)
        first = self.schema.first_param
        if self.schema.has_id and event.id is not None:
            values[0] = json_text(event.id).encode()
        values[first - 2] = json_text(event.name).encode()
        values[first - 1] = f'"{timestamp_text(event.time_us, 1_000_000)}"'.encode()
        for name, value in event.params.items():
            if name in self.number_of:
                values[self.number_of[name]] = value
        name_hash = check_of(0, event.name.encode()) & 0xFFFFFFFF
        return history.Event(event.time_us, name_hash, self._shape.join(primary, values, event.time_us))


class Woven(NamedTuple):
    """A history with new events in it: its blocks, newest first; those that are new, by their numbers; and those of
    the live layer that are no longer of use."""

    blocks: list[Block]
    written: list[tuple[int, bytes]]
    replaced: list[Block]


def number_of(block: Block) -> int:
    """The number of a block of the live layer."""
    return block.segment << 32 | block.offset


def weave(
    primary: str,
    blocks: Sequence[Block],
    content_of: Callable[[Block], bytes],
    events: Sequence[history.Event],
    first_number: int,
) -> Woven:
    """Adds events, which are given as they came; of one time, what is there already comes first.

    New blocks are numbered from `first_number`. Raises RecordDamaged where a block that has to be opened is damaged.
    """
    newest_first = sorted(events, key=_age)
    first = 0
    while first < len(blocks) and blocks[first].oldest_us >= newest_first[0].time_us:
        first += 1
    last = first
    while last < len(blocks) and blocks[last].newest_us >= newest_first[-1].time_us:
        last += 1
    if last < len(blocks) and _has_room(blocks[last], newest_first):
        last += 1  # so that a history does not come to have a block for each batch
    opened = blocks[first:last]
    there = [e for block in opened for e in history.read_block(primary, block, content_of(block), check_of)]
    made: list[Block] = []
    written: list[tuple[int, bytes]] = []
    for number, some in enumerate(history.cut(list(heapq.merge(there, newest_first, key=_age))), first_number):
        block, content = history.write_block(primary, some, number >> 32, number & 0xFFFFFFFF, LIVE, check_of)
        made.append(block)
        written.append((number, content))
    replaced = [block for block in opened if block.reserved == LIVE]
    return Woven([*blocks[:first], *made, *blocks[last:]], written, replaced)


def _age(event: history.Event) -> int:
    return -event.time_us


def _has_room(block: Block, events: Sequence[history.Event]) -> bool:
    size = block.length + sum(history.MARK.size + len(event.record) for event in events)
    return block.count + len(events) <= history.BLOCK_EVENTS_MAX and size <= history.BLOCK_BYTES_MAX
