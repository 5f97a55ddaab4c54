"""What an update of a profile may say: from the Batch dialect's JSON to what a loader writes.

A bad attribute is left out alone, as are a bad event and a bad update; each becomes a Problem, and the rest is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from edgeprofile.attributes import (
    ATTRIBUTES_MAX,
    IDENTIFIER_BYTES_MAX,
    NAME,
    NATIVE,
    NATIVE_OF_EVENTS,
    Check,
    Fault,
    Names,
    moment_us,
    plain,
    strings,
    structure,
)

ARRAYS_MAX: Final = 15
EVENTS_MAX: Final = 15
EVENT_AGE_US_MAX: Final = 24 * 3_600 * 1_000_000
SKEW_US_MAX: Final = 60 * 1_000_000
"""How far a caller's clock may be off, to either side."""
ID_BYTES_MAX: Final = 511
VALUE_BYTES_MAX: Final = 32 * 1024
BRACKETS_MAX: Final = 500
PROBLEMS_MAX: Final = 10_000
"""How many problems one answer lists; the others are counted."""
NAME_CHARS_SHOWN: Final = 100
# What every answer has of its own.
RESERVED = ("_audiences", "_updated_at")

Category = Literal["update", "identifier", "attribute", "event"]
# An event as it goes to the loader: its id, which these have not, its name and time, and its parameters as JSON.
Event = tuple[None, str, int, dict[str, bytes]]
# Of attributes, by name: what to set (None clears), what to add to arrays, and what to remove from them.
Changes = tuple[dict[str, bytes | None], dict[str, list[bytes]], dict[str, list[bytes]]]
# One update as it goes to the loader: the profile's id, the Changes, and the events.
Kept = tuple[str, dict[str, bytes | None], dict[str, list[bytes]], dict[str, list[bytes]], list[Event]]

