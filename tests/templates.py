"""Templates for tests: items of all kinds, and what is to come of them.

The oracle takes a record's JSON apart as text, so that every digit and every escape must come through.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from hypothesis import strategies as st

from edgeprofile import record
from edgeprofile._profile import CONSTANT, IF_TRUE, OBJECT, RUN, SLOT, TEXT, TIME_MS, TIME_S, VALUE

Item = tuple[Any, ...]
WITHOUT_SUBJECT = (CONSTANT, TIME_S, TIME_MS)
DECODER = json.JSONDecoder()


# --- JSON as text --------------------------------------------------------------------------------------------------


def members(text: str) -> Iterator[tuple[str, str, str]]:
    """The name, the whole text and the text of the value of each member of an object without white space."""
    start = 1
    while text[start] != "}":
        name, colon = DECODER.raw_decode(text, start)
        _, end = DECODER.raw_decode(text, colon + 1)
        yield name, text[start:end], text[colon + 1 : end]
        start = end + (text[end] == ",")


def elements(text: str) -> Iterator[str]:
    """The texts of the elements of a list without white space."""
    start = 1
    while text[start] != "]":
        _, end = DECODER.raw_decode(text, start)
        yield text[start:end]
        start = end + (text[end] == ",")


def quoted(text: str) -> str:
    return text if text.startswith('"') else record.json_text(text)


def as_text(text: str) -> str | None:
    """A value as a text or a list of texts; None for null."""
    if text.startswith("["):
        return f"[{','.join(quoted(each) for each in elements(text) if each != 'null')}]"
    return None if text == "null" else quoted(text)


# --- the oracle ----------------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """A record taken apart: of each field that it has, by its number, the whole member and the value in it."""

    members: dict[int, str]
    values: dict[int, str]
    time_us: int

    def run(self, runs: Sequence[tuple[int, int]]) -> str:
        return ",".join(text for first, last in runs for n, text in self.members.items() if first <= n < last)

    def time(self, with_ms: bool) -> str:
        text = record.timestamp_text(self.time_us // 1_000_000, 1)
        ms = f".{self.time_us // 1_000 % 1_000:03}" if with_ms else ""
        return "null" if text is None else f'"{text[:-1]}{ms}Z"'

    def put(self, item: Item, slots: Sequence[bytes]) -> bytes:
        """What comes of one item."""
        how, *rest = item
        subject: Any = None if how in WITHOUT_SUBJECT else rest.pop(0)
        before, after, field = chain(rest, [b"", b"", -1][len(rest) :])
        if how == CONSTANT:
            return bytes(before)
        if how == SLOT:
            return bytes(slots[subject])
        if how == IF_TRUE:
            return before if self.values.get(subject) == "true" else b""
        if how in (RUN, OBJECT):
            found: str | None = self.run(subject) or ("" if how == OBJECT else None)
        elif how in (TIME_S, TIME_MS):
            found = self.values.get(field, "null")
            found = self.time(how == TIME_MS) if found == "null" else found
        else:
            found = self.values.get(subject)
            found = as_text(found) if how == TEXT and found is not None else found
        return b"" if found is None else before + found.encode() + after

    def render(self, items: Sequence[Item], slots: Sequence[bytes] = ()) -> bytes:
        return b",".join(filter(None, (self.put(item, slots) for item in items)))


def taken_apart(body: bytes, names: Sequence[str], first_nested: int, time_us: int) -> Parts:
    """The parts of a record with such a body, of whose fields those from `first_nested` on stand in an object."""
    held = "params" if body.endswith(b"}}") else "_audiences"
    found: dict[int, tuple[str, str]] = {}
    for name, whole, value in members(body.decode()):
        if name == held:
            inside = {inner: (text, of) for inner, text, of in members(value)}
            found |= {n: inside[names[n]] for n in range(first_nested, len(names)) if names[n] in inside}
        elif name in names[:first_nested]:
            found[names.index(name)] = (whole, value)
    texts = dict(sorted(found.items()))
    return Parts({n: t[0] for n, t in texts.items()}, {n: t[1] for n, t in texts.items()}, time_us)


# --- strategies ----------------------------------------------------------------------------------------------------

SLOTS = (b"", b'"once":1', "é".encode() * 30)
TEXTS = st.sampled_from([b"", b'"k":', b"[", "é".encode(), b"x" * 40])


def runs_of(fields: int, first_nested: int) -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    """Runs of fields, each on one side of `first_nested`, in any order."""

    def between(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
        ends = st.integers(low, high)
        return st.tuples(ends, ends).map(lambda run: (min(run), max(run)))

    runs = between(0, first_nested) | between(first_nested, fields + 70)
    return st.lists(runs, max_size=4).map(tuple)


def items_of(fields: int, first_nested: int) -> st.SearchStrategy[list[Item]]:
    """Items of every kind, of fields that there are and of others, their texts left out from the right or not."""
    numbers = st.integers(-2, fields + 1) | st.sampled_from([first_nested, first_nested - 1, fields + 9, 1 << 20])
    runs = runs_of(fields, first_nested)

    def item(how: int, *subject: st.SearchStrategy[Any]) -> st.SearchStrategy[Item]:
        texts = st.lists(TEXTS, max_size=1 if how in (CONSTANT, IF_TRUE) else 2)
        return st.tuples(st.just(how), *subject, texts).map(lambda made: (*made[:-1], *made[-1]))

    return st.lists(
        st.one_of(
            item(CONSTANT),
            st.tuples(st.just(SLOT), st.integers(0, len(SLOTS) - 1)),
            *(item(how, numbers) for how in (VALUE, TEXT, TEXT, IF_TRUE)),
            *(item(how, runs) for how in (RUN, OBJECT)),
            *(item(how) for how in (TIME_S, TIME_MS)),
            st.tuples(st.sampled_from([TIME_S, TIME_MS]), TEXTS, TEXTS, numbers),
        ),
        max_size=8,
    )
