"""The warehouse: the one place that imports DuckDB.

A `Source` runs each model once, into a temporary table sorted by primary id, and answers questions of that
table. DuckDB keeps its memory under the limit by spilling to a folder of its own, which goes with it. Where the
warehouse is another, DuckDB reads what that sends.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import duckdb

from edgeprofile._relay import Relay
from edgeprofile.errors import DiskFull, EdgeprofileError, ModelError, SourceError, without_values
from edgeprofile.loader import postgres
from edgeprofile.loader.model import Column, WarehouseType, quoted
from edgeprofile.settings import Loader as LoaderSettings
from edgeprofile.settings import Source as SourceSettings

REPORT_INTERVAL_S = 0.2
# A thread of DuckDB's sort holds some 100,000 rows at a time, however many there are; wide rows take this much.
THREAD_BYTES = 512 * 1024 * 1024
SENT = "sent"  # what DuckDB calls the rows that another warehouse sends

Result = TypeVar("Result")


def open_source(source: SourceSettings, loader: LoaderSettings, folder: Path, scratch: Path) -> Source:
    """The warehouse that `source.url` names. Raises SourceError."""
    return (Source if source.scheme == "duckdb" else RemoteSource)(source, loader, folder, scratch)


class Source:
    """A connection to the warehouse of one workspace, for one refresh.

    Raises SourceError where the warehouse does not answer, ModelError where the SQL is wrong. The values that an
    error of DuckDB's quotes are left out: errors end up in logs.
    """

    model = "the model"  # what errors call the SQL that is being run

    def __init__(self, source: SourceSettings, loader: LoaderSettings, folder: Path, scratch: Path) -> None:
        config: dict[str, Any] = {
            "memory_limit": f"{loader.memory_limit_bytes // 1024} KiB",
            "temp_directory": str(scratch),
            "file_search_path": str(folder),
            # A refresh never fetches code, and a name in the SQL is never a variable of this program's.
            "autoinstall_known_extensions": False,
            "python_enable_replacements": False,
        }
        cores = len(os.sched_getaffinity(0))
        fitting = max(1, loader.memory_limit_bytes // THREAD_BYTES)
        config["threads"] = loader.threads or min(cores, fitting)
        # The file itself is what is connected to, so that the model may name it as it does everywhere else.
        database = source.database
        try:
            self._connection = duckdb.connect(database or ":memory:", read_only=database is not None, config=config)
        except duckdb.Error as error:
            what = f"the warehouse {database.name} cannot be opened" if database else "DuckDB does not start"
            raise SourceError(f"{what}: {_first_line(error)}") from None
        # DuckDB keeps count of its progress, and does not draw a bar of its own.
        self._connection.execute(
            "SET TimeZone = 'UTC'; SET enable_progress_bar = true; SET enable_progress_bar_print = false"
        )

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    def statement(self, sql: str) -> str:
        """The model's SQL, one statement, without the semicolon that closes it and the comments behind that."""
        try:
            if len(self._connection.extract_statements(sql)) != 1:
                raise self._no_query()
        except duckdb.Error as error:
            raise ModelError([f"{self.model}'s SQL: {_first_line(error)}"]) from None
        return _without_end(sql)

    def describe(self, sql: str) -> list[Column]:
        """The columns that the model yields, without running it."""
        try:
            relation = self._connection.sql(f"SELECT * FROM (\n{sql}\n) LIMIT 0")
            # The names come from the SQL itself: in a subquery DuckDB renames those that stand twice.
            names = self._connection.sql(sql).columns
        except duckdb.IOException as error:
            raise SourceError(f"{self.model} cannot be read: {_first_line(error)}") from None
        except duckdb.Error as error:
            raise ModelError([f"{self.model}'s SQL: {_first_line(error)}"]) from None
        return [Column(name, _warehouse_type(kind)) for name, kind in zip(names, relation.types, strict=True)]

    def run(self, sql: str) -> None:
        """Runs a statement that yields nothing."""
        try:
            self._connection.execute(sql)
        except duckdb.Error as error:
            raise _execution_error(error, self.model) from None
        except RuntimeError as error:
            raise _interrupted(error) from None

    def materialise(self, sql: str, statement: Callable[[str], str]) -> None:
        """Runs the model once, inside of the statement, which is given what to call the model's rows behind FROM."""
        self.run(statement(f"(\n{sql}\n)"))

    def since(self, sql: str, moment: Column, time_us: int, rows_max: int) -> str:
        """SQL of the model's rows of that moment, in UTC, or a later one: so many at most. The warehouse compares."""
        when = (dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=time_us)).isoformat(" ", "microseconds")
        if moment.type.id == "date":
            when = when[:10]
        elif "tz" in moment.type.id or "zone" in moment.type.id:
            when += "+00:00"
        name = self._named(moment.name)
        return f"SELECT * FROM (\n{sql}\n) AS model WHERE {name} >= '{when}' LIMIT {rows_max}"

    def _named(self, column: str) -> str:
        return quoted(column)

    def progress(self) -> tuple[float, float]:
        """How far the running statement is, and of how much: a share of 1, or rows of an unknown number (0)."""
        return max(self._connection.query_progress(), 0) / 100, 1

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """Runs a query with a small answer."""
        try:
            return self._connection.execute(sql).fetchall()
        except duckdb.Error as error:
            raise _execution_error(error, self.model) from None
        except RuntimeError as error:
            raise _interrupted(error) from None

    def stream(self, sql: str) -> object:
        """Runs a query and gives its answer as an Arrow stream (a PyCapsule), to be read before the next query."""
        try:
            return self._connection.sql(sql).__arrow_c_stream__()
        except duckdb.Error as error:
            raise _execution_error(error, self.model) from None

    def _no_query(self) -> ModelError:
        return ModelError([f"{self.model}'s SQL must be one SELECT statement"])

    @contextmanager
    def running(self, model: str) -> Iterator[None]:
        """What goes wrong meanwhile is said of this model."""
        before, self.model = self.model, model
        try:
            yield
        finally:
            self.model = before

    @contextmanager
    def reporting(self, report: Callable[[float, float], None]) -> Iterator[None]:
        """Tells the `progress`, five times a second from a thread."""
        finished = threading.Event()

        def ask() -> None:
            while not finished.wait(REPORT_INTERVAL_S):
                report(*self.progress())

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()


