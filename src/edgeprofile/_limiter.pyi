from collections.abc import Sequence
from os import PathLike
from typing import Self, final

@final
class Policy:
    """The compiled form of `limiter.Policy`, made from its `pairs`; ValueError unless they are one or two."""

    def __new__(cls, pairs: Sequence[tuple[int, int]]) -> Self: ...

@final
class SharedMap:
    """The memory-mapped file of counters and limiter cells at `path`, shared by every process that opens it.

    A missing file is created with mode 0600; one of another layout is replaced. StoreError if it cannot be used.
    """

    def __new__(cls, path: str | PathLike[str]) -> Self: ...
    def cell(self, name: bytes) -> int:
        """The cell of this name, claimed for good on first use; StoreError when all 16,384 are."""

    def take(self, cell: int, policy: Policy, cost: int, now_ns: int | None = None) -> int:
        """Takes `cost` tokens. Returns 0, or the ns until they would be there, or `limiter.NEVER`.

        `now_ns` is CLOCK_MONOTONIC unless given. IndexError if there is no such cell.
        """

    def take_bucket(self, cell: int, policy: Policy, cost: int, now_ns: int | None = None) -> tuple[int, int]:
        """As `take`, with the index of the bucket that takes the longest to have enough (0 if none does)."""

    def take_window(self, cell: int, cost: int, total: int, now_ns: int | None = None) -> tuple[int, int, int]:
        """Takes `cost` of a quota of `total` a minute, both in thousandths: (minute, used, wait_ns).

        With a wait, which may be `limiter.NEVER`, nothing is taken. Of a cell that no policy takes from.
        """

    def give_back(self, cell: int, minute: int, cost: int) -> None:
        """Undoes what `take_window` took in that minute, unless another has begun."""

    def used_percent(self, cell: int, policy: Policy, now_ns: int | None = None) -> int:
        """How much of the tokens is gone, as `limiter.used_percent`; `now_ns` and IndexError as in `take`."""

    def add(self, index: int, n: int) -> None:
        """Adds to one of the 2,048 counters, modulo 2**64; IndexError if there is no such counter."""

    def counter(self, index: int) -> int:
        """Reads a counter; IndexError if there is no such counter."""

    def clear_counters(self) -> None:
        """Sets all counters to zero; the limiter's cells stay as they are."""
