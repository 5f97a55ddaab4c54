"""A full refresh of TPC-H customers, from Parquet to published; and against writing the same records into Redis.

The model has 14 fields, of which the six last are aggregates of the customer's orders. These are made in a subquery,
by the customer's number alone, and then joined: to group the join by the eight other fields, texts most of them, would
cost five times the CPU of the whole load, all of it DuckDB's. Timed is `edgeprofile load` as a whole: the start of the
process, the query, sort, records, hash, checks and fsync. Redis is given more than fair terms: the answers' JSON is
ready in the client's memory before the clock starts, so that Redis pays for no query, sort or JSON; it keeps nothing
on disk; it is reached by its Unix socket, in pipelines of a thousand SETs. There are two clients: the least that can
be done, bytes of the protocol put together and sent while a thread counts what comes back, and redis-py, which is what
a user would write.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from harness import BenchError, Row, Spread, Stage, Target, absent, alternate, find_program, parser, run
from loads import Load, run_load
from memory import MIB
from peers import Redis, start_redis

from edgeprofile import demo, reader, snapshot
from edgeprofile.record import HEADER

WORKSPACE = "shop"
PIPELINE = 1_000
RATE_TARGET, MEMORY_TARGET, REDIS_TARGET = Target("≥", 250_000), Target("≤", 1024), Target("≥", 3)
RATE, MEMORY = "full refresh of TPC-H from Parquet, SF {}", "own memory of that load at most"
REDIS = "the same against SETs into Redis, by {}"

Profiles = list[tuple[bytes, bytes]]
Client = Callable[[Redis, Profiles], float]

MODEL = """
    SELECT c_custkey AS id, c_name AS name, c_phone AS phone, c_address AS address, c_nationkey AS nation,
           c_mktsegment AS segment, c_acctbal AS balance, c_comment AS notes,
           coalesce(orders, 0) AS orders, revenue, first_order, last_order, largest_order, has_open_order
    FROM 'tables/customer.parquet' LEFT JOIN (
        SELECT o_custkey, count(*) AS orders, sum(o_totalprice) AS revenue, min(o_orderdate) AS first_order,
               max(o_orderdate) AS last_order, max(o_totalprice) AS largest_order,
               bool_or(o_orderstatus = 'O') AS has_open_order
        FROM 'tables/orders.parquet' GROUP BY o_custkey
    ) ON o_custkey = c_custkey
"""
SETTINGS = f"""
data_dir = "state"
[loader]
memory_limit = "700MB"
threads = 2
[workspaces.{WORKSPACE}]
keep = 1
source = {{ url = "duckdb://" }}
[workspaces.{WORKSPACE}.profiles]
sql = "model.sql"
id = "id"
metrics = ["orders", "revenue", "largest_order"]
audiences = ["has_open_order"]
"""


def options() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.set_defaults(pairs=3)
    made.add_argument("--scale", type=float, default=5, help="of TPC-H: 150,000 customers each (default 5)")
    return made


def measure(chosen: argparse.Namespace) -> Iterator[Row]:
    """Loads, and writes into Redis by each client, in turn."""
    scale = 0.1 if chosen.quick else chosen.scale
    generator = tpchgen()
    if generator is None:
        yield Row.not_run(RATE.format(scale), "tpchgen-cli not installed", RATE_TARGET, unit="/s")
        return
    rows: list[Row] = []
    with Stage() as stage:
        load = prepare(stage, generator, scale)
        loads = [load()]
        profiles = answers(stage)
        for name, client in CLIENTS.items():
            title = REDIS.format(name)
            if why := absent("redis-server", "redis-cli", modules=["redis"] if client is by_redis_py else []):
                rows.append(Row.not_run(title, why, REDIS_TARGET))
            else:
                pairs = alternate(load, partial(filled, profiles, client), chosen.pairs)
                loads += [ours for ours, _ in pairs]
                rows.append(redis_row(title, pairs, len(profiles)))
    yield from load_rows(RATE.format(scale), loads, len(profiles))
    yield from rows


def tpchgen() -> str | None:
    """Where the generator of TPC-H's tables is: beside this Python, or on the path."""
    beside = Path(sys.executable).with_name("tpchgen-cli")
    return str(beside) if beside.exists() else find_program("tpchgen-cli")


