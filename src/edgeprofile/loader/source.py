"""The warehouse: the one place that imports DuckDB.

A `Source` runs each model once, into a temporary table sorted by primary id, and answers questions of that
table. DuckDB keeps its memory under the limit by spilling to a folder of its own, which goes with it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import duckdb

from edgeprofile.errors import DiskFull, EdgeprofileError, ModelError, SourceError
from edgeprofile.settings import Loader as LoaderSettings
from edgeprofile.settings import Source as SourceSettings

REPORT_INTERVAL_S = 0.2
# A thread of DuckDB's sort holds some 100,000 rows at a time, however many there are; wide rows take this much.
THREAD_BYTES = 512 * 1024 * 1024
# Between the first quotation mark and the last may stand anything, even marks and line ends; a number may be a value.
_VALUES = re.compile(r"""['"].*['"]|(?<![\w.])[-+]?\d[\w.+]*""", re.DOTALL)


class WarehouseType(NamedTuple):
    """A column's type as DuckDB has it: its id ("list"), its text ("INTEGER[]"), and what is inside with its name."""

    id: str
    text: str
    children: tuple[tuple[str, WarehouseType], ...] = ()


class Column(NamedTuple):
    """A column of the model's result."""

    name: str
    type: WarehouseType


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
        cores = os.cpu_count() or 1
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
                raise ModelError([f"{self.model}'s SQL must be one SELECT statement"])
        except duckdb.Error as error:
            raise ModelError([f"{self.model}'s SQL: {_first_line(error)}"]) from None
        text = sql.encode()
        end = len(text)
        for offset, kind in reversed(duckdb.tokenize(sql)):
            if text[offset : offset + 1] == b";":
                end = offset
            elif kind != duckdb.token_type.comment:
                break
        return text[:end].decode()

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

    @contextmanager
    def running(self, model: str) -> Iterator[None]:
        """What goes wrong meanwhile is said of this model."""
        before, self.model = self.model, model
        try:
            yield
        finally:
            self.model = before

    @contextmanager
    def reporting(self, report: Callable[[float], None]) -> Iterator[None]:
        """Tells, five times a second from a thread, how far the running statement is: a share of 1."""
        finished = threading.Event()

        def ask() -> None:
            while not finished.wait(REPORT_INTERVAL_S):
                report(max(self._connection.query_progress(), 0) / 100)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()


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
    return SourceError(f"{model} could not be run: {_VALUES.sub('…', message)}".split("\n", 1)[0])


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
