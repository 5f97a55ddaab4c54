"""Tables of TOML, read into frozen Structs, with the environment's values laid over them.

The Structs are the one description of every key: what a value may be is in its type, what a fault says is made from
that, and `leaves` walks them. A wrong setting is one line: where it was set, the key, what was expected, what found.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from msgspec import NODEFAULT, Struct, ValidationError, convert, inspect, structs

from edgeprofile.errors import SettingsError

SHORT = "short"  # the attribute of a Struct that names the key for which a text stands in the place of the table
DERIVED = {"file", "folder", "text"}  # attributes that are filled in behind the reading; as keys they are unknown
Key = tuple[str | int, ...]
Leaf = tuple[tuple[str, ...], structs.FieldInfo]


class Fault(ValueError):
    """A wrong setting at `key`; `load` adds where it was set and makes a SettingsError of it."""

    def __init__(self, key: Key, expected: str, found: str, hint: str | None = None) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.key = key
        self.hint = hint


def read_text(file: Path, key: Key, expected: str) -> str:
    """A file of the settings. Raises Fault, of `key`, which `expected` it."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise Fault(key, expected, f"byte 0x{error.object[error.start]:02x} on line {line}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        hint = None if key else "Name the file by --config or EDGEPROFILE_CONFIG, or try `edgeprofile demo`."
        reason = getattr(error, "strerror", error)
        raise Fault(key, expected, f"none that can be read ({reason})", hint) from None


def leaves(cls: type[Struct], workspaces: Iterable[str], path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Every key that holds a value rather than a table, with the path that it has in these workspaces."""
    for field in structs.fields(cls):
        table = _table(field.type)
        if table is not None:
            yield from leaves(table, workspaces, (*path, field.name))
        elif _holds_tables(field.type):
            for name in workspaces:
                yield from leaves(get_args(field.type)[1], workspaces, (*path, field.name, name))
        elif field.name not in DERIVED:
            yield (*path, field.name), field


def _table(kind: Any) -> type[Struct] | None:
    """The Struct of a key that holds a table, which may be one that can be left out; None for all other keys."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return next((each for each in kinds if hasattr(each, "__struct_fields__")), None)


def _holds_tables(kind: Any) -> bool:
    """Whether a key's type is a table of tables, each by a name that the file gives it."""
    return get_origin(kind) is dict and hasattr(get_args(kind)[1], "__struct_fields__")


def override(cls: type[Struct], document: dict[str, Any], environ: Mapping[str, str]) -> dict[Key, str]:
    """Lay the environment's values over the document of a `cls`; return which variable set which key."""
    given = {name.upper(): value for name, value in environ.items() if name.upper().startswith("EDGEPROFILE_")}
    workspaces = document.get("workspaces")
    variables: dict[Key, str] = {}
    known = {"EDGEPROFILE_CONFIG", "EDGEPROFILE_SANITIZE"}
    for key, field in leaves(cls, list(workspaces) if isinstance(workspaces, dict) else []):
        variable = f"EDGEPROFILE_{'__'.join(key)}".upper().replace("-", "_")
        known.add(variable)
        if variable in given:
            variables[key] = variable
            table: Any = document
            with suppress(AttributeError, TypeError):  # what should be a table is none: the reading says so
                for name in key[:-1]:
                    table = table.setdefault(name, {})
                table[key[-1]] = _parsed(given[variable], get_origin(field.type))
    for variable in sorted(given.keys() - known):
        meant = _meant(variable, sorted(known))
        raise SettingsError(f"{variable}: expected a variable that names a key, found none{meant}")
    return variables


def _parsed(value: str, origin: Any) -> object:
    """A list or a table from one variable; broken JSON stays text, which the reading refuses."""
    if origin is tuple and not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(",") if part.strip()]
    if origin in (tuple, dict):
        with suppress(ValueError):
            return json.loads(value)
    return value


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


def read_struct(cls: type[Struct], table: object, path: Key, variables: Mapping[Key, str]) -> Any:
    """Build a Struct from a table of the file, or raise the first fault in it."""
    short = getattr(cls, SHORT, None)
    if short is not None and isinstance(table, str):
        table = {short: table}
    if not isinstance(table, dict):
        raise Fault(path, described(cls), shown(table, secret=True))
    fields = {field.name: field for field in structs.fields(cls) if field.name not in DERIVED}
    for name in table:
        if name not in fields:
            found = shown(name) + _meant(name, fields)
            raise Fault((*path, name), "a known key", found, f"Known here: {', '.join(fields)}.")
    values = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _value(field.type, table[name], (*path, name), variables)
        elif field.required:
            raise Fault((*path, name), described(field.type), "nothing")
    try:
        return cls(**values)
    except Fault as fault:
        fault.key = (*path, *fault.key)
        raise


def _value(kind: Any, value: object, path: Key, variables: Mapping[Key, str]) -> Any:
    table = _table(kind)
    if table is not None:
        return read_struct(table, value, path, variables)
    if get_origin(kind) is dict and isinstance(value, dict):
        names, tables = get_args(kind)
        return {
            _value(names, name, (*path, name), variables): _value(tables, table, (*path, name), variables)
            for name, table in value.items()
        }
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_value(get_args(kind)[0], element, (*path, at), variables) for at, element in enumerate(value))
    try:
        # What comes from a variable is text, whatever the key's type.
        return convert(value, kind, strict=path not in variables, dec_hook=_path)
    except ValidationError:
        # Whatever may hold a source's URL may hold its credentials.
        secret = path[-1] == "url" or get_origin(kind) is dict
        raise Fault(path, described(kind), shown(value, secret=secret)) from None


def _path(_: type, text: str) -> object:
    return Path(text) if text else None  # no Path, and so refused


def default_of(field: structs.FieldInfo) -> str:
    """A key's default, as the docs show it."""
    if field.default_factory is not NODEFAULT:  # of a table, an empty one
        return "{}"
    default = "none" if field.default is None else shown(field.default).removesuffix(".0")
    return "required" if field.required else default


def described(kind: Any) -> str:
    """What a value of this type is called, as in "an integer from 0 to 65535"."""
    if hasattr(kind, "__struct_fields__"):
        fields = ", ".join(kind.__struct_fields__)
        return f"a {getattr(kind, SHORT)} or a table of {fields}" if hasattr(kind, SHORT) else "a table"
    match inspect.type_info(kind):
        case inspect.Metadata(extra={"expected": str(expected)}):
            return expected
        case inspect.IntType(ge=low, le=high):
            return f"an integer from {low} to {high}"
        case inspect.FloatType(ge=low, le=high):
            return f"a number from {low:.15g} to {high:.15g}"
        case inspect.UnionType():  # something or None
            return described(get_args(kind)[0])
        case inspect.VarTupleType():
            return f"a list (each {described(get_args(kind)[0])})"
    return "a table"


def shown(value: object, *, secret: bool = False) -> str:
    """A value on one line of at most 60 characters; of a table or a secret, only what it is."""
    if secret or isinstance(value, dict):
        kinds = {dict: "a table", list: "a list", str: "text", bool: "a boolean", int: "an integer", float: "a number"}
        return kinds.get(type(value), "null" if value is None else "a date or time")  # null is a variable's
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text if text.isprintable() else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:59] + "…"
