"""The one writer of a workspace's updates: each batch goes to the overlay, then to the live layer, whole and durable.

The overlay is written first. Where the process dies between the two, the next one finds that the live layer lacks
changes, and applies them: nothing is lost, and nothing is done twice.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import msgspec

from edgeprofile import snapshot
from edgeprofile.errors import FormatUnsupported, InvalidChange, RecordDamaged
from edgeprofile.loader.base import NOTHING, Base, Standing
from edgeprofile.loader.changes import Delta, Erasures, Refused, Update, Updates, compact
from edgeprofile.loader.live import Live, Touched
from edgeprofile.loader.merging import IDENTIFIER_BYTES_MAX, Row, identifier_text
from edgeprofile.loader.overlay import Change, Overlay, Profile, View, open_overlay
from edgeprofile.loader.writer import WriterError, store_error
from edgeprofile.reader import KEY_BYTES_MAX
from edgeprofile.record import FIELDS_MAX, json_text

# The crash points of a batch, in order. After any of them the batch was not done, or will be, as a whole.
STEPS = ("overlay_written", "overlay_committed", "live_written", "live_committed", "announced")
# Of a profile's attributes that updates have set.
ATTRIBUTES_MAX = 512
ARRAY_ITEMS_MAX = 25

_texts = msgspec.json.Decoder(list[str])
_text = msgspec.json.Decoder(str)


class LiveWriter:
    """Writes the updates of one workspace, one batch after the other. Not for use by two threads at once.

    Raises StoreError where nothing can be written now: there is no snapshot yet, or it is damaged, or the disk is full.
    """

    def __init__(self, home: Path, at: snapshot.AtStep = snapshot.nothing) -> None:
        self._home = home
        self._at = at
        self._overlay: Overlay | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all files. What is asked next opens them again."""
        self._close_live()
        if self._overlay is not None:
            self._overlay.close()
            self._overlay = None

    def update(self, request: Updates) -> list[Refused]:
        """Writes a batch, and tells what of it was left out. What is refused is no error of the others."""
        with _uncollected(), self._writing() as (overlay, live):
            with overlay.change(after=live.applied) as change:
                batch = _Batch(request, change, live)
                batch.stage()
                self._at("overlay_written")
            self._apply(overlay, live, batch.touched())
        return batch.refused

    def erase(self, request: Erasures) -> None:
        """Erases profiles, also those that nobody knows: later rows and updates of these ids are refused."""
        now_us = time.time_ns() // 1000
        primaries = {primary for each in request.ids if 0 < len(primary := each.encode()) <= KEY_BYTES_MAX}
        with self._writing() as (overlay, live):
            with overlay.change(after=live.applied) as change:
                for primary in primaries:
                    change.erase(primary, now_us)
                self._at("overlay_written")
            self._apply(overlay, live, ([(primary, NOTHING) for primary in sorted(primaries)], 0))

    def bring(self, name: str, delta: Delta, rows_max: int) -> tuple[int, int] | None:
        """Writes what a delta refresh brings to the snapshot of this name; returns how many profiles have another row
        than before, and how many have none any more. None where another snapshot is current, or the layer would come
        to have more rows than that: nothing is written then.

        What updates said of a profile goes with its row, as it does where a full refresh evicts it.
        """
        with _uncollected(), self._writing() as (overlay, live):
            with overlay.change(after=live.applied) as change:
                rows = [each for each in delta.rows if _is_news(live, change, *each)]
                if live.base.name != name or live.rows + len(rows) > rows_max:
                    return None
                gone = [primary for primary, record in rows if not record]
                for primary in gone:
                    if change.profile(primary) is not None:
                        change.drop(primary, change.sequence)
                self._at("overlay_written")
            self._at("overlay_committed")
            with overlay.view() as view:
                whole = [(primary, live.base.standing(primary, view, record)) for primary, record in rows]
                live.apply(view, (whole, 0), self._at, Delta(rows, delta.watermark_us))
            self._at("announced")
            return len(rows) - len(gone), len(gone)

    def moved(self) -> dict[bytes, bool]:
        """See Live.moved."""
        with self._writing() as (_, live):
            return live.moved()

    def catch_up(self) -> None:
        """Applies what an earlier writer left undone, if it did."""
        with self._writing():
            pass

    def erasure_due_at(self, within_s: float) -> float | None:
        """When to refresh at the latest, in seconds since 1970, so that what was erased is on no disk after `within_s`.

        None where every snapshot that is kept is of after the last erasure.
        """
        known = min((each.updates for each in snapshot.manifests(self._home)), default=0)
        with self._writing() as (overlay, _), overlay.view() as view:
            erasures = [each for _, each in view.erasures() if each.sequence > known and not each.restored]
        return min((each.due_at(within_s) for each in erasures), default=None)

    def _apply(self, overlay: Overlay, live: Live, touched: Touched) -> None:
        self._at("overlay_committed")
        with overlay.view() as view:
            if view.sequence > live.applied:
                live.apply(view, touched, self._at)
        self._at("announced")

    @contextmanager
    def _writing(self) -> Iterator[tuple[Overlay, Live]]:
        """The overlay and the live layer of the current snapshot, which has all that the overlay has."""
        try:
            if self._overlay is None:
                self._overlay = open_overlay(self._home)
            with snapshot.updating(self._home):
                live = self._follow()
                live.follow()
                with self._overlay.view() as view:
                    live.catch_up(view)
                yield self._overlay, live
        except (OSError, WriterError) as error:
            self.close()  # after a failed write, LMDB takes no other
            raise store_error(error, self._home, "an update") from error
        except BaseException:
            self.close()
            raise

    def _follow(self) -> Live:
        name = snapshot.current(self._home)
        if self._live is None or self._live.base.name != name:
            self._close_live()
            folder = snapshot.folder(self._home, name)
            manifest = snapshot.read_manifest(folder)
            snapshot.check_size(folder, manifest)
            self._live = Live(folder, Base(folder, manifest))
        return self._live

    def _close_live(self) -> None:
        if self._live is not None:
            self._live.close()
            self._live.base.close()
            self._live = None