encode = msgspec.json.encode
decode = msgspec.json.Decoder().decode


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was left out of a call: of which update, and where it is one attribute, of which."""

    category: Category
    bulk_index: int
    reason: str
    attribute: str | None = None


class Rules:
    """The rules of one workspace, which declares these columns; its updates are of the profiles of a namespace."""

    def __init__(self, primary: str, audiences: Iterable[str], identifiers: Iterable[str], namespace: str) -> None:
        taken = dict.fromkeys(RESERVED, "this name is the answers' own")
        taken |= dict.fromkeys(audiences, "an audience is the model's alone")
        taken[primary] = "the primary id of a profile does not change"
        self.names = Names(NATIVE, plain, taken, identifiers)
        self.names_of_events = Names(NATIVE_OF_EVENTS, structure, {}, ())
        self.id_bytes_max = ID_BYTES_MAX if namespace == primary else IDENTIFIER_BYTES_MAX


class Reading:
    """What became of the updates of one call, which came at `now_us` (microseconds since 1970).

    `kept` is to be written; `numbers` has the place in the call of each of these; `problems` has what was left out.
    """

    def __init__(self, rules: Rules, now_us: int) -> None:
        self._rules = rules
        self._now_us = now_us
        self._events_of: dict[str, int] = {}
        self._unlisted = 0
        self.kept: list[Kept] = []
        self.numbers: list[int] = []
        self._problems: list[Problem] = []

    def problems(self) -> list[Problem]:
        """All of them, or the first PROBLEMS_MAX and one that says how many there are beside."""
        if not self._unlisted:
            return self._problems
        more = Problem("update", self._problems[-1].bulk_index, f"{self._unlisted} more errors are not listed")
        return [*self._problems, more]

    def note(self, category: Category, number: int, reason: str, attribute: str | None = None) -> None:
        """Adds a problem."""
        if len(self._problems) >= PROBLEMS_MAX:
            self._unlisted += 1
            return
        name = attribute if attribute is None else attribute[:NAME_CHARS_SHOWN]
        self._problems.append(Problem(category, number, reason, name))

    def take(self, number: int, update: bytes) -> None:
        """Reads the update at that place in the call, which is JSON."""
        category: Category = "update"
        try:
            identifiers, attributes, events = _parts(update)
            category = "identifier"
            primary = self._id_in(identifiers)
        except Fault as fault:
            self.note(category, number, str(fault))
            return
        sets, adds, removes = self._read_attributes(number, attributes)
        taken = self._read_events(number, primary, events) if events else []
        # Of what is nothing but bad no profile is made.
        if sets or adds or removes or taken or not (attributes or events):
            self.kept.append((primary, sets, adds, removes, taken))
            self.numbers.append(number)

    def _id_in(self, identifiers: object) -> str:
        if not isinstance(identifiers, dict) or list(identifiers) != ["custom_id"]:
            raise Fault("identifiers is an object that has custom_id, and nothing else")
        primary = identifiers["custom_id"]
        if type(primary) is not str or not primary:
            raise Fault("custom_id is a string that is not empty")
        if len(primary.encode()) > self._rules.id_bytes_max:
            raise Fault(f"custom_id has at most {self._rules.id_bytes_max} bytes")
        return primary

    def _read_attributes(self, number: int, attributes: dict[str, Any]) -> Changes:
        sets: dict[str, bytes | None] = {}
        adds: dict[str, list[bytes]] = {}
        removes: dict[str, list[bytes]] = {}
        for typed, value in attributes.items():
            try:
                name, check = self._rules.names.find(typed)
                if name in sets or name in adds or name in removes:
                    raise Fault(f"{name} stands twice in this update")
                if value is None:
                    sets[name] = None
                elif isinstance(value, dict):
                    _read_changes(name, check, value, adds, removes)
                else:
                    sets[name] = _json(check(value))
            except Fault as fault:
                self.note("attribute", number, str(fault), typed)
        return sets, adds, removes

    def _read_events(self, number: int, primary: str, events: list[Any]) -> list[Event]:
        count = self._events_of.get(primary, 0) + len(events)
        if count > EVENTS_MAX:
            self.note("event", number, f"a profile has at most {EVENTS_MAX} events a call; none of these was taken")
            return []
        self._events_of[primary] = count
        taken: list[Event] = []
        for at, event in enumerate(events):
            try:
                name, time_us, attributes = self._event(event)
            except Fault as fault:
                self.note("event", number, f"events[{at}]: {fault}")
                continue
            params: dict[str, bytes] = {}
            for typed, value in attributes.items():
                try:
                    param, check = self._rules.names_of_events.find(typed)
                    if param in params:
                        raise Fault(f"{param} stands twice in this event")
                    if value is not None:
                        params[param] = _json(check(value))
                except Fault as fault:
                    self.note("event", number, f"events[{at}]: {fault}", typed)
            taken.append((None, name, time_us, params))
        return taken

    def _event(self, event: object) -> tuple[str, int, dict[str, object]]:
        """Its name, its time, and its attributes as they are."""
        if not isinstance(event, dict):
            raise Fault("an event is an object")
        if not event.keys() <= {"name", "attributes", "time"}:
            raise Fault("an event has a name, attributes and a time, and nothing else")
        name, attributes = event.get("name"), _object_at(event, "attributes")
        if type(name) is not str or NAME.fullmatch(name) is None:
            raise Fault("the name of an event has 1 to 30 of a-z, A-Z, 0-9 and _")
        if len(attributes) > ATTRIBUTES_MAX:
            raise Fault(f"an event has at most {ATTRIBUTES_MAX} attributes")
        if event.get("time") is None:
            return name, self._now_us, attributes
        time_us = moment_us(event["time"])
        if not self._now_us - EVENT_AGE_US_MAX - SKEW_US_MAX <= time_us <= self._now_us + SKEW_US_MAX:
            raise Fault("the time of an event is within the last 24 hours, and not ahead")
        return name, time_us, attributes


def _parts(content: bytes) -> tuple[object, dict[str, Any], list[Any]]:
    """Identifiers as they are, attributes and events. Raises Fault for what makes the whole update a bad one."""
    try:
        update = decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Fault(f"it cannot be read: {error}") from None
    except RecursionError:
        raise Fault("it cannot be read: it is nested too deep") from None
    if not isinstance(update, dict):
        raise Fault("an update is an object")
    if not update.keys() <= {"identifiers", "attributes", "events"}:
        raise Fault("an update has identifiers, attributes and events, and nothing else")
    attributes, events = _object_at(update, "attributes"), update.get("events")
    if not isinstance(events, list | None):
        raise Fault("events is an array")
    if len(attributes) > ATTRIBUTES_MAX:
        raise Fault(f"an update has at most {ATTRIBUTES_MAX} attributes")
    if sum(type(value) is list or type(value) is dict for value in attributes.values()) > ARRAYS_MAX:
        raise Fault(f"an update has at most {ARRAYS_MAX} arrays")
    return update.get("identifiers"), attributes, events or []


def _object_at(holder: dict[str, Any], key: str) -> dict[str, Any]:
    found = holder.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Fault(f"{key} is an object")
    return found


def _json(value: object) -> bytes:
    content = encode(value)
    if len(content) > VALUE_BYTES_MAX:
        raise Fault(f"a value has at most {VALUE_BYTES_MAX} bytes of JSON")
    # As the loader counts them, which looks at the bytes alone.
    if content.count(b"[") + content.count(b"{") > BRACKETS_MAX:
        raise Fault(f"a value has at most {BRACKETS_MAX} brackets, those in its strings included")
    return content


def _read_changes(
    name: str, check: Check, value: dict[str, object], adds: dict[str, list[bytes]], removes: dict[str, list[bytes]]
) -> None:
    """`{"$add": […], "$remove": […]}`. Raises Fault, with nothing of it taken."""
    if check is not plain:
        raise Fault("this attribute is no array")
    if not value or not value.keys() <= {"$add", "$remove"}:
        raise Fault("an array is changed by $add and $remove, and by nothing else")
    read = {key: [encode(item) for item in strings(items)] for key, items in value.items()}
    for key, to in (("$add", adds), ("$remove", removes)):
        if key in read:
            to[name] = read[key]
