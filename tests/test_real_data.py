"""Real input: 23,570 customers of an online CD shop and 150,000 of TPC-H, held against independent computations."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path

import duckdb
import msgspec
import pytest
from workshop import Workshop, body, without_time

from edgeprofile import reader

CDNOW = Path(__file__).parents[2] / "shared" / "data" / "CDNOW_master.txt"
CDNOW_MODEL = f"""
    WITH purchases AS (
        SELECT parts[1] AS customer, strptime(parts[2], '%Y%m%d')::DATE AS day,
               parts[3]::INTEGER AS cds, parts[4]::DECIMAL(9, 2) AS paid
        FROM (
            SELECT regexp_split_to_array(trim(line), ' +') AS parts FROM read_csv(
                '{CDNOW}', columns = {{line: 'VARCHAR'}}, delim = '\x01', header = true, quote = '', escape = ''
            )
        )
    )
    SELECT customer AS id, min(day) AS first_purchase, max(day) AS last_purchase, count(*) AS orders,
           sum(cds) AS cds, sum(paid)::DECIMAL(18, 2) AS revenue, sum(paid) >= 500 AS high_spenders
    FROM purchases GROUP BY customer
"""
TPCH_MODEL = """
    SELECT c_custkey AS id, c_phone AS phone, c_name AS name, c_address AS address, c_nationkey AS nation,
           c_acctbal AS balance, c_mktsegment AS segment, c_comment AS comment,
           min(o_orderdate) AS first_order, max(o_orderdate) AS last_order, max(o_orderpriority) AS priority,
           count(o_orderkey) AS orders, sum(o_totalprice) AS total, bool_or(o_orderstatus = 'O') AS has_open_order
    FROM 'in/customer.parquet' LEFT JOIN 'in/orders.parquet' ON o_custkey = c_custkey
    GROUP BY ALL
"""


class Purchases(msgspec.Struct):
    """What one customer bought, summed up line by line."""

    days: list[date] = []
    cds: int = 0
    paid: Decimal = Decimal(0)


class Customer(msgspec.Struct):
    """A profile of the TPC-H model, as far as it is compared."""

    orders: int
    total: Decimal | None = None


def purchases() -> dict[str, Purchases]:
    """The shop's file, read by plain Python."""
    found: dict[str, Purchases] = {}
    for line in CDNOW.read_text(encoding="ascii").splitlines()[1:]:
        customer, day, cds, paid = line.split()
        sums = found.setdefault(customer, Purchases())
        sums.days.append(date(int(day[:4]), int(day[4:6]), int(day[6:])))
        sums.cds += int(cds)
        sums.paid += Decimal(paid)
    return found


def test_every_customer_of_the_cd_shop_is_served_as_plain_python_sums_them_up(tmp_path: Path) -> None:
    shop = Workshop(tmp_path).model(CDNOW_MODEL, metrics=["orders", "cds", "revenue"], audiences=["high_spenders"])
    ended = shop.run("load")
    assert (ended.status, ended.out.startswith("shop: published, 23,570 profiles in ")) == (0, True)
    expected = {
        customer: (
            f'{{"id":"{customer}","first_purchase":"{min(sums.days)}","last_purchase":"{max(sums.days)}",'
            f'"orders":{len(sums.days)},"cds":{sums.cds},"revenue":{sums.paid:.2f},'
            f'"_audiences":{{"high_spenders":{"true" if sums.paid >= 500 else "false"}}}}}'
        ).encode()
        for customer, sums in purchases().items()
    }
    assert len(expected) == 23_570
    assert {customer: without_time(answer) for customer, answer in shop.bodies().items()} == expected
    manifest = shop.manifest()
    assert (manifest.rows, manifest.profiles, manifest.rejected) == (23_570, 23_570, {})
    assert reader.verify(shop.current_folder()) == manifest


@pytest.fixture(scope="module")
def tpch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """TPC-H at scale factor 1, loaded once."""
    folder = tmp_path_factory.mktemp("tpch")
    beside = Path(sys.executable).with_name("tpchgen-cli")
    generator = str(beside) if beside.exists() else shutil.which("tpchgen-cli")
    assert generator is not None, "tpchgen-cli is missing: pip install .[test]"
    command = [generator, "parquet", "-s", "1", "--tables=customer,orders", "--output-dir", str(folder / "in")]
    subprocess.run(command, check=True, capture_output=True)
    shop = Workshop(folder).model(
        TPCH_MODEL, metrics=["orders", "total"], audiences=["has_open_order"], identifiers=["phone"]
    )
    assert shop.load() == "published"
    yield shop
    shutil.rmtree(folder)


def test_every_customer_of_tpch_has_the_orders_that_duckdb_counts(tpch: Workshop) -> None:
    manifest = tpch.manifest()
    schema = manifest.schema["fields"]
    assert isinstance(schema, list)
    assert (manifest.profiles, manifest.identifiers, len(schema)) == (150_000, {"phone": 150_000}, 14)
    counted = duckdb.execute(f"""
        SELECT c_custkey::VARCHAR, count(o_orderkey), sum(o_totalprice)
        FROM '{tpch.folder}/in/customer.parquet' LEFT JOIN '{tpch.folder}/in/orders.parquet' ON c_custkey = o_custkey
        GROUP BY 1
    """).fetchall()
    decoder = msgspec.json.Decoder(Customer)
    with tpch.reader() as opened:
        served = {}
        json_bytes = 0
        # Without the plain Python check of each record, which `verify` does: the compiled one is tested elsewhere.
        for primary in opened.ids():
            found = opened.record(primary)
            assert found is not None
            text = bytes(found)
            text = text[text.index(b'{"id":') :]
            json_bytes += len(text)
            customer = decoder.decode(text)
            served[primary] = (customer.orders, customer.total)
    assert served == {customer: (orders, total) for customer, orders, total in counted}
    print(f"\n{manifest.file_bytes / json_bytes:.3f} bytes stored a byte of JSON, {json_bytes / 150_000:.0f} a profile")
    assert manifest.record_bytes < 1.25 * json_bytes
    assert manifest.file_bytes < 1.5 * json_bytes


def test_the_snapshot_of_tpch_is_whole_and_found_by_phone(tpch: Workshop) -> None:
    assert reader.verify(tpch.current_folder()).profiles == 150_000
    customers = f"'{tpch.folder}/in/customer.parquet'"
    phones = duckdb.execute(f"SELECT c_phone, c_custkey::VARCHAR FROM {customers} WHERE c_custkey % 100 = 0")
    with tpch.reader() as opened:
        for phone, customer in phones.fetchall():
            assert opened.primaries("phone", phone) == [customer]
            assert f'"phone":"{phone}"'.encode() in body(opened, customer)
