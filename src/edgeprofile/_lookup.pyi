from collections.abc import Callable
from typing import final

from edgeprofile._events import Wanted
from edgeprofile._exchange import Exchange
from edgeprofile._gate import Gate
from edgeprofile.api.dialect import Answer
from edgeprofile.api.native import Asked
from edgeprofile.errors import ApiError
from edgeprofile.record import Runs, Schema

@final
class Lookup:
    """Answers `/v1/profiles/…`: of one profile for the compiled front, of many as the handler of a surface.

    It calls the other arguments for what is not worth compiling: `translate` makes an answer of an error and a
    request id; `parse_fields` makes runs, and whether audiences are among them, of a query string, or None of one
    without a choice, and `choose` of a list; `parse_many` reads the body of a request for many, and `parse_events` the
    query string of one for events; `accepted` tells the form (0 none, 1 JSON, 2 MessagePack) that an Accept header
    wants; `normalize` lower-cases a value that is not ASCII.
    """

    def __init__(
        self,
        gate: Gate,
        *,
        translate: Callable[[ApiError, bytes], Answer],
        parse_fields: Callable[[bytes, Schema, Schema], tuple[Runs, bool] | None],
        choose: Callable[[list[str], Schema, Schema], tuple[Runs, bool]],
        parse_many: Callable[[bytes], tuple[list[Asked], list[str] | None]],
        parse_events: Callable[[bytes], Wanted],
        accepted: Callable[[bytes], int],
        normalize: Callable[[bytes], bytes],
        request_bytes_max: int,
        response_bytes_max: int,
        cache_control: bytes,
    ) -> None: ...
    def check(self, exchange: Exchange) -> None:
        """What can be refused of `POST /v1/profiles/lookup` before its body is there."""

    def answer(self, exchange: Exchange, content: bytes) -> Answer:
        """`POST /v1/profiles/lookup`."""

    def refuse(self, exchange: Exchange, error: ApiError) -> Answer:
        """An ApiError as a problem."""
