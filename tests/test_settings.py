"""What an operator may write, what it turns into, and the one line that answers everything else."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeprofile.errors import SettingsError
from edgeprofile.settings import (
    WORKSPACES_MAX,
    Events,
    Identifier,
    Limits,
    Loader,
    Profiles,
    Settings,
    Source,
    Workspace,
    load,
    reference,
)
from edgeprofile.vendors import Insider

SOURCE = 'source.url = "duckdb://"'
PROFILES = 'profiles = { sql = "SELECT 1 AS id", id = "id" }'
SHOP = f"[workspaces.shop]\n{SOURCE}\n{PROFILES}\n"
INSIDER = 'insider = { partner = "mybrand" }\n'
EVENTS = 'events = { sql = "FROM events", profile = "id", name = "name", time = "at" }\n'
MPARTICLE = 'mparticle = { org = "1", account = "2", workspace = "3", mpid = "id" }\n'
BATCH = 'batch = { project = "project_1" }\n'
# They name the primary id, so that they stand only where it is what it is in SHOP.
INTILERY = 'intilery = { client = "c", account = "a", brand = "B" }\n'
DIALECTS = {"insider": INSIDER, "mparticle": MPARTICLE, "intilery": INTILERY, "batch": BATCH}
SECRET = "hunter2"

Write = Callable[[str], None]


@pytest.fixture(autouse=True)
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write the settings file of an otherwise empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> None:
        (tmp_path / "edgeprofile.toml").write_bytes(text.encode())

    return write


def fault(environ: dict[str, str] | None = None, path: Path | None = None) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load(path, environ or {})
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    return caught.value


def profiles(columns: str) -> str:
    return f"[workspaces.shop]\n{SOURCE}\n[workspaces.shop.profiles]\nsql = 'SELECT 1'\n{columns}"


def at(key: str) -> Callable[[Settings], object]:
    """Read the value of a key path from settings whose workspace is `shop`."""

    def value(settings: Settings) -> object:
        found: object = settings
        for name in key.split("."):
            found = found[name] if isinstance(found, dict) else getattr(found, name)
        return found

    return value


# What is read


def test_an_empty_file_has_every_default(write: Write, tmp_path: Path) -> None:
    write("")
    settings = load(environ={})
    assert settings == Settings(
        data_dir=tmp_path / "var/edgeprofile", file=tmp_path / "edgeprofile.toml", folder=tmp_path
    )


def test_the_designs_example_is_read(write: Write, tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/profiles.sql").write_text("SELECT *\nFROM shop;\n ;\n")
    write("""
        data_dir = "var/here"

        [server]
        port = 9000
        workers = 0

        [limits]
        rate = 250
        burst_rate = 500.5

        [loader]
        memory_limit = "512MB"

        [workspaces.shop]
        refresh = "1h30m"

        [workspaces.shop.source]
        url = "duckdb:///examples/shop.duckdb"

        [workspaces.shop.profiles]
        sql = "examples/profiles.sql"
        id = "profile_id"
        updated_at = "updated_at"
        identifiers = ["email", { column = "phone", unique = false, normalize = "lower" }]
        audiences = ["high_spenders"]
        metrics = ["orders"]
    """)
    settings = load(environ={})
    assert settings.data_dir == tmp_path / "var/here"
    assert (settings.server.port, settings.server.workers) == (9000, 0)
    assert (settings.limits.rate, settings.limits.burst_rate) == (250.0, 500.5)
    assert settings.loader.memory_limit_bytes == 512_000_000
    assert settings.workspaces == {
        "shop": Workspace(
            refresh="1h30m",
            source=Source(url=f"duckdb:///{tmp_path}/examples/shop.duckdb"),
            profiles=Profiles(
                sql="examples/profiles.sql",
                text="SELECT *\nFROM shop",
                id="profile_id",
                updated_at="updated_at",
                identifiers=(Identifier(column="email"), Identifier(column="phone", unique=False, normalize="lower")),
                audiences=("high_spenders",),
                metrics=("orders",),
            ),
        )
    }


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("duckdb://", None),
        ("DuckDB://", None),
        ("duckdb:///shop.duckdb", "{folder}/shop.duckdb"),
        ("duckdb:///a/../b/shop.duckdb", "{folder}/b/shop.duckdb"),
        ("duckdb:////srv/shop.duckdb", "/srv/shop.duckdb"),
        ("duckdb:///${WHERE}/shop.duckdb", "/srv/shops/shop.duckdb"),
        ("${URL}", "{folder}/whole.duckdb"),
    ],
)
def test_a_duckdb_url_names_an_absolute_file_or_none(
    url: str, database: str | None, write: Write, tmp_path: Path
) -> None:
    write(f'[workspaces.shop]\nsource.url = "{url}"\n{PROFILES}')
    source = load(environ={"WHERE": "/srv/shops", "URL": "duckdb:///whole.duckdb"}).workspaces["shop"].source
    assert source.scheme == "duckdb"
    assert source.database == (Path(database.format(folder=tmp_path)) if database else None)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        (
            "postgresql://me:${PASSWORD}@db:5433/shop?sslmode=require",
            "postgresql://me:%40x@db:5433/shop?sslmode=require",
        ),
        ("Postgres:///shop?host=/run", "postgres:///shop?host=/run"),
        ("snowflake://me:${PASSWORD}@acct/DB/SCHEMA?warehouse=W", "snowflake://me:%40x@acct/DB/SCHEMA?warehouse=W"),
        ("bigquery://acme/shop?credentials=key.json", "bigquery://acme/shop?credentials=key.json"),
        ("grpc+tls://me:${PASSWORD}@db:443", "grpc+tls://me:%40x@db:443"),
    ],
)
def test_the_url_of_another_warehouse_stays_as_it_is_written(url: str, meant: str, write: Write) -> None:
    write(f'[workspaces.shop]\nsource = {{ url = "{url}", timeout = "1m30s" }}\n{PROFILES}')
    source = load(environ={"PASSWORD": "%40x"}).workspaces["shop"].source
    assert (source.url, source.database, source.timeout_s) == (meant, None, 90.0)
    assert repr(source) == f"Source(url='{source.scheme}://…')"


def test_relative_paths_start_from_the_folder_of_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/model.sql").write_text("SELECT 2")
    named = tmp_path / "conf/mine.toml"
    named.write_text("""
        data_dir = "kept"
        [workspaces.shop]
        source.url = "duckdb:///s.db"
        profiles = { sql = "model.sql", id = "a" }
    """)
    settings = load(Path("conf/mine.toml"), {})
    assert (settings.file, settings.folder, settings.data_dir) == (named, named.parent, named.parent / "kept")
    assert settings.workspaces["shop"].source.database == named.parent / "s.db"
    assert settings.workspaces["shop"].profiles.text == "SELECT 2"


def test_edgeprofile_config_names_the_file_unless_a_path_is_given(write: Write, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("server.port = 1")
    write("server.port = 2")
    environ = {"EDGEPROFILE_CONFIG": "other.toml"}
    assert load(None, environ).server.port == 1
    assert load(Path("edgeprofile.toml"), environ).server.port == 2
    assert load(None, {"EDGEPROFILE_CONFIG": ""}).server.port == 2


def test_a_byte_order_mark_and_dos_line_ends_are_read(write: Write) -> None:
    write("\ufeff[server]\r\nport = 3\r\n")
    assert load(environ={}).server.port == 3


def test_settings_survive_pickling_and_a_second_reading(write: Write) -> None:
    write(SHOP)
    settings = load(environ={})
    assert pickle.loads(pickle.dumps(settings)) == settings == load(settings.file, {})


def test_the_repr_of_settings_hides_the_url(write: Write) -> None:
    write(f'[workspaces.shop]\nsource.url = "duckdb:///{SECRET}.duckdb"\n{PROFILES}')
    assert SECRET not in repr(load(environ={}))


@given(st.tuples(*(st.none() | st.integers(0, 9999) for _ in "dhms")).filter(any))
def test_a_refresh_is_the_sum_of_its_parts(counts: tuple[int | None, ...]) -> None:
    refresh = "".join(f"{count}{unit}" for count, unit in zip(counts, "dhms", strict=True) if count is not None)
    workspace = Workspace(refresh=refresh, source=Source(url="duckdb://"), profiles=Profiles(sql="SELECT 1", id="id"))
    seconds = sum((count or 0) * unit for count, unit in zip(counts, (86_400, 3_600, 60, 1), strict=True))
    assert workspace.refresh_s == seconds


@given(st.integers(1, 10**9), st.sampled_from(["", "K", "M", "G", "T"]), st.sampled_from(["", "i"]), st.booleans())
@example(512, "M", "", False)
def test_a_memory_limit_counts_thousands_or_kibis(count: int, prefix: str, binary: str, spaced: bool) -> None:
    unit = f"{prefix}{binary if prefix else ''}B"
    base = 1024 if prefix and binary else 1000
    expected = count * base ** ["", "K", "M", "G", "T"].index(prefix)
    for spelled in (unit, unit.lower()):
        assert Loader(memory_limit=f"{count}{' ' * spaced}{spelled}").memory_limit_bytes == expected


def test_without_a_memory_limit_a_quarter_of_the_machine_is_taken() -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < Loader().memory_limit_bytes <= memory // 4


# The environment

SAMPLES = {
    "data_dir": ("elsewhere", None),
    "server.host": ("0.0.0.0", "0.0.0.0"),
    "server.port": ("9000", 9000),
    "server.workers": ("4", 4),
    "server.admin_host": ("::1", "::1"),
    "server.admin_port": ("0", 0),
    "server.tls_certificate": ("cert.pem", Path("cert.pem")),
    "server.tls_key": ("key.pem", Path("key.pem")),
    "server.tls_client_ca": ("ca.pem", Path("ca.pem")),
    "server.docs": ("false", False),
    "server.cache_control": ("no-store", "no-store"),
    "server.ready_delay_seconds": ("0", 0.0),
    "server.drain_seconds": ("2.5", 2.5),
    "limits.rate": ("5", 5.0),
    "limits.burst_rate": ("5000", 5000.0),
    "limits.burst_seconds": ("0", 0.0),
    "limits.response_bytes_max": ("1", 1),
    "limits.request_bytes_max": ("2", 2),
    "log.format": ("json", "json"),
    "log.requests": ("all", "all"),
    "loader.memory_limit": ("2GiB", "2GiB"),
    "loader.threads": ("3", 3),
    "loader.parallel": ("4", 4),
    "loader.timeout": ("90m", "90m"),
    "workspaces.shop.refresh": ("1d", "1d"),
    "workspaces.shop.full_refresh": ("1", 1),
    "workspaces.shop.overlap": ("2h", "2h"),
    "workspaces.shop.keep": ("9", 9),
    "workspaces.shop.erase_within": ("12h", "12h"),
    "workspaces.shop.rejects_max": ("1", 1.0),
    "workspaces.shop.shrink_max": ("0.25", 0.25),
    "workspaces.shop.source.timeout": ("1h30m", "1h30m"),
    "workspaces.shop.source.url": ("duckdb:////srv/x", "duckdb:////srv/x"),
    "workspaces.shop.profiles.sql": ("SELECT 3", "SELECT 3"),
    "workspaces.shop.profiles.id": ("key", "key"),
    "workspaces.shop.profiles.updated_at": ("then", "then"),
    "workspaces.shop.profiles.deleted": ("gone", "gone"),
    "workspaces.shop.profiles.identifiers": ("a, b", (Identifier(column="a"), Identifier(column="b"))),
    "workspaces.shop.profiles.audiences": ('["a,b", "c"]', ("a,b", "c")),
    "workspaces.shop.profiles.metrics": ("", ()),
    "workspaces.shop.events.sql": ("SELECT 4", "SELECT 4"),
    "workspaces.shop.events.profile": ("whose", "whose"),
    "workspaces.shop.events.name": ("what", "what"),
    "workspaces.shop.events.time": ("when", "when"),
    "workspaces.shop.events.id": ("number", "number"),
    "workspaces.shop.insider.partner": ("your-brand", "your-brand"),
    "workspaces.shop.insider.identifiers": ('{"email": "id", "uuid": "id"}', {"email": "id", "uuid": "id"}),
    "workspaces.shop.insider.custom_identifiers": ('{"höhe, \\"x\\"": "id"}', {'höhe, "x"': "id"}),
    "workspaces.shop.insider.quota_per_minute": ("2000", 2000.0),
    "workspaces.shop.insider.base_cost": ("0", 0.0),
    "workspaces.shop.insider.event_type_cost": ("0.25", 0.25),
    "workspaces.shop.insider.user_base_factor": ("3", 3.0),
    "workspaces.shop.mparticle.org": ("o", "o"),
    "workspaces.shop.mparticle.account": ("a.b~c-_", "a.b~c-_"),
    "workspaces.shop.mparticle.workspace": ("9", "9"),
    "workspaces.shop.mparticle.mpid": ("id", "id"),
    "workspaces.shop.mparticle.user_identities": ('{"customer_id": "id"}', {"customer_id": "id"}),
    "workspaces.shop.mparticle.device_identities": ('{"unknown": ["id", "id"]}', {"unknown": ("id", "id")}),
    "workspaces.shop.mparticle.immutable": ("", ()),
    "workspaces.shop.mparticle.created": ("since", "since"),
    "workspaces.shop.mparticle.opted_out": ("out", "out"),
    "workspaces.shop.mparticle.limit_ad_tracking": ("limits", "limits"),
    "workspaces.shop.mparticle.attribution": ("source", "source"),
    "workspaces.shop.mparticle.values_as_text": ("false", False),
    "workspaces.shop.mparticle.audience": ("https://api.example", "https://api.example"),
    "workspaces.shop.intilery.client": ("acme", "acme"),
    "workspaces.shop.intilery.account": ("marketing", "marketing"),
    "workspaces.shop.intilery.brand": ("SHOP-1", "SHOP-1"),
    "workspaces.shop.intilery.id_types": ('{"userId": "id"}', {"userId": "id"}),
    "workspaces.shop.intilery.rate": ("50", 50.0),
    "workspaces.shop.intilery.burst": ("2e3", 2000.0),
    "workspaces.shop.intilery.created": ("since", "since"),
    "workspaces.shop.intilery.created_by": ("author", "author"),
    "workspaces.shop.intilery.source": ("channel", "channel"),
    "workspaces.shop.intilery.received": ("came_in", "came_in"),
    "workspaces.shop.batch.project": ("project_2", "project_2"),
    "workspaces.shop.batch.custom_id": ("id", "id"),
    "workspaces.shop.batch.request_bytes_max": ("1024", 1024),
}
NO_KEY = "expected a variable that names a key, found none"
TLS = 'server.tls_certificate = "c"\nserver.tls_key = "k"\n'


def test_every_key_of_the_reference_has_a_sample_here() -> None:
    assert {key.replace("<name>", "shop") for key, _, _ in reference()} == SAMPLES.keys()


@pytest.mark.parametrize("key", SAMPLES)
def test_a_variable_overrides_its_key(key: str, write: Write, tmp_path: Path) -> None:
    write(TLS + SHOP + EVENTS + "".join(table for name, table in DIALECTS.items() if f".{name}." in key))
    text, value = SAMPLES[key]
    variable = "EDGEPROFILE_" + key.upper().replace(".", "__")
    assert at(key)(load(environ={variable: text})) == (tmp_path / text if key == "data_dir" else value)
    assert load(environ={variable.lower(): text}) == load(environ={variable: text})


def test_a_variable_wins_over_the_file_and_makes_the_tables_that_it_needs(write: Write) -> None:
    write(f"server.port = 1\n[workspaces.shop]\n{PROFILES}")
    environ = {"EDGEPROFILE_SERVER__PORT": "2", "EDGEPROFILE_WORKSPACES__SHOP__SOURCE__URL": "duckdb:////srv/x"}
    settings = load(environ=environ)
    assert settings.server.port == 2
    assert settings.workspaces["shop"].source.database == Path("/srv/x")


def test_a_hyphen_in_a_workspace_is_an_underscore_in_a_variable(write: Write) -> None:
    write(SHOP.replace("shop", "my-shop"))
    assert load(environ={"EDGEPROFILE_WORKSPACES__MY_SHOP__KEEP": "7"}).workspaces["my-shop"].keep == 7


def test_identifiers_of_a_variable_may_be_tables(write: Write) -> None:
    write(SHOP)
    variable = "EDGEPROFILE_WORKSPACES__SHOP__PROFILES__IDENTIFIERS"
    settings = load(environ={variable: '["email", {"column": "phone", "unique": false}]'})
    phone = Identifier(column="phone", unique=False)
    assert settings.workspaces["shop"].profiles.identifiers == (Identifier(column="email"), phone)


def test_variables_that_are_no_overrides_are_left_alone(write: Write) -> None:
    write("")
    environ = {"EDGEPROFILE_SANITIZE": "1", "EDGEPROFILE_CONFIG": "edgeprofile.toml", "SERVER__PORT": "x", "HOME": "/"}
    assert load(environ=environ) == load(environ={})


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("SERVER__PORT", "x", 'server.port: expected an integer from 1 to 65535, found "x"'),
        ("SERVER__PORT", "", 'server.port: expected an integer from 1 to 65535, found ""'),
        ("SERVER__DOCS", "maybe", 'server.docs: expected true or false, found "maybe"'),
        ("DATA_DIR", "", 'data_dir: expected a path, found ""'),
        ("LIMITS__BURST_RATE", "7", "limits.burst_rate: expected a number of at least limits.rate (500), found 7"),
        ("SERVER__TLS_KEY", "", 'server.tls_key: expected a path, found ""'),
        (
            "WORKSPACES__SHOP__PROFILES__METRICS",
            '["a"',
            r'workspaces.shop.profiles.metrics: expected a list (each a column), found "[\"a\""',
        ),
        (
            "WORKSPACES__SHOP__PROFILES__METRICS",
            '["a", 3]',
            "workspaces.shop.profiles.metrics.1: expected a column, found 3",
        ),
        ("SERVER__PROT", "1", f"{NO_KEY}; did you mean EDGEPROFILE_SERVER__PORT?"),
        ("CONFG", "x.toml", f"{NO_KEY}; did you mean EDGEPROFILE_CONFIG?"),
        ("WORKSPACES__SHPO__KEEP", "1", f"{NO_KEY}; did you mean EDGEPROFILE_WORKSPACES__SHOP__KEEP?"),
        ("LIMITS", "{}", f"{NO_KEY}; did you mean EDGEPROFILE_LIMITS__RATE?"),
        ("XYZZY", "1", NO_KEY),
    ],
)
def test_a_wrong_variable_is_named(variable: str, value: str, line: str, write: Write) -> None:
    write(SHOP)
    assert str(fault({f"EDGEPROFILE_{variable}": value})) == f"EDGEPROFILE_{variable}: {line}"


# What is refused

NAME = "expected a name of up to 63 of a-z, 0-9, _ and -, which starts with a letter or digit"
SCHEMES = "expected a URL of duckdb://, postgresql://, postgres://, snowflake://, bigquery://, grpc:// or grpc+tls://"
URL_FORMS = "expected duckdb:///FILE, duckdb:////ABSOLUTE/FILE or duckdb:// alone, found another form"
DURATION = 'expected a duration such as "30s", "5m" or "1h30m"'
SIZE = 'expected a size such as "512MB" or "2GiB"'
IDENTIFIER = "expected a column or a table of column, unique, normalize"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('server.port = "abc"', 'server.port: expected an integer from 1 to 65535, found "abc"'),
        ("server.port = 65536", "server.port: expected an integer from 1 to 65535, found 65536"),
        ("server.port = 80.0", "server.port: expected an integer from 1 to 65535, found 80.0"),
        ("server.port = true", "server.port: expected an integer from 1 to 65535, found true"),
        ("server.port = 2020-01-02", 'server.port: expected an integer from 1 to 65535, found "2020-01-02"'),
        ("server.port = { a = 1 }", "server.port: expected an integer from 1 to 65535, found a table"),
        ('server.docs = "false"', 'server.docs: expected true or false, found "false"'),
        ('server.host = ""', 'server.host: expected text, found ""'),
        (
            'server.cache_control = "a\\r\\nSet-Cookie: b"',
            r'server.cache_control: expected text in printable ASCII, found "a\r\nSet-Cookie: b"',
        ),
        ("server = 3", "server: expected a table, found an integer"),
        ("[[server]]", "server: expected a table, found a list"),
        ("server.port = 8001", "server.admin_port: expected another port than server.port, found 8001"),
        ("server.prot = 1", 'server.prot: expected a known key, found "prot"; did you mean port?'),
        ("xyzzy = 1", 'xyzzy: expected a known key, found "xyzzy"'),
        ('"a\\nb\u2028" = 1', r'"a\nb\u2028": expected a known key, found "a\nb\u2028"'),
        ('file = "x"', 'file: expected a known key, found "file"'),
        ("data_dir = 0", "data_dir: expected a path, found 0"),
        ('data_dir = ""', 'data_dir: expected a path, found ""'),
        *(
            (f'server.{set_} = "x"', f"server.{needed}: expected a path, as server.{set_} is set, found none")
            for set_, needed in (
                ("tls_certificate", "tls_key"),
                ("tls_key", "tls_certificate"),
                ("tls_client_ca", "tls_certificate"),
            )
        ),
        ("limits.rate = 0", "limits.rate: expected a number from 0.001 to 1000000, found 0"),
        ("limits.rate = nan", "limits.rate: expected a number from 0.001 to 1000000, found NaN"),
        ("limits.burst_rate = inf", "limits.burst_rate: expected a number from 0.001 to 1000000, found Infinity"),
        ("limits.burst_seconds = -1", "limits.burst_seconds: expected a number from 0 to 86400, found -1"),
        ("limits.rate = 2000", "limits.burst_rate: expected a number of at least limits.rate (2000), found 1000"),
        ('loader.memory_limit = "lots"', f'loader.memory_limit: {SIZE}, found "lots"'),
        ('loader.memory_limit = "0GB"', f'loader.memory_limit: {SIZE}, found "0GB"'),
        (f'loader.memory_limit = "{"9" * 80}"', f'loader.memory_limit: {SIZE}, found "{"9" * 58}…'),
        ("workspaces = 1", "workspaces: expected a table, found an integer"),
        ("workspaces.Shop = {}", f'workspaces.Shop: {NAME}, found "Shop"'),
        ('workspaces."../up" = {}', f'workspaces."../up": {NAME}, found "../up"'),
        ('workspaces."shop\\n" = {}', rf'workspaces."shop\n": {NAME}, found "shop\n"'),
        (f"workspaces.{'a' * 64} = {{}}", f'workspaces.{"a" * 64}: {NAME}, found "{"a" * 58}…'),
        ("workspaces.shop = {}", "workspaces.shop.source: expected a table, found nothing"),
        (f"workspaces.shop.{SOURCE}", "workspaces.shop.profiles: expected a table, found nothing"),
        ("workspaces.shop.source = {}",
         "workspaces.shop.source.url: expected a URL such as duckdb:///FILE, found nothing"),
        (profiles(""), "workspaces.shop.profiles.id: expected a column, found nothing"),
        (profiles("id = ''"), 'workspaces.shop.profiles.id: expected a column, found ""'),
        (profiles("id = 'a'\nmetric = ['b']"),
         'workspaces.shop.profiles.metric: expected a known key, found "metric"; did you mean metrics?'),
        (profiles("id = 'a'\ntext = 'b'"), 'workspaces.shop.profiles.text: expected a known key, found "text"'),
        (profiles("id = 'a'\nmetrics = 'b'"),
         'workspaces.shop.profiles.metrics: expected a list (each a column), found "b"'),
        (profiles("id = 'a'\naudiences = ['b', '']"),
         'workspaces.shop.profiles.audiences.1: expected a column, found ""'),
        (profiles("id = 'a'\nidentifiers = ['b', 3]"),
         f"workspaces.shop.profiles.identifiers.1: {IDENTIFIER}, found an integer"),
        (profiles("id = 'a'\nidentifiers = [{ unique = true }]"),
         "workspaces.shop.profiles.identifiers.0.column: expected a column, found nothing"),
        (profiles("id = 'a'\nidentifiers = [{ column = 'b', normalize = 'upper' }]"),
         'workspaces.shop.profiles.identifiers.0.normalize: expected "lower", found "upper"'),
        (profiles("id = 'a'\nmetrics = ['b', 'a']"),
         "workspaces.shop.profiles.metrics: expected every column to be declared once, "
         'found "a", which id has already'),
        (profiles("id = 'a'\nidentifiers = ['b']\nupdated_at = 'b'"),
         "workspaces.shop.profiles.identifiers: expected every column to be declared once, "
         'found "b", which updated_at has already'),
        (profiles("id = 'a'\naudiences = ['b', 'b']"),
         "workspaces.shop.profiles.audiences: expected every column to be declared once, "
         'found "b", which audiences has already'),
        (f"{SHOP}batch = {{}}", "workspaces.shop.batch.project: expected a project's key, project_…, found nothing"),
        (f"{SHOP}batch.project = 'shop'",
         'workspaces.shop.batch.project: expected a project\'s key, project_…, found "shop"'),
        (f"{SHOP}batch = {{ project = 'project_1', custom_id = 'crm' }}",
         'workspaces.shop.batch.custom_id: expected an identifier of the profiles (id), found "crm"'),
        (f"{SHOP}batch = {{ project = 'project_1', request_bytes_max = 50331649 }}",
         "workspaces.shop.batch.request_bytes_max: expected an integer from 1 to 50331648, found 50331649"),
        (f"{SHOP}refresh = '5 minutes'", f'workspaces.shop.refresh: {DURATION}, found "5 minutes"'),
        (f"{SHOP}refresh = '0s'", f'workspaces.shop.refresh: {DURATION}, found "0s"'),
        (f"{SHOP}refresh = ''", f'workspaces.shop.refresh: {DURATION}, found ""'),
        (f"{SHOP}refresh = 300", f"workspaces.shop.refresh: {DURATION}, found 300"),
        (f"{SHOP}rejects_max = 1.5", "workspaces.shop.rejects_max: expected a number from 0 to 1, found 1.5"),
        (f"{SHOP}shrink_max = nan", "workspaces.shop.shrink_max: expected a number from 0 to 1, found NaN"),
        (f"{SHOP}keep = 0", "workspaces.shop.keep: expected an integer from 1 to 1024, found 0"),
        *((f"{SHOP}{MPARTICLE}".replace(old, new), f"workspaces.shop.mparticle.{line}") for old, new, line in [
            ('mpid = "id"', 'mpid = "x"', 'mpid: expected an identifier of the profiles (id), found "x"'),
            ('org = "1"', 'org = "a/b"', 'org: expected a name without /, for paths, found "a/b"'),
            ('org = "1"', 'org = "resolve"',
             'org: expected another name than that in the path of resolve, found "resolve"'),
            ('org = "1", ', "", "org: expected a name without /, for paths, found nothing"),
            ("mpid", "audience = 'a b', mpid", 'audience: expected a URL, or a name without spaces, found "a b"'),
            ("mpid", "user_identities = { a = 'x' }, mpid",
             'user_identities.a: expected an identifier of the profiles (id), found "x"'),
            ("mpid", "device_identities = { a = ['id', 'x'] }, mpid",
             'device_identities.a.1: expected an identifier of the profiles (id), found "x"'),
            ("mpid", "device_identities = { a = [] }, mpid",
             "device_identities.a: expected a column or a list of columns, found []"),
            ("mpid", "device_identities = { a = ['id', 3] }, mpid",
             'device_identities.a: expected a column or a list of columns, found ["id", 3]'),
            ("mpid", "immutable = ['a'], mpid",
             'immutable: expected types of user_identities or device_identities, of one column each, found "a"'),
            ("mpid", "user_identities = { a = ['id'] }, immutable = ['a'], mpid",
             'immutable: expected types of user_identities or device_identities, of one column each, found "a"'),
        ]),
        *((f"{SHOP}{INTILERY}".replace('brand = "B"', more), f"workspaces.shop.intilery.{line}") for more, line in [
            ('brand = "B/C"', 'brand: expected a name without /, for paths, found "B/C"'),
            ("rate = 5", "brand: expected a name without /, for paths, found nothing"),
            ('brand = "B", id_types = { email = "mail" }',
             'id_types.email: expected an identifier of the profiles (id), found "mail"'),
            ('brand = "B", burst = 99.5', "burst: expected a number of at least its rate (100), found 99.5"),
            ('brand = "B", rate = 501', "burst: expected a number of at least its rate (501), found 500"),
            ('brand = "B", rate = 0', "rate: expected a number from 0.001 to 1000000, found 0"),
        ]),
        ("[a]\nb = @", "expected valid TOML, found a fault: Invalid value (at line 2, column 5)"),
        ("a = [1", "expected valid TOML, found a fault: Unclosed array (at end of document)"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_answered_by_one_line(text: str, line: str, write: Write) -> None:
    write(text)
    assert str(fault()) == f"edgeprofile.toml: {line}"


def test_there_are_as_many_workspaces_as_counters_for_them(write: Write) -> None:
    tables = [f"[workspaces.w{number}]\n{PROFILES}\n{SOURCE}\n" for number in range(WORKSPACES_MAX + 1)]
    write("".join(tables[:-1]))
    assert len(load(environ={}).workspaces) == WORKSPACES_MAX
    write("".join(tables))
    assert str(fault()) == "edgeprofile.toml: workspaces: expected at most 1,000 workspaces, found 1,001"


@pytest.mark.parametrize("table", ["deleted", "delta"])
def test_what_this_version_lacks_is_an_unknown_key(table: str, write: Write) -> None:
    write(f"{SHOP}{table} = {{}}")
    error = fault()
    assert str(error) == f'edgeprofile.toml: workspaces.shop.{table}: expected a known key, found "{table}"'
    known = "refresh, full_refresh, overlap, keep, erase_within, rejects_max, shrink_max, source, profiles, events"
    known += ", insider, mparticle, intilery, batch"
    assert error.hint == f"Known here: {known}."


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("gone.sql", 'expected SQL in UTF-8 in "gone.sql", found none that can be read (No such file or directory)'),
        ("folder.sql", 'expected SQL in UTF-8 in "folder.sql", found none that can be read (Is a directory)'),
        ("latin.sql", 'expected SQL in UTF-8 in "latin.sql", found byte 0xe9 on line 2'),
        (r"a\u0000.sql", r'expected SQL in UTF-8 in "a\u0000.sql", found none that can be read (embedded null byte)'),
        ("empty.sql", 'expected SQL, found none in "empty.sql"'),
        (" ; ", 'expected SQL, found none in " ; "'),
    ],
)
def test_sql_that_cannot_be_read_is_named(sql: str, found: str, write: Write, tmp_path: Path) -> None:
    (tmp_path / "folder.sql").mkdir()
    (tmp_path / "latin.sql").write_bytes(b"SELECT\n'caf\xe9'")
    (tmp_path / "empty.sql").write_text(" ;\n; ")
    write(f'[workspaces.shop]\n{SOURCE}\nprofiles = {{ sql = "{sql}", id = "id" }}')
    assert str(fault()) == f"edgeprofile.toml: workspaces.shop.profiles.sql: {found}"


def test_a_missing_file_comes_with_what_to_do() -> None:
    error = fault()
    found = "expected a settings file in UTF-8, found none that can be read (No such file or directory)"
    assert str(error) == f"edgeprofile.toml: {found}"
    assert error.hint == "Name the file by --config or EDGEPROFILE_CONFIG, or try `edgeprofile demo`."
    assert str(fault(path=Path("mine.toml"))) == f"mine.toml: {found}"
    assert str(fault({"EDGEPROFILE_CONFIG": "yours.toml"})) == f"yours.toml: {found}"


def test_a_folder_and_a_file_of_bytes_are_no_settings(tmp_path: Path) -> None:
    expected = "expected a settings file in UTF-8, found"
    assert str(fault(path=Path())) == f".: {expected} none that can be read (Is a directory)"
    (tmp_path / "latin.toml").write_bytes(b"\n\nx = '\xff'")
    assert str(fault(path=Path("latin.toml"))) == f"latin.toml: {expected} byte 0xff on line 3"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (f'"mysql://me:{SECRET}@db/shop"', f'{SCHEMES}, found the scheme "mysql"'),
        (f'"me:{SECRET}@db://shop"', f"{SCHEMES}, found no scheme"),
        (f'"{SECRET}"', f"{SCHEMES}, found no scheme"),
        (f'"duckdb://{SECRET}"', URL_FORMS),
        ('"duckdb:///"', URL_FORMS),
        (f'"duckdb:///{SECRET}/"', URL_FORMS),
        (f'["{SECRET}"]', "expected a URL such as duckdb:///FILE, found a list"),
        ('"${URL}"', f'{SCHEMES}, found the scheme "mysql"'),
        (f'"duckdb:///{SECRET}/${{GONE}}"', "expected the environment variable GONE to be set, found it unset"),
    ],
)
def test_a_wrong_url_is_not_shown_beyond_its_scheme(value: str, found: str, write: Write) -> None:
    write(f"[workspaces.shop]\nsource.url = {value}\n{PROFILES}")
    error = fault({"URL": f"mysql://me:{SECRET}@db/shop"})
    assert str(error) == f"edgeprofile.toml: workspaces.shop.source.url: {found}"
    assert SECRET not in f"{error.hint}{error.__cause__}"


@pytest.mark.parametrize("place", ["workspaces", "workspaces.shop", "workspaces.shop.source"])
@pytest.mark.parametrize("value", ['"{}"', '["{}"]', '[{{ url = "{}" }}]'])
def test_a_url_in_a_tables_place_is_not_shown(place: str, value: str, write: Write) -> None:
    write(f"{place} = {value.format(f'postgresql://me:{SECRET}@db')}")
    assert str(fault()).startswith(f"edgeprofile.toml: {place}: expected a table, found ")
    assert SECRET not in str(fault())


def test_limits_made_elsewhere_are_held_to_the_same_order() -> None:
    with pytest.raises(ValueError, match=r"at least limits\.rate"):
        Limits(rate=10.0, burst_rate=5.0)


# Events


def test_the_table_of_events_may_be_left_out(write: Write) -> None:
    write(SHOP)
    assert load(environ={}).workspaces["shop"].events is None
    write(SHOP + EVENTS)
    events = load(environ={}).workspaces["shop"].events
    assert events == Events(sql="FROM events", text="FROM events", profile="id", name="name", time="at")


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ('{ sql = "SELECT 1", profile = "id", name = "n" }', "events.time: expected a column, found nothing"),
        ('{ sql = "a.sql", profile = "id", name = "n", time = "t" }', "events.sql: expected SQL in UTF-8 in"),
        (
            '{ sql = "SELECT 1", profile = "id", name = "n", time = "n" }',
            'events.time: expected every column to be declared once, found "n", which name has already',
        ),
        (
            '{ sql = "SELECT 1", profile = "id", name = "n", tim = "n" }',
            'events.tim: expected a known key, found "tim"; did you mean time?',
        ),
        ("7", "events: expected a table, found an integer"),
        ('[{ sql = "SELECT 1" }]', "events: expected a table, found a list"),
    ],
)
def test_a_wrong_table_of_events_is_a_line_of_what_was_expected(events: str, says: str, write: Write) -> None:
    write(f"{SHOP}events = {events}")
    assert str(fault()).startswith(f"edgeprofile.toml: workspaces.shop.{says}")


# Dialects, and keys whose values are tables


def test_a_dialect_is_on_where_its_table_stands_and_may_be_made_by_variables_alone(write: Write) -> None:
    write(SHOP)
    assert load(environ={}).workspaces["shop"].insider is None
    variables = {"PARTNER": "mybrand", "IDENTIFIERS": ' { "email" : "id" } ', "QUOTA_PER_MINUTE": "1e3"}
    environ = {f"EDGEPROFILE_WORKSPACES__SHOP__INSIDER__{name}": value for name, value in variables.items()}
    made = Insider(partner="mybrand", identifiers={"email": "id"}, quota_per_minute=1000)
    assert load(environ=environ).workspaces["shop"].insider == made


def test_a_table_of_names_keeps_their_order_and_is_taken_from_a_variable_as_a_whole(write: Write) -> None:
    write(SHOP + 'insider = { partner = "b", identifiers = { uuid = "id", email = "id", "a.b" = "id" } }')
    found = load(environ={}).workspaces["shop"].insider
    assert found is not None
    assert list(found.identifiers.items()) == [("uuid", "id"), ("email", "id"), ("a.b", "id")]
    environ = {"EDGEPROFILE_WORKSPACES__SHOP__INSIDER__IDENTIFIERS": '{"phone_number": "id"}'}
    found = load(environ=environ).workspaces["shop"].insider
    assert found is not None
    assert found.identifiers == {"phone_number": "id"}


OF_PROFILES = "expected an identifier of the profiles (id)"


@pytest.mark.parametrize(
    ("insider", "line"),
    [
        ("{}", "partner: expected a name in lower case, found nothing"),
        ('{ partner = "MyBrand" }', 'partner: expected a name in lower case, found "MyBrand"'),
        ('{ partner = "b", identifiers = "email" }', "identifiers: expected a table, found text"),
        ('{ partner = "b", identifiers = ["email"] }', "identifiers: expected a table, found a list"),
        ('{ partner = "b", identifiers = { email = 3 } }', "identifiers.email: expected a column, found 3"),
        ('{ partner = "b", identifiers = { email = "" } }', 'identifiers.email: expected a column, found ""'),
        ('{ partner = "b", identifiers = { email = {} } }', "identifiers.email: expected a column, found a table"),
        ('{ partner = "b", identifiers = { "" = "id" } }', 'identifiers."": expected text, found ""'),
        ('{ partner = "b", identifiers = { email = "mail" } }', f'identifiers.email: {OF_PROFILES}, found "mail"'),
        (
            '{ partner = "b", custom_identifiers = { "a b" = "id", "c.d" = "mail" } }',
            f'custom_identifiers."c.d": {OF_PROFILES}, found "mail"',
        ),
        ('{ partner = "b", base_cost = -1 }', "base_cost: expected a number from 0 to 1000000, found -1"),
        ('{ partner = "b", quota = 1 }', 'quota: expected a known key, found "quota"'),
    ],
)
def test_a_wrong_table_of_a_dialect_is_named_down_to_the_name_in_it(insider: str, line: str, write: Write) -> None:
    write(f"{SHOP}insider = {insider}")
    assert str(fault()) == f"edgeprofile.toml: workspaces.shop.insider.{line}"


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ('{"email": 3}', ".email: expected a column, found 3"),
        ('{"email": "mail"}', f'.email: {OF_PROFILES}, found "mail"'),
        ('{"email": "id"', ": expected a table, found text"),
        ("email=id", ": expected a table, found text"),
        ("", ": expected a table, found text"),
        ('["email"]', ": expected a table, found a list"),
        ("null", ": expected a table, found null"),
    ],
)
def test_a_wrong_table_from_a_variable_names_the_variable(value: str, line: str, write: Write) -> None:
    write(SHOP + INSIDER)
    variable = "EDGEPROFILE_WORKSPACES__SHOP__INSIDER__IDENTIFIERS"
    assert str(fault({variable: value})) == f"{variable}: workspaces.shop.insider.identifiers{line}"


def test_two_workspaces_have_two_partners(write: Write) -> None:
    bank = SHOP.replace("shop", "bank")
    write(SHOP + INSIDER + bank + INSIDER)
    found = "workspaces: expected an insider.partner of its own for each, found one that two have"
    assert str(fault()) == f"edgeprofile.toml: {found}"
    write(SHOP + INSIDER + bank + INSIDER.replace("mybrand", "the-bank"))
    assert len(load(environ={}).workspaces) == 2


# The reference


def test_the_reference_reads_types_and_defaults_off_the_structs() -> None:
    rows = {key: (kind, default) for key, kind, default in reference()}
    assert rows["server.port"] == ("an integer from 1 to 65535", "8000")
    assert rows["server.docs"] == ("true or false", "true")
    assert rows["limits.rate"] == ("a number from 0.001 to 1000000", "500")
    assert rows["loader.memory_limit"] == ('a size such as "512MB" or "2GiB"', "none")
    assert rows["data_dir"] == ("a path", '"var/edgeprofile"')
    assert rows["workspaces.<name>.profiles.sql"] == ("SQL, or a path that ends in .sql", "required")
    kind = "a list (each a column or a table of column, unique, normalize)"
    assert rows["workspaces.<name>.profiles.identifiers"] == (kind, "[]")
    assert rows["workspaces.<name>.insider.identifiers"] == ("a table", "{}")


def test_refreshes_are_full_where_events_come_with_them_unless_the_settings_say_otherwise(write: Write) -> None:
    for text, every in ((SHOP, 12), (SHOP + EVENTS, 1), (f"{SHOP}full_refresh = 5\n{EVENTS}", 5)):
        write(text)
        assert load(environ={}).workspaces["shop"].full_every == every
