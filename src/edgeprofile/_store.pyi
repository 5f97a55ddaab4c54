from typing import Self, final

from edgeprofile._limiter import Policy
from edgeprofile.limiter import Policy as Limits
from edgeprofile.reader import Reader
from edgeprofile.record import Runs

@final
class Plan:
    """A choice of fields, made once for each query string and snapshot."""

    def __new__(cls, runs: Runs, with_audiences: bool, is_whole: bool) -> Self: ...

@final
class Store:
    """An open snapshot, as lookups see it. It keeps `reader`, and must be let go of before that is closed."""

    def __new__(cls, reader: Reader) -> Self: ...
    @property
    def reader(self) -> Reader: ...

@final
class Workspace:
    """A workspace, as lookups see it. Setting `store` is how a new snapshot goes live; None is not ready."""

    store: Store | None
    def __init__(self, name: str) -> None: ...
    @property
    def name(self) -> str: ...

@final
class Grant:
    """What a key may do: read `workspace` or not, by `policy`, until `expires_at` (Unix seconds; 0 is for ever).

    `cell` is the key's in the SharedMap, and `limits` is `policy` in the form that errors are made from.
    """

    def __init__(
        self, workspace: Workspace, policy: Policy, limits: Limits, cell: int, reads: bool, expires_at: int
    ) -> None: ...
    @property
    def limits(self) -> Limits: ...

def take_unheld(stores: list[Store]) -> list[Store]:
    """Takes out of the list the stores that nothing but the list refers to: no lookup is at them any more."""
