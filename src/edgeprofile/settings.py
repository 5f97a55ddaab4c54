"""`edgeprofile.toml` as frozen Structs, which are the one description of every key; tables.py reads it into them."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct, structs

from edgeprofile.errors import SettingsError
from edgeprofile.tables import Fault, Key, default_of, described, leaves, override, read_struct, read_text, shown

FILE = "edgeprofile.toml"
# Each has a counter of its own in the shared file.
WORKSPACES_MAX = 1_000
DURATION_UNITS_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}

# Every number is bounded on both sides: TOML's nan and inf must not reach anybody's arithmetic.
Port = Annotated[int, Meta(ge=1, le=65_535)]
PortOrNone = Annotated[int, Meta(ge=0, le=65_535)]
Count = Annotated[int, Meta(ge=0, le=1_024)]
Kept = Annotated[int, Meta(ge=1, le=1_024)]
Parallel = Annotated[int, Meta(ge=1, le=64)]
Bytes = Annotated[int, Meta(ge=1, le=2**31 - 1)]
# What is left of a larger one when it has been read would not fit a frame between processes.
UpdatesBytes = Annotated[int, Meta(ge=1, le=48 * 1024 * 1024)]
Rate = Annotated[float, Meta(ge=0.001, le=1_000_000)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Cost = Annotated[float, Meta(ge=0, le=1_000_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
# Every other type says itself what it expects.
Switch = Annotated[bool, Meta(extra={"expected": "true or false"})]
Folder = Annotated[Path, Meta(extra={"expected": "a path"})]
Lower = Annotated[Literal["lower"], Meta(extra={"expected": '"lower"'})]
Text = Annotated[str, Meta(min_length=1, extra={"expected": "text"})]
Column = Annotated[str, Meta(min_length=1, extra={"expected": "a column"})]
_COLUMNS = "a column or a list of columns"
Columns = Annotated[Column | Annotated[tuple[Column, ...], Meta(min_length=1)], Meta(extra={"expected": _COLUMNS})]
Sql = Annotated[str, Meta(min_length=1, extra={"expected": "SQL, or a path that ends in .sql"})]
Url = Annotated[str, Meta(min_length=1, extra={"expected": "a URL such as duckdb:///FILE"})]
Partner = Annotated[str, Meta(pattern=r"\A[a-z0-9._-]{1,64}\Z", extra={"expected": "a name in lower case"})]
Segment = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._~-]{1,64}\Z", extra={"expected": "a name without /, for paths"})]
Audience = Annotated[str, Meta(pattern=r"\A[!-~]{1,255}\Z", extra={"expected": "a URL, or a name without spaces"})]
Project = Annotated[
    str, Meta(pattern=r"\Aproject_[A-Za-z0-9]{1,64}\Z", extra={"expected": "a project's key, project_…"})
]
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


# The warehouses, by the schemes of their URLs.
SCHEMES = ("duckdb", "postgresql", "postgres", "snowflake", "bigquery", "grpc", "grpc+tls")

# The vendors whose APIs a workspace may be served by, each where its table stands.
DIALECTS = ("insider", "mparticle", "intilery", "batch")


def _seconds(duration: str) -> float:
    parts = re.findall(r"([0-9]+)([dhms])", duration)
    return float(sum(int(digits) * DURATION_UNITS_S[unit] for digits, unit in parts))


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
            raise Fault(("admin_port",), "another port than server.port", str(self.port))


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
        return _seconds(self.timeout)

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
        return _seconds(self.timeout)

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


class Insider(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Insider's user profile API. Their identifiers are found in our namespaces.

    A request costs `base_cost` + `event_type_cost` for each type of event that it asks for, times `user_base_factor`.
    """

    partner: Partner
    identifiers: dict[Text, Column] = {}
    custom_identifiers: dict[Text, Column] = {}
    quota_per_minute: Rate = 1000.0
    base_cost: Cost = 1.0
    event_type_cost: Cost = 0.5
    user_base_factor: Cost = 1.0

    @property
    def namespaces(self) -> dict[Key, str]:
        """The namespaces that it names, by the keys that do."""
        return _values("identifiers", self.identifiers) | _values("custom_identifiers", self.custom_identifiers)


