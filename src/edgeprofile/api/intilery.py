"""Intilery's Profiles API: traits, metadata, audiences and events of profiles, and a list of all, for callers that were
theirs.

An answer is put together of what templates make of records, so no JSON is read for it. Pages go on by a `scrollId`, a
place that is sealed: the id of a profile, or the time of an event, and never how many came before it. So it means the
same in the next snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from edgeprofile._exchange import Exchange
from edgeprofile._gate import Grant
from edgeprofile._profile import CONSTANT, IF_TRUE, OBJECT, RUN, SLOT, TIME_MS, VALUE, Profile, Template, find
from edgeprofile._store import Store
from edgeprofile._walk import Walk
from edgeprofile.api.dialect import Answer, Numbered, Service, lowered
from edgeprofile.api.pages import joined, page_of, runs_without
from edgeprofile.api.query import ISO_8601, number_of, once, parameters, range_us, text_of
from edgeprofile.errors import (
    AnswerTooLarge,
    ApiError,
    Forbidden,
    MalformedBody,
    MalformedQuery,
    MethodNotAllowed,
    NoSuchRoute,
    NotReady,
    ProfileNotFound,
    Unauthorized,
)
from edgeprofile.history import EventsSchema
from edgeprofile.record import Namespace, Schema
from edgeprofile.vendors import Intilery

NAME = "intilery"
PREFIX = b"/track/"
# `/track/{client}/{account}/{brand}/v1/profiles`, whosever it is.
PATH = re.compile(rb"/track/[^/]+/[^/]+/[^/]+/v1/profiles(/|\Z)")
SIZE_MAX = 100
REACH_MAX = 10_000  # of `from` and `size` together
ACTIONS_MAX = 32  # as of native events' names
SHARING_MAX = 100  # profiles whose events are merged
ASKED_MAX = 1_024
SCROLL_BYTES_MAX = 1_024
EVERY = (1 << 64) - 1  # of the events of one moment, however many they are
HEADERS = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
NOTHING = b'{"scrollId":null,"data":[]}'
NO_KINDS = [b'"firstEvent":{}', b'"lastEvent":{}']

PARAMETERS = ("include", "exclude", "start", "end", "sort", "from", "size", "scrollId", "scrollid")
# What answers have beside the columns: one of the same name gives way to it.
OF_METADATA = ("createdTime", "createdBy", "firstEvent", "lastEvent", "audiencesStatic", "lastActivityTime")
OF_KINDS = ("eventId", "eventTime", "receivedTime")

CODES = {400: "validation_error", 401: "authentication_error", 404: "not_found", 429: "rate_limit_error"}
MESSAGES: dict[type[ApiError], str] = {
    Unauthorized: "The header auth-token needs a valid API key of this client, account and brand.",
    ProfileNotFound: "Profile was not found.",
    AnswerTooLarge: "The answer is larger than this server's limit. A smaller size may help.",
}


# --- what is asked -------------------------------------------------------------------------------------------------


def identifier_of(profile_id: bytes) -> tuple[str, str]:
    """The type and the value of an id, of which a path has both with their escapes. Raises MalformedQuery."""
    id_type, _, value = text_of("ProfileID", profile_id or b":").partition(":")
    if not id_type or not value:
        raise MalformedQuery("ProfileID must be in format of id_type:id")
    return id_type, value


class Asked(Struct, frozen=True, gc=False):
    """What a query string asks for: events that are `chosen` (as Walk takes it, and as bytes that differ with it), and
    `size` of what there is behind the first `passed` or, if there is one, behind the place of a `scroll`."""

    chosen: dict[str, Any]
    mark: bytes
    passed: int
    size: int
    scroll: str | None


def parse(query: bytes) -> Asked:
    """What a query string asks for. Raises MalformedQuery, which names the parameter."""
    given = parameters(query, PARAMETERS)
    given["scrollId"] += given["scrollid"]
    start, end, sort, skipped, most, scroll = (once(given, name) for name in PARAMETERS[2:-1])
    start_us, end_us = range_us(start, end, ISO_8601)
    if sort not in (None, "asc", "desc"):
        raise MalformedQuery("sort is asc or desc.")
    passed, size = number_of("from", skipped, 0, REACH_MAX, 0), number_of("size", most, 1, SIZE_MAX, SIZE_MAX)
    if passed + size > REACH_MAX:
        raise MalformedQuery(f"from and size together are at most {REACH_MAX}: go on by scrollId.")
    chosen = {
        "names": actions_of(given, "include"),
        "excluded": actions_of(given, "exclude"),
        "start_us": start_us,
        "end_us": end_us,
        "ascending": sort == "asc",
    }
    return Asked(chosen, msgspec.msgpack.encode(chosen), passed, size, scroll)


def actions_of(given: dict[str, list[str]], name: str) -> tuple[str, ...]:
    """Names of events with commas between them, each once. Raises MalformedQuery."""
    actions = {action for value in given[name] for action in value.split(",")}
    if "" in actions:
        raise MalformedQuery(f"{name} has an empty item.")
    if len(actions) > ACTIONS_MAX:
        raise MalformedQuery(f"{name} has more than {ACTIONS_MAX} actions.")
    return tuple(sorted(actions))


# --- what is answered ----------------------------------------------------------------------------------------------


class EventShape:
    """How a workspace's table has the events of one schema in an answer."""

    def __init__(self, schema: EventsSchema, table: Intilery) -> None:
        names, first = schema.names, schema.first_param
        params = {name: number for number, name in enumerate(names) if number >= first}
        apart = {table.source, table.received}
        received = params.get(table.received or "", -1)
        head: list[tuple[Any, ...]] = [(VALUE, 0, b'"eventId":')] if schema.has_id else []
        head += [(TIME_MS, b'"eventTime":'), (TIME_MS, b'"receivedTime":', b"", received)]
        self._action = first - 2
        event = [
            (SLOT, 0),
            *head,
            (VALUE, self._action, b'"eventAction":'),
            *((VALUE, number, b'"source":') for name, number in params.items() if name == table.source),
            (OBJECT, runs_without(names, apart, first), b'"rawData":{', b"}"),
        ]
        self.event = Template(event, first, is_event=True)
        kind = [*head, (RUN, runs_without(names, {*apart, *OF_KINDS}, first))]
        self._kind = Template(kind, first, is_event=True)
        self._activity = Template([(TIME_MS, b'"lastActivityTime":')], first, is_event=True)

    def of_kinds(self, walk: Walk, bytes_max: int) -> list[bytes]:
        """`"firstEvent":{…}` and `"lastEvent":{…}`, by their actions, and `"lastActivityTime":…` if there are any."""
        kinds = walk.kinds()
        if not kinds:
            return NO_KINDS
        first = joined((self._of_kind(walk, *oldest) for _, oldest in kinds), bytes_max)
        last = joined((self._of_kind(walk, *newest) for newest, _ in kinds), bytes_max)
        walk.look_at(*kinds[0][0])
        return [b'"firstEvent":{%s}' % first, b'"lastEvent":{%s}' % last, walk.render(self._activity)]

    def _of_kind(self, walk: Walk, number: int, at: int) -> bytes:
        walk.look_at(number, at)
        return b"%s:{%s}" % (walk.value(self._action), walk.render(self._kind))


