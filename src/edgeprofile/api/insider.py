"""Insider's user profile API: attributes and events of one profile, by an identifier, for callers that were theirs.

What a body asks for comes again and again, whoever it asks about. So the lists of attributes and of wanted events are
not read anew: the plan that was made of one is found by the bytes that it was read from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from edgeprofile import limiter
from edgeprofile._exchange import Exchange
from edgeprofile._gate import Grant
from edgeprofile._limiter import SharedMap
from edgeprofile._profile import TIME_S, VALUE, Template, find
from edgeprofile._store import Store, Workspace
from edgeprofile._walk import Walk
from edgeprofile.api.dialect import Answer, Numbered, Service, lowered
from edgeprofile.errors import (
    AnswerTooLarge,
    ApiError,
    MalformedBody,
    MethodNotAllowed,
    NotReady,
    ProfileNotFound,
    RateLimited,
    Unauthorized,
    UnknownNamespace,
)
from edgeprofile.history import EventsSchema
from edgeprofile.metrics import limited_slot
from edgeprofile.record import Schema
from edgeprofile.vendors import Insider

PATH = b"/api/user/v1/profile"
ATTRIBUTES_MAX = 500
WANTED_MAX = 32
PARAMS_MAX = 100
NAME_CHARS_MAX = 256
# Of all that a request wants: each is read while lookups wait.
EVENTS_MAX = 10_000
# The last second of the year 9999.
SECONDS_MAX = 253_402_300_799
# Plans of longer lists are made anew each time, so that nobody fills the memory with them.
PLAN_BYTES_MAX = 2_048
THOUSANDTHS = 1_000
SECOND_US = 1_000_000
# Their identifiers, in the order in which they are looked at; others, and custom ones, come in that of the settings.
KINDS = ("email", "phone_number", "uuid")

ABSENT = Raw(b"null")

T = TypeVar("T")
Recall = Callable[[object, Callable[[], T]], T]
Moment = Annotated[int, Meta(ge=0, le=SECONDS_MAX)]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
Limit = Annotated[int, Meta(ge=1, le=EVENTS_MAX)]


class WantedEvent(Struct):
    """Events of one name, with the parameters that are wanted of each."""

    event_name: Name
    params: Annotated[list[Name], Meta(max_length=PARAMS_MAX)]
    limit_per_source: Limit | None = None


Attributes = Annotated[list[Name], Meta(max_length=ATTRIBUTES_MAX)]
WantedEvents = Annotated[list[WantedEvent], Meta(max_length=WANTED_MAX)]


class Events(Struct):
    """The range, in seconds since 1970, both ends included. `wanted` is a list of WantedEvent."""

    start_date: Moment
    end_date: Moment
    wanted: Raw
    limit_per_source: Limit | None = None


class Body(Struct):
    """What is asked for, of whom. `attributes` is a list of names."""

    identifiers: dict[str, str | dict[str, str | None] | None] | None = None
    insider_id: str | None = None
    attributes: Raw = ABSENT
    events: Events | None = None
    quota: bool = False


_bodies = msgspec.json.Decoder(Body)
_attribute_lists = msgspec.json.Decoder(Attributes | None)
_wanted_lists = msgspec.json.Decoder(WantedEvents)

# What must stand at each place of a body, for whom it does not; a missing key is a place too.
_NAME = f"a name of 1 to {NAME_CHARS_MAX} characters"
_MOMENT = f"a whole number of seconds since 1970, up to {SECONDS_MAX}"
_LIMIT = f"a whole number from 1 to {EVENTS_MAX}"
EXPECTED = {
    "": "an object",
    "identifiers": "an object",
    "identifiers[]": "a string, or of custom an object",
    "identifiers[][]": "a string",
    "insider_id": "a string",
    "attributes": f"an array of at most {ATTRIBUTES_MAX} names",
    "attributes[]": _NAME,
    "events": "an object",
    "events.start_date": _MOMENT,
    "events.end_date": _MOMENT,
    "events.limit_per_source": _LIMIT,
    "events.wanted": f"an array of at most {WANTED_MAX} objects",
    "events.wanted[]": "an object",
    "events.wanted[].event_name": _NAME,
    "events.wanted[].params": f"an array of at most {PARAMS_MAX} names",
    "events.wanted[].params[]": _NAME,
    "events.wanted[].limit_per_source": _LIMIT,
    "quota": "true or false",
}
MISSING = re.compile(r"missing required field `(\w+)`")
INDEX = re.compile(r"\[[^]]*\]")
AT_BYTE = re.compile(r"\((byte \d+)\)")

JSON_TYPE = (b"content-type", b"application/json")
NO_STORE = (b"cache-control", b"no-store")
INVALID_PARTNER = b'{"success":false,"message":"Partner is invalid."}'
INVALID_TOKEN = b'{"success":false,"message":"Partner token authentication failed."}'
NO_EVENTS = EventsSchema(has_id=False, fields=())


class InvalidPartner(MalformedBody):
    """X-PARTNER-NAME is none of those that are served."""


class NotJson(MalformedBody):
    """The content type is another."""


class Partner(NamedTuple):
    """A workspace as its partner sees it. `quota`, and `costs` by the number of wanted events, are thousandths."""

    workspace: Workspace
    kinds: list[tuple[str, bytes]]
    custom: list[tuple[str, bytes]]
    limited_slot: int
    quota_cell: int
    quota: int
    costs: list[int]


class Wanted(NamedTuple):
    """What to read of a snapshot for a WantedEvent. `opening` begins its list; `source` is the number of a field."""

    name: str
    opening: bytes
    template: Template
    source: int
    limit: int | None


class InsiderApi:
    """The dialect, for the workspaces that have it, by their tables."""

    def __init__(self, service: Service, tables: dict[str, Insider]) -> None:
        self._gate = service.gate
        self._shared = service.shared
        self._bytes_max = service.response_bytes_max
        self._partners: dict[bytes | None, Partner] = {
            tables[name].partner.encode(): _partner(workspace, limited_slot(number), tables[name], service.shared)
            for number, (name, workspace) in enumerate(service.workspaces.items())
            if name in tables
        }

    def check(self, request: Exchange) -> None:
        """Refuses other methods than POST, unknown partners, bad tokens, and other types than JSON."""
        if request.method != "POST":
            raise MethodNotAllowed("POST")
        self._authorize(request)
        content_type = request.header(b"content-type") or b""
        if content_type.partition(b";")[0].strip().lower() != b"application/json":
            raise NotJson("content type must be application/json")

    def answer(self, request: Exchange, body: bytes) -> Answer:
        """What a body asks for of one profile."""
        partner, grant = self._authorize(request)
        try:
            store = partner.workspace.store
            if store is None:
                raise NotReady()
            asked = _asked(body)
            names = _plan(store.recall, partial(_names, asked.attributes), asked.attributes)
            wanted = _wanted_of(store, asked.events.wanted) if asked.events else []
            namespace, value = _who(partner, asked)
            cost = partner.costs[len(wanted)]
            if cost > partner.quota:
                raise MalformedBody("it costs more than the quota of a minute has")
        except ApiError:
            self._gate.admit(grant, grant.meter, 1)
            raise
        used = self._take(partner, grant, cost)
        primary = store.primary_of(namespace, value, lowered) if namespace else value
        profile = find(store, primary)
        template = _plan(profile.recall, partial(_attributes, profile.schema, names), asked.attributes)
        parts = [b'{"attributes":{', profile.render(template, (), self._bytes_max), b"}"]
        if asked.events:
            parts += (b',"events":{', b",".join(self._events(store, primary, asked.events, wanted)), b"}")
        if asked.quota:
            parts.append(_quota(cost, used, partner.quota))
        parts.append(b"}")
        answer = b"".join(parts)
        if len(answer) > self._bytes_max:
            raise AnswerTooLarge(len(answer), self._bytes_max)
        return 200, _headers(request), answer

    @staticmethod
    def refuse(request: Numbered, error: ApiError) -> Answer:
        """An error in their shape, and in their words where they have some."""
        if isinstance(error, Unauthorized):  # whose headers name another scheme than theirs
            return error.status, _headers(request), INVALID_TOKEN
        body = INVALID_PARTNER if isinstance(error, InvalidPartner) else msgspec.json.encode({"error": _said(error)})
        return error.status, [*_headers(request), *error.headers], body

    def _authorize(self, request: Exchange) -> tuple[Partner, Grant]:
        partner = self._partners.get(request.header(b"x-partner-name"))
        if partner is None:
            raise InvalidPartner()
        grant = self._gate.grant_of(request.header(b"x-request-token") or b"")
        request.workspace = grant.workspace
        if grant.workspace is not partner.workspace or not grant.reads:
            raise Unauthorized()
        return partner, grant

    def _take(self, partner: Partner, grant: Grant, cost: int) -> int:
        """Takes of the quota and of the key's limits, or of neither. Returns what is used of the quota."""
        minute, used, wait_ns = self._shared.take_window(partner.quota_cell, cost, partner.quota)
        if wait_ns:
            self._shared.add(partner.limited_slot, 1)
            raise RateLimited(limiter.retry_after_s(wait_ns), [])
        try:
            self._gate.admit(grant, grant.meter, 1)
        except ApiError:
            self._shared.give_back(partner.quota_cell, minute, cost)
            raise
        return used

    def _events(self, store: Store, primary: bytes, asked: Events, wanted: list[Wanted]) -> Iterator[bytes]:
        """The list of each wanted event. Raises MalformedBody where they are too many, AnswerTooLarge."""
        start_us, end_us = asked.start_date * SECOND_US, asked.end_date * SECOND_US + SECOND_US - 1
        events_left, bytes_left = EVENTS_MAX, self._bytes_max
        for name, opening, template, source, limit in wanted:
            walk = Walk(store, primary, names=(name,), start_us=start_us, end_us=end_us)
            per_source = limit or asked.limit_per_source or 0
            found = walk.page(template, events_left + 1, bytes_max=bytes_left, field=source, limit_per_value=per_source)
            events_left -= walk.taken
            bytes_left -= len(found)
            if events_left < 0 or walk.is_cut:
                raise MalformedBody("events must have a shorter range or a limit_per_source: these are too many")
            yield b"%b%b]" % (opening, found)


