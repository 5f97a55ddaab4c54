"""Warehouses that no test can have: each driver's way up to the network, and Flight SQL from a server of DuckDB's.

What stands in for a warehouse here is only what listens on the other side: the drivers are the real ones.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.flight as flight  # type: ignore[import-untyped]
import pytest
from workshop import Workshop, environment

from edgeprofile.errors import ModelError, SourceError
from edgeprofile.loader.adbc import DRIVERS
from edgeprofile.loader.source import open_source
from edgeprofile.settings import SCHEMES

SECRET = "hush-4711"


def test_every_scheme_of_the_settings_has_a_driver() -> None:
    assert {"duckdb", *DRIVERS} == set(SCHEMES)


@pytest.mark.parametrize(
    ("url", "module", "hint"),
    [
        ("snowflake://me@acme/db", "adbc_driver_snowflake", "pip install 'edgeprofile[snowflake]'"),
        ("bigquery://acme", "adbc_driver_bigquery", "pip install 'edgeprofile[bigquery]'"),
        ("grpc+tls://host:1", "adbc_driver_flightsql", "pip install 'edgeprofile[flightsql]'"),
        ("postgresql://host/db", "adbc_driver_postgresql", "pip install 'adbc-driver-postgresql'"),
    ],
)
def test_a_driver_that_is_not_installed_is_named_with_what_installs_it(
    tmp_path: Path, url: str, module: str, hint: str
) -> None:
    (tmp_path / f"{module}.py").write_text("raise ImportError")
    shop = Workshop(tmp_path).model("SELECT 1 AS id", url=url)
    path = os.pathsep.join([str(tmp_path), environment().get("PYTHONPATH", "")])
    ended = shop.run("config", "check", env={"PYTHONPATH": path})
    assert ended.status == 1
    assert ended.err.splitlines() == [
        f"edgeprofile: shop: the driver for {url.partition(':')[0]}:// is not installed",
        f"  hint: {hint}",
    ]


# --- by HTTP: Snowflake and BigQuery -------------------------------------------------------------------------------

Answer = Callable[[str, bytes], tuple[int, dict[str, Any]]]


@contextmanager
def listening(answer: Answer) -> Iterator[tuple[int, list[tuple[str, bytes]]]]:
    """An HTTP server: its port, and the path and body of each request that has come."""
    asked: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        """Takes down what it is asked, and answers JSON."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            asked.append((self.path, body))
            status, content = answer(self.path, body)
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing, on standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()


def snowflake_url(port: int) -> str:
    return (
        f"snowflake://loader:{SECRET}@127.0.0.1:{port}/SHOP/PUBLIC?account=acme&protocol=http&warehouse=WH&role=READER"
    )


def test_snowflake_is_asked_to_log_in_with_what_the_url_says_and_a_refusal_is_told(tmp_path: Path) -> None:
    refusal = {"success": False, "code": "390100", "message": f"Incorrect username or password: {SECRET}", "data": {}}
    with listening(lambda path, body: (200, refusal)) as (port, asked):
        shop = Workshop(tmp_path).model("SELECT 1 AS id", url=snowflake_url(port))
        with pytest.raises(SourceError, match=r"^the warehouse refuses the login$"):
            shop.load()
    path, body = asked[0]
    assert path.startswith("/session/v1/login-request?")
    for part in ("databaseName=SHOP", "schemaName=PUBLIC", "warehouse=WH", "roleName=READER"):
        assert part in path
    told = json.loads(body)["data"]
    assert (told["ACCOUNT_NAME"], told["LOGIN_NAME"], told["PASSWORD"]) == ("acme", "loader", SECRET)
    assert SECRET not in (shop.home / "refresh.json").read_text()


