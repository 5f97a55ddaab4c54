"""mParticle's Profile API: profiles by mpid, or by an identity that never changes.

Statuses, paths and the names in an answer are the vendor's; what it leaves open (errors, types) is said in docs/api.md.
"""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from edgeprofile._exchange import Exchange
from edgeprofile._gate import Grant
from edgeprofile._profile import IF_TRUE, RUN, TEXT, Profile, Template, find
from edgeprofile._store import Store
from edgeprofile.api.dialect import Answer, Numbered, Service, json_object, lowered
from edgeprofile.api.query import parameters
from edgeprofile.errors import (
    AnswerTooLarge,
    ApiError,
    Forbidden,
    MalformedBody,
    MalformedPath,
    MalformedQuery,
    MethodNotAllowed,
    NoSuchRoute,
    NotReady,
    ProfileNotFound,
    RateLimited,
    Unauthorized,
    UnknownNamespace,
)
from edgeprofile.record import Runs, Schema
from edgeprofile.vendors import MParticle as Table

PREFIX = b"/userprofile/"
ROOT = [b"", b"userprofile", b"v1"]
FIELDS = ("device_identities", "user_identities", "user_attributes", "audience_memberships", "attribution")
ENVIRONMENTS = ("development", "production")
KEY_MARK = b"sk_live_"
# Signed integers of 64 bits, as JSON has them.
MPID = re.compile(rb"0|-?[1-9][0-9]{0,18}")
MPID_MIN, MPID_MAX = -(1 << 63), (1 << 63) - 1
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

JSON_TYPE = (b"content-type", b"application/json")
NO_STORE = (b"cache-control", b"no-store")


class Asked(NamedTuple):
    """A request that may be answered: by whom, and the profile's mpid; None where an identity is to be resolved."""

    grant: Grant
    mpid: bytes | None


class Shape(NamedTuple):
    """What the answers to a choice of fields are made of, of one schema's records: field numbers, and templates.

    -1 stands for a field that there is not.
    """

    mpid: int
    created: int
    opted_out: int
    limit_ad_tracking: int
    parts: tuple[tuple[bytes, Template, bytes], ...]
    attribution: int


