"""Whatever updates, erasures, refreshes, rollbacks and crashes come in whatever order: what is served is what it should
be, by a plain dictionary as the oracle."""

from __future__ import annotations

import copy
import datetime as dt
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from living import Living, living
from workshop import Workshop, roll_back

from edgeprofile import reader, snapshot
from edgeprofile._events import Wanted, read_page
from edgeprofile._live import Live
from edgeprofile._profile import find
from edgeprofile._store import Store
from edgeprofile.errors import ProfileNotFound
from edgeprofile.loader import fold
from edgeprofile.loader.apply import STEPS, LiveWriter
from edgeprofile.loader.changes import Erasures, Updates, read
from edgeprofile.loader.following import restore
from edgeprofile.loader.refresh import refresh
from edgeprofile.record import timestamp_text

IDS = ["a", "b", "c", "d", "é", "f"]
EMAILS = ["A@x", "a@x", "b@x", "ß@x"]
NICKS = ["n1", "n2", "n3", "a", "7"]
CITIES = ["Rome", "Oslo", 'q"uote\\', "☃"]
MOMENT_S = 1_700_000_000
# The model's columns, in the order of their sections: identifiers, attributes, metrics, audiences.
COLUMNS = ["id", "email", "nick", "city", "tags", "n", "vip"]
REMEMBERED = 1 << 60

Json = Any
Event = dict[str, Any]


@dataclass
class Row:
    """A profile in the model."""

    email: str | None
    nick: str | None
    city: str | None
    tags: list[str] | None
    n: int | None
    vip: bool | None
    changed_s: int | None
    events: list[tuple[int, str, int]]  # second, name, parameter `p`

    def value(self, name: str) -> Json:
        return getattr(self, name, None)


@dataclass
class Said:
    """What updates have said of a profile: in which change each was set, and what; when it was, at the latest."""

    sequence: int = 0
    when: tuple[int, int] = (0, 0)
    attributes: dict[str, tuple[int, Json]] = field(default_factory=dict)
    events: list[tuple[int, Event]] = field(default_factory=list)

    def since(self, sequence: int) -> Said | None:
        if self.sequence <= sequence:
            return None
        attributes = {name: each for name, each in self.attributes.items() if each[0] > sequence}
        return Said(self.sequence, self.when, attributes, [each for each in self.events if each[0] > sequence])


@dataclass
class Base:
    """A snapshot: what it was made of, and what its live layer did since."""

    rows: dict[str, Row]
    made: set[str]
    histories: dict[str, list[Event]]
    folded: int
    applied: int
    refreshed: str
    live: dict[str, list[Event]] = field(default_factory=dict)


def newest_first(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda event: event["time"], reverse=True)


def moment(second: int) -> str:
    text = timestamp_text((MOMENT_S + second) * 1_000_000, 1_000_000)
    assert text is not None
    return text