class Shape:
    """What a workspace's table makes of its snapshot: the namespaces of its id types, and how it has the events."""

    def __init__(self, schema: Schema, events: EventsSchema | None, table: Intilery) -> None:
        primary = schema.namespaces[0].name
        spaces = {space.name: space for space in schema.namespaces}
        id_types = table.id_types or {"id": primary, "userId": primary, "email": "email"}
        self.id_types = {theirs: spaces[ours] for theirs, ours in id_types.items() if ours in spaces}
        self.events = None if events is None else EventShape(events, table)


class ProfileShape:
    """How a workspace's table has the profiles of one schema in an answer."""

    def __init__(self, schema: Schema, id_types: Mapping[str, Namespace], table: Intilery) -> None:
        nested = schema.first_audience
        fields = [field.name for field in schema.fields[:nested]]
        own = {table.created, table.created_by}

        def column(name: str, field: str | None) -> list[tuple[Any, ...]]:
            return [(VALUE, fields.index(field), f'"{name}":'.encode())] if field in fields else []

        def identifier(name: str, id_type: str) -> list[tuple[Any, ...]]:
            default = schema.namespaces[0].name if id_type == "id" else None
            return column(name, id_types[id_type].name if id_type in id_types else default)

        self._traits = Template([(OBJECT, runs_without(fields, own), b"{", b"}")], nested)
        self._audiences = Template([(RUN, runs_without(fields, {*own, "audiences"})), (SLOT, 0)], nested)
        metadata = [
            (RUN, runs_without(fields, {*own, *OF_METADATA})),
            *column("createdTime", table.created),
            *column("createdBy", table.created_by),
            (SLOT, 0),
        ]
        self._metadata = Template(metadata, nested)
        names = [msgspec.json.encode(field.name) for field in schema.fields[nested:]]
        self._names = Template([(IF_TRUE, nested + number, name) for number, name in enumerate(names)], nested)
        # What all events of a profile have in common.
        owner = {"clientId": table.client, "accountId": table.account, "brandId": table.brand}
        common = [
            *identifier("id", "id"),
            *identifier("externalId", "userId"),
            *identifier("email", "email"),
            *identifier("customerId", "id"),
            *identifier("userId", "id"),
            (CONSTANT, msgspec.json.encode(owner)[1:-1]),
        ]
        self._common = Template(common, nested)

    def slots(self, profile: Profile) -> tuple[bytes]:
        """What an event has of its profile."""
        return (profile.render(self._common),)

    # What each route has of a profile.

    def traits(self, profile: Profile, _: View, bytes_max: int) -> bytes:
        """`{…}`"""
        return profile.render(self._traits, bytes_max=bytes_max)

    def audiences(self, profile: Profile, _: View, bytes_max: int) -> bytes:
        """`{…,"audiences":[…]}`"""
        names = b'"audiences":[%s]' % profile.render(self._names)
        return b"{%s}" % profile.render(self._audiences, (names,), bytes_max)

    def metadata(self, profile: Profile, view: View, bytes_max: int) -> bytes:
        """`{…,"createdTime":…,"createdBy":…,"audiencesStatic":[…],…}` with what `of_kinds` has."""
        events = view.shape.events
        kinds = NO_KINDS if events is None else events.of_kinds(Walk(view.store, profile.primary), bytes_max)
        more = b",".join([b'"audiencesStatic":[%s]' % profile.render(self._names), *kinds])
        return b"{%s}" % profile.render(self._metadata, (more,), bytes_max)