class MParticle(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """mParticle's Profile API. `mpid` is the namespace of the 64-bit id; `created` and what follows it are columns."""

    org: Segment
    account: Segment
    workspace: Segment
    mpid: Column
    user_identities: dict[Text, Columns] = {}
    device_identities: dict[Text, Columns] = {}
    immutable: tuple[Text, ...] = ()
    created: Column | None = None
    opted_out: Column | None = None
    limit_ad_tracking: Column | None = None
    attribution: Column | None = None
    values_as_text: Switch = True
    audience: Audience = "https://api.mparticle.com"

    def __post_init__(self) -> None:
        if self.org == "resolve":
            raise Fault(("org",), "another name than that in the path of resolve", shown(self.org))
        known = {**self.user_identities, **self.device_identities}
        for kind in self.immutable:
            if not isinstance(known.get(kind), str):
                expected = "types of user_identities or device_identities, of one column each"
                raise Fault(("immutable",), expected, shown(kind))

    @property
    def namespaces(self) -> dict[Key, str]:
        """The namespaces that it names, by the keys that do."""
        named: dict[Key, str] = {("mpid",): self.mpid}
        for key in ("user_identities", "device_identities"):
            for kind, columns in getattr(self, key).items():
                one = isinstance(columns, str)
                named |= {(key, kind): columns} if one else {(key, kind, at): each for at, each in enumerate(columns)}
        return named

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the model that it names, by the keys that do."""
        keys = ("created", "opted_out", "limit_ad_tracking", "attribution")
        return {key: column for key in keys if (column := getattr(self, key)) is not None}


class Intilery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Intilery's Profiles API. Its `id_types` are found in our namespaces: without them, `id` and `userId` are the
    primary id, and `email` the namespace of that name.

    `created` and `created_by` are columns that only its metadata has, as `createdTime` and `createdBy`; `source` and
    `received` are parameters of the events. Its limits take the place of [limits] for keys that carry none.
    """

    client: Segment
    account: Segment
    brand: Segment
    id_types: dict[Text, Column] = {}
    rate: Rate = 100.0
    burst: Rate = 500.0
    created: Column | None = None
    created_by: Column | None = None
    source: Column | None = None
    received: Column | None = None

    def __post_init__(self) -> None:
        if self.burst < self.rate:
            raise Fault(("burst",), f"a number of at least its rate ({self.rate:.15g})", f"{self.burst:.15g}")

    @property
    def namespaces(self) -> dict[Key, str]:
        """The namespaces that it names, by the keys that do."""
        return _values("id_types", self.id_types)


class Batch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Batch's Profile API. `custom_id` is the namespace of its ids, None for the primary one."""

    project: Project
    custom_id: Column | None = None
    request_bytes_max: UpdatesBytes = 32 * 1024 * 1024

    @property
    def namespaces(self) -> dict[Key, str]:
        """The namespace that it names, by the key that does."""
        return {} if self.custom_id is None else {("custom_id",): self.custom_id}


def _values(name: str, table: Mapping[str, str]) -> dict[Key, str]:
    return {(name, theirs): ours for theirs, ours in table.items()}


class Workspace(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One company's dataset. `keep` counts snapshots; the two shares are of rows and of profiles."""

    refresh: Duration = "5m"
    full_refresh: Kept = 12
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
        table = self.mparticle
        return {f"mparticle.{key}": column for key, column in table.columns.items()} if table else {}

    @property
    def refresh_s(self) -> float:
        return _seconds(self.refresh)

    @property
    def erase_within_s(self) -> float:
        return _seconds(self.erase_within)

    @property
    def overlap_s(self) -> float:
        return _seconds(self.overlap)


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
