"""What dialects make pages of: chosen fields of a record, texts that are bounded, the events of several profiles."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice

from edgeprofile._profile import Template
from edgeprofile._walk import Walk
from edgeprofile.errors import AnswerTooLarge
from edgeprofile.record import Runs

BLOCKS_MAX = 1_024  # of events, that one page may read, be they one profile's or many's


def runs_of(numbers: Iterable[int]) -> Runs:
    """Runs of fields, by their numbers."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return tuple(runs)


def runs_without(names: Sequence[str], left_out: Collection[str | None], first: int = 0) -> Runs:
    """Runs of the fields of these names, from number `first` on, but for those that are left out."""
    return runs_of(number for number in range(first, len(names)) if names[number] not in left_out)


def joined(texts: Iterable[bytes], bytes_max: int) -> bytes:
    """The texts with commas between them. Raises AnswerTooLarge as soon as they are longer than that."""
    kept: list[bytes] = []
    size = 0
    for text in texts:
        kept.append(text)
        size += len(text) + 1
        if size > bytes_max:
            raise AnswerTooLarge(size, bytes_max)
    return b",".join(kept)


def page_of(
    walks: Sequence[Walk],
    ascending: bool,
    template: Template,
    slots: Sequence[tuple[bytes, ...]],
    passed: int,
    size: int,
    bytes_max: int,
) -> tuple[bytes, int | None, bool]:
    """`{…},{…}`: `size` of the events behind the first `passed` of some profiles, each of which has its slots. They are
    in the order of their times and, of one time, of their walks.

    With them comes the number of the walk that the last one is of, None where there are none, and whether the page has
    ended because it would have had to read too much, and not because there is no more. Raises AnswerTooLarge past
    `bytes_max`.
    """
    if len(walks) == 1:
        walk = walks[0]
        if passed:
            walk.skip(passed)
        texts = walk.page(template, size, slots=slots[0], bytes_max=bytes_max)
        return texts, 0 if walk.taken else None, walk.is_cut
    merge = Merge(walks, ascending)
    last: int | None = None

    def rendered() -> Iterator[bytes]:
        nonlocal last
        for last in islice(merge.numbers(), passed, passed + size):
            yield b"{%s}" % walks[last].render(template, slots[last])

    return joined(rendered(), bytes_max), last, merge.is_cut


class Merge:
    """The events of several profiles as one walk. `is_cut` once it has ended because it had read enough for a page."""

    def __init__(self, walks: Sequence[Walk], ascending: bool) -> None:
        self._walks = walks
        self._sign = 1 if ascending else -1
        self._next: list[tuple[int, int]] = []
        self._blocks_left = BLOCKS_MAX
        self.is_cut = False

    def numbers(self) -> Iterator[int]:
        """For each event in turn, the number of the walk that has come to it."""
        for number in range(len(self._walks)):
            self._step(number)
        # Without the next event of every walk, nobody knows which comes first.
        while self._next and not self.is_cut:
            _, number = heappop(self._next)
            yield number
            self._step(number)

    def _step(self, number: int) -> None:
        # Before the step and not behind it: a walk that has found an event must not stand past it when the page ends.
        if self.is_cut or self._blocks_left <= 0:
            self.is_cut = True
            return
        walk = self._walks[number]
        before = walk.blocks_read
        if walk.next():
            heappush(self._next, (self._sign * walk.time_us, number))
        self._blocks_left -= walk.blocks_read - before
        self.is_cut = walk.is_cut