# --- what was asked ------------------------------------------------------------------------------------------------


def _asked(body: bytes) -> Body:
    """A body, but for its plans. Raises MalformedBody, as all that reads one."""
    asked = _read(_bodies, body, "")
    if asked.events is None and bytes(asked.attributes) == b"null":
        raise MalformedBody("attributes or events must be there")
    if asked.events and asked.events.start_date > asked.events.end_date:
        raise MalformedBody("events.start_date must not be after events.end_date")
    return asked


def _read(decoder: msgspec.json.Decoder[T], text: bytes, place: str) -> T:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _fault(error, place) from None


def _fault(error: Exception, place: str) -> MalformedBody:
    """Where a body is wrong and what must stand there. Nothing of it is quoted but the names of keys that are known."""
    message = str(error)
    if isinstance(error, msgspec.ValidationError):
        place += message.partition(" - at `$")[2].removesuffix("`")
        missing = MISSING.search(message)
        place = f"{place}.{missing[1]}" if missing else place
        expected = EXPECTED[INDEX.sub("[]", place.removeprefix("."))]
        return MalformedBody(f"{place.removeprefix('.') or 'the body'} must be {expected}")
    if isinstance(error, RecursionError):
        return MalformedBody("the body must be less deep")
    found = AT_BYTE.search(message)
    where = f", and is not at {found[1]}" if found else ""
    return MalformedBody(f"{place or 'the body'} must be JSON in UTF-8{where}")


