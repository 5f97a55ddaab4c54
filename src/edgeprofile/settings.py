"""`edgeprofile.toml` as frozen Structs, which are the one description of every key; tables.py reads it into them."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from msgspec import Struct, structs

from edgeprofile.errors import SettingsError
from edgeprofile.kinds import (
    Bytes,
    Column,
    Count,
    Duration,
    FilePath,
    Header,
    Kept,
    LogFormat,
    Logged,
    Lower,
    Name,
    Parallel,
    Port,
    PortOrNone,
    Rate,
    Seconds,
    Share,
    Size,
    Sql,
    Switch,
    Text,
    Url,
    seconds,
)
from edgeprofile.tables import Fault, Key, default_of, described, leaves, override, read_struct, read_text, shown
from edgeprofile.vendors import Batch, Insider, Intilery, MParticle

T = TypeVar("T")
FILE = "edgeprofile.toml"
# Each has a counter of its own in the shared file.
WORKSPACES_MAX = 1_000
FULL_EVERY = 12
# The warehouses, by the schemes of their URLs.
SCHEMES = ("duckdb", "postgresql", "postgres", "snowflake", "bigquery", "grpc", "grpc+tls")

# The vendors whose APIs a workspace may be served by, each where its table stands.
DIALECTS = ("insider", "mparticle", "intilery", "batch")


class Server(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and how the workers listen. `workers` 0 is one a core; `admin_port` 0 is no admin listener.

    With a certificate and its key they speak TLS, with `tls_client_ca` to clients of that authority's only.
    """

    host: Text = "127.0.0.1"
    port: Port = 8000
    workers: Count = 1
    admin_host: Text = "127.0.0.1"
    admin_port: PortOrNone = 8001
    tls_certificate: FilePath | None = None
    tls_key: FilePath | None = None
    tls_client_ca: FilePath | None = None
    docs: Switch = True
    cache_control: Header = "private, no-cache"
    ready_delay_seconds: Seconds = 1.0
    drain_seconds: Seconds = 10.0

    def __post_init__(self) -> None:
        if self.admin_port == self.port:
            raise Fault(("admin_port",), "another port than server.port", str(self.port))
        # Plaintext where the operator asked for TLS would be worse than not starting.
        needs = {"tls_certificate": "tls_key", "tls_key": "tls_certificate", "tls_client_ca": "tls_certificate"}
        for name, other in needs.items():
            if getattr(self, name) is not None and getattr(self, other) is None:
                raise Fault((other,), f"a path, as server.{name} is set", "none")


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
            raise Fault(("burst_rate",), expected, f"{self.burst_rate:.15g}")


