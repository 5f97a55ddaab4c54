from collections.abc import Awaitable, Callable
from typing import Any, final

from edgeprofile._body import Reading
from edgeprofile._events import Wanted
from edgeprofile._gate import Gate
from edgeprofile._limiter import SharedMap
from edgeprofile._metrics import Recorder
from edgeprofile.api.native import Asked
from edgeprofile.errors import ApiError
from edgeprofile.record import Runs, Schema

@final
class Lookup:
    """The ASGI callable: answers `/v1/profiles/…` itself and hands every other request to `app`.

    It calls the other arguments for what is not worth compiling: `translate` makes (status, headers, body) of an
    error and a request id; `parse_fields` makes runs, and whether audiences are among them, of a query string, or
    None of one without a choice, and `choose` of a list; `parse_many` reads the body of a request for many, and
    `parse_events` the query string of one for events; `accepted` tells the form (0 none, 1 JSON, 2 MessagePack) that
    an Accept header wants; `normalize` lower-cases a value that is not ASCII. `deferred_counter` counts the lookups
    that `answer_now` was not asked for.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        gate: Gate,
        shared: SharedMap,
        *,
        recorder: Recorder,
        recorder_many: Recorder,
        translate: Callable[[ApiError, bytes], tuple[int, list[tuple[bytes, bytes]], bytes]],
        parse_fields: Callable[[bytes, Schema], tuple[Runs, bool] | None],
        choose: Callable[[list[str], Schema], tuple[Runs, bool]],
        parse_many: Callable[[bytes], tuple[list[Asked], list[str] | None]],
        parse_events: Callable[[bytes], Wanted],
        accepted: Callable[[bytes], int],
        normalize: Callable[[bytes], bytes],
        damaged_counter: int,
        deferred_counter: int,
        request_bytes_max: int,
        response_bytes_max: int,
        cache_control: bytes,
    ) -> None: ...
    def __call__(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> Awaitable[None]: ...
    def answer_now(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> bool:
        """Answers the request if it is a lookup, from any thread, without an event loop; many once the body is there.

        Never raises; False means that nothing was answered.
        """

    def expire_bodies(self) -> None:
        """Refuses the requests whose bodies have taken too long. To be called now and then, from any thread."""

    def finish_many(self, reading: Reading, outcome: bytes | Exception) -> None:
        """Answers a request for many whose body is there, or will not be."""

    async def look_up_many(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        """`POST /v1/profiles/lookup`."""

async def deliver(messages: list[Any], send: Callable[[Any], Awaitable[None]]) -> None:
    """Sends the messages of an answer as any ASGI server wants them."""