def _who(partner: Partner, asked: Body) -> tuple[bytes, bytes]:
    """A namespace, empty for that of the primary ids, and a value in it: insider_id, or else the first identifier."""
    if asked.insider_id:
        return b"", asked.insider_id.encode()
    given = asked.identifiers or {}
    for name, namespace in partner.kinds:
        value = given.get(name)
        if isinstance(value, dict):
            raise MalformedBody(f"identifiers.{name} must be a string")
        if value:
            return namespace, value.encode()
    custom = given.get("custom") or {}
    if isinstance(custom, str):
        raise MalformedBody("identifiers.custom must be an object")
    for name, namespace in partner.custom:
        if value := custom.get(name):
            return namespace, value.encode()
    raise MalformedBody("no valid identifier")


# --- plans ---------------------------------------------------------------------------------------------------------


def _plan(recall: Recall[T], make: partial[T], asked: Raw) -> T:
    """What `make` makes of a list, or has made of the same bytes before."""
    text = bytes(asked)
    return make() if len(text) > PLAN_BYTES_MAX else recall((make.func, text), make)


def _names(text: Raw) -> list[str]:
    """The attributes that are asked for."""
    return _read(_attribute_lists, bytes(text), "attributes") or []


def _attributes(schema: Schema, names: list[str]) -> Template:
    """Identifiers, attributes and metrics, each under the name that it was asked for by; `iid` is the primary id."""
    audiences = schema.first_audience
    fields = {field.name: number for number, field in enumerate(schema.fields[:audiences])}
    shown = dict(fields) if "*" in names else {}
    for name in names:
        number = fields.get(name, fields.get(name.removeprefix("c_")))
        if number is not None:
            shown[name] = number
    shown.pop("iid", None)
    items = [(VALUE, number, _key(name)) for name, number in shown.items()]
    return Template([*items, (VALUE, 0, _key("iid"))], audiences)


