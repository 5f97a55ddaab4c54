"""One export, written by a process of its own: the profiles as they were when it began, a line of JSON each, in gzip.

What was live at that moment is copied first, so that the writing takes as long as it likes and holds up nobody.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from edgeprofile import exports, snapshot
from edgeprofile._live import Live
from edgeprofile._profile import TEXT, VALUE, Template, find
from edgeprofile._store import Store
from edgeprofile.attributes import NATIVE
from edgeprofile.errors import EdgeprofileError, UsageError
from edgeprofile.exports import Export
from edgeprofile.loader.process import end_with_parent
from edgeprofile.priority import be_gentle, leave_a_processor
from edgeprofile.reader import LIVE_DATABASES, open_current, read_events_schema, read_schema
from edgeprofile.record import Schema, json_text

AT_ONCE = 1_000
LEVEL = 5


class Line(NamedTuple):
    """What to take of a record of one schema."""

    identifiers: Template
    attributes: Template


def write(home: Path, export: Export) -> Export:
    """Writes an export's file. Raises StoreError or OSError, and leaves none then."""
    part = exports.path_of(home, export.id, "part")
    profiles = 0
    with frozen(home, export.id) as store:
        be_gentle()
        leave_a_processor()
        with part.open("wb") as file:
            with gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as packed:
                for ids in _ids(store):
                    packed.write(b"".join([_line(store, primary, export) for primary in ids]))
                    profiles += len(ids)
            file.flush()
            os.fsync(file.fileno())
    part.rename(exports.file_of(home, export.id))
    file_bytes = exports.file_of(home, export.id).stat().st_size
    return structs.replace(export, status="SUCCESS", finished_at=time.time(), profiles=profiles, file_bytes=file_bytes)


@contextlib.contextmanager
def frozen(home: Path, id: str) -> Iterator[Store]:
    """The current snapshot with a copy of what is live, both as of one moment."""
    copy, sequence = (exports.path_of(home, id, suffix) for suffix in ("live", "sequence"))
    live = None
    with snapshot.updating(home):
        reader = open_current(home)
        folder = snapshot.folder(home, reader.name)
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(folder / snapshot.LIVE, copy)
            shutil.copyfile(folder / snapshot.SEQUENCE, sequence)
            live = Live(copy, sequence, LIVE_DATABASES)
            # It has them open; so they are gone with this process, however that ends.
            copy.unlink()
            sequence.unlink()
    try:
        yield Store(reader, live, read_schema, read_events_schema)
    finally:
        reader.close()


def _ids(store: Store) -> Iterator[list[bytes]]:
    ids = store.ids_after(None, AT_ONCE)
    while ids:
        yield ids
        ids = store.ids_after(ids[-1], AT_ONCE)


def _line(store: Store, primary: bytes, export: Export) -> bytes:
    profile = find(store, primary)
    line = profile.recall("export", partial(_line_of, export, profile.schema))
    parts = []
    if export.identifiers:
        parts.append(b'"identifiers":{' + profile.render(line.identifiers) + b"}")
    if export.attributes:
        parts.append(b'"attributes":{' + profile.render(line.attributes) + b"}")
    return b"{" + b",".join(parts) + b"}\n"


def _line_of(export: Export, schema: Schema) -> Line:
    """An id is a text whatever its column is, as updates send it; the attributes are as in every other answer."""
    numbers = {field.name: number for number, field in enumerate(schema.fields) if field.section != "audiences"}

    def template(kind: int, wanted: dict[str, str]) -> Template:
        items = [(kind, numbers[of], f"{json_text(name)}:".encode()) for name, of in wanted.items() if of in numbers]
        return Template(items, schema.first_audience)

    namespace = export.namespace or schema.namespaces[0].name
    return Line(
        template(TEXT, dict.fromkeys(export.identifiers, namespace)),
        template(VALUE, {name: name[1:] if name in NATIVE else name for name in export.attributes}),
    )


def main(home: Path, id: str, parent: int) -> None:
    """Writes the export of that id for the process `parent`, and notes how far it is."""
    end_with_parent(parent)
    os.umask(0o077)
    export = exports.find(home, id, time.time())
    if export is None:
        raise UsageError("there is no such export")
    export = structs.replace(export, status="RUNNING", started_at=time.time())
    exports.write(home, export)
    exports.write(home, write(home, export))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    except (EdgeprofileError, OSError) as error:
        sys.exit(str(error))
