"""Events for tests: files of a snapshot's own, made by the oracle, and what a query is to find in them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgeprofile import history, record, snapshot
from edgeprofile._events import Page, Wanted, read_page
from edgeprofile._store import Store
from edgeprofile.history import EventsSchema
from edgeprofile.loader.writer import Writer
from edgeprofile.reader import PLACE, Reader
from edgeprofile.record import Field, Kind, Namespace, Schema, Type

TEXT = Type(Kind.TEXT)
PROFILE = Schema((Field("id", "identifiers", "VARCHAR"),), (Namespace("id"),))
PARAMS = (Field("n", "params", "BIGINT"), Field("text", "params", "VARCHAR"))
EVER = (-(1 << 63), (1 << 63) - 1)
BYTES_MAX = 1 << 20


class Happened(NamedTuple):
    """An event as a model has it."""

    time_us: int
    name: str
    n: int = 0
    text: str | None = None
    id: str = ""


Histories = dict[str, list[Happened]]


def newest_first(events: Sequence[Happened]) -> list[Happened]:
    return sorted(events, key=lambda event: (-event.time_us, event.id.encode()))


def encoded(primary: str, event: Happened, has_id: bool) -> history.Event:
    schema = EventsSchema(has_id, PARAMS)
    types = [*[TEXT] * has_id, TEXT, Type(Kind.TIMESTAMP), Type(Kind.INTEGER), TEXT]
    values = [*[event.id] * has_id, event.name, (event.time_us, 1_000_000), event.n, event.text]
    found = history.encode(schema, types, primary, values, event.time_us)
    return history.Event(event.time_us, history.name_hash(event.name), found)


def body_of(primary: str, event: Happened, has_id: bool) -> bytes:
    """An event as an answer has it."""
    return history.body(primary, encoded(primary, event, has_id))


def written(
    primary: str, events: Sequence[Happened], segments: list[bytes], block_events: int, has_id: bool
) -> list[history.Block]:
    """Adds a history to the segments, by turns; returns its directory."""
    every = [encoded(primary, event, has_id) for event in newest_first(events)]
    blocks: list[history.Block] = []
    for first in range(0, len(every), block_events):
        number = len(blocks) % len(segments)
        entry, content = history.write_block(
            primary, every[first : first + block_events], number, len(segments[number])
        )
        segments[number] += content
        blocks.append(entry)
    return blocks


def write_file(
    folder: Path, histories: Histories, *, block_events: int = history.BLOCK_EVENTS_MAX, has_id: bool = True
) -> snapshot.Manifest:
    """A snapshot's file, of which every profile is in `histories`, be it without an event; returns its manifest."""
    segments = [b"no even place", b"another"]
    directories = [
        (primary.encode(), history.write_directory(primary, blocks))
        for primary in sorted(histories, key=str.encode)
        if (blocks := written(primary, histories[primary], segments, block_events, has_id))
    ]
    return write_raw(folder, histories, segments, directories, has_id=has_id)


def write_raw(
    folder: Path,
    primaries: Collection[str],
    segments: Sequence[bytes],
    directories: list[tuple[bytes, bytes]],
    *,
    has_id: bool = True,
) -> snapshot.Manifest:
    """As `write_file`, of segments of blocks and of directories, in order, in which anything may stand."""
    records = {primary: record.encode(PROFILE, [TEXT], primary, [primary], 0) for primary in primaries}
    return write_records(folder, PROFILE, records, segments, directories, has_id=has_id)


def write_records(
    folder: Path,
    schema: Schema,
    records: dict[str, bytes],
    segments: Sequence[bytes] = (),
    directories: Sequence[tuple[bytes, bytes]] = (),
    *,
    has_id: bool = True,
) -> snapshot.Manifest:
    """As `write_raw`, of records by their primary ids, in which anything may stand too."""
    content, places = b"", []
    for primary in sorted(records, key=str.encode):
        places.append((primary.encode(), PLACE.pack(0, len(content), len(records[primary]))))
        content += records[primary]
    with Writer(folder / snapshot.PROFILES) as writer:
        writer.add_segment(content, places)
        for segment in segments:
            writer.add_events(segment, [])
        writer.add_events(b"", directories)
        used_bytes = writer.used_bytes()
    os.truncate(folder / snapshot.PROFILES, used_bytes)
    return snapshot.Manifest(
        name=folder.name,
        sequence=1,
        previous=None,
        schema=msgspec.to_builtins(schema),
        profiles=len(places),
        identifiers={},
        segments=1,
        file_bytes=used_bytes,
        record_bytes=len(content),
        sha256="",
        content="",
        model="",
        started_at=0,
        finished_at=0,
        rows=len(places),
        rejected={},
        events_schema=msgspec.to_builtins(EventsSchema(has_id, PARAMS)),
        events=0,
        histories=len(directories),
        event_segments=len(segments),
        event_bytes=0,
        event_rows=0,
        events_rejected={},
    )


@contextlib.contextmanager
def opened(folder: Path, manifest: snapshot.Manifest) -> Iterator[Store]:
    reader = Reader(folder, manifest)
    try:
        yield Store(reader)
    finally:
        reader.close()


@contextlib.contextmanager
def store_of(
    folder: Path, histories: Histories, *, block_events: int = history.BLOCK_EVENTS_MAX, has_id: bool = True
) -> Iterator[Store]:
    """An open snapshot that has these events and no others."""
    with opened(folder, write_file(folder, histories, block_events=block_events, has_id=has_id)) as store:
        yield store


@contextlib.contextmanager
def store_of_records(folder: Path, schema: Schema, records: dict[str, bytes]) -> Iterator[Store]:
    """An open snapshot of these records, by their primary ids, and without events."""
    with opened(folder, write_records(folder, schema, records)) as store:
        yield store


class Query(NamedTuple):
    """What is asked for, but for the place from which on."""

    names: Collection[str] = ()
    start_us: int = EVER[0]
    end_us: int = EVER[1]
    limit: int = 100

    def wanted(self, cursor: str | None = None) -> Wanted:
        decoded = None if cursor is None else decoded_cursor(cursor)
        return Wanted(list(self.names), self.start_us, self.end_us, self.limit, decoded)

    def finds(self, event: Happened) -> bool:
        return self.start_us <= event.time_us <= self.end_us and (not self.names or event.name in self.names)


def decoded_cursor(cursor: str) -> bytes:
    return base64.urlsafe_b64decode(cursor + "==")


def page_of(store: Store, query: Query, cursor: str | None = None, primary: str = "ann") -> Page:
    return read_page(store, primary.encode(), query.wanted(cursor), BYTES_MAX)


def split(answer: bytes) -> tuple[bytes, str | None]:
    """The events of an answer, as they stand there, and its cursor."""
    events, _, cursor = answer.removeprefix(b'{"events":[').rpartition(b'],"cursor":')
    return events, json.loads(cursor.removesuffix(b"}"))


def pages(
    store: Store, query: Query, primary: str = "ann", bytes_max: int = BYTES_MAX, cursor: str | None = None
) -> Iterator[bytes]:
    """Page after page, each the events on it as they stand there."""
    while True:
        answer = read_page(store, primary.encode(), query.wanted(cursor), bytes_max).body()
        events, cursor = split(answer)
        yield events
        if cursor is None:
            return
