from typing import Protocol, final

from edgeprofile._exchange import Exchange
from edgeprofile._metrics import Recorder
from edgeprofile.errors import ApiError

Answer = tuple[int, list[tuple[bytes, bytes]], bytes]

class Handler(Protocol):
    """Answers requests in the thread by which they come: it waits for nothing.

    An answer is a status, headers (names in lower case; the length is not one of them) and a body. What `check` and
    `answer` raise comes to `refuse`: an ApiError as it is, all else logged and as an InternalError.
    """

    def check(self, request: Exchange, /) -> object:
        """Raises what can be told before the body is there, such as a wrong key."""

    def answer(self, request: Exchange, body: bytes, /) -> Answer: ...
    def refuse(self, request: Exchange, error: ApiError, /) -> Answer: ...

@final
class Surface:
    """The paths of an API, some whole and some by what they begin with, who answers there, and what counts it."""

    def __init__(
        self, handler: Handler, recorder: Recorder, *, paths: tuple[bytes, ...] = (), prefixes: tuple[bytes, ...] = ()
    ) -> None: ...
    @property
    def handler(self) -> Handler: ...
