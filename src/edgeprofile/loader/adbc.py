"""Warehouses other than DuckDB, through ADBC: which driver a URL means, and the thread that asks it.

A driver's call returns when its warehouse answers, which may be never. So a thread of the warehouse's own makes them
all, and nobody waits for it longer than the settings say: one that does not come back is left behind.
"""

from __future__ import annotations

import importlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from adbc_driver_manager import AdbcConnection, AdbcDatabase, AdbcStatement, AdbcStatusCode, Error

from edgeprofile._relay import Relay, names_of
from edgeprofile.errors import EdgeprofileError, ModelError, SourceError, without_values
from edgeprofile.loader import postgres
from edgeprofile.settings import Source as SourceSettings

Result = TypeVar("Result")
CONNECT_SECONDS_MAX = 60.0
# What is left of a question is cancelled, and the connection closed; neither is waited for any longer than this.
CLOSE_SECONDS_MAX = 1.0
# Between the models of a large load, a connection may be idle for so long that something on the way forgets it.
IDLE_SECONDS_MAX = 30.0
WATCH_INTERVAL_S = 0.1
# Whoever waits for a lock is told so by PostgreSQL, a little before the time for an answer is over.
LOCK_SHARE = 0.9
SPOKEN_LETTERS_MAX = 300

# What a driver says when it cannot connect may quote the URL, so none of it is shown; this is said instead.
_REFUSALS = {
    r"connection refused|no such file": "is not there: the connection was refused",
    r"translate host|no such host|name or service|zero addresses": "is not there: its host has no address",
    r"timeout|timed out|deadline": "does not answer",
    r"database .* does not exist": "has no such database",
    r"starting up|shutting down|recovery": "is starting up or shutting down",
    r"too many|connection slots": "has no connection to spare",
    r"default credentials": "was given no login: Google's default credentials are not there",
    r"password|authenticat|unauthori[sz]ed|credential|pg_hba|role .* does not exist|permission": "refuses the login",
    r"ssl|tls|certificate": "does not agree on how to encrypt",
}
# SQLSTATE's classes for faults of the SQL itself, which the lack of a privilege is not.
_SQL_FAULT = re.compile(r"(?!42501)(42|22|21|54|0A)")
_SQL_STATUSES = (AdbcStatusCode.INVALID_ARGUMENT, AdbcStatusCode.NOT_FOUND, AdbcStatusCode.INVALID_DATA)
# Some drivers connect only when they are asked something.
_NOT_CONNECTED = re.compile(r"connection error|credentials:|dial tcp|Unauthenticated|Unavailable")
# A message's own words: behind what the driver and PostgreSQL put before them, and before what may quote SQL or a row.
_BEFORE = re.compile(r"\A.*?(?:ERROR:|FATAL:|failed:) +|\A[A-Z_]+: |\[\w+\] ", re.DOTALL)
_BEHIND = re.compile(r"\n(?:LINE|DETAIL|HINT|CONTEXT|Query was|\t|\.)|\.*(?: Vendor code: \d+)?\.? SQLSTATE: \w+\Z")
_SECRET = re.compile(r"[?&][^=&]*(?:pass|secret|token|key|credential|authorization)[^=&]*=([^&]+)", re.IGNORECASE)


class Driver(NamedTuple):
    """A package with a driver, what installs it, what its `connect` is given for a URL (and the folder of the
    settings), and the options of a statement."""

    package: str
    installs: str
    arguments: Callable[[str, Path], dict[str, Any]]
    options: dict[str, str | int]


def _postgresql(url: str, folder: Path) -> dict[str, Any]:
    return {"uri": url}


def _snowflake(url: str, folder: Path) -> dict[str, Any]:
    quiet = {"adbc.snowflake.sql.client_option.disable_telemetry": "true"}
    return {"uri": url.partition("://")[2], "db_kwargs": quiet}


