"""What an attribute of an update may be called, and what its value may be: the Batch dialect's names and types."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from edgeprofile.record import timestamp_text

ATTRIBUTES_MAX: Final = 50
ITEMS_MAX: Final = 25
STRING_CHARS_MAX: Final = 300
URL_CHARS_MAX: Final = 2_048
EMAIL_CHARS_MAX: Final = 128
DEPTH_MAX: Final = 3
"""How deep objects may stand in each other in an event's attribute."""
IDENTIFIER_BYTES_MAX: Final = 509
NAMES_KNOWN_MAX: Final = 4_096

NAME = re.compile(r"[a-zA-Z0-9_]{1,30}")
TYPED = re.compile(r"(date|url)\(([a-zA-Z0-9_]{1,30})\)")
URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s\x00-\x1f\x7f]+")
# ISO 8601: a date, or a date and a time of day, which without an offset is in UTC.
MOMENT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[Tt ]((?:[01][0-9]|2[0-3])(?::[0-5][0-9]){1,2})(?:[.,]([0-9]{1,9}))?"
    r"([Zz]|[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9])?)?)?"
)
EPOCH = dt.datetime(1970, 1, 1)
MICROSECOND = dt.timedelta(microseconds=1)
NAMING = "a name has 1 to 30 of a-z, A-Z, 0-9 and _, alone or in date(…) or url(…)"

Check = Callable[[Any], object]


class Fault(ValueError):
    """The reason why something is left out."""


class Attribute(NamedTuple):
    """What is known of a name: under which it is stored, and what makes a value of it, or raises Fault."""

    name: str
    check: Check


# --- values --------------------------------------------------------------------------------------------------------


def text(value: object, chars_max: int = STRING_CHARS_MAX) -> str:
    """A string that is neither empty nor too long. Raises Fault."""
    if type(value) is not str:
        raise Fault("a string is expected")
    if not 0 < len(value) <= chars_max:
        raise Fault(f"a string has 1 to {chars_max} characters (null deletes an attribute)")
    return value


def plain(value: object) -> object:
    """What an attribute without a type in its name may be: a string, number, boolean or array of strings."""
    kind = type(value)
    if kind is str:
        return text(value)
    if kind is bool or kind is float:
        return value
    if isinstance(value, int):
        return integer(value)
    if isinstance(value, list):
        return strings(value)
    raise Fault("a string, a number, a boolean or an array of strings is expected")


def integer(value: int) -> int:
    if not -(1 << 63) <= value < 1 << 63:
        raise Fault("an integer has 64 bits")
    return value


def strings(value: object) -> list[str]:
    """An array of strings. Raises Fault."""
    if not isinstance(value, list):
        raise Fault("an array of strings is expected")
    if len(value) > ITEMS_MAX:
        raise Fault(f"an array has at most {ITEMS_MAX} items")
    return [text(item) for item in value]


def identifier(value: object) -> object:
    """The value of a namespace, which is kept in an index of keys of bounded length."""
    if type(value) is int:
        return integer(value)
    if len(text(value).encode()) > IDENTIFIER_BYTES_MAX:
        raise Fault(f"an identifier has at most {IDENTIFIER_BYTES_MAX} bytes")
    return value


def date(value: object) -> str:
    """A date as it is, or a moment in RFC 3339 and UTC."""
    found = MOMENT.fullmatch(text(value))
    if found is None:
        raise Fault("a date is expected, in ISO 8601")
    moment = timestamp_text(_moment_us(found), 1_000_000)
    if moment is None:
        raise Fault("a date is in the years 1 to 9999")
    return moment if found[2] else found[1]


def moment_us(value: object) -> int:
    """Microseconds since 1970."""
    found = MOMENT.fullmatch(text(value))
    if found is None:
        raise Fault("a time is expected, in ISO 8601")
    return _moment_us(found)


def _moment_us(found: re.Match[str]) -> int:
    """Digits past microseconds are cut off."""
    day, clock, fraction, offset = found.groups()
    try:
        moment = dt.datetime.fromisoformat(f"{day}T{clock or '00:00'}")
    except ValueError:
        raise Fault("there is no such day") from None
    microseconds = (moment - EPOCH) // MICROSECOND + int((fraction or "0")[:6].ljust(6, "0"))
    if offset is None or offset in "Zz":
        return microseconds
    minutes = int(offset[1:3]) * 60 + int(offset[-2:] if len(offset) > 3 else 0)
    return microseconds - minutes * 60_000_000 * (-1 if offset[0] == "-" else 1)


