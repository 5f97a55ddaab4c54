"""`edgeprofile.toml` as frozen Structs, which are the one description of every key.

The reading, the overrides from the environment, the wording of errors and `reference` all walk these Structs.
A wrong setting is one line: where it was set, the key, what was expected and what was found.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from msgspec import Meta, Struct, ValidationError, convert, inspect, structs

from edgeprofile.errors import SettingsError

FILE = "edgeprofile.toml"
# Each has a counter of its own in the shared file.
WORKSPACES_MAX = 1_000
DURATION_UNITS_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}

# Every number is bounded on both sides: TOML's nan and inf must not reach anybody's arithmetic.
Port = Annotated[int, Meta(ge=1, le=65_535)]
PortOrNone = Annotated[int, Meta(ge=0, le=65_535)]
Count = Annotated[int, Meta(ge=0, le=1_024)]
Kept = Annotated[int, Meta(ge=1, le=1_024)]
Bytes = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Rate = Annotated[float, Meta(ge=0.001, le=1_000_000)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Share = Annotated[float, Meta(ge=0, le=1)]
# Every other type says itself what it expects.
Switch = Annotated[bool, Meta(extra={"expected": "true or false"})]
Folder = Annotated[Path, Meta(extra={"expected": "a path"})]
Lower = Annotated[Literal["lower"], Meta(extra={"expected": '"lower"'})]
Text = Annotated[str, Meta(min_length=1, extra={"expected": "text"})]
Column = Annotated[str, Meta(min_length=1, extra={"expected": "a column"})]
Sql = Annotated[str, Meta(min_length=1, extra={"expected": "SQL, or a path that ends in .sql"})]
Url = Annotated[str, Meta(min_length=1, extra={"expected": "a URL such as duckdb:///FILE"})]
Header = Annotated[str, Meta(pattern=r"\A[\x20-\x7e]*\Z", extra={"expected": "text in printable ASCII"})]
# So few digits that every duration fits the timers of the system.
_DURATION = r"\A(?=.*[1-9])([0-9]{1,4}d)?([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?\Z"
Duration = Annotated[str, Meta(pattern=_DURATION, extra={"expected": 'a duration such as "30s", "5m" or "1h30m"'})]
_SIZE = r"(?i)\A(?=.*[1-9])[0-9]{1,15} ?([KMGT]I?)?B\Z"
Size = Annotated[str, Meta(pattern=_SIZE, extra={"expected": 'a size such as "512MB" or "2GiB"'})]
_NAME = "a name of up to 63 of a-z, 0-9, _ and -, which starts with a letter or digit"  # it names a folder too
Name = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9_-]{0,62}\Z", extra={"expected": _NAME})]
# Plaintext where the operator asked for TLS would be worse than not starting.
NotServed = Annotated[None, Meta(extra={"expected": "nothing, as TLS is not served yet (terminate it in a proxy)"})]
_DERIVED = {"file", "folder", "text"}  # attributes that `load` fills in; as keys of the file they are unknown
Key = tuple[str | int, ...]
Leaf = tuple[tuple[str, ...], structs.FieldInfo]


class _Fault(ValueError):
    """A wrong setting at `key`; `load` adds where it was set and makes a SettingsError of it."""

    def __init__(self, key: Key, expected: str, found: str, hint: str | None = None) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.key = key
        self.hint = hint


class Server(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and how the workers listen. `workers` 0 is one a core; `admin_port` 0 is no admin listener."""

    host: Text = "127.0.0.1"
    port: Port = 8000
    workers: Count = 1
    admin_host: Text = "127.0.0.1"
    admin_port: PortOrNone = 8001
    tls_certificate: NotServed = None
    tls_key: NotServed = None
    tls_client_ca: NotServed = None
    docs: Switch = True
    cache_control: Header = "private, no-cache"
    drain_seconds: Seconds = 10.0

    def __post_init__(self) -> None:
        if self.admin_port == self.port:
            raise _Fault(("admin_port",), "another port than server.port", str(self.port))


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key may do unless it carries its own limits. Rates are requests a second."""

    rate: Rate = 500.0
    burst_rate: Rate = 1000.0
    burst_seconds: Seconds = 120.0
    response_bytes_max: Bytes = 1_048_576
    request_bytes_max: Bytes = 1_048_576

    def __post_init__(self) -> None:
        if self.burst_rate < self.rate:
            expected = f"a number of at least limits.rate ({self.rate:.15g})"
            raise _Fault(("burst_rate",), expected, f"{self.burst_rate:.15g}")


class Loader(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the loader may take of the machine. `threads` 0 is one a core, but at most one for 512 MiB of memory."""

    memory_limit: Size | None = None
    threads: Count = 0

    @property
    def memory_limit_bytes(self) -> int:
        """`memory_limit`, or a quarter of the machine's (or the container's) memory."""
        if self.memory_limit:
            digits, prefix, binary = re.findall(r"([0-9]+) ?([KMGT]?)(I?)B", self.memory_limit.upper())[0]
            return int(digits) * int((1024 if binary else 1000) ** " KMGT".index(prefix or " "))
        memory: int = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        with suppress(OSError, ValueError):  # no such file, or "max"
            memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
        return memory // 4