def microseconds(text: str) -> int:
    return (dt.datetime.fromisoformat(text) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


class Oracle:
    """What is served, by the rules of the live layer."""

    def __init__(self) -> None:
        self.sequence = 0
        self.said: dict[str, Said] = {}
        self.erased: dict[str, tuple[int, bool]] = {}
        self.touched: list[tuple[int, str]] = []
        self.bases: dict[str, Base] = {}

    # --- what a profile is -----------------------------------------------------------------------------------------

    def standing(self, base: Base, primary: str) -> tuple[Row | None, Said | None]:
        erased_at, restored = self.erased.get(primary, (0, True))
        if not restored:
            return None, None
        is_void = erased_at > base.folded
        known = not is_void and (primary in base.rows or primary in base.made)
        said = self.said.get(primary)
        if said is not None and not known:
            said = said.since(base.folded)
        return (None if is_void else base.rows.get(primary)), said

    def value(self, base: Base, primary: str, name: str) -> Json:
        row, said = self.standing(base, primary)
        if said is not None and name in said.attributes:
            return said.attributes[name][1]
        return None if row is None else row.value(name)

    def profile(self, base: Base, primary: str) -> dict[str, Json] | None:
        row, said = self.standing(base, primary)
        if row is None and said is None:
            return None
        names = [*COLUMNS[1:6], *(said.attributes if said else ())]
        found = {"id": primary} | {name: self.value(base, primary, name) for name in names}
        audiences = {} if row is None or row.vip is None else {"vip": row.vip}
        return {name: value for name, value in found.items() if value is not None} | {"_audiences": audiences}

    def history(self, base: Base, primary: str) -> list[Event]:
        return [] if self.profile(base, primary) is None else self.there(base, primary)

    def there(self, base: Base, primary: str) -> list[Event]:
        own = [] if self.erased.get(primary, (0, True))[0] > base.folded else base.histories.get(primary, [])
        return base.live.get(primary, own)

    # --- changes ---------------------------------------------------------------------------------------------------

    def begin(self, base: Base, primary: str) -> Said | None:
        """What was said of a profile, to be changed; None where that is refused."""
        if primary in self.erased and not self.erased[primary][1]:
            return None
        said = self.standing(base, primary)[1] or Said()
        self.said[primary] = said
        said.sequence = self.sequence
        self.touched.append((self.sequence, primary))
        return said

    def catch_up(self, base: Base) -> None:
        """Each profile that was touched since, once."""
        for primary in {primary for sequence, primary in self.touched if sequence > base.applied}:
            row, said = self.standing(base, primary)
            if row is None and said is None:
                base.live[primary] = []
            elif said is not None:
                new = [event for sequence, event in said.events if sequence > base.applied]
                base.live[primary] = newest_first(self.there(base, primary) + new)
        base.applied = self.sequence

    def drop_void(self, base: Base) -> None:
        """What was said of profiles before the snapshot evicted them."""
        void = []
        for primary, said in self.said.items():
            known = primary in base.rows or primary in base.made
            if primary in self.erased and self.erased[primary][0] > base.folded:
                known = False
            old = [sequence for sequence, _ in [*said.attributes.values(), *said.events]]
            if not known and min([said.sequence, *old]) <= base.folded:
                void.append(primary)
        if void:
            self.sequence += 1
        for primary in void:
            self.touched.append((self.sequence, primary))
            left = self.said.pop(primary).since(base.folded)
            if left is not None:
                self.said[primary] = left

    def fold(self, rows: dict[str, Row], before: Base, refreshed: str) -> Base:
        """The snapshot of these rows and all that was said."""
        kept = {primary: row for primary, row in rows.items() if primary not in self.erased or self.erased[primary][1]}
        base = Base(kept, set(), {}, self.sequence, self.sequence, refreshed)
        for primary in {*kept, *self.said}:
            had, said = self.standing(before, primary)
            if primary not in kept:
                if had is not None or said is None:
                    continue
                base.made.add(primary)
            events = [
                {"id": f"{second}{name}{p}", "name": name, "time": moment(second), "params": {"p": p}}
                for second, name, p in (rows[primary].events if primary in rows else ())
            ]
            events.sort(key=lambda event: str(event["id"]))
            base.histories[primary] = newest_first(events + [event for _, event in (said.events if said else ())])
        return base


# --- what happens ----------------------------------------------------------------------------------------------------

ROWS = st.builds(
    Row,
    email=st.none() | st.sampled_from(EMAILS),
    nick=st.none(),
    city=st.none() | st.sampled_from(CITIES),
    tags=st.none() | st.lists(st.sampled_from("xyz"), unique=True, max_size=2),
    n=st.none() | st.integers(0, 9),
    vip=st.none() | st.booleans(),
    changed_s=st.none() | st.sampled_from([0, 100, 3_000_000_000]),
    events=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["page", "buy"]), st.integers(0, 2)), max_size=2),
)
MODELS = st.dictionaries(st.sampled_from(IDS), ROWS, min_size=1, max_size=5)
VALUES = {
    "email": st.sampled_from(EMAILS),
    "nick": st.sampled_from(NICKS) | st.just(7),
    "city": st.sampled_from(CITIES),
    "n": st.integers(10, 19) | st.sampled_from(["text", True, [1, {"a": None}]]),
    "extra": st.sampled_from(["e", 1.5, False]),
    "Extra2": st.sampled_from(["e"]),
}
ATTRIBUTES = st.fixed_dictionaries({}, optional={name: st.none() | values for name, values in VALUES.items()})
ITEMS = st.lists(st.sampled_from("xyzw"), max_size=2)
EVENTS = st.lists(
    st.tuples(st.none() | st.just("own"), st.sampled_from(["page", "sms"]), st.integers(0, 3), st.integers(0, 9)),
    max_size=2,
)
UPDATES = st.tuples(st.sampled_from(IDS), ATTRIBUTES, ITEMS, ITEMS, EVENTS)
BATCHES = st.lists(UPDATES, min_size=1, max_size=4)