class RemoteSource(Source):
    """A warehouse that runs the models itself, and whose rows DuckDB reads as they come."""

    def __init__(self, source: SourceSettings, loader: LoaderSettings, folder: Path, scratch: Path) -> None:
        # Only here, so that a load from DuckDB needs no driver.
        from edgeprofile.loader.adbc import Warehouse

        self._warehouse = Warehouse(source, folder)
        self._is_bigquery = source.scheme == "bigquery"
        self._queries: dict[str, tuple[str, list[Column]]] = {}
        self._relay: Relay | None = None
        try:
            super().__init__(source, loader, folder, scratch)
        except BaseException:
            self._warehouse.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._warehouse.close()
        super().__exit__(kind, error, at)

    def statement(self, sql: str) -> str:
        """As above. DuckDB knows the words of the other dialects well enough to find the end."""
        text = _without_end(sql)
        if all(kind == duckdb.token_type.comment for _, kind in duckdb.tokenize(text)):
            raise self._no_query()
        return text

    def describe(self, sql: str) -> list[Column]:
        query, known = self._query(sql)
        try:
            sent = self._pour(f"SELECT * FROM ({query}\n) AS model WHERE false LIMIT 0", self._sent, planning=True)
        except duckdb.Error as error:
            raise ModelError([f"{self.model}'s result cannot be read: {_first_line(error)}"]) from None
        self._queries[sql] = query, sent
        return [Column(name, type or found) for (name, found), type in zip_longest(sent, known)]

    def materialise(self, sql: str, statement: Callable[[str], str]) -> None:
        query, sent = self._queries[sql]

        def read(relay: Relay) -> None:
            self._relay = relay
            if self._sent(relay) != sent:
                raise SourceError(f"{self.model} gives other columns than it did a moment ago: load again")
            self.run(statement(SENT))

        try:
            self._pour(query, read)
        finally:
            self._relay = None

    def since(self, sql: str, moment: Column, time_us: int, rows_max: int) -> str:
        narrowed = super().since(sql, moment, time_us, rows_max)
        self.describe(narrowed)
        return narrowed

    def _named(self, column: str) -> str:
        return f"`{column}`" if self._is_bigquery else quoted(column)

    def progress(self) -> tuple[float, float]:
        relay = self._relay
        return 0 if relay is None else relay.rows, 0

    def _query(self, sql: str) -> tuple[str, list[WarehouseType | None]]:
        """The SQL that the warehouse is asked, and the types that those of what arrives do not tell."""
        if not self._warehouse.is_postgresql:
            return sql, []
        names = self._warehouse.names(sql, self.model)
        if not names:
            raise self._no_query()
        types = self._pour(postgres.types_of(sql, len(names)), lambda _: self.ask(f"FROM {SENT}"), planning=True)
        columns = [postgres.served(number, postgres.PostgresType(*fields)) for number, fields in enumerate(types)]
        return postgres.wrapped(sql, names, columns), [column.type for column in columns]

    def _sent(self, relay: Relay) -> list[Column]:
        types = map(_warehouse_type, self._connection.sql(f"FROM {SENT}").types)
        return [Column(name, type) for name, type in zip(relay.names, types, strict=True)]

    def _pour(self, query: str, read: Callable[[Relay], Result], *, planning: bool = False) -> Result:
        """What `read` makes of the rows that the warehouse sends, which DuckDB calls SENT meanwhile."""

        def reading(relay: Relay) -> Result:
            self._connection.register(SENT, relay)
            try:
                return read(relay)
            finally:
                self._connection.unregister(SENT)

        return self._warehouse.pour(query, self.model, reading, self._connection.interrupt, planning=planning)