EVENTS = b"events"
WHATS = {
    b"traits": ProfileShape.traits,
    b"meta": ProfileShape.metadata,
    b"metadata": ProfileShape.metadata,
    b"audiences": ProfileShape.audiences,
}


class Brand(NamedTuple):
    """A workspace as its callers know it, by the path that its own begin with."""

    workspace: str
    path: bytes
    table: Intilery


class View(Struct, frozen=True, gc=False):
    """A workspace's snapshot, as one request sees it."""

    brand: Brand
    store: Store
    shape: Shape

    def find(self, primary: bytes) -> tuple[Profile, ProfileShape]:
        """The profile of a primary id, and how it is answered. Raises ProfileNotFound."""
        profile = find(self.store, primary)
        make = partial(ProfileShape, profile.schema, self.shape.id_types, self.brand.table)
        return profile, profile.recall(ProfileShape, make)

    def find_all(self, primaries: Iterable[bytes]) -> Iterator[tuple[Profile, ProfileShape]]:
        """Those of these profiles that are still there: an update may erase one after its id was found."""
        for primary in primaries:
            try:
                yield self.find(primary)
            except ProfileNotFound:
                continue


class Place(Struct, frozen=True, gc=False, array_like=True):
    """Where a page ended: behind this profile or, of events, behind the first `passed` of its events of this time.

    Of one time, the events of several profiles stand in the order of their primary ids.
    """

    primary: bytes
    time_us: int = 0
    passed: int = 0


