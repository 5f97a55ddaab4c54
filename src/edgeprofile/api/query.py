"""Query strings, as every API reads them: parameters by their names, and the moments that stand in them."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Collection
from urllib.parse import unquote_to_bytes

from edgeprofile.errors import MalformedQuery

EARLIEST_US, LATEST_US = -(1 << 63), (1 << 63) - 1
ESCAPE_BROKEN = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# The plus of an offset is a space where a query string has it without its escape.
DAY, CLOCK, SECONDS = r"([0-9]{4}-[0-9]{2}-[0-9]{2})", r"([0-9]{2}:[0-9]{2})", r":([0-9]{2})(?:\.([0-9]+))?"
HOURS, MINUTES = r"([+ -])([01][0-9]|2[0-3])", r"([0-5][0-9])"
# A time of RFC 3339, or a date.
RFC_3339 = re.compile(f"{DAY}(?:[Tt ]{CLOCK}{SECONDS}(?:[Zz]|{HOURS}:{MINUTES}))?")
# As much of ISO 8601 as callers send: the same, and times without seconds or without an offset, which are UTC.
ISO_8601 = re.compile(f"{DAY}(?:[Tt ]{CLOCK}(?:{SECONDS})?(?:[Zz]|{HOURS}(?::?{MINUTES})?)?)?")


def parameters(query: bytes, names: Collection[str]) -> dict[str, list[str]]:
    """The values that a query string gives for each of these names, whose order is kept; others are not looked at.

    Raises MalformedQuery, which begins with the name, for a value that is empty or cannot be read.
    """
    given: dict[str, list[str]] = {name: [] for name in names}
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        parameter = unquote_to_bytes(name).decode("latin-1")
        if parameter in given:
            given[parameter].append(text_of(parameter, value.replace(b"+", b" ")))
    return given


def once(given: dict[str, list[str]], name: str) -> str | None:
    """The value of a parameter that may stand once; None where it does not stand. Raises MalformedQuery."""
    if len(given[name]) > 1:
        raise MalformedQuery(f"{name} is given more than once.")
    return given[name][0] if given[name] else None


def number_of(name: str, text: str | None, low: int, high: int, default: int) -> int:
    """A whole number in a parameter, if it stands. Raises MalformedQuery."""
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise MalformedQuery(f"{name} is a whole number from {low} to {high}.")
    return int(text)


def text_of(what: str, escaped: bytes) -> str:
    """A text that was percent-encoded, in which a plus is a plus. Raises MalformedQuery, which begins with `what`."""
    if not escaped:
        raise MalformedQuery(f"{what} is empty.")
    if b"%" in escaped:
        if ESCAPE_BROKEN.search(escaped):
            raise MalformedQuery(f"{what} has a percent sign that two hexadecimal digits do not follow.")
        escaped = unquote_to_bytes(escaped)
    try:
        return escaped.decode()
    except UnicodeDecodeError:
        raise MalformedQuery(f"{what} is not UTF-8 once its escapes are decoded.") from None


def range_us(start: str | None, end: str | None, form: re.Pattern[str]) -> tuple[int, int]:
    """A range of time, both ends included, in microseconds since 1970. Raises MalformedQuery."""
    start_us = EARLIEST_US if start is None else _moment_us("start", start, form)
    end_us = LATEST_US if end is None else _moment_us("end", end, form)
    if start_us > end_us:
        raise MalformedQuery("start is after end.")
    return start_us, end_us


def _moment_us(parameter: str, text: str, form: re.Pattern[str]) -> int:
    """A date is its first microsecond or, of `end`, its last."""
    found = form.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        day, clock, seconds, fraction, sign, hours, minutes = found.groups()
        if clock is None:
            moment = dt.datetime.combine(dt.date.fromisoformat(day), dt.time.max if parameter == "end" else dt.time.min)
        else:
            moment = dt.datetime.strptime(f"{day} {clock}:{seconds or 0} {fraction or '0':.6}", "%Y-%m-%d %H:%M:%S %f")
    except ValueError:
        kind = "time of RFC 3339" if form is RFC_3339 else "time of ISO 8601"
        raise MalformedQuery(f"{parameter} is neither a {kind} nor a date, YYYY-MM-DD.") from None
    offset = dt.timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) * (-1 if sign == "-" else 1)
    return (moment - dt.datetime(1970, 1, 1) - offset) // dt.timedelta(microseconds=1)