def _bigquery(url: str, folder: Path) -> dict[str, Any]:
    """bigquery://PROJECT/DATASET?credentials=FILE, and options of the driver's own. Google's default without a file."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    if file := options.pop("credentials", None):
        options["adbc.bigquery.sql.auth_type"] = "adbc.bigquery.sql.auth_type.json_credential_file"
        options["adbc.bigquery.sql.auth_credentials"] = str(folder / file)
        if not (folder / file).is_file():
            raise SourceError("there is no such file as the one of credentials that source.url names")
    named = {"adbc.bigquery.sql.project_id": parts.netloc, "adbc.bigquery.sql.dataset_id": parts.path.strip("/")}
    return {"db_kwargs": {name: value for name, value in named.items() if value} | options}


def _flight_sql(url: str, folder: Path) -> dict[str, Any]:
    """grpc://USER:PASSWORD@HOST:PORT, or grpc+tls://, and options of the driver's own."""
    parts = urlsplit(url)
    named = {"username": unquote(parts.username or ""), "password": unquote(parts.password or "")}
    options = {name: value for name, value in named.items() if value} | dict(parse_qsl(parts.query))
    return {"uri": f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", "db_kwargs": options}


# What a driver fetches ahead is memory that no setting bounds, so it is little.
_QUEUE: dict[str, str | int] = {"adbc.rpc.result_queue_size": "2"}
_POSTGRESQL = Driver(
    "adbc_driver_postgresql",
    "adbc-driver-postgresql",
    _postgresql,
    {"adbc.postgresql.batch_size_hint_bytes": 4 * 1024 * 1024},
)
_FLIGHT_SQL = Driver("adbc_driver_flightsql", "edgeprofile[flightsql]", _flight_sql, _QUEUE)
DRIVERS = {
    "postgresql": _POSTGRESQL,
    "postgres": _POSTGRESQL,
    "snowflake": Driver(
        "adbc_driver_snowflake",
        "edgeprofile[snowflake]",
        _snowflake,
        _QUEUE | {"adbc.snowflake.rpc.prefetch_concurrency": "2"},
    ),
    "bigquery": Driver(
        "adbc_driver_bigquery",
        "edgeprofile[bigquery]",
        _bigquery,
        {"adbc.bigquery.sql.query.result_buffer_size": 2, "adbc.bigquery.sql.query.prefetch_concurrency": 2},
    ),
    "grpc": _FLIGHT_SQL,
    "grpc+tls": _FLIGHT_SQL,
}


class Warehouse:
    """A connection to a warehouse, for one refresh. No error quotes its credentials, or a value of its rows.

    Raises SourceError where it refuses, breaks off, or is silent for too long; ModelError where the SQL is wrong.
    """

    def __init__(self, source: SourceSettings, folder: Path) -> None:
        driver = DRIVERS[source.scheme]
        self.is_postgresql = driver is _POSTGRESQL
        self._options = driver.options
        self._timeout_s = source.timeout_s
        self._secrets = _secrets(source.url)
        self._connect = _connector(driver, source.url, folder)
        self._database: AdbcDatabase | None = None
        self._connection: AdbcConnection | None = None
        self._used_at = 0.0
        self._is_busy = False
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._make_calls, daemon=True)
        self._thread.start()
        try:
            self._answer(self._call(self._open), min(self._timeout_s, CONNECT_SECONDS_MAX))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancels what is being asked and closes the connection, or leaves both behind if that takes too long."""
        if self._is_busy and self._connection is not None:
            cancelling = threading.Thread(target=self._cancel, args=(self._connection,), daemon=True)
            cancelling.start()
            cancelling.join(CLOSE_SECONDS_MAX)
            if cancelling.is_alive():
                return  # it needs the connection
        self._calls.put(None)
        self._thread.join(CLOSE_SECONDS_MAX)

    def names(self, sql: str, model: str) -> list[str]:
        """The names of the columns that the SQL yields, by itself, unwrapped: it must be one statement."""

        def ask() -> list[str]:
            with self._statement(sql, model, planning=True) as statement:
                return names_of(statement.execute_schema())

        return self._answer(self._call(ask), self._timeout_s)

    def pour(
        self,
        sql: str,
        model: str,
        read: Callable[[Relay], Result],
        interrupt: Callable[[], object],
        *,
        planning: bool = False,
    ) -> Result:
        """What `read`, called in a thread of its own, makes of the rows that the SQL yields.

        It must come back soon after its relay was stopped and `interrupt` was called, which a signal leads to as well.
        `planning` says that no row is run yet.
        """
        opened: Future[Relay] = Future()

        def fill() -> None:
            try:
                with self._statement(sql, model, planning=planning) as statement:
                    relay = Relay(statement.execute_query()[0])
                    if opened.set_running_or_notify_cancel():
                        opened.set_result(relay)
                    else:
                        relay.stop()
                    relay.fill()
            except BaseException as error:
                if not opened.done():
                    opened.set_exception(error)
                raise

        filled = self._call(fill)
        try:
            relay = self._answer(opened, self._timeout_s)
        except BaseException:
            if not opened.cancel() and opened.exception() is None:
                opened.result().stop()
            raise
        reading = _in_thread(lambda: read(relay))
        try:
            while wait([reading], WATCH_INTERVAL_S).not_done:
                if relay.silent_s > self._timeout_s:
                    raise self._silence(self._timeout_s)
        except BaseException:
            relay.stop()
            interrupt()
            wait([reading])
            raise
        if relay.failed:  # whatever was read is not all
            with suppress(TimeoutError):
                filled.result(CLOSE_SECONDS_MAX)
            raise SourceError(f"{model} could not be run: the warehouse broke off")
        relay.stop()
        return reading.result()

    # --- in the thread ---------------------------------------------------------------------------------------------

    def _make_calls(self) -> None:
        while (call := self._calls.get()) is not None:
            self._is_busy = True
            call()
            self._is_busy = False
        self._shut()

    def _open(self) -> None:
        try:
            self._database = self._connect()
            self._connection = AdbcConnection(self._database)
            self._used_at = time.monotonic()
        except Error as error:
            raise _refusal(str(error)) from None

    def _shut(self) -> None:
        for opened in (self._connection, self._database):
            if opened is not None:
                with suppress(Error):
                    opened.close()
        self._connection = self._database = None

    @contextmanager
    def _statement(self, sql: str, model: str, *, planning: bool) -> Iterator[AdbcStatement]:
        """A statement that is to be run, in a transaction of its own where that matters."""
        if time.monotonic() - self._used_at > IDLE_SECONDS_MAX:
            self._shut()
            self._open()
        try:
            if self.is_postgresql:
                for before in postgres.begin(LOCK_SHARE * self._timeout_s):
                    self._run(before)
            with AdbcStatement(self._connection) as statement:
                statement.set_options(**self._options)
                statement.set_sql_query(sql)
                yield statement
        except (Error, SourceError) as error:
            raise self._fault(error, model, planning) from None
        finally:
            if self.is_postgresql:
                with suppress(Error):
                    self._run(postgres.END)
            self._used_at = time.monotonic()

    def _run(self, sql: str) -> None:
        with AdbcStatement(self._connection) as statement:
            statement.set_sql_query(sql)
            statement.execute_update()

    # --- outside of it ---------------------------------------------------------------------------------------------

    def _call(self, call: Callable[[], Result]) -> Future[Result]:
        future: Future[Result] = Future()
        self._calls.put(lambda: _fulfil(future, call))
        return future

    def _answer(self, future: Future[Result], seconds: float) -> Result:
        try:
            return future.result(seconds)
        except TimeoutError:
            raise self._silence(seconds) from None

    def _cancel(self, connection: AdbcConnection) -> None:
        with suppress(Error):
            connection.cancel()

    def _silence(self, seconds: float) -> SourceError:
        hint = "if it needs that long, raise source.timeout" if seconds == self._timeout_s else None
        return SourceError(f"the warehouse has been silent for {seconds:g} s", hint=hint)

    def _fault(self, error: Error | SourceError, model: str, planning: bool) -> EdgeprofileError:
        text = str(error)
        for secret in self._secrets:
            text = text.replace(secret, "…")
        line = re.search(r"\nLINE (\d+):", text)
        if _NOT_CONNECTED.search(text) and not self.is_postgresql:
            return _refusal(text)
        words = " ".join(_BEHIND.split(_BEFORE.sub("", text), maxsplit=1)[0].split())[:SPOKEN_LETTERS_MAX]
        if planning and _is_of_the_sql(error):
            return ModelError([f"{model}'s SQL: {words}" + (f" (line {line[1]})" if line else "")])
        return SourceError(f"{model} could not be {'planned' if planning else 'run'}: {without_values(words)}")


def _in_thread(call: Callable[[], Result]) -> Future[Result]:
    future: Future[Result] = Future()
    threading.Thread(target=_fulfil, args=(future, call), daemon=True).start()
    return future


def _fulfil(future: Future[Result], call: Callable[[], Result]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)


def _connector(driver: Driver, url: str, folder: Path) -> Callable[[], AdbcDatabase]:
    """What connects. Raises SourceError where the driver is not installed, or the URL makes no sense."""
    try:
        connect = importlib.import_module(driver.package).connect
        arguments = driver.arguments(url, folder)
    except ImportError:
        hint = f"pip install '{driver.installs}'"
        raise SourceError(f"the driver for {url.partition(':')[0]}:// is not installed", hint=hint) from None
    except ValueError:
        raise SourceError("source.url cannot be read as a URL") from None
    return lambda: connect(**arguments)


def _refusal(text: str) -> SourceError:
    said = (words for pattern, words in _REFUSALS.items() if re.search(pattern, text, re.IGNORECASE))
    return SourceError(
        f"the warehouse {next(said, 'could not be connected to')}",
        hint="try source.url with the warehouse's own client; what the driver says is not shown, as it may quote it",
    )


def _is_of_the_sql(error: Error | SourceError) -> bool:
    if not isinstance(error, Error):
        return False
    return bool(_SQL_FAULT.match(error.sqlstate)) if error.sqlstate else error.status_code in _SQL_STATUSES


def _secrets(url: str) -> list[str]:
    """What no message may show of a URL, the longest first, as it is written and as it is meant."""
    written = _SECRET.findall(url)
    with suppress(ValueError):
        written.append(urlsplit(url).password or "")
    return sorted({secret for each in written for secret in (each, unquote(each)) if secret}, key=len, reverse=True)