def test_snowflake_is_sent_the_model_and_what_it_says_of_that_is_told(tmp_path: Path) -> None:
    session = {"databaseName": "SHOP", "schemaName": "PUBLIC", "warehouseName": "WH", "roleName": "READER"}
    times = {"validityInSeconds": 3600, "masterValidityInSeconds": 14400}
    data = {"token": "t", "masterToken": "m", "sessionId": 1, "parameters": [], "sessionInfo": session, **times}
    wrong = "SQL compilation error:\nsyntax error line 1 at position 0 unexpected 'SELEC'."

    def answer(path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if "login-request" in path:
            return 200, {"success": True, "code": None, "message": None, "data": data}
        state = {"sqlState": "42000", "errorCode": "001003", "queryId": "q"}
        return 200, {"success": "query-request" not in path, "code": "001003", "message": wrong, "data": state}

    with listening(answer) as (port, asked):
        shop = Workshop(tmp_path).model("SELEC 1 AS id; -- all", url=snowflake_url(port))
        with pytest.raises(ModelError, match=r"^the model's SQL: .*SQL compilation error: syntax error line 1 at posi"):
            shop.load()
    sent = [json.loads(body)["sqlText"] for path, body in asked if "query-request" in path]
    assert sent == ["SELECT * FROM (SELEC 1 AS id\n) AS model WHERE false LIMIT 0"]
    assert not any("telemetry" in path for path, _ in asked)


def test_bigquery_asks_for_a_token_with_the_file_that_the_url_names(tmp_path: Path) -> None:
    with listening(lambda path, body: (400, {"error": "invalid_grant", "error_description": SECRET})) as (port, asked):
        (tmp_path / "subject").write_text(SECRET)
        credentials = {
            "type": "external_account",
            "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": f"http://127.0.0.1:{port}/v1/token",
            "credential_source": {"file": str(tmp_path / "subject")},
        }
        (tmp_path / "key.json").write_text(json.dumps(credentials))
        url = "bigquery://acme/shop?credentials=key.json&adbc.bigquery.sql.location=EU"
        shop = Workshop(tmp_path).model("SELECT 1 AS id", url=url)
        with pytest.raises(SourceError, match=r"^the warehouse refuses the login$"):
            shop.load()
    path, body = asked[0]
    assert path == "/v1/token"
    assert f"subject_token={SECRET}" in body.decode()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("bigquery://acme", "was given no login: Google's default credentials are not there"),
        ("bigquery://acme?adbc.bigquery.sql.colour=red", "could not be connected to"),
        ("bigquery://acme?credentials=model.sql", "could not be connected to"),
        ("bigquery://", ""),
        (f"snowflake://{SECRET}", "could not be connected to"),
        (f"grpc://me:{SECRET}@127.0.0.1:1", "is not there: the connection was refused"),
        (f"grpc+tls://me:{SECRET}@127.0.0.1:1", "is not there: the connection was refused"),
        (f"grpc://me:{SECRET}@nohost.invalid:1", "is not there: its host has no address"),
        (f"grpc://me:{SECRET}@127.0.0.1:1?adbc.flight.colour=red", "could not be connected to"),
    ],
)
def test_a_url_that_leads_nowhere_is_told_without_a_word_of_it(
    tmp_path: Path, url: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shop = Workshop(tmp_path).model("SELECT 1 AS id", url=url, timeout="20s")
    with pytest.raises(SourceError, match=f"^the warehouse {says}") as raised:
        shop.load()
    assert SECRET not in str(raised.value)


def test_a_file_of_credentials_that_is_not_there_is_told(tmp_path: Path) -> None:
    shop = Workshop(tmp_path).model("SELECT 1 AS id", url="bigquery://acme?credentials=none.json")
    with pytest.raises(SourceError, match=r"^there is no such file as the one of credentials"):
        shop.load()


# --- Flight SQL ----------------------------------------------------------------------------------------------------


def varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of a protocol buffer, and where the next one begins."""
    value = shift = 0
    while True:
        value |= (content[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if content[at - 1] < 0x80:
            return value, at


def text_fields(content: bytes) -> dict[int, bytes]:
    """The fields of a protocol buffer that has only texts and messages."""
    fields, at = {}, 0
    while at < len(content):
        tag, at = varint(content, at)
        size, at = varint(content, at)
        fields[tag >> 3] = content[at : at + size]
        at += size
    return fields


class Guard(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Lets in whoever knows the password, and hands out a token."""

    class Token(flight.ServerMiddleware):  # type: ignore[misc]
        """Sends it back."""

        def sending_headers(self) -> dict[str, str]:
            return {"authorization": "Bearer token"}

    def start_call(self, info: Any, headers: dict[str, list[str]]) -> Any:
        said = headers.get("authorization", [""])[0].rstrip("=")
        login = base64.b64encode(f"loader:{SECRET}".encode()).decode().rstrip("=")
        if said not in (f"Basic {login}", "Bearer token"):
            raise flight.FlightUnauthenticatedError(f"not {said}")
        return self.Token()


class Anyone(flight.ServerAuthHandler):  # type: ignore[misc]
    """The handshake; the guard has looked at the password by then."""

    def authenticate(self, outgoing: Any, incoming: Any) -> None:
        """Nothing more is asked."""

    def is_valid(self, token: bytes) -> bytes:
        return b""


class FlightSql(flight.FlightServerBase):  # type: ignore[misc]
    """Runs SQL in DuckDB, and does `meanwhile` before it sends the rows."""

    def __init__(self) -> None:
        super().__init__("grpc://127.0.0.1:0", auth_handler=Anyone(), middleware={"guard": Guard()})
        self.duckdb = duckdb.connect()
        self.asked: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None

    @property
    def url(self) -> str:
        return f"grpc://loader:{SECRET}@127.0.0.1:{self.port}"

    def get_flight_info(self, context: Any, descriptor: Any) -> Any:
        sql = text_fields(text_fields(descriptor.command)[2])[1].decode()
        self.asked.append(sql)
        endpoint = flight.FlightEndpoint(sql.encode(), [])
        return flight.FlightInfo(self.run(sql).schema, descriptor, [endpoint], -1, -1)

    def do_get(self, context: Any, ticket: Any) -> Any:
        reader = self.run(ticket.ticket.decode())
        return flight.GeneratorStream(reader.schema, self.batches(reader))

    def run(self, sql: str) -> Any:
        try:
            return self.duckdb.cursor().sql(sql).to_arrow_reader(1_000)
        except duckdb.Error as error:
            raise pa.ArrowInvalid(str(error)) from None

    def batches(self, reader: Any) -> Iterator[Any]:
        for batch in reader:
            yield batch
            self.meanwhile()


@pytest.fixture
def server() -> Iterator[FlightSql]:
    with FlightSql() as made:
        yield made


def test_profiles_and_events_are_loaded_by_flight_sql(tmp_path: Path, server: FlightSql) -> None:
    server.duckdb.execute(
        """
        CREATE TABLE people AS SELECT i AS id, 'näme ' || i AS name, i::DECIMAL(38, 0) AS number,
            [i, NULL] AS list, {'a': i / 8} AS pair, TIMESTAMPTZ '2024-01-02 03:04:05+02' AS changed, NULL AS nothing
            FROM range(50000) AS made(i)
        """
    )
    events = {"sql": "SELECT id, name AS event, changed FROM people; -- all", "profile": "id", "name": "event"}
    shop = Workshop(tmp_path).model(
        "SELECT * FROM people", url=server.url, identifiers=["number"], events=events | {"time": "changed"}
    )
    assert shop.load() == "published"
    assert json.loads(shop.bodies()["7"]) == {
        "id": 7,
        "number": 7,
        "name": "näme 7",
        "list": [7, None],
        "pair": {"a": 0.875},
        "changed": "2024-01-02T01:04:05Z",
        "_audiences": {},
        "_updated_at": shop.profiles()["7"]["_updated_at"],
    }
    assert shop.found("number", "7") == ["7"]
    assert (shop.manifest().profiles, shop.manifest().events) == (50_000, 50_000)
    assert server.asked[-2:] == ["SELECT * FROM people", "SELECT id, name AS event, changed FROM people"]
    assert shop.load() == "unchanged"


@pytest.mark.parametrize(
    ("sql", "kind", "says"),
    [
        ("SELEC 1 AS id", ModelError, "syntax error"),
        ("SELECT 1 AS id; SELECT 2", ModelError, "syntax error"),
        ("SELECT 1 AS id, 1::DECIMAL(38, 2) AS number", ModelError, "an identifier is text, an integer or a UUID, not"),
        (f"SELECT if(i = 7, '{SECRET}', '1')::INT AS id FROM range(9) AS made(i)", SourceError, "could not be run: "),
    ],
)
def test_what_is_wrong_with_a_model_is_told_by_flight_sql(
    tmp_path: Path, server: FlightSql, sql: str, kind: type[Exception], says: str
) -> None:
    shop = Workshop(tmp_path).model(sql, url=server.url, identifiers=["number"] if "number" in sql else [])
    with pytest.raises(kind, match=says) as raised:
        shop.load()
    assert "4711" not in str(raised.value)


def test_a_wrong_password_is_told_by_flight_sql(tmp_path: Path, server: FlightSql) -> None:
    shop = Workshop(tmp_path).model("SELECT 1 AS id", url=server.url.replace(SECRET, f"not-{SECRET}"))
    with pytest.raises(SourceError, match=r"^the warehouse refuses the login$"):
        shop.load()


def test_a_column_that_changes_between_plan_and_run_is_told(tmp_path: Path, server: FlightSql) -> None:
    server.duckdb.execute("CREATE TABLE people AS SELECT 1 AS id")
    shop = Workshop(tmp_path).model("FROM people", url=server.url)
    settings = shop.settings()
    with open_source(settings.workspaces["shop"].source, settings.loader, tmp_path, tmp_path / "scratch") as source:
        source.describe("FROM people")
        server.duckdb.execute("ALTER TABLE people ALTER id TYPE VARCHAR")
        with pytest.raises(SourceError, match=r"^the model gives other columns than it did a moment ago: load again$"):
            source.materialise("FROM people", lambda rows: f"CREATE TEMP TABLE made AS FROM {rows}")


def test_a_server_that_falls_silent_in_mid_stream_is_given_up(tmp_path: Path, server: FlightSql) -> None:
    answer = threading.Event()
    server.meanwhile = lambda: answer.wait()
    shop = Workshop(tmp_path).model("SELECT i AS id FROM range(9000) AS made(i)", url=server.url, timeout="1s")
    with pytest.raises(SourceError, match=r"^the warehouse has been silent for 1 s$"):
        shop.load()
    answer.set()


def test_a_server_that_breaks_off_in_mid_stream_is_told(tmp_path: Path, server: FlightSql) -> None:
    def fail() -> None:
        raise flight.FlightServerError(f"gone with '{SECRET}'")

    server.meanwhile = fail
    shop = Workshop(tmp_path).model("SELECT i AS id FROM range(9000) AS made(i)", url=server.url)
    with pytest.raises(SourceError, match=r"^the model could not be run: ") as raised:
        shop.load()
    assert SECRET not in str(raised.value)