def url(value: object) -> object:
    """An absolute URL, of any scheme: apps have their own."""
    if URL.fullmatch(text(value, URL_CHARS_MAX)) is None:
        raise Fault("a URL is expected, with its scheme")
    return value


def like(pattern: str, what: str, chars_max: int = STRING_CHARS_MAX) -> Check:
    """Texts that match a pattern as a whole."""
    matches = re.compile(pattern).fullmatch

    def check(value: object) -> object:
        if matches(text(value, chars_max)) is None:
            raise Fault(f"{what} is expected")
        return value

    return check


def zone(value: object) -> object:
    """A time zone by its name, where this machine has the names, else what looks like one."""
    if not (text(value) in ZONES if ZONES else NAMELIKE.fullmatch(text(value))):
        raise Fault("a time zone is expected, such as Europe/Paris")
    return value


ZONES = zoneinfo.available_timezones()
NAMELIKE = re.compile(r"[A-Za-z_]+(?:/[A-Za-z0-9_+-]+){0,2}")
CONSENT = like("(?:un)?subscribed", '"subscribed" or "unsubscribed"')
TYPES: dict[str, Check] = {"date": date, "url": url}
NATIVE: dict[str, Check] = {
    "$email_address": like(r"[^\s@]+@[^\s@.][^\s@]*\.[^\s@.]+", "an email address", EMAIL_CHARS_MAX),
    "$phone_number": like(r"\+[1-9][0-9]{1,14}", "a phone number in E.164, such as +33612345678"),
    "$email_marketing": CONSENT,
    "$sms_marketing": CONSENT,
    "$language": like("[a-z]{2}", "a language of ISO 639-1, such as en"),
    "$region": like("[A-Z]{2}", "a country of ISO 3166-1, such as FR"),
    "$timezone": zone,
}
# Of events: what they are about, and in which words.
NATIVE_OF_EVENTS: dict[str, Check] = {"$label": text, "$tags": strings}


def structure(value: object, depth: int = 1) -> object:
    """The value of an event's attribute: as a profile's, or an object or an array of objects."""
    if isinstance(value, dict):
        return _object(value, depth)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        if len(value) > ITEMS_MAX:
            raise Fault(f"an array has at most {ITEMS_MAX} items")
        return [_object(item, depth) for item in value]
    return plain(value)


def _object(value: object, depth: int) -> dict[str, object]:
    if not isinstance(value, dict):
        raise Fault("an array has strings, or else objects")
    if depth > DEPTH_MAX:
        raise Fault(f"objects stand in each other at most {DEPTH_MAX} deep")
    if len(value) > ATTRIBUTES_MAX:
        raise Fault(f"an object has at most {ATTRIBUTES_MAX} attributes")
    made: dict[str, object] = {}
    for name, inner in value.items():
        kind, bare = split(name)
        if bare in made:
            raise Fault(f"{bare} stands twice in an object")
        if inner is not None:
            made[bare] = TYPES[kind](inner) if kind else structure(inner, depth + 1)
    return made


def split(name: str) -> tuple[str, str]:
    """The type that a name has about it, if it has one, and the name within. Raises Fault."""
    if NAME.fullmatch(name):
        return "", name
    found = TYPED.fullmatch(name)
    if found is None:
        raise Fault(NAMING)
    return found[1], found[2]


# --- names ---------------------------------------------------------------------------------------------------------


class Names:
    """What is known of the names of attributes. The same few come again and again, so each is looked at once."""

    def __init__(
        self, native: dict[str, Check], bare: Check, taken: dict[str, str], identifiers: Iterable[str]
    ) -> None:
        self._native = native
        self._bare = bare
        self._taken = taken
        self._identifiers = frozenset(identifiers)
        self._known: dict[str, Attribute | str] = {}

    def find(self, name: str) -> Attribute:
        """Raises Fault for a name that cannot be one."""
        known = self._known.get(name)
        if known is None:
            known = self._look_at(name)
            if len(self._known) < NAMES_KNOWN_MAX:
                self._known[name] = known
        if isinstance(known, str):
            raise Fault(known)
        return known

    def _look_at(self, name: str) -> Attribute | str:
        if name.startswith("$"):
            kind, bare, check = "", name[1:], self._native.get(name)
            if check is None:
                return f"there is no such native attribute; there are {', '.join(self._native)}"
        else:
            try:
                kind, bare = split(name)
            except Fault as fault:
                return str(fault)
            check = TYPES[kind] if kind else self._bare
        if bare in self._taken:
            return self._taken[bare]
        if bare in self._identifiers:
            if kind:
                return "an identifier has no type"
            return Attribute(bare, identifier if check is self._bare else check)
        return Attribute(bare, check)
