"""What is served of a workspace, snapshot and live layer together, by a plain reader: the compiled one's oracle."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from edgeprofile import history, snapshot
from edgeprofile._identifiers import ids_of
from edgeprofile.history import EventsSchema
from edgeprofile.reader import LIB_VERSION, LIVE_DATABASES, NAMESPACE_KEY, Reader
from edgeprofile.record import Record, Schema, normalize


class Living:
    """A copy of what is current, so that whoever writes goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reader = Reader(folder)
        self.base = self.reader.schema
        self.env = lmdb.open(
            str(folder / snapshot.LIVE),
            subdir=False,
            readonly=True,
            lock=False,
            max_dbs=len(LIVE_DATABASES),
            map_size=1 << 36,
            lib_version=LIB_VERSION,
        )
        self.content: dict[bytes, dict[bytes, bytes]] = {}
        for name in LIVE_DATABASES:
            with self.env.begin(db=self.env.open_db(name, create=False)) as txn, txn.cursor() as cursor:
                self.content[name] = dict(cursor)
        self.profiles, self.identifiers, self.histories, self.events, self.meta = self.content.values()
        self.events_schema = msgspec.json.decode(self.meta[b"events_schema"], type=EventsSchema)

    def close(self) -> None:
        self.env.close()
        self.reader.close()

    def generation(self, number: int) -> Schema:
        if number == 0:
            return self.base
        return msgspec.json.decode(self.meta[b"generation:" + struct.pack(">I", number)], type=Schema)

    def ids(self) -> list[str]:
        """All that are served, in binary order."""
        ids = {*self.reader.ids(), *map(bytes.decode, self.profiles)}
        return [primary for primary in sorted(ids, key=str.encode) if self.body(primary) is not None]

    def body(self, primary: str) -> bytes | None:
        """The whole answer of a profile, its record checked against its check and its schema."""
        live = self.profiles.get(primary.encode())
        if live is None:
            record, schema = self.reader.record(primary), self.base
        elif not live:
            return None
        else:
            record, schema = memoryview(live)[4:], self.generation(struct.unpack_from("<I", live)[0])
        if record is None:
            return None
        checked = Record(primary, bytes(record))
        assert checked.fields == len(schema.fields)
        names = [field.name for number, field in enumerate(schema.fields) if checked.bitmap >> number & 1]
        answer = json.loads(checked.body)
        assert [*answer, *answer["_audiences"]] == [
            *(name for name in names if name not in answer["_audiences"]),
            "_audiences",
            "_updated_at",
            *answer["_audiences"],
        ]
        return checked.body

    def profile(self, primary: str) -> dict[str, Any] | None:
        body = self.body(primary)
        return None if body is None else json.loads(body)

    def found(self, namespace: str, value: str) -> list[str]:
        """The primary ids that an identifier leads to."""
        number = [space.name for space in self.base.namespaces].index(namespace)
        key = NAMESPACE_KEY.pack(number) + normalize(value, self.base.namespaces[number].normalize).encode()
        return self.found_under(key)

    def found_under(self, key: bytes) -> list[str]:
        live = self.identifiers.get(key)
        if live is None:
            return [primary.decode() for primary in self.reader.primaries_of(key)]
        return [primary.decode() for primary in ids_of(key, live)] if live else []

    def index(self) -> dict[bytes, list[str]]:
        """All keys of the index under which somebody is."""
        with self.reader.txn.cursor(self.reader.identifiers) as cursor:
            keys = {*map(bytes, cursor.iternext(values=False)), *self.identifiers}
        return {key: found for key in sorted(keys) if (found := self.found_under(key))}

    def events_of(self, primary: str) -> list[dict[str, Any]]:
        """A profile's events, newest first."""
        directory: bytes | memoryview | None = self.histories.get(primary.encode())
        if directory is None:
            directory = self.reader.directory(primary)
        if not directory or self.body(primary) is None:
            return []
        found, more = history.read(primary, bytes(directory), self.content_of)
        assert more is None
        return [json.loads(text) for text in found]

    def content_of(self, block: history.Block) -> bytes:
        if block.reserved == history.LIVE:
            return self.events[struct.pack(">Q", block.segment << 32 | block.offset)]
        return bytes(self.reader.event_segments[block.segment][block.offset : block.offset + block.length])

    def check(self) -> None:
        """The index is that of the profiles, and no block of events is there that no history needs."""
        expected: dict[bytes, set[str]] = {}
        for primary in self.ids():
            profile = self.profile(primary)
            assert profile is not None
            for number, space in enumerate(self.base.namespaces[1:], 1):
                if (value := profile.get(space.name)) not in (None, ""):
                    key = NAMESPACE_KEY.pack(number) + normalize(str(value), space.normalize).encode()
                    expected.setdefault(key, set()).add(primary)
        index = self.index()
        assert {key: set(found) for key, found in index.items()} == expected
        assert all(len(found) == len(set(found)) for found in index.values())
        used = {
            block.segment << 32 | block.offset
            for primary, directory in self.histories.items()
            if directory
            for block in history.read_directory(primary.decode(), directory)
            if block.reserved == history.LIVE
        }
        assert used == {int.from_bytes(key, "big") for key in self.events}


@contextlib.contextmanager
def living(home: Path) -> Iterator[Living]:
    """What is served now."""
    with tempfile.TemporaryDirectory() as kept:
        current = snapshot.folder(home, snapshot.current(home))
        folder = Path(shutil.copytree(current, Path(kept) / current.name))
        opened = Living(folder)
        try:
            yield opened
        finally:
            opened.close()
