from collections.abc import Callable
from typing import final

from edgeprofile._limiter import Policy, SharedMap
from edgeprofile._store import Workspace
from edgeprofile.errors import ApiError
from edgeprofile.limiter import Policy as Limits

@final
class Meter:
    """Buckets of a key: `cell` is theirs in the SharedMap, and `limits` is `policy` as errors are made from it."""

    def __init__(self, policy: Policy, limits: Limits, cell: int) -> None: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def cell(self) -> int: ...

@final
class Grant:
    """What a key may do: read or write `workspace`, until `expires_at` (Unix seconds; 0 is for ever).

    `meter` is what its requests are limited by, unless the surface that they come to has one in `meters`.
    """

    def __init__(
        self,
        workspace: Workspace,
        public_id: bytes,
        meter: Meter,
        meters: dict[str, Meter],
        reads: bool,
        writes: bool,
        expires_at: int,
    ) -> None: ...
    @property
    def workspace(self) -> Workspace: ...
    @property
    def public_id(self) -> bytes: ...
    @property
    def meter(self) -> Meter: ...
    @property
    def meters(self) -> dict[str, Meter]: ...
    @property
    def reads(self) -> bool: ...
    @property
    def writes(self) -> bool: ...

@final
class Gate:
    """Lets requests in by their keys.

    `verify` tells whether a token is a good key; `limited` makes the error of a request over its limits, of these,
    the bucket's index, the wait in ns (or `limiter.NEVER`) and the tokens that it would have taken.
    """

    def __init__(
        self,
        shared: SharedMap,
        *,
        verify: Callable[[bytes], bool],
        limited: Callable[[Limits, int, int, int], ApiError],
    ) -> None: ...
    def set_grants(self, grants: dict[bytes, Grant]) -> None:
        """Swaps what keys may do, by public id. A request sees all of the old grants or all of the new."""

    def grant_of(self, token: bytes) -> Grant:
        """The grant of a key. Raises Unauthorized, whatever is wrong with it."""

    def grant_by_id(self, public_id: bytes) -> Grant | None:
        """The grant of a key by its public id alone, for who has shown otherwise to have it; None where it is over."""

    def admit(self, grant: Grant, meter: Meter, cost: int) -> int:
        """Takes tokens from the buckets of one of the key's meters. Raises RateLimited, or what `limited` makes."""

    def used_percent(self, meter: Meter) -> int:
        """How much of a meter's tokens is gone, in whole per cent: 0 when rested, 100 when none is left."""
