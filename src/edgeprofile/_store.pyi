from typing import Self, final

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
    """A workspace, as lookups see it. Setting `store` is how a new snapshot goes live; None is not ready.

    `limited_counter` counts its requests over their limit.
    """

    store: Store | None
    def __init__(self, name: str, limited_counter: int) -> None: ...
    @property
    def name(self) -> str: ...

def take_unheld(stores: list[Store]) -> list[Store]:
    """Takes out of the list the stores that nothing but the list refers to: no lookup is at them any more."""
