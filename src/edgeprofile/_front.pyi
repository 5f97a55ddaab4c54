from collections.abc import Awaitable, Callable
from typing import Any, final

from edgeprofile._body import Body, Reading
from edgeprofile._limiter import SharedMap
from edgeprofile._lookup import Lookup
from edgeprofile._metrics import Recorder
from edgeprofile._surface import Surface

@final
class Front:
    """The ASGI callable: `lookup` answers `/v1/profiles/…`, each of the `surfaces` its paths, and `app` the rest.

    `damaged_counter` counts what is damaged in a snapshot, `deferred_counter` the requests that could have been
    answered by `answer_now` and were not brought to it.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        lookup: Lookup,
        surfaces: list[Surface],
        shared: SharedMap,
        *,
        recorder: Recorder,
        damaged_counter: int,
        deferred_counter: int,
        request_bytes_max: int,
    ) -> None: ...
    def __call__(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> Awaitable[None]: ...
    def answer_now(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> bool:
        """Answers the request if it is not the app's, from any thread, without an event loop; once its body is there.

        Never raises; False means that nothing was answered.
        """

    def expire_bodies(self) -> None:
        """Refuses the requests whose bodies have taken too long. To be called now and then, from any thread."""

    def finish(self, reading: Reading, outcome: bytes | Exception) -> None:
        """Answers a request whose body is there, or will not be."""

    async def serve(
        self,
        surface: Surface,
        scope: Any,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Answers a surface's request in an event loop."""

async def whole_body(receive: Callable[[], Awaitable[Any]], body: Body) -> bytes:
    """Reads a body in an event loop. Raises BodyTooLarge, MalformedBody."""

async def deliver(messages: list[Any], send: Callable[[Any], Awaitable[None]]) -> None:
    """Sends the messages of an answer as any ASGI server wants them."""
