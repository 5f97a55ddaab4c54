"""What the loader may be asked to change: requests as they come over the socket, and what their values may be."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from edgeprofile.errors import InvalidChange

UPDATES_MAX = 10_000
VALUE_BYTES_MAX = 32 * 1024
JSON_BRACKETS_MAX = 500
# Of one update, or of one event.
NAMES_MAX = 256
EVENTS_MAX = 1_000
ITEMS_MAX = 1_000

Name = Annotated[str, Meta(min_length=1, max_length=255)]
Json = Annotated[bytes, Meta(min_length=1, max_length=VALUE_BYTES_MAX)]
Items = Annotated[list[Json], Meta(max_length=ITEMS_MAX)]
# The years 1 to 9999.
Moment = Annotated[int, Meta(ge=-62_135_596_800_000_000, lt=253_402_300_800_000_000)]


class Event(msgspec.Struct, array_like=True, gc=False):
    """An event of a profile's. `time_us` counts from 1970; each parameter is JSON."""

    id: str | None
    name: Name
    time_us: Moment
    params: Annotated[dict[Name, Json], Meta(max_length=NAMES_MAX)]


class Update(msgspec.Struct, array_like=True, gc=False):
    """What changes of one profile: attributes, each set to JSON or cleared by None, items that are added to arrays or
    removed from them, and events."""

    id: str
    attributes: Annotated[dict[Name, Json | None], Meta(max_length=NAMES_MAX)] = {}
    adds: Annotated[dict[Name, Items], Meta(max_length=NAMES_MAX)] = {}
    removes: Annotated[dict[Name, Items], Meta(max_length=NAMES_MAX)] = {}
    events: Annotated[list[Event], Meta(max_length=EVENTS_MAX)] = []


class Updates(msgspec.Struct):
    """Updates, to be written as one and in their order. Their ids are of a namespace, by itself of the primary one."""

    updates: Annotated[list[Update], Meta(max_length=UPDATES_MAX)]
    namespace: str | None = None


class Erasures(msgspec.Struct):
    """The primary ids of profiles that are to be erased, be they there or not."""

    ids: Annotated[list[str], Meta(max_length=UPDATES_MAX)]


class Delta(NamedTuple):
    """What a delta refresh brings: the records of rows by their ids, in binary order, empty for a row that is gone, and
    the watermark behind which the next one looks on."""

    rows: list[tuple[bytes, bytes]]
    watermark_us: int


class Refused(msgspec.Struct, frozen=True, array_like=True):
    """What was left out, all else being written: of the update at that index, why, and which attribute alone."""

    index: int
    reason: str
    attribute: str | None = None


Request = TypeVar("Request", Updates, Erasures)


def read(message: dict[str, Any], kind: type[Request]) -> Request:
    """A request. Raises InvalidChange, which says where in it the fault is, and no value."""
    try:
        return msgspec.convert(message, kind)
    except msgspec.ValidationError as error:
        raise InvalidChange(f"a request that is not as it should be: {error}") from None


def compact(value: bytes) -> bytes:
    """A value of JSON without its white space. Raises InvalidChange where it is none."""
    try:
        value.decode()
        if value.count(b"[") + value.count(b"{") > JSON_BRACKETS_MAX:
            raise InvalidChange("a value of JSON has too many brackets")
        return msgspec.json.format(value, indent=-1)
    except (UnicodeDecodeError, msgspec.DecodeError):
        raise InvalidChange("a value is no JSON") from None
