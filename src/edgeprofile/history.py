"""The events of a profile on disk, and a plain writer and reader of them: the oracle of the compiled ones.

A history is a profile's events, the newest first: by time, then by the text of the event's id and by its name, or
where the model has no ids, as the model gave them. It is cut into blocks of at most BLOCK_EVENTS_MAX events and, unless
it is only one, BLOCK_BYTES_MAX bytes, which stand one behind the other in segments. Under the primary id stands the
history's directory, which says where its blocks are and what may be in them, so that what is not asked for is never
read:

    directory   check (4 bytes, as in record.index_entry: of all that follows, seeded by the primary id), and for
                each block, the newest first, BLOCK: time of its newest and of its oldest event, microseconds since
                1970; `names`, with bit `hash & 63` set for each event's name; check of the block's index, seeded by
                the primary id; segment, offset and length of the block; number of its events; 0, or LIVE for a block
                of the live layer, whose number there is segment << 32 | offset (8 bytes)
    block       index, then the records, one behind the other
    index       for each event MARK: its time, the hash of its name, where in the block its record begins

All numbers are little-endian. A record has the grammar of record.py with the event's time in the place of the time
of update. Its fields are `id` (where the model has one), `name` and `time`, then the parameters, nested:
`{"id":"e1","name":"page","time":"2020-11-19T13:39:17.380Z","params":{"a":1}}`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from edgeprofile.errors import RecordDamaged
from edgeprofile.record import PARAMS_OPEN, Checksum, Field, Record, Type, checksum, encode_fields

BLOCK_EVENTS_MAX = 128
BLOCK_BYTES_MAX = 64 * 1024
LIVE = 1
CHECK = struct.Struct("<I")
BLOCK = struct.Struct("<qqQQIIIIQ")
MARK = struct.Struct("<qII")


class EventsSchema(msgspec.Struct, frozen=True):
    """What the events of a snapshot hold. `fields` are the parameters, in their order in an answer."""

    has_id: bool
    fields: tuple[Field, ...]

    @property
    def names(self) -> list[str]:
        """The names of all fields of a record."""
        return [*["id"] * self.has_id, "name", "time", *(field.name for field in self.fields)]

    @property
    def first_param(self) -> int:
        return 2 + self.has_id


# Of a workspace whose events are all of updates.
WITHOUT_MODEL = EventsSchema(False, ())


class Event(NamedTuple):
    """An event as it stands in a block."""

    time_us: int
    name_hash: int
    record: bytes


class Block(NamedTuple):
    """An entry of a directory."""

    newest_us: int
    oldest_us: int
    names: int
    check: int
    segment: int
    offset: int
    length: int
    count: int  # type: ignore[assignment]  # in the place of a method of tuples that nothing here needs
    reserved: int = 0


class Position(NamedTuple):
    """Where a page ended: behind the first `passed` of all the events at `time_us`, of whatever name.

    Newer events that a refresh adds leave it where it is.
    """

    time_us: int
    passed: int


# --- writing -------------------------------------------------------------------------------------------------------


def name_hash(name: str) -> int:
    """32 bits that tell a name from most others."""
    return checksum(0, name.encode()) & 0xFFFFFFFF


def encode(schema: EventsSchema, types: Sequence[Type], primary: str, values: Sequence[object], time_us: int) -> bytes:
    """The record of one event. `values` has one value a name of the schema, None where it has none."""
    return encode_fields(schema.names, types, primary, values, time_us, schema.first_param, PARAMS_OPEN, b"}}")


def cut(events: Sequence[Event]) -> Iterator[list[Event]]:
    """A history as blocks: each takes as many events as it may."""
    block: list[Event] = []
    size = 0
    for event in events:
        more = MARK.size + len(event.record)
        if block and (len(block) == BLOCK_EVENTS_MAX or size + more > BLOCK_BYTES_MAX):
            yield block
            block, size = [], 0
        block.append(event)
        size += more
    if block:
        yield block


def write_block(
    primary: str,
    events: Sequence[Event],
    segment: int,
    offset: int,
    reserved: int = 0,
    checksum: Checksum = checksum,
) -> tuple[Block, bytes]:
    """A block that is to stand there, and its entry in the directory."""
    index, start, names = b"", MARK.size * len(events), 0
    for event in events:
        index += MARK.pack(event.time_us, event.name_hash, start)
        start += len(event.record)
        names |= 1 << (event.name_hash & 63)
    check = checksum(checksum(0, primary.encode()), index)
    entry = Block(events[0].time_us, events[-1].time_us, names, check, segment, offset, start, len(events), reserved)
    return entry, index + b"".join(event.record for event in events)


def write_directory(primary: str, blocks: Sequence[Block], checksum: Checksum = checksum) -> bytes:
    """What stands under the primary id."""
    entries = b"".join(BLOCK.pack(*block) for block in blocks)
    return CHECK.pack(checksum(checksum(0, primary.encode()), entries) & 0xFFFFFFFF) + entries


# --- reading -------------------------------------------------------------------------------------------------------


def read_directory(primary: str, directory: bytes, checksum: Checksum = checksum) -> list[Block]:
    """The blocks of a history, the newest first. Raises RecordDamaged."""
    entries = directory[CHECK.size :]
    if not entries or len(entries) % BLOCK.size:
        raise RecordDamaged("a directory of events has an impossible length")
    blocks = [Block(*fields) for fields in BLOCK.iter_unpack(entries)]
    if write_directory(primary, blocks, checksum) != directory:
        raise RecordDamaged("a directory of events does not match its checksum")
    return blocks


def read_block(primary: str, block: Block, content: bytes, checksum: Checksum = checksum) -> list[Event]:
    """The events of a block, of which only the index is checked; `content` is all of it. Raises RecordDamaged."""
    index = content[: MARK.size * block.count]
    if len(content) != block.length or len(index) != MARK.size * block.count or not block.count:
        raise RecordDamaged("a block of events is cut short")
    if checksum(checksum(0, primary.encode()), index) != block.check:
        raise RecordDamaged("a block of events does not match its checksum")
    marks = list(MARK.iter_unpack(index))
    ends = [start for _, _, start in marks[1:]] + [block.length]
    if not all(len(index) <= mark[2] <= end <= block.length for mark, end in zip(marks, ends, strict=True)):
        raise RecordDamaged("a block of events points outside itself")
    return [Event(time, hash, content[start:end]) for (time, hash, start), end in zip(marks, ends, strict=True)]


def body(primary: str, event: Event) -> bytes:
    """An event as JSON, its record checked. Raises RecordDamaged or FormatUnsupported."""
    return Record(primary, event.record).body


def read(
    primary: str,
    directory: bytes,
    content_of: Callable[[Block], bytes],
    *,
    name: str | None = None,
    start_us: int | None = None,
    end_us: int | None = None,
    limit: int | None = None,
    after: Position | None = None,
) -> tuple[list[bytes], Position | None]:
    """The newest `limit` events of a name, from `start_us` to before `end_us`, behind a position, as JSON.

    With them comes the position of the last one where there are more, else None.
    """
    found: list[bytes] = []
    at = last = Position(1 << 63, 0)
    for event in _events(primary, directory, content_of):
        at = Position(event.time_us, at.passed + 1 if event.time_us == at.time_us else 1)
        is_past = after is None or (-at.time_us, at.passed) > (-after.time_us, after.passed)
        in_range = (start_us is None or event.time_us >= start_us) and (end_us is None or event.time_us < end_us)
        if not is_past or not in_range or (name is not None and event.name_hash != name_hash(name)):
            continue
        answer = body(primary, event)
        if name is not None and json.loads(answer)["name"] != name:
            continue  # another name of the same hash
        if len(found) == limit:
            return found, last
        found.append(answer)
        last = at
    return found, None


def _events(primary: str, directory: bytes, content_of: Callable[[Block], bytes]) -> Iterator[Event]:
    for block in read_directory(primary, directory):
        yield from read_block(primary, block, content_of(block))
