"""What every surface that is answered without an event loop is: a handler, and the service that it works with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol

from edgeprofile import record
from edgeprofile._exchange import Exchange
from edgeprofile._gate import Gate
from edgeprofile._limiter import SharedMap
from edgeprofile._store import Workspace
from edgeprofile.errors import ApiError, BodyTooLarge, MalformedBody, Unauthorized
from edgeprofile.signing import SigningKeys

# Status, headers with their names in lower case and without the length, body.
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
OBJECT_BYTES_MAX = 16 * 1024


class Numbered(Protocol):
    """All that a dialect's answer to a request that went wrong needs of it, so that its description is made of such."""

    @property
    def request_id(self) -> bytes:
        """Its own, or the caller's."""


class Handler(Protocol):
    """Answers requests in the thread by which they come, so it waits for nothing.

    What `check` and `answer` raise comes to `refuse`: an ApiError as it is, all else logged and as an InternalError.
    """

    def check(self, request: Exchange, /) -> object:
        """Raises what can be told before the body is there, such as a wrong key."""

    def answer(self, request: Exchange, body: bytes, /) -> Answer:
        """Answers a request whose body, empty for GET and HEAD, is there."""

    def refuse(self, request: Exchange, error: ApiError, /) -> Answer:
        """The answer to a request that went wrong."""


@dataclass(frozen=True)
class Service:
    """What the handlers of all dialects work with."""

    gate: Gate
    shared: SharedMap
    workspaces: dict[str, Workspace]
    response_bytes_max: int
    signing: SigningKeys


def bearer(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The token of a request's one Authorization header, for `Gate.grant_of`. Raises Unauthorized."""
    sent = [value for name, value in headers if name == b"authorization"]
    if len(sent) != 1 or sent[0][:7].lower() != b"bearer ":
        raise Unauthorized()
    return sent[0][7:]


def lowered(value: bytes) -> bytes:
    """An identifier's value, UTF-8 but not ASCII, in lower case as the index has it."""
    return record.normalize(value.decode(), "lower").encode()


def json_object(body: bytes) -> dict[str, Any]:
    """A body of one JSON object, whatever its content-type says, in which no name stands twice.

    Raises MalformedBody, or BodyTooLarge past what such a request can need.
    """
    if len(body) > OBJECT_BYTES_MAX:
        raise BodyTooLarge(OBJECT_BYTES_MAX)
    try:
        found = json.loads(body.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise MalformedBody("The body is not a JSON object.")
    return found


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Names and values as a dict. Raises MalformedBody for a name that stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise MalformedBody("A name stands twice in the body.")
    return found
