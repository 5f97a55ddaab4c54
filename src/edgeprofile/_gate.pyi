from collections.abc import Callable
from typing import final

from edgeprofile._limiter import Policy, SharedMap
from edgeprofile._store import Workspace
from edgeprofile.errors import ApiError
from edgeprofile.limiter import Policy as Limits

@final
class Grant:
    """What a key may do: read `workspace` or not, by `policy`, until `expires_at` (Unix seconds; 0 is for ever).

    `cell` is the key's in the SharedMap, and `limits` is `policy` in the form that errors are made from.
    """

    def __init__(
        self, workspace: Workspace, policy: Policy, limits: Limits, cell: int, reads: bool, expires_at: int
    ) -> None: ...
    @property
    def workspace(self) -> Workspace: ...
    @property
    def limits(self) -> Limits: ...

@final
class Gate:
    """Lets requests in by their keys.

    `verify` tells whether a token is a good key; `limited` makes the error of a request over its limit, of the
    grant, the bucket's index, the wait in ns (or `limiter.NEVER`) and the tokens that it would have taken.
    """

    def __init__(
        self,
        shared: SharedMap,
        *,
        verify: Callable[[bytes], bool],
        limited: Callable[[Grant, int, int, int], ApiError],
    ) -> None: ...
    def set_grants(self, grants: dict[bytes, Grant]) -> None:
        """Swaps what keys may do, by public id. A request sees all of the old grants or all of the new."""