class Dialect:
    """The handler. `tables` has the settings of each workspace that is served by this API."""

    def __init__(self, service: Service, tables: dict[str, Table]) -> None:
        self._service = service
        self._gate = service.gate
        self._tables = tables
        self._audiences = frozenset(table.audience for table in tables.values())
        self._places = {
            name: [segment.encode() for segment in (table.org, table.account, table.workspace)]
            for name, table in tables.items()
        }

    def check(self, request: Exchange) -> None:
        if request.method != "GET":  # of which `answer` comes at once, and asks all that is asked here
            self._asked(request)

    def answer(self, request: Exchange, body: bytes) -> Answer:
        # Authorized again behind a body, because a key may be revoked while that comes in.
        asked = self._asked(request)
        self._gate.admit(asked.grant, asked.grant.meter, 1)
        used = (b"x-mp-rate-limit-percentage-used", b"%d" % self._gate.used_percent(asked.grant.meter))
        try:
            content = self._profile(asked, request.query, body)
        except ApiError as error:
            error.headers.append(used)
            raise
        return 200, [JSON_TYPE, NO_STORE, (b"x-request-id", request.request_id), used], content

    @staticmethod
    def refuse(request: Numbered, error: ApiError) -> Answer:
        headers = [JSON_TYPE, NO_STORE, (b"x-request-id", request.request_id)]
        if isinstance(error, RateLimited):
            headers.append((b"x-mp-rate-limit-exceeded", b"workspace"))
            headers.append((b"x-mp-rate-limit-percentage-used", b"100"))
        said = {"errors": [{"code": error.code, "message": error.detail or error.title}]}
        return error.status, [*headers, *error.headers], msgspec.json.encode(said)

    # --- who asks, and for what -----------------------------------------------------------------------------------

    def _asked(self, request: Exchange) -> Asked:
        """Raises NoSuchRoute, MethodNotAllowed, Unauthorized or Forbidden."""
        parts = request.path.split(b"/")
        if b"%" in request.path:
            parts = [unquote_to_bytes(part) for part in parts]
        if len(parts) != 7 or parts[:3] != ROOT:
            raise NoSuchRoute()
        is_resolve = parts[3] == b"resolve"
        if request.method != "POST" and (is_resolve or request.method not in ("GET", "HEAD")):
            raise MethodNotAllowed("POST" if is_resolve else "GET, HEAD, POST")
        grant = self._grant(request.header(b"authorization"))
        request.workspace = grant.workspace
        place = parts[4:] if is_resolve else parts[3:6]
        # A workspace of others looks like one that there is not.
        if not grant.reads or self._places.get(grant.workspace.name) != place:
            raise Forbidden("The token is not for reading this organization, account and workspace.")
        return Asked(grant, None if is_resolve else parts[6])

    def _grant(self, authorization: bytes | None) -> Grant:
        """What an access token of ours stands for, or a plain API key."""
        if authorization is None or authorization[:7].lower() != b"bearer ":
            raise Unauthorized()
        token = authorization[7:]
        if token.startswith(KEY_MARK):
            return self._gate.grant_of(token)
        public_id = self._service.signing.verify_token(token, self._audiences, time.time())
        grant = self._gate.grant_by_id(public_id)
        if grant is None:
            raise Unauthorized()
        return grant

    # --- profiles --------------------------------------------------------------------------------------------------

    def _profile(self, asked: Asked, query: bytes, body: bytes) -> bytes:
        workspace = asked.grant.workspace
        store, table = workspace.store, self._tables[workspace.name]
        if store is None:
            raise NotReady()
        fields = store.recall(("mparticle", query), lambda: _parse_fields(query))
        mpid = asked.mpid
        if mpid is None:
            namespace, value = _identity(body, table)
        elif _is_mpid(mpid):
            namespace, value = table.mpid.encode(), mpid
        else:
            raise MalformedPath("The mpid is not an integer of 64 bits.")
        profile = _found(store, namespace, value)
        shape = profile.recall(("mparticle", fields), lambda: _shape(fields, profile.schema, table))
        if mpid is None:
            mpid = (profile.value(shape.mpid) or b"").strip(b'"')
            if not _is_mpid(mpid):
                raise ProfileNotFound()
        return self._rendered(profile, shape, mpid)

    def _rendered(self, profile: Profile, shape: Shape, mpid: bytes) -> bytes:
        bytes_max = self._service.response_bytes_max
        is_opted_out = b"true" if profile.value(shape.opted_out) == b"true" else b"false"
        limits_ads = profile.value(shape.limit_ad_tracking)
        pieces = [
            b'{"mpid":',
            mpid,
            b',"created_timestamp_ms":',
            _milliseconds(profile.value(shape.created)),
            b',"last_stored_timestamp_ms":%d,"is_opted_out":' % (profile.updated_us // 1000),
            is_opted_out,
            b',"limit_ad_tracking":',
            limits_ads if limits_ads in (b"true", b"false") else b"null",
        ]
        for before, template, after in shape.parts:
            pieces += (before, profile.render(template, (), bytes_max), after)
        attribution = profile.value(shape.attribution)
        if attribution is not None:
            pieces += (b',"attribution":', attribution)
        pieces.append(b"}")
        answer = b"".join(pieces)
        if len(answer) > bytes_max:
            raise AnswerTooLarge(len(answer), bytes_max)
        return answer


# --- what an answer is made of -------------------------------------------------------------------------------------


def _parse_fields(query: bytes) -> frozenset[str]:
    """What `fields` names, which may stand several times. Raises MalformedQuery."""
    asked = frozenset(name for value in parameters(query, ("fields",))["fields"] for name in value.split(","))
    if not asked or not asked.issubset(FIELDS):
        raise MalformedQuery(f"fields is a list of {', '.join(FIELDS)}, separated by commas.")
    return asked


def _shape(asked: frozenset[str], schema: Schema, table: Table) -> Shape:
    numbers = {field.name: number for number, field in enumerate(schema.fields)}

    def template(items: Iterable[tuple[Any, ...]]) -> Template:
        return Template(list(items), schema.first_audience)

    def number_of(column: str | None) -> int:
        return -1 if column is None else numbers.get(column, -1)

    parts = [
        (b',"%s":[' % name.encode(), template(_identities(getattr(table, name), numbers)), b"]")
        for name in ("device_identities", "user_identities")
        if name in asked
    ]
    if "user_attributes" in asked:
        before = b',"account_userattributes":null,"user_attributes":{'
        parts.append((before, template(_attributes(schema, table)), b"}"))
    if "audience_memberships" in asked:
        parts.append((b',"audience_memberships":[', template(_audiences(schema)), b"]"))
    return Shape(
        mpid=number_of(table.mpid),
        created=number_of(table.created),
        opted_out=number_of(table.opted_out),
        limit_ad_tracking=number_of(table.limit_ad_tracking),
        parts=tuple(parts),
        attribution=number_of(table.attribution if "attribution" in asked else None),
    )


def _identities(types: dict[str, Any], numbers: dict[str, int]) -> Iterable[tuple[Any, ...]]:
    for kind, columns in types.items():
        before = b'{"type":%s,"encoding":"none","value":' % msgspec.json.encode(kind)
        for column in (columns,) if isinstance(columns, str) else columns:
            if column in numbers:
                yield TEXT, numbers[column], before, b"}"


def _attributes(schema: Schema, table: Table) -> Iterable[tuple[Any, ...]]:
    """All attributes and metrics, but those that stand elsewhere in the answer."""
    elsewhere = set(table.columns.values())
    for number, field in enumerate(schema.fields):
        if field.section in ("attributes", "metrics") and field.name not in elsewhere:
            if table.values_as_text:
                yield TEXT, number, msgspec.json.encode(field.name) + b":", b""
            else:
                run: Runs = ((number, number + 1),)
                yield RUN, run, b"", b""


def _audiences(schema: Schema) -> Iterable[tuple[Any, ...]]:
    for number, field in enumerate(schema.fields):
        if field.section == "audiences":
            said = {
                "audience_id": schema.audience_ids[field.name],
                "audience_name": field.name,
                "expiration_timestamp_ms": None,
            }
            yield IF_TRUE, number, msgspec.json.encode(said)


def _milliseconds(value: bytes | None) -> bytes:
    """A time as an answer has it: milliseconds since 1970, of an integer of such or of a time or date as text."""
    if value is None or value[:1] != b'"':
        return value if value is not None and value.removeprefix(b"-").isdigit() else b"null"
    try:
        moment = dt.datetime.fromisoformat(value[1:-1].decode())
    except ValueError:
        return b"null"
    since = (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)) - EPOCH
    return b"%d" % (since // dt.timedelta(milliseconds=1))


def _is_mpid(text: bytes) -> bool:
    return MPID.fullmatch(text) is not None and MPID_MIN <= int(text) <= MPID_MAX


def _found(store: Store, namespace: bytes, value: bytes) -> Profile:
    try:
        return find(store, store.primary_of(namespace, value, lowered))
    except UnknownNamespace:  # the settings name it, so that a snapshot with it is to come
        raise NotReady() from None


# --- what a body says ----------------------------------------------------------------------------------------------


def _identity(body: bytes, table: Table) -> tuple[bytes, bytes]:
    """The namespace and value that a body asks to resolve. Raises MalformedBody."""
    asked = json_object(body)
    if asked.get("environment_type") not in ENVIRONMENTS:
        raise MalformedBody("environment_type is neither development nor production.")
    identity = asked.get("identity")
    kind, value = (identity.get("type"), identity.get("value")) if isinstance(identity, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(value, str) or not value:
        raise MalformedBody("identity is not an object of two texts, type and value.")
    if kind not in table.immutable:
        raise MalformedBody(f"identity.type {kind[:100]!r} is not one by which profiles are resolved.")
    namespace = {**table.user_identities, **table.device_identities}[kind]
    try:
        return str(namespace).encode(), value.encode()
    except UnicodeEncodeError:
        raise MalformedBody("identity.value is not text: it has half of a surrogate pair.") from None
