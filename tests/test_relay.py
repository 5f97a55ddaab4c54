"""The relay between a driver's thread and DuckDB's: nothing lost, nobody held up, and nothing kept."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from workshop import until

from edgeprofile._relay import Relay, names_of
from edgeprofile.errors import SourceError

SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.utf8())])


def batch(first: int, rows: int = 3) -> pa.RecordBatch:
    numbers = range(first, first + rows)
    return pa.record_batch([pa.array(numbers, pa.int64()), pa.array([f"text {n}" for n in numbers])], schema=SCHEMA)


def stream_of(batches: Iterator[pa.RecordBatch]) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(SCHEMA, batches)


class Task:
    """What a thread does, and what came of it."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.error: Exception | None = None
        self.result: object = None
        self._do = do
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._do()
        except Exception as error:
            self.error = error

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def end(self) -> Task:
        until(lambda: self.is_done)
        return self


def read(relay: Relay) -> list[int]:
    return [row["n"] for row in pa.RecordBatchReader.from_stream(relay).read_all().to_pylist()]


def test_what_one_thread_fills_another_reads_in_order() -> None:
    relay = Relay(stream_of(batch(n, 3) for n in range(0, 300, 3)))
    filling = Task(relay.fill)
    assert read(relay) == list(range(300))
    assert filling.end().error is None
    assert (relay.rows, relay.failed, relay.silent_s) == (300, False, 0)


def test_batches_without_rows_and_streams_without_batches_come_through() -> None:
    relay = Relay(stream_of(iter([batch(0, 0), batch(0, 1), batch(0, 0)])))
    Task(relay.fill)
    assert read(relay) == [0]
    empty = Relay(stream_of(iter([])))
    Task(empty.fill)
    assert read(empty) == []


def test_the_columns_may_be_asked_for_as_often_as_wanted() -> None:
    schema = pa.schema([("a", pa.list_(pa.int32())), ("a", pa.utf8()), ("é", pa.null())])
    relay = Relay(pa.RecordBatchReader.from_batches(schema, iter([])))
    assert relay.names == names_of(schema) == ["a", "a", "é"]
    readers = [pa.RecordBatchReader.from_stream(relay) for _ in range(3)]
    assert [reader.schema for reader in readers] == [schema] * 3


def test_a_schema_outlives_its_relay() -> None:
    schema = pa.RecordBatchReader.from_stream(Relay(stream_of(iter([])))).schema
    gc.collect()
    assert schema == SCHEMA


def test_a_stream_that_breaks_off_ends_no_reader_as_if_it_were_whole() -> None:
    def breaking() -> Iterator[pa.RecordBatch]:
        yield batch(0)
        raise OSError("the line is dead")

    relay = Relay(stream_of(breaking()))
    filling, reading = Task(relay.fill), Task(lambda: read(relay))
    assert isinstance(reading.end().error, OSError)
    assert isinstance(filling.end().error, SourceError)
    assert "the line is dead" in str(filling.error)
    assert relay.failed


def test_stop_lets_go_of_a_reader_while_the_source_hangs() -> None:
    answer = threading.Event()

    def hanging() -> Iterator[pa.RecordBatch]:
        yield batch(0)
        answer.wait()
        yield batch(3)

    relay = Relay(stream_of(hanging()))
    filling, reading = Task(relay.fill), Task(lambda: read(relay))
    until(lambda: relay.silent_s > 0.05)
    assert not reading.is_done
    relay.stop()
    assert isinstance(reading.end().error, OSError)
    assert not filling.is_done
    answer.set()
    assert filling.end().error is None


def test_stop_lets_go_of_the_filler_when_nobody_reads() -> None:
    relay = Relay(stream_of(batch(n) for n in range(100)))
    filling = Task(relay.fill)
    until(lambda: relay.rows > 0)
    assert not filling.is_done
    relay.stop()
    assert filling.end().error is None
    assert relay.failed
    assert relay.rows < 10


def test_a_source_that_waits_for_its_reader_is_not_silent() -> None:
    relay = Relay(stream_of(batch(n) for n in range(100)))
    filling = Task(relay.fill)
    until(lambda: relay.rows > 0 and relay.silent_s == 0)
    relay.stop()
    filling.end()


@pytest.mark.parametrize("stopped", [False, True])
def test_no_batch_is_kept_whether_it_was_read_or_not(stopped: bool) -> None:
    def relayed() -> None:
        relay = Relay(stream_of(batch(n, 10_000) for n in range(10)))
        filling = Task(relay.fill)
        if stopped:
            until(lambda: relay.rows > 0)
            relay.stop()
        else:
            assert len(read(relay)) == 100_000
        filling.end()

    gc.collect()
    before = pa.total_allocated_bytes()
    relayed()
    gc.collect()
    assert pa.total_allocated_bytes() == before


def test_what_is_no_stream_of_columns_is_refused() -> None:
    with pytest.raises(SourceError, match="the warehouse gave no columns"):
        Relay(pa.chunked_array([[1, 2]]))
    with pytest.raises(AttributeError):
        Relay(7)