def _is_news(live: Live, view: View, primary: bytes, record: bytes) -> bool:
    """Whether a row is another than before. What was erased stays as it is."""
    erasure = view.erasure(primary)
    return (erasure is None or erasure.restored) and live.row_of(primary) != record


class _Refusal(Exception):
    """Why an update, or one attribute of it, is left out."""


class _Batch:
    """Updates on their way into the overlay, in their order: each sees what those before it have done."""

    def __init__(self, request: Updates, change: Change, live: Live) -> None:
        self.refused: list[Refused] = []
        self._updates = request.updates
        self._change = change
        self._live = live
        self._fields = live.fields
        self._now_us = time.time_ns() // 1000
        # What was said of each profile, by now; its row, if it has one; and those whose rows are damaged.
        self._said: dict[bytes, Profile] = {}
        self._rows: dict[bytes, Row | None] = {}
        self._damaged: set[bytes] = set()
        # Names of attributes that are none of the snapshot's, and those of which nothing is left to be checked.
        self._new: set[str] = set()
        self._good: set[str] = set()
        # Which profile was given an identifier, of those by which updates find theirs.
        self._given: dict[bytes, bytes] = {}
        names = [space.name for space in self._fields.namespaces]
        if request.namespace is not None and request.namespace not in names:
            raise InvalidChange("a request that is not as it should be: no such namespace")
        self._namespace = 0 if request.namespace is None else names.index(request.namespace)

    def stage(self) -> None:
        """Writes all that is not refused as a part of the change. Raises InvalidChange."""
        for index, update in enumerate(self._updates):
            try:
                self._stage(index, update)
            except _Refusal as refusal:
                self.refused.append(Refused(index, str(refusal)))
        self._change.put_profiles(self._said)

    def touched(self) -> Touched:
        """What the profiles that were touched are made of by now, in binary order; and how many rows are damaged."""
        whole = sorted(self._said.keys() - self._damaged)
        return [(each, Standing(self._rows[each], self._said[each])) for each in whole], len(self._damaged)

    def _stage(self, index: int, update: Update) -> None:
        primary = self._primary_of(update.id)
        said = self._begin(primary)
        for name, value in update.attributes.items():
            if value is not None and name in self._good and name in said.attributes:
                said.attributes[name] = (said.sequence, compact(value))
                continue
            try:
                self._set(primary, name, value)
            except _Refusal as refusal:
                self.refused.append(Refused(index, str(refusal), name))
        for name in update.adds.keys() | update.removes.keys():
            try:
                self._change_array(primary, name, update.adds.get(name, ()), update.removes.get(name, ()))
            except _Refusal as refusal:
                self.refused.append(Refused(index, str(refusal), name))
        for event in update.events:
            event.params = {name: compact(value) for name, value in event.params.items()}
            self._change.add_event(primary, event)
            said.events = said.sequence

    # --- profiles --------------------------------------------------------------------------------------------------

    def _primary_of(self, value: str) -> bytes:
        """The primary id of the profile that an update is of. One that nobody has is a new profile's, with that id."""
        if self._namespace == 0:
            return value.encode()
        key = self._fields.index_key(self._namespace, _json(value))
        if key is None:
            raise _Refusal(_BAD_ID)
        given = self._given.get(key)
        for primary in ([] if given is None else [given]) + self._live.primaries_of(key):
            if primary not in self._said or self._identifier_of(primary) == key:
                return primary
        primary = value.encode()
        self._begin(primary)
        self._set(primary, self._fields.namespaces[self._namespace].name, _json(value))
        return primary

    def _identifier_of(self, primary: bytes) -> bytes | None:
        """What stands in the index for the namespace of the updates, of a profile as it is by now."""
        value = self._value_of(primary, self._fields.namespaces[self._namespace].name)
        return self._fields.index_key(self._namespace, value)

    def _begin(self, primary: bytes) -> Profile:
        """What was said of a profile so far, to be changed."""
        said = self._said.get(primary)
        if said is None:
            if not 0 < len(primary) <= KEY_BYTES_MAX:
                raise _Refusal(_BAD_ID)
            erasure = self._change.erasure(primary)
            if erasure is not None and not erasure.restored:
                raise _Refusal("the profile was erased")
            try:
                self._rows[primary], said = self._live.standing(primary, self._change)
            except (RecordDamaged, FormatUnsupported):
                self._rows[primary], said = None, self._change.profile(primary)
                self._damaged.add(primary)
            said = self._said[primary] = said or Profile(0, 0, 0, {})
            said.sequence, said.updated_us = self._change.sequence, self._now_us
        return said

    # --- attributes ------------------------------------------------------------------------------------------------

    def _set(self, primary: bytes, name: str, value: bytes | None) -> None:
        said = self._said[primary]
        if value is None or value == b"null":
            said.attributes.pop(name, None)
            return
        if name not in said.attributes and len(said.attributes) >= ATTRIBUTES_MAX:
            raise _Refusal(f"a profile has at most {ATTRIBUTES_MAX} attributes that updates have set")
        value = compact(value)
        if name not in self._good:
            self._check(primary, name, value)
        said.attributes[name] = (said.sequence, value)

    def _check(self, primary: bytes, name: str, value: bytes) -> None:
        if self._fields.is_taken(name):
            raise _Refusal("the model alone decides on what has this name")
        if not self._fields.is_identifier(name):
            if name not in self._fields.number_of:
                if len(self._fields.schema.fields) + len(self._new) >= FIELDS_MAX:
                    raise _Refusal(f"profiles have at most {FIELDS_MAX} different attributes")
                self._new.add(name)
            self._good.add(name)
            return
        text = identifier_text(value)
        if text is None or len(text.encode()) > IDENTIFIER_BYTES_MAX:
            raise _Refusal(f"an identifier is text of at most {IDENTIFIER_BYTES_MAX} bytes, or an integer")
        key = self._fields.index_key(self._fields.number_of[name], value)
        if key is not None:
            self._given[key] = primary

    def _change_array(self, primary: bytes, name: str, adds: Sequence[bytes], removes: Sequence[bytes]) -> None:
        value = self._value_of(primary, name)
        if value is None and not adds:
            return
        try:
            there = [] if value is None else _texts.decode(value)
            added, removed = [_text.decode(item) for item in adds], {_text.decode(item) for item in removes}
        except msgspec.MsgspecError:
            raise _Refusal("only arrays of texts are added to and removed from") from None
        items = [item for item in dict.fromkeys([*there, *added]) if item not in removed]
        if len(items) > max(ARRAY_ITEMS_MAX, len(there)):
            raise _Refusal(f"an array has at most {ARRAY_ITEMS_MAX} items")
        self._set(primary, name, msgspec.json.encode(items))

    def _value_of(self, primary: bytes, name: str) -> bytes | None:
        """An attribute's value by now."""
        found = self._said[primary].attributes.get(name)
        if found is not None:
            return found[1]
        number, row = self._live.base.fields.number_of.get(name), self._rows[primary]
        return None if number is None or row is None else row.values[number]


_BAD_ID = f"an id is text of 1 to {KEY_BYTES_MAX} bytes"


def _json(text: str) -> bytes:
    return json_text(text).encode()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collection of garbage, which costs a quarter of a batch and finds none: nothing here is circular."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
