"""The sample shop: its tables are believable and always the same, and its model counts what plain Python counts."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tomllib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import duckdb
import pytest

SAMPLE = files("edgeprofile.sample")
EXAMPLE = Path(__file__).parent.parent / "examples" / "shop"
MODEL = SAMPLE.joinpath("profiles.sql").read_text(encoding="utf-8")
EVENTS = SAMPLE.joinpath("events.sql").read_text(encoding="utf-8")
KEYS = {
    "customers": "customer_id",
    "orders": "order_id",
    "order_lines": "(order_id, line)",
    "products": "product_id",
    "visits": "visit_id",
}

Row = dict[str, Any]


def make_shop(profiles: int, threads: int = 2) -> duckdb.DuckDBPyConnection:
    """A shop in memory, by a DuckDB that may not fetch extensions."""
    shop = duckdb.connect(config={"threads": threads, "autoinstall_known_extensions": False})
    shop.execute(f"SET VARIABLE profiles = {profiles}")
    shop.execute(SAMPLE.joinpath("warehouse.sql").read_text(encoding="utf-8"))
    return shop


def rows(shop: duckdb.DuckDBPyConnection, sql: str) -> list[Row]:
    """The result of `sql`, a dict for each row."""
    cursor = shop.execute(sql)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def fingerprint(shop: duckdb.DuckDBPyConnection) -> str:
    """A hash of every value in every table and in the models' results."""
    digest = hashlib.sha256()
    for table, key in KEYS.items():
        digest.update(repr(shop.execute(f"FROM {table} ORDER BY {key}").fetchall()).encode())
    digest.update(repr(shop.execute(f"FROM ({MODEL}) ORDER BY profile_id").fetchall()).encode())
    digest.update(repr(shop.execute(f"FROM ({EVENTS}) ORDER BY event_id").fetchall()).encode())
    return digest.hexdigest()