def _wanted_of(store: Store, text: Raw) -> list[Wanted]:
    return _plan(store.recall, partial(_wanted, store, text), text)


def _wanted(store: Store, text: Raw) -> list[Wanted]:
    asked = _read(_wanted_lists, bytes(text), "events.wanted")
    for at, each in enumerate(asked):
        if any(each.event_name == other.event_name for other in asked[:at]):
            raise MalformedBody(f"events.wanted[{at}].event_name must be another than those before it")
    schema = store.events_schema or NO_EVENTS
    params = {name: number for number, name in enumerate(schema.names) if number >= schema.first_param}
    return [
        Wanted(
            each.event_name,
            _key(each.event_name) + b"[",
            Template(_params(each.params, params), schema.first_param, True),
            params.get("source", -1),
            each.limit_per_source,
        )
        for each in asked
    ]


def _params(asked: list[str], params: dict[str, int]) -> list[tuple[Any, ...]]:
    """Items of a template. The time goes by the name of `created_date`, whatever else does."""
    items: dict[str, tuple[Any, ...]] = {}
    for name in asked:
        if name == "timestamp":
            items["created_date"] = (TIME_S, _key("created_date"))
        elif name in params:
            items.setdefault(name, (VALUE, params[name], _key(name)))
    return list(items.values())


def _key(name: str) -> bytes:
    return msgspec.json.encode(name) + b":"


# --- partners and answers ------------------------------------------------------------------------------------------


def _partner(workspace: Workspace, limited: int, table: Insider, shared: SharedMap) -> Partner:
    kinds = _namespaces(table.identifiers)
    kinds.sort(key=lambda kind: KINDS.index(kind[0]) if kind[0] in KINDS else len(KINDS))
    costs = [table.base_cost + table.event_type_cost * count for count in range(WANTED_MAX + 1)]
    return Partner(
        workspace,
        kinds,
        _namespaces(table.custom_identifiers),
        limited,
        shared.cell(f"quota:{table.partner}".encode()),
        round(table.quota_per_minute * THOUSANDTHS),
        [round(cost * table.user_base_factor * THOUSANDTHS) for cost in costs],
    )


def _namespaces(table: dict[str, str]) -> list[tuple[str, bytes]]:
    return [(theirs, ours.encode()) for theirs, ours in table.items()]


def _quota(cost: int, used: int, total: int) -> bytes:
    return b',"quota":{"cost":%b,"used":%b,"total":%b}' % (_number(cost), _number(used), _number(total))


def _number(thousandths: int) -> bytes:
    """As JSON: 2.5, and 1000 without a fraction."""
    whole, rest = divmod(thousandths, THOUSANDTHS)
    return (b"%d.%03d" % (whole, rest)).rstrip(b"0") if rest else b"%d" % whole


def _headers(request: Numbered) -> list[tuple[bytes, bytes]]:
    return [JSON_TYPE, NO_STORE, (b"x-request-id", request.request_id)]


def _said(error: ApiError) -> str:
    match error:
        case NotJson():
            return error.detail
        case UnknownNamespace():  # of settings that are newer than the snapshot
            return "no valid identifier: bad request"
        case MalformedBody():
            return f"{error.detail.removesuffix('.')}: bad request"
        case ProfileNotFound():
            return "no such user for these identifiers: no data"
        case RateLimited():
            return "rejected: too many requests"
        case AnswerTooLarge():
            return f"the answer must not be over {error.members['bytes_max']} bytes: ask for less"
    return error.detail