class Source(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The warehouse. After `load`, `url` has its variables filled in and its file is absolute."""

    url: Url

    def __repr__(self) -> str:
        return f"Source(url='{self.scheme}://…')"  # the rest may hold credentials, and reprs end up in logs

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    @property
    def database(self) -> Path | None:
        """The DuckDB file, or None where the SQL reads files itself."""
        path = self.url.removeprefix("duckdb://").removeprefix("/")
        return Path(path) if self.scheme == "duckdb" and path else None


class Identifier(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column whose values find a profile; its name is the namespace. A text stands for its column."""

    column: Column
    unique: Switch = True
    normalize: Lower | None = None


class Profiles(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model of the profiles. After `load`, `text` is the SQL itself, without closing semicolons."""

    sql: Sql
    id: Column
    updated_at: Column | None = None
    identifiers: tuple[Identifier, ...] = ()
    audiences: tuple[Column, ...] = ()
    metrics: tuple[Column, ...] = ()
    text: str = ""

    def __post_init__(self) -> None:
        columns = [("id", self.id), ("updated_at", self.updated_at)]
        columns += [("identifiers", identifier.column) for identifier in self.identifiers]
        columns += [("audiences", column) for column in self.audiences]
        columns += [("metrics", column) for column in self.metrics]
        _declared_once(columns)


class Events(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model of the events: all columns that are not named here are parameters. `text` is as in Profiles."""

    sql: Sql
    profile: Column
    name: Column
    time: Column
    id: Column | None = None
    text: str = ""

    def __post_init__(self) -> None:
        _declared_once([("profile", self.profile), ("name", self.name), ("time", self.time), ("id", self.id)])


def _declared_once(columns: list[tuple[str, Any]]) -> None:
    declared: dict[str, str] = {}
    for name, column in columns:
        if column in declared:
            found = f"{_shown(column)}, which {declared[column]} has already"
            raise _Fault((name,), "every column to be declared once", found)
        if column is not None:
            declared[column] = name


class Workspace(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One company's dataset. `keep` counts snapshots; the two shares are of rows and of profiles."""

    refresh: Duration = "5m"
    keep: Kept = 2
    rejects_max: Share = 0.01
    shrink_max: Share = 0.5
    source: Source
    profiles: Profiles
    events: Events | None = None

    @property
    def refresh_s(self) -> float:
        parts = re.findall(r"([0-9]+)([dhms])", self.refresh)
        return float(sum(int(digits) * DURATION_UNITS_S[unit] for digits, unit in parts))


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. After `load`, `data_dir`, `file` (read from) and `folder` (its parent) are absolute."""

    data_dir: Folder = Path("var/edgeprofile")
    server: Server = Server()
    limits: Limits = Limits()
    loader: Loader = Loader()
    workspaces: dict[Name, Workspace] = {}
    file: Path = Path(FILE)
    folder: Path = Path()

    def __post_init__(self) -> None:
        if len(self.workspaces) > WORKSPACES_MAX:
            raise _Fault(("workspaces",), f"at most {WORKSPACES_MAX:,} workspaces", f"{len(self.workspaces):,}")


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read `path`, or else the file that EDGEPROFILE_CONFIG names, or else ./edgeprofile.toml.

    EDGEPROFILE_SERVER__PORT=9000 overrides `server.port`, and so on for every key of a workspace that the file has.
    A hyphen in a workspace's name is an underscore there, and a list is JSON or separated by commas.
    Raises SettingsError.
    """
    file = path or Path(environ.get("EDGEPROFILE_CONFIG") or FILE)
    variables: dict[Key, str] = {}
    try:
        document = tomllib.loads(_read(file, (), "a settings file in UTF-8"))
        variables = _override(document, environ)
        settings: Settings = _struct(Settings, document, (), variables)
        return _resolved(settings, Path(os.path.abspath(file)), environ)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file}: expected valid TOML, found a fault: {error}") from None
    except _Fault as fault:
        origin = next((name for key, name in variables.items() if fault.key[: len(key)] == key), str(file))
        names = [name if re.fullmatch(r"[A-Za-z0-9_-]+", str(name)) else _shown(name) for name in fault.key]
        line = ": ".join([origin, ".".join(map(str, names)), str(fault)] if names else [origin, str(fault)])
        raise SettingsError(line, hint=fault.hint) from None


def reference() -> list[tuple[str, str, str]]:
    """Every key as (path, type, default), such as ("server.port", "an integer from 0 to 65535", "8000")."""
    return [(".".join(key), _described(field.type), _default(field)) for key, field in _leaves(Settings, ["<name>"])]


def _read(file: Path, key: Key, expected: str) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _Fault(key, expected, f"byte 0x{error.object[error.start]:02x} on line {line}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        hint = None if key else "Name the file by --config or EDGEPROFILE_CONFIG, or try `edgeprofile demo`."
        reason = getattr(error, "strerror", error)
        raise _Fault(key, expected, f"none that can be read ({reason})", hint) from None


def _leaves(cls: type[Struct], workspaces: Iterable[str], path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Every key that holds a value rather than a table, with the path that it has in these workspaces."""
    for field in structs.fields(cls):
        table = _table(field.type)
        if table is not None:
            yield from _leaves(table, workspaces, (*path, field.name))
        elif get_origin(field.type) is dict:
            for name in workspaces:
                yield from _leaves(get_args(field.type)[1], workspaces, (*path, field.name, name))
        elif field.name not in _DERIVED:
            yield (*path, field.name), field


def _table(kind: Any) -> type[Struct] | None:
    """The Struct of a key that holds a table, which may be one that can be left out; None for all other keys."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return next((each for each in kinds if hasattr(each, "__struct_fields__")), None)


def _override(document: dict[str, Any], environ: Mapping[str, str]) -> dict[Key, str]:
    """Lay the environment's values over the document; return which variable set which key."""
    given = {name.upper(): value for name, value in environ.items() if name.upper().startswith("EDGEPROFILE_")}
    workspaces = document.get("workspaces")
    variables: dict[Key, str] = {}
    known = {"EDGEPROFILE_CONFIG", "EDGEPROFILE_SANITIZE"}
    for key, field in _leaves(Settings, list(workspaces) if isinstance(workspaces, dict) else []):
        variable = f"EDGEPROFILE_{'__'.join(key)}".upper().replace("-", "_")
        known.add(variable)
        if variable in given:
            variables[key] = variable
            table: Any = document
            with suppress(AttributeError, TypeError):  # what should be a table is none: the reading says so
                for name in key[:-1]:
                    table = table.setdefault(name, {})
                table[key[-1]] = _split(given[variable]) if get_origin(field.type) is tuple else given[variable]
    for variable in sorted(given.keys() - known):
        meant = _meant(variable, sorted(known))
        raise SettingsError(f"{variable}: expected a variable that names a key, found none{meant}")
    return variables


def _split(value: str) -> object:
    """A list from one variable; broken JSON stays text, which the reading refuses."""
    if not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(",") if part.strip()]
    with suppress(ValueError):
        return json.loads(value)
    return value


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


def _struct(cls: type[Struct], table: object, path: Key, variables: Mapping[Key, str]) -> Any:
    """Build a Struct from a table of the file, or raise the first fault in it."""
    if cls is Identifier and isinstance(table, str):
        table = {"column": table}
    if not isinstance(table, dict):
        raise _Fault(path, _described(cls), _shown(table, secret=True))
    fields = {field.name: field for field in structs.fields(cls) if field.name not in _DERIVED}
    for name in table:
        if name not in fields:
            found = _shown(name) + _meant(name, fields)
            raise _Fault((*path, name), "a known key", found, f"Known here: {', '.join(fields)}.")
    values = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _value(field.type, table[name], (*path, name), variables)
        elif field.required:
            raise _Fault((*path, name), _described(field.type), "nothing")
    try:
        return cls(**values)
    except _Fault as fault:
        fault.key = (*path, *fault.key)
        raise


def _value(kind: Any, value: object, path: Key, variables: Mapping[Key, str]) -> Any:
    table = _table(kind)
    if table is not None:
        return _struct(table, value, path, variables)
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
        raise _Fault(path, _described(kind), _shown(value, secret=secret)) from None


def _path(_: type, text: str) -> object:
    return Path(text) if text else None  # no Path, and so refused


def _resolved(settings: Settings, file: Path, environ: Mapping[str, str]) -> Settings:
    """Fill in what hangs on the file's folder and the environment: paths, credentials and SQL."""
    folder = file.parent
    workspaces = {}
    for name, workspace in settings.workspaces.items():
        key = ("workspaces", name)
        source = Source(url=_url(workspace.source.url, (*key, "source", "url"), folder, environ))
        text = _text(workspace.profiles.sql, (*key, "profiles", "sql"), folder)
        profiles = structs.replace(workspace.profiles, text=text)
        events = workspace.events
        if events:
            events = structs.replace(events, text=_text(events.sql, (*key, "events", "sql"), folder))
        workspaces[name] = structs.replace(workspace, source=source, profiles=profiles, events=events)
    data_dir = Path(os.path.abspath(folder / settings.data_dir))
    return structs.replace(settings, data_dir=data_dir, workspaces=workspaces, file=file, folder=folder)


def _url(url: str, key: Key, folder: Path, environ: Mapping[str, str]) -> str:
    """The URL with its variables filled in and its file absolute. No fault shows more of it than the scheme."""
    try:
        url = re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", lambda match: environ[match[1]], url)
    except KeyError as error:
        raise _Fault(key, f"the environment variable {error.args[0]} to be set", "it unset") from None
    parts = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", url, re.DOTALL)
    scheme, rest = parts.groups() if parts else ("", "")
    if scheme.lower() != "duckdb":
        expected = "duckdb://, as this version loads DuckDB and files only (export to Parquet or query from DuckDB)"
        raise _Fault(key, expected, f"the scheme {_shown(scheme)}" if scheme else "no scheme")
    if rest and (not rest.startswith("/") or rest.endswith("/")):
        raise _Fault(key, "duckdb:///FILE, duckdb:////ABSOLUTE/FILE or duckdb:// alone", "another form")
    return f"duckdb:///{os.path.abspath(folder / rest[1:])}" if rest else "duckdb://"


def _text(sql: str, key: Key, folder: Path) -> str:
    text = sql.strip()
    if text.endswith(".sql"):
        text = _read(folder / text, key, f"SQL in UTF-8 in {_shown(text)}")
    text = text.strip().rstrip(" \t\r\n\f\v;")
    if not text:
        raise _Fault(key, "SQL", f"none in {_shown(sql)}")
    return text


def _default(field: structs.FieldInfo) -> str:
    default = "none" if field.default is None else _shown(field.default).removesuffix(".0")
    return "required" if field.required else default


def _described(kind: Any) -> str:
    """What a value of this type is called, as in "an integer from 0 to 65535"."""
    if hasattr(kind, "__struct_fields__"):
        return f"a column or a table of {', '.join(kind.__struct_fields__)}" if kind is Identifier else "a table"
    match inspect.type_info(kind):
        case inspect.Metadata(extra={"expected": str(expected)}):
            return expected
        case inspect.IntType(ge=low, le=high):
            return f"an integer from {low} to {high}"
        case inspect.FloatType(ge=low, le=high):
            return f"a number from {low:.15g} to {high:.15g}"
        case inspect.UnionType():  # something or None
            return _described(get_args(kind)[0])
        case inspect.VarTupleType():
            return f"a list (each {_described(get_args(kind)[0])})"
    return "a table"


def _shown(value: object, *, secret: bool = False) -> str:
    """A value on one line of at most 60 characters; of a table or a secret, only what it is."""
    if secret or isinstance(value, dict):
        kinds = {dict: "a table", list: "a list", str: "text", bool: "a boolean", int: "an integer", float: "a number"}
        return kinds.get(type(value), "a date or time")
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text if text.isprintable() else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:59] + "…"