@pytest.fixture(scope="module", params=[3_000, 13_000])
def shop(request: pytest.FixtureRequest) -> Iterator[duckdb.DuckDBPyConnection]:
    with make_shop(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def customers(shop: duckdb.DuckDBPyConnection) -> list[Row]:
    return rows(shop, "FROM customers ORDER BY customer_id")


@pytest.fixture(scope="module")
def profiles(shop: duckdb.DuckDBPyConnection) -> list[Row]:
    """The model's rows in the order of their numbers, as `customers` are."""
    return rows(shop, f"FROM ({MODEL}) ORDER BY CAST(profile_id AS BIGINT)")


@pytest.fixture(scope="module")
def orders(shop: duckdb.DuckDBPyConnection) -> dict[int, list[Row]]:
    """Every order, under its customer's number."""
    found: dict[int, list[Row]] = defaultdict(list)
    for order in rows(shop, "FROM orders"):
        found[order["customer_id"]].append(order)
    return found


@pytest.fixture(scope="module")
def events(shop: duckdb.DuckDBPyConnection) -> dict[str, list[Row]]:
    """The rows of the events' model under their profile's id, newest first."""
    found: dict[str, list[Row]] = defaultdict(list)
    for event in rows(shop, f"FROM ({EVENTS}) ORDER BY event_time DESC, event_id"):
        found[event["profile_id"]].append(event)
    return found


@pytest.fixture(scope="module")
def declared() -> Any:
    """The settings of the workspace."""
    text = SAMPLE.joinpath("edgeprofile.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["workspaces"]["shop"]


@pytest.fixture(scope="module")
def settings(declared: Any) -> Any:
    return declared["profiles"]


@pytest.mark.parametrize("profiles", [1, 2, 3_000, 12_345])
def test_the_shop_has_as_many_profiles_as_asked_for(profiles: int) -> None:
    with make_shop(profiles) as shop:
        found = rows(shop, MODEL)
    assert {row["profile_id"] for row in found} == {str(12_345 + number) for number in range(profiles)}
    assert len(found) == profiles


@pytest.mark.parametrize("identifier", ["email", "anonymous_id", "phone"])
def test_no_two_profiles_share_an_identifier(profiles: list[Row], identifier: str) -> None:
    values = [row[identifier].lower() for row in profiles if row[identifier] is not None]
    assert [value for value, times in Counter(values).items() if times > 1] == []
    assert (len(values) < len(profiles)) == (identifier != "anonymous_id")


def test_contact_details_are_fictitious(profiles: list[Row]) -> None:
    emails = [row["email"] for row in profiles if row["email"] is not None]
    assert all(re.fullmatch(r"[A-Za-z0-9._+-]+@example\.(com|org|net)", email) for email in emails)
    assert any(email != email.lower() for email in emails)
    assert all(re.fullmatch(r"\+999[0-9]{9}", row["phone"]) for row in profiles if row["phone"] is not None)


def test_liking_one_category_says_nothing_about_another(profiles: list[Row]) -> None:
    # All eight are drawn by the same key. By a hash that is too weak, one would settle the others.
    liked = Counter(category for row in profiles for category in row["favourite_categories"])
    pairs = Counter(pair for row in profiles for pair in combinations(row["favourite_categories"], 2))
    assert len(pairs) == len(liked) * (len(liked) - 1) // 2
    assert all(times / len(profiles) == pytest.approx(1 / 4, abs=0.04) for times in liked.values())
    assert all(times / len(profiles) == pytest.approx(1 / 16, abs=0.02) for times in pairs.values())


def test_names_come_in_many_scripts(profiles: list[Row]) -> None:
    characters = {character for row in profiles for character in row["first_name"] + row["last_name"]}
    named = {unicodedata.name(character) for character in characters}
    scripts = {"LATIN", "GREEK", "CYRILLIC", "ARABIC", "HEBREW", "DEVANAGARI", "CJK", "HIRAGANA", "KATAKANA", "HANGUL"}
    assert scripts <= {name.split()[0] for name in named}
    assert any(name.startswith("LATIN") and " WITH " in name for name in named)
    assert any(unicodedata.category(character) == "So" for character in characters), "no emoji"


def test_an_order_falls_between_sign_up_and_export(
    shop: duckdb.DuckDBPyConnection, customers: list[Row], orders: dict[int, list[Row]]
) -> None:
    [export] = rows(shop, "FROM export")
    for customer in customers:
        assert customer["signed_up_at"] <= customer["updated_at"] <= export["exported_at"]
        for order in orders[customer["customer_id"]]:
            assert customer["signed_up_at"] <= order["ordered_at"] < export["exported_at"]


def test_the_lines_of_an_order_add_up_to_its_amount(
    shop: duckdb.DuckDBPyConnection, orders: dict[int, list[Row]]
) -> None:
    sums: dict[int, Decimal] = defaultdict(Decimal)
    for line in rows(shop, "FROM order_lines JOIN products USING (product_id)"):
        sums[line["order_id"]] += line["quantity"] * line["unit_price"]
    assert sums == {order["order_id"]: order["amount"] for placed in orders.values() for order in placed}


def test_few_customers_place_most_orders(customers: list[Row], orders: dict[int, list[Row]]) -> None:
    counts = sorted((len(orders[customer["customer_id"]]) for customer in customers), reverse=True)
    busiest = sum(counts[: len(counts) // 5])
    assert 5.5 < sum(counts) / len(counts) < 6.5
    assert 0.4 < busiest / sum(counts) < 0.6
    assert 0.1 < counts.count(0) / len(counts) < 0.2


def test_metrics_equal_a_count_in_plain_python_for_every_customer(
    shop: duckdb.DuckDBPyConnection, profiles: list[Row], orders: dict[int, list[Row]]
) -> None:
    [export] = rows(shop, "FROM export")
    for row in profiles:
        kept = [order for order in orders[int(row["profile_id"])] if order["status"] not in ("cancelled", "returned")]
        value = sum((order["amount"] for order in kept), Decimal("0.00"))
        assert (row["lifetime_value"], row["orders"]) == (value, len(kept))
        if not kept:
            assert row["last_order_at"] is row["average_order_value"] is row["days_since_last_order"] is None
            continue
        last = max(order["ordered_at"] for order in kept)
        assert row["last_order_at"] == last
        assert row["days_since_last_order"] == (export["exported_at"].date() - last.date()).days
        # Half a cent either way: a tie may be rounded up or down.
        average = Decimal(repr(row["average_order_value"]))
        assert abs(average - value / len(kept)) <= Decimal("0.005")
        assert average == round(average, 2)


def test_audiences_follow_from_what_is_served(
    shop: duckdb.DuckDBPyConnection, profiles: list[Row], settings: Any
) -> None:
    [export] = rows(shop, "FROM export")
    for row in profiles:
        days = row["days_since_last_order"]
        recent = days is not None and days <= 365
        expected = {
            "high_spenders": row["lifetime_value"] >= 1000,
            "churn_risk": row["orders"] >= 2 and days > 180,
            "newsletter": row["marketing_consent"] is True and row["email"] is not None,
            "vip": row["tier"] in ("gold", "platinum") and recent,
            "new_customers": (export["exported_at"].date() - row["signed_up_at"].date()).days <= 30,
        }
        assert {name: row[name] for name in settings["audiences"]} == expected
    for name in settings["audiences"]:
        assert {row[name] for row in profiles} == {True, False}


def test_a_profile_is_as_new_as_its_newest_change(
    customers: list[Row], profiles: list[Row], orders: dict[int, list[Row]]
) -> None:
    for customer, row in zip(customers, profiles, strict=True):
        times = [order["ordered_at"] for order in orders[customer["customer_id"]]]
        assert row["updated_at"] == max([customer["updated_at"], *times])


def test_the_shop_is_the_same_every_time() -> None:
    with make_shop(3_000, threads=1) as first, make_shop(3_000, threads=4) as second:
        assert fingerprint(first) == fingerprint(second)


def test_a_small_shop_is_the_beginning_of_a_large_one() -> None:
    beginning = f"FROM ({MODEL}) ORDER BY CAST(profile_id AS BIGINT) LIMIT 500"
    first_events = f"FROM ({EVENTS}) WHERE CAST(profile_id AS BIGINT) < 12345 + 500 ORDER BY event_id"
    with make_shop(500) as small, make_shop(5_000) as large:
        assert rows(small, beginning) == rows(large, beginning)
        assert rows(small, first_events) == rows(large, first_events)


def test_the_settings_name_columns_of_the_model(profiles: list[Row], settings: Any) -> None:
    identifiers = [entry if isinstance(entry, str) else entry["column"] for entry in settings["identifiers"]]
    named = [settings["id"], *identifiers, *settings["metrics"], *settings["audiences"], settings["updated_at"]]
    assert len(named) == len(set(named))
    assert set(named) < set(profiles[0])


def test_the_settings_name_columns_of_the_events(events: dict[str, list[Row]], declared: Any) -> None:
    named = {column for key, column in declared["events"].items() if key != "sql"}
    assert len(named) == 4
    assert named < set(events["12345"][0])


def test_events_are_of_customers_between_sign_up_and_export_and_no_two_share_an_id(
    shop: duckdb.DuckDBPyConnection, customers: list[Row], events: dict[str, list[Row]]
) -> None:
    [export] = rows(shop, "FROM export")
    since = {str(customer["customer_id"]): customer["signed_up_at"] for customer in customers}
    assert set(events) <= set(since)
    for profile, found in events.items():
        assert all(since[profile] <= event["event_time"] < export["exported_at"] for event in found)
    ids = [event["event_id"] for found in events.values() for event in found]
    assert len(set(ids)) == len(ids)
    assert 9 < len(ids) / len(customers) < 11


def test_what_a_customer_did_is_every_order_and_visits_beside(
    events: dict[str, list[Row]], orders: dict[int, list[Row]]
) -> None:
    for profile, found in events.items():
        amounts = {event["order_id"]: event["amount"] for event in found if event["event_name"] == "order_placed"}
        assert amounts == {order["order_id"]: order["amount"] for order in orders[int(profile)]}
    names = Counter(event["event_name"] for found in events.values() for event in found)
    assert names.keys() == {
        "order_placed",
        "page_viewed",
        "product_viewed",
        "product_reviewed",
        "cart_filled",
        "searched",
    }
    for found in events.values():
        for event in found:
            assert (event["product"] is not None) == (event["event_name"].startswith(("product_", "cart_")))
            assert (event["price"] is None) == (event["product"] is None)


def test_jane_thought_twice_about_the_tent(events: dict[str, list[Row]]) -> None:
    told = [(event["event_name"], event["product"] or event["amount"]) for event in events["12345"]]
    assert len(told) == 11
    assert told[:2] == [("order_placed", Decimal("519.53")), ("product_viewed", "Headphones")]
    [review] = [event for event in events["12345"] if event["event_name"] == "product_reviewed"]
    assert json.loads(review["details"]) == {"stars": 5, "text": "Stood a night of gales on Skye ⛺"}
    tent = told.index(("product_viewed", "Tent"))
    assert told[tent - 2 : tent] == [("order_placed", Decimal("316.95")), ("cart_filled", "Tent")]


@pytest.mark.parametrize("name", ["edgeprofile.toml", "profiles.sql", "events.sql"])
def test_the_example_links_to_the_packaged_file(name: str) -> None:
    assert (EXAMPLE / name).read_bytes() == SAMPLE.joinpath(name).read_bytes()
    assert (EXAMPLE / name).is_symlink()


def fenced(language: str) -> str:
    """The first block of `language` in the example's README."""
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    return text.split(f"```{language}\n")[1].split("```")[0]


def test_the_readme_makes_the_shop(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", fenced("python")], cwd=tmp_path, check=True, timeout=60)
    with duckdb.connect(tmp_path / "shop.duckdb", read_only=True) as shop:
        assert len(rows(shop, MODEL)) == 3_000
        tables = {row["name"] for row in rows(shop, "SHOW TABLES")}
    assert tables == {*KEYS, "export"}


def as_served(value: object) -> object:
    match value:
        case datetime():
            return f"{value.isoformat()}Z"
        case date():
            return value.isoformat()
        case Decimal():
            return float(value)
        case _:
            return value


def test_jane_is_as_the_readme_shows_her(profiles: list[Row], settings: Any) -> None:
    [jane] = [row for row in profiles if row["profile_id"] == "12345"]
    answer = {name: as_served(value) for name, value in jane.items() if name != "preferences"}
    answer["preferences"] = json.loads(jane["preferences"])
    answer["_audiences"] = {name: answer.pop(name) for name in settings["audiences"]}
    answer["_updated_at"] = answer.pop("updated_at")
    assert answer == json.loads(fenced("json"))