def prepare(stage: Stage, generator: str, scale: float) -> Callable[[], Load]:
    """Makes tables, model and settings; returns what loads them."""
    folder = stage.folder
    command = [generator, "parquet", "-s", str(scale), "--tables=customer,orders"]
    done = subprocess.run(
        [*command, "--output-dir", str(folder / "tables")], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"tpchgen-cli: {done.stderr.strip()}")
    (folder / "model.sql").write_text(MODEL)
    (folder / "edgeprofile.toml").write_text(SETTINGS)
    command = [*demo.COMMAND, "load", "--force", "--config", str(folder / "edgeprofile.toml")]
    return lambda: run_load(command, folder)


def answers(stage: Stage) -> Profiles:
    """Each profile's id and JSON, as Redis is to hold them."""
    home = snapshot.home(stage.folder / "state", WORKSPACE)
    opened = reader.open_current(home)
    found = []
    try:
        with opened.txn.cursor(opened.profiles) as cursor:
            for key, place in cursor:
                segment, offset, length = reader.PLACE.unpack(place)
                record = opened.segments[segment][offset : offset + length]
                found.append((bytes(key), bytes(record[length - HEADER.unpack_from(record)[3] :])))
        return found
    finally:
        opened.close()


# --- Redis ---------------------------------------------------------------------------------------------------------


def filled(profiles: Profiles, client: Client) -> float:
    """Seconds that a client takes to fill an empty Redis."""
    with Stage() as stage:
        redis = start_redis(stage)
        seconds = client(redis, profiles)
        if int(redis.cli("dbsize")) != len(profiles):
            raise BenchError("Redis does not hold all profiles")
        return seconds


def by_protocol(redis: Redis, profiles: Profiles) -> float:
    """Sends and reads at once, so that neither waits for the other."""
    replies = b"+OK\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(redis.path))
        began = time.monotonic()
        reading = threading.Thread(target=receive, args=(connection, len(replies) * len(profiles)))
        reading.start()
        for at in range(0, len(profiles), PIPELINE):
            connection.sendall(
                b"".join(
                    b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(value), value)
                    for key, value in profiles[at : at + PIPELINE]
                )
            )
        reading.join()
        return time.monotonic() - began


def receive(connection: socket.socket, size: int) -> None:
    """Reads so many bytes, or to the end."""
    while size > 0 and (got := len(connection.recv(1 << 16))):
        size -= got


def by_redis_py(redis: Redis, profiles: Profiles) -> float:
    """As its manual has it; without MULTI and EXEC, which would cost Redis more."""
    import redis as redis_py

    with redis_py.Redis(unix_socket_path=str(redis.path)) as client:
        client.ping()
        began = time.monotonic()
        for at in range(0, len(profiles), PIPELINE):
            pipeline = client.pipeline(transaction=False)
            for key, value in profiles[at : at + PIPELINE]:
                pipeline.set(key, value)
            pipeline.execute()
        return time.monotonic() - began


CLIENTS: dict[str, Client] = {"bytes of the protocol": by_protocol, "redis-py": by_redis_py}


# --- the rows ------------------------------------------------------------------------------------------------------


def load_rows(title: str, loads: Sequence[Load], profiles: int) -> Iterator[Row]:
    """Profiles a second, and memory."""
    seconds, cpu_s = statistics.median(each.seconds for each in loads), statistics.median(each.cpu_s for each in loads)
    ours = f"{profiles:,} in {seconds:.1f} s, CPU {cpu_s:.1f} s"
    yield Row.measured(title, Spread.of(profiles / each.seconds for each in loads), RATE_TARGET, unit="/s", ours=ours)
    resident = max(each.resident_bytes for each in loads) / MIB
    most = max(each.anonymous_bytes for each in loads) / MIB
    ours = f"{resident:,.0f} with mapped files"
    yield Row.measured(MEMORY, most, MEMORY_TARGET, unit="MiB", ours=ours)


def redis_row(title: str, pairs: Sequence[tuple[Load, float]], profiles: int) -> Row:
    """How many times as fast the load is."""
    return Row.measured(
        title,
        Spread.of(redis_s / ours.seconds for ours, redis_s in pairs),
        REDIS_TARGET,
        ours=f"{profiles / statistics.median(ours.seconds for ours, _ in pairs):,.0f}/s",
        peer=f"{profiles / statistics.median(redis_s for _, redis_s in pairs):,.0f}/s",
    )


if __name__ == "__main__":
    run(__doc__, measure, options())