_places = msgspec.msgpack.Decoder(Place)


class IntileryApi:
    """Answers below `/track/`, by the tables of the workspaces that have one."""

    def __init__(self, service: Service, tables: Mapping[str, Intilery]) -> None:
        self._gate = service.gate
        self._signing = service.signing
        self._bytes_max = service.response_bytes_max
        self._brands = {
            name: Brand(name, f"/track/{each.client}/{each.account}/{each.brand}/v1/profiles".encode(), each)
            for name, each in tables.items()
        }
        self._asked: dict[bytes, Asked] = {}

    # --- requests --------------------------------------------------------------------------------------------------

    def check(self, request: Exchange, /) -> None:
        """There is nothing but to read."""
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed("GET, HEAD")

    def answer(self, request: Exchange, _: bytes, /) -> Answer:
        """The answer of any route."""
        grant, brand = self._authorize(request)
        self._gate.admit(grant, grant.meters.get(NAME, grant.meter), 1)
        store = grant.workspace.store
        if store is None:
            raise NotReady()
        shape = store.recall(Shape, partial(Shape, store.schema, store.events_schema, brand.table))
        view = View(brand, store, shape)
        _, *rest = request.path[len(brand.path) :].split(b"/")
        if not rest:
            content = self._list(view, request.query)
        elif len(rest) == 2 and (rest[1] == EVENTS or rest[1] in WHATS):
            content = self._find(view, *identifier_of(rest[0]), rest[1], request.query)
        else:
            raise NoSuchRoute()
        if len(content) > self._bytes_max:
            raise AnswerTooLarge(len(content), self._bytes_max)
        return 200, [*HEADERS, (b"x-amzn-requestid", request.request_id)], content

    @staticmethod
    def refuse(request: Numbered, error: ApiError, /) -> Answer:
        """An error in Intilery's shape. It knows no scopes: a key that may not read is a wrong one."""
        status = 401 if isinstance(error, Forbidden) else error.status
        other = "invalid_request_error" if status < 500 else "internal_server_error"
        code = other if isinstance(error, MalformedBody) else CODES.get(status, other)
        message = MESSAGES.get(type(error), error.detail)
        headers = [*HEADERS, (b"x-amzn-requestid", request.request_id)]
        headers += [header for header in error.headers if header[0] != b"www-authenticate"]
        return status, headers, msgspec.json.encode({"error": {"code": code, "message": message}})

    def _authorize(self, request: Exchange) -> tuple[Grant, Brand]:
        """The grant of the key that was sent, and the brand that it and the path are of."""
        grant = self._gate.grant_of(request.header(b"auth-token") or b"")
        request.workspace = grant.workspace
        brand = self._brands.get(grant.workspace.name)
        if brand is None or not (request.path + b"/").startswith(brand.path + b"/"):
            raise Unauthorized() if PATH.match(request.path) else NoSuchRoute()
        if not grant.reads:
            raise Forbidden("This key may not read profiles.")
        return grant, brand

    def _asked_by(self, query: bytes) -> Asked:
        """What a query string asks for. Kept, unless it has a place, which comes once."""
        asked = self._asked.get(query)
        if asked is None:
            asked = parse(query)
            if asked.scroll is None:
                if len(self._asked) >= ASKED_MAX:
                    self._asked = {}
                self._asked[query] = asked
        return asked

    # --- routes ----------------------------------------------------------------------------------------------------

    def _find(self, view: View, id_type: str, value: str, what: bytes, query: bytes) -> bytes:
        """What is asked of the profile, or the profiles, that an id finds."""
        space = view.shape.id_types.get(id_type)
        if space is None:
            raise MalformedQuery(f"ProfileID has an unknown id_type. It is one of: {', '.join(view.shape.id_types)}.")
        asked = self._asked_by(query)
        ids = partial(view.store.primaries_of, space.name.encode(), value.encode(), lowered)
        if what == EVENTS:
            purpose = msgspec.msgpack.encode((NAME, view.brand.workspace, id_type, value))
            return self._events(view, ids(SHARING_MAX + 1), asked, purpose)
        render = WHATS[what]
        if space.unique:
            profile, shape = view.find(ids(1)[0])
            return render(shape, profile, view, self._bytes_max)
        found = view.find_all(ids(asked.passed + asked.size)[asked.passed :])
        texts = (render(shape, profile, view, self._bytes_max) for profile, shape in found)
        return b'{"data":[' + joined(texts, self._bytes_max) + b"]}"

    def _events(self, view: View, primaries: list[bytes], asked: Asked, purpose: bytes) -> bytes:
        """A page of the events of these profiles."""
        if len(primaries) > SHARING_MAX:
            raise MalformedQuery(f"More than {SHARING_MAX} profiles share this id. Ask for each by one of its own.")
        found = list(view.find_all(sorted(primaries)))
        place = self._place_of(asked.scroll, purpose + asked.mark)
        if not found:
            raise ProfileNotFound()
        if view.shape.events is None:
            return NOTHING
        walks = [walk_of(view.store, profile.primary, asked, place) for profile, _ in found]
        slots = [shape.slots(profile) for profile, shape in found]
        passed = asked.passed if place is None else 0
        ascending, template = asked.chosen["ascending"], view.shape.events.event
        texts, last, is_cut = page_of(walks, ascending, template, slots, passed, asked.size, self._bytes_max)
        if last is not None:
            return self._page(texts, Place(found[last][0].primary, *walks[last].position()), purpose + asked.mark)
        if is_cut:
            raise MalformedQuery("These actions are too rare to be found in one request. Give a shorter range of time.")
        return NOTHING

    def _list(self, view: View, query: bytes) -> bytes:
        """A page of all profiles in the order of their ids; it ends early where more would be too large."""
        asked = self._asked_by(query)
        purpose = msgspec.msgpack.encode((NAME, view.brand.workspace))
        place = self._place_of(asked.scroll, purpose)
        if place is None:
            ids = view.store.ids_after(None, asked.passed + asked.size)[asked.passed :]
        else:
            ids = view.store.ids_after(place.primary, asked.size)
        texts: list[bytes] = []
        size = SCROLL_BYTES_MAX
        end = Place(b"")
        for profile, shape in view.find_all(ids):
            try:
                texts.append(shape.traits(profile, view, max(0, self._bytes_max - size)))
            except AnswerTooLarge:
                if texts:
                    break
                raise
            size += len(texts[-1]) + 1
            end = Place(profile.primary)
        return self._page(b",".join(texts), end, purpose) if texts else NOTHING

    # --- places ----------------------------------------------------------------------------------------------------

    def _page(self, texts: bytes, end: Place, purpose: bytes) -> bytes:
        scroll = self._signing.seal(purpose, msgspec.msgpack.encode(end))
        return b"".join((b'{"scrollId":"', scroll.encode(), b'","data":[', texts, b"]}"))

    def _place_of(self, scroll: str | None, purpose: bytes) -> Place | None:
        """The place that an answer to the same request sealed. Raises MalformedQuery for any other text."""
        if scroll is None:
            return None
        sealed = self._signing.unseal(purpose, scroll)
        if sealed is None:
            raise MalformedQuery("scrollId is not one that an answer to this request had.")
        return _places.decode(sealed)


def walk_of(store: Store, primary: bytes, asked: Asked, place: Place | None) -> Walk:
    """A profile's events that are asked for, from a place on."""
    walk = Walk(store, primary, **asked.chosen)
    if place is not None:
        passed = place.passed if primary == place.primary else EVERY if primary < place.primary else 0
        walk.go_to(place.time_us, passed)
    return walk