class Log(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How processes log. Of `requests` have a line: none, the failed ones, whose status is 500 and over, or all."""

    format: LogFormat = "text"
    requests: Logged = "failed"


class Loader(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the loader may take of the machine. `threads` 0 is one a core, but at most one for 512 MiB of memory.

    A watcher has at most `parallel` refreshes run at once, each with all of this and for `timeout` at most.
    """

    memory_limit: Size | None = None
    threads: Count = 0
    parallel: Parallel = 2
    timeout: Duration = "6h"

    @property
    def timeout_s(self) -> float:
        return seconds(self.timeout)

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
    """The warehouse. After `load`, `url` has its variables filled in and its file is absolute.

    `timeout` is for how long one that is not DuckDB may be silent.
    """

    url: Url
    timeout: Duration = "10m"

    def __repr__(self) -> str:
        return f"Source(url='{self.scheme}://…')"  # the rest may hold credentials, and reprs end up in logs

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    @property
    def timeout_s(self) -> float:
        return seconds(self.timeout)

    @property
    def database(self) -> Path | None:
        """The DuckDB file, or None where the SQL reads files itself."""
        path = self.url.removeprefix("duckdb://").removeprefix("/")
        return Path(path) if self.scheme == "duckdb" and path else None


class Identifier(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column whose values find a profile; its name is the namespace. A text stands for its column."""

    short: ClassVar[str] = "column"

    column: Column
    unique: Switch = True
    normalize: Lower | None = None


class Profiles(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model of the profiles. After `load`, `text` is the SQL itself, without closing semicolons."""

    sql: Sql
    id: Column
    updated_at: Column | None = None
    deleted: Column | None = None
    identifiers: tuple[Identifier, ...] = ()
    audiences: tuple[Column, ...] = ()
    metrics: tuple[Column, ...] = ()
    text: str = ""

    def __post_init__(self) -> None:
        columns = [("id", self.id), ("updated_at", self.updated_at), ("deleted", self.deleted)]
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
            found = f"{shown(column)}, which {declared[column]} has already"
            raise Fault((name,), "every column to be declared once", found)
        if column is not None:
            declared[column] = name


class Workspace(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One company's dataset. `keep` counts snapshots; the two shares are of rows and of profiles."""

    refresh: Duration = "5m"
    full_refresh: Kept | None = None
    overlap: Duration = "1m"
    keep: Kept = 2
    erase_within: Duration = "24h"
    rejects_max: Share = 0.01
    shrink_max: Share = 0.5
    source: Source
    profiles: Profiles
    events: Events | None = None
    insider: Insider | None = None
    mparticle: MParticle | None = None
    intilery: Intilery | None = None
    batch: Batch | None = None

    def __post_init__(self) -> None:
        known = [self.profiles.id, *(identifier.column for identifier in self.profiles.identifiers)]
        for name in DIALECTS:
            dialect = getattr(self, name)
            for key, namespace in dialect.namespaces.items() if dialect else ():
                if namespace not in known:
                    expected = f"an identifier of the profiles ({', '.join(known)})"
                    raise Fault((name, *key), expected, shown(namespace))

    @property
    def dialect_columns(self) -> dict[str, str]:
        """The columns that dialects want the model to have, by the keys that name them."""
        return self._named_by_dialects("columns")

    @property
    def dialect_params(self) -> dict[str, str]:
        """The parameters that they want the model of events to have, likewise. An update may bring others."""
        return {} if self.batch else self._named_by_dialects("params")

    def _named_by_dialects(self, what: str) -> dict[str, str]:
        tables = {name: getattr(getattr(self, name), what, {}) for name in DIALECTS}
        return {f"{name}.{key}": column for name, table in tables.items() for key, column in table.items()}

    @property
    def refresh_s(self) -> float:
        return seconds(self.refresh)

    @property
    def erase_within_s(self) -> float:
        return seconds(self.erase_within)

    @property
    def full_every(self) -> int:
        """Every how many refreshes one is full. Events come with those alone, so without a word of it all are."""
        return self.full_refresh or (FULL_EVERY if self.events is None else 1)

    @property
    def overlap_s(self) -> float:
        return seconds(self.overlap)


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. After `load`, `data_dir`, `file` (read from) and `folder` (its parent) are absolute."""

    data_dir: FilePath = Path("var/edgeprofile")
    server: Server = Server()
    limits: Limits = Limits()
    log: Log = Log()
    loader: Loader = Loader()
    workspaces: dict[Name, Workspace] = {}
    file: Path = Path(FILE)
    folder: Path = Path()

    def tables_of(self, vendor: type[T]) -> dict[str, T]:
        """The tables of one vendor's API, by the workspaces that have it."""
        found = {name: getattr(each, vendor.__name__.lower()) for name, each in self.workspaces.items()}
        return {name: table for name, table in found.items() if isinstance(table, vendor)}

    def __post_init__(self) -> None:
        if len(self.workspaces) > WORKSPACES_MAX:
            raise Fault(("workspaces",), f"at most {WORKSPACES_MAX:,} workspaces", f"{len(self.workspaces):,}")
        partners = [each.insider.partner for each in self.workspaces.values() if each.insider]
        if len(set(partners)) < len(partners):
            raise Fault(("workspaces",), "an insider.partner of its own for each", "one that two have")

    @property
    def signs(self) -> bool:
        """Whether some workspace has a dialect that gives out what the server signed or sealed."""
        return any(each.mparticle or each.intilery for each in self.workspaces.values())


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read `path`, or else the file that EDGEPROFILE_CONFIG names, or else ./edgeprofile.toml.

    EDGEPROFILE_SERVER__PORT=9000 overrides `server.port`, and so on for every key of a workspace that the file has.
    A hyphen in a workspace's name is an underscore there, and a list is JSON or separated by commas.
    Raises SettingsError.
    """
    file = path or Path(environ.get("EDGEPROFILE_CONFIG") or FILE)
    variables: dict[Key, str] = {}
    try:
        document = tomllib.loads(read_text(file, (), "a settings file in UTF-8"))
        variables = override(Settings, document, environ)
        settings: Settings = read_struct(Settings, document, (), variables)
        return _resolved(settings, Path(os.path.abspath(file)), environ)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file}: expected valid TOML, found a fault: {error}") from None
    except Fault as fault:
        origin = next((name for key, name in variables.items() if fault.key[: len(key)] == key), str(file))
        names = [name if re.fullmatch(r"[A-Za-z0-9_-]+", str(name)) else shown(name) for name in fault.key]
        line = ": ".join([origin, ".".join(map(str, names)), str(fault)] if names else [origin, str(fault)])
        raise SettingsError(line, hint=fault.hint) from None


def reference() -> list[tuple[str, str, str]]:
    """Every key as (path, type, default), such as ("server.port", "an integer from 0 to 65535", "8000")."""
    return [(".".join(key), described(field.type), default_of(field)) for key, field in leaves(Settings, ["<name>"])]


def _resolved(settings: Settings, file: Path, environ: Mapping[str, str]) -> Settings:
    """Fill in what hangs on the file's folder and the environment: paths, credentials and SQL."""
    folder = file.parent
    workspaces = {}
    for name, workspace in settings.workspaces.items():
        key = ("workspaces", name)
        url = _url(workspace.source.url, (*key, "source", "url"), folder, environ)
        source = structs.replace(workspace.source, url=url)
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
        raise Fault(key, f"the environment variable {error.args[0]} to be set", "it unset") from None
    parts = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", url, re.DOTALL)
    scheme, rest = parts.groups() if parts else ("", "")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        expected = f"a URL of {', '.join(f'{known}://' for known in SCHEMES[:-1])} or {SCHEMES[-1]}://"
        raise Fault(key, expected, f"the scheme {shown(scheme)}" if scheme else "no scheme")
    if scheme != "duckdb":
        return f"{scheme}://{rest}"
    if rest and (not rest.startswith("/") or rest.endswith("/")):
        raise Fault(key, "duckdb:///FILE, duckdb:////ABSOLUTE/FILE or duckdb:// alone", "another form")
    return f"duckdb:///{os.path.abspath(folder / rest[1:])}" if rest else "duckdb://"


def _text(sql: str, key: Key, folder: Path) -> str:
    text = sql.strip()
    if text.endswith(".sql"):
        text = read_text(folder / text, key, f"SQL in UTF-8 in {shown(text)}")
    text = text.strip().rstrip(" \t\r\n\f\v;")
    if not text:
        raise Fault(key, "SQL", f"none in {shown(sql)}")
    return text
