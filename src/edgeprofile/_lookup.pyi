from collections.abc import Awaitable, Callable, Generator
from typing import Any, Never, Self, final

from edgeprofile._limiter import SharedMap
from edgeprofile._store import Grant
from edgeprofile.errors import ApiError
from edgeprofile.limiter import Policy as Limits
from edgeprofile.record import Runs, Schema

@final
class Done:
    """What a request that is answered already gives its server to await."""

    def __await__(self) -> Generator[Any]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Never: ...

@final
class Lookup:
    """The ASGI callable: answers `GET /v1/profiles/…` itself and hands every other request to `app`.

    It calls the other arguments for what is not worth compiling: `translate` makes (status, headers, body) of an
    error and a request id; `parse_fields` makes runs, and whether audiences are among them, of a query string, or
    None of one without a choice; `verify` tells whether a token is a good key; `accepts_json` reads an Accept;
    `normalize` lower-cases a value that is not ASCII; `limited` makes the error of a request over its limit,
    of the grant's limits, the bucket's index and the wait in ns.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        shared: SharedMap,
        *,
        translate: Callable[[ApiError, bytes], tuple[int, list[tuple[bytes, bytes]], bytes]],
        parse_fields: Callable[[bytes, Schema], tuple[Runs, bool] | None],
        verify: Callable[[bytes], bool],
        accepts_json: Callable[[bytes], bool],
        normalize: Callable[[bytes], bytes],
        limited: Callable[[Limits, int, int], ApiError],
        damaged_counter: int,
        request_bytes_max: int,
        response_bytes_max: int,
        cache_control: bytes,
    ) -> None: ...
    def set_grants(self, grants: dict[bytes, Grant]) -> None:
        """Swaps what keys may do, by public id. A request sees all of the old grants or all of the new."""

    def __call__(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> Awaitable[None]: ...

def log_fault(request_id: bytes, error: BaseException) -> None:
    """Logs where a request failed, without the error's message: it may quote what the request asked for."""

def request_id_of(header: bytes | None) -> bytes | None:
    """The request id that a caller sent, where it is sane; else None."""
