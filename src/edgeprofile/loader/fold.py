"""The overlay folded into the snapshot that is being built: what updates have said, laid over the model's rows.

Rows and overlay are both sorted by primary id, so they are read side by side, in bounded pieces. A profile without a
row stays where only updates ever made it; where the snapshot before has a row of it, it is evicted, with all that was
said of it.
"""

from __future__ import annotations

import contextlib
import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self, TextIO

from edgeprofile import snapshot
from edgeprofile._record import Batch
from edgeprofile._tree import Tree
from edgeprofile.errors import StoreError
from edgeprofile.loader.changes import Event
from edgeprofile.loader.merging import Fields, Row, identifier_text, merge, time_of
from edgeprofile.loader.model import Plan
from edgeprofile.loader.overlay import (
    HASH_BYTES,
    Erasure,
    Overlay,
    Profile,
    View,
    encoded,
    has_overlay,
    open_overlay,
)
from edgeprofile.loader.source import Source
from edgeprofile.reader import DATABASES, NAMESPACE_KEY, ORIGINALS, PLACE, PROFILES
from edgeprofile.record import Kind, Type

CHUNK_PROFILES = 8_192
COPY = "overlay.mdb"
FILES = ERASED_FILE, OVERLAID_FILE = ("erased.csv", "overlaid.csv")

Entries = list[tuple[bytes, bytes]]


class Laid(NamedTuple):
    """A segment of records, the profiles whose records stand there or in one before it, and the rows under updates."""

    segment: bytes
    entries: Entries
    originals: Entries


class Before:
    """What the snapshot before knows of profiles. A damaged one knows nothing: it is no reason not to build another."""

    def __init__(self, home: Path, manifest: snapshot.Manifest | None, moved: dict[bytes, bool]) -> None:
        self.updates = 0 if manifest is None else manifest.updates
        self._moved = moved
        self._tree: Tree | None = None
        if manifest is not None:
            file = snapshot.folder(home, manifest.name) / snapshot.PROFILES
            with contextlib.suppress(StoreError, OSError):
                self._tree = Tree(file, manifest.file_bytes, DATABASES)

    def look_up(self, primary: bytes, erasure: Erasure | None) -> tuple[bool, bool]:
        """Whether it knows a profile, and whether it has a row of it. Of one that was erased since, neither counts."""
        if self._tree is None:
            return True, False
        if erasure is not None and erasure.sequence > self.updates:
            return False, False
        try:
            if primary in self._moved:
                return self._tree.get(PROFILES, primary) is not None, self._moved[primary]
            original = self._tree.get(ORIGINALS, primary)
            if original is None:
                known = self._tree.get(PROFILES, primary) is not None
                return known, known
        except StoreError:
            self._tree = None
            return True, False
        return True, original != b""