def _without_end(sql: str) -> str:
    """SQL without the semicolon that closes it and the comments behind that."""
    text = sql.encode()
    end = len(text)
    for offset, kind in reversed(duckdb.tokenize(sql)):
        if text[offset : offset + 1] == b";":
            end = offset
        elif kind != duckdb.token_type.comment:
            break
    return text[:end].decode()


def _first_line(error: duckdb.Error) -> str:
    """What is wrong, and in which line of the SQL and which file; what stands there may be a customer's."""
    text = str(error)
    line = re.search(r"^LINE (\d+):", text, re.MULTILINE)
    file = re.search(r"^\s*file ?= ?(\S+)", text, re.MULTILINE)
    places = [f"line {line[1]}"] if line else []
    places += [f"file {Path(file[1]).name}"] if file else []
    return text.split("\n", 1)[0].strip() + (f" ({', '.join(places)})" if places else "")


def _interrupted(error: RuntimeError) -> BaseException:
    """What DuckDB makes a RuntimeError of: a signal whose handler raised."""
    return KeyboardInterrupt() if "interrupted" in str(error) else error


def _execution_error(error: duckdb.Error, model: str) -> EdgeprofileError:
    if isinstance(error, duckdb.OutOfMemoryException) and "offload" in str(error):
        return DiskFull()
    if isinstance(error, duckdb.OutOfMemoryException):
        return SourceError(
            f"{model} needs more memory than loader.memory_limit allows", hint="raise it, or set loader.threads = 1"
        )
    text = str(error)
    message = text.rpartition("\n\nLINE ")[0] or text  # without the place in the SQL
    return SourceError(f"{model} could not be run: {without_values(message)}".split("\n", 1)[0])


def _warehouse_type(kind: Any) -> WarehouseType:
    text = str(kind)
    if kind.id not in ("list", "array", "struct", "tuple", "map", "union"):
        return WarehouseType("json" if text == "JSON" else kind.id, text)
    return WarehouseType(kind.id, text, tuple(_children(kind)))


def _children(kind: Any) -> Iterator[tuple[str, WarehouseType]]:
    for name, inside in kind.children:
        if kind.id == "union" and name == "":
            continue  # the tag, which says which member is set
        if hasattr(inside, "id"):
            yield name, _warehouse_type(inside)


def run_script(database: Path, script: str, variables: dict[str, int]) -> None:
    """Runs an SQL script in a DuckDB file, which it makes where there is none: how the demo gets its warehouse."""
    with duckdb.connect(str(database)) as connection:
        for name, value in variables.items():
            connection.execute(f"SET VARIABLE {name} = {value:d}")
        try:
            connection.execute(script)
        except RuntimeError as error:
            raise _interrupted(error) from None