class Crash(Exception):
    """The end of a writer, as far as its files know."""


def crashing(step: str) -> Callable[[str], None]:
    def at(reached: str) -> None:
        if reached == step:
            raise Crash

    return at


def encoded(value: Json) -> bytes | None:
    return None if value is None else msgspec.json.encode(value)


class LiveState(RuleBasedStateMachine):
    """A workspace, and what it should serve."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.shop = Workshop(self.folder)
        self.home = self.shop.home
        self.oracle = Oracle()
        self.rows: dict[str, Row] = {}
        self.current = ""

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @property
    def base(self) -> Base:
        return self.oracle.bases[self.current]

    # --- the model -------------------------------------------------------------------------------------------------

    def write_model(self) -> None:
        """The rows as files of JSON, which say more than SQL's quotes let one."""
        rows = [
            {"id": primary, "changed": None if row.changed_s is None else moment(row.changed_s - MOMENT_S)}
            | {name: row.value(name) for name in COLUMNS[1:]}
            for primary, row in self.rows.items()
        ]
        events = [
            {"profile": primary, "event": f"{second}{name}{p}", "name": name, "moment": moment(second), "p": p}
            for primary, row in self.rows.items()
            for second, name, p in row.events
        ]
        nothing = {"profile": None, "event": None, "name": None, "moment": None, "p": None}
        for name, content in (("rows", rows), ("events", [*events, nothing])):
            (self.folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        types = "id: 'VARCHAR', email: 'VARCHAR', nick: 'VARCHAR', city: 'VARCHAR', tags: 'VARCHAR[]', n: 'BIGINT', "
        types += "vip: 'BOOLEAN', changed: 'TIMESTAMP'"
        self.shop.model(
            f"FROM read_json('rows.json', columns = {{{types}}})",
            identifiers=[{"column": "email", "unique": False, "normalize": "lower"}, {"column": "nick"}],
            metrics=["n"],
            audiences=["vip"],
            updated_at="changed",
            shrink_max=1.0,
            rejects_max=1.0,
            threads=1,
            events={
                "sql": "FROM read_json('events.json', columns = {profile: 'VARCHAR', event: 'VARCHAR', "
                "name: 'VARCHAR', moment: 'TIMESTAMP', p: 'BIGINT'})",
                "profile": "profile",
                "name": "name",
                "time": "moment",
                "id": "event",
            },
        )

    @initialize(rows=MODELS)
    def first(self, rows: dict[str, Row]) -> None:
        self.rows = rows
        self.write_model()
        self.shop.load()
        nobody = Base({}, set(), {}, 0, 0, "")
        self.take(self.oracle.fold(self.rows, nobody, ""))

    def take(self, base: Base) -> None:
        """What was published becomes what should be served."""
        manifest = self.shop.manifest()
        base.refreshed = timestamp_text(int(manifest.started_at * 1e6), 1_000_000) or ""
        self.current = manifest.name
        self.oracle.bases[self.current] = base
        kept = snapshot.names(self.home)
        self.oracle.bases = {name: each for name, each in self.oracle.bases.items() if name in kept}

    @rule(rows=MODELS, is_merged=st.booleans())
    def model_changed(self, rows: dict[str, Row], is_merged: bool) -> None:
        self.rows = self.rows | rows if is_merged else rows
        self.write_model()
        self.refreshed(None, "")

    @rule(batch=BATCHES | st.none(), step=st.sampled_from(snapshot.STEPS[:7]))
    def refreshed(self, batch: list[Any] | None, step: str) -> None:
        """Updates may come while the snapshot is built."""
        base = self.oracle.fold(self.rows, self.base, "")
        was_dropped = False

        def at(reached: str) -> None:
            nonlocal was_dropped
            if reached == "built":
                was_dropped = True
                self.oracle.drop_void(self.base)
            if reached == step and batch is not None:
                self.update(batch)

        outcome = refresh(self.shop.settings(), "shop", force=False, progress=lambda *_: None, at=at)
        if outcome.outcome == "published":
            self.oracle.catch_up(base)
            self.take(base)
        else:
            assert not was_dropped

    # --- changes ---------------------------------------------------------------------------------------------------

    @rule(batch=BATCHES)
    def update(self, batch: list[Any], at: Callable[[str], None] = snapshot.nothing) -> None:
        self.oracle.sequence += 1
        asked, refused = [], []
        began = time.time_ns() // 1000
        touched: list[Said] = []
        for index, (primary, attributes, adds, removes, events) in enumerate(batch):
            asked.append(
                [
                    primary,
                    {name: encoded(value) for name, value in attributes.items()},
                    {"tags": [encoded(item) for item in adds]} if adds else {},
                    {"tags": [encoded(item) for item in removes]} if removes else {},
                    [
                        [own, name, (MOMENT_S + second) * 1_000_000, {"p": encoded(p), "u": b"[]"}]
                        for own, name, second, p in events
                    ],
                ]
            )
            said = self.oracle.begin(self.base, primary)
            if said is None:
                refused.append(index)
                continue
            touched.append(said)
            self.say(said, primary, attributes, adds, removes, events)
        with LiveWriter(self.home, at) as writer:
            answer = writer.update(read({"updates": asked}, Updates))
        assert [each.index for each in answer] == refused
        for said in touched:
            said.when = (began, time.time_ns() // 1000)
        self.oracle.catch_up(self.base)

    def say(self, said: Said, primary: str, attributes: Json, adds: Json, removes: Json, events: Json) -> None:
        sequence = self.oracle.sequence
        for name, value in attributes.items():
            if value is None:
                said.attributes.pop(name, None)
            else:
                said.attributes[name] = (sequence, value)
        there = self.oracle.value(self.base, primary, "tags")
        if (adds or removes) and (there is not None or adds):
            items = [item for item in dict.fromkeys([*(there or ()), *adds]) if item not in removes]
            said.attributes["tags"] = (sequence, items)
        for own, name, second, p in events:
            event = {"name": name, "time": moment(second), "params": {"p": p, "u": []}}
            said.events.append((sequence, event if own is None else {"id": own} | event))

    @rule(batch=BATCHES, step=st.sampled_from(STEPS))
    def crash(self, batch: list[Any], step: str) -> None:
        """A writer that dies in the middle of a batch: it was done, or it was not."""
        before = copy.deepcopy(self.oracle)
        try:
            self.update(batch, crashing(step))
        except Crash:
            if step == "overlay_written":
                self.oracle = before
                return
            for _, primary in self.oracle.touched:
                if primary in self.oracle.said and self.oracle.said[primary].sequence == self.oracle.sequence:
                    self.oracle.said[primary].when = (0, REMEMBERED)
            with LiveWriter(self.home) as writer:
                writer.catch_up()
            self.oracle.catch_up(self.base)

    @rule(nick=st.sampled_from(NICKS), city=st.sampled_from(CITIES))
    def update_by_identifier(self, nick: str, city: str) -> None:
        with living(self.home) as served:
            found = served.found("nick", nick)
        primary = found[0] if found else nick
        self.oracle.sequence += 1
        began = time.time_ns() // 1000
        said = self.oracle.begin(self.base, primary)
        if said is not None:
            said.attributes["city"] = (self.oracle.sequence, city)
            if not found:
                said.attributes["nick"] = (self.oracle.sequence, nick)
        with LiveWriter(self.home) as writer:
            asked = {"updates": [[nick, {"city": encoded(city)}]], "namespace": "nick"}
            refused = writer.update(read(asked, Updates))
        assert bool(refused) == (said is None)
        if said is not None:
            said.when = (began, time.time_ns() // 1000)
        self.oracle.catch_up(self.base)

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=2, unique=True))
    def erase(self, ids: list[str]) -> None:
        self.oracle.sequence += 1
        for primary in ids:
            self.oracle.said.pop(primary, None)
            self.oracle.erased[primary] = (self.oracle.sequence, False)
            self.oracle.touched.append((self.oracle.sequence, primary))
        with LiveWriter(self.home) as writer:
            writer.erase(Erasures(ids))
        self.oracle.catch_up(self.base)

    @rule(primary=st.none() | st.sampled_from(IDS))
    def restore(self, primary: str | None) -> None:
        erased = [
            each for each, (_, restored) in self.oracle.erased.items() if not restored and primary in (None, each)
        ]
        assert restore(self.home, primary) == len(erased)
        for each in erased:
            self.oracle.erased[each] = (self.oracle.erased[each][0], True)

    @precondition(lambda self: self.shop.manifest().previous in self.oracle.bases)
    @rule()
    def rolled_back(self) -> None:
        self.current = roll_back(self.home).name
        self.oracle.catch_up(self.base)

    # --- what is served --------------------------------------------------------------------------------------------

    @invariant()
    def what_is_served_is_what_should_be(self) -> None:
        if not self.current:
            return
        with living(self.home) as served:
            served.check()
            expected = {
                primary: profile
                for primary in {*self.base.rows, *self.oracle.said, *self.base.made}
                if (profile := self.oracle.profile(self.base, primary)) is not None
            }
            assert served.ids() == sorted(expected, key=str.encode)
            for primary, profile in expected.items():
                found = served.profile(primary)
                assert found is not None
                self.check_time(primary, found.pop("_updated_at"))
                assert found == profile
                assert served.events_of(primary) == self.oracle.history(self.base, primary)
            self.check_order(served)
            check_compiled(served)

    def check_time(self, primary: str, found: str) -> None:
        row, said = self.oracle.standing(self.base, primary)
        own = None if row is None or row.changed_s is None else moment(row.changed_s - MOMENT_S)
        if said is None:
            assert found == (own or self.base.refreshed)
        elif found != own:
            assert said.when[0] <= microseconds(found) <= said.when[1]
            assert own is None or microseconds(found) > microseconds(own)

    def check_order(self, served: Living) -> None:
        """Of several that share an identifier the last updated is first, and those without a time are last."""
        for primaries in served.index().values():
            ranks = []
            for primary in primaries:
                profile = served.profile(primary)
                assert profile is not None
                updated = profile["_updated_at"]
                is_without = updated == self.base.refreshed
                ranks.append((is_without, 0 if is_without else -microseconds(updated), primary.encode()))
            assert ranks == sorted(ranks)


def check_compiled(served: Living) -> None:
    """What workers read by is of the same mind as the plain reader."""
    folder = served.folder
    live = Live(folder / snapshot.LIVE, folder / snapshot.SEQUENCE, reader.LIVE_DATABASES)
    store = Store(served.reader, live, reader.read_schema, reader.read_events_schema)
    ids = [primary.decode() for primary in store.ids_after(None, 100)]
    assert ids == served.ids()
    for primary in IDS:
        plain = served.profile(primary)
        try:
            found = find(store, primary.encode())
        except ProfileNotFound:
            assert plain is None
            continue
        assert plain is not None
        plain |= plain.pop("_audiences")
        del plain["_updated_at"]
        values = {each.name: found.value(number) for number, each in enumerate(found.schema.fields)}
        assert {name: json.loads(value) for name, value in values.items() if value is not None} == plain
        page = read_page(store, primary.encode(), Wanted([], -(1 << 63), (1 << 63) - 1, 100, None), 1 << 20)
        assert json.loads(page.body())["events"] == served.events_of(primary)
        del found, page
    del store


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Iterator[None]:
    """So that what is folded is more than one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "CHUNK_PROFILES", 2)
        yield


TestLiveState = LiveState.TestCase
TestLiveState.settings = settings(
    max_examples=10, stateful_step_count=18, deadline=None, suppress_health_check=list(HealthCheck)
)