class Fold:
    """A copy of the overlay as of now, for one build. Without an overlay, rows stay as they are.

    `updates` is its last change, and `made` counts the profiles that only updates made. `void` has the profiles of
    which the overlay has something that went when the snapshot before evicted them. `content` is a hash of all that is
    laid over the rows, so that what is new in it is published. `moved` is as in Live.
    """

    def __init__(self, home: Path, scratch: Path, before: snapshot.Manifest | None, moved: dict[bytes, bool]) -> None:
        self.updates = self.made = 0
        self.content = hashlib.sha256()
        self.void: list[bytes] = []
        # Those that have events of updates, and behind which change these begin.
        self._with_events: list[tuple[bytes, int]] = []
        self._before = Before(home, before, moved)
        self._scratch = scratch
        self._overlay: Overlay | None = None
        self._files = contextlib.ExitStack()
        self._overlaid: TextIO | None = None
        self.view: View | None = None
        if has_overlay(home):
            scratch.mkdir(mode=0o700, exist_ok=True)
            with open_overlay(home) as overlay:
                overlay.copy(scratch / COPY)
            self._overlay = Overlay(scratch / COPY, is_copy=True)
            self._files.callback(self._overlay.close)
            self.view = self._files.enter_context(self._overlay.view())
            self.updates = self.view.sequence

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()
        for name in (COPY, *FILES):
            (self._scratch / name).unlink(missing_ok=True)

    # --- what it is about ------------------------------------------------------------------------------------------

    def over(self, plan: Plan) -> Plan:
        """The plan with the attributes that only updates know, of which the model's rows have none."""
        wide = widened(plan, self._read_names())
        self._fields = Fields(wide.schema)
        return wide

    def _read_names(self) -> set[str]:
        names: set[str] = set()
        for primary, profile in self.view.profiles() if self.view else ():
            said, known, _ = self._effective(primary, profile)
            if said is not None:
                names |= said.attributes.keys()
            if not known and self._has_old(primary, profile):
                self.void.append(primary)
        return names

    def _effective(self, primary: bytes, profile: Profile) -> tuple[Profile | None, bool, bool]:
        """What counts of what was said of a profile; whether the snapshot before knows it, and has a row of it."""
        assert self.view is not None
        known, has_row = self._before.look_up(primary, self.view.erasure(primary))
        return profile if known else profile.since(self._before.updates), known, has_row

    def _has_old(self, primary: bytes, profile: Profile) -> bool:
        """Whether some of it was said before the snapshot before."""
        assert self.view is not None
        upto = self._before.updates
        first = min([profile.sequence, *(sequence for sequence, _ in profile.attributes.values())])
        return first <= upto or (profile.events > 0 and self.view.has_events(primary, upto))

    def load_erased(self, source: Source) -> None:
        """Makes the table `erased`, if there is anything to be in it."""
        if not self._erased():
            return
        with (self._scratch / ERASED_FILE).open("w") as file:
            file.writelines(f"{key.hex()}\n" for key, _ in self._erased())
        source.run(f"CREATE TEMP TABLE erased AS FROM {_csv(self._scratch / ERASED_FILE, ['VARCHAR'])}")

    def erased(self, key: str) -> str:
        """SQL that is true where the id in a column is an erased profile's."""
        if self.view is None or not self._erased():
            return "false"
        # In the words of overlay.View.
        return f"left(sha256('{self.view.secret}' || {key}), {2 * HASH_BYTES}) IN (FROM temp.erased)"

    def _erased(self) -> list[tuple[bytes, Erasure]]:
        return [(key, erasure) for key, erasure in self.view.erasures() if not erasure.restored] if self.view else []

    # --- the records -----------------------------------------------------------------------------------------------

    def begin(self, refreshed_us: int) -> None:
        """Before the first batch."""
        self._refreshed_us = refreshed_us
        for key, erasure in self._erased():
            self.content.update(b"%b%d" % (key, erasure.sequence))
        self._pending = self.view.profiles() if self.view else iter(())
        self._next = next(self._pending, None)
        if self._next is not None:
            self._overlaid = self._files.enter_context((self._scratch / OVERLAID_FILE).open("w"))

    def lay(self, batch: Batch, number: Callable[[], int]) -> Iterator[Laid]:
        """A batch of rows with the overlay laid over them, and the profiles between them that only updates made.

        Each piece is to be written, as the segment `number()`, before the next.
        """
        entries = batch.entries
        if entries and self._next is not None and self._next[0] <= entries[-1][0]:
            last = entries[-1][0]
            while True:
                some = list(islice(self._upto(last), CHUNK_PROFILES))
                is_last = len(some) < CHUNK_PROFILES
                cut = len(entries) if is_last else bisect_right(entries, some[-1][0], key=_key)
                yield self._laid(batch, entries is batch.entries, entries[:cut], some, number())
                if is_last:
                    return
                entries = entries[cut:]
        yield Laid(batch.segment, entries, [])

    def rest(self, number: Callable[[], int]) -> Iterator[Laid]:
        """The profiles behind the last row."""
        nothing = Batch(b"", b"", b"", [], [])
        while some := list(islice(self._upto(None), CHUNK_PROFILES)):
            yield self._laid(nothing, True, [], some, number())

    def _upto(self, last: bytes | None) -> Iterator[tuple[bytes, Profile]]:
        while self._next is not None and (last is None or self._next[0] <= last):
            found = self._next
            # Before it is given away: who takes a bounded piece of these does not come back here.
            self._next = next(self._pending, None)
            yield found

    def _laid(
        self, batch: Batch, is_first: bool, entries: Entries, some: list[tuple[bytes, Profile]], number: int
    ) -> Laid:
        """One piece. Its segment begins with the batch's own, if this is the first of it."""
        pieces = [batch.segment] if is_first else []
        size = sum(map(len, pieces))
        entries = entries.copy()
        keys = [key for key, _ in entries]
        made: Entries = []
        originals: Entries = []
        for primary, profile in some:
            at = bisect_left(keys, primary)
            has_row = at < len(keys) and keys[at] == primary
            said, known, had_row = self._effective(primary, profile)
            if said is None or (had_row and not has_row):
                continue
            row = self._row(batch.segment, primary, entries[at][1]) if has_row else None
            record = merge(self._fields, primary, row, said, self._refreshed_us).record
            entry = (primary, PLACE.pack(number, size, len(record)))
            if has_row:
                originals.append(entries[at])
                entries[at] = entry
            else:
                originals.append((primary, b""))
                made.append(entry)
            pieces.append(record)
            size += len(record)
            self._note(primary, said, 0 if known else self._before.updates)
        self.made += len(made)
        return Laid(b"".join(pieces), sorted(entries + made) if made else entries, originals)

    def _row(self, segment: bytes, primary: bytes, place: bytes) -> Row:
        _, offset, length = PLACE.unpack(place)
        record = segment[offset : offset + length]
        return Row(self._fields.shape.split(record, primary), time_of(record, self._refreshed_us))

    def _note(self, primary: bytes, said: Profile, after: int) -> None:
        """Notes what the index and the events have to know of a profile, and what tells its content from another."""
        if said.events:
            self._with_events.append((primary, after))
        self.content.update(b"%d:%b" % (len(primary), primary) + encoded(said))
        cells = [primary.hex(), str(said.updated_us)]
        for number, namespace in enumerate(self._fields.namespaces[1:], 1):
            value = said.attributes.get(namespace.name, (0, b""))[1]
            is_said = identifier_text(value) is not None
            key = self._fields.index_key(number, value) if is_said else None
            cells.append(f"x{key[NAMESPACE_KEY.size :].hex() if key else ''}" if is_said else "")
        assert self._overlaid is not None
        self._overlaid.write(",".join(cells) + "\n")

    # --- for the index and the events ------------------------------------------------------------------------------

    def load_overlaid(self, source: Source) -> None:
        """Makes the table `overlaid` of the profiles with an overlay, if there are any: `key`, `said_at`, and `v1` and
        so on, the values of the namespaces as they are indexed, NULL where no update has said one."""
        if self._overlaid is None:
            return
        self._overlaid.close()
        count = len(self._fields.namespaces)
        values = "".join(f", decode(unhex(substr(c{n + 1}, 2))) COLLATE C AS v{n}" for n in range(1, count))
        types = ["VARCHAR", "BIGINT", *["VARCHAR"] * (count - 1)]
        source.run(
            "CREATE TEMP TABLE overlaid AS SELECT decode(unhex(c0)) COLLATE C AS key, make_timestamp(c1) AS said_at"
            f"{values} FROM {_csv(self._scratch / OVERLAID_FILE, types)}"
        )

    @property
    def is_laid(self) -> bool:
        """Whether there is a table `overlaid`."""
        return self._overlaid is not None

    def events(self) -> Iterator[tuple[bytes, list[Event]]]:
        """The events of updates, by the binary order of the ids of their profiles, and of each as they came."""
        for primary, after in self._with_events:
            assert self.view is not None
            yield primary, self.view.events(primary, after)

    @property
    def has_events(self) -> bool:
        return bool(self._with_events)


def widened(plan: Plan, names: set[str]) -> Plan:
    """A plan with attributes of these names too, of which the model's rows have none."""
    fields = Fields(plan.schema)
    schema, end = fields.extended(names).schema, fields.attributes_end
    more = len(schema.fields) - len(plan.types)
    return plan._replace(
        schema=schema,
        types=plan.types[:end] + (Type(Kind.TEXT),) * more + plan.types[end:],
        columns=plan.columns[:end] + ("CAST(NULL AS VARCHAR)",) * more + plan.columns[end:],
    )


def _key(entry: tuple[bytes, bytes]) -> bytes:
    return entry[0]


def _csv(file: Path, types: list[str]) -> str:
    """SQL of a file of hexadecimal values, which need no quotes: DuckDB takes rows in no faster way without Arrow."""
    columns = ", ".join(f"'c{n}': '{type}'" for n, type in enumerate(types))
    path = str(file).replace("'", "''")
    return f"read_csv('{path}', header = false, auto_detect = false, delim = ',', columns = {{{columns}}})"
